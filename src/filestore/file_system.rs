//! Keeps blobs as read-only files of one local directory: `ab/<sha1>`, the layout of an Artifactory filestore.
//!
//! A blob is safe against a crash and a power cut once `put` returns. Putting a staging file is a link, so no byte is
//! copied. Anything else in the directory is left alone and told as a stray by a listing.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{FileStat, SFlag};
use parking_lot::Mutex;

use super::blob::{Blob, BlobFile, FileId};
use super::error::{Doing, Error, Result};
use super::provider::{Found, Health, Listed, Offer, Provider, ProviderStatus, Visit};
use super::staging::{StagingDir, staging_path};
use super::volume::{ASIDE, HERE, MARKER, NotForced, PRE, ToForce, Volume, Work, tidied};
use crate::change::StagingName;
use crate::checksum::{Checksum, Comparison};
use crate::failpoint;
use crate::sys::file;
use crate::text;

/// Its name in a chain.
const KIND: &str = "file-system";

/// Mode of the folders that blobs are in: a blob's own mode says who reads it.
const FOLDER_MODE: u32 = 0o755;
/// Bits a blob may have: nobody writes or runs one.
const BLOB_MODE_MASK: u32 = 0o444;

/// How blobs look on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Permission bits of a blob; bits other than reading are dropped.
    pub blob_mode: u32,
    /// Owner and group of a blob, where they are not the daemon's.
    pub blob_owner: Option<(u32, u32)>,
}

impl Default for Options {
    fn default() -> Options {
        Options { blob_mode: 0o400, blob_owner: None }
    }
}

/// The provider `file-system`.
#[derive(Debug)]
pub struct FileSystem {
    volume: Arc<Volume>,
    staging: Arc<StagingDir>,
    options: Options,
    reflink: bool,
    /// Blobs whose file the disk refused to force: the next put replaces it.
    distrusted: Mutex<HashSet<Checksum>>,
    /// Blobs of which a whole and forced copy waits under a temporary name.
    prepared: Mutex<HashSet<Checksum>>,
}

/// What `place` did with one blob of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// The blob's file stood already.
    Stood,
    /// The staging file took the place of a broken one: it stays when the batch fails.
    Healed,
    /// A new name, taken back when the batch fails.
    New,
}

/// Path of a blob relative to its provider's directory.
pub(super) fn blob_path(sum: &Checksum) -> String {
    let name = sum.to_string();
    format!("{}/{name}", &name[..2])
}

fn folder(first: u8) -> String {
    format!("{first:02x}")
}

fn is_file(found: &FileStat) -> bool {
    found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
}

impl FileSystem {
    /// Makes the directory with its folders, the empty blob and the depot's id; durable on Ok.
    ///
    /// A directory that has blobs already keeps them; doing it again for the same depot changes nothing.
    pub fn create(dir: &Path, depot_id: [u8; 16], options: &Options) -> Result<()> {
        let volume = Volume::create(dir, (0..=u8::MAX).map(folder))?;
        if volume.is_marked(depot_id)? {
            return Ok(());
        }
        let provider = FileSystem::over(volume, options, false);
        provider.put_empty()?;
        provider.volume.mark(depot_id)
    }

    /// Opens a directory that `create` made for this depot; only one process at a time may have it open.
    pub fn open(dir: &Path, depot_id: [u8; 16], options: &Options) -> Result<FileSystem> {
        let volume = Volume::open(dir, depot_id)?;
        let reflink = volume.can_reflink()?;
        Ok(FileSystem::over(volume, options, reflink))
    }

    /// Whether it is on a network or FUSE file system, of which calls may hang.
    pub(super) fn is_on_network(&self) -> bool {
        self.volume.file_system().is_network()
    }

    fn over(volume: Volume, options: &Options, reflink: bool) -> FileSystem {
        let volume = Arc::new(volume);
        let staging = Arc::new(StagingDir::new(Arc::clone(&volume)));
        let options = Options { blob_mode: options.blob_mode & BLOB_MODE_MASK, ..*options };
        FileSystem {
            volume,
            staging,
            options,
            reflink,
            distrusted: Mutex::default(),
            prepared: Mutex::default(),
        }
    }

    /// Puts the blob of no bytes; staging name 0 is never given out.
    fn put_empty(&self) -> Result<()> {
        let name = StagingName(0);
        self.staging.discard(name)?;
        self.staging.create(name)?;
        let from = Arc::clone(&self.staging);
        self.put(&[(Checksum::EMPTY, Offer { from, name, size: 0 })])?;
        self.staging.discard(name)
    }

