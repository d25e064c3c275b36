//! Copies the blobs of one filestore into another, which is going to take its place.
//!
//! A pass goes through the blobs of the index in their order, beside a listing of the target: what stands there is left, the
//! rest is copied and compared with its checksum on the way. So a pass that was ended early is gone on with by the next, and
//! what is stored during a pass is found by the one after it. Nothing is removed from where it is copied from.

mod trusted;

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

pub use self::trusted::Trusted;

use crate::change::BlobRow;
use crate::checksum::Checksum;
use crate::failpoint;
use crate::filestore::{self, Error as StoreError, Filestore, Listed, Verdict};
use crate::index::{self, Index};
use crate::text;

/// Blobs of the index taken at a time.
const PAGE: usize = 1000;
/// Blobs copied at once: a far target answers each in its time, a near one forces several together.
const THREADS: usize = 8;
/// How often one blob is tried, as its file may become a writer's meanwhile, or a bad copy be healed.
const TRIES: usize = 4;
/// Failures told of one by one.
const TOLD_MAX: usize = 100;

/// What stands in the way of a pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index cannot be read.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// A store does not work; the blobs after this one would fail as well.
    #[error(transparent)]
    Filestore(#[from] filestore::Error),
    /// The threads cannot be started.
    #[error("the threads that copy cannot be started")]
    Threads(#[source] io::Error),
}

/// From where to where.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    /// Knows the blobs.
    pub index: &'a Index,
    /// Has them.
    pub from: &'a Filestore,
    /// Gets them.
    pub to: &'a Filestore,
    /// What of the target counts as it stands there, and the rest is compared first; `None`: all of it.
    pub trusted: Option<&'a Trusted>,
}

/// How far a pass is; others may look at it meanwhile.
#[derive(Debug, Default)]
pub struct Pass {
    /// Blobs looked at.
    pub seen: AtomicU64,
    /// Blobs copied.
    pub copied: AtomicU64,
    /// Bytes of them.
    pub bytes: AtomicU64,
    /// Blobs that could not be copied.
    pub failed: AtomicU64,
    told: Mutex<Vec<(Checksum, String)>>,
}

/// Asked between the blobs: false ends the pass early.
pub type GoOn<'a> = &'a (dyn Fn() -> bool + Sync);

impl Pass {
    /// Goes through all blobs; false when it was ended early.
    pub fn run(&self, way: Way<'_>, go_on: GoOn<'_>) -> Result<bool, Error> {
        let mut after = None;
        loop {
            let rows = way.index.blobs(after.as_ref(), PAGE)?;
            let Some(last) = rows.last().map(|row| row.checksum) else { return Ok(true) };
            let standing = standing(way.to, after.as_ref(), &last)?;
            self.copy_all(way, &rows, &standing, go_on)?;
            if !go_on() {
                return Ok(false);
            }
            after = Some(last);
        }
    }

    /// The blobs that could not be copied, as far as they are told, and why.
    pub fn failures(&self) -> Vec<(Checksum, String)> {
        self.told.lock().clone()
    }

