//! copy_file_range(2): a copy of a whole sealed file moves no byte.
//!
//! While a destination receives a blob from its start, in order, nothing is written: it is "the first n bytes of that blob"
//! ([`CloneOf`]), and when n is all of it, its content becomes that blob in one commit. Whatever else happens to it before
//! first turns it into bytes ([`Vfs::materialise`]). That needs every write to come to the daemon, so it is done for
//! destinations that are served through it (`copiers` guesses them when they are made); others get a reflink where the
//! disk can, else the bytes.

use std::time::{Duration, Instant};

use crate::change::{Change, Ino, Kind, MountId, StagedRow, StagingName};
use crate::failpoint;
use crate::filestore::Reach;
use crate::sys::content as sys;
use crate::vfs::node::{CloneOf, Locked, Serving, State};
use crate::vfs::stage::UNTOUCHED;
use crate::vfs::{Caller, Error, Result, Vfs, now};

/// Most bytes one request copies; the caller goes on from a short answer.
const COPY_BYTES_MAX: u64 = 256 << 20;

/// Most bytes the kernel asks to copy in one request: what fits 32 bits, in whole pages.
const REQUEST_BYTES_MAX: u64 = u32::MAX as u64 & !0xfff;

/// Who waits for somebody else to fetch a copy looks this often.
const FETCHING_POLL: Duration = Duration::from_millis(5);

/// A place in a file.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The file.
    pub ino: Ino,
    /// Bytes from its start.
    pub offset: u64,
}

impl Vfs {
    /// Copies up to `len` bytes; the answer is how many were.
    pub fn copy_range(&self, caller: &Caller, from: Place, to: Place, len: u64) -> Result<u64> {
        if from.ino != to.ino {
            self.seal_if_closed(from.ino)?;
            if let Some(copied) = self.copy_lazily(from, to, len)? {
                return Ok(copied);
            }
            self.copiers.learn(caller);
        }
        self.copy_bytes(from, to, len.min(COPY_BYTES_MAX))
    }

    /// Begins or continues a lazy copy; `None` when bytes must be moved.
    fn copy_lazily(&self, from: Place, to: Place, len: u64) -> Result<Option<u64>> {
        if from.offset != to.offset {
            return Ok(None);
        }
        let (source, mut node) = self.nodes.lock_two_settled(from.ino, to.ino);
        let inode = self.inode(from.ino)?;
        let Some(checksum) = inode.checksum else { return Ok(None) };
        if source.staged.is_some() || inode.kind != Kind::File || from.offset >= inode.size {
            return Ok(None);
        }
        let node: &mut State = &mut node;
        let Some(staged) = &mut node.staged else { return Ok(None) };
        let covered = to.offset.saturating_add(len).min(inode.size);
        // A copy that ends before its source does becomes bytes at once: half a copy exists in memory only.
        if covered < inode.size && len < REQUEST_BYTES_MAX {
            return Ok(None);
        }
        if matches!(node.serving, Serving::Passthrough(_)) || staged.row.failed.is_some() {
            return Ok(None);
        }
        let clone = match node.clone {
            Some(clone) if clone.checksum == checksum && clone.covered == to.offset => {
                CloneOf { covered, ..clone }
            }
            Some(clone) if clone.covered == 0 && to.offset == 0 => {
                CloneOf { checksum, size: inode.size, covered, ..clone }
            }
            None if to.offset == 0 && self.store.stat_staging(staged.row.file)?.size == 0 => {
                CloneOf { file: staged.row.file, made: true, checksum, size: inode.size, covered }
            }
            _ => return Ok(None),
        };
        let at = now();
        if covered < clone.size {
            staged.row.mtime = at;
            staged.row.ctime = at;
            node.clone = Some(clone);
            return Ok(Some(covered - to.offset));
        }
        // The latch keeps the blob from being reclaimed between the look and the commit. Where that would have to wait for
        // something far away, the reference of the source does: its node is locked.
        let here = self.store.reach() == Reach::Here;
        let _latch = here.then(|| self.store.latch(&checksum));
        if here && self.store.stat_blob(&checksum)? != Some(clone.size) {
            return Ok(None);
        }
        let (ino, size) = (to.ino, clone.size);
        let content = Change::Content { ino, checksum, size, blake3: None, mtime: at, ctime: at };
        let seq = self.commit(&[content])?;
        // A crash here leaves the copy whole.
        failpoint::hit("copy.committed");
        self.end_staged(staged);
        node.staged = None;
        node.clone = None;
        node.guessed = None;
        if clone.made {
            self.retire(seq, clone.file);
        }
        Ok(Some(covered - to.offset))
    }

    /// Whether a change of the attributes of `ino` may have to wait for something that is not on this host, or for somebody who
    /// does: it is a lazy copy that was not turned into bytes.
    pub fn change_waits(&self, ino: Ino) -> bool {
        let node = self.nodes.try_existing(ino, Instant::now());
        node.map_or(true, |node| node.is_some_and(|node| node.clone.is_some()))
    }

    /// Fetches the bytes of a lazy copy from far away before its node is locked by somebody who has to turn it into them, so
    /// that nobody who looks at the file waits for that.
    pub(super) fn copy_ahead(&self, ino: Ino) -> Result<()> {
        self.copy_ahead_if(ino, |_| true)
    }

