//! Modes, and the running of one test in one of them.

use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Once};
use std::time::Duration;
use std::{fs, thread};

use super::depot::{Depot, NOBODY};
use super::shell::{eventually, scratch};
use crate::sys;

/// A test that takes longer hangs: its daemon is killed, which ends whatever waits for it.
const LIMIT: Duration = Duration::from_secs(600);

/// Where a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A directory of the local disk, as root: the measure of all others.
    Plain,
    /// The same as an ordinary user.
    PlainUser,
    /// A mount as root makes it: reads and writes pass through to the local file where the kernel can.
    Passthrough,
    /// A mount whose reads and writes all go through the daemon.
    Cached,
    /// A mount as root makes it, of a depot that keeps blobs as rows of a database.
    Database,
    /// The same of a depot with two copies of each blob on three shards.
    Sharded,
    /// As `Database`, with a cache before the database.
    CachedRows,
    /// The same of a depot that stores blobs later, in a directory that is served as from far away.
    Queued,
    /// The same of a depot that keeps blobs in a bucket of an S3 server.
    Objects,
    /// A mount that an ordinary user makes through fusermount3, and works in.
    User,
}

impl Mode {
    /// The mode that the `modes!` macro calls so.
    pub fn of(name: &str) -> Mode {
        match name {
            "plain" => Mode::Plain,
            "plain_user" => Mode::PlainUser,
            "passthrough" => Mode::Passthrough,
            "cached" => Mode::Cached,
            "database" => Mode::Database,
            "sharded" => Mode::Sharded,
            "cached_rows" => Mode::CachedRows,
            "queued" => Mode::Queued,
            "objects" => Mode::Objects,
            "user" => Mode::User,
            _ => panic!("no mode {name}"),
        }
    }

    /// What it is mounted with: in the cached mode nothing is used that an old kernel or a simple disk does not offer.
    pub fn options(self) -> &'static str {
        match self {
            Mode::Cached => "passthrough=off,reflink=off,mount_ids=off,clone_fd=off",
            _ => "",
        }
    }

    pub fn is_database(self) -> bool {
        matches!(self, Mode::Database | Mode::CachedRows)
    }

    pub fn is_plain(self) -> bool {
        matches!(self, Mode::Plain | Mode::PlainUser)
    }

    pub fn is_user(self) -> bool {
        matches!(self, Mode::PlainUser | Mode::User)
    }
}

/// The directory a test works in: `repo` of a fresh depot's mount, or a plain one.
pub struct Tree {
    pub mode: Mode,
    dir: PathBuf,
    depot: Option<Depot>,
    _scratch: Option<tempfile::TempDir>,
}

