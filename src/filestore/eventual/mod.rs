//! Keeps accepted blobs in a queue on a local disk and uploads them later.
//!
//! A blob is safe against a crash of this host once `put` returns, and safe against the loss of its disk when it has left
//! the queue; `status` shows how old the oldest entry is. The queue is data and not a cache: nothing in it is evicted, and
//! the cache has a directory of its own.
//!
//! ```toml
//! chain = ["eventual", "retry", "s3-storage-v3"]
//! [eventual]
//! number-of-threads = 5
//! ```
//!
//! The entries are the files `ab/<sha1>` of the directory and nothing else says what they are, so that the queue after a
//! crash is what lies there. A removal is an entry too, `_delete/<sha1>`. Who may do what with a blob is decided by
//! [`table`]:
//!
//! ```text
//!            put                     a worker                 below has it         unused
//!  nothing ------> Waiting ---------------------> Uploading ---------------> Uploaded ----> Claimed ----> nothing
//!                    ^         it failed: later       |                          ^             | still used
//!                    +--------------------------------+                          +-------------+
//! ```
//!
//! - Whoever puts, opens, hands out or removes a blob *holds* it: nobody claims it meanwhile, and who holds waits for the
//!   end of a claim, which does nothing but local work.
//! - Removed in any state: the tombstone is made first and then the file goes; an upload under way ends before the
//!   tombstone's turn comes.
//! - Put again: the entry is durable first, and then the tombstone goes, durably, before the entry can be uploaded.
//!   Found together after a crash, the entry wins.
//! - A removal that a worker has begun below ends before an upload of the same blob begins.
//! - Bytes that are not those of their name are never passed on: the entry is set aside in `_bad/`.

mod files;
mod quiet;
mod table;
mod through;
mod worker;

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use serde::Serialize;

use self::files::Files;
use self::quiet::Quiet;
use self::table::{Awaited, Table};
use super::blob::{Blob, BlobFile, FileId};
use super::error::{Doing, Error, Result};
use super::file_system::{FileSystem, Options as FileOptions};
use super::provider::{Found, Health, Listed, Mended, Offer, Provider, ProviderStatus, Reach, Visit};
use super::staging::StagingDir;
use crate::change::StagingName;
use crate::checksum::Checksum;
use crate::failpoint;
use crate::text;
use crate::worker::Worker;

/// Its name in a chain.
const KIND: &str = "eventual";

/// Takes an uploaded blob's file over, away from its path; whether it did.
pub type Promote = Arc<dyn Fn(&Checksum, u64, &Path) -> Result<bool> + Send + Sync>;

/// How it is to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Uploads at the same time.
    pub threads: usize,
    /// How often the directory is looked through.
    pub dispatcher_interval: Duration,
    /// How long a close waits for its upload.
    pub timeout: Duration,
    /// How long the end of a mount waits for the queue.
    pub drain_timeout: Duration,
    /// Bytes that new files leave free on the disk.
    pub min_free_space: u64,
    /// Bytes in the queue beyond which new files are refused; 0: as many as there is room for.
    pub max_queue_size: u64,
}

/// How the queue does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueueStatus {
    /// Blobs to upload.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Age of the oldest in seconds.
    pub oldest_s: u64,
    /// Of them, those that are being uploaded.
    pub uploading: u64,
    /// Removals that the provider below has not been told of.
    pub removals: u64,
    /// Uploaded blobs whose files somebody still uses.
    pub in_use: u64,
    /// Failures since the last success.
    pub failures: u64,
    /// The last of these.
    pub last_error: Option<String>,
    /// Entries whose bytes are not those of their name.
    pub bad: Vec<String>,
}

impl QueueStatus {
    /// Whether there is nothing left that can be uploaded.
    pub fn is_empty(&self) -> bool {
        self.entries == 0 && self.removals == 0
    }
}

/// The provider `eventual`.
#[derive(Debug)]
pub struct Eventual {
    queue: Arc<Queue>,
    workers: Mutex<Vec<Worker>>,
}

/// What the workers share with it.
struct Queue {
    below: Arc<dyn Provider>,
    /// The entries' files, and the staging files.
    entries: FileSystem,
    staging: Arc<StagingDir>,
    files: Files,
    table: Table,
    options: RwLock<Options>,
    promote: OnceLock<Promote>,
    quiet: Quiet,
    /// Uploads that closes wait for.
    closes: Mutex<usize>,
    fewer_closes: Condvar,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("entries", &self.entries)
            .field("below", &self.below)
            .finish_non_exhaustive()
    }
}

impl Eventual {
    /// Makes the directory; durable on Ok.
    pub fn create(dir: &Path, depot_id: [u8; 16]) -> Result<()> {
        FileSystem::create(dir, depot_id, &FileOptions::default())
    }

