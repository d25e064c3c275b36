//! What stands between depotfs and the host: mount(8), fstab, service managers, syslog, and what an owner sets.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    Depot, Fails, Mode, Ran, command, eventually, guarded, on_depot, run_command, sh, sha1,
};

/// Runs a script beside the depot in a mount namespace of its own, in which no depot is mounted at first. All mounts of other
/// tests are let go of at once, so that they end when those tests end them.
fn apart(depot: &Depot, script: &str) -> Ran {
    let alone = "awk '$3 == \"fuse.depotfs\" || $2 ~ \"^/var/tmp/depotfs-\" {print $2}' /proc/mounts \
                 | xargs -r umount -l 2>/dev/null || true";
    let script = format!("{alone}\n{script}");
    let args = ["--mount", "--propagation", "private", "bash", "-euo", "pipefail", "-c", &script];
    run_command(command("unshare", &args).current_dir(depot.scratch()))
}

/// The line of the example for /etc/fstab, for this depot.
fn fstab(depot: &Depot) -> String {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/fstab.example");
    let text = fs::read_to_string(example).unwrap();
    let line = text.lines().find(|line| line.starts_with('/')).unwrap();
    line.replace("/srv/depot", depot.dir_str()).replace("/mnt/repos", depot.mountpoint_str()) + "\n"
}

#[test]
fn mount_8_finds_the_helper_and_fstab() {
    on_depot(|depot| {
        let sbin = depot.scratch().join("sbin");
        fs::create_dir(&sbin).unwrap();
        // The link that `make install` makes.
        symlink(depot.scratch().join("depotfs"), sbin.join("mount.fuse.depotfs")).unwrap();
        fs::write(depot.scratch().join("fstab"), fstab(depot)).unwrap();
        let script = "
            mount --bind sbin $(readlink -f /sbin)
            mount -t fuse.depotfs $PWD/depot $PWD/mnt -o noatime,_netdev
            grep -q \"$PWD/mnt fuse.depotfs .*noatime\" /proc/mounts
            mkdir mnt/repo
            echo bytes > mnt/repo/file
            ./depotfs umount mnt
            mount -T fstab $PWD/mnt
            cat mnt/repo/file
            umount mnt
            code() { \"$@\" || echo $?; }
            code mount -t fuse.depotfs $PWD/missing $PWD/mnt
            code mount -t fuse.depotfs $PWD/depot $PWD/mnt -o noatmie
            code sbin/mount.fuse.depotfs $PWD/depot
            code sbin/mount.fuse.depotfs $PWD/missing $PWD/mnt";
        assert_eq!(apart(depot, script).ok(), "bytes\n32\n1\n1\n32\n");
        eventually("the daemon to end", || depot.daemons().is_empty());
    });
}

#[test]
fn the_only_mounted_depot_needs_no_name() {
    on_depot(|depot| {
        let script = "
            code() { \"$@\" || echo $?; }
            code ./depotfs metrics
            code ./depotfs status
            ./depotfs mount depot mnt
            ./depotfs status
            ./depotfs metrics
            ./depotfs init other >/dev/null
            mkdir mnt2
            ./depotfs mount other mnt2
            code ./depotfs metrics
            ./depotfs umount mnt2
            ./depotfs umount mnt";
        let ran = apart(depot, script);
        let err = ran.err.clone();
        let out = ran.ok();
        assert!(out.starts_with("3\n3\n") && err.contains("no depot is mounted"), "{out}{err}");
        assert!(out.contains(depot.dir_str()) && out.contains("depotfs_files 0"), "{out}");
        assert!(out.ends_with("\n2\n") && err.contains("several depots are mounted"), "{out}{err}");
    });
}

#[test]
fn a_service_manager_hears_when_the_mount_answers_and_when_it_ends() {
    on_depot(|depot| {
        let address = depot.scratch().join("notify");
        let socket = UnixDatagram::bind(&address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
        let hear = || {
            let mut text = [0; 1000];
            let length = socket.recv(&mut text).unwrap();
            String::from_utf8_lossy(&text[..length]).into_owned()
        };
        let args = ["mount", depot.dir_str(), depot.mountpoint_str(), "--foreground"];
        let mut daemon =
            depot.command(&args).env("NOTIFY_SOCKET", &address).stderr(Stdio::null()).spawn().unwrap();
        let ready = hear();
        assert!(ready.starts_with("READY=1\n") && ready.contains(depot.mountpoint_str()), "{ready}");
        assert!(depot.path(".trash").is_dir());
        kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
        assert!(hear().starts_with("STOPPING=1\n"));
        assert!(daemon.wait().unwrap().success());
    });
}

#[test]
fn syslog_gets_the_log_where_it_is_asked_to() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        depot.cli(&["init", depot.dir_str(), "--set", "log.to=syslog"]).ok();
        let dev = depot.scratch().join("dev");
        fs::create_dir(&dev).unwrap();
        sh(&dev, "mknod null c 1 3; mknod urandom c 1 9; mknod fuse c 10 229");
        let log = UnixDatagram::bind(dev.join("log")).unwrap();
        log.set_nonblocking(true).unwrap();
        apart(&depot, "mount --bind dev /dev; ./depotfs mount depot mnt; ./depotfs umount mnt").ok();
        let mut lines = Vec::new();
        let mut line = [0; 4000];
        while let Ok(length) = log.recv(&mut line) {
            lines.push(String::from_utf8_lossy(&line[..length]).into_owned());
        }
        let mounted = lines.iter().find(|line| line.contains("is mounted on")).expect("a mount is an event");
        assert!(mounted.starts_with("<30>depotfs["), "facility daemon, level info: {mounted}");
        assert_eq!(depot.log(), "");
    });
}

