//! Named points in the code at which a test kills the process, or makes a call fail, be slow or be cut short.
//!
//! In a release build each point is nothing. In a debug build they sleep until the variable [`VARIABLE`] names a
//! directory: its file `set` says what happens where, and holds from the moment in which it is replaced (by a rename);
//! its file `hits` gets a line for each hit, with what was done there.
//!
//! ```text
//! seal.put=kill                    kill -9 of this process, at the first hit since the file was replaced
//! index.begin=kill@3               at the third
//! staging.force=error:EIO          a failed call, at every hit (for points that are calls)
//! staging.write=error:ENOSPC@2*1   at the second hit only
//! staging.write=short              half of the bytes are written; the rest has a point of its own
//! index.force=delay:200            200 ms later than otherwise
//! index.force=hold                 not before the file is replaced by one without this line
//! ```

use std::io;

/// Names the directory that steers the points; for tests.
pub const VARIABLE: &str = "DEPOTFS_TEST_FAILPOINTS";

/// Whether this build has them, and whatever else lets a test break things.
pub const COMPILED_IN: bool = cfg!(debug_assertions);

/// Every point, by the step it stands at. A test holds that each stands in the code once, and that each was killed at.
pub const NAMES: &[&str] = &[
    // A new file, a file emptied by its open, the first write into a sealed file.
    "create.staged",
    "create.committed",
    "empty.staged",
    "empty.committed",
    "dirty.copied",
    "dirty.committed",
    // Bytes, through the daemon.
    "staging.write",
    "staging.write.rest",
    "staging.written",
    "resize.done",
    // fsync(2), and what close(2) waits for.
    "fsync.forced",
    "fsync.recorded",
    "fsync.synced",
    "close.hashed",
    "close.recorded",
    "close.synced",
    // Forcing in the background.
    "force.forced",
    "force.recorded",
    "force.synced",
    "retire.durable",
    "retire.unlinked",
    // A seal.
    "seal.leased",
    "seal.hashed",
    "seal.marked",
    "seal.put",
    "seal.committed",
    "seal.reverted",
    "seal.failed",
    // A put, by the filestore.
    "put.dressed",
    "put.linked",
    "put.forced",
    "heal.linked",
    "heal.renamed",
    // Writing into a blob's own file.
    "swap.detached",
    "private.detached",
    "detach.linked",
    "detach.copied",
    "detach.renamed",
    "detach.forced",
    // Copies.
    // Answers of a disk, or of a server in its place.
    "link.answered",
    "rename.answered",
    "staging.own",
    "shards.put",
    "shards.prepared",
    "shards.mended",
    // Sending to a bucket: the parts of a large blob, a batch.
    "objects.parts",
    "objects.put",
    "db.put",
    "db.committed",
    "cache.put",
    "cache.linked",
    "cache.open",
    "cache.begun",
    "cache.fetch",
    "cache.force",
    "cache.named",
    "cache.withdrawn",
    "cache.lent",
    "eventual.put",
    "eventual.tombstone",
    "eventual.uploaded",
    "eventual.retired",
    "eventual.buried",
    "eventual.aside",
    "eventual.through",
    "copy.made",
    "copy.committed",
    "copy.bytes",
    // Names.
    "rename.forced",
    "rename.committed",
    "exchange.committed",
    "remove.committed",
    "reap.kept",
    "reap.committed",
    // Space comes back.
    "reclaim.committed",
    "reclaim.synced",
    "reclaim.unlinked",
    // Set aside.
    "aside.explained",
    "aside.moved",
    // Recovery.
    "restage.copied",
    "restage.committed",
    "recover.aside",
    "recover.reverted",
    "recover.kept",
    "recover.reaped",
    "recover.discarded",
    "recover.synced",
    // check --repair.
    "repair.mended",
    "repair.committed",
    "repair.discarded",
    "repair.unstaged",
    "repair.adopted",
    // Another chain.
    "rechain.made",
    "rechain.copied",
    "rechain.ready",
    "rechain.sealed",
    "rechain.kept",
    "rechain.exchanged",
    // The index.
    "index.begin",
    "index.applied",
    "index.committed",
    "index.force",
    "index.forced",
    "index.flush",
    "index.flushed",
    "index.freed",
    "index.numbers",
    "redo.write",
    "redo.write.rest",
    "index.copied",
    "upgrade.kept",
    "upgrade.stepped",
    "upgrade.committed",
    "backup.copied",
    // SQLite's calls on the files of the index.
    "wal.write",
    "wal.sync",
    "wal.synced",
    "db.write",
    "db.sync",
    "db.synced",
    // Calls on the filestore's disk, each before it is made.
    "staging.create",
    "staging.copy",
    "staging.read",
    "staging.force",
    "put.link",
    "folder.force",
    "disk.sync",
    "blob.open",
    "blob.read",
];