    fn copy_all(
        &self,
        way: Way<'_>,
        rows: &[BlobRow],
        standing: &HashMap<Checksum, u64>,
        go_on: GoOn<'_>,
    ) -> Result<(), Error> {
        let (next, broken, failure) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
        let work = || {
            while let Some(row) = rows.get(next.fetch_add(1, Relaxed))
                && go_on()
                && !broken.load(Relaxed)
            {
                if let Err(error) = self.one(way, row, standing.get(&row.checksum).copied()) {
                    broken.store(true, Relaxed);
                    failure.lock().get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for number in 1..=THREADS.min(rows.len()) {
                let thread = std::thread::Builder::new().name(format!("rechain-{number}"));
                if let Err(error) = thread.spawn_scoped(scope, work) {
                    broken.store(true, Relaxed);
                    return Err(Error::Threads(error));
                }
            }
            Ok(())
        })?;
        failure.into_inner().map_or(Ok(()), Err)
    }

    /// Sees that the target has one blob. An error is of a store, not of the blob.
    fn one(&self, way: Way<'_>, row: &BlobRow, stands: Option<u64>) -> Result<(), Error> {
        self.seen.fetch_add(1, Relaxed);
        let sum = &row.checksum;
        if stands == Some(row.size) {
            let Some(trusted) = way.trusted else { return Ok(()) };
            if trusted.has(sum) {
                return Ok(());
            }
            if is_good(way.to, row)? {
                trusted.add(sum);
                return Ok(());
            }
        }
        match copy(way.from, way.to, row) {
            Ok(()) => {
                way.trusted.inspect(|trusted| trusted.add(sum));
                self.copied.fetch_add(1, Relaxed);
                self.bytes.fetch_add(row.size, Relaxed);
                // A death here leaves a blob in the target that the next pass finds.
                failpoint::hit("rechain.copied");
                Ok(())
            }
            // It may have been removed meanwhile: then nobody misses it.
            Err(_) if way.index.blob(sum)?.is_none_or(|row| row.refs == 0) => Ok(()),
            Err(error) if concerns_the_blob(&error) => {
                self.failed.fetch_add(1, Relaxed);
                let mut told = self.told.lock();
                if told.len() < TOLD_MAX {
                    told.push((*sum, text::chain(&error)));
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Sizes of the blobs that stand in a filestore, from behind `after` to `last`.
fn standing(
    store: &Filestore,
    after: Option<&Checksum>,
    last: &Checksum,
) -> filestore::Result<HashMap<Checksum, u64>> {
    let mut found = HashMap::new();
    store.list(after, &mut |listed| {
        let Listed::Blob { sum, size } = listed else { return ControlFlow::Continue(()) };
        if sum > *last {
            return ControlFlow::Break(());
        }
        found.insert(sum, size);
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Whether what stands under a blob's name is the blob.
fn is_good(store: &Filestore, row: &BlobRow) -> filestore::Result<bool> {
    let verdict = store.examine(&row.checksum, row.blake3.as_ref())?;
    Ok(matches!(verdict, Verdict::Good { size, .. } if size == row.size))
}

fn copy(from: &Filestore, to: &Filestore, row: &BlobRow) -> filestore::Result<()> {
    let sum = &row.checksum;
    for _ in 1..TRIES {
        let blob = from.open_blob_uncached(sum, row.size)?;
        match to.put_copy(sum, &blob) {
            Err(StoreError::Altered(_)) => {}
            done => return done,
        }
        if from.is_still(sum, &blob)? {
            // A provider with another copy makes it good again, or says that it cannot.
            from.mend(sum)?;
        }
    }
    to.put_copy(sum, &from.open_blob_uncached(sum, row.size)?)
}

/// Whether others may fare better than this blob.
fn concerns_the_blob(error: &StoreError) -> bool {
    match error {
        StoreError::Altered(_) | StoreError::Missing(_) | StoreError::WrongSize { .. } => true,
        StoreError::Io { doing, source, .. } => {
            doing.starts_with("read") || source.kind() == io::ErrorKind::NotFound
        }
        _ => false,
    }
}

/// Blobs of the index that a filestore lacks, or has with another size: how many, and the first of them.
pub fn lacking(index: &Index, store: &Filestore) -> Result<(u64, Option<Checksum>), Error> {
    let (mut after, mut lacking, mut first) = (None, 0, None);
    loop {
        let rows = index.blobs(after.as_ref(), PAGE)?;
        let Some(last) = rows.last().map(|row| row.checksum) else { return Ok((lacking, first)) };
        let standing = standing(store, after.as_ref(), &last)?;
        for row in rows.iter().filter(|row| standing.get(&row.checksum) != Some(&row.size)) {
            lacking += 1;
            first.get_or_insert(row.checksum);
        }
        after = Some(last);
    }
}

/// Removes the blobs of a filestore that the index does not know, and says how many there were. For one that was empty and
/// has nothing but what was copied into it; the caller knows that nothing is stored meanwhile.
pub fn remove_unknown(index: &Index, store: &Filestore) -> Result<u64, Error> {
    let mut all = Vec::new();
    store.list(None, &mut |listed| {
        if let Listed::Blob { sum, .. } = listed {
            all.push(sum);
        }
        ControlFlow::Continue(())
    })?;
    let mut removed = 0;
    for page in all.chunks(PAGE) {
        let mut unknown = Vec::new();
        for sum in page.iter().filter(|sum| **sum != Checksum::EMPTY) {
            if index.blob(sum)?.is_none() {
                unknown.push(*sum);
            }
        }
        let latches = store.latch_all(unknown);
        for latch in &latches {
            removed += u64::from(store.remove_blob(latch)?);
        }
        store.force_removed(&latches)?;
    }
    Ok(removed)
}

/// Whether a filestore has no blob but the empty one.
pub fn is_empty(store: &Filestore) -> filestore::Result<bool> {
    let mut empty = true;
    store.list(None, &mut |listed| match listed {
        Listed::Blob { sum, .. } if sum != Checksum::EMPTY => {
            empty = false;
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    })?;
    Ok(empty)
}
