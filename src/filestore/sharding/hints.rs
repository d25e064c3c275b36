//! Where blobs and staging files were found last: a guess that saves asking the wrong shards first, and nothing that anybody relies on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::change::StagingName;
use crate::checksum::Checksum;

/// Things remembered at most; eight bytes each.
const SLOTS: usize = 1 << 14;

/// What is remembered: the slot of it, and what is kept of its name there.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    slot: usize,
    name: u64,
}

/// Of a blob.
pub fn of_blob(sum: &Checksum) -> Key {
    let bytes = |from: usize| u64::from_be_bytes(std::array::from_fn(|i| sum.0[from + i]));
    Key { slot: (bytes(8) as usize) % SLOTS, name: bytes(0) >> 8 }
}

/// Of a staging file; the names are numbers, given out one after the other.
pub fn of_staging(name: StagingName) -> Key {
    Key { slot: (name.0 as usize) % SLOTS, name: name.0 & (u64::MAX >> 8) }
}

/// See above.
#[derive(Debug)]
pub struct Hints(Box<[AtomicU64]>);

impl Default for Hints {
    fn default() -> Hints {
        Hints((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Hints {
    /// The number of the shard that had it.
    pub fn get(&self, Key { slot, name }: Key) -> Option<usize> {
        let found = self.0[slot].load(Relaxed);
        let number = (found & 0xff) as usize;
        if found >> 8 == name { number.checked_sub(1) } else { None }
    }

    /// This shard has it.
    pub fn set(&self, Key { slot, name }: Key, shard: usize) {
        // More shards than fit are asked in their order.
        let number = if shard < 0xff { shard as u64 + 1 } else { 0 };
        self.0[slot].store(name << 8 | number, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_remembered_until_another_takes_its_slot() {
        let hints = Hints::default();
        let (get, set) = (|sum| hints.get(of_blob(&sum)), |sum, shard| hints.set(of_blob(&sum), shard));
        let (a, mut b) = (Checksum([1; 20]), Checksum([1; 20]));
        assert_eq!(get(a), None);
        set(a, 3);
        assert_eq!((get(a), get(Checksum([2; 20]))), (Some(3), None));
        b.0[0] = 9;
        set(b, 0);
        assert_eq!((get(a), get(b)), (None, Some(0)));
        set(a, 300);
        assert_eq!(get(a), None);
        let of = |number| of_staging(StagingName(number));
        hints.set(of(7), 2);
        assert_eq!((hints.get(of(7)), hints.get(of(7 + SLOTS as u64))), (Some(2), None));
    }
}
