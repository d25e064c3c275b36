//! One shared fetch of one blob: its readers are served what has arrived, and what is far ahead is asked for on its own.
//!
//! Readers that follow the arrival get its last bytes only once all of them are known to be those of the checksum; if they
//! are not, every read of it fails and nothing is cached. A fetch begins with a read near the beginning or when reads amount
//! to a part of the blob: a look at the end of a large one costs no more than that. Everybody who waits gives up after a time
//! without progress and asks below himself, where each call has a deadline.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::stat::fstat;
use nix::unistd::fdatasync;
use parking_lot::{Condvar, Mutex, RwLock};

use super::super::blob::{Blob, FileId, Remote, read_fully};
use super::super::error::Error;
use super::core::Core;
use super::filling::Filling;
use crate::checksum::{Checksum, Comparison};
use crate::failpoint;
use crate::sys::file;

/// The end of a blob that is shown only after all of it was compared with the checksum.
const HELD_BACK: u64 = 128 * 1024;
/// A reader up to this far ahead of what has arrived waits, one further ahead asks for its bytes itself. More than the kernel
/// reads ahead, so that one who reads in order has nothing fetched twice.
const AHEAD: u64 = 2 << 20;
/// A read that begins before this starts the fetch.
const BEGINNING: u64 = 256 * 1024;
/// Reads one behind the other that start it, wherever they are.
const RUN: u64 = 4 << 20;
/// The part of a blob that starts it when it was asked for in pieces.
const PART: u64 = 8;
/// Fetches at a time; beyond them blobs are read uncached.
const FETCHES_MAX: usize = 24;
/// No progress for so long: whoever waits goes on without the fetch.
const STALL: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 10_000 });
/// After a failed fetch, or without room, the next one begins this much later.
const PAUSE: Duration = Duration::from_secs(2);
/// Bytes that are written and then hashed, while the processor has them near.
const STEP: usize = 256 << 10;
/// Those who wait are woken this often, each time all of them; and for each step of the first so many bytes.
const TOLD_EVERY: u64 = 1 << 20;
/// Bytes that are sent to the disk together.
const WRITE_BACK_EVERY: u64 = 16 << 20;
/// What is left of a fetch that nobody reads is fetched all the same when it is at most this much.
const WORTH_ENDING: u64 = 64 << 20;

/// See above.
pub(super) struct Arrival {
    core: Arc<Core>,
    sum: Checksum,
    size: u64,
    remote: Box<dyn Remote>,
    /// The last removal before it was made.
    began: u64,
    progress: Mutex<Progress>,
    moved: Condvar,
    /// Taken for writing when it changes, never while something is fetched or forced; before `progress`.
    held: RwLock<Option<Held>>,
    readers: AtomicUsize,
}

/// The local file of it.
#[derive(Debug)]
enum Held {
    /// It grows.
    Growing(Filling),
    /// It is the cache's.
    Whole(Blob),
}

impl Held {
    /// Which file it is.
    fn file_id(&self) -> Option<FileId> {
        match self {
            Held::Growing(filling) => {
                fstat(&filling.file).ok().map(|found| FileId { dev: found.st_dev, ino: found.st_ino })
            }
            Held::Whole(blob) => blob.file_id(),
        }
    }
}

#[derive(Debug)]
struct Progress {
    phase: Phase,
    /// Whether a thread is at it: also when all bytes are there and the file waits for the disk and for its name.
    fetching: bool,
    /// Bytes of the file that may be read.
    arrived: u64,
    moved: Instant,
    /// Where the last read ended, and how many bytes were read one behind the other before.
    run_end: u64,
    run: u64,
    /// Bytes asked for past the fetch.
    asked: u64,
    /// Not before then is a fetch begun.
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is fetched.
    Idle,
    /// A thread fetches.
    Fetching,
    /// All bytes are there, and good.
    Done,
    /// They are not those of the checksum.
    Altered,
    /// The file became somebody else's.
    Gone,
}

/// How a read is answered.
enum Way {
    File,
    Below,
}

/// Why a fetch ended early.
enum Stop {
    /// There is no room, or nobody wants it any more.
    Unwanted,
    /// A call failed.
    Failed(io::Error),
    /// The bytes are not those of the checksum.
    Altered,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Failed(error)
    }
}

