//! Blobs by checksum, and the staging files they are made of.
//!
//! [`Filestore`] is what callers use. It owns what holds whatever the chain is: the latches, the check of sizes, the
//! verification. The mechanisms are [`Provider`]s, one file each. Nothing here knows paths of the tree.
//!
//! A file's bytes are written into a staging file, which `put` gives the name of its checksum; the staging name stays
//! until the caller has made durable that nobody needs it (`discard`).

mod alterations;
mod aside;
mod blob;
mod cache_fs;
mod chain;
mod error;
pub mod eventual;
mod faulty;
mod file_system;
mod full_db;
mod latch;
#[cfg(test)]
pub(crate) mod laws;
pub mod object_store;
mod provider;
pub mod retry;
pub mod sharding;
mod staging;
mod through;
mod timed;
mod verify;
mod volume;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use alterations::Alterations;
pub use aside::{Aside, KEPT_FOR};
pub use blob::{Blob, BlobFile, FileId, Remote};
pub use cache_fs::{Advice, CacheFs, CacheStatus, Options as CacheOptions, Warmed};
pub use chain::{Layer, Parts, ShardOptions, open as open_chain};
pub use error::{Error, Result};
pub use eventual::{Eventual, QueueStatus};
pub use faulty::{Call, Faulty};
pub use file_system::{FileSystem, Options};
pub use full_db::FullDb;
pub use latch::Latch;
pub use provider::{
    Found, Health, Listed, Mended, Offer, Provider, ProviderStatus, Reach, Space, Staged, Visit,
};
pub use sharding::Wanted;
pub use staging::{StagingDir, StagingReader, StagingStat, StagingWriter, lacks_staging};
#[cfg(test)]
pub use timed::Timed;
pub use verify::Verdict;

use crate::change::{MountId, StagingName};
use crate::checksum::{Checksum, Digest};
use error::Doing;
use latch::Latches;
use through::{TURN_WAIT_MAX, Turns};
use timed::Looks;

/// How often somebody who waits for the queue looks at it.
const DRAIN_POLL: Duration = Duration::from_millis(5);

/// The blob side of a depot.
#[derive(Debug)]
pub struct Filestore {
    provider: Arc<dyn Provider>,
    parts: Parts,
    alterations: Arc<Alterations>,
    latches: Latches,
    /// One at a time mends a blob; taken before the latch of it.
    mending: Latches,
    /// Counts listings of staging directories that may hang.
    listing: Arc<()>,
    /// Looks at staging files that may.
    looks: Looks,
    /// Closes that store their files where no queue bounds them; taken before the latch.
    turns: Turns,
}

impl Filestore {
    /// Makes a filestore of one local directory for a depot, holding the empty blob; durable on Ok.
    pub fn create(dir: &Path, depot_id: [u8; 16]) -> Result<()> {
        FileSystem::create(dir, depot_id, &Options::default())
    }

    /// Opens the filestore that `create` made; another depot's is refused.
    pub fn open(dir: &Path, depot_id: [u8; 16], options: &Options) -> Result<Filestore> {
        Ok(Filestore::over(Arc::new(FileSystem::open(dir, depot_id, options)?)))
    }

    /// A filestore over any chain of providers.
    pub fn over(provider: Arc<dyn Provider>) -> Filestore {
        Filestore::of_parts(provider, Parts::default())
    }

    /// The same, of a chain whose layers offer more than the trait.
    pub fn of_parts(provider: Arc<dyn Provider>, parts: Parts) -> Filestore {
        if let (Some(queue), Some(cache)) = (&parts.queue, &parts.cache) {
            let cache = Arc::clone(cache);
            queue.promote_with(Arc::new(move |sum, size, from| cache.take_over(sum, size, from)));
        }
        let alterations = parts.cache.as_ref().map_or_else(Arc::default, |cache| cache.alterations());
        Filestore {
            alterations,
            provider,
            parts,
            latches: Latches::default(),
            mending: Latches::default(),
            listing: Arc::default(),
            looks: Looks::default(),
            turns: Turns::default(),
        }
    }

    /// Starts the workers of the chain, those that upload only where that is wanted. Without them everything works, and what
    /// they do waits.
    pub fn start(&self, uploads: bool) -> io::Result<()> {
        self.parts.cache.as_ref().map_or(Ok(()), |cache| cache.start())?;
        let queue = self.parts.queue.as_ref().filter(|_| uploads);
        queue.map_or(Ok(()), |queue| queue.start())
    }

