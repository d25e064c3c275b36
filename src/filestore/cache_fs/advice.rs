//! How large the cache should be, from what was asked for and in which order.
//!
//! An LRU cache has a blob if and only if what was used since its last use, itself included, fits into it. So one pass over
//! the openings tells for each size which of them it would have answered.

use std::collections::HashMap;

use serde::Serialize;

use super::ledger::room_of;
use crate::checksum::Checksum;

/// The hit rates, in percent, whose sizes are told.
const RATES: [u64; 3] = [80, 90, 99];

/// What the openings of the past tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Advice {
    /// Openings that are remembered.
    pub asked: u64,
    /// Those that the cache answered.
    pub hits: u64,
    /// Those of blobs that were opened for the first time: no cache has them.
    pub first: u64,
    /// Bytes of all blobs that were asked for: a larger cache than this is of no use.
    pub bytes: u64,
    /// The limit of the cache.
    pub limit: u64,
    /// For some hit rates the smallest limit that would have reached them; `None` for what no cache could.
    pub sizes: Vec<(u64, Option<u64>)>,
}

/// What to do with these openings, oldest first.
pub(super) fn advise(asked: &[(Checksum, u64, bool)], limit: u64) -> Advice {
    let mut last: HashMap<Checksum, usize> = HashMap::new();
    let mut rooms = Rooms::new(asked.len());
    let mut needed = Vec::new();
    for (at, (sum, size, _)) in asked.iter().enumerate() {
        let room = room_of(*size);
        if let Some(before) = last.insert(*sum, at) {
            needed.push(rooms.since(before));
            rooms.add(before, room.wrapping_neg());
        }
        rooms.add(at, room);
    }
    needed.sort_unstable();
    let total = asked.len() as u64;
    let size_of = |rate: u64| {
        let hits = (total * rate).div_ceil(100) as usize;
        if hits == 0 { None } else { needed.get(hits - 1).copied() }
    };
    Advice {
        asked: total,
        hits: asked.iter().filter(|(_, _, hit)| *hit).count() as u64,
        first: last.len() as u64,
        bytes: rooms.since(0),
        limit,
        sizes: RATES.iter().map(|rate| (*rate, size_of(*rate))).collect(),
    }
}

/// The room of each blob at the place of its last use, summed in logarithmic time (a Fenwick tree).
struct Rooms(Vec<u64>);

impl Rooms {
    fn new(places: usize) -> Rooms {
        Rooms(vec![0; places + 1])
    }

    fn add(&mut self, place: usize, room: u64) {
        let mut i = place + 1;
        while i < self.0.len() {
            self.0[i] = self.0[i].wrapping_add(room);
            i += i & i.wrapping_neg();
        }
    }

    fn before(&self, place: usize) -> u64 {
        let (mut i, mut sum) = (place, 0_u64);
        while i > 0 {
            sum = sum.wrapping_add(self.0[i]);
            i &= i - 1;
        }
        sum
    }

    /// Of the places from this one on.
    fn since(&self, place: usize) -> u64 {
        self.before(self.0.len() - 1).wrapping_sub(self.before(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(i: u8) -> Checksum {
        Checksum([i; 20])
    }

    fn asked(blobs: &[u8]) -> Vec<(Checksum, u64, bool)> {
        blobs.iter().map(|i| (sum(*i), 4096 * u64::from(*i), false)).collect()
    }

    /// The hits of an LRU cache of this size, found by being one. Blobs larger than it are not admitted.
    fn hits(asked: &[(Checksum, u64, bool)], limit: u64) -> u64 {
        let (mut order, mut hits) = (Vec::<(Checksum, u64)>::new(), 0);
        for (sum, size, _) in asked {
            if let Some(at) = order.iter().position(|(known, _)| known == sum) {
                let since: u64 = order[at..].iter().map(|(_, size)| room_of(*size)).sum();
                hits += u64::from(since <= limit);
                order.remove(at);
            }
            order.push((*sum, *size));
        }
        hits
    }

    #[test]
    fn a_cycle_needs_all_of_it() {
        let advice = advise(&asked(&[1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]), 5);
        assert_eq!((advice.asked, advice.first, advice.bytes), (15, 3, 6 * 4096));
        assert_eq!(advice.sizes, [(80, Some(6 * 4096)), (90, None), (99, None)]);
        assert_eq!(advise(&[], 5).sizes, [(80, None), (90, None), (99, None)]);
    }

    proptest! {
        #[test]
        fn the_size_is_the_smallest_that_reaches_the_rate(
            blobs in proptest::collection::vec(1..12_u8, 1..200),
        ) {
            let asked = asked(&blobs);
            for (rate, size) in advise(&asked, 0).sizes {
                let wanted = (asked.len() as u64 * rate).div_ceil(100);
                match size {
                    Some(size) => {
                        prop_assert!(hits(&asked, size) >= wanted);
                        prop_assert!(hits(&asked, size - 1) < wanted);
                    }
                    None => prop_assert!(hits(&asked, u64::MAX) < wanted),
                }
            }
        }
    }
}
