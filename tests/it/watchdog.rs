//! Requests that take too long are told of, and a daemon with a defect ends instead of hanging.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;

use crate::disk_errors::Disk;
use crate::harness::{Depot, Mode, command, eventually, guarded, on_depot, run_command};

/// A file system on which nothing can be written until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(at: &Path) -> Frozen {
        let frozen = Frozen(at.to_owned());
        run_command(&mut command("fsfreeze", &["-f", at.to_str().unwrap()])).ok();
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run_command(&mut command("fsfreeze", &["-u", self.0.to_str().unwrap()]));
    }
}

/// Mounts with a variable of the tests in the daemon's environment.
fn mount_with(depot: &Depot, variable: &str, value: &str) {
    run_command(depot.command(&["mount", depot.dir_str(), depot.mountpoint_str()]).env(variable, value)).ok();
}

fn metric(depot: &Depot, name: &str) -> u64 {
    let text = depot.cli(&["metrics", depot.dir_str()]).ok();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// The lines of the log with this text, and the seconds that they tell.
fn told(depot: &Depot, part: &str) -> Vec<u64> {
    let log = depot.log();
    let lines = log.lines().filter(|line| line.contains(part));
    let seconds = |line: &str| {
        let before = line.split(" s").find_map(|text| text.rsplit(' ').next()?.parse().ok());
        before.unwrap_or_else(|| panic!("no seconds in {line}"))
    };
    lines.map(seconds).collect()
}

#[test]
fn a_request_on_a_stuck_disk_is_told_of_and_ends() {
    guarded(|| {
        // Only the filestore is on the disk that gets stuck: index and log go on.
        let disk = Disk::new(64);
        let depot = Depot::uninitialised(Mode::Passthrough);
        let store = format!("file-system.dir={}/blobs", disk.path());
        depot.cli(&["init", depot.dir_str(), "--set", &store]).ok();
        mount_with(&depot, "DEPOTFS_TEST_WATCHDOG_MS", "1000");
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/before"), "before").unwrap();
        depot.flush();
        assert!(told(&depot, "under way for").is_empty(), "nothing is told of requests that are answered");
        thread::scope(|s| {
            let frozen = Frozen::new(&disk.at);
            let write = s.spawn(|| fs::write(depot.path("repo/stuck"), "bytes"));
            let line = "create of inode";
            eventually("the watchdog to tell twice", || told(&depot, line).len() >= 2);
            assert!(!write.is_finished());
            assert_eq!(fs::read(depot.path("repo/before")).unwrap(), b"before", "the rest goes on");
            assert!(metric(&depot, "depotfs_requests_under_way") >= 1);
            assert!(metric(&depot, "depotfs_oldest_request_seconds") >= 1);
            assert!(metric(&depot, "depotfs_slow_requests_told_total") >= 2);
            drop(frozen);
            write.join().unwrap().unwrap();
            eventually("the end to be told", || depot.log().contains("ended after"));
            let ages = told(&depot, "create of inode");
            let ended = told(&depot, "ended after");
            let ages = &ages[..ages.len() - ended.len()];
            assert!(ages[0] >= 1 && ages.windows(2).all(|two| two[1] >= 2 * two[0] - 1), "{ages:?}");
        });
        let log = depot.log();
        let line = log.lines().find(|line| line.contains("under way for")).unwrap();
        assert!(line.contains("WARN") && line.contains("thread fuser-") && line.contains(" at "), "{line}");
        eventually("nothing to be under way", || metric(&depot, "depotfs_oldest_request_seconds") == 0);
        assert_eq!(fs::read(depot.path("repo/stuck")).unwrap(), b"bytes");
        depot.umount();
        depot.check();
    });
}

#[test]
fn a_panic_ends_the_daemon_with_a_line_and_the_next_mount_recovers() {
    on_depot(|depot| {
        mount_with(depot, "DEPOTFS_TEST_PANIC", "removexattr");
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "answered").unwrap();
        let why = crate::sys::removexattr(depot.path("repo/file"), "user.x").unwrap_err();
        assert!(matches!(why, Errno::ENOTCONN | Errno::ECONNABORTED | Errno::EIO), "{why}");
        eventually("the daemon to be gone", || depot.daemons().is_empty());
        assert!(fs::metadata(depot.path("repo")).is_err(), "nobody waits for an answer");
        let log = depot.log();
        let line = log.lines().find(|line| line.contains("defect: ")).unwrap_or_else(|| panic!("{log}"));
        assert!(
            line.contains("ERROR") && line.contains("thread fuser-") && line.contains("watch.rs:"),
            "{line}"
        );
        assert!(log.contains("depotfs::fuse::"), "the way to the panic is told: {log}");
        depot.mount();
        assert_eq!(fs::read(depot.path("repo/file")).unwrap(), b"answered");
        depot.umount();
        depot.check();
    });
}
