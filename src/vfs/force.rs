//! Bytes and names to the disk: every few seconds unasked, and all of them when a flush or the end asks.
//!
//! What was forced survives a power cut, sealed or not. Staging files that a commit stopped naming are unlinked here, once
//! that commit is durable.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::change::{Change, Ino, StagedRow, StagingName};
use crate::failpoint;
use crate::filestore::Reach;
use crate::text;
use crate::vfs::node::{Locked, State};
use crate::vfs::seal::SEAL_BATCH;
use crate::vfs::{Error, GoOn, Result, Vfs};

/// Rounds of a flush without any progress before it takes what is left for open.
const IDLE_ROUNDS_MAX: u32 = 5;

/// Pause before a flush looks again at what it could not seal or force.
const FLUSH_PAUSE: Duration = Duration::from_millis(20);

/// How long a round waits for a file that somebody else holds, to commit that it was forced.
const RECORD_PATIENCE: Duration = Duration::from_millis(5);

/// Closed files are forced when bytes of them may be unforced this long, however often they are opened and closed.
const UNFORCED_MAX: Duration = Duration::from_secs(4);

/// A lazy copy that stops half-way becomes bytes after this time, well before its blob could be reclaimed.
const CLONE_AGE_MAX: Duration = Duration::from_secs(4);

impl Vfs {
    /// Forces Closed files that are older than `age`, and open ones whose last force is older than `open_age`, then the
    /// index; unlinks what only undurable commits stopped naming. A job does this.
    pub fn force(&self, age: Duration, open_age: Duration) -> Result<()> {
        // What somebody holds is looked at again in the next round: the others, and the names, do not wait for it.
        self.force_some_of(self.nodes.inos(), age, open_age).1
    }

