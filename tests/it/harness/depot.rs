//! One depot with its mountpoint, cleaned up whatever happens.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use tempfile::TempDir;

use super::run::{Mode, as_user};
use super::servers::{S3_KEYS, Server, Speaks};
use super::shell::{Ran, command, eventually, run_command, scratch};

/// Uid and gid of the ordinary user of the suite.
pub const NOBODY: u32 = 65534;

/// The checksum of no bytes.
pub const EMPTY: &str = "da39a3ee5e6b4b0d3255bfef95601890afd80709";

/// Blobs up to this size are read and compared after each test.
const VERIFIED_BYTES_MAX: u64 = 64 << 20;

/// SHA-1 as hex digits.
pub fn sha1(bytes: &[u8]) -> String {
    use sha1::Digest;
    sha1::Sha1::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The S3 server of all tests that do nothing to it.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(Speaks::S3))
}

/// A depot in a scratch directory, mounted or not.
pub struct Depot {
    pub mode: Mode,
    pub dir: PathBuf,
    pub mountpoint: PathBuf,
    /// Variables for the program.
    pub environment: Vec<(String, String)>,
    program: PathBuf,
    scratch: Option<TempDir>,
    /// Where the objects of its bucket are files.
    objects: Option<PathBuf>,
}

impl Depot {
    /// An initialised depot that belongs to whoever mounts it in `mode`.
    #[track_caller]
    pub fn new(mode: Mode) -> Depot {
        if mode == Mode::Objects {
            return Depot::in_bucket(server(), server().port(), &[]);
        }
        Depot::with(mode, &[])
    }

    /// The same with further settings.
    #[track_caller]
    pub fn with(mode: Mode, settings: &[&str]) -> Depot {
        let depot = Depot::uninitialised(mode);
        let chosen: &[&str] = match mode {
            Mode::Database => &["template=full-db-direct"],
            Mode::CachedRows => &["template=full-db"],
            Mode::Sharded => &[
                "chain=sharding",
                "sharding.redundancy=2",
                "sharding.check-period=100ms",
                "sharding.shard[0].dir=shard0",
                "sharding.shard[1].dir=shard1",
                "sharding.shard[2].dir=shard2",
            ],
            // A build for users has no faults, and no directory that plays a store far away.
            Mode::Queued if !cfg!(debug_assertions) => &["chain=eventual,file-system"],
            Mode::Queued => &["chain=eventual,faulty,file-system", "faulty.remote=true"],
            _ => &["template=file-system"],
        };
        let mut args = vec!["init", depot.dir_str()];
        chosen.iter().chain(settings).for_each(|setting| args.extend(["--set", *setting]));
        depot.cli(&args).ok();
        depot
    }

    /// A depot in a fresh bucket of an S3 server, which is reached by this port; with further settings.
    #[track_caller]
    pub fn in_bucket(server: &Server, port: u16, settings: &[&str]) -> Depot {
        let mut depot = Depot::uninitialised(Mode::Objects);
        let bucket = server.bucket();
        depot.objects = Some(server.directory(&bucket).join("filestore"));
        depot.environment.push(("S3_SECRET".into(), S3_KEYS.1.into()));
        let address = format!("s3-storage-v3.endpoint={}", server.address_by(port));
        let named = format!("s3-storage-v3.bucket-name={bucket}");
        let identity = format!("s3-storage-v3.identity={}", S3_KEYS.0);
        let (chain, credential) = ("chain=retry,s3-storage-v3", "s3-storage-v3.credential=${S3_SECRET}");
        let own = [chain, "retry.interval=100ms", credential, &address, &named, &identity];
        let settings = [&own[..], settings].concat();
        let mut args = vec!["init", depot.dir_str()];
        settings.iter().for_each(|setting| args.extend(["--set", *setting]));
        depot.cli(&args).ok();
        depot
    }

    /// The same with the depot in a directory of the caller's.
    #[track_caller]
    pub fn new_in(dir: &Path) -> Depot {
        Depot::new_in_mode(Mode::Passthrough, dir)
    }

    /// The same in a mode of the caller's.
    #[track_caller]
    pub fn new_in_mode(mode: Mode, dir: &Path) -> Depot {
        let mut depot = Depot::uninitialised(mode);
        depot.dir = dir.join("depot");
        depot.cli(&["init", depot.dir_str()]).ok();
        depot
    }

