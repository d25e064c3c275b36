//! Mounting and unmounting, one daemon per depot, kill -9 and what comes after it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::data::{noise, rw};
use crate::harness::{Depot, Fails, Mode, Tree, eventually, guarded, on_depot, run_command, sh, sha1};

modes!(mounted:
    nothing_answered_is_lost_by_a_kill, a_kill_with_open_files_and_mappings, umount_seals_what_is_pending,
    a_busy_mount_is_not_unmounted, a_lazy_umount_returns_at_once, reads_say_how_they_are_served,
    a_second_mount_names_the_first, mount_after_umount_waits, a_mount_left_behind_is_cleared,
);

/// What the program wrote on both channels.
pub fn said(ran: &crate::harness::Ran) -> String {
    format!("{}{}", ran.out, ran.err)
}

fn nothing_answered_is_lost_by_a_kill(t: &Tree) {
    t.sealed("sealed", "sealed bytes");
    t.sealed("removed", "x");
    t.sealed("overwritten", "old");
    t.file("closed", noise(1, 100_000));
    let open = rw(&t.path("open"));
    open.write_all_at(b"written, never closed", 0).unwrap();
    let appended = OpenOptions::new().append(true).open(t.path("sealed")).unwrap();
    (&appended).write_all(b", appended").unwrap();
    fs::write(t.path("overwritten"), "new").unwrap();
    fs::remove_file(t.path("removed")).unwrap();
    fs::create_dir_all(t.path("a/b")).unwrap();
    fs::rename(t.path("closed"), t.path("a/b/renamed")).unwrap();
    std::os::unix::fs::symlink("target", t.path("link")).unwrap();
    fs::hard_link(t.path("overwritten"), t.path("linked")).unwrap();
    fs::set_permissions(t.path("overwritten"), std::os::unix::fs::PermissionsExt::from_mode(0o751)).unwrap();
    crate::sys::setxattr(t.path("linked"), "user.x", b"y", 0).unwrap();
    nix::unistd::truncate(&t.path("a/b/renamed"), 99_000).unwrap();
    fs::write(t.path("empty"), "").unwrap();
    t.depot().kill();
    drop((open, appended));
    t.depot().mount();
    assert_eq!(fs::read(t.path("sealed")).unwrap(), b"sealed bytes, appended");
    assert_eq!(fs::read(t.path("open")).unwrap(), b"written, never closed");
    assert_eq!(fs::read(t.path("overwritten")).unwrap(), b"new");
    assert_eq!(fs::metadata(t.path("overwritten")).unwrap().mode() & 0o777, 0o751);
    assert_eq!(fs::metadata(t.path("linked")).unwrap().nlink(), 2);
    assert_eq!(crate::sys::getxattr(t.path("linked"), "user.x").unwrap(), b"y");
    assert!(fs::read(t.path("a/b/renamed")).unwrap() == noise(1, 100_000)[..99_000]);
    assert_eq!(fs::read_link(t.path("link")).unwrap(), Path::new("target"));
    assert_eq!(fs::read(t.path("empty")).unwrap(), b"");
    fs::metadata(t.path("removed")).fails(Errno::ENOENT);
    t.seal();
    assert_eq!(fs::read(t.path("open")).unwrap(), b"written, never closed");
}

fn a_kill_with_open_files_and_mappings(t: &Tree) {
    let path = t.sealed("file", vec![b'a'; 8192]);
    let file = rw(&path);
    let map = crate::sys::Map::shared(&file, 8192).unwrap();
    map.write(5000, b"stored");
    map.sync().unwrap();
    file.write_all_at(b"written", 0).unwrap();
    let unlinked = rw(&t.path("unlinked"));
    fs::remove_file(t.path("unlinked")).unwrap();
    unlinked.write_all_at(b"gone", 0).unwrap();
    let reader = File::open(&path).unwrap();
    t.depot().kill();
    t.depot().mount();
    let bytes = fs::read(&path).unwrap();
    assert_eq!((&bytes[..7], &bytes[5000..5006], bytes.len()), (&b"written"[..], &b"stored"[..], 8192));
    // Descriptors of the dead mount may still reach the file, but never a blob.
    let late = file.write_at(b"LATE", 0).is_ok();
    t.seal();
    let _ = file.write_at(b"last", 0);
    drop((map, file, unlinked, reader));
    let bytes = fs::read(&path).unwrap();
    assert!([&b"writ"[..], b"LATE", b"last"].contains(&&bytes[..4]) && (late || bytes[0] == b'w'));
    t.seal();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    t.depot().verify_blobs();
    eventually("the staging files to be gone", || t.depot().staging().is_empty());
    fs::write(&path, "all is well").unwrap();
}

