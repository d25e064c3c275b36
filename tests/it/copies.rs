//! Copies: copy_file_range(2), cp and its kin; right in every combination, and free where a whole file is copied.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::ftruncate;

use crate::data::{noise, rw};
use crate::harness::{Fails, Mode, Tree, eventually, run, sh, sha1};
use crate::sys::{Map, copy_range, getxattr};

modes!(every_chain:
    a_copy_and_what_follows, parts_at_offsets, copies_of_copies, refusals, a_source_that_changes,
    copies_while_others_look,
);
modes!(mounted: a_copy_takes_no_space, cp_and_install_take_no_space, a_copied_tree_takes_no_space);

const SIZE: usize = 200_000;

/// How the destination is opened, and the content it then has.
const DESTINATIONS: [&str; 5] = ["new", "new rdwr", "truncated", "longer", "appended before"];

fn destination(t: &Tree, how: &str) -> (File, Vec<u8>) {
    let path = t.path("to");
    let _ = fs::remove_file(&path);
    let mut options = OpenOptions::new();
    options.write(true);
    match how {
        "new" => (options.create_new(true).open(path).unwrap(), Vec::new()),
        "new rdwr" => (options.read(true).create_new(true).open(path).unwrap(), Vec::new()),
        "truncated" => {
            fs::write(&path, noise(7, 300_000)).unwrap();
            (options.truncate(true).open(path).unwrap(), Vec::new())
        }
        "longer" => {
            fs::write(&path, noise(7, 300_000)).unwrap();
            (options.open(path).unwrap(), noise(7, 300_000))
        }
        _ => {
            let file = options.create_new(true).open(path).unwrap();
            file.write_all_at(b"before", 0).unwrap();
            (file, b"before".to_vec())
        }
    }
}

/// Copies by calls of these lengths, one after the other, from the start.
const COPIES: [&[usize]; 4] = [&[SIZE], &[SIZE / 2], &[65_536, SIZE], &[SIZE * 2]];

fn copy(from: &File, to: &File, lengths: &[usize], model: &mut Vec<u8>) {
    let mut at = 0;
    for len in lengths {
        let mut left = *len;
        while left > 0 {
            let n = copy_range(from, at as i64, to, at as i64, left).unwrap();
            if n == 0 {
                break;
            }
            at += n;
            left -= n;
        }
    }
    let bytes = &noise(1, SIZE)[..at];
    assert_eq!(at, lengths.iter().sum::<usize>().min(SIZE));
    model.resize(model.len().max(at), 0);
    model[..at].copy_from_slice(bytes);
}

const AFTERWARDS: [&str; 15] = [
    "nothing",
    "write",
    "write at the end",
    "write far beyond",
    "shorten",
    "lengthen",
    "punch",
    "other handle",
    "append",
    "store",
    "truncate",
    "fsync",
    "chmod",
    "rename",
    "copy again",
];

fn afterwards(t: &Tree, what: &str, to: &File, model: &mut Vec<u8>) {
    let path = t.path("to");
    let put = |model: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        model.resize(model.len().max(at + bytes.len()), 0);
        model[at..at + bytes.len()].copy_from_slice(bytes);
    };
    match what {
        "write" => {
            to.write_all_at(b"written", 5000).unwrap();
            put(model, 5000, b"written");
        }
        "write at the end" => {
            to.write_all_at(b"end", model.len() as u64).unwrap();
            model.extend(b"end");
        }
        "write far beyond" => {
            to.write_all_at(b"far", 400_000).unwrap();
            put(model, 400_000, b"far");
        }
        "shorten" => {
            ftruncate(to, 1000).unwrap();
            model.truncate(1000);
        }
        "lengthen" => {
            ftruncate(to, 350_000).unwrap();
            model.resize(350_000, 0);
        }
        "punch" => {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(to, punch, 10, 10_000).unwrap();
            model[10..10_010].fill(0);
        }
        "other handle" => {
            rw(&path).write_all_at(b"other", 70_000).unwrap();
            put(model, 70_000, b"other");
        }
        "append" => {
            use std::io::Write;
            OpenOptions::new().append(true).open(&path).unwrap().write_all(b"appended").unwrap();
            model.extend(b"appended");
        }
        "store" => {
            let map = Map::shared(&rw(&path), SIZE / 2).unwrap();
            map.write(60_000, b"stored");
            put(model, 60_000, b"stored");
        }
        "truncate" => {
            nix::unistd::truncate(&path, 0).unwrap();
            model.clear();
        }
        "fsync" => to.sync_all().unwrap(),
        "chmod" => fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap(),
        "rename" => {
            fs::rename(&path, t.path("aside")).unwrap();
            fs::rename(t.path("aside"), &path).unwrap();
        }
        "copy again" => {
            let n = copy_range(&File::open(t.path("from")).unwrap(), 0, to, 50_000, 1000).unwrap();
            assert_eq!(n, 1000);
            put(model, 50_000, &noise(1, 1000));
        }
        _ => {}
    }
}

