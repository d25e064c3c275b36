//! Paths: from an inode up to the root, from the root down to an inode, and to the repository that holds it.

use std::collections::HashMap;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::error::{Error, Result};
use super::{Ino, Inode, sql};
use crate::change::ROOT;

/// No path is deeper, by far; more steps mean that a damaged index has a cycle.
const DEPTH_MAX: usize = 1 << 20;

/// Inodes remembered at most, about 4 MB.
const REMEMBERED_MAX: usize = 1 << 17;

/// From the root of the tree, without a leading slash; `None` for what has no name, or lies below what has none.
pub(super) fn path(c: &Connection, ino: Ino) -> Result<Option<Vec<u8>>> {
    if ino == ROOT {
        return Ok(Some(Vec::new()));
    }
    match sql::parent(c, ino)? {
        Some((parent, name)) => path_of(c, parent, &name),
        None => Ok(None),
    }
}

/// The path of a name in a directory.
pub(super) fn path_of(c: &Connection, directory: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut names = vec![name.to_vec()];
    let mut at = directory;
    while at != ROOT {
        let Some((parent, name)) = sql::parent(c, at)? else { return Ok(None) };
        names.push(name);
        at = parent;
        if names.len() > DEPTH_MAX {
            return Err(cycle(c, at));
        }
    }
    names.reverse();
    Ok(Some(names.join(&b'/')))
}

/// What a path from the root stands for; extra slashes do not matter, symlinks are not followed.
pub(super) fn resolve(c: &Connection, path: &[u8]) -> Result<Option<Inode>> {
    let mut at = sql::inode(c, ROOT)?;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        let Some(directory) = at else { return Ok(None) };
        at = sql::lookup(c, directory.ino, name)?;
    }
    Ok(at)
}

/// Whether directory `ino` is `top` or lies below it.
pub(super) fn is_below(c: &Connection, ino: Ino, top: Ino) -> Result<bool> {
    let mut at = ino;
    for _ in 0..DEPTH_MAX {
        if at == top {
            return Ok(true);
        }
        match sql::parent(c, at)? {
            Some((parent, _)) => at = parent,
            None => return Ok(false),
        }
    }
    Err(cycle(c, ino))
}

fn cycle(c: &Connection, ino: Ino) -> Error {
    Error::damaged(c, format!("directory {ino} lies below itself; run `depotfs check`"))
}

/// Which inode lies in which directory, as far as it was asked: finding a repository costs no SQL for an inode seen before.
///
/// A commit that changes the place of an inode voids what is known of it *after* it is visible. Whoever read the old place
/// and comes to remember it later finds the generation changed, and does not.
#[derive(Default)]
pub(super) struct Places {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    parents: HashMap<Ino, Ino>,
    generation: u64,
}

impl Places {
    /// Forgets the places of `moved`.
    pub fn void(&self, moved: &[Ino]) {
        if moved.is_empty() {
            return;
        }
        let mut known = self.known.lock();
        known.generation += 1;
        for ino in moved {
            known.parents.remove(ino);
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut known = self.known.lock();
        known.generation += 1;
        known.parents.clear();
    }

    /// The directory below the root that holds `ino`, or is it; `read` asks the index for a parent.
    pub fn repository(&self, ino: Ino, read: impl Fn(Ino) -> Result<Option<Ino>>) -> Result<Option<Ino>> {
        let mut at = ino;
        for _ in 0..DEPTH_MAX {
            if at == ROOT {
                return Ok(None);
            }
            let Some(parent) = self.parent(at, &read)? else { return Ok(None) };
            if parent == ROOT {
                return Ok(Some(at));
            }
            at = parent;
        }
        Ok(None)
    }

    fn parent(&self, ino: Ino, read: impl Fn(Ino) -> Result<Option<Ino>>) -> Result<Option<Ino>> {
        let generation = {
            let known = self.known.lock();
            if let Some(parent) = known.parents.get(&ino) {
                return Ok(Some(*parent));
            }
            known.generation
        };
        let parent = read(ino)?;
        if let Some(parent) = parent {
            let mut known = self.known.lock();
            if known.generation == generation {
                if known.parents.len() >= REMEMBERED_MAX {
                    known.parents.clear();
                }
                known.parents.insert(ino, parent);
            }
        }
        Ok(parent)
    }
}
