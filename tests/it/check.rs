//! `depotfs check`: what it finds in a depot that somebody meddled with, and what it repairs.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::harness::{Depot, Ran, on_depot, sha1};

/// A depot with a few files, unmounted.
fn fill(depot: &Depot) {
    depot.mount();
    fs::create_dir_all(depot.path("repo/dir/sub")).unwrap();
    for name in ["a", "b", "dir/c", "dir/sub/d"] {
        fs::write(depot.path(format!("repo/{name}")), format!("bytes of {name}")).unwrap();
    }
    fs::hard_link(depot.path("repo/a"), depot.path("repo/linked")).unwrap();
    depot.umount();
    depot.check();
}

fn check(depot: &Depot, more: &[&str]) -> Ran {
    depot.cli(&[&["check", depot.dir_str()], more].concat())
}

/// Changes the index with SQL, as a bug or a careless hand might.
fn meddle(depot: &Depot, sql: &str) {
    let index = rusqlite::Connection::open(depot.dir.join("index.db")).unwrap();
    index.execute_batch(sql).unwrap();
}

/// The damage is found, repaired, and then gone; the tree works.
fn found_and_repaired(depot: &Depot) {
    let before = check(depot, &[]);
    let said = format!("{}{}", before.out, before.err);
    before.fails(4);
    let repair = check(depot, &["--repair"]);
    assert!(!format!("{}{}", repair.out, repair.err).trim().is_empty(), "a repair says what it did");
    let after = check(depot, &[]);
    assert_eq!(after.code, Some(0), "found: {said}\nafter the repair: {}{}", after.out, after.err);
    depot.mount();
    assert_eq!(fs::read(depot.path("repo/b")).unwrap(), b"bytes of b");
    assert_eq!(fs::read(depot.path("repo/dir/sub/d")).unwrap(), b"bytes of dir/sub/d");
}

#[test]
fn wrong_link_counts() {
    on_depot(|depot| {
        fill(depot);
        meddle(depot, "UPDATE inode SET nlink = nlink + 3 WHERE ino >= 16");
        found_and_repaired(depot);
        assert_eq!(fs::metadata(depot.path("repo/a")).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(depot.path("repo/dir")).unwrap().nlink(), 3);
    });
}

#[test]
fn wrong_reference_counts() {
    on_depot(|depot| {
        fill(depot);
        meddle(depot, "UPDATE blob SET refs = refs + 1");
        found_and_repaired(depot);
        // The blob can be collected again.
        fs::remove_file(depot.path("repo/dir/c")).unwrap();
        let sum = sha1(b"bytes of dir/c");
        crate::harness::eventually("the blob to be collected", || !depot.blobs().contains(&sum));
    });
}

#[test]
fn wrong_totals() {
    on_depot(|depot| {
        fill(depot);
        meddle(depot, "UPDATE counter SET files = 77, logical_bytes = 0, blobs = 1");
        found_and_repaired(depot);
        assert_eq!(depot.status()["counts"]["files"], 4);
    });
}

#[test]
fn an_inode_without_a_name_goes_to_lost_and_found() {
    on_depot(|depot| {
        fill(depot);
        meddle(depot, "DELETE FROM dentry WHERE name = CAST('c' AS BLOB)");
        found_and_repaired(depot);
        let found: Vec<_> =
            fs::read_dir(depot.path("lost+found")).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(fs::read(&found[0]).unwrap(), b"bytes of dir/c");
    });
}

#[test]
fn stray_blobs_and_staging_files() {
    on_depot(|depot| {
        fill(depot);
        let stray = sha1(b"nobody's");
        fs::create_dir_all(depot.blob(&stray).parent().unwrap()).unwrap();
        fs::write(depot.blob(&stray), "nobody's").unwrap();
        fs::write(depot.dir.join("filestore/_pre/00000000deadbeef"), "unfinished").unwrap();
        found_and_repaired(depot);
        // What nobody names gets a name, or goes.
        let found =
            fs::read_dir(depot.path("lost+found")).unwrap().map(|e| fs::read(e.unwrap().path()).unwrap());
        let named = found.into_iter().any(|bytes| bytes == b"nobody's");
        assert_eq!(named, depot.blobs().contains(&stray));
        assert!(depot.staging().is_empty());
    });
}

#[test]
fn a_staging_file_that_counts_is_no_problem() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "not sealed yet").unwrap();
        depot.kill();
        let ran = check(depot, &[]);
        assert!(matches!(ran.code, Some(0 | 4)), "{}", ran.err);
        check(depot, &["--repair"]);
        depot.mount();
        assert_eq!(fs::read(depot.path("repo/file")).unwrap(), b"not sealed yet", "a repair loses nothing");
    });
}
