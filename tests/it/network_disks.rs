//! Shards on file systems that are no local disk: they hang, forget, and answer a call that was sent twice.
//!
//! The mount of a second depot stands for such a file system: a FUSE one, whose server is stopped and goes on at will.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Depot, Mode, eventually, guarded};

/// A server that does not answer, until this is dropped; or for some time, so that a test that waits for it fails and ends.
struct Stopped {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Stopped {
    fn stop(server: &Depot) -> Stopped {
        let server = Pid::from_raw(server.pid());
        kill(server, Signal::SIGSTOP).unwrap();
        let (end, ended) = channel();
        let wait = move || {
            let _ = ended.recv_timeout(Duration::from_secs(90));
            let _ = kill(server, Signal::SIGCONT);
        };
        Stopped { end: Some(end), thread: Some(thread::spawn(wait)) }
    }

    /// It answers again.
    #[track_caller]
    fn go_on(self) {
        assert!(!self.thread.as_ref().unwrap().is_finished(), "the server had to go on by itself");
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.end = None;
        let _ = self.thread.take().unwrap().join();
    }
}

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
        let stopped = Stopped::stop(&server);
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
        stopped.go_on();
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
        let stopped = Stopped::stop(&server);
        let (tell, told) = channel();
        let writer = thread::spawn(move || {
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
        stopped.go_on();
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

/// All blobs are there, and files that are being written: who wants one of those waits, and nobody else.
#[test]
fn a_filestore_that_hangs_holds_up_nobody_who_does_not_want_it() {
    guarded(|| {
        let server = Depot::new(Mode::Passthrough);
        server.mount();
        fs::create_dir(server.path("disks")).unwrap();
        let depot = Depot::uninitialised(Mode::Passthrough);
        let dir = format!("file-system.dir={}", server.path("disks/blobs").display());
        depot.cli(&["init", depot.dir_str(), "--set", "chain=file-system", "--set", &dir]).ok();
        depot.mount();
        let (sealed, written) = (depot.path("sealed"), depot.path("written"));
        [&sealed, &written].iter().for_each(|repo| fs::create_dir(repo).unwrap());
        let bytes = |i: usize| format!("content {i} ").repeat(3000).into_bytes();
        for i in 0..30 {
            fs::write(sealed.join(format!("file{i}")), bytes(i)).unwrap();
        }
        depot.flush();
        depot.umount();
        depot.mount();
        // More than the daemon has threads for what is slow.
        const WRITERS: usize = 600;
        let opened: Vec<fs::File> =
            (0..WRITERS).map(|i| fs::File::create(written.join(format!("file{i}"))).unwrap()).collect();
        let stopped = Stopped::stop(&server);
        let went_on = thread::scope(|scope| {
            let writers: Vec<_> = opened
                .iter()
                .enumerate()
                .map(|(i, mut file)| {
                    scope.spawn(move || std::io::Write::write_all(&mut file, &bytes(i)).is_ok())
                })
                .collect();
            let readers: Vec<_> = (0..30)
                .map(|i| {
                    let path = sealed.join(format!("file{i}"));
                    scope.spawn(move || fs::read(path).is_ok())
                })
                .collect();
            thread::sleep(Duration::from_millis(500));
            let mut slow = Vec::new();
            let mut quick = |what: &'static str, ask: &dyn Fn() -> bool| {
                let begun = Instant::now();
                let well = ask();
                if !well || begun.elapsed() > Duration::from_secs(1) {
                    slow.push((what, well, begun.elapsed()));
                }
            };
            quick("status", &|| depot.cli(&["status", depot.dir_str()]).code == Some(0));
            quick("ls", &|| fs::read_dir(&sealed).unwrap().count() == 30);
            quick("stat", &|| fs::metadata(sealed.join("file7")).is_ok_and(|found| found.len() == 30_000));
            quick("df", &|| nix::sys::statvfs::statvfs(&sealed).is_ok());
            quick("mkdir", &|| fs::create_dir(sealed.join("dir")).is_ok());
            quick("chmod", &|| {
                fs::set_permissions(sealed.join("file7"), fs::Permissions::from_mode(0o600)).is_ok()
            });
            quick("rename", &|| fs::rename(sealed.join("file0"), sealed.join("dir/file0")).is_ok());
            quick("rm", &|| fs::remove_file(sealed.join("dir/file0")).is_ok());
            let begun = Instant::now();
            let read = readers.into_iter().map(|reader| reader.join().unwrap());
            let read = read.filter(|read| *read).count();
            let waited = begun.elapsed();
            stopped.go_on();
            let wrote =
                writers.into_iter().map(|writer| writer.join().unwrap()).filter(|wrote| *wrote).count();
            (slow, read, waited, wrote)
        });
        let (slow, read, waited, wrote) = went_on;
        assert!(slow.is_empty(), "{slow:?}");
        assert_eq!((read, wrote), (0, WRITERS), "readers have an error, writers have waited");
        assert!(waited < Duration::from_secs(60), "readers waited for {waited:?}");
        drop(opened);
        depot.flush();
        for i in 0..WRITERS {
            assert!(fs::read(written.join(format!("file{i}"))).unwrap() == bytes(i), "file{i}");
        }
        assert!(fs::read(sealed.join("file1")).unwrap() == bytes(1));
        depot.verify_blobs();
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
