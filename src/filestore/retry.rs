//! Does again what failed for a reason that passes: no connection, no answer in time, a server that is overloaded.
//!
//! Everything else is handed on as it is. Pauses grow from attempt to attempt and differ a little, so that many who were
//! turned away together do not come back together. Whoever reads waits for pauses a short time only, and gets the error then.
//!
//! ```toml
//! chain = ["retry", "s3-storage-v3"]
//!
//! [retry]
//! max-trys = 5
//! interval = "5s"
//! ```

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::blob::{Blob, BlobFile, FileId, Remote};
use super::error::{Error, Result, is_transient};
use super::provider::{Found, Listed, Mended, Offer, Provider, ProviderStatus, Reach, Visit};
use super::staging::StagingDir;
use crate::change::StagingName;
use crate::checksum::Checksum;
use crate::text;

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The first pause of a reader, whose program waits: most of what passes has passed by then.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// How often, and how long after each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Attempts in all.
    pub max_trys: u64,
    /// The pause after the first one that fails; each further one is twice as long.
    pub interval: Duration,
    /// A reader begins no further attempt after so long.
    pub read_deadline: Duration,
}

/// The provider `retry`.
#[derive(Debug)]
pub struct Retry {
    below: Arc<dyn Provider>,
    options: RwLock<Options>,
}

impl Retry {
    /// One over a provider.
    pub fn over(below: Arc<dyn Provider>, options: Options) -> Retry {
        Retry { below, options: RwLock::new(options) }
    }

    /// Others hold from the next call on.
    pub fn change(&self, options: Options) {
        *self.options.write() = options;
    }

    fn options(&self) -> Options {
        *self.options.read()
    }

    /// Work that nobody waits for in a system call, or only a job.
    fn work<T>(&self, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        self.options().work().run(attempt, Error::is_transient)
    }

    /// A question of a reader.
    fn read<T>(&self, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        self.options().read().run(attempt, Error::is_transient)
    }
}

impl Options {
    fn work(self) -> Attempts {
        Attempts { left: self.max_trys, pause: self.interval, longest: PAUSE_MAX, end: None }
    }

    fn read(self) -> Attempts {
        let longest = self.interval.min(PAUSE_MAX);
        let end = Some(Instant::now() + self.read_deadline);
        Attempts { left: self.max_trys, pause: READ_PAUSE.min(longest), longest, end }
    }
}

/// The attempts at one piece of work.
struct Attempts {
    left: u64,
    pause: Duration,
    longest: Duration,
    end: Option<Instant>,
}

impl Attempts {
    fn run<T, E: std::error::Error>(
        mut self,
        mut attempt: impl FnMut() -> std::result::Result<T, E>,
        passes: impl Fn(&E) -> bool,
    ) -> std::result::Result<T, E> {
        loop {
            match attempt() {
                Err(error) if passes(&error) && self.wait(&error) => {}
                done => return done,
            }
        }
    }

    /// Waits for the time of the next attempt; `false`: there is none.
    fn wait(&mut self, error: &dyn std::error::Error) -> bool {
        self.left = self.left.saturating_sub(1);
        let pause = spread(self.pause.min(self.longest));
        if self.left == 0 || self.end.is_some_and(|end| Instant::now() + pause > end) {
            return false;
        }
        tracing::debug!("tried again in {pause:?}: {}", text::chain(error));
        std::thread::sleep(pause);
        self.pause = self.pause.saturating_mul(2).min(self.longest);
        true
    }
}

/// Something between three quarters and all of a pause.
fn spread(pause: Duration) -> Duration {
    let chance = (RandomState::new().hash_one(0) % 256) as u32;
    pause - pause / 4 * chance / 256
}

/// A blob that is asked for again.
#[derive(Debug)]
struct Patient {
    remote: Box<dyn Remote>,
    options: Options,
}

impl Remote for Patient {
    fn size(&self) -> u64 {
        self.remote.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.options.read().run(|| self.remote.read_at(buffer, offset), is_transient)
    }

    fn stream(&self, from: u64, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let (mut reached, mut attempts) = (from, self.options.read());
        loop {
            let (start, mut refused) = (reached, false);
            let outcome = self.remote.stream(start, &mut |piece| {
                let taken = each(piece);
                refused = taken.is_err();
                reached += piece.len() as u64;
                taken
            });
            let error = match outcome {
                // What is wrong with the receiver is not tried again.
                Err(error) if !refused && is_transient(&error) => error,
                done => return done,
            };
            if reached > start {
                attempts = self.options.read();
            }
            if !attempts.wait(&error) {
                return Err(error);
            }
        }
    }
}

impl Provider for Retry {
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        let options = self.options();
        let patient = |blob| match blob {
            Blob::Remote(remote) => Blob::Remote(Box::new(Patient { remote, options })),
            local => local,
        };
        Ok(self.read(|| self.below.open(sum, size))?.map(patient))
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        self.read(|| self.below.stat(sum))
    }

    fn stat_at_hand(&self, sum: &Checksum) -> Result<Option<u64>> {
        self.below.stat_at_hand(sum)
    }

    fn open_copy(&self, sum: &Checksum, file: FileId) -> Result<Option<BlobFile>> {
        self.read(|| self.below.open_copy(sum, file))
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        self.read(|| self.below.locate(sum))
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        self.below.stage()
    }

    fn staging(&self, name: StagingName) -> Result<Arc<StagingDir>> {
        self.below.staging(name)
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        self.below.staging_dirs()
    }

    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        self.work(|| self.below.put(batch))
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.work(|| self.below.put_copy(sum, blob))
    }

    fn heal(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.work(|| self.below.heal(sum, blob))
    }

    fn detach(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<()> {
        self.below.detach(sum, name, file)
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        // An attempt whose answer was lost may have removed it: then the next one finds nothing.
        let mut attempts = 0;
        self.work(|| {
            attempts += 1;
            self.below.remove(sum).map(|was_here| was_here || attempts > 1)
        })
    }

    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        self.work(|| self.below.force_removed(sums))
    }

    /// Goes on behind the last blob that was shown; a stray behind it may be shown again.
    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        let (mut last, mut attempts) = (after.copied(), self.options().work());
        loop {
            let start = last;
            let listed = self.below.list(start.as_ref(), &mut |listed| {
                if let Listed::Blob { sum, .. } = listed {
                    last = Some(sum);
                }
                visit(listed)
            });
            let error = match listed {
                Err(error) if error.is_transient() => error,
                done => return done,
            };
            if last > start {
                attempts = self.options().work();
            }
            if !attempts.wait(&error) {
                return Err(error);
            }
        }
    }

    fn mend(&self, sum: &Checksum) -> Result<Mended> {
        self.work(|| self.below.mend(sum))
    }

    fn owed(&self, after: Option<&Checksum>, limit: usize) -> Vec<Checksum> {
        self.below.owed(after, limit)
    }

    fn reach(&self) -> Reach {
        // Its pauses are long.
        self.below.reach().max(Reach::Far)
    }

    fn status(&self) -> ProviderStatus {
        let below = self.below.status();
        ProviderStatus {
            kind: "retry",
            directory: None,
            file_system: None,
            reflink: below.reflink,
            space: below.space,
            health: below.health.clone(),
            cache: None,
            queue: None,
            owed: below.owed,
            children: vec![below],
        }
    }
}

#[cfg(test)]
mod tests;
