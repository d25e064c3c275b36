//! What comes into the cache without a fetch: what is put, and files that are handed over.

use super::*;

#[test]
fn a_file_from_below_is_taken_over_by_its_name() {
    let t = over_far(Options { bytes_max: 150_000, ..OPTIONS });
    let bytes = noise(8, 100_000);
    let (sum, path) = (t.far.add(bytes.clone()), t.dir.path().join("queued"));
    std::fs::write(&path, &bytes).unwrap();
    assert!(t.cache.take_over(&sum, 100_000, &path).unwrap());
    assert!(!path.exists() && t.is_cached(&sum));
    std::fs::write(&path, &bytes).unwrap();
    assert!(!t.cache.take_over(&sum, 100_000, &path).unwrap(), "it is there already");
    let open = t.blob(&sum);
    let other = sum_of(b"other");
    assert!(!t.cache.take_over(&other, 100_000, &path).unwrap(), "no room");
    assert!(path.exists());
    drop(open);
    assert_eq!(t.cache.cache_status().used, t.disk() - 102_400, "the file of the test");
}

/// The memory of this host as the other file system, where it is one.
#[test]
fn a_file_on_another_file_system_is_copied_from_its_open_file() {
    let t = over_far(OPTIONS);
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let dev = |path: &Path| std::fs::metadata(path).unwrap().dev();
    if dev(elsewhere.path()) == dev(t.dir.path()) {
        return;
    }
    let hand_over = |i: u64| {
        let bytes = noise(i, 100_000);
        let (sum, path) = (t.far.add(bytes.clone()), elsewhere.path().join("queued"));
        std::fs::write(&path, &bytes).unwrap();
        assert!(!t.cache.take_over(&sum, 100_000, &path).unwrap());
        std::fs::remove_file(&path).unwrap();
        (sum, bytes)
    };
    let blobs: Vec<(Checksum, Vec<u8>)> = (0..6).map(hand_over).collect();
    let (removed, _) = hand_over(6);
    t.cache.remove(&removed).unwrap();
    while t.cache.core.fill_next() {}
    assert_eq!(t.far.calls.load(Ordering::SeqCst), 0, "nothing was fetched");
    for (sum, bytes) in &blobs {
        assert!(t.is_cached(sum));
        assert_eq!(bytes_of(&t.blob(sum)), *bytes);
    }
    let status = t.cache.cache_status();
    assert_eq!((status.entries, status.evictions, status.used), (6, 0, t.disk()));
}

/// Two who fill the cache with one blob at the same time: the second finds that the first has done it.
#[test]
fn a_place_for_what_stands_is_none() {
    let t = over_far(OPTIONS);
    let sum = t.far.add(noise(8, 100_000));
    read_all(&t.blob(&sum)).unwrap();
    t.settle();
    let places = filling::Place::take(&t.cache.core, &[(sum, 100_000)]);
    assert!(matches!(places[..], [None]));
    drop(places);
    let status = t.cache.cache_status();
    assert_eq!((status.entries, status.used), (1, t.disk()));
    assert!(t.cache.drop_blob(&sum).unwrap(), "nobody decides on it any more");
}

/// Blobs of at most `max` bytes are cached, by writes unless that is off; a file below is copied.
#[test]
fn what_is_put_is_cached_as_far_as_it_is_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("files");
    FileSystem::create(&at, ID, &file_system::Options::default()).unwrap();
    let files: Arc<dyn Provider> =
        Arc::new(FileSystem::open(&at, ID, &file_system::Options::default()).unwrap());
    for skip_during_upload in [true, false] {
        let scratch = tempfile::tempdir().unwrap();
        let options = Options { file_bytes_max: 1000, skip_during_upload, ..OPTIONS };
        let cache = open(&scratch, options, Arc::clone(&files));
        let (small, large) = (noise(u64::from(skip_during_upload), 1000), noise(3, 1001));
        let (small, large) = (laws::put(&cache, &small), laws::put(&cache, &large));
        while cache.core.fill_next() {}
        let is_cached = |sum: &Checksum| cache.locate(sum).unwrap().len() == 2;
        assert_eq!((is_cached(&small), is_cached(&large)), (!skip_during_upload, false));
        drop(cache.open(&small, None).unwrap());
        while cache.core.fill_next() {}
        assert!(is_cached(&small), "a read fills it in any case");
        let Some(Blob::Local(file)) = cache.open(&small, None).unwrap() else { panic!("no file") };
        assert_eq!(nix::sys::stat::fstat(&file).unwrap().st_nlink, 1);
        assert_eq!(nix::sys::stat::fstat(&file).unwrap().st_mode & 0o7777, 0o400);
    }
}

/// A writer came to the staging file before its copy was made.
#[test]
fn a_copy_of_what_was_written_since_is_dropped() {
    let t = over_far(OPTIONS);
    let sum = t.far.add(noise(1, 5000));
    let staging = tempfile::tempdir().unwrap();
    FileSystem::create(staging.path(), ID, &file_system::Options::default()).unwrap();
    let elsewhere = FileSystem::open(staging.path(), ID, &file_system::Options::default()).unwrap();
    let (_, offer) = staged(&elsewhere, &noise(2, 5000));
    t.cache.core.keep_put(&[(sum, offer)]);
    while t.cache.core.fill_next() {}
    let (altered, offer) = staged(&elsewhere, &noise(3, 700_000));
    t.far.add(noise(3, 700_000));
    t.far.trouble.altered_at.store(600_000, Ordering::SeqCst);
    t.cache.core.keep_put(&[(altered, offer)]);
    while t.cache.core.fill_next() {}
    assert!(t.is_cached(&sum) && !t.is_cached(&altered));
}
