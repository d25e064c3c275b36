//! By which way a file that is open is served, from the first open to the last close: passthrough on the file that has the
//! bytes, or the daemon; and the check of a blob that is to be verified first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::change::{Ino, Inode, Kind, StagingName};
use crate::checksum::Checksum;
use crate::filestore::{self, Blob, Reach};
use crate::sys::content as sys;
use crate::text;
use crate::vfs::node::{Backing, Locked, Serving, Source, Token};
use crate::vfs::open::{How, LATCH_WAIT_MAX, Register};
use crate::vfs::owners::Owner;
use crate::vfs::{Error, Result, Verify, Vfs};

/// Clean files up to this size are read through the kernel's page cache: an open costs less, and most are read once.
const PASSTHROUGH_BYTES_MIN: u64 = 32 * 1024;

/// Blobs that cannot be served, remembered at most.
const DAMAGED_MAX: usize = 10_000;

impl Vfs {
    /// Decides or joins the way by which the kernel reaches the bytes. `lazily`: through the daemon if there is a choice.
    pub(super) fn serve(
        &self,
        node: &mut Locked<'_>,
        inode: &Inode,
        lazily: bool,
        verified: Option<Checksum>,
        register: Register<'_>,
    ) -> Result<How> {
        match &node.serving {
            Serving::Passthrough(backing) => return Ok(How::Passthrough(backing.token.clone())),
            Serving::Daemon => return Ok(How::Cached),
            Serving::Idle => {}
        }
        let source = match (self.source(node, inode)?, self.left_behind(inode.ino)) {
            (Source::Blob(_), Some(name)) => Source::Staging(name),
            (source, _) => source,
        };
        let backing = match source {
            Source::Staging(_) if lazily => None,
            Source::Staging(name) => self.staging_backing(name, register)?,
            Source::Blob(sum) => self.blob_backing(inode, &sum, verified == Some(sum), register)?,
        };
        Ok(match backing {
            Some(backing) => {
                let token = backing.token.clone();
                node.serving = Serving::Passthrough(backing);
                How::Passthrough(token)
            }
            None => {
                node.serving = Serving::Daemon;
                How::Cached
            }
        })
    }