fn umount_seals_what_is_pending(t: &Tree) {
    for i in 0..50 {
        t.file(format!("f{i}"), noise(i, 3000));
    }
    t.depot().umount();
    let mut sums: Vec<String> = (0..50).map(|i| sha1(&noise(i, 3000))).collect();
    sums.sort();
    assert_eq!(t.depot().blobs(), sums);
    assert_eq!(t.depot().staging(), Vec::<String>::new());
    assert_eq!(t.depot().daemons(), Vec::<i32>::new(), "umount waits for the daemon to exit");
    t.depot().mount();
    assert!(fs::read(t.path("f7")).unwrap() == noise(7, 3000));
}

fn a_busy_mount_is_not_unmounted(t: &Tree) {
    let file = rw(&t.path("file"));
    let umount = || t.depot().cli(&["umount", t.depot().mountpoint_str()]);
    let mut sleeper = Command::new("sleep").arg("100").current_dir(t.dir()).spawn().unwrap();
    let ran = umount();
    assert!(ran.err.contains(&sleeper.id().to_string()), "names the pid {}: {}", sleeper.id(), ran.err);
    if !t.mode.is_user() {
        // An ordinary user may not look at every process, not even its own after it changed ids.
        assert!(ran.err.contains(&std::process::id().to_string()), "names us: {}", ran.err);
    }
    ran.fails(5);
    file.write_all_at(b"still here", 0).unwrap();
    fs::write(t.path("new"), "works").unwrap();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    umount().fails(5);
    drop(file);
    t.depot().umount();
    t.depot().mount();
    assert_eq!(fs::read(t.path("file")).unwrap(), b"still here");
}

fn a_lazy_umount_returns_at_once(t: &Tree) {
    let file = rw(&t.path("file"));
    t.depot().cli(&["umount", t.depot().mountpoint_str(), "--lazy"]).ok();
    assert!(!t.depot().is_mounted());
    file.write_all_at(b"written later", 0).unwrap();
    drop(file);
    eventually("the daemon to end", || t.depot().daemons().is_empty());
    t.depot().mount();
    assert_eq!(fs::read(t.path("file")).unwrap(), b"written later");
}

fn reads_say_how_they_are_served(t: &Tree) {
    let status = t.depot().status();
    let wanted = if t.mode == Mode::Passthrough { "passthrough" } else { "daemon" };
    assert_eq!(status["reads"]["mode"], wanted);
    assert!(!status["reads"]["why"].as_str().unwrap().is_empty());
    assert_eq!(status["mount"]["pid"], t.depot().pid());
    assert_eq!(status["mount"]["mountpoint"], t.depot().mountpoint_str());
    t.depot().umount();
    let ran = t.depot().mount_with("");
    let passes = ran.err.to_lowercase().contains("passthrough");
    assert_eq!(passes, t.mode == Mode::User, "an ordinary user is told, once: {}", ran.err);
    assert!(ran.err.lines().count() <= 1, "{}", ran.err);
    ran.ok();
}

fn a_second_mount_names_the_first(t: &Tree) {
    let pid = t.depot().pid().to_string();
    let elsewhere = t.depot().scratch().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for mountpoint in [t.depot().mountpoint_str(), elsewhere.to_str().unwrap()] {
        let err = t.depot().cli(&["mount", t.depot().dir_str(), mountpoint]).fails(5);
        assert!(err.contains(&pid), "{err}");
    }
    t.file("file", "the first one goes on");
}

