//! A depot and its daemon, as commands and /proc show them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::program::run;

/// The repository in which the rows work.
pub const REPOSITORY: &str = "repo";
/// The one with `durability=close`.
pub const STRICT: &str = "strict";

/// A depot that is mounted somewhere, or could be.
#[derive(Debug, Clone)]
pub struct Depot {
    program: PathBuf,
    /// Its directory.
    pub dir: PathBuf,
    /// Its mountpoint.
    pub mountpoint: PathBuf,
}

impl Depot {
    /// Makes an empty depot in `place`, mounts it, and makes its repositories.
    pub fn new(program: &Path, place: &Path) -> Result<Depot> {
        let depot =
            Depot { program: program.into(), dir: place.join("depot"), mountpoint: place.join("mnt") };
        fs::create_dir_all(&depot.mountpoint)?;
        depot.cli(&["init", depot.dir_str()?])?;
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

    /// The depot's directory, as an argument.
    pub fn dir_str(&self) -> Result<&str> {
        self.dir.to_str().context("the scratch directory is not UTF-8")
    }

    fn mountpoint_str(&self) -> Result<&str> {
        self.mountpoint.to_str().context("the scratch directory is not UTF-8")
    }

    /// Mounts, as root with passthrough.
    pub fn mount(&self) -> Result<()> {
        self.cli(&["mount", self.dir_str()?, self.mountpoint_str()?, "-o", "passthrough=on"]).map(drop)
    }

    /// Unmounts; everything closed is sealed then.
    pub fn umount(&self) -> Result<()> {
        self.cli(&["umount", self.mountpoint_str()?]).map(drop)
    }

    /// Waits until everything closed is a blob.
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

    /// Files that are not sealed.
    pub fn pending(&self) -> Result<u64> {
        let status = self.status()?;
        let pending = |name: &str| status["pending"][name].as_u64().context("status without pending files");
        Ok(pending("dirty")? + pending("closed")?)
    }

    /// What `status --json` says.
    pub fn status(&self) -> Result<Value> {
        let text = self.cli(&["status", self.dir_str()?, "--json"])?;
        serde_json::from_str(&text).context("status --json")
    }

    /// The daemon.
    pub fn pid(&self) -> Result<u32> {
        let pid = self.status()?["mount"]["pid"].as_u64();
        pid.and_then(|pid| u32::try_from(pid).ok()).context("status without a process")
    }

    /// A line of `depotfs metrics`; `None` when there is none of that name.
    pub fn metric(&self, name: &str) -> Result<Option<f64>> {
        let text = self.cli(&["metrics", self.dir_str()?])?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.and_then(|value| value.trim().parse().ok()))
    }
}
