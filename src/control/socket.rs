//! Socket addresses of any length.
//!
//! A socket's address holds 107 bytes of path; a depot may lie deeper. Then the directory is opened and the address goes
//! through `/proc/self/fd`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::SOCKET;

/// A path of the socket that fits; valid while it lives.
pub(super) struct Address {
    path: PathBuf,
    _directory: Option<File>,
}

impl Address {
    /// The address of the socket in `depot`.
    pub(super) fn of(depot: &Path) -> io::Result<Address> {
        const ADDRESS_BYTES_MAX: usize = 107;
        let path = depot.join(SOCKET);
        if path.as_os_str().as_bytes().len() <= ADDRESS_BYTES_MAX {
            return Ok(Address { path, _directory: None });
        }
        let directory =
            OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(depot)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()));
        Ok(Address { path, _directory: Some(directory) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
