//! A depot that stores blobs later: who waits for the queue, what a full or damaged one does, what close can promise.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde_json::Value;

use crate::data::noise;
use crate::disk_errors::Disk;
#[cfg(debug_assertions)]
use crate::harness::Steered;
use crate::harness::{Depot, Fails, Mode, command, eventually, guarded, run_command, sha1};

/// From now on calls below the queue fare like this; see `src/filestore/faulty/rules.rs`.
pub fn faults(depot: &Depot, rules: &str) {
    let part = depot.dir.join("faulty.part");
    fs::write(&part, rules).unwrap();
    fs::rename(&part, depot.dir.join("faulty.control")).unwrap();
}

/// What `status` tells of the queue.
#[track_caller]
pub fn queue(depot: &Depot) -> Value {
    depot.status()["chain"][0]["queue"].clone()
}

/// A mounted depot with a repository and an outage below.
#[track_caller]
pub fn cut_off(settings: &[&str]) -> Depot {
    let depot = Depot::with(Mode::Queued, settings);
    depot.mount();
    fs::create_dir(depot.path("repo")).unwrap();
    faults(&depot, "*=fail");
    depot
}

/// Files with bytes of their own, which are in the queue when this returns.
#[track_caller]
pub fn fill(depot: &Depot, count: u64) -> Vec<(PathBuf, Vec<u8>)> {
    let file = |i: u64| {
        let (path, bytes) =
            (depot.path(format!("repo/file{i}")), noise(100 + i, 5_000 + 40_000 * (i as usize % 3)));
        fs::write(&path, &bytes).unwrap();
        (path, bytes)
    };
    let files = (0..count).map(file).collect();
    sealed(depot);
    files
}

/// Waits until everything closed is a blob.
#[track_caller]
pub fn sealed(depot: &Depot) {
    eventually("everything to be sealed", || {
        let pending = depot.status()["pending"].clone();
        pending["closed"] == 0 && pending["dirty"] == 0
    });
}

/// Where a blob is when it is stored.
pub fn stored(depot: &Depot, bytes: &[u8]) -> PathBuf {
    let sum = sha1(bytes);
    depot.dir.join("filestore").join(&sum[..2]).join(sum)
}

/// Where it is before.
pub fn queued(depot: &Depot, bytes: &[u8]) -> PathBuf {
    let sum = sha1(bytes);
    depot.dir.join("eventual").join(&sum[..2]).join(sum)
}

#[test]
fn flush_waits_for_the_queue() {
    guarded(|| {
        let depot = cut_off(&[]);
        let files = fill(&depot, 5);
        assert!(files.iter().all(|(_, bytes)| !stored(&depot, bytes).exists()));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| depot.cli(&["flush", depot.dir_str(), "--wait"]));
            std::thread::sleep(Duration::from_millis(2_500));
            assert!(!waits.is_finished(), "the queue is not empty");
            faults(&depot, "");
            let said = waits.join().unwrap();
            assert!(said.code == Some(0) && said.err.contains("5 blobs with"), "{}", said.err);
        });
        assert!(files.iter().all(|(_, bytes)| stored(&depot, bytes).exists()));
        assert_eq!(queue(&depot)["entries"], 0);
        let metrics = depot.cli(&["metrics", depot.dir_str()]).ok();
        assert!(metrics.contains("depotfs_uploads_total 5\n"), "{metrics}");
        assert!(metrics.contains("depotfs_upload_queue_blobs 0\n"), "{metrics}");
    });
}

#[test]
fn umount_waits_for_the_queue() {
    guarded(|| {
        let depot = cut_off(&[]);
        let files = fill(&depot, 10);
        faults(&depot, "put=delay:200");
        depot.umount();
        assert!(files.iter().all(|(_, bytes)| stored(&depot, bytes).exists()));
        depot.check();
        depot.mount();
        // The same when the daemon is told by a signal, or by umount(8).
        faults(&depot, "put=delay:200");
        let late = noise(7, 90_000);
        fs::write(depot.path("repo/late"), &late).unwrap();
        run_command(&mut command("umount", &[depot.mountpoint_str()])).ok();
        eventually("the daemon to end", || depot.daemons().is_empty());
        assert!(stored(&depot, &late).exists());
    });
}

