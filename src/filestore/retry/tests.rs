//! What is tried again, how often, and for how long.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::laws::{self, bytes_of, hold_for, put, staged};
use super::super::{Error, FileSystem, Options as FileOptions};
use super::*;

const QUICK: Options =
    Options { max_trys: 5, interval: Duration::from_millis(4), read_deadline: Duration::from_secs(5) };

/// Fails so many calls of each kind before it works; blobs are remote.
#[derive(Debug)]
struct Shaky {
    inner: FileSystem,
    fails: AtomicU64,
    transient: bool,
    calls: Arc<AtomicU64>,
}

impl Shaky {
    fn call(&self) -> Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match self.fails.load(Ordering::SeqCst) {
            0 => Ok(()),
            left => {
                self.fails.store(left - 1, Ordering::SeqCst);
                let source = "on purpose".into();
                Err(Error::Backend { doing: "try", what: "it".into(), transient: self.transient, source })
            }
        }
    }
}

/// A remote blob of which every second read fails after some pieces.
#[derive(Debug)]
struct Torn(Blob, AtomicU64);

impl Remote for Torn {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.1.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let n = buffer.len().min(1000);
        self.0.read_at(&mut buffer[..n], offset)
    }
}

impl Provider for Shaky {
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        self.call()?;
        let torn = |blob| Blob::Remote(Box::new(Torn(blob, AtomicU64::new(0))));
        Ok(self.inner.open(sum, size)?.map(torn))
    }
    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        self.call().and_then(|()| self.inner.stat(sum))
    }
    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        self.inner.locate(sum)
    }
    fn stage(&self) -> Result<Arc<StagingDir>> {
        self.inner.stage()
    }
    fn staging(&self, name: StagingName) -> Result<Arc<StagingDir>> {
        self.inner.staging(name)
    }
    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        self.inner.staging_dirs()
    }
    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        self.call().and_then(|()| self.inner.put(batch))
    }
    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.inner.put_copy(sum, blob)
    }
    fn detach(&self, sum: &Checksum, name: StagingName, _file: FileId) -> Result<()> {
        match self.inner.staging(name)?.holds(name)? {
            true => Ok(()),
            false => Err(Error::NotLocal(*sum)),
        }
    }
    fn remove(&self, sum: &Checksum) -> Result<bool> {
        // The answer is lost, and not the request.
        let removed = self.inner.remove(sum)?;
        self.call().map(|()| removed)
    }
    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        self.inner.force_removed(sums)
    }
    /// Two entries at a time, then an error.
    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        let (mut shown, mut more, mut broke) = (0, false, false);
        self.inner.list(after, &mut |listed| {
            shown += 1;
            if shown > 2 {
                more = true;
                return ControlFlow::Break(());
            }
            let went = visit(listed);
            broke = went.is_break();
            went
        })?;
        if !more || broke {
            return Ok(());
        }
        let source = "cut".into();
        Err(Error::Backend { doing: "list", what: "it".into(), transient: true, source })
    }
    fn status(&self) -> ProviderStatus {
        self.inner.status()
    }
}

fn shaky(fails: u64, transient: bool, options: Options) -> (tempfile::TempDir, Retry, Arc<AtomicU64>) {
    let dir = tempfile::tempdir().unwrap();
    FileSystem::create(dir.path(), [7; 16], &FileOptions::default()).unwrap();
    let inner = FileSystem::open(dir.path(), [7; 16], &FileOptions::default()).unwrap();
    let calls: Arc<AtomicU64> = Arc::default();
    let shaky = Shaky { inner, fails: fails.into(), transient, calls: Arc::clone(&calls) };
    (dir, Retry::over(Arc::new(shaky), options), calls)
}

#[test]
fn the_laws_hold() {
    hold_for(|| {
        let (dir, retry, _) = shaky(2, true, QUICK);
        (dir, Arc::new(retry))
    });
}

#[test]
fn what_passes_is_tried_again_and_nothing_else() {
    for (fails, transient, calls_made, good) in
        [(4, true, 5, true), (5, true, 5, false), (1, false, 1, false), (0, true, 1, true)]
    {
        let (_dir, retry, calls) = shaky(fails, transient, QUICK);
        let found = retry.stat(&Checksum::EMPTY);
        assert_eq!((found.is_ok(), calls.load(Ordering::SeqCst)), (good, calls_made), "{fails} {found:?}");
        let (_dir, retry, calls) = shaky(fails, transient, QUICK);
        let one = staged(&retry, b"bytes");
        assert_eq!((retry.put(&[one]).is_ok(), calls.load(Ordering::SeqCst)), (good, calls_made));
    }
}

#[test]
fn other_options_hold_from_the_next_call_on() {
    let (_dir, retry, calls) = shaky(100, true, QUICK);
    for max_trys in [2, 1, 7] {
        retry.change(Options { max_trys, ..QUICK });
        let before = calls.load(Ordering::SeqCst);
        retry.stat(&Checksum([1; 20])).unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst) - before, max_trys);
    }
}

#[test]
fn a_reader_waits_a_short_time_only() {
    let short =
        Options { interval: Duration::from_secs(60), read_deadline: Duration::from_millis(350), ..QUICK };
    let (_dir, retry, calls) = shaky(100, true, short);
    let start = Instant::now();
    retry.stat(&Checksum::EMPTY).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(20) && calls.load(Ordering::SeqCst) < 5);
}

#[test]
fn a_stream_goes_on_where_it_was_torn() {
    let (_dir, retry, _) = shaky(0, true, QUICK);
    let bytes: Vec<u8> = (0..30_000).map(|i| (i % 251) as u8).collect();
    let blob = laws::open(&retry, &put(&retry, &bytes)).unwrap();
    let Blob::Remote(remote) = &blob else { panic!("{blob:?}") };
    let mut all = Vec::new();
    let mut take = |piece: &[u8]| {
        all.extend_from_slice(piece);
        Ok(())
    };
    remote.stream(100, &mut take).unwrap();
    assert_eq!(all, bytes[100..]);
    let mut asked = 0;
    let refused = remote.stream(0, &mut |_| {
        asked += 1;
        Err(io::ErrorKind::TimedOut.into())
    });
    assert_eq!((refused.unwrap_err().kind(), asked), (io::ErrorKind::TimedOut, 1));
    let (_dir, retry, _) = shaky(0, true, QUICK);
    let blob = laws::open(&retry, &put(&retry, b"some bytes")).unwrap();
    assert_eq!(bytes_of(&blob), b"some bytes");
}

#[test]
fn a_removal_whose_answer_was_lost_counts() {
    let (_dir, retry, _) = shaky(0, true, QUICK);
    let sum = put(&retry, b"bytes");
    assert!(retry.remove(&sum).unwrap() && !retry.remove(&sum).unwrap());
}

#[test]
fn pauses_differ_and_stay_within_bounds() {
    let pauses: Vec<Duration> = (0..50).map(|_| spread(Duration::from_secs(4))).collect();
    assert!(pauses.iter().all(|p| (Duration::from_secs(3)..=Duration::from_secs(4)).contains(p)));
    assert!(pauses.windows(2).any(|two| two[0] != two[1]));
}
