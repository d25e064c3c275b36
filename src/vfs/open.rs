//! open(2), creat(2) and close(2): by which way the kernel reaches the bytes, which `serve` then gives it.
//!
//! One way per inode while anything has it open, joined by everybody who comes later:
//! - clean and read: passthrough on the blob's own file, unless another inode of the same content has that;
//! - written: passthrough on the staging file;
//! - written while readers are on the blob's file: that file becomes the staging file and the blob gets a copy (`stage`);
//! - otherwise through the daemon and the kernel's page cache, which all handles share.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::change::{Change, Ino, Inode, Kind, ROOT};
use crate::failpoint;
use crate::filestore::Reach;
use crate::text;
use crate::vfs::acl;
use crate::vfs::attr::Attributes;
use crate::vfs::caller::{has_set_id_bits, without_set_id_bits};
use crate::vfs::node::{CloneOf, Locked, Serving, Staged, Token};
use crate::vfs::stage::Prepared;
use crate::vfs::{Caller, Durability, Error, Result, Verify, Vfs, check_new_name, now};

/// Makes the kernel open a file for passthrough; given by `fuse` with each request.
pub type Register<'a> = &'a dyn Fn(BorrowedFd<'_>) -> io::Result<Token>;

/// How long after its answer a close may still be on its way here, and how often that is looked at.
pub(super) const RELEASE_MAX: Duration = Duration::from_millis(50);
pub(super) const RELEASE_POLL: Duration = Duration::from_micros(200);

/// How long an open waits for somebody else's work on the blob.
pub(super) const LATCH_WAIT_MAX: Duration = Duration::from_millis(50);

/// How often a file is tried to be sealed before it is emptied.
const SEAL_TRIES: u32 = 3;

/// What a descriptor may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Read.
    pub read: bool,
    /// Write.
    pub write: bool,
    /// Empty the file first.
    pub truncate: bool,
    /// Fail if it exists.
    pub exclusive: bool,
    /// Every write is durable when it returns.
    pub sync: bool,
    /// Reading leaves no trace.
    pub noatime: bool,
    /// A program is run from it.
    pub execute: bool,
}

impl Access {
    /// How many of the bytes that are there it keeps.
    fn kept(self) -> u64 {
        if self.truncate { 0 } else { u64::MAX }
    }
}

/// How the kernel is to serve a descriptor.
pub enum How {
    /// From this registered file.
    Passthrough(Token),
    /// From its page cache, filled by the daemon.
    Cached,
}

/// Answer to an open.
pub struct Opened {
    /// The way to the bytes.
    pub how: How,
    /// Whether close(2) needs no request.
    pub no_flush: bool,
    /// Whether the kernel may keep the pages that it has.
    pub keep: bool,
    /// How often a blob had arrived with wrong bytes: what it does later, this descriptor may have read.
    pub alterations: u64,
}

impl Vfs {
    /// Opens a regular file.
    pub fn open(&self, caller: &Caller, ino: Ino, access: Access, register: Register<'_>) -> Result<Opened> {
        let changes = access.write || access.truncate;
        if changes {
            if self.options.read_only {
                return Err(Error::ReadOnly);
            }
            self.wait_for_backlog()?;
        }
        let mut prepared = match changes {
            true => self.prepare(ino, access.kept())?,
            false => {
                self.copy_ahead(ino)?;
                self.look_ahead(ino)?;
                Prepared::default()
            }
        };
        let opened = self.past_latches(|| self.open_with(caller, ino, access, register, &mut prepared));
        self.drop_prepared(prepared);
        if !changes && opened.is_ok() {
            self.ahead.was_opened(ino);
        }
        opened
    }

