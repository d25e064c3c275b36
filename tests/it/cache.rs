//! The cache before a slow provider: what is in it, what goes, and that it never matters to what files are.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use crate::data::noise;
use crate::disk_errors::Disk;
#[cfg(debug_assertions)]
use crate::harness::Fails;
use crate::harness::{Depot, Mode, eventually, guarded, sha1};

/// What `cache status` tells.
#[track_caller]
pub fn cache(depot: &Depot) -> Value {
    serde_json::from_str(&depot.cli(&["cache", "status", depot.dir_str(), "--json"]).ok()).unwrap()
}

/// Bytes on the disk of all files in a directory of the cache but those of its ledger.
pub fn room_of_files(dir: &Path) -> u64 {
    let mut room = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.metadata() {
            Ok(there) if there.is_dir() => room += room_of_files(&entry.path()),
            Ok(there) if !name.starts_with("cache.db") && name != ".depotfs" => room += there.blocks() * 512,
            _ => {}
        }
    }
    room
}

/// A mounted depot with a repository, of a database behind a cache.
fn depot_with(settings: &[&str]) -> (Depot, PathBuf) {
    let depot = Depot::uninitialised(Mode::CachedRows);
    let mut args = vec!["init", depot.dir_str(), "--template", "full-db"];
    settings.iter().for_each(|setting| args.extend(["--set", *setting]));
    depot.cli(&args).ok();
    depot.mount();
    let repo = depot.path("repo");
    fs::create_dir(&repo).unwrap();
    (depot, repo)
}

fn cached(depot: &Depot, bytes: &[u8]) -> PathBuf {
    let sum = sha1(bytes);
    depot.dir.join("cache").join(&sum[..2]).join(sum)
}

/// Writes it, and takes it out of the cache.
fn write_uncached(depot: &Depot, path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    depot.flush();
    uncache(depot, bytes);
}

fn uncache(depot: &Depot, bytes: &[u8]) {
    eventually("the blob to be out of the cache", || {
        depot.cli(&["cache", "drop", depot.dir_str(), &sha1(bytes)]).ok();
        !cached(depot, bytes).exists()
    });
}

/// read(2) requests that the daemon has answered.
fn reads(depot: &Depot) -> u64 {
    let text = depot.cli(&["metrics", depot.dir_str()]).ok();
    let of = |line: &str| line.strip_prefix("depotfs_requests_total{operation=\"read\"} ")?.parse().ok();
    text.lines().find_map(of).unwrap()
}

#[test]
fn what_is_written_and_what_is_read_is_cached_and_passes_through() {
    guarded(|| {
        let (depot, repo) = depot_with(&[]);
        let bytes = noise(1, 900_000);
        fs::write(repo.join("file"), &bytes).unwrap();
        depot.flush();
        assert!(cached(&depot, &bytes).exists(), "writing fills it");
        depot.umount();
        depot.mount();
        let before = reads(&depot);
        assert!(fs::read(repo.join("file")).unwrap() == bytes);
        assert_eq!(reads(&depot), before, "the kernel reads the cached file");
        let other = noise(2, 900_000);
        write_uncached(&depot, &repo.join("other"), &other);
        depot.umount();
        depot.mount();
        let before = reads(&depot);
        assert!(fs::read(repo.join("other")).unwrap() == other);
        assert!(reads(&depot) > before, "the daemon fetches it");
        eventually("the blob to be cached", || cached(&depot, &other).exists());
        eventually("the kernel to read the cached file", || {
            let before = reads(&depot);
            let mut file = File::open(repo.join("other")).unwrap();
            // What the kernel kept of the first read is not what is asked for.
            nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .unwrap();
            let mut all = Vec::new();
            file.read_to_end(&mut all).unwrap();
            assert!(all == other);
            reads(&depot) == before
        });
        let cache = cache(&depot);
        assert_eq!(cache["entries"], 2);
        assert!(cache["used"].as_u64().unwrap() <= 2 * 901_120, "{cache}");
        let status = depot.status();
        assert_eq!(status["chain"][0]["kind"], "cache-fs");
        assert_eq!(status["chain"][0]["cache"]["entries"], 2);
        let told = depot.cli(&["blob", "locate", depot.dir_str(), "repo/other"]).ok();
        assert!(told.contains("stored cache-fs") && told.contains("stored full-db"), "{told}");
    });
}

