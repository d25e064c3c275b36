//! unlink(2), rmdir(2), and the end of what nobody can reach any more.

use crate::change::{Change, Ino, Kind, ROOT};
use crate::failpoint;
use crate::vfs::node::Locked;
use crate::vfs::{Error, Result, Vfs, is_reserved, now};

/// Orphans ended in one commit.
const REAP_BATCH: usize = 256;

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
        let mut node = self.nodes.lock(ino);
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

    /// Sets aside bytes that could not be sealed, before the rows that name them go.
    fn keep_failed(&self, nodes: &[Locked<'_>]) -> Result<()> {
        for node in nodes {
            let Some(staged) = &node.staged else { continue };
            if let Some(why) = &staged.row.failed {
                self.set_aside(staged.row.file, &format!("inode {}, removed since: {why}", node.ino()))?;
                // A crash here leaves an orphan whose bytes are set aside.
                failpoint::hit("reap.kept");
            }
        }
        Ok(())
    }

    /// Ends orphans that are closed and forgotten; the answer is how many. A job does this.
    pub fn reap(&self) -> Result<usize> {
        let mut ended = 0;
        let mut later = Vec::new();
        loop {
            let batch: Vec<Ino> = {
                let mut reapable = self.reapable.lock();
                let keep = reapable.len().saturating_sub(REAP_BATCH);
                reapable.split_off(keep)
            };
            if batch.is_empty() {
                self.reapable.lock().extend(later);
                return Ok(ended);
            }
            let mut nodes = Vec::with_capacity(batch.len());
            let mut sorted = batch.clone();
            sorted.sort_unstable();
            sorted.dedup();
            for ino in sorted {
                let Some(node) = self.nodes.existing(ino) else { continue };
                if node.putting {
                    // Not waited for with other nodes locked; the next round finds it again.
                    later.push(ino);
                } else if node.orphan && node.opens == 0 {
                    nodes.push(node);
                }
            }
            let changes: Vec<Change> = nodes.iter().map(|node| Change::Reap { ino: node.ino() }).collect();
            if changes.is_empty() {
                continue;
            }
            self.keep_failed(&nodes)?;
            let seq = match self.commit(&changes) {
                Ok(seq) => seq,
                Err(error) => {
                    self.reapable.lock().extend(batch);
                    return Err(error);
                }
            };
            // A crash here leaves nothing of the inode but its staging file, which no row names.
            failpoint::hit("reap.committed");
            ended += nodes.len();
            for node in &mut nodes {
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
    }
}
