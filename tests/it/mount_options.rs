//! What the options of a mount do.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::data::{noise, rw};
use crate::harness::{Depot, Fails, Mode, as_user, eventually, guarded, on_depot, run_command, sh, sha1};

#[test]
fn an_unknown_option_is_refused_with_the_nearest() {
    on_depot(|depot| {
        for (given, nearest) in
            [("pasthrough=off", "passthrough"), ("noatme", "noatime"), ("subdri=x", "subdir")]
        {
            let err = depot.mount_with(given).fails(2);
            let name = given.split('=').next().unwrap();
            assert!(err.contains(name) && err.contains(nearest), "{err}");
            assert!(!depot.is_mounted());
        }
        depot.mount_with("durability=never").fails(2);
        depot.mount_with("x-systemd.automount,_netdev,defaults,nofail,rw,default_permissions").ok();
    });
}

#[test]
fn options_of_mount_hold() {
    on_depot(|depot| {
        depot.mount_with("noexec,nosuid,nodev").ok();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|l| l.contains(depot.mountpoint_str())).unwrap();
        for option in ["noexec", "nosuid", "nodev"] {
            assert!(line.contains(option), "{line}");
        }
        assert!(
            line.contains("fuse.depotfs")
                && line.contains("default_permissions")
                && line.contains("allow_other"),
            "{line}"
        );
        fs::create_dir(depot.path("repo")).unwrap();
        sh(depot.path("repo"), "printf '#!/bin/sh\\n' > x; chmod +x x; mknod null c 1 3");
        Command::new(depot.path("repo/x")).spawn().fails(Errno::EACCES);
        fs::read(depot.path("repo/null")).fails(Errno::EACCES);
        sh(depot.path("repo"), "ln -s x link");
        assert!(fs::read(depot.path("repo/link")).is_ok());
        depot.umount();
        depot.mount_with("nosymfollow,silent,nomand,noiversion,noallow_other").ok();
        fs::read(depot.path("repo/link")).fails(Errno::ELOOP);
        assert!(
            !fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .lines()
                .any(|line| { line.contains(depot.mountpoint_str()) && line.contains("allow_other") })
        );
        as_user(1001, 1001, || fs::metadata(depot.path("repo")).fails(Errno::EACCES));
    });
}

#[test]
fn passthrough_that_is_insisted_on() {
    on_depot(|depot| {
        depot.mount_with("passthrough=on").ok();
        assert_eq!(depot.status()["reads"]["mode"], "passthrough");
    });
    guarded(|| {
        let depot = Depot::new(Mode::User);
        let err = depot.mount_with("passthrough=on").fails(1);
        assert!(err.contains("passthrough=on") && err.contains("root"), "{err}");
        assert!(!depot.is_mounted());
    });
}

#[test]
fn a_read_only_mount_changes_nothing() {
    on_depot(|depot| {
        depot.mount();
        let (gone, aside) = leave_work_for_every_job(depot);
        let before = files_below(&depot.dir.join("filestore"));
        depot.mount_with("ro").ok();
        let path = depot.path("repo/file");
        assert_eq!(fs::read(&path).unwrap(), b"bytes");
        assert_eq!(fs::read(depot.path("repo/unsealed")).unwrap(), b"not sealed yet");
        OpenOptions::new().write(true).open(&path).fails(Errno::EROFS);
        File::create(depot.path("repo/new")).fails(Errno::EROFS);
        fs::remove_file(&path).fails(Errno::EROFS);
        fs::create_dir(depot.path("new")).fails(Errno::EROFS);
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).fails(Errno::EROFS);
        crate::sys::setxattr(&path, "user.x", b"y", 0).fails(Errno::EROFS);
        let flags = nix::sys::statvfs::statvfs(&depot.mountpoint).unwrap().flags();
        assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
        let ticks = processor_ticks(depot.pid());
        std::thread::sleep(Duration::from_secs(2));
        let ticks = processor_ticks(depot.pid()) - ticks;
        assert!(ticks < 50, "{ticks} hundredths of a second of 2 s for nothing");
        let ran = depot.cli(&["umount", depot.mountpoint_str()]);
        assert_eq!(ran.err, "");
        ran.ok();
        assert_eq!(files_below(&depot.dir.join("filestore")), before);
        let log = depot.log();
        assert!(!log.contains("ERROR") && !log.contains("read-only"), "{log}");
        depot.mount();
        fs::write(&path, "changed").unwrap();
        eventually("the work that was there to be done", || !gone.exists() && !aside.exists());
    });
}

/// A mounted depot is killed with a dead blob, blobs without digests, an unsealed file and set-aside bytes whose time is
/// over; where the dead blob and those bytes are.
fn leave_work_for_every_job(depot: &Depot) -> (PathBuf, PathBuf) {
    fs::create_dir(depot.path("repo")).unwrap();
    fs::write(depot.path("repo/file"), "bytes").unwrap();
    fs::write(depot.path("repo/gone"), "gone").unwrap();
    depot.flush();
    fs::remove_file(depot.path("repo/gone")).unwrap();
    depot.flush();
    fs::write(depot.path("repo/unsealed"), "not sealed yet").unwrap();
    depot.kill();
    let index = rusqlite::Connection::open(depot.dir.join("index.db")).unwrap();
    let dead = index.execute("UPDATE blob SET since = 1 WHERE refs = 0 AND size > 0", []).unwrap();
    assert_eq!(dead, 1);
    index.execute("UPDATE blob SET sha256 = NULL, md5 = NULL WHERE size > 0", []).unwrap();
    let aside = depot.dir.join("filestore/_aside/00000000000000aa");
    fs::write(&aside, "kept too long").unwrap();
    // The note tells since when.
    fs::write(aside.with_extension("txt"), "why").unwrap();
    sh("/", &format!("touch -d '15 days ago' {}.txt", aside.display()));
    (depot.blob(&sha1(b"gone")), aside)
}

