//! How much is kept, what goes first, and what counts.

use super::*;

/// More than fits, by many readers at once: at no moment is more on the disk than the limit.
#[test]
fn the_limit_is_hard() {
    const LIMIT: u64 = 3_000_000;
    let t = over_far(Options { bytes_max: LIMIT, ..OPTIONS });
    let blobs: Vec<(Checksum, Vec<u8>)> = (0..40)
        .map(|i| {
            let bytes = noise(100 + i, 50_000 + 20_000 * i as usize);
            (t.far.add(bytes.clone()), bytes)
        })
        .collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::SeqCst) {
                // A walk counts twice what goes while another comes: of several the least is near the truth.
                most = most.max((0..3).map(|_| t.disk()).min().unwrap());
                assert!(most <= LIMIT, "{most} bytes on the disk");
                assert!(t.cache.cache_status().used <= LIMIT);
            }
            most
        });
        let readers: Vec<_> = (0..8)
            .map(|reader| {
                let (t, blobs) = (&t, &blobs);
                scope.spawn(move || {
                    for i in 0..120 {
                        let (sum, bytes) = &blobs[(i * 7 + reader * 5) % blobs.len()];
                        assert_eq!(read_all(&t.blob(sum)).unwrap(), *bytes);
                    }
                })
            })
            .collect();
        let read: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        done.store(true, Ordering::SeqCst);
        read.into_iter().for_each(|read| read.unwrap());
        assert!(watcher.join().unwrap() > LIMIT / 4);
    });
    t.settle();
    let status = t.cache.cache_status();
    assert!(status.evictions > 0 && status.arriving == 0, "{status:?}");
    assert_eq!(status.used, t.disk());
}

#[test]
fn what_is_open_counts_and_stays() {
    let t = over_far(Options { bytes_max: 100_000, ..OPTIONS });
    let (one, two) = (noise(1, 60_000), noise(2, 60_000));
    let (sum_one, sum_two) = (t.far.add(one.clone()), t.far.add(two.clone()));
    read_all(&t.blob(&sum_one)).unwrap();
    t.settle();
    let open = t.blob(&sum_one);
    assert!(open.local().is_some());
    assert_eq!(read_all(&t.blob(&sum_two)).unwrap(), two, "past the cache");
    t.settle();
    assert!(!t.is_cached(&sum_two) && t.is_cached(&sum_one));
    // It loses its name, and goes on counting until it is closed.
    assert!(!t.cache.drop_blob(&sum_one).unwrap());
    assert!(t.cache.drop_copy(&sum_one, open.file_id().unwrap()).unwrap());
    assert_eq!((t.cache.cache_status().used, t.disk()), (61_440, 61_440));
    assert_eq!(read_all(&open).unwrap(), one);
    read_all(&t.blob(&sum_two)).unwrap();
    t.settle();
    assert!(!t.is_cached(&sum_two));
    drop(open);
    read_all(&t.blob(&sum_two)).unwrap();
    t.settle();
    assert!(t.is_cached(&sum_two));
    assert_eq!((t.cache.cache_status().used, t.disk()), (61_440, 61_440));
}

#[test]
fn the_order_outlives_a_restart() {
    let t = over_far(Options { bytes_max: 450_000, ..OPTIONS });
    let sums: Vec<Checksum> = (0..4).map(|i| t.far.add(noise(i, 100_000))).collect();
    for i in [0, 1, 2, 3, 0] {
        read_all(&t.blob(&sums[i])).unwrap();
        t.settle();
    }
    let Fixture { dir, far, cache } = t;
    drop(cache);
    let cache = open(&dir, Options { bytes_max: 450_000, ..OPTIONS }, Arc::clone(&far) as Arc<dyn Provider>);
    let t = Fixture { dir, far, cache };
    let new = t.far.add(noise(9, 100_000));
    read_all(&t.blob(&new)).unwrap();
    t.settle();
    let cached: Vec<bool> = sums.iter().map(|sum| t.is_cached(sum)).collect();
    assert_eq!(cached, [true, false, true, true], "the one that was used longest ago went");
}
