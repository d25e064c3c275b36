//! What newer kernels and better disks offer, and depotfs can do without: each can be refused by a mount option, so that what
//! is done instead can be had, and tried, anywhere. Set before the first use, for the whole process.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

/// One of them.
#[derive(Debug)]
pub struct Offer {
    refused: AtomicBool,
}

/// Shared blocks and copies made by the kernel: FICLONE, FICLONERANGE, copy_file_range(2). Else bytes are read and written.
pub static KERNEL_COPIES: Offer = Offer::new();

/// Ids of mounts that are not given again during a boot (kernel 6.8). Else the plain ones.
pub static UNIQUE_MOUNT_IDS: Offer = Offer::new();

/// A descriptor of /dev/fuse for each thread that answers requests. Else all share one.
pub static DEVICE_PER_THREAD: Offer = Offer::new();

impl Offer {
    const fn new() -> Offer {
        Offer { refused: AtomicBool::new(false) }
    }

    /// It is not used from now on.
    pub fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// Whether it may be used where it is there.
    pub fn is_taken(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    /// As the system call answers where it does not exist.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_taken() { Ok(()) } else { Err(Errno::EOPNOTSUPP.into()) }
    }
}