    /// The directory.
    pub(super) fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Its staging files.
    pub(super) fn own_staging(&self) -> &Arc<StagingDir> {
        &self.staging
    }

    /// Opens a blob's file.
    pub(super) fn open_file(&self, sum: &Checksum) -> Result<Option<BlobFile>> {
        BlobFile::open(&self.volume, &blob_path(sum))
    }

    /// Gives a file of this directory, with the bytes of a blob already forced, the looks and the name of the blob. The name
    /// itself is not forced.
    pub(super) fn place_file(&self, sum: &Checksum, from: &str) -> Result<()> {
        self.staging.dress(from, self.options.blob_mode, self.options.blob_owner)?;
        self.move_into_place(from, &blob_path(sum))
    }

    /// Gives a staging file of another directory, with bytes already forced, the looks and a second name of the blob; false
    /// where that is impossible, because it is on another file system say, and then nothing has changed.
    pub(super) fn link_from(&self, sum: &Checksum, from: &StagingDir, name: StagingName) -> Result<bool> {
        let path = staging_path(name);
        from.dress(&path, self.options.blob_mode, self.options.blob_owner)?;
        match self.volume.try_link_from(&from.volume, &path, &blob_path(sum)) {
            Ok(()) => Ok(true),
            Err(_) => from.make_own(name).map(|()| false),
        }
    }

    /// Whether a staging file is of this very directory, so that its name can be linked.
    fn is_own(&self, offer: &Offer) -> bool {
        Arc::ptr_eq(&offer.from, &self.staging)
    }

    /// The file on this volume that becomes the blob: the staging file itself, or a copy of it.
    fn here(&self, offer: &Offer) -> String {
        if self.is_own(offer) { staging_path(offer.name) } else { temporary_path(offer.name) }
    }

    /// Copies a staging file that lies elsewhere.
    fn fetch(&self, offer: &Offer) -> Result<()> {
        let path = temporary_path(offer.name);
        offer.from.must_be_sound(offer.name)?;
        let from = offer.from.open(offer.name)?;
        let found = from.stat().doing("stat", offer.from.path().join(offer.name.to_string()))?.size;
        if found != offer.size {
            return Err(Error::Changed { name: offer.name, expected: offer.size, found });
        }
        self.volume.remove(&path)?;
        let to = self.volume.create_file(&path, 0o600)?;
        file::copy_start(&from, &to, offer.size).doing("copy a staging file into", self.volume.at(&path))
    }

    /// Gets the bytes to the device before they are given a name: a power cut then leaves no blob with torn bytes, since the
    /// file system's journal makes the name durable after what the device had been sent before.
    fn write_back(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        let file = |(_, offer): &(Checksum, Offer)| ToForce { path: self.here(offer), whole: false };
        self.volume.write_back(&batch.iter().map(file).collect::<Vec<_>>()).map_err(|failed| {
            if let Some((_, offer)) = failed.file.map(|i| &batch[i])
                && self.is_own(offer)
            {
                self.staging.refuse(offer.name);
            }
            failed.error
        })
    }

