//! Space comes back: blobs that no inode refers to leave the index, and then the filestore.

use std::time::Duration;

use crate::change::Change;
use crate::failpoint;
use crate::vfs::{Error, Result, Vfs, now};

/// A blob stays this long after its last reference went: a build often writes the same content again at once.
const KEEP: Duration = Duration::from_secs(10);

/// Blobs removed with one commit and one force.
const BATCH: usize = 256;

impl Vfs {
    /// Removes blobs that have had no reference for a while; the answer is blobs and bytes. A job does this.
    pub fn reclaim(&self) -> Result<(u64, u64)> {
        self.reclaim_older_than(KEEP)
    }

    /// As `reclaim`, with a wait of its own.
    pub fn reclaim_older_than(&self, keep: Duration) -> Result<(u64, u64)> {
        let (mut blobs, mut bytes) = (0, 0);
        loop {
            let before = now() - keep.as_nanos() as i64;
            let mut dead = self.index.unreferenced(before, BATCH)?;
            if dead.is_empty() {
                return Ok((blobs, bytes));
            }
            dead.sort_unstable_by_key(|row| row.checksum);
            // A put or an open of the same content waits for the latch; the commit fails if it was quicker.
            let latches: Vec<_> = dead.iter().map(|row| self.store.latch(&row.checksum)).collect();
            let mut gone = Vec::with_capacity(dead.len());
            let forget = |row: &crate::change::BlobRow| Change::Forget { checksum: row.checksum };
            match self.commit(&dead.iter().map(forget).collect::<Vec<_>>()) {
                Ok(_) => gone.extend(0..dead.len()),
                Err(Error::Index(crate::index::Error::Stale { .. })) => {
                    for (i, row) in dead.iter().enumerate() {
                        match self.commit(&[forget(row)]) {
                            Ok(_) => gone.push(i),
                            Err(Error::Index(crate::index::Error::Stale { .. })) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) => return Err(error),
            }
            if gone.is_empty() {
                return Ok((blobs, bytes));
            }
            // A crash from here on leaves blobs that the index does not know, some of them removed: the others are strays.
            failpoint::hit("reclaim.committed");
            // What the last durable index names is not unlinked.
            self.index.sync()?;
            failpoint::hit("reclaim.synced");
            for i in gone {
                let row = &dead[i];
                self.descriptors.forget_blob(&row.checksum);
                self.disown(&row.checksum);
                self.verified.lock().remove(&row.checksum);
                self.store.remove_blob(&latches[i])?;
                failpoint::hit("reclaim.unlinked");
                blobs += 1;
                bytes += row.size;
            }
        }
    }
}