impl Arrival {
    /// The arrival of a blob: the one that is under way, or one that begins with its first read.
    pub(super) fn of(core: &Arc<Core>, sum: &Checksum, remote: Box<dyn Remote>) -> Handle {
        // Declared before the lock: the last one to let go of an arrival takes it out of the table.
        let known;
        let mut arrivals = core.arrivals.lock();
        known = arrivals.get(sum).and_then(Weak::upgrade);
        if let Some(arrival) = known.as_ref().filter(|arrival| arrival.size == remote.size()) {
            return Handle::new(Arc::clone(arrival));
        }
        let arrival = Arc::new(Arrival {
            core: Arc::clone(core),
            sum: *sum,
            size: remote.size(),
            remote,
            began: core.removals.last(),
            progress: Mutex::new(Progress {
                phase: Phase::Idle,
                fetching: false,
                arrived: 0,
                moved: Instant::now(),
                run_end: 0,
                run: 0,
                asked: 0,
                not_before: None,
            }),
            moved: Condvar::new(),
            held: RwLock::default(),
            readers: AtomicUsize::new(0),
        });
        arrivals.insert(*sum, Arc::downgrade(&arrival));
        Handle::new(arrival)
    }

    fn read_at(self: &Arc<Arrival>, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let wanted = self.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let buffer = &mut buffer[..wanted];
        loop {
            match self.way(offset, offset + wanted as u64)? {
                Way::Below => return self.read_below(buffer, offset),
                Way::File => {
                    if let Some(read) = self.read_held(buffer, offset) {
                        return read;
                    }
                }
            }
        }
    }

    /// Asks below for just these bytes, all of them.
    fn read_below(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.remote.read_at(&mut buffer[done..], offset + done as u64)? {
                0 => {
                    let text =
                        format!("blob {} ends at {} of {} bytes", self.sum, offset + done as u64, self.size);
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                n => done += n,
            }
        }
        Ok(done)
    }

