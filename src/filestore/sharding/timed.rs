//! A shard on a network or FUSE file system, which may not answer for a long time: no call waits longer than a deadline.
//!
//! Each call has a thread of its own, which is left to itself when its time is over; some such threads, and further calls
//! fail at once. On a local disk there is nothing of this: its calls are made directly.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::Builder;
use std::time::Duration;

use parking_lot::Mutex;

use super::super::blob::{Blob, BlobFile, FileId, Remote};
use super::super::error::{Doing, Error, Result};
use super::super::provider::{Found, Health, Offer, Provider, ProviderStatus, Visit};
use super::super::staging::StagingDir;
use crate::change::StagingName;
use crate::checksum::Checksum;

/// How long a look, or a piece of a blob, is waited for.
const LOOK_LONGEST: Duration = Duration::from_secs(5);
/// The same for what `status` and statfs(2) want to know.
const STATUS_LONGEST: Duration = Duration::from_millis(400);
/// The same for writing a batch, beside the time that its bytes take on a slow line.
const WRITE_LONGEST: Duration = Duration::from_secs(60);
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;
/// Calls that are waited for, or were.
const UNDER_WAY_MAX: usize = 64;

/// Does something on a thread of its own, for at most so long. `under_way` counts such threads by its references.
pub fn within<T: Send + 'static>(
    dir: &Path,
    under_way: &Arc<()>,
    longest: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let late = || Err(io::Error::from(io::ErrorKind::TimedOut)).doing("wait for an answer of", dir);
    if Arc::strong_count(under_way) > UNDER_WAY_MAX {
        return late();
    }
    let (tell, told) = mpsc::sync_channel(1);
    let counted = Arc::clone(under_way);
    let thread = Builder::new().name("shard".into()).spawn(move || {
        let done = work();
        drop(counted);
        // Nobody may wait for it any more.
        let _ = tell.send(done);
    });
    thread.doing("start a thread for", dir)?;
    match told.recv_timeout(longest) {
        Ok(done) => done,
        Err(mpsc::RecvTimeoutError::Timeout) => late(),
        Err(error @ mpsc::RecvTimeoutError::Disconnected) => {
            Err(io::Error::other(error)).doing("get an answer of", dir)
        }
    }
}

/// See above.
#[derive(Debug)]
pub struct Timed {
    dir: PathBuf,
    inner: Arc<dyn Provider>,
    under_way: Arc<()>,
    /// What it told last.
    status: Mutex<ProviderStatus>,
}

impl Timed {
    /// A provider of this directory, whose calls may hang.
    pub fn over(dir: PathBuf, inner: Arc<dyn Provider>) -> Timed {
        let status = Mutex::new(inner.status());
        Timed { dir, inner, under_way: Arc::default(), status }
    }

    fn ask<T: Send + 'static>(
        &self,
        longest: Duration,
        work: impl FnOnce(&dyn Provider) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        within(&self.dir, &self.under_way, longest, move || work(&*inner))
    }
}