#[test]
fn a_variable_sets_the_level_of_the_log() {
    on_depot(|depot| {
        let mount = |level: &str| {
            let args = ["mount", depot.dir_str(), depot.mountpoint_str()];
            run_command(depot.command(&args).env("DEPOTFS_LOG", level))
        };
        let err = mount("loud").fails(1);
        assert!(err.contains("loud"), "{err}");
        mount("debug").ok();
        fs::create_dir(depot.path("repo")).unwrap();
        crate::sys::getxattr(depot.path("repo"), "user.missing").fails(Errno::ENODATA);
        eventually("a line of that level", || depot.log().contains("DEBUG"));
    });
}

#[test]
fn blobs_get_the_owner_they_are_to_have() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        depot.cli(&["init", depot.dir_str(), "--set", "file-system.blob-owner=1001:1002"]).ok();
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.umount();
        let blob = fs::metadata(depot.blob(&sha1(b"bytes"))).unwrap();
        assert_eq!((blob.uid(), blob.gid()), (1001, 1002));
        depot.verify_blobs();
        depot.check();
        depot.mount();
        assert_eq!(fs::read(depot.path("repo/file")).unwrap(), b"bytes");
    });
}

#[test]
fn an_index_on_a_network_file_system_is_refused() {
    on_depot(|depot| {
        depot.mount();
        let (index, other) = (depot.path("repo"), depot.scratch().join("other"));
        fs::create_dir(&index).unwrap();
        let (index, other) = (index.to_str().unwrap(), other.to_str().unwrap());
        let err = depot.cli(&["init", other, "--set", &format!("index={index}")]).fails(1);
        assert!(err.contains("local disk"), "{err}");
        assert!(fs::read_dir(index).unwrap().next().is_none() && fs::metadata(other).is_err());
        depot.cli(&["init", other]).ok();
        let config = format!("{other}/depot.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("index = \"{index}\"\n{text}")).unwrap();
        fs::create_dir(depot.scratch().join("mnt2")).unwrap();
        let err = depot.cli(&["mount", other, depot.scratch().join("mnt2").to_str().unwrap()]).fails(1);
        assert!(err.contains("local disk"), "{err}");
        assert!(fs::read_dir(index).unwrap().next().is_none());
    });
}

#[test]
fn a_filestore_on_a_read_only_disk_is_mounted_read_only() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.umount();
        let script = "
            mount --bind depot/filestore depot/filestore
            mount -o remount,bind,ro depot/filestore
            ./depotfs mount depot mnt -o ro
            cat mnt/repo/file
            ./depotfs umount mnt";
        assert_eq!(apart(depot, script).ok(), "bytes");
        depot.check();
    });
}
