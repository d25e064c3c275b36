//! Deaths in the providers of a chain.

use super::{dies, survives};
use crate::harness::{Depot, Driver, Mode, Steered, guarded, scratch};

pub const DATABASE: &[&str] = &["db.put", "db.committed"];
pub const SHARDS: &[&str] = &["shards.put", "shards.prepared", "rename.answered", "shards.mended"];

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
