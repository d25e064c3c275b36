//! From a blob to a staging file: what happens before the first write, and how the staged version looks meanwhile.
//!
//! The staging file itself carries the size and, once a write moved it, the mtime of the staged version. As long as its
//! mtime is [`UNTOUCHED`], no write came since the times in the `staged` row were set.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::change::{Change, Ino, Inode, Kind, MountId, Nanos, StagedRow, StagingName};
use crate::checksum::Checksum;
use crate::failpoint;
use crate::filestore::{self, Blob, FileId, Latch, Reach, StagingWriter};
use crate::index::Seq;
use crate::sys::content as sys;
use crate::sys::file::copy_range;
use crate::text;
use crate::vfs::descriptors::Reader;
use crate::vfs::node::{Held, Locked, Serving, Source, Staged};
use crate::vfs::open::LATCH_WAIT_MAX;
use crate::vfs::{Error, GoOn, Result, Vfs};

/// mtime of a staging file that no write touched since the times of its version were set: one second after 1970, which no
/// write can leave behind, on file systems that keep whole seconds only as well.
pub const UNTOUCHED: Nanos = 1_000_000_000;

/// A copy of a blob that waits for a file to be locked: the blob, the bytes of it, and the staging file.
#[derive(Debug, Default)]
pub(super) struct Prepared(Option<(Checksum, u64, StagingName)>);

impl Prepared {
    /// The staging file, if it is what is wanted.
    fn take(&mut self, sum: &Checksum, keep: u64) -> Option<StagingName> {
        let fits = self.0.as_ref().is_some_and(|(of, kept, _)| of == sum && *kept == keep);
        if fits { self.0.take().map(|(_, _, name)| name) } else { None }
    }
}

/// How the newest version of a file looks from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Bytes.
    pub size: u64,
    /// Of 512 bytes, allocated.
    pub blocks: u64,
    /// Last change of the bytes.
    pub mtime: Nanos,
    /// Last change of anything.
    pub ctime: Nanos,
}

impl Vfs {
    /// Whether `ino` has a staging file, whoever holds its node.
    pub fn is_staged(&self, ino: Ino) -> bool {
        self.index.staged_of(ino).is_ok_and(|row| row.is_some())
    }

    /// How the staged version of `inode` looks now.
    pub(super) fn staged_version(
        &self,
        node: &Locked<'_>,
        inode: &Inode,
        staged: &Staged,
    ) -> Result<Version> {
        let row = &staged.row;
        if let Some(clone) = &node.clone {
            let blocks = clone.covered.div_ceil(512);
            return Ok(Version {
                size: clone.covered,
                blocks,
                mtime: row.mtime,
                ctime: row.ctime.max(inode.ctime),
            });
        }
        let stat = self.store.look_at_staging(row.file)?;
        let ctime = inode.ctime.max(row.ctime);
        let (mtime, ctime) =
            if stat.mtime == UNTOUCHED { (row.mtime, ctime) } else { (stat.mtime, ctime.max(stat.mtime)) };
        Ok(Version { size: stat.size, blocks: stat.blocks, mtime, ctime })
    }

    /// Where the daemon reads the bytes of `inode` now.
    pub(super) fn source(&self, node: &Locked<'_>, inode: &Inode) -> Result<Source> {
        if let Some(staged) = &node.staged {
            if let Some(why) = &staged.row.failed {
                return Err(Error::Failed { ino: inode.ino, why: why.clone() });
            }
            return Ok(match node.clone {
                Some(clone) if !clone.made => Source::Blob(clone.checksum),
                _ => Source::Staging(staged.row.file),
            });
        }
        match inode.checksum {
            Some(sum) => Ok(Source::Blob(sum)),
            None => Err(Error::Stale(inode.ino)),
        }
    }

    /// A descriptor to read `source` through, from the cache. `size` is what the index says of a blob.
    pub(super) fn reader(&self, source: Source, size: u64) -> Result<Arc<Reader>> {
        Ok(self.descriptors.reader(source, || self.open_source(source, size))?)
    }

