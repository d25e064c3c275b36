//! write(2), fallocate(2), fsync(2), and the part of close(2) that waits.

use std::time::{Duration, Instant};

use crate::change::{Change, Ino, Nanos, StagedRow, StagingName};
use crate::checksum::{Checksum, Digest};
use crate::failpoint;
use crate::filestore;
use crate::sys::content as sys;
use crate::vfs::caller::has_set_id_bits;
use crate::vfs::node::Locked;
use crate::vfs::put::collision;
use crate::vfs::{Caller, Durability, Error, Result, Vfs};

pub use crate::sys::content::Allocate;

/// What was hashed, size and mtime of the staging file, and when.
pub(super) type Hashed = (u64, Nanos, Instant);

/// A file that goes on changing is hashed again by a close after this time.
const HASH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Largest file whose close waits for the hash under `durability=close`.
const HASH_AT_CLOSE_BYTES_MAX: u64 = 256 << 20;

impl Vfs {
    /// Writes all of `data` at `offset`. `kill_set_id`: the caller lacks the privilege to keep setuid and setgid.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_set_id: bool) -> Result<()> {
        let writer = self.with_prepared(ino, |prepared| {
            let mut node = self.nodes.lock(ino);
            let inode = self.inode(ino)?;
            self.make_dirty_with(&mut node, u64::MAX, prepared)?;
            if kill_set_id && has_set_id_bits(&inode) {
                self.drop_set_id_bits(&inode)?;
            }
            let staged = node.staged.as_ref().ok_or(Error::Stale(ino))?;
            self.writer(staged.row.file)
        })?;
        let end = offset.saturating_add(data.len() as u64);
        if let Err(full) = self.store.make_room(data.len() as u64) {
            // What has its place already may be written.
            if end > writer.stat().map_err(Error::io(format!("stat inode {ino}")))?.size {
                return Err(full.into());
            }
        }
        writer.write_at(data, offset).map_err(Error::io(format!("write inode {ino} at {offset}")))
    }

    /// Whether a write may have to wait for something that is not on this host, or for somebody who does: after a copy of
    /// which no byte was moved, and as long as a seal stores the bytes.
    pub fn write_waits(&self, ino: Ino) -> bool {
        let ready = |node: Locked<'_>| node.staged.is_some() && node.clone.is_none() && !node.putting;
        !self.nodes.try_lock(ino).is_some_and(ready)
    }

    /// Allocates, punches or zeroes a range.
    pub fn allocate(&self, caller: &Caller, ino: Ino, offset: u64, len: u64, how: Allocate) -> Result<()> {
        let writer = self.with_prepared(ino, |prepared| {
            let mut node = self.nodes.lock(ino);
            let inode = self.inode(ino)?;
            self.make_dirty_with(&mut node, u64::MAX, prepared)?;
            if has_set_id_bits(&inode) && !caller.keeps_set_id_bits() {
                self.drop_set_id_bits(&inode)?;
            }
            let staged = node.staged.as_mut().ok_or(Error::Stale(ino))?;
            staged.fresh = true;
            Ok(self.store.open_staging_writer(staged.row.file)?)
        })?;
        if matches!(how, Allocate::Extend | Allocate::KeepSize) {
            self.store.make_room(len)?;
        }
        sys::allocate(&writer, offset, len, how).map_err(Error::io(format!("allocate in inode {ino}")))
    }

    /// Forces the bytes of a file and every name and attribute committed so far.
    ///
    /// The node is not locked while the disk works: whoever looks at the file, or lists its directory, does not wait.
    pub fn fsync(&self, ino: Ino) -> Result<()> {
        match self.staged_to_force(ino)? {
            Some(name) => self.fsync_staged(ino, name)?,
            None => self.sync_index()?,
        }
        failpoint::hit("fsync.synced");
        Ok(())
    }

    /// As `fsync`, with others that come at the same time.
    pub(super) fn fsync_staged(&self, ino: Ino, mut name: StagingName) -> Result<()> {
        loop {
            let together = |files: &[(Ino, StagingName)]| self.fsync_together(files);
            self.fsyncs.join((ino, name), together, || self.fsync_one(ino, name))?;
            // The bytes may have been moved to another staging file meanwhile, which was not forced.
            match self.staged_to_force(ino)? {
                Some(other) if other != name => name = other,
                _ => return Ok(()),
            }
        }
    }

    fn fsync_one(&self, ino: Ino, name: StagingName) -> Result<()> {
        let begun = Instant::now();
        let forced = self.store.force_staging(&[name]);
        // A crash from here to the end of the call loses nothing: the row names the same bytes all along.
        failpoint::hit("fsync.forced");
        self.record_fsync(ino, name, begun, forced)?;
        self.sync_index()
    }

    /// One flush for the bytes of all, and one for the index; what could not be done with the others, or would have to wait
    /// for somebody who holds a file, is left.
    fn fsync_together(&self, files: &[(Ino, StagingName)]) -> Vec<(Ino, StagingName)> {
        let begun = Instant::now();
        let names: Vec<StagingName> = files.iter().map(|(_, name)| *name).collect();
        if self.store.force_staging(&names).is_err() {
            return files.to_vec();
        }
        let left: Vec<_> =
            files.iter().copied().filter(|(ino, name)| !self.recorded_at_once(*ino, *name, begun)).collect();
        if self.sync_index().is_err() { files.to_vec() } else { left }
    }

    /// As `record_fsync`, of a file that was forced, unless it would have to wait; whether it is done.
    fn recorded_at_once(&self, ino: Ino, name: StagingName, begun: Instant) -> bool {
        match self.nodes.try_existing(ino, Instant::now()) {
            // Sealed and let go of: the index has it.
            Ok(None) => true,
            Ok(Some(mut node)) if !node.putting => self.mark_forced(&mut node, name, begun).is_ok(),
            Ok(Some(_)) | Err(_) => false,
        }
    }

    /// The staging file that fsync has to force.
    fn staged_to_force(&self, ino: Ino) -> Result<Option<StagingName>> {
        self.copy_ahead(ino)?;
        let Some(mut node) = self.nodes.existing(ino) else { return Ok(None) };
        node.settle();
        self.materialise(&mut node)?;
        let staged = node.staged.as_ref().filter(|staged| staged.row.failed.is_none());
        Ok(staged.map(|staged| staged.row.file))
    }

    /// Commits that a staging file was forced by a force that began at `begun`. One that was sealed meanwhile is durable by
    /// its seal, once the index is forced, whatever has become of the staging file.
    fn record_fsync(
        &self,
        ino: Ino,
        name: StagingName,
        begun: Instant,
        forced: std::result::Result<(), filestore::Error>,
    ) -> Result<()> {
        let Some(mut node) = self.nodes.existing(ino) else { return Ok(forced?) };
        node.settle();
        let replaced = node.staged.as_ref().is_none_or(|staged| staged.row.file != name);
        match forced {
            Err(error) if replaced && error.is_absent() => return Ok(()),
            forced => forced?,
        }
        if self.mark_forced(&mut node, name, begun)? == Some(true) {
            failpoint::hit("fsync.recorded");
        }
        Ok(())
    }

    /// Makes everything committed so far durable, and lets go of what only undurable commits had stopped naming.
    pub fn sync_index(&self) -> Result<()> {
        if self.index.durable_seq() < self.index.last_seq() {
            self.index.sync()?;
        }
        Ok(())
    }

    /// Why the bytes cannot be stored; `None` when they can, and then nothing else of their name can until they are.
    pub(super) fn promise(&self, digest: &Digest) -> Result<Option<String>> {
        let mut promised = self.promised.lock();
        if let Some(why) = self.collides(digest)? {
            return Ok(Some(why));
        }
        let first = promised.entry(digest.checksum).or_insert(*digest);
        Ok((first != digest).then(|| collision(&digest.checksum)))
    }

    /// What close(2) waits for; comes for every close of every duplicate of a descriptor.
    pub fn flush(&self, ino: Ino) -> Result<()> {
        match self.durability_of(ino)? {
            Durability::Fsync => Ok(()),
            Durability::Close => self.flush_here(ino),
            Durability::Remote => self.flush_through(ino),
        }
    }

    /// Until a power cut can lose nothing.
    fn flush_here(&self, ino: Ino) -> Result<()> {
        let Some((name, hashed)) = self.staged_for_close(ino)? else { return self.sync_index() };
        let stat = self.store.stat_staging(name)?;
        // A descriptor that many processes inherit and close must not cost a hash each: again only when it has doubled, or
        // after a while.
        let again = hashed.is_none_or(|(size, mtime, at)| {
            mtime != stat.mtime && (stat.size >= size.saturating_mul(2) || at.elapsed() > HASH_AGAIN_AFTER)
        });
        let mut checksum = None;
        if stat.size <= HASH_AT_CLOSE_BYTES_MAX && again {
            let reader = self.store.open_staging(name)?;
            let what = Error::io(format!("read staging file {name}"));
            if let Some(digest) = reader.digest(|| true).map_err(what)? {
                if let Some(why) = self.promise(&digest)? {
                    self.report(format!("inode {ino}: {why}"));
                    return Err(Error::Failed { ino, why });
                }
                checksum = Some(digest.checksum);
            }
        }
        // A crash from here to the end of the call loses nothing: the row names the same bytes all along.
        failpoint::hit("close.hashed");
        if let Some(checksum) = checksum {
            self.record_close(ino, name, checksum, (stat.size, stat.mtime, Instant::now()))?;
        }
        failpoint::hit("close.recorded");
        self.fsync_staged(ino, name)?;
        failpoint::hit("close.synced");
        Ok(())
    }

    /// The staging file of an inode, and what close hashed of it last; `None` when it has none.
    pub(super) fn staged_for_close(&self, ino: Ino) -> Result<Option<(StagingName, Option<Hashed>)>> {
        self.copy_ahead(ino)?;
        let Some(mut node) = self.nodes.existing(ino) else { return Ok(None) };
        self.materialise(&mut node)?;
        let Some(staged) = &node.staged else { return Ok(None) };
        match &staged.row.failed {
            Some(why) => Err(Error::Failed { ino, why: why.clone() }),
            None => Ok(Some((staged.row.file, staged.hashed))),
        }
    }

    /// Commits what a close that waits has hashed.
    pub(super) fn record_close(
        &self,
        ino: Ino,
        name: StagingName,
        checksum: Checksum,
        version: Hashed,
    ) -> Result<()> {
        let unpromise = |sum: &Checksum| {
            self.promised.lock().remove(sum);
        };
        let mut node = self.nodes.lock(ino);
        node.settle();
        let Some(staged) = node.staged.as_mut().filter(|staged| staged.row.file == name) else {
            unpromise(&checksum);
            return Ok(());
        };
        staged.row.checksum.filter(|old| *old != checksum).iter().for_each(unpromise);
        staged.hashed = Some(version);
        let row = StagedRow { checksum: Some(checksum), ..staged.row.clone() };
        if row != staged.row {
            self.commit(&[Change::Stage(row.clone())])?;
            staged.row = row;
        }
        Ok(())
    }
}
