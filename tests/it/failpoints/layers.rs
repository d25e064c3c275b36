//! Deaths in the providers of a chain.

use super::{dies, survives};
use crate::harness::{Depot, Driver, Mode, Server, Speaks, Steered, guarded, scratch};

pub const DATABASE: &[&str] = &["db.put", "db.committed"];
pub const SHARDS: &[&str] = &["shards.put", "shards.mended"];
pub const OBJECTS: &[&str] = &["objects.parts", "objects.put"];

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
            if *point == "shards.mended" {
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
