//! A directory on a network or FUSE file system, which may not answer for a long time: no call waits longer than a deadline.
//!
//! Each call has a thread of its own, which is left to itself when its time is over; beyond some such threads, further calls
//! wait for one of them to end. A change that was given up may still be made when the server answers again: until its thread has ended, no
//! other change is begun, so that no two of them work on one file. On a local disk there is nothing of this: its calls are
//! made directly.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak, mpsc};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::blob::{Blob, BlobFile, FileId, Remote};
use super::error::{Doing, Error, Result};
use super::provider::{Found, Health, Listed, Offer, Provider, ProviderStatus, Reach, Visit};
use super::staging::StagingDir;
use crate::change::StagingName;
use crate::checksum::Checksum;

/// How long a look, or a piece of a blob, is waited for.
const LOOK_LONGEST: Duration = Duration::from_secs(5);
/// The same for what `status` and statfs(2) want to know.
const STATUS_LONGEST: Duration = Duration::from_millis(400);
/// The same for writing a batch, beside the time that its bytes take on a slow line.
const WRITE_LONGEST: Duration = Duration::from_secs(60);
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;
/// Blobs listed by one call.
const PAGE: usize = 1000;
/// Calls that are waited for, or were.
const UNDER_WAY_MAX: usize = 64;
/// Bytes of a blob that are read by one call.
const PIECE: usize = 128 << 10;
/// Who waits for others to end looks this often.
const TURN_POLL: Duration = Duration::from_millis(1);

/// Does something on a thread of its own, for at most so long. `under_way` counts such threads by its references.
pub fn within<T: Send + 'static>(
    dir: &Path,
    under_way: &Arc<()>,
    longest: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (tell, told) = mpsc::sync_channel(1);
    let until = Instant::now() + longest;
    // Nobody may wait for it any more.
    on_thread(dir, under_way, until, work, move |done| drop(tell.send(done)))?;
    heard(dir, told.recv_timeout(until.saturating_duration_since(Instant::now())))?
}

/// The same for whoever takes stock.
pub fn within_a_moment<T: Send + 'static>(
    dir: &Path,
    under_way: &Arc<()>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    within(dir, under_way, STATUS_LONGEST, work)
}

/// Does something on a thread of its own and tells what came of it, unless too many such threads are under way until then.
fn on_thread<T: Send + 'static>(
    dir: &Path,
    under_way: &Arc<()>,
    until: Instant,
    work: impl FnOnce() -> T + Send + 'static,
    tell: impl FnOnce(T) + Send + 'static,
) -> Result<()> {
    while Arc::strong_count(under_way) > UNDER_WAY_MAX {
        if Instant::now() >= until {
            return Err(late(dir));
        }
        thread::sleep(TURN_POLL);
    }
    let counted = Arc::clone(under_way);
    let started = Builder::new().name("shard".into()).spawn(move || {
        let done = work();
        drop(counted);
        tell(done);
    });
    started.doing("start a thread for", dir).map(drop)
}

fn heard<T>(dir: &Path, told: std::result::Result<T, mpsc::RecvTimeoutError>) -> Result<T> {
    told.or_else(|error| match error {
        mpsc::RecvTimeoutError::Timeout => Err(late(dir)),
        mpsc::RecvTimeoutError::Disconnected => Err(io::Error::other(error)).doing("get an answer of", dir),
    })
}

fn late(dir: &Path) -> Error {
    let (doing, path) = ("wait for an answer of", dir.to_owned());
    Error::Io { doing, path, source: io::ErrorKind::TimedOut.into() }
}

/// Looks at staging files there, which are no provider's. After one that was not answered in time the next ones fail at once
/// for a while: there may be one for each file of a directory that is listed.
#[derive(Debug, Default)]
pub struct Looks {
    of: Mutex<HashMap<PathBuf, Looked>>,
}

/// How looks at one directory went.
#[derive(Debug, Default)]
struct Looked {
    under_way: Arc<()>,
    late: Option<Instant>,
}

impl Looks {
    /// A look at something in this directory.
    pub fn look<T: Send + 'static>(
        &self,
        dir: &Path,
        look: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let under_way = {
            let mut of = self.of.lock();
            let looked = of.entry(dir.to_owned()).or_default();
            if looked.late.is_some_and(|since| since.elapsed() < LOOK_LONGEST) {
                return Err(late(dir));
            }
            Arc::clone(&looked.under_way)
        };
        let looked = within(dir, &under_way, LOOK_LONGEST, look);
        let timed_out = |error: &Error| matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut);
        if looked.as_ref().is_err_and(timed_out) {
            self.of.lock().entry(dir.to_owned()).or_default().late = Some(Instant::now());
        }
        looked
    }
}

