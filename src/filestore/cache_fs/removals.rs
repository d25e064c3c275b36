//! Which blobs were removed lately: what was begun before that, with their bytes at hand, does not become their cached copy.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::checksum::Checksum;

/// Removals remembered; what began before the oldest of them is given up, whatever blob it is of.
const KNOWN_MAX: usize = 4096;

/// See above. They are numbered from 1 on.
#[derive(Debug, Default)]
pub(super) struct Removals {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    last: u64,
    /// The last ones, the newest first.
    sums: VecDeque<Checksum>,
}

impl Removals {
    /// The number of the last one. Who is about to make a copy asks before he looks for its bytes.
    pub(super) fn last(&self) -> u64 {
        self.known.lock().last
    }

    /// Notes one; after it is removed below, and before its cached copy goes.
    pub(super) fn note(&self, sum: &Checksum) {
        let mut known = self.known.lock();
        known.last += 1;
        known.sums.push_front(*sum);
        known.sums.truncate(KNOWN_MAX);
    }

    /// Whether this blob was removed after number `began`, or may have been.
    pub(super) fn since(&self, sum: &Checksum, began: u64) -> bool {
        let known = self.known.lock();
        let newer = (known.last - began) as usize;
        newer > known.sums.len() || known.sums.iter().take(newer).any(|removed| removed == sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_meanwhile_is_known() {
        let (removals, sum) = (Removals::default(), |i: u8| Checksum([i; 20]));
        removals.note(&sum(1));
        let began = removals.last();
        assert!(!removals.since(&sum(1), began));
        removals.note(&sum(2));
        assert!(!removals.since(&sum(1), began) && removals.since(&sum(2), began));
        removals.note(&sum(1));
        assert!(removals.since(&sum(1), began) && !removals.since(&sum(2), removals.last()));
        (0..KNOWN_MAX).for_each(|_| removals.note(&sum(3)));
        assert!(removals.since(&sum(9), began), "nobody knows that it was not");
        assert!(!removals.since(&sum(9), began + 2));
    }
}