impl Provider for Timed {
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        let sum = *sum;
        let blob = self.ask(LOOK_LONGEST, move |inner| inner.open(&sum, size))?;
        let Some(blob) = blob else { return Ok(None) };
        let (dir, under_way) = (self.dir.clone(), Arc::clone(&self.under_way));
        Ok(Some(Blob::Remote(Box::new(TimedBlob { dir, under_way, blob: Arc::new(blob) }))))
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        let sum = *sum;
        self.ask(LOOK_LONGEST, move |inner| inner.stat(&sum))
    }

    fn open_copy(&self, _sum: &Checksum, _file: FileId) -> Result<Option<BlobFile>> {
        // No file of it was given out.
        Ok(None)
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        let sum = *sum;
        self.ask(LOOK_LONGEST, move |inner| inner.locate(&sum))
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
        let bytes: u64 = batch.iter().map(|(_, offer)| offer.size).sum();
        let longest = WRITE_LONGEST + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
        let batch = batch.to_vec();
        self.ask(longest, move |inner| inner.put(&batch))
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.inner.put_copy(sum, blob)
    }

    fn prepare_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.inner.prepare_copy(sum, blob)
    }

    fn forget_copy(&self, sum: &Checksum) -> Result<()> {
        let sum = *sum;
        self.ask(LOOK_LONGEST, move |inner| inner.forget_copy(&sum))
    }

    fn detach(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<()> {
        let sum = *sum;
        self.ask(WRITE_LONGEST, move |inner| match inner.staging(name)?.holds(name)? {
            true => inner.detach(&sum, name, file),
            false => Err(Error::NotLocal(sum)),
        })
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        let sum = *sum;
        self.ask(LOOK_LONGEST, move |inner| inner.remove(&sum))
    }

    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        let sums = sums.to_vec();
        self.ask(WRITE_LONGEST, move |inner| inner.force_removed(&sums))
    }

    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        self.inner.list(after, visit)
    }

    fn status(&self) -> ProviderStatus {
        match self.ask(STATUS_LONGEST, |inner| Ok(inner.status())) {
            Ok(status) => {
                self.status.lock().clone_from(&status);
                status
            }
            Err(error) => ProviderStatus {
                health: Health::Failing(crate::text::chain(&error)),
                ..self.status.lock().clone()
            },
        }
    }
}

/// A blob whose every piece is waited for as long as anything else, and no longer.
#[derive(Debug)]
struct TimedBlob {
    dir: PathBuf,
    under_way: Arc<()>,
    blob: Arc<Blob>,
}

impl Remote for TimedBlob {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (blob, wanted) = (Arc::clone(&self.blob), buffer.len());
        let read = within(&self.dir, &self.under_way, LOOK_LONGEST, move || {
            let mut bytes = vec![0; wanted];
            let read = blob.read_at(&mut bytes, offset).map(|length| bytes.truncate(length));
            Ok(read.map(|()| bytes))
        });
        let bytes = read.map_err(io::Error::other)??;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::laws::{bytes_of, hold_for, open, put};
    use super::super::super::{FileSystem, Options};
    use super::*;

    fn made() -> (tempfile::TempDir, Arc<Timed>) {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("shard");
        FileSystem::create(&at, [7; 16], &Options::default()).unwrap();
        let inner = FileSystem::open(&at, [7; 16], &Options::default()).unwrap();
        let timed = Timed::over(at, Arc::new(inner));
        (dir, Arc::new(timed))
    }

    #[test]
    fn what_does_not_answer_is_given_up() {
        let (under_way, dir) = (Arc::new(()), Path::new("/mnt/a"));
        let (hold, held) = mpsc::channel::<()>();
        let short = Duration::from_millis(20);
        let late = within(dir, &under_way, short, move || Ok(held.recv().is_ok()));
        assert!(matches!(late, Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::TimedOut));
        assert_eq!(within(dir, &under_way, LOOK_LONGEST, || Ok(5)).unwrap(), 5);
        let many: Vec<Arc<()>> = (0..UNDER_WAY_MAX).map(|_| Arc::clone(&under_way)).collect();
        assert!(within(dir, &under_way, LOOK_LONGEST, || Ok(5)).is_err(), "too many hang already");
        drop((many, hold));
    }

    #[test]
    fn blobs_are_read_piece_by_piece() {
        let (_dir, timed) = made();
        let bytes: Vec<u8> = (0..700_000_u32).map(|i| i as u8).collect();
        let sum = put(&*timed, &bytes);
        let blob = open(&*timed, &sum).unwrap();
        assert!(blob.local().is_none() && bytes_of(&blob) == bytes);
    }

    #[test]
    fn the_laws_hold() {
        hold_for(|| {
            let (dir, timed) = made();
            (dir, timed as Arc<dyn Provider>)
        });
    }
}
