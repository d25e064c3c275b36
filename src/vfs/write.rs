//! write(2), fallocate(2), fsync(2), and the part of close(2) that waits.

use std::time::Instant;

use crate::change::{Change, Ino};
use crate::sys::content as sys;
use crate::vfs::caller::has_set_id_bits;
use crate::vfs::{Caller, Durability, Error, Result, Vfs};

pub use crate::sys::content::Allocate;

/// Largest file whose close waits for the hash under `durability=close`.
const HASH_AT_CLOSE_BYTES_MAX: u64 = 256 << 20;

impl Vfs {
    /// Writes all of `data` at `offset`. `kill_set_id`: the caller lacks the privilege to keep setuid and setgid.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_set_id: bool) -> Result<()> {
        let writer = {
            let mut node = self.nodes.lock(ino);
            let inode = self.inode(ino)?;
            self.make_dirty(&mut node, &inode, u64::MAX)?;
            if kill_set_id && has_set_id_bits(&inode) {
                self.drop_set_id_bits(&inode)?;
            }
            let staged = node.staged.as_ref().ok_or(Error::Stale(ino))?;
            self.writer(staged.row.file)?
        };
        writer.write_at(data, offset).map_err(Error::io(format!("write inode {ino} at {offset}")))
    }

    /// Allocates, punches or zeroes a range.
    pub fn allocate(&self, caller: &Caller, ino: Ino, offset: u64, len: u64, how: Allocate) -> Result<()> {
        let writer = {
            let mut node = self.nodes.lock(ino);
            let inode = self.inode(ino)?;
            self.make_dirty(&mut node, &inode, u64::MAX)?;
            if has_set_id_bits(&inode) && !caller.keeps_set_id_bits() {
                self.drop_set_id_bits(&inode)?;
            }
            let staged = node.staged.as_mut().ok_or(Error::Stale(ino))?;
            staged.fresh = true;
            self.store.open_staging_writer(staged.row.file)?
        };
        sys::allocate(&writer, offset, len, how).map_err(Error::io(format!("allocate in inode {ino}")))
    }

    /// Forces the bytes of a file and every name and attribute committed so far.
    pub fn fsync(&self, ino: Ino) -> Result<()> {
        if let Some(mut node) = self.nodes.existing(ino) {
            self.materialise(&mut node)?;
            if let Some(staged) = &mut node.staged {
                let mut row = staged.row.clone();
                if row.failed.is_none() {
                    self.store.force_staging(&[row.file])?;
                    staged.forced_at = Instant::now();
                    if !row.forced {
                        row.forced = true;
                        self.commit(&[Change::Stage(row.clone())])?;
                        staged.row = row;
                    }
                }
            }
        }
        self.sync_index()
    }

    /// Makes everything committed so far durable, and lets go of what only undurable commits had stopped naming.
    pub fn sync_index(&self) -> Result<()> {
        if self.index.durable_seq() < self.index.last_seq() {
            self.index.sync()?;
        }
        Ok(())
    }

    /// What close(2) waits for; comes for every close of every duplicate of a descriptor.
    pub fn flush(&self, ino: Ino) -> Result<()> {
        if self.durability_of(ino)? == Durability::Fsync {
            return Ok(());
        }
        self.fsync(ino)?;
        let (name, stat, hashed) = {
            let Some(node) = self.nodes.existing(ino) else { return Ok(()) };
            let Some(staged) = &node.staged else { return Ok(()) };
            if let Some(why) = &staged.row.failed {
                return Err(Error::Failed { ino, why: why.clone() });
            }
            let name = staged.row.file;
            (name, self.store.stat_staging(name)?, staged.hashed)
        };
        // A descriptor that many processes inherit and close must not cost a hash each: again only when it has doubled.
        let again = hashed.is_none_or(|(size, mtime)| mtime != stat.mtime && stat.size >= size.saturating_mul(2));
        if stat.size > HASH_AT_CLOSE_BYTES_MAX || !again {
            return Ok(());
        }
        let reader = self.store.open_staging(name)?;
        let what = || Error::io(format!("read staging file {name}"));
        let Some(digest) = reader.digest(|| true).map_err(what())? else { return Ok(()) };
        let collision = self.collides(&digest)?;
        let mut node = self.nodes.lock(ino);
        let Some(staged) = &mut node.staged else { return Ok(()) };
        if staged.row.file != name {
            return Ok(());
        }
        staged.hashed = Some((stat.size, stat.mtime));
        if let Some(why) = collision {
            self.report(format!("inode {ino}: {why}"));
            return Err(Error::Failed { ino, why });
        }
        Ok(())
    }
}
