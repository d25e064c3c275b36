//! The second half of a seal: hashed files are put under their names and committed, a batch at a time.
//!
//! Between `put` and the commit the nodes are marked `putting` and writers wait, readers do not. What was not put stays
//! Closed; bytes that can never be stored under their name are marked as failed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::change::Change;
use crate::checksum::{Checksum, Digest};
use crate::failpoint;
use crate::filestore::{self, Latch, Staged as ToPut};
use crate::sys::lease::is_unused;
use crate::vfs::node::{Locked, Serving, Source};
use crate::vfs::owners::Owner;
use crate::vfs::seal::{Hashed, postpone};
use crate::vfs::{Error, GoOn, Result, Vfs, now};

/// Whether bytes can be stored under their name.
enum Put {
    Now,
    /// It was told to end before it knew.
    Later,
    /// They cannot, and why.
    Never(String),
}

impl Vfs {
    /// Puts and commits a batch; files that cannot be sealed for good are marked, the rest stay Closed on failure.
    ///
    /// All nodes are marked before the first latch is taken: whoever holds a node that is not marked may wait for a latch.
    pub(super) fn put_and_commit(
        &self,
        batch: Vec<Hashed>,
        go_on: GoOn<'_>,
        failure: &mut Option<Error>,
    ) -> usize {
        let mut by_sum: BTreeMap<Checksum, Vec<Hashed>> = BTreeMap::new();
        for mut one in batch {
            if self.begin_put(&mut one) {
                by_sum.entry(one.found.digest.checksum).or_default().push(one);
            }
        }
        let latches = self.store.latch_all(by_sum.keys().copied());
        let mut accepted: Vec<Hashed> = Vec::new();
        for (latch, (sum, files)) in latches.iter().zip(by_sum) {
            let first = accepted.len();
            for one in files {
                let verdict = match accepted.get(first) {
                    Some(twin) if twin.found.digest != one.found.digest => Ok(Put::Never(collision(&sum))),
                    _ => self.clear_for_put(latch, &one.found.digest, go_on),
                };
                match verdict {
                    Ok(Put::Now) => accepted.push(one),
                    Ok(Put::Later) => self.abandon(&one),
                    Ok(Put::Never(why)) => self.fail_seal(one.ino, &why),
                    Err(error) => {
                        self.abandon(&one);
                        failure.get_or_insert(error);
                    }
                }
            }
        }
        match (self.put_accepted(&latches, &accepted), accepted.as_slice()) {
            (Ok(()), all) => all.len(),
            // That a file's bytes could not be forced is told by the second try, and has to be recorded at once.
            (Err(error), [one]) if matches!(&error, Error::Store(error) if error.is_transient()) => {
                self.not_put(one, error, failure);
                0
            }
            (Err(error), _) => self.put_singly(&latches, accepted, error, go_on, failure),
        }
    }

