//! What a tree has to look like: a POSIX tree in memory, with the errors that Linux gives.

use std::collections::BTreeMap;

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags};

pub type Result<T> = std::result::Result<T, Errno>;

/// Identity of an inode; never used again.
pub type Id = usize;

pub const ROOT: Id = 0;

/// The moments between which something happened, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub low: i64,
    pub high: i64,
}

/// What is known of a time: that it lies in a span, or else is the one that was seen last.
///
/// A time that was looked at is known exactly, and does not move before something happens that moves it.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    span: Span,
    or: Option<i64>,
}

impl Stamp {
    pub fn at(time: i64) -> Stamp {
        Stamp { span: Span { low: time, high: time }, or: None }
    }

    pub fn within(span: Span) -> Stamp {
        Stamp { span, or: None }
    }

    /// Something happened in `span` that moves the time or does not.
    pub fn may_move(&mut self, span: Span) {
        if self.or.is_none() && self.span.low == self.span.high {
            self.or = Some(self.span.low);
            self.span = span;
        } else {
            self.span = Span { low: self.span.low.min(span.low), high: self.span.high.max(span.high) };
        }
    }

    /// Whether the time that is seen is one that it can be; it is exactly that from now on.
    pub fn check(&mut self, seen: i64) -> bool {
        let fits = (self.span.low..=self.span.high).contains(&seen) || self.or == Some(seen);
        if fits {
            *self = Stamp::at(seen);
        }
        fits
    }
}

#[derive(Clone, Debug)]
pub enum Kind {
    File(Vec<u8>),
    Directory(BTreeMap<String, Id>),
    Symlink(String),
}

#[derive(Clone, Debug)]
pub struct Inode {
    pub kind: Kind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub nlink: u64,
    pub xattrs: BTreeMap<&'static str, Vec<u8>>,
    pub mtime: Stamp,
    pub ctime: Stamp,
    /// Its number in the tree, once seen.
    pub number: Option<u64>,
}

impl Inode {
    fn new(kind: Kind, mode: u32, owner: (u32, u32), span: Span) -> Inode {
        let nlink = if matches!(kind, Kind::Directory(_)) { 2 } else { 1 };
        let (mtime, ctime) = (Stamp::within(span), Stamp::within(span));
        Inode { kind, mode, owner, nlink, xattrs: BTreeMap::new(), mtime, ctime, number: None }
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory(_))
    }

    /// The bytes of a regular file.
    pub fn bytes(&self) -> &Vec<u8> {
        match &self.kind {
            Kind::File(bytes) => bytes,
            other => panic!("the model takes {other:?} for a file"),
        }
    }

    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        match &mut self.kind {
            Kind::File(bytes) => bytes,
            other => panic!("the model takes {other:?} for a file"),
        }
    }

    /// Its bytes and everything of it changed.
    pub fn touch(&mut self, span: Span) {
        self.mtime = Stamp::within(span);
        self.ctime = Stamp::within(span);
    }

    /// Its bytes changed, or not.
    pub fn may_touch(&mut self, span: Span) {
        self.mtime.may_move(span);
        self.ctime.may_move(span);
    }

    /// Something but its bytes changed.
    pub fn change(&mut self, span: Span) {
        self.ctime = Stamp::within(span);
    }

    /// Writes bytes at an offset, with zeroes in between.
    pub fn write(&mut self, at: usize, bytes: &[u8], span: Span) {
        if bytes.is_empty() {
            return;
        }
        let old = self.bytes_mut();
        if old.len() < at + bytes.len() {
            old.resize(at + bytes.len(), 0);
        }
        old[at..at + bytes.len()].copy_from_slice(bytes);
        self.touch(span);
    }
}

/// The tree of one thread.
pub struct Reference {
    inodes: BTreeMap<Id, Inode>,
    next: Id,
    /// Whoever makes inodes.
    owner: (u32, u32),
}

impl Reference {
    /// An empty directory.
    pub fn new(owner: (u32, u32), span: Span) -> Reference {
        let root = Inode::new(Kind::Directory(BTreeMap::new()), 0o755, owner, span);
        Reference { inodes: BTreeMap::from([(ROOT, root)]), next: 1, owner }
    }

    pub fn inode(&self, id: Id) -> &Inode {
        &self.inodes[&id]
    }

    pub fn inode_mut(&mut self, id: Id) -> &mut Inode {
        self.inodes.get_mut(&id).unwrap()
    }

    fn entries(&self, id: Id) -> Result<&BTreeMap<String, Id>> {
        match &self.inode(id).kind {
            Kind::Directory(entries) => Ok(entries),
            Kind::File(_) => Err(Errno::ENOTDIR),
            // They all lead nowhere.
            Kind::Symlink(_) => Err(Errno::ENOENT),
        }
    }