#[test]
fn what_arrives_is_asked_for_in_large_pieces() {
    guarded(|| {
        const MIB: u64 = 32;
        let (depot, repo) = depot_with(&[]);
        let bytes = noise(7, (MIB as usize) << 20);
        write_uncached(&depot, &repo.join("file"), &bytes);
        depot.umount();
        depot.mount();
        let before = reads(&depot);
        assert!(fs::read(repo.join("file")).unwrap() == bytes);
        let requests = reads(&depot) - before;
        // A reader comes upon pages that are still read ahead now and then, and begins anew. By default there are 8 to a MiB.
        assert!((1..=4 * MIB).contains(&requests), "{requests} requests for {MIB} MiB");
    });
}

/// Readers of more than fits, many at a time, while the room of all files is looked at: of the disk itself, so that nothing is
/// counted twice.
#[test]
fn the_limit_holds_under_many_readers() {
    guarded(|| {
        const LIMIT: u64 = 8_000_000;
        let disk = Disk::new(64);
        let dir = format!("cache-fs.cache-provider-dir={}", disk.at.join("cache").display());
        let (depot, repo) = depot_with(&[&dir, "cache-fs.max-cache-size=8MB", "cache-fs.min-free-space=0"]);
        let files: Vec<(PathBuf, Vec<u8>)> = (0..30)
            .map(|i| (repo.join(format!("file{i}")), noise(i, 200_000 + 40_000 * i as usize)))
            .collect();
        files.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        depot.flush();
        // The daemon lets go of what it has open after a moment.
        eventually("the cache to be empty", || {
            depot.cli(&["cache", "drop", depot.dir_str(), "--all"]).ok();
            cache(&depot)["entries"] == 0
        });
        let used = || {
            let found = nix::sys::statvfs::statvfs(&disk.at).unwrap();
            (found.blocks() - found.blocks_free()) * found.fragment_size()
        };
        nix::unistd::sync();
        // The ledger and its log grow as well, within a bound.
        let empty = used().saturating_sub(room_of_files(&disk.at.join("cache"))) + (1 << 20);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::SeqCst) {
                    most = most.max(used());
                    thread::sleep(std::time::Duration::from_millis(1));
                }
                most
            });
            let readers: Vec<_> = (0..8)
                .map(|reader| {
                    let files = &files;
                    scope.spawn(move || {
                        for i in 0..60 {
                            let (path, bytes) = &files[(i * 7 + reader * 5) % files.len()];
                            assert!(fs::read(path).unwrap() == *bytes);
                        }
                    })
                })
                .collect();
            let read: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
            done.store(true, Ordering::SeqCst);
            read.into_iter().for_each(|read| read.unwrap());
            let most = watcher.join().unwrap();
            assert!(most <= empty + LIMIT, "{most} bytes on the disk, {empty} of them always");
            assert!(most > empty + LIMIT / 4, "the cache was used");
        });
        let cache = cache(&depot);
        assert!(cache["used"].as_u64().unwrap() <= LIMIT && cache["limit"] == LIMIT, "{cache}");
    });
}

#[test]
fn a_full_disk_of_the_cache_is_no_error_of_readers_and_writers() {
    guarded(|| {
        let disk = Disk::new(16);
        let dir = format!("cache-fs.cache-provider-dir={}", disk.at.join("cache").display());
        let (depot, repo) = depot_with(&[&dir, "cache-fs.min-free-space=0"]);
        for round in 0..2 {
            for i in 0..20 {
                let bytes = noise(100 * round + i, 1_500_000);
                fs::write(repo.join(format!("file{i}")), &bytes).unwrap();
            }
            depot.flush();
            for i in 0..20 {
                assert!(
                    fs::read(repo.join(format!("file{i}"))).unwrap() == noise(100 * round + i, 1_500_000)
                );
            }
        }
        let entries = cache(&depot)["entries"].as_u64().unwrap();
        assert!((1..10).contains(&entries), "{entries} blobs on a disk for less than ten");
        depot.umount();
        depot.mount();
        assert!(fs::read(repo.join("file3")).unwrap() == noise(103, 1_500_000));
    });
}

