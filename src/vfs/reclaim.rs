//! Space comes back: blobs that no inode refers to leave the filestore, and then the index.

use std::time::Duration;

use crate::change::Change;
use crate::failpoint;
use crate::vfs::{Result, Vfs, now};

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
            // A put or a copy of the same content waits for the latch; one that was quicker has given its blob a reference.
            let latches: Vec<_> = dead.iter().map(|row| self.store.latch(&row.checksum)).collect();
            let mut gone = Vec::with_capacity(dead.len());
            for (row, latch) in dead.iter().zip(&latches) {
                if self.index.blob(&row.checksum)?.is_some_and(|row| row.refs == 0) {
                    gone.push((row, latch));
                }
            }
            if gone.is_empty() {
                return Ok((blobs, bytes));
            }
            // Before it is unlinked, it is durable that no inode has it as its content.
            self.sync_index()?;
            // A crash from here on leaves rows without references whose blobs are gone, which the next round takes. The other
            // order would leave blobs without rows, which nobody takes.
            failpoint::hit("reclaim.synced");
            for (row, latch) in &gone {
                self.descriptors.forget_blob(&row.checksum);
                self.disown(&row.checksum);
                self.verified.lock().remove(&row.checksum);
                self.store.remove_blob(latch)?;
                failpoint::hit("reclaim.unlinked");
                blobs += 1;
                bytes += row.size;
            }
            let forget = gone.iter().map(|(row, _)| Change::Forget { checksum: row.checksum });
            self.commit(&forget.collect::<Vec<_>>())?;
            failpoint::hit("reclaim.committed");
        }
    }
}
