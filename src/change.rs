//! What the namespace is made of, and the closed set of ways to change it.
//!
//! Every mutation of the index is a list of [`Change`]s given to `Index::commit`, which applies them in one transaction.
//! A change carries the inode numbers, cookies and times it needs, so that applying the same list to two equal indexes
//! gives two equal indexes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::checksum::Checksum;

/// Number of an inode; never reused, so it can be the kernel's node id and an NFS file handle.
pub type Ino = u64;

/// Position of a dentry in its directory; unique in the depot and never reused, so a listing can resume anywhere.
pub type Cookie = u64;

/// Nanoseconds since 1970, the unit of every time in the index.
pub type Nanos = i64;

/// The root of the tree; its directories are the repositories.
pub const ROOT: Ino = 1;
/// `.trash`, kept for deleted files.
pub const TRASH: Ino = 2;
/// `.snapshots`, kept for frozen views.
pub const SNAPSHOTS: Ino = 3;
/// `lost+found`, where `check --repair` puts what it cannot name.
pub const LOST_FOUND: Ino = 4;
/// The first number given to an ordinary inode; the ones below are fixed.
pub const FIRST_INO: Ino = 16;

/// Names at the top of the tree that nobody can make, rename or remove; reachable by name, absent from listings.
pub const RESERVED: [(&[u8], Ino); 3] =
    [(b".trash", TRASH), (b".snapshots", SNAPSHOTS), (b"lost+found", LOST_FOUND)];

/// The type of an inode; the number is what the index stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A unix socket.
    Socket = 5,
    /// A character device.
    CharDevice = 6,
    /// A block device.
    BlockDevice = 7,
}

impl Kind {
    /// The kind stored as `number`, if there is one.
    pub fn from_number(number: i64) -> Option<Kind> {
        use Kind::*;
        [File, Directory, Symlink, Fifo, Socket, CharDevice, BlockDevice]
            .into_iter()
            .find(|k| *k as i64 == number)
    }
}

/// One row of `inode`: everything stat(2) tells, and the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// Its type.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as in `makedev`; 0 otherwise.
    pub rdev: u32,
    /// Names of a file; 2 + subdirectories of a directory; 0 of an orphan.
    pub nlink: u32,
    /// Bytes of the content; length of a symlink's target; 0 for the rest.
    pub size: u64,
    /// The content of a regular file; `None` while it has never been sealed, and for every other kind.
    pub checksum: Option<Checksum>,
    /// Last read.
    pub atime: Nanos,
    /// Last change of the bytes.
    pub mtime: Nanos,
    /// Last change of anything.
    pub ctime: Nanos,
    /// Creation.
    pub btime: Nanos,
}

/// One dentry of a directory with the inode it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the listing resumes after this entry.
    pub cookie: Cookie,
    /// The name, any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// What it names.
    pub inode: Inode,
}

/// Name of a staging file below `_pre/`: a number, written as 16 hex digits, never reused in a depot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StagingName(pub u64);

impl fmt::Display for StagingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where bytes in the page cache were written: which boot of the host, and which mount of the filestore's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountId {
    /// The kernel's boot id.
    pub boot: [u8; 16],
    /// Device and mount number of the disk; the same for every daemon as long as the disk stays mounted.
    pub mount: [u8; 16],
}

/// One row of `staged`: an inode whose newest bytes are in a staging file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedRow {
    /// The inode.
    pub ino: Ino,
    /// Its staging file.
    pub file: StagingName,
    /// The boot during which it was written (bytes not forced do not survive another one).
    pub boot: [u8; 16],
    /// The mount of the filestore's disk, likewise.
    pub mount: [u8; 16],
    /// Whether bytes and directory entry of the staging file were forced to the disk.
    pub forced: bool,
    /// The checksum of the bytes where close waited for it; that of no bytes where the staging file is not made yet.
    pub checksum: Option<Checksum>,
    /// mtime of the staged version as far as a call set it; the staging file's own mtime wins when a write moved it.
    pub mtime: Nanos,
    /// ctime of the staged version, likewise.
    pub ctime: Nanos,
    /// `Some(reason)` when the bytes cannot be sealed (collision, unreadable): the path answers EIO, nothing is deleted.
    pub failed: Option<String>,
}

impl StagedRow {
    /// Whether the staging file may be absent because nothing was written yet: it is made for the first byte.
    pub fn is_unmade(&self) -> bool {
        self.checksum == Some(Checksum::EMPTY) && !self.forced && self.failed.is_none()
    }
}

