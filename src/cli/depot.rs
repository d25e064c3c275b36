//! From what a user types to a depot: its directory, or any path inside its mount.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::exit::{Exit, stop};
use crate::checksum::Checksum;
use crate::config;
use crate::control::{Bytes, Target};
use crate::daemon::places;
use crate::sys::mountinfo::{self, Mount};

/// The directory of the depot that `given` leads to.
///
/// Mounts are looked at before directories, and by the text of the path first: neither a dead mount nor a file called
/// depot.toml inside a tree misleads.
pub fn find(given: &Path) -> anyhow::Result<PathBuf> {
    let mounts = mountinfo::mounts().context("the mounts cannot be read")?;
    let path =
        places::absolute(given).with_context(|| format!("{} cannot be used as a path", given.display()))?;
    if let Some(mount) = holding_depot(&mounts, &path) {
        return Ok(mount.source.clone());
    }
    let path = path.canonicalize().with_context(|| format!("depot {} cannot be reached", given.display()))?;
    if let Some(mount) = holding_depot(&mounts, &path) {
        return Ok(mount.source.clone());
    }
    match path.join(config::FILE).try_exists() {
        Ok(true) => Ok(path),
        Ok(false) if path.is_dir() => bail!(
            "{} is neither a depot (it has no depot.toml) nor inside a mounted one: make a depot with: depotfs init {0}",
            given.display()
        ),
        Ok(false) => {
            bail!("{} is neither the directory of a depot nor inside a mounted one", given.display())
        }
        Err(error) => Err(error).with_context(|| format!("depot {} cannot be read", given.display())),
    }
}

/// The depot of a command that may leave it out when only one is mounted.
pub fn find_or_only(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        return find(given);
    }
    let mut depots = mounted()?;
    match depots.len() {
        0 => Err(stop(
            Exit::NotRunning,
            "no depot is mounted: name one, or mount it with: depotfs mount DEPOT MOUNTPOINT",
        )),
        1 => Ok(depots.remove(0)),
        _ => {
            let names: Vec<String> = depots.iter().map(|depot| depot.display().to_string()).collect();
            Err(stop(Exit::Usage, format!("several depots are mounted, name one of: {}", names.join(", "))))
        }
    }
}

/// Directories of all mounted depots, each once.
pub fn mounted() -> anyhow::Result<Vec<PathBuf>> {
    let mounts = mountinfo::depots().context("the mounts cannot be read")?;
    let mut depots: Vec<PathBuf> = mounts.into_iter().map(|mount| mount.source).collect();
    depots.sort();
    depots.dedup();
    Ok(depots)
}

/// What X in `blob VERB DEPOT X` means: a checksum, a path in the depot's mount, or else a path from the root of its tree.
pub fn target(depot: &Path, x: &OsStr) -> anyhow::Result<Target> {
    if let Some(checksum) = x.to_str().and_then(Checksum::parse) {
        return Ok(Target::Checksum(checksum.to_string()));
    }
    path(depot, x)
}

/// What a path means: one in the depot's mount, or else one from the root of its tree.
pub fn path(depot: &Path, x: &OsStr) -> anyhow::Result<Target> {
    let mounts = mountinfo::mounts().context("the mounts cannot be read")?;
    let path = places::absolute(Path::new(x)).context("the path cannot be used")?;
    let inside = |path: &Path| {
        let mount =
            mountinfo::holder(&mounts, path).filter(|mount| mount.is_depot() && mount.source == depot)?;
        Some(Target::Mount(Bytes::from(mount.inside(path)?.as_os_str())))
    };
    if let Some(target) = inside(&path) {
        return Ok(target);
    }
    // A link outside that leads into the mount; the last name itself is not followed, as it is what is asked about.
    let through_links = path.parent().and_then(|parent| parent.canonicalize().ok()).zip(path.file_name());
    if let Some(target) = through_links.and_then(|(parent, name)| inside(&parent.join(name))) {
        return Ok(target);
    }
    Ok(Target::Tree(Bytes::from(OsStr::from_bytes(trim(x.as_bytes())))))
}

fn trim(mut path: &[u8]) -> &[u8] {
    while let Some(rest) = path.strip_prefix(b"/") {
        path = rest;
    }
    path
}

fn holding_depot<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mountinfo::holder(mounts, path).filter(|mount| mount.is_depot())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_a_depot_toml_is_a_depot() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().canonicalize().unwrap();
        let why = find(&path).unwrap_err().to_string();
        assert!(why.contains("depotfs init"), "{why}");
        std::fs::write(path.join(config::FILE), "").unwrap();
        assert_eq!(find(&path).unwrap(), path);
        assert!(find(&path.join("none")).unwrap_err().to_string().contains("cannot be reached"));
        assert!(find(&path.join(config::FILE)).is_err());
    }

    #[test]
    fn targets_are_checksums_or_paths() {
        let depot = Path::new("/nowhere");
        let target = |x: &str| target(depot, OsStr::new(x)).unwrap();
        let sum = "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709";
        assert_eq!(target(sum), Target::Checksum(sum.to_lowercase()));
        assert_eq!(target("libs/a.jar"), Target::Tree(Bytes::Text("libs/a.jar".into())));
        assert_eq!(target("//libs/a.jar"), Target::Tree(Bytes::Text("libs/a.jar".into())));
    }
}
