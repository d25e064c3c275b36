//! read(2) and lseek(2) of files that are served through the daemon.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::change::Ino;
use crate::sys::content as sys;
use crate::vfs::descriptors::Reader;
use crate::vfs::{Error, Result, Vfs};

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next data.
    Data,
    /// The next hole.
    Hole,
}

impl Vfs {
    /// Reads into `buffer` from `offset`; fewer bytes only at the end of the file.
    pub fn read(&self, ino: Ino, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.with_reader(ino, |reader| {
            reader.read_at(buffer, offset).map_err(Error::io(format!("read inode {ino} at {offset}")))
        })
    }

    /// Offset of the next data or hole from `offset` on.
    pub fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64> {
        self.with_reader(ino, |reader| {
            sys::seek(reader, offset, what == Seek::Hole)
                .map_err(Error::io(format!("seek in inode {ino}")))?
                .ok_or(Error::BeyondEnd)
        })
    }

    /// Runs `act` with a descriptor of the newest bytes, which stay those of `ino` meanwhile: a blob's file that another
    /// inode is about to write does not change hands before the end. No node's lock may be held.
    pub(super) fn with_reader<T>(&self, ino: Ino, mut act: impl FnMut(&Reader) -> Result<T>) -> Result<T> {
        loop {
            let before = self.hand_overs.load(Ordering::Acquire);
            let reader = self.current_reader(ino)?;
            let _gate = self.blob_reads.read();
            if self.hand_overs.load(Ordering::Acquire) == before {
                return act(&reader);
            }
        }
    }

    /// A descriptor of the newest bytes.
    fn current_reader(&self, ino: Ino) -> Result<Arc<Reader>> {
        // A seal may end and its staging file go between the two steps; then the row has changed, and the next try hits.
        let mut tries = 0;
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
                other => return other,
            }
        }
    }
}