/// A point between two steps: a test may kill the process here, or hold it up.
#[inline]
pub fn hit(name: &str) {
    #[cfg(debug_assertions)]
    steered::act(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// A point before a call that can fail: the call may also be made to.
#[inline]
pub fn call(name: &str) -> io::Result<()> {
    #[cfg(debug_assertions)]
    if let Some(steered::Action::Error(number)) = steered::act(name) {
        return Err(io::Error::from_raw_os_error(number));
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
    Ok(())
}

/// A point before a write: how many of `bytes` are to be written by the first call, all but where a test cuts it short.
#[inline]
pub fn write(name: &str, bytes: usize) -> io::Result<usize> {
    #[cfg(debug_assertions)]
    match steered::act(name) {
        Some(steered::Action::Error(number)) => return Err(io::Error::from_raw_os_error(number)),
        Some(steered::Action::Short) => return Ok(bytes / 2),
        _ => {}
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
    Ok(bytes)
}

/// Whether a test steers this process.
#[cfg(debug_assertions)]
pub fn steered() -> bool {
    steered::STEERING.is_some()
}

#[cfg(debug_assertions)]
mod steered {
    use std::fs::{self, File, OpenOptions};
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use parking_lot::{Mutex, MutexGuard};

    /// What happens at a hit.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Action {
        Kill,
        Error(i32),
        Short,
        Delay(Duration),
        Hold,
    }

    /// A line of `set`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) struct Rule {
        pub(super) name: String,
        pub(super) action: Action,
        /// The hit at which it begins.
        pub(super) first: u64,
        /// For how many hits.
        pub(super) times: u64,
    }

    impl Rule {
        pub(super) fn parse(line: &str) -> Option<Rule> {
            let (name, rest) = line.trim().split_once('=')?;
            let (rest, times) = match rest.split_once('*') {
                Some((rest, times)) => (rest, times.parse().ok()?),
                None => (rest, u64::MAX),
            };
            let (action, first) = match rest.split_once('@') {
                Some((action, first)) => (action, first.parse().ok()?),
                None => (rest, 1),
            };
            let action = match action.split_once(':') {
                None if action == "kill" => Action::Kill,
                None if action == "short" => Action::Short,
                None if action == "hold" => Action::Hold,
                Some(("error", "EIO")) => Action::Error(5),
                Some(("error", "ENOSPC")) => Action::Error(28),
                Some(("error", "EROFS")) => Action::Error(30),
                Some(("error", "EPERM")) => Action::Error(1),
                Some(("error", "ENOENT")) => Action::Error(2),
                Some(("error", "EEXIST")) => Action::Error(17),
                Some(("error", "ESTALE")) => Action::Error(116),
                Some(("delay", ms)) => Action::Delay(Duration::from_millis(ms.parse().ok()?)),
                _ => return None,
            };
            Some(Rule { name: name.to_owned(), action, first, times })
        }
    }

    pub(super) struct Steering {
        set: PathBuf,
        hits: File,
        current: Mutex<Current>,
    }

    /// The file `set` as it was read last.
    #[derive(Default)]
    struct Current {
        /// Inode, seconds and nanoseconds: another file has another one of them.
        version: (u64, i64, i64),
        /// Each with how often its point was hit.
        rules: Vec<(Rule, u64)>,
    }

    pub(super) static STEERING: LazyLock<Option<Steering>> = LazyLock::new(|| {
        let dir = PathBuf::from(std::env::var_os(super::VARIABLE)?);
        let hits = OpenOptions::new().append(true).create(true).open(dir.join("hits")).ok()?;
        Some(Steering { set: dir.join("set"), hits, current: Mutex::default() })
    });

    /// Tells of the hit and does what is asked; the answer is what the point itself has to do.
    pub(super) fn act(name: &str) -> Option<Action> {
        let steering = STEERING.as_ref()?;
        let action = steering.next(name);
        let line = match action {
            Some(action) => format!("{name} {action:?}\n"),
            None => format!("{name}\n"),
        };
        // One append, so that no line is torn, and there before the process ends.
        let _ = (&steering.hits).write_all(line.as_bytes());
        match action {
            Some(Action::Kill) => {
                let _ = kill(Pid::this(), Signal::SIGKILL);
                loop {
                    std::thread::park();
                }
            }
            Some(Action::Delay(time)) => std::thread::sleep(time),
            Some(Action::Hold) => {
                while steering.holds(name) {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            _ => {}
        }
        action
    }

    impl Steering {
        /// The setting as it is now.
        fn current(&self) -> MutexGuard<'_, Current> {
            let mut current = self.current.lock();
            let version = fs::metadata(&self.set).map_or((0, 0, 0), |m| (m.ino(), m.mtime(), m.mtime_nsec()));
            if version != current.version {
                let text = fs::read_to_string(&self.set).unwrap_or_default();
                let rules = text.lines().filter_map(Rule::parse).map(|rule| (rule, 0)).collect();
                *current = Current { version, rules };
            }
            current
        }

        fn holds(&self, name: &str) -> bool {
            self.current().rules.iter().any(|(rule, _)| rule.name == name && rule.action == Action::Hold)
        }

        /// Counts a hit; what is to be done at it.
        fn next(&self, name: &str) -> Option<Action> {
            let mut current = self.current();
            let mut wanted = None;
            for (rule, hits) in current.rules.iter_mut().filter(|(rule, _)| rule.name == name) {
                *hits += 1;
                let due = *hits >= rule.first && *hits - rule.first < rule.times;
                wanted = wanted.or(due.then_some(rule.action));
            }
            wanted
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::time::Duration;

    use super::steered::{Action, Rule};

    #[test]
    fn lines_are_read_as_documented() {
        let rule = |action, first, times| Some(Rule { name: "a.b".to_owned(), action, first, times });
        assert_eq!(Rule::parse("a.b=kill"), rule(Action::Kill, 1, u64::MAX));
        assert_eq!(Rule::parse(" a.b=kill@3\n"), rule(Action::Kill, 3, u64::MAX));
        assert_eq!(Rule::parse("a.b=error:EIO*2"), rule(Action::Error(5), 1, 2));
        assert_eq!(Rule::parse("a.b=error:ENOSPC@4*1"), rule(Action::Error(28), 4, 1));
        assert_eq!(Rule::parse("a.b=hold"), rule(Action::Hold, 1, u64::MAX));
        assert_eq!(Rule::parse("a.b=short"), rule(Action::Short, 1, u64::MAX));
        assert_eq!(Rule::parse("a.b=delay:20"), rule(Action::Delay(Duration::from_millis(20)), 1, u64::MAX));
        for wrong in ["", "a.b", "a.b=", "a.b=error:5x", "a.b=kill@x", "a.b=delay:"] {
            assert_eq!(Rule::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_point_that_nobody_steers_is_nothing() {
        super::hit("seal.put");
        super::call("staging.force").unwrap();
        assert_eq!(super::write("staging.write", 10).unwrap(), 10);
    }
}
