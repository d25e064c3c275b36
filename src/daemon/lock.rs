//! The depot's lock: one process at a time, and everybody else learns which.
//!
//! The lock is flock(2) on the file `lock`, so the kernel gives it back when its holder dies; what is written in the file
//! only tells people who holds it.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sys::{mountinfo, process};

/// Name of the file in the depot.
pub const FILE: &str = "lock";

/// How long a `mount` waits for the daemon of an earlier one to finish; longer than its last flush may take, and than it
/// waits for the upload queue where nobody has set that to more.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How long everybody waits for a holder that was killed: the kernel gives its lock back after it took its memory apart.
const ENDING_MAX: Duration = Duration::from_secs(10);

/// How often a waiting process looks.
const PERIOD: Duration = Duration::from_millis(20);

/// Bytes written at least, so that a later holder overwrites in place, which works on a full disk too.
const RECORD_BYTES_MIN: usize = 1024;

/// A held lock; the end of the process gives it back, and nothing earlier does unless it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process; 0 when the file does not tell.
    pub pid: u32,
    /// The command it runs.
    pub command: String,
    /// Where it mounts the depot, if it does.
    pub mountpoint: Option<String>,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else has it.
    #[error("{}", busy(.0, .1))]
    Busy(PathBuf, Holder),
    /// A daemon has it whose mount is not there (any more), and it did not end in time.
    #[error("{}", finishing(.0, .1))]
    Finishing(PathBuf, Holder),
    /// The file cannot be used.
    #[error("the lock of depot {0} cannot be taken")]
    Io(PathBuf, #[source] io::Error),
}

impl Holder {
    /// This process.
    pub fn this(command: &str, mountpoint: Option<&Path>) -> Holder {
        let mountpoint = mountpoint.map(|path| path.display().to_string());
        Holder { pid: std::process::id(), command: command.into(), mountpoint }
    }

    fn unknown() -> Holder {
        Holder { pid: 0, command: "another process".into(), mountpoint: None }
    }
}

/// Takes the lock; waits up to `patience` for a daemon that is already unmounted and only finishes its work.
pub fn take(depot: &Path, holder: &Holder, patience: Duration) -> Result<Lock, Error> {
    let io = |error| Error::Io(depot.into(), error);
    let mut file = open(depot).map_err(io)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) if is_at_its_name(&file, depot).map_err(io)? => break,
            // An init that failed has taken its lock file away: this one keeps nobody else out.
            Ok(()) => {
                file = open(depot).map_err(io)?;
                continue;
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        let other = read(&file);
        let finishing = is_finishing(depot, &other);
        let bound = match process::is_ending(other.pid) {
            true => ENDING_MAX.max(patience),
            false if finishing => patience,
            false => Duration::ZERO,
        };
        if begun.elapsed() >= bound {
            let why = if finishing { Error::Finishing } else { Error::Busy };
            return Err(why(depot.into(), other));
        }
        std::thread::sleep(PERIOD);
    }
    if let Err(error) = write(&file, holder) {
        // Only people read it.
        tracing::warn!(%error, depot = %depot.display(), "the lock file cannot be written");
    }
    Ok(Lock { _file: file })
}

