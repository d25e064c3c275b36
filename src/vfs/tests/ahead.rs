//! What is made ready for those who read file after file.

use std::collections::BTreeSet;

use super::upkeep::{ME, WRITE};
use super::*;

const READ: Access = Access { read: true, write: false, ..WRITE };

/// Sealed files of a few bytes in a new directory of the repository, in the order in which they are made.
fn files(vfs: &Vfs, dir: &str, names: impl Iterator<Item = String>) -> Vec<Ino> {
    let repo = match vfs.lookup(ROOT, b"repo").unwrap() {
        Some(found) => found.inode.ino,
        None => vfs.make_directory(&ME, ROOT, b"repo", 0o755, 0).unwrap().inode.ino,
    };
    let dir = vfs.make_directory(&ME, repo, dir.as_bytes(), 0o755, 0).unwrap().inode.ino;
    let make = |name: String| {
        let (made, _) = vfs.create(&ME, dir, name.as_bytes(), (0o644, 0), WRITE, &register(false)).unwrap();
        vfs.write(made.inode.ino, 0, format!("{dir} {name}").as_bytes(), false).unwrap();
        vfs.release(made.inode.ino, WRITE);
        made.inode.ino
    };
    let made = names.map(make).collect();
    vfs.flush_all(&|| true).unwrap();
    made
}

/// Sixty files whose names are in quite another order than they were made in, in both orders.
fn sixty(vfs: &Vfs) -> [Vec<Ino>; 2] {
    let number = |i: usize| i * 37 % 60;
    let made = files(vfs, "dir", (0..60).map(|i| format!("{:02}", number(i))));
    let mut named: Vec<usize> = (0..60).collect();
    named.sort_by_key(|i| number(*i));
    let named = named.into_iter().map(|i| made[i]).collect();
    [made, named]
}

/// Reads a file, and lets the thread do what it would; what is ready then.
fn read(vfs: &Vfs, ino: Ino) -> BTreeSet<Ino> {
    let mut buffer = [0; 100];
    vfs.open(&ME, ino, READ, &register(false)).unwrap();
    assert!(vfs.read(ino, 0, 0, &mut buffer).unwrap() > 0);
    vfs.release(ino, READ);
    vfs.read_ahead(&|| true).unwrap();
    vfs.ahead.ready()
}

fn set(inos: &[Ino]) -> BTreeSet<Ino> {
    inos.iter().copied().collect()
}

#[test]
fn what_comes_next_is_ready_in_both_orders() {
    for order in [0, 1] {
        let (_dir, vfs) = tree(false);
        let inos = &sixty(&vfs)[order];
        assert_eq!(read(&vfs, inos[0]), set(&[]), "one file tells no order");
        let mut ready = read(&vfs, inos[1]);
        assert_eq!(ready, set(&inos[2..10]));
        for ino in &inos[2..] {
            assert!(ready.contains(ino), "{ino} of {inos:?} is read and was not ready: {ready:?}");
            ready = read(&vfs, *ino);
            assert!(ready.len() <= 48, "{ready:?}");
        }
        assert_eq!(ready, set(&[]));
    }
}

#[test]
fn a_reader_may_leave_some_files_out() {
    let (_dir, vfs) = tree(false);
    let [inos, _] = sixty(&vfs);
    read(&vfs, inos[0]);
    assert_eq!(read(&vfs, inos[3]), set(&inos[4..12]));
    let were_ready = (5..60).step_by(2).filter(|i| {
        let ready = vfs.ahead.ready().contains(&inos[*i]);
        read(&vfs, inos[*i]);
        ready
    });
    let count = were_ready.count();
    assert!(count >= 22, "{count} of 28 were ready");
}

#[test]
fn without_an_order_nothing_is_made_ready_and_soon_nobody_looks() {
    let (_dir, vfs) = tree(false);
    let [inos, _] = sixty(&vfs);
    for i in 0..60 {
        assert_eq!(read(&vfs, inos[i * 17 % 60]), set(&[]), "{i}");
    }
    // Two in order are an accident now.
    assert_eq!((read(&vfs, inos[20]), read(&vfs, inos[21])), (set(&[]), set(&[])));
}

#[test]
fn a_wrong_guess_is_not_made_twice_in_a_row() {
    let (_dir, vfs) = tree(false);
    let [inos, _] = sixty(&vfs);
    read(&vfs, inos[0]);
    assert_eq!(read(&vfs, inos[1]), set(&inos[2..10]));
    assert_eq!(read(&vfs, inos[30]).len(), 8, "nothing more is made ready for one that nobody expected");
    assert_eq!(read(&vfs, inos[31]).len(), 8);
    for ino in &inos[32..35] {
        read(&vfs, *ino);
    }
    assert!(vfs.ahead.ready().contains(&inos[35]), "an order is believed again");
}

#[test]
fn at_the_end_of_a_directory_the_next_one_is_begun() {
    let (_dir, vfs) = tree(false);
    let five = || (0..5).map(|i| format!("file-{i}"));
    let [first, second, third] = ["a", "b", "c"].map(|dir| files(&vfs, dir, five()));
    read(&vfs, first[0]);
    assert_eq!(read(&vfs, first[1]), &set(&first[2..]) | &set(&second));
    for ino in first[2..].iter().chain(&second[..3]) {
        assert!(vfs.ahead.ready().contains(ino));
        read(&vfs, *ino);
    }
    assert_eq!(vfs.ahead.ready(), &set(&second[3..]) | &set(&third), "and the one after it");
}

