//! Blobs that have fewer good copies than they should, or copies that a removal could not reach: remembered over restarts, until
//! that is mended.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Bound;
use std::sync::Arc;

use nix::fcntl::OFlag;
use parking_lot::Mutex;

use super::super::error::{Doing, Result};
use super::super::volume::{HERE, Volume};
use crate::checksum::Checksum;

/// One checksum a line, some perhaps twice, of which the last one counts; the last line perhaps cut by a crash.
const FILE: &str = "debt";
const NEW: &str = "debt.new";

/// Before the checksum of a blob that is to be removed.
const REMOVAL: char = '-';

/// Lines beyond those that count, from which on the file is written anew.
const IDLE_LINES_MAX: usize = 10_000;

/// What is owed.
#[derive(Debug)]
pub struct Debt {
    volume: Arc<Volume>,
    known: Mutex<Known>,
}

/// What is owed to a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    /// As many good copies as there should be.
    Copies,
    /// That the last of it goes: it was removed, and on some shard it could not be.
    Removal,
}

#[derive(Debug)]
struct Known {
    sums: BTreeMap<Checksum, Owed>,
    removals: usize,
    file: File,
    lines: usize,
    /// The file may not be what it should: it is written anew before more is added.
    torn: bool,
}

impl Debt {
    /// Reads what was owed when the last daemon ended.
    pub fn open(volume: Arc<Volume>) -> Result<Debt> {
        let mut sums = BTreeMap::new();
        if let Some((file, _)) = volume.open_file(FILE, OFlag::O_RDONLY)? {
            for line in BufReader::new(file).lines() {
                sums.extend(parse(line.doing("read", volume.at(FILE))?.trim()));
            }
        }
        let file = write(&volume, &sums)?;
        let (lines, removals) = (sums.len(), sums.values().filter(|owed| **owed == Owed::Removal).count());
        Ok(Debt { volume, known: Mutex::new(Known { sums, removals, file, lines, torn: false }) })
    }

    /// Remembers blobs that lack copies, and are not to be removed if they were; durable on Ok.
    pub fn add(&self, sums: &[Checksum]) -> Result<()> {
        self.note(sums, Owed::Copies)
    }

    /// Remembers blobs that were removed, of which copies may be left; durable on Ok.
    pub fn add_removals(&self, sums: &[Checksum]) -> Result<()> {
        self.note(sums, Owed::Removal)
    }

    /// Whether it is a removal that is owed.
    pub fn is_removal(&self, sum: &Checksum) -> bool {
        let known = self.known.lock();
        known.removals > 0 && known.sums.get(sum) == Some(&Owed::Removal)
    }

    /// Whether something is owed to a blob.
    pub fn is_owed(&self, sum: &Checksum) -> bool {
        self.known.lock().sums.contains_key(sum)
    }

    fn note(&self, sums: &[Checksum], owed: Owed) -> Result<()> {
        let mut known = self.known.lock();
        let new: Vec<&Checksum> = sums.iter().filter(|sum| known.sums.get(sum) != Some(&owed)).collect();
        if new.is_empty() {
            return Ok(());
        }
        if known.torn {
            known.file = write(&self.volume, &known.sums)?;
            known.torn = false;
        }
        let text: String = new.iter().map(|sum| line(sum, owed)).collect();
        let wrote = known.file.write_all(text.as_bytes()).and_then(|()| known.file.sync_data());
        known.torn = wrote.is_err();
        wrote.doing("note what lacks copies in", self.volume.at(FILE))?;
        known.lines += new.len();
        for sum in new {
            let before = known.sums.insert(*sum, owed);
            known.removals += usize::from(owed == Owed::Removal);
            known.removals -= usize::from(before == Some(Owed::Removal));
        }
        Ok(())
    }

    /// Forgets a blob that has its copies, or is gone. A crash may bring it back, which costs a look.
    pub fn settle(&self, sum: &Checksum) -> Result<()> {
        let mut known = self.known.lock();
        let Some(owed) = known.sums.remove(sum) else { return Ok(()) };
        known.removals -= usize::from(owed == Owed::Removal);
        if known.sums.is_empty() || known.lines > known.sums.len() + IDLE_LINES_MAX {
            known.torn = true;
            known.file = write(&self.volume, &known.sums)?;
            (known.torn, known.lines) = (false, known.sums.len());
        }
        Ok(())
    }