fn a_copy_and_what_follows(t: &Tree) {
    let path = t.sealed("from", noise(1, SIZE));
    for how in DESTINATIONS {
        for lengths in COPIES {
            for what in AFTERWARDS {
                let case = format!("{how}, {lengths:?}, {what}");
                let (to, mut model) = destination(t, how);
                copy(&File::open(&path).unwrap(), &to, lengths, &mut model);
                if ["punch", "store", "write"].contains(&what) && model.len() < SIZE / 2 {
                    continue;
                }
                afterwards(t, what, &to, &mut model);
                assert_eq!(to.metadata().unwrap().len(), model.len() as u64, "{case}: size");
                assert!(fs::read(t.path("to")).unwrap() == model, "{case}: while open");
                to.write_all_at(b"last", 3).unwrap();
                model.resize(model.len().max(7), 0);
                model[3..7].copy_from_slice(b"last");
                assert!(fs::read(t.path("to")).unwrap() == model, "{case}: written once more");
                drop(to);
                assert!(fs::read(t.path("to")).unwrap() == model, "{case}: closed");
            }
        }
        t.seal();
    }
    assert!(fs::read(&path).unwrap() == noise(1, SIZE), "the source is untouched");
}

fn parts_at_offsets(t: &Tree) {
    let bytes = noise(1, SIZE);
    for state in ["closed", "sealed", "open"] {
        let path = t.file("from", &bytes);
        let _writer = (state == "open").then(|| rw(&path));
        if state == "sealed" {
            t.seal();
        }
        let from = File::open(&path).unwrap();
        let to = rw(&t.path(format!("to {state}")));
        let mut model: Vec<u8> = Vec::new();
        for (at, to_at, len) in [
            (0, 10, 100),
            (4096, 4096, 8192),
            (199_000, 0, 5000),
            (1, 150_001, 77),
            (8192, 0, 4096),
            (0, 300_000, SIZE),
        ] {
            let n = copy_range(&from, at as i64, &to, to_at as i64, len).unwrap();
            assert_eq!(n, len.min(SIZE - at));
            model.resize(model.len().max(to_at + n), 0);
            model[to_at..to_at + n].copy_from_slice(&bytes[at..at + n]);
            assert!(fs::read(t.path(format!("to {state}"))).unwrap() == model, "{state} {at} {to_at} {len}");
        }
        assert_eq!(copy_range(&from, SIZE as i64, &to, 0, 10), Ok(0), "beyond the end");
        drop(to);
        t.seal();
        assert!(fs::read(t.path(format!("to {state}"))).unwrap() == model, "{state}");
    }
}

fn copies_of_copies(t: &Tree) {
    t.sealed("0", noise(1, SIZE));
    for i in 0..10 {
        sh(t.dir(), &format!("cp {i} {}", i + 1));
    }
    rw(&t.path("5")).write_all_at(b"fifth", 0).unwrap();
    fs::remove_file(t.path("0")).unwrap();
    t.remount();
    for i in 1..=10 {
        let mut model = noise(1, SIZE);
        if i == 5 {
            model[..5].copy_from_slice(b"fifth");
        }
        assert!(fs::read(t.path(format!("{i}"))).unwrap() == model, "{i}");
    }
}