    /// Stops them after their current step; what is under way has until `end`.
    pub fn stop(&self, end: Instant) {
        self.parts.queue.iter().for_each(|queue| queue.stop(end));
        self.parts.cache.iter().for_each(|cache| cache.stop());
    }

    /// The cache, if the chain has one.
    pub fn cache(&self) -> Option<&CacheFs> {
        self.parts.cache.as_deref()
    }

    /// The chain itself, for its laws.
    #[cfg(test)]
    pub(crate) fn provider(&self) -> Arc<dyn Provider> {
        Arc::clone(&self.provider)
    }

    /// Which blobs came with bytes that are not theirs: what was read of them before is in doubt.
    pub fn alterations(&self) -> &Alterations {
        &self.alterations
    }

    /// Drops a blob from the cache unless somebody has it open; whether it did.
    pub fn drop_cached(&self, sum: &Checksum) -> Result<bool> {
        self.cache().map_or(Ok(false), |cache| cache.drop_blob(sum))
    }

    /// Opens a blob as it is stored, to look at it: what is cached if it is, and nothing is cached by that.
    fn open_stored(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        match self.cache() {
            Some(cache) => cache.open_stored(sum, size),
            None => self.provider.open(sum, size),
        }
    }

    /// What waits to be uploaded; `None` where blobs are stored at once.
    pub fn queue(&self) -> Option<QueueStatus> {
        self.parts.queue.as_ref().map(|queue| queue.queue_status())
    }

    /// Has what failed to be uploaded tried again now.
    pub fn hurry(&self) {
        self.parts.queue.iter().for_each(|queue| queue.hurry());
    }

    /// Waits until the queue is empty, as long as `go_on` says; what is left in it.
    pub fn drain(&self, go_on: &mut dyn FnMut(&QueueStatus) -> bool) -> Option<QueueStatus> {
        let queue = self.parts.queue.as_ref()?;
        queue.hurry();
        loop {
            let status = queue.queue_status();
            if status.is_empty() || !go_on(&status) {
                return Some(status);
            }
            std::thread::sleep(DRAIN_POLL);
        }
    }

    /// How long the end of a mount waits for that.
    pub fn drain_timeout(&self) -> Duration {
        self.parts.queue.as_ref().map_or(Duration::ZERO, |queue| queue.drain_timeout())
    }

    /// Blobs whose local files are not needed any more, as soon as nobody has them open.
    pub fn lingering(&self) -> Vec<Checksum> {
        self.parts.queue.as_ref().map(|queue| queue.lingering()).unwrap_or_default()
    }

    /// Whether new files are to be written through the daemon, because it has to see when there is no room.
    pub fn must_write_through(&self) -> bool {
        self.parts.queue.as_ref().is_some_and(|queue| queue.must_write_through())
    }

    /// Refuses bytes for which there is no room.
    pub fn make_room(&self, bytes: u64) -> Result<()> {
        self.parts.queue.as_ref().map_or(Ok(()), |queue| queue.make_room(bytes))
    }

    /// Waits until a blob is where the loss of this host's disk does not reach it.
    pub fn await_upload(&self, sum: &Checksum) -> Result<()> {
        self.parts.queue.as_ref().map_or(Ok(()), |queue| queue.await_upload(sum))
    }

    /// Stores the bytes of a staging file where the loss of this host's disk does not reach them, under the name that they
    /// are going to have. They are compared with it on the way: what is being written meanwhile is [`Error::Altered`].
    pub fn put_through(&self, sum: &Checksum, staged: Staged) -> Result<()> {
        let offer = Offer { from: self.provider.staging(staged.name)?, name: staged.name, size: staged.size };
        match &self.parts.queue {
            Some(queue) => queue.put_through(sum, &offer),
            None => {
                let Some(_turn) = self.turns.take(offer.size, Instant::now() + TURN_WAIT_MAX) else {
                    let late = Err(io::Error::from(io::ErrorKind::TimedOut));
                    return late.doing("begin to store", format!("blob {sum} before its close ends"));
                };
                let _latch = self.latches.take(*sum);
                self.provider.put(&[(*sum, offer)])
            }
        }
    }

    /// As `open_blob`, for work that nobody waits for: the cache is not filled by it.
    pub fn open_blob_uncached(&self, sum: &Checksum, size: u64) -> Result<Blob> {
        sized(sum, size, self.open_stored(sum, Some(size))?)
    }

