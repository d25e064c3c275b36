//! Operations on names, and on what an inode has beside its bytes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, renameat2};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::truncate;

use super::operations::Op;
use super::reference::{Id, Kind, Result, Stamp};
use super::world::{Outcome, World, agree, errno, timed};
use crate::sys;

impl World<'_> {
    pub fn on_name(&mut self, op: &Op) -> Outcome {
        let at = |path: &str| self.path(path);
        let (seen, expected) = match op {
            Op::Rename { from, to, how } => {
                let (seen, span) = timed(|| renameat2(AT_FDCWD, &at(from), AT_FDCWD, &at(to), *how));
                (seen, self.reference.rename(from, to, *how, span))
            }
            Op::Unlink { path } => {
                let (seen, span) = timed(|| fs::remove_file(at(path)).map_err(errno));
                (seen, self.reference.unlink(path, span))
            }
            Op::Link { from, to } => {
                let (seen, span) = timed(|| fs::hard_link(at(from), at(to)).map_err(errno));
                (seen, self.reference.link(from, to, span))
            }
            Op::Symlink { path, target } => {
                let (seen, span) = timed(|| std::os::unix::fs::symlink(target, at(path)).map_err(errno));
                (seen, self.reference.symlink(target, path, span))
            }
            Op::Mkdir { path, mode } => {
                use std::os::unix::fs::DirBuilderExt;
                let (seen, span) =
                    timed(|| fs::DirBuilder::new().mode(*mode).create(at(path)).map_err(errno));
                (seen, self.reference.mkdir(path, *mode, span))
            }
            Op::Rmdir { path } => {
                let (seen, span) = timed(|| fs::remove_dir(at(path)).map_err(errno));
                (seen, self.reference.rmdir(path, span))
            }
            other => panic!("{other:?} is not of a name"),
        };
        agree(seen, expected).map(drop)
    }

    pub fn on_inode(&mut self, op: &Op) -> Outcome {
        let at = |path: &str| self.path(path);
        match op {
            Op::Chmod { path, mode } => {
                // A directory that its owner cannot enter would stop everything below.
                let directory =
                    self.reference.follow(path).is_ok_and(|id| self.reference.inode(id).is_directory());
                let mode = if directory { mode | 0o700 } else { *mode };
                let set = || fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).map_err(errno);
                let (seen, span) = timed(set);
                if let Some(((), id)) = agree(seen, self.reference.follow(path))? {
                    let inode = self.reference.inode_mut(id);
                    inode.mode = mode;
                    inode.change(span);
                }
            }
            Op::Chown { path, uid, gid } => {
                if self.tree.mode.is_user() {
                    return Ok(());
                }
                let set = || std::os::unix::fs::lchown(at(path), Some(*uid), Some(*gid)).map_err(errno);
                let (seen, span) = timed(set);
                if let Some(((), id)) = agree(seen, self.reference.find(path))? {
                    let inode = self.reference.inode_mut(id);
                    inode.owner = (*uid, *gid);
                    inode.change(span);
                }
            }
            Op::SetTimes { path, atime, mtime } => {
                let spec = |t: i64| TimeSpec::new(t / 1_000_000_000, t % 1_000_000_000);
                let set = || {
                    utimensat(
                        AT_FDCWD,
                        &at(path),
                        &spec(*atime),
                        &spec(*mtime),
                        UtimensatFlags::NoFollowSymlink,
                    )
                };
                let (seen, span) = timed(set);
                if let Some(((), id)) = agree(seen, self.reference.find(path))? {
                    let inode = self.reference.inode_mut(id);
                    inode.mtime = Stamp::at(*mtime);
                    inode.change(span);
                    return self.has_atime(path, *atime);
                }
            }
            Op::Truncate { path, len } => {
                let (seen, span) = timed(|| truncate(&at(path), *len as i64));
                let expected =
                    self.reference.follow(path).and_then(|id| match self.reference.inode(id).kind {
                        Kind::Directory(_) => Err(Errno::EISDIR),
                        _ => Ok(id),
                    });
                if let Some(((), id)) = agree(seen, expected)? {
                    let inode = self.reference.inode_mut(id);
                    // To the same size, some move the times and some do not.
                    if inode.bytes().len() == *len {
                        inode.may_touch(span)
                    } else {
                        inode.touch(span)
                    }
                    inode.bytes_mut().resize(*len, 0);
                }
            }
            Op::SetXattr { path, name, value } => {
                let (seen, span) = timed(|| sys::setxattr(at(path), name, value.get(), 0));
                if let Some(((), id)) = agree(seen, self.with_xattrs(path))? {
                    let inode = self.reference.inode_mut(id);
                    // To the same value, some move the time and some do not.
                    match inode.xattrs.insert(name, value.get().to_vec()) {
                        Some(old) if old == value.get() => inode.ctime.may_move(span),
                        _ => inode.change(span),
                    }
                }
            }
            Op::RemoveXattr { path, name } => {
                let (seen, span) = timed(|| sys::removexattr(at(path), name));
                let expected = self.with_xattrs(path).and_then(|id| {
                    let there = self.reference.inode(id).xattrs.contains_key(name);
                    if there { Ok(id) } else { Err(Errno::ENODATA) }
                });
                if let Some(((), id)) = agree(seen, expected)? {
                    let inode = self.reference.inode_mut(id);
                    inode.xattrs.remove(name);
                    inode.change(span);
                }
            }
            other => panic!("{other:?} is not of an inode"),
        }
        Ok(())
    }

    fn with_xattrs(&self, path: &str) -> Result<Id> {
        self.reference.find(path).and_then(|id| match self.reference.inode(id).kind {
            Kind::Symlink(_) => Err(Errno::EPERM),
            _ => Ok(id),
        })
    }
}