fn mount_after_umount_waits(t: &Tree) {
    for round in 0..3 {
        t.file("file", noise(round, 1 << 20));
        if t.mode.is_user() {
            sh("/", &format!("fusermount3 -u {}", t.depot().mountpoint_str()));
        } else {
            // umount(8) tells the daemon nothing but the end, and does not wait for it.
            eventually("umount(8)", || {
                run_command(Command::new("umount").arg(&t.depot().mountpoint)).code == Some(0)
            });
        }
        t.depot().mount();
        assert!(fs::read(t.path("file")).unwrap() == noise(round, 1 << 20));
    }
}

fn a_mount_left_behind_is_cleared(t: &Tree) {
    t.sealed("file", "bytes");
    t.depot().kill();
    assert!(t.depot().is_mounted(), "the dead mount is there");
    assert!(fs::metadata(t.path("file")).is_err(), "and answers nothing");
    t.depot().mount();
    assert_eq!(fs::read(t.path("file")).unwrap(), b"bytes");
    t.depot().kill();
    t.depot().umount();
    assert!(!t.depot().is_mounted());
    t.depot().mount();
    assert_eq!(fs::read(t.path("file")).unwrap(), b"bytes");
}

#[test]
fn another_mountpoint_after_a_kill() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        depot.kill();
        let elsewhere = depot.scratch().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        depot.cli(&["mount", depot.dir_str(), elsewhere.to_str().unwrap()]).ok();
        assert!(elsewhere.join("repo").is_dir());
        depot.cli(&["umount", elsewhere.to_str().unwrap()]).ok();
    });
}

#[test]
fn depot_and_mountpoint_do_not_contain_each_other() {
    on_depot(|depot| {
        let inside = depot.dir.join("mnt");
        fs::create_dir(&inside).unwrap();
        let refused = |mountpoint: &Path| {
            let ran = depot.cli(&["mount", depot.dir_str(), mountpoint.to_str().unwrap()]);
            assert!(matches!(ran.code, Some(1 | 2)), "{}", said(&ran));
            assert!(ran.err.contains(depot.dir_str()), "{}", ran.err);
            assert!(!depot.is_mounted());
        };
        refused(&inside);
        refused(&depot.dir);
        refused(depot.scratch());
        std::os::unix::fs::symlink(&inside, depot.scratch().join("link")).unwrap();
        refused(&depot.scratch().join("link"));
    });
}

#[test]
fn what_cannot_be_mounted_is_refused() {
    on_depot(|depot| {
        let mount = |depot_dir: &str, mountpoint: &str| depot.cli(&["mount", depot_dir, mountpoint]);
        let missing = depot.scratch().join("missing");
        mount(depot.dir_str(), missing.to_str().unwrap()).fails(1);
        fs::write(depot.scratch().join("file"), "x").unwrap();
        mount(depot.dir_str(), depot.scratch().join("file").to_str().unwrap()).fails(1);
        let err = mount(missing.to_str().unwrap(), depot.mountpoint_str()).fails(1);
        assert!(err.contains("missing"), "{err}");
        let err = mount(depot.mountpoint_str(), depot.mountpoint_str()).fails(1);
        assert!(err.contains("depotfs init"), "says what makes a depot: {err}");
    });
}

#[test]
fn another_depots_directory_is_refused() {
    on_depot(|depot| {
        let other = depot.scratch().join("other");
        depot.cli(&["init", other.to_str().unwrap()]).ok();
        let config = depot.dir.join("depot.toml");
        let foreign = format!("\n[file-system]\ndir = \"{}\"\n", other.join("filestore").display());
        let own = fs::read_to_string(&config).unwrap();
        let kept: String = own
            .lines()
            .filter(|l| !l.starts_with('[') && !l.starts_with('#'))
            .map(|l| format!("{l}\n"))
            .collect();
        fs::write(&config, kept + &foreign).unwrap();
        let err = depot.mount_with("").fails(1);
        assert!(err.contains(other.to_str().unwrap()), "{err}");
    });
}

