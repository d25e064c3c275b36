//! Rounds of the jobs: what one file is in the way of, and when they end.

use std::collections::BTreeSet;
use std::thread;
use std::time::Instant;

use super::*;
use crate::checksum::Checksum;

pub(super) const ME: Caller = Caller { uid: 0, gid: 0, pid: 0 };
pub(super) const WRITE: Access = Access {
    read: false,
    write: true,
    truncate: false,
    exclusive: false,
    sync: false,
    noatime: false,
    execute: false,
};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn go_on() -> bool {
    true
}

/// A closed file with some bytes of its own in the repository `a`.
pub(super) fn closed_file(vfs: &Vfs, name: &str) -> Ino {
    let repo = match vfs.lookup(ROOT, b"a").unwrap() {
        Some(found) => found.inode.ino,
        None => vfs.make_directory(&ME, ROOT, b"a", 0o755, 0).unwrap().inode.ino,
    };
    let (made, _) = vfs.create(&ME, repo, name.as_bytes(), (0o644, 0), WRITE, &register(false)).unwrap();
    vfs.write(made.inode.ino, 0, name.repeat(100).as_bytes(), false).unwrap();
    vfs.release(made.inode.ino, WRITE);
    made.inode.ino
}

fn is_forced(vfs: &Vfs, ino: Ino) -> bool {
    vfs.index.staged_of(ino).unwrap().is_some_and(|row| row.forced)
}

#[test]
fn a_file_that_somebody_holds_is_in_nobody_s_way() {
    let (dir, vfs) = tree(false);
    let (held, other) = (closed_file(&vfs, "held"), closed_file(&vfs, "other"));
    thread::scope(|s| {
        let node = vfs.nodes.lock(held);
        s.spawn(|| {
            assert_eq!((vfs.status().held, vfs.status().closed), (1, 2));
            assert_eq!(vfs.sealable(Duration::ZERO, 10), [other]);
            vfs.force(Duration::ZERO, Duration::ZERO).unwrap();
            assert!(is_forced(&vfs, other) && !is_forced(&vfs, held));
            assert!(vfs.index.durable_seq() > 0 && vfs.index.durable_seq() == vfs.index.last_seq());
            vfs.sweep_owners().unwrap();
            assert_eq!(vfs.reap().unwrap(), 0);
        })
        .join()
        .unwrap();
        // Who wants everything on the disk waits for it.
        let flush = s.spawn(|| vfs.flush_all(&|| true).unwrap());
        while vfs.nodes.try_existing(other, Instant::now()).is_ok_and(|node| node.is_some()) {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(100));
        assert!(!flush.is_finished());
        drop(node);
        assert_eq!(flush.join().unwrap(), 0);
    });
    assert_eq!((vfs.status().held, vfs.status().closed), (0, 0));
    verify(&dir, vfs);
}

/// A writer comes while the file is hashed, and waits for a disk.
#[test]
fn a_writer_that_holds_a_file_stops_no_seal_of_others() {
    in_time("a seal with a node held".to_owned(), || {
        let (dir, vfs) = tree(false);
        let (held, other) = (closed_file(&vfs, "held"), closed_file(&vfs, "other"));
        for hashed_before in [false, true] {
            let (asked, node) = (std::cell::Cell::new(0), std::cell::RefCell::new(None));
            let writer_comes = || {
                asked.set(asked.get() + 1);
                // Asked before each file and after each piece of it.
                if asked.get() == if hashed_before { 3 } else { 2 } {
                    let mut locked = vfs.nodes.lock(held);
                    locked.sealing.take().unwrap().cancel();
                    node.replace(Some(locked));
                }
                true
            };
            assert_eq!(vfs.seal(&[held, other], &writer_comes).unwrap(), 1);
            drop(node);
            assert_eq!(vfs.sealable(Duration::ZERO, 10), [held]);
            vfs.open(&ME, other, WRITE, &register(false)).unwrap();
            vfs.write(other, 0, b"written anew", false).unwrap();
            vfs.release(other, WRITE);
        }
        verify(&dir, vfs);
    });
}

#[test]
fn at_the_end_bytes_are_forced_before_anything_is_sealed() {
    let (dir, vfs) = tree(false);
    let ino = closed_file(&vfs, "file");
    assert_eq!(vfs.seal(&[ino], &|| false).unwrap(), 0);
    assert!(!is_forced(&vfs, ino));
    // No time at all is left for hashing.
    assert_eq!(vfs.put_away(Instant::now()).unwrap(), 1);
    assert!(is_forced(&vfs, ino));
    assert_eq!(vfs.index.durable_seq(), vfs.index.last_seq());
    assert_eq!(vfs.put_away(soon()).unwrap(), 0);
    verify(&dir, vfs);
}

#[test]
fn hashing_ends_in_the_middle_of_a_file() {
    let (dir, vfs) = tree(false);
    let ino = closed_file(&vfs, "file");
    vfs.open(&ME, ino, WRITE, &register(false)).unwrap();
    vfs.write(ino, 2 << 20, b"more than a piece", false).unwrap();
    vfs.release(ino, WRITE);
    let pieces = std::cell::Cell::new(0);
    let two_questions = || {
        pieces.set(pieces.get() + 1);
        pieces.get() <= 2
    };
    assert_eq!(vfs.seal(&[ino], &two_questions).unwrap(), 0);
    assert_eq!(pieces.get(), 3, "asked before the file, and for each piece");
    assert_eq!(vfs.sealable(Duration::ZERO, 10), [ino], "it is Closed as before, and not put off");
    assert_eq!(vfs.seal(&[ino], &go_on).unwrap(), 1);
    let sum = vfs.inode(ino).unwrap().checksum.unwrap();
    vfs.undigested.lock().push_front(sum);
    assert!(!vfs.publish_some_digests(&|| false).unwrap());
    assert!(vfs.index.blob(&sum).unwrap().unwrap().sha256.is_none());
    verify(&dir, vfs);
}

