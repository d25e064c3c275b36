//! Which blobs came with bytes that are not theirs, or as two objects one after the other, and when that was found out: what
//! was read of them before is in doubt.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::checksum::Checksum;

/// Blobs remembered at most; beyond them all are in doubt once.
const KNOWN_MAX: usize = 10_000;

/// See above. They are numbered from 1 on.
#[derive(Debug, Default)]
pub struct Alterations {
    last: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The last one of each blob.
    of: HashMap<Checksum, u64>,
    /// Up to this one it is not known which blob each was of.
    forgotten: u64,
}

impl Alterations {
    /// Notes one. Nobody may be told before that.
    pub fn note(&self, sum: &Checksum) {
        let mut known = self.known.lock();
        let number = self.last.load(Ordering::Acquire) + 1;
        if known.of.len() >= KNOWN_MAX {
            known.of.clear();
            known.forgotten = number - 1;
        }
        known.of.insert(*sum, number);
        self.last.store(number, Ordering::Release);
    }

    /// The number of the last one, of whatever blob; 0: none.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// The number of the last one of a blob, or of the last that may have been; 0: none.
    pub fn last_of(&self, sum: &Checksum) -> u64 {
        let known = self.known.lock();
        known.of.get(sum).copied().unwrap_or(known.forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(i: usize) -> Checksum {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&i.to_le_bytes());
        Checksum(bytes)
    }

    #[test]
    fn what_is_forgotten_is_in_doubt() {
        let alterations = Alterations::default();
        assert_eq!((alterations.last(), alterations.last_of(&sum(0))), (0, 0));
        for i in 1..=KNOWN_MAX {
            alterations.note(&sum(i));
        }
        assert_eq!((alterations.last_of(&sum(0)), alterations.last_of(&sum(3))), (0, 3));
        alterations.note(&sum(3));
        assert_eq!(alterations.last_of(&sum(3)), KNOWN_MAX as u64 + 1);
        assert_eq!(alterations.last_of(&sum(0)), KNOWN_MAX as u64, "nobody knows that it was not this one");
        assert_eq!(alterations.last(), KNOWN_MAX as u64 + 1);
    }
}
