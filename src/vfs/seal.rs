//! From staging file to blob: leased, hashed, put, committed, in this order, some time after the last writer closed.
//!
//! Hashing happens without any lock; a writer that comes meanwhile cancels it. The put and the commit are in `put`. The
//! staging file keeps its name until the commit is durable, and longer while the kernel serves it by passthrough
//! (`serve::end_serving`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::change::{Change, Ino, Nanos, StagingName};
use crate::checksum::Digest;
use crate::failpoint;
use crate::filestore::StagingReader;
use crate::sys::lease::{Lease, is_unused, read_lease};
use crate::text;
use crate::vfs::node::{Locked, Serving, State};
use crate::vfs::stage::UNTOUCHED;
use crate::vfs::{Error, GoOn, Result, Vfs};

/// How long a file stays Closed before it is sealed unasked: most of what a build writes is gone by then.
pub const SEAL_AFTER: Duration = Duration::from_millis(1000);

/// Most files sealed with one force and one commit.
pub const SEAL_BATCH: usize = 128;

/// Most bytes hashed before they are put, so that small files do not wait for a large one.
const SEAL_BATCH_BYTES: u64 = 256 << 20;

/// How often, and with what pause, a lease is tried: the kernel lets go of a closed file a little later than it says.
const LEASE_TRIES: u32 = 8;
const LEASE_PAUSE: Duration = Duration::from_micros(100);

/// How often a file that is waited for is sealed in vain, by writers that come and go.
const FRUITLESS_SEALS_MAX: u32 = 50;

/// Longest pause between two tries to seal a file.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a batch waits for a file that somebody else holds.
const HELD_MAX: Duration = Duration::from_secs(1);

/// A seal that is hashing.
#[derive(Debug, Default)]
pub struct Sealing {
    cancelled: AtomicBool,
    lease: Mutex<Option<Lease>>,
    over: Condvar,
}

