//! The part of close(2) that waits until the bytes are stored far away: `durability=remote`.
//!
//! It comes for every close of every duplicate of a descriptor. The file is hashed, forced and recorded as with
//! `durability=close`, whatever its size, and then its bytes are stored below the queue. No node is locked meanwhile.

use std::time::Instant;

use crate::change::{Ino, StagingName};
use crate::checksum::Digest;
use crate::filestore::{self, Staged as ToPut};
use crate::vfs::node::Through;
use crate::vfs::{Error, Result, Vfs, now};

/// How often a file that is written meanwhile is hashed and stored again.
const TRIES: u32 = 5;
/// A write this long after another one gives a file another mtime, whatever clock the disk goes by.
const MTIME_STEP_NS: i64 = 20_000_000;

impl Vfs {
    /// Until the loss of this host's disk can lose nothing of the bytes.
    pub(super) fn flush_through(&self, ino: Ino) -> Result<()> {
        for _ in 0..TRIES {
            let Some((name, _)) = self.staged_for_close(ino)? else {
                self.sync_index()?;
                return self.await_upload(ino);
            };
            match self.store_through(ino, name) {
                Err(Error::Store(filestore::Error::Altered(_))) => {}
                stored => return stored,
            }
        }
        let why = std::io::Error::other("others write it all the time, so no state of it could be stored");
        Err(Error::io(format!("store the bytes of inode {ino} before its close ends"))(why))
    }

    /// Stores the staging file as it is now; altered while that goes on is an error.
    fn store_through(&self, ino: Ino, name: StagingName) -> Result<()> {
        let stat = self.store.stat_staging(name)?;
        let settled = stat.mtime.saturating_add(MTIME_STEP_NS) < now();
        let known = self.known_through(ino, name);
        let version = (stat.size, stat.mtime);
        if known.is_some_and(|known| known.version == Some(version)) {
            return self.fsync_staged(ino, name);
        }
        let Digest { checksum, size, .. } = self.hash_for_close(ino, name)?;
        self.record_close(ino, name, checksum, (stat.size, stat.mtime, Instant::now()))?;
        self.fsync_staged(ino, name)?;
        if size > 0 && known.is_none_or(|known| known.checksum != checksum) {
            self.store.put_through(&checksum, ToPut { name, size })?;
        }
        let version = settled.then_some(version);
        if let Some(mut node) = self.nodes.existing(ino)
            && let Some(staged) = node.staged.as_mut().filter(|staged| staged.row.file == name)
        {
            staged.through = Some(Through { checksum, version });
        }
        Ok(())
    }

    fn known_through(&self, ino: Ino, name: StagingName) -> Option<Through> {
        let node = self.nodes.existing(ino)?;
        node.staged.as_ref().filter(|staged| staged.row.file == name)?.through
    }

    /// The checksum of a staging file, whose bytes can be stored under it.
    fn hash_for_close(&self, ino: Ino, name: StagingName) -> Result<Digest> {
        let reader = self.store.open_staging(name)?;
        let what = Error::io(format!("read staging file {name}"));
        let Some(digest) = reader.digest(|| true).map_err(what)? else { return Err(Error::Stale(ino)) };
        if let Some(why) = self.promise(&digest)? {
            self.report(format!("inode {ino}: {why}"));
            return Err(Error::Failed { ino, why });
        }
        Ok(digest)
    }

    /// Waits until the blob of a file that was sealed already is stored below the queue.
    fn await_upload(&self, ino: Ino) -> Result<()> {
        match self.inode(ino)?.checksum {
            Some(sum) => Ok(self.store.await_upload(&sum)?),
            None => Ok(()),
        }
    }
}
