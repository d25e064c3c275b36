//! Listings: complete, stable while the directory changes, resumable at any entry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::time::Instant;

use nix::unistd::{Whence, lseek};

use crate::harness::{Depot, Tree, on_depot, sh};
use crate::sys::{Dirent, getdents};

modes!(all:
    a_listing_is_complete, a_listing_tells_kinds_and_numbers, removal_while_listing, creation_while_listing,
    any_entry_can_be_resumed_at, positions_survive_removals, rewinding_sees_what_is_new, an_empty_directory,
    twenty_thousand_entries, a_descriptor_survives_a_rename_of_the_directory,
);

/// Makes `n` symbolic links (cheap, and their listing is like any other) named by number.
fn fill(t: &Tree, name: &str, n: usize) -> File {
    fs::create_dir(t.path(name)).unwrap();
    for i in 0..n {
        symlink("x", t.path(name).join(format!("{i}"))).unwrap();
    }
    File::open(t.path(name)).unwrap()
}

fn is_name(entry: &Dirent) -> bool {
    entry.name != b"." && entry.name != b".."
}

/// All entries from where the descriptor stands, in pages of `size` bytes.
fn rest(dir: &File, size: usize) -> Vec<Dirent> {
    let mut all = Vec::new();
    loop {
        let page = getdents(dir, size).unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

fn numbers(entries: &[Dirent]) -> BTreeSet<usize> {
    let names: Vec<usize> = entries
        .iter()
        .filter(|e| is_name(e))
        .map(|e| String::from_utf8_lossy(&e.name).parse().unwrap())
        .collect();
    let set: BTreeSet<usize> = names.iter().copied().collect();
    assert_eq!(set.len(), names.len(), "no name twice");
    set
}

fn a_listing_is_complete(t: &Tree) {
    let dir = fill(t, "dir", 1500);
    for size in [300, 4096, 1 << 20] {
        lseek(&dir, 0, Whence::SeekSet).unwrap();
        let entries = rest(&dir, size);
        assert_eq!(entries.iter().filter(|e| !is_name(e)).count(), 2, "dot and dotdot once");
        assert_eq!(numbers(&entries), (0..1500).collect());
        let cookies: BTreeSet<i64> = entries.iter().map(|e| e.next).collect();
        assert_eq!(cookies.len(), entries.len(), "every position is its own");
    }
    drop(dir);
    t.remount();
    assert_eq!(fs::read_dir(t.path("dir")).unwrap().count(), 1500);
}

fn a_listing_tells_kinds_and_numbers(t: &Tree) {
    sh(t.dir(), "mkdir dir dir/d; touch dir/f; ln -s x dir/l; mkfifo dir/p; ln dir/f dir/f2");
    std::os::unix::net::UnixListener::bind(t.path("dir/s")).unwrap();
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(t.path("dir")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().ino(), std::os::unix::fs::DirEntryExt::ino(&entry));
        let kind = entry.file_type().unwrap();
        let kind = [kind.is_dir(), kind.is_file(), kind.is_symlink(), kind.is_fifo(), kind.is_socket()];
        kinds.insert(entry.file_name().into_string().unwrap(), kind.iter().position(|k| *k).unwrap());
    }
    let expected = [("d", 0), ("f", 1), ("f2", 1), ("l", 2), ("p", 3), ("s", 4)];
    assert_eq!(kinds, expected.map(|(n, k)| (n.to_owned(), k)).into());
}

fn removal_while_listing(t: &Tree) {
    let dir = fill(t, "dir", 2000);
    loop {
        let page: Vec<Dirent> = getdents(&dir, 1000).unwrap();
        if page.is_empty() {
            break;
        }
        for entry in page.iter().filter(|e| is_name(e)) {
            let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&entry.name);
            fs::remove_file(t.path("dir").join(name)).unwrap();
        }
    }
    assert_eq!(fs::read_dir(t.path("dir")).unwrap().count(), 0, "one pass removed everything");
    fs::remove_dir(t.path("dir")).unwrap();
}

fn creation_while_listing(t: &Tree) {
    let dir = fill(t, "dir", 1000);
    let mut entries = getdents(&dir, 2000).unwrap();
    for i in 1000..1200 {
        symlink("x", t.path("dir").join(format!("{i}"))).unwrap();
    }
    fs::rename(t.path("dir/999"), t.path("999")).unwrap();
    entries.extend(rest(&dir, 2000));
    let seen = numbers(&entries);
    assert!((0..999).all(|i| seen.contains(&i)), "what stayed there all the time is listed");
    assert!(seen.iter().all(|i| *i < 1200));
}

