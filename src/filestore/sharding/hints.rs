//! Where blobs and staging files were found last: a guess that saves asking the wrong shards first, and nothing that anybody relies on.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use nix::fcntl::OFlag;

use super::super::error::{Doing, Result};
use super::super::volume::Volume;
use crate::change::StagingName;
use crate::checksum::Checksum;

/// Bytes, one for each of so many groups of names: it tells the shard of the latest of them. A guess for one that is not known
/// is as good as none, so nothing tells whose it is, and a depot of some hundred thousand blobs has few wrong ones.
const SLOTS: usize = 1 << 20;

/// A checksum that tells the shards and their order, and the slots in their order.
const FILE: &str = "hints";
const NEW: &str = "hints.new";

/// The slot of a name.
#[derive(Clone, Copy, Debug)]
pub struct Slot(usize);

/// Of a blob.
pub fn of_blob(sum: &Checksum) -> Slot {
    let number = u64::from_be_bytes(std::array::from_fn(|i| sum.0[i]));
    Slot(number as usize % SLOTS)
}

/// Of a staging file; the names are numbers, given out one after the other.
pub fn of_staging(name: StagingName) -> Slot {
    Slot(name.0 as usize % SLOTS)
}

/// See above.
#[derive(Debug)]
pub struct Hints(Box<[AtomicU8]>);

impl Default for Hints {
    fn default() -> Hints {
        Hints((0..SLOTS).map(|_| AtomicU8::new(0)).collect())
    }
}

impl Hints {
    /// Those that were kept of these shards; none if there are none, or something is wrong with them.
    pub fn load(volume: &Volume, shards: &Checksum) -> Hints {
        let mut bytes = Vec::new();
        let found = volume.open_file(FILE, OFlag::O_RDONLY).ok().flatten();
        let read = found.is_some_and(|(mut file, _)| file.read_to_end(&mut bytes).is_ok());
        match bytes.strip_prefix(&shards.0[..]) {
            Some(slots) if read && slots.len() == SLOTS => {
                Hints(slots.iter().map(|slot| AtomicU8::new(*slot)).collect())
            }
            _ => Hints::default(),
        }
    }

    /// What [`Hints::save`] keeps of them.
    pub fn to_bytes(&self, shards: &Checksum) -> Vec<u8> {
        shards.0.into_iter().chain(self.0.iter().map(|slot| slot.load(Relaxed))).collect()
    }

    /// Keeps them. What a crash makes of that does no harm: they are guesses.
    pub fn save(bytes: &[u8], volume: &Volume) -> Result<()> {
        volume.remove(NEW)?;
        volume.create_file(NEW, 0o600)?.write_all(bytes).doing("write", volume.at(NEW))?;
        volume.rename(NEW, FILE)
    }

    /// The number of the shard that had it, or another one of the slot.
    pub fn get(&self, Slot(slot): Slot) -> Option<usize> {
        usize::from(self.0[slot].load(Relaxed)).checked_sub(1)
    }

    /// This shard has it.
    pub fn set(&self, Slot(slot): Slot, shard: usize) {
        // More shards than fit are asked in their order.
        self.0[slot].store(u8::try_from(shard + 1).unwrap_or(0), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Hasher;

    #[test]
    fn a_shard_is_remembered_until_another_name_takes_the_slot() {
        let hints = Hints::default();
        let (get, set) = (|sum| hints.get(of_blob(&sum)), |sum, shard| hints.set(of_blob(&sum), shard));
        let (a, mut b) = (Checksum([1; 20]), Checksum([1; 20]));
        assert_eq!(get(a), None);
        set(a, 3);
        assert_eq!((get(a), get(Checksum([2; 20]))), (Some(3), None));
        b.0[19] = 9;
        set(b, 0);
        assert_eq!((get(a), get(b)), (Some(0), Some(0)), "one slot");
        set(a, 253);
        assert_eq!(get(a), Some(253));
        for beyond in [254, 255, 256, 300] {
            set(a, beyond);
            assert!(get(a).is_none_or(|shard| shard == beyond), "{beyond}");
        }
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::create(dir.path(), std::iter::empty()).unwrap();
        let (shards, others) = (Checksum([7; 20]), Checksum([8; 20]));
        let kept = |shards| Hints::load(&volume, &shards).get(of_blob(&b));
        assert_eq!(kept(shards), None);
        set(b, 0);
        Hints::save(&hints.to_bytes(&shards), &volume).unwrap();
        assert_eq!((kept(shards), kept(others)), (Some(0), None));
        std::fs::write(dir.path().join(FILE), [7; 99]).unwrap();
        assert_eq!(kept(shards), None);
        let of = |number| of_staging(StagingName(number));
        hints.set(of(7), 2);
        assert_eq!(
            (hints.get(of(7)), hints.get(of(8)), hints.get(of(7 + SLOTS as u64))),
            (Some(2), None, Some(2))
        );
    }

    /// With a wrong guess a blob costs a look into a wrong shard, which on a cold disk takes as long as reading a small file.
    #[test]
    fn few_guesses_of_a_large_depot_are_wrong() {
        let hints = Hints::default();
        let sum = |n: u32| {
            let mut hasher = Hasher::default();
            hasher.update(&n.to_le_bytes());
            hasher.finish().checksum
        };
        (0..50_000).for_each(|n| hints.set(of_blob(&sum(n)), n as usize % 4));
        let wrong = (0..50_000).filter(|n| hints.get(of_blob(&sum(*n))) != Some(*n as usize % 4)).count();
        assert!(wrong < 1_500, "{wrong} of 50,000");
    }
}
