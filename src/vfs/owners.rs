//! Which inode a blob's own file is, where the kernel serves it by passthrough.
//!
//! Several inodes may have one content, but the kernel's descriptors and mappings of a blob's file must belong to one of
//! them: when that one is written, its readers have to see it, and those of the others must not. A mapping outlives the
//! close of its descriptor without anybody being told, so an owner stays one until the file is seen to be unused.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::change::{Ino, StagingName};
use crate::checksum::Checksum;
use crate::filestore::{FileId, Latch};
use crate::sys::lease::is_unused;
use crate::vfs::{Error, Result, Vfs};

/// The inode that a blob's file is served for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The inode.
    pub ino: Ino,
    /// The file, where the blob has several copies.
    pub file: FileId,
    /// Whether it is open; a mapping may be left otherwise.
    pub open: bool,
}

/// Former owners looked at in one round.
const SWEEP_BATCH: usize = 256;

impl Vfs {
    /// Whether the blob's file may be served for `ino` by passthrough. Under the blob's latch.
    pub(super) fn may_own(&self, latch: &Latch<'_>, ino: Ino) -> Result<bool> {
        let owner = self.owners.lock().get(latch.checksum()).copied();
        match owner {
            None => Ok(true),
            Some(owner) if owner.ino == ino => Ok(true),
            Some(owner) if owner.open => Ok(false),
            // Where that cannot be told, the daemon serves it.
            Some(_) => Ok(self.blob_is_unused(latch).unwrap_or(false)),
        }
    }

    /// The file of a blob that `ino` was served from before, and may have mapped. Under the blob's latch.
    pub(super) fn owned_file(&self, latch: &Latch<'_>, ino: Ino) -> Option<FileId> {
        let owner = self.owners.lock().get(latch.checksum()).copied();
        owner.filter(|owner| owner.ino == ino).map(|owner| owner.file)
    }

    /// The blob's file is served for `ino` from now on. Under its latch.
    pub(super) fn own(&self, latch: &Latch<'_>, owner: Owner) {
        self.owners.lock().insert(*latch.checksum(), owner);
    }

    /// The last descriptor of the owner is closed.
    pub(super) fn owner_closed(&self, sum: &Checksum, ino: Ino) {
        if let Some(owner) = self.owners.lock().get_mut(sum).filter(|owner| owner.ino == ino) {
            owner.open = false;
        }
    }

    /// The blob has a file of its own again, or none.
    pub(super) fn disown(&self, sum: &Checksum) {
        self.owners.lock().remove(sum);
    }

    /// This file is a writer's now, whoever was served from it; one who is served from another keeps it.
    pub(super) fn disown_file(&self, sum: &Checksum, file: FileId) {
        let mut owners = self.owners.lock();
        if owners.get(sum).is_some_and(|owner| owner.file == file) {
            owners.remove(sum);
        }
    }

    /// The file of a blob of which `ino` left a mapping behind when it was closed. Under the node of `ino`, without which it
    /// cannot become the owner.
    pub(super) fn left_mapping(&self, sum: &Checksum, ino: Ino) -> Result<Option<FileId>> {
        let owner = || {
            let owner = self.owners.lock().get(sum).copied();
            owner.filter(|owner| owner.ino == ino && !owner.open)
        };
        if owner().is_none() {
            return Ok(None);
        }
        let latch = self.latch_with_node(sum)?;
        let Some(owner) = owner() else { return Ok(None) };
        Ok((!self.blob_is_unused(&latch)?).then_some(owner.file))
    }

    /// Whether nobody has the file of a blob's owner open or mapped; then it has no owner either.
    fn blob_is_unused(&self, latch: &Latch<'_>) -> Result<bool> {
        let sum = latch.checksum();
        self.descriptors.forget_blob(sum);
        let Some(owner) = self.owners.lock().get(sum).copied() else { return Ok(true) };
        let file = self.store.open_copy(sum, owner.file)?;
        let what = Error::io(format!("take a lease on blob {sum}"));
        let unused = file.as_ref().map_or(Ok(true), is_unused).map_err(what)?;
        if unused {
            self.disown(sum);
        }
        Ok(unused)
    }

