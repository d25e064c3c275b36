//! Which boot of the host this is, and which mount of a disk: bytes in the page cache live as long as both stay the same.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::content::unique_mount_id;
use crate::change::MountId;
use crate::checksum::unhex;

/// Takes the place of the kernel's boot id where a test pretends that the host has been switched off.
pub const VARIABLE: &str = "DEPOTFS_TEST_BOOT_ID";

/// Identity of this boot and of the mount of the disk that holds `directory`.
///
/// Kernels before 6.8 may give the id of an unmounted file system to a later one; then the same disk, mounted again in the
/// same boot, can look as if it had never been away.
pub fn mount_id(directory: &Path) -> io::Result<MountId> {
    let directory = File::open(directory)?;
    let (device, id) = (directory.metadata()?.dev(), unique_mount_id(&directory)?);
    let mut mount = [0; 16];
    mount[..8].copy_from_slice(&device.to_be_bytes());
    mount[8..].copy_from_slice(&id.to_be_bytes());
    Ok(MountId { boot: boot_id()?, mount })
}

fn boot_id() -> io::Result<[u8; 16]> {
    let text = match std::env::var(VARIABLE) {
        Ok(text) => text,
        Err(_) => fs::read_to_string("/proc/sys/kernel/random/boot_id")?,
    };
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    unhex(&digits).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("\"{text}\" is no boot id")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_keeps_its_id_and_another_disk_has_another() {
        let here = tempfile::tempdir().unwrap();
        let id = mount_id(here.path()).unwrap();
        assert_eq!(mount_id(here.path()).unwrap(), id);
        assert_ne!(mount_id(Path::new("/proc")).unwrap().mount, id.mount);
        assert_ne!(id.boot, [0; 16]);
    }
}
