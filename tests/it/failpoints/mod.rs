//! The daemon killed at every named point of its code: what was answered is there, what was not is not half there.
//!
//! Each workload goes with the points that it passes. For each of them a program works in the mount until the daemon dies
//! at that point; then the depot is mounted again, compared with the program's log, unmounted and checked. A point at which
//! nobody dies is a failure, and so is one that no test names.

use std::time::{Duration, Instant};

use crate::harness::{Driver, Steered};

/// Makes a #[test] in each mode of each named `fn(Mode)`.
macro_rules! both_modes {
    ($($test:ident),+ $(,)?) => { $(mod $test {
        use crate::harness::{Mode, guarded};
        #[test]
        fn passthrough() {
            guarded(|| super::$test(Mode::Passthrough));
        }
        #[test]
        fn cached() {
            guarded(|| super::$test(Mode::Cached));
        }
    })+ };
}

mod layers;
mod rechain;
mod recovery;
mod upkeep;
mod workloads;

/// Points that tests of their own die at, beside the workloads.
const ELSEWHERE: &[&[&str]] = &[
    upkeep::NUMBERING,
    upkeep::HEALING,
    upkeep::RECLAIMING,
    upkeep::REPAIRING,
    upkeep::IN_UNIT_TESTS,
    recovery::PRIVATE,
    recovery::RECOVERING,
    recovery::RECOVERING_PAST,
    recovery::SETTING_ASIDE,
    recovery::FAILING,
    recovery::EXPECTING,
    layers::DATABASE,
    layers::SHARDS,
    rechain::OFFLINE,
    rechain::MOUNTED,
    layers::CACHE_WRITTEN,
    layers::CACHE_READ,
    layers::CACHE_LENT,
    layers::CACHE_DROPPED,
    layers::QUEUE,
    layers::OBJECTS,
];

#[test]
fn every_point_has_a_test_that_dies_there() {
    let of = |w: &workloads::Workload| [w.points, w.passthrough, w.cached].concat();
    let mut killed: Vec<&str> = workloads::WORKLOADS.iter().flat_map(of).map(bare).collect();
    killed.extend(ELSEWHERE.iter().flat_map(|points| points.iter()));
    let names = depotfs::failpoint::NAMES;
    let forgotten: Vec<&&str> = names.iter().filter(|name| !killed.contains(name)).collect();
    assert!(forgotten.is_empty(), "no test dies at {forgotten:?}");
    let unknown: Vec<&&str> = killed.iter().filter(|name| !names.contains(name)).collect();
    assert!(unknown.is_empty(), "there are no points {unknown:?}");
}

/// A point without the number of its hit.
fn bare(point: &str) -> &str {
    point.split('@').next().unwrap()
}

/// The line that kills at a point.
fn kill_at(point: &str) -> String {
    match point.split_once('@') {
        _ if point.ends_with(".rest") => {
            let write = point.trim_end_matches(".rest");
            format!("{write}=short\n{point}=kill")
        }
        Some((name, hit)) => format!("{name}=kill@{hit}"),
        None => format!("{point}=kill"),
    }
}

/// Mounts after a death where that was not done yet, compares, unmounts, checks.
fn survives(depot: &Steered, driver: &mut Driver, point: &str) {
    depot.clear();
    if !depot.serves() {
        depot.mount();
    }
    driver.compare();
    let status = depot.depot.status();
    assert_eq!(status["reports"].as_array().map_or(0, Vec::len), 0, "{point}: {}", status["reports"]);
    sound(depot);
}

/// An unmounted depot in which nothing is wrong or left over.
fn sound(depot: &Steered) {
    if depot.serves() {
        depot.umount();
    }
    depot.depot.check();
    depot.depot.verify_blobs();
    assert!(!depot.depot.dir.join("index.db-wal").exists(), "an orderly end empties the log");
    assert_eq!(depot.depot.staging(), [""; 0], "staging files after an orderly end");
}

/// Waits for a death at a point that was passed, or about to be.
fn dies(depot: &Steered, point: &str) {
    let begun = Instant::now();
    while depot.serves() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{point}: nobody died there; passed were {}",
            depot.hits()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    // More than once where several threads were at it.
    assert_ne!(depot.fired(bare(point)), 0, "{point}: died elsewhere; passed were {}", depot.hits());
}
