//! A depot with a chain of its own, and its daemon.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::program::run;
use crate::sys;

/// The repository in which the rows work.
pub const REPOSITORY: &str = "repo";
/// The one with `durability=close`.
pub const STRICT: &str = "strict";

/// The longest wait for a seal that nothing hinders.
const PATIENCE: Duration = Duration::from_secs(300);

/// A depot that is mounted somewhere, or could be; unmounted and removed on drop.
#[derive(Debug)]
pub struct Depot {
    program: PathBuf,
    place: PathBuf,
    dir: PathBuf,
    mountpoint: PathBuf,
}

impl Depot {
    /// Makes an empty depot with these settings in `place`, mounts it, and makes its repositories.
    pub fn new(program: &Path, place: &Path, settings: &[String]) -> Result<Depot> {
        let (dir, mountpoint) = (place.join("depot"), place.join("mnt"));
        fs::create_dir_all(&mountpoint)?;
        let depot = Depot { program: program.into(), place: place.into(), dir, mountpoint };
        let mut args = vec!["init", depot.dir_str()?];
        args.extend(settings.iter().flat_map(|setting| ["--set", setting.as_str()]));
        run(program, &args)?;
        depot.mount()?;
        for name in [REPOSITORY, STRICT] {
            fs::create_dir(depot.mountpoint.join(name))?;
        }
        depot.cli(&["repo", "set", depot.dir_str()?, STRICT, "durability=close"])?;
        Ok(depot)
    }

    /// Runs `depotfs` with these arguments.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        run(&self.program, args)
    }

    /// The depot's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The same as an argument.
    pub fn dir_str(&self) -> Result<&str> {
        self.dir.to_str().context("the scratch directory is not UTF-8")
    }

    /// Where its root is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The directory in which the rows work.
    pub fn repository(&self) -> PathBuf {
        self.mountpoint.join(REPOSITORY)
    }

    /// The same with `durability=close`.
    pub fn strict(&self) -> PathBuf {
        self.mountpoint.join(STRICT)
    }

    fn mountpoint_str(&self) -> Result<&str> {
        self.mountpoint.to_str().context("the scratch directory is not UTF-8")
    }

    /// Mounts, as root with passthrough.
    pub fn mount(&self) -> Result<()> {
        self.cli(&["mount", self.dir_str()?, self.mountpoint_str()?, "-o", "passthrough=on"]).map(drop)
    }

    /// Unmounts, when everything closed is sealed and what waits to be uploaded was given its time.
    pub fn umount(&self) -> Result<()> {
        self.cli(&["umount", self.mountpoint_str()?]).map(drop)
    }

    /// Unmounts and leaves the queue as it is.
    pub fn umount_now(&self) -> Result<()> {
        self.cli(&["umount", self.mountpoint_str()?, "--no-drain"]).map(drop)
    }

    /// Mounts again with nothing in the kernel's caches.
    pub fn remount(&self) -> Result<()> {
        self.umount()?;
        sys::drop_caches()?;
        self.mount()
    }

    /// Mounts again with nothing of the files in any cache: the kernel's go with the mount, and then that of the chain.
    pub fn forget(&self) -> Result<()> {
        self.flush()?;
        self.umount()?;
        self.mount()?;
        self.flush()?;
        let begun = Instant::now();
        // What somebody has open stays: the daemon itself may look at a blob when it has begun.
        while self.cached()? > 0 {
            ensure!(begun.elapsed() < PATIENCE, "blobs stay in the cache");
            self.cli(&["cache", "drop", self.dir_str()?, "--all"])?;
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until everything closed is a blob, and no blob waits to be uploaded.
    pub fn flush(&self) -> Result<()> {
        // The kernel tells the daemon of a close a moment after close(2) returned: look again while files count as open.
        for _ in 0..100 {
            self.cli(&["flush", self.dir_str()?, "--wait"])?;
            if self.pending()? == 0 {
                return Ok(());
            }
        }
        bail!("files of the depot stay unsealed")
    }

    /// Has all checksums of a file computed, so that no job reads it some time later.
    pub fn checksum(&self, path: &Path) -> Result<()> {
        let path = path.to_str().context("the scratch directory is not UTF-8")?;
        self.cli(&["blob", "checksum", self.dir_str()?, path]).map(drop)
    }

    /// Waits until everything closed is a blob, wherever that is.
    pub fn sealed(&self, go_on: impl Fn() -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        while self.pending()? > 0 {
            go_on()?;
            ensure!(begun.elapsed() < PATIENCE, "files of the depot stay unsealed");
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Files that are not sealed.
    fn pending(&self) -> Result<u64> {
        let status = self.status()?;
        let pending = |name: &str| status["pending"][name].as_u64().context("status without pending files");
        Ok(pending("dirty")? + pending("closed")?)
    }

    /// Blobs that wait to be uploaded.
    pub fn queued(&self) -> Result<u64> {
        let status = self.status()?;
        find(&status, "queue").and_then(|queue| queue["entries"].as_u64()).context("status without a queue")
    }

    /// Blobs in the cache.
    pub fn cached(&self) -> Result<u64> {
        let text = self.cli(&["cache", "status", self.dir_str()?, "--json"])?;
        let status: Value = serde_json::from_str(&text).context("cache status --json")?;
        status["entries"].as_u64().context("a cache that does not count")
    }

    fn status(&self) -> Result<Value> {
        let text = self.cli(&["status", self.dir_str()?, "--json"])?;
        serde_json::from_str(&text).context("status --json")
    }

    /// The daemon, if there is one.
    pub fn pid(&self) -> Result<Option<u32>> {
        if !is_mountpoint(&self.mountpoint)? {
            return Ok(None);
        }
        let pid = self.status()?["mount"]["pid"].as_u64();
        pid.map(|pid| u32::try_from(pid).context("status with a strange process")).transpose()
    }
}

impl Drop for Depot {
    fn drop(&mut self) {
        let mounted = || is_mountpoint(&self.mountpoint).unwrap_or(true);
        if mounted() && self.umount_now().is_err() && self.umount().is_err() {
            let _ = run("umount", &["-l".as_ref(), self.mountpoint.as_os_str()]);
        }
        // Never through a mount that is still there.
        if !mounted() {
            let _ = fs::remove_dir_all(&self.place);
        }
    }
}

/// The first value of this name, of the status or of any layer in it, that is not null.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => {
            let own = map.get(name).filter(|found| !found.is_null());
            own.or_else(|| map.values().find_map(|inner| find(inner, name)))
        }
        Value::Array(list) => list.iter().find_map(|inner| find(inner, name)),
        _ => None,
    }
}

/// Waits until a file that was just closed is a blob: asking for its checksum seals it.
pub fn seal(path: &Path) -> Result<()> {
    let name = c"user.depotfs.sha1";
    let path = CString::new(path.as_os_str().as_bytes())?;
    let begun = Instant::now();
    loop {
        let mut value = [0_u8; 64];
        // SAFETY: two texts that end in a zero byte, and a live buffer of that length.
        let got =
            unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        if got >= 0 {
            return Ok(());
        }
        // The daemon has not yet heard of the close.
        let error = io::Error::last_os_error();
        let early = error.raw_os_error() == Some(libc::ENODATA) && begun.elapsed() < PATIENCE;
        if !early {
            return Err(error).context("the checksum of a closed file");
        }
        sleep(Duration::from_micros(200));
    }
}

/// Whether something is mounted exactly there.
pub fn is_mountpoint(dir: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == dir.to_str()))
}
