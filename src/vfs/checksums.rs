//! Checksums as attributes, and the names that commands give to blobs.

use std::time::Instant;

use crate::change::{BlobRow, Change, Ino, Kind};
use crate::checksum::{Checksum, hex};
use crate::text;
use crate::vfs::open::{RELEASE_MAX, RELEASE_POLL};
use crate::vfs::{Error, Result, Vfs};

/// Up to this size SHA-256 and MD5 are computed while the caller waits; larger ones are queued.
const DIGEST_AT_ONCE_BYTES_MAX: u64 = 16 << 20;

/// SHA-256 and MD5 that wait to be computed, at most; the index knows the rest.
const UNDIGESTED_MAX: usize = 10_000;

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
                    self.publish_digests(&row, true)?
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
        if row.sha256.is_some() && row.md5.is_some() { Ok(row) } else { self.publish_digests(&row, true) }
    }

    /// Computes and records SHA-256 and MD5 of a blob, which somebody waits for or not.
    fn publish_digests(&self, row: &BlobRow, waited_for: bool) -> Result<BlobRow> {
        let blob = self.store.open_blob(&row.checksum, row.size)?;
        let what = Error::io(format!("read blob {}", row.checksum));
        let computed = if waited_for { blob.published_digests_soon() } else { blob.published_digests() };
        let (sha256, md5) = computed.map_err(what)?;
        // A blob's file can change hands and be written while it is read: then what was read is nobody's.
        if self.store.open_blob(&row.checksum, row.size)?.file_ino() != blob.file_ino() {
            return self.publish_digests(row, waited_for);
        }
        if !self.options.read_only {
            match self.commit(&[Change::Digests { checksum: row.checksum, sha256, md5 }]) {
                // Collected meanwhile: nobody needs them.
                Ok(_) | Err(Error::Index(crate::index::Error::NotFound { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(BlobRow { sha256: Some(sha256), md5: Some(md5), ..row.clone() })
    }

    pub(super) fn queue_digests(&self, sum: Checksum) {
        let mut queue = self.undigested.lock();
        if queue.len() < UNDIGESTED_MAX && !queue.contains(&sum) {
            queue.push_back(sum);
        }
    }

    /// Computes what was asked for first, else some of what is missing; false when nothing is. A job does this.
    pub fn publish_some_digests(&self) -> Result<bool> {
        let asked = self.undigested.lock().pop_front();
        let sums = match asked {
            Some(sum) => vec![sum],
            None => self.index.undigested(16)?,
        };
        let mut published = false;
        for sum in &sums {
            let Some(row) = self.index.blob(sum)? else { continue };
            if row.sha256.is_some() && row.md5.is_some() {
                continue;
            }
            match self.publish_digests(&row, false) {
                Ok(_) => published = true,
                // A missing or altered blob is told where it is opened; the others must not wait for it.
                Err(Error::Store(error)) => tracing::debug!("digests of {sum}: {}", text::chain(&error)),
                Err(error) => return Err(error),
            }
        }
        Ok(published)
    }
}