#[test]
fn parts_of_a_depot_may_lie_elsewhere() {
    on_depot(|depot| {
        let (dir, elsewhere) = (depot.scratch().join("spread"), depot.scratch().join("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        let at = |name: &str| elsewhere.join(name).to_str().unwrap().to_owned();
        let set = [
            format!("index={}", at("index")),
            format!("file-system.dir={}", at("blobs")),
            format!("log.dir={}", at("log")),
        ];
        let mut args = vec!["init", dir.to_str().unwrap()];
        set.iter().for_each(|s| args.extend(["--set", s]));
        depot.cli(&args).ok();
        depot.cli(&["mount", dir.to_str().unwrap(), depot.mountpoint_str()]).ok();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.umount();
        let sum = sha1(b"bytes");
        assert_eq!(fs::read(elsewhere.join("blobs").join(&sum[..2]).join(&sum)).unwrap(), b"bytes");
        assert!(elsewhere.join("index/index.db").exists() && !dir.join("index.db").exists());
        assert!(fs::read_dir(elsewhere.join("log")).unwrap().count() > 0);
        depot.cli(&["check", dir.to_str().unwrap()]).ok();
    });
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    on_depot(|depot| {
        let config = depot.dir.join("depot.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("durabilty = \"close\"\n{text}")).unwrap();
        let err = depot.mount_with("").fails(1);
        assert!(err.contains("durabilty") && err.contains("\"durability\""), "{err}");
    });
}

#[test]
fn a_daemon_whose_socket_is_gone_ends() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        eventually("the close to get there", || depot.status()["pending"]["dirty"] == 0);
        fs::remove_file(depot.dir.join("control.sock")).unwrap();
        depot.umount();
        assert_eq!(depot.daemons(), Vec::<i32>::new());
        assert_eq!(depot.blobs(), [sha1(b"bytes")]);
    });
}

#[test]
fn a_forced_umount_leaves_no_dead_mount() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let file = rw(&depot.path("repo/file"));
        file.write_all_at(b"bytes", 0).unwrap();
        // It is busy, and so it stays; but the kernel has let go of the daemon.
        run_command(Command::new("umount").args(["-f", depot.mountpoint_str()]));
        eventually("the daemon to end", || depot.daemons().is_empty());
        assert!(!depot.is_mounted());
        drop(file);
        depot.mount();
        assert_eq!(fs::read(depot.path("repo/file")).unwrap(), b"bytes");
    });
}

/// Told to stop, the daemon serves a busy mount for some seconds more.
#[test]
fn mappings_stay_those_of_their_files_until_the_end() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/twin"), noise(7, 50_000)).unwrap();
        depot.flush();
        let path = depot.path("repo/file");
        fs::write(&path, noise(7, 50_000)).unwrap();
        let reader = File::open(&path).unwrap();
        // Sealed while it is open, as a content that is stored already: its mapping is of a file of its own.
        depot.flush();
        let map = crate::sys::Map::shared_readonly(&reader, 50_000).unwrap();
        drop(reader);
        depot.flush();
        let dir = File::open(depot.path("repo")).unwrap();
        kill(Pid::from_raw(depot.pid()), Signal::SIGTERM).unwrap();
        eventually("the mount to be detached", || !depot.is_mounted());
        let detached = format!("/proc/self/fd/{}/file", dir.as_raw_fd());
        OpenOptions::new().write(true).open(detached).unwrap().write_all_at(b"changed", 0).unwrap();
        assert_eq!(map.read(0, 7), b"changed");
        drop((map, dir));
        eventually("the daemon to end", || depot.daemons().is_empty());
        depot.mount();
        assert_eq!(fs::read(&path).unwrap()[..7], *b"changed");
        assert!(fs::read(depot.path("repo/twin")).unwrap() == noise(7, 50_000));
    });
}

#[test]
fn the_foreground_stays_and_ends_clean() {
    on_depot(|depot| {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let args = ["mount", depot.dir_str(), depot.mountpoint_str(), "-f"];
            let mut daemon = depot.command(&args).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
            eventually("the mount", || depot.path(".trash").is_dir());
            let _ = fs::create_dir(depot.path("repo"));
            fs::write(depot.path("repo/file"), format!("{signal}")).unwrap();
            kill(Pid::from_raw(daemon.id() as i32), signal).unwrap();
            eventually("the daemon to end", || daemon.try_wait().unwrap().is_some());
            let mut log = String::new();
            daemon.stderr.take().unwrap().read_to_string(&mut log).unwrap();
            assert!(daemon.wait().unwrap().success(), "{log}");
            assert!(!depot.is_mounted());
            assert!(depot.blobs().contains(&sha1(format!("{signal}").as_bytes())), "sealed on the way out");
        }
    });
}

