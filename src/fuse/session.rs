//! Mounting, serving, and being unmounted.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use fuser::{BackingId, Config, SessionACL};
use nix::mount::MsFlags;

use crate::fuse::adapter::Adapter;
use crate::fuse::options::{Options, Switch};
use crate::sys::fuse_mount::{self, Mounted};
use crate::sys::offers::DEVICE_PER_THREAD;
use crate::sys::process::is_root;
use crate::vfs::Vfs;
use crate::vfs::node::Token;

/// Threads that answer requests. More than there are processors, because some requests wait for the disk.
const REQUEST_THREADS: usize = 8;

/// How far the kernel reads ahead of one who reads in order; twice as far of one who has said that he does (posix_fadvise(2)).
/// The cache waits for as much as comes of that, and asks for nothing twice, up to two megabytes ahead of what has arrived.
const READ_AHEAD: usize = 512 << 10;

/// What to mount where.
#[derive(Debug)]
pub struct Mounting<'a> {
    /// An existing directory.
    pub mountpoint: &'a Path,
    /// What the table of mounts shows as the source: the depot.
    pub source: &'a Path,
    /// How.
    pub options: &'a Options,
}

/// A mounted tree; unmounted when it is dropped, or its session is over, before somebody else did that.
pub struct Session {
    inner: fuser::Session<Adapter>,
    mounted: Mounted,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// Mounts; the kernel's first requests wait until `run`.
    pub fn mount(vfs: Arc<Vfs>, mounting: &Mounting<'_>) -> io::Result<Session> {
        let allow_other = mounting.options.allows_other(is_root());
        let wanted = fuse_mount::Wanted {
            mountpoint: mounting.mountpoint,
            source: mounting.source,
            flags: flags(mounting.options),
            allow_other,
        };
        let (device, mounted) = fuse_mount::mount(&wanted)?;
        let acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
        let mut config = Config::default();
        config.acl = acl;
        config.n_threads = Some(REQUEST_THREADS);
        // A descriptor for each thread needs the device, which fusermount3 may open and this user not.
        config.clone_fd =
            DEVICE_PER_THREAD.is_taken() && File::options().read(true).write(true).open("/dev/fuse").is_ok();
        let same_device =
            (mounting.options.passthrough == Switch::On).then(|| device.try_clone()).transpose()?;
        let adapter = Adapter::new(Arc::clone(&vfs));
        let behind = adapter.behind.clone();
        let inner = fuser::Session::from_fd(adapter, device, acl, config)?;
        // Not before the kernel has its answer to INIT, which can only lower it.
        if let Err(error) = mounted.set_read_ahead(READ_AHEAD) {
            tracing::debug!(%error, "the kernel reads no further ahead than by default");
        }
        if vfs.passthrough() {
            behind.begin(inner.notifier());
        }
        if let Some(device) = same_device {
            // The kernel forgets it with the mount.
            let register =
                |file: BorrowedFd<'_>| Ok(Arc::new(BackingId::create_raw(&device, file)?) as Token);
            vfs.try_passthrough(&register);
        }
        Ok(Session { inner, mounted })
    }

    /// Answers requests until the tree is unmounted.
    pub fn run(self) -> io::Result<()> {
        let served = self.inner.run();
        // A connection that was aborted, as `umount -f` does it, leaves a mount on which every access fails.
        drop(self.mounted);
        served
    }
}

/// What the kernel does by itself for a mount.
fn flags(options: &Options) -> MsFlags {
    let table = [
        (options.read_only, MsFlags::MS_RDONLY),
        (options.nosuid, MsFlags::MS_NOSUID),
        (options.nodev, MsFlags::MS_NODEV),
        (options.noexec, MsFlags::MS_NOEXEC),
        (options.nosymfollow, fuse_mount::NOSYMFOLLOW),
        (options.sync, MsFlags::MS_SYNCHRONOUS),
        (options.dirsync, MsFlags::MS_DIRSYNC),
        (options.atime == Some(crate::config::Atime::Noatime), MsFlags::MS_NOATIME),
    ];
    table.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag).collect()
}
