//! Space comes back: blobs that no inode refers to leave the filestore, and then the index; set-aside bytes go after days.

use std::collections::HashSet;
use std::time::Duration;

use crate::change::{BlobRow, Change};
use crate::checksum::Checksum;
use crate::failpoint;
use crate::filestore::{Aside, KEPT_FOR, Mended};
use crate::vfs::{Error, GoOn, Result, Vfs, now};

/// A blob stays this long after its last reference went: a build often writes the same content again at once.
const KEEP: Duration = Duration::from_secs(10);

/// Blobs removed with one commit and one force.
const BATCH: usize = 256;

impl Vfs {
    /// Removes blobs that have had no reference for a while; the answer is blobs and bytes. A job does this.
    pub fn reclaim(&self, go_on: GoOn<'_>) -> Result<(u64, u64)> {
        self.reclaim_older_than(KEEP, go_on)
    }

    /// As `reclaim`, with a wait of its own.
    pub fn reclaim_older_than(&self, keep: Duration, go_on: GoOn<'_>) -> Result<(u64, u64)> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        let (mut blobs, mut bytes) = (0, 0);
        while go_on() {
            let before = now() - keep.as_nanos() as i64;
            let mut dead = self.index.unreferenced(before, BATCH)?;
            if dead.is_empty() {
                return Ok((blobs, bytes));
            }
            dead.sort_unstable_by_key(|row| row.checksum);
            // A put or a copy of the same content waits for the latch; if it was quicker, the blob is not dead any more.
            let mut latches: Vec<_> = dead.iter().map(|row| self.store.latch(&row.checksum)).collect();
            // Nor is one that a close found standing and left to its seal. The row is committed before it looks, and it looks
            // under the latch.
            let staged = self.index.staged()?;
            let promised: HashSet<Checksum> =
                staged.iter().filter(|row| row.failed.is_none()).filter_map(|row| row.checksum).collect();
            let mut still_dead = Vec::with_capacity(dead.len());
            for row in &dead {
                let unused = self.index.blob(&row.checksum)?.is_some_and(|row| row.refs == 0);
                still_dead.push(unused && !promised.contains(&row.checksum));
            }
            retain(&mut latches, &still_dead);
            retain(&mut dead, &still_dead);
            if dead.is_empty() {
                return Ok((blobs, bytes));
            }
            // Before it is unlinked, it is durable that no inode has it as its content.
            self.sync_index()?;
            // A crash from here on leaves rows without references whose blobs are gone, which the next round takes. The other
            // order would leave blobs without rows, which nobody takes.
            failpoint::hit("reclaim.synced");
            let mut failure = None;
            let mut unlinked = Vec::with_capacity(dead.len());
            for (row, latch) in dead.iter().zip(&latches) {
                self.descriptors.forget_blob(&row.checksum);
                self.disown(&row.checksum);
                self.verified.lock().remove(&row.checksum);
                let removed = self.store.remove_blob(latch);
                unlinked.push(removed.is_ok());
                match removed {
                    Ok(_) => {
                        failpoint::hit("reclaim.unlinked");
                        blobs += 1;
                        bytes += row.size;
                    }
                    // It keeps its row for the next round, and does not hold up the others; what is away is asked once.
                    Err(error) => {
                        let away = error.is_transient();
                        failure.get_or_insert(error);
                        if away {
                            break;
                        }
                    }
                }
                if !go_on() {
                    break;
                }
            }
            retain(&mut latches, &unlinked);
            retain(&mut dead, &unlinked);
            if !dead.is_empty() {
                self.store.force_removed(&latches)?;
                self.commit(&dead.iter().map(forget).collect::<Vec<_>>())?;
                failpoint::hit("reclaim.committed");
            }
            if let Some(error) = failure {
                return Err(error.into());
            }
        }
        Ok((blobs, bytes))
    }

    /// Makes as many copies of a blob as there should be, and no more. Jobs do this.
    pub fn mend(&self, sum: &Checksum) -> Result<Mended> {
        // A surplus copy that somebody has open stays, and we are nobody.
        self.descriptors.forget_blob(sum);
        Ok(self.store.mend(sum)?)
    }

    /// Makes copies of blobs that have too few. A job does this.
    pub fn mend_owed(&self, go_on: GoOn<'_>) -> Result<()> {
        let (mut after, mut failure) = (None, None);
        loop {
            let some = self.store.owed(after.as_ref(), BATCH);
            let Some(last) = some.last() else { break };
            after = Some(*last);
            for sum in some {
                if !go_on() {
                    return Ok(());
                }
                // One that cannot be mended does not hold up the others.
                if let Err(error) = self.settle(&sum) {
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Makes the copies that a blob lacks, or removes those that should be gone.
    fn settle(&self, sum: &Checksum) -> Result<()> {
        if self.store.owes_removal(sum) {
            // Whoever puts the same content has the latch until its row is there, or has promised its bytes by a staged row.
            let latch = self.store.latch(sum);
            let is_promised = self.index.staged()?.iter().any(|row| row.checksum == Some(*sum));
            if self.index.blob(sum)?.is_none() && !is_promised {
                return Ok(self.store.remove_left(&latch)?);
            }
        }
        self.mend(sum).map(drop)
    }

    /// Deletes set-aside bytes after their time, and tells what they were. A job does this.
    pub fn expire_aside(&self) -> Result<Vec<Aside>> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        Ok(self.store.expire_aside(KEPT_FOR)?)
    }
}

fn forget(row: &BlobRow) -> Change {
    Change::Forget { checksum: row.checksum }
}

/// Keeps the elements whose flag is set.
fn retain<T>(all: &mut Vec<T>, flags: &[bool]) {
    let mut flags = flags.iter();
    all.retain(|_| flags.next() == Some(&true));
}
