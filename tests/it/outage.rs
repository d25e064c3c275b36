//! A store far away that is away: what goes on without it, what fails and how soon, and that all of it comes back.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::data::noise;
use crate::eventual::{cut_off, faults, fill, queue, queued, stored};
use crate::harness::{Depot, Fails, Mode, eventually, guarded, sh};
use crate::model::Random;

/// Runs what must not wait for a store that is away.
#[track_caller]
fn at_once<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    assert!(begun.elapsed() < Duration::from_secs(1), "{what} took {:?}", begun.elapsed());
    done
}

fn goes_on_without(fault: &str) {
    let depot = Depot::with(Mode::Queued, &["eventual.drain-timeout=1s"]);
    depot.mount();
    fs::create_dir(depot.path("repo")).unwrap();
    let (old, gone) = (noise(1, 200_000), noise(2, 100_000));
    fs::write(depot.path("repo/old"), &old).unwrap();
    fs::write(depot.path("repo/gone"), &gone).unwrap();
    depot.flush();
    depot.umount();
    depot.mount();
    faults(&depot, fault);
    let files = fill(&depot, 6);
    at_once("status", || {
        eventually("entries", || queue(&depot)["entries"] == 6);
    });
    for (path, bytes) in &files {
        at_once("a read from the queue", || assert!(fs::read(path).unwrap() == *bytes));
    }
    at_once("ls and stat", || sh(depot.path("repo"), "ls -l; stat old; df ."));
    at_once("a removal", || fs::remove_file(depot.path("repo/gone")).unwrap());
    at_once("a rename", || fs::rename(depot.path("repo/old"), depot.path("repo/older")).unwrap());
    if fault == "*=fail" {
        at_once("a read that cannot be served", || fs::read(depot.path("repo/older")).fails(Errno::EIO));
        eventually("the trouble to be told", || {
            let top = depot.status()["chain"][0].clone();
            top["queue"]["last_error"].is_string() && top["health"]["failing"].is_string()
        });
        assert!(depot.log().contains("cannot be uploaded"));
    }
    // A mount that begins in the outage is one like others.
    depot.kill();
    depot.mount();
    for (path, bytes) in &files {
        assert!(fs::read(path).unwrap() == *bytes);
    }
    assert_eq!(queue(&depot)["entries"], 6, "what a kill leaves is the queue");
    assert!(files.iter().all(|(_, bytes)| queued(&depot, bytes).exists() && !stored(&depot, bytes).exists()));
    faults(&depot, "");
    depot.flush();
    assert!(files.iter().all(|(_, bytes)| stored(&depot, bytes).exists()));
    assert!(fs::read(depot.path("repo/older")).unwrap() == old);
    eventually("the files of the queue to go", || {
        files.iter().all(|(_, bytes)| !queued(&depot, bytes).exists())
    });
    eventually("the removal to come through", || !stored(&depot, &gone).exists());
    assert_eq!(depot.status()["chain"][0]["health"], "up");
    depot.umount();
    depot.verify_blobs();
    depot.check();
}

#[test]
fn work_goes_on_in_an_outage() {
    guarded(|| goes_on_without("*=fail"));
}

#[test]
fn work_goes_on_while_nothing_is_answered() {
    guarded(|| goes_on_without("*=stall"));
}

/// A daemon that has stalled uploads under way ends when it is told to.
#[test]
fn a_stalled_upload_holds_up_no_unmount() {
    guarded(|| {
        let depot = cut_off(&["eventual.drain-timeout=1s"]);
        let files = fill(&depot, 8);
        faults(&depot, "put=stall");
        eventually("uploads under way", || queue(&depot)["uploading"] != 0);
        let begun = Instant::now();
        depot.umount();
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(depot.daemons().is_empty());
        faults(&depot, "");
        depot.mount();
        depot.flush();
        assert!(files.iter().all(|(_, bytes)| stored(&depot, bytes).exists()));
    });
}

/// Closes that wait for a store that does not answer take no request threads from others.
#[test]
fn a_hundred_stalled_closes_hold_up_nobody() {
    guarded(|| {
        let depot = cut_off(&["durability=remote", "eventual.timeout=6s", "eventual.drain-timeout=1s"]);
        faults(&depot, "put=stall");
        fs::create_dir(depot.path("repo/others")).unwrap();
        std::thread::scope(|scope| {
            let close = |i: u64| {
                let mut file = fs::File::create(depot.path(format!("repo/file{i}"))).unwrap();
                std::io::Write::write_all(&mut file, &noise(i, 20_000)).unwrap();
                nix::unistd::close(file)
            };
            let closes: Vec<_> = (0..100).map(|i| scope.spawn(move || close(i))).collect();
            std::thread::sleep(Duration::from_secs(2));
            at_once("ls and stat", || sh(depot.path("repo"), "ls -l others; stat file1; df ."));
            at_once("status", || depot.status());
            at_once("a new directory", || fs::create_dir(depot.path("repo/others/new")).unwrap());
            closes.into_iter().for_each(|close| close.join().unwrap().fails(Errno::EIO));
        });
        faults(&depot, "");
        depot.flush();
        assert!((0..100).all(|i| stored(&depot, &noise(i, 20_000)).exists()));
    });
}

/// The daemon is killed again and again while files come and go, and the store is away half of the time.
#[test]
fn random_kills_and_outages_lose_nothing() {
    guarded(|| {
        let depot = Depot::with(Mode::Queued, &["eventual.dispatcher-interval=200ms"]);
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let mut random = Random::new(4);
        let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        for round in 0..8 {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let moods = ["*=fail", "", "put=disconnect%40\nremove=disconnect%40", "", "put=delay:30"];
                    for mood in moods.iter().cycle().skip(round) {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        faults(&depot, mood);
                        std::thread::sleep(Duration::from_millis(150));
                    }
                });
                let end = Instant::now() + Duration::from_millis(600 + random.below(1_500) as u64);
                while Instant::now() < end {
                    let i = random.below(30);
                    let (path, bytes) = (
                        depot.path(format!("repo/file{i}")),
                        noise(random.below(40) as u64, 3_000 * (i + 1)),
                    );
                    files.retain(|(known, _)| *known != path);
                    if random.below(4) == 0 {
                        let _ = fs::remove_file(&path);
                    } else {
                        fs::write(&path, &bytes).unwrap();
                        files.push((path, bytes));
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                depot.kill();
                stop.store(true, Ordering::SeqCst);
            });
            faults(&depot, "*=fail%30");
            depot.mount();
            for (path, bytes) in &files {
                let mut read = fs::read(path);
                for _ in 0..50 {
                    if read.is_ok() {
                        break;
                    }
                    read = fs::read(path);
                }
                assert!(read.unwrap() == *bytes, "{}", path.display());
            }
        }
        faults(&depot, "");
        depot.flush();
        depot.umount();
        depot.verify_blobs();
        depot.check();
        assert!(files.iter().all(|(_, bytes)| stored(&depot, bytes).exists()));
    });
}
