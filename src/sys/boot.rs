//! Which boot of the host this is, and which mount of a disk: bytes in the page cache live as long as both stay the same.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::change::MountId;
use crate::checksum::unhex;

/// Takes the place of the kernel's boot id where a test pretends that the host has been switched off.
pub const VARIABLE: &str = "DEPOTFS_TEST_BOOT_ID";

/// `STATX_MNT_ID_UNIQUE` of Linux 6.8: an id that no later mount gets.
const UNIQUE: u32 = 0x4000;

/// Identity of this boot and of the mount of the disk that holds `directory`.
pub fn mount_id(directory: &Path) -> io::Result<MountId> {
    Ok(MountId { boot: boot_id()?, mount: disk_mount_id(directory)? })
}

fn boot_id() -> io::Result<[u8; 16]> {
    let text = match std::env::var(VARIABLE) {
        Ok(text) => text,
        Err(_) => fs::read_to_string("/proc/sys/kernel/random/boot_id")?,
    };
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    unhex(&digits)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("\"{text}\" is no boot id")))
}

/// Device and mount id of the file system that `directory` is on. Kernels before 6.8 may give the id of an unmounted file
/// system to a later one; then the same disk, mounted again in the same boot, can look as if it had never been away.
fn disk_mount_id(directory: &Path) -> io::Result<[u8; 16]> {
    let directory = File::open(directory)?;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the path is an empty C string, and statx fills at most the struct it is given, which is
    // valid when zeroed.
    let (result, found) = unsafe {
        let empty = c"".as_ptr();
        let mask = UNIQUE | libc::STATX_MNT_ID;
        let result = libc::statx(directory.as_raw_fd(), empty, libc::AT_EMPTY_PATH, mask, found.as_mut_ptr());
        (result, found.assume_init())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut id = [0; 16];
    id[..4].copy_from_slice(&found.stx_dev_major.to_be_bytes());
    id[4..8].copy_from_slice(&found.stx_dev_minor.to_be_bytes());
    id[8..].copy_from_slice(&found.stx_mnt_id.to_be_bytes());
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_keeps_its_id_and_another_disk_has_another() {
        let here = tempfile::tempdir().unwrap();
        let id = mount_id(here.path()).unwrap();
        assert_eq!(mount_id(here.path()).unwrap(), id);
        assert_ne!(disk_mount_id(Path::new("/proc")).unwrap(), id.mount);
        assert_ne!(id.boot, [0; 16]);
    }
}
