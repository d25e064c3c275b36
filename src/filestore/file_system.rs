//! Keeps blobs as read-only files of one local directory: `ab/<sha1>`, the layout of an Artifactory filestore.
//!
//! A blob is safe against a crash and a power cut once `put` returns. Putting a staging file is a link, so no byte is
//! copied. Anything else in the directory is left alone and told as a stray by a listing.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{FileStat, SFlag};
use parking_lot::Mutex;

use super::blob::{Blob, BlobFile};
use super::error::{Doing, Error, Result};
use super::provider::{Found, Health, Listed, Provider, ProviderStatus, Staged, Visit};
use super::staging::{StagingDir, staging_path};
use super::volume::{ASIDE, HERE, MARKER, NotForced, PRE, ToForce, Volume, Work, tidied};
use crate::change::StagingName;
use crate::checksum::Checksum;
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
fn blob_path(sum: &Checksum) -> String {
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

    fn over(volume: Volume, options: &Options, reflink: bool) -> FileSystem {
        let volume = Arc::new(volume);
        let staging = Arc::new(StagingDir::new(Arc::clone(&volume)));
        let options = Options { blob_mode: options.blob_mode & BLOB_MODE_MASK, ..*options };
        FileSystem { volume, staging, options, reflink, distrusted: Mutex::default() }
    }

    /// Puts the blob of no bytes; staging name 0 is never given out.
    fn put_empty(&self) -> Result<()> {
        let name = StagingName(0);
        self.staging.discard(name)?;
        self.staging.create(name)?;
        self.put(&[(Checksum::EMPTY, Staged { name, size: 0 })])?;
        self.staging.discard(name)
    }

    /// Gets the bytes to the device before they are given a name: a power cut then leaves no blob with torn bytes, since the
    /// file system's journal makes the name durable after what the device had been sent before.
    fn write_back(&self, batch: &[(Checksum, Staged)]) -> Result<()> {
        let file =
            |(_, staged): &(Checksum, Staged)| ToForce { path: staging_path(staged.name), whole: false };
        self.volume.write_back(&batch.iter().map(file).collect::<Vec<_>>()).map_err(|failed| {
            if let Some(i) = failed.file {
                self.staging.refuse(batch[i].1.name);
            }
            failed.error
        })
    }

    /// Gives the staging file the blob's name, unless a whole blob has it.
    fn place(&self, sum: &Checksum, staged: &Staged) -> Result<Placed> {
        let (from, to) = (staging_path(staged.name), blob_path(sum));
        self.staging.must_be_sound(staged.name)?;
        let found = self.staging.stat(staged.name)?.size;
        if found != staged.size {
            return Err(Error::Changed { name: staged.name, expected: staged.size, found });
        }
        if let Some(stands) = self.volume.stat(&to)? {
            let whole = is_file(&stands) && stands.st_size as u64 == staged.size;
            let good = whole && !self.distrusted.lock().contains(sum);
            return if good { Ok(Placed::Stood) } else { self.replace(staged.name, &to) };
        }
        self.staging.dress(&from, self.options.blob_mode, self.options.blob_owner)?;
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

    /// Makes a folder that somebody removed, durably.
    fn make_blob_folder(&self, name: &str) -> Result<()> {
        self.volume.make_folder(name, FOLDER_MODE)?;
        self.volume.force_folder(HERE)
    }

    /// Forces the files and names of a placed batch, also of those that stood: whoever put them may not have come so far.
    fn force_placed(&self, batch: &[(Checksum, Staged)]) -> std::result::Result<(), NotForced> {
        let files: Vec<ToForce> =
            batch.iter().map(|(sum, _)| ToForce { path: blob_path(sum), whole: false }).collect();
        let folders: BTreeSet<&str> = files.iter().map(|file| &file.path[..2]).collect();
        self.volume.force(&files, &folders.into_iter().collect::<Vec<_>>())
    }

    /// Remembers whose bytes the disk refused: the kernel would call the next flush of them a success.
    fn refused(&self, (sum, staged): &(Checksum, Staged), placed: Placed) {
        if placed != Placed::Stood {
            self.staging.refuse(staged.name);
        }
        if placed != Placed::New {
            self.distrusted.lock().insert(*sum);
        }
    }

    /// Takes back the names that a failed batch made; the staging files are then theirs alone again.
    fn take_back(&self, batch: &[(Checksum, Staged)], placed: &[Placed]) {
        for ((sum, staged), placed) in batch.iter().zip(placed) {
            if *placed == Placed::New {
                tidied(self.volume.remove(&blob_path(sum)).and_then(|_| self.staging.make_own(staged.name)));
            }
        }
    }

    /// Puts a batch, all of it or nothing.
    fn put_all(&self, batch: &[(Checksum, Staged)]) -> Result<()> {
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
            if after.is_some_and(|after| name <= *after) {
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
            let known = KNOWN.iter().any(|known| name == *known);
            let is_folder = (0..=u8::MAX).any(|first| name == *folder(first));
            if !known && !is_folder && visit(Listed::Stray(&self.volume.path().join(&name))).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Where a file waits for its name; what a crash leaves there goes at the next open.
fn temporary_path(name: StagingName) -> String {
    format!("{PRE}/{name}.tmp")
}

impl Provider for FileSystem {
    fn open(&self, sum: &Checksum) -> Result<Option<Blob>> {
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

    fn put(&self, batch: &[(Checksum, Staged)]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.volume.noted(Work::Put, self.put_all(batch))
    }

    fn detach(&self, sum: &Checksum, name: StagingName) -> Result<()> {
        let (path, staged, temporary) = (blob_path(sum), staging_path(name), temporary_path(name));
        let blob = BlobFile::open(&self.volume, &path)?.ok_or(Error::Missing(*sum))?;
        let there = match self.staging.stat(name) {
            Ok(stat) if stat.file_ino != blob.file_ino() => return self.staging.make_own(name),
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
            space: space.ok(),
            children: Vec::new(),
        }
    }
}