    /// Opens the queue that lies in the directory; uploads begin with `start`.
    pub fn open(
        dir: &Path,
        depot_id: [u8; 16],
        below: Arc<dyn Provider>,
        options: Options,
    ) -> Result<Eventual> {
        let entries = FileSystem::open(dir, depot_id, &FileOptions::default())?;
        let staging = entries.stage()?;
        let files = Files::open(Arc::clone(&staging.volume))?;
        let queue = Queue {
            below,
            entries,
            staging,
            files,
            table: Table::default(),
            options: RwLock::new(options),
            promote: OnceLock::new(),
            quiet: Quiet::default(),
            closes: Mutex::default(),
            fewer_closes: Condvar::new(),
        };
        queue.recover()?;
        Ok(Eventual { queue: Arc::new(queue), workers: Mutex::default() })
    }

    /// Hands files of uploaded blobs over, where they would be removed.
    pub fn promote_with(&self, promote: Promote) {
        // Told once, when the chain is put together.
        let _ = self.queue.promote.set(promote);
    }

    /// Begins to upload.
    pub fn start(&self) -> io::Result<()> {
        let mut workers = self.workers.lock();
        self.queue.table.stop(false);
        for i in 0..self.queue.options().threads {
            let queue = Arc::clone(&self.queue);
            workers.push(Worker::start(&format!("upload-{i}"), move |signal| worker::work(&queue, signal))?);
        }
        let queue = Arc::clone(&self.queue);
        workers.push(Worker::start("upload-queue", move |signal| worker::dispatch(&queue, signal))?);
        Ok(())
    }

    /// Ends the uploads: what is under way has until `end`, and is uploaded once more otherwise.
    pub fn stop(&self, end: Instant) {
        self.queue.retire_uploaded();
        self.queue.table.stop(true);
        let workers = std::mem::take(&mut *self.workers.lock());
        workers.iter().for_each(Worker::stop);
        for worker in workers {
            // What stalls below is left to the end of the process, and is in the queue.
            let _ended = worker.join_until(end);
        }
    }

    /// What failed is tried again now, not after its pause.
    pub fn hurry(&self) {
        self.queue.table.hurry();
    }

    /// How the queue does.
    pub fn queue_status(&self) -> QueueStatus {
        self.queue.table.status()
    }

    /// Others hold from now on; there are as many workers as before.
    pub fn change(&self, options: Options) {
        let mut held = self.queue.options.write();
        *held = Options { threads: held.threads, ..options };
    }

    /// How long the end of a mount waits for the queue.
    pub fn drain_timeout(&self) -> Duration {
        self.queue.options().drain_timeout
    }

    /// Uploaded blobs whose files are still there: somebody has them open, perhaps the daemon itself.
    pub fn lingering(&self) -> Vec<Checksum> {
        self.queue.table.uploaded()
    }

    /// Opens the queue's file of a blob that is uploaded, as long as it stays because somebody uses it.
    pub fn open_uploaded(&self, sum: &Checksum) -> Result<Option<Blob>> {
        let _held = self.queue.table.hold([*sum]);
        if self.queue.table.is_uploaded(sum) { self.queue.entries.open(sum, None) } else { Ok(None) }
    }

    /// Opens what is below, whatever is in the queue.
    pub fn open_sent(&self, sum: &Checksum) -> Result<Option<Blob>> {
        self.queue.below.open(sum, None)
    }

    /// Below has good bytes of a blob again: what was set aside of it is of no use, and an entry that is altered goes soon.
    pub fn is_healed(&self, sum: &Checksum) -> Result<()> {
        self.queue.files.remove_bad(sum)?;
        self.queue.table.forget_bad(sum);
        self.queue.table.hurry();
        Ok(())
    }

    /// Takes this very file of an uploaded blob off the queue, whoever uses it; whether it did.
    pub fn drop_uploaded(&self, sum: &Checksum, file: FileId) -> Result<bool> {
        let queue = &self.queue;
        if queue.table.claim_uploaded(sum).is_none() {
            return Ok(false);
        }
        let is_it = queue.entries.open_copy(sum, file).map(|found| found.is_some());
        let gone = is_it.and_then(|is_it| if is_it { queue.entries.remove(sum) } else { Ok(false) });
        queue.table.end_uploaded(sum, matches!(gone, Ok(true)));
        gone
    }

    /// Waits until the provider below has a blob that was put; for `timeout` at most. That its bytes were altered in the
    /// queue and nobody has good ones is an error.
    pub fn await_upload(&self, sum: &Checksum) -> Result<()> {
        let error = match self.queue.table.await_upload(sum, Instant::now() + self.queue.options().timeout) {
            Awaited::Stored => return Ok(()),
            Awaited::TooLate => io::ErrorKind::TimedOut.into(),
            Awaited::Bad(why) => io::Error::new(io::ErrorKind::InvalidData, why),
        };
        Err(error).doing("upload", format!("blob {sum} before its close ends"))
    }

