//! The peers: how each is mounted over the scratch directory, and where a row works in it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::depot::{Depot, REPOSITORY, STRICT};
use crate::{program, sys};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// The directory itself.
    Plain,
    /// A depot on the same disk, mounted by root.
    Depotfs,
    /// bindfs as it comes.
    Bindfs,
    /// bindfs with caches that never end, and with several threads.
    BindfsCached,
    /// mergerfs as it comes.
    Mergerfs,
    /// mergerfs with every cache it has.
    MergerfsCached,
    /// rclone mount with the cache that lets programs write anywhere in a file.
    Rclone,
    /// No file system: what a computation takes on one core.
    Core,
}

/// Peers with a directory.
pub const ALL: [Peer; 7] = [
    Peer::Plain,
    Peer::Depotfs,
    Peer::Bindfs,
    Peer::BindfsCached,
    Peer::Mergerfs,
    Peer::MergerfsCached,
    Peer::Rclone,
];

/// Seconds for which a cache may keep things: longer than any run.
const FOR_EVER: &str = "86400";

impl Peer {
    /// Its name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Plain => "plain",
            Peer::Depotfs => "depotfs",
            Peer::Bindfs => "bindfs",
            Peer::BindfsCached => "bindfs-cached",
            Peer::Mergerfs => "mergerfs",
            Peer::MergerfsCached => "mergerfs-cached",
            Peer::Rclone => "rclone",
            Peer::Core => "core",
        }
    }

    /// The peer of that name.
    pub fn named(name: &str) -> Result<Peer, String> {
        let found = ALL.into_iter().find(|peer| peer.name() == name);
        found.ok_or_else(|| format!("one of {}", ALL.map(Peer::name).join(", ")))
    }

    /// The program it needs, if any.
    pub fn program(self) -> Option<&'static str> {
        match self {
            Peer::Plain | Peer::Depotfs | Peer::Core => None,
            Peer::Bindfs | Peer::BindfsCached => Some("bindfs"),
            Peer::Mergerfs | Peer::MergerfsCached => Some("mergerfs"),
            Peer::Rclone => Some("rclone"),
        }
    }

    /// The command that mounts `disk` on `mountpoint` and goes into the background.
    fn command(self, disk: &Path, mountpoint: &Path, cache: &Path) -> Command {
        let mut command = Command::new(self.program().unwrap_or_default());
        match self {
            Peer::BindfsCached => {
                let timeouts = ["attr_timeout", "entry_timeout", "negative_timeout"];
                command.arg("--multithreaded").args(["-o", "kernel_cache"]);
                command.args(timeouts.iter().flat_map(|name| ["-o".into(), format!("{name}={FOR_EVER}")]));
            }
            Peer::MergerfsCached => {
                let whats = ["attr", "entry", "negative_entry", "statfs"];
                command.args([
                    "-o",
                    "cache.files=full,cache.writeback=true,cache.readdir=true,cache.symlinks=true",
                ]);
                command.args(whats.iter().flat_map(|name| ["-o".into(), format!("cache.{name}={FOR_EVER}")]));
            }
            Peer::Rclone => {
                command.args(["mount", "--daemon", "--allow-other", "--vfs-cache-mode", "full", "--links"]);
                command.arg("--cache-dir").arg(cache).args(["--config", "/dev/null"]);
                command.args(["--dir-cache-time", "24h"]);
            }
            _ => {}
        }
        command.arg(disk).arg(mountpoint);
        command
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A peer at work: its directory, unmounted and removed on drop.
#[derive(Debug)]
pub struct Site {
    /// Who.
    pub peer: Peer,
    /// The directory in which the row works.
    pub dir: PathBuf,
    /// Its depot, if the peer is depotfs.
    pub depot: Option<Depot>,
    place: PathBuf,
    disk: PathBuf,
}

impl Site {
    /// Sets a peer up in `scratch`; all but depotfs show the one directory `disk` there.
    pub fn new(peer: Peer, scratch: &Path, depotfs: &Path) -> Result<Site> {
        let (disk, place) = (scratch.join("disk"), scratch.join(peer.name()));
        fs::create_dir_all(&disk)?;
        fs::create_dir_all(place.join("mnt"))?;
        let mut site = Site { peer, dir: place.join("mnt"), depot: None, place, disk };
        match peer {
            Peer::Plain | Peer::Core => site.dir.clone_from(&site.disk),
            Peer::Depotfs => {
                let depot = Depot::new(depotfs, &site.place)?;
                site.dir = depot.mountpoint.join(REPOSITORY);
                site.depot = Some(depot);
            }
            _ => site.mount()?,
        }
        Ok(site)
    }

    /// Mounts again with nothing in any cache.
    pub fn remount(&self) -> Result<()> {
        if !matches!(self.peer, Peer::Plain | Peer::Core) {
            self.umount()?;
            sys::drop_caches()?;
            return self.mount();
        }
        sys::drop_caches()
    }

    /// Unmounts, where there is a mount.
    pub fn umount(&self) -> Result<()> {
        let mountpoint = self.mountpoint();
        match (&self.depot, self.peer) {
            (Some(depot), _) => return depot.umount(),
            (None, Peer::Plain | Peer::Core) => return Ok(()),
            (None, _) => {}
        }
        // Whoever let go of a file a moment ago may not have been heard yet.
        for _ in 0..50 {
            if program::run("umount", &[&mountpoint]).is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(100));
        }
        bail!("{} stays busy", mountpoint.display())
    }

    /// Mounts, where there is something to mount.
    pub fn mount(&self) -> Result<()> {
        if let Some(depot) = &self.depot {
            return depot.mount();
        }
        let (mountpoint, cache) = (self.mountpoint(), self.place.join("cache"));
        // What rclone wrote into its cache is on the disk by now, or was removed.
        let _ = fs::remove_dir_all(&cache);
        program::finish(&mut self.peer.command(&self.disk, &mountpoint, &cache))?;
        for _ in 0..100 {
            if is_mountpoint(&mountpoint)? {
                return Ok(());
            }
            sleep(Duration::from_millis(50));
        }
        bail!("{} did not mount", self.peer)
    }

    /// Where the peer is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.place.join("mnt")
    }

    /// A directory of this peer alone.
    pub fn own(&self) -> PathBuf {
        self.dir.join(format!("of-{}", self.peer))
    }

    /// The same with `durability=close`, in a depot.
    pub fn strict(&self) -> Result<PathBuf> {
        let depot = self.depot.as_ref().context("only a depot has durability=close")?;
        Ok(depot.mountpoint.join(STRICT))
    }

    /// What was prepared once: of the disk for all, in the depot for itself.
    pub fn shared(&self) -> PathBuf {
        self.dir.join("shared")
    }

    /// Where the bytes are in the end, to ask for its device.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Brings everything the peer has written to rest: sealed and on the disk.
    pub fn settle(&self) -> Result<()> {
        if let Some(depot) = &self.depot {
            depot.flush()?;
        }
        sys::sync_disk(&self.disk)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let mountpoint = self.mountpoint();
        if is_mountpoint(&mountpoint).unwrap_or(true) && self.umount().is_err() {
            let _ = program::run("umount", &["-l".as_ref(), mountpoint.as_os_str()]);
        }
        // Never through a mount that is still there.
        if !is_mountpoint(&mountpoint).unwrap_or(true) {
            let _ = fs::remove_dir_all(&self.place);
        }
    }
}

/// Whether something is mounted exactly there.
fn is_mountpoint(dir: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == dir.to_str()))
}
