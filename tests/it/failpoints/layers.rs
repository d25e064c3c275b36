//! Deaths in the providers of a chain.

use super::{dies, survives};
use crate::eventual::{faults, queued, sealed, stored};
use crate::harness::{Depot, Driver, Mode, Server, Speaks, Steered, eventually, guarded, scratch};

pub const DATABASE: &[&str] = &["db.put", "db.committed"];
pub const SHARDS: &[&str] = &["shards.put", "shards.prepared", "rename.answered", "shards.mended"];
pub const OBJECTS: &[&str] = &["objects.parts", "objects.put"];
pub const CACHE_WRITTEN: &[&str] = &["cache.put", "cache.linked"];
pub const CACHE_READ: &[&str] = &["cache.open", "cache.begun", "cache.fetch", "cache.force", "cache.named"];
pub const CACHE_LENT: &[&str] = &["cache.lent"];
pub const CACHE_DROPPED: &[&str] = &["cache.withdrawn"];
pub const QUEUE: &[&str] = &[
    "eventual.put",
    "eventual.uploaded",
    "eventual.retired",
    "eventual.tombstone",
    "eventual.buried",
    "eventual.aside",
    "eventual.through",
];

/// The put of a batch into the database is there as a whole or not at all, and the files are what they were in any case.
#[test]
fn dies_putting_into_a_database() {
    guarded(|| {
        let depot = Steered::over(Depot::new(Mode::Database), "");
        let logs = scratch();
        for (number, point) in DATABASE.iter().enumerate() {
            depot.mount();
            let before = depot.depot.blobs().len();
            let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
            depot.set("seal.leased=hold");
            for i in 0..20 {
                driver.file(&format!("file{i}"), &driver.noise(i + 1, 3_000 * i as usize)).unwrap();
            }
            depot.set(&format!("{point}=kill"));
            depot.flush();
            dies(&depot, point);
            let after = depot.depot.blobs().len() - before;
            assert!(if *point == "db.put" { after == 0 } else { after > 0 }, "{point}: {after} blobs");
            survives(&depot, &mut driver, point);
        }
    });
}

/// Copies are made on several disks at once: wherever the daemon dies, the file is what it was and gets its copies.
#[test]
fn dies_putting_on_shards() {
    guarded(|| {
        let depot = Steered::over(Depot::new(Mode::Sharded), "");
        let logs = scratch();
        for (number, point) in SHARDS.iter().enumerate() {
            depot.mount();
            let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
            driver.file("old", &driver.noise(9, 40_000)).unwrap();
            depot.flush();
            if *point != "shards.put" {
                // One of its copies is lost, which its readers notice.
                let sum = depot.depot.checksum(&format!("repo/program{number}/old"));
                std::fs::remove_file(depot.depot.blob(&sum)).unwrap();
                depot.umount();
                depot.mount();
                depot.set(&format!("{point}=kill"));
                for _ in 0..4 {
                    let _ = driver.open_to_read("old").and_then(|()| driver.read("old"));
                    driver.close_all();
                }
            } else {
                depot.set(&format!("{point}=kill"));
                for i in 0..8 {
                    let _ = driver.file(&format!("file{i}"), &driver.noise(i + 1, 3_000 * i as usize));
                }
                depot.flush();
            }
            dies(&depot, point);
            survives(&depot, &mut driver, point);
        }
    });
}

/// Mounts the depot with a cache again after a death: files are what they were, and the cache counts what is in it.
fn cache_survives(depot: &Steered, driver: &mut Driver, point: &str) {
    depot.clear();
    depot.mount();
    driver.compare();
    let cache = crate::cache::cache(&depot.depot);
    let (used, disk) =
        (cache["used"].as_u64().unwrap(), crate::cache::room_of_files(&depot.depot.dir.join("cache")));
    assert!(used >= disk, "{point}: {disk} bytes in the cache, of which it counts {used}");
    survives(depot, driver, point);
}

