//! Keeps copies of blobs that were read or written lately on a disk of this host, before a slow provider.
//!
//! The blobs in it are all below as well, so any of them may go at any time. Not so its staging files and what was set aside
//! of them: a cached file can become a writer's, and is then the only one that has its bytes. Its limit is hard: room is taken
//! before a byte arrives, what arrives counts and so does what was evicted and is still open; where there is no room, a read
//! goes past the cache. Concurrent readers of one missing blob share one fetch ([`arrival`]). What was used when is
//! remembered over restarts without a walk ([`ledger`]).
//!
//! ```toml
//! chain = ["cache-fs", "file-system"]
//!
//! [cache-fs]
//! max-cache-size = "5GB"
//! ```

mod advice;
mod arrival;
mod core;
mod eviction;
mod fill;
mod filling;
mod ledger;
mod removals;
mod sweep;

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

pub use self::advice::Advice;

use self::arrival::Arrival;
use self::core::Core;
use self::ledger::Ledger;
use super::alterations::Alterations;
use super::blob::{Blob, BlobFile, FileId};
use super::error::{Error, Result};
use super::file_system::{self, FileSystem};
use super::provider::{Found, Health, Listed, Mended, Offer, Provider, ProviderStatus, Reach, Visit};
use super::staging::StagingDir;
use super::volume::Volume;
use crate::change::StagingName;
use crate::checksum::{self, Checksum};
use crate::failpoint;
use crate::text::chain;
use crate::worker::Worker;

/// Its name in a chain.
const KIND: &str = "cache-fs";

/// How long the end waits for the worker.
const STOP_LONGEST: Duration = Duration::from_secs(5);

/// The provider `cache-fs`.
#[derive(Debug)]
pub struct CacheFs {
    core: Arc<Core>,
    worker: Mutex<Option<Worker>>,
}

/// What it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Room in all directories together, in bytes.
    pub bytes_max: u64,
    /// The largest blob that is cached.
    pub file_bytes_max: u64,
    /// Bytes that stay free on the disk of each directory.
    pub free_bytes_min: u64,
    /// Whether only reads fill it.
    pub skip_during_upload: bool,
    /// The provider below hands over the files that it has on this host itself.
    pub handed_over: bool,
}

/// How full the cache is, and what it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheStatus {
    /// Room in bytes that it may take.
    pub limit: u64,
    /// Room that it takes: blobs, what arrives, and what was evicted and is open.
    pub used: u64,
    /// Room of what arrives.
    pub arriving: u64,
    /// Blobs.
    pub entries: u64,
    /// Openings since the start that it answered.
    pub hits: u64,
    /// Openings since the start that it did not.
    pub misses: u64,
    /// Blobs evicted since the start.
    pub evictions: u64,
}

/// What became of a blob that was to be warmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmed {
    /// It is in the cache now.
    Fetched,
    /// It was.
    There,
    /// There is no room for it, or it is larger than what is cached.
    NotCached,
}

impl CacheFs {
    /// Makes the directories; durable on Ok.
    pub fn create(dirs: &[PathBuf], depot_id: [u8; 16]) -> Result<()> {
        dirs.iter().try_for_each(|dir| FileSystem::create(dir, depot_id, &file_system::Options::default()))
    }

    /// Opens the directories over what stands below. One that does not exist is made: whether it had staging files that
    /// somebody needs is for the caller to find out. One that exists and is nobody's is refused, as its disk may not be mounted.
    pub fn open(
        dirs: &[PathBuf],
        depot_id: [u8; 16],
        options: Options,
        below: Arc<dyn Provider>,
    ) -> Result<CacheFs> {
        let looks = file_system::Options::default();
        let mut open = Vec::with_capacity(dirs.len());
        for dir in dirs {
            if !dir.exists() {
                FileSystem::create(dir, depot_id, &looks)?;
            }
            open.push(FileSystem::open(dir, depot_id, &looks)?);
        }
        let Some(first) = open.first() else { return Err(Error::NoProvider) };
        let (ledger, room, is_new) = open_ledger(first.volume())?;
        if is_new {
            open.iter().try_for_each(clear)?;
        }
        let core = Arc::new(Core::new(open, below, options, ledger, room)?);
        Ok(CacheFs { core, worker: Mutex::default() })
    }

    /// Where it notes blobs that came with bytes that are not theirs.
    pub fn alterations(&self) -> Arc<Alterations> {
        Arc::clone(&self.core.alterations)
    }

