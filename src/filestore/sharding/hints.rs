//! Where blobs and staging files were found last: a guess that saves asking the wrong shards first, and nothing that anybody relies on.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::fcntl::OFlag;

use super::super::error::{Doing, Result};
use super::super::volume::Volume;
use crate::change::StagingName;
use crate::checksum::Checksum;

/// Things remembered at most; eight bytes each.
const SLOTS: usize = 1 << 16;

/// A checksum that tells the shards and their order, and the slots in their order, lowest byte first.
const FILE: &str = "hints";
const NEW: &str = "hints.new";

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
    /// Those that were kept of these shards; none if there are none, or something is wrong with them.
    pub fn load(volume: &Volume, shards: &Checksum) -> Hints {
        let mut bytes = Vec::new();
        let found = volume.open_file(FILE, OFlag::O_RDONLY).ok().flatten();
        let read = found.is_some_and(|(mut file, _)| file.read_to_end(&mut bytes).is_ok());
        match bytes.strip_prefix(&shards.0[..]).map(<[u8]>::as_chunks) {
            Some((slots, [])) if read && slots.len() == SLOTS => {
                Hints(slots.iter().map(|slot| AtomicU64::new(u64::from_le_bytes(*slot))).collect())
            }
            _ => Hints::default(),
        }
    }

    /// What [`Hints::save`] keeps of them.
    pub fn to_bytes(&self, shards: &Checksum) -> Vec<u8> {
        let slots = self.0.iter().flat_map(|slot| slot.load(Relaxed).to_le_bytes());
        shards.0.into_iter().chain(slots).collect()
    }

    /// Keeps them. What a crash makes of that does no harm: they are guesses.
    pub fn save(bytes: &[u8], volume: &Volume) -> Result<()> {
        volume.remove(NEW)?;
        volume.create_file(NEW, 0o600)?.write_all(bytes).doing("write", volume.at(NEW))?;
        volume.rename(NEW, FILE)
    }

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
        assert_eq!((hints.get(of(7)), hints.get(of(7 + SLOTS as u64))), (Some(2), None));
    }
}
