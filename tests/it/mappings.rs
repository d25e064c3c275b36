//! mmap(2): shared and private, stores with and without a descriptor.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::errno::Errno;

use crate::data::{noise, rw};
use crate::harness::{Fails, Tree, sh, sha1};
use crate::sys::Map;

modes!(every_chain:
    a_shared_mapping_is_the_file, a_private_mapping_keeps_its_stores, stores_after_close_reach_the_file,
    two_mappings_are_one_memory, mappings_need_the_right_descriptor, a_mapping_outlives_its_name,
    a_mapping_of_a_sealed_file_is_written, msync_is_enough, a_mapping_survives_the_seal,
    a_mapping_shows_what_is_copied_into_its_file, a_mapping_of_a_twin_is_its_file,
    a_store_moves_the_time_of_its_file, a_mapping_survives_a_writer_that_writes_nothing,
);
modes!(mounted: a_store_is_what_gets_sealed);

fn a_mapping_survives_a_writer_that_writes_nothing(t: &Tree) {
    for (name, size) in [("file", 40_000), ("empty", 0)] {
        let path = t.sealed(name, noise(1, size));
        let map = Map::shared_readonly(&File::open(&path).unwrap(), 40_000).unwrap();
        for round in 2..5 {
            drop(rw(&path));
            t.seal();
            drop(rw(&path));
            t.seal();
            // Followed by a change in place, and by one that empties the file first.
            rw(&path).write_all_at(&noise(round, 40_000), 0).unwrap();
            assert_eq!(map.peek(0, 40_000).unwrap(), noise(round, 40_000), "{name}, round {round}");
            t.seal();
            fs::write(&path, noise(round + 10, 40_000)).unwrap();
            assert_eq!(map.peek(0, 40_000).unwrap(), noise(round + 10, 40_000), "{name}, round {round}");
            t.seal();
        }
    }
}

fn a_shared_mapping_is_the_file(t: &Tree) {
    let path = t.file("file", noise(1, 20_000));
    let file = rw(&path);
    let map = Map::shared(&file, 20_000).unwrap();
    assert_eq!(map.read(0, 20_000), noise(1, 20_000));
    map.write(4090, b"stored over a page");
    let mut seen = [0; 18];
    file.read_exact_at(&mut seen, 4090).unwrap();
    assert_eq!(&seen, b"stored over a page");
    file.write_all_at(b"written", 10_000).unwrap();
    assert_eq!(map.read(10_000, 7), b"written");
    assert_eq!(fs::read(&path).unwrap()[4090..4108], *b"stored over a page");
}

fn a_private_mapping_keeps_its_stores(t: &Tree) {
    for sealed in [false, true] {
        let path = t.file("file", vec![b'a'; 8192]);
        if sealed {
            t.seal();
        }
        let file = File::open(&path).unwrap();
        let map = Map::private(&file, 8192).unwrap();
        map.write(100, b"mine");
        assert_eq!(map.read(99, 6), b"aminea");
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), vec![b'a'; 8192]);
        t.seal();
        assert_eq!(map.read(99, 6), b"aminea");
        assert_eq!(map.read(5000, 2), b"aa");
    }
}

fn a_store_moves_the_time_of_its_file(t: &Tree) {
    for sealed in [false, true] {
        let path = t.file("file", vec![0; 40_960]);
        if sealed {
            t.seal();
        }
        let map = Map::shared(&rw(&path), 40_960).unwrap();
        // The descriptor is closed: from now on nobody is told of anything.
        for page in 0..4 {
            std::thread::sleep(Duration::from_millis(30));
            let before = fs::metadata(&path).unwrap().modified().unwrap();
            map.write(8192 * page, b"stored");
            map.sync().unwrap();
            let after = fs::metadata(&path).unwrap().modified().unwrap();
            assert!(after > before, "page {page}, sealed {sealed}");
        }
    }
}

fn stores_after_close_reach_the_file(t: &Tree) {
    for sealed in [false, true] {
        let path = t.file("file", vec![0; 12_288]);
        if sealed {
            t.seal();
        }
        let map = Map::shared(&rw(&path), 12_288).unwrap();
        for round in 0..3u8 {
            map.write(4096 * usize::from(round), &[b'0' + round; 10]);
            let seen = fs::read(&path).unwrap();
            assert_eq!(seen[4096 * usize::from(round)..][..10], [b'0' + round; 10], "round {round}");
            t.seal();
        }
        drop(map);
        t.seal();
        let seen = fs::read(&path).unwrap();
        assert_eq!((seen[0], seen[4096], seen[8192], seen[12_287]), (b'0', b'1', b'2', 0));
        t.remount();
        assert!(fs::read(&path).unwrap() == seen);
    }
}

fn two_mappings_are_one_memory(t: &Tree) {
    let path = t.sealed("file", vec![0; 8192]);
    let (a, b) = (Map::shared(&rw(&path), 8192).unwrap(), Map::shared(&rw(&path), 8192).unwrap());
    let reader = Map::shared_readonly(&File::open(&path).unwrap(), 8192).unwrap();
    a.write(1, b"from a");
    b.write(5000, b"from b");
    for map in [&a, &b, &reader] {
        assert_eq!((map.read(1, 6), map.read(5000, 6)), (b"from a".to_vec(), b"from b".to_vec()));
    }
}

