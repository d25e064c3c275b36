//! Filling the cache from what is at hand: blobs that are put, and blobs that a file below holds.
//!
//! A staging file that only has its staging name becomes the cached copy by a second name. Where the provider below keeps
//! that file itself, or it is on another file system, a copy is made by the cache's worker, as of a file that is handed over
//! there; what it makes is compared with the checksum, as a writer may have come to the file meanwhile.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::super::blob::Blob;
use super::super::error::{Doing, Error, Result};
use super::super::file_system::FileSystem;
use super::super::provider::Offer;
use super::super::staging::{StagingDir, StagingReader};
use super::Options;
use super::arrival::{Arrival, force};
use super::core::Core;
use super::filling::{Filling, Place};
use super::ledger::room_of;
use super::sweep::Sweep;
use crate::checksum::{self, Checksum};
use crate::failpoint;
use crate::sys::file;
use crate::worker::Signal;

/// Copies that wait; those beyond are left to the next read.
const WAITING_MAX: usize = 1024;
/// Files without a name that wait to be copied: they take room that nobody counts.
const HELD_MAX: usize = 32;
/// How often uses are noted and left files looked at.
const PERIOD: Duration = Duration::from_secs(3);

/// A blob that is to be copied into the cache.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) sum: Checksum,
    size: u64,
    from: Source,
    /// The last removal before its bytes were looked for.
    began: u64,
}

/// What it is copied from.
#[derive(Debug)]
enum Source {
    /// What the provider below has.
    Below,
    /// The file that the blob was made of.
    Staging(StagingReader),
    /// The file that the provider below had, and has done with.
    HandedOver(File),
}

impl Core {
    /// The cached copies of blobs that were just put below, as far as they are to be made and can be.
    pub(super) fn keep_put(self: &Arc<Core>, batch: &[(Checksum, Offer)]) {
        let mut links = Vec::new();
        let dirs = self.below.staging_dirs();
        let is_ours = |dir: &Arc<StagingDir>| {
            self.dirs.iter().map(FileSystem::own_staging).chain(&dirs).any(|own| Arc::ptr_eq(own, dir))
        };
        for (sum, offer) in batch.iter().filter(|(_, offer)| self.admits(offer.size)) {
            if self.cached(sum, Some(offer.size)).is_some() {
                self.asked(sum, offer.size, true);
                continue;
            }
            match offer.from.stat(offer.name) {
                // Whoever has a file elsewhere may write it again.
                Ok(stat) if stat.links == 1 && is_ours(&offer.from) => links.push((*sum, offer)),
                Ok(_) if !self.options().handed_over => self.queue(*sum, offer.size, Source::Below),
                Ok(_) => {}
                Err(error) => self.complain(&error),
            }
        }
        links.sort_by_key(|(sum, _)| *sum);
        links.dedup_by_key(|(sum, _)| *sum);
        let blobs: Vec<(Checksum, u64)> = links.iter().map(|(sum, offer)| (*sum, offer.size)).collect();
        let places = Place::take(self, &blobs);
        if places.iter().any(Option::is_some)
            && let Err(error) = self.ledger.force()
        {
            return self.complain(&error);
        }
        for (place, (sum, offer)) in places.into_iter().zip(links) {
            let Some(mut place) = place else { continue };
            match link(&mut place, offer) {
                Ok(true) => {}
                Ok(false) => {
                    drop(place);
                    match offer.from.open(offer.name) {
                        Ok(file) => self.queue(sum, offer.size, Source::Staging(file)),
                        Err(error) => self.complain(&error),
                    }
                }
                Err(error) => self.complain(&error),
            }
        }
    }

    /// A blob that a file below holds is to be copied.
    pub(super) fn queue_copy(&self, sum: &Checksum, size: u64) {
        self.queue(*sum, size, Source::Below);
    }

    /// A file that the provider below does not need any more is to be copied.
    pub(super) fn queue_file(&self, sum: &Checksum, size: u64, file: File) {
        self.queue(*sum, size, Source::HandedOver(file));
    }

    fn queue(&self, sum: Checksum, size: u64, from: Source) {
        if !self.admits(size) {
            return;
        }
        let mut fills = self.fills.lock();
        let is_held = |fill: &&Fill| matches!(fill.from, Source::HandedOver(_));
        if matches!(from, Source::HandedOver(_)) && fills.iter().filter(is_held).count() >= HELD_MAX {
            // Its first reader fetches it.
            return;
        }
        if fills.len() < WAITING_MAX && !fills.iter().any(|fill| fill.sum == sum) {
            fills.push_back(Fill { sum, size, from, began: self.removals.last() });
        }
        drop(fills);
        if let Some(signal) = &*self.signal.lock() {
            signal.wake();
        }
    }

