//! What can go wrong in an operation on the tree, in words of the tree; `fuse/errno.rs` says which errno each becomes.

use std::io;

use crate::change::Ino;
use crate::checksum::Checksum;
use crate::{filestore, index};

/// Failure of an operation on the tree.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing there.
    #[error("no such file or directory")]
    NotFound,
    /// The inode is gone, although the kernel or an NFS client still names it.
    #[error("inode {0} is gone")]
    Stale(Ino),
    /// A program that runs is not to be emptied.
    #[error("a program runs from the file")]
    Running,
    /// The name is taken.
    #[error("the name exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// Anything but a directory was needed.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// More than 255 bytes of name.
    #[error("name longer than 255 bytes")]
    NameTooLong,
    /// Only directories stand at the top of the tree, and reserved names are nobody's.
    #[error("{0}")]
    NotPermitted(&'static str),
    /// Links and single moves of linked files stay within a repository.
    #[error("across repositories")]
    CrossRepository,
    /// A directory cannot move below itself.
    #[error("a directory cannot move below itself")]
    Loop,
    /// The inode has as many names as it can.
    #[error("too many links")]
    TooManyLinks,
    /// An argument that makes no sense for this call.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// This file system does not do that.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The reply does not fit the caller's buffer.
    #[error("buffer too small")]
    Range,
    /// An attribute larger than 64 KiB.
    #[error("value too large")]
    TooBig,
    /// lseek(2) beyond the last data or hole.
    #[error("no data or hole there")]
    BeyondEnd,
    /// The descriptor was not opened for this.
    #[error("descriptor not open for this")]
    BadHandle,
    /// The mount is read-only.
    #[error("the mount is read-only")]
    ReadOnly,
    /// The bytes could not be sealed; they are kept, but not served.
    #[error("inode {ino}: its bytes cannot be stored: {why}; get them with `depotfs blob rescue`")]
    Failed {
        /// The inode.
        ino: Ino,
        /// Why, from the seal.
        why: String,
    },
    /// A blob's bytes are not those of its name.
    #[error("blob {0} has altered bytes: restore it from a backup, or write the file again")]
    Altered(Checksum),
    /// The blob's file was exchanged by hand while it was open.
    #[error("the file of blob {0} was exchanged while it was open: close it everywhere, then write")]
    Swapped(Checksum),
    /// Somebody works on the blob whose latch is wanted with a file locked: it is tried again with the file free.
    #[error("blob {0} is being stored, fetched or removed all the time")]
    Latched(Checksum),
    /// Too much waits to be sealed, and it does not get less.
    #[error("the backlog of unsealed files stays full")]
    Backlog,
    /// From the index.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// From the filestore.
    #[error(transparent)]
    Store(#[from] filestore::Error),
    /// From a system call on a staging file or a blob.
    #[error("{what}")]
    Io {
        /// What was attempted, on what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// Wraps an I/O error with what was attempted.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

/// Result of an operation on the tree.
pub type Result<T> = std::result::Result<T, Error>;