    fn entries_mut(&mut self, id: Id, span: Span) -> &mut BTreeMap<String, Id> {
        let inode = self.inode_mut(id);
        inode.touch(span);
        match &mut inode.kind {
            Kind::Directory(entries) => entries,
            other => panic!("the model takes {other:?} for a directory"),
        }
    }

    /// Directory and last name of a path.
    pub fn parent<'a>(&self, path: &'a str) -> Result<(Id, &'a str)> {
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut at = ROOT;
        for part in parents.split('/').filter(|part| !part.is_empty()) {
            at = *self.entries(at)?.get(part).ok_or(Errno::ENOENT)?;
        }
        self.entries(at)?;
        Ok((at, name))
    }

    /// What a path names; a symbolic link is not followed.
    pub fn find(&self, path: &str) -> Result<Id> {
        if path.is_empty() {
            return Ok(ROOT);
        }
        let (parent, name) = self.parent(path)?;
        self.entries(parent)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// What a path leads to.
    pub fn follow(&self, path: &str) -> Result<Id> {
        let id = self.find(path)?;
        match self.inode(id).kind {
            Kind::Symlink(_) => Err(Errno::ENOENT),
            _ => Ok(id),
        }
    }

    /// The file that a path names, if it is one.
    pub fn file(&self, path: &str) -> Option<Id> {
        self.find(path).ok().filter(|id| matches!(self.inode(*id).kind, Kind::File(_)))
    }

    fn add(&mut self, parent: Id, name: &str, inode: Inode, span: Span) -> Id {
        let id = self.next;
        self.next += 1;
        if inode.is_directory() {
            self.inode_mut(parent).nlink += 1;
        }
        self.inodes.insert(id, inode);
        self.entries_mut(parent, span).insert(name.to_owned(), id);
        id
    }

    fn vacant<'a>(&self, path: &'a str) -> Result<(Id, &'a str)> {
        let (parent, name) = self.parent(path)?;
        if self.entries(parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        Ok((parent, name))
    }

    /// open(2) with O_NOFOLLOW.
    pub fn open(&mut self, path: &str, flags: OFlag, mode: u32, span: Span) -> Result<Id> {
        let (parent, name) = self.parent(path)?;
        let Some(id) = self.entries(parent)?.get(name).copied() else {
            if !flags.contains(OFlag::O_CREAT) {
                return Err(Errno::ENOENT);
            }
            let inode = Inode::new(Kind::File(Vec::new()), mode, self.owner, span);
            return Ok(self.add(parent, name, inode, span));
        };
        if flags.contains(OFlag::O_CREAT | OFlag::O_EXCL) {
            return Err(Errno::EEXIST);
        }
        let changes = flags.intersects(OFlag::O_WRONLY | OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC);
        match &self.inode(id).kind {
            Kind::Symlink(_) => return Err(Errno::ELOOP),
            Kind::Directory(_) if changes => return Err(Errno::EISDIR),
            _ => {}
        }
        if flags.contains(OFlag::O_TRUNC) {
            let inode = self.inode_mut(id);
            inode.bytes_mut().clear();
            inode.touch(span);
        }
        Ok(id)
    }

    pub fn mkdir(&mut self, path: &str, mode: u32, span: Span) -> Result<()> {
        let (parent, name) = self.vacant(path)?;
        let inode = Inode::new(Kind::Directory(BTreeMap::new()), mode, self.owner, span);
        self.add(parent, name, inode, span);
        Ok(())
    }

    pub fn symlink(&mut self, target: &str, path: &str, span: Span) -> Result<()> {
        let (parent, name) = self.vacant(path)?;
        let inode = Inode::new(Kind::Symlink(target.to_owned()), 0o777, self.owner, span);
        self.add(parent, name, inode, span);
        Ok(())
    }

    pub fn link(&mut self, from: &str, to: &str, span: Span) -> Result<()> {
        let id = self.find(from)?;
        let (parent, name) = self.vacant(to)?;
        if self.inode(id).is_directory() {
            return Err(Errno::EPERM);
        }
        self.entries_mut(parent, span).insert(name.to_owned(), id);
        let inode = self.inode_mut(id);
        inode.nlink += 1;
        inode.change(span);
        Ok(())
    }

    pub fn unlink(&mut self, path: &str, span: Span) -> Result<()> {
        let (id, (parent, name)) = (self.find(path)?, self.parent(path)?);
        if self.inode(id).is_directory() {
            return Err(Errno::EISDIR);
        }
        self.entries_mut(parent, span).remove(name);
        self.lose_name(id, span);
        Ok(())
    }

    pub fn rmdir(&mut self, path: &str, span: Span) -> Result<()> {
        let (id, (parent, name)) = (self.find(path)?, self.parent(path)?);
        match &self.inode(id).kind {
            Kind::Directory(entries) if entries.is_empty() => {}
            Kind::Directory(_) => return Err(Errno::ENOTEMPTY),
            _ => return Err(Errno::ENOTDIR),
        }
        self.entries_mut(parent, span).remove(name);
        self.inode_mut(parent).nlink -= 1;
        self.inode_mut(id).nlink = 0;
        Ok(())
    }

    fn lose_name(&mut self, id: Id, span: Span) {
        let inode = self.inode_mut(id);
        inode.nlink -= 1;
        inode.change(span);
    }

    /// Whether `below` is `above` or in it.
    fn is_within(&self, below: Id, above: Id) -> bool {
        below == above
            || self.entries(above).is_ok_and(|e| e.values().any(|child| self.is_within(below, *child)))
    }

    pub fn rename(&mut self, from: &str, to: &str, how: RenameFlags, span: Span) -> Result<()> {
        let (old_parent, old_name) = self.parent(from)?;
        let (new_parent, new_name) = self.parent(to)?;
        let exchange = how == RenameFlags::RENAME_EXCHANGE;
        let moved = *self.entries(old_parent)?.get(old_name).ok_or(Errno::ENOENT)?;
        let there = self.entries(new_parent)?.get(new_name).copied();
        match there {
            Some(_) if how == RenameFlags::RENAME_NOREPLACE => return Err(Errno::EEXIST),
            None if exchange => return Err(Errno::ENOENT),
            _ => {}
        }
        if self.inode(moved).is_directory() && self.is_within(new_parent, moved) {
            return Err(Errno::EINVAL);
        }
        if let Some(there) = there
            && self.inode(there).is_directory()
            && self.is_within(old_parent, there)
        {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if there == Some(moved) {
            return Ok(());
        }
        let is_directory = self.inode(moved).is_directory();
        let mut replaced_directory = false;
        if let (Some(there), false) = (there, exchange) {
            match (is_directory, &self.inode(there).kind) {
                (true, Kind::Directory(entries)) if !entries.is_empty() => return Err(Errno::ENOTEMPTY),
                (true, Kind::Directory(_)) => replaced_directory = true,
                (true, _) => return Err(Errno::ENOTDIR),
                (false, Kind::Directory(_)) => return Err(Errno::EISDIR),
                (false, _) => self.lose_name(there, span),
            }
        }
        self.entries_mut(old_parent, span).remove(old_name);
        self.entries_mut(new_parent, span).insert(new_name.to_owned(), moved);
        self.inode_mut(moved).change(span);
        let mut moves = vec![(moved, old_parent, new_parent)];
        if let (Some(there), true) = (there, exchange) {
            self.entries_mut(old_parent, span).insert(old_name.to_owned(), there);
            self.inode_mut(there).change(span);
            moves.push((there, new_parent, old_parent));
        }
        for (id, before, after) in moves {
            if self.inode(id).is_directory() {
                self.inode_mut(before).nlink -= 1;
                self.inode_mut(after).nlink += 1;
            }
        }
        if replaced_directory {
            self.inode_mut(new_parent).nlink -= 1;
        }
        Ok(())
    }

    /// A closed file of one name leaves for another tree.
    pub fn give_away(&mut self, path: &str, span: Span) -> Inode {
        let (id, (parent, name)) = (self.find(path).unwrap(), self.parent(path).unwrap());
        self.entries_mut(parent, span).remove(name);
        self.inodes.remove(&id).unwrap()
    }

    /// A file from another tree arrives, where nothing but a file may be.
    pub fn take_in(&mut self, path: &str, mut inode: Inode, span: Span) {
        inode.change(span);
        if self.file(path).is_some() {
            self.unlink(path, span).unwrap();
        }
        let (parent, name) = self.parent(path).unwrap();
        self.add(parent, name, inode, span);
    }

    /// Every path with what it names, directories before what is in them.
    pub fn walk(&self) -> Vec<(String, Id)> {
        let mut found = vec![(String::new(), ROOT)];
        let mut at = 0;
        while at < found.len() {
            let (path, id) = found[at].clone();
            if let Kind::Directory(entries) = &self.inode(id).kind {
                for (name, child) in entries {
                    let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                    found.push((below, *child));
                }
            }
            at += 1;
        }
        found
    }
}
