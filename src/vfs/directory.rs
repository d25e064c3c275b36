//! mkdir(2), mknod(2), symlink(2), link(2), readdir(3).

use crate::change::{Change, Cookie, Ino, Inode, Kind, ROOT};
use crate::checksum::Checksum;
use crate::vfs::acl;
use crate::vfs::attr::Attributes;
use crate::vfs::caller::S_ISGID;
use crate::vfs::{Caller, Error, Result, Vfs, check_new_name, is_reserved, now};

/// Longest target of a symbolic link, as elsewhere in Linux.
const TARGET_BYTES_MAX: usize = 4095;

/// Entries of a page read from the index at a time.
const PAGE: usize = 256;

/// Extended attributes of a new inode: names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One line of a listing.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Where the listing resumes after it.
    pub cookie: Cookie,
    /// The name.
    pub name: Vec<u8>,
    /// What stat(2) shows of it.
    pub attributes: Attributes,
}

impl Vfs {
    /// A new inode of `kind` as a new entry of `parent` would be: owner, permission bits and inherited lists.
    pub(super) fn new_inode(
        &self,
        caller: &Caller,
        parent: Ino,
        kind: Kind,
        mode: u32,
        umask: u32,
    ) -> Result<(Inode, Xattrs)> {
        let directory = self.index.inode(parent)?.ok_or(Error::Stale(parent))?;
        if directory.kind != Kind::Directory {
            return Err(Error::NotDirectory);
        }
        if directory.nlink == 0 {
            return Err(Error::NotFound);
        }
        let mut mode = mode & 0o7777;
        let mut xattrs = Vec::new();
        match self.index.xattr(parent, acl::DEFAULT)?.filter(|_| kind != Kind::Symlink) {
            Some(default) => {
                let (bits, access) = acl::inherit(&default, mode)?;
                mode = bits;
                xattrs.extend(access.map(|access| (acl::ACCESS.to_vec(), access)));
                if kind == Kind::Directory {
                    xattrs.push((acl::DEFAULT.to_vec(), default));
                }
            }
            None => mode &= !(umask & 0o777),
        }
        let mut gid = caller.gid;
        if directory.mode & S_ISGID != 0 {
            gid = directory.gid;
            if kind == Kind::Directory {
                mode |= S_ISGID;
            }
        }
        let at = now();
        let nlink = if kind == Kind::Directory { 2 } else { 1 };
        let ino = self.index.next_number()?;
        let (uid, times) = (caller.uid, (at, at, at, at));
        let (atime, mtime, ctime, btime) = times;
        let inode = Inode {
            ino,
            kind,
            mode,
            uid,
            gid,
            rdev: 0,
            nlink,
            size: 0,
            checksum: None,
            atime,
            mtime,
            ctime,
            btime,
        };
        Ok((inode, xattrs))
    }

    fn make(
        &self,
        parent: Ino,
        name: &[u8],
        inode: Inode,
        target: Option<Vec<u8>>,
        xattrs: Xattrs,
    ) -> Result<Attributes> {
        let cookie = self.index.next_number()?;
        let create =
            Change::Create { parent, name: name.to_vec(), cookie, inode: inode.clone(), target, xattrs };
        self.commit(&[create])?;
        Ok(Attributes { inode, blocks: 0, stable: true })
    }

    /// A new directory; at the top of the tree, a new repository.
    pub fn make_directory(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> Result<Attributes> {
        check_new_name(parent, name)?;
        let (inode, xattrs) = self.new_inode(caller, parent, Kind::Directory, mode & 0o1777, umask)?;
        self.make(parent, name, inode, None, xattrs)
    }

    /// A new empty file, FIFO, socket or device node.
    pub fn make_node(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        (kind, rdev): (Kind, u32),
        mode: u32,
        umask: u32,
    ) -> Result<Attributes> {
        refuse_at_top(parent)?;
        check_new_name(parent, name)?;
        let (mut inode, xattrs) = self.new_inode(caller, parent, kind, mode, umask)?;
        match kind {
            Kind::File => inode.checksum = Some(Checksum::EMPTY),
            Kind::CharDevice | Kind::BlockDevice => inode.rdev = rdev,
            Kind::Fifo | Kind::Socket => {}
            Kind::Directory | Kind::Symlink => return Err(Error::Invalid("mknod of a directory or link")),
        }
        self.make(parent, name, inode, None, xattrs)
    }

    /// A new symbolic link.
    pub fn make_symlink(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attributes> {
        refuse_at_top(parent)?;
        check_new_name(parent, name)?;
        if target.len() > TARGET_BYTES_MAX {
            return Err(Error::NameTooLong);
        }
        let (mut inode, _) = self.new_inode(caller, parent, Kind::Symlink, 0o777, 0)?;
        inode.size = target.len() as u64;
        self.make(parent, name, inode, Some(target.to_vec()), Vec::new())
    }

    /// A further name of a file, in its own repository.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attributes> {
        refuse_at_top(parent)?;
        check_new_name(parent, name)?;
        let node = self.node_to_name(ino)?;
        let inode = self.inode(ino)?;
        if inode.kind == Kind::Directory {
            return Err(Error::NotPermitted("a directory has one name"));
        }
        if inode.nlink == 0 {
            return Err(Error::NotFound);
        }
        if self.index.repository(ino)? != self.index.repository(parent)? {
            return Err(Error::CrossRepository);
        }
        let cookie = self.index.next_number()?;
        self.commit(&[Change::Link { ino, parent, name: name.to_vec(), cookie, at: now() }])?;
        drop(node);
        self.attributes(ino)
    }

    /// Entries of directory `dir` after `cookie`, in the order of their cookies, until `take` says no.
    ///
    /// What was there all the time is listed exactly once, wherever the listing was resumed.
    pub fn list(&self, dir: Ino, mut after: Cookie, mut take: impl FnMut(&Listed) -> bool) -> Result<()> {
        let mut limit = PAGE / 4;
        loop {
            let ended = self.ended();
            let page = self.index.list(dir, after, limit)?;
            let last = page.len() < limit;
            limit = PAGE;
            for entry in page {
                after = entry.cookie;
                if dir == ROOT && is_reserved(entry.inode.ino) {
                    continue;
                }
                let attributes = match self.decorate(entry.inode, ended) {
                    // Removed since the page was read.
                    Err(Error::Stale(_)) => continue,
                    other => other?,
                };
                if !take(&Listed { cookie: entry.cookie, name: entry.name, attributes }) {
                    return Ok(());
                }
            }
            if last {
                return Ok(());
            }
        }
    }
}

/// Only directories stand at the top of the tree.
pub(super) fn refuse_at_top(parent: Ino) -> Result<()> {
    if parent == ROOT {
        return Err(Error::NotPermitted(
            "only directories stand at the top of the tree: they are the repositories",
        ));
    }
    Ok(())
}