#[test]
fn umount_does_not_wait_for_ever() {
    guarded(|| {
        let depot = cut_off(&["eventual.drain-timeout=2s"]);
        let files = fill(&depot, 3);
        let begun = Instant::now();
        let said = depot.cli(&["umount", depot.mountpoint_str()]);
        assert!(
            said.code == Some(0) && said.err.contains("kept for the next mount: 3 blobs"),
            "{}",
            said.err
        );
        assert!((2..20).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        let offline = depot.status();
        assert_eq!(
            (&offline["running"], &offline["chain"][0]["queue"]["entries"]),
            (&false.into(), &3.into())
        );
        depot.mount();
        assert!(files.iter().all(|(path, bytes)| fs::read(path).unwrap() == *bytes));
        // Who is in a hurry says so.
        let begun = Instant::now();
        let said = depot.cli(&["umount", depot.mountpoint_str(), "--no-drain"]);
        assert!(
            said.code == Some(0) && said.err.contains("kept for the next mount: 3 blobs"),
            "{}",
            said.err
        );
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        faults(&depot, "");
        depot.mount();
        depot.flush();
        assert!(files.iter().all(|(_, bytes)| stored(&depot, bytes).exists()));
        depot.umount();
        depot.check();
    });
}

#[test]
fn an_altered_entry_is_told_and_not_passed_on() {
    guarded(|| {
        let depot = cut_off(&[]);
        let files = fill(&depot, 3);
        let (path, bytes) = &files[1];
        let entry = queued(&depot, bytes);
        fs::set_permissions(&entry, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&entry, vec![1; bytes.len()]).unwrap();
        faults(&depot, "");
        let said = depot.cli(&["flush", depot.dir_str(), "--wait"]);
        assert!(said.code == Some(4) && said.err.contains(&sha1(bytes)), "{:?}: {}", said.code, said.err);
        assert!(!stored(&depot, bytes).exists() && stored(&depot, &files[0].1).exists());
        let told = depot.cli(&["status", depot.dir_str()]).ok();
        assert!(told.contains("_bad") && told.contains(&sha1(bytes)), "{told}");
        assert!(depot.log().contains(&sha1(bytes)));
        // The same content again heals it.
        fs::write(depot.path("repo/again"), bytes).unwrap();
        depot.flush();
        assert!(fs::read(stored(&depot, bytes)).unwrap() == *bytes);
        assert!(fs::read(path).unwrap() == *bytes);
        depot.umount();
        depot.check();
    });
}

#[test]
fn a_full_disk_of_the_queue_is_told_at_write() {
    guarded(|| {
        let disk = Disk::new(96);
        let dir = format!("eventual.dir={}", disk.at.join("queue").display());
        let depot = cut_off(&[&dir, "eventual.min-free-space=16MB"]);
        let mut whole = Vec::new();
        let error = (0..200).find_map(|i| {
            let (path, bytes) = (depot.path(format!("repo/file{i}")), noise(i, 4 << 20));
            let written = File::create(&path)
                .and_then(|mut file| bytes.chunks(1 << 20).try_for_each(|chunk| file.write_all(chunk)));
            if written.is_ok() {
                whole.push((path, bytes));
            }
            written.err()
        });
        let error: io::Error = error.expect("the disk is full some time");
        assert_eq!(error.raw_os_error(), Some(Errno::ENOSPC as i32), "{error}");
        assert!(whole.len() > 8, "{}", whole.len());
        let left = nix::sys::statvfs::statvfs(&disk.at).unwrap();
        assert!(left.blocks_available() * left.fragment_size() > 8 << 20, "the reserve is left");
        assert!(whole.iter().all(|(path, bytes)| fs::read(path).unwrap() == *bytes));
        fs::remove_file(depot.path(format!("repo/file{}", whole.len()))).unwrap();
        sealed(&depot);
        faults(&depot, "");
        depot.flush();
        eventually("room again", || fs::write(depot.path("repo/more"), noise(999, 4 << 20)).is_ok());
        depot.flush();
        for (path, bytes) in &whole {
            assert!(fs::read(stored(&depot, bytes)).unwrap() == *bytes && fs::read(path).unwrap() == *bytes);
        }
        depot.umount();
        depot.check();
    });
}

/// Whether the bytes of a file lie below, and nothing of them in the queue, when close has returned.
#[test]
fn close_can_wait_for_the_store_far_away() {
    guarded(|| {
        let depot = Depot::new(Mode::Queued);
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        depot.cli(&["repo", "set", depot.dir_str(), "repo", "durability=remote"]).ok();
        let files: Vec<Vec<u8>> = (0..5).map(|i| noise(i, 1 + 70_000 * i as usize)).collect();
        for (i, bytes) in files.iter().enumerate() {
            fs::write(repo.join(format!("file{i}")), bytes).unwrap();
            assert!(fs::read(stored(&depot, bytes)).unwrap() == *bytes, "file{i}");
        }
        fs::write(repo.join("empty"), "").unwrap();
        // A copy inside the mount has the content of a file that may still be in the queue.
        crate::harness::sh(&repo, "cp file4 copy");
        depot.kill();
        // The disk of the host is lost, all but the index: the bytes are not.
        for folder in fs::read_dir(depot.dir.join("eventual")).unwrap().flatten() {
            if folder.file_name().len() == 2 {
                fs::remove_dir_all(folder.path()).unwrap();
                fs::create_dir(folder.path()).unwrap();
            }
        }
        assert!(files.iter().all(|bytes| fs::read(stored(&depot, bytes)).unwrap() == *bytes));
        depot.mount();
        depot.flush();
        for (i, bytes) in files.iter().enumerate() {
            assert!(fs::read(repo.join(format!("file{i}"))).unwrap() == *bytes);
        }
        assert!(fs::read(repo.join("copy")).unwrap() == files[4]);
        depot.umount();
        depot.check();
    });
}

/// The removal of an old content is on its way while a file with the same content is closed.
#[cfg(debug_assertions)]
#[test]
fn a_removal_takes_away_nothing_that_a_close_was_promised() {
    guarded(|| {
        let steered = Steered::over(Depot::with(Mode::Queued, &["durability=remote"]), "");
        steered.mount();
        let depot = &steered.depot;
        let (old, new, bytes) = (depot.path("repo/old"), depot.path("repo/new"), noise(1, 50_000));
        fs::write(&old, &bytes).unwrap();
        depot.flush();
        steered.set("eventual.tombstone=hold");
        fs::remove_file(&old).unwrap();
        eventually("the blob to be removed", || steered.fired("eventual.tombstone") > 0);
        fs::write(&new, &bytes).unwrap();
        assert!(stored(depot, &bytes).exists());
        steered.clear();
        depot.flush();
        eventually("the removals to end", || queue(depot)["removals"] == 0);
        assert!(fs::read(stored(depot, &bytes)).unwrap() == bytes, "it was promised to be there");
        assert!(fs::read(&new).unwrap() == bytes);
        depot.umount();
        depot.check();
    });
}

/// A copy made by its name alone has the content of an entry whose bytes were altered in the queue.
#[test]
fn a_close_of_an_altered_blob_fails() {
    guarded(|| {
        let depot = cut_off(&[]);
        let files = fill(&depot, 1);
        depot.cli(&["repo", "set", depot.dir_str(), "repo", "durability=remote"]).ok();
        let entry = queued(&depot, &files[0].1);
        let copies = std::thread::scope(|scope| {
            let repo = depot.path("repo");
            let copies =
                scope.spawn(move || run_command(command("cp", &["file0", "copy"]).current_dir(repo)));
            eventually("the copy", || depot.path("repo/copy").exists());
            std::thread::sleep(Duration::from_millis(500));
            assert!(!copies.is_finished(), "its close waits for the upload");
            fs::set_permissions(&entry, fs::Permissions::from_mode(0o600)).unwrap();
            File::options().write(true).open(&entry).unwrap().write_all(b"evil").unwrap();
            faults(&depot, "");
            depot.cli(&["flush", depot.dir_str(), "--wait"]);
            copies.join().unwrap()
        });
        assert!(copies.code == Some(1) && copies.err.contains("Input/output error"), "{}", copies.err);
    });
}

#[test]
fn a_close_that_cannot_keep_its_promise_fails() {
    guarded(|| {
        let depot = cut_off(&["durability=remote", "eventual.timeout=1s"]);
        let close = |name: &str, bytes: &[u8]| {
            let mut file = File::create(depot.path(name))?;
            file.write_all(bytes)?;
            nix::unistd::close(file).map_err(io::Error::from)
        };
        let (refused, stalled) = (noise(1, 50_000), noise(2, 50_000));
        close("repo/refused", &refused).fails(Errno::EIO);
        faults(&depot, "put=stall");
        let begun = Instant::now();
        close("repo/stalled", &stalled).fails(Errno::EIO);
        assert!(begun.elapsed() < Duration::from_secs(10));
        // They are files like others, and are stored when that works.
        assert!(fs::read(depot.path("repo/refused")).unwrap() == refused);
        faults(&depot, "");
        depot.flush();
        assert!(stored(&depot, &refused).exists() && stored(&depot, &stalled).exists());
        close("repo/good", &noise(3, 50_000)).unwrap();
        assert!(stored(&depot, &noise(3, 50_000)).exists());
        // Where nothing is far away the word is refused.
        let plain = Depot::new(Mode::Passthrough);
        let said = plain.mount_with("durability=remote").fails(1);
        assert!(said.contains("on this host only"), "{said}");
    });
}

/// A file that many descriptors close is uploaded once for each content it has.
#[test]
fn a_close_without_a_change_uploads_nothing() {
    guarded(|| {
        let depot = Depot::with(Mode::Queued, &["durability=remote"]);
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let mut file = File::create(depot.path("repo/log")).unwrap();
        file.write_all(b"first").unwrap();
        drop(file.try_clone().unwrap());
        assert!(stored(&depot, b"first").exists());
        faults(&depot, "put=fail");
        for _ in 0..5 {
            nix::unistd::close(file.try_clone().unwrap()).unwrap();
        }
        file.write_all(b" second").unwrap();
        let closed = nix::unistd::close(file.try_clone().unwrap()).map_err(io::Error::from);
        closed.fails(Errno::EIO);
        faults(&depot, "");
        nix::unistd::close(file).unwrap();
        assert!(stored(&depot, b"first second").exists());
    });
}
