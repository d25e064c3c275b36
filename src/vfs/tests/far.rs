//! A tree whose blobs are far away: what a close was promised, and who waits for a store that does not answer.

use std::thread;
use std::time::Instant;

use super::upkeep::{ME, WRITE, closed_file};
use super::*;
use crate::checksum::Checksum;
use crate::filestore::{Call, Faulty, FileSystem, Timed};
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

/// Opens a new file of this name that is the first 200 bytes of `from`, sealed, by a copy that stopped there.
fn stopped_copy(vfs: &Vfs, from: Ino, name: &str) -> Ino {
    let to = closed_file(vfs, name);
    vfs.open(&ME, to, Access { truncate: true, ..WRITE }, &register(false)).unwrap();
    let Inode { checksum, size, .. } = vfs.inode(from).unwrap();
    let mut node = vfs.nodes.lock(to);
    let file = node.staged.as_ref().unwrap().row.file;
    let checksum = checksum.unwrap();
    node.clone = Some(CloneOf { made: true, checksum, size, covered: 200, ..CloneOf::nothing_yet(file) });
    to
}

#[test]
fn a_copy_that_stopped_is_fetched_with_its_node_free() {
    let (dir, vfs, faulty) = far_tree(Durability::Fsync);
    let from = closed_file(&vfs, "from");
    vfs.seal(&[from], &|| true).unwrap();
    let expected = content(&vfs, from)[..200].to_vec();
    type Work = fn(&Vfs, Ino);
    let works: [Work; 6] = [
        |vfs, ino| vfs.write(ino, 200, b"", false).unwrap(),
        |vfs, ino| assert_eq!(vfs.read(ino, 0, 0, &mut [0; 400]).unwrap(), 200),
        |vfs, ino| vfs.fsync(ino).unwrap(),
        |vfs, ino| {
            drop(vfs.open(&ME, ino, Access { read: true, ..Access::default() }, &register(false)).unwrap())
        },
        |vfs, ino| vfs.force(Duration::ZERO, Duration::ZERO).unwrap_or_else(|error| panic!("{ino}: {error}")),
        |vfs, ino| vfs.release(ino, WRITE),
    ];
    // One who comes while another fetches waits for him, and fetches nothing himself.
    let to = stopped_copy(&vfs, from, "once");
    let reads = faulty.calls(Call::Read);
    faulty.set("read=stall");
    thread::scope(|scope| {
        let first = scope.spawn(|| vfs.fsync(to).unwrap());
        await_reads(&faulty, reads);
        let begun = faulty.calls(Call::Read);
        let second = scope.spawn(|| vfs.read(to, 0, 0, &mut [0; 400]).unwrap());
        thread::sleep(Duration::from_millis(50));
        assert_eq!(faulty.calls(Call::Read), begun);
        faulty.set("");
        first.join().unwrap();
        assert_eq!(second.join().unwrap(), 200);
    });
    for (number, work) in works.into_iter().enumerate() {
        let to = stopped_copy(&vfs, from, &format!("to{number}"));
        if let Some(staged) = &mut vfs.nodes.lock(to).staged {
            staged.forced_at -= Duration::from_secs(3600);
        }
        let reads = faulty.calls(Call::Read);
        faulty.set("read=stall");
        thread::scope(|scope| {
            let worker = scope.spawn(|| work(&vfs, to));
            await_reads(&faulty, reads);
            let waits_alone = vfs.nodes.try_lock(to).is_some() && !worker.is_finished();
            faulty.set("");
            worker.join().unwrap();
            assert!(waits_alone, "work {number}");
        });
        assert_eq!(vfs.nodes.lock(to).clone, None, "work {number}");
        assert_eq!(content(&vfs, to), expected, "work {number}");
    }
    verify(&dir, vfs);
}

