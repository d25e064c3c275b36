//! Shards on file systems that are no local disk: they hang, forget, and answer a call that was sent twice.
//!
//! The mount of a second depot stands for such a file system: a FUSE one, whose server is stopped and goes on at will.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Depot, Mode, eventually, guarded};

/// A mounted depot whose tree is the server, and one that is not mounted yet, with shards in the directories given.
fn pair(shards: impl Fn(&Depot, &Depot) -> Vec<String>) -> (Depot, Depot) {
    let server = Depot::new(Mode::Passthrough);
    server.mount();
    fs::create_dir(server.path("disks")).unwrap();
    let depot = Depot::uninitialised(Mode::Passthrough);
    let mut settings = vec![
        "chain=sharding".to_owned(),
        "sharding.redundancy=2".into(),
        "sharding.check-period=200ms".into(),
    ];
    settings.extend(shards(&server, &depot));
    let mut args = vec!["init", depot.dir_str()];
    settings.iter().for_each(|setting| args.extend(["--set", setting]));
    depot.cli(&args).ok();
    (server, depot)
}

/// A shard whose server does not answer hangs nobody but who is the first to ask, and that one for seconds only.
#[test]
fn a_shard_that_hangs_is_set_aside() {
    guarded(|| {
        let (server, depot) = pair(|server, _| {
            let disk = server.path("disks/far");
            vec!["sharding.shard[0].dir=near".into(), format!("sharding.shard[1].dir={}", disk.display())]
        });
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        let bytes = |i: u32| format!("content {i} ").repeat(3000).into_bytes();
        let write = |names: std::ops::Range<u32>| {
            names.for_each(|i| fs::write(repo.join(format!("file{i}")), bytes(i)).unwrap());
        };
        write(0..12);
        depot.flush();
        for i in 0..12 {
            assert!(fs::read(repo.join(format!("file{i}"))).unwrap() == bytes(i));
        }
        depot.umount();
        depot.mount();
        let pid = Pid::from_raw(server.pid());
        kill(pid, Signal::SIGSTOP).unwrap();
        let begun = Instant::now();
        for i in 0..12 {
            assert!(fs::read(repo.join(format!("file{i}"))).unwrap() == bytes(i));
        }
        let took = begun.elapsed();
        let quick = |what: &str, ask: &dyn Fn()| {
            let begun = Instant::now();
            ask();
            assert!(begun.elapsed() < Duration::from_secs(2), "{what} took {:?}", begun.elapsed());
        };
        quick("status", &|| drop(depot.status()));
        quick("ls", &|| assert_eq!(fs::read_dir(&repo).unwrap().count(), 12));
        quick("df", &|| assert!(nix::sys::statvfs::statvfs(&repo).is_ok()));
        let status = depot.status();
        kill(pid, Signal::SIGCONT).unwrap();
        assert!(took < Duration::from_secs(60), "12 files took {took:?} beside a shard that hangs");
        assert!(status["chain"][0]["children"][1]["health"]["failing"].is_string(), "{status}");
        eventually("the shard to be used again", || {
            depot.status()["chain"][0]["children"][1]["health"] == "up" && {
                let _ = fs::read(repo.join("file0"));
                true
            }
        });
        write(20..24);
        depot.flush();
        depot.umount();
        depot.check();
        server.umount();
    });
}

/// The first shard hangs: files that are written and forced on the second one do not wait for it.
#[test]
fn writers_do_not_wait_for_a_shard_that_hangs() {
    guarded(|| {
        let (server, depot) = pair(|server, _| {
            let disk = server.path("disks/far");
            vec![format!("sharding.shard[0].dir={}", disk.display()), "sharding.shard[1].dir=near".into()]
        });
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        fs::write(repo.join("before"), "bytes").unwrap();
        depot.flush();
        let pid = Pid::from_raw(server.pid());
        kill(pid, Signal::SIGSTOP).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            for i in 0..6 {
                let mut file = fs::File::create(repo.join(format!("file{i}"))).unwrap();
                std::io::Write::write_all(&mut file, format!("content {i} ").repeat(3000).as_bytes())
                    .unwrap();
                file.sync_all().unwrap();
            }
            tell.send(()).unwrap();
            repo
        });
        let in_time = told.recv_timeout(Duration::from_secs(40));
        kill(pid, Signal::SIGCONT).unwrap();
        let repo = writer.join().unwrap();
        assert!(in_time.is_ok(), "six files were not written and forced beside a shard that hangs");
        depot.flush();
        for i in 0..6 {
            let read = fs::read_to_string(repo.join(format!("file{i}"))).unwrap();
            assert!(read == format!("content {i} ").repeat(3000), "file{i}");
        }
        depot.umount();
        depot.check();
        server.umount();
    });
}

/// What a server does that heard a call twice, takes root for nobody, or lost a file it gave out.
#[cfg(debug_assertions)]
#[test]
fn answers_of_a_server_are_understood() {
    use crate::harness::Steered;
    guarded(|| {
        let (server, depot) = pair(|server, _| {
            let at = |name: &str| server.path("disks").join(name).display().to_string();
            vec![
                format!("sharding.dir={}", at("own")),
                format!("sharding.shard[0].dir={}", at("a")),
                format!("sharding.shard[1].dir={}", at("b")),
            ]
        });
        let depot = Steered::over(depot, "");
        depot.mount();
        let file = depot.depot.path("repo/file");
        for (number, fault) in
            ["link.answered=error:EEXIST", "rename.answered=error:ENOENT", "staging.own=error:EPERM"]
                .iter()
                .enumerate()
        {
            depot.set(fault);
            let bytes = format!("version {number} ").repeat(1000);
            fs::write(&file, &bytes).unwrap();
            depot.flush();
            assert_eq!(depot.depot.status()["pending"]["closed"], 0, "{fault}: {}", depot.depot.log());
            assert_eq!(fs::read_to_string(&file).unwrap(), bytes, "{fault}");
            // Its bytes are changed in place, which makes a blob's file a writer's again.
            let change = fs::OpenOptions::new().write(true).open(&file).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&change, b"VERSION", 0).unwrap();
            drop(change);
            depot.flush();
            assert!(fs::read_to_string(&file).unwrap().starts_with("VERSION"), "{fault}");
        }
        depot.clear();
        depot.umount();
        depot.mount();
        depot.set("blob.open=error:ESTALE*1");
        assert!(fs::read_to_string(&file).unwrap().starts_with("VERSION 2"));
        depot.clear();
        eventually("both shards to be used again", || {
            let _ = fs::read(&file);
            let status = depot.depot.status();
            (0..2).all(|i| status["chain"][0]["children"][i]["health"] == "up")
        });
        depot.umount();
        depot.depot.check();
        server.umount();
    });
}
