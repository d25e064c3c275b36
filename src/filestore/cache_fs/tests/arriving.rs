//! Blobs that are fetched: shared by their readers, slow, failing or altered.

use super::*;

#[test]
fn a_read_blob_is_cached_and_served_without_a_call() {
    let t = over_far(OPTIONS);
    for len in [1, 4096, 128 * 1024, 300_000, 5_000_000] {
        let bytes = noise(len as u64, len);
        let sum = t.far.add(bytes.clone());
        let first = t.blob(&sum);
        assert!(first.local().is_none());
        assert_eq!(read_all(&first).unwrap(), bytes);
        t.settle();
        assert_eq!(read_all(&first).unwrap(), bytes, "an open handle goes on");
        let calls = t.far.calls.load(Ordering::SeqCst);
        let second = t.blob(&sum);
        assert!(second.local().is_some(), "{len}");
        assert_eq!(read_all(&second).unwrap(), bytes);
        assert_eq!(t.far.calls.load(Ordering::SeqCst), calls);
    }
    let status = t.cache.cache_status();
    assert_eq!((status.entries, status.hits, status.misses, status.arriving), (5, 5, 5, 0));
}

#[test]
fn sixteen_first_readers_share_one_fetch() {
    let t = over_far(OPTIONS);
    let bytes = noise(3, 9_000_000);
    let sum = t.far.add(bytes.clone());
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(read_all(&t.blob(&sum)).unwrap(), bytes));
        }
    });
    t.settle();
    assert_eq!(t.far.sent.load(Ordering::SeqCst), bytes.len() as u64, "each byte left once");
    assert!(t.is_cached(&sum));
}

#[test]
fn a_look_at_the_end_is_one_call() {
    let t = over_far(OPTIONS);
    let bytes = noise(4, 20_000_000);
    let sum = t.far.add(bytes.clone());
    let mut end = [0; 4096];
    t.blob(&sum).read_at(&mut end, bytes.len() as u64 - 4096).unwrap();
    assert_eq!(end, bytes[bytes.len() - 4096..]);
    t.settle();
    assert_eq!(t.far.calls.load(Ordering::SeqCst), 1);
    assert_eq!(t.cache.cache_status().entries, 0);
    // Whoever reads a part of it in pieces gets all of it.
    let blob = t.blob(&sum);
    let mut piece = vec![0; 500_000];
    for at in (5_000_000..15_000_000).step_by(1_000_000) {
        blob.read_at(&mut piece, at).unwrap();
        assert_eq!(piece, bytes[at as usize..][..500_000]);
    }
    t.settle();
    assert!(t.is_cached(&sum));
}

#[test]
fn a_reader_far_ahead_does_not_wait() {
    let t = over_far(OPTIONS);
    let bytes = noise(5, 30_000_000);
    let sum = t.far.add(bytes.clone());
    t.far.trouble.held.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut first = [0; 100];
            t.blob(&sum).read_at(&mut first, 0).unwrap();
            assert_eq!(first, bytes[..100]);
        });
        while t.far.calls.load(Ordering::SeqCst) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let ahead = scope.spawn(|| {
            let mut piece = [0; 1000];
            t.blob(&sum).read_at(&mut piece, 25_000_000).unwrap();
            assert_eq!(piece, bytes[25_000_000..25_001_000]);
        });
        while t.far.calls.load(Ordering::SeqCst) < 2 {
            thread::sleep(Duration::from_millis(1));
        }
        t.far.trouble.held.store(false, Ordering::SeqCst);
        reader.join().unwrap();
        ahead.join().unwrap();
    });
    t.settle();
}

#[test]
fn a_stalled_fetch_holds_nobody_up_for_long() {
    let t = over_far(OPTIONS);
    let bytes = noise(5, 3_000_000);
    let sum = t.far.add(bytes.clone());
    t.far.trouble.stalled.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    assert_eq!(read_all(&t.blob(&sum)).unwrap(), bytes, "read below");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let status = t.cache.cache_status();
    assert_eq!((status.entries, status.arriving > 0), (1, true));
    t.far.trouble.stalled.store(false, Ordering::SeqCst);
    t.settle();
    assert!(t.is_cached(&sum), "and it goes on");
}