    /// One of a batch may be what failed: the others must not wait for it for ever. When nobody answers all of them fail, each
    /// after a long time in which nobody can write their files: then the first that does is the last.
    fn put_singly(
        &self,
        latches: &[Latch<'_>],
        mut accepted: Vec<Hashed>,
        error: Error,
        go_on: GoOn<'_>,
        failure: &mut Option<Error>,
    ) -> usize {
        // Another one each time, so that one that always fails is not always before the same others.
        let first = now() as usize % accepted.len();
        accepted.rotate_left(first);
        let (mut sealed, mut left) = (0, accepted.iter());
        while go_on()
            && let Some(one) = left.next()
        {
            match self.put_accepted(latches, std::slice::from_ref(one)) {
                Ok(()) => sealed += 1,
                Err(error) => {
                    if self.not_put(one, error, failure) {
                        break;
                    }
                }
            }
        }
        if !left.as_slice().is_empty() {
            failure.get_or_insert(error);
        }
        left.for_each(|one| self.abandon(one));
        sealed
    }

    /// A file could not be put; whether that of others would fail as well.
    fn not_put(&self, one: &Hashed, error: Error, failure: &mut Option<Error>) -> bool {
        if let Error::Store(error @ filestore::Error::Unforced { .. }) = &error {
            self.fail_seal(one.ino, &error.to_string());
            return false;
        }
        let away = matches!(&error, Error::Store(error) if error.is_transient());
        self.abandon(one);
        failure.get_or_insert(error);
        away
    }

    fn put_accepted(&self, latches: &[Latch<'_>], accepted: &[Hashed]) -> Result<()> {
        if accepted.is_empty() {
            return Ok(());
        }
        let to_put: Vec<(Checksum, ToPut)> = accepted
            .iter()
            .filter(|one| one.found.digest.size > 0)
            .map(|one| (one.found.digest.checksum, ToPut { name: one.file, size: one.found.digest.size }))
            .collect();
        failpoint::hit("seal.marked");
        self.store.put(&to_put)?;
        // A crash here leaves the file Closed, its staging file linked as a blob that the index does not know.
        failpoint::hit("seal.put");
        let changes: Vec<Change> = accepted
            .iter()
            .map(|one| Change::Content {
                ino: one.ino,
                checksum: one.found.digest.checksum,
                size: one.found.digest.size,
                blake3: Some(one.found.digest.blake3),
                mtime: one.found.mtime,
                ctime: one.found.ctime,
            })
            .collect();
        let seq = self.commit(&changes)?;
        // A crash here leaves the file Sealed, and a second name of the blob in `_pre/`, which goes.
        failpoint::hit("seal.committed");
        for one in accepted {
            self.end_put(latches, one, seq);
        }
        Ok(())
    }

    /// Marks a file as being put; false when a writer came first.
    fn begin_put(&self, one: &mut Hashed) -> bool {
        if one.sealing.is_cancelled() {
            return false;
        }
        let Some(mut node) = self.nodes.existing(one.ino) else { return false };
        let ours = node.sealing.as_ref().is_some_and(|sealing| Arc::ptr_eq(sealing, &one.sealing));
        if !ours {
            return false;
        }
        let current = node.staged.as_ref().is_some_and(|s| s.row.file == one.file && s.closed.is_some());
        if one.sealing.is_cancelled() || !current || node.writers > 0 || node.orphan {
            one.sealing.cancel();
            node.sealing = None;
            return false;
        }
        // Times set while it waited for the rest of its batch are part of the version.
        let version = self.inode(one.ino).and_then(|inode| match &node.staged {
            Some(staged) => self.staged_version(&node, &inode, staged),
            None => Err(Error::Stale(one.ino)),
        });
        match version {
            Ok(version) => (one.found.mtime, one.found.ctime) = (version.mtime, version.ctime),
            Err(_) => {
                one.sealing.cancel();
                node.sealing = None;
                return false;
            }
        }
        node.putting = true;
        node.sealing = None;
        // From here on nobody can open it for writing, and the mode change of the put needs no lease.
        one.sealing.cancel();
        true
    }

    fn end_put(&self, latches: &[Latch<'_>], one: &Hashed, seq: u64) {
        let Some(mut node) = self.nodes.existing(one.ino) else { return };
        if let Some(mut staged) = node.staged.take() {
            self.end_staged(&mut staged);
        }
        let served = match &node.serving {
            Serving::Passthrough(backing) => backing.source == Source::Staging(one.file),
            _ => false,
        };
        // A mapping may have been made and its descriptor closed while the file was hashed.
        let unopened = one.unopened_since == Some(node.opened);
        let used = || {
            let used_now =
                || self.store.open_staging(one.file).is_ok_and(|file| !is_unused(file).unwrap_or(false));
            one.found.used || !unopened && used_now()
        };
        let used = served || self.passthrough() && used();
        let latch = latches.iter().find(|latch| *latch.checksum() == one.found.digest.checksum);
        let owned = used && latch.is_some_and(|latch| self.own_if_blob(&mut node, latch, one));
        if used && !served && !owned {
            self.leave(one.ino, one.file);
        } else if !served {
            self.retire_sealed(seq, one.file);
        }
        self.queue_digests(one.found.digest.checksum);
        self.damaged.lock().remove(&one.found.digest.checksum);
        node.settled();
    }

    /// A staging file that is in use and has become the blob's own file must not serve another inode; whether it has.
    fn own_if_blob(&self, node: &mut Locked<'_>, latch: &Latch<'_>, one: &Hashed) -> bool {
        let file = match self.store.stat_staging(one.file) {
            Ok(stat) if stat.links > 1 => stat.file_id,
            _ => return false,
        };
        let mut open = false;
        if let Serving::Passthrough(backing) = &mut node.serving {
            backing.owns = Some(*latch.checksum());
            open = true;
        }
        let taken =
            self.owners.lock().get(latch.checksum()).is_some_and(|owner| owner.open && owner.ino != one.ino);
        if !taken {
            self.own(latch, Owner { ino: one.ino, file, open });
        }
        true
    }

    /// A file whose put did not happen stays Closed and is tried again later.
    fn abandon(&self, one: &Hashed) {
        one.sealing.cancel();
        if let Some(mut node) = self.nodes.existing(one.ino) {
            node.sealing = None;
            postpone(&mut node);
            node.settled();
        }
    }

    /// Why these bytes cannot be stored under their name, as far as the index knows; `None` when they can.
    pub(super) fn collides(&self, digest: &Digest) -> Result<Option<String>> {
        let known = self.index.blob(&digest.checksum)?.and_then(|row| Some((row.size, row.blake3?)));
        Ok(known.filter(|known| *known != (digest.size, digest.blake3)).map(|_| collision(&digest.checksum)))
    }

    /// As `collides`, before a put. Where the index cannot tell (a blob that was adopted and never read, or left behind by
    /// a put that was not committed), the stored bytes do; what is not what its name says makes room.
    fn clear_for_put(&self, latch: &Latch<'_>, digest: &Digest, go_on: GoOn<'_>) -> Result<Put> {
        let sum = &digest.checksum;
        let row = self.index.blob(sum)?;
        if row.as_ref().is_some_and(|row| row.blake3.is_some()) {
            return Ok(self.collides(digest)?.map_or(Put::Now, Put::Never));
        }
        // What no row names may be put over: a provider that is far away need not be asked.
        let stands = if row.is_some() { self.store.stat_blob(sum) } else { self.store.stat_at_hand(sum) };
        let size = match stands {
            // A copy that cannot be looked at is of a put that was not committed: what is put now stands beside it.
            Ok(None) | Err(filestore::Error::Away { .. }) => return Ok(Put::Now),
            Ok(Some(size)) => size,
            Err(error) => return Err(error.into()),
        };
        let blob = self.store.open_blob(sum, size)?;
        let what = Error::io(format!("read blob {sum}"));
        match blob.digest(go_on).map_err(what)? {
            None => Ok(Put::Later),
            Some(found) if found == *digest => Ok(Put::Now),
            Some(found) if found.checksum == *sum => Ok(Put::Never(collision(sum))),
            Some(_) => {
                self.store.remove_blob(latch)?;
                // On a read-only shard it stays, and would be read in the place of what is put.
                match self.store.stat_at_hand(sum) {
                    Ok(Some(_)) => Err(filestore::Error::Altered(*sum).into()),
                    _ => Ok(Put::Now),
                }
            }
        }
    }
}

pub(super) fn collision(sum: &Checksum) -> String {
    format!("another content with the checksum {sum} is stored already (a collision)")
}
