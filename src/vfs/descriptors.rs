//! Descriptors of staging files and blobs that the daemon reads and writes itself, kept open within a bound.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use crate::change::StagingName;
use crate::checksum::Checksum;
use crate::filestore::{Blob, StagingReader, StagingWriter};
use crate::sys::content as sys;
use crate::sys::file::copy_range_over;
use crate::vfs::node::Source;

/// How many descriptors of each sort stay open.
const OPEN_MAX: usize = 1024;

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

    /// Whether reading it may wait for something that is not on this host.
    pub fn is_far(&self) -> bool {
        matches!(self, Reader::Blob(Blob::Remote(_)))
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

/// The cache.
#[derive(Debug)]
pub struct Descriptors {
    readers: Mutex<LruCache<Source, Arc<Reader>>>,
    /// How often something was forgotten; moves under the lock of the readers.
    forgotten: AtomicU64,
    writers: Mutex<LruCache<StagingName, Arc<StagingWriter>>>,
}

impl Default for Descriptors {
    fn default() -> Descriptors {
        let bound = NonZeroUsize::new(OPEN_MAX).expect("not zero");
        Descriptors {
            readers: Mutex::new(LruCache::new(bound)),
            forgotten: AtomicU64::new(0),
            writers: Mutex::new(LruCache::new(bound)),
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
        if let Some(reader) = self.readers.lock().get(&source) {
            return Ok(reader.clone());
        }
        let before = self.forgotten.load(Ordering::Acquire);
        // Not locked: an opening may have to wait for a disk that is away.
        let reader = Arc::new(open()?);
        let mut readers = self.readers.lock();
        // What was forgotten meanwhile does not come back.
        if self.forgotten.load(Ordering::Acquire) == before {
            readers.put(source, reader.clone());
        }
        Ok(reader)
    }

    /// The writer of `name`, opened by `open` when it is not there.
    pub fn writer<E>(
        &self,
        name: StagingName,
        open: impl FnOnce() -> Result<StagingWriter, E>,
    ) -> Result<Arc<StagingWriter>, E> {
        let mut writers = self.writers.lock();
        if let Some(writer) = writers.get(&name) {
            return Ok(writer.clone());
        }
        let writer = Arc::new(open()?);
        writers.put(name, writer.clone());
        Ok(writer)
    }

    /// Closes the writer of `name`, so that a lease can be had.
    pub fn close_writer(&self, name: StagingName) {
        self.writers.lock().pop(&name);
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
        readers.pop(source);
    }
}