#[test]
fn who_reads_in_an_order_is_expected_to_do_so_in_any_directory() {
    let (_dir, vfs) = tree(false);
    let five = || (0..5).map(|i| format!("file-{i}"));
    let [first, second, third] = ["a", "b", "c"].map(|dir| files(&vfs, dir, five()));
    for ino in &third {
        read(&vfs, *ino);
    }
    assert_eq!(read(&vfs, second[0]), set(&second[1..]), "and not what was read before");
    for ino in &second[1..] {
        read(&vfs, *ino);
    }
    assert_eq!(read(&vfs, first[0]), set(&first[1..]));
    // Some without luck, and two are needed again.
    let others = files(&vfs, "d", (0..60).map(|i| format!("{i:02}")));
    (0..6).for_each(|i| drop(read(&vfs, others[50 - 10 * i])));
    let last = files(&vfs, "e", five());
    assert!(read(&vfs, last[0]).is_disjoint(&set(&last)));
    assert!(read(&vfs, last[1]).is_superset(&set(&last[2..])));
}

#[test]
fn a_file_that_the_kernel_has_is_read_in_its_order_too() {
    let (_dir, vfs) = tree(false);
    let [inos, _] = sixty(&vfs);
    read(&vfs, inos[0]);
    read(&vfs, inos[1]);
    for ino in &inos[2..20] {
        // No read(2) comes here.
        vfs.open(&ME, *ino, READ, &register(false)).unwrap();
        vfs.release(*ino, READ);
        vfs.read_ahead(&|| true).unwrap();
    }
    assert!(vfs.ahead.ready().contains(&inos[20]));
}

#[test]
fn one_file_again_and_again_is_no_disorder() {
    let (_dir, vfs) = tree(false);
    let [inos, _] = sixty(&vfs);
    (0..300).for_each(|_| assert_eq!(read(&vfs, inos[0]), set(&[])));
    // Others have been read without luck meanwhile, so not every one is looked at.
    let ready = (1..59).find(|i| !read(&vfs, inos[*i]).is_empty());
    assert!(ready.is_some());
}

#[test]
fn a_blob_that_is_cut_or_lost_after_it_was_made_ready_is_an_error_at_open() {
    let (dir, vfs) = tree(false);
    let [inos, _] = sixty(&vfs);
    read(&vfs, inos[0]);
    assert!(read(&vfs, inos[1]).is_superset(&set(&inos[2..5])));
    let blob = |ino| {
        let sum = vfs.inode(ino).unwrap().checksum.unwrap().to_string();
        dir.path().join("filestore").join(&sum[..2]).join(sum)
    };
    std::fs::OpenOptions::new().write(true).open(blob(inos[2])).unwrap().set_len(3).unwrap();
    std::fs::remove_file(blob(inos[3])).unwrap();
    for ino in [inos[2], inos[3], inos[2]] {
        assert!(vfs.open(&ME, ino, READ, &register(false)).is_err());
    }
    vfs.open(&ME, inos[4], READ, &register(false)).unwrap();
    // It was opened once for that; every further open asks for the blob anew.
    std::fs::remove_file(blob(inos[4])).unwrap();
    vfs.release(inos[4], READ);
    assert!(vfs.open(&ME, inos[4], READ, &register(false)).is_err());
}

#[test]
fn a_seek_beyond_the_end_costs_no_descriptor() {
    let (dir, vfs) = tree(false);
    let ino = files(&vfs, "dir", std::iter::once("file".into()))[0];
    read(&vfs, ino);
    let sum = vfs.inode(ino).unwrap().checksum.unwrap().to_string();
    std::fs::remove_file(dir.path().join("filestore").join(&sum[..2]).join(sum)).unwrap();
    assert!(matches!(vfs.seek(ino, 1 << 20, Seek::Data), Err(Error::BeyondEnd)));
    assert!(vfs.read(ino, 0, 0, &mut [0; 100]).unwrap() > 0, "by the descriptor of before");
}

#[test]
fn what_is_not_sealed_or_empty_or_gone_is_no_matter() {
    let (_dir, vfs) = tree(false);
    let inos = files(&vfs, "dir", (0..10).map(|i| i.to_string()));
    let dir = vfs.index.parent(inos[0]).unwrap().unwrap().0;
    // Written again, without a content, and gone.
    vfs.open(&ME, inos[3], WRITE, &register(false)).unwrap();
    vfs.write(inos[3], 0, b"other", false).unwrap();
    vfs.create(&ME, dir, b"empty", (0o644, 0), WRITE, &register(false)).unwrap();
    vfs.unlink(dir, b"4").unwrap();
    let sum = vfs.inode(inos[5]).unwrap().checksum.unwrap();
    assert!(vfs.store.remove_blob(&vfs.store.latch(&sum)).unwrap());
    read(&vfs, inos[0]);
    let ready = read(&vfs, inos[1]);
    assert!(ready.contains(&inos[2]) && !ready.contains(&inos[4]), "{ready:?}");
    let mut buffer = [0; 100];
    let read = vfs.read(inos[3], 0, 0, &mut buffer).unwrap();
    assert!(buffer[..read].starts_with(b"other"));
    vfs.open(&ME, inos[5], READ, &register(false)).err().expect("its blob is gone");
}
