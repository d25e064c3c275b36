//! Descriptors of staging files and blobs that the daemon reads and writes itself, kept open within a bound.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use crate::change::StagingName;
use crate::checksum::Checksum;
use crate::filestore::{Blob, BlobFile, StagingReader, StagingWriter};
use crate::sys::content as sys;
use crate::sys::file::copy_range_over;
use crate::vfs::node::Source;

/// How many descriptors of each sort stay open.
const OPEN_MAX: usize = 1024;

/// A reader that nobody used for so long is closed: what is open cannot be evicted from a cache.
const IDLE: Duration = Duration::from_secs(5);

/// Something the daemon reads.
#[derive(Debug)]
pub enum Reader {
    /// A blob.
    Blob(Blob),
    /// A staging file.
    Staging(StagingReader),
}

impl Reader {
    /// Reads at `offset`; fewer bytes than asked only at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Reader::Blob(blob) => blob.read_at(buffer, offset),
            Reader::Staging(staging) => staging.read_at(buffer, offset),
        }
    }

    /// The blob, if it is one.
    pub fn blob(&self) -> Option<&Blob> {
        match self {
            Reader::Blob(blob) => Some(blob),
            Reader::Staging(_) => None,
        }
    }

    /// Whether it is no file of this host.
    pub fn is_remote(&self) -> bool {
        matches!(self, Reader::Blob(Blob::Remote(_)))
    }

    /// Whether its bytes come from far away and stay in a file of this host.
    pub fn is_kept(&self) -> bool {
        matches!(self, Reader::Blob(Blob::Remote(remote)) if remote.is_kept())
    }

    /// Copies a range over whatever a staging file has there.
    pub fn copy_over(&self, offset: u64, to: &StagingWriter, at: u64, length: u64) -> io::Result<()> {
        match self {
            Reader::Blob(blob) => blob.copy_over(offset, to, at, length),
            Reader::Staging(staging) => copy_range_over(staging, offset, to, at, length),
        }
    }

    /// Offset of the next data, or hole, at or after `offset`; `None` beyond the last. What is no local file has no holes.
    pub fn seek(&self, offset: u64, hole: bool) -> io::Result<Option<u64>> {
        match self {
            Reader::Blob(Blob::Local(file)) => sys::seek(file, offset, hole),
            Reader::Blob(blob) if offset >= blob.size() => Ok(None),
            Reader::Blob(blob) => Ok(Some(if hole { blob.size() } else { offset })),
            Reader::Staging(staging) => sys::seek(staging, offset, hole),
        }
    }
}

/// A reader that is kept open.
#[derive(Debug)]
struct Kept {
    reader: Arc<Reader>,
    used: Instant,
    /// It was opened for somebody who has not come yet.
    early: bool,
}

/// The cache.
#[derive(Debug)]
pub struct Descriptors {
    /// How often something was forgotten; moves under the lock of the readers.
    forgotten: AtomicU64,
    /// The latest used first.
    readers: Mutex<LruCache<Source, Kept>>,
    writers: Mutex<LruCache<StagingName, Arc<StagingWriter>>>,
    /// How often one of them was closed; moves under their lock.
    closed: AtomicU64,
}

impl Default for Descriptors {
    fn default() -> Descriptors {
        let bound = NonZeroUsize::new(OPEN_MAX).expect("not zero");
        Descriptors {
            readers: Mutex::new(LruCache::new(bound)),
            forgotten: AtomicU64::new(0),
            writers: Mutex::new(LruCache::new(bound)),
            closed: AtomicU64::new(0),
        }
    }
}

impl Descriptors {
    /// The reader of `source`, opened by `open` when it is not there.
    pub fn reader<E>(
        &self,
        source: Source,
        open: impl FnOnce() -> Result<Reader, E>,
    ) -> Result<Arc<Reader>, E> {
        self.known_or_kept(source, open, false)
    }

    /// The same for an open(2), which is told when the blob is lost or cut: it is opened anew, unless that was just done for it.
    pub fn reader_anew<E>(
        &self,
        source: Source,
        open: impl FnOnce() -> Result<Reader, E>,
    ) -> Result<Arc<Reader>, E> {
        let early = self.readers.lock().get_mut(&source).and_then(|kept| {
            kept.used = Instant::now();
            std::mem::take(&mut kept.early).then(|| kept.reader.clone())
        });
        match early.filter(|reader| reader.blob().and_then(Blob::local).is_some_and(BlobFile::is_intact)) {
            Some(reader) => Ok(reader),
            None => self.keep(source, open, false),
        }
    }