    /// Gives the staging file the blob's name, unless a whole blob has it.
    fn place(&self, sum: &Checksum, offer: &Offer) -> Result<Placed> {
        let (from, to) = (self.here(offer), blob_path(sum));
        if self.is_own(offer) {
            self.staging.must_be_sound(offer.name)?;
            let found = self.staging.stat(offer.name)?.size;
            if found != offer.size {
                return Err(Error::Changed { name: offer.name, expected: offer.size, found });
            }
        }
        let stands = self.volume.stat(&to)?;
        if let Some(stands) = &stands {
            let whole = is_file(stands) && stands.st_size as u64 == offer.size;
            if whole && !self.distrusted.lock().contains(sum) {
                return Ok(Placed::Stood);
            }
            if self.is_own(offer) {
                return self.replace(offer.name, &to);
            }
        }
        self.staging.dress(&from, self.options.blob_mode, self.options.blob_owner)?;
        if !self.is_own(offer) {
            self.move_into_place(&from, &to)?;
            return Ok(if stands.is_some() { Placed::Healed } else { Placed::New });
        }
        // A crash here leaves a staging file in a blob's mode; its next writer takes that off.
        failpoint::hit("put.dressed");
        match failpoint::call("put.link").and_then(|()| self.volume.try_link(&from, &to)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make_blob_folder(&to[..2])?;
                self.volume.try_link(&from, &to).doing("link a staging file as", self.volume.at(&to))?;
            }
            linked => linked.doing("link a staging file as", self.volume.at(&to))?,
        }
        // A crash here leaves a blob that the index does not know, and that may not be on the disk.
        failpoint::hit("put.linked");
        Ok(Placed::New)
    }

    /// Puts a staging file in the place of a broken blob; at no moment is there no file of that name.
    fn replace(&self, name: StagingName, to: &str) -> Result<Placed> {
        let (from, temporary) = (staging_path(name), temporary_path(name));
        self.staging.dress(&from, self.options.blob_mode, self.options.blob_owner)?;
        self.volume.remove(&temporary)?;
        self.volume.try_link(&from, &temporary).doing("link", self.volume.at(&temporary))?;
        // A crash here leaves the broken blob, and a temporary name, which the next open removes.
        failpoint::hit("heal.linked");
        if let Err(e) = self.volume.rename(&temporary, to) {
            tidied(self.volume.remove(&temporary));
            return Err(e);
        }
        failpoint::hit("heal.renamed");
        Ok(Placed::Healed)
    }

    /// Gives a file that nobody else names the name of a blob, in the place of what has it.
    fn move_into_place(&self, from: &str, to: &str) -> Result<()> {
        match self.volume.rename(from, to) {
            Err(error) if error.is_absent() && self.volume.stat(&to[..2])?.is_none() => {
                self.make_blob_folder(&to[..2])?;
                self.volume.rename(from, to)
            }
            renamed => renamed,
        }
    }

    /// Makes a folder that somebody removed, durably.
    fn make_blob_folder(&self, name: &str) -> Result<()> {
        self.volume.make_folder(name, FOLDER_MODE)?;
        self.volume.force_folder(HERE)
    }

    /// Forces the files and names of a placed batch, also of those that stood: whoever put them may not have come so far.
    fn force_placed(&self, batch: &[(Checksum, Offer)]) -> std::result::Result<(), NotForced> {
        let files: Vec<ToForce> =
            batch.iter().map(|(sum, _)| ToForce { path: blob_path(sum), whole: false }).collect();
        let folders: BTreeSet<&str> = files.iter().map(|file| &file.path[..2]).collect();
        self.volume.force(&files, &folders.into_iter().collect::<Vec<_>>())
    }

    /// Remembers whose bytes the disk refused: the kernel would call the next flush of them a success.
    fn refused(&self, (sum, offer): &(Checksum, Offer), placed: Placed) {
        if placed != Placed::Stood && self.is_own(offer) {
            self.staging.refuse(offer.name);
        }
        if placed != Placed::New {
            self.distrusted.lock().insert(*sum);
        }
    }

    /// Takes back the names that a failed batch made; the staging files are then theirs alone again.
    fn take_back(&self, batch: &[(Checksum, Offer)], placed: &[Placed]) {
        for ((sum, offer), _) in batch.iter().zip(placed).filter(|(_, placed)| **placed == Placed::New) {
            let removed = self.volume.remove(&blob_path(sum));
            let own = || if self.is_own(offer) { self.staging.make_own(offer.name) } else { Ok(()) };
            tidied(removed.and_then(|_| own()));
        }
    }

    /// Puts a batch, all of it or nothing; of files that lie elsewhere copies are put, of which nothing else stays.
    fn put_batch(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        let foreign = || batch.iter().map(|(_, offer)| offer).filter(|offer| !self.is_own(offer));
        let put = foreign().try_for_each(|offer| self.fetch(offer)).and_then(|()| self.put_all(batch));
        // Those whose blob stood already, and all of a batch that failed.
        foreign().for_each(|offer| tidied(self.volume.remove(&temporary_path(offer.name))));
        put
    }

    fn put_all(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        self.write_back(batch)?;
        let mut placed = Vec::with_capacity(batch.len());
        for (sum, staged) in batch {
            match self.place(sum, staged) {
                Ok(one) => placed.push(one),
                Err(e) => {
                    // The one that failed may wear a blob's mode already; writing it again takes that off.
                    self.take_back(batch, &placed);
                    return Err(e);
                }
            }
        }
        if let Err(failed) = self.force_placed(batch) {
            if let Some(i) = failed.file {
                self.refused(&batch[i], placed[i]);
            }
            self.take_back(batch, &placed);
            return Err(failed.error);
        }
        failpoint::hit("put.forced");
        let mut distrusted = self.distrusted.lock();
        if !distrusted.is_empty() {
            distrusted.retain(|sum| !batch.iter().any(|(put, _)| put == sum));
        }
        Ok(())
    }

    /// Copies a blob of another provider under a temporary name, comparing its bytes with their checksum.
    fn copy_verified(&self, sum: &Checksum, blob: &Blob, temporary: &str) -> Result<()> {
        self.volume.remove(temporary)?;
        let copy = self.volume.create_file(temporary, 0o600)?;
        let mut hasher = Comparison::default();
        blob.each_piece(|piece, offset| {
            hasher.update(piece);
            file::write_all_at(&copy, piece, offset)
        })
        .doing("copy a blob into", self.volume.at(temporary))?;
        if hasher.finish() != *sum {
            return Err(Error::Altered(*sum));
        }
        self.staging.dress(temporary, self.options.blob_mode, self.options.blob_owner)?;
        copy.sync_all().doing("force", self.volume.at(temporary))
    }

    /// Makes a blob of such a copy.
    fn place_copy(&self, sum: &Checksum, temporary: &str) -> Result<()> {
        let path = blob_path(sum);
        self.move_into_place(temporary, &path)?;
        self.distrusted.lock().remove(sum);
        self.volume.force_folder(&path[..2])
    }

    /// Puts a forced copy of a blob under a temporary name.
    fn copy_blob(&self, sum: &Checksum, blob: &BlobFile, temporary: &str) -> Result<()> {
        self.volume.remove(temporary)?;
        let copy = self.volume.create_file(temporary, 0o600)?;
        file::copy_start(blob, &copy, blob.size())
            .doing("copy for a writer the blob", self.volume.at(&blob_path(sum)))?;
        self.staging.dress(temporary, self.options.blob_mode, self.options.blob_owner)?;
        copy.sync_all().doing("force", self.volume.at(temporary))
    }

    /// Shows the entries of one folder that come after `after`.
    fn list_folder(
        &self,
        folder: &str,
        after: Option<&str>,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>> {
        for name in self.volume.names(folder)?.unwrap_or_default() {
            if is_still_open(&name) || after.is_some_and(|after| name <= *after) {
                continue;
            }
            let whole = self.volume.path().join(folder).join(&name);
            let sum = name.to_str().and_then(Checksum::parse);
            let shown = match sum.filter(|sum| whole == self.volume.at(&blob_path(sum))) {
                Some(sum) => match self.volume.stat(&blob_path(&sum))? {
                    // Removed since the folder was read.
                    None => continue,
                    Some(found) if is_file(&found) => visit(Listed::Blob { sum, size: found.st_size as u64 }),
                    Some(_) => visit(Listed::Stray(&whole)),
                },
                _ => visit(Listed::Stray(&whole)),
            };
            if shown.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Shows what is in the directory beside the folders of blobs.
    fn list_top(&self, visit: &mut Visit<'_>) -> Result<ControlFlow<()>> {
        /// `lost+found` is the file system's own when the directory is a mount point.
        const KNOWN: [&str; 4] = [PRE, ASIDE, MARKER, "lost+found"];
        for name in self.volume.names(HERE)?.unwrap_or_default() {
            let known = KNOWN.iter().any(|known| name == *known) || is_still_open(&name);
            let is_folder = (0..=u8::MAX).any(|first| name == *folder(first));
            if !known && !is_folder && visit(Listed::Stray(&self.volume.path().join(&name))).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Whether it is what a network file system makes of a removed file that is open; it goes with the last close.
fn is_still_open(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".nfs") || name.starts_with(b".fuse_hidden")
}

/// Where a file waits for its name; what a crash leaves there goes at the next open.
fn temporary_path(name: StagingName) -> String {
    format!("{PRE}/{name}.tmp")
}

/// Where a copy waits for the latch of its blob.
fn prepared_path(sum: &Checksum) -> String {
    format!("{PRE}/{sum}.copy.tmp")
}

impl Provider for FileSystem {
    fn open(&self, sum: &Checksum, _size: Option<u64>) -> Result<Option<Blob>> {
        let path = blob_path(sum);
        failpoint::call("blob.open").doing("open", self.volume.at(&path))?;
        Ok(BlobFile::open(&self.volume, &path)?.map(Blob::Local))
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        let found = self.volume.stat(&blob_path(sum))?;
        Ok(found.filter(is_file).map(|found| found.st_size as u64))
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        let found = self.stat(sum)?.map(|_| Found { kind: KIND, path: self.volume.at(&blob_path(sum)) });
        Ok(found.into_iter().collect())
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        Ok(Arc::clone(&self.staging))
    }

    fn staging(&self, _name: StagingName) -> Result<Arc<StagingDir>> {
        Ok(Arc::clone(&self.staging))
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        vec![Arc::clone(&self.staging)]
    }

    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.volume.noted(Work::Put, self.put_batch(batch))
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        if self.prepared.lock().remove(sum) {
            return self.volume.noted(Work::Put, self.place_copy(sum, &prepared_path(sum)));
        }
        let temporary = format!("{PRE}/{sum}.tmp");
        let copied = self.copy_verified(sum, blob, &temporary);
        let put = copied.and_then(|()| self.place_copy(sum, &temporary));
        if put.is_err() {
            tidied(self.volume.remove(&temporary));
        }
        self.volume.noted(Work::Put, put)
    }

    fn prepare_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        let path = prepared_path(sum);
        self.prepared.lock().remove(sum);
        let copied = self.copy_verified(sum, blob, &path);
        match copied {
            Ok(()) => drop(self.prepared.lock().insert(*sum)),
            Err(_) => tidied(self.volume.remove(&path)),
        }
        self.volume.noted(Work::Put, copied)
    }

    fn forget_copy(&self, sum: &Checksum) -> Result<()> {
        self.prepared.lock().remove(sum);
        self.volume.remove(&prepared_path(sum)).map(drop)
    }

    fn detach(&self, sum: &Checksum, name: StagingName, _file: FileId) -> Result<()> {
        let (path, staged, temporary) = (blob_path(sum), staging_path(name), temporary_path(name));
        let blob = BlobFile::open(&self.volume, &path)?.ok_or(Error::Missing(*sum))?;
        let there = match self.staging.stat(name) {
            Ok(stat) if stat.file_id != blob.file_id() => return self.staging.make_own(name),
            Ok(_) => true,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !there {
            self.volume.try_link(&path, &staged).doing("link a blob as", self.volume.at(&staged))?;
        }
        // A crash before the renaming leaves the blob as it was, and a staging name for it without a row.
        failpoint::hit("detach.linked");
        let replaced = self
            .copy_blob(sum, &blob, &temporary)
            .inspect(|()| failpoint::hit("detach.copied"))
            .and_then(|()| self.volume.rename(&temporary, &path))
            // A crash from here on leaves the copy, or after a power cut the old file, as the blob: equal bytes.
            .inspect(|()| failpoint::hit("detach.renamed"))
            // Before anybody may write to the old file: after a power cut the name must not lead to it again.
            .and_then(|()| self.volume.force_folder(&path[..2]))
            .inspect(|()| failpoint::hit("detach.forced"))
            .and_then(|()| self.staging.make_own(name));
        if let Err(e) = replaced {
            tidied(self.volume.remove(&temporary));
            if !there {
                tidied(self.staging.discard(name));
            }
            return Err(e);
        }
        Ok(())
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        self.volume.remove(&blob_path(sum))
    }

    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        let folders: BTreeSet<String> = sums.iter().map(|sum| folder(sum.0[0])).collect();
        let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
        self.volume.force(&[], &folders).map_err(|failed| failed.error)
    }

    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        if after.is_none() && self.list_top(visit)?.is_break() {
            return Ok(());
        }
        let first = after.map_or(0, |sum| sum.0[0]);
        let mut after = after.map(Checksum::to_string);
        for number in first..=u8::MAX {
            if self.list_folder(&folder(number), after.as_deref(), visit)?.is_break() {
                return Ok(());
            }
            after = None;
        }
        Ok(())
    }

    fn status(&self) -> ProviderStatus {
        let space = self.volume.space();
        let failing = space.as_ref().err().map(|error| text::chain(error)).or_else(|| self.volume.failing());
        ProviderStatus {
            kind: KIND,
            directory: Some(self.volume.path().to_owned()),
            file_system: Some(self.volume.file_system().name().to_owned()),
            reflink: self.reflink,
            health: failing.map_or(Health::Up, Health::Failing),
            space: space.ok().flatten(),
            owed: 0,
            cache: None,
            queue: None,
            children: Vec::new(),
        }
    }
}
