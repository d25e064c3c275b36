//! A tree whose blobs are far away: what a close was promised, and who waits for a store that does not answer.

use std::thread;
use std::time::Instant;

use super::upkeep::{ME, WRITE, closed_file};
use super::*;
use crate::checksum::Checksum;
use crate::filestore::{Call, Faulty, FileSystem};
use crate::vfs::node::CloneOf;

/// Its blobs are files that are asked for like objects, by way of a provider that fails as it is told.
fn far_tree(durability: Durability) -> (TempDir, Vfs, Arc<Faulty>) {
    let (dir, vfs) = tree(false);
    drop(vfs);
    let index = Index::open(&dir.path().join("index.db")).unwrap();
    let files = FileSystem::open(&dir.path().join("filestore"), ID, &filestore::Options::default()).unwrap();
    let faulty = Arc::new(Faulty::over(Arc::new(files), dir.path().join("control"), 1, true));
    let options = Options { durability, ..options(false) };
    let vfs = Vfs::new(index, Filestore::over(faulty.clone()), options);
    (dir, vfs, faulty)
}

/// An open file with these bytes, written and flushed as by close(2) of a duplicate of its descriptor.
fn flushed(vfs: &Vfs, name: &str, bytes: &[u8]) -> Ino {
    let ino = closed_file(vfs, name);
    let emptied = Access { truncate: true, ..WRITE };
    vfs.open(&ME, ino, emptied, &register(false)).unwrap();
    vfs.write(ino, 0, bytes, false).unwrap();
    vfs.flush(ino).unwrap();
    ino
}

fn content(vfs: &Vfs, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let read = vfs.read(ino, 0, 0, &mut bytes).unwrap();
    bytes.truncate(read);
    bytes
}