fn any_entry_can_be_resumed_at(t: &Tree) {
    let dir = fill(t, "dir", 400);
    let all = rest(&dir, 4096);
    for at in (0..all.len()).step_by(37).chain([0, 1, 2, all.len() - 1]) {
        lseek(&dir, all[at].next, Whence::SeekSet).unwrap();
        let after: Vec<_> = rest(&dir, 700).into_iter().map(|e| e.name).collect();
        let expected: Vec<_> = all[at + 1..].iter().map(|e| e.name.clone()).collect();
        assert_eq!(after, expected, "from entry {at}");
    }
}

fn positions_survive_removals(t: &Tree) {
    let dir = fill(t, "dir", 300);
    let all = rest(&dir, 4096);
    let middle = all[150].next;
    for entry in all[100..200].iter().filter(|e| is_name(e)) {
        fs::remove_file(t.path("dir").join(String::from_utf8_lossy(&entry.name).as_ref())).unwrap();
    }
    lseek(&dir, middle, Whence::SeekSet).unwrap();
    let names = |entries: &[Dirent]| entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>();
    let (after, removed) = (names(&rest(&dir, 700)), names(&all[151..200]));
    // A kernel that keeps listings may still show what was removed; nothing else is missing or comes twice.
    let there: Vec<_> = after.iter().filter(|n| !removed.contains(n)).cloned().collect();
    assert_eq!(there, names(&all[200..]));
}

fn rewinding_sees_what_is_new(t: &Tree) {
    let dir = fill(t, "dir", 5);
    assert_eq!(numbers(&rest(&dir, 4096)).len(), 5);
    symlink("x", t.path("dir/77")).unwrap();
    fs::remove_file(t.path("dir/3")).unwrap();
    lseek(&dir, 0, Whence::SeekSet).unwrap();
    assert_eq!(numbers(&rest(&dir, 4096)), [0, 1, 2, 4, 77].into());
}

fn an_empty_directory(t: &Tree) {
    fs::create_dir(t.path("dir")).unwrap();
    let dir = File::open(t.path("dir")).unwrap();
    let mut names: Vec<_> = rest(&dir, 4096).into_iter().map(|e| e.name).collect();
    names.sort();
    assert_eq!(names, [b".".to_vec(), b"..".to_vec()]);
}

fn twenty_thousand_entries(t: &Tree) {
    // Whole in one mode; in the others as many as tell a listing of many pages from a short one.
    let n = if t.mode == crate::harness::Mode::Passthrough { 20_000 } else { 3_000 };
    let dir = fill(t, "dir", n);
    assert_eq!(numbers(&rest(&dir, 32_768)), (0..n).collect());
    drop(dir);
    let kept: BTreeSet<usize> = (0..n).filter(|i| i % 10 != 3).collect();
    for i in (0..n).filter(|i| !kept.contains(i)) {
        fs::remove_file(t.path("dir").join(format!("{i}"))).unwrap();
    }
    let dir = File::open(t.path("dir")).unwrap();
    assert_eq!(numbers(&rest(&dir, 32_768)), kept);
}

fn a_descriptor_survives_a_rename_of_the_directory(t: &Tree) {
    let dir = fill(t, "dir", 200);
    let mut entries = getdents(&dir, 600).unwrap();
    fs::rename(t.path("dir"), t.path("moved")).unwrap();
    entries.extend(rest(&dir, 600));
    assert_eq!(numbers(&entries), (0..200).collect());
}

/// Slow: a directory of a million entries is made, listed page by page over a restart, and removed.
#[test]
#[ignore = "takes minutes"]
fn a_million_entries() {
    on_depot(|depot: &Depot| {
        depot.mount();
        let dir = depot.path("repo/dir");
        fs::create_dir_all(&dir).unwrap();
        let mut took = Vec::new();
        for (from, to) in [(0, 100_000), (100_000, 1_000_000)] {
            for i in from..to {
                symlink("x", dir.join(format!("{i}"))).unwrap();
            }
            depot.umount();
            depot.mount();
            let started = Instant::now();
            let listed = rest(&File::open(&dir).unwrap(), 32_768);
            took.push(started.elapsed());
            assert_eq!(numbers(&listed).len(), to);
        }
        // For whoever reads along; the bench `million` judges them.
        eprintln!("100,000 and 1,000,000 entries listed in {took:?}");
        let open = File::open(&dir).unwrap();
        let half = getdents(&open, 1 << 20).unwrap();
        drop(open);
        depot.umount();
        depot.mount();
        let open = File::open(&dir).unwrap();
        lseek(&open, half.last().unwrap().next, Whence::SeekSet).unwrap();
        let mut all = half;
        all.extend(rest(&open, 32_768));
        assert_eq!(numbers(&all).len(), 1_000_000);
        drop(open);
        fs::rename(&dir, depot.path("repo/moved")).unwrap();
        fs::remove_dir_all(depot.path("repo/moved")).unwrap();
    });
}