#[test]
fn a_daemon_holds_nothing_of_its_starter() {
    on_depot(|depot| {
        let args = ["mount", depot.dir_str(), depot.mountpoint_str()];
        let mut mount = depot.command(&args);
        mount.current_dir(depot.scratch()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Reading to the end of the pipes ends only when the daemon does not hold them.
        let output = mount.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pid = depot.pid();
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let session: i32 =
            stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
        assert_eq!(session, nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap().as_raw());
        assert_ne!(session, nix::unistd::getsid(None).unwrap().as_raw(), "a session of its own");
        depot.umount();
        // Nor a lock that its starter has on an open file.
        sh(depot.scratch(), "exec 9>held; flock 9; ./depotfs mount depot mnt");
        let held = depot.scratch().join("held");
        File::open(&held).unwrap().try_lock().expect("nobody has the lock any more");
        let descriptors = fs::read_dir(format!("/proc/{}/fd", depot.pid())).unwrap();
        assert!(descriptors.flatten().all(|fd| fs::read_link(fd.path()).is_ok_and(|file| file != held)));
    });
}

#[test]
fn told_to_end_it_leaves_a_busy_mount() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let file = rw(&depot.path("repo/file"));
        file.write_all_at(b"written", 0).unwrap();
        kill(Pid::from_raw(depot.pid()), Signal::SIGTERM).unwrap();
        eventually("the daemon to end", || depot.daemons().is_empty());
        assert!(!depot.is_mounted());
        assert!(file.metadata().is_err() || file.sync_all().is_err(), "nobody answers any more");
        assert!(depot.log().contains("still in use"), "{}", depot.log());
        drop(file);
        depot.mount();
        assert_eq!(fs::read(depot.path("repo/file")).unwrap(), b"written");
    });
}

#[test]
fn sync_and_syncfs_do_not_reach_the_daemon() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let file = rw(&depot.path("repo/file"));
        file.write_all_at(b"bytes", 0).unwrap();
        let forced = || {
            let text = depot.cli(&["metrics", depot.dir_str()]).ok();
            let line = text.lines().find(|line| line.contains("operation=\"fsync\"")).unwrap().to_owned();
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let before = forced();
        nix::unistd::syncfs(&file).unwrap();
        nix::unistd::sync();
        assert_eq!(forced(), before);
        file.sync_all().unwrap();
        assert_eq!(forced(), before + 1, "fsync does");
        drop(file);
        depot.flush();
        assert_eq!(depot.blobs(), [sha1(b"bytes")]);
    });
}

#[test]
fn mount_runs_it_by_the_name_of_its_type() {
    on_depot(|depot| {
        // mount(8) runs /sbin/mount.fuse.depotfs DEPOT DIR -o OPTIONS.
        let helper = depot.scratch().join("mount.fuse.depotfs");
        fs::hard_link(depot.scratch().join("depotfs"), &helper).unwrap();
        let args = [depot.dir_str(), depot.mountpoint_str(), "-o", "rw,noatime,_netdev"];
        run_command(Command::new(&helper).args(args)).ok();
        assert!(depot.is_mounted());
        depot.umount();
        // So does mount.fuse(8), with the plain name of the program.
        let args = [depot.dir_str(), depot.mountpoint_str(), "-o", "rw,noatime,dev,suid"];
        depot.cli(&args).ok();
        assert!(depot.is_mounted());
        depot.umount();
    });
}

#[test]
fn an_ordinary_user_s_mount_is_its_own() {
    guarded(|| {
        let depot = Depot::new(Mode::User);
        depot.mount();
        assert_eq!(
            fs::metadata(&depot.mountpoint).map(drop).unwrap_err().raw_os_error(),
            Some(libc::EACCES),
            "not even root's"
        );
        depot.as_owner(|| fs::create_dir(depot.path("repo")).unwrap());
        depot.umount();
    });
}
