//! The per-checksum lock.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::checksum::Checksum;

/// Which checksums are held; everybody who wants one of them waits.
#[derive(Debug, Default)]
pub(super) struct Latches {
    held: Mutex<HashSet<Checksum>>,
    given_back: Condvar,
}

impl Latches {
    /// Waits until nobody holds `sum`, then holds it.
    pub(super) fn take(&self, sum: Checksum) -> Latch<'_> {
        let mut held = self.held.lock();
        while !held.insert(sum) {
            self.given_back.wait(&mut held);
        }
        Latch { latches: self, sum }
    }

    /// The same, unless somebody holds it for longer than `longest`.
    pub(super) fn try_take(&self, sum: Checksum, longest: Duration) -> Option<Latch<'_>> {
        let end = Instant::now() + longest;
        let mut held = self.held.lock();
        while !held.insert(sum) {
            if self.given_back.wait_until(&mut held, end).timed_out() {
                return None;
            }
        }
        Some(Latch { latches: self, sum })
    }
}

/// Exclusive right to make, replace, move or remove one blob, or to decide on its existence; given back on drop.
///
/// Lock order: a latch is the only lock held across a call of a provider. Whoever holds one takes no second, but all at
/// once and in the order of the checksums, as `Filestore::latch_all` does.
#[must_use = "a latch is held only as long as it lives"]
pub struct Latch<'a> {
    latches: &'a Latches,
    sum: Checksum,
}

impl Latch<'_> {
    /// What is held.
    pub fn checksum(&self) -> &Checksum {
        &self.sum
    }
}

impl Drop for Latch<'_> {
    fn drop(&mut self) {
        self.latches.held.lock().remove(&self.sum);
        self.latches.given_back.notify_all();
    }
}

impl fmt::Debug for Latch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Latch").field(&self.sum).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn one_holder_at_a_time_and_others_are_not_disturbed() {
        let latches = Latches::default();
        let inside = AtomicU32::new(0);
        let other = latches.take(Checksum::EMPTY);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _latch = latches.take(Checksum([7; 20]));
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(other.checksum(), &Checksum::EMPTY);
        assert!(latches.try_take(Checksum::EMPTY, Duration::from_millis(1)).is_none());
        assert!(latches.try_take(Checksum([7; 20]), Duration::ZERO).is_some());
        drop(other);
        assert!(latches.held.lock().is_empty());
    }
}
