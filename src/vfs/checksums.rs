//! Checksums as attributes, and the names that commands give to blobs.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use crate::change::{BlobRow, Change, Ino, Kind};
use crate::checksum::{Checksum, Published, hex};
use crate::filestore::{Blob, Reach};
use crate::text;
use crate::vfs::open::{RELEASE_MAX, RELEASE_POLL};
use crate::vfs::{Error, GoOn, Result, Vfs};

/// Up to this size SHA-256 and MD5 are computed while the caller waits; larger ones are queued.
const DIGEST_AT_ONCE_BYTES_MAX: u64 = 16 << 20;

/// SHA-256 and MD5 that wait to be computed, at most; the index knows the rest.
const UNDIGESTED_MAX: usize = 10_000;

/// Blobs whose digests are computed in one round.
const DIGEST_BATCH: usize = 16;

/// Blobs that cannot be read, remembered at most: each of them makes the look for others longer.
const UNDIGESTIBLE_MAX: usize = 1000;

/// After this time they are tried again.
const DIGEST_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// Blobs that are missing, altered or unreadable: the others must not wait for their digests.
#[derive(Debug, Default)]
pub struct Undigestible {
    sums: BTreeSet<Checksum>,
    since: Option<Instant>,
}

impl Undigestible {
    /// How many there are; none after a while.
    fn count(&mut self) -> usize {
        if self.since.is_some_and(|since| since.elapsed() >= DIGEST_AGAIN_AFTER) {
            *self = Undigestible::default();
        }
        self.sums.len()
    }

    fn add(&mut self, sum: Checksum) {
        if self.sums.len() < UNDIGESTIBLE_MAX {
            self.sums.insert(sum);
            self.since.get_or_insert_with(Instant::now);
        }
    }
}

impl Vfs {
    /// `user.depotfs.<which>` of a file; a Closed file is sealed first.
    pub(super) fn made_up_xattr(&self, ino: Ino, which: &[u8]) -> Result<Vec<u8>> {
        if !matches!(which, b"sha1" | b"sha256" | b"md5" | b"blake3") {
            return Err(Error::NoAttribute);
        }
        let Some(row) = self.sealed_blob(ino)? else { return Err(Error::NoAttribute) };
        let text = match which {
            b"sha1" => Some(row.checksum.to_string()),
            b"blake3" => row.blake3.map(|sum| hex(&sum)),
            _ => {
                let row = if row.sha256.is_some() && row.md5.is_some() {
                    row
                } else if row.size <= DIGEST_AT_ONCE_BYTES_MAX {
                    self.published_soon(&row)?
                } else {
                    self.queue_digests(row.checksum);
                    return Err(Error::NoAttribute);
                };
                if which == b"md5" { row.md5.map(|sum| hex(&sum)) } else { row.sha256.map(|sum| hex(&sum)) }
            }
        };
        text.map(String::into_bytes).ok_or(Error::NoAttribute)
    }

    /// The blob of a file that is sealed, or was Closed and now is, however long that took; `None` for one that somebody
    /// can write.
    pub fn sealed_blob(&self, ino: Ino) -> Result<Option<BlobRow>> {
        self.await_release(ino);
        self.seal_if_closed(ino)?;
        if self.nodes.existing(ino).is_some_and(|node| node.staged.is_some()) {
            return Ok(None);
        }
        let inode = self.inode(ino)?;
        let Some(sum) = inode.checksum.filter(|_| inode.kind == Kind::File) else { return Ok(None) };
        Ok(self.index.blob(&sum)?)
    }

    /// The kernel tells of a close after it has answered it: whoever closed a file and asks at once is not told that it is
    /// being written.
    fn await_release(&self, ino: Ino) {
        let until = Instant::now() + RELEASE_MAX;
        let open = || self.nodes.existing(ino).is_some_and(|node| node.staged.is_some() && node.writers > 0);
        while open() && Instant::now() < until {
            std::thread::sleep(RELEASE_POLL);
        }
    }