    fn open_with(
        &self,
        caller: &Caller,
        ino: Ino,
        access: Access,
        register: Register<'_>,
        prepared: &mut Prepared,
    ) -> Result<Opened> {
        let alterations = self.store.alterations().last();
        let changes = access.write || access.truncate;
        let verified = if changes { None } else { self.verify_before_open(ino)? };
        let mut node = if access.truncate { self.lock_to_empty(ino)? } else { self.nodes.lock(ino) };
        // The kernel refuses to write a running program itself, but of O_RDONLY|O_TRUNC it thinks only after this answer.
        if access.truncate && !access.write && node.executors > 0 {
            return Err(Error::Running);
        }
        if changes {
            node.settle();
        }
        let inode = self.inode(ino)?;
        if inode.kind != Kind::File {
            return Err(if inode.kind == Kind::Directory {
                Error::IsDirectory
            } else {
                Error::Unsupported("open")
            });
        }
        let no_flush = !changes || self.durability_of(ino)? == Durability::Fsync;
        let keep = alterations == 0 || self.are_pages_good(&node, &inode);
        let mut lazily = false;
        if changes {
            let anew = self.open_to_write(&mut node, access, prepared)?;
            // A mapping left behind is of the staging file itself, which the kernel has to go on serving.
            if anew && matches!(node.serving, Serving::Idle) {
                node.guessed = self.guess(caller, access);
                lazily = node.guessed.is_some();
            }
            if access.truncate && has_set_id_bits(&inode) && !caller.keeps_set_id_bits() {
                self.drop_set_id_bits(&inode)?;
            }
        } else {
            self.materialise(&mut node)?;
            self.copiers.source_opened(caller);
        }
        let how = self.serve(&mut node, &inode, lazily, verified, register).inspect_err(|_| {
            if node.writers == 0 {
                self.close_staged(&mut node);
            }
        })?;
        if access.read && !access.noatime {
            self.note_read(&inode);
        }
        self.admit(&mut node, access);
        drop(node);
        self.begin_sync(ino, access)?;
        Ok(Opened { how, no_flush, keep, alterations })
    }

    /// Whether an open for reading may have to wait for something that is not on this host, or for somebody who does.
    pub fn open_waits(&self, ino: Ino) -> bool {
        self.change_waits(ino) || self.settings_of(ino).is_ok_and(|settings| settings.verify != Verify::Never)
    }

