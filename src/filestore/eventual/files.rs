//! What lies in the queue's directory beside the entries: tombstones in `_delete/`, altered entries in `_bad/`.
//!
//! A tombstone is an empty file called as the blob that was removed. Its end is forced before anything counts on it: one
//! that a power cut brings back would remove what was uploaded since.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::error::Result;
use super::super::volume::{HERE, Volume};
use crate::checksum::Checksum;

const DELETE: &str = "_delete";
const BAD: &str = "_bad";

/// The two folders.
#[derive(Debug)]
pub(super) struct Files {
    volume: Arc<Volume>,
}

fn tombstone(sum: &Checksum) -> String {
    format!("{DELETE}/{sum}")
}

fn bad(sum: &Checksum) -> String {
    format!("{BAD}/{sum}")
}

fn entry(sum: &Checksum) -> String {
    let name = sum.to_string();
    format!("{}/{name}", &name[..2])
}

impl Files {
    /// Makes the folders where they are missing; durable on Ok.
    pub(super) fn open(volume: Arc<Volume>) -> Result<Files> {
        let made = volume.make_folder(DELETE, 0o700)? | volume.make_folder(BAD, 0o700)?;
        if made {
            volume.force_folder(HERE)?;
        }
        Ok(Files { volume })
    }

    /// Whether something in the directory is one of the folders.
    pub(super) fn owns(&self, path: &Path) -> bool {
        [DELETE, BAD].iter().any(|folder| self.volume.at(folder) == path)
    }

    /// Where an entry's file is.
    pub(super) fn entry(&self, sum: &Checksum) -> PathBuf {
        self.volume.at(&entry(sum))
    }

    /// How many names an entry's file has; `None` when it is not there.
    pub(super) fn links(&self, sum: &Checksum) -> Result<Option<u64>> {
        Ok(self.volume.stat(&entry(sum))?.map(|found| found.st_nlink))
    }

    /// Buries a blob; durable with `force_tombstones`.
    pub(super) fn bury(&self, sum: &Checksum) -> Result<()> {
        let path = tombstone(sum);
        if self.volume.stat(&path)?.is_none() {
            self.volume.create_file(&path, 0o400)?;
        }
        Ok(())
    }

    /// Makes tombstones that came and went durable.
    pub(super) fn force_tombstones(&self) -> Result<()> {
        self.volume.force_folder(DELETE)
    }

    /// Takes tombstones away, durably.
    pub(super) fn unbury(&self, sums: &[Checksum]) -> Result<()> {
        for sum in sums {
            self.volume.remove(&tombstone(sum))?;
        }
        self.force_tombstones()
    }

    /// The blobs that have a tombstone.
    pub(super) fn tombstones(&self) -> Result<Vec<Checksum>> {
        self.names(DELETE)
    }

    /// Sets an altered entry aside, durably: it is served to nobody.
    pub(super) fn set_aside(&self, sum: &Checksum) -> Result<PathBuf> {
        let name = entry(sum);
        self.volume.rename(&name, &bad(sum))?;
        self.volume.force_folder(BAD)?;
        self.volume.force_folder(&name[..2])?;
        Ok(self.volume.at(&bad(sum)))
    }

    /// The altered entries.
    pub(super) fn bad(&self) -> Result<Vec<Checksum>> {
        self.names(BAD)
    }

    /// Where an altered entry is.
    pub(super) fn bad_path(&self, sum: &Checksum) -> PathBuf {
        self.volume.at(&bad(sum))
    }

    /// Deletes an altered entry of which there are good bytes, or that nobody wants.
    pub(super) fn remove_bad(&self, sum: &Checksum) -> Result<bool> {
        self.volume.remove(&bad(sum))
    }

    fn names(&self, folder: &str) -> Result<Vec<Checksum>> {
        let names = self.volume.names(folder)?.unwrap_or_default();
        let sum = |name: &std::ffi::OsString| Checksum::parse(std::str::from_utf8(name.as_bytes()).ok()?);
        Ok(names.iter().filter_map(sum).collect())
    }
}