    /// All checksums of a blob, waiting for the computation.
    pub fn checksums(&self, row: BlobRow) -> Result<BlobRow> {
        if row.sha256.is_some() && row.md5.is_some() { Ok(row) } else { self.published_soon(&row) }
    }

    /// Computes and records SHA-256 and MD5 of a blob for somebody who waits.
    fn published_soon(&self, row: &BlobRow) -> Result<BlobRow> {
        let computed = self.publish_digests(row, &|blob| blob.published_digests_soon().map(Some))?;
        Ok(computed.unwrap_or_else(|| row.clone()))
    }

    /// Computes and records SHA-256 and MD5 of a blob; `None` when it was told to end before.
    fn publish_digests(
        &self,
        row: &BlobRow,
        compute: &dyn Fn(&Blob) -> io::Result<Option<Published>>,
    ) -> Result<Option<BlobRow>> {
        let blob = self.store.open_blob_uncached(&row.checksum, row.size)?;
        let computed = compute(&blob).map_err(Error::io(format!("read blob {}", row.checksum)))?;
        let Some((sha256, md5)) = computed else { return Ok(None) };
        // A blob's file can change hands and be written while it is read: then what was read is nobody's.
        if !self.store.is_still(&row.checksum, &blob)? {
            return self.publish_digests(row, compute);
        }
        if !self.options.read_only {
            match self.commit(&[Change::Digests { checksum: row.checksum, sha256, md5 }]) {
                // Collected meanwhile: nobody needs them.
                Ok(_) | Err(Error::Index(crate::index::Error::NotFound { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(BlobRow { sha256: Some(sha256), md5: Some(md5), ..row.clone() }))
    }

    pub(super) fn queue_digests(&self, sum: Checksum) {
        let mut queue = self.undigested.lock();
        if queue.len() < UNDIGESTED_MAX && !queue.contains(&sum) {
            queue.push_back(sum);
        }
    }

    /// Computes what was asked for first, else some of what is missing; false when nothing is. A job does this.
    pub fn publish_some_digests(&self, go_on: GoOn<'_>) -> Result<bool> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        let asked = self.undigested.lock().pop_front();
        let sums = match asked {
            Some(sum) => vec![sum],
            None => self.next_undigested()?,
        };
        let (mut published, mut failure) = (false, None);
        for sum in sums.iter().take_while(|_| go_on()) {
            match self.publish_one(sum, go_on) {
                Ok(done) => published |= done,
                // Without the index there is nothing to do.
                Err(error @ Error::Index(_)) => return Err(error),
                Err(error) => {
                    self.undigestible.lock().add(*sum);
                    // A missing or altered blob is told where it is opened.
                    match error {
                        Error::Store(error) => tracing::debug!("digests of {sum}: {}", text::chain(&error)),
                        error => drop(failure.get_or_insert(error)),
                    }
                }
            }
        }
        match failure {
            Some(error) if !published => Err(error),
            _ => Ok(published),
        }
    }

    fn publish_one(&self, sum: &Checksum, go_on: GoOn<'_>) -> Result<bool> {
        let Some(row) = self.index.blob(sum)? else { return Ok(false) };
        if row.sha256.is_some() && row.md5.is_some() {
            return Ok(false);
        }
        // What is far away is not fetched for this: they are computed when somebody asks for them.
        if self.store.reach() != Reach::Here && self.store.open_blob(sum, row.size)?.local().is_none() {
            self.undigestible.lock().add(*sum);
            return Ok(false);
        }
        Ok(self.publish_digests(&row, &|blob| blob.published_digests(go_on))?.is_some())
    }

    /// Some blobs without digests, past those that cannot be read.
    fn next_undigested(&self) -> Result<Vec<Checksum>> {
        let unreadable = self.undigestible.lock().count();
        let mut sums = self.index.undigested(unreadable + DIGEST_BATCH)?;
        let undigestible = self.undigestible.lock();
        sums.retain(|sum| !undigestible.sums.contains(sum));
        sums.truncate(DIGEST_BATCH);
        Ok(sums)
    }
}
