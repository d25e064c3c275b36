//! How many requests the kernel sends to the daemon for what programs do often, by operation.
//!
//! A request costs what many system calls cost, so these budgets hold on any host. RELEASE and FORGET are not counted:
//! nobody waits for them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::data::noise;
use crate::harness::{Tree, command, run_command};
use crate::sys;

modes!(@ [passthrough]
    a_known_file_is_looked_at_without_a_request
    a_file_at_rest_is_looked_at_without_a_request
    opening_and_reading_a_sealed_file_is_one_request
    a_new_file_takes_four_requests
    close_takes_one_request_with_durability_close
    further_writes_take_none
    reads_of_a_warm_file_take_none
    names_change_with_one_request
    changes_of_one_directory_ask_for_its_attributes
    a_second_listing_takes_two_requests_a_directory
);

/// Files of which the budgets are taken: one alone could be lucky.
const FILES: u64 = 10;

/// Requests by operation, those that somebody waits for.
type Requests = BTreeMap<String, u64>;

fn so_far(t: &Tree) -> Requests {
    let text = t.depot().cli(&["metrics", t.depot().dir_str()]).ok();
    let of = |line: &str| {
        let (operation, count) =
            line.strip_prefix("depotfs_requests_total{operation=\"")?.split_once("\"} ")?;
        Some((operation.to_owned(), count.parse().unwrap()))
    };
    let mut requests: Requests = text.lines().filter_map(of).collect();
    assert!(requests["lookup"] > 0, "{text}");
    requests.retain(|operation, _| !matches!(operation.as_str(), "release" | "forget"));
    requests
}

/// The requests that `work` causes.
#[track_caller]
fn during(t: &Tree, work: impl FnOnce()) -> Requests {
    let before = so_far(t);
    work();
    let after =
        so_far(t).into_iter().map(|(operation, count)| (operation.clone(), count - before[&operation]));
    after.filter(|(_, count)| *count > 0).collect()
}

/// `work` causes these, each `FILES` times at most, and no others.
#[track_caller]
fn at_most(t: &Tree, budget: &[&str], work: impl FnOnce()) {
    let requests = during(t, work);
    for (operation, count) in &requests {
        let times = budget.iter().filter(|one| **one == operation).count() as u64;
        // A child that another test forks at this moment closes its copy of a descriptor, which is a flush of its own.
        let forks = if *operation == "flush" { times * FILES / 2 } else { 0 };
        assert!(*count <= times * FILES + forks, "{FILES} times: {requests:?}, more than {budget:?} of each");
    }
}

/// Sealed files of so many bytes, each different.
fn sealed(t: &Tree, len: usize) -> Vec<PathBuf> {
    let mut bytes = vec![7; len];
    let mut paths = Vec::new();
    for n in 0..FILES {
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        paths.push(t.file(format!("sealed-{len}-{n}"), &bytes));
    }
    t.seal();
    paths
}

fn look(paths: &[PathBuf]) {
    for path in paths {
        fs::symlink_metadata(path).unwrap();
    }
}

/// Opens, reads to the end in several calls, closes.
fn read(paths: &[PathBuf]) {
    let mut buffer = [0; 2000];
    for path in paths {
        let mut file = File::open(path).unwrap();
        while file.read(&mut buffer).unwrap() > 0 {}
    }
}

/// Small files are served by the daemon into the kernel's cache, large ones by passthrough.
const SIZES: [usize; 2] = [4096, 100_000];

fn a_known_file_is_looked_at_without_a_request(t: &Tree) {
    for len in SIZES {
        let paths = sealed(t, len);
        look(&paths);
        at_most(t, &[], || (0..3).for_each(|_| look(&paths)));
    }
}

fn a_file_at_rest_is_looked_at_without_a_request(t: &Tree) {
    // Unsealed for a second yet.
    let paths: Vec<PathBuf> = (0..FILES).map(|n| t.file(format!("new-{n}"), noise(n, 5000))).collect();
    t.depot().cli(&["flush", t.depot().dir_str()]).ok();
    for path in &paths {
        OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
    }
    look(&paths);
    // The close is told of after it was answered.
    std::thread::sleep(Duration::from_millis(50));
    look(&paths);
    at_most(t, &[], || (0..3).for_each(|_| look(&paths)));
}

fn opening_and_reading_a_sealed_file_is_one_request(t: &Tree) {
    let (small, large) = (sealed(t, SIZES[0]), sealed(t, SIZES[1]));
    read(&small);
    for paths in [&small, &large] {
        at_most(t, &["open"], || read(paths));
    }
    t.remount();
    look(&small);
    look(&large);
    at_most(t, &["open", "read"], || read(&small));
    at_most(t, &["open"], || read(&large));
    at_most(t, &["open"], || read(&small));
}

/// Makes files in a directory, with one write each.
fn make(t: &Tree, dir: &str) {
    for n in 0..FILES {
        let mut file = File::create_new(t.path(dir).join(format!("new-{n}"))).unwrap();
        file.write_all(&[n as u8; 4096]).unwrap();
    }
}