    /// As `force`, of these files; those that somebody holds, and how it went.
    fn force_some_of(&self, inos: Vec<Ino>, age: Duration, open_age: Duration) -> (Vec<Ino>, Result<()>) {
        let mut due: Vec<(Ino, StagingName)> = Vec::new();
        let mut failure = None;
        let mut far = Vec::new();
        let mut held = self.nodes.sweep(inos, |mut node| {
            if self.store.reach() > Reach::Here {
                far.extend(has_old_clone(&node).then_some(node.ino()));
            } else if has_old_clone(&node)
                && let Err(error) = self.materialise(&mut node)
            {
                failure.get_or_insert(error);
            }
            due.extend(due_to_be_forced(&node, age, open_age).map(|name| (node.ino(), name)));
        });
        let forced = self.force_now(&due, &mut held);
        for ino in far {
            match self.copy_ahead_if(ino, has_old_clone) {
                // It is to be forced, as others that could not be looked at.
                Ok(()) => held.push(ino),
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        (held, failure.map_or(forced, Err))
    }

    /// Forces these staging files and the index, and unlinks what nothing names any more.
    fn force_now(&self, due: &[(Ino, StagingName)], held: &mut Vec<Ino>) -> Result<()> {
        let mut failure = None;
        for part in due.chunks(SEAL_BATCH) {
            if let Err(error) = self.force_batch(part, held) {
                failure.get_or_insert(error);
            }
        }
        self.sync_index()?;
        // A crash in a round of forcing loses nothing: rows and names are the same before and after.
        failpoint::hit("force.synced");
        self.release_retired();
        failure.map_or(Ok(()), Err)
    }

    fn force_batch(&self, files: &[(Ino, StagingName)], held: &mut Vec<Ino>) -> Result<()> {
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
            match self.record_forced(*ino, *name, begun) {
                Ok(true) => {}
                Ok(false) => held.push(*ino),
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Commits, under the node's lock, that a staging file was forced by a force that began at `begun`; false when somebody
    /// holds it.
    fn record_forced(&self, ino: Ino, name: StagingName, begun: Instant) -> Result<bool> {
        let Ok(node) = self.nodes.try_existing(ino, Instant::now() + RECORD_PATIENCE) else {
            return Ok(false);
        };
        let Some(mut node) = node else { return Ok(true) };
        if node.putting || node.clone.is_some() {
            return Ok(true);
        }
        if self.mark_forced(&mut node, name, begun)? == Some(true) {
            failpoint::hit("force.recorded");
        }
        Ok(true)
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

    /// Forces everything, and then seals what can be sealed until `deadline`; the answer is what is left. The end of the mount.
    pub fn put_away(&self, deadline: Instant) -> Result<u64> {
        if self.options.read_only {
            return Ok(0);
        }
        // Hashing takes its time. Bytes that are forced are safe, whatever happens meanwhile.
        let forced = self.force(Duration::ZERO, Duration::ZERO);
        let left = self.flush_all(&|| Instant::now() < deadline)?;
        if let Err(error) = forced {
            tracing::warn!(
                "a first try to force everything failed, the last did not: {}",
                text::chain(&error)
            );
        }
        Ok(left)
    }

    /// Seals and forces everything that is closed; the answer is what is left. `depotfs flush` and the stop of the daemon.
    /// When `go_on` says no, the rest is forced and not sealed.
    pub fn flush_all(&self, go_on: GoOn<'_>) -> Result<u64> {
        if self.options.read_only {
            return Ok(0);
        }
        self.await_releases();
        // None of these steps is left out because one before it failed.
        let steps = [
            self.seal_all(go_on),
            self.force_all(go_on),
            self.reap().map(drop),
            self.write_atimes(),
            self.sync_index(),
        ];
        self.release_retired();
        self.settle_half_put(go_on);
        if let Err(error) = self.index.tidy() {
            // Everything is durable in the redo log, on a full disk as well.
            tracing::warn!("the index file was not brought up to date: {}", text::chain(&error));
        }
        steps.into_iter().collect::<Result<()>>()?;
        Ok(self.backlog.files.load(Ordering::Relaxed))
    }

    /// Seals what is Closed, and what somebody holds or seals meanwhile, as soon as it is free.
    fn seal_all(&self, go_on: GoOn<'_>) -> Result<()> {
        let mut failure = None;
        let mut idle_rounds = 0;
        let mut held: Option<Vec<Ino>> = None;
        loop {
            let (batch, held_now) = self.sealable_at_once();
            // Once it was free it was looked at: somebody always holds something, and this comes to an end.
            let held = held.get_or_insert_with(|| held_now.clone());
            held.retain(|ino| held_now.contains(ino));
            let mut sealed = 0;
            for part in batch.chunks(SEAL_BATCH) {
                match self.seal(part, go_on) {
                    Ok(n) => sealed += n,
                    Err(error) => drop(failure.get_or_insert(error)),
                }
            }
            // What neither is sealed nor being sealed by somebody else is still mapped for writing: open, in a word.
            idle_rounds =
                if sealed > 0 || !held.is_empty() || self.is_busy(&batch) { 0 } else { idle_rounds + 1 };
            let over = batch.is_empty() && held.is_empty() || idle_rounds > IDLE_ROUNDS_MAX || !go_on();
            if over || sealed == 0 && failure.is_some() {
                return failure.map_or(Ok(()), Err);
            }
            if sealed == 0 {
                std::thread::sleep(FLUSH_PAUSE);
            }
        }
    }

    /// Whether one of these files is being sealed, or somebody holds it.
    fn is_busy(&self, inos: &[Ino]) -> bool {
        let mut sealing = false;
        let held = self.nodes.sweep(inos.to_vec(), |node| sealing |= node.sealing.is_some() || node.putting);
        sealing || !held.is_empty()
    }

    /// Forces every file, and what somebody holds as soon as it is free.
    fn force_all(&self, go_on: GoOn<'_>) -> Result<()> {
        let (mut held, mut forced) = self.force_some_of(self.nodes.inos(), Duration::ZERO, Duration::ZERO);
        while !held.is_empty() && go_on() {
            std::thread::sleep(FLUSH_PAUSE);
            let (still_held, again) = self.force_some_of(held, Duration::ZERO, Duration::ZERO);
            (held, forced) = (still_held, forced.and(again));
        }
        forced
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

    /// The files that are Closed, and those that may be but are held by somebody.
    fn sealable_at_once(&self) -> (Vec<Ino>, Vec<Ino>) {
        let mut closed: Vec<Ino> = Vec::new();
        let held = self.nodes.sweep(self.nodes.inos(), |node| {
            let waits = node.staged.as_ref().is_some_and(|s| s.closed.is_some() && s.row.failed.is_none());
            closed.extend((waits && node.writers == 0 && !node.orphan).then_some(node.ino()));
        });
        closed.sort_unstable();
        (closed, held)
    }
}

/// Whether a copy half made has stood for long: it holds no reference to its blob, so it must not stay so.
fn has_old_clone(node: &State) -> bool {
    let old = node.staged.as_ref().is_some_and(|staged| staged.forced_at.elapsed() >= CLONE_AGE_MAX);
    node.clone.is_some() && !node.fetching && old
}

/// The staging file of a node, if it is to be forced now.
fn due_to_be_forced(node: &Locked<'_>, age: Duration, open_age: Duration) -> Option<StagingName> {
    let staged = node.staged.as_ref()?;
    if node.orphan || node.putting || staged.row.failed.is_some() || node.clone.is_some() {
        return None;
    }
    let old = |since: Option<Instant>, age: Duration| since.is_some_and(|at| at.elapsed() >= age);
    let due = match staged.closed {
        Some(_) if staged.unforced_since.is_none() => false,
        closed @ Some(_) => old(closed, age) || old(staged.unforced_since, UNFORCED_MAX),
        None => staged.forced_at.elapsed() >= open_age,
    };
    due.then_some(staged.row.file)
}
