//! The cache over providers with and without local files, and over one that is slow, fails or lies.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use super::super::Listed;
use super::super::blob::Remote;
use super::super::full_db::FullDb;
use super::super::laws::{self, bytes_of, fresh_name, hold_for, staged, sum_of};
use super::*;

const ID: [u8; 16] = [7; 16];
const OPTIONS: Options = Options {
    bytes_max: 5_000_000_000,
    file_bytes_max: u64::MAX,
    free_bytes_min: 0,
    skip_during_upload: false,
    handed_over: false,
};

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| byte()).collect()
}

/// Blobs that are somewhere else: each call can be held up, cut, failed, or answered with other bytes.
#[derive(Debug, Default)]
struct Far {
    blobs: Mutex<HashMap<Checksum, Arc<Vec<u8>>>>,
    /// How often each byte, in thousands, left: by offset.
    sent: Arc<AtomicU64>,
    calls: Arc<AtomicU64>,
    trouble: Arc<Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Calls wait while it is set.
    held: AtomicBool,
    /// Streams wait at each piece while it is set.
    stalled: AtomicBool,
    /// Reads from this offset on fail; 0: none.
    fails_from: AtomicU64,
    /// A byte at this offset is another one; 0: none.
    altered_at: AtomicU64,
    /// Streams end at their first piece, as those of an object that was replaced.
    replaced: AtomicBool,
    /// A byte too much ends each stream.
    longer: AtomicBool,
}

#[derive(Debug)]
struct FarBlob {
    bytes: Arc<Vec<u8>>,
    sent: Arc<AtomicU64>,
    calls: Arc<AtomicU64>,
    trouble: Arc<Trouble>,
}

impl Remote for FarBlob {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        while self.trouble.held.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        let n = buffer.len().min(self.bytes.len() - offset as usize);
        let fails_from = self.trouble.fails_from.load(Ordering::SeqCst);
        if fails_from > 0 && offset + n as u64 > fails_from {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        buffer[..n].copy_from_slice(&self.bytes[offset as usize..offset as usize + n]);
        let altered = self.trouble.altered_at.load(Ordering::SeqCst);
        if altered > 0 && (offset..offset + n as u64).contains(&altered) {
            buffer[(altered - offset) as usize] ^= 1;
        }
        self.sent.fetch_add(n as u64, Ordering::SeqCst);
        Ok(n)
    }

    fn stream(&self, from: u64, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let (mut at, mut piece) = (from, vec![0; 65_536]);
        while at < self.size() {
            while self.trouble.stalled.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            if self.trouble.replaced.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let n = self.read_at(&mut piece, at)?;
            each(&piece[..n])?;
            at += n as u64;
        }
        if self.trouble.longer.load(Ordering::SeqCst) { each(&[1]) } else { Ok(()) }
    }
}

impl Far {
    fn add(&self, bytes: Vec<u8>) -> Checksum {
        let sum = sum_of(&bytes);
        self.blobs.lock().insert(sum, Arc::new(bytes));
        sum
    }
}

impl Provider for Far {
    fn open(&self, sum: &Checksum, _size: Option<u64>) -> Result<Option<Blob>> {
        let (sent, calls) = (Arc::clone(&self.sent), Arc::clone(&self.calls));
        let far = |bytes: &Arc<Vec<u8>>| FarBlob {
            bytes: Arc::clone(bytes),
            sent,
            calls,
            trouble: Arc::clone(&self.trouble),
        };
        Ok(self.blobs.lock().get(sum).map(far).map(|blob| Blob::Remote(Box::new(blob))))
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        Ok(self.blobs.lock().get(sum).map(|bytes| bytes.len() as u64))
    }

    fn locate(&self, _sum: &Checksum) -> Result<Vec<Found>> {
        Ok(Vec::new())
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        Err(Error::NoProvider)
    }

    fn staging(&self, _name: StagingName) -> Result<Arc<StagingDir>> {
        Err(Error::NoProvider)
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        Vec::new()
    }

    fn put(&self, _batch: &[(Checksum, Offer)]) -> Result<()> {
        Err(Error::NoProvider)
    }

    fn put_copy(&self, _sum: &Checksum, _blob: &Blob) -> Result<()> {
        Err(Error::NoProvider)
    }

    fn detach(&self, sum: &Checksum, _name: StagingName, _file: FileId) -> Result<()> {
        Err(Error::NotLocal(*sum))
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        Ok(self.blobs.lock().remove(sum).is_some())
    }

    fn force_removed(&self, _sums: &[Checksum]) -> Result<()> {
        Ok(())
    }

    fn list(&self, _after: Option<&Checksum>, _visit: &mut Visit<'_>) -> Result<()> {
        Ok(())
    }

    fn status(&self) -> ProviderStatus {
        ProviderStatus {
            kind: "far",
            directory: None,
            file_system: None,
            reflink: false,
            space: None,
            health: Health::Up,
            owed: 0,
            cache: None,
            queue: None,
            children: Vec::new(),
        }
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    far: Arc<Far>,
    cache: CacheFs,
}

fn over_far(options: Options) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let far = Arc::new(Far::default());
    let cache = open(&dir, options, Arc::clone(&far) as Arc<dyn Provider>);
    Fixture { dir, far, cache }
}

fn open(dir: &tempfile::TempDir, options: Options, below: Arc<dyn Provider>) -> CacheFs {
    let dirs = [dir.path().join("one"), dir.path().join("two")];
    CacheFs::open(&dirs, ID, options, below).unwrap()
}

impl Fixture {
    fn blob(&self, sum: &Checksum) -> Blob {
        self.cache.open(sum, None).unwrap().unwrap()
    }

    fn is_cached(&self, sum: &Checksum) -> bool {
        matches!(self.blob(sum), Blob::Local(_))
    }

    /// Waits until nothing is fetched.
    fn settle(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.cache.core.fetches.load(Ordering::SeqCst) > 0 {
            assert!(Instant::now() < end, "a fetch does not end");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Bytes on the disk of everything that is a blob, or becomes or was one.
    fn disk(&self) -> u64 {
        let (mut found, mut open) = (0, vec![self.dir.path().to_owned()]);
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                match entry.metadata() {
                    Ok(there) if there.is_dir() => open.push(entry.path()),
                    Ok(there) if !name.starts_with("cache.db") && name != ".depotfs" => {
                        found += there.blocks() * 512;
                    }
                    _ => {}
                }
            }
        }
        found
    }
}

/// Reads all of a blob, 100 kB at a time.
fn read_all(blob: &Blob) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; blob.size() as usize];
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + 100_000).min(bytes.len());
        at += blob.read_at(&mut bytes[at..end], at as u64)?;
    }
    Ok(bytes)
}

#[test]
fn the_laws_hold_over_files() {
    hold_for(|| {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("files");
        FileSystem::create(&at, ID, &file_system::Options::default()).unwrap();
        let below = FileSystem::open(&at, ID, &file_system::Options::default()).unwrap();
        let cache = open(&dir, OPTIONS, Arc::new(below));
        (dir, Arc::new(cache) as Arc<dyn Provider>)
    });
}

#[test]
fn the_laws_hold_over_rows() {
    for skip_during_upload in [false, true] {
        hold_for(|| {
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().join("db");
            FullDb::create(&at, ID).unwrap();
            let below = FullDb::open(&at, ID).unwrap();
            let cache = open(&dir, Options { skip_during_upload, ..OPTIONS }, Arc::new(below));
            (dir, Arc::new(cache) as Arc<dyn Provider>)
        });
    }
}

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
