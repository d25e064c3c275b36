//! An upgrade of the schema that is killed at each of its steps: the old version stands, or the new one, whole.
//!
//! There is no older schema yet, so a step is made up. What is killed is this test program, started again for one test.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::failpoint;

/// Names the index that the killed program upgrades.
const PATH: &str = "DEPOTFS_TEST_UPGRADE";

const STEPS: &[schema::Step] = &[schema::Step {
    from: schema::VERSION,
    sql: "CREATE TABLE newer (a INTEGER NOT NULL PRIMARY KEY) STRICT; INSERT INTO newer VALUES (42)",
}];

fn upgraded(path: &Path) -> Result<Index> {
    Index::open_with(path, STEPS, schema::VERSION + 1)
}

/// Does nothing unless it is the program that is to be killed.
#[test]
fn upgrades_what_it_is_told_to() {
    if let Some(path) = std::env::var_os(PATH) {
        upgraded(Path::new(&path)).unwrap();
    }
}

#[test]
fn a_killed_upgrade_is_whole() {
    let points = ["backup.copied", "upgrade.kept", "upgrade.stepped", "wal.write", "wal.sync", "wal.synced"];
    for point in points.into_iter().chain(["upgrade.committed", "db.write", "db.sync", "db.synced"]) {
        let depot = Depot::new();
        for number in 0..50 {
            depot.file(ROOT, &format!("file{number}"));
        }
        let (path, before) = (depot.path(), dump(&depot.index));
        let Depot { index, dir } = depot;
        drop(index);
        fs::write(dir.path().join("set"), format!("{point}=kill")).unwrap();
        let killed = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "index::tests::upgrades::upgrades_what_it_is_told_to"])
            .env(PATH, &path)
            .env(failpoint::VARIABLE, dir.path())
            .output()
            .unwrap();
        assert!(!killed.status.success(), "{point}");
        let hits = fs::read_to_string(dir.path().join("hits")).unwrap();
        assert!(hits.lines().last().is_some_and(|line| line == format!("{point} Kill")), "{point}: {hits}");

        let index = upgraded(&path).unwrap();
        let version = |c: &Connection| sql::user_version(c).unwrap();
        assert_eq!(version(&index.writer.lock()), schema::VERSION + 1, "{point}");
        let newer = index.writer.lock().query_row("SELECT a FROM newer", [], |row| row.get::<_, i64>(0));
        assert_eq!(newer.unwrap(), 42, "{point}");
        let rows = |index: &Index| dump(index).into_iter().filter(|(t, _)| t != "meta").collect::<Vec<_>>();
        let before: Vec<_> = before.into_iter().filter(|(table, _)| table != "meta").collect();
        assert_eq!(rows(&index), before, "{point}");
        drop(index);
        // The copy that was kept is the old version, whole.
        let kept = Index::open(&dir.path().join(format!("index.db.v{}", schema::VERSION))).unwrap();
        assert_eq!(rows(&kept), before, "{point}");
    }
}
