//! The directories of the cache, their room, and who may change a name in them.
//!
//! Laws: the room of everything in the directories (blobs, files that are being filled, files that lost their name while they
//! are open, files lent to writers) is at most the limit; a blob's name leads to all of its bytes, forced; whoever changes
//! what a name leads to holds the claim on the checksum and the gate.
//!
//! Lock order: `evicting`, a claim, `gate`, and then any of the others, of which nobody takes two.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::super::alterations::Alterations;
use super::super::blob::{Blob, BlobFile, FileId};
use super::super::error::Result;
use super::super::file_system::{FileSystem, blob_path};
use super::super::provider::Provider;
use super::super::staging::staging_path;
use super::super::volume::PRE;
use super::Options;
use super::arrival::Arrival;
use super::eviction::Left;
use super::fill::Fill;
use super::ledger::{Asked, Ledger, room_of};
use super::removals::Removals;
use crate::checksum::Checksum;
use crate::clock;
use crate::failpoint;
use crate::text::chain;
use crate::worker::Signal;

/// Uses that wait to be noted; beyond them the oldest are noted by whoever comes.
const ASKED_WAITING_MAX: usize = 8192;
/// How often trouble with the cache's own disk is told.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// See above.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) dirs: Vec<FileSystem>,
    pub(super) below: Arc<dyn Provider>,
    options: RwLock<Options>,
    pub(super) ledger: Ledger,
    taken: Mutex<Taken>,
    /// Held for reading while a blob is opened, for writing while a name changes: a file that is found unused stays so until
    /// its name is gone.
    pub(super) gate: RwLock<()>,
    pub(super) claims: Mutex<HashMap<Checksum, Claim>>,
    pub(super) arrivals: Mutex<HashMap<Checksum, Weak<Arrival>>>,
    pub(super) alterations: Arc<Alterations>,
    pub(super) removals: Removals,
    pub(super) left: Mutex<Vec<Left>>,
    asked: Mutex<Vec<Asked>>,
    pub(super) evicting: Mutex<()>,
    pub(super) fills: Mutex<VecDeque<Fill>>,
    pub(super) signal: Mutex<Option<Arc<Signal>>>,
    complained: Mutex<Option<Instant>>,
    temporaries: AtomicU64,
    pub(super) fetches: AtomicUsize,
    /// Which directories are on another file system than the files that are handed over, as far as that was tried.
    pub(super) elsewhere: Vec<AtomicBool>,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) evictions: AtomicU64,
}

/// Room that is not free.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    /// All of it.
    pub(super) room: u64,
    /// What of it may not be on the disk yet.
    pub(super) arriving: u64,
}

/// Who decides on a checksum just now.
#[derive(Clone, Debug)]
pub(super) enum Claim {
    /// A file of it is being made; what it is made of is gone once the flag is set.
    Filling(Arc<AtomicBool>),
    /// Its file is being taken away, which takes a moment.
    Leaving,
}

impl Core {
    /// Over directories that are open; `room` is what their ledger counts.
    pub(super) fn new(
        dirs: Vec<FileSystem>,
        below: Arc<dyn Provider>,
        options: Options,
        ledger: Ledger,
        room: u64,
    ) -> Result<Core> {
        let mut left = Vec::new();
        for (dir, place) in dirs.iter().enumerate() {
            for name in place.own_staging().names()? {
                let stat = place.own_staging().stat(name)?;
                let (path, room) = (staging_path(name), room_of(stat.size));
                left.push(Left { dir, path, room, file: stat.file_id, lent: true });
            }
        }
        let taken = Taken { room: room + left.iter().map(|left| left.room).sum::<u64>(), arriving: 0 };
        let elsewhere = dirs.iter().map(|_| AtomicBool::default()).collect();
        Ok(Core {
            dirs,
            below,
            options: RwLock::new(options),
            ledger,
            taken: Mutex::new(taken),
            gate: RwLock::default(),
            claims: Mutex::default(),
            arrivals: Mutex::default(),
            alterations: Arc::default(),
            removals: Removals::default(),
            left: Mutex::new(left),
            asked: Mutex::default(),
            evicting: Mutex::default(),
            fills: Mutex::default(),
            signal: Mutex::default(),
            complained: Mutex::default(),
            temporaries: AtomicU64::new(1),
            fetches: AtomicUsize::new(0),
            elsewhere,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        })
    }

    /// Whether a blob of this size is ever cached.
    pub(super) fn admits(&self, size: u64) -> bool {
        let Options { file_bytes_max, bytes_max, .. } = self.options();
        size > 0 && size <= file_bytes_max && room_of(size) <= bytes_max
    }

    pub(super) fn options(&self) -> Options {
        *self.options.read()
    }

    /// Others hold from now on; what is too much by them is evicted.
    pub(super) fn set_options(&self, options: Options) {
        *self.options.write() = options;
        self.keep_within_limits();
    }

