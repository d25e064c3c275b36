//! Files and rows that are lost, cut or altered behind the cache.

use super::*;

#[test]
fn a_file_that_was_cut_or_removed_by_hand_is_read_again() {
    let t = over_far(OPTIONS);
    for damage in [
        |path: &Path| std::fs::remove_file(path).unwrap(),
        |path: &Path| {
            std::fs::remove_file(path).unwrap();
            std::fs::write(path, "short").unwrap();
        },
    ] {
        let bytes = noise(8, 200_000);
        let sum = t.far.add(bytes.clone());
        read_all(&t.blob(&sum)).unwrap();
        t.settle();
        damage(&t.cache.locate(&sum).unwrap()[0].path);
        for size in [Some(200_000), None] {
            let blob = t.cache.open(&sum, size).unwrap().unwrap();
            assert_eq!(read_all(&blob).unwrap(), bytes);
            t.settle();
        }
        assert!(t.is_cached(&sum));
        assert_eq!(t.cache.cache_status().used, t.disk());
        t.cache.drop_all();
    }
}

#[test]
fn altered_bytes_in_the_cache_are_mended() {
    let t = over_far(OPTIONS);
    let bytes = noise(8, 200_000);
    let sum = t.far.add(bytes.clone());
    read_all(&t.blob(&sum)).unwrap();
    t.settle();
    let path = t.cache.locate(&sum).unwrap()[0].path.clone();
    let mut altered = bytes.clone();
    altered[5] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &altered).unwrap();
    assert_eq!(bytes_of(&t.cache.open_stored(&sum, None).unwrap().unwrap()), altered);
    t.cache.mend(&sum).unwrap();
    assert_eq!(bytes_of(&t.cache.open_stored(&sum, None).unwrap().unwrap()), bytes);
    assert_eq!(t.cache.cache_status().entries, 0);
}

#[test]
fn a_lost_ledger_and_a_lost_directory_are_made_anew() {
    let t = over_far(OPTIONS);
    let sum = t.far.add(noise(8, 200_000));
    read_all(&t.blob(&sum)).unwrap();
    t.settle();
    let Fixture { dir, far, cache } = t;
    drop(cache);
    let below = || Arc::clone(&far) as Arc<dyn Provider>;
    std::fs::write(dir.path().join("one/cache.db"), vec![0x5a; 9000]).unwrap();
    let cache = open(&dir, OPTIONS, below());
    assert_eq!(cache.cache_status().used, 0);
    assert!(cache.locate(&sum).unwrap().is_empty(), "nothing takes room that is not counted");
    drop(cache);
    // Its making was cut short.
    std::fs::write(dir.path().join("one/cache.db"), "").unwrap();
    drop(open(&dir, OPTIONS, below()));
    std::fs::remove_dir_all(dir.path().join("one")).unwrap();
    drop(open(&dir, OPTIONS, below()));
    let other = CacheFs::open(&[dir.path().join("one")], [8; 16], OPTIONS, below());
    assert!(matches!(other, Err(Error::Foreign { .. })));
}

/// A power cut brought back a name whose row was struck out for good.
#[test]
fn a_file_without_a_row_goes_after_a_start() {
    let t = over_far(OPTIONS);
    let sums: Vec<Checksum> = (0..3).map(|i| t.far.add(noise(i, 100_000))).collect();
    for sum in &sums {
        read_all(&t.blob(sum)).unwrap();
        t.settle();
    }
    let core = &t.cache.core;
    core.give_back(core.ledger.strike(&sums[..2]).unwrap());
    let open = t.cache.open(&sums[1], Some(100_000)).unwrap().unwrap();
    let mut sweep = sweep::Sweep::of(core);
    while sweep.step(core) {}
    let there: Vec<bool> = sums.iter().map(|sum| !t.cache.locate(sum).unwrap().is_empty()).collect();
    assert_eq!(there, [false, true, true], "what is open stays until the next start");
    drop(open);
    let mut sweep = sweep::Sweep::of(core);
    while sweep.step(core) {}
    assert_eq!((t.cache.cache_status().used, t.disk()), (102_400, 102_400));
    assert!(t.is_cached(&sums[2]) && t.cache.open_cached(&Checksum::EMPTY).is_some());
}

/// Each death leaves rows without files, never the other way round.
#[test]
fn a_row_without_a_file_is_no_room_lost() {
    let t = over_far(Options { bytes_max: 250_000, ..OPTIONS });
    let sums: Vec<Checksum> = (0..3).map(|i| t.far.add(noise(i, 100_000))).collect();
    for sum in &sums[..2] {
        read_all(&t.blob(sum)).unwrap();
        t.settle();
        std::fs::remove_file(&t.cache.locate(sum).unwrap()[0].path).unwrap();
    }
    for sum in [&sums[2], &sums[0]] {
        read_all(&t.blob(sum)).unwrap();
        t.settle();
        assert!(t.is_cached(sum));
    }
    assert_eq!(t.cache.cache_status().used, t.disk());
}

#[test]
fn a_disk_that_fails_is_read_past() {
    let t = over_far(OPTIONS);
    let bytes = noise(1, 300_000);
    let sum = t.far.add(bytes.clone());
    for dir in ["one", "two"] {
        std::fs::remove_dir_all(t.dir.path().join(dir)).unwrap();
    }
    assert_eq!(read_all(&t.blob(&sum)).unwrap(), bytes);
    t.settle();
    assert_eq!(read_all(&t.blob(&sum)).unwrap(), bytes);
    let mut seen = 0;
    t.cache
        .list(None, &mut |_: Listed<'_>| {
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((seen, t.cache.cache_status().used), (0, 0));
}
