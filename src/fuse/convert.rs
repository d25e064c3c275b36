//! Between the kernel's terms and those of the tree.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, INodeNo, OpenAccMode, OpenFlags, TimeOrNow};

use crate::change::{Ino, Kind, Nanos, ROOT};
use crate::clock;
use crate::vfs::attr::{Attributes, SetTime};
use crate::vfs::open::{Access, Opened};

/// How long the kernel keeps what only requests can change.
pub const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long it keeps what may change without one.
pub const NOT_AT_ALL: Duration = Duration::ZERO;

/// Preferred size of reads and writes, as stat(2) tells it.
const BLOCK_BYTES: u32 = 4096;

/// Which inode is the root of this mount: the kernel calls it 1.
#[derive(Clone, Copy, Debug)]
pub struct Root(pub Ino);

impl Root {
    /// The inode behind the kernel's node id.
    pub fn ino(self, node: INodeNo) -> Ino {
        if node.0 == ROOT { self.0 } else { node.0 }
    }

    /// The kernel's node id of an inode.
    pub fn node(self, ino: Ino) -> INodeNo {
        INodeNo(if ino == self.0 { ROOT } else { ino })
    }

    /// What stat(2) shows, as the kernel wants it, and how long it may keep it.
    pub fn attr(self, attributes: &Attributes) -> (FileAttr, Duration) {
        let inode = &attributes.inode;
        let attr = FileAttr {
            ino: self.node(inode.ino),
            size: inode.size,
            blocks: attributes.blocks,
            atime: time(inode.atime),
            mtime: time(inode.mtime),
            ctime: time(inode.ctime),
            crtime: time(inode.btime),
            kind: file_type(inode.kind),
            perm: inode.mode as u16,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            blksize: BLOCK_BYTES,
            flags: 0,
        };
        (attr, if attributes.stable { FOR_EVER } else { NOT_AT_ALL })
    }
}

/// The kernel's word for a kind.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind in the type bits of a mode.
pub fn kind(mode: u32) -> Option<Kind> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Kind::File,
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFLNK => Kind::Symlink,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFCHR => Kind::CharDevice,
        libc::S_IFBLK => Kind::BlockDevice,
        _ => return None,
    })
}

fn time(at: Nanos) -> SystemTime {
    let length = Duration::from_nanos(at.unsigned_abs());
    if at >= 0 { UNIX_EPOCH + length } else { UNIX_EPOCH - length }
}

/// A time to set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(from_fuser(at)),
    }
}

/// What flags of open(2) ask for.
pub fn access(flags: i32) -> Access {
    let mode = OpenFlags(flags).acc_mode();
    Access {
        read: mode != OpenAccMode::O_WRONLY,
        write: mode != OpenAccMode::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        exclusive: flags & libc::O_EXCL != 0,
        sync: flags & libc::O_DSYNC != 0,
        noatime: flags & libc::O_NOATIME != 0,
        execute: flags & FMODE_EXEC != 0,
    }
}

/// `fuser` 0.18 takes seconds before 1970 and nanoseconds after them for two parts of one distance from 1970.
fn from_fuser(at: SystemTime) -> Nanos {
    match UNIX_EPOCH.duration_since(at) {
        Ok(before) if before.as_secs() > 0 => {
            let seconds = Nanos::try_from(before.as_secs()).unwrap_or(Nanos::MAX);
            seconds.saturating_mul(-1_000_000_000).saturating_add(before.subsec_nanos().into())
        }
        _ => clock::nanos(at),
    }
}

const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;

/// What the kernel adds to the flags of an open by execve(2); from linux/fs.h.
const FMODE_EXEC: i32 = 0x20;

/// Above the bits that say what a handle may do.
const ALTERATIONS_SHIFT: u32 = 8;

/// A handle needs no table: all there is to know of it is what it may do, and what had been found out when it was opened.
pub fn handle(access: Access, opened: &Opened) -> FileHandle {
    let bit = |has: bool, bit: u64| if has { bit } else { 0 };
    let may = bit(access.read, READ) | bit(access.write, WRITE) | bit(access.execute, EXECUTE);
    FileHandle(may | opened.alterations << ALTERATIONS_SHIFT)
}

/// What a handle may do.
pub fn handle_access(fh: FileHandle) -> Access {
    let has = |bit: u64| fh.0 & bit != 0;
    Access { read: has(READ), write: has(WRITE), execute: has(EXECUTE), ..Access::default() }
}

/// What [`Opened`] says of alterations, of a handle.
pub fn handle_alterations(fh: FileHandle) -> u64 {
    fh.0 >> ALTERATIONS_SHIFT
}
