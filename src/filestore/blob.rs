//! A blob as its readers have it: the read-only descriptor of a local file, or bytes that are asked for.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::OFlag;

use super::error::Result;
use super::volume::Volume;
use crate::checksum::{self, Digest, Hasher, Published, ReadAt};
use crate::failpoint;
use crate::sys::file;

/// Most bytes that a copy through memory moves at a time.
const COPY_BYTES: u64 = 256 * 1024;
/// The first piece of a stream; each one is twice the one before it.
const STREAM_BYTES_FIRST: u64 = 64 * 1024;
/// The largest.
const STREAM_BYTES_MAX: u64 = 4 << 20;

/// How a blob's bytes can be had.
#[derive(Debug)]
pub enum Blob {
    /// All of them lie in a local file.
    Local(BlobFile),
    /// They are asked for, piece by piece.
    Remote(Box<dyn Remote>),
}

/// The bytes of a blob that is no local file. They are the same at every read, and stay after the blob is removed.
pub trait Remote: fmt::Debug + Send + Sync {
    /// Bytes it has.
    fn size(&self) -> u64;

    /// Reads at `offset`; fewer bytes than asked only at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Whether they are being kept in a file of this host, which an open some time later gets.
    fn is_kept(&self) -> bool {
        false
    }

    /// Gives all bytes from `from` on to `each`, in order and piece by piece; small pieces come first, so that whoever waits for
    /// the first bytes has them soon.
    fn stream(&self, from: u64, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let (mut at, mut piece) = (from, STREAM_BYTES_FIRST);
        let mut buffer = Vec::new();
        while at < self.size() {
            buffer.resize(piece.min(self.size() - at) as usize, 0);
            let read = self.read_at(&mut buffer, at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            each(&buffer[..read])?;
            at += read as u64;
            piece = (piece * 2).min(STREAM_BYTES_MAX);
        }
        Ok(())
    }
}

impl Blob {
    /// Bytes it has.
    pub fn size(&self) -> u64 {
        match self {
            Blob::Local(file) => file.size(),
            Blob::Remote(remote) => remote.size(),
        }
    }

    /// Reads at `offset`; fewer bytes than asked only at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        failpoint::call("blob.read")?;
        match self {
            Blob::Local(file) => read_fully(&file.file, buffer, offset),
            Blob::Remote(remote) => remote.read_at(buffer, offset),
        }
    }

    /// The local file that holds all of it.
    pub fn local(&self) -> Option<&BlobFile> {
        match self {
            Blob::Local(file) => Some(file),
            Blob::Remote(_) => None,
        }
    }

    /// The same, to keep.
    pub fn into_local(self) -> Option<BlobFile> {
        match self {
            Blob::Local(file) => Some(file),
            Blob::Remote(_) => None,
        }
    }

    /// Which local file it is.
    pub fn file_id(&self) -> Option<FileId> {
        self.local().map(BlobFile::file_id)
    }

    /// Makes the empty file `to` hold the first `length` bytes: shared blocks where possible, else a copy.
    pub fn copy_start(&self, to: &impl AsFd, length: u64) -> io::Result<()> {
        match self {
            Blob::Local(file) => file::copy_start(file, to, length),
            Blob::Remote(_) => self.copy_through_memory(0, to, 0, length),
        }
    }

    /// Copies a range of it over whatever a file has there.
    pub fn copy_over(&self, offset: u64, to: &impl AsFd, to_offset: u64, length: u64) -> io::Result<()> {
        match self {
            Blob::Local(file) => file::copy_range_over(file, offset, to, to_offset, length),
            Blob::Remote(_) => self.copy_through_memory(offset, to, to_offset, length),
        }
    }

    fn copy_through_memory(
        &self,
        offset: u64,
        to: &impl AsFd,
        to_offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.pieces(offset, length, |piece, at| file::write_all_at(to, piece, to_offset + (at - offset)))
    }

    /// Reads all of it in order; `each` gets a piece and its offset.
    pub fn each_piece(&self, each: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
        self.pieces(0, self.size(), each)
    }

