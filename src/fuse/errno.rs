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
        Error::Failed { .. } | Error::Altered(_) | Error::Swapped(_) | Error::Latched(_) => Errno::EIO,
        Error::Backlog => Errno::ENOSPC,
        Error::Running => Errno::ETXTBSY,
        Error::Index(error) => index_errno(error),
        Error::Store(error) => store_errno(error),
        Error::Io { source, .. } => io_errno(source),
    }
}

/// How loud a failure is: what a caller did wrong is nobody else's business, what is broken is the operator's, whichever
/// number the caller gets for it.
pub fn level(error: &Error) -> Level {
    let number = i32::from(errno(error));
    if number == libc::EIO {
        return Level::ERROR;
    }
    match error {
        _ if number == libc::ENOSPC => Level::WARN,
        Error::Store(_) | Error::Index(index::Error::Io { .. }) => Level::WARN,
        Error::Io { source, .. } if !is_the_callers(source) => Level::WARN,
        _ => Level::DEBUG,
    }
}

/// Whether the arguments of a call can bring this about on a disk that is as it should be.
fn is_the_callers(error: &std::io::Error) -> bool {
    let errnos = [libc::EINVAL, libc::EFBIG, libc::EOPNOTSUPP, libc::ENXIO, libc::EINTR];
    error.raw_os_error().is_some_and(|errno| errnos.contains(&errno))
}

/// A file of ours that is not there is nothing that the caller named.
fn io_errno(error: &std::io::Error) -> Errno {
    use std::io::ErrorKind as Kind;
    // Whatever happened on the way to a provider that is far away, the caller talks to a file.
    let far_away = [
        Kind::ConnectionRefused,
        Kind::ConnectionReset,
        Kind::ConnectionAborted,
        Kind::NotConnected,
        Kind::TimedOut,
        Kind::HostUnreachable,
        Kind::NetworkUnreachable,
        Kind::NetworkDown,
    ];
    if error.kind() == Kind::NotFound || far_away.contains(&error.kind()) {
        return Errno::EIO;
    }
    if error.kind() == Kind::StorageFull {
        return Errno::ENOSPC;
    }
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
        | filestore::Error::OneDirectory { .. }
        | filestore::Error::Altered(_)
        | filestore::Error::Away { .. }
        | filestore::Error::TooFewCopies { .. }
        | filestore::Error::NotLocal(_)
        | filestore::Error::Backend { .. }
        | filestore::Error::NoProvider
        | filestore::Error::NoHardLinks { .. } => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn store(errno: i32) -> Error {
        let source = io::Error::from_raw_os_error(errno);
        filestore::Error::Io { doing: "create", path: "/d/filestore/_pre/1".into(), source }.into()
    }

    #[test]
    fn what_is_broken_below_is_never_told_in_a_whisper() {
        for errno in [libc::EROFS, libc::EACCES, libc::EMFILE, libc::EDQUOT, libc::EINVAL] {
            assert_eq!(level(&store(errno)), Level::WARN, "{errno}");
            assert_eq!(i32::from(super::errno(&store(errno))), errno);
        }
        assert_eq!(level(&store(libc::EIO)), Level::ERROR);
        assert_eq!(level(&Error::NotFound), Level::DEBUG);
    }

    #[test]
    fn a_staging_file_that_is_lost_is_an_error_and_no_missing_name() {
        let lost = store(libc::ENOENT);
        assert_eq!((i32::from(errno(&lost)), level(&lost)), (libc::EIO, Level::ERROR));
    }

    #[test]
    fn arguments_that_make_no_sense_are_no_fault_of_the_disk() {
        let failed =
            |errno| Error::Io { what: "punch a hole".into(), source: io::Error::from_raw_os_error(errno) };
        assert_eq!(level(&failed(libc::EOPNOTSUPP)), Level::DEBUG);
        assert_eq!(level(&failed(libc::EROFS)), Level::WARN);
    }
}