    /// Makes a new file and opens it.
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        (mode, umask): (u32, u32),
        access: Access,
        register: Register<'_>,
    ) -> Result<(Attributes, Opened)> {
        if parent == ROOT {
            return Err(Error::NotPermitted(
                "only directories stand at the top of the tree: they are the repositories",
            ));
        }
        check_new_name(parent, name)?;
        self.wait_for_backlog()?;
        let (inode, xattrs) = self.new_inode(caller, parent, Kind::File, mode, umask)?;
        let ino = inode.ino;
        let file = self.next_staging()?;
        let guessed = self.guess(caller, access);
        let row = if guessed.is_some() {
            // A copy never has use for a staging file.
            self.unmade_row(&inode, file)?
        } else {
            self.stage_untouched(file)?;
            self.staged_row(&inode, file)?
        };
        // A crash here leaves a staging file without a row, which recovery discards, and no name.
        failpoint::hit("create.staged");
        let cookie = self.index.next_number()?;
        let no_flush = !access.write || self.durability_of(parent)? == Durability::Fsync;
        let create = Change::Create {
            parent,
            name: name.to_vec(),
            cookie,
            inode: inode.clone(),
            target: None,
            xattrs,
        };
        // Nobody can name the inode before the commit, so holding its lock across it delays nobody.
        let mut node = self.nodes.lock(ino);
        if let Err(error) = self.commit(&[create, Change::Stage(row.clone())]) {
            if guessed.is_none() {
                self.give_up_staging(file);
            }
            drop(node);
            return match error {
                Error::Index(crate::index::Error::Exists { .. }) if !access.exclusive => {
                    let existing = self.index.lookup(parent, name)?.ok_or(Error::NotFound)?;
                    let opened = self.open(caller, existing.ino, access, register)?;
                    Ok((self.attributes(existing.ino)?, opened))
                }
                other => Err(other),
            };
        }
        // A crash from here on leaves the name with no bytes, answered or not.
        failpoint::hit("create.committed");
        node.staged = Some(Staged::new(row));
        let lazily = guessed.is_some();
        node.clone = guessed.is_some().then(|| CloneOf::nothing_yet(file));
        node.guessed = guessed;
        let how = self
            .serve(&mut node, &inode, lazily, None, register)
            .inspect_err(|_| self.close_staged(&mut node))?;
        self.admit(&mut node, access);
        if !access.write {
            // Nobody is going to close it for writing.
            self.close_staged(&mut node);
        }
        drop(node);
        self.begin_sync(ino, Access { sync: access.sync || self.options.sync_names, ..access })?;
        // Nothing but a request can change the attributes of an empty new file, so the kernel may keep them.
        Ok((
            Attributes { inode, blocks: 0, stable: true },
            Opened { how, no_flush, keep: true, alterations: self.store.alterations().last() },
        ))
    }

    /// O_SYNC: the kernel forces the bytes of each write itself, past the daemon perhaps. What it cannot force, that the
    /// staging file is known and its name durable, is done once.
    fn begin_sync(&self, ino: Ino, access: Access) -> Result<()> {
        if access.sync && access.write {
            return self.fsync(ino).inspect_err(|_| self.release(ino, access));
        }
        Ok(())
    }

    /// Ends a descriptor.
    pub fn release(&self, ino: Ino, access: Access) {
        if access.write
            && let Err(error) = self.copy_ahead_if(ino, |node| node.writers <= 1)
        {
            // Its seal tries again.
            tracing::error!("inode {ino}: the end of a copy failed: {}", text::chain(&error));
        }
        let mut node = self.nodes.lock(ino);
        node.opens = node.opens.saturating_sub(1);
        if access.read {
            node.readers = node.readers.saturating_sub(1);
        }
        if access.execute {
            node.executors = node.executors.saturating_sub(1);
        }
        if access.write {
            node.writers = node.writers.saturating_sub(1);
            if node.writers == 0 {
                self.last_writer_gone(&mut node);
            }
        }
        if node.opens == 0 {
            self.end_serving(&mut node);
            if node.orphan && node.forgotten {
                self.reapable.lock().push(ino);
            }
        }
    }

    fn last_writer_gone(&self, node: &mut Locked<'_>) {
        // A copy that stopped half-way; what is still far away is not waited for with the node locked.
        let far = self.store.reach() > Reach::Here && node.clone.is_some_and(|clone| clone.covered > 0);
        if !far && let Err(error) = self.materialise(node) {
            tracing::error!("inode {}: the end of a copy failed: {}", node.ino(), text::chain(&error));
        }
        if let Some(program) = node.guessed.take() {
            self.copiers.unlearn(&program);
        }
        self.close_staged(node);
    }

    /// The program, if the file is likely to become a lazy copy by it, for which it must be served by the daemon.
    fn guess(&self, caller: &Caller, access: Access) -> Option<String> {
        if access.read || !access.write { None } else { self.copiers.likely(caller) }
    }

    fn admit(&self, node: &mut Locked<'_>, access: Access) {
        node.opens += 1;
        node.opened += 1;
        node.readers += u32::from(access.read);
        node.executors += u32::from(access.execute);
        node.writers += u32::from(access.write);
        if access.write {
            if let Some(staged) = &mut node.staged {
                staged.closed = None;
                staged.unforced_since.get_or_insert_with(Instant::now);
                self.uncount(staged);
            }
        } else if access.truncate && node.writers == 0 {
            self.close_staged(node);
        }
    }

    /// Puts the newest bytes of a file into a staging file, empty with O_TRUNC; whether it is one that nobody ever saw.
    fn open_to_write(&self, node: &mut Locked<'_>, access: Access, prepared: &mut Prepared) -> Result<bool> {
        if !access.truncate {
            return self.make_dirty_with(node, access.kept(), prepared).map(|()| false);
        }
        node.settle();
        // Read only now: while this waited for a seal to end, the content changed.
        let inode = &self.inode(node.ino())?;
        if matches!(node.serving, Serving::Idle) && !self.is_mapped(node, inode)? {
            return self.start_empty(node, inode).map(|()| true);
        }
        self.make_dirty(node, 0)?;
        let Some(staged) = &node.staged else { return Err(Error::Stale(inode.ino)) };
        let writer = self.store.open_staging_writer(staged.row.file)?;
        writer.set_len(0).map_err(Error::io(format!("empty staging file {}", staged.row.file)))?;
        Ok(false)
    }

    /// A file about to be emptied whose newest bytes were forced, and are in no blob, is sealed first: a power cut may find
    /// the second staging file unforced, and then those bytes are the previous version.
    fn lock_to_empty(&self, ino: Ino) -> Result<Locked<'_>> {
        let (until, mut tries) = (Instant::now() + RELEASE_MAX, 0);
        loop {
            let mut node = self.nodes.lock(ino);
            node.settle();
            let forced = |staged: &Staged| staged.row.forced && staged.row.failed.is_none();
            let open = !matches!(node.serving, Serving::Idle);
            // What is open or mapped for long is going to be emptied in place.
            let over = if open { Instant::now() >= until } else { tries == SEAL_TRIES };
            if over || !node.staged.as_ref().is_some_and(forced) {
                return Ok(node);
            }
            drop(node);
            if open {
                // The close before this open may still be on its way here.
                std::thread::sleep(RELEASE_POLL);
                continue;
            }
            tries += 1;
            match self.seal_if_closed(ino) {
                Ok(()) | Err(Error::Failed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a file that nobody has open is still mapped, so that it must be changed in place.
    fn is_mapped(&self, node: &Locked<'_>, inode: &Inode) -> Result<bool> {
        if !self.passthrough() {
            return Ok(false);
        }
        match (&node.staged, &inode.checksum) {
            (Some(staged), _) if staged.row.failed.is_some() => Ok(false),
            (Some(staged), _) => self.staging_is_used(staged.row.file),
            (None, Some(_)) if self.left_behind(inode.ino).is_some() => Ok(true),
            (None, Some(sum)) => Ok(self.left_mapping(sum, inode.ino)?.is_some()),
            (None, None) => Ok(false),
        }
    }

    /// A second, empty staging file for a file that nobody has open: the first may be what a power cut leaves.
    fn start_empty(&self, node: &mut Locked<'_>, inode: &Inode) -> Result<()> {
        if let Some(sealing) = node.sealing.take() {
            sealing.cancel();
        }
        if let Some((file, why)) =
            node.staged.as_ref().and_then(|s| Some((s.row.file, s.row.failed.clone()?)))
        {
            let path = self.index.path(inode.ino)?.unwrap_or_default();
            self.set_aside(file, &format!("{}: {why}", text::shown(&path)))?;
        }
        let name = self.next_staging()?;
        drop(self.store.stage(name)?);
        // A crash here leaves the earlier bytes, and a staging file without a row.
        failpoint::hit("empty.staged");
        let mut row = self.staged_row(inode, name)?;
        row.ctime = now();
        let seq = match self.commit(&[Change::Stage(row.clone())]) {
            Ok(seq) => seq,
            Err(error) => {
                self.give_up_staging(name);
                return Err(error);
            }
        };
        // A crash here leaves the file empty; the first staging file has no row any more, and goes.
        failpoint::hit("empty.committed");
        if let Some(mut old) = node.staged.take() {
            self.end_staged(&mut old);
            if old.row.failed.is_none() {
                self.retire(seq, old.row.file);
            }
        }
        node.staged = Some(Staged::new(row));
        // What was left of a copy that could not be ended.
        node.clone = None;
        Ok(())
    }

    /// setuid and setgid go when somebody without the privilege changes the bytes, and so do capabilities.
    pub(super) fn drop_set_id_bits(&self, inode: &Inode) -> Result<()> {
        let at = now();
        let mode = Some(without_set_id_bits(inode.mode));
        let mut changes = vec![Change::Attr {
            ino: inode.ino,
            mode,
            uid: None,
            gid: None,
            atime: None,
            mtime: None,
            ctime: Some(at),
        }];
        if self.index.xattr(inode.ino, acl::CAPABILITY)?.is_some() {
            changes.push(Change::Xattr {
                ino: inode.ino,
                name: acl::CAPABILITY.to_vec(),
                value: None,
                ctime: at,
            });
        }
        self.commit(&changes)?;
        Ok(())
    }
}
