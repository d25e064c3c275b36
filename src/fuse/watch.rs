//! Requests under way, and the watchdog that tells of those that take too long.
//!
//! Each request thread has a slot of atomics that only it writes: a request costs it a few plain stores and no look at the
//! clock. The watchdog looks at all slots once a second and takes the time itself, so that an age is what it has seen: up
//! to a second less than the truth.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fuser::INodeNo;
use parking_lot::Mutex;

use crate::metrics::{self, Operation};
use crate::sys::thread::{self, Tid};
use crate::worker::Worker;

/// A request that is older is told of; again at twice that age, and so on.
const TOLD_FROM: Duration = Duration::from_secs(30);
/// How often the slots are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Another age to tell from, in milliseconds, for tests; heeded by debug builds only.
const TOLD_FROM_VARIABLE: &str = "DEPOTFS_TEST_WATCHDOG_MS";
/// An operation that panics, for tests; heeded by debug builds only.
const PANIC_VARIABLE: &str = "DEPOTFS_TEST_PANIC";

/// What a request thread is doing.
#[derive(Debug)]
struct Slot {
    /// Where its name and state are found.
    tid: Tid,
    /// Odd while a request is under way; moves at each beginning and end.
    turn: AtomicU64,
    /// Number of the [`Operation`].
    operation: AtomicU8,
    /// The inode it is about, as the kernel calls it.
    ino: AtomicU64,
}

/// A request as the watchdog sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    turn: u64,
    operation: &'static str,
    ino: u64,
}

impl Slot {
    fn new(tid: Tid) -> Slot {
        Slot { tid, turn: AtomicU64::new(0), operation: AtomicU8::new(0), ino: AtomicU64::new(0) }
    }

    fn begin(&self, operation: Operation, ino: u64) {
        let turn = self.turn.load(Ordering::Relaxed);
        // Whoever sees these sees the end of the request before as well.
        self.operation.store(operation as u8, Ordering::Release);
        self.ino.store(ino, Ordering::Release);
        self.turn.store(turn + 1, Ordering::Release);
    }

