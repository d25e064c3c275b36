//! Extended attributes, those that the file system makes up among them.

use crate::change::{Change, Ino, Kind};
use crate::vfs::caller::S_ISGID;
use crate::vfs::{Caller, Error, Result, Vfs, acl, now};

/// Attributes with this prefix are made up: read-only, not listed, and setting them does nothing.
pub const MADE_UP: &[u8] = b"user.depotfs.";

/// Whether this is one of them, for which bytes may have to be read.
pub fn is_made_up(name: &[u8]) -> bool {
    name.starts_with(MADE_UP)
}

/// Longest value, as elsewhere in Linux.
const VALUE_BYTES_MAX: usize = 65_536;
/// Longest name.
const NAME_BYTES_MAX: usize = 255;

/// Whether setxattr(2) may make or replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetMode {
    /// Either.
    Any,
    /// Only make.
    Create,
    /// Only replace.
    Replace,
    /// Neither: both were forbidden at once, so one of them stands in the way.
    Neither,
}

impl Vfs {
    /// Value of an attribute.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if let Some(which) = name.strip_prefix(MADE_UP) {
            return self.made_up_xattr(ino, which);
        }
        self.check_name(name)?;
        self.index.xattr(ino, name)?.ok_or(Error::NoAttribute)
    }

    /// Names of all attributes but the made-up ones; those in `trusted.` only for the privileged.
    pub fn list_xattrs(&self, caller: &Caller, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut names = self.index.xattr_names(ino)?;
        let is_trusted = |name: &Vec<u8>| name.starts_with(b"trusted.");
        if names.iter().any(is_trusted) && !caller.is_administrator() {
            names.retain(|name| !is_trusted(name));
        }
        Ok(names)
    }

    /// Sets an attribute.
    pub fn set_xattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: SetMode,
    ) -> Result<()> {
        if name.starts_with(MADE_UP) {
            return Ok(());
        }
        self.check_name(name)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(Error::TooBig);
        }
        let inode = self.inode(ino)?;
        let there = self.index.xattr(ino, name)?.is_some();
        match mode {
            SetMode::Create | SetMode::Neither if there => return Err(Error::Exists),
            SetMode::Replace | SetMode::Neither if !there => return Err(Error::NoAttribute),
            _ => {}
        }
        let at = now();
        let mut changes = Vec::with_capacity(2);
        let mut stored = Some(value.to_vec());
        if name == acl::ACCESS {
            let (bits, list) = acl::set_access(value)?;
            let mut mode = inode.mode & !0o777 | bits;
            if mode & S_ISGID != 0 && !caller.in_group(inode.gid) && !caller.keeps_set_id_bits() {
                mode &= !S_ISGID;
            }
            let (ino, mode, ctime) = (inode.ino, Some(mode), Some(at));
            changes.push(Change::Attr { ino, mode, uid: None, gid: None, atime: None, mtime: None, ctime });
            stored = list;
        } else if name == acl::DEFAULT {
            if inode.kind != Kind::Directory {
                return Err(Error::NotPermitted("only a directory has a default list"));
            }
            stored = Some(acl::set_default(value)?);
        }
        if stored.is_some() || there {
            changes.push(Change::Xattr { ino, name: name.to_vec(), value: stored, ctime: at });
        }
        self.commit(&changes)?;
        Ok(())
    }

    /// Removes an attribute.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        if name.starts_with(MADE_UP) {
            return Ok(());
        }
        self.check_name(name)?;
        if self.index.xattr(ino, name)?.is_none() {
            // Removing a list that the permission bits say wholly is no error.
            return if name == acl::ACCESS || name == acl::DEFAULT {
                Ok(())
            } else {
                Err(Error::NoAttribute)
            };
        }
        self.commit(&[Change::Xattr { ino, name: name.to_vec(), value: None, ctime: now() }])?;
        Ok(())
    }

    fn check_name(&self, name: &[u8]) -> Result<()> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Error::Range);
        }
        let spaces: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];
        match spaces.iter().find(|space| name.starts_with(space)) {
            Some(space) if name.len() == space.len() => Err(Error::Invalid("an attribute without a name")),
            Some(_) => Ok(()),
            None => {
                Err(Error::Unsupported("attributes outside user, trusted, security and access control lists"))
            }
        }
    }
}