    fn pieces(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(&[u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let most = match self {
            Blob::Remote(remote) if length > 0 && offset + length == remote.size() => {
                let mut at = offset;
                return remote.stream(offset, &mut |piece| {
                    each(piece, at)?;
                    at += piece.len() as u64;
                    Ok(())
                });
            }
            Blob::Remote(_) => STREAM_BYTES_MAX,
            Blob::Local(_) => COPY_BYTES,
        };
        let mut buffer = vec![0; length.min(most) as usize];
        let mut done = 0;
        while done < length {
            let part = (length - done).min(most) as usize;
            let read = self.read_at(&mut buffer[..part], offset + done)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            each(&buffer[..read], offset + done)?;
            done += read as u64;
        }
        Ok(())
    }

    /// SHA-1 and BLAKE3 of its bytes; `None` when `go_on` said false on the way.
    pub fn digest(&self, go_on: impl Fn() -> bool) -> io::Result<Option<Digest>> {
        let Blob::Remote(remote) = self else { return checksum::digest(self, go_on) };
        let (mut hasher, mut wanted) = (Hasher::default(), true);
        let read = remote.stream(0, &mut |piece| {
            wanted = go_on();
            hasher.update(piece);
            if wanted { Ok(()) } else { Err(io::Error::other("nobody wants it any more")) }
        });
        match wanted {
            true => read.map(|()| Some(hasher.finish())),
            false => Ok(None),
        }
    }

    /// SHA-256 and MD5 of its bytes; `None` when `go_on` said false on the way.
    pub fn published_digests(&self, go_on: impl Fn() -> bool) -> io::Result<Option<Published>> {
        checksum::published_digests(self, go_on)
    }

    /// The same for whoever waits: sooner, with more of the processors.
    pub fn published_digests_soon(&self) -> io::Result<Published> {
        checksum::published_digests_soon(self)
    }

    /// BLAKE3 alone, which is several times faster than both.
    pub fn blake3(&self) -> io::Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        if let Blob::Remote(remote) = self {
            remote.stream(0, &mut |piece| {
                hasher.update(piece);
                Ok(())
            })?;
            return Ok(*hasher.finalize().as_bytes());
        }
        let mut buffer = vec![0; COPY_BYTES as usize];
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

impl ReadAt for Blob {
    fn read_piece(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Blob::Local(file) => file.file.read_at(buffer, offset),
            Blob::Remote(remote) => remote.read_at(buffer, offset),
        }
    }
}

/// Which file something is, whatever names it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Its file system.
    pub dev: u64,
    /// Its number there.
    pub ino: u64,
}

/// An open blob that cannot be written through.
///
/// The only constructor opens read-only, and no other type turns into this one, so whatever takes a `BlobFile` (a
/// passthrough registration, say) never holds a descriptor that can change a blob.
#[derive(Debug)]
pub struct BlobFile {
    file: File,
    size: u64,
    id: FileId,
}

impl BlobFile {
    /// Opens the regular file at `path` of the volume; `None` when there is none.
    pub(super) fn open(volume: &Volume, path: &str) -> Result<Option<BlobFile>> {
        let opened = volume.open_file(path, OFlag::O_RDONLY)?;
        Ok(opened.map(|(file, metadata)| {
            let id = FileId { dev: metadata.dev(), ino: metadata.ino() };
            BlobFile { file, size: metadata.len(), id }
        }))
    }

    /// Which file it is.
    pub fn file_id(&self) -> FileId {
        self.id
    }

    /// Bytes it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it still has a name and as many bytes as when it was opened.
    pub fn is_intact(&self) -> bool {
        self.file.metadata().is_ok_and(|now| now.nlink() > 0 && now.len() == self.size)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that are given out at most three at a time, and end before the size that they claim.
    #[derive(Debug)]
    struct Slow(&'static [u8], u64);

    impl Remote for Slow {
        fn size(&self) -> u64 {
            self.1
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let rest = &self.0[(offset as usize).min(self.0.len())..];
            let n = rest.len().min(buffer.len()).min(3);
            buffer[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }
    }

    #[test]
    fn a_stream_has_all_bytes_in_order_or_an_error() {
        let streamed = |remote: &Slow, from: u64| {
            let mut all = Vec::new();
            remote.stream(from, &mut |piece| {
                all.extend_from_slice(piece);
                Ok(())
            })?;
            io::Result::Ok(all)
        };
        let whole = Slow(b"bytes in order", 14);
        for from in [0, 1, 13, 14, 99] {
            assert_eq!(streamed(&whole, from).unwrap(), &whole.0[(from as usize).min(14)..]);
        }
        let cut = streamed(&Slow(b"bytes", 6), 0).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        let mut seen = 0;
        let stopped = whole.stream(0, &mut |_| {
            seen += 1;
            Err(io::Error::other("enough"))
        });
        assert_eq!((stopped.unwrap_err().to_string().as_str(), seen), ("enough", 1));
    }
}