fn refusals(t: &Tree) {
    let path = t.file("file", noise(1, 10_000));
    let (read, write) = (File::open(&path).unwrap(), OpenOptions::new().write(true).open(&path).unwrap());
    let append = OpenOptions::new().append(true).open(&path).unwrap();
    copy_range(&write, 0, &write, 5000, 10).fails(Errno::EBADF);
    copy_range(&read, 0, &read, 5000, 10).fails(Errno::EBADF);
    copy_range(&read, 0, &append, 5000, 10).fails(Errno::EBADF);
    copy_range(&read, 0, &write, 50, 100).fails(Errno::EINVAL);
    copy_range(&File::open(t.dir()).unwrap(), 0, &write, 0, 10).fails(Errno::EISDIR);
    assert_eq!(copy_range(&read, 0, &write, 5000, 0), Ok(0));
    assert!(fs::read(&path).unwrap() == noise(1, 10_000));
}

/// Something that happens to a source.
type Change = fn(&Path);

fn a_source_that_changes(t: &Tree) {
    let changes: [(&str, Change); 4] = [
        ("write", |p| rw(p).write_all_at(b"changed", 0).unwrap()),
        ("truncation", |p| drop(File::create(p).unwrap())),
        ("removal", |p| fs::remove_file(p).unwrap()),
        ("replacement", |p| {
            fs::write(p.with_extension("new"), "new").unwrap();
            fs::rename(p.with_extension("new"), p).unwrap();
        }),
    ];
    for (what, change) in changes {
        for when in ["before the close", "after it"] {
            let path = t.sealed("from", noise(1, SIZE));
            let (to, mut model) = destination(t, "new");
            copy(&File::open(&path).unwrap(), &to, &[SIZE], &mut model);
            if when == "after it" {
                drop(to);
                change(&path);
            } else {
                change(&path);
                assert!(fs::read(t.path("to")).unwrap() == model, "{what} {when}");
                drop(to);
            }
            assert!(fs::read(t.path("to")).unwrap() == model, "{what} {when}");
            t.seal();
            assert!(fs::read(t.path("to")).unwrap() == model, "{what} {when}, sealed");
        }
    }
}

fn copies_while_others_look(t: &Tree) {
    let path = t.sealed("from", noise(1, SIZE));
    let from = File::open(&path).unwrap();
    for how in DESTINATIONS {
        let (to, mut model) = destination(t, how);
        let reader = File::open(t.path("to")).unwrap();
        let see = || {
            let mut bytes = vec![0; 2 * SIZE];
            let n = reader.read_at(&mut bytes, 0).unwrap();
            bytes.truncate(n);
            bytes
        };
        assert!(see() == model, "{how}: before");
        copy(&from, &to, &[SIZE / 2], &mut model);
        assert!(see() == model, "{how}: half of it");
        let n = copy_range(&from, SIZE as i64 / 2, &to, SIZE as i64 / 2, SIZE).unwrap();
        assert_eq!(n, SIZE / 2);
        model.resize(model.len().max(SIZE), 0);
        model[..SIZE].copy_from_slice(&noise(1, SIZE));
        assert!(see() == model, "{how}: all of it");
        to.write_all_at(b"on top", 100).unwrap();
        model[100..106].copy_from_slice(b"on top");
        assert!(see() == model, "{how}: written after it");
        // Two descriptors of one destination take turns.
        let second = rw(&t.path("to"));
        second.write_all_at(b"second", 200).unwrap();
        to.write_all_at(b"first", 300).unwrap();
        model[200..206].copy_from_slice(b"second");
        model[300..305].copy_from_slice(b"first");
        assert!(see() == model, "{how}: two writers");
        drop((to, second));
        assert!(fs::read(t.path("to")).unwrap() == model, "{how}: closed");
    }
    assert!(fs::read(&path).unwrap() == noise(1, SIZE));
}

