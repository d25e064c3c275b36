//! Which shards get a blob, and which are asked for one first.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::shard::Shard;

/// How new blobs are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// One after the other.
    RoundRobin,
    /// Most free bytes first.
    FreeSpace,
    /// Largest free part first.
    PercentageFreeSpace,
}

/// How shards are chosen.
#[derive(Debug)]
pub struct Choice {
    /// Of the writer.
    pub write: Write,
    /// The zone whose shards come first, for reading and, with a zone behaviour, for writing.
    pub read_zone: Option<String>,
    /// Likewise, for writing.
    pub write_zone: Option<String>,
    next: AtomicUsize,
}

impl Choice {
    /// Nothing was chosen yet.
    pub fn new(write: Write, read_zone: Option<String>, write_zone: Option<String>) -> Choice {
        Choice { write, read_zone, write_zone, next: AtomicUsize::new(0) }
    }

    /// The same choice, from the beginning.
    pub fn again(&self) -> Choice {
        Choice::new(self.write, self.read_zone.clone(), self.write_zone.clone())
    }

    /// Numbers of all shards, in the order in which they are asked for a blob.
    pub fn to_read(&self, shards: &[Shard]) -> Vec<usize> {
        let mut order = self.rotated(shards.len());
        order.sort_by_key(|i| !is_in(&shards[*i], self.read_zone.as_deref()));
        order
    }

    /// Numbers of those that take blobs, the best first.
    pub fn to_write(&self, shards: &[Shard]) -> Vec<usize> {
        let room = |i: &usize| {
            let provider = shards[*i].writable()?;
            if self.write == Write::RoundRobin {
                return Some(0);
            }
            // Where it cannot be told, the others come first.
            Some(match (self.write, provider.status().space) {
                (Write::RoundRobin, _) | (_, None) => 0,
                (Write::FreeSpace, Some(space)) => space.available,
                (Write::PercentageFreeSpace, Some(space)) => {
                    (u128::from(space.available) * 1_000_000 / u128::from(space.capacity.max(1))) as u64
                }
            })
        };
        let rotated = self.rotated(shards.len());
        let mut order: Vec<(u64, usize)> = rotated.into_iter().filter_map(|i| Some((room(&i)?, i))).collect();
        order.sort_by_key(|(room, i)| {
            (!is_in(&shards[*i], self.write_zone.as_deref()), std::cmp::Reverse(*room))
        });
        order.into_iter().map(|(_, i)| i).collect()
    }

    /// All numbers, beginning with another one each time.
    fn rotated(&self, count: usize) -> Vec<usize> {
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count.max(1);
        (first..count).chain(0..first).collect()
    }
}

/// Whether a shard is in the zone that comes first; without one all are.
fn is_in(shard: &Shard, zone: Option<&str>) -> bool {
    zone.is_none_or(|zone| shard.zone == zone)
}