/// A queue and a cache on two disks: what was uploaded is copied where it cannot be moved.
#[test]
fn what_is_uploaded_is_cached_on_another_disk() {
    guarded(|| {
        let disk = Disk::new(64);
        let dir = disk.at.join("cache");
        let depot = Depot::uninitialised(Mode::Passthrough);
        let set = [
            "chain=cache-fs,eventual,file-system".to_owned(),
            format!("cache-fs.cache-provider-dir={}", dir.display()),
            "cache-fs.min-free-space=0".to_owned(),
        ];
        let mut args = vec!["init", depot.dir_str()];
        set.iter().for_each(|setting| args.extend(["--set", setting]));
        depot.cli(&args).ok();
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let contents: Vec<Vec<u8>> = (0..10).map(|i| noise(i, 100_000)).collect();
        for (i, bytes) in contents.iter().enumerate() {
            fs::write(depot.path(format!("repo/file{i}")), bytes).unwrap();
        }
        depot.flush();
        let at = |bytes: &[u8]| dir.join(&sha1(bytes)[..2]).join(sha1(bytes));
        eventually("all to be cached", || contents.iter().all(|bytes| at(bytes).exists()));
        assert!(contents.iter().all(|bytes| fs::read(at(bytes)).unwrap() == *bytes));
        let told = cache(&depot);
        assert_eq!(
            (&told["entries"], &told["evictions"], &told["arriving"]),
            (&10.into(), &0.into(), &0.into())
        );
    });
}

#[test]
fn damage_in_the_cache_is_not_damage_of_the_file() {
    guarded(|| {
        let (depot, repo) = depot_with(&[]);
        let contents: Vec<Vec<u8>> = (1..4).map(|i| noise(i, 300_000)).collect();
        for (i, bytes) in contents.iter().enumerate() {
            fs::write(repo.join(format!("file{i}")), bytes).unwrap();
        }
        depot.flush();
        depot.umount();
        let damage = |bytes: &[u8], instead: Option<&[u8]>| {
            let path = cached(&depot, bytes);
            fs::remove_file(&path).unwrap();
            if let Some(instead) = instead {
                fs::write(&path, instead).unwrap();
            }
        };
        damage(&contents[0], None);
        damage(&contents[1], Some(&b"short"[..]));
        let mut altered = contents[2].clone();
        altered[77] ^= 1;
        damage(&contents[2], Some(&altered[..]));
        depot.mount();
        for (i, bytes) in contents[..2].iter().enumerate() {
            assert!(fs::read(repo.join(format!("file{i}"))).unwrap() == *bytes);
        }
        // A blob's size is compared at each open, its bytes when it is verified.
        depot.cli(&["blob", "verify", depot.dir_str(), "repo/file2"]).ok();
        assert!(!cached(&depot, &contents[2]).exists(), "the altered copy is dropped");
        assert!(fs::read(repo.join("file2")).unwrap() == contents[2]);
        assert!(depot.log().contains("altered"), "{}", depot.log());
    });
}

#[test]
fn the_order_of_use_outlives_a_restart() {
    guarded(|| {
        let (depot, repo) = depot_with(&["cache-fs.max-cache-size=1MB"]);
        let contents: Vec<Vec<u8>> = (0..5).map(|i| noise(i, 240_000)).collect();
        let file = |i: usize| repo.join(format!("file{i}"));
        for (i, bytes) in contents[..4].iter().enumerate() {
            fs::write(file(i), bytes).unwrap();
            depot.flush();
        }
        depot.umount();
        depot.mount();
        assert!(fs::read(file(0)).unwrap() == contents[0]);
        depot.umount();
        depot.mount();
        fs::write(file(4), &contents[4]).unwrap();
        depot.flush();
        let there: Vec<bool> = contents.iter().map(|bytes| cached(&depot, bytes).exists()).collect();
        assert_eq!(there, [true, false, true, true, true]);
    });
}

#[test]
fn a_look_at_the_end_does_not_fetch_the_file() {
    guarded(|| {
        let (depot, repo) = depot_with(&[]);
        let bytes = noise(1, 40_000_000);
        write_uncached(&depot, &repo.join("file"), &bytes);
        depot.umount();
        depot.mount();
        let mut end = [0; 4096];
        let mut file = File::open(repo.join("file")).unwrap();
        file.seek(SeekFrom::End(-4096)).unwrap();
        file.read_exact(&mut end).unwrap();
        assert!(end == bytes[bytes.len() - 4096..]);
        let cache = cache(&depot);
        assert_eq!((&cache["entries"], &cache["arriving"]), (&0.into(), &0.into()));
        drop(file);
        assert!(fs::read(repo.join("file")).unwrap() == bytes);
        eventually("the blob to be cached", || cached(&depot, &bytes).exists());
    });
}