/// Bytes that the filestore takes on its disk.
fn physical(t: &Tree) -> u64 {
    let text = sh(&t.depot().dir, "du -s --block-size=1 filestore");
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn a_copy_takes_no_space(t: &Tree) {
    let path = t.sealed("from", noise(1, 20 << 20));
    let copy = |name: &str| {
        let (from, to) = (File::open(&path).unwrap(), File::create(t.path(name)).unwrap());
        let mut at = 0;
        while at < 20 << 20 {
            at += copy_range(&from, at as i64, &to, at as i64, 20 << 20).unwrap();
        }
    };
    // A program that is not known for copying is found out when it does it.
    copy("to");
    t.seal();
    let before = physical(t);
    copy("to");
    assert!(physical(t) < before + (1 << 20), "before the seal");
    t.seal();
    assert!(physical(t) < before + (1 << 20), "after it");
    t.blobs_become(&[sha1(&noise(1, 20 << 20))]);
    assert_eq!(t.depot().checksum("repo/to"), sha1(&noise(1, 20 << 20)));
    assert_ne!(fs::metadata(t.path("to")).unwrap().ino(), fs::metadata(&path).unwrap().ino());
    assert!(fs::read(t.path("to")).unwrap() == noise(1, 20 << 20));
}

fn cp_and_install_take_no_space(t: &Tree) {
    t.sealed("from", noise(1, 20 << 20));
    fs::create_dir(t.depot().path("other")).unwrap();
    let before = physical(t);
    sh(
        t.dir(),
        "cp from a; cp -p from b; cp -a from c; install -m 600 from d; cp from ../other/e; cp --sparse=never from f",
    );
    assert!(physical(t) < before + (1 << 20));
    sh(t.dir(), "for f in a b c d f ../other/e; do cmp from $f; done");
    t.seal();
    t.blobs_become(&[sha1(&noise(1, 20 << 20))]);
}

fn a_copied_tree_takes_no_space(t: &Tree) {
    sh(
        t.dir(),
        "mkdir -p tree/{a,b,c}; for i in $(seq 60); do head -c 50000 /dev/urandom > tree/a/$i; ln -s x tree/b/$i; done",
    );
    t.seal();
    let before = physical(t);
    sh(
        t.dir(),
        "cp -r tree copy; diff -r --no-dereference tree copy; cp -a tree copy2; diff -r --no-dereference tree copy2",
    );
    assert!(physical(t) < before + (1 << 20));
    t.seal();
    eventually("one blob for each file", || t.depot().blobs().len() == 60);
}

/// In one mode: hashing gigabytes takes a while.
#[test]
fn a_sparse_file_over_4_gib() {
    run(Mode::Passthrough, a_sparse_file);
}

fn a_sparse_file(t: &Tree) {
    const SIZE: u64 = (4 << 30) + (1 << 20);
    let file = rw(&t.path("sparse"));
    file.write_all_at(b"near", 100).unwrap();
    file.write_all_at(&noise(1, 100_000), (4 << 30) + 5).unwrap();
    ftruncate(&file, SIZE as i64).unwrap();
    drop(file);
    t.seal();
    let before = physical(t);
    sh(t.dir(), "cp sparse copy");
    assert!(physical(t) < before + (1 << 20));
    let copy = File::open(t.path("copy")).unwrap();
    assert_eq!(copy.metadata().unwrap().len(), SIZE);
    let mut bytes = vec![0; 100_000];
    copy.read_exact_at(&mut bytes, (4 << 30) + 5).unwrap();
    assert!(bytes == noise(1, 100_000));
    copy.read_exact_at(&mut bytes[..200], 0).unwrap();
    assert_eq!(bytes[99..105], *b"\0near\0");
    let sum = |name: &str| getxattr(t.path(name), "user.depotfs.sha1").unwrap();
    assert_eq!(sum("copy"), sum("sparse"));
    // One changed page is a data copy or a reflink, and right.
    rw(&t.path("copy")).write_all_at(b"far", SIZE - 3).unwrap();
    let mut end = [0; 4];
    File::open(t.path("copy")).unwrap().read_exact_at(&mut end, SIZE - 4).unwrap();
    assert_eq!(&end, b"\0far");
    File::open(t.path("sparse")).unwrap().read_exact_at(&mut end, SIZE - 4).unwrap();
    assert_eq!(end, [0; 4]);
    fs::remove_file(t.path("copy")).unwrap();
}
