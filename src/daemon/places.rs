//! Which directories may be mounted on which, and what an earlier daemon left there.

use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};

use crate::config::{self, Config};
use crate::sys::mountinfo::{self, Mount};

/// `path` made absolute by its text alone: no file system is touched, so a dead mount on the way is no obstacle.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let mut whole = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::ParentDir => drop(whole.pop()),
            part => whole.push(part),
        }
    }
    Ok(whole)
}

/// The place of a mountpoint without symbolic links on the way to it, itself not followed into what is mounted there.
pub fn mountpoint(given: &Path) -> anyhow::Result<PathBuf> {
    let path = absolute(given).with_context(|| format!("mountpoint {}", given.display()))?;
    let is_mounted =
        |path: &Path| mountinfo::mounts().is_ok_and(|all| all.iter().any(|m| m.mountpoint == path));
    if is_mounted(&path) {
        return Ok(path);
    }
    let parent = path.parent().map(Path::canonicalize).transpose().unwrap_or_default();
    if let (Some(parent), Some(name)) = (parent, path.file_name())
        && is_mounted(&parent.join(name))
    {
        return Ok(parent.join(name));
    }
    path.canonicalize()
        .with_context(|| format!("mountpoint {} cannot be used: make the directory first", path.display()))
}

/// Refuses a mountpoint that is no directory, and a depot inside the mountpoint or the reverse: the daemon would wait for
/// itself. Both paths are canonical.
pub fn refuse_nesting(config: &Config, mountpoint: &Path) -> anyhow::Result<()> {
    if !mountpoint.is_dir() {
        bail!("mountpoint {} is not a directory", mountpoint.display());
    }
    let parts = [("the depot", &config.depot), ("its index", &config.index), ("its log", &config.log.dir)]
        .map(|(what, dir)| (what, dir.as_path()));
    let providers = config.chain.iter().flat_map(config::Layer::dirs).map(|dir| ("its filestore", dir));
    for (what, dir) in parts.into_iter().chain(providers) {
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let (inside, of) = match () {
            () if dir.starts_with(mountpoint) => (format!("{what} {}", dir.display()), "the mountpoint"),
            () if mountpoint.starts_with(&dir) => (format!("mountpoint {}", mountpoint.display()), what),
            () => continue,
        };
        bail!("{inside} lies inside {of}: choose a mountpoint apart from the depot");
    }
    Ok(())
}

/// Takes away every mount of `depot` whose daemon is gone. The caller holds the depot's lock, or knows that the mount at
/// `mountpoint` is dead.
pub fn clear_dead_mounts(depot: &Path) -> anyhow::Result<()> {
    for mount in mountinfo::depots().context("the mounts cannot be read")?.iter().rev() {
        if mount.source == depot && mountinfo::is_dead(&mount.mountpoint) {
            let place = mount.mountpoint.display();
            mountinfo::unmount(&mount.mountpoint, true).with_context(|| {
                format!("the mount that a dead daemon left on {place} cannot be taken away")
            })?;
            tracing::warn!("took away the mount that a dead daemon left on {place}");
        }
    }
    Ok(())
}

/// The mount on top at `mountpoint`.
pub fn mount_at<'a>(mounts: &'a [Mount], mountpoint: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.mountpoint == mountpoint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Values;

    fn config(depot: &Path, index: &Path) -> Config {
        let id = "00112233445566778899aabbccddeeff".to_owned();
        let values = Values::from([("id", id), ("index", index.display().to_string())]);
        Config::build(depot, &values).unwrap()
    }

    #[test]
    fn paths_become_absolute_by_their_text() {
        assert_eq!(absolute(Path::new("/a/./b/../c/")).unwrap(), Path::new("/a/c"));
        assert_eq!(absolute(Path::new("/..")).unwrap(), Path::new("/"));
        assert_eq!(absolute(Path::new("x")).unwrap(), std::env::current_dir().unwrap().join("x"));
    }

    #[test]
    fn nesting_is_refused_both_ways() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            let path = scratch.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let (depot, apart, below) = (dir("d/depot"), dir("mnt"), dir("d/depot/x"));
        assert!(refuse_nesting(&config(&depot, &depot), &apart).is_ok());
        for mountpoint in [&below, &depot, &dir("d")] {
            let why = refuse_nesting(&config(&depot, &depot), mountpoint).unwrap_err().to_string();
            assert!(why.contains("inside") && why.contains("mountpoint"), "{why}");
        }
        let why = refuse_nesting(&config(&depot, &dir("mnt/index")), &apart).unwrap_err().to_string();
        assert!(why.contains("its index"), "{why}");
    }

    #[test]
    fn a_mountpoint_is_found_through_links_and_a_missing_one_is_explained() {
        let scratch = tempfile::tempdir().unwrap();
        let real = scratch.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, scratch.path().join("link")).unwrap();
        assert_eq!(mountpoint(&scratch.path().join("link")).unwrap(), real.canonicalize().unwrap());
        let why = mountpoint(&scratch.path().join("none")).unwrap_err().to_string();
        assert!(why.contains("make the directory first"), "{why}");
        assert_eq!(mountpoint(Path::new("/proc")).unwrap(), Path::new("/proc"));
    }
}
