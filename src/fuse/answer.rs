//! Answers that several requests share, and what they have in common with the questions.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use fuser::{
    BackingId, Errno, FileAttr, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry,
    ReplyXattr, Request,
};
use tracing::Level;

use super::adapter::Adapter;
use super::convert::FOR_EVER;
use super::errno::{errno, level};
use crate::change::Ino;
use crate::text::chain;
use crate::vfs::attr::Attributes;
use crate::vfs::node::Token;
use crate::vfs::open::Opened;
use crate::vfs::{Caller, Error};

/// Inode numbers are never reused, so one generation does.
pub(super) const GENERATION: Generation = Generation(1);

impl Adapter {
    /// Logs a failure once, here at the edge, and gives its errno.
    pub(super) fn failed(&self, operation: &str, ino: Ino, error: &Error) -> Errno {
        let (errno, level) = (errno(error), level(error));
        if level == Level::DEBUG {
            tracing::debug!("{operation} of inode {ino}: {}", chain(error));
            return errno;
        }
        let Some(kept_back) = self.quiet.admit(i32::from(errno), ino, Instant::now()) else { return errno };
        let more =
            if kept_back > 0 { format!(" ({kept_back} like it were not told)") } else { String::new() };
        match level {
            Level::ERROR => tracing::error!("{operation} of inode {ino}: {}{more}", chain(error)),
            _ => tracing::warn!("{operation} of inode {ino}: {}{more}", chain(error)),
        }
        errno
    }

    pub(super) fn entry(
        &self,
        operation: &str,
        parent: Ino,
        found: Result<Attributes, Error>,
        reply: ReplyEntry,
    ) {
        match found {
            Ok(attributes) => {
                let (attr, ttl) = self.root.attr(&attributes);
                reply.entry_with_ttls(&ttl, &FOR_EVER, &attr, GENERATION);
            }
            Err(error) => reply.error(self.failed(operation, parent, &error)),
        }
    }

    pub(super) fn attr(&self, operation: &str, ino: Ino, found: Result<Attributes, Error>, reply: ReplyAttr) {
        match found {
            Ok(attributes) => {
                let (attr, ttl) = self.root.attr(&attributes);
                reply.attr(&ttl, &attr);
            }
            Err(error) => reply.error(self.failed(operation, ino, &error)),
        }
    }

    /// What changed names; where the mount asks for it, they are durable before this is answered.
    pub(super) fn named<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        let done = done?;
        if self.vfs.options().sync_names {
            self.vfs.sync_index()?;
        }
        Ok(done)
    }

    pub(super) fn empty(&self, operation: &str, ino: Ino, done: Result<(), Error>, reply: ReplyEmpty) {
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.failed(operation, ino, &error)),
        }
    }

    pub(super) fn xattr(
        &self,
        operation: &str,
        ino: Ino,
        size: u32,
        value: Result<Vec<u8>, Error>,
        reply: ReplyXattr,
    ) {
        match value {
            Ok(value) if size == 0 => reply.size(value.len() as u32),
            Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
            Ok(value) => reply.data(&value),
            Err(error) => reply.error(self.failed(operation, ino, &error)),
        }
    }
}

pub(super) fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

pub(super) fn token(id: BackingId) -> Token {
    Arc::new(id)
}

/// Flags for a file served through the kernel's page cache: the pages it has are right, since every change of the bytes
/// went through it, or emptied it on the way (a passthrough open does). Those that proved wrong are emptied here.
pub(super) fn cached(opened: &Opened) -> FopenFlags {
    let keep = if opened.keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
    keep | no_flush(opened)
}

pub(super) fn no_flush(opened: &Opened) -> FopenFlags {
    if opened.no_flush { FopenFlags::FOPEN_NOFLUSH } else { FopenFlags::empty() }
}

/// Cookies of `.` and `..`; those of entries are larger.
pub(super) const DOT: u64 = 1;
pub(super) const DOT_DOT: u64 = 2;

/// The two entries that every listing starts with.
pub(super) struct Dots(u64);

impl Dots {
    pub(super) fn from(offset: u64) -> Dots {
        Dots(offset)
    }

    pub(super) fn next(&mut self) -> Option<(u64, &'static str)> {
        self.0 = self.0.saturating_add(1);
        match self.0 {
            DOT => Some((DOT, ".")),
            DOT_DOT => Some((DOT_DOT, "..")),
            _ => None,
        }
    }
}

/// The answer "there is no such name", which the kernel keeps: node 0.
pub(super) fn nothing() -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}