    /// Puts back a blob that was lost or spoilt in the bucket, from an earlier version there; `None`: there is no bucket.
    pub fn bring_back(&self, sum: &Checksum, size: u64) -> Result<Option<bool>> {
        let _latch = self.latches.take(*sum);
        self.parts.objects.as_ref().map(|objects| objects.bring_back(sum, size)).transpose()
    }

    /// Makes an empty staging file that did not exist.
    pub fn stage(&self, name: StagingName) -> Result<StagingWriter> {
        let first = self.provider.stage()?;
        match first.create(name) {
            // Another directory may be offered, now that this one has failed.
            Err(error @ Error::Io { .. }) => match self.provider.stage()? {
                second if !Arc::ptr_eq(&first, &second) => second.create(name),
                _ => Err(error),
            },
            made => made,
        }
    }

    /// Makes a staging file of the first `limit` bytes of a blob, sharing blocks where possible and keeping holes;
    /// nothing is left of it on failure.
    pub fn stage_from(
        &self,
        name: StagingName,
        sum: &Checksum,
        size: u64,
        limit: u64,
    ) -> Result<StagingWriter> {
        // A blob that was cut must not become the next version of a file.
        self.stage_of(name, &self.open_blob(sum, size)?, limit)
    }

    /// The same of a blob that is open.
    pub fn stage_of(&self, name: StagingName, blob: &Blob, limit: u64) -> Result<StagingWriter> {
        self.provider.stage()?.create_from(name, blob, limit)
    }

    /// Opens a staging file for reading.
    pub fn open_staging(&self, name: StagingName) -> Result<StagingReader> {
        self.provider.staging(name)?.open(name)
    }

    /// Opens a staging file for writing; one whose bytes are a blob's too is [`Error::Linked`].
    pub fn open_staging_writer(&self, name: StagingName) -> Result<StagingWriter> {
        self.provider.staging(name)?.open_writer(name)
    }

    /// What stat(2) knows of a staging file.
    pub fn stat_staging(&self, name: StagingName) -> Result<StagingStat> {
        self.provider.staging(name)?.stat(name)
    }

    /// The same for whoever only looks at the file: he does not wait for a disk that hangs for longer than for anything else.
    pub fn look_at_staging(&self, name: StagingName) -> Result<StagingStat> {
        let dir = self.provider.staging(name)?;
        match dir.is_on_network() {
            true => self.looks.look(&dir.path(), move || dir.stat(name)),
            false => dir.stat(name),
        }
    }

