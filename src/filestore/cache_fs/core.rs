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
use super::super::staging::{StagingDir, staging_path};
use super::super::volume::PRE;
use super::Options;
use super::arrival::Arrival;
use super::fill::Fill;
use super::ledger::{Asked, Ledger, room_of};
use super::removals::Removals;
use crate::change::StagingName;
use crate::checksum::Checksum;
use crate::clock;
use crate::failpoint;
use crate::sys::lease::is_unused;
use crate::text::chain;
use crate::worker::Signal;

/// Blobs that an eviction looks at together.
const EVICTED_TOGETHER: usize = 64;
/// Blobs in use that an eviction passes over before it gives up.
const PASSED_OVER_MAX: usize = 4096;
/// Uses that wait to be noted; beyond them the oldest are noted by whoever comes.
const ASKED_WAITING_MAX: usize = 8192;
/// How often trouble with the cache's own disk is told.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Who waits for the claim on a checksum looks this often.
const CLAIM_POLL: Duration = Duration::from_millis(1);

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
    claims: Mutex<HashMap<Checksum, Claim>>,
    pub(super) arrivals: Mutex<HashMap<Checksum, Weak<Arrival>>>,
    pub(super) alterations: Arc<Alterations>,
    pub(super) removals: Removals,
    left: Mutex<Vec<Left>>,
    asked: Mutex<Vec<Asked>>,
    evicting: Mutex<()>,
    pub(super) fills: Mutex<VecDeque<Fill>>,
    pub(super) signal: Mutex<Option<Arc<Signal>>>,
    complained: Mutex<Option<Instant>>,
    temporaries: AtomicU64,
    pub(super) fetches: AtomicUsize,
    /// Which directories are on another file system than the files that are handed over, as far as that was tried.
    pub(super) elsewhere: Vec<AtomicBool>,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    evictions: AtomicU64,
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
enum Claim {
    /// A file of it is being made; what it is made of is gone once the flag is set.
    Filling(Arc<AtomicBool>),
    /// Its file is being taken away, which takes a moment.
    Leaving,
}

/// A file without a blob's name that still takes room.
#[derive(Debug)]
struct Left {
    dir: usize,
    path: String,
    room: u64,
    file: FileId,
    /// A staging file: it has its room until somebody discards it. Otherwise the file goes as soon as nobody has it open.
    lent: bool,
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

    /// The fetch of a blob that somebody reads.
    pub(super) fn arrival(&self, sum: &Checksum) -> Option<Arc<Arrival>> {
        self.arrivals.lock().get(sum).and_then(Weak::upgrade)
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
