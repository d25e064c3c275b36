//! What is known of each entry and each tombstone, and who may do what with it: the one place that decides races between
//! the workers and those who put and remove. See the picture in the module above.

mod turn;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::QueueStatus;
use crate::checksum::Checksum;

/// First pause after a failure, doubled by each further one.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause before one entry is tried again.
const ENTRY_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Longest pause of all workers while nothing succeeds.
const REST_MAX: Duration = Duration::from_secs(15);
/// Blobs that a close has put through and that no seal has asked for yet, remembered at most.
const THROUGH_MAX: usize = 10_000;

/// Where an entry is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be uploaded.
    Waiting,
    /// By a worker, just now.
    Uploading,
    /// Below has it; the file stays as long as somebody uses it.
    Uploaded,
    /// Exactly one thread decides what becomes of the file. `pending`: the provider below is not known to have it.
    Claimed { pending: bool },
}

/// A blob in the queue.
#[derive(Debug)]
struct Entry {
    /// Smaller ones came earlier.
    number: u64,
    since: SystemTime,
    size: u64,
    state: State,
    attempts: u32,
    /// It was removed while a worker had it.
    removed: bool,
    /// It was put again while a worker had it.
    renewed: bool,
}

/// A removal that the provider below has not been told of.
#[derive(Clone, Copy, Debug, Default)]
struct Tombstone {
    /// A worker is telling it.
    burying: bool,
    /// The blob was put again meanwhile: the file is gone.
    dropped: bool,
    /// It was removed again meanwhile.
    again: bool,
    /// Others have their turn first.
    not_before: Option<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Checksum, Entry>,
    /// Entries that a worker may take, by their number.
    ready: BTreeMap<u64, Checksum>,
    /// Entries that are tried again later.
    postponed: BTreeSet<(Instant, Checksum)>,
    tombstones: HashMap<Checksum, Tombstone>,
    /// Removals are not tried before.
    bury_after: Option<Instant>,
    /// How many threads are putting, opening or removing a blob: its file is not taken away under them.
    holds: HashMap<Checksum, u32>,
    /// Blobs that are just being put through: they are not buried.
    passing: HashSet<Checksum>,
    /// Blobs that were put through and not put yet.
    through: HashSet<Checksum>,
    bad: BTreeMap<Checksum, String>,
    next: u64,
    bytes: u64,
    uploading: u64,
    /// Failures since the last success.
    failures: u32,
    resting_until: Option<Instant>,
    last_error: Option<String>,
    stopping: bool,
}

/// What a worker is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Upload this one; how often that failed.
    Upload(Checksum, u32),
    /// Remove these below.
    Bury(Vec<Checksum>),
}

/// What became of an entry that somebody waited for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The provider below has it.
    Stored,
    /// Not yet.
    TooLate,
    /// Its bytes are not those of its name, and there are no others.
    Bad(String),
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Table {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// Keeps files from being taken away until it is dropped.
#[derive(Debug)]
pub(super) struct Hold<'a> {
    table: &'a Table,
    sums: Vec<Checksum>,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut inner = self.table.inner.lock();
        for sum in &self.sums {
            if let Some(count) = inner.holds.get_mut(sum) {
                *count -= 1;
                if *count == 0 {
                    inner.holds.remove(sum);
                }
            }
        }
    }
}