#[test]
fn dies_caching_what_is_written() {
    guarded(|| {
        let depot = Steered::over(Depot::new(Mode::CachedRows), "");
        let logs = scratch();
        for (number, point) in CACHE_WRITTEN.iter().enumerate() {
            depot.mount();
            let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
            depot.set("seal.leased=hold");
            for i in 0..10 {
                driver.file(&format!("file{i}"), &driver.noise(i + 1, 3_000 * i as usize)).unwrap();
            }
            depot.set(&format!("{point}=kill"));
            depot.flush();
            dies(&depot, point);
            cache_survives(&depot, &mut driver, point);
        }
    });
}

#[test]
fn dies_caching_what_is_read() {
    guarded(|| {
        let depot = Steered::over(Depot::new(Mode::CachedRows), "");
        let logs = scratch();
        for (number, point) in CACHE_READ.iter().enumerate() {
            depot.mount();
            let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
            driver.file("file", &driver.noise(1, 700_000)).unwrap();
            depot.flush();
            depot.umount();
            depot.mount();
            depot.run(&["cache", "drop", depot.depot.dir_str(), "--all"]).ok();
            depot.set(&format!("{point}=kill"));
            let _ = driver.open_to_read("file").and_then(|()| driver.read("file"));
            dies(&depot, point);
            driver.close_all();
            cache_survives(&depot, &mut driver, point);
        }
    });
}

#[test]
fn dies_lending_a_cached_file() {
    guarded(|| {
        let depot = Steered::over(Depot::new(Mode::CachedRows), "");
        let logs = scratch();
        for (number, point) in CACHE_LENT.iter().enumerate() {
            depot.mount();
            let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
            driver.file("read", &driver.noise(1, 700_000)).unwrap();
            depot.flush();
            depot.set(&format!("{point}=kill"));
            let _ = driver
                .open_to_read("read")
                .and_then(|()| driver.open("read"))
                .and_then(|()| driver.write("read", 100, b"its readers see this"));
            dies(&depot, point);
            driver.close_all();
            cache_survives(&depot, &mut driver, point);
        }
    });
}

#[test]
fn dies_evicting() {
    guarded(|| {
        let depot = Steered::over(Depot::new(Mode::CachedRows), "");
        let logs = scratch();
        for (number, point) in CACHE_DROPPED.iter().enumerate() {
            depot.mount();
            let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
            for i in 0..5 {
                driver.file(&format!("file{i}"), &driver.noise(i + 1, 100_000)).unwrap();
            }
            depot.flush();
            depot.umount();
            depot.mount();
            depot.set(&format!("{point}=kill@2"));
            depot.run(&["cache", "drop", depot.depot.dir_str(), "--all"]);
            dies(&depot, point);
            cache_survives(&depot, &mut driver, point);
        }
    });
}

/// Wherever the daemon dies between put, upload and removal, the queue is what lies in its directory, and it is emptied.
#[test]
fn dies_working_off_the_queue() {
    guarded(|| {
        let depot = Steered::over(Depot::new(Mode::Queued), "");
        let logs = scratch();
        for (number, point) in QUEUE.iter().enumerate() {
            depot.mount();
            let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
            driver.file("old", &driver.noise(9, 40_000)).unwrap();
            let removed = vec![number as u8; 50_000];
            let apart = depot.depot.path(format!("repo/apart{number}"));
            std::fs::write(&apart, &removed).unwrap();
            depot.flush();
            match *point {
                "eventual.tombstone" | "eventual.buried" => {
                    depot.set(&format!("{point}=kill"));
                    std::fs::remove_file(&apart).unwrap();
                }
                "eventual.aside" => alter_an_entry(&depot, &apart),
                "eventual.through" => {
                    depot.run(&["repo", "set", depot.depot.dir_str(), "repo", "durability=remote"]).ok();
                    depot.set(&format!("{point}=kill"));
                    let _ = driver.file("needed", &driver.noise(3, 30_000));
                }
                _ => {
                    depot.set(&format!("{point}=kill"));
                    for i in 0..8 {
                        let _ = driver.file(&format!("file{i}"), &driver.noise(i + 1, 3_000 * i as usize));
                    }
                    depot.flush();
                }
            }
            dies(&depot, point);
            if *point == "eventual.aside" {
                depot.clear();
                depot.mount();
                assert!(depot.depot.status()["chain"][0]["queue"]["bad"][0].is_string());
                std::fs::write(&apart, ALTERED).unwrap();
                depot.flush();
                assert_eq!(std::fs::read(stored(&depot.depot, ALTERED)).unwrap(), ALTERED);
            }
            survives(&depot, &mut driver, point);
        }
    });
}

