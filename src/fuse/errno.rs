//! The only errno table: what each failure of the tree is to a caller, and how loud it is in the log.

use fuser::Errno;
use tracing::Level;

use crate::vfs::Error;
use crate::{filestore, index};

/// The errno of a failure.
pub fn errno(error: &Error) -> Errno {
    match error {
        Error::NotFound => Errno::ENOENT,
        Error::Stale(_) => Errno::ESTALE,
        Error::Exists => Errno::EEXIST,
        Error::NotDirectory => Errno::ENOTDIR,
        Error::IsDirectory => Errno::EISDIR,
        Error::NotEmpty => Errno::ENOTEMPTY,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::NotPermitted(_) => Errno::EPERM,
        Error::CrossRepository => Errno::EXDEV,
        Error::Loop | Error::Invalid(_) => Errno::EINVAL,
        Error::TooManyLinks => Errno::EMLINK,
        Error::Unsupported(_) => Errno::EOPNOTSUPP,
        Error::NoAttribute => Errno::ENODATA,
        Error::Range => Errno::ERANGE,
        Error::TooBig => Errno::E2BIG,
        Error::BeyondEnd => Errno::ENXIO,
        Error::BadHandle => Errno::EBADF,
        Error::ReadOnly => Errno::EROFS,
        Error::Failed { .. } | Error::Altered(_) | Error::Swapped(_) => Errno::EIO,
        Error::Backlog => Errno::ENOSPC,
        Error::Index(error) => index_errno(error),
        Error::Store(error) => store_errno(error),
        Error::Io { source, .. } => io_errno(source),
    }
}

/// How loud a failure is: what a caller did wrong is nobody else's business, what is broken is the operator's.
pub fn level(error: &Error) -> Level {
    let errno = i32::from(errno(error));
    match errno {
        libc::EIO => Level::ERROR,
        libc::ENOSPC => Level::WARN,
        _ => Level::DEBUG,
    }
}

fn io_errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_i32)
}

fn index_errno(error: &index::Error) -> Errno {
    match error {
        index::Error::Exists { .. } => Errno::EEXIST,
        index::Error::NotFound { .. } => Errno::ENOENT,
        index::Error::NotEmpty { .. } => Errno::ENOTEMPTY,
        index::Error::Stale { .. } => Errno::ESTALE,
        index::Error::Loop { .. } | index::Error::Invalid { .. } => Errno::EINVAL,
        index::Error::TooManyLinks { .. } => Errno::EMLINK,
        index::Error::Full { .. } => Errno::ENOSPC,
        index::Error::Io { source, .. } => io_errno(source),
        index::Error::Collision { .. }
        | index::Error::Busy { .. }
        | index::Error::Corrupt { .. }
        | index::Error::Newer { .. }
        | index::Error::Unfinished { .. }
        | index::Error::Foreign { .. }
        | index::Error::Sql { .. } => Errno::EIO,
    }
}

fn store_errno(error: &filestore::Error) -> Errno {
    match error {
        filestore::Error::Io { source, .. } => io_errno(source),
        filestore::Error::Missing(_)
        | filestore::Error::WrongSize { .. }
        | filestore::Error::Changed { .. }
        | filestore::Error::Linked { .. }
        | filestore::Error::Unforced { .. }
        | filestore::Error::Foreign { .. }
        | filestore::Error::NotADepotDirectory { .. }
        | filestore::Error::NoHardLinks { .. } => Errno::EIO,
    }
}
