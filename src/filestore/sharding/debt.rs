//! Blobs that have fewer good copies than they should: remembered over restarts, until they are mended.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::Arc;

use nix::fcntl::OFlag;
use parking_lot::Mutex;

use super::super::error::{Doing, Result};
use super::super::volume::{HERE, Volume};
use crate::checksum::Checksum;

/// One checksum a line, some perhaps twice, the last perhaps cut by a crash.
const FILE: &str = "debt";
const NEW: &str = "debt.new";

/// Lines beyond those that count, from which on the file is written anew.
const IDLE_LINES_MAX: usize = 10_000;

/// What is owed.
#[derive(Debug)]
pub struct Debt {
    volume: Arc<Volume>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    sums: BTreeSet<Checksum>,
    file: File,
    lines: usize,
    /// The file may not be what it should: it is written anew before more is added.
    torn: bool,
}

impl Debt {
    /// Reads what was owed when the last daemon ended.
    pub fn open(volume: Arc<Volume>) -> Result<Debt> {
        let mut sums = BTreeSet::new();
        if let Some((file, _)) = volume.open_file(FILE, OFlag::O_RDONLY)? {
            for line in BufReader::new(file).lines() {
                sums.extend(Checksum::parse(line.doing("read", volume.at(FILE))?.trim()));
            }
        }
        let file = write(&volume, &sums)?;
        let lines = sums.len();
        Ok(Debt { volume, known: Mutex::new(Known { sums, file, lines, torn: false }) })
    }

    /// Remembers blobs; durable on Ok.
    pub fn add(&self, sums: &[Checksum]) -> Result<()> {
        let mut known = self.known.lock();
        let new: Vec<&Checksum> = sums.iter().filter(|sum| !known.sums.contains(sum)).collect();
        if new.is_empty() {
            return Ok(());
        }
        if known.torn {
            known.file = write(&self.volume, &known.sums)?;
            known.torn = false;
        }
        let text: String = new.iter().map(|sum| format!("{sum}\n")).collect();
        let wrote = known.file.write_all(text.as_bytes()).and_then(|()| known.file.sync_data());
        known.torn = wrote.is_err();
        wrote.doing("note what lacks copies in", self.volume.at(FILE))?;
        known.lines += new.len();
        known.sums.extend(new);
        Ok(())
    }

    /// Forgets a blob that has its copies, or is gone. A crash may bring it back, which costs a look.
    pub fn settle(&self, sum: &Checksum) -> Result<()> {
        let mut known = self.known.lock();
        if known.sums.remove(sum)
            && (known.sums.is_empty() || known.lines > known.sums.len() + IDLE_LINES_MAX)
        {
            known.torn = true;
            known.file = write(&self.volume, &known.sums)?;
            (known.torn, known.lines) = (false, known.sums.len());
        }
        Ok(())
    }

    /// The next blobs after `after`, in order.
    pub fn some(&self, after: Option<&Checksum>, limit: usize) -> Vec<Checksum> {
        let known = self.known.lock();
        match after {
            Some(after) => known.sums.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded)),
            None => known.sums.range(..),
        }
        .take(limit)
        .copied()
        .collect()
    }

    /// How many blobs.
    pub fn len(&self) -> usize {
        self.known.lock().sums.len()
    }
}

/// Writes the file anew; open for more.
fn write(volume: &Volume, sums: &BTreeSet<Checksum>) -> Result<File> {
    volume.remove(NEW)?;
    let mut file = volume.create_file(NEW, 0o600)?;
    let text: String = sums.iter().map(|sum| format!("{sum}\n")).collect();
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
        assert_eq!(debt.some(None, 2), [sums[0], sums[2]]);
        assert_eq!(debt.some(Some(&sums[2]), 9), [sums[3], sums[4]]);
        let again = Debt::open(volume()).unwrap();
        assert_eq!(again.len(), 5, "a settled one may come back");
        sums.iter().for_each(|sum| again.settle(sum).unwrap());
        assert_eq!(Debt::open(volume()).unwrap().len(), 0);
    }

    #[test]
    fn a_torn_last_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Arc::new(Volume::create(dir.path(), std::iter::empty()).unwrap());
        let sum = Checksum([7; 20]);
        std::fs::write(dir.path().join(FILE), format!("{sum}\n0707")).unwrap();
        let debt = Debt::open(volume).unwrap();
        assert_eq!(debt.some(None, 9), [sum]);
    }
}
