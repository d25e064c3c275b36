//! The read-only descriptor of a blob.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::OFlag;

use super::error::Result;
use super::volume::Volume;
use crate::checksum::{self, Digest, Published};
use crate::failpoint;

/// An open blob that cannot be written through.
///
/// The only constructor opens read-only, and no other type turns into this one, so whatever takes a `BlobFile` (a
/// passthrough registration, say) never holds a descriptor that can change a blob.
#[derive(Debug)]
pub struct BlobFile {
    file: File,
    size: u64,
    ino: u64,
}

impl BlobFile {
    /// Opens the regular file at `path` of the volume; `None` when there is none.
    pub(super) fn open(volume: &Volume, path: &str) -> Result<Option<BlobFile>> {
        let opened = volume.open_file(path, OFlag::O_RDONLY)?;
        Ok(opened.map(|(file, metadata)| BlobFile { file, size: metadata.len(), ino: metadata.ino() }))
    }

    /// Number of the file on its own file system.
    pub fn file_ino(&self) -> u64 {
        self.ino
    }

    /// Bytes it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads at `offset`; fewer bytes than asked only at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        failpoint::call("blob.read")?;
        read_fully(&self.file, buffer, offset)
    }

    /// SHA-1 and BLAKE3 of its bytes; `None` when `go_on` said false on the way.
    pub fn digest(&self, go_on: impl Fn() -> bool) -> io::Result<Option<Digest>> {
        checksum::digest(&self.file, go_on)
    }

    /// SHA-256 and MD5 of its bytes; `None` when `go_on` said false on the way.
    pub fn published_digests(&self, go_on: impl Fn() -> bool) -> io::Result<Option<Published>> {
        checksum::published_digests(&self.file, go_on)
    }

    /// The same for whoever waits: sooner, with more of the processors.
    pub fn published_digests_soon(&self) -> io::Result<Published> {
        checksum::published_digests_soon(&self.file)
    }

    /// BLAKE3 alone, which is several times faster than both.
    pub fn blake3(&self) -> io::Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 256 * 1024];
        let mut offset = 0;
        loop {
            match self.read_at(&mut buffer, offset)? {
                0 => return Ok(*hasher.finalize().as_bytes()),
                n => {
                    hasher.update(&buffer[..n]);
                    offset += n as u64;
                }
            }
        }
    }
}

impl AsFd for BlobFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_fully(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