impl Table {
    /// Keeps the files of these blobs where they are, once whoever decides on one of them has done so.
    pub(super) fn hold(&self, sums: impl IntoIterator<Item = Checksum>) -> Hold<'_> {
        let mut inner = self.inner.lock();
        let mut held = Vec::new();
        for sum in sums {
            while inner.is_claimed(&sum) {
                self.changed.wait(&mut inner);
            }
            *inner.holds.entry(sum).or_default() += 1;
            held.push(sum);
        }
        Hold { table: self, sums: held }
    }

    /// A blob was put. One that below has already stays uploaded.
    pub(super) fn put(&self, sum: &Checksum, size: u64) {
        let mut inner = self.inner.lock();
        // What is being removed below is not there, whoever put it through.
        let through = inner.through.remove(sum) && !inner.tombstones.contains_key(sum);
        inner.bad.remove(sum);
        match inner.entries.get_mut(sum) {
            Some(entry) => (entry.removed, entry.renewed) = (false, true),
            None => {
                let state = if through { State::Uploaded } else { State::Waiting };
                inner.insert(*sum, size, SystemTime::now(), state);
            }
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// A blob was removed; `buried`: with a tombstone. False when that has to go again, because a close has put the blob
    /// through since the tombstone was decided on: what a close was promised is below stays there.
    pub(super) fn removed(&self, sum: &Checksum, buried: bool) -> bool {
        let mut inner = self.inner.lock();
        let promised = inner.through.contains(sum) || inner.passing.contains(sum);
        inner.bad.remove(sum);
        match inner.entries.get_mut(sum) {
            Some(entry) if entry.state == State::Uploading => entry.removed = true,
            Some(_) => inner.forget(sum),
            None => {}
        }
        if buried && !promised {
            inner.tombstones.entry(*sum).or_default().again = true;
        }
        drop(inner);
        self.changed.notify_one();
        !promised
    }

    /// Whether it is removed as far as anybody above can see, if no entry says otherwise.
    pub(super) fn is_buried(&self, sum: &Checksum) -> bool {
        self.inner.lock().tombstones.get(sum).is_some_and(|stone| !stone.dropped || stone.again)
    }

    /// Whether there is a tombstone, of which the file may be there.
    pub(super) fn has_tombstone(&self, sum: &Checksum) -> bool {
        self.inner.lock().tombstones.contains_key(sum)
    }

    /// The file of a tombstone is gone. What a worker has begun below it ends before anything is uploaded.
    pub(super) fn tombstone_dropped(&self, sum: &Checksum) {
        let mut inner = self.inner.lock();
        match inner.tombstones.get_mut(sum) {
            Some(stone) if stone.burying => (stone.dropped, stone.again) = (true, false),
            _ => drop(inner.tombstones.remove(sum)),
        }
    }

    /// Whether a close has put it through, and nobody has asked for it since.
    pub(super) fn was_put_through(&self, sum: &Checksum) -> bool {
        let inner = self.inner.lock();
        inner.through.contains(sum) || inner.passing.contains(sum)
    }

    /// Whether it was put through, and nobody has put it since.
    pub(super) fn is_through(&self, sum: &Checksum) -> bool {
        self.inner.lock().through.contains(sum)
    }

    /// Begins to put a blob through, once nobody removes it below; false when that takes until `end`.
    pub(super) fn begin_through(&self, sum: &Checksum, end: Instant) -> bool {
        let mut inner = self.inner.lock();
        while inner.passing.contains(sum) || inner.tombstones.get(sum).is_some_and(|stone| stone.burying) {
            if self.changed.wait_until(&mut inner, end).timed_out() {
                return false;
            }
        }
        inner.passing.insert(*sum)
    }

    /// Ends it; `stored`: below has it.
    pub(super) fn end_through(&self, sum: &Checksum, stored: bool) {
        let mut inner = self.inner.lock();
        inner.passing.remove(sum);
        if stored && inner.through.len() < THROUGH_MAX {
            inner.through.insert(*sum);
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Takes the right to decide on a blob that is no entry yet; false when somebody is working with it.
    pub(super) fn claim_found(&self, sum: &Checksum, size: u64, since: SystemTime) -> bool {
        let mut inner = self.inner.lock();
        if inner.entries.contains_key(sum) || inner.holds.contains_key(sum) {
            return false;
        }
        inner.insert(*sum, size, since, State::Claimed { pending: true });
        if let Some(entry) = inner.entries.get_mut(sum) {
            // An earlier daemon may have uploaded it: that is asked first.
            entry.attempts = 1;
        }
        true
    }

    /// Ends the claim of a blob that was found: it is an entry, or nothing.
    pub(super) fn end_found(&self, sum: &Checksum, there: bool) {
        let mut inner = self.inner.lock();
        if there {
            inner.set(sum, State::Waiting)
        } else {
            inner.forget(sum)
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Takes the right to take away the file of an uploaded entry; its size. `None` while somebody works with it.
    pub(super) fn claim_uploaded(&self, sum: &Checksum) -> Option<u64> {
        let mut inner = self.inner.lock();
        if inner.holds.contains_key(sum) || !inner.is(sum, State::Uploaded) {
            return None;
        }
        inner.set(sum, State::Claimed { pending: false });
        inner.entries.get(sum).map(|entry| entry.size)
    }

    /// As `claim_uploaded`, of an entry that this worker has.
    pub(super) fn claim_uploading(&self, sum: &Checksum) -> bool {
        let mut inner = self.inner.lock();
        let free = !inner.holds.contains_key(sum);
        if free {
            inner.set(sum, State::Claimed { pending: true });
        }
        free
    }

    /// Waits until an entry is uploaded, or is none any more.
    pub(super) fn await_upload(&self, sum: &Checksum, end: Instant) -> Awaited {
        let mut inner = self.inner.lock();
        while inner.entries.get(sum).is_some_and(Entry::is_pending) {
            if self.changed.wait_until(&mut inner, end).timed_out() {
                return Awaited::TooLate;
            }
        }
        inner.bad.get(sum).map_or(Awaited::Stored, |why| Awaited::Bad(why.clone()))
    }

    /// Ends the claim of an entry that a worker goes on with.
    pub(super) fn unclaim_uploading(&self, sum: &Checksum) {
        self.inner.lock().set(sum, State::Uploading);
        self.changed.notify_all();
    }

    /// Below has good bytes of it after all.
    pub(super) fn forget_bad(&self, sum: &Checksum) {
        self.inner.lock().bad.remove(sum);
    }

    /// Whether below has it and its file is still here.
    pub(super) fn is_uploaded(&self, sum: &Checksum) -> bool {
        self.inner.lock().is(sum, State::Uploaded)
    }

    /// Whether it is an entry.
    pub(super) fn knows(&self, sum: &Checksum) -> bool {
        self.inner.lock().entries.contains_key(sum)
    }

    /// Ends that claim: the file is gone, or stays for its users.
    pub(super) fn end_uploaded(&self, sum: &Checksum, gone: bool) {
        let mut inner = self.inner.lock();
        if gone {
            inner.forget(sum)
        } else {
            inner.set(sum, State::Uploaded)
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Entries whose files are not needed but used.
    pub(super) fn uploaded(&self) -> Vec<Checksum> {
        let inner = self.inner.lock();
        let uploaded = inner.entries.iter().filter(|(_, entry)| entry.state == State::Uploaded);
        uploaded.map(|(sum, _)| *sum).collect()
    }

    /// What a worker is to do next; waits for it, for `longest` at most.
    pub(super) fn take(&self, longest: Duration) -> Option<Task> {
        let end = Instant::now() + longest;
        let mut inner = self.inner.lock();
        loop {
            if inner.stopping {
                return None;
            }
            let now = Instant::now();
            if let Some(task) = inner.next_task(now) {
                return Some(task);
            }
            let until = inner.next_event(now).map_or(end, |at| at.min(end));
            if now >= end {
                return None;
            }
            self.changed.wait_until(&mut inner, until);
        }
    }

    /// How an upload ended. An entry that below has is claimed next, by whoever can.
    pub(super) fn upload_ended(&self, sum: &Checksum, outcome: Result<(), String>) {
        let mut inner = self.inner.lock();
        inner.uploading -= 1;
        let (removed, attempts) =
            inner.entries.get(sum).map_or((true, 0), |entry| (entry.removed, entry.attempts + 1));
        match outcome {
            Ok(()) => {
                inner.succeeded();
                inner.set(sum, State::Uploaded);
            }
            Err(why) => {
                inner.failed(why);
                inner.postpone(sum, attempts, pause(attempts, ENTRY_PAUSE_MAX));
            }
        }
        if removed {
            inner.forget(sum);
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// The file of an entry was not there, or its bytes were not those of its name: it is none any more.
    pub(super) fn upload_void(&self, sum: &Checksum, bad: Option<String>) {
        let mut inner = self.inner.lock();
        inner.uploading -= 1;
        match inner.entries.get(sum).is_some_and(|entry| entry.renewed) {
            true => inner.set(sum, State::Waiting),
            false => inner.forget(sum),
        }
        if let Some(why) = bad {
            inner.bad.insert(*sum, why);
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// These blobs are removed below, and the files of their tombstones are gone.
    pub(super) fn buried(&self, sums: &[Checksum]) {
        let mut inner = self.inner.lock();
        for sum in sums {
            inner.end_burying(sum, true);
        }
        if !sums.is_empty() {
            inner.succeeded();
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// These are not, and have their turn later; the one of which it was told still later, so that it does not hold up others.
    pub(super) fn not_buried(&self, sums: &[Checksum], told: Option<Checksum>, why: &str) {
        let mut inner = self.inner.lock();
        inner.failed(why.to_owned());
        let now = Instant::now();
        inner.bury_after = Some(now + pause(inner.failures, REST_MAX));
        for sum in sums {
            inner.end_burying(sum, false);
            if told == Some(*sum)
                && let Some(stone) = inner.tombstones.get_mut(sum)
            {
                stone.not_before = Some(now + REST_MAX);
            }
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Remembers a tombstone, or bytes that are not those of their name, that the last daemon left.
    pub(super) fn found_tombstone(&self, sum: Checksum) {
        self.inner.lock().tombstones.insert(sum, Tombstone::default());
    }

    pub(super) fn found_bad(&self, sum: Checksum, why: String) {
        self.inner.lock().bad.insert(sum, why);
    }

    /// Everything is tried again now.
    pub(super) fn hurry(&self) {
        let mut inner = self.inner.lock();
        inner.try_again();
        (inner.resting_until, inner.bury_after) = (None, None);
        inner.tombstones.values_mut().for_each(|stone| stone.not_before = None);
        drop(inner);
        self.changed.notify_all();
    }

    /// From now on nobody waits for work, and no work is given out.
    pub(super) fn stop(&self, stopping: bool) {
        self.inner.lock().stopping = stopping;
        self.changed.notify_all();
    }

    /// Bytes of all entries, those included that below has.
    pub(super) fn bytes(&self) -> u64 {
        self.inner.lock().bytes
    }

    pub(super) fn status(&self) -> QueueStatus {
        let inner = self.inner.lock();
        let pending = || inner.entries.values().filter(|entry| entry.is_pending());
        let oldest = pending().map(|entry| entry.since).min();
        QueueStatus {
            entries: pending().count() as u64,
            bytes: pending().map(|entry| entry.size).sum(),
            oldest_s: oldest.map_or(0, |since| since.elapsed().unwrap_or_default().as_secs()),
            uploading: inner.uploading,
            removals: inner.tombstones.len() as u64,
            in_use: (inner.entries.len() - pending().count()) as u64,
            failures: u64::from(inner.failures),
            last_error: inner.last_error.clone(),
            bad: inner.bad.iter().map(|(sum, why)| format!("{sum}: {why}")).collect(),
        }
    }
}

impl Entry {
    /// Whether the provider below is not known to have it.
    fn is_pending(&self) -> bool {
        match self.state {
            State::Waiting | State::Uploading => !self.removed,
            State::Claimed { pending } => pending,
            State::Uploaded => false,
        }
    }
}

impl Inner {
    fn is(&self, sum: &Checksum, state: State) -> bool {
        self.entries.get(sum).is_some_and(|entry| entry.state == state)
    }

    fn is_claimed(&self, sum: &Checksum) -> bool {
        self.entries.get(sum).is_some_and(|entry| matches!(entry.state, State::Claimed { .. }))
    }

    fn insert(&mut self, sum: Checksum, size: u64, since: SystemTime, state: State) {
        let number = self.next;
        self.next += 1;
        self.bytes += size;
        self.entries
            .insert(sum, Entry { number, since, size, state, attempts: 0, removed: false, renewed: false });
        if state == State::Waiting {
            self.ready.insert(number, sum);
        }
    }

    fn set(&mut self, sum: &Checksum, state: State) {
        let Some(entry) = self.entries.get_mut(sum) else { return };
        entry.state = state;
        if state == State::Waiting {
            self.ready.insert(entry.number, *sum);
        }
    }

    fn forget(&mut self, sum: &Checksum) {
        if let Some(entry) = self.entries.remove(sum) {
            self.bytes -= entry.size;
            self.ready.remove(&entry.number);
        }
    }

    /// A worker is done with a tombstone; `gone`: the provider below was told.
    fn end_burying(&mut self, sum: &Checksum, gone: bool) {
        let Some(stone) = self.tombstones.get_mut(sum) else { return };
        let ended = (gone || stone.dropped) && !stone.again;
        *stone = Tombstone { again: stone.again, ..Tombstone::default() };
        if ended {
            self.tombstones.remove(sum);
        }
    }
}

/// The pause after so many failures in a row: doubled each time, and never twice the same.
fn pause(failures: u32, longest: Duration) -> Duration {
    let full = PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    // Between three quarters of it and all.
    full.mul_f64(0.75 + 0.25 * f64::from(nanos % 1000) / 1000.0)
}

#[cfg(test)]
mod tests;
