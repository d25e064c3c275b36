//! Bytes and names to the disk: every few seconds unasked, and all of them when a flush or the end asks.
//!
//! What was forced survives a power cut, sealed or not. Staging files that a commit stopped naming are unlinked here, once
//! that commit is durable.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::change::{Change, Ino, StagedRow, StagingName};
use crate::failpoint;
use crate::text;
use crate::vfs::node::Locked;
use crate::vfs::seal::SEAL_BATCH;
use crate::vfs::{Error, Result, Vfs};

/// Rounds of a flush without any progress before it takes what is left for open.
const IDLE_ROUNDS_MAX: u32 = 5;

/// Closed files are forced when bytes of them may be unforced this long, however often they are opened and closed.
const UNFORCED_MAX: Duration = Duration::from_secs(4);

/// A lazy copy that stops half-way becomes bytes after this time, well before its blob could be reclaimed.
const CLONE_AGE_MAX: Duration = Duration::from_secs(4);

impl Vfs {
    /// Forces Closed files that are older than `age`, and open ones whose last force is older than `open_age`, then the
    /// index; unlinks what only undurable commits stopped naming. A job does this.
    pub fn force(&self, age: Duration, open_age: Duration) -> Result<()> {
        let mut due: Vec<(Ino, StagingName)> = Vec::new();
        let mut failure = None;
        for ino in self.nodes.inos() {
            let Some(mut node) = self.nodes.existing(ino) else { continue };
            let old = |since: Option<Instant>, age: Duration| since.is_some_and(|at| at.elapsed() >= age);
            if node.clone.is_some() && old(node.staged.as_ref().map(|staged| staged.forced_at), CLONE_AGE_MAX)
            {
                // A copy half made holds no reference to its blob, so it must not stay so.
                if let Err(error) = self.materialise(&mut node) {
                    failure.get_or_insert(error);
                }
            }
            let Some(staged) = &node.staged else { continue };
            if node.orphan || node.putting || staged.row.failed.is_some() || node.clone.is_some() {
                continue;
            }
            let due_now = match staged.closed {
                Some(_) if staged.unforced_since.is_none() => false,
                closed @ Some(_) => old(closed, age) || old(staged.unforced_since, UNFORCED_MAX),
                None => staged.forced_at.elapsed() >= open_age,
            };
            if due_now {
                due.push((ino, staged.row.file));
            }
        }
        for part in due.chunks(SEAL_BATCH) {
            if let Err(error) = self.force_some(part) {
                failure.get_or_insert(error);
            }
        }
        self.sync_index()?;
        // A crash in a round of forcing loses nothing: rows and names are the same before and after.
        failpoint::hit("force.synced");
        self.release_retired();
        failure.map_or(Ok(()), Err)
    }