/// See above.
#[derive(Debug)]
pub struct Timed {
    dir: PathBuf,
    inner: Arc<dyn Provider>,
    under_way: Arc<()>,
    /// Changes that were given up, each as long as its thread works on it.
    given_up: Mutex<Vec<Weak<()>>>,
    /// How long a look is waited for, and a change beside the time for its bytes.
    look_longest: Duration,
    write_longest: Duration,
    /// What it told last.
    status: Mutex<ProviderStatus>,
}

impl Timed {
    /// A provider of this directory, whose calls may hang.
    pub fn over(dir: PathBuf, inner: Arc<dyn Provider>) -> Timed {
        let status = Mutex::new(inner.status());
        Timed {
            dir,
            inner,
            under_way: Arc::default(),
            given_up: Mutex::default(),
            look_longest: LOOK_LONGEST,
            write_longest: WRITE_LONGEST,
            status,
        }
    }

    /// The same with less patience.
    #[cfg(test)]
    pub fn with_patience(self, longest: Duration) -> Timed {
        Timed { look_longest: longest, write_longest: longest, ..self }
    }

    /// Asks for something that changes nothing.
    fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn Provider) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.ask(self.look_longest, look)
    }

    /// Asks for a change, which is noted as long as it goes on after it was given up.
    fn change<T: Send + 'static>(
        &self,
        longest: Duration,
        work: impl FnOnce(&dyn Provider) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let going_on = self.begin_change()?;
        let held = Arc::clone(&going_on);
        let done = self.ask(longest, move |inner| {
            let done = work(inner);
            drop(held);
            done
        });
        self.end_change(&going_on);
        done
    }

    fn begin_change(&self) -> Result<Arc<()>> {
        let mut given_up = self.given_up.lock();
        given_up.retain(|change| change.strong_count() > 0);
        match given_up.is_empty() {
            true => Ok(Arc::default()),
            false => Err(io::Error::from(io::ErrorKind::ResourceBusy)).doing(
                "change anything before the end of a change that did not answer in time in",
                &self.dir,
            ),
        }
    }

    fn end_change(&self, going_on: &Arc<()>) {
        if Arc::strong_count(going_on) > 1 {
            self.given_up.lock().push(Arc::downgrade(going_on));
        }
    }

    /// How long a change of so many bytes is waited for.
    fn longest_for(&self, bytes: u64) -> Duration {
        self.write_longest + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
    }

    /// A change that takes the bytes of a blob, which stays here and is read for it piece by piece.
    fn copy(
        &self,
        sum: &Checksum,
        blob: &Blob,
        copy: fn(&dyn Provider, &Checksum, &Blob) -> Result<()>,
    ) -> Result<()> {
        let until = Instant::now() + self.longest_for(blob.size());
        let going_on = self.begin_change()?;
        let (tell, told) = mpsc::channel();
        let handed = Blob::Remote(Box::new(Handed { size: blob.size(), tell: tell.clone() }));
        let (inner, sum, held) = (Arc::clone(&self.inner), *sum, Arc::clone(&going_on));
        let work = move || {
            let done = copy(&*inner, &sum, &handed);
            drop((handed, held));
            done
        };
        let done =
            on_thread(&self.dir, &self.under_way, until, work, move |done| drop(tell.send(Told::Done(done))))
                .and_then(|()| self.serve(blob, &told, until));
        self.end_change(&going_on);
        done
    }

    /// Reads for the other thread what it wants, until it is done.
    fn serve(&self, blob: &Blob, told: &mpsc::Receiver<Told>, until: Instant) -> Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match heard(&self.dir, told.recv_timeout(left))? {
                Told::Done(done) => return done,
                Told::Wants { offset, length, answer } => {
                    let mut bytes = vec![0; length];
                    let read = blob.read_at(&mut bytes, offset).map(|read| bytes.truncate(read));
                    // It waits for nothing else.
                    let _ = answer.send(read.map(|()| bytes));
                }
            }
        }
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
        let blob = self.look(move |inner| inner.open(&sum, size))?;
        let Some(blob) = blob else { return Ok(None) };
        let (dir, under_way) = (self.dir.clone(), Arc::clone(&self.under_way));
        Ok(Some(Blob::Remote(Box::new(TimedBlob { dir, under_way, blob: Arc::new(blob) }))))
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        let sum = *sum;
        self.look(move |inner| inner.stat(&sum))
    }

    fn open_copy(&self, _sum: &Checksum, _file: FileId) -> Result<Option<BlobFile>> {
        // No file of it was given out.
        Ok(None)
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        let sum = *sum;
        self.look(move |inner| inner.locate(&sum))
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        self.inner.stage()
    }

    fn staging(&self, name: StagingName) -> Result<Arc<StagingDir>> {
        self.inner.staging(name)
    }

    fn holds_staging(&self, name: StagingName) -> Result<Option<Arc<StagingDir>>> {
        self.look(move |inner| inner.holds_staging(name))
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        self.inner.staging_dirs()
    }

    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        let bytes: u64 = batch.iter().map(|(_, offer)| offer.size).sum();
        let batch = batch.to_vec();
        self.change(self.longest_for(bytes), move |inner| inner.put(&batch))
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.copy(sum, blob, |inner, sum, blob| inner.put_copy(sum, blob))
    }

    fn prepare_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.copy(sum, blob, |inner, sum, blob| inner.prepare_copy(sum, blob))
    }

    fn forget_copy(&self, sum: &Checksum) -> Result<()> {
        let sum = *sum;
        self.change(self.look_longest, move |inner| inner.forget_copy(&sum))
    }

    fn detach(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<()> {
        let sum = *sum;
        self.change(self.write_longest, move |inner| match inner.holds_staging(name)? {
            Some(_) => inner.detach(&sum, name, file),
            None => Err(Error::NotLocal(sum)),
        })
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        let sum = *sum;
        self.change(self.write_longest, move |inner| inner.remove(&sum))
    }

    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        let sums = sums.to_vec();
        self.ask(self.write_longest, move |inner| inner.force_removed(&sums))
    }

    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        let mut after = after.copied();
        loop {
            let shown = self.ask(self.write_longest, move |inner| page(inner, after.as_ref()))?;
            let mut blobs = 0;
            for one in &shown {
                let broken = match one {
                    Shown::Blob { sum, size } => {
                        (blobs, after) = (blobs + 1, Some(*sum));
                        visit(Listed::Blob { sum: *sum, size: *size }).is_break()
                    }
                    Shown::Stray(path) => visit(Listed::Stray(path)).is_break(),
                };
                if broken {
                    return Ok(());
                }
            }
            if blobs < PAGE {
                return Ok(());
            }
        }
    }

    fn reach(&self) -> Reach {
        Reach::Network
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

/// What a listing shows, to keep.
enum Shown {
    Blob { sum: Checksum, size: u64 },
    Stray(PathBuf),
}

/// The next part of a listing.
fn page(provider: &dyn Provider, after: Option<&Checksum>) -> Result<Vec<Shown>> {
    let (mut shown, mut blobs) = (Vec::new(), 0);
    provider.list(after, &mut |listed| {
        shown.push(match listed {
            Listed::Blob { sum, size } => {
                blobs += 1;
                Shown::Blob { sum, size }
            }
            Listed::Stray(path) => Shown::Stray(path.to_owned()),
        });
        if blobs == PAGE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(shown)
}

/// What the thread of a copy says to the one that has the blob.
enum Told {
    Wants { offset: u64, length: usize, answer: mpsc::SyncSender<io::Result<Vec<u8>>> },
    Done(Result<()>),
}

/// A blob of another thread, which reads it for us as long as it waits for the copy.
#[derive(Debug)]
struct Handed {
    size: u64,
    tell: mpsc::Sender<Told>,
}

impl Remote for Handed {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (answer, answered) = mpsc::sync_channel(1);
        let wants = Told::Wants { offset, length: buffer.len(), answer };
        self.tell.send(wants).map_err(|gone| io::Error::other(gone.to_string()))?;
        let bytes = answered.recv().map_err(io::Error::other)??;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
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
        let mut done = 0;
        for piece in buffer.chunks_mut(PIECE) {
            let (blob, wanted, at) = (Arc::clone(&self.blob), piece.len(), offset + done as u64);
            let read = within(&self.dir, &self.under_way, LOOK_LONGEST, move || {
                let mut bytes = vec![0; wanted];
                let read = blob.read_at(&mut bytes, at).map(|length| bytes.truncate(length));
                Ok(read.map(|()| bytes))
            });
            let bytes = read.map_err(io::Error::other)??;
            piece[..bytes.len()].copy_from_slice(&bytes);
            done += bytes.len();
            if bytes.len() < wanted {
                break;
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::laws::{bytes_of, hold_for, open, put};
    use super::super::{FileSystem, Options};
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
        assert!(within(dir, &under_way, short, || Ok(5)).is_err(), "too many hang already");
        thread::scope(|scope| {
            let waits = scope.spawn(|| within(dir, &under_way, LOOK_LONGEST, || Ok(5)));
            thread::sleep(short);
            drop(many);
            assert_eq!(waits.join().unwrap().unwrap(), 5, "one of them has ended");
        });
        drop(hold);
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