/// Paths, sizes, times and numbers of all files below a directory; a mount tries in it what the disk can.
fn files_below(dir: &Path) -> String {
    sh(dir, "find . -type f -printf '%p %s %i %T@\n' | sort")
}

/// Hundredths of a second that a process has computed.
fn processor_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// A file system over another one, which the kernel does not pass through to; gone with this.
struct Stacked(PathBuf);

impl Stacked {
    fn new(scratch: &Path) -> Stacked {
        let at = scratch.join("stacked");
        let script = "mkdir lower upper work stacked
            mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work stacked";
        sh(scratch, script);
        Stacked(at)
    }
}

impl Drop for Stacked {
    fn drop(&mut self) {
        run_command(Command::new("umount").arg("-l").arg(&self.0));
    }
}

#[test]
fn passthrough_that_does_not_work_is_an_error_where_it_is_insisted_on() {
    on_depot(|depot| {
        let stacked = Stacked::new(depot.scratch());
        let dir = depot.scratch().join("other");
        let dir = dir.to_str().unwrap();
        let store = format!("file-system.dir={}/blobs", stacked.0.display());
        depot.cli(&["init", dir, "--set", &store]).ok();
        let err = depot.cli(&["mount", dir, depot.mountpoint_str(), "-o", "passthrough=on"]).fails(1);
        assert!(err.contains("passthrough=on") && err.contains("the kernel refuses it"), "{err}");
        assert!(!depot.is_mounted());
        depot.cli(&["mount", dir, depot.mountpoint_str()]).ok();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), noise(1, 100_000)).unwrap();
        assert!(fs::read(depot.path("repo/file")).unwrap() == noise(1, 100_000));
        depot.cli(&["umount", depot.mountpoint_str()]).ok();
        depot.mount_with("passthrough=on").ok();
    });
}

#[test]
fn a_directory_of_the_tree_as_the_root_of_the_mount() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir_all(depot.path("repo/dir/sub")).unwrap();
        fs::write(depot.path("repo/dir/file"), "bytes").unwrap();
        fs::write(depot.path("repo/outside"), "x").unwrap();
        depot.umount();
        depot.mount_with("subdir=repo/dir").ok();
        assert_eq!(fs::read(depot.path("file")).unwrap(), b"bytes");
        let mut listed: Vec<_> =
            fs::read_dir(&depot.mountpoint).unwrap().map(|e| e.unwrap().file_name()).collect();
        listed.sort();
        assert_eq!(listed, ["file", "sub"]);
        assert_eq!(
            fs::metadata(depot.path("..")).unwrap().ino(),
            fs::metadata(depot.scratch()).unwrap().ino()
        );
        fs::write(depot.path("new"), "files stand at the top here").unwrap();
        fs::rename(depot.path("new"), depot.path("sub/new")).unwrap();
        fs::hard_link(depot.path("file"), depot.path("sub/linked")).unwrap();
        fs::create_dir(depot.path(".trash")).unwrap();
        assert_eq!(depot.status()["mount"]["subdir"], "repo/dir");
        let sum = depot.checksum(depot.path("file").to_str().unwrap());
        assert_eq!(sum, sha1(b"bytes"));
        assert_eq!(
            depot.checksum("repo/outside"),
            sha1(b"x"),
            "a relative path starts at the root of the tree"
        );
        depot.umount();
        depot.mount_with("subdir=repo/missing").fails(1);
        depot.mount_with("subdir=repo/outside").fails(1);
        depot.mount();
        assert!(depot.path("repo/dir/sub/new").exists());
    });
}

/// How often the daemon forces something to the disk while `work` runs.
fn forces(depot: &Depot, work: impl FnOnce()) -> usize {
    let (out, pid) = (depot.scratch().join("forces"), depot.pid().to_string());
    let args = ["-f", "-q", "-e", "trace=fsync,fdatasync,syncfs", "-o", out.to_str().unwrap(), "-p", &pid];
    let mut tracer = crate::harness::command("strace", &args).stderr(Stdio::null()).spawn().unwrap();
    eventually("every thread to be traced", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let mut states = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        states.all(|state| !state.contains("TracerPid:\t0"))
    });
    work();
    kill(Pid::from_raw(tracer.id() as i32), Signal::SIGINT).unwrap();
    tracer.wait().unwrap();
    let text = fs::read_to_string(out).unwrap();
    // A call that others run into stands on two lines.
    text.lines().filter(|line| line.contains("sync") && !line.contains("resumed")).count()
}

#[test]
fn synchronous_mounts_force_at_once() {
    on_depot(|depot| {
        const CHANGES: usize = 20;
        let make = |kind: &str| {
            for i in 0..CHANGES {
                fs::create_dir(depot.path(format!("repo/{kind}{i}"))).unwrap();
            }
        };
        let write = || {
            let file = rw(&depot.path("repo/file"));
            (0..CHANGES).for_each(|i| file.write_all_at(b"bytes", i as u64).unwrap());
        };
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        assert!(forces(depot, || make("none")) < CHANGES, "the measure: an ordinary mount");
        depot.umount();
        depot.mount_with("dirsync").ok();
        assert!(forces(depot, || make("dirsync")) >= CHANGES);
        assert!(forces(depot, || fs::write(depot.path("repo/new"), "").unwrap()) > 0);
        assert_eq!(depot.status()["reads"]["mode"], "passthrough");
        depot.umount();
        depot.mount_with("sync").ok();
        assert!(forces(depot, write) >= CHANGES);
        assert!(forces(depot, || make("sync")) >= CHANGES);
        depot.umount();
        depot.mount_with("sync,passthrough=on").fails(2);
    });
}