    /// A place for a depot.
    pub fn uninitialised(mode: Mode) -> Depot {
        let scratch = scratch();
        let at = |name: &str| scratch.path().join(name);
        let (dir, mountpoint, program) = (at("depot"), at("mnt"), at("depotfs"));
        // A name of its own lets everybody start the program, wherever it was built.
        let built = Path::new(env!("CARGO_BIN_EXE_depotfs"));
        fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop)).unwrap();
        fs::create_dir(&mountpoint).unwrap();
        if mode.is_user() {
            for dir in [scratch.path(), &mountpoint] {
                std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        Depot {
            mode,
            dir,
            mountpoint,
            environment: Vec::new(),
            program,
            scratch: Some(scratch),
            objects: None,
        }
    }

    /// The directory that holds depot and mountpoint; gone with the depot.
    pub fn scratch(&self) -> &Path {
        self.scratch.as_ref().unwrap().path()
    }

    pub fn dir_str(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    pub fn mountpoint_str(&self) -> &str {
        self.mountpoint.to_str().unwrap()
    }

    /// A path in the mount.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// The program with these arguments, to be run by the depot's owner.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = command(&self.program, args);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if self.mode.is_user() && geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Ran {
        run_command(&mut self.command(args))
    }

    /// Runs `work` as the depot's owner.
    pub fn as_owner<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self.mode.is_user() && geteuid().is_root() {
            true => as_user(NOBODY, NOBODY, work),
            false => work(),
        }
    }

    /// Mounts in the depot's mode.
    #[track_caller]
    pub fn mount(&self) {
        self.mount_with("").ok();
        assert!(self.is_mounted(), "mount said 0, and nothing is mounted");
    }

    /// Mounts in the depot's mode with further options.
    #[track_caller]
    pub fn mount_with(&self, options: &str) -> Ran {
        let options: Vec<&str> =
            [self.mode.options(), options].into_iter().filter(|o| !o.is_empty()).collect();
        let options = options.join(",");
        let mut args = vec!["mount", self.dir_str(), self.mountpoint_str()];
        if !options.is_empty() {
            args.extend(["-o", &options]);
        }
        self.cli(&args)
    }

    /// Unmounts; a program that another test is just starting may hold our descriptors for a moment.
    #[track_caller]
    pub fn umount(&self) {
        let mut ran = self.cli(&["umount", self.mountpoint_str()]);
        for _ in 0..20 {
            if ran.code != Some(5) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            ran = self.cli(&["umount", self.mountpoint_str()]);
        }
        ran.ok();
        assert!(!self.is_mounted(), "umount said 0, and the mount is still there");
    }

    /// Everything closed is a blob when this returns.
    #[track_caller]
    pub fn flush(&self) {
        self.cli(&["flush", self.dir_str(), "--wait"]).ok();
    }

    /// The offline check of an unmounted depot finds nothing wrong.
    #[track_caller]
    pub fn check(&self) {
        self.cli(&["check", self.dir_str()]).ok();
    }

    #[track_caller]
    pub fn status(&self) -> Value {
        let ran = self.cli(&["status", self.dir_str(), "--json"]);
        // 3 says that there is no daemon; what the index tells is told all the same.
        let text = if ran.code == Some(3) { ran.out } else { ran.ok() };
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("status --json: {e}\n{text}"))
    }

    /// Checksum of a file in the tree, sealed if need be.
    #[track_caller]
    pub fn checksum(&self, path_in_tree: &str) -> String {
        let text = self.cli(&["blob", "checksum", self.dir_str(), path_in_tree]).ok();
        let sum = text
            .split_whitespace()
            .find(|word| word.len() == 40 && word.bytes().all(|b| b.is_ascii_hexdigit()));
        sum.unwrap_or_else(|| panic!("no SHA-1 in {text:?}")).to_owned()
    }

    /// Where blobs and staging files are.
    pub fn store(&self) -> PathBuf {
        self.stores().remove(0)
    }

    /// The same, of every shard.
    pub fn stores(&self) -> Vec<PathBuf> {
        let names: &[&str] = match self.mode {
            Mode::Database | Mode::CachedRows => &["full-db"],
            Mode::Sharded => &["shard0", "shard1", "shard2"],
            Mode::Queued => &["eventual", "filestore"],
            Mode::Objects => &["s3-storage-v3"],
            _ => &["filestore"],
        };
        names.iter().map(|name| self.dir.join(name)).collect()
    }

    /// Where the objects of the depot's bucket are files.
    #[track_caller]
    pub fn objects_dir(&self) -> &Path {
        self.objects.as_ref().expect("a depot in a bucket")
    }

    /// Where blobs are files.
    fn places(&self) -> Vec<PathBuf> {
        self.objects.as_ref().map_or_else(|| self.stores(), |objects| vec![objects.clone()])
    }

    /// Checksums and bytes of the blobs in the database.
    fn rows(&self) -> Vec<(String, Vec<u8>)> {
        let c = rusqlite::Connection::open(self.store().join("blobs.db")).unwrap();
        let sql = "SELECT lower(hex(sum)), size, id FROM blob WHERE sum IS NOT NULL ORDER BY sum";
        let mut blobs = c.prepare(sql).unwrap();
        let sql =
            "SELECT bytes FROM part WHERE id BETWEEN ?1 << 24 AND (?1 << 24) + (1 << 24) - 1 ORDER BY id";
        let mut parts = c.prepare(sql).unwrap();
        let found = blobs.query_map([], |row| {
            let (sum, size, id): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let bytes =
                parts.query_map([id], |row| row.get(0))?.collect::<Result<Vec<Vec<u8>>, _>>()?.concat();
            assert_eq!(bytes.len() as i64, size, "the size of blob {sum}");
            Ok((sum, bytes))
        });
        found.unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// Where the blob of a checksum lies.
    pub fn blob(&self, sum: &str) -> PathBuf {
        if self.mode.is_database() {
            return self.store().join("blobs.db");
        }
        let copies = self.copies(sum);
        copies.into_iter().next().unwrap_or_else(|| self.places()[0].join(&sum[..2]).join(sum))
    }

    /// The same of every copy.
    pub fn copies(&self, sum: &str) -> Vec<PathBuf> {
        let paths = self.places().into_iter().map(|store| store.join(&sum[..2]).join(sum));
        paths.filter(|path| path.exists()).collect()
    }

    /// Every blob in the filestore but the empty one, in order.
    pub fn blobs(&self) -> Vec<String> {
        if self.mode.is_database() {
            return self.rows().into_iter().map(|(sum, _)| sum).filter(|sum| sum != EMPTY).collect();
        }
        let list =
            |dir: &Path| fs::read_dir(dir).map(|d| d.flatten().collect::<Vec<_>>()).unwrap_or_default();
        let stores = self.places();
        let folders = stores.iter().flat_map(|store| list(store)).filter(|f| f.file_name().len() == 2);
        let mut names: Vec<String> = folders
            .flat_map(|f| list(&f.path()))
            .map(|f| f.file_name().to_string_lossy().into_owned())
            .filter(|name| name.len() == 40 && name != EMPTY)
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Every blob is what its name says, and nobody may write it.
    #[track_caller]
    pub fn verify_blobs(&self) {
        if self.mode.is_database() {
            self.rows().iter().for_each(|(sum, bytes)| assert_eq!(sha1(bytes), *sum, "the bytes of a blob"));
            return;
        }
        for sum in self.blobs() {
            let path = self.blob(&sum);
            let meta = fs::metadata(&path).unwrap();
            if self.objects.is_none() {
                assert_eq!(meta.permissions().mode() & 0o7777, 0o400, "mode of blob {sum}");
            }
            if meta.len() < VERIFIED_BYTES_MAX {
                assert_eq!(sha1(&fs::read(&path).unwrap()), sum, "the bytes of a blob");
            }
        }
    }

    /// Names of the staging files that are there.
    pub fn staging(&self) -> Vec<String> {
        let stores = self.stores();
        let files = stores.iter().flat_map(|store| fs::read_dir(store.join("_pre")).unwrap().flatten());
        files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
    }

    pub fn is_mounted(&self) -> bool {
        is_mountpoint(&self.mountpoint)
    }

    /// Pids of daemons that serve this depot: the program, told to mount it.
    pub fn daemons(&self) -> Vec<i32> {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|p| p.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| self.is_daemon(*pid)).collect()
    }

    fn is_daemon(&self, pid: i32) -> bool {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let args: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let has = |wanted: &OsStr| args.contains(&wanted.as_bytes());
        args.first().is_some_and(|a| a.ends_with(b"depotfs"))
            && !has(OsStr::new("umount"))
            && (has(self.dir.as_os_str()) || has(self.mountpoint.as_os_str()))
            && has(OsStr::new("mount"))
    }

    /// The one daemon of the mounted depot.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let pids = self.daemons();
        assert_eq!(pids.len(), 1, "daemons of this depot: {pids:?}");
        pids[0]
    }

    /// kill -9 of the daemon; returns when it is gone. The dead mount stays.
    pub fn kill(&self) {
        for pid in self.daemons() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        eventually("the killed daemon to be gone", || self.daemons().is_empty());
    }

    /// What the daemon wrote to its log.
    pub fn log(&self) -> String {
        let files =
            fs::read_dir(self.dir.join("log")).map(|d| d.flatten().collect::<Vec<_>>()).unwrap_or_default();
        files.iter().map(|f| fs::read_to_string(f.path()).unwrap_or_default()).collect()
    }
}

/// Whether something is mounted exactly there; a dead mount counts.
pub fn is_mountpoint(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

impl Drop for Depot {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_the_log();
        }
        if self.is_mounted() && !std::thread::panicking() {
            self.cli(&["umount", self.mountpoint_str()]);
        }
        while self.is_mounted() {
            if !run_command(&mut command("umount", &["-l", self.mountpoint_str()])).err.is_empty() {
                break;
            }
        }
        self.kill();
        if self.is_mounted() {
            // Removing the scratch directory would remove what is mounted there.
            let _ = self.scratch.take().map(TempDir::keep);
        }
    }
}

impl Depot {
    fn tell_the_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(30)..] {
            eprintln!("daemon: {line}");
        }
    }
}