    /// Makes bytes and names of staging files durable. Many at once cost one flush, and so do single ones that several
    /// threads ask for at the same time; one alone does not wait for others.
    pub fn force_staging(&self, names: &[StagingName]) -> Result<()> {
        if let [name] = names {
            return self.provider.staging(*name)?.force_one(*name);
        }
        let mut dirs: Vec<(Arc<StagingDir>, Vec<StagingName>)> = Vec::new();
        for name in names {
            let dir = self.provider.staging(*name)?;
            match dirs.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &dir)) {
                Some((_, names)) => names.push(*name),
                None => dirs.push((dir, vec![*name])),
            }
        }
        dirs.iter().try_for_each(|(dir, names)| dir.force(names))
    }

    /// The boot and the mount of the disk that a staging file is on.
    pub fn mount_of(&self, name: StagingName) -> Result<MountId> {
        Ok(self.provider.staging(name)?.mount_id())
    }

    /// The same, of the disk that a new one would be on.
    pub fn mount_of_new(&self) -> Result<MountId> {
        Ok(self.provider.stage()?.mount_id())
    }

    /// Removes a staging file that no durable state names any more; one that is gone already is no error.
    pub fn discard(&self, name: StagingName) -> Result<()> {
        self.provider.staging(name)?.discard(name)
    }

    /// Moves a staging file out of the way, with a text beside it that says why; durable, and where it is now.
    pub fn set_aside(&self, name: StagingName, why: &str) -> Result<PathBuf> {
        self.provider.staging(name)?.set_aside(name, why)
    }

    /// Everything that was set aside.
    pub fn aside(&self) -> Result<Vec<Aside>> {
        let mut all = Vec::new();
        for dir in self.provider.staging_dirs() {
            // Whoever takes stock does not wait for a server that does not answer.
            all.extend(match dir.is_on_network() {
                true => timed::within_a_moment(&dir.path(), &self.listing, move || dir.aside())?,
                false => dir.aside()?,
            });
        }
        Ok(all)
    }

    /// Deletes what was set aside longer ago than `age` (ordinarily [`KEPT_FOR`]), and tells what it was.
    pub fn expire_aside(&self, age: Duration) -> Result<Vec<Aside>> {
        self.every_staging_dir(|dir| dir.expire_aside(age))
    }

    /// Every staging file there is.
    pub fn staging_names(&self) -> Result<Vec<StagingName>> {
        self.every_staging_dir(StagingDir::names)
    }

    fn every_staging_dir<T>(&self, each: impl Fn(&StagingDir) -> Result<Vec<T>>) -> Result<Vec<T>> {
        let mut all = Vec::new();
        for dir in self.provider.staging_dirs() {
            all.extend(each(&dir)?);
        }
        Ok(all)
    }

    /// Waits for the exclusive right to decide on one blob.
    pub fn latch(&self, sum: &Checksum) -> Latch<'_> {
        self.latches.take(*sum)
    }

    /// The same, unless somebody holds it for longer than `longest`.
    pub fn try_latch(&self, sum: &Checksum, longest: Duration) -> Option<Latch<'_>> {
        self.latches.try_take(*sum, longest)
    }

    /// Latches of a batch, each checksum once, taken in the one order that cannot deadlock.
    pub fn latch_all(&self, sums: impl IntoIterator<Item = Checksum>) -> Vec<Latch<'_>> {
        let sums: BTreeSet<Checksum> = sums.into_iter().collect();
        sums.into_iter().map(|sum| self.latches.take(sum)).collect()
    }

    /// Opens a blob that the index knows with this size; absent or of another size is an error here.
    pub fn open_blob(&self, sum: &Checksum, size: u64) -> Result<Blob> {
        sized(sum, size, self.provider.open(sum, Some(size))?)
    }

    /// Whether what was opened is still the blob: its file may have become that of a writer since.
    pub fn is_still(&self, sum: &Checksum, blob: &Blob) -> Result<bool> {
        blob.file_id().map_or(Ok(true), |file| Ok(self.open_copy(sum, file)?.is_some()))
    }

    /// Opens this very file, if it is the blob or a copy of it.
    pub fn open_copy(&self, sum: &Checksum, file: FileId) -> Result<Option<BlobFile>> {
        self.provider.open_copy(sum, file)
    }

    /// Every place that has the blob.
    pub fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        self.provider.locate(sum)
    }

    /// Size of a blob as it is stored.
    pub fn stat_blob(&self, sum: &Checksum) -> Result<Option<u64>> {
        self.provider.stat(sum)
    }

    /// The same of what this host knows by itself: no provider that is far away is asked.
    pub fn stat_at_hand(&self, sum: &Checksum) -> Result<Option<u64>> {
        self.provider.stat_at_hand(sum)
    }

    /// Makes blobs of staging files; durable on Ok. The caller holds the latches of all and discards the staging names
    /// once its commit is durable.
    ///
    /// A blob of the right size stays as it is (telling a duplicate from a collision is the caller's, who knows the
    /// BLAKE3), one of another size is replaced. On an error no new blob stands, and the same put can be tried again.
    pub fn put(&self, batch: &[(Checksum, Staged)]) -> Result<()> {
        let offer = |(sum, staged): &(Checksum, Staged)| -> Result<(Checksum, Offer)> {
            let Staged { name, size } = *staged;
            Ok((*sum, Offer { from: self.provider.staging(name)?, name, size }))
        };
        self.provider.put(&batch.iter().map(offer).collect::<Result<Vec<_>>>()?)
    }

    /// Makes a blob of the bytes of one that another filestore has; durable on Ok. They are compared with the checksum on
    /// the way.
    pub fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        let _latch = self.latches.take(*sum);
        self.provider.put_copy(sum, blob)
    }

    /// Turns a blob's file, which is `file`, into the staging file `name`, leaving a durable copy as the blob, so that those who have the
    /// blob's file open see what is written from now on.
    pub fn detach(&self, latch: &Latch<'_>, name: StagingName, file: FileId) -> Result<()> {
        self.provider.detach(latch.checksum(), name, file)
    }

    /// Removes a blob that no durable state names; whether it was there.
    pub fn remove_blob(&self, latch: &Latch<'_>) -> Result<bool> {
        self.provider.remove(latch.checksum())
    }

    /// Makes durable that these blobs were removed; many at once cost one flush.
    pub fn force_removed(&self, latches: &[Latch<'_>]) -> Result<()> {
        let sums: Vec<Checksum> = latches.iter().map(|latch| *latch.checksum()).collect();
        self.provider.force_removed(&sums)
    }

    /// Shows every blob after `after` in order, and what else lies among them. A listing cut short by anything but the
    /// visitor is an error.
    pub fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        self.provider.list(after, visit)
    }

    /// Makes as many good copies of a blob as there should be, and no more. The latch is held for a moment at the end.
    pub fn mend(&self, sum: &Checksum) -> Result<Mended> {
        let _one = self.mending.take(*sum);
        let mut latch = None;
        let mut hold = || {
            latch.get_or_insert_with(|| self.latches.take(*sum));
        };
        match &self.parts.sharding {
            Some(sharding) => sharding.mend_holding(sum, &mut hold),
            None => {
                hold();
                self.provider.mend(sum)
            }
        }
    }

    /// Whether a blob was removed and copies of it may be left where that could not be done.
    pub fn owes_removal(&self, sum: &Checksum) -> bool {
        self.parts.sharding.as_ref().is_some_and(|sharding| sharding.owes_removal(sum))
    }

    /// Removes such copies of a blob that no durable state names.
    pub fn remove_left(&self, latch: &Latch<'_>) -> Result<()> {
        self.parts.sharding.as_ref().map_or(Ok(()), |sharding| sharding.remove_left(latch.checksum()))
    }

    /// Whether `mend` would find something to do, as far as the sizes of copies tell.
    pub fn needs_mending(&self, sum: &Checksum, size: u64) -> bool {
        self.parts.sharding.as_ref().is_some_and(|sharding| sharding.needs_mending(sum, size))
    }

    /// Whether blobs may lie elsewhere than the configuration wants since it was changed.
    pub fn is_balance_due(&self) -> bool {
        self.parts.sharding.as_ref().is_some_and(|sharding| sharding.is_balance_due())
    }

    /// The arrangement of shards that a balance which begins now is for; `None` where there are none.
    pub fn arrangement(&self) -> Option<String> {
        self.parts.sharding.as_ref().map(|sharding| sharding.arrangement())
    }

    /// Remembers that all blobs are where they should be with this arrangement.
    pub fn set_balanced(&self, arrangement: &str) -> Result<()> {
        self.parts.sharding.as_ref().map_or(Ok(()), |sharding| sharding.set_balanced(arrangement))
    }

    /// From now on the options of `chain`, as far as its layers can have others while they work; what could not be done, and
    /// why.
    pub fn change(&self, chain: &[Layer], depot_id: [u8; 16], wanted: &Wanted<'_>) -> Result<Vec<String>> {
        self.parts.change(chain, depot_id, wanted)
    }

    /// Blobs after `after` that are known to need `mend`, in order, at most `limit`.
    pub fn owed(&self, after: Option<&Checksum>, limit: usize) -> Vec<Checksum> {
        self.provider.owed(after, limit)
    }

    /// SHA-1 and BLAKE3 of a blob's bytes as they are stored; `None` when it is absent.
    pub fn digest_blob(&self, sum: &Checksum) -> Result<Option<Digest>> {
        let Some(blob) = self.open_stored(sum, None)? else { return Ok(None) };
        blob.digest(|| true).doing("read all of blob", sum.to_string())
    }

    /// What its callers may have to wait for.
    pub fn reach(&self) -> Reach {
        self.provider.reach()
    }

    /// How the chain does.
    pub fn status(&self) -> ProviderStatus {
        self.provider.status()
    }

    /// Room for new blobs, where it can be told.
    pub fn free_space(&self) -> Option<Space> {
        self.provider.status().space
    }
}

/// The blob, if it is there and has the size it should have.
fn sized(sum: &Checksum, size: u64, blob: Option<Blob>) -> Result<Blob> {
    match blob {
        None => Err(Error::Missing(*sum)),
        Some(blob) if blob.size() != size => {
            Err(Error::WrongSize { sum: *sum, expected: size, found: blob.size() })
        }
        Some(blob) => Ok(blob),
    }
}

#[cfg(test)]
mod tests;