    pub(super) fn taken(&self) -> Taken {
        *self.taken.lock()
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// The directory that a blob is put in.
    pub(super) fn dir_of(&self, sum: &Checksum) -> usize {
        usize::from(sum.0[19]) % self.dirs.len()
    }

    /// The file of a blob, in whatever directory it is: their number may have changed.
    pub(super) fn find(&self, sum: &Checksum) -> Result<Option<(usize, BlobFile)>> {
        let first = self.dir_of(sum);
        for i in (0..self.dirs.len()).map(|i| (first + i) % self.dirs.len()) {
            if let Some(file) = self.dirs[i].open_file(sum)? {
                return Ok(Some((i, file)));
            }
        }
        Ok(None)
    }

    /// Opens a blob's file, if it is here with the size it should have; one of another size goes.
    ///
    /// Trouble with the cache is told in the log and is a miss: the blob itself is below.
    pub(super) fn cached(&self, sum: &Checksum, size: Option<u64>) -> Option<BlobFile> {
        let found = {
            let _gate = self.gate.read();
            failpoint::call("cache.open").map_err(|error| self.complain(&error)).ok()?;
            self.find(sum).inspect_err(|error| self.complain(error)).ok()??.1
        };
        if *sum == Checksum::EMPTY {
            return Some(found);
        }
        let size = match size {
            Some(size) => Some(size),
            None => self.ledger.size(sum).inspect_err(|error| self.complain(error)).ok()?,
        };
        if size == Some(found.size()) {
            return Some(found);
        }
        tracing::warn!("the cached copy of blob {sum} has {} bytes and not {size:?}: dropped", found.size());
        drop(found);
        self.expel(sum, None).map(drop).unwrap_or_else(|error| self.complain(&error));
        None
    }

    /// Opens this very file, if it is the cached copy.
    pub(super) fn cached_copy(&self, sum: &Checksum, file: FileId) -> Result<Option<BlobFile>> {
        let _gate = self.gate.read();
        Ok(self.find(sum)?.map(|(_, found)| found).filter(|found| found.file_id() == file))
    }

    /// Where the cached copy is.
    pub(super) fn path_of(&self, sum: &Checksum) -> Result<Option<PathBuf>> {
        Ok(self.find(sum)?.map(|(dir, _)| self.dirs[dir].volume().at(&blob_path(sum))))
    }

    /// A blob was opened: remembered for the order, and noted later.
    pub(super) fn asked(&self, sum: &Checksum, size: u64, hit: bool) {
        let counter = if hit { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        let full = {
            let mut asked = self.asked.lock();
            asked.push(Asked { sum: *sum, size, hit, at: clock::now() });
            asked.len() >= ASKED_WAITING_MAX
        };
        if full {
            self.note_asked();
        }
    }

    /// Writes down what was asked for since the last time.
    pub(super) fn note_asked(&self) {
        let asked = std::mem::take(&mut *self.asked.lock());
        if !asked.is_empty()
            && let Err(error) = self.ledger.note(&asked)
        {
            self.complain(&error);
        }
    }

    /// Tells of trouble with filling and using the cache, now and then: a full disk is met by every reader.
    pub(super) fn complain(&self, error: &dyn std::error::Error) {
        let mut complained = self.complained.lock();
        if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            *complained = Some(Instant::now());
            tracing::warn!(
                "the cache could not be filled or used, blobs are read from below: {}",
                chain(error)
            );
        }
    }

    /// A name for a file of the cache that is not a blob yet, or not any more.
    pub(super) fn temporary(&self, sum: &Checksum) -> String {
        format!("{PRE}/{sum}.{}.tmp", self.temporaries.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes room in a directory, evicting what is there.
    pub(super) fn reserve(&self, dir: usize, room: u64) -> bool {
        let mut last = false;
        loop {
            let lacking = {
                let mut taken = self.taken.lock();
                let lacking = self.lacking(&taken, dir, room);
                if lacking == 0 {
                    taken.room += room;
                    taken.arriving += room;
                    return true;
                }
                lacking
            };
            if last {
                return false;
            }
            last = !self.evict(lacking);
        }
    }

    /// Bytes that must go before `room` more may be taken.
    fn lacking(&self, taken: &Taken, dir: usize, room: u64) -> u64 {
        let Options { bytes_max, free_bytes_min, .. } = self.options();
        let over = (taken.room + room).saturating_sub(bytes_max);
        // What is arriving may not be on the disk yet.
        let wanted = free_bytes_min + taken.arriving + room;
        let short = match self.dirs[dir].volume().space() {
            Ok(Some(space)) => wanted.saturating_sub(space.available),
            // A file system that answers nonsense is not asked.
            _ => 0,
        };
        over.max(short)
    }

    pub(super) fn give_back(&self, room: u64) {
        let mut taken = self.taken.lock();
        taken.room = taken.room.saturating_sub(room);
    }

    pub(super) fn arrived(&self, room: u64) {
        let mut taken = self.taken.lock();
        taken.arriving = taken.arriving.saturating_sub(room);
    }

    /// The fetch of a blob that somebody reads.
    pub(super) fn arrival(&self, sum: &Checksum) -> Option<Arc<Arrival>> {
        self.arrivals.lock().get(sum).and_then(Weak::upgrade)
    }

    pub(super) fn claim_filling(&self, sum: &Checksum) -> Option<Arc<AtomicBool>> {
        let mut claims = self.claims.lock();
        if claims.contains_key(sum) {
            return None;
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        claims.insert(*sum, Claim::Filling(Arc::clone(&cancelled)));
        Some(cancelled)
    }

    pub(super) fn unclaim(&self, sum: &Checksum) {
        self.claims.lock().remove(sum);
    }

    /// A blob's file as its readers have it.
    pub(super) fn local(&self, sum: &Checksum, size: u64) -> Option<Blob> {
        self.cached(sum, Some(size)).map(Blob::Local)
    }
}
