//! What a daemon tells of itself, in its log and its status, and to whom.

use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Depot, Fails, Mode, as_user, eventually, guarded, on_depot, run_command};
use crate::lifecycle::said;

#[test]
fn the_log_is_quiet_and_can_be_rotated() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        for i in 0..200 {
            fs::write(depot.path(format!("repo/{i}")), format!("{i}")).unwrap();
        }
        depot.flush();
        let log = depot.log();
        assert!(log.contains(depot.mountpoint_str()), "a mount is an event: {log}");
        assert!(log.lines().count() < 30, "no line per request: {log}");
        let dir = depot.dir.join("log");
        let name = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
        fs::rename(&name, dir.join("rotated")).unwrap();
        kill(Pid::from_raw(depot.pid()), Signal::SIGHUP).unwrap();
        eventually("a new log", || name.exists());
        let errors = format!("/proc/{}/fd/2", depot.pid());
        eventually("standard error to follow", || fs::read_link(&errors).unwrap() == name);
        depot.umount();
        assert!(fs::metadata(&name).unwrap().len() > 0, "the end is an event");
    });
}

#[test]
fn the_log_level_changes_while_running() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let quiet = depot.log().lines().count();
        depot.cli(&["log", depot.dir_str(), "trace"]).ok();
        // A refused request is worth a line at this level.
        fs::write(depot.path("repo/file"), "x").unwrap();
        crate::sys::getxattr(depot.path("repo/file"), "user.missing").fails(Errno::ENODATA);
        eventually("more in the log", || depot.log().lines().count() > quiet + 1);
        depot.cli(&["log", depot.dir_str(), "loud"]).fails(2);
        depot.cli(&["log", depot.dir_str(), "info"]).ok();
    });
}

#[test]
fn status_waits_for_a_daemon_that_has_no_socket_yet() {
    on_depot(|depot| {
        depot.mount();
        // As in the moments after the mount and before the end.
        let (socket, away) = (depot.dir.join("control.sock"), depot.dir.join("away"));
        fs::rename(&socket, &away).unwrap();
        std::thread::scope(|s| {
            let status = s.spawn(|| depot.cli(&["status", depot.dir_str()]));
            std::thread::sleep(Duration::from_millis(500));
            assert!(!status.is_finished(), "{}", said(&status.join().unwrap()));
            fs::rename(&away, &socket).unwrap();
            assert!(status.join().unwrap().ok().contains(depot.mountpoint_str()));
        });
        depot.umount();
        depot.cli(&["status", depot.dir_str()]).fails(3);
    });
}

#[test]
fn status_tells_what_it_can_of_a_spoiled_depot() {
    on_depot(|depot| {
        depot.mount();
        let aside = depot.dir.join("filestore/_aside");
        fs::rename(&aside, depot.dir.join("filestore/_pre/away")).unwrap();
        fs::write(&aside, "no directory").unwrap();
        let status = depot.status();
        assert!(status["reports"].to_string().contains("cannot be listed"), "{status}");
        assert_eq!(status["chain"][0]["health"], "up");
        depot.cli(&["metrics", depot.dir_str()]).ok();
        fs::remove_file(&aside).unwrap();
        fs::rename(depot.dir.join("filestore/_pre/away"), &aside).unwrap();
        assert_eq!(depot.status()["reports"].as_array().unwrap().len(), 0);
        depot.umount();
    });
}

#[test]
fn a_note_that_cannot_be_read_hides_nothing() {
    guarded(|| {
        let depot = Depot::new(Mode::User);
        depot.mount();
        // The depot's owner is not root, to whom these belong.
        let aside = depot.dir.join("filestore/_aside");
        for name in ["0000000000000042", "0000000000000042.txt"] {
            fs::write(aside.join(name), "bytes").unwrap();
            fs::set_permissions(aside.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
        }
        let listed = depot.status()["aside"].clone();
        assert_eq!(
            (listed[0]["name"].as_str(), listed[0]["bytes"].as_u64()),
            (Some("0000000000000042"), Some(5))
        );
        assert!(listed[0]["why"].as_str().unwrap().contains("ermission denied"), "{listed}");
        depot.umount();
    });
}

#[test]
fn a_wrong_log_level_is_told_with_where_it_stands() {
    on_depot(|depot| {
        let mut command = depot.command(&["mount", depot.dir_str(), depot.mountpoint_str()]);
        let err = run_command(command.env("DEPOTFS_LOG", "loud")).fails(1);
        assert!(err.contains("DEPOTFS_LOG"), "{err}");
        assert!(!depot.is_mounted());
    });
}

#[test]
fn other_users_are_not_answered() {
    on_depot(|depot| {
        depot.mount();
        fs::set_permissions(&depot.dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        // The mode of the socket turns them away first, and who is calling does so too.
        for mode in [0o600, 0o666] {
            let socket = depot.dir.join("control.sock");
            fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            for args in [
                &["flush", depot.dir_str()][..],
                &["status", depot.dir_str()],
                &["metrics", depot.dir_str()],
                &["repo", "list", depot.dir_str()],
                &["blob", "cat", depot.dir_str(), "repo/file"],
                &["blob", "rescue", depot.dir_str()],
                &["log", depot.dir_str(), "debug"],
            ] {
                let ran = as_user(1001, 1001, || depot.cli(args));
                assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{args:?}: {}", said(&ran));
                let why = if mode == 0o600 { "ermission" } else { "user 1001 may not ask" };
                assert!(ran.err.contains(why), "{args:?}: {}", ran.err);
            }
        }
    });
}
