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

mod arriving;
mod damage;
mod filled;
mod lent;
mod room;