    /// Starts its worker.
    pub fn start(&self) -> io::Result<()> {
        let core = Arc::clone(&self.core);
        let worker = Worker::start("cache-fs", move |signal| core.work(signal))?;
        *self.core.signal.lock() = Some(worker.signal());
        *self.worker.lock() = Some(worker);
        Ok(())
    }

    /// Stops it, and notes what was used.
    pub fn stop(&self) {
        *self.core.signal.lock() = None;
        if let Some(worker) = self.worker.lock().take() {
            worker.join_until(Instant::now() + STOP_LONGEST);
        }
        self.core.note_asked();
    }

    /// Makes the file at `from`, which holds this blob whole and forced, the cached copy, by moving it; false when it stays where
    /// it is, because there is no room, or the blob is cached already, or it is on another file system: then it may go, and is
    /// copied from its open file.
    pub fn take_over(&self, sum: &Checksum, size: u64, from: &Path) -> Result<bool> {
        self.core.take_over(sum, size, from)
    }

    /// Opens what is stored, to look whether it is good: the cached copy, else what is below, which is not cached by this.
    pub fn open_stored(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        match self.core.cached(sum, size) {
            Some(file) => Ok(Some(Blob::Local(file))),
            None => self.core.below.open(sum, size),
        }
    }

    /// Opens the cached copy.
    pub fn open_cached(&self, sum: &Checksum) -> Option<Blob> {
        self.core.cached(sum, None).map(Blob::Local)
    }

    /// Opens what is below, whatever is cached; it is not cached by this.
    pub fn open_below(&self, sum: &Checksum) -> Result<Option<Blob>> {
        self.core.below.open(sum, None)
    }

    /// Drops this very file, if it is the cached copy of the blob; whether it was.
    pub fn drop_copy(&self, sum: &Checksum, file: FileId) -> Result<bool> {
        self.core.expel(sum, Some(file))
    }

    /// Drops the cached copy, unless somebody has it open; whether it did.
    pub fn drop_blob(&self, sum: &Checksum) -> Result<bool> {
        self.core.drop_unused(sum)
    }

    /// Drops everything that is not in use; how many blobs.
    pub fn drop_all(&self) -> u64 {
        let before = self.core.evictions();
        self.core.evict(u64::MAX);
        self.core.evictions() - before
    }

    /// Sees to it that the blob is in the cache.
    pub fn warm(&self, sum: &Checksum, size: u64, go_on: &dyn Fn() -> bool) -> Result<Warmed> {
        if size == 0 || self.core.cached(sum, Some(size)).is_some() {
            return Ok(Warmed::There);
        }
        if !self.core.admits(size) {
            return Ok(Warmed::NotCached);
        }
        Ok(if self.core.copy_from_below(sum, size, go_on)? { Warmed::Fetched } else { Warmed::NotCached })
    }

    /// Other limits hold from now on. What is in use goes later where it is too much.
    pub fn change(&self, options: Options) {
        self.core.set_options(options);
    }

    /// How large it should be.
    pub fn advise(&self) -> Result<Advice> {
        self.core.note_asked();
        Ok(advice::advise(&self.core.ledger.asked()?, self.core.options().bytes_max))
    }

    /// How full it is.
    pub fn cache_status(&self) -> CacheStatus {
        let taken = self.core.taken();
        CacheStatus {
            limit: self.core.options().bytes_max,
            used: taken.room,
            arriving: taken.arriving,
            entries: self.core.ledger.entries(),
            hits: self.core.hits.load(Ordering::Relaxed),
            misses: self.core.misses.load(Ordering::Relaxed),
            evictions: self.core.evictions(),
        }
    }
}

impl Drop for CacheFs {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Opens the ledger, with the room it counts; one that is missing or no database any more is begun anew.
fn open_ledger(volume: &Volume) -> Result<(Ledger, u64, bool)> {
    let path = volume.at(ledger::FILE);
    if volume.stat(ledger::FILE)?.is_some() {
        match Ledger::open(path.clone()) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!("{} is damaged and is begun anew", path.display());
            }
            opened => return opened.map(|(ledger, room)| (ledger, room, false)),
        }
    }
    Ledger::create(volume)?;
    Ledger::open(path).map(|(ledger, room)| (ledger, room, true))
}

/// Drops the blobs of a directory whose ledger was lost: nothing may take room that is not counted.
fn clear(dir: &FileSystem) -> Result<()> {
    let mut sums = Vec::new();
    dir.list(None, &mut |listed| {
        if let Listed::Blob { sum, .. } = listed
            && sum != Checksum::EMPTY
        {
            sums.push(sum);
        }
        ControlFlow::Continue(())
    })?;
    sums.iter().try_for_each(|sum| dir.remove(sum).map(drop))
}