    /// Makes one of the copies that wait; whether there was one.
    pub(super) fn fill_next(self: &Arc<Core>) -> bool {
        let Some(Fill { sum, size, from, began }) = self.fills.lock().pop_front() else { return false };
        let filled = match from {
            Source::Staging(file) => self.copy_in(&sum, size, began, |to| {
                file::copy_start(&file, to, size).doing("copy into the cache blob", sum.to_string())
            }),
            Source::HandedOver(file) => self.copy_in(&sum, size, began, |to| {
                file::copy_start(&file, to, size).doing("copy into the cache blob", sum.to_string())
            }),
            Source::Below => self.copy_from_below(&sum, size, &|| true),
        };
        match filled {
            Ok(_) => {}
            // A writer came to the file that it was made of.
            Err(Error::Altered(_)) => tracing::debug!("blob {sum} is not cached: its file was written"),
            Err(error) => self.complain(&error),
        }
        true
    }

    /// Copies what is below into the cache; whether it is there then.
    pub(super) fn copy_from_below(
        self: &Arc<Core>,
        sum: &Checksum,
        size: u64,
        go_on: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let began = self.removals.last();
        match self.below.open(sum, Some(size))? {
            None => Err(Error::Missing(*sum)),
            Some(blob) if blob.size() != size => {
                Err(Error::WrongSize { sum: *sum, expected: size, found: blob.size() })
            }
            Some(Blob::Remote(remote)) => {
                let handle = Arrival::of(self, sum, remote);
                handle.0.complete(go_on).doing("fetch into the cache blob", sum.to_string())
            }
            Some(blob) => self.copy_in(sum, size, began, |to| {
                blob.copy_start(to, size).doing("copy into the cache blob", sum.to_string())
            }),
        }
    }

    /// Lets `copy` fill a file with a blob; whether it is cached then.
    fn copy_in(
        self: &Arc<Core>,
        sum: &Checksum,
        size: u64,
        began: u64,
        copy: impl FnOnce(&File) -> Result<()>,
    ) -> Result<bool> {
        if self.cached(sum, Some(size)).is_some() {
            return Ok(true);
        }
        let Some(mut filling) = Filling::begin(self, sum, size, began) else { return Ok(false) };
        copy(&filling.file)?;
        let digest =
            checksum::digest(&filling.file, || true).doing("read the copy of blob", sum.to_string())?;
        if digest.is_none_or(|digest| digest.checksum != *sum) {
            return Err(Error::Altered(*sum));
        }
        filling.force().doing("force the copy of blob", sum.to_string())?;
        filling.settle()
    }

    /// The cache's own work, until it is told to stop.
    pub(super) fn work(self: &Arc<Core>, signal: &Signal) {
        let mut sweep = Sweep::of(self);
        loop {
            while !signal.stopped() && self.fill_next() {}
            self.note_asked();
            self.reap_left();
            self.keep_within_limits();
            sweep.go_on(self);
            if !signal.wait(PERIOD) {
                return;
            }
        }
    }

    /// Evicts what others need of the disk, and what is too much since the limit was made smaller.
    pub(super) fn keep_within_limits(&self) {
        let Options { bytes_max, free_bytes_min, .. } = self.options();
        let short =
            |dir: &FileSystem| Some(free_bytes_min.saturating_sub(dir.volume().space().ok()??.available));
        let short = self.dirs.iter().filter_map(short).max().unwrap_or(0);
        let room = self.taken().room;
        if short > 0 && room > 0 || room > bytes_max {
            self.evict(room_of(short).max(room.saturating_sub(bytes_max)));
        }
    }
}

/// Gives a staging file a second name in the cache; false where that is impossible.
fn link(place: &mut Place, offer: &Offer) -> Result<bool> {
    offer.from.must_be_sound(offer.name)?;
    let file = offer.from.open(offer.name)?;
    let path = offer.from.path().join(offer.name.to_string());
    force(&file).doing("force", &path)?;
    if file.stat().doing("stat", &path)?.size != offer.size {
        return Ok(false);
    }
    drop(file);
    let sum = place.sum;
    let linked = place.settle(|dir| dir.link_from(&sum, &offer.from, offer.name))?;
    if linked {
        // A crash here leaves a blob that the index does not know, in the cache as well as below.
        failpoint::hit("cache.linked");
    }
    Ok(linked)
}