impl Sealing {
    /// Ends it, and gives back the lease before anybody can open the file for writing.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.lease.lock().take();
        self.over.notify_all();
    }

    /// Waits until it ended, well or not: the node then says what came of it. No node's lock may be held.
    fn wait(&self) {
        let mut lease = self.lease.lock();
        while !self.is_cancelled() {
            self.over.wait(&mut lease);
        }
        drop(lease);
        // Whoever ended it may be about to say so in the node.
        std::thread::yield_now();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// What hashing a file found.
pub(super) struct Found {
    pub(super) digest: Digest,
    pub(super) mtime: Nanos,
    pub(super) ctime: Nanos,
    /// Somebody has the staging file open or mapped for reading.
    pub(super) used: bool,
}

/// A file that was hashed and waits for its put.
pub(super) struct Hashed {
    pub(super) ino: Ino,
    pub(super) file: StagingName,
    pub(super) found: Found,
    pub(super) sealing: Arc<Sealing>,
    /// Nobody had it open when this began, and how often it had been opened.
    pub(super) unopened_since: Option<u64>,
}

impl Vfs {
    /// Files that have been closed for `age`, oldest first, at most `limit`.
    pub fn sealable(&self, age: Duration, limit: usize) -> Vec<Ino> {
        if self.backlog.files.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut ready: Vec<(Instant, Ino)> = Vec::new();
        // What somebody holds is looked at again in the next round.
        self.nodes.sweep(self.nodes.inos(), |node| {
            ready.extend(ready_since(&node, age).map(|closed| (closed, node.ino())));
        });
        ready.sort_unstable();
        ready.truncate(limit);
        ready.into_iter().map(|(_, ino)| ino).collect()
    }

    /// Seals a Closed file now, or waits for the end of its seal that is under way, however long that takes. A file that
    /// is Dirty, sealed already, or mapped by somebody who can write it, is left alone.
    pub fn seal_if_closed(&self, ino: Ino) -> Result<()> {
        for _ in 0..FRUITLESS_SEALS_MAX {
            let Some(attempts) = self.await_sealing(ino)? else { return Ok(()) };
            // Nothing sealed: it is mapped and was postponed, or somebody came between, which the next look tells.
            if self.seal(&[ino], &|| true)? == 0 && self.await_sealing(ino)?.is_none_or(|now| now > attempts)
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits while a file is being sealed; how often that was given up before, or `None` when there is nothing to seal.
    fn await_sealing(&self, ino: Ino) -> Result<Option<u32>> {
        loop {
            let under_way = {
                let Some(mut node) = self.nodes.existing(ino) else { return Ok(None) };
                node.settle();
                let Some(staged) = &node.staged else { return Ok(None) };
                if staged.closed.is_none() || node.writers > 0 || node.orphan {
                    return Ok(None);
                }
                if let Some(why) = &staged.row.failed {
                    return Err(Error::Failed { ino, why: why.clone() });
                }
                match &node.sealing {
                    Some(sealing) => sealing.clone(),
                    None => return Ok(Some(staged.attempts)),
                }
            };
            under_way.wait();
        }
    }

    /// Seals what can be sealed of `inos`; the answer is how many were. An error is of the first that failed; the files it
    /// concerns stay Closed and are tried again. When it is told to end, what is hashed by then is put and committed.
    pub fn seal(&self, inos: &[Ino], go_on: GoOn<'_>) -> Result<usize> {
        let mut sealed = 0;
        let mut failure = None;
        let mut hashed = Vec::new();
        let mut bytes = 0;
        for ino in inos.iter().take_while(|_| go_on()) {
            match self.hash(*ino, go_on) {
                Ok(Some(one)) => {
                    bytes += one.found.digest.size;
                    hashed.push(one);
                }
                Ok(None) => {}
                Err(error) => {
                    self.postpone(*ino);
                    failure.get_or_insert(error);
                }
            }
            if bytes > SEAL_BATCH_BYTES {
                sealed += self.put_and_commit(std::mem::take(&mut hashed), go_on, &mut failure);
                bytes = 0;
            }
        }
        sealed += self.put_and_commit(hashed, go_on, &mut failure);
        failure.map_or(Ok(sealed), Err)
    }

    /// Leases and hashes one Closed file; `None` when there is nothing to put.
    fn hash(&self, ino: Ino, go_on: GoOn<'_>) -> Result<Option<Hashed>> {
        let is_closed = |node: &State| node.staged.as_ref().is_some_and(|staged| staged.closed.is_some());
        self.copy_ahead_if(ino, is_closed).inspect_err(|_| self.postpone(ino))?;
        let (file, sealing, unopened_since) = {
            // Whoever holds it for long waits for a disk, perhaps: the other files of the batch do not wait with him.
            let node = self.nodes.try_existing(ino, Instant::now() + HELD_MAX);
            let Ok(Some(mut node)) = node else { return Ok(None) };
            if node.putting || node.sealing.is_some() || node.writers > 0 || node.orphan {
                return Ok(None);
            }
            let Some(staged) = &node.staged else { return Ok(None) };
            if staged.closed.is_none() || staged.row.failed.is_some() {
                return Ok(None);
            }
            let file = staged.row.file;
            // What is left of a lazy copy that stopped half-way.
            self.materialise(&mut node).inspect_err(|_| postpone(&mut node))?;
            self.descriptors.close_writer(file);
            let sealing = Arc::new(Sealing::default());
            node.sealing = Some(sealing.clone());
            (file, sealing, (node.opens == 0).then_some(node.opened))
        };
        let result = self.lease_and_hash(ino, file, &sealing, unopened_since, go_on);
        if !matches!(result, Ok(Some(_))) {
            // Whoever cancelled it took it out of the node, and may hold that for as long as a disk takes.
            let theirs = sealing.is_cancelled();
            sealing.cancel();
            if !theirs
                && let Some(mut node) = self.nodes.existing(ino)
                && node.sealing.as_ref().is_some_and(|s| Arc::ptr_eq(s, &sealing))
            {
                node.sealing = None;
            }
        }
        let found = result?;
        Ok(found.map(|found| Hashed { ino, file, found, sealing, unopened_since }))
    }

    fn lease_and_hash(
        &self,
        ino: Ino,
        file: StagingName,
        sealing: &Sealing,
        unopened_since: Option<u64>,
        go_on: GoOn<'_>,
    ) -> Result<Option<Found>> {
        self.descriptors.forget_staging(file);
        let reader = self.store.open_staging(file)?;
        let used = !is_unused(&reader).map_err(Error::io(format!("take a lease on staging file {file}")))?;
        if !lease(&reader, file, sealing)? {
            self.postpone(ino);
            return Ok(None);
        }
        // A crash before the put leaves the file Closed, to be sealed by the next mount.
        failpoint::hit("seal.leased");
        if self.revert_unchanged(ino, file, unopened_since.map(|opened| (opened, used)))? {
            return Ok(None);
        }
        let what = || Error::io(format!("read staging file {file}"));
        let Some(digest) = reader.digest(|| !sealing.is_cancelled() && go_on()).map_err(what())? else {
            return Ok(None);
        };
        failpoint::hit("seal.hashed");
        if sealing.is_cancelled() {
            return Ok(None);
        }
        let Some(node) = self.nodes.existing(ino) else { return Ok(None) };
        let Some(staged) = &node.staged else { return Ok(None) };
        if sealing.is_cancelled() || staged.row.file != file {
            return Ok(None);
        }
        let version = self.staged_version(&node, &self.inode(ino)?, staged)?;
        if version.size != digest.size {
            return Ok(None);
        }
        Ok(Some(Found { digest, mtime: version.mtime, ctime: version.ctime, used }))
    }

    /// A file that was opened for writing and not written goes back to its blob without being read. `unopened`: nobody has had
    /// it open since it had been opened so often, and whether it was mapped then.
    fn revert_unchanged(&self, ino: Ino, file: StagingName, unopened: Option<(u64, bool)>) -> Result<bool> {
        let Some(mut node) = self.nodes.existing(ino) else { return Ok(false) };
        let inode = self.inode(ino)?;
        let Some(staged) = &node.staged else { return Ok(false) };
        let Some((_, mapped)) = unopened.filter(|(opened, _)| *opened == node.opened) else {
            return Ok(false);
        };
        let stat = self.store.stat_staging(file)?;
        if staged.fresh
            || !self.mappings_move_mtime
            || staged.row.file != file
            || stat.mtime != UNTOUCHED
            || stat.size != inode.size
            || stat.links != 1
            || matches!(node.serving, Serving::Passthrough(_))
            || node.writers > 0
        {
            return Ok(false);
        }
        let (mtime, ctime) = (staged.row.mtime, staged.row.ctime.max(inode.ctime));
        let mut changes = Vec::with_capacity(2);
        if (mtime, ctime) != (inode.mtime, inode.ctime) {
            let (mtime, ctime) = (Some(mtime), Some(ctime));
            changes.push(Change::Attr { ino, mode: None, uid: None, gid: None, atime: None, mtime, ctime });
        }
        changes.push(Change::Unstage { ino });
        let seq = self.commit(&changes)?;
        // A crash here leaves the blob as the content, and a staging file without a row.
        failpoint::hit("seal.reverted");
        if let Some(mut staged) = node.staged.take() {
            self.end_staged(&mut staged);
        }
        node.sealing = None;
        if mapped {
            // What the mapping shows has to follow the next writer.
            self.left.lock().insert(ino, file);
        } else {
            self.retire(seq, file);
        }
        Ok(true)
    }

    fn postpone(&self, ino: Ino) {
        if let Some(mut node) = self.nodes.existing(ino) {
            postpone(&mut node);
        }
    }

    /// The bytes of a file can never be sealed: they stay, the path answers EIO, and `status` says why.
    pub(super) fn fail_seal(&self, ino: Ino, why: &str) {
        let Some(mut node) = self.nodes.existing(ino) else { return };
        if let Some(sealing) = node.sealing.take() {
            sealing.cancel();
        }
        let Some(staged) = &mut node.staged else { return };
        let mut row = staged.row.clone();
        row.failed = Some(why.to_owned());
        if let Err(error) = self.commit(&[Change::Stage(row.clone())]) {
            let cause = text::chain(&error);
            tracing::error!("inode {ino}: cannot record that its bytes cannot be sealed ({why}): {cause}");
        }
        // A crash here leaves the bytes in their staging file, and the row says that they cannot be sealed.
        failpoint::hit("seal.failed");
        staged.row = row;
        let mut name = None;
        if let Some(staged) = node.staged.as_mut() {
            self.uncount(staged);
            name = Some(staged.row.file);
        }
        node.settled();
        self.report(format!(
            "inode {ino}: its bytes cannot be stored ({why}); they are kept in staging file {}, see `depotfs blob rescue`",
            name.map_or_else(String::new, |name| name.to_string())
        ));
    }

    /// Keeps bytes that the tree no longer refers to, for whoever asks in the next days.
    pub(super) fn set_aside(&self, file: StagingName, why: &str) -> Result<()> {
        self.descriptors.forget_staging(file);
        let path = self.store.set_aside(file, why)?;
        self.report(format!("bytes set aside as {}: {why}", path.display()));
        Ok(())
    }

    /// Something an operator should know, for the log and `status`.
    pub(super) fn report(&self, line: String) {
        tracing::error!("{line}");
        let mut reports = self.reports.lock();
        if reports.len() < REPORTS_MAX {
            reports.push(line);
        }
    }
}

/// Whether nobody can write the file any more; holds the lease in `sealing`.
fn lease(reader: &StagingReader, file: StagingName, sealing: &Sealing) -> Result<bool> {
    for _ in 0..LEASE_TRIES {
        let mut lease = sealing.lease.lock();
        if sealing.is_cancelled() {
            return Ok(false);
        }
        *lease = read_lease(reader).map_err(Error::io(format!("take a lease on staging file {file}")))?;
        if lease.is_some() {
            return Ok(true);
        }
        drop(lease);
        std::thread::sleep(LEASE_PAUSE);
    }
    Ok(false)
}

/// Since when a file is Closed that may be sealed now: `age` after its close, and later after tries in vain.
fn ready_since(node: &Locked<'_>, age: Duration) -> Option<Instant> {
    let staged = node.staged.as_ref()?;
    let closed = staged.closed?;
    if node.writers > 0 || node.orphan || node.putting || staged.row.failed.is_some() {
        return None;
    }
    let pause = match staged.attempts {
        0 => age,
        attempts => SEAL_AFTER.saturating_mul(1 << attempts.min(6)).min(RETRY_PAUSE_MAX).max(age),
    };
    (closed.elapsed() >= pause).then_some(closed)
}

pub(super) fn postpone(node: &mut Locked<'_>) {
    let Some(staged) = &mut node.staged else { return };
    staged.attempts = staged.attempts.saturating_add(1);
    if staged.closed.is_some() {
        staged.closed = Some(Instant::now());
    }
}

/// Lines kept for `status`.
const REPORTS_MAX: usize = 1000;