#[test]
fn blobs_that_are_missing_hold_up_no_digests() {
    let (dir, vfs) = tree(false);
    let inos: Vec<Ino> = (0..40).map(|number| closed_file(&vfs, &format!("file{number}"))).collect();
    vfs.flush_all(&|| true).unwrap();
    let sums: BTreeSet<Checksum> =
        inos.iter().map(|ino| vfs.inode(*ino).unwrap().checksum.unwrap()).collect();
    let missing: Vec<&Checksum> = sums.iter().take(20).collect();
    let path = |sum: &Checksum| {
        let name = sum.to_string();
        dir.path().join("filestore").join(&name[..2]).join(name)
    };
    let aside = tempfile::tempdir_in(dir.path()).unwrap();
    for sum in &missing {
        std::fs::rename(path(sum), aside.path().join(sum.to_string())).unwrap();
    }
    // As after a mount: nothing was asked for.
    vfs.undigested.lock().clear();
    for _ in 0..10 {
        vfs.publish_some_digests(&go_on).unwrap();
    }
    let lacks = |sum: &&Checksum| vfs.index.blob(sum).unwrap().unwrap().sha256.is_none();
    assert_eq!(sums.iter().filter(lacks).collect::<Vec<_>>(), missing);
    for sum in &missing {
        std::fs::rename(aside.path().join(sum.to_string()), path(sum)).unwrap();
    }
    drop(aside);
    verify(&dir, vfs);
}

#[test]
fn an_orphan_that_cannot_be_ended_holds_up_no_other() {
    let (dir, vfs) = tree(false);
    let (broken, sound) = (closed_file(&vfs, "broken"), closed_file(&vfs, "sound"));
    let name = {
        let mut node = vfs.nodes.lock(broken);
        let staged = node.staged.as_mut().unwrap();
        staged.row.failed = Some("for the test".to_owned());
        staged.row.file
    };
    let pre = dir.path().join("filestore/_pre");
    let bytes = pre.join(name.to_string());
    std::fs::rename(&bytes, dir.path().join("moved")).unwrap();
    let repo = vfs.lookup(ROOT, b"a").unwrap().unwrap().inode.ino;
    for (ino, name) in [(broken, "broken"), (sound, "sound")] {
        vfs.unlink(repo, name.as_bytes()).unwrap();
        vfs.forget(ino);
    }
    vfs.reap().unwrap_err();
    assert!(vfs.index.inode(sound).unwrap().is_none() && vfs.index.inode(broken).unwrap().is_some());
    assert_eq!(*vfs.reapable.lock(), [broken], "it is tried again");
    std::fs::rename(dir.path().join("moved"), &bytes).unwrap();
    assert_eq!(vfs.reap().unwrap(), 1);
    assert_eq!(vfs.store.aside().unwrap().len(), 1);
    verify(&dir, vfs);
}

#[test]
fn a_read_only_tree_refuses_what_would_change_the_disk() {
    let (dir, vfs) = tree(false);
    closed_file(&vfs, "file");
    drop(vfs);
    let mut vfs = open_tree(&dir, false);
    vfs.options.read_only = true;
    vfs.recover().unwrap();
    assert!(matches!(vfs.reclaim_older_than(Duration::ZERO, &go_on), Err(Error::ReadOnly)));
    assert!(matches!(vfs.expire_aside(), Err(Error::ReadOnly)));
    assert!(matches!(vfs.publish_some_digests(&go_on), Err(Error::ReadOnly)));
    assert_eq!((vfs.flush_all(&|| true).unwrap(), vfs.put_away(soon()).unwrap()), (0, 0));
    vfs.options.read_only = false;
    drop(vfs);
    verify(&dir, open_tree_recovered(&dir));
}

fn open_tree_recovered(dir: &TempDir) -> Vfs {
    let vfs = open_tree(dir, false);
    vfs.recover().unwrap();
    vfs
}

/// One blob cannot be removed: the others are, and it is tried again.
#[test]
fn a_blob_that_stays_holds_up_no_other() {
    let (dir, vfs) = tree(false);
    let names = ["one", "two", "three", "four"];
    let files = names.map(|name| closed_file(&vfs, name));
    assert_eq!(vfs.flush_all(&go_on).unwrap(), 0);
    let sums = files.map(|ino| vfs.inode(ino).unwrap().checksum.unwrap());
    let repo = vfs.lookup(ROOT, b"a").unwrap().unwrap().inode.ino;
    for (ino, name) in files.into_iter().zip(names) {
        vfs.unlink(repo, name.as_bytes()).unwrap();
        vfs.forget(ino);
    }
    assert_eq!(vfs.reap().unwrap(), 4);
    let path = |sum: &Checksum| {
        let name = sum.to_string();
        dir.path().join("filestore").join(&name[..2]).join(name)
    };
    std::fs::remove_file(path(&sums[1])).unwrap();
    std::fs::create_dir(path(&sums[1])).unwrap();
    assert!(vfs.reclaim_older_than(Duration::ZERO, &go_on).is_err());
    for (i, sum) in sums.iter().enumerate() {
        assert_eq!(path(sum).exists(), i == 1);
        assert_eq!(vfs.index.blob(sum).unwrap().is_some(), i == 1);
    }
    std::fs::remove_dir(path(&sums[1])).unwrap();
    assert_eq!(vfs.reclaim_older_than(Duration::ZERO, &go_on).unwrap().0, 1);
    assert!(vfs.index.blob(&sums[1]).unwrap().is_none());
}