#[test]
fn who_may_wait_for_a_copy_that_stopped_is_known_before() {
    let (dir, vfs, _faulty) = far_tree(Durability::Fsync);
    let from = closed_file(&vfs, "from");
    vfs.seal(&[from], &|| true).unwrap();
    let to = stopped_copy(&vfs, from, "to");
    let repo = vfs.lookup(ROOT, b"a").unwrap().unwrap().inode.ino;
    let forced = |name: &str, new_name: &str| {
        vfs.forced_by_rename((repo, name.as_bytes()), (repo, new_name.as_bytes()))
    };
    assert!(vfs.change_waits(to) && !vfs.change_waits(from));
    assert!(vfs.is_staged(to) && !vfs.is_staged(from));
    assert_eq!((forced("to", "from"), forced("from", "to")), (vec![from, to], vec![to, from]));
    assert_eq!((forced("to", "free"), forced("no", "from")), (vec![], vec![from]));
    let held = vfs.nodes.lock(from);
    assert!(vfs.change_waits(from) && !vfs.is_staged(from), "whoever holds it may wait himself");
    drop(held);
    vfs.release(to, WRITE);
    verify(&dir, vfs);
}

#[test]
fn a_copy_that_stopped_outlasts_a_store_that_is_away() {
    let (dir, vfs, faulty) = far_tree(Durability::Fsync);
    let from = closed_file(&vfs, "from");
    vfs.seal(&[from], &|| true).unwrap();
    let expected = content(&vfs, from)[..200].to_vec();
    let to = stopped_copy(&vfs, from, "to");
    faulty.set("read=broken");
    assert!(vfs.fsync(to).is_err() && vfs.write(to, 0, b"x", false).is_err());
    vfs.release(to, WRITE);
    assert!(vfs.seal(&[to], &|| true).is_err());
    // What is written anew needs nothing of it.
    let again = stopped_copy(&vfs, from, "again");
    vfs.release(again, WRITE);
    let reads = faulty.calls(Call::Read);
    vfs.open(&ME, again, Access { truncate: true, ..WRITE }, &register(false)).unwrap();
    vfs.write(again, 0, b"anew", false).unwrap();
    vfs.release(again, WRITE);
    assert_eq!((content(&vfs, again), faulty.calls(Call::Read)), (b"anew".to_vec(), reads));
    faulty.set("");
    assert_eq!(vfs.seal(&[to], &|| true).unwrap(), 1);
    assert_eq!(content(&vfs, to), expected);
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

/// Who holds the node of a file there may wait for its server for as long as that is away.
#[test]
fn nobody_waits_long_for_a_node_whose_bytes_are_on_a_network_disk() {
    let (dir, vfs) = tree(false);
    drop(vfs);
    let index = Index::open(&dir.path().join("index.db")).unwrap();
    let at = dir.path().join("filestore");
    let files = FileSystem::open(&at, ID, &filestore::Options::default()).unwrap();
    let timed = Timed::over(at, Arc::new(files));
    let vfs = Vfs::new(index, Filestore::over(Arc::new(timed)), options(false));
    let (held, other) = (closed_file(&vfs, "held"), closed_file(&vfs, "other"));
    let repo = vfs.lookup(ROOT, b"a").unwrap().unwrap().inode.ino;
    let node = vfs.nodes.lock(held);
    type Look = fn(&Vfs, Ino, Ino) -> Result<()>;
    let looks: [Look; 4] = [
        |vfs, _, held| vfs.attributes(held).map(drop),
        |vfs, repo, _| vfs.lookup(repo, b"held").map(drop),
        |vfs, repo, held| vfs.link(held, repo, b"link").map(drop),
        |vfs, repo, _| vfs.unlink(repo, b"held"),
    ];
    thread::scope(|scope| {
        for look in looks {
            let vfs = &vfs;
            scope.spawn(move || {
                let error = look(vfs, repo, held).unwrap_err();
                assert!(
                    matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut)
                );
            });
        }
        assert!(vfs.attributes(other).is_ok() && vfs.is_staged(held));
    });
    drop(node);
    looks.iter().for_each(|look| look(&vfs, repo, held).unwrap());
    verify(&dir, vfs);
}