    /// Whether new files are to be written through the daemon, which sees when there is no room.
    pub fn must_write_through(&self) -> bool {
        let Options { min_free_space, max_queue_size, .. } = self.queue.options();
        let near = self.queue.free().is_some_and(|free| free < min_free_space.saturating_mul(2));
        near || max_queue_size > 0 && self.queue.table.bytes() > max_queue_size / 4 * 3
    }

    /// Refuses bytes for which there is no room, so that who writes them hears of it.
    pub fn make_room(&self, bytes: u64) -> Result<()> {
        let Options { min_free_space, max_queue_size, .. } = self.queue.options();
        let full = self.queue.free().is_some_and(|free| free < min_free_space.saturating_add(bytes));
        let too_many = max_queue_size > 0 && self.queue.table.bytes().saturating_add(bytes) > max_queue_size;
        if !full && !too_many {
            return Ok(());
        }
        let full = Err(io::Error::from(io::ErrorKind::StorageFull));
        full.doing("take more into the upload queue", self.queue.staging.volume.path())
    }

    /// Makes durable and known what was put.
    fn enter(&self, sums: &[(Checksum, u64)]) -> Result<()> {
        // A crash here leaves entries, which the next start finds.
        failpoint::hit("eventual.put");
        for (sum, _) in sums {
            self.queue.drop_tombstone(sum)?;
        }
        for (sum, size) in sums.iter().filter(|(sum, _)| *sum != Checksum::EMPTY) {
            // Whatever was altered is replaced by what was put.
            self.queue.files.remove_bad(sum)?;
            self.queue.table.put(sum, *size);
        }
        Ok(())
    }
}

impl Drop for Eventual {
    fn drop(&mut self) {
        self.queue.table.stop(true);
    }
}

impl Queue {
    fn options(&self) -> Options {
        *self.options.read()
    }

    /// Bytes that are free on the disk; `None` when it cannot be told. A disk is full within a moment, so it is asked each
    /// time, which costs less than two microseconds.
    fn free(&self) -> Option<u64> {
        self.staging.volume.space().ok()?.map(|space| space.available)
    }
}

