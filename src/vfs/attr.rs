//! stat(2), chmod(2), chown(2), truncate(2), utimensat(2), statfs(2), and times of last read.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::change::{Change, Ino, Inode, Kind, Nanos, RESERVED, ROOT};
use crate::failpoint;
use crate::filestore::{Reach, Space};
use crate::sys::lease::read_lease;
use crate::vfs::acl;
use crate::vfs::caller::{has_set_id_bits, without_set_id_bits};
use crate::vfs::descriptors::Reader;
use crate::vfs::node::{Held, Locked, Source, Staged};
use crate::vfs::stage::{Prepared, UNTOUCHED};
use crate::vfs::{Caller, Error, Result, Vfs, now};

/// What stat(2) shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode with the size and times of its newest version.
    pub inode: Inode,
    /// Of 512 bytes.
    pub blocks: u64,
    /// Whether nothing but a request can change them, so that the kernel may keep them.
    pub stable: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This.
    At(Nanos),
}

/// What to set; `None` leaves a thing alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttributes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of the bytes.
    pub mtime: Option<SetTime>,
}

fn held(ino: Ino) -> Error {
    Error::io(format!("wait for who has inode {ino}"))(io::ErrorKind::TimedOut.into())
}

/// Largest file: the kernel's offsets are signed.
const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// After this time since the last read, a further read is noted even if the bytes did not change: a day, as relatime has it.
const ATIME_AGE_MAX: Nanos = 24 * 3600 * 1_000_000_000;

/// How many times of last read wait to be written before they are written early.
const ATIMES_MAX: usize = 65_536;

/// How long who looks at a file waits for its node, where somebody may hold it until a server answers.
const LOOK_LONGEST: Duration = Duration::from_secs(5);

