//! What can go wrong with blobs and staging files.

use std::io;
use std::path::{Path, PathBuf};

use crate::change::StagingName;
use crate::checksum::Checksum;

/// The outcome of everything in this room.
pub type Result<T> = std::result::Result<T, Error>;

/// An event, never an absence: what may be absent is an `Option`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call on a file or directory of a provider failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No provider has the blob.
    #[error("blob {0} is missing from the filestore: `check` lists the paths it belongs to")]
    Missing(Checksum),
    /// The blob's file is not as long as the blob.
    #[error(
        "blob {sum} has {found} bytes in the filestore and should have {expected}: its file was cut or altered"
    )]
    WrongSize {
        /// The blob.
        sum: Checksum,
        /// Bytes it should have.
        expected: u64,
        /// Bytes its file has.
        found: u64,
    },
    /// A staging file is not what was hashed.
    #[error("staging file {name} has {found} bytes and had {expected} when it was hashed")]
    Changed {
        /// The staging file.
        name: StagingName,
        /// Bytes when it was handed over.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// A staging file whose bytes are a blob's too cannot be written.
    #[error("staging file {name} is linked to a blob: finish its seal before it is written")]
    Linked {
        /// The staging file.
        name: StagingName,
    },
    /// The disk refused bytes of this staging file before, so what is on it is not what was written.
    #[error(
        "staging file {name} could not be forced to the disk earlier, so its bytes there are not to be trusted"
    )]
    Unforced {
        /// The staging file.
        name: StagingName,
    },
    /// The bytes of a blob are not those of its name.
    #[error("the bytes of blob {0} were altered where they are stored")]
    Altered(Checksum),
    /// A blob that is no local file cannot be written in place.
    #[error("blob {0} is not in a local file, so its file cannot be handed to a writer")]
    NotLocal(Checksum),
    /// The directory belongs to another depot.
    #[error("{} belongs to depot {found}, not to {expected}", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Id in it.
        found: String,
        /// Id of this depot.
        expected: String,
    },
    /// The directory is no provider's.
    #[error("{} is not a directory of a depot: {why}", dir.display())]
    NotADepotDirectory {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Two shards are one directory, by a link or because it is mounted twice.
    #[error(
        "{} is the directory of shard {} too: a blob that is on both has one copy, so take one of them out", dir.display(),
        other.display()
    )]
    OneDirectory {
        /// The shard that is refused.
        dir: PathBuf,
        /// The one that has it.
        other: PathBuf,
    },
    /// Something was found nowhere, and may be where nobody can look now.
    #[error("{what} is not on the shards that can be reached, and {} cannot be: {why}", dir.display())]
    Away {
        /// What was looked for.
        what: String,
        /// The shard that is away.
        dir: PathBuf,
        /// Why it is.
        why: String,
    },
    /// A blob could not be stored as often as it has to be.
    #[error("{made} of {needed} copies could be made: {why}")]
    TooFewCopies {
        /// Copies made.
        made: usize,
        /// Copies without which the put fails.
        needed: usize,
        /// What the others failed by.
        why: String,
    },
    /// A server far away did not do what it was asked.
    #[error("cannot {doing} {what}")]
    Backend {
        /// What was attempted.
        doing: &'static str,
        /// On what, with the server's place: `s3://bucket/path/...`.
        what: String,
        /// Whether the same can succeed a moment later: no connection, no answer in time, a server that is overloaded.
        transient: bool,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A chain of nothing keeps no blobs.
    #[error("the chain has no provider: name one that keeps the blobs")]
    NoProvider,
    /// Blobs are made by linking, which this file system cannot.
    #[error("the file system of {} has no hard links: place the filestore on another", dir.display())]
    NoHardLinks {
        /// The directory.
        dir: PathBuf,
    },
}

impl Error {
    /// Whether what was named is not there.
    pub fn is_absent(&self) -> bool {
        match self {
            Error::Missing(_) => true,
            Error::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Whether the same call can succeed a moment later, though nobody does anything about it.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Backend { transient, .. } => *transient,
            Error::Io { source, .. } => is_transient(source),
            _ => false,
        }
    }

    /// The same as it is told to a reader, who is given errors of the system: of a kind that [`is_transient`] knows.
    pub(super) fn into_io(self) -> io::Error {
        let kind = match &self {
            Error::Missing(_) => io::ErrorKind::NotFound,
            Error::Backend { transient: true, .. } => io::ErrorKind::NotConnected,
            Error::Altered(_) | Error::WrongSize { .. } => io::ErrorKind::InvalidData,
            Error::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }

    /// Whether room (space, inodes or quota) was lacking, so that the same call can succeed once there is some.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Error::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

/// Whether an error is one of a connection or of a time that has run out, as [`Error::is_transient`].
pub(super) fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkDown,
        NetworkUnreachable, NotConnected, TimedOut,
    };
    matches!(
        error.kind(),
        BrokenPipe
            | ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | NotConnected
            | TimedOut
    )
}

/// Gives a failed system call its words.
pub(super) trait Doing<T> {
    /// Says what was attempted on which path.
    fn doing(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::Io { doing, path: path.as_ref().to_owned(), source: e.into() })
    }
}
