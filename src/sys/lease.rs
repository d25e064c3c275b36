//! Read leases: proof that nobody can write a file any more.
//!
//! The kernel grants a read lease only while no descriptor and no mapping of the file is open for writing, those that it
//! serves by passthrough included.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A read lease, given back when dropped.
#[derive(Debug)]
pub struct Lease {
    file: OwnedFd,
}

/// Takes a read lease on `file`, which must be open read-only; `None` when somebody can still write it.
pub fn read_lease(file: impl AsFd) -> io::Result<Option<Lease>> {
    // A lease belongs to the open file, so a second descriptor of it keeps it.
    let file = file.as_fd().try_clone_to_owned()?;
    Ok(set_lease(&file, libc::F_RDLCK)?.then_some(Lease { file }))
}

/// Whether `file`, open read-only, is open and mapped nowhere else, not even for reading.
pub fn is_unused(file: impl AsFd) -> io::Result<bool> {
    let file = file.as_fd();
    let granted = set_lease(file, libc::F_WRLCK)?;
    if granted {
        set_lease(file, libc::F_UNLCK)?;
    }
    Ok(granted)
}

/// Sets or ends a lease; false when somebody has the file open in a way that forbids it.
fn set_lease(file: impl AsFd, lease: libc::c_int) -> io::Result<bool> {
    // SAFETY: F_SETLEASE takes an int and touches no memory of ours.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLEASE, lease) };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        e => Err(e),
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The result does not matter: closing the descriptor ends the lease as well.
        let _ = set_lease(&self.file, libc::F_UNLCK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};

    #[test]
    fn a_lease_is_granted_only_without_writers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let writer = File::create(&path).unwrap();
        assert!(read_lease(File::open(&path).unwrap()).unwrap().is_none());
        drop(writer);
        let lease = read_lease(File::open(&path).unwrap()).unwrap();
        assert!(lease.is_some());
        drop(lease);
        OpenOptions::new().write(true).open(&path).unwrap();
    }

    #[test]
    fn a_reader_or_a_mapping_is_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        let file = File::open(&path).unwrap();
        assert!(is_unused(&file).unwrap());
        let reader = File::open(&path).unwrap();
        assert!(!is_unused(&file).unwrap());
        drop(reader);
        assert!(is_unused(&file).unwrap());
    }
}
