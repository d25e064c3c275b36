//! What each `Change` does to the tables.
//!
//! Everything here runs inside one write transaction. A precondition that does not hold is an error, and the whole commit is
//! rolled back. The same changes on equal indexes give equal indexes: nothing is taken from a clock or a counter of this
//! process.

use rusqlite::Connection;

use super::error::{Error, Result, Shown};
use super::{BlobRow, Change, Checksum, Cookie, Ino, Inode, Kind, LINK_MAX, Nanos, StagedRow, sql, tree};
use crate::change::FIRST_INO;

/// What the rest of the index must know about a commit.
#[derive(Default)]
pub(super) struct Effects {
    /// By how much each counter changes, in the order of the columns of `counter`.
    counts: [i64; 6],
    /// Inodes whose names changed: what was remembered about their place is void.
    pub moved: Vec<Ino>,
}

const LOGICAL: usize = 3;
const BLOBS: usize = 4;
const PHYSICAL: usize = 5;

/// Applies `changes` in order within the open transaction of `c`.
pub(super) fn apply(c: &Connection, changes: &[Change]) -> Result<Effects> {
    let mut commit = Commit { c, effects: Effects::default() };
    changes.iter().try_for_each(|change| commit.one(change))?;
    let effects = commit.effects;
    if effects.counts != [0; 6] {
        sql::add_counts(c, effects.counts)?;
    }
    Ok(effects)
}

/// Whether a commit only gives space back, so that it may use the reserve.
pub(super) fn releases(changes: &[Change]) -> bool {
    use Change::*;
    changes.iter().all(|c| matches!(c, Remove { .. } | Reap { .. } | Forget { .. } | Unstage { .. }))
}

struct Commit<'c> {
    c: &'c Connection,
    effects: Effects,
}

