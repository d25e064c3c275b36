//! Deaths while a depot gets another chain: it has the old one or the new one, and all its files.

use std::fs;

use serde_json::Value;

use super::dies;
use crate::data::noise;
use crate::harness::{Depot, Mode, Steered, eventually, guarded};

/// Without a mount.
pub const OFFLINE: &[&str] =
    &["rechain.made", "rechain.copied", "rechain.sealed", "rechain.kept", "rechain.exchanged"];
/// In the daemon.
pub const MOUNTED: &[&str] = &["rechain.ready"];

const FILES: u64 = 40;

fn filled() -> Steered {
    let depot = Steered::over(Depot::new(Mode::Passthrough), "");
    depot.mount();
    write(&depot, "file");
    depot
}

fn write(depot: &Steered, name: &str) {
    for i in 0..FILES {
        fs::write(depot.depot.path(format!("repo/{name}{i}")), noise(i, 900 * i as usize)).unwrap();
    }
}

fn holds(depot: &Steered, name: &str) {
    for i in 0..FILES {
        let found = fs::read(depot.depot.path(format!("repo/{name}{i}"))).unwrap();
        assert!(found == noise(i, 900 * i as usize), "{name}{i}");
    }
}

/// The mode in which the harness finds the blobs of the chain that the depot has.
fn settle(depot: &mut Steered) {
    depot.depot.mode = match depot.depot.status()["chain"][0]["kind"].as_str() {
        Some("full-db") => Mode::Database,
        _ => Mode::Passthrough,
    };
}

fn ends(mut depot: Steered, point: &str, name: &str) {
    depot.clear();
    settle(&mut depot);
    depot.mount();
    holds(&depot, "file");
    depot.umount();
    // The same command goes on, unless the death came so late that there is nothing left to do.
    let ran = depot.run(&["rechain", depot.depot.dir_str()]);
    assert!(ran.code == Some(0) || ran.err.contains("name the new chain"), "{point}: {}", ran.err);
    settle(&mut depot);
    assert_eq!(depot.depot.mode, Mode::Database, "{point}");
    depot.mount();
    holds(&depot, "file");
    holds(&depot, name);
    assert_eq!(depot.depot.status()["reports"].as_array().map_or(0, Vec::len), 0, "{point}");
    super::sound(&depot);
    assert!(!depot.depot.dir.join("rechain.json").exists(), "{point}");
}

#[test]
fn dies_at_each_step() {
    guarded(|| {
        for point in OFFLINE {
            let depot = filled();
            depot.umount();
            let kill = if *point == "rechain.copied" {
                "rechain.copied=kill@15".into()
            } else {
                format!("{point}=kill")
            };
            depot.set(&kill);
            let ran = depot.run(&["rechain", depot.depot.dir_str(), "--to", "full-db-direct"]);
            assert_eq!((ran.code, depot.fired(point)), (None, 1), "{point}: {}{}", ran.out, ran.err);
            ends(depot, point, "file");
        }
    });
}

/// The daemon dies in the middle of its copying, and after it; and the mount that is to end it dies as well.
#[test]
fn dies_while_it_is_mounted() {
    guarded(|| {
        for point in MOUNTED.iter().chain(&["rechain.copied"]) {
            let depot = filled();
            depot.flush();
            let kill = if *point == "rechain.copied" {
                "rechain.copied=kill@15".into()
            } else {
                format!("{point}=kill")
            };
            depot.set(&kill);
            depot.run(&["rechain", depot.depot.dir_str(), "--to", "full-db-direct"]).fails(1);
            dies(&depot, point);
            ends(depot, point, "file");
        }
        for point in ["rechain.sealed", "rechain.copied", "rechain.kept", "rechain.exchanged"] {
            let depot = filled();
            depot.flush();
            depot.run(&["rechain", depot.depot.dir_str(), "--to", "full-db-direct"]).ok();
            fs::write(depot.depot.path("repo/late0"), noise(0, 0)).unwrap();
            write(&depot, "late");
            fs::write(depot.depot.path("repo/another"), noise(99, 70_000)).unwrap();
            depot.umount();
            depot.set(&format!("{point}=kill"));
            assert_eq!(depot.try_mount().code, Some(1), "{point}");
            assert_eq!(depot.fired(point), 1, "{point}: passed were {}", depot.hits());
            eventually("the daemon to be gone", || !depot.serves());
            let status: Value = depot.depot.status();
            let kind = if point == "rechain.exchanged" { "full-db" } else { "file-system" };
            assert_eq!(status["chain"][0]["kind"], kind, "{point}");
            ends(depot, point, "late");
        }
    });
}

/// The new chain's disk fails in the middle: nothing is exchanged, and the mount that was to end it serves the old chain.
#[test]
fn a_failing_disk_keeps_the_old_chain() {
    guarded(|| {
        let depot = filled();
        depot.umount();
        let new = depot.depot.scratch().join("new.toml");
        fs::write(&new, "chain = ['file-system']\n[file-system]\ndir = 'blobs'").unwrap();
        depot.set("folder.force=error:EIO@20");
        let ran = depot.run(&["rechain", depot.depot.dir_str(), "--to", new.to_str().unwrap()]);
        assert_eq!(ran.code, Some(1), "{}", ran.err);
        assert!(ran.err.contains("Input/output error") && ran.err.contains("goes on"), "{}", ran.err);
        depot.clear();
        depot.mount();
        holds(&depot, "file");
        depot.run(&["rechain", depot.depot.dir_str()]).ok();
        fs::write(depot.depot.path("repo/another"), noise(99, 70_000)).unwrap();
        depot.umount();
        let altered = depot.depot.blob(&crate::harness::sha1(&noise(99, 70_000)));
        let good = fs::read(&altered).unwrap();
        fs::remove_file(&altered).unwrap();
        fs::write(&altered, vec![0; good.len()]).unwrap();
        depot.mount();
        let log = depot.depot.log();
        assert!(log.contains("the depot keeps its old chain: blob"), "{log}");
        assert_eq!(depot.depot.status()["chain"][0]["directory"], depot.depot.store().to_str().unwrap());
        depot.umount();
        fs::write(&altered, good).unwrap();
        depot.mount();
        holds(&depot, "file");
        let blobs = depot.depot.dir.join("blobs");
        assert_eq!(depot.depot.status()["chain"][0]["directory"], blobs.to_str().unwrap());
        depot.umount();
        depot.depot.check();
    });
}