    /// The same of one whose removal was owed, unless it lacks copies by now.
    pub fn settle_removal(&self, sum: &Checksum) -> Result<()> {
        if self.is_removal(sum) { self.settle(sum) } else { Ok(()) }
    }

    /// The next blobs after `after`, in order, those included on request that are to be removed.
    pub fn some(&self, after: Option<&Checksum>, limit: usize, removals: bool) -> Vec<Checksum> {
        let known = self.known.lock();
        match after {
            Some(after) => known.sums.range((Bound::Excluded(*after), Bound::Unbounded)),
            None => known.sums.range::<Checksum, _>(..),
        }
        .filter(|(_, owed)| removals || **owed == Owed::Copies)
        .take(limit)
        .map(|(sum, _)| *sum)
        .collect()
    }

    /// The next note finds no room.
    #[cfg(test)]
    pub fn fill_disk(&self) {
        self.known.lock().file = File::options().write(true).open("/dev/full").unwrap();
    }

    /// How many blobs lack copies.
    pub fn lacking(&self) -> usize {
        let known = self.known.lock();
        known.sums.len() - known.removals
    }
}

fn line(sum: &Checksum, owed: Owed) -> String {
    match owed {
        Owed::Copies => format!("{sum}\n"),
        Owed::Removal => format!("{REMOVAL}{sum}\n"),
    }
}

fn parse(line: &str) -> Option<(Checksum, Owed)> {
    match line.strip_prefix(REMOVAL) {
        Some(sum) => Some((Checksum::parse(sum)?, Owed::Removal)),
        None => Some((Checksum::parse(line)?, Owed::Copies)),
    }
}

/// Writes the file anew; open for more.
fn write(volume: &Volume, sums: &BTreeMap<Checksum, Owed>) -> Result<File> {
    volume.remove(NEW)?;
    let mut file = volume.create_file(NEW, 0o600)?;
    let text: String = sums.iter().map(|(sum, owed)| line(sum, *owed)).collect();
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).doing("write", volume.at(NEW))?;
    volume.rename(NEW, FILE)?;
    volume.force_folder(HERE)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let volume = || Arc::new(Volume::create(dir.path(), std::iter::empty()).unwrap());
        let sums: Vec<Checksum> = (0..5).map(|i| Checksum([i; 20])).collect();
        let debt = Debt::open(volume()).unwrap();
        debt.add(&sums).unwrap();
        debt.add(&sums[..2]).unwrap();
        debt.settle(&sums[1]).unwrap();
        assert_eq!(debt.some(None, 2, true), [sums[0], sums[2]]);
        assert_eq!(debt.some(Some(&sums[2]), 9, true), [sums[3], sums[4]]);
        let again = Debt::open(volume()).unwrap();
        assert_eq!(again.lacking(), 5, "a settled one may come back");
        sums.iter().for_each(|sum| again.settle(sum).unwrap());
        assert_eq!(Debt::open(volume()).unwrap().lacking(), 0);
    }

    #[test]
    fn a_removal_is_owed_until_the_blob_is_put_again() {
        let dir = tempfile::tempdir().unwrap();
        let volume = || Arc::new(Volume::create(dir.path(), std::iter::empty()).unwrap());
        let (a, b) = (Checksum([1; 20]), Checksum([2; 20]));
        let debt = Debt::open(volume()).unwrap();
        debt.add(&[a]).unwrap();
        debt.add_removals(&[a, b]).unwrap();
        assert!(debt.is_removal(&a) && debt.is_removal(&b) && debt.lacking() == 0);
        debt.add(&[b]).unwrap();
        for debt in [debt, Debt::open(volume()).unwrap(), Debt::open(volume()).unwrap()] {
            assert!(debt.is_removal(&a) && !debt.is_removal(&b) && debt.lacking() == 1);
            assert_eq!(debt.some(None, 9, true), [a, b]);
            assert_eq!(debt.some(None, 9, false), [b]);
        }
    }

    #[test]
    fn a_torn_last_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Arc::new(Volume::create(dir.path(), std::iter::empty()).unwrap());
        let sum = Checksum([7; 20]);
        std::fs::write(dir.path().join(FILE), format!("{sum}\n0707")).unwrap();
        let debt = Debt::open(volume).unwrap();
        assert_eq!(debt.some(None, 9, true), [sum]);
    }
}