fn mappings_need_the_right_descriptor(t: &Tree) {
    let path = t.file("file", vec![1; 4096]);
    Map::shared(&File::open(&path).unwrap(), 4096).map(drop).fails(Errno::EACCES);
    let write_only = fs::OpenOptions::new().write(true).open(&path).unwrap();
    Map::shared_readonly(&write_only, 4096).map(drop).fails(Errno::EACCES);
    Map::shared_readonly(&File::open(t.dir()).unwrap(), 4096).map(drop).fails(Errno::ENODEV);
}

fn a_mapping_outlives_its_name(t: &Tree) {
    let path = t.sealed("file", vec![b'x'; 4096]);
    let map = Map::shared(&rw(&path), 4096).unwrap();
    let reading = Map::shared_readonly(&File::open(&path).unwrap(), 4096).unwrap();
    fs::remove_file(&path).unwrap();
    t.file("file", vec![b'y'; 4096]);
    t.seal();
    map.write(0, b"z");
    assert_eq!((map.read(0, 2), reading.read(0, 2)), (b"zx".to_vec(), b"zx".to_vec()));
    assert_eq!(fs::read(&path).unwrap(), vec![b'y'; 4096]);
}

fn a_mapping_of_a_sealed_file_is_written(t: &Tree) {
    let path = t.sealed("file", noise(4, 100_000));
    let map = Map::shared(&rw(&path), 100_000).unwrap();
    map.write(50_000, b"changed");
    drop(map);
    t.remount();
    let mut model = noise(4, 100_000);
    model[50_000..50_007].copy_from_slice(b"changed");
    assert!(fs::read(&path).unwrap() == model);
}

fn msync_is_enough(t: &Tree) {
    let path = t.file("file", vec![0; 4096]);
    let file = rw(&path);
    let map = Map::shared(&file, 4096).unwrap();
    drop(file);
    map.write(0, b"synced");
    map.sync().unwrap();
    assert_eq!(&fs::read(&path).unwrap()[..6], b"synced");
}

fn a_mapping_survives_the_seal(t: &Tree) {
    let path = t.file("file", vec![b'a'; 8192]);
    let reading = Map::shared_readonly(&File::open(&path).unwrap(), 8192).unwrap();
    assert_eq!(reading.read(0, 1), b"a");
    t.seal();
    assert_eq!(reading.read(5000, 1), b"a");
    rw(&path).write_all_at(b"b", 5000).unwrap();
    assert_eq!(reading.read(5000, 1), b"b", "a writer after the seal is seen through an old mapping");
    t.seal();
    rw(&path).write_all_at(b"c", 5000).unwrap();
    assert_eq!(reading.read(5000, 1), b"c");
}

fn a_store_is_what_gets_sealed(t: &Tree) {
    let path = t.file("file", vec![0; 4096]);
    let map = Map::shared(&rw(&path), 4096).unwrap();
    t.seal();
    map.write(0, b"late");
    drop(map);
    let mut model = vec![0; 4096];
    model[..4].copy_from_slice(b"late");
    let sum = sha1(&model);
    assert_eq!(t.depot().checksum("repo/file"), sum);
    assert!(fs::read(t.depot().blob(&sum)).unwrap() == model);
}

fn a_mapping_shows_what_is_copied_into_its_file(t: &Tree) {
    t.sealed("from", noise(5, 100_000));
    for sealed in [false, true] {
        let path = t.file("to", noise(6, 90_000));
        if sealed {
            t.seal();
        }
        let map = Map::shared_readonly(&File::open(&path).unwrap(), 90_000).unwrap();
        sh(t.dir(), "cp from to");
        assert_eq!(
            map.peek(0, 90_000).map(|seen| seen == noise(5, 100_000)[..90_000]),
            Ok(true),
            "sealed: {sealed}"
        );
        assert!(fs::read(&path).unwrap() == noise(5, 100_000));
    }
}

fn a_mapping_of_a_twin_is_its_file(t: &Tree) {
    t.sealed("twin", noise(7, 50_000));
    for truncate in [false, true] {
        let path = t.file("file", noise(7, 50_000));
        let reader = File::open(&path).unwrap();
        // Sealed while it is open, as a content that is stored already.
        t.seal();
        let map = Map::shared_readonly(&reader, 50_000).unwrap();
        drop(reader);
        t.seal();
        let model = if truncate { noise(8, 60_000) } else { [b"changed", &noise(7, 50_000)[7..]].concat() };
        if truncate {
            fs::write(&path, &model).unwrap();
        } else {
            rw(&path).write_all_at(b"changed", 0).unwrap();
        }
        assert_eq!(
            map.peek(0, 50_000).map(|seen| seen == model[..50_000]),
            Ok(true),
            "truncated: {truncate}"
        );
        t.seal();
        assert!(fs::read(&path).unwrap() == model);
    }
    assert!(fs::read(t.path("twin")).unwrap() == noise(7, 50_000));
}
