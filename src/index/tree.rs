//! Paths: from an inode up to the root, from the root down to an inode, and to the repository that holds it.

use std::collections::HashMap;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::error::{Error, Result};
use super::{Ino, Inode, sql};
use crate::change::ROOT;

/// Finds that a way up goes in a circle, within a few rounds of it: every so often it remembers a place, after twice as many
/// steps the next one (Brent's algorithm). Only a damaged index has such a way.
struct Circle {
    remembered: Ino,
    steps: usize,
    until: usize,
}

impl Circle {
    fn from(start: Ino) -> Circle {
        Circle { remembered: start, steps: 0, until: 1 }
    }

    /// The way goes on to `at`; whether it was there before.
    fn closes_at(&mut self, at: Ino) -> bool {
        if at == self.remembered {
            return true;
        }
        self.steps += 1;
        if self.steps == self.until {
            *self = Circle { remembered: at, steps: 0, until: self.until * 2 };
        }
        false
    }
}

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
    let (mut at, mut circle) = (directory, Circle::from(directory));
    while at != ROOT {
        let Some((parent, name)) = sql::parent(c, at)? else { return Ok(None) };
        names.push(name);
        at = parent;
        if circle.closes_at(at) {
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
    let (mut at, mut circle) = (ino, Circle::from(ino));
    while at != top {
        match sql::parent(c, at)? {
            Some((parent, _)) => at = parent,
            None => return Ok(false),
        }
        if circle.closes_at(at) {
            return Err(cycle(c, at));
        }
    }
    Ok(true)
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
        let (mut at, mut circle) = (ino, Circle::from(ino));
        while at != ROOT {
            let Some(parent) = self.parent(at, &read)? else { return Ok(None) };
            if parent == ROOT {
                return Ok(Some(at));
            }
            at = parent;
            if circle.closes_at(at) {
                return Ok(None);
            }
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
