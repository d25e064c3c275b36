//! What a rechain copied or compared itself, where the target had blobs before: only these count as they stand there.
//!
//! The file is checksums one after the other, 20 bytes each. What is lost of it is compared again.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use parking_lot::Mutex;

use crate::checksum::Checksum;

/// See above.
#[derive(Debug)]
pub struct Trusted {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sums: HashSet<Checksum>,
    file: BufWriter<File>,
}

impl Trusted {
    /// What the file says, or nothing where there is none.
    pub fn open(path: &Path) -> io::Result<Trusted> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let known = fs::read(path)?;
        let (whole, half) = known.as_chunks::<20>();
        if !half.is_empty() {
            // A death came while it was written.
            file.set_len((known.len() - half.len()) as u64)?;
        }
        let sums = whole.iter().map(|sum| Checksum(*sum)).collect();
        Ok(Trusted { state: Mutex::new(State { sums, file: BufWriter::new(file) }) })
    }

    /// Whether this blob was copied or compared.
    pub fn has(&self, sum: &Checksum) -> bool {
        self.state.lock().sums.contains(sum)
    }

    /// This one was, and stands there durably.
    pub fn add(&self, sum: &Checksum) {
        let mut state = self.state.lock();
        if state.sums.insert(*sum)
            && let Err(error) = state.file.write_all(&sum.0)
        {
            tracing::debug!(%error, "blob {sum} will be compared again");
        }
    }

    /// Writes down what was added.
    pub fn save(&self) -> io::Result<()> {
        self.state.lock().file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trusted");
        let sum = |i: u8| Checksum([i; 20]);
        let trusted = Trusted::open(&path).unwrap();
        assert!(!trusted.has(&sum(1)));
        trusted.add(&sum(1));
        trusted.add(&sum(2));
        trusted.add(&sum(1));
        assert!(trusted.has(&sum(1)));
        trusted.save().unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), 40);
        // One that was cut says nothing of the blob that it was of.
        OpenOptions::new().write(true).open(&path).unwrap().set_len(33).unwrap();
        let trusted = Trusted::open(&path).unwrap();
        assert!(trusted.has(&sum(1)) && !trusted.has(&sum(2)));
        trusted.add(&sum(2));
        drop(trusted);
        assert!(Trusted::open(&path).unwrap().has(&sum(2)));
    }
}
