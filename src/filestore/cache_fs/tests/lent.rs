//! Cached files that become a writer's.

use super::*;

/// A cached file that becomes a writer's: readers of the blob get its bytes from below.
#[test]
fn readers_of_a_lent_file_read_below() {
    let t = over_far(OPTIONS);
    let bytes = noise(1, 300_000);
    let sum = t.far.add(bytes.clone());
    let early = t.blob(&sum);
    assert_eq!(read_all(&early).unwrap(), bytes);
    t.settle();
    let Blob::Local(file) = t.blob(&sum) else { panic!("not cached") };
    let name = fresh_name();
    t.cache.detach(&sum, name, file.file_id()).unwrap();
    let dir = t.cache.staging(name).unwrap();
    dir.open_writer(name).unwrap().write_at(b"NEW", 0).unwrap();
    assert_eq!(read_all(&early).unwrap(), bytes);
    assert!(t.blob(&sum).local().is_none());
    assert_eq!(t.cache.cache_status().used, t.disk(), "it counts as long as it is there");
    dir.discard(name).unwrap();
    drop(file);
    t.cache.core.reap_left();
    assert_eq!((t.cache.cache_status().used, t.disk()), (0, 0));
}

/// A copy that was dropped while the kernel serves it to somebody can still become a writer's.
#[test]
fn a_dropped_file_that_is_open_is_lent() {
    let t = over_far(OPTIONS);
    let sum = t.far.add(noise(1, 300_000));
    read_all(&t.blob(&sum)).unwrap();
    t.settle();
    let open = t.blob(&sum);
    let (file, name) = (open.file_id().unwrap(), fresh_name());
    assert!(t.cache.drop_copy(&sum, file).unwrap());
    t.cache.detach(&sum, name, file).unwrap();
    let dir = t.cache.staging(name).unwrap();
    assert_eq!(dir.stat(name).unwrap().file_id, file);
    dir.open_writer(name).unwrap().write_at(b"NEW", 0).unwrap();
    assert_eq!(&read_all(&open).unwrap()[..3], b"NEW");
    assert_eq!(t.cache.cache_status().used, t.disk());
}

/// Whoever fetches a blob anew is not disturbed by a writer who gets an older file of it.
#[test]
fn a_fetch_goes_on_when_another_file_is_lent() {
    let t = over_far(OPTIONS);
    let bytes = noise(1, 3_000_000);
    let sum = t.far.add(bytes.clone());
    read_all(&t.blob(&sum)).unwrap();
    t.settle();
    let open = t.blob(&sum);
    let file = open.file_id().unwrap();
    assert!(t.cache.drop_copy(&sum, file).unwrap());
    t.far.trouble.stalled.store(true, Ordering::SeqCst);
    let reader = t.blob(&sum);
    thread::scope(|scope| {
        let read = scope.spawn(|| read_all(&reader));
        while t.cache.cache_status().arriving == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        t.cache.detach(&sum, fresh_name(), file).unwrap();
        t.far.trouble.stalled.store(false, Ordering::SeqCst);
        assert_eq!(read.join().unwrap().unwrap(), bytes);
    });
    t.settle();
    let calls = t.far.calls.load(Ordering::SeqCst);
    assert_eq!(read_all(&reader).unwrap(), bytes);
    assert_eq!(t.far.calls.load(Ordering::SeqCst), calls, "it reads the file that was fetched");
}