#[test]
fn it_is_warmed_dropped_and_advised_on() {
    guarded(|| {
        let (depot, repo) =
            depot_with(&["cache-fs.skip-during-upload=true", "cache-fs.max-file-size-limit=1MB"]);
        fs::create_dir_all(repo.join("a/b")).unwrap();
        for i in 0..20 {
            fs::write(repo.join(format!("a/b/file{i}")), noise(i, 50_000)).unwrap();
        }
        fs::write(repo.join("large"), noise(99, 1_100_000)).unwrap();
        depot.flush();
        assert_eq!(cache(&depot)["entries"], 0, "writes do not fill it");
        let warm = |paths: &[&str]| -> Value {
            let args = [&["warm", depot.dir_str(), "--json"], paths].concat();
            serde_json::from_str(&depot.cli(&args).ok()).unwrap()
        };
        let warmed = warm(&["repo/a", "repo/large"]);
        assert_eq!(
            warmed,
            serde_json::json!({
                "fetched": 20, "bytes": 1_000_000, "there": 0, "passed_over": 1, "failed": []
            })
        );
        assert_eq!(warm(&[depot.path("repo/a/b/file3").to_str().unwrap()])["there"], 1);
        assert_eq!(cache(&depot)["entries"], 20);
        for _ in 0..2 {
            (0..20).for_each(|i| {
                assert!(fs::read(repo.join(format!("a/b/file{i}"))).unwrap() == noise(i, 50_000))
            });
        }
        let hits = cache(&depot)["hits"].as_u64().unwrap();
        assert!(hits >= 20, "{hits}");
        let advice: Value =
            serde_json::from_str(&depot.cli(&["cache", "advise", depot.dir_str(), "--json"]).ok()).unwrap();
        assert_eq!(advice["asked"], hits, "{advice}");
        assert_eq!((&advice["first"], &advice["bytes"]), (&20.into(), &(20 * 53_248).into()), "{advice}");
        assert!(depot.cli(&["cache", "advise", depot.dir_str()]).ok().contains("openings"));
        eventually("one file to be out of the cache", || {
            depot.cli(&["cache", "drop", depot.dir_str(), "repo/a/b/file3"]).ok();
            cache(&depot)["entries"] == 19
        });
        eventually("the cache to be empty", || {
            depot.cli(&["cache", "drop", depot.dir_str(), "--all"]).ok();
            let cache = cache(&depot);
            cache["entries"] == 0 && cache["used"] == 0
        });
        depot.cli(&["warm", depot.dir_str(), "repo/none"]).fails(1);
        depot.cli(&["cache", "drop", depot.dir_str()]).fails(2);
        (0..20)
            .for_each(|i| assert!(fs::read(repo.join(format!("a/b/file{i}"))).unwrap() == noise(i, 50_000)));
        let plain = Depot::new(Mode::Passthrough);
        plain.mount();
        let err = plain.cli(&["cache", "status", plain.dir_str()]).fails(1);
        assert!(err.contains("no cache"), "{err}");
    });
}

/// Before files of another directory, it is filled with copies in the background; a cache that was thrown away is made anew.
#[test]
fn it_stands_before_files_and_may_be_thrown_away() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        depot.cli(&["init", depot.dir_str(), "--template", "cache-fs"]).ok();
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        let bytes = noise(1, 300_000);
        fs::write(repo.join("file"), &bytes).unwrap();
        depot.flush();
        eventually("the copy to be made", || cached(&depot, &bytes).exists());
        assert_ne!(
            fs::metadata(cached(&depot, &bytes)).unwrap().ino(),
            fs::metadata(depot.dir.join("filestore").join(&sha1(&bytes)[..2]).join(sha1(&bytes)))
                .unwrap()
                .ino()
        );
        depot.umount();
        fs::remove_dir_all(depot.dir.join("cache")).unwrap();
        depot.mount();
        assert!(fs::read(repo.join("file")).unwrap() == bytes);
        eventually("the copy to be made again", || cached(&depot, &bytes).exists());
        depot.umount();
        depot.check();
        fs::remove_dir_all(depot.dir.join("cache")).unwrap();
        fs::create_dir(depot.dir.join("cache")).unwrap();
        let refused = depot.mount_with("").fails(1);
        assert!(refused.contains("is its disk mounted?"), "{refused}");
    });
}

