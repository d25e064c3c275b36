//! Which directory each shard has in use: two paths may lead to one, and a copy there is one copy.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::super::blob::FileId;
use super::super::error::{Error, Result};
use super::super::volume::MARKER;
use crate::sys::file::FileSystemType;

/// A directory, whichever path leads to it.
#[derive(Clone, Copy, Debug)]
pub struct Directory {
    /// Its file.
    pub id: FileId,
    /// Whether it is on a network or FUSE file system, of which each mount may have a device of its own.
    far: bool,
    /// Number and last change, in seconds and ns, of the file that marks it as a depot's.
    marker: Option<(u64, i64, i64)>,
}

impl Directory {
    /// The one that this path leads to now.
    pub fn of(dir: &Path) -> Option<Directory> {
        let found = fs::metadata(dir).ok()?;
        let far =
            fs::File::open(dir).and_then(|dir| FileSystemType::of(&dir)).is_ok_and(|kind| kind.is_network());
        let marker = fs::metadata(dir.join(MARKER)).ok();
        Some(Directory {
            id: FileId { dev: found.dev(), ino: found.ino() },
            far,
            marker: marker.map(|found| (found.ino(), found.ctime(), found.ctime_nsec())),
        })
    }

    /// Whether both are one. Of a server that is mounted twice, or is this host, the devices differ, but not the markers;
    /// where times are whole seconds nothing is told by them.
    fn is(&self, other: &Directory) -> bool {
        let told = |(_, _, nanos): &(u64, i64, i64)| *nanos != 0;
        self.id == other.id
            || ((self.far || other.far) && self.marker.filter(told).is_some() && self.marker == other.marker)
    }
}

/// See above. Who has a directory is told by a token of its shard, and has it as long as the token lives.
#[derive(Debug, Default)]
pub struct Taken(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    shard: PathBuf,
    token: Weak<()>,
    directory: Directory,
}

impl Taken {
    /// Takes a directory for a shard, which has no other one then; refused as long as a shard of another path has it.
    pub fn take(&self, shard: &Path, token: &Arc<()>, directory: Directory) -> Result<()> {
        let mut entries = self.0.lock();
        entries.retain(|entry| entry.token.strong_count() > 0);
        if let Some(other) = entries.iter().find(|one| one.shard != shard && one.directory.is(&directory)) {
            return Err(Error::OneDirectory { dir: shard.to_owned(), other: other.shard.clone() });
        }
        entries.retain(|entry| !is_of(entry, token));
        entries.push(Entry { shard: shard.to_owned(), token: Arc::downgrade(token), directory });
        Ok(())
    }

    /// The shard uses no directory now.
    pub fn leave(&self, token: &Arc<()>) {
        self.0.lock().retain(|entry| !is_of(entry, token));
    }
}

fn is_of(entry: &Entry, token: &Arc<()>) -> bool {
    std::ptr::eq(entry.token.as_ptr(), Arc::as_ptr(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_of_one_shard_until_that_leaves_it() {
        let (taken, one, two) = (Taken::default(), Arc::new(()), Arc::new(()));
        let (a, b) = (Path::new("/mnt/a"), Path::new("/mnt/b"));
        let id = |ino| Directory { id: FileId { dev: 1, ino }, far: false, marker: None };
        taken.take(a, &one, id(1)).unwrap();
        taken.take(a, &one, id(1)).unwrap();
        assert!(matches!(taken.take(b, &two, id(1)), Err(Error::OneDirectory { other, .. }) if other == a));
        taken.take(b, &two, id(2)).unwrap();
        taken.leave(&one);
        taken.take(b, &two, id(1)).unwrap();
        assert!(taken.take(a, &one, id(1)).is_err());
        taken.take(a, &one, id(2)).unwrap();
        drop(two);
        taken.take(a, &one, id(1)).unwrap();
    }

    #[test]
    fn a_server_that_is_mounted_twice_is_known_by_its_marker() {
        let directory = |dev, far, marker| Directory { id: FileId { dev, ino: 1 }, far, marker };
        let marker = Some((7, 100, 5));
        let (here, far) = (directory(1, false, marker), directory(2, true, marker));
        assert!(far.is(&directory(3, true, marker)) && here.is(&far) && far.is(&here));
        assert!(!here.is(&directory(4, false, marker)), "a disk and a copy of all of it");
        assert!(!far.is(&directory(3, true, Some((7, 100, 6)))) && !far.is(&directory(3, true, None)));
        let seconds = Some((7, 100, 0));
        assert!(!directory(2, true, seconds).is(&directory(3, true, seconds)), "times of whole seconds");
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MARKER), "id").unwrap();
        let found = Directory::of(dir.path()).unwrap();
        assert!(found.marker.is_some() && !found.far && found.is(&found));
    }
}