impl Vfs {
    /// What stat(2) shows of an inode.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes> {
        let node = self.node_to_look_at(ino)?;
        let inode = self.inode(ino)?;
        self.attributes_of(node.as_ref(), inode)
    }

    /// The node of a file that is looked at, if it has one.
    fn node_to_look_at(&self, ino: Ino) -> Result<Option<Locked<'_>>> {
        match self.store.reach() {
            Reach::Network => {
                self.nodes.try_existing(ino, Instant::now() + LOOK_LONGEST).map_err(|Held| held(ino))
            }
            _ => Ok(self.nodes.existing(ino)),
        }
    }

    /// The node of a file of which a name changes.
    pub(super) fn node_to_name(&self, ino: Ino) -> Result<Locked<'_>> {
        match self.store.reach() {
            Reach::Network => {
                self.nodes.lock_until(ino, Instant::now() + LOOK_LONGEST).map_err(|Held| held(ino))
            }
            _ => Ok(self.nodes.lock(ino)),
        }
    }

    /// How many staged versions have ended so far, for `decorate`.
    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    /// As `attributes`, of an inode row that was read after `ended` was.
    pub(super) fn decorate(&self, inode: Inode, ended: u64) -> Result<Attributes> {
        if inode.kind != Kind::File {
            return self.attributes_of(None, inode);
        }
        match self.node_to_look_at(inode.ino)? {
            // The row may have been read before a seal that has ended since.
            Some(node) => {
                let inode = self.inode(inode.ino)?;
                self.attributes_of(Some(&node), inode)
            }
            None if self.ended() != ended => self.attributes(inode.ino),
            None => self.attributes_of(None, inode),
        }
    }

    fn attributes_of(&self, node: Option<&Locked<'_>>, mut inode: Inode) -> Result<Attributes> {
        if inode.ino == ROOT {
            // The reserved directories are not listed, so they do not count either.
            inode.nlink = inode.nlink.saturating_sub(RESERVED.len() as u32);
        }
        if let Some(at) = self.atimes.lock().get(&inode.ino) {
            inode.atime = *at;
        }
        if let Some((node, staged)) = node.and_then(|node| Some((node, node.staged.as_ref()?))) {
            let version = self.staged_version(node, &inode, staged)?;
            let (size, mtime, ctime) = (version.size, version.mtime, version.ctime);
            // As its seal is going to show it, unless it has holes.
            let settled = version.blocks * 512 >= size && self.is_at_rest(node, staged);
            return Ok(Attributes {
                inode: Inode { size, mtime, ctime, ..inode },
                blocks: if settled { size.div_ceil(512) } else { version.blocks },
                stable: settled,
            });
        }
        let blocks = if inode.kind == Kind::File { inode.size.div_ceil(512) } else { 0 };
        Ok(Attributes { inode, blocks, stable: true })
    }

    /// Whether nobody can write a staged version before the next open: it is Closed, and no mapping outlived the close. What
    /// cannot be told, for want of a descriptor perhaps, is not so.
    fn is_at_rest(&self, node: &Locked<'_>, staged: &Staged) -> bool {
        if staged.closed.is_none() || node.writers > 0 || node.clone.is_some() || staged.row.failed.is_some()
        {
            return false;
        }
        // Nobody who looks at a file opens it on a disk that may hang.
        if self.store.reach() == Reach::Network {
            return false;
        }
        let Ok(reader) = self.reader(Source::Staging(staged.row.file), 0) else { return false };
        let Reader::Staging(file) = &*reader else { return false };
        read_lease(file).is_ok_and(|lease| lease.is_some())
    }

    /// Sets attributes; the answer is what stat(2) shows then.
    pub fn set_attributes(&self, caller: &Caller, ino: Ino, set: &SetAttributes) -> Result<Attributes> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        if super::is_reserved(ino) && ino != crate::change::LOST_FOUND {
            return Err(Error::NotPermitted("a reserved directory"));
        }
        let mut prepared = match set.size {
            Some(size) => self.prepare(ino, size)?,
            None => self.copy_ahead(ino).map(|()| Prepared::default())?,
        };
        let done = self.past_latches(|| self.set_attributes_with(caller, ino, set, &mut prepared));
        self.drop_prepared(prepared);
        done
    }

    fn set_attributes_with(
        &self,
        caller: &Caller,
        ino: Ino,
        set: &SetAttributes,
        prepared: &mut Prepared,
    ) -> Result<Attributes> {
        let mut node = self.nodes.lock(ino);
        node.settle();
        let inode = self.inode(ino)?;
        if let Some(size) = set.size {
            self.truncate(caller, &mut node, &inode, size, prepared)?;
        }
        let inode = if set.size.is_some() { self.inode(ino)? } else { inode };
        self.set_rest(&mut node, &inode, set)?;
        let inode = self.inode(ino)?;
        self.attributes_of(Some(&node), inode)
    }

    /// "Clear setuid and setgid": the kernel's way of saying that somebody without the privilege wrote.
    pub fn clear_set_id_bits(&self, ino: Ino) -> Result<Attributes> {
        let node = self.nodes.lock(ino);
        let inode = self.inode(ino)?;
        if has_set_id_bits(&inode) {
            self.drop_set_id_bits(&inode)?;
        }
        let inode = self.inode(ino)?;
        self.attributes_of(Some(&node), inode)
    }

    fn set_rest(&self, node: &mut Locked<'_>, inode: &Inode, set: &SetAttributes) -> Result<()> {
        let at = now();
        let time = |time: SetTime| match time {
            SetTime::Now => at,
            SetTime::At(at) => at,
        };
        let (atime, mtime) = (set.atime.map(time), set.mtime.map(time));
        let owner = set.uid.is_some() || set.gid.is_some();
        let mut mode = set.mode.map(|mode| mode & 0o7777);
        if owner && inode.kind != Kind::Directory && mode.is_none() && has_set_id_bits(inode) {
            mode = Some(without_set_id_bits(inode.mode));
        }
        if mode.is_none() && !owner && atime.is_none() && mtime.is_none() {
            return Ok(());
        }
        let mut changes = Vec::with_capacity(3);
        if let (Some(mode), false) = (mode, inode.kind == Kind::Symlink) {
            self.follow_mode_in_acl(inode, mode, at, &mut changes)?;
        }
        if atime.is_some() {
            self.atimes.lock().remove(&inode.ino);
        }
        let (uid, gid) = (set.uid, set.gid);
        let mut touched = None;
        let mut staged_row = None;
        self.materialise(node)?;
        match &mut node.staged {
            Some(staged) => {
                let file = self.store.open_staging(staged.row.file)?;
                let what = || Error::io(format!("read the time of staging file {}", staged.row.file));
                let written = file.stat().map_err(what())?.mtime;
                let mut row = staged.row.clone();
                if written != UNTOUCHED {
                    staged.fresh = true;
                    row.mtime = written;
                }
                if let Some(mtime) = mtime {
                    row.mtime = mtime;
                    touched = Some(file);
                }
                row.ctime = at;
                changes.push(Change::Attr {
                    ino: inode.ino,
                    mode,
                    uid,
                    gid,
                    atime,
                    mtime: None,
                    ctime: Some(at),
                });
                if mtime.is_some() {
                    // A write that lands between the look above and the setting below is not seen by its time.
                    staged.fresh = true;
                    changes.push(Change::Stage(row.clone()));
                    staged_row = Some(row);
                }
            }
            None => {
                changes.push(Change::Attr { ino: inode.ino, mode, uid, gid, atime, mtime, ctime: Some(at) })
            }
        }
        self.commit(&changes)?;
        if let (Some(staged), Some(row)) = (&mut node.staged, staged_row) {
            staged.row = row;
        }
        if let Some(file) = touched {
            crate::sys::content::set_mtime(&file, UNTOUCHED)
                .map_err(Error::io("set the time of a staging file"))?;
        }
        Ok(())
    }

    fn truncate(
        &self,
        caller: &Caller,
        node: &mut Locked<'_>,
        inode: &Inode,
        size: u64,
        prepared: &mut Prepared,
    ) -> Result<()> {
        match inode.kind {
            Kind::File => {}
            Kind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::Invalid("only a file has a size to set")),
        }
        if size > FILE_BYTES_MAX {
            return Err(Error::Invalid("a size beyond what a file can have"));
        }
        self.make_dirty_with(node, size, prepared)?;
        let Some(staged) = &node.staged else { return Err(Error::Stale(inode.ino)) };
        let name = staged.row.file;
        let done = self.store.open_staging_writer(name).map_err(Error::from).and_then(|writer| {
            writer.set_len(size).map_err(Error::io(format!("set the size of inode {}", inode.ino)))
        });
        if node.writers == 0 {
            self.close_staged(node);
        }
        done?;
        // A crash here leaves the new size, answered or not.
        failpoint::hit("resize.done");
        if has_set_id_bits(inode) && !caller.keeps_set_id_bits() {
            self.drop_set_id_bits(inode)?;
        }
        Ok(())
    }

    fn follow_mode_in_acl(
        &self,
        inode: &Inode,
        mode: u32,
        at: Nanos,
        changes: &mut Vec<Change>,
    ) -> Result<()> {
        let Some(old) = self.index.xattr(inode.ino, acl::ACCESS)? else { return Ok(()) };
        let value = acl::with_mode(&old, mode)?;
        changes.push(Change::Xattr {
            ino: inode.ino,
            name: acl::ACCESS.to_vec(),
            value: Some(value),
            ctime: at,
        });
        Ok(())
    }

    /// relatime, judged when a file is opened for reading.
    pub(super) fn note_read(&self, inode: &Inode) {
        if self.options.noatime || self.options.read_only {
            return;
        }
        let at = now();
        let mut atimes = self.atimes.lock();
        let last = *atimes.get(&inode.ino).unwrap_or(&inode.atime);
        if (last <= inode.mtime.max(inode.ctime) || at - last > ATIME_AGE_MAX) && atimes.len() < ATIMES_MAX {
            atimes.insert(inode.ino, at);
        }
    }

    /// Writes the times of last read that wait for it; a job does this.
    pub fn write_atimes(&self) -> Result<()> {
        let batch: Vec<(Ino, Nanos)> = self.atimes.lock().iter().map(|(ino, at)| (*ino, *at)).collect();
        for part in batch.chunks(512) {
            let change = |(ino, at): &(Ino, Nanos)| {
                let (ino, atime) = (*ino, Some(*at));
                Change::Attr { ino, mode: None, uid: None, gid: None, atime, mtime: None, ctime: None }
            };
            // An inode may have ended meanwhile, which fails the commit: then one by one.
            if self.commit(&part.iter().map(change).collect::<Vec<_>>()).is_err() {
                for one in part {
                    match self.commit(&[change(one)]) {
                        Ok(_) | Err(Error::Index(crate::index::Error::NotFound { .. })) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            let mut atimes = self.atimes.lock();
            for (ino, at) in part {
                if atimes.get(ino) == Some(at) {
                    atimes.remove(ino);
                }
            }
        }
        Ok(())
    }

    /// Numbers of statfs(2): the room of the disk that holds the blobs, for bytes and for inodes.
    pub fn space(&self) -> Space {
        // A filestore that does not know, or does not answer, is shown as full rather than as endless.
        self.store.free_space().unwrap_or_default()
    }
}