impl Provider for Eventual {
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        let queue = &self.queue;
        let queued = {
            let _held = queue.table.hold([*sum]);
            queue.entries.open(sum, size)
        };
        let fits = |blob: &Blob| size.is_none_or(|size| blob.size() == size);
        match queued {
            Ok(Some(blob)) if fits(&blob) => Ok(Some(blob)),
            Ok(None) if queue.table.is_buried(sum) => Ok(None),
            Ok(None) => queue.below.open(sum, size),
            // Cut, or on a disk that does not read: the provider below may have it.
            Ok(Some(cut)) => Ok(queue.below.open(sum, None).ok().flatten().filter(fits).or(Some(cut))),
            Err(error) => match queue.below.open(sum, None) {
                Ok(Some(blob)) if !queue.table.is_buried(sum) => Ok(Some(blob)),
                _ => Err(error),
            },
        }
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        match self.queue.entries.stat(sum)? {
            Some(size) => Ok(Some(size)),
            None if self.queue.table.is_buried(sum) => Ok(None),
            None => self.queue.below.stat(sum),
        }
    }

    fn stat_at_hand(&self, sum: &Checksum) -> Result<Option<u64>> {
        self.queue.entries.stat(sum)
    }

    fn open_copy(&self, sum: &Checksum, file: FileId) -> Result<Option<BlobFile>> {
        match self.queue.entries.open_copy(sum, file)? {
            Some(copy) => Ok(Some(copy)),
            None if self.queue.table.is_buried(sum) => Ok(None),
            None => self.queue.below.open_copy(sum, file),
        }
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        let mut found = self.queue.entries.locate(sum)?;
        found.iter_mut().for_each(|found| found.kind = KIND);
        match self.queue.below.locate(sum) {
            _ if self.queue.table.is_buried(sum) => {}
            Ok(below) => found.extend(below),
            Err(error) if found.is_empty() => return Err(error),
            Err(_) => {}
        }
        Ok(found)
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        Ok(Arc::clone(&self.queue.staging))
    }

    fn staging(&self, name: StagingName) -> Result<Arc<StagingDir>> {
        if self.queue.staging.holds(name)? {
            return self.stage();
        }
        for dir in self.queue.below.staging_dirs() {
            if dir.holds(name)? {
                return Ok(dir);
            }
        }
        self.stage()
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        let mut all = vec![Arc::clone(&self.queue.staging)];
        all.extend(self.queue.below.staging_dirs());
        all
    }

    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        let sums: Vec<(Checksum, u64)> = batch.iter().map(|(sum, offer)| (*sum, offer.size)).collect();
        let _held = self.queue.table.hold(sums.iter().map(|(sum, _)| *sum));
        self.queue.entries.put(batch)?;
        self.enter(&sums)
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        let _held = self.queue.table.hold([*sum]);
        self.queue.entries.put_copy(sum, blob)?;
        self.enter(&[(*sum, blob.size())])
    }

    fn heal(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        let end = Instant::now() + self.queue.options().timeout;
        if !self.queue.table.begin_through(sum, end) {
            let late = Err(io::Error::from(io::ErrorKind::TimedOut));
            return late.doing("begin to heal", format!("blob {sum}"));
        }
        let stored = self.queue.store_through(sum, blob);
        // Nobody was promised anything by it: the blob may be removed like any other.
        self.queue.table.end_through(sum, false);
        stored.and_then(|()| self.is_healed(sum))
    }

    fn detach(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<()> {
        let queue = &self.queue;
        let _held = queue.table.hold([*sum]);
        let dir = self.staging(name)?;
        let staged = if dir.holds(name)? { Some(dir.stat(name)?) } else { None };
        let ours = queue.entries.open_copy(sum, file)?.is_some();
        match staged {
            // Whatever blob it was the file of once, it is none any more.
            Some(stat) if stat.links == 1 && !ours => dir.make_own(name),
            Some(_) if Arc::ptr_eq(&dir, &queue.staging) => queue.entries.detach(sum, name, file),
            _ if ours => queue.entries.detach(sum, name, file),
            _ => queue.below.detach(sum, name, file),
        }
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        let queue = &self.queue;
        let _held = queue.table.hold([*sum]);
        // What a close was promised is below stays there: its seal is about to ask for it.
        let keep = queue.table.was_put_through(sum);
        let gone = queue.table.is_buried(sum);
        let buried = if keep { Ok(()) } else { queue.files.bury(sum) };
        // A crash here leaves an entry and its tombstone, and the entry wins.
        failpoint::hit("eventual.tombstone");
        // Also when there was no room for the tombstone: this makes some.
        let queued = queue.entries.remove(sum)?;
        queue.files.remove_bad(sum)?;
        let ended = queue.table.removed(sum, !keep && buried.is_ok());
        if !ended && !keep {
            queue.files.unbury(&[*sum])?;
        }
        buried?;
        Ok(queued || !gone)
    }

    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        self.queue.files.force_tombstones()?;
        self.queue.entries.force_removed(sums)
    }

    /// What is queued when it begins, and what is below: a blob that goes from there to here meanwhile is in one of them.
    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        let queue = &self.queue;
        let (mut queued, mut ended) = (Vec::new(), false);
        queue.entries.list(after, &mut |listed| {
            match listed {
                Listed::Blob { sum, size } => queued.push((sum, size)),
                Listed::Stray(path) if queue.files.owns(path) => {}
                stray => ended = visit(stray).is_break(),
            }
            if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let mut queued = queued.into_iter().peekable();
        if ended {
            return Ok(());
        }
        queue.below.list(after, &mut |listed| {
            let Listed::Blob { sum, .. } = listed else { return visit(listed) };
            while let Some((sum, size)) = queued.next_if(|(first, _)| *first < sum) {
                if visit(Listed::Blob { sum, size }).is_break() {
                    ended = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match queued.next_if(|(first, _)| *first == sum) {
                Some((sum, size)) => visit(Listed::Blob { sum, size }),
                None if queue.table.is_buried(&sum) => ControlFlow::Continue(()),
                None => visit(listed),
            };
            ended = flow.is_break();
            flow
        })?;
        for (sum, size) in queued {
            if ended || visit(Listed::Blob { sum, size }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn mend(&self, sum: &Checksum) -> Result<Mended> {
        self.queue.below.mend(sum)
    }

    fn owed(&self, after: Option<&Checksum>, limit: usize) -> Vec<Checksum> {
        self.queue.below.owed(after, limit)
    }

    fn reach(&self) -> Reach {
        // Close may wait for an upload; nothing else that ends here does.
        Reach::FarReads
    }

    fn status(&self) -> ProviderStatus {
        let (own, below, queue) =
            (self.queue.entries.status(), self.queue.below.status(), self.queue_status());
        let health = match (&own.health, &queue.last_error, queue.bad.first()) {
            (Health::Failing(why), ..) => Health::Failing(why.clone()),
            (Health::Up, Some(why), _) => Health::Failing(format!("uploads fail: {why}")),
            (Health::Up, None, Some(bad)) => Health::Failing(format!("altered entries, among them {bad}")),
            (Health::Up, None, None) => Health::Up,
        };
        ProviderStatus {
            kind: KIND,
            space: below.space.or(own.space),
            health,
            queue: Some(queue),
            children: vec![below],
            ..own
        }
    }
}

fn text_of(error: &Error) -> String {
    text::chain(error)
}

#[cfg(test)]
mod tests;
