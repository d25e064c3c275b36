//! read(2) and lseek(2) of files that are served through the daemon.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::change::{Ino, Inode};
use crate::checksum::Checksum;
use crate::filestore::{Blob, Reach};
use crate::vfs::descriptors::Reader;
use crate::vfs::node::{Locked, Source};
use crate::vfs::{Error, Result, Vfs};

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next data.
    Data,
    /// The next hole.
    Hole,
}

/// A blob that is read by its checksum, whoever shows it.
pub struct OpenBlob {
    sum: Checksum,
    size: u64,
    file: Blob,
    /// How often a blob's file had changed hands before this one was opened.
    hand_overs: u64,
}

impl Vfs {
    /// Reads into `buffer` from `offset`; fewer bytes only at the end of the file. `alterations` is what the descriptor's
    /// [`Opened`](super::open::Opened) says.
    pub fn read(&self, ino: Ino, alterations: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.refuse_doubtful(ino, alterations)?;
        let mut of_file = false;
        let read = self.with_reader(ino, |reader| {
            of_file = matches!(reader, Reader::Blob(Blob::Local(_)));
            reader.read_at(buffer, offset).map_err(Error::io(format!("read inode {ino} at {offset}")))
        })?;
        if of_file && offset == 0 && self.reads_ahead() {
            self.ahead.was_read(ino);
        }
        // It may have been found out meanwhile, and these bytes be those of another try.
        self.refuse_doubtful(ino, alterations)?;
        Ok(read)
    }

    /// A descriptor may have read bytes that proved wrong later: it does not get to read the right ones behind them.
    pub fn refuse_doubtful(&self, ino: Ino, alterations: u64) -> Result<()> {
        if self.store.alterations().last() <= alterations {
            return Ok(());
        }
        let node = self.nodes.lock(ino);
        match self.source(&node, &self.inode(ino)?)? {
            Source::Blob(sum) if self.store.alterations().last_of(&sum) > alterations => {
                Err(Error::Altered(sum))
            }
            _ => Ok(()),
        }
    }

    /// A seek beyond the end is an answer, and no failure of the reader.
    fn forget_failed(&self, reader: &Arc<Reader>, error: &Error) {
        if matches!(error, Error::Io { .. }) {
            self.descriptors.forget_failed(reader);
        }
    }

    /// What is read next is read anew, perhaps of another object: it must not be joined to what was read before.
    fn doubt(&self, source: Source, error: &Error, known: u64) {
        let (Source::Blob(sum), Error::Io { source: error, .. }) = (source, error) else { return };
        let alterations = self.store.alterations();
        if error.kind() == io::ErrorKind::InvalidData && alterations.last_of(&sum) <= known {
            alterations.note(&sum);
        }
    }

    /// Whether the pages of a file that is about to be opened can be trusted. If not, it is read anew.
    pub(super) fn are_pages_good(&self, node: &Locked<'_>, inode: &Inode) -> bool {
        match self.source(node, inode) {
            Ok(Source::Blob(sum)) if self.store.alterations().last_of(&sum) > 0 => {
                self.descriptors.forget_blob(&sum);
                false
            }
            _ => true,
        }
    }

    /// Offset of the next data or hole from `offset` on.
    pub fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64> {
        self.with_reader(ino, |reader| {
            reader
                .seek(offset, what == Seek::Hole)
                .map_err(Error::io(format!("seek in inode {ino}")))?
                .ok_or(Error::BeyondEnd)
        })
    }

    /// Runs `act` with a descriptor of the newest bytes, which stay those of `ino` meanwhile: a blob's file that another
    /// inode is about to write does not change hands before the end. No node's lock may be held.
    pub(super) fn with_reader<T>(&self, ino: Ino, mut act: impl FnMut(&Reader) -> Result<T>) -> Result<T> {
        loop {
            let before = self.hand_overs.load(Ordering::Acquire);
            let (source, reader) = self.current_reader(ino)?;
            if reader.is_remote() {
                let known = self.store.alterations().last();
                // Nobody writes to what is far away, and one who waits for it must not hold up those who do not.
                return act(&reader).inspect_err(|error| {
                    self.forget_failed(&reader, error);
                    self.doubt(source, error, known);
                });
            }
            let _gate = self.blob_reads.read();
            if self.hand_overs.load(Ordering::Acquire) == before {
                // Who tries again may get another copy.
                return act(&reader).inspect_err(|error| self.forget_failed(&reader, error));
            }
        }
    }

    /// Whether reading `ino` may wait for something that is not on this host.
    pub fn reads_far(&self, ino: Ino) -> bool {
        if self.store.reach() == Reach::Here {
            return false;
        }
        // Somebody who holds the node may be waiting himself.
        let Some(node) = self.nodes.try_lock(ino) else { return true };
        if node.clone.is_some() {
            return true;
        }
        let Ok(inode) = self.inode(ino) else { return false };
        let source = self.source(&node, &inode);
        drop(node);
        source.and_then(|source| self.reader(source, inode.size)).is_ok_and(|reader| reader.is_remote())
    }

    /// Whether one alone reads a file from far away and its bytes stay on this host meanwhile, where the next open finds them.
    pub fn is_kept_for(&self, ino: Ino) -> bool {
        if !self.passthrough() {
            return false;
        }
        let Some(node) = self.nodes.try_lock(ino) else { return false };
        if node.opens != 1 || node.writers > 0 || node.clone.is_some() {
            return false;
        }
        let Ok(inode) = self.inode(ino) else { return false };
        let source = self.source(&node, &inode);
        drop(node);
        let reader = source.and_then(|source| self.reader(source, inode.size));
        reader.is_ok_and(|reader| reader.is_kept())
    }

    /// Opens a blob that the index knows with this size.
    pub fn open_blob(&self, sum: &Checksum, size: u64) -> Result<OpenBlob> {
        let hand_overs = self.hand_overs.load(Ordering::Acquire);
        let file = self.store.open_blob(sum, size)?;
        Ok(OpenBlob { sum: *sum, size, file, hand_overs })
    }

    /// Reads bytes of a blob, opening it anew when its file may have become that of a writer; fewer only at the end.
    pub fn read_blob(&self, blob: &mut OpenBlob, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let gate = blob.file.local().map(|_| self.blob_reads.read());
            if gate.is_none() || self.hand_overs.load(Ordering::Acquire) == blob.hand_overs {
                let failed =
                    |source| Error::Io { what: format!("read blob {} at {offset}", blob.sum), source };
                return blob.file.read_at(buffer, offset).map_err(failed);
            }
            drop(gate);
            *blob = self.open_blob(&blob.sum, blob.size)?;
        }
    }

    /// A descriptor of the newest bytes, and where they are.
    fn current_reader(&self, ino: Ino) -> Result<(Source, Arc<Reader>)> {
        // A seal may end and its staging file go between the two steps; then the row has changed, and the next try hits.
        let mut tries = 0;
        self.copy_ahead(ino)?;
        loop {
            let (source, size) = {
                let mut node = self.nodes.lock(ino);
                let inode = self.inode(ino)?;
                self.materialise(&mut node)?;
                (self.source(&node, &inode)?, inode.size)
            };
            tries += 1;
            match self.reader(source, size) {
                Err(Error::Store(error)) if error.is_absent() && tries < 4 => {}
                other => return other.map(|reader| (source, reader)),
            }
        }
    }
}
