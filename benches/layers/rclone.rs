//! rclone as a client of the row's server: its mount, and its copies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::depot::is_mountpoint;
use crate::program::{self, run};
use crate::server::{BUCKET, KEYS, background};

/// Uploads at a time: as many as `eventual` has workers.
const TRANSFERS: &str = "5";
/// A mount or its end takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// rclone with a remote `layers:` on a port of this host.
fn command(port: u16, args: &[&str]) -> Command {
    let mut command = Command::new("rclone");
    command.args(args).args(["--config", ""]);
    let endpoint = format!("http://127.0.0.1:{port}");
    let settings = [
        ("TYPE", "s3"),
        ("PROVIDER", "Other"),
        ("ENDPOINT", &endpoint),
        ("ACCESS_KEY_ID", KEYS.0),
        ("SECRET_ACCESS_KEY", KEYS.1),
        ("FORCE_PATH_STYLE", "true"),
    ];
    for (name, value) in settings {
        command.env(format!("RCLONE_CONFIG_LAYERS_{name}"), value);
    }
    command
}

/// Copies a directory, or the one file of that name, into a directory.
pub fn copy(port: u16, from: &str, to: &str) -> Result<()> {
    program::finish(&mut command(port, &["copy", from, to, "--transfers", TRANSFERS])).map(drop)
}

/// An object or a directory of the bucket.
pub fn remote(key: &str) -> String {
    format!("layers:{BUCKET}/{key}")
}

/// The bucket mounted with the cache that lets programs write anywhere in a file; unmounted and removed on drop.
#[derive(Debug)]
pub struct Mount {
    port: u16,
    place: PathBuf,
    child: Option<Child>,
}

impl Mount {
    /// Mounts the bucket of the server behind `port` in `place`.
    pub fn new(port: u16, place: &Path) -> Result<Mount> {
        let mut mount = Mount { port, place: place.into(), child: None };
        fs::create_dir_all(mount.dir())?;
        mount.mount()?;
        Ok(mount)
    }

    /// The bucket's directory.
    pub fn dir(&self) -> PathBuf {
        self.place.join("mnt")
    }

    /// The process, if there is one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Mounts, with an empty cache.
    pub fn mount(&mut self) -> Result<()> {
        let (dir, cache) = (self.dir(), self.place.join("cache"));
        let _ = fs::remove_dir_all(&cache);
        let mut command =
            command(self.port, &["mount", &remote(""), "--vfs-cache-mode", "full", "--allow-other"]);
        command.args(["--dir-cache-time", "24h", "--transfers", TRANSFERS]);
        command.arg("--cache-dir").arg(&cache).arg(&dir);
        let log = fs::File::create(self.place.join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        // At this signal it unmounts.
        let child = self.child.insert(background(command, Signal::SIGTERM)?);
        let begun = Instant::now();
        while !is_mountpoint(&dir)? {
            ensure!(child.try_wait()?.is_none() && begun.elapsed() < PATIENCE, "rclone mount does not mount");
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Unmounts, and waits for the process.
    pub fn umount(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let begun = Instant::now();
        while is_mountpoint(&self.dir())? && begun.elapsed() < PATIENCE {
            // Whoever let go of a file a moment ago may not have been heard yet.
            if run("umount", &[self.dir()]).is_err() {
                sleep(Duration::from_millis(100));
            }
        }
        while begun.elapsed() < PATIENCE {
            if child.try_wait()?.is_some() {
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
        child.kill().and_then(|()| child.wait()).context("rclone mount cannot be ended")?;
        bail!("rclone mount did not end when it was unmounted")
    }

    /// Mounts again with nothing in any cache.
    pub fn forget(&mut self) -> Result<()> {
        self.umount()?;
        self.mount()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mounted = |mount: &Mount| is_mountpoint(&mount.dir()).unwrap_or(true);
        if self.umount().is_err() && mounted(self) {
            let _ = run("umount", &["-l".as_ref(), self.dir().as_os_str()]);
        }
        // Never through a mount that is still there.
        if !mounted(self) {
            let _ = fs::remove_dir_all(&self.place);
        }
    }
}