impl Commit<'_> {
    fn one(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::Create { parent, name, cookie, inode, target, xattrs } => {
                self.create((*parent, name), *cookie, inode, target.as_deref(), xattrs)
            }
            Change::Link { ino, parent, name, cookie, at } => self.link(*ino, (*parent, name), *cookie, *at),
            Change::Remove { parent, name, ino, at } => self.remove((*parent, name), *ino, *at),
            Change::Rename { parent, name, new_parent, new_name, cookie, ino, replaced, at } => {
                self.rename((*parent, name), *ino, (*new_parent, new_name), *replaced, *cookie, *at)
            }
            Change::Exchange { parent, name, ino, new_parent, new_name, new_ino, at } => {
                self.exchange((*parent, name), *ino, (*new_parent, new_name), *new_ino, *at)
            }
            Change::Attr { ino, mode, uid, gid, atime, mtime, ctime } => {
                found(*ino, sql::set_attributes(self.c, *ino, [*mode, *uid, *gid], [*atime, *mtime, *ctime])?)
            }
            Change::Xattr { ino, name, value, ctime } => self.xattr(*ino, name, value.as_deref(), *ctime),
            Change::Stage(row) => self.stage(row),
            Change::Unstage { ino } => sql::delete_staged(self.c, *ino),
            Change::Content { ino, checksum, size, blake3, mtime, ctime } => {
                self.content(*ino, checksum, *size, blake3.as_ref(), *mtime, *ctime)
            }
            Change::Reap { ino } => self.reap(*ino),
            Change::Digests { checksum, sha256, md5 } => {
                match sql::set_digests(self.c, checksum, sha256, md5)? {
                    true => Ok(()),
                    false => Err(no_blob(checksum)),
                }
            }
            Change::Forget { checksum } => self.forget(checksum),
            Change::Setting { repository, key, value } => self.setting(*repository, key, value.as_deref()),
        }
    }

    /// The links that the new inode says are not taken: they follow from its kind.
    fn create(
        &mut self,
        (parent, name): (Ino, &[u8]),
        cookie: Cookie,
        inode: &Inode,
        target: Option<&[u8]>,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<()> {
        well_formed(name)?;
        if inode.ino < FIRST_INO || i64::try_from(inode.ino).is_err() {
            return Err(invalid(format!("inode number {} is not one to give out", inode.ino)));
        }
        if target.is_some() != (inode.kind == Kind::Symlink) {
            return Err(invalid(format!("inode {}: a symlink, and nothing else, has a target", inode.ino)));
        }
        let directory = inode.kind == Kind::Directory;
        self.enter(parent, inode.ctime, i64::from(directory))?;
        self.name(parent, name, cookie, inode.ino)?;
        let nlink = if directory { 2 } else { 1 };
        sql::insert_inode(self.c, &Inode { nlink, ..inode.clone() })?;
        self.count(inode.kind, 1);
        if let Some(sum) = &inode.checksum {
            self.refer_known(inode, sum)?;
        }
        if let Some(target) = target {
            sql::insert_target(self.c, inode.ino, target)?;
        }
        xattrs.iter().try_for_each(|(name, value)| sql::set_xattr(self.c, inode.ino, name, value))
    }

    fn link(&mut self, ino: Ino, (parent, name): (Ino, &[u8]), cookie: Cookie, at: Nanos) -> Result<()> {
        well_formed(name)?;
        if !sql::add_name(self.c, ino, at, LINK_MAX)? {
            return Err(match sql::inode(self.c, ino)? {
                Some(i) if i.kind == Kind::Directory => {
                    invalid(format!("directory {ino} cannot have two names"))
                }
                Some(i) if i.nlink >= LINK_MAX => Error::TooManyLinks { ino },
                _ => Error::no_inode(ino),
            });
        }
        self.enter(parent, at, 0)?;
        self.name(parent, name, cookie, ino)?;
        self.effects.moved.push(ino);
        Ok(())
    }

    fn remove(&mut self, place: (Ino, &[u8]), ino: Ino, at: Nanos) -> Result<()> {
        let directory = self.unlink(place, ino, at)?;
        self.enter(place.0, at, -i64::from(directory))
    }

    fn rename(
        &mut self,
        from: (Ino, &[u8]),
        ino: Ino,
        to: (Ino, &[u8]),
        replaced: Option<Ino>,
        cookie: Cookie,
        at: Nanos,
    ) -> Result<()> {
        well_formed(to.1)?;
        movable(ino)?;
        self.expect(from, ino)?;
        let directory = self.touch(ino, at)? == Kind::Directory;
        if directory && from.0 != to.0 {
            self.no_loop(ino, to.0)?;
        }
        // Before the move, so that a directory is not replaced by its own last entry.
        let replaced_directory = match replaced {
            Some(other) => self.unlink(to, other, at)?,
            None if sql::dentry(self.c, to.0, to.1)?.is_some() => return Err(taken(to)),
            None => false,
        };
        if !sql::move_dentry(self.c, from, ino, to, cookie)? {
            return Err(self.not_there(from, ino)?);
        }
        self.effects.moved.push(ino);
        let (moved, lost) = (i64::from(directory), i64::from(replaced_directory));
        if from.0 == to.0 {
            return self.enter(from.0, at, -lost);
        }
        self.enter(from.0, at, -moved)?;
        self.enter(to.0, at, moved - lost)
    }

    fn exchange(
        &mut self,
        a: (Ino, &[u8]),
        ino: Ino,
        b: (Ino, &[u8]),
        new_ino: Ino,
        at: Nanos,
    ) -> Result<()> {
        movable(ino)?;
        movable(new_ino)?;
        self.expect(a, ino)?;
        self.expect(b, new_ino)?;
        let first = self.touch(ino, at)? == Kind::Directory;
        let second = self.touch(new_ino, at)? == Kind::Directory;
        if first && a.0 != b.0 {
            self.no_loop(ino, b.0)?;
        }
        if second && a.0 != b.0 {
            self.no_loop(new_ino, a.0)?;
        }
        sql::point_dentry(self.c, a.0, a.1, ino, new_ino)?;
        sql::point_dentry(self.c, b.0, b.1, new_ino, ino)?;
        self.effects.moved.extend([ino, new_ino]);
        let gain = i64::from(second) - i64::from(first);
        if a.0 == b.0 {
            return self.enter(a.0, at, 0);
        }
        self.enter(a.0, at, gain)?;
        self.enter(b.0, at, -gain)
    }

    fn xattr(&mut self, ino: Ino, name: &[u8], value: Option<&[u8]>, ctime: Nanos) -> Result<()> {
        self.touch(ino, ctime)?;
        match value {
            Some(value) => sql::set_xattr(self.c, ino, name, value),
            None => sql::delete_xattr(self.c, ino, name),
        }
    }

    fn stage(&mut self, row: &StagedRow) -> Result<()> {
        self.file(row.ino)?;
        sql::set_staged(self.c, row)
    }

    /// Setting the content an inode has already changes no count.
    fn content(
        &mut self,
        ino: Ino,
        sum: &Checksum,
        size: u64,
        blake3: Option<&[u8; 32]>,
        mtime: Nanos,
        ctime: Nanos,
    ) -> Result<()> {
        let (old_size, old) = self.file(ino)?;
        let more = i64::from(old != Some(*sum));
        match sql::add_refs(self.c, sum, more, blake3)? {
            Some((known, recorded)) => {
                if known != size || blake3.is_some_and(|b| recorded != Some(*b)) {
                    return Err(Error::Collision { checksum: *sum });
                }
            }
            None => {
                let (blake3, checksum) = (blake3.copied(), *sum);
                let blob = BlobRow { checksum, size, blake3, sha256: None, md5: None, refs: 1, since: ctime };
                sql::insert_blob(self.c, &blob)?;
                self.effects.counts[BLOBS] += 1;
                self.effects.counts[PHYSICAL] += size as i64;
            }
        }
        if let Some(old) = old {
            self.effects.counts[LOGICAL] -= old_size as i64;
            if old != *sum {
                sql::drop_ref(self.c, &old, ctime)?;
            }
        }
        self.effects.counts[LOGICAL] += size as i64;
        sql::set_content(self.c, ino, sum, size, mtime, ctime)?;
        sql::delete_staged(self.c, ino)
    }

    /// Its blob counts as unreferenced since the orphan lost its name.
    fn reap(&mut self, ino: Ino) -> Result<()> {
        if !sql::delete_orphan(self.c, ino)? {
            return Err(match sql::inode(self.c, ino)? {
                Some(_) => Error::Stale { what: format!("inode {ino} is no orphan") },
                None => Error::no_inode(ino),
            });
        }
        let ended = sql::delete_inode(self.c, ino)?.ok_or_else(|| Error::no_inode(ino))?;
        self.count(ended.kind, -1);
        sql::delete_xattrs(self.c, ino)?;
        match ended.kind {
            Kind::Symlink => sql::delete_target(self.c, ino)?,
            Kind::Directory => sql::delete_settings(self.c, ino)?,
            Kind::File => sql::delete_staged(self.c, ino)?,
            _ => {}
        }
        if let Some(sum) = ended.checksum {
            self.effects.counts[LOGICAL] -= ended.size as i64;
            sql::drop_ref(self.c, &sum, ended.ctime)?;
        }
        Ok(())
    }

    fn forget(&mut self, sum: &Checksum) -> Result<()> {
        if *sum == Checksum::EMPTY {
            return Err(invalid("the blob of no bytes is never forgotten".into()));
        }
        let Some(size) = sql::delete_blob(self.c, sum)? else {
            return Err(match sql::blob(self.c, sum)? {
                Some(blob) => Error::Stale { what: format!("blob {sum} has {} references", blob.refs) },
                None => no_blob(sum),
            });
        };
        self.effects.counts[BLOBS] -= 1;
        self.effects.counts[PHYSICAL] -= size as i64;
        Ok(())
    }

    fn setting(&mut self, repository: Ino, key: &str, value: Option<&str>) -> Result<()> {
        match sql::content(self.c, repository)? {
            Some((Kind::Directory, ..)) => {}
            Some(_) => {
                return Err(invalid(format!("inode {repository} is no directory, settings belong to one")));
            }
            None => return Err(Error::no_inode(repository)),
        }
        match value {
            Some(value) => sql::set_setting(self.c, repository, key, value),
            None => sql::delete_setting(self.c, repository, key),
        }
    }

    // What several changes share.

    /// Times of a directory whose entries change, and its subdirectories. A removed one takes no names.
    fn enter(&self, parent: Ino, at: Nanos, subdirectories: i64) -> Result<()> {
        if sql::touch_directory(self.c, parent, at, subdirectories, LINK_MAX)? {
            return Ok(());
        }
        Err(match sql::inode(self.c, parent)? {
            Some(i) if i.kind == Kind::Directory && i.nlink > 0 => Error::TooManyLinks { ino: parent },
            Some(i) if i.kind != Kind::Directory => invalid(format!("inode {parent} is no directory")),
            _ => Error::NotFound { what: format!("directory {parent}") },
        })
    }

    fn name(&self, parent: Ino, name: &[u8], cookie: Cookie, ino: Ino) -> Result<()> {
        match sql::insert_dentry(self.c, parent, name, cookie, ino)? {
            true => Ok(()),
            false => Err(taken((parent, name))),
        }
    }

    /// Takes a name from an inode, which becomes an orphan with the last; whether it is a directory.
    fn unlink(&mut self, place: (Ino, &[u8]), ino: Ino, at: Nanos) -> Result<bool> {
        movable(ino)?;
        if !sql::delete_dentry(self.c, place.0, place.1, ino)? {
            return Err(self.not_there(place, ino)?);
        }
        let (kind, left) = sql::drop_name(self.c, ino, at)?.ok_or_else(|| Error::no_inode(ino))?;
        let directory = kind == Kind::Directory;
        if directory && sql::has_entries(self.c, ino)? {
            return Err(Error::NotEmpty { ino });
        }
        if left == 0 {
            sql::insert_orphan(self.c, ino)?;
        }
        self.effects.moved.push(ino);
        Ok(directory)
    }

    fn expect(&self, place: (Ino, &[u8]), ino: Ino) -> Result<()> {
        match sql::dentry(self.c, place.0, place.1)? {
            Some(there) if there == ino => Ok(()),
            _ => Err(self.not_there(place, ino)?),
        }
    }

    /// Why a name does not stand for `ino`.
    fn not_there(&self, (parent, name): (Ino, &[u8]), ino: Ino) -> Result<Error> {
        let what = format!("name {} in directory {parent}", Shown(name));
        Ok(match sql::dentry(self.c, parent, name)? {
            Some(other) => Error::Stale { what: format!("{what} stands for inode {other}, not for {ino}") },
            None => Error::NotFound { what },
        })
    }

    fn touch(&self, ino: Ino, at: Nanos) -> Result<Kind> {
        sql::touch(self.c, ino, at)?.ok_or_else(|| Error::no_inode(ino))
    }

    /// Size and content of a regular file.
    fn file(&self, ino: Ino) -> Result<(u64, Option<Checksum>)> {
        match sql::content(self.c, ino)? {
            Some((Kind::File, size, sum)) => Ok((size, sum)),
            Some(_) => Err(invalid(format!("inode {ino} is no regular file, it has no content"))),
            None => Err(Error::no_inode(ino)),
        }
    }

    fn no_loop(&self, ino: Ino, into: Ino) -> Result<()> {
        match tree::is_below(self.c, into, ino)? {
            true => Err(Error::Loop { ino, into }),
            false => Ok(()),
        }
    }

    /// A new file that begins with the content of a blob.
    fn refer_known(&mut self, inode: &Inode, sum: &Checksum) -> Result<()> {
        if inode.kind != Kind::File {
            return Err(invalid(format!("inode {} is no regular file, it has no content", inode.ino)));
        }
        let (size, _) = sql::add_refs(self.c, sum, 1, None)?.ok_or_else(|| no_blob(sum))?;
        if size != inode.size {
            return Err(invalid(format!("inode {} has size {}, its blob {size}", inode.ino, inode.size)));
        }
        self.effects.counts[LOGICAL] += size as i64;
        Ok(())
    }

    fn count(&mut self, kind: Kind, by: i64) {
        let counter = match kind {
            Kind::File => 0,
            Kind::Directory => 1,
            _ => 2,
        };
        self.effects.counts[counter] += by;
    }
}

fn found(ino: Ino, there: bool) -> Result<()> {
    if there { Ok(()) } else { Err(Error::no_inode(ino)) }
}

/// The root and the reserved directories keep their names.
fn movable(ino: Ino) -> Result<()> {
    if ino >= FIRST_INO {
        Ok(())
    } else {
        Err(invalid(format!("inode {ino} is reserved, its name is fixed")))
    }
}

fn well_formed(name: &[u8]) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > 255
        || name == b"."
        || name == b".."
        || name.iter().any(|b| matches!(b, b'/' | 0));
    if bad { Err(invalid(format!("{} is no name", Shown(name)))) } else { Ok(()) }
}

fn taken((parent, name): (Ino, &[u8])) -> Error {
    Error::Exists { parent, name: name.to_vec() }
}

fn no_blob(sum: &Checksum) -> Error {
    Error::NotFound { what: format!("blob {sum}") }
}

fn invalid(what: String) -> Error {
    Error::Invalid { what }
}