#[test]
fn a_reader_that_gives_up_does_not_stop_the_others() {
    let t = over_far(OPTIONS);
    let bytes = noise(5, 3_000_000);
    let sum = t.far.add(bytes.clone());
    let (early, late) = (t.blob(&sum), t.blob(&sum));
    early.read_at(&mut [0; 1000], 0).unwrap();
    t.far.trouble.stalled.store(true, Ordering::SeqCst);
    drop(early);
    t.far.trouble.stalled.store(false, Ordering::SeqCst);
    assert_eq!(read_all(&late).unwrap(), bytes);
    drop(late);
    t.settle();
    assert_eq!(t.far.sent.load(Ordering::SeqCst), bytes.len() as u64);
    assert!(t.is_cached(&sum));
}

/// Readers that follow the arrival do not get the end of what is not the blob; nothing is cached; whoever opens it again
/// tries again.
#[test]
fn altered_bytes_are_not_passed_on() {
    let t = over_far(OPTIONS);
    for len in [1000, 100_000, 2_000_000] {
        let bytes = noise(6 + len as u64, len);
        let sum = t.far.add(bytes.clone());
        t.far.trouble.altered_at.store(len as u64 / 2, Ordering::SeqCst);
        let blob = t.blob(&sum);
        assert_eq!(read_all(&blob).unwrap_err().kind(), io::ErrorKind::InvalidData);
        t.settle();
        assert_eq!(blob.read_at(&mut [0; 10], 0).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(!t.is_cached(&sum));
        assert_eq!((t.cache.cache_status().used, t.disk()), (0, 0));
        t.far.trouble.altered_at.store(0, Ordering::SeqCst);
        assert_eq!(read_all(&t.blob(&sum)).unwrap(), bytes);
        t.settle();
        assert!(t.is_cached(&sum));
        t.cache.drop_all();
    }
}

#[test]
fn a_fetch_that_fails_is_an_error_of_what_it_could_not_read_only() {
    let t = over_far(OPTIONS);
    let bytes = noise(7, 3_000_000);
    let sum = t.far.add(bytes.clone());
    t.far.trouble.fails_from.store(1_500_000, Ordering::SeqCst);
    let blob = t.blob(&sum);
    assert_eq!(read_all(&blob).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    t.settle();
    let mut piece = vec![0; 500_000];
    blob.read_at(&mut piece, 0).unwrap();
    assert_eq!(piece, bytes[..500_000]);
    assert_eq!((t.cache.cache_status().used, t.disk()), (0, 0));
    t.far.trouble.fails_from.store(0, Ordering::SeqCst);
    assert_eq!(read_all(&blob).unwrap(), bytes);
}

/// Another object with the same bytes took the place of the one that is fetched.
#[test]
fn a_stream_that_ends_is_no_damage() {
    let t = over_far(OPTIONS);
    let bytes = noise(7, 600_000);
    let sum = t.far.add(bytes.clone());
    t.far.trouble.replaced.store(true, Ordering::SeqCst);
    let blob = t.blob(&sum);
    assert_eq!(read_all(&blob).unwrap(), bytes, "what is below is asked");
    t.settle();
    // What was read of the other one before is in doubt, and no more.
    assert_eq!((t.cache.alterations().last(), read_all(&blob).unwrap()), (1, bytes));
    t.far.trouble.replaced.store(false, Ordering::SeqCst);
    t.far.trouble.longer.store(true, Ordering::SeqCst);
    let longer = t.far.add(noise(8, 600_000));
    assert_eq!(read_all(&t.blob(&longer)).unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(t.cache.alterations().last(), 2);
}

#[test]
fn a_removed_blob_is_not_cached_by_a_fetch_under_way() {
    let t = over_far(OPTIONS);
    let bytes = noise(8, 1_000_000);
    let sum = t.far.add(bytes.clone());
    let blob = t.blob(&sum);
    t.far.trouble.held.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(&blob).unwrap());
        while t.far.calls.load(Ordering::SeqCst) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        t.cache.remove(&sum).unwrap();
        t.far.trouble.held.store(false, Ordering::SeqCst);
        assert_eq!(reader.join().unwrap(), bytes, "who has it open reads on");
    });
    t.settle();
    assert_eq!(read_all(&blob).unwrap(), bytes);
    assert!(t.cache.open(&sum, None).unwrap().is_none());
    drop(blob);
    assert_eq!((t.cache.cache_status().used, t.disk()), (0, 0));
}
