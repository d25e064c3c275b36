//! Which directory each shard has in use: two paths may lead to one, and a copy there is one copy.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::super::blob::FileId;
use super::super::error::{Error, Result};

/// See above. Who has a directory is told by a token of its shard, and has it as long as the token lives.
#[derive(Debug, Default)]
pub struct Taken(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    shard: PathBuf,
    token: Weak<()>,
    directory: FileId,
}

impl Taken {
    /// Takes a directory for a shard, which has no other one then; refused as long as a shard of another path has it.
    pub fn take(&self, shard: &Path, token: &Arc<()>, directory: FileId) -> Result<()> {
        let mut entries = self.0.lock();
        entries.retain(|entry| entry.token.strong_count() > 0);
        if let Some(other) = entries.iter().find(|one| one.shard != shard && one.directory == directory) {
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
        let id = |ino| FileId { dev: 1, ino };
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
}
