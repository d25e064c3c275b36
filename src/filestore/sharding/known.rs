//! What the sharding remembers of its shards: which there are, and for which arrangement the blobs were balanced last.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::super::error::{Doing, Result};
use super::super::volume::{HERE, Volume};

/// One object of JSON.
const FILE: &str = "shards";
const NEW: &str = "shards.new";

/// See above.
#[derive(Debug)]
pub struct Known {
    volume: Arc<Volume>,
    kept: Mutex<Kept>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// Directories; `None`: not written down yet, so that none is new.
    shards: Option<BTreeSet<String>>,
    /// The arrangement of the last balance that left nothing.
    balanced: Option<String>,
}

/// Whether the sharding whose directory is `own` never had this shard; nothing is changed by asking.
pub fn is_new_in(own: &Path, shard: &Path) -> bool {
    let kept = std::fs::read(own.join(FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    kept.is_some_and(|kept: Kept| kept.is_new(shard))
}

impl Kept {
    fn is_new(&self, dir: &Path) -> bool {
        self.shards.as_ref().is_some_and(|shards| !shards.contains(&*dir.to_string_lossy()))
    }
}

impl Known {
    /// Reads what was known last.
    pub fn open(volume: Arc<Volume>) -> Result<Known> {
        let read = match volume.open_file(FILE, OFlag::O_RDONLY)? {
            Some((file, _)) => serde_json::from_reader(std::io::BufReader::new(file)),
            None => Ok(Kept::default()),
        };
        // It can all be found out anew, at the price of a balance.
        let kept = read.unwrap_or_else(|error| {
            tracing::warn!(%error, "{} cannot be understood and is written anew", volume.at(FILE).display());
            Kept::default()
        });
        Ok(Known { volume, kept: Mutex::new(kept) })
    }

    /// Whether a shard was not here before: then its directory may be made.
    pub fn is_new(&self, dir: &Path) -> bool {
        self.kept.lock().is_new(dir)
    }

    /// Remembers that these are the shards.
    pub fn set_shards<'a>(&self, dirs: impl Iterator<Item = &'a Path>) -> Result<()> {
        let dirs = dirs.map(|dir| dir.to_string_lossy().into_owned()).collect();
        self.change(|kept| kept.shards = Some(dirs))
    }

    /// Whether the blobs were balanced for another arrangement.
    pub fn is_balanced_for(&self, arrangement: &str) -> bool {
        self.kept.lock().balanced.as_deref() == Some(arrangement)
    }

    /// Remembers for which arrangement they are balanced.
    pub fn set_balanced(&self, arrangement: &str) -> Result<()> {
        self.change(|kept| kept.balanced = Some(arrangement.to_owned()))
    }

    fn change(&self, change: impl FnOnce(&mut Kept)) -> Result<()> {
        let mut kept = self.kept.lock();
        let mut changed = kept.clone();
        change(&mut changed);
        if changed == *kept {
            return Ok(());
        }
        self.volume.remove(NEW)?;
        let mut file = self.volume.create_file(NEW, 0o600)?;
        let wrote = serde_json::to_vec(&changed).map_err(std::io::Error::from);
        wrote
            .and_then(|text| file.write_all(&text))
            .and_then(|()| file.sync_all())
            .doing("write", self.volume.at(NEW))?;
        self.volume.rename(NEW, FILE)?;
        self.volume.force_folder(HERE)?;
        *kept = changed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_and_the_last_balance_are_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let known =
            || Known::open(Arc::new(Volume::create(dir.path(), std::iter::empty()).unwrap())).unwrap();
        let (a, b) = (Path::new("/mnt/a"), Path::new("/mnt/b"));
        assert!(!known().is_new(a), "nothing is new as long as nothing is written down");
        known().set_shards([a].into_iter()).unwrap();
        assert!(!known().is_new(a) && known().is_new(b));
        assert!(!is_new_in(dir.path(), a) && is_new_in(dir.path(), b));
        assert!(!known().is_balanced_for("1 of a"));
        known().set_balanced("1 of a").unwrap();
        assert!(known().is_balanced_for("1 of a") && !known().is_balanced_for("2 of a") && known().is_new(b));
        std::fs::write(dir.path().join(FILE), "{\"shar").unwrap();
        assert!(!known().is_new(b) && !known().is_balanced_for("1 of a"));
    }
}
