//! Mounting, serving, and being unmounted.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

use fuser::{Config, MountOption, SessionACL};

use crate::fuse::adapter::Adapter;
use crate::fuse::options::Options;
use crate::vfs::Vfs;

/// Threads that answer requests. More than there are processors, because some requests wait for the disk.
const REQUEST_THREADS: usize = 8;

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

/// A mounted tree.
pub struct Session {
    inner: fuser::Session<Adapter>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// Mounts; the kernel's first requests wait until `run`.
    pub fn mount(vfs: Arc<Vfs>, mounting: &Mounting<'_>) -> io::Result<Session> {
        let mut config = Config::default();
        config.mount_options = mount_options(mounting);
        config.acl = match mounting.options.allow_other {
            Some(true) => SessionACL::All,
            Some(false) => SessionACL::Owner,
            None if crate::sys::process::is_root() => SessionACL::All,
            None => SessionACL::Owner,
        };
        config.n_threads = Some(REQUEST_THREADS);
        config.clone_fd = true;
        let inner = fuser::Session::new(Adapter::new(vfs), mounting.mountpoint, &config)?;
        Ok(Session { inner })
    }

    /// Answers requests until the tree is unmounted.
    pub fn run(self) -> io::Result<()> {
        self.inner.run()
    }
}

fn mount_options(mounting: &Mounting<'_>) -> Vec<MountOption> {
    let options = mounting.options;
    let flag = |given: bool, yes: MountOption, no: MountOption| if given { yes } else { no };
    let mut list = vec![
        MountOption::FSName(lossless(mounting.source.as_os_str())),
        // As an option of the kernel: fuser drops its own kind of subtype where it mounts without fusermount3.
        MountOption::CUSTOM("subtype=depotfs".to_owned()),
        MountOption::DefaultPermissions,
        flag(options.read_only, MountOption::RO, MountOption::RW),
        flag(options.nosuid, MountOption::NoSuid, MountOption::Suid),
        flag(options.nodev, MountOption::NoDev, MountOption::Dev),
        flag(options.noexec, MountOption::NoExec, MountOption::Exec),
    ];
    if options.atime == Some(crate::config::Atime::Noatime) {
        list.push(MountOption::NoAtime);
    }
    if options.sync {
        list.push(MountOption::Sync);
    }
    if options.dirsync {
        list.push(MountOption::DirSync);
    }
    list
}

/// The source is for people and for `depotfs` itself, which refuses depots in directories that are not UTF-8.
fn lossless(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}