impl Tree {
    fn new(mode: Mode) -> Tree {
        if mode.is_plain() {
            let scratch = scratch();
            let dir = scratch.path().join("repo");
            make_for(mode, &dir);
            return Tree { mode, dir, depot: None, _scratch: Some(scratch) };
        }
        let depot = Depot::new(mode);
        depot.mount();
        let dir = depot.mountpoint.join("repo");
        let made = dir.clone();
        depot.as_owner(move || fs::create_dir(made)).unwrap();
        Tree { mode, dir, depot: Some(depot), _scratch: None }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// A closed file with these bytes.
    #[track_caller]
    pub fn file(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// A closed file that is a blob already, where there are blobs.
    #[track_caller]
    pub fn sealed(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name, bytes);
        self.seal();
        path
    }

    /// Makes blobs of all closed files, in the mount.
    ///
    /// The kernel tells the daemon of a close a moment after close(2) returned, and a program that another test starts
    /// holds our descriptors until it runs; so this looks again while something counts as open.
    #[track_caller]
    pub fn seal(&self) {
        let Some(depot) = &self.depot else { return };
        for _ in 0..8 {
            depot.flush();
            let pending = depot.status()["pending"].clone();
            if pending["dirty"] == 0 && pending["closed"] == 0 {
                return;
            }
            thread::sleep(Duration::from_millis(15));
        }
    }

    /// Waits until exactly these blobs are in the filestore, besides the empty one.
    #[track_caller]
    pub fn blobs_become(&self, sums: &[String]) {
        let mut wanted = sums.to_vec();
        wanted.sort();
        eventually(&format!("the blobs to be {wanted:?}"), || self.depot().blobs() == wanted);
    }

    /// The depot below the tree, in a mode that has one.
    pub fn depot(&self) -> &Depot {
        self.depot.as_ref().expect("this test has no place in a plain mode")
    }

    /// Unmounts and mounts again, where there is a mount.
    #[track_caller]
    pub fn remount(&self) {
        if let Some(depot) = &self.depot {
            depot.umount();
            depot.mount();
        }
    }
}

/// A directory outside of the tree that belongs to whoever the test runs as.
pub fn scratch_for(t: &Tree) -> tempfile::TempDir {
    // Made by the calling thread, so it has the right owner.
    debug_assert_eq!(t.mode.is_user(), !nix::unistd::geteuid().is_root());
    scratch()
}

fn make_for(mode: Mode, dir: &Path) {
    fs::create_dir(dir).unwrap();
    if mode.is_user() {
        std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// Runs `work` with the ids of an ordinary user who is in no other group.
pub fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
    let user = || {
        sys::become_user(uid, gid, &[]);
        work()
    };
    thread::scope(|s| s.spawn(user).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Runs one test in one mode; a mount has to end clean and `check` has to find nothing wrong with its depot.
pub fn run(mode: Mode, test: impl FnOnce(&Tree) + Send + 'static) {
    run_within(LIMIT, mode, test);
}

/// As `run`, of a test that may take longer than others.
pub fn run_within(limit: Duration, mode: Mode, test: impl FnOnce(&Tree) + Send + 'static) {
    prepare();
    let tree = Arc::new(Tree::new(mode));
    let inside = tree.clone();
    let body = move || match mode.is_user() {
        true => as_user(NOBODY, NOBODY, || test(&inside)),
        false => test(&inside),
    };
    let hung = || {
        if let Some(depot) = &tree.depot {
            depot.kill();
        }
    };
    within_limit(limit, body, hung);
    if let Some(depot) = &tree.depot
        && depot.is_mounted()
    {
        depot.umount();
        depot.verify_blobs();
        depot.check();
    }
}

/// Runs a test that looks after a depot of root's itself (made, not mounted), in the default mode.
pub fn on_depot(test: fn(&Depot)) {
    prepare();
    let depot = Arc::new(Depot::new(Mode::Passthrough));
    let inside = depot.clone();
    within_limit(LIMIT, move || test(&inside), || depot.kill());
}

/// Runs a test that needs nothing but an end.
pub fn guarded(test: fn()) {
    prepare();
    within_limit(LIMIT, test, || {});
}

/// Runs a part of a test that has to end within `limit`; when it does not, `hung` has to free it, and the test fails.
pub fn guarded_for<T: Send + 'static>(
    limit: Duration,
    body: impl FnOnce() -> T + Send + 'static,
    hung: impl FnOnce(),
) -> T {
    prepare();
    within(limit, body, hung)
}

fn within_limit(limit: Duration, body: impl FnOnce() + Send + 'static, hung: impl FnOnce()) {
    within(limit, body, hung);
}

/// Runs `body` on a thread; when it does not come back, `hung` has to free it, and the test fails.
fn within<T: Send + 'static>(
    limit: Duration,
    body: impl FnOnce() -> T + Send + 'static,
    hung: impl FnOnce(),
) -> T {
    let (done, wait) = channel();
    let name = thread::current().name().unwrap_or("test").to_owned();
    let body = move || {
        let result = catch_unwind(AssertUnwindSafe(body));
        let _ = done.send(());
        drop(done);
        result
    };
    let thread = thread::Builder::new().name(name).spawn(body).unwrap();
    if wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
        hung();
        let _ = wait.recv_timeout(Duration::from_secs(20));
        panic!("the test did not end within {limit:?}");
    }
    thread.join().unwrap().unwrap_or_else(|panic| resume_unwind(panic))
}

fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        assert!(
            nix::unistd::geteuid().is_root(),
            "run the integration suite as root: it mounts and changes users"
        );
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        // As udev leaves it; where there is no udev, as in a bare virtual machine, only root could mount.
        let device = "/dev/fuse";
        if fs::metadata(device).is_ok_and(|m| m.permissions().mode() & 0o666 != 0o666) {
            fs::set_permissions(device, fs::Permissions::from_mode(0o666)).unwrap();
        }
    });
}