    fn end(&self) {
        self.turn.store(self.turn.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// The request under way; `None` between two, and while one makes way for the next.
    fn look(&self) -> Option<Seen> {
        let turn = self.turn.load(Ordering::Acquire);
        let operation = Operation::numbered(self.operation.load(Ordering::Acquire)).unwrap_or("request");
        let ino = self.ino.load(Ordering::Acquire);
        let same = self.turn.load(Ordering::Acquire) == turn;
        (same && turn % 2 == 1).then_some(Seen { turn, operation, ino })
    }
}

/// The slots of all request threads; these live as long as the process.
static SLOTS: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());

thread_local! {
    static MINE: OnceCell<&'static Slot> = const { OnceCell::new() };
}

/// A request under way; ends when dropped.
#[derive(Debug)]
pub struct Underway(&'static Slot);

/// Notes that the calling thread begins to answer a request, and counts it.
pub fn begin(operation: Operation, node: INodeNo) -> Underway {
    operation.count();
    let slot = MINE.with(|mine| {
        *mine.get_or_init(|| {
            let slot: &'static Slot = Box::leak(Box::new(Slot::new(thread::current())));
            SLOTS.lock().push(slot);
            slot
        })
    });
    slot.begin(operation, node.0);
    if cfg!(debug_assertions) {
        panic_if_told(operation);
    }
    Underway(slot)
}

fn panic_if_told(operation: Operation) {
    static TOLD: OnceLock<Option<OsString>> = OnceLock::new();
    let told = TOLD.get_or_init(|| std::env::var_os(PANIC_VARIABLE));
    assert!(told.as_ref().is_none_or(|name| name != operation.name()), "{operation:?} was told to panic");
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Starts the watchdog; dropping the worker stops it.
pub fn start() -> io::Result<Worker> {
    let told_from = told_from();
    Worker::start("watchdog", move |signal| {
        let mut watched = Vec::new();
        while signal.wait(LOOK_EVERY.min(told_from / 4)) {
            let slots = SLOTS.lock().clone();
            look(&slots, &mut watched, Instant::now(), told_from);
        }
    })
}

fn told_from() -> Duration {
    let given = std::env::var(TOLD_FROM_VARIABLE).ok().filter(|_| cfg!(debug_assertions));
    given.and_then(|ms| ms.parse().ok()).map_or(TOLD_FROM, Duration::from_millis)
}

/// One look: the gauges, and what there is to tell.
fn look(slots: &[&Slot], watched: &mut Vec<Watched>, now: Instant, told_from: Duration) {
    watched.resize_with(slots.len(), Watched::default);
    let (mut under_way, mut oldest) = (0, Duration::ZERO);
    for (slot, watched) in slots.iter().zip(watched) {
        let seen = slot.look();
        match watched.notice(seen, now, told_from) {
            Event::Nothing => {}
            Event::Old(request, age) => {
                metrics::REQUESTS_TOLD.count();
                let (state, thread) = (thread::state(slot.tid), thread::name(slot.tid));
                let Seen { operation, ino, .. } = request;
                tracing::warn!(
                    "{operation} of inode {ino} has been under way for {} s: thread {thread} ({}) {state}",
                    age.as_secs(),
                    slot.tid
                );
            }
            Event::Ended(request, age) => {
                let Seen { operation, ino, .. } = request;
                tracing::warn!("{operation} of inode {ino} ended after {} s", age.as_secs());
            }
        }
        if seen.is_some() {
            under_way += 1;
            oldest = oldest.max(watched.age(now));
        }
    }
    metrics::REQUESTS_UNDER_WAY.set(under_way);
    metrics::OLDEST_REQUEST.set(oldest.as_secs());
}

/// What the watchdog remembers of a slot.
#[derive(Debug, Default)]
struct Watched {
    /// The request that was under way at the last look, and since which look.
    last: Option<(Seen, Instant)>,
    /// The age at which it was told of last.
    told: Option<Duration>,
}

/// What a look at a slot brings to light.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Nothing,
    /// A request that has become old, or older by half.
    Old(Seen, Duration),
    /// The end of one that was told of.
    Ended(Seen, Duration),
}

impl Watched {
    fn age(&self, now: Instant) -> Duration {
        self.last.map_or(Duration::ZERO, |(_, since)| now - since)
    }

    fn notice(&mut self, seen: Option<Seen>, now: Instant, told_from: Duration) -> Event {
        let age = self.age(now);
        let (before, told) = (self.last.map(|(before, _)| before), self.told);
        if before != seen {
            (self.last, self.told) = (seen.map(|seen| (seen, now)), None);
            return match before {
                Some(before) if told.is_some() => Event::Ended(before, age),
                _ => Event::Nothing,
            };
        }
        let Some(seen) = seen else { return Event::Nothing };
        if age < told.map_or(told_from, |told| told * 2) {
            return Event::Nothing;
        }
        self.told = Some(age);
        Event::Old(seen, age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: Duration = Duration::from_secs(30);

    #[test]
    fn a_slot_shows_its_request_until_it_ends() {
        let slot = Slot::new(thread::current());
        assert_eq!(slot.look(), None);
        slot.begin(Operation::Fsync, 7);
        assert_eq!(slot.look(), Some(Seen { turn: 1, operation: "fsync", ino: 7 }));
        slot.end();
        assert_eq!(slot.look(), None);
        slot.begin(Operation::CopyFileRange, 8);
        assert_eq!(slot.look(), Some(Seen { turn: 3, operation: "copy_file_range", ino: 8 }));
    }

    #[test]
    fn an_old_request_is_told_of_at_doubling_ages_and_at_its_end() {
        let (slot, start) = (Slot::new(thread::current()), Instant::now());
        let mut watched = Watched::default();
        slot.begin(Operation::Write, 5);
        let mut told = Vec::new();
        for second in 0..250 {
            match watched.notice(slot.look(), start + Duration::from_secs(second), TOLD) {
                Event::Nothing => {}
                Event::Old(request, age) => {
                    assert_eq!((request.operation, request.ino), ("write", 5));
                    told.push(age.as_secs());
                }
                Event::Ended(..) => panic!("it has not ended"),
            }
        }
        assert_eq!(told, [30, 60, 120, 240]);
        slot.end();
        let later = start + Duration::from_secs(251);
        assert!(
            matches!(watched.notice(slot.look(), later, TOLD), Event::Ended(_, age) if age.as_secs() == 251)
        );
        assert_eq!(watched.notice(slot.look(), later + TOLD * 3, TOLD), Event::Nothing);
    }

    #[test]
    fn many_short_requests_are_not_one_long_one() {
        let (slot, start) = (Slot::new(thread::current()), Instant::now());
        let mut watched = Watched::default();
        for second in 0..100 {
            slot.begin(Operation::Write, 5);
            let at = start + Duration::from_secs(second);
            assert_eq!(watched.notice(slot.look(), at, TOLD), Event::Nothing);
            slot.end();
        }
    }

    #[test]
    fn a_look_sets_the_gauges() {
        let (busy, idle) = (Slot::new(thread::current()), Slot::new(thread::current()));
        busy.begin(Operation::Read, 3);
        let (mut watched, start) = (Vec::new(), Instant::now());
        look(&[&busy, &idle], &mut watched, start, TOLD);
        look(&[&busy, &idle], &mut watched, start + Duration::from_secs(12), TOLD);
        assert_eq!((metrics::REQUESTS_UNDER_WAY.get(), metrics::OLDEST_REQUEST.get()), (1, 12));
    }
}