impl Provider for CacheFs {
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        if let Some(file) = self.core.cached(sum, size) {
            if *sum != Checksum::EMPTY {
                self.core.asked(sum, file.size(), true);
            }
            return Ok(Some(Blob::Local(file)));
        }
        let Some(blob) = self.core.below.open(sum, size)? else { return Ok(None) };
        if *sum != Checksum::EMPTY {
            self.core.asked(sum, blob.size(), false);
        }
        if !self.core.admits(blob.size()) || size.is_some_and(|size| size != blob.size()) {
            return Ok(Some(blob));
        }
        Ok(Some(match blob {
            Blob::Remote(remote) => Blob::Remote(Box::new(Arrival::of(&self.core, sum, remote))),
            local => {
                if !self.core.options().handed_over {
                    self.core.queue_copy(sum, local.size());
                }
                local
            }
        }))
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        // What is only cached is not stored: a duplicate must not be taken for kept because of it.
        self.core.below.stat(sum)
    }

    fn stat_at_hand(&self, sum: &Checksum) -> Result<Option<u64>> {
        self.core.below.stat_at_hand(sum)
    }

    fn open_copy(&self, sum: &Checksum, file: FileId) -> Result<Option<BlobFile>> {
        match self.core.cached_copy(sum, file)? {
            None => self.core.below.open_copy(sum, file),
            found => Ok(found),
        }
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        let mut found: Vec<Found> =
            self.core.path_of(sum)?.into_iter().map(|path| Found { kind: KIND, path }).collect();
        found.extend(self.core.below.locate(sum)?);
        Ok(found)
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        self.core.below.stage()
    }

    fn staging(&self, name: StagingName) -> Result<Arc<StagingDir>> {
        for dir in &self.core.dirs {
            if dir.own_staging().holds(name)? {
                return Ok(Arc::clone(dir.own_staging()));
            }
        }
        self.core.below.staging(name)
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        let mut dirs = self.core.below.staging_dirs();
        dirs.extend(self.core.dirs.iter().map(|dir| Arc::clone(dir.own_staging())));
        dirs
    }

    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        self.core.below.put(batch)?;
        // A crash here leaves blobs below that the cache does not have.
        failpoint::hit("cache.put");
        if !self.core.options().skip_during_upload {
            self.core.keep_put(batch);
        }
        Ok(())
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.core.below.put_copy(sum, blob)
    }

    fn heal(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.core.below.heal(sum, blob)
    }

    fn detach(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<()> {
        if self.core.lend(sum, name, file)? { Ok(()) } else { self.core.below.detach(sum, name, file) }
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        // In this order: what is below may be handing the blob over, and has done so, or will not, when this returns.
        let removed = self.core.below.remove(sum)?;
        self.core.removals.note(sum);
        let arrival = self.core.arrivals.lock().remove(sum).and_then(|arrival| arrival.upgrade());
        if let Some(arrival) = arrival {
            arrival.blob_is_gone();
        }
        self.core.fills.lock().retain(|fill| fill.sum != *sum);
        self.core.expel(sum, None)?;
        Ok(removed)
    }

    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        self.core.below.force_removed(sums)
    }

    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        self.core.below.list(after, visit)
    }

    fn mend(&self, sum: &Checksum) -> Result<Mended> {
        if let Some(file) = self.core.cached(sum, None) {
            let id = file.file_id();
            let digest = checksum::digest(&Blob::Local(file), || true);
            if !digest.is_ok_and(|digest| digest.is_some_and(|digest| digest.checksum == *sum)) {
                self.core.expel(sum, Some(id))?;
            }
        }
        self.core.below.mend(sum)
    }

    fn owed(&self, after: Option<&Checksum>, limit: usize) -> Vec<Checksum> {
        self.core.below.owed(after, limit)
    }

    fn reach(&self) -> Reach {
        self.core.below.reach()
    }

    fn status(&self) -> ProviderStatus {
        let below = self.core.below.status();
        let volume = self.core.dirs[0].volume();
        let failing = volume.space().err().map(|error| chain(&error));
        ProviderStatus {
            kind: KIND,
            directory: Some(volume.path().to_owned()),
            file_system: Some(volume.file_system().name().to_owned()),
            reflink: below.reflink,
            // Room for new blobs is that of whoever keeps them.
            space: below.space,
            health: failing.map_or(Health::Up, Health::Failing),
            owed: 0,
            cache: Some(self.cache_status()),
            queue: None,
            children: vec![below],
        }
    }
}

#[cfg(test)]
mod tests;