    /// A descriptor of its own for `source`.
    pub(super) fn open_source(
        &self,
        source: Source,
        size: u64,
    ) -> std::result::Result<Reader, filestore::Error> {
        Ok(match source {
            Source::Blob(sum) => Reader::Blob(self.store.open_blob(&sum, size)?),
            Source::Staging(name) => Reader::Staging(self.store.open_staging(name)?),
        })
    }

    /// A descriptor to write a staging file through, from the cache.
    pub(super) fn writer(&self, name: StagingName) -> Result<Arc<StagingWriter>> {
        Ok(self.descriptors.writer(name, || self.store.open_staging_writer(name))?)
    }

    /// Makes the bytes of a locked file writable in a staging file, keeping the first `keep` of them.
    ///
    /// Whatever the kernel holds open of the file goes on showing its bytes, and shows what is written from now on.
    pub(super) fn make_dirty(&self, node: &mut Locked<'_>, keep: u64) -> Result<()> {
        self.make_dirty_with(node, keep, &mut Prepared::default())
    }

    /// As `make_dirty`, with a copy that may have been made before the node was locked.
    pub(super) fn make_dirty_with(
        &self,
        node: &mut Locked<'_>,
        keep: u64,
        prepared: &mut Prepared,
    ) -> Result<()> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        node.settle();
        if let Some(sealing) = node.sealing.take() {
            sealing.cancel();
        }
        self.materialise(node)?;
        // Read only now: while this waited for a seal to end, the content changed.
        let inode = &self.inode(node.ino())?;
        if inode.kind != Kind::File {
            return Err(Error::Invalid("not a regular file"));
        }
        if let Some(staged) = &mut node.staged {
            if let Some(why) = &staged.row.failed {
                return Err(Error::Failed { ino: inode.ino, why: why.clone() });
            }
            return self.make_private(node, inode);
        }
        let sum = inode.checksum.ok_or(Error::Stale(inode.ino))?;
        let left = match node.serving {
            Serving::Idle | Serving::Daemon => self.left_behind(inode.ino),
            Serving::Passthrough(_) => None,
        };
        let mapped = match (&node.serving, left) {
            (Serving::Idle, None) => self.left_mapping(&sum, inode.ino)?,
            _ => None,
        };
        let file = match (&node.serving, left) {
            (_, Some(name)) => {
                self.untouch(name)?;
                name
            }
            (Serving::Idle | Serving::Daemon, None) => match mapped {
                Some(file) => {
                    let name = self.next_staging()?;
                    self.take_over(&sum, name, file)?;
                    name
                }
                None => match prepared.take(&sum, keep) {
                    Some(name) => name,
                    None => self.copy_for_writing(&sum, inode.size, keep)?,
                },
            },
            (Serving::Passthrough(backing), None) => {
                let name = match backing.source {
                    Source::Staging(name) => name,
                    Source::Blob(_) => self.next_staging()?,
                };
                self.take_over(&sum, name, backing.file_id)?;
                name
            }
        };
        // A crash here leaves the blob's bytes as they were, and a staging file without a row.
        failpoint::hit("dirty.copied");
        let row = self.staged_row(inode, file)?;
        if let Serving::Passthrough(backing) = &mut node.serving {
            backing.source = Source::Staging(file);
            backing.owns = None;
        }
        if let Err(error) = self.commit(&[Change::Stage(row.clone())]) {
            if left.is_none() && matches!(node.serving, Serving::Idle | Serving::Daemon) {
                self.give_up_staging(file);
            }
            return Err(error);
        }
        self.left.lock().remove(&inode.ino);
        // A crash here leaves a staged version that nobody has written; cut to `keep` bytes by a truncation that goes on.
        failpoint::hit("dirty.committed");
        let mut staged = Staged::new(row);
        staged.fresh = keep < inode.size;
        node.staged = Some(staged);
        Ok(())
    }

    /// Makes an empty staging file with the time of one that nobody wrote.
    pub(super) fn stage_untouched(&self, name: StagingName) -> Result<()> {
        let writer = self.store.stage(name)?;
        sys::set_mtime(&writer, UNTOUCHED).map_err(Error::io(format!("set the time of staging file {name}")))
    }

    /// Sets the time of a staging file that is about to be written, so that a write shows.
    fn untouch(&self, name: StagingName) -> Result<()> {
        let writer = self.store.open_staging_writer(name)?;
        sys::set_mtime(&writer, UNTOUCHED).map_err(Error::io(format!("set the time of staging file {name}")))
    }

    /// The `staged` row of a version that starts as `inode` is.
    pub(super) fn staged_row(&self, inode: &Inode, file: StagingName) -> Result<StagedRow> {
        Ok(row(inode, file, self.store.mount_of(file)?, None))
    }

    /// The same of a new file that has no bytes, and whose staging file is not made.
    pub(super) fn unmade_row(&self, inode: &Inode, file: StagingName) -> Result<StagedRow> {
        Ok(row(inode, file, self.store.mount_of_new()?, Some(Checksum::EMPTY)))
    }

    /// Copies a sealed file that is far away before its node is locked, so that nobody who looks at it waits for that.
    pub(super) fn prepare(&self, ino: Ino, keep: u64) -> Result<Prepared> {
        // What is emptied at once needs nothing of it.
        self.copy_ahead_if(ino, |node| keep > 0 || !matches!(node.serving, Serving::Idle))?;
        if self.store.reach() == Reach::Here || keep == 0 {
            return Ok(Prepared::default());
        }
        let held = match self.nodes.try_existing(ino, Instant::now() + PREPARE_HELD_MAX) {
            Ok(Some(mut node)) => {
                // What is being stored is going to be far away.
                node.settle();
                if node.staged.is_some() {
                    return Ok(Prepared::default());
                }
                false
            }
            Ok(None) => false,
            Err(Held) => true,
        };
        let prepared = self.prepare_sealed(ino, keep);
        // Nobody could tell whether the bytes are here by now: then those of an older version need not be had.
        if held { Ok(prepared.unwrap_or_default()) } else { prepared }
    }

    fn prepare_sealed(&self, ino: Ino, keep: u64) -> Result<Prepared> {
        let inode = self.inode(ino)?;
        let Some(sum) = inode.checksum.filter(|_| inode.kind == Kind::File && inode.size > 0) else {
            return Ok(Prepared::default());
        };
        if self.store.open_blob(&sum, inode.size)?.local().is_some() {
            return Ok(Prepared::default());
        }
        let copy = self.past_latches(|| self.copy_for_writing(&sum, inode.size, keep))?;
        Ok(Prepared(Some((sum, keep, copy))))
    }

    /// The latch of a blob, for one who has a file locked: where those who hold it may wait for something far away, he does
    /// not wait for them, as everybody who looks at the file would wait with him.
    pub(super) fn latch_with_node(&self, sum: &Checksum) -> Result<Latch<'_>> {
        match self.store.reach() {
            Reach::Here => Ok(self.store.latch(sum)),
            _ => self.store.try_latch(sum, LATCH_WAIT_MAX).ok_or(Error::Latched(*sum)),
        }
    }

    /// Does again what wanted a latch with a file locked, when it has been given back.
    pub(super) fn past_latches<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let end = Instant::now() + LATCHED_MAX;
        loop {
            match work() {
                Err(Error::Latched(sum)) if Instant::now() < end => {
                    drop(self.store.try_latch(&sum, end.saturating_duration_since(Instant::now())));
                }
                done => return done,
            }
        }
    }

    /// Does what makes a whole file writable, with the copy for it made before.
    pub(super) fn with_prepared<T>(
        &self,
        ino: Ino,
        mut work: impl FnMut(&mut Prepared) -> Result<T>,
    ) -> Result<T> {
        let mut prepared = self.prepare(ino, u64::MAX)?;
        let done = self.past_latches(|| work(&mut prepared));
        self.drop_prepared(prepared);
        done
    }

    /// Lets go of a copy that was not needed.
    pub(super) fn drop_prepared(&self, prepared: Prepared) {
        if let Some((_, _, name)) = prepared.0 {
            self.give_up_staging(name);
        }
    }

    /// A staging file with the first bytes of a blob.
    pub(super) fn copy_for_writing(&self, sum: &Checksum, size: u64, keep: u64) -> Result<StagingName> {
        let name = self.next_staging()?;
        let keep = keep.min(size);
        if keep == 0 {
            self.stage_untouched(name)?;
            return Ok(name);
        }
        let blob = self.store.open_blob(sum, size)?;
        let writer = match blob {
            // Its bytes stay what they are, and nobody else is to wait for them.
            Blob::Remote(_) => self.store.stage_of(name, &blob, keep)?,
            Blob::Local(_) => {
                drop(blob);
                // The latch keeps the blob's file from changing hands, and being written, while it is copied.
                let _latch = self.latch_with_node(sum)?;
                self.store.stage_from(name, sum, size, keep)?
            }
        };
        sys::set_mtime(&writer, UNTOUCHED)
            .map_err(Error::io(format!("set the time of staging file {name}")))?;
        Ok(name)
    }

    /// Makes the file that the kernel serves by passthrough, a blob's own file perhaps, a staging file of one name.
    fn take_over(&self, sum: &Checksum, name: StagingName, file_id: FileId) -> Result<()> {
        let latch = self.latch_with_node(sum)?;
        self.store.detach(&latch, name, file_id)?;
        // A crash here leaves the blob under its name with a file of its own. Nobody has written to the old one.
        failpoint::hit("swap.detached");
        self.change_hands(sum, file_id);
        let writer = self.only_writer(name)?;
        let found = writer.stat().map_err(Error::io(format!("stat staging file {name}")))?;
        if found.file_id != file_id {
            // Somebody put another file under the blob's name while the first was open: the kernel's is out of reach.
            self.give_up_staging(name);
            return Err(Error::Swapped(*sum));
        }
        sys::set_mtime(&writer, UNTOUCHED).map_err(Error::io(format!("set the time of staging file {name}")))
    }

    /// Opens a staging file that was a blob's for writing, once it has no other name.
    ///
    /// The staging name from which the blob was made leads to it until the commit of that seal is durable: after a power cut
    /// it would stand for the version before, of another inode perhaps, with what is written now.
    fn only_writer(&self, name: StagingName) -> Result<StagingWriter> {
        let end = Instant::now() + UNLINKED_WITHIN;
        loop {
            match self.store.open_staging_writer(name) {
                Err(filestore::Error::Linked { .. }) if Instant::now() < end => {
                    self.sync_index()?;
                    self.release_retired();
                }
                opened => return Ok(opened?),
            }
            // Another thread may be about to unlink it.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The blob has got another file: readers of other inodes that hold the old one must not see what is written to it.
    fn change_hands(&self, sum: &Checksum, file: FileId) {
        let _gate = self.blob_reads.write();
        self.descriptors.forget_blob(sum);
        self.hand_overs.fetch_add(1, Ordering::AcqRel);
        self.disown_file(sum, file);
    }

    /// Sees to it that a staging file has one name: a put that was not committed may have left it linked as a blob.
    fn make_private(&self, node: &mut Locked<'_>, inode: &Inode) -> Result<()> {
        let Some(staged) = &mut node.staged else { return Ok(()) };
        let name = staged.row.file;
        let stat = self.store.stat_staging(name)?;
        if stat.links == 1 {
            return Ok(());
        }
        if let Some(sum) = self.put_from(name)? {
            let latch = self.latch_with_node(&sum)?;
            // Under the latch, as another file may have been put there meanwhile.
            if self.take_back(&latch, name)? {
                self.change_hands(&sum, stat.file_id);
                return Ok(());
            }
            let other = self.owners.lock().get(&sum).is_some_and(|owner| owner.ino != inode.ino);
            if !other && self.is_blob(&sum, name)? {
                self.store.detach(&latch, name, stat.file_id)?;
                // A crash here leaves the staged version in a file of one name, and a blob that the index may not know.
                failpoint::hit("private.detached");
                self.change_hands(&sum, stat.file_id);
                return Ok(());
            }
        }
        // The file serves another inode of the same content by now: this one gets a copy.
        let (moved, _) = self.restage(&staged.row)?;
        staged.row = moved;
        self.give_up_staging(name);
        Ok(())
    }

    /// A copy of a staging file takes its place; the caller retires the old one.
    pub(super) fn restage(&self, row: &StagedRow) -> Result<(StagedRow, Seq)> {
        let what = || Error::io(format!("copy staging file {}", row.file));
        let name = self.next_staging()?;
        let old = self.store.open_staging(row.file)?;
        let new = self.store.stage(name)?;
        let stat = old.stat().map_err(what())?;
        let copied = copy_range(&old, 0, &new, 0, stat.size)
            .and_then(|()| new.set_len(stat.size))
            .and_then(|()| sys::set_mtime(&new, stat.mtime))
            .map_err(what());
        drop(new);
        // A crash here leaves the row with the old file: the copy is discarded.
        failpoint::hit("restage.copied");
        let MountId { boot, mount } = self.store.mount_of(name)?;
        let moved = StagedRow { file: name, boot, mount, ..row.clone() };
        let committed = copied
            .and_then(|()| if row.forced { Ok(self.store.force_staging(&[name])?) } else { Ok(()) })
            .and_then(|()| self.commit(&[Change::Stage(moved.clone())]));
        // A crash here leaves the row with the copy: the old file is discarded, whoever still writes to it.
        failpoint::hit("restage.committed");
        match committed {
            Ok(seq) => Ok((moved, seq)),
            Err(error) => {
                self.give_up_staging(name);
                Err(error)
            }
        }
    }

    /// Unlinks a staging file of a version that was not sealed. One that a put has linked as a blob already, before a crash,
    /// is looked at in the background: no commit may know that blob.
    pub(super) fn let_go(&self, name: StagingName) {
        if self.store.stat_staging(name).is_ok_and(|stat| stat.links > 1) {
            self.half_put.lock().push(name);
        } else {
            self.give_up_staging(name);
        }
    }

    /// Unlinks what `let_go` kept, and the blobs that only a put without a commit has made. A job does this.
    pub fn settle_half_put(&self, go_on: GoOn<'_>) {
        // Those that are left at the end of the daemon are strays, of which the next recovery takes care.
        while go_on() {
            let Some(name) = self.half_put.lock().pop() else { return };
            match self.take_back_put(name) {
                Ok(()) => self.give_up_staging(name),
                Err(error) => {
                    let why = text::chain(&error);
                    tracing::warn!("staging file {name}, without use, stays until the next start: {why}");
                }
            }
        }
    }

    /// Unlinks the blob that a staging file is too, if no commit knows it.
    pub(super) fn take_back_put(&self, name: StagingName) -> Result<()> {
        match self.put_from(name)? {
            Some(sum) => self.take_back(&self.store.latch(&sum), name).map(drop),
            None => Ok(()),
        }
    }

    /// The checksum of a staging file, if a put has linked it as that blob.
    fn put_from(&self, name: StagingName) -> Result<Option<Checksum>> {
        let reader = match self.store.open_staging(name) {
            Err(error) if error.is_absent() => return Ok(None),
            reader => reader?,
        };
        let digest = reader.digest(|| true).map_err(Error::io(format!("read staging file {name}")))?;
        let Some(digest) = digest else { return Ok(None) };
        Ok(self.is_blob(&digest.checksum, name)?.then_some(digest.checksum))
    }

    /// Whether a staging file and a blob are one file.
    fn is_blob(&self, sum: &Checksum, name: StagingName) -> Result<bool> {
        let Some(size) = self.store.stat_blob(sum)? else { return Ok(false) };
        let staged = self.store.open_staging(name)?;
        let staged = staged.stat().map_err(Error::io(format!("stat staging file {name}")))?;
        Ok(staged.size == size && self.store.open_copy(sum, staged.file_id)?.is_some())
    }

    /// Unlinks a blob that is this staging file, unless a commit knows it; whether it did.
    fn take_back(&self, latch: &Latch<'_>, name: StagingName) -> Result<bool> {
        let sum = latch.checksum();
        if self.index.blob(sum)?.is_some() || !self.is_blob(sum, name)? {
            return Ok(false);
        }
        self.store.remove_blob(latch)?;
        Ok(true)
    }

    /// Unlinks a staging file that no committed row names.
    pub(super) fn give_up_staging(&self, name: StagingName) {
        self.descriptors.forget_staging(name);
        if let Err(error) = self.store.discard(name) {
            let why = text::chain(&error);
            tracing::warn!("a staging file without use stays until the next start: {why}");
        }
    }

    /// Counts a file that was closed for writing into the backlog, and lets it wait for its seal.
    pub(super) fn close_staged(&self, node: &mut Locked<'_>) {
        let orphan = node.orphan;
        let Some(staged) = &mut node.staged else { return };
        let name = staged.row.file;
        self.descriptors.close_writer(name);
        staged.closed = Some(Instant::now());
        staged.attempts = 0;
        self.uncount(staged);
        if orphan || staged.row.failed.is_some() {
            return;
        }
        let bytes = self.store.stat_staging(name).map_or(0, |stat| stat.blocks * 512);
        staged.counted = Some(bytes);
        self.backlog.files.fetch_add(1, Ordering::Relaxed);
        self.backlog.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes a file out of the backlog: sealed, reopened or gone.
    pub(super) fn uncount(&self, staged: &mut Staged) {
        if let Some(bytes) = staged.counted.take() {
            self.backlog.files.fetch_sub(1, Ordering::Relaxed);
            self.backlog.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.backlog.less.notify_all();
        }
    }

    /// The staged version ends: sealed, replaced or gone.
    pub(super) fn end_staged(&self, staged: &mut Staged) {
        self.ended.fetch_add(1, Ordering::Release);
        self.uncount(staged);
        if let Some(sum) = &staged.row.checksum {
            self.promised.lock().remove(sum);
        }
    }

    /// Whether so much waits to be sealed that writers wait.
    pub fn is_backlogged(&self) -> bool {
        self.backlog.files.load(Ordering::Relaxed) >= self.options.backlog_files_max
            || self.backlog.bytes.load(Ordering::Relaxed) >= self.options.backlog_bytes_max
    }

    /// Waits while too much waits to be sealed; before any lock is taken.
    pub(super) fn wait_for_backlog(&self) -> Result<()> {
        if !self.is_backlogged() {
            return Ok(());
        }
        let deadline = Instant::now() + BACKLOG_WAIT_MAX;
        let mut gate = self.backlog.gate.lock();
        while self.is_backlogged() {
            if Instant::now() >= deadline {
                return Err(Error::Backlog);
            }
            self.backlog.less.wait_for(&mut gate, Duration::from_millis(100));
        }
        Ok(())
    }
}

fn row(inode: &Inode, file: StagingName, on: MountId, checksum: Option<Checksum>) -> StagedRow {
    let (Inode { ino, mtime, ctime, .. }, MountId { boot, mount }) = (inode, on);
    let (ino, mtime, ctime) = (*ino, *mtime, *ctime);
    StagedRow { ino, file, boot, mount, forced: false, checksum, mtime, ctime, failed: None }
}

/// Names that nothing needs any more are unlinked within this time, also by a thread that has many of them to unlink.
const UNLINKED_WITHIN: Duration = Duration::from_secs(10);

/// How long somebody waits, with no file locked, for those who work on a blob.
const LATCHED_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long somebody who is about to write waits for whoever holds the file, before he fetches bytes that may be here.
const PREPARE_HELD_MAX: Duration = Duration::from_secs(1);

/// How long a writer waits for the backlog before it is told that there is no room.
const BACKLOG_WAIT_MAX: Duration = Duration::from_secs(60);
