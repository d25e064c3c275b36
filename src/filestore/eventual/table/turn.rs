//! Whose turn it is: what a worker does next, what waits for how long after a failure, and when all rest.

use std::time::{Duration, Instant};

use super::{Inner, REST_MAX, State, Task, Tombstone, pause};
use crate::checksum::Checksum;

/// Tombstones that one worker takes at a time: they share a flush.
const TOMBSTONES_MAX: usize = 64;

impl Inner {
    pub(super) fn postpone(&mut self, sum: &Checksum, attempts: u32, pause: Duration) {
        let Some(entry) = self.entries.get_mut(sum) else { return };
        (entry.state, entry.attempts) = (State::Waiting, attempts);
        self.postponed.insert((Instant::now() + pause, *sum));
    }

    pub(super) fn succeeded(&mut self) {
        // More than one entry failed: what was wrong was not the entry.
        if self.failures > 2 {
            self.try_again();
        }
        (self.failures, self.resting_until, self.last_error) = (0, None, None);
    }

    pub(super) fn failed(&mut self, why: String) {
        self.failures = self.failures.saturating_add(1);
        self.resting_until = Some(Instant::now() + pause(self.failures, REST_MAX));
        self.last_error = Some(why);
    }

    /// What was postponed has its turn.
    pub(super) fn try_again(&mut self) {
        for (_, sum) in std::mem::take(&mut self.postponed) {
            if self.is(&sum, State::Waiting) {
                self.set(&sum, State::Waiting);
            }
        }
    }

    pub(super) fn next_task(&mut self, now: Instant) -> Option<Task> {
        if self.resting_until.is_some_and(|until| until > now) {
            return None;
        }
        if let Some(stones) = self.due_tombstones(now) {
            return Some(Task::Bury(stones));
        }
        while let Some((at, sum)) = self.postponed.first().copied().filter(|(at, _)| *at <= now) {
            self.postponed.remove(&(at, sum));
            if self.is(&sum, State::Waiting) {
                self.set(&sum, State::Waiting);
            }
        }
        // What is being removed below, or put through, waits for the end of that.
        let blocked = |sum: &Checksum| {
            self.passing.contains(sum) || self.tombstones.get(sum).is_some_and(|s| s.burying)
        };
        let (number, sum) = self.ready.iter().find(|(_, sum)| !blocked(sum)).map(|(n, s)| (*n, *s))?;
        self.ready.remove(&number);
        let entry = self.entries.get_mut(&sum)?;
        (entry.state, entry.renewed) = (State::Uploading, false);
        self.uploading += 1;
        Some(Task::Upload(sum, entry.attempts))
    }

    /// Tombstones whose time has come, unless a worker has some already: they share flushes.
    fn due_tombstones(&mut self, now: Instant) -> Option<Vec<Checksum>> {
        if self.tombstones.is_empty()
            || self.bury_after.is_some_and(|after| after > now)
            || self.tombstones.values().any(|stone| stone.burying)
        {
            return None;
        }
        let free = |(sum, stone): &(&Checksum, &Tombstone)| {
            !self.entries.contains_key(*sum)
                && !self.passing.contains(*sum)
                && stone.not_before.is_none_or(|at| at <= now)
        };
        let due = self.tombstones.iter().filter(free).take(TOMBSTONES_MAX);
        let due: Vec<Checksum> = due.map(|(sum, _)| *sum).collect();
        for sum in &due {
            self.through.remove(sum);
            self.tombstones.insert(*sum, Tombstone { burying: true, ..Tombstone::default() });
        }
        (!due.is_empty()).then_some(due)
    }

    /// When there may be a task without anybody telling.
    pub(super) fn next_event(&self, now: Instant) -> Option<Instant> {
        let postponed = self.postponed.first().map(|(at, _)| *at);
        [postponed, self.resting_until, self.bury_after].into_iter().flatten().filter(|at| *at > now).min()
    }
}
