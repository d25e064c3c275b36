//! Deaths in the providers of a chain.

use super::{dies, survives};
use crate::harness::{Depot, Driver, Mode, Steered, guarded, scratch};

pub const DATABASE: &[&str] = &["db.put", "db.committed"];

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