/// Who holds the depot's lock now.
pub fn holder(depot: &Path) -> io::Result<Option<Holder>> {
    let file = match File::open(depot.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(read(&file))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Waits until process `pid` no longer holds the lock; false when `patience` ran out.
pub fn wait_for_release(depot: &Path, pid: u32, patience: Duration) -> io::Result<bool> {
    let end = Instant::now() + patience;
    loop {
        match holder(depot)? {
            Some(holder) if holder.pid == pid => {}
            _ => return Ok(true),
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(PERIOD);
    }
}

/// A reader of the file could hold its lock too, so it is for its owner only.
fn open(depot: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(depot.join(FILE))?;
    if file.metadata()?.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

fn is_at_its_name(file: &File, depot: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(depot.join(FILE)) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the holder is a daemon whose mount has gone already (or is not there yet), so that waiting makes sense.
fn is_finishing(depot: &Path, holder: &Holder) -> bool {
    let mounted = || mountinfo::depots().is_ok_and(|mounts| mounts.iter().any(|m| m.source == depot));
    holder.command == "mount" && !mounted()
}

fn read(file: &File) -> Holder {
    let mut text = vec![0; 16 * 1024];
    let length = file.read_at(&mut text, 0).unwrap_or(0);
    serde_json::Deserializer::from_slice(&text[..length])
        .into_iter()
        .next()
        .and_then(Result::ok)
        .unwrap_or_else(Holder::unknown)
}

fn write(file: &File, holder: &Holder) -> io::Result<()> {
    let mut text = serde_json::to_vec(holder)?;
    text.resize(text.len().max(RECORD_BYTES_MIN) + 1, b' ');
    file.write_all_at(&text, 0)
}

fn finishing(depot: &Path, holder: &Holder) -> String {
    let (depot, pid) = (depot.display(), holder.pid);
    format!(
        "depot {depot} is not mounted, but process {pid} is still storing what was written, or about to mount it: wait for \
         it to end"
    )
}

fn busy(depot: &Path, holder: &Holder) -> String {
    let depot = depot.display();
    match holder {
        Holder { pid: 0, .. } => format!("depot {depot} is in use by another process: wait for it to end"),
        Holder { pid, mountpoint: Some(mountpoint), .. } => format!(
            "depot {depot} is mounted on {mountpoint} by process {pid}: unmount it first, with: depotfs umount {mountpoint}"
        ),
        Holder { pid, command, .. } => {
            format!("depot {depot} is in use by process {pid} (depotfs {command}): wait for it to end")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn this(command: &str) -> Holder {
        Holder::this(command, Some(Path::new("/mnt/x")))
    }

    #[test]
    fn a_second_holder_learns_of_the_first() {
        let depot = tempfile::tempdir().unwrap();
        assert_eq!(holder(depot.path()).unwrap(), None);
        let lock = take(depot.path(), &this("check"), Duration::ZERO).unwrap();
        assert_eq!(holder(depot.path()).unwrap(), Some(this("check")));
        let why = take(depot.path(), &this("mount"), PATIENCE).unwrap_err().to_string();
        assert!(why.contains(&std::process::id().to_string()) && why.contains("/mnt/x"), "{why}");
        drop(lock);
        assert_eq!(holder(depot.path()).unwrap(), None);
        take(depot.path(), &Holder::this("mount", None), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_mount_waits_for_a_daemon_that_is_unmounted() {
        let depot = tempfile::tempdir().unwrap();
        let lock = take(depot.path(), &this("mount"), Duration::ZERO).unwrap();
        let path = depot.path().to_owned();
        let waiting = std::thread::spawn(move || take(&path, &this("mount"), PATIENCE).map(drop));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        drop(lock);
        waiting.join().unwrap().unwrap();
        assert!(wait_for_release(depot.path(), std::process::id(), Duration::ZERO).unwrap());
    }

    #[test]
    fn a_lock_whose_file_was_taken_away_is_none() {
        let depot = tempfile::tempdir().unwrap();
        let file = open(depot.path()).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        assert!(is_at_its_name(&file, depot.path()).unwrap());
        fs::remove_file(depot.path().join(FILE)).unwrap();
        assert!(!is_at_its_name(&file, depot.path()).unwrap());
        open(depot.path()).unwrap();
        assert!(!is_at_its_name(&file, depot.path()).unwrap());
    }

    #[test]
    fn a_daemon_that_does_not_finish_is_not_said_to_have_a_mount() {
        let depot = tempfile::tempdir().unwrap();
        let _lock = take(depot.path(), &this("mount"), Duration::ZERO).unwrap();
        let why = take(depot.path(), &this("mount"), Duration::from_millis(50)).unwrap_err().to_string();
        let pid = format!("process {}", std::process::id());
        assert!(why.contains("not mounted") && why.contains(&pid) && !why.contains("/mnt/x"), "{why}");
    }

    #[test]
    fn what_an_earlier_holder_left_is_no_obstacle() {
        let depot = tempfile::tempdir().unwrap();
        for left in ["", "garbage", "{\"pid\":1,\"command\":\"mount\",\"mountpoint\":\"/x\"}", "{"] {
            fs::write(depot.path().join(FILE), left).unwrap();
            assert_eq!(holder(depot.path()).unwrap(), None);
            let lock = take(depot.path(), &this("mount"), Duration::ZERO).unwrap();
            assert_eq!(holder(depot.path()).unwrap(), Some(this("mount")), "after {left:?}");
            drop(lock);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_record_of_a_holder_makes_the_reader_panic(
            noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100),
            at in 0..100_u64,
        ) {
            let file = tempfile::tempfile().unwrap();
            write(&file, &this("mount")).unwrap();
            for at in [at, 0] {
                file.write_all_at(&noise, at).unwrap();
                proptest::prop_assert!(!busy(Path::new("/depot"), &read(&file)).is_empty());
            }
        }
    }
}