    /// Reads the local file; `None` when it has just become another one, or nobody's.
    fn read_held(&self, buffer: &mut [u8], offset: u64) -> Option<io::Result<usize>> {
        let held = self.held.read();
        let read = match held.as_ref()? {
            Held::Growing(filling) => read_fully(&filling.file, buffer, offset),
            Held::Whole(blob) => blob.read_at(buffer, offset),
        };
        match read {
            Ok(n) if n < buffer.len() => {
                let text = format!("the cached file of blob {} was cut", self.sum);
                Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)))
            }
            read => Some(read),
        }
    }

    /// Decides how a read is answered, waiting for its bytes if they are about to arrive.
    fn way(self: &Arc<Arrival>, offset: u64, end: u64) -> io::Result<Way> {
        let mut progress = self.progress.lock();
        progress.note(offset, end);
        loop {
            let phase = progress.phase;
            match phase {
                Phase::Done => return Ok(Way::File),
                Phase::Altered => return Err(altered(&self.sum)),
                Phase::Gone => return Ok(Way::Below),
                Phase::Idle if progress.wants_fetch(offset, self.size) && self.start(&mut progress) => {}
                Phase::Idle => {
                    progress.asked += end - offset;
                    return Ok(Way::Below);
                }
                Phase::Fetching if end <= progress.arrived.min(self.size.saturating_sub(HELD_BACK)) => {
                    return Ok(Way::File);
                }
                Phase::Fetching if offset >= progress.arrived + AHEAD => return Ok(Way::Below),
                Phase::Fetching if progress.moved.elapsed() >= STALL => return Ok(Way::Below),
                Phase::Fetching => {
                    let end = progress.moved + STALL;
                    self.moved.wait_until(&mut progress, end);
                }
            }
        }
    }

    /// Starts the thread that fetches; false when there are too many already.
    fn start(self: &Arc<Arrival>, progress: &mut Progress) -> bool {
        let slots = &self.core.fetches;
        if slots.fetch_add(1, Ordering::AcqRel) >= FETCHES_MAX {
            slots.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        let arrival = Arc::clone(self);
        let fetch = move || {
            arrival.fetch();
            arrival.core.fetches.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(error) = std::thread::Builder::new().name("cache-fetch".into()).spawn(fetch) {
            slots.fetch_sub(1, Ordering::AcqRel);
            self.core.complain(&error);
            return false;
        }
        progress.phase = Phase::Fetching;
        progress.fetching = true;
        progress.arrived = 0;
        progress.moved = Instant::now();
        true
    }

    /// Fetches all of it, and tells those who wait how it went.
    fn fetch(&self) {
        let fetched = self.fetch_all();
        let in_doubt = match &fetched {
            Err(Stop::Altered) => true,
            // Another object took the place of the one that was read so far: that may have been spoilt.
            Err(Stop::Failed(error)) => error.kind() == io::ErrorKind::InvalidData,
            _ => false,
        };
        if in_doubt {
            self.core.alterations.note(&self.sum);
        }
        if fetched.is_err() {
            // Before it is told: whoever reads then must not meet the old file.
            let file = self.held.write().take();
            drop(file);
        }
        let mut progress = self.progress.lock();
        progress.fetching = false;
        match fetched {
            // Its file became somebody else's meanwhile.
            _ if progress.phase == Phase::Gone => {}
            Ok(()) => progress.phase = Phase::Done,
            Err(Stop::Unwanted) => progress.pause(),
            Err(Stop::Failed(error)) => {
                let path = format!("blob {}", self.sum).into();
                self.core.complain(&Error::Io { doing: "fetch", path, source: error });
                progress.pause();
            }
            Err(Stop::Altered) => {
                tracing::error!(
                    "the bytes of blob {} that came from below are not those of its checksum",
                    self.sum
                );
                progress.phase = Phase::Altered;
                // Who opens it from now on tries again.
                self.core.arrivals.lock().remove(&self.sum);
            }
        }
        self.moved.notify_all();
    }

    fn fetch_all(&self) -> Result<(), Stop> {
        if self.hold_cached() {
            return Ok(());
        }
        let filling = Filling::begin(&self.core, &self.sum, self.size, self.began).ok_or(Stop::Unwanted)?;
        *self.held.write() = Some(Held::Growing(filling));
        let (mut hasher, mut at, mut stop) = (Comparison::default(), 0, None);
        let streamed = self.remote.stream(0, &mut |piece| {
            if self.is_unwanted(at) {
                stop = Some(Stop::Unwanted);
                return Err(io::Error::other("nobody reads it any more"));
            }
            if at + piece.len() as u64 > self.size {
                stop = Some(Stop::Altered);
                return Err(altered(&self.sum));
            }
            for part in piece.chunks(STEP) {
                self.write(part, at)?;
                hasher.update(part);
                let before = at;
                at += part.len() as u64;
                if at / TOLD_EVERY != before / TOLD_EVERY || at < TOLD_EVERY {
                    self.has_arrived(at);
                }
            }
            self.has_arrived(at);
            Ok(())
        });
        // Whatever else ended it says nothing of the bytes: an object that was replaced by an equal one is no damage.
        streamed.map_err(|error| stop.unwrap_or(Stop::Failed(error)))?;
        if at < self.size {
            let text = format!("only {at} of {} bytes came", self.size);
            return Err(Stop::Failed(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
        }
        if hasher.finish() != self.sum {
            return Err(Stop::Altered);
        }
        self.is_good();
        self.settle()
    }

    /// Reads the cached file from now on, if there is one.
    fn hold_cached(&self) -> bool {
        // Locked before it is opened: whoever makes it a writer's file lets go of it here after that.
        let mut held = self.held.write();
        let Some(blob) = self.core.local(&self.sum, self.size) else { return false };
        *held = Some(Held::Whole(blob));
        true
    }

    /// All bytes are good: readers need not wait for the disk, unless the file became somebody else's meanwhile.
    fn is_good(&self) {
        let mut progress = self.progress.lock();
        if progress.phase == Phase::Fetching {
            progress.phase = Phase::Done;
        }
        drop(progress);
        self.moved.notify_all();
    }

    /// The bytes get to the disk, and the file its name.
    fn settle(&self) -> Result<(), Stop> {
        if let Some(Held::Growing(filling)) = &*self.held.read() {
            filling.force()?;
        }
        let mut held = self.held.write();
        let Some(Held::Growing(mut filling)) = held.take() else { return Ok(()) };
        let settled = filling.settle();
        // A blob that was removed meanwhile is read to its end by those who have it open.
        *held = Some(Held::Growing(filling));
        match settled {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err(Stop::Failed(io::Error::other(error))),
        }
        // Its own descriptor could write; the blob's cannot.
        *held = self.core.local(&self.sum, self.size).map(Held::Whole);
        if held.is_none() {
            drop(held);
            self.progress.lock().phase = Phase::Gone;
        }
        Ok(())
    }

    fn write(&self, piece: &[u8], at: u64) -> io::Result<()> {
        failpoint::call("cache.fetch")?;
        let held = self.held.read();
        let Some(Held::Growing(filling)) = &*held else { return Err(io::ErrorKind::NotFound.into()) };
        file::write_all_at(&filling.file, piece, at)?;
        if at / WRITE_BACK_EVERY != (at + piece.len() as u64) / WRITE_BACK_EVERY {
            file::start_writeback(&filling.file)?;
        }
        Ok(())
    }

    fn has_arrived(&self, at: u64) {
        let mut progress = self.progress.lock();
        progress.arrived = at;
        progress.moved = Instant::now();
        self.moved.notify_all();
    }

    /// Whether nobody reads it and much is left to fetch.
    fn is_unwanted(&self, at: u64) -> bool {
        self.readers.load(Ordering::Acquire) == 0 && self.size - at > WORTH_ENDING
    }

    /// This file became a writer's: if it is what is read here, bytes come from below from now on.
    pub(super) fn let_go_of(&self, file: FileId) {
        let gone = {
            let mut held = self.held.write();
            if held.as_ref().and_then(Held::file_id) != Some(file) {
                return;
            }
            self.progress.lock().phase = Phase::Gone;
            held.take()
        };
        self.moved.notify_all();
        drop(gone);
    }

    /// The blob was removed: what nobody fetches yet is not cached any more.
    pub(super) fn blob_is_gone(&self) {
        let mut progress = self.progress.lock();
        if progress.phase == Phase::Idle {
            progress.phase = Phase::Gone;
        }
    }

    /// Fetches it and waits for the end, as long as `go_on` says so; whether it is in the cache then.
    pub(super) fn complete(self: &Arc<Arrival>, go_on: &dyn Fn() -> bool) -> io::Result<bool> {
        let mut progress = self.progress.lock();
        progress.not_before = None;
        if progress.phase == Phase::Idle && !self.start(&mut progress) {
            return Ok(false);
        }
        while progress.fetching {
            let stalled = progress.phase == Phase::Fetching && progress.moved.elapsed() >= STALL;
            if stalled || !go_on() {
                let text = "no progress was made";
                return if stalled { Err(io::Error::new(io::ErrorKind::TimedOut, text)) } else { Ok(false) };
            }
            self.moved.wait_for(&mut progress, Duration::from_millis(200));
        }
        match progress.phase {
            Phase::Altered => Err(altered(&self.sum)),
            phase => Ok(phase == Phase::Done),
        }
    }
}

impl Progress {
    /// Notes a read, for what it tells of those to come.
    fn note(&mut self, offset: u64, end: u64) {
        self.run = if offset == self.run_end { self.run + (end - offset) } else { end - offset };
        self.run_end = end;
    }

    /// Whether a read at `offset` is reason enough to fetch all of it.
    fn wants_fetch(&self, offset: u64, size: u64) -> bool {
        self.not_before.is_none_or(|at| Instant::now() >= at)
            && (offset < BEGINNING || self.run >= RUN || self.asked >= size / PART)
    }

    fn pause(&mut self) {
        self.phase = Phase::Idle;
        self.not_before = Some(Instant::now() + PAUSE);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut arrivals = self.core.arrivals.lock();
        if arrivals.get(&self.sum).is_some_and(|known| known.strong_count() == 0) {
            arrivals.remove(&self.sum);
        }
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival").field("sum", &self.sum).finish_non_exhaustive()
    }
}

/// An arrival as one reader has it.
#[derive(Debug)]
pub(super) struct Handle(pub(super) Arc<Arrival>);

impl Handle {
    fn new(arrival: Arc<Arrival>) -> Handle {
        arrival.readers.fetch_add(1, Ordering::AcqRel);
        Handle(arrival)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Remote for Handle {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn is_kept(&self) -> bool {
        self.0.held.try_read().is_some_and(|held| held.is_some())
    }
}

fn altered(sum: &Checksum) -> io::Error {
    let text = format!("the bytes of blob {sum} that came from below are not those of its checksum");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Gets a file's bytes to the disk, before they get a name.
pub(super) fn force(file: &impl AsFd) -> io::Result<()> {
    failpoint::call("cache.force")?;
    Ok(fdatasync(file)?)
}
