//! The one trait of the storage chain, and the types that cross it.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::blob::{Blob, BlobFile, FileId};
use super::cache_fs::CacheStatus;
use super::error::Result;
use super::eventual::QueueStatus;
use super::staging::StagingDir;
use crate::change::StagingName;
use crate::checksum::Checksum;

/// A place that keeps blobs: a leaf, or a layer over other providers.
///
/// The laws that every provider keeps are the tests in `laws.rs`. The unit is a file, not a stream: local layers move
/// names, not bytes, and passthrough and reflink need a descriptor. Whoever calls `put`, `detach` or `remove` holds the
/// latch of the checksum.
pub trait Provider: fmt::Debug + Send + Sync + 'static {
    /// Opens a blob for reading; `None` when it is not here, which is never an error.
    ///
    /// `size`: what it should have, where that is known: of several copies one that has it is preferred.
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>>;

    /// Size of a blob; cheap, and never fetches.
    fn stat(&self, sum: &Checksum) -> Result<Option<u64>>;

    /// The same as far as it is known on this host: what is asked of a provider that is far away counts as absent.
    fn stat_at_hand(&self, sum: &Checksum) -> Result<Option<u64>> {
        self.stat(sum)
    }

    /// Opens this very file, if it is the blob or a copy of it.
    fn open_copy(&self, sum: &Checksum, file: FileId) -> Result<Option<BlobFile>> {
        let blob = self.open(sum, None)?.and_then(Blob::into_local);
        Ok(blob.filter(|blob| blob.file_id() == file))
    }

    /// Every place of this provider and of those below it that has the blob.
    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>>;

    /// Where a new staging file is best made: there `put` is a link.
    fn stage(&self) -> Result<Arc<StagingDir>>;

    /// The staging directory that holds `name`, or would.
    fn staging(&self, name: StagingName) -> Result<Arc<StagingDir>>;

    /// The same if it holds `name` now.
    fn holds_staging(&self, name: StagingName) -> Result<Option<Arc<StagingDir>>> {
        let dir = self.staging(name)?;
        Ok(dir.holds(name)?.then_some(dir))
    }

    /// Every staging directory of this provider and of those below it.
    fn staging_dirs(&self) -> Vec<Arc<StagingDir>>;

    /// Makes blobs of staging files, each atomically; the staging names stay. Those that lie in a staging directory of this
    /// provider are linked where that is possible, others are copied.
    ///
    /// On Ok all are durable here, with as few flushes as possible. A blob that stands with the right size stays as it
    /// is; one of another size is replaced. On an error every blob is as before, or whole.
    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()>;

    /// Makes a blob of the bytes of one that another provider has; durable on Ok. They are compared with the checksum on the
    /// way: what is not what its name says is [`Error::Altered`](super::Error::Altered) and is not passed on.
    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()>;

    /// Puts good bytes in the place of those that every layer below the copies on this host has: `put_copy`, which ends where the
    /// blob is stored and not in a queue on the way.
    fn heal(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.put_copy(sum, blob)
    }

    /// Does what takes long of a `put_copy` that follows, in which the caller holds the latch as here it does not. Nothing of
    /// it is seen but by `forget_copy`, after which it is gone. One at a time for a blob.
    fn prepare_copy(&self, _sum: &Checksum, _blob: &Blob) -> Result<()> {
        Ok(())
    }

    /// What was prepared is not wanted any more, if any is left.
    fn forget_copy(&self, _sum: &Checksum) -> Result<()> {
        Ok(())
    }

    /// Turns a blob's file, which is `file`, into the staging file `name`, and puts a durable copy of it under the blob's
    /// name.
    ///
    /// Descriptors of the blob opened before see from then on what is written to the staging file; the blob does not.
    /// On an error, and after a crash at any step, the blob stands with its bytes and nothing is staged but perhaps a
    /// name that nobody knows. A staging file of that name that is no blob's stays as it is; where there is none and no
    /// blob is a local file, the error is [`Error::NotLocal`](super::Error::NotLocal).
    fn detach(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<()>;

    /// Removes a blob; whether it was here, which a layer that removes later, or the rest of it later, takes for true. Open descriptors of it go on.
    fn remove(&self, sum: &Checksum) -> Result<bool>;

    /// Makes durable that these blobs were removed, with as few flushes as possible.
    fn force_removed(&self, sums: &[Checksum]) -> Result<()>;

    /// Shows every blob after `after` in order, until all are shown or the visitor breaks.
    ///
    /// A listing that could not be finished is an error, never a short list.
    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()>;

    /// Makes as many good copies of a blob as there should be, and no more. The caller holds the latch of the checksum.
    fn mend(&self, _sum: &Checksum) -> Result<Mended> {
        Ok(Mended::default())
    }

    /// Blobs after `after` that are known to need `mend`, in order, at most `limit`.
    fn owed(&self, _after: Option<&Checksum>, _limit: usize) -> Vec<Checksum> {
        Vec::new()
    }

    /// Whether its callers may have to wait for something that is not on this host.
    fn reach(&self) -> Reach {
        Reach::Here
    }

    /// How it does; answers at once.
    fn status(&self) -> ProviderStatus;
}

/// What a call of a provider may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Disks of this host.
    Here,
    /// To read, something that is not on this host; puts and removals end here.
    FarReads,
    /// Anything may wait for something that is not on this host, but what is done with staging files.
    Far,
    /// That as well: they are on a network file system.
    Network,
}

/// A place that has a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Type of the provider.
    pub kind: &'static str,
    /// The file that holds the blob, alone or among others.
    pub path: PathBuf,
}

/// A staging file that is ready to become a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    /// The staging file.
    pub name: StagingName,
    /// Its size when it was hashed.
    pub size: u64,
}

/// The same with the directory that it lies in, as a provider is given it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Where it is.
    pub from: Arc<StagingDir>,
    /// Its name there.
    pub name: StagingName,
    /// Its size when it was hashed.
    pub size: u64,
}

/// What `mend` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// Copies made, or made anew.
    pub copied: u64,
    /// Surplus copies removed.
    pub removed: u64,
}

/// What a listing shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed<'a> {
    /// A blob.
    Blob {
        /// Its checksum.
        sum: Checksum,
        /// Bytes its file has.
        size: u64,
    },
    /// Something that is no blob and does not belong here.
    Stray(&'a Path),
}

/// Takes what a listing shows; breaking ends the listing without an error.
pub type Visit<'a> = dyn FnMut(Listed<'_>) -> ControlFlow<()> + 'a;

/// How a provider does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProviderStatus {
    /// The provider's type, as it is called in a chain.
    pub kind: &'static str,
    /// Its directory.
    pub directory: Option<PathBuf>,
    /// Type of the directory's file system.
    pub file_system: Option<String>,
    /// Whether copies there can share blocks.
    pub reflink: bool,
    /// Room, where it can be told.
    pub space: Option<Space>,
    /// Whether it works.
    pub health: Health,
    /// Blobs that have fewer copies than they should.
    pub owed: u64,
    /// How full it is, if it is a cache.
    pub cache: Option<CacheStatus>,
    /// What waits to be uploaded.
    pub queue: Option<QueueStatus>,
    /// The providers below it.
    pub children: Vec<ProviderStatus>,
}

/// Room of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Space {
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes nobody uses.
    pub free: u64,
    /// Bytes this process may still use.
    pub available: u64,
    /// Inodes in all; 0 where they are not counted.
    pub inodes: u64,
    /// Inodes nobody uses.
    pub inodes_free: u64,
}

/// Whether a provider works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It does.
    Up,
    /// It does not, and why.
    Failing(String),
}
