//! How blobs leave the cache: evicted, dropped, expelled while they are open, or lent to a writer; and what still takes room after
//! that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::blob::{BlobFile, FileId};
use super::super::error::Result;
use super::super::file_system::{FileSystem, blob_path};
use super::super::staging::{StagingDir, staging_path};
use super::core::{Claim, Core};
use super::ledger::room_of;
use crate::change::StagingName;
use crate::checksum::Checksum;
use crate::clock;
use crate::failpoint;
use crate::sys::lease::is_unused;

/// Blobs that an eviction looks at together.
const EVICTED_TOGETHER: usize = 64;
/// Blobs in use that an eviction passes over before it gives up.
const PASSED_OVER_MAX: usize = 4096;
/// Who waits for the claim on a checksum looks this often.
const CLAIM_POLL: Duration = Duration::from_millis(1);

/// A file without a blob's name that still takes room.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) dir: usize,
    pub(super) path: String,
    pub(super) room: u64,
    pub(super) file: FileId,
    /// A staging file: it has its room until somebody discards it. Otherwise the file goes as soon as nobody has it open.
    pub(super) lent: bool,
}

/// What became of a name.
enum Withdrawn {
    /// There was none.
    Absent,
    /// It stays: somebody has the file open.
    Used,
    /// It is this one now.
    Gone { dir: usize, path: String, file: FileId },
}

/// The right to take a file away; given back on drop.
struct Leaving<'a> {
    core: &'a Core,
    sum: Checksum,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.core.unclaim(&self.sum);
    }
}

impl Core {
    /// Evicts until so much room has come free; whether any has.
    pub(super) fn evict(&self, wanted: u64) -> bool {
        let _one = self.evicting.lock();
        let mut freed = self.reap_left();
        let mut passed = 0;
        while freed < wanted && passed < PASSED_OVER_MAX {
            self.note_asked();
            match self.evict_some(wanted - freed) {
                Ok((0, 0)) => break,
                Ok((room, over)) => {
                    freed += room;
                    passed += over;
                    // All that are left are in use.
                    if room == 0 && passed as u64 >= self.ledger.entries() {
                        break;
                    }
                }
                Err(error) => {
                    self.complain(&error);
                    break;
                }
            }
        }
        freed > 0
    }

    /// Evicts of the oldest blobs those that nobody has open; the room, and how many were passed over.
    fn evict_some(&self, wanted: u64) -> Result<(u64, usize)> {
        let (mut gone, mut used, mut room) = (Vec::new(), Vec::new(), 0);
        for (sum, size) in self.ledger.oldest(EVICTED_TOGETHER)? {
            if room >= wanted {
                break;
            }
            let Some(leaving) = self.claim_leaving(&sum) else {
                used.push(sum);
                continue;
            };
            match self.withdraw(&sum, false)? {
                Withdrawn::Used => used.push(sum),
                Withdrawn::Gone { dir, path, .. } => {
                    room += room_of(size);
                    gone.push((sum, leaving));
                    // A crash here leaves a row without a file, and a file that the next start clears away.
                    failpoint::hit("cache.withdrawn");
                    self.dirs[dir].volume().remove(&path)?;
                }
                Withdrawn::Absent => {
                    room += room_of(size);
                    gone.push((sum, leaving));
                }
            }
        }
        let sums: Vec<Checksum> = gone.iter().map(|(sum, _)| *sum).collect();
        let given = self.ledger.strike(&sums)?;
        self.give_back(given);
        self.evictions.fetch_add(sums.len() as u64, Ordering::Relaxed);
        // Those that are open are in use now: they have their turn again after the others.
        self.ledger.defer(&used, clock::now())?;
        Ok((given, used.len()))
    }

    /// Takes a blob's name away, unless its file is in use and that matters.
    fn withdraw(&self, sum: &Checksum, even_used: bool) -> Result<Withdrawn> {
        let _gate = self.gate.write();
        let Some((dir, file)) = self.find(sum)? else { return Ok(Withdrawn::Absent) };
        if !even_used && !is_unused(&file).unwrap_or(false) {
            return Ok(Withdrawn::Used);
        }
        let path = self.temporary(sum);
        self.dirs[dir].volume().rename(&blob_path(sum), &path)?;
        Ok(Withdrawn::Gone { dir, path, file: file.file_id() })
    }

    /// Takes a blob out of the cache unless somebody has it open; whether it did.
    pub(super) fn drop_unused(&self, sum: &Checksum) -> Result<bool> {
        let Some(_leaving) = self.claim_leaving(sum) else { return Ok(false) };
        match self.withdraw(sum, false)? {
            Withdrawn::Gone { dir, path, .. } => {
                self.dirs[dir].volume().remove(&path)?;
                self.give_back(self.ledger.strike(&[*sum])?);
                Ok(true)
            }
            Withdrawn::Absent | Withdrawn::Used => Ok(false),
        }
    }

    /// Takes away a blob's file that no row counts, unless somebody has it open; whether it did.
    pub(super) fn drop_uncounted(&self, sum: &Checksum) -> Result<bool> {
        let Some(_leaving) = self.claim_leaving(sum) else { return Ok(false) };
        // A row comes before its file, and goes after it, both under the claim.
        if self.ledger.size(sum)?.is_some() {
            return Ok(false);
        }
        let Withdrawn::Gone { dir, path, .. } = self.withdraw(sum, false)? else { return Ok(false) };
        self.dirs[dir].volume().remove(&path)
    }