    /// The same, if this holds. Whoever comes while it is fetched waits for that.
    pub(super) fn copy_ahead_if(&self, ino: Ino, wanted: impl Fn(&State) -> bool) -> Result<()> {
        if self.store.reach() == Reach::Here || self.options.read_only {
            return Ok(());
        }
        let clone = loop {
            let Some(mut node) = self.nodes.existing(ino) else { return Ok(()) };
            let Some(clone) = node.clone.filter(|clone| clone.covered > 0 && wanted(&node)) else {
                return Ok(());
            };
            if !std::mem::replace(&mut node.fetching, true) {
                break clone;
            }
            drop(node);
            std::thread::sleep(FETCHING_POLL);
        };
        let copy = self.past_latches(|| self.copy_for_writing(&clone.checksum, clone.size, clone.covered));
        let mut node = self.nodes.lock(ino);
        node.fetching = false;
        let copy = copy?;
        let taken =
            if node.clone == Some(clone) { self.take_copy(&mut node, clone, copy) } else { Ok(false) };
        drop(node);
        if !matches!(taken, Ok(true)) {
            self.give_up_staging(copy);
        }
        taken.map(drop)
    }

    /// Makes a staging file with the bytes of a lazy copy the file's own; whether it is.
    fn take_copy(&self, node: &mut Locked<'_>, clone: CloneOf, copy: StagingName) -> Result<bool> {
        let node: &mut State = node;
        let Some(staged) = &mut node.staged else { return Ok(false) };
        let MountId { boot, mount } = self.store.mount_of(copy)?;
        let row = StagedRow { file: copy, boot, mount, checksum: None, forced: false, ..staged.row.clone() };
        let seq = self.commit(&[Change::Stage(row.clone())])?;
        staged.row = row;
        staged.unforced_since.get_or_insert_with(Instant::now);
        node.clone = None;
        if clone.made {
            self.retire(seq, clone.file);
        }
        Ok(true)
    }

    /// Turns a lazy copy into bytes of its staging file, because something else is going to happen to the file.
    pub(super) fn materialise(&self, node: &mut Locked<'_>) -> Result<()> {
        let Some(clone) = node.clone else { return Ok(()) };
        // A read-only mount shows what the last daemon left, as it is.
        if self.options.read_only {
            return Ok(());
        }
        self.make_staging_of(node)?;
        if clone.covered == 0 {
            // No copy came, so nothing is copied: a seal of empty files may have the latch as long as it stores others.
            node.clone = None;
            return Ok(());
        }
        let mut blob = self.store.open_blob(&clone.checksum, clone.size)?;
        // The latch keeps the blob's file from changing hands, and being written, while it is copied. The bytes of what is far
        // away stay what they are.
        let latch = blob.local().map(|_| self.store.latch(&clone.checksum));
        if latch.is_some() {
            blob = self.store.open_blob(&clone.checksum, clone.size)?;
        }
        let writer = self.store.open_staging_writer(clone.file)?;
        let what = || Error::io(format!("copy blob {} into staging file {}", clone.checksum, clone.file));
        blob.copy_start(&writer, clone.covered).map_err(what())?;
        // The times are those of the copy, not of this moment.
        sys::set_mtime(&writer, UNTOUCHED).map_err(what())?;
        node.clone = None;
        Ok(())
    }

    /// Makes the staging file of a copy that was expected and did not come, or not as a whole.
    fn make_staging_of(&self, node: &mut Locked<'_>) -> Result<()> {
        let node: &mut State = node;
        let (Some(clone), Some(staged)) = (&mut node.clone, &mut node.staged) else { return Ok(()) };
        if clone.made {
            return Ok(());
        }
        staged.row = self.make_staging(staged.row.clone())?;
        clone.made = true;
        Ok(())
    }

    /// Makes the staging file that was left out, and says so in the row.
    pub(super) fn make_staging(&self, row: StagedRow) -> Result<StagedRow> {
        let file = row.file;
        let make = || -> Result<StagedRow> {
            self.stage_untouched(file)?;
            // A crash here leaves an empty staging file, which is what the row says.
            failpoint::hit("copy.made");
            let MountId { boot, mount } = self.store.mount_of(file)?;
            let row = StagedRow { boot, mount, checksum: None, ..row };
            self.commit(&[Change::Stage(row.clone())])?;
            Ok(row)
        };
        // Nobody has written to it, and the next try makes it anew.
        make().inspect_err(|_| self.give_up_staging(file))
    }

    fn copy_bytes(&self, from: Place, to: Place, len: u64) -> Result<u64> {
        let size = self.attributes(from.ino)?.inode.size;
        let len = len.min(size.saturating_sub(from.offset));
        if len == 0 {
            return Ok(0);
        }
        let end = to.offset.checked_add(len).ok_or(Error::Invalid("a range beyond what a file can have"))?;
        let writer = self.with_prepared(to.ino, |prepared| {
            let mut node = self.nodes.lock(to.ino);
            self.make_dirty_with(&mut node, u64::MAX, prepared)?;
            let staged = node.staged.as_mut().ok_or(Error::Stale(to.ino))?;
            staged.fresh = true;
            // A descriptor of its own: one in the cache would stand in the way of the lease before the seal.
            Ok(self.store.open_staging_writer(staged.row.file)?)
        })?;
        let what = || Error::io(format!("copy bytes of inode {} to inode {}", from.ino, to.ino));
        let there = writer.stat().map_err(what())?.size;
        self.with_reader(from.ino, |reader| {
            reader.copy_over(from.offset, &writer, to.offset, len).map_err(what())
        })?;
        if end > there {
            writer.set_len(end).map_err(what())?;
        }
        // A crash here leaves the bytes copied, and one before it a part of them, as that of a write does.
        failpoint::hit("copy.bytes");
        Ok(len)
    }
}
