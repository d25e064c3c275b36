//! Space set aside, so that removals commit on a disk filled to the last byte.
//!
//! `index.reserve` lies beside the index. A removal that finds the disk full empties it and tries again; `Index::sync`
//! refills it once there is space. The open file also carries the lock that keeps two daemons from one index: SQLite's
//! own locks would let them interleave.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;

use super::error::{Error, Result};

/// Bytes set aside: some hundred removals' worth of log, and what the log needs to be copied back.
pub(super) const RESERVE_BYTES: u64 = 8 * 1024 * 1024;

/// The reserve, and the lock on the index.
pub(super) struct Reserve {
    path: PathBuf,
    /// `None` where there was not even space for the name; there is no lock then either.
    file: Option<File>,
    /// Held while that changes.
    filled: Mutex<bool>,
}

impl Reserve {
    /// Locks the reserve of an index if it has one.
    pub fn lock(path: &Path) -> Result<Option<Reserve>> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Reserve::locked(path, file).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(path, "open the reserve", e)),
        }
    }

    /// Makes the reserve of an index, filled if there is space.
    pub fn make(path: &Path) -> Result<Reserve> {
        match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path) {
            Ok(file) => {
                let reserve = Reserve::locked(path, file)?;
                reserve.refill();
                Ok(reserve)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                Ok(Reserve { path: path.to_path_buf(), file: None, filled: Mutex::new(false) })
            }
            Err(e) => Err(Error::io(path, "make the reserve", e)),
        }
    }

    fn locked(path: &Path, file: File) -> Result<Reserve> {
        let doing = "lock the index";
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { doing, path: path.to_path_buf() }),
            Err(TryLockError::Error(e)) => return Err(Error::io(path, doing, e)),
        }
        let length = file.metadata().map_err(|e| Error::io(path, "read the reserve", e))?.len();
        let filled = Mutex::new(length >= RESERVE_BYTES);
        Ok(Reserve { path: path.to_path_buf(), file: Some(file), filled })
    }

    /// Gives the space back to the disk; whether there was any.
    pub fn release(&self) -> bool {
        let Some(file) = &self.file else { return false };
        let mut filled = self.filled.lock();
        *filled = false;
        let had = file.metadata().is_ok_and(|m| m.len() > 0);
        had && file.set_len(0).is_ok()
    }

    /// Takes the space again when twice as much is free. Never an error: the next sync tries again.
    pub fn refill(&self) {
        let Some(file) = &self.file else { return };
        let mut filled = self.filled.lock();
        if *filled || !self.space() {
            return;
        }
        let taken = match fallocate(file, FallocateFlags::empty(), 0, RESERVE_BYTES as i64)
            .map_err(io::Error::from)
        {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(file),
            other => other,
        };
        match taken {
            Ok(()) => *filled = true,
            Err(e) => {
                tracing::debug!(path = %self.path.display(), error = %e, "the index reserve is not filled");
                let _ = file.set_len(0);
            }
        }
    }

    /// Bytes held now.
    #[cfg(test)]
    pub fn bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, |f| f.metadata().map_or(0, |m| m.len()))
    }

    fn space(&self) -> bool {
        statvfs(&self.path).is_ok_and(|fs| fs.blocks_available() * fs.fragment_size() >= 2 * RESERVE_BYTES)
    }
}

/// For a file system that cannot allocate without writing.
fn write_zeros(file: &File) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let zeros = vec![0; 256 * 1024];
    let mut at = 0;
    while at < RESERVE_BYTES {
        file.write_all_at(&zeros, at)?;
        at += zeros.len() as u64;
    }
    file.sync_data()
}