/// What the index knows of one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRow {
    /// Its name.
    pub checksum: Checksum,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the bytes; `None` for a blob that was adopted and not read yet.
    pub blake3: Option<[u8; 32]>,
    /// Filled in after ingest.
    pub sha256: Option<[u8; 32]>,
    /// Filled in after ingest.
    pub md5: Option<[u8; 16]>,
    /// Inodes whose content it is, orphans included.
    pub refs: u64,
    /// When `refs` last became 0, or the row was made.
    pub since: Nanos,
}

/// One mutation of the namespace. The redo log of the index holds these as bytes: a change of their shape is a change of its
/// format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new inode with its first name. `parent`'s times become `inode.ctime`; its nlink grows by one for a directory.
    Create {
        /// Directory that gets the name.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
        /// Its cookie.
        cookie: Cookie,
        /// The whole inode; `checksum` may name a blob that is known (its refs grow).
        inode: Inode,
        /// Target of a symbolic link.
        target: Option<Vec<u8>>,
        /// Extended attributes it starts with (inherited ACLs).
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    },
    /// A further name of a file.
    Link {
        /// The file.
        ino: Ino,
        /// Directory that gets the name.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
        /// Its cookie.
        cookie: Cookie,
        /// ctime of the file, mtime and ctime of the directory.
        at: Nanos,
    },
    /// One name goes. A file's last name, or a directory's only one, makes an orphan; `Reap` ends it.
    Remove {
        /// Directory that loses the name.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
        /// What it must name, else the commit fails as stale.
        ino: Ino,
        /// ctime of the inode, mtime and ctime of the directory.
        at: Nanos,
    },
    /// A name moves, replacing what stood there.
    Rename {
        /// Directory that loses the name.
        parent: Ino,
        /// Old name.
        name: Vec<u8>,
        /// Directory that gets it.
        new_parent: Ino,
        /// New name.
        new_name: Vec<u8>,
        /// Cookie of the new dentry.
        cookie: Cookie,
        /// What moves.
        ino: Ino,
        /// What stood at the new name, removed as by `Remove`.
        replaced: Option<Ino>,
        /// ctime of the moved and the replaced inode, mtime and ctime of both directories.
        at: Nanos,
    },
    /// Two names swap what they name.
    Exchange {
        /// First directory.
        parent: Ino,
        /// First name.
        name: Vec<u8>,
        /// What it names before.
        ino: Ino,
        /// Second directory.
        new_parent: Ino,
        /// Second name.
        new_name: Vec<u8>,
        /// What that names before.
        new_ino: Ino,
        /// ctime of both inodes, mtime and ctime of both directories.
        at: Nanos,
    },
    /// Attributes of an inode; `None` leaves one as it is.
    Attr {
        /// The inode.
        ino: Ino,
        /// Permission bits.
        mode: Option<u32>,
        /// Owner.
        uid: Option<u32>,
        /// Group.
        gid: Option<u32>,
        /// Last read.
        atime: Option<Nanos>,
        /// Last change of the bytes.
        mtime: Option<Nanos>,
        /// Last change of anything.
        ctime: Option<Nanos>,
    },
    /// An extended attribute is set, or removed with `value: None`.
    Xattr {
        /// The inode.
        ino: Ino,
        /// Full name with its namespace.
        name: Vec<u8>,
        /// New value.
        value: Option<Vec<u8>>,
        /// New ctime of the inode.
        ctime: Nanos,
    },
    /// The inode's newest bytes are from now on in a staging file (replaces an earlier row of the inode).
    Stage(StagedRow),
    /// The staged version is given up: the previous content stands.
    Unstage {
        /// The inode.
        ino: Ino,
    },
    /// The inode's content is this blob; its `staged` row goes. `blake3` is given with the first row of a blob.
    Content {
        /// The inode.
        ino: Ino,
        /// The blob.
        checksum: Checksum,
        /// Its bytes.
        size: u64,
        /// Recorded when the blob has no row yet, or one without it.
        blake3: Option<[u8; 32]>,
        /// New mtime.
        mtime: Nanos,
        /// New ctime.
        ctime: Nanos,
    },
    /// An orphan ends: inode, xattrs, target and staged row go, its blob loses a reference.
    Reap {
        /// The orphan.
        ino: Ino,
    },
    /// SHA-256 and MD5 of a blob, once computed.
    Digests {
        /// The blob.
        checksum: Checksum,
        /// SHA-256.
        sha256: [u8; 32],
        /// MD5.
        md5: [u8; 16],
    },
    /// An unreferenced blob leaves the index; the commit fails as stale if it has references again.
    Forget {
        /// The blob.
        checksum: Checksum,
    },
    /// A setting of a repository, removed with `value: None`.
    Setting {
        /// The repository's directory.
        repository: Ino,
        /// The key.
        key: String,
        /// The value.
        value: Option<String>,
    },
}
