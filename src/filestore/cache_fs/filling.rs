//! Room for a blob that is going to be cached, and the file that becomes it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::error::{Doing, Result};
use super::super::file_system::{FileSystem, blob_path};
use super::super::volume::tidied;
use super::arrival::force;
use super::core::Core;
use super::ledger::room_of;
use crate::checksum::Checksum;
use crate::clock;
use crate::failpoint;

/// Room and a row for a blob that is going to have a file; given back on drop unless it got one.
#[derive(Debug)]
pub(super) struct Place {
    core: Arc<Core>,
    pub(super) sum: Checksum,
    size: u64,
    pub(super) dir: usize,
    cancelled: Arc<AtomicBool>,
    kept: bool,
}

impl Place {
    /// Places for blobs, one for each; `None` where there is no room, a file stands already, or somebody else decides on that
    /// blob. Their rows have to be forced before a file gets its name.
    pub(super) fn take(core: &Arc<Core>, blobs: &[(Checksum, u64)]) -> Vec<Option<Place>> {
        let one = |(sum, size): &(Checksum, u64)| {
            let cancelled = core.claim_filling(sum)?;
            let dir = core.dir_of(sum);
            // Somebody may have filled it since the caller looked: a place that is given up would strike out its row.
            let stands = core
                .find(sum)
                .inspect_err(|error| core.complain(error))
                .map_or(true, |found| found.is_some());
            if stands || !core.admits(*size) || !core.reserve(dir, room_of(*size)) {
                core.unclaim(sum);
                return None;
            }
            let core = Arc::clone(core);
            Some(Place { core, sum: *sum, size: *size, dir, cancelled, kept: false })
        };
        let places: Vec<Option<Place>> = blobs.iter().map(one).collect();
        let entered: Vec<(Checksum, u64)> = places.iter().flatten().map(|p| (p.sum, p.size)).collect();
        if entered.is_empty() {
            return places;
        }
        match core.ledger.enter(&entered, clock::now()) {
            Ok(taken) => {
                // A row that a crash left without a file had its room already.
                let reserved: u64 = entered.iter().map(|(_, size)| room_of(*size)).sum();
                core.give_back(reserved.saturating_add_signed(-taken));
                places
            }
            Err(error) => {
                core.complain(&error);
                for place in places.into_iter().flatten() {
                    place.give_up();
                }
                blobs.iter().map(|_| None).collect()
            }
        }
    }

    /// Without a row there is nothing to strike out.
    fn give_up(mut self) {
        self.kept = true;
        self.core.give_back(room_of(self.size));
        self.core.arrived(room_of(self.size));
        self.core.unclaim(&self.sum);
    }

    /// Lets `name` give the blob its file, unless the blob was removed meanwhile; whether it has it.
    pub(super) fn settle(&mut self, name: impl FnOnce(&FileSystem) -> Result<bool>) -> Result<bool> {
        let _gate = self.core.gate.write();
        if self.cancelled.load(Ordering::Acquire) || !name(&self.core.dirs[self.dir])? {
            return Ok(false);
        }
        self.kept = true;
        self.core.arrived(room_of(self.size));
        self.core.unclaim(&self.sum);
        Ok(true)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        match self.core.ledger.strike(&[self.sum]) {
            Ok(room) => self.core.give_back(room),
            // The row goes on counting: an eviction finds it.
            Err(error) => self.core.complain(&error),
        }
        self.core.arrived(room_of(self.size));
        self.core.unclaim(&self.sum);
    }
}

/// A file that becomes a blob of the cache; gone on drop unless it did.
#[derive(Debug)]
pub(super) struct Filling {
    /// Struck out after the file is gone.
    place: Place,
    path: String,
    pub(super) file: File,
    began: u64,
    named: bool,
}

impl Filling {
    /// An empty file with room for the blob, if there is any. `began` is the last removal before its bytes were looked for.
    pub(super) fn begin(core: &Arc<Core>, sum: &Checksum, size: u64, began: u64) -> Option<Filling> {
        let place = Place::take(core, &[(*sum, size)]).pop().flatten()?;
        // A crash from here on leaves a row without a file, and perhaps a file that the next start clears away.
        failpoint::hit("cache.begun");
        let path = core.temporary(sum);
        match core.dirs[place.dir].volume().create_file(&path, 0o600) {
            Ok(file) => Some(Filling { place, path, file, began, named: false }),
            Err(error) => {
                core.complain(&error);
                None
            }
        }
    }

    /// Gets its bytes and its row to the disk, before it gets a name.
    pub(super) fn force(&self) -> io::Result<()> {
        force(&self.file)?;
        self.place.core.ledger.force().map_err(io::Error::other)
    }

    /// Gives the file, which is forced, the blob's name; false when the blob was removed meanwhile.
    pub(super) fn settle(&mut self) -> Result<bool> {
        let (sum, path) = (self.place.sum, &self.path);
        let (core, began) = (Arc::clone(&self.place.core), self.began);
        self.named = self.place.settle(|dir| match core.removals.since(&sum, began) {
            true => Ok(false),
            false => dir.place_file(&sum, path).map(|()| true),
        })?;
        if self.named {
            // A crash here leaves a whole blob in the cache.
            failpoint::hit("cache.named");
        }
        Ok(self.named)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if !self.named {
            tidied(self.place.core.dirs[self.place.dir].volume().remove(&self.path));
        }
    }
}

impl Core {
    /// Moves a file that holds a blob whole and forced to where it is the cached copy. False when it stays where it is; where
    /// that is another file system, a copy is made of it by the worker, which has it open.
    pub(super) fn take_over(self: &Arc<Core>, sum: &Checksum, size: u64, from: &Path) -> Result<bool> {
        if !self.admits(size) || self.cached(sum, Some(size)).is_some() {
            return Ok(false);
        }
        let elsewhere = &self.elsewhere[self.dir_of(sum)];
        if !elsewhere.load(Ordering::Relaxed) && self.move_in(sum, size, from, elsewhere)? {
            return Ok(true);
        }
        if elsewhere.load(Ordering::Relaxed) {
            self.queue_file(sum, size, File::open(from).doing("open", from)?);
        }
        Ok(false)
    }

    /// Sets the flag when the file is on another file system.
    fn move_in(
        self: &Arc<Core>,
        sum: &Checksum,
        size: u64,
        from: &Path,
        elsewhere: &AtomicBool,
    ) -> Result<bool> {
        let Some(mut place) = Place::take(self, &[(*sum, size)]).pop().flatten() else { return Ok(false) };
        self.ledger.force()?;
        // A crash here leaves a row without a file, and the file where it was.
        place.settle(|dir| match dir.volume().take_in(from, &blob_path(sum)) {
            Ok(()) => Ok(true),
            Err(error) => {
                elsewhere.fetch_or(error.kind() == io::ErrorKind::CrossesDevices, Ordering::Relaxed);
                tracing::debug!(%error, "{} is not moved into the cache", from.display());
                Ok(false)
            }
        })
    }
}