    /// The same for an open that is expected.
    pub fn reader_early<E>(
        &self,
        source: Source,
        open: impl FnOnce() -> Result<Reader, E>,
    ) -> Result<Arc<Reader>, E> {
        self.known_or_kept(source, open, true)
    }

    fn known_or_kept<E>(
        &self,
        source: Source,
        open: impl FnOnce() -> Result<Reader, E>,
        early: bool,
    ) -> Result<Arc<Reader>, E> {
        if let Some(kept) = self.readers.lock().get_mut(&source) {
            kept.used = Instant::now();
            kept.early &= early;
            return Ok(kept.reader.clone());
        }
        self.keep(source, open, early)
    }

    fn keep<E>(
        &self,
        source: Source,
        open: impl FnOnce() -> Result<Reader, E>,
        early: bool,
    ) -> Result<Arc<Reader>, E> {
        let before = self.forgotten.load(Ordering::Acquire);
        // Not locked: an opening may have to wait for a disk that is away.
        let reader = Arc::new(open()?);
        let mut readers = self.readers.lock();
        // What was forgotten meanwhile does not come back.
        let current = self.forgotten.load(Ordering::Acquire) == before;
        let kept = || Kept { reader: reader.clone(), used: Instant::now(), early };
        let other = current.then(|| readers.push(source, kept())).flatten();
        // A close may have to wait as well.
        drop(readers);
        drop(other);
        Ok(reader)
    }

    /// The writer of `name`, opened by `open` when it is not there.
    pub fn writer<E>(
        &self,
        name: StagingName,
        open: impl FnOnce() -> Result<StagingWriter, E>,
    ) -> Result<Arc<StagingWriter>, E> {
        if let Some(writer) = self.writers.lock().get(&name) {
            return Ok(writer.clone());
        }
        let before = self.closed.load(Ordering::Acquire);
        // Not locked, as above.
        let writer = Arc::new(open()?);
        let mut writers = self.writers.lock();
        if let Some(writer) = writers.get(&name) {
            return Ok(writer.clone());
        }
        let current = self.closed.load(Ordering::Acquire) == before;
        let oldest = current.then(|| writers.push(name, writer.clone())).flatten();
        // A close may have to wait as well.
        drop(writers);
        drop(oldest);
        Ok(writer)
    }

    /// Closes the writer of `name`, so that a lease can be had.
    pub fn close_writer(&self, name: StagingName) {
        let mut writers = self.writers.lock();
        self.closed.fetch_add(1, Ordering::AcqRel);
        let closed = writers.pop(&name);
        drop(writers);
        drop(closed);
    }

    /// Closes readers that nobody uses. A job does this.
    pub fn close_idle(&self) {
        loop {
            // Closed without the lock: the last reader of a blob may have work to do.
            let mut readers = self.readers.lock();
            let idle = readers.peek_lru().is_some_and(|(_, kept)| kept.used.elapsed() >= IDLE);
            let Some(reader) = idle.then(|| readers.pop_lru()).flatten() else { return };
            drop(readers);
            drop(reader);
        }
    }

    /// Closes this very reader of a blob: reading it failed, so whoever reads next opens the blob anew.
    pub fn forget_failed(&self, reader: &Arc<Reader>) {
        if let Reader::Staging(_) = **reader {
            return;
        }
        let mut readers = self.readers.lock();
        let found =
            readers.iter().find(|(_, kept)| Arc::ptr_eq(&kept.reader, reader)).map(|(source, _)| *source);
        let failed = found.and_then(|source| readers.pop(&source));
        drop(readers);
        drop(failed);
    }

    /// Closes what is open of a staging file.
    pub fn forget_staging(&self, name: StagingName) {
        self.forget(&Source::Staging(name));
        self.close_writer(name);
    }

    /// Closes what is open of a blob.
    pub fn forget_blob(&self, sum: &Checksum) {
        self.forget(&Source::Blob(*sum));
    }

    fn forget(&self, source: &Source) {
        let mut readers = self.readers.lock();
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        let forgotten = readers.pop(source);
        // The last reader of a blob may have work to do.
        drop(readers);
        drop(forgotten);
    }
}
