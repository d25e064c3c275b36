//! unlink(2), rmdir(2), and the end of what nobody can reach any more.

use crate::change::{Change, Ino, Kind, ROOT};
use crate::failpoint;
use crate::index::Seq;
use crate::vfs::node::Locked;
use crate::vfs::{Error, Result, Vfs, is_reserved, now};

/// Orphans ended in one commit.
const REAP_BATCH: usize = 256;

/// What became of the orphans that could be ended.
#[derive(Default)]
struct Reaped {
    ended: usize,
    /// Those for the next round.
    later: Vec<Ino>,
    /// The first of what went wrong.
    failure: Option<Error>,
}

impl Reaped {
    /// What a step brought; when it failed, the orphans it was about are for the next round, and the others go on.
    fn unless_failed<T>(&mut self, inos: &[Ino], step: Result<T>) -> Option<T> {
        step.map_err(|error| {
            self.later.extend(inos);
            self.failure.get_or_insert(error);
        })
        .ok()
    }
}

impl Vfs {
    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let inode = self.index.lookup(parent, name)?.ok_or(Error::NotFound)?;
        if inode.kind == Kind::Directory {
            return Err(Error::IsDirectory);
        }
        self.remove(parent, name, inode.ino)
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let inode = self.index.lookup(parent, name)?.ok_or(Error::NotFound)?;
        if inode.kind != Kind::Directory {
            return Err(Error::NotDirectory);
        }
        if is_reserved(inode.ino) {
            return Err(Error::NotPermitted("a reserved directory"));
        }
        self.remove(parent, name, inode.ino)
    }

    fn remove(&self, parent: Ino, name: &[u8], ino: Ino) -> Result<()> {
        // Whether a name is the last is decided under the node's lock, as names are added.
        let mut node = self.node_to_name(ino)?;
        let inode = self.inode(ino)?;
        self.commit(&[Change::Remove { parent, name: name.to_vec(), ino, at: now() }])?;
        // A crash here leaves no name, and an orphan if it was the last one, which recovery ends.
        failpoint::hit("remove.committed");
        if inode.kind == Kind::Directory || inode.nlink == 1 {
            self.orphaned(&mut node);
        }
        if parent == ROOT {
            self.forget_settings();
        }
        Ok(())
    }

    /// The last name of a locked inode is gone: it is not sealed any more, and ends when it is closed and forgotten.
    pub(super) fn orphaned(&self, node: &mut Locked<'_>) {
        node.orphan = true;
        node.forgotten = false;
        if let Some(sealing) = node.sealing.take() {
            sealing.cancel();
        }
        if let Some(staged) = &mut node.staged {
            self.uncount(staged);
        }
        self.atimes.lock().remove(&node.ino());
    }

    /// The kernel remembers this inode no more.
    pub fn forget(&self, ino: Ino) {
        if let Some(mut node) = self.nodes.existing(ino) {
            node.forgotten = true;
            if node.orphan && node.opens == 0 {
                self.reapable.lock().push(ino);
            }
        }
    }

    /// Whether orphans wait to be ended.
    pub fn has_reapable(&self) -> bool {
        !self.reapable.lock().is_empty()
    }

    /// Sets aside bytes that could not be sealed, before the row that names them goes.
    fn keep_failed(&self, node: &Locked<'_>) -> Result<()> {
        let Some(staged) = &node.staged else { return Ok(()) };
        if let Some(why) = &staged.row.failed {
            self.set_aside(staged.row.file, &format!("inode {}, removed since: {why}", node.ino()))?;
            // A crash here leaves an orphan whose bytes are set aside.
            failpoint::hit("reap.kept");
        }
        Ok(())
    }

    /// Ends orphans that are closed and forgotten; the answer is how many. A job does this.
    pub fn reap(&self) -> Result<usize> {
        let mut reaped = Reaped::default();
        loop {
            let batch = self.next_reapable();
            if batch.is_empty() {
                break;
            }
            self.reap_batch(batch, &mut reaped);
        }
        self.reapable.lock().extend(reaped.later);
        reaped.failure.map_or(Ok(reaped.ended), Err)
    }

    /// Takes some of those that can be ended.
    fn next_reapable(&self) -> Vec<Ino> {
        let mut reapable = self.reapable.lock();
        let keep = reapable.len().saturating_sub(REAP_BATCH);
        let mut batch = reapable.split_off(keep);
        batch.sort_unstable();
        batch.dedup();
        batch
    }

    /// Ends those of `batch`, which is in order, that can be ended now.
    fn reap_batch(&self, batch: Vec<Ino>, reaped: &mut Reaped) {
        let mut nodes = Vec::with_capacity(batch.len());
        let held = self.nodes.sweep(batch, |node| {
            if node.putting {
                // Not waited for with other nodes locked.
                reaped.later.push(node.ino());
            } else if node.orphan && node.opens == 0 {
                nodes.push(node);
            }
        });
        reaped.later.extend(held);
        nodes.retain(|node| reaped.unless_failed(&[node.ino()], self.keep_failed(node)).is_some());
        if nodes.is_empty() {
            return;
        }
        let inos: Vec<Ino> = nodes.iter().map(Locked::ino).collect();
        let changes: Vec<Change> = inos.iter().map(|ino| Change::Reap { ino: *ino }).collect();
        let Some(seq) = reaped.unless_failed(&inos, self.commit(&changes)) else { return };
        // A crash here leaves nothing of the inode but its staging file, which no row names.
        failpoint::hit("reap.committed");
        reaped.ended += nodes.len();
        nodes.iter_mut().for_each(|node| self.end_orphan(node, seq));
    }

    /// Forgets an inode that is no more since the commit `seq`.
    fn end_orphan(&self, node: &mut Locked<'_>, seq: Seq) {
        node.orphan = false;
        if let Some(mut staged) = node.staged.take() {
            self.end_staged(&mut staged);
            if staged.row.failed.is_none() {
                self.retire(seq, staged.row.file);
            }
        }
        if let Some(clone) = node.clone.take() {
            self.retire(seq, clone.file);
        }
    }
}