/// Waits until somebody has asked the store for bytes.
fn await_reads(faulty: &Faulty, more_than: u64) {
    let start = Instant::now();
    while faulty.calls(Call::Read) <= more_than {
        assert!(start.elapsed() < Duration::from_secs(60), "nobody reads");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_a_close_was_promised_is_not_reclaimed() {
    let (dir, vfs, _) = far_tree(Durability::Remote);
    let first = flushed(&vfs, "first", b"the same content");
    vfs.release(first, WRITE);
    assert_eq!(vfs.seal(&[first], &|| true).unwrap(), 1);
    let sum = vfs.inode(first).unwrap().checksum.unwrap();
    let repo = vfs.lookup(ROOT, b"a").unwrap().unwrap().inode.ino;
    vfs.unlink(repo, b"first").unwrap();
    vfs.forget(first);
    vfs.reap().unwrap();
    thread::sleep(Duration::from_millis(2));
    // Two were promised the same object; one of them is another content by now.
    let (second, third) =
        (flushed(&vfs, "second", b"the same content"), flushed(&vfs, "third", b"the same content"));
    vfs.write(third, 0, b"THE", false).unwrap();
    vfs.flush(third).unwrap();
    assert_eq!(vfs.reclaim_older_than(Duration::ZERO, &|| true).unwrap(), (0, 0));
    assert_eq!(vfs.store.stat_blob(&sum).unwrap(), Some(16));
    vfs.write(second, 0, b"AND", false).unwrap();
    vfs.flush(second).unwrap();
    assert_eq!(vfs.reclaim_older_than(Duration::ZERO, &|| true).unwrap(), (1, 16));
    verify(&dir, vfs);
}

#[test]
fn an_outage_is_met_once_by_a_batch_of_seals() {
    let (dir, vfs, faulty) = far_tree(Durability::Fsync);
    let inos: Vec<Ino> = (0..6).map(|number| closed_file(&vfs, &format!("file{number}"))).collect();
    faulty.set("put=fail");
    let error = vfs.seal(&inos, &|| true).unwrap_err();
    assert!(matches!(error, Error::Store(error) if error.is_transient()));
    assert_eq!(faulty.calls(Call::Put), 2, "all of them, and one");
    // At the end of the mount nothing is begun any more.
    let before_the_put = || faulty.calls(Call::Put) < 3;
    vfs.seal(&inos, &before_the_put).unwrap_err();
    assert_eq!(faulty.calls(Call::Put), 3);
    assert!(inos.iter().all(|ino| vfs.nodes.lock(*ino).staged.as_ref().is_some_and(|s| s.attempts == 2)));
    // What concerns one of them is not in the way of the others.
    faulty.set("put=broken*2");
    vfs.seal(&inos, &|| true).unwrap_err();
    assert_eq!(inos.iter().filter(|ino| vfs.inode(**ino).unwrap().checksum.is_some()).count(), 5);
    verify(&dir, vfs);
}

#[test]
fn a_copy_that_does_not_come_waits_for_no_seal_of_empty_files() {
    in_time("writing with the latch of no bytes taken".to_owned(), || {
        let (dir, vfs, _) = far_tree(Durability::Fsync);
        let ino = closed_file(&vfs, "file");
        vfs.open(&ME, ino, Access { truncate: true, ..WRITE }, &register(false)).unwrap();
        {
            let mut node = vfs.nodes.lock(ino);
            let file = node.staged.as_ref().unwrap().row.file;
            node.clone = Some(CloneOf { made: true, ..CloneOf::nothing_yet(file) });
        }
        let latch = vfs.store.latch(&Checksum::EMPTY);
        vfs.write(ino, 0, b"bytes", false).unwrap();
        drop(latch);
        assert_eq!(content(&vfs, ino), b"bytes");
        vfs.release(ino, WRITE);
        verify(&dir, vfs);
    });
}

#[test]
fn a_copy_is_fetched_before_it_is_written_with_its_node_free() {
    let (dir, vfs, faulty) = far_tree(Durability::Fsync);
    let (from, to) = (closed_file(&vfs, "from"), closed_file(&vfs, "to"));
    vfs.open(&ME, to, Access { truncate: true, ..WRITE }, &register(false)).unwrap();
    assert!(!vfs.write_waits(to));
    let place = |ino| Place { ino, offset: 0 };
    assert_eq!(vfs.copy_range(&ME, place(from), place(to), 1 << 20).unwrap(), 400);
    assert_eq!(vfs.inode(to).unwrap().checksum, vfs.inode(from).unwrap().checksum, "no byte was moved");
    assert!(vfs.write_waits(to));
    let reads = faulty.calls(Call::Read);
    faulty.set("read=stall");
    thread::scope(|scope| {
        let writer = scope.spawn(|| vfs.write(to, 4, b"WRITTEN", false));
        await_reads(&faulty, reads);
        let waits_alone = vfs.nodes.try_lock(to).is_some() && !writer.is_finished();
        faulty.set("");
        writer.join().unwrap().unwrap();
        assert!(waits_alone);
    });
    assert_eq!(&content(&vfs, to)[..12], b"fromWRITTENm");
    assert!(!vfs.write_waits(to));
    vfs.release(to, WRITE);
    verify(&dir, vfs);
}

#[test]
fn a_file_whose_bytes_are_here_is_opened_for_writing_whoever_holds_it_for_a_moment() {
    let (dir, vfs, faulty) = far_tree(Durability::Fsync);
    let ino = closed_file(&vfs, "file");
    vfs.seal(&[ino], &|| true).unwrap();
    vfs.open(&ME, ino, WRITE, &register(false)).unwrap();
    faulty.set("read=broken\nopen=broken");
    let node = vfs.nodes.lock(ino);
    thread::scope(|scope| {
        let opened = scope.spawn(|| vfs.open(&ME, ino, WRITE, &register(false)).map(drop));
        thread::sleep(Duration::from_millis(100));
        let reads = faulty.calls(Call::Read);
        drop(node);
        opened.join().unwrap().unwrap();
        assert_eq!(faulty.calls(Call::Read), reads);
    });
    faulty.set("");
    verify(&dir, vfs);
}

#[test]
fn a_writer_waits_for_a_latch_with_his_node_free() {
    let (dir, vfs, _) = far_tree(Durability::Fsync);
    let ino = closed_file(&vfs, "file");
    vfs.seal(&[ino], &|| true).unwrap();
    let sum = vfs.inode(ino).unwrap().checksum.unwrap();
    // As if a mapping of it were left.
    let name = vfs.next_staging().unwrap();
    vfs.stage_untouched(name).unwrap();
    let file = vfs.store.stat_staging(name).unwrap().file_id;
    vfs.store.discard(name).unwrap();
    vfs.owners.lock().insert(sum, Owner { ino, file, open: false });
    thread::scope(|scope| {
        let latch = vfs.store.latch(&sum);
        let opened = scope.spawn(|| vfs.open(&ME, ino, WRITE, &register(false)).map(drop));
        thread::sleep(Duration::from_millis(100));
        let end = Instant::now() + Duration::from_secs(60);
        while vfs.nodes.try_lock(ino).is_none() {
            assert!(Instant::now() < end, "the node stays locked");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!opened.is_finished());
        drop(latch);
        opened.join().unwrap().unwrap();
    });
    vfs.release(ino, WRITE);
    verify(&dir, vfs);
}