/// Trouble with the cache's disk is no trouble of readers and writers.
#[test]
fn a_failing_cache_is_read_past() {
    guarded(|| {
        let depot = Steered::over(Depot::new(Mode::CachedRows), "");
        depot.mount();
        for (n, rule) in ["cache.open=error:EIO", "cache.force=error:ENOSPC", "cache.fetch=error:ENOSPC"]
            .iter()
            .enumerate()
        {
            // A file of its own: of one that a moment ago was read the kernel may keep what is written, and ask nobody for it.
            let (at, bytes) = (depot.depot.path(format!("repo/file{n}")), vec![n as u8 + 1; 400_000]);
            depot.set(rule);
            std::fs::write(&at, &bytes).unwrap();
            depot.flush();
            eventually("the cache to be empty", || {
                depot.run(&["cache", "drop", depot.depot.dir_str(), "--all"]).ok();
                crate::cache::cache(&depot.depot)["entries"] == 0
            });
            for _ in 0..2 {
                assert!(std::fs::read(&at).unwrap() == bytes, "{rule}");
            }
            // The disk is not waited for by who reads.
            eventually(rule, || depot.fired(rule.split_once('=').unwrap().0) > 0);
            depot.clear();
            assert!(std::fs::read(&at).unwrap() == bytes, "{rule}");
        }
        depot.umount();
    });
}

const ALTERED: &[u8] = &[200; 40_000];

/// A file whose entry is altered while the store is away, and which is uploaded then.
fn alter_an_entry(depot: &Steered, path: &std::path::Path) {
    faults(&depot.depot, "*=fail");
    std::fs::write(path, ALTERED).unwrap();
    sealed(&depot.depot);
    let entry = queued(&depot.depot, ALTERED);
    std::fs::remove_file(&entry).unwrap();
    std::fs::write(&entry, "evil").unwrap();
    depot.set("eventual.aside=kill");
    faults(&depot.depot, "");
    depot.flush();
}

/// A daemon that dies while it sends leaves objects that nobody misses or parts that are none, and the file is sent again.
#[test]
fn dies_putting_into_a_bucket() {
    guarded(|| {
        let server = Server::start(Speaks::S3);
        let settings = ["s3-storage-v3.multipart-limit=6MB", "s3-storage-v3.multipart-element-size=6MB"];
        let depot = Steered::over(Depot::in_bucket(&server, server.port(), &settings), "");
        let logs = scratch();
        for (number, point) in OBJECTS.iter().enumerate() {
            depot.mount();
            let before = depot.depot.blobs().len();
            let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
            depot.set("seal.leased=hold");
            let bytes = if *point == "objects.parts" { 13_000_000 } else { 5_000 };
            driver.file("file", &driver.noise(number as u64 + 1, bytes)).unwrap();
            depot.set(&format!("{point}=kill"));
            depot.flush();
            dies(&depot, point);
            let after = depot.depot.blobs().len() - before;
            assert_eq!(after, usize::from(*point == "objects.put"), "{point}");
            survives(&depot, &mut driver, point);
        }
    });
}
