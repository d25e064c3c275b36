//! From names to inodes.

use crate::change::{Ino, Kind, ROOT};
use crate::vfs::attr::Attributes;
use crate::vfs::{Error, NAME_BYTES_MAX, Result, Vfs};

impl Vfs {
    /// What `name` in directory `parent` is; `.` and `..` are asked for by NFS servers.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attributes>> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Error::NameTooLong);
        }
        let ended = self.ended();
        let inode = match name {
            b"." => self.index.inode(parent)?,
            b".." => self.index.inode(self.parent_of(parent)?)?,
            _ => self.index.lookup(parent, name)?,
        };
        inode.map(|inode| self.decorate(inode, ended)).transpose()
    }

    /// The directory that holds directory `ino`; the root holds itself.
    pub fn parent_of(&self, ino: Ino) -> Result<Ino> {
        if ino == ROOT || ino == self.options.subdir {
            return Ok(ino);
        }
        Ok(self.index.parent(ino)?.ok_or(Error::Stale(ino))?.0)
    }

    /// Target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.index.target(ino)? {
            Some(target) => Ok(target),
            None if self.inode(ino)?.kind == Kind::Symlink => Err(Error::Stale(ino)),
            None => Err(Error::Invalid("not a symbolic link")),
        }
    }
}