    fn staging_backing(&self, name: StagingName, register: Register<'_>) -> Result<Option<Backing>> {
        // What the kernel writes by itself nobody can refuse when there is no room for it.
        if !self.passthrough() || self.store.must_write_through() {
            return Ok(None);
        }
        // The kernel opens the file anew with the flags of whoever opens it; a read-only descriptor of ours leaves no
        // writer behind that would stand in the way of a lease.
        let file = match self.store.open_staging(name) {
            Ok(file) => file,
            Err(filestore::Error::Io { source, .. }) if sys::is_shortage(&source) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let file_id = file.stat().map_err(Error::io(format!("stat staging file {name}")))?.file_id;
        Ok(self.register(file.as_fd(), register).map(|token| Backing {
            token,
            source: Source::Staging(name),
            file_id,
            owns: None,
        }))
    }

    /// Checks that the blob can be served, and takes its file for passthrough if that is free.
    fn blob_backing(
        &self,
        inode: &Inode,
        sum: &Checksum,
        verified: bool,
        register: Register<'_>,
    ) -> Result<Option<Backing>> {
        if inode.size == 0 {
            return Ok(None);
        }
        let latch = match self.store.reach() {
            Reach::Here => self.store.latch(sum),
            // Whoever holds it for long waits for something far away: then the daemon serves the file.
            _ => match self.store.try_latch(sum, LATCH_WAIT_MAX) {
                Some(latch) => latch,
                None => return Ok(None),
            },
        };
        let good = |blob: &Blob| {
            if !self.damaged.lock().is_empty() {
                self.damaged.lock().remove(sum);
            }
            if verified { Ok(()) } else { self.verify_at_open(inode, sum, blob) }
        };
        let by_daemon = !self.passthrough_serves(inode.size);
        if by_daemon && self.reads_ahead() {
            // It is read in a moment, from this very file: another copy would have to come from its disk as well.
            let source = Source::Blob(*sum);
            let opened = self.descriptors.reader_anew(source, || self.open_source(source, inode.size));
            let reader = opened.inspect_err(|error| self.damaged(sum, error))?;
            let checked = reader.blob().map_or(Ok(()), good);
            // The next one may get another copy.
            return checked.inspect_err(|_| self.descriptors.forget_failed(&reader)).map(|()| None);
        }
        let blob = self.store.open_blob(sum, inode.size).inspect_err(|error| self.damaged(sum, error))?;
        good(&blob)?;
        if by_daemon || !self.may_own(&latch, inode.ino)? {
            return Ok(None);
        }
        let known = match self.owned_file(&latch, inode.ino) {
            // A mapping of it may be left, which has to see what is written.
            Some(file) => match self.store.open_copy(sum, file) {
                Ok(known) => known,
                // Its disk is away: another copy is read, by the daemon.
                Err(_) => return Ok(None),
            },
            None => None,
        };
        let Some(blob) = known.or_else(|| blob.into_local()) else { return Ok(None) };
        let file_id = blob.file_id();
        let token = self.register(blob.as_fd(), register);
        if token.is_some() {
            self.own(&latch, Owner { ino: inode.ino, file: file_id, open: true });
        }
        drop(latch);
        Ok(token.map(|token| Backing { token, source: Source::Blob(*sum), file_id, owns: Some(*sum) }))
    }

    /// Whether the kernel reads clean files of this size by itself.
    pub(super) fn passthrough_serves(&self, size: u64) -> bool {
        self.passthrough() && size >= PASSTHROUGH_BYTES_MIN
    }

    /// Finds out whether the kernel takes files of the filestore for passthrough at all.
    pub fn try_passthrough(&self, register: Register<'_>) {
        if !self.passthrough() {
            return;
        }
        match self.store.open_blob(&Checksum::EMPTY, 0) {
            Ok(blob) => drop(blob.local().map(|file| self.register(file.as_fd(), register))),
            Err(error) => tracing::warn!("passthrough cannot be tried: {}", text::chain(&error)),
        }
    }

    fn register(&self, file: BorrowedFd<'_>, register: Register<'_>) -> Option<Token> {
        match register(file) {
            Ok(token) => Some(token),
            Err(error) => {
                if !sys::is_shortage(&error) {
                    self.disable_passthrough(format!("the kernel refuses it: {error}"));
                }
                None
            }
        }
    }

    pub(super) fn end_serving(&self, node: &mut Locked<'_>) {
        let Serving::Passthrough(backing) = std::mem::take(&mut node.serving) else { return };
        if let Some(owned) = backing.owns {
            self.owner_closed(&owned, node.ino());
        }
        if let Source::Staging(name) = backing.source
            && node.staged.as_ref().is_none_or(|staged| staged.row.file != name)
        {
            // Sealed while it was open: its name was kept for a writer that might have come.
            let (ino, owned) = (node.ino(), backing.owns.is_some());
            drop(backing);
            if owned {
                self.retire_sealed(self.index.last_seq(), name);
            } else {
                self.leave(ino, name);
            }
        }
    }

    /// Opens a sealed file on a disk that may hang before its node is locked: whoever looks at the file does not wait with the
    /// one who opens it.
    pub(super) fn look_ahead(&self, ino: Ino) -> Result<()> {
        if self.store.reach() != Reach::Network {
            return Ok(());
        }
        let inode = self.inode(ino)?;
        let Some(sum) = inode.checksum.filter(|_| inode.kind == Kind::File && inode.size > 0) else {
            return Ok(());
        };
        match self.store.open_blob_uncached(&sum, inode.size) {
            Err(filestore::Error::Io { doing, path, source }) if source.kind() == io::ErrorKind::TimedOut => {
                // There may be newer bytes, in a staging file, or somebody who stores them.
                let alone = self.nodes.try_lock(ino).is_some_and(|node| node.staged.is_none());
                if alone { Err(filestore::Error::Io { doing, path, source }.into()) } else { Ok(()) }
            }
            // Whatever else it is, the open tells.
            _ => Ok(()),
        }
    }

    /// Reads a file that is to be verified before its node is locked, where that takes long; the blob that was good.
    pub(super) fn verify_before_open(&self, ino: Ino) -> Result<Option<Checksum>> {
        if self.store.reach() == Reach::Here || self.settings_of(ino)?.verify == Verify::Never {
            return Ok(None);
        }
        let inode = self.inode(ino)?;
        let Some(sum) = inode.checksum.filter(|_| inode.kind == Kind::File) else { return Ok(None) };
        let blob = self.store.open_blob(&sum, inode.size).inspect_err(|error| self.damaged(&sum, error))?;
        self.verify_at_open(&inode, &sum, &blob)?;
        // A blob's file can change hands and be written while it is read: then what was read is nobody's.
        Ok(self.store.is_still(&sum, &blob)?.then_some(sum))
    }

    fn verify_at_open(&self, inode: &Inode, sum: &Checksum, blob: &Blob) -> Result<()> {
        let verify = self.settings_of(inode.ino)?.verify;
        if verify == Verify::Never || verify == Verify::FirstOpen && self.verified.lock().contains(sum) {
            return Ok(());
        }
        let digest = blob.digest(|| true).map_err(Error::io(format!("read blob {sum}")))?;
        if digest.is_none_or(|digest| digest.checksum != *sum) {
            self.damaged(sum, &Error::Altered(*sum));
            return Err(Error::Altered(*sum));
        }
        self.verified.lock().insert(*sum);
        Ok(())
    }

    /// Remembers a blob that cannot be served, for `status`; the edge tells the log.
    fn damaged(&self, sum: &Checksum, why: &dyn std::error::Error) {
        let mut damaged = self.damaged.lock();
        if damaged.len() < DAMAGED_MAX {
            damaged.insert(*sum, text::chain(why));
        }
    }
}