/// A good copy in the cache says nothing of what is stored, and is what that is made of again.
#[test]
fn damage_below_the_cache_is_found_and_healed() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        depot.cli(&["init", depot.dir_str(), "--template", "cache-fs"]).ok();
        depot.mount();
        let file = depot.path("repo/file");
        fs::create_dir(depot.path("repo")).unwrap();
        let bytes = noise(1, 300_000);
        fs::write(&file, &bytes).unwrap();
        depot.flush();
        eventually("the copy to be made", || cached(&depot, &bytes).exists());
        depot.cli(&["blob", "verify", depot.dir_str(), "repo/file"]).ok();
        let stored = depot.dir.join("filestore").join(&sha1(&bytes)[..2]).join(sha1(&bytes));
        let mut altered = bytes.clone();
        altered[77] ^= 1;
        fs::remove_file(&stored).unwrap();
        fs::write(&stored, &altered).unwrap();
        let verify = || depot.cli(&["blob", "verify", depot.dir_str(), "repo/file"]);
        for damage in ["altered", "missing", "cut"] {
            match damage {
                "altered" => {}
                "missing" => fs::remove_file(&stored).unwrap(),
                _ => fs::OpenOptions::new().write(true).open(&stored).unwrap().set_len(5).unwrap(),
            }
            let found = verify();
            assert!(found.code == Some(4) && found.err.contains("put back"), "{damage}: {}", found.err);
            assert!(fs::read(&stored).unwrap() == bytes && fs::read(&file).unwrap() == bytes, "{damage}");
            verify().ok();
            fs::set_permissions(&stored, fs::Permissions::from_mode(0o600)).unwrap();
        }
        // Without a good copy it is told, and nothing else.
        depot.cli(&["cache", "drop", depot.dir_str(), "--all"]).ok();
        assert!(!cached(&depot, &bytes).exists());
        fs::write(&stored, &altered).unwrap();
        let found = verify();
        assert!(found.code == Some(4) && found.err.contains("its bytes were altered\n"), "{}", found.err);
        assert!(fs::read(&stored).unwrap() == altered);
    });
}

/// A cached file that somebody reads becomes the staging file of whoever writes: then the cache has the only copy.
#[test]
fn a_lost_cache_with_unsealed_bytes_is_no_silent_loss() {
    guarded(|| {
        let (depot, repo) = depot_with(&[]);
        let (file, bytes) = (repo.join("file"), noise(1, 300_000));
        fs::write(&file, &bytes).unwrap();
        depot.flush();
        depot.umount();
        depot.mount();
        let reader = File::open(&file).unwrap();
        (&reader).read_exact(&mut [0; 100]).unwrap();
        let writer = File::options().write(true).open(&file).unwrap();
        writer.write_all_at(b"NEW", 0).unwrap();
        writer.sync_all().unwrap();
        let (cache, away) = (depot.dir.join("cache"), depot.dir.join("cache.away"));
        let staged = fs::read_dir(cache.join("_pre")).unwrap().count();
        assert_eq!(staged, 1, "the cached file is the writer's");
        depot.kill();
        drop((reader, writer));
        fs::rename(&cache, &away).unwrap();
        for _ in 0..2 {
            let refused = depot.mount_with("").fails(1);
            assert!(refused.contains("or in a cache that is lost"), "{refused}");
        }
        fs::remove_dir_all(&cache).unwrap();
        fs::rename(&away, &cache).unwrap();
        depot.mount();
        let mut new = bytes.clone();
        new[..3].copy_from_slice(b"NEW");
        assert!(fs::read(&file).unwrap() == new);
        depot.flush();
        depot.umount();
        // What is sealed is below.
        assert_eq!(fs::read_dir(cache.join("_pre")).unwrap().count(), 0);
        fs::remove_dir_all(&cache).unwrap();
        depot.mount();
        assert!(fs::read(&file).unwrap() == new);
    });
}