    fn force_some(&self, files: &[(Ino, StagingName)]) -> Result<()> {
        let begun = Instant::now();
        let mut failure = None;
        // A file may be sealed or gone since the list was made: then its name is, and one by one finds out which.
        let names: Vec<StagingName> = files.iter().map(|(_, name)| *name).collect();
        let all = self.store.force_staging(&names).is_ok();
        failpoint::hit("force.forced");
        for (ino, name) in files {
            if !all {
                match self.store.force_staging(&[*name]) {
                    Ok(()) => {}
                    Err(error) if error.is_absent() => continue,
                    Err(error) => {
                        failure.get_or_insert(Error::from(error));
                        continue;
                    }
                }
            }
            if let Err(error) = self.record_forced(*ino, *name, begun) {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Commits, under the node's lock, that a staging file was forced by a force that began at `begun`.
    fn record_forced(&self, ino: Ino, name: StagingName, begun: Instant) -> Result<()> {
        let Some(mut node) = self.nodes.existing(ino) else { return Ok(()) };
        if node.putting || node.clone.is_some() {
            return Ok(());
        }
        if self.mark_forced(&mut node, name, begun)? == Some(true) {
            failpoint::hit("force.recorded");
        }
        Ok(())
    }

    /// Notes that a staging file was forced by a force that began at `begun`, and commits that unless it is known; whether it
    /// did. `None` when the file has another staging file by now, or none.
    pub(super) fn mark_forced(
        &self,
        node: &mut Locked<'_>,
        name: StagingName,
        begun: Instant,
    ) -> Result<Option<bool>> {
        let writers = node.writers;
        let Some(staged) = node.staged.as_mut().filter(|staged| staged.row.file == name) else {
            return Ok(None);
        };
        staged.forced_at = Instant::now();
        if writers == 0 && staged.closed.is_none_or(|closed| closed <= begun) {
            staged.unforced_since = None;
        }
        if staged.row.forced {
            return Ok(Some(false));
        }
        let row = StagedRow { forced: true, ..staged.row.clone() };
        self.commit(&[Change::Stage(row.clone())])?;
        staged.row = row;
        Ok(Some(true))
    }

    /// Unlinks staging files whose end is durable.
    pub(super) fn release_retired(&self) {
        let _releasing = self.releasing.lock();
        let durable = self.index.durable_seq();
        let done = {
            let mut retired = self.retired.lock();
            let later = retired.split_off(&(durable + 1));
            std::mem::replace(&mut *retired, later)
        };
        for (name, sealed) in done.into_values().flatten() {
            // A crash before or after leaves a staging file that no row names, or none.
            failpoint::hit("retire.durable");
            if sealed {
                self.give_up_staging(name)
            } else {
                self.let_go(name)
            }
            failpoint::hit("retire.unlinked");
        }
    }

    /// Seals and forces everything that is closed; the answer is what is left. `depotfs flush` and the stop of the daemon.
    /// When `go_on` says no, the rest is forced and not sealed.
    pub fn flush_all(&self, go_on: impl Fn() -> bool) -> Result<u64> {
        let mut failure = None;
        let mut idle_rounds = 0;
        self.await_releases();
        loop {
            let batch = self.sealable_at_once();
            let mut sealed = 0;
            for part in batch.chunks(SEAL_BATCH).take_while(|_| go_on()) {
                match self.seal(part) {
                    Ok(n) => sealed += n,
                    Err(error) => {
                        failure.get_or_insert(error);
                    }
                }
            }
            let busy = |ino: &Ino| {
                self.nodes.existing(*ino).is_some_and(|node| node.sealing.is_some() || node.putting)
            };
            // What neither is sealed nor being sealed by somebody else is still mapped for writing: open, in a word.
            idle_rounds = if sealed > 0 || batch.iter().any(busy) { 0 } else { idle_rounds + 1 };
            let over = batch.is_empty() || idle_rounds > IDLE_ROUNDS_MAX || !go_on();
            if over || sealed == 0 && failure.is_some() {
                break;
            }
            if sealed == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.force(Duration::ZERO, Duration::ZERO)?;
        self.reap()?;
        self.write_atimes()?;
        self.sync_index()?;
        self.release_retired();
        self.settle_half_put();
        if let Err(error) = self.index.tidy() {
            // Everything is durable in the redo log, on a full disk as well.
            tracing::warn!("the index file was not brought up to date: {}", text::chain(&error));
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(self.backlog.files.load(Ordering::Relaxed)),
        }
    }

    /// The kernel tells of a close after it has answered it: what was closed before now is to be closed here, too.
    ///
    /// Requests are taken in order, so one of our own that is answered comes after them. It is not waited for longer than
    /// a moment: request threads may all be waiting for what this flush is going to do.
    fn await_releases(&self) {
        let (told, answered) = crossbeam_channel::bounded::<()>(1);
        let mountpoint = self.options.mountpoint.clone();
        let asked = std::thread::Builder::new().name("barrier".to_owned()).spawn(move || {
            let _ = nix::sys::statvfs::statvfs(&mountpoint);
            let _ = told.send(());
        });
        if asked.is_ok() && answered.recv_timeout(Duration::from_millis(200)).is_ok() {
            // Another thread may have taken a close just before, and be about to act on it.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn sealable_at_once(&self) -> Vec<Ino> {
        let closed = |ino: &Ino| {
            self.nodes.existing(*ino).is_some_and(|node| {
                let waits =
                    node.staged.as_ref().is_some_and(|s| s.closed.is_some() && s.row.failed.is_none());
                waits && node.writers == 0 && !node.orphan
            })
        };
        let mut inos: Vec<Ino> = self.nodes.inos().into_iter().filter(closed).collect();
        inos.sort_unstable();
        inos
    }
}