    /// Whether anybody has a staging file open or mapped.
    pub(super) fn staging_is_used(&self, name: StagingName) -> Result<bool> {
        self.descriptors.forget_staging(name);
        let unused = is_unused(self.store.open_staging(name)?);
        Ok(!unused.map_err(Error::io(format!("take a lease on staging file {name}")))?)
    }

    /// A sealed file's staging file, which is not the blob's, goes; unless it is mapped: then it serves the file until the
    /// mapping is gone, and the next write goes to it. Under the file's node.
    pub(super) fn leave(&self, ino: Ino, name: StagingName) {
        match self.staging_is_used(name) {
            Ok(false) => {
                self.left.lock().remove(&ino);
                self.retire_sealed(self.index.last_seq(), name);
            }
            // When it cannot be told, it is looked at again.
            Ok(true) | Err(_) => drop(self.left.lock().insert(ino, name)),
        }
    }

    /// The former staging file of a sealed file, as long as it is mapped. Under the file's node.
    pub(super) fn left_behind(&self, ino: Ino) -> Option<StagingName> {
        let name = self.left.lock().get(&ino).copied()?;
        self.leave(ino, name);
        self.left.lock().get(&ino).copied()
    }

    /// Nothing can be mapped any more: the end of the mount.
    pub fn forget_mappings(&self) {
        let left = std::mem::take(&mut *self.left.lock());
        left.into_values().for_each(|name| self.retire_sealed(self.index.last_seq(), name));
    }

    /// Closes descriptors that nobody used lately. A job does this.
    pub fn close_idle(&self) {
        self.descriptors.close_idle();
    }

    /// Lets go of former owners, and of former staging files, whose mappings are gone: some in each round, in turn. A job
    /// does this.
    pub fn sweep_owners(&self) -> Result<()> {
        self.store.lingering().iter().for_each(|sum| self.descriptors.forget_blob(sum));
        let (mut last_sum, mut last_ino) = *self.swept.lock();
        let left = next_few(&self.left.lock(), &mut last_ino, |_| true);
        for ino in left {
            // One that somebody holds has its turn again.
            if let Some(_node) = self.nodes.try_lock(ino) {
                self.left_behind(ino);
            }
        }
        let sums = next_few(&self.owners.lock(), &mut last_sum, |owner| !owner.open);
        *self.swept.lock() = (last_sum, last_ino);
        let mut failure = None;
        for sum in sums {
            let latch = self.store.latch(&sum);
            if self.owners.lock().get(&sum).is_some_and(|owner| !owner.open)
                && let Err(error) = self.blob_is_unused(&latch)
            {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// The next few keys behind `after` whose values are wanted; after the last ones it is the turn of the first.
fn next_few<K: Copy + Ord, V>(
    all: &BTreeMap<K, V>,
    after: &mut Option<K>,
    wanted: impl Fn(&V) -> bool,
) -> Vec<K> {
    let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
    let rest = all.range((begin, Bound::Unbounded)).filter(|(_, value)| wanted(value));
    let few: Vec<K> = rest.map(|(key, _)| *key).take(SWEEP_BATCH).collect();
    *after = few.last().copied().filter(|_| few.len() == SWEEP_BATCH);
    few
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_their_turn_whoever_stays() {
        let all: BTreeMap<usize, bool> = (0..3 * SWEEP_BATCH).map(|key| (key, key % 3 > 0)).collect();
        let (mut seen, mut after) = (Vec::new(), None);
        for _ in 0..3 {
            seen.extend(next_few(&all, &mut after, |wanted| *wanted));
        }
        let wanted: Vec<usize> = all.iter().filter(|(_, wanted)| **wanted).map(|(key, _)| *key).collect();
        assert_eq!(seen[..wanted.len()], wanted);
        assert_eq!(seen.len(), wanted.len(), "the third round found the end");
        assert_eq!(
            next_few(&all, &mut after, |wanted| *wanted)[..9],
            wanted[..9],
            "and then it begins again"
        );
    }
}