/// Who has lost the bytes for good can go on.
#[test]
fn a_lost_cache_can_be_given_up() {
    guarded(|| {
        let (depot, repo) = depot_with(&[]);
        let (file, bytes) = (repo.join("file"), noise(1, 300_000));
        fs::write(&file, &bytes).unwrap();
        depot.flush();
        let reader = File::open(&file).unwrap();
        (&reader).read_exact(&mut [0; 100]).unwrap();
        let writer = File::options().write(true).open(&file).unwrap();
        writer.write_all_at(b"NEW", 0).unwrap();
        writer.sync_all().unwrap();
        depot.kill();
        drop((reader, writer));
        fs::remove_dir_all(depot.dir.join("cache")).unwrap();
        let refused = depot.mount_with("").fails(1);
        assert!(refused.contains("chain.known"), "{refused}");
        fs::remove_file(depot.dir.join("chain.known")).unwrap();
        depot.mount();
        assert!(fs::read(&file).unwrap() == bytes, "the previous version");
    });
}

/// A mounted depot whose cache, which only reads fill, stands before something far away.
#[cfg(debug_assertions)]
fn far_away(mode: Mode) -> Depot {
    let depot = Depot::uninitialised(mode);
    let set = ["chain=cache-fs,faulty,file-system", "faulty.remote=true", "cache-fs.skip-during-upload=true"];
    let mut args = vec!["init", depot.dir_str()];
    set.iter().for_each(|setting| args.extend(["--set", *setting]));
    depot.cli(&args).ok();
    depot.mount();
    depot
}

/// What was read before the end of an arrival showed that its bytes are wrong is not shown again from the kernel's pages.
#[cfg(debug_assertions)]
#[test]
fn bytes_that_proved_wrong_are_not_kept() {
    guarded(|| {
        let depot = far_away(Mode::Cached);
        let (file, bytes) = (depot.path("repo/file"), noise(1, 700_000));
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(&file, &bytes).unwrap();
        depot.flush();
        depot.umount();
        depot.mount();
        crate::eventual::faults(&depot, "read=corrupt");
        let mut first = [0; 4096];
        let early = File::open(&file).unwrap();
        early.read_exact_at(&mut first, 0).unwrap();
        fs::read(&file).fails(nix::errno::Errno::EIO);
        assert!(!cached(&depot, &bytes).exists(), "what is wrong is not cached");
        crate::eventual::faults(&depot, "");
        // It may have read what was wrong: what is right behind it would be half of another file.
        early.read_exact_at(&mut first, 600_000).fails(nix::errno::Errno::EIO);
        drop(early);
        assert!(fs::read(&file).unwrap() == bytes);
        depot.umount();
        depot.check();
    });
}

/// What arrives is not in memory twice: the kernel's pages of it go behind its only reader, as its file has the bytes.
#[cfg(debug_assertions)]
#[test]
fn pages_behind_the_reader_of_what_arrives_are_given_back() {
    guarded(|| {
        let depot = far_away(Mode::Passthrough);
        let (file, bytes) = (depot.path("repo/file"), noise(1, 64 << 20));
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(&file, &bytes).unwrap();
        depot.flush();
        depot.umount();
        for readers in [1, 2] {
            depot.mount();
            let open: Vec<File> = (0..readers).map(|_| File::open(&file).unwrap()).collect();
            let (mut piece, mut at) = (vec![0; 1 << 20], 0);
            while at < bytes.len() {
                let read = open[0].read_at(&mut piece, at as u64).unwrap();
                assert!(piece[..read] == bytes[at..at + read], "at {at}");
                at += read;
            }
            let before = reads(&depot);
            open[0].read_exact_at(&mut piece, 8 << 20).unwrap();
            assert!(piece[..] == bytes[8 << 20..9 << 20]);
            // Others may be behind, and are not made to ask again.
            assert_eq!(reads(&depot) > before, readers == 1, "{readers}");
            let before = reads(&depot);
            open[0].read_exact_at(&mut piece, 63 << 20).unwrap();
            assert_eq!(reads(&depot), before, "what was just read is still there");
            drop(open);
            uncache(&depot, &bytes);
            depot.umount();
        }
        depot.mount();
        assert!(fs::read(&file).unwrap() == bytes);
        depot.umount();
        depot.check();
    });
}