const NEW_FILE: [&str; 4] = ["lookup", "create", "getxattr", "getattr"];

fn a_new_file_takes_four_requests(t: &Tree) {
    fs::create_dir(t.path("dir")).unwrap();
    at_most(t, &NEW_FILE, || make(t, "dir"));
}

fn close_takes_one_request_with_durability_close(t: &Tree) {
    fs::create_dir(t.path("dir")).unwrap();
    t.depot().cli(&["repo", "set", t.depot().dir_str(), "repo", "durability=close"]).ok();
    let budget = [&NEW_FILE[..], &["flush"]].concat();
    at_most(t, &budget, || make(t, "dir"));
}

fn further_writes_take_none(t: &Tree) {
    let (sealed, new) = (sealed(t, SIZES[1]), t.path("new"));
    let mut files: Vec<File> = sealed.iter().map(|p| File::options().write(true).open(p).unwrap()).collect();
    files.push(File::create_new(new).unwrap());
    for file in &mut files {
        file.write_all(b"the first one").unwrap();
    }
    at_most(t, &[], || {
        for file in &files {
            (0..50).for_each(|n| file.write_all_at(&[n as u8; 4096], n * 1000).unwrap());
        }
    });
}

fn reads_of_a_warm_file_take_none(t: &Tree) {
    for len in SIZES {
        let paths = sealed(t, len);
        read(&paths);
        let mut files: Vec<File> = paths.iter().map(|p| File::open(p).unwrap()).collect();
        let mut buffer = [0; 1000];
        at_most(t, &[], || {
            for file in &mut files {
                for at in [0, 3000, len as u64 - 1000] {
                    file.seek(SeekFrom::Start(at)).unwrap();
                    file.read_exact(&mut buffer).unwrap();
                }
                let map = sys::Map::shared_readonly(file, len).unwrap();
                assert_eq!(map.read(len - 1, 1), [7]);
            }
        });
    }
}

fn names_change_with_one_request(t: &Tree) {
    let name = |n: u64, what: &str| t.path(format!("dir-{n}/{what}"));
    for n in 0..FILES {
        fs::create_dir(t.path(format!("dir-{n}"))).unwrap();
        fs::write(name(n, "old"), b"").unwrap();
    }
    let dirs: Vec<PathBuf> = (0..FILES).map(|n| t.path(format!("dir-{n}"))).collect();
    let known = || look(&dirs);
    t.seal();
    known();
    at_most(t, &["lookup", "rename"], || {
        (0..FILES).for_each(|n| fs::rename(name(n, "old"), name(n, "new")).unwrap())
    });
    known();
    at_most(t, &["unlink"], || (0..FILES).for_each(|n| fs::remove_file(name(n, "new")).unwrap()));
    known();
    at_most(t, &["lookup", "mkdir"], || (0..FILES).for_each(|n| fs::create_dir(name(n, "new")).unwrap()));
    known();
    at_most(t, &["rmdir"], || (0..FILES).for_each(|n| fs::remove_dir(name(n, "new")).unwrap()));
}

/// The kernel forgets the attributes of a directory with each change in it, and asks for them before it allows the next one.
fn changes_of_one_directory_ask_for_its_attributes(t: &Tree) {
    let name = |what: &str, n: u64| t.path(format!("dir/{what}-{n}"));
    fs::create_dir(t.path("dir")).unwrap();
    (0..FILES).for_each(|n| fs::write(name("old", n), b"").unwrap());
    t.seal();
    at_most(t, &["getattr", "lookup", "rename"], || {
        (0..FILES).for_each(|n| fs::rename(name("old", n), name("new", n)).unwrap());
    });
    at_most(t, &["getattr", "unlink"], || (0..FILES).for_each(|n| fs::remove_file(name("new", n)).unwrap()));
    at_most(t, &["getattr", "lookup", "mkdir"], || {
        (0..FILES).for_each(|n| fs::create_dir(name("new", n)).unwrap())
    });
    at_most(t, &["getattr", "rmdir"], || (0..FILES).for_each(|n| fs::remove_dir(name("new", n)).unwrap()));
}

fn a_second_listing_takes_two_requests_a_directory(t: &Tree) {
    for d in 0..FILES - 1 {
        fs::create_dir(t.path(format!("dir-{d}"))).unwrap();
        (0..30).for_each(|n| drop(t.file(format!("dir-{d}/{n}"), format!("{d} {n}"))));
    }
    t.remount();
    let find = || run_command(&mut command("find", &[t.dir().to_str().unwrap(), "-ls"])).ok();
    let first = find();
    let mut second = String::new();
    let requests = during(t, || second = find());
    assert_eq!(first, second);
    assert!(requests.values().sum::<u64>() <= 2 * FILES, "{FILES} directories: {requests:?}");
}
