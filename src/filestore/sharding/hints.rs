//! Where blobs were found last: a guess that saves asking the wrong shards first, and nothing that anybody relies on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::checksum::Checksum;

/// Blobs remembered at most; eight bytes each.
const SLOTS: usize = 1 << 14;

/// See above.
#[derive(Debug)]
pub struct Hints(Box<[AtomicU64]>);

impl Default for Hints {
    fn default() -> Hints {
        Hints((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Hints {
    /// The number of the shard that had the blob.
    pub fn get(&self, sum: &Checksum) -> Option<usize> {
        let (slot, name) = place(sum);
        let found = self.0[slot].load(Relaxed);
        let number = (found & 0xff) as usize;
        if found >> 8 == name { number.checked_sub(1) } else { None }
    }

    /// This shard has it.
    pub fn set(&self, sum: &Checksum, shard: usize) {
        let (slot, name) = place(sum);
        // More shards than fit are asked in their order.
        let number = if shard < 0xff { shard as u64 + 1 } else { 0 };
        self.0[slot].store(name << 8 | number, Relaxed);
    }
}

/// The slot of a blob, and what is kept of its name there.
fn place(sum: &Checksum) -> (usize, u64) {
    let bytes = |from: usize| u64::from_be_bytes(std::array::from_fn(|i| sum.0[from + i]));
    ((bytes(8) as usize) % SLOTS, bytes(0) >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_remembered_until_another_takes_its_slot() {
        let hints = Hints::default();
        let (a, mut b) = (Checksum([1; 20]), Checksum([1; 20]));
        assert_eq!(hints.get(&a), None);
        hints.set(&a, 3);
        assert_eq!((hints.get(&a), hints.get(&Checksum([2; 20]))), (Some(3), None));
        b.0[0] = 9;
        hints.set(&b, 0);
        assert_eq!((hints.get(&a), hints.get(&b)), (None, Some(0)));
        hints.set(&a, 300);
        assert_eq!(hints.get(&a), None);
    }
}
