//! Files that no row counts: a power cut may bring back a name whose row is struck out for good. Once after each start the
//! worker looks through the folders, one at a time and long apart, and takes such files away.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::super::error::Result;
use super::core::Core;
use crate::checksum::Checksum;

/// Folders of blobs in a directory: one for each first byte of a checksum.
const FOLDERS: usize = 256;

/// How far apart folders are looked through: one of a cache of a million blobs costs some 20 ms.
const PAUSE: Duration = Duration::from_secs(3);

/// The folders that were not looked through yet.
#[derive(Debug)]
pub(super) struct Sweep {
    folders: Range<usize>,
    not_before: Instant,
}

impl Sweep {
    pub(super) fn of(core: &Core) -> Sweep {
        Sweep { folders: 0..core.dirs.len() * FOLDERS, not_before: Instant::now() + PAUSE }
    }

    /// Looks through the next folder, if it is time.
    pub(super) fn go_on(&mut self, core: &Core) {
        if Instant::now() >= self.not_before && self.step(core) {
            self.not_before = Instant::now() + PAUSE;
        }
    }

    /// Looks through the next folder; false when there is none left.
    pub(super) fn step(&mut self, core: &Core) -> bool {
        let Some(number) = self.folders.next() else { return false };
        let folder = format!("{:02x}", number % FOLDERS);
        if let Err(error) = sweep(core, number / FOLDERS, &folder) {
            core.complain(&error);
        }
        true
    }
}

fn sweep(core: &Core, dir: usize, folder: &str) -> Result<()> {
    for name in core.dirs[dir].volume().names(folder)?.unwrap_or_default() {
        let sum = name.to_str().and_then(Checksum::parse).filter(|sum| sum.to_string().starts_with(folder));
        let Some(sum) = sum.filter(|sum| *sum != Checksum::EMPTY) else { continue };
        // Looked for once more by whoever takes it away.
        if core.ledger.size(&sum)?.is_none() && core.drop_uncounted(&sum)? {
            tracing::info!("a cached copy of blob {sum} that was not counted is removed");
        }
    }
    Ok(())
}
