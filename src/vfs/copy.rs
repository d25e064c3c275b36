//! copy_file_range(2): a copy of a whole sealed file moves no byte.
//!
//! While a destination receives a blob from its start, in order, nothing is written: it is "the first n bytes of that blob"
//! ([`CloneOf`]), and when n is all of it, its content becomes that blob in one commit. Whatever else happens to it before,
//! or to a finished one while its writer is open, first turns it into bytes ([`Vfs::materialise`]).
//!
//! Writes that the kernel passes through do not come here, so a lazy copy is begun only where the next write is sure to be
//! announced: the descriptors are write-only, and the kernel has just read the attributes anew, after which it asks for
//! `security.capability` before it lets a write pass. That question is the announcement.

use std::sync::atomic::Ordering;

use crate::change::{Change, Ino, Inode, Kind};
use crate::sys::content as sys;
use crate::sys::file::copy_range;
use crate::vfs::node::{CloneOf, Locked, Serving, Staged};
use crate::vfs::stage::UNTOUCHED;
use crate::vfs::{Error, Result, Vfs, now};

/// Most bytes one request copies; the caller goes on from a short answer.
const COPY_BYTES_MAX: u64 = 256 << 20;

/// Lazy copies that may wait for the kernel at once, so that request threads are left to answer it.
const CLONES_WAITING_MAX: u64 = 3;

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
    pub fn copy_range(&self, from: Place, to: Place, len: u64) -> Result<u64> {
        if from.ino != to.ino {
            self.seal_if_closed(from.ino)?;
            if let Some(copied) = self.copy_lazily(from, to, len)? {
                return Ok(copied);
            }
        }
        self.copy_bytes(from, to, len.min(COPY_BYTES_MAX))
    }

    /// Begins or continues a lazy copy; `None` when bytes must be moved.
    fn copy_lazily(&self, from: Place, to: Place, len: u64) -> Result<Option<u64>> {
        let Some((clone, announced)) = self.lazy_plan(from, to, len)? else { return Ok(None) };
        if !announced && !self.have_writes_announced(to.ino)? {
            let mut node = self.nodes.lock(to.ino);
            let inode = self.inode(to.ino)?;
            self.materialise(&mut node, &inode)?;
            return Ok(None);
        }
        let mut node = self.nodes.lock(to.ino);
        let Some(now_there) = node.clone else { return Ok(None) };
        let covered = clone.covered;
        if now_there.covered != to.offset || node.staged.is_none() || (!announced && !now_there.refreshed) {
            let inode = self.inode(to.ino)?;
            self.materialise(&mut node, &inode)?;
            return Ok(None);
        }
        node.clone = Some(CloneOf { covered, ..now_there });
        if covered == clone.size {
            self.finish_clone(&mut node)?;
        } else if let Some(staged) = &mut node.staged {
            staged.row.mtime = now();
            staged.row.ctime = staged.row.mtime;
        }
        Ok(Some(covered - to.offset))
    }

    /// Whether this request can be lazy, and whether the next write to the destination is announced already.
    fn lazy_plan(&self, from: Place, to: Place, len: u64) -> Result<Option<(CloneOf, bool)>> {
        if from.offset != to.offset {
            return Ok(None);
        }
        let (source, mut node) = self.nodes.lock_two(from.ino, to.ino);
        if source.staged.is_some() || source.clone.is_some() {
            return Ok(None);
        }
        let inode = self.inode(from.ino)?;
        let Some(checksum) = inode.checksum else { return Ok(None) };
        if inode.kind != Kind::File || from.offset >= inode.size {
            return Ok(None);
        }
        drop(source);
        node.settle();
        let covered = (to.offset + len).min(inode.size);
        let announced = !matches!(node.serving, Serving::Passthrough(_));
        let Some(staged) = &node.staged else { return Ok(None) };
        if !announced && (node.readers > 0 || !self.passthrough()) {
            return Ok(None);
        }
        match node.clone {
            Some(clone) if clone.checksum == checksum && clone.covered == to.offset => {
                Ok(Some((CloneOf { covered, ..clone }, announced || clone.refreshed)))
            }
            Some(_) => Ok(None),
            None if to.offset > 0 || self.store.stat_staging(staged.row.file)?.size > 0 => Ok(None),
            None => {
                let clone =
                    CloneOf { file: staged.row.file, checksum, size: inode.size, covered: 0, refreshed: announced };
                node.clone = Some(clone);
                Ok(Some((CloneOf { covered, ..clone }, announced)))
            }
        }
    }

    /// Makes the kernel read the attributes of `ino` anew while it holds back writes to it (it does, during the request
    /// that this answers). False when that cannot be had.
    fn have_writes_announced(&self, ino: Ino) -> Result<bool> {
        let Some(path) = self.path_in_mount(ino)? else { return Ok(false) };
        let waiting = self.clones_waiting.fetch_add(1, Ordering::AcqRel);
        let refreshed = waiting < CLONES_WAITING_MAX && sys::stat_anew(&path).is_ok_and(|seen| seen == ino);
        self.clones_waiting.fetch_sub(1, Ordering::AcqRel);
        Ok(refreshed)
    }

    /// A path of `ino` below the mountpoint; `None` when it has none.
    fn path_in_mount(&self, ino: Ino) -> Result<Option<std::path::PathBuf>> {
        use std::os::unix::ffi::OsStringExt;
        let Some(path) = self.index.path(ino)? else { return Ok(None) };
        let root = if self.options.subdir == crate::change::ROOT {
            Vec::new()
        } else {
            let mut root = self.index.path(self.options.subdir)?.unwrap_or_default();
            root.push(b'/');
            root
        };
        let Some(below) = path.strip_prefix(root.as_slice()) else { return Ok(None) };
        Ok(Some(self.options.mountpoint.join(std::ffi::OsString::from_vec(below.to_vec()))))
    }

    /// The destination of a finished lazy copy gets its content.
    fn finish_clone(&self, node: &mut Locked<'_>) -> Result<()> {
        let (Some(clone), Some(staged)) = (node.clone, &node.staged) else { return Ok(()) };
        let at = now();
        let seq = self.commit(&[Change::Content {
            ino: node.ino(),
            checksum: clone.checksum,
            size: clone.size,
            blake3: None,
            mtime: at,
            ctime: at.max(staged.row.ctime),
        }])?;
        let mut staged = node.staged.take();
        if let Some(staged) = &mut staged {
            self.uncount(staged);
        }
        // The kernel may hold the empty staging file open for writing; then it waits beside the content for a write.
        if !matches!(node.serving, Serving::Passthrough(_)) {
            node.clone = None;
            self.retire(seq, clone.file);
        }
        Ok(())
    }

    /// The writer of a finished lazy copy is gone: the empty staging file goes too.
    pub(super) fn end_clone(&self, node: &mut Locked<'_>, clone: CloneOf) -> Result<()> {
        node.clone = None;
        let left = self.store.stat_staging(clone.file)?;
        if left.size == 0 && left.mtime == UNTOUCHED {
            return Ok(());
        }
        // Cannot happen as long as the kernel announces writes; the bytes are kept and somebody is told.
        self.keep_aside(clone.file, "written after a copy without the kernel saying so");
        Ok(())
    }

    /// Turns a lazy copy into bytes of its staging file, because something else is going to happen to the file.
    pub(super) fn materialise(&self, node: &mut Locked<'_>, inode: &Inode) -> Result<()> {
        let Some(clone) = node.clone else { return Ok(()) };
        if clone.covered > 0 {
            let blob = self.store.open_blob(&clone.checksum, clone.size)?;
            let writer = self.store.open_staging_writer(clone.file)?;
            let what = || Error::io(format!("copy blob {} into staging file {}", clone.checksum, clone.file));
            copy_range(&blob, 0, &writer, 0, clone.covered).map_err(what())?;
            writer.set_len(clone.covered).map_err(what())?;
            if node.staged.is_none() {
                sys::set_mtime(&writer, UNTOUCHED).map_err(what())?;
            }
        }
        if node.staged.is_none() {
            let row = self.staged_row(inode, clone.file);
            self.commit(&[Change::Stage(row.clone())])?;
            let mut staged = Staged::new(row);
            staged.fresh = false;
            node.staged = Some(staged);
        }
        node.clone = None;
        Ok(())
    }

    /// The announcement: the kernel asked for the capability of a file, as it does before a first write.
    pub fn write_is_coming(&self, ino: Ino) -> Result<()> {
        let Some(mut node) = self.nodes.existing(ino) else { return Ok(()) };
        if node.clone.is_some() && node.writers > 0 {
            let inode = self.inode(ino)?;
            self.materialise(&mut node, &inode)?;
        }
        Ok(())
    }

    fn copy_bytes(&self, from: Place, to: Place, len: u64) -> Result<u64> {
        let (reader, size) = {
            let mut node = self.nodes.lock(from.ino);
            let inode = self.inode(from.ino)?;
            self.materialise(&mut node, &inode)?;
            let size = match &node.staged {
                Some(staged) => self.staged_version(&node, &inode, staged)?.size,
                None => inode.size,
            };
            (self.reader(self.source(&node, &inode)?, inode.size)?, size)
        };
        let len = len.min(size.saturating_sub(from.offset));
        if len == 0 {
            return Ok(0);
        }
        let writer = {
            let mut node = self.nodes.lock(to.ino);
            let inode = self.inode(to.ino)?;
            self.make_dirty(&mut node, &inode, u64::MAX)?;
            let staged = node.staged.as_ref().ok_or(Error::Stale(to.ino))?;
            // A descriptor of its own: one in the cache would stand in the way of the lease before the seal.
            self.store.open_staging_writer(staged.row.file)?
        };
        let _gate = self.blob_reads.read();
        let what = || Error::io(format!("copy bytes of inode {} to inode {}", from.ino, to.ino));
        let end = to.offset + len;
        let there = writer.stat().map_err(what())?.size;
        // Holes are copied as holes: what is there must be one first.
        if to.offset < there {
            sys::allocate(&writer, to.offset, len, sys::Allocate::PunchHole).map_err(what())?;
        }
        copy_range(&*reader, from.offset, &writer, to.offset, len).map_err(what())?;
        if end > there {
            writer.set_len(end).map_err(what())?;
        }
        Ok(len)
    }
}