    /// Takes a blob out of the cache, also when it is open: its file then has its room until it is closed. `only`: if it is
    /// this very file. What is being filled does not become the blob.
    pub(super) fn expel(&self, sum: &Checksum, only: Option<FileId>) -> Result<bool> {
        let Some(_leaving) = self.claim_or_cancel(sum) else { return Ok(false) };
        if let Some(only) = only
            && self.cached_copy(sum, only)?.is_none()
        {
            return Ok(false);
        }
        let withdrawn = self.withdraw(sum, true)?;
        let room = self.ledger.strike(&[*sum])?;
        match withdrawn {
            Withdrawn::Gone { dir, path, file } => {
                self.left.lock().push(Left { dir, path, room, file, lent: false });
                self.reap_left();
                Ok(true)
            }
            Withdrawn::Absent | Withdrawn::Used => {
                self.give_back(room);
                Ok(false)
            }
        }
    }

    /// Takes a blob whose file is `file` out of the cache and makes the file the staging file `name`; false when it is not
    /// the cached copy. The blob itself is below.
    pub(super) fn lend(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<bool> {
        let lent = match self.claim_or_cancel(sum) {
            Some(_leaving) => self.lend_cached(sum, name, file)? || self.lend_left(name, file)?,
            None => self.lend_left(name, file)?,
        };
        if lent && let Some(arrival) = self.arrival(sum) {
            arrival.let_go_of(file);
        }
        Ok(lent)
    }

    /// The caller holds the claim.
    fn lend_cached(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<bool> {
        // The name from which it was put may still lead to it; then that is the staging file.
        let holder = self.holder_of(name, file)?;
        let (path, staged) = (blob_path(sum), staging_path(name));
        let dir = {
            let _gate = self.gate.write();
            let found = self.find(sum)?.filter(|(_, found)| found.file_id() == file);
            let Some((dir, _)) = found else { return Ok(false) };
            let volume = self.dirs[dir].volume();
            match &holder {
                Some(_) => drop(volume.remove(&path)?),
                None => volume.rename(&path, &staged)?,
            }
            dir
        };
        // After a power cut the blob's name must not lead to what is written from now on. The gate is open meanwhile: the
        // claim keeps others from the name.
        self.dirs[dir].volume().force_folder(&path[..2])?;
        // A crash here leaves a staging name that nobody knows, and a row without a file.
        failpoint::hit("cache.lent");
        let room = self.ledger.strike(&[*sum])?;
        match holder {
            Some(elsewhere) => {
                self.give_back(room);
                elsewhere.make_own(name)?;
            }
            None => {
                self.dirs[dir].own_staging().make_own(name)?;
                self.left.lock().push(Left { dir, path: staged, room, file, lent: true });
            }
        }
        Ok(true)
    }

    /// The same of a file that was the cached copy until it was taken out of the cache while it was open.
    fn lend_left(&self, name: StagingName, file: FileId) -> Result<bool> {
        let mut left = self.left.lock();
        let Some(one) = left.iter_mut().find(|one| one.file == file && !one.lent) else { return Ok(false) };
        let staged = staging_path(name);
        self.dirs[one.dir].volume().rename(&one.path, &staged)?;
        self.dirs[one.dir].own_staging().make_own(name)?;
        (one.path, one.lent) = (staged, true);
        Ok(true)
    }

    /// The staging directory in which `name` leads to this very file.
    fn holder_of(&self, name: StagingName, file: FileId) -> Result<Option<Arc<StagingDir>>> {
        let own = self.dirs.iter().map(FileSystem::own_staging).cloned();
        for dir in own.chain(self.below.staging_dirs()) {
            if dir.holds(name)? && dir.stat(name)?.file_id == file {
                return Ok(Some(dir));
            }
        }
        Ok(None)
    }

    /// Removes files that lost their name while they were open and are closed now, and forgets those that were lent; the
    /// room that came free.
    pub(super) fn reap_left(&self) -> u64 {
        let mut left = self.left.lock();
        let mut freed = 0;
        left.retain(|one| {
            let volume = self.dirs[one.dir].volume();
            let gone = match volume.stat(&one.path) {
                Ok(None) => true,
                Ok(Some(_)) if one.lent => false,
                Ok(Some(_)) => self.remove_unused(one),
                Err(_) => false,
            };
            freed += if gone { one.room } else { 0 };
            !gone
        });
        drop(left);
        self.give_back(freed);
        freed
    }

    fn remove_unused(&self, left: &Left) -> bool {
        let volume = self.dirs[left.dir].volume();
        let unused = match BlobFile::open(volume, &left.path) {
            Ok(Some(file)) => is_unused(&file).unwrap_or(false),
            Ok(None) => true,
            Err(_) => false,
        };
        unused && volume.remove(&left.path).is_ok()
    }

    /// The right to take a file away, unless somebody makes or takes it now.
    fn claim_leaving(&self, sum: &Checksum) -> Option<Leaving<'_>> {
        let mut claims = self.claims.lock();
        if claims.contains_key(sum) {
            return None;
        }
        claims.insert(*sum, Claim::Leaving);
        Some(Leaving { core: self, sum: *sum })
    }

    /// The same; what is being filled is told that it is of no use, and then there is no file to take away.
    fn claim_or_cancel(&self, sum: &Checksum) -> Option<Leaving<'_>> {
        loop {
            {
                // Whoever gives a filled file its name looks at the flag under the gate.
                let _gate = self.gate.write();
                if let Some(leaving) = self.claim_leaving(sum) {
                    return Some(leaving);
                }
                if let Some(Claim::Filling(cancelled)) = self.claims.lock().get(sum) {
                    cancelled.store(true, Ordering::Release);
                    return None;
                }
            }
            std::thread::sleep(CLAIM_POLL);
        }
    }
}
