//! What the tree needs of staging files and blobs beyond reading and writing.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::futimens;
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::unistd::{Whence, lseek};

use super::offers::UNIQUE_MOUNT_IDS;

/// Sets the mtime of a file, in nanoseconds since 1970, and leaves its atime alone.
pub fn set_mtime(file: impl AsFd, at: i64) -> io::Result<()> {
    Ok(futimens(file, &TimeSpec::UTIME_OMIT, &TimeSpec::nanoseconds(at))?)
}

/// Offset of the next data, or hole, at or after `offset`; `None` beyond the last.
pub fn seek(file: impl AsFd, offset: u64, hole: bool) -> io::Result<Option<u64>> {
    let whence = if hole { Whence::SeekHole } else { Whence::SeekData };
    match lseek(file, offset as i64, whence) {
        Ok(found) => Ok(Some(found as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Has the kernel read a range of a file into its page cache; waits for none of it.
pub fn will_need(file: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    Ok(posix_fadvise(file, offset as i64, length as i64, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?)
}

/// What fallocate(2) does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Reserve space; the file grows to the end of the range.
    Extend,
    /// Reserve space beyond the end of the file, too.
    KeepSize,
    /// Give the space back: reads as zeros.
    PunchHole,
    /// Reads as zeros; the file grows to the end of the range.
    ZeroExtend,
    /// Reads as zeros as far as the file goes.
    ZeroKeepSize,
}

impl Allocate {
    /// From the flags of fallocate(2); `None` for what is not supported.
    pub fn from_mode(mode: i32) -> Option<Allocate> {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        match mode {
            0 => Some(Allocate::Extend),
            libc::FALLOC_FL_KEEP_SIZE => Some(Allocate::KeepSize),
            PUNCH => Some(Allocate::PunchHole),
            libc::FALLOC_FL_ZERO_RANGE => Some(Allocate::ZeroExtend),
            ZERO_KEEP => Some(Allocate::ZeroKeepSize),
            _ => None,
        }
    }

    fn flags(self) -> FallocateFlags {
        match self {
            Allocate::Extend => FallocateFlags::empty(),
            Allocate::KeepSize => FallocateFlags::FALLOC_FL_KEEP_SIZE,
            Allocate::PunchHole => FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            Allocate::ZeroExtend => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            Allocate::ZeroKeepSize => {
                FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE
            }
        }
    }
}

/// fallocate(2).
pub fn allocate(file: impl AsFd, offset: u64, len: u64, how: Allocate) -> io::Result<()> {
    let bad = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let (offset, len) = (i64::try_from(offset).map_err(bad)?, i64::try_from(len).map_err(bad)?);
    Ok(nix::fcntl::fallocate(file, how.flags(), offset, len)?)
}

/// Identity of the mount that holds `file`, not used again during this boot (kernel 6.8), or else the plain mount id.
pub fn unique_mount_id(file: impl AsFd) -> io::Result<u64> {
    /// From linux/stat.h.
    const STATX_MNT_ID: u32 = 0x1000;
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let mask = STATX_MNT_ID | if UNIQUE_MOUNT_IDS.is_taken() { STATX_MNT_ID_UNIQUE } else { 0 };
    // SAFETY: an empty path names the descriptor itself, and the kernel fills at most one statx at the address given.
    let result = unsafe {
        libc::statx(file.as_fd().as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, found.as_mut_ptr())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before, and the call filled it.
    Ok(unsafe { found.assume_init() }.stx_mnt_id)
}

/// Whether a system call failed for want of something that may be there again later.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::EINTR)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn an_mtime_is_set_to_the_nanosecond() {
        let file = tempfile::tempfile().unwrap();
        set_mtime(&file, 1_000_000_000).unwrap();
        assert_eq!((file.metadata().unwrap().mtime(), file.metadata().unwrap().mtime_nsec()), (1, 0));
    }

    #[test]
    fn holes_and_data_are_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_at(b"x", 1 << 19).unwrap();
        assert_eq!(seek(&file, 0, false).unwrap(), Some(1 << 19));
        assert_eq!(seek(&file, 0, true).unwrap(), Some(0));
        assert_eq!(seek(&file, 1 << 20, false).unwrap(), None);
    }

    #[test]
    fn a_mount_has_an_identity() {
        let here = std::fs::File::open("/").unwrap();
        assert_eq!(unique_mount_id(&here).unwrap(), unique_mount_id(&here).unwrap());
    }
}
