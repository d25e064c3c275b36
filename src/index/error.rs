//! What can go wrong with the index, sorted by what a caller can do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, ffi};

use crate::change::Ino;
use crate::checksum::{Checksum, hex};

/// Result of everything in this room.
pub type Result<T> = std::result::Result<T, Error>;

/// The error below, kept for the source chain.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the index refused or failed. Whatever it was, the commit it belongs to changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is taken.
    #[error("cannot use the name {name} in directory {parent}: it is taken", name = Shown(name))]
    Exists {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
    },
    /// What a change or question names is not there (a removed directory counts as absent for new names).
    #[error("{what} is not in the index")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// A directory that would be removed or replaced still has entries.
    #[error("cannot remove directory {ino}: it is not empty")]
    NotEmpty {
        /// The directory.
        ino: Ino,
    },
    /// The caller's picture is old: look again and try again.
    #[error("{what}: the index has changed since it was read")]
    Stale {
        /// What is no longer so.
        what: String,
    },
    /// A directory would come to lie below itself.
    #[error("cannot move directory {ino} below itself (into directory {into})")]
    Loop {
        /// The directory.
        ino: Ino,
        /// Where it was to go.
        into: Ino,
    },
    /// The inode has as many links as it can have.
    #[error("inode {ino} has the most links it can have ({max})", max = super::LINK_MAX)]
    TooManyLinks {
        /// The file, or the directory that would get one more subdirectory.
        ino: Ino,
    },
    /// A change that no caller should make, refused before it does harm.
    #[error("the change is not valid: {what}")]
    Invalid {
        /// What is wrong with it.
        what: String,
    },
    /// The blob is recorded with another size or BLAKE3: two contents share one SHA-1.
    #[error(
        "{checksum} is recorded with another size or BLAKE3: these bytes collide with it and must not take its name"
    )]
    Collision {
        /// The name both want.
        checksum: Checksum,
    },
    /// No space left for the index. Nothing changed; removals still work as long as the reserve lasts.
    #[error("cannot {doing}: no space left for the index {path}")]
    Full {
        /// What was attempted.
        doing: &'static str,
        /// The index.
        path: PathBuf,
        /// What SQLite said.
        source: Cause,
    },
    /// Somebody else has the index open or locked.
    #[error("cannot {doing}: the index {path} is in use by another process (one daemon per depot)")]
    Busy {
        /// What was attempted.
        doing: &'static str,
        /// The index.
        path: PathBuf,
    },
    /// The file is ours and damaged.
    #[error("the index {path} is damaged ({what}); nothing was changed; restore it from a backup")]
    Corrupt {
        /// The index.
        path: PathBuf,
        /// What does not fit.
        what: String,
        /// What SQLite said, if it was SQLite that saw it.
        source: Option<Cause>,
    },
    /// The index was written by a later version of depotfs.
    #[error(
        "the index {path} has schema version {found}, this program knows up to {known}: use a newer depotfs"
    )]
    Newer {
        /// The index.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The last one known here.
        known: i64,
    },
    /// The redo log has commits that only the version of depotfs that wrote them can apply.
    #[error(
        "the redo log {path} was written by another version of depotfs and may still be needed; nothing was changed: \
         mount the depot with that version, unmount it, and try again"
    )]
    Unfinished {
        /// The redo log.
        path: PathBuf,
    },
    /// The file is not an index of depotfs.
    #[error("{path} is not an index of depotfs; it was not touched")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The disk, or the directory it is on, failed.
    #[error("cannot {doing} ({path})")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite refused a statement for a reason of its own: a defect of depotfs.
    #[error("cannot {doing} in the index {path}")]
    Sql {
        /// What was attempted.
        doing: &'static str,
        /// The index.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl Error {
    /// Whether the index as it is does not allow the change; otherwise something failed.
    pub(super) fn is_refusal(&self) -> bool {
        use Error::*;
        match self {
            Exists { .. }
            | NotFound { .. }
            | NotEmpty { .. }
            | Stale { .. }
            | Loop { .. }
            | TooManyLinks { .. }
            | Invalid { .. }
            | Collision { .. } => true,
            Full { .. }
            | Busy { .. }
            | Corrupt { .. }
            | Newer { .. }
            | Unfinished { .. }
            | Foreign { .. }
            | Io { .. }
            | Sql { .. } => false,
        }
    }

    /// An error of SQLite on `c`, sorted.
    pub(super) fn of(c: &Connection, doing: &'static str, source: rusqlite::Error) -> Error {
        Error::at(Path::new(c.path().unwrap_or_default()), doing, source)
    }

    /// An error of SQLite on the index at `path`, sorted.
    pub(super) fn at(path: &Path, doing: &'static str, source: rusqlite::Error) -> Error {
        use rusqlite::Error::*;
        let path = path.to_path_buf();
        let code = match &source {
            SqliteFailure(e, _) => e,
            FromSqlConversionFailure(..)
            | InvalidColumnType(..)
            | IntegralValueOutOfRange(..)
            | Utf8Error(..) => {
                return Error::Corrupt {
                    path,
                    what: format!("{doing}: {source}"),
                    source: Some(source.into()),
                };
            }
            _ => return Error::Sql { doing, path, source },
        };
        match code.code {
            ErrorCode::DiskFull => Error::Full { doing, path, source: source.into() },
            // The shared-memory file cannot grow: SQLite reports a full disk there under a name of its own.
            _ if code.extended_code == ffi::SQLITE_IOERR_SHMSIZE => {
                Error::Full { doing, path, source: source.into() }
            }
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Error::Busy { doing, path },
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                Error::Corrupt { path, what: format!("{doing}: {source}"), source: Some(source.into()) }
            }
            ErrorCode::ReadOnly => {
                Error::Io { doing, path, source: io::Error::new(io::ErrorKind::ReadOnlyFilesystem, source) }
            }
            ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::PermissionDenied => {
                Error::Io { doing, path, source: io::Error::other(source) }
            }
            _ => Error::Sql { doing, path, source },
        }
    }

    /// An error of the system on `path`, sorted.
    pub(super) fn io(path: &Path, doing: &'static str, source: io::Error) -> Error {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::Full { doing, path, source: source.into() }
            }
            _ => Error::Io { doing, path, source },
        }
    }

    /// The index at `path` is damaged in a way seen here, not by SQLite.
    pub(super) fn corrupt(path: &Path, what: impl Into<String>) -> Error {
        Error::Corrupt { path: path.to_path_buf(), what: what.into(), source: None }
    }

    /// The index behind `c` is damaged in a way seen here, not by SQLite.
    pub(super) fn damaged(c: &Connection, what: impl Into<String>) -> Error {
        Error::corrupt(Path::new(c.path().unwrap_or_default()), what)
    }

    /// `ino` is not there.
    pub(super) fn no_inode(ino: Ino) -> Error {
        Error::NotFound { what: format!("inode {ino}") }
    }
}

/// A name for people: itself where it is plain text, hex digits otherwise.
pub(super) struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) if !text.chars().any(char::is_control) => write!(f, "\"{text}\""),
            _ => write!(f, "0x{}", hex(self.0)),
        }
    }
}
