//! Inodes that are more than a row of the index: open, staged, or removed but remembered by the kernel.
//!
//! Every other inode has no memory here at all. A node's lock guards how the kernel reaches the inode's bytes and where
//! the newest ones are; it is held while that changes, and never while bytes are hashed or put.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{ArcMutexGuard, Condvar, Mutex, RawMutex};

use crate::change::{Ino, Nanos, StagedRow, StagingName};
use crate::checksum::Checksum;
use crate::filestore::FileId;
use crate::vfs::seal::Sealing;

/// The kernel's registration of a file for passthrough, opaque outside `fuse`. Dropping the last one ends it.
pub type Token = Arc<dyn Any + Send + Sync>;

/// Where a file's bytes are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A blob of the filestore.
    Blob(Checksum),
    /// A staging file.
    Staging(StagingName),
}

/// How the kernel reaches the bytes of an inode while anything has it open; one way at a time.
#[derive(Default)]
pub enum Serving {
    /// Nobody has it open.
    #[default]
    Idle,
    /// Reads and writes go to a file below, past the daemon.
    Passthrough(Backing),
    /// Reads and writes come to the daemon, through the kernel's page cache.
    Daemon,
}

/// The file below that the kernel reads and writes directly.
pub struct Backing {
    /// Keeps the kernel's registration; all opens share it.
    pub token: Token,
    /// What that file is called.
    pub source: Source,
    /// Which file that is.
    pub file_id: FileId,
    /// The blob whose very file it is, so that no other inode may be served from it by passthrough.
    pub owns: Option<Checksum>,
}

/// An inode's newest bytes, not sealed yet.
#[derive(Debug)]
pub struct Staged {
    /// As committed.
    pub row: StagedRow,
    /// The last close of a writer, from which the wait for sealing counts; `None` while a writer is open.
    pub closed: Option<Instant>,
    /// The last time its bytes were forced while open, or its opening.
    pub forced_at: Instant,
    /// Seals that were tried and given up for now; spaces out the next.
    pub attempts: u32,
    /// Since when bytes may be there that were not forced, as far as opens tell; `None` when all were.
    pub unforced_since: Option<Instant>,
    /// What a close that waited for the hash hashed last: size and mtime then, and when that was.
    pub hashed: Option<(u64, Nanos, Instant)>,
    /// What a close stored far away last.
    pub through: Option<Through>,
    /// It did not start as the previous version, or was changed since, even if its mtime says nothing of it.
    pub fresh: bool,
    /// Bytes it counts for in the backlog while closed.
    pub counted: Option<u64>,
}

/// A version of a staging file that is stored where the loss of this host's disk does not reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Through {
    /// Its checksum.
    pub checksum: Checksum,
    /// Its size and mtime, where a later write moves that for sure.
    pub version: Option<(u64, Nanos)>,
}

impl Staged {
    /// Just staged, with a writer.
    pub fn new(row: StagedRow) -> Staged {
        let now = Instant::now();
        Staged {
            row,
            closed: None,
            forced_at: now,
            unforced_since: Some(now),
            attempts: 0,
            hashed: None,
            through: None,
            fresh: true,
            counted: None,
        }
    }
}

/// A copy within the mount of which no byte was moved yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloneOf {
    /// The staging file, still empty.
    pub file: StagingName,
    /// Whether it is there; of a new file that is expected to become a copy it is made when that proves wrong.
    pub made: bool,
    /// The blob copied from.
    pub checksum: Checksum,
    /// Its size.
    pub size: u64,
    /// The bytes from the start that the copy covers by now.
    pub covered: u64,
}

impl CloneOf {
    /// Of a file that has no bytes and no staging file.
    pub fn nothing_yet(file: StagingName) -> CloneOf {
        CloneOf { file, made: false, checksum: Checksum::EMPTY, size: 0, covered: 0 }
    }
}

/// What a node's lock guards.
#[derive(Default)]
pub struct State {
    /// Open handles that can read.
    pub readers: u32,
    /// Open handles of running programs.
    pub executors: u32,
    /// Open handles that can write.
    pub writers: u32,
    /// All open handles.
    pub opens: u32,
    /// How often it was opened since it is remembered here.
    pub opened: u64,
    /// How the kernel reaches the bytes.
    pub serving: Serving,
    /// Newer bytes than the index's content row.
    pub staged: Option<Staged>,
    /// A lazy copy under way or expected, standing in for the empty staging file.
    pub clone: Option<CloneOf>,
    /// Somebody fetches the bytes of that copy, with this node free.
    pub fetching: bool,
    /// The program that was expected to copy into it, and has not yet.
    pub guessed: Option<String>,
    /// A seal that is hashing; a writer cancels it.
    pub sealing: Option<Arc<Sealing>>,
    /// A seal that puts and commits; writers and setters wait for its end.
    pub putting: bool,
    /// Removed from the tree; ends when closed and forgotten.
    pub orphan: bool,
    /// The kernel forgot it after it became an orphan.
    pub forgotten: bool,
    /// Threads in [`Locked::settle`].
    waiting: u32,
    /// No longer in the table: whoever locks it now must look it up again.
    dead: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let serving = match &self.serving {
            Serving::Idle => "idle".to_owned(),
            Serving::Passthrough(b) => format!("passthrough {:?}", b.source),
            Serving::Daemon => "daemon".to_owned(),
        };
        f.debug_struct("State")
            .field("opens", &self.opens)
            .field("writers", &self.writers)
            .field("serving", &serving)
            .field("staged", &self.staged)
            .field("orphan", &self.orphan)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Whether the row of the index says everything there is to say.
    fn is_plain(&self) -> bool {
        self.opens == 0 && self.staged.is_none() && !self.orphan && !self.putting && self.waiting == 0
    }
}

/// A locked node. When it goes and nothing is left to remember, the node leaves the table.
pub struct Locked<'a> {
    nodes: &'a Nodes,
    ino: Ino,
    guard: ArcMutexGuard<RawMutex, State>,
}

impl Locked<'_> {
    /// The inode.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Waits until no seal is between `put` and its commit.
    pub fn settle(&mut self) {
        while self.guard.putting {
            self.guard.waiting += 1;
            ArcMutexGuard::unlocked(&mut self.guard, || {
                // The end may be told between the unlock and the wait; the time limit makes up for it.
                self.nodes.settled.wait_for(&mut self.nodes.gate.lock(), Duration::from_millis(5));
            });
            self.guard.waiting -= 1;
        }
    }

    /// Ends the time in which others wait in [`Locked::settle`].
    pub fn settled(&mut self) {
        self.putting = false;
        self.nodes.settled.notify_all();
    }
}

impl std::ops::Deref for Locked<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.guard
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.guard
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.guard.is_plain() && !self.guard.dead {
            self.guard.dead = true;
            self.nodes.shard(self.ino).lock().remove(&self.ino);
        }
    }
}

/// Tables are split so that requests for different inodes rarely meet.
const SHARDS: usize = 16;

/// How long a sweep over the nodes waits, in all, for those that somebody holds.
const SWEEP_PATIENCE: Duration = Duration::from_millis(50);

/// Somebody holds the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held;

/// The table of nodes.
///
/// Lock order: a node (two nodes: smaller number first), then a checksum's latch, then `Vfs::owners`, then the index.
/// The table's own locks are held for a look-up only, inside or outside of a node's.
#[derive(Debug, Default)]
pub struct Nodes {
    shards: [Mutex<HashMap<Ino, Arc<Mutex<State>>>>; SHARDS],
    /// Told when some node's `putting` ends.
    settled: Condvar,
    gate: Mutex<()>,
}

impl Nodes {
    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Arc<Mutex<State>>>> {
        &self.shards[ino as usize % SHARDS]
    }

    /// Locks the node of `ino`, making one if there is none.
    pub fn lock(&self, ino: Ino) -> Locked<'_> {
        loop {
            let node = self.shard(ino).lock().entry(ino).or_default().clone();
            if let Some(locked) = self.hold(ino, &node) {
                return locked;
            }
        }
    }

    /// Locks the node of `ino` if there is one.
    pub fn existing(&self, ino: Ino) -> Option<Locked<'_>> {
        let node = self.shard(ino).lock().get(&ino).cloned()?;
        self.hold(ino, &node)
    }

    /// Locks the node of `ino`, making one if there is none; `None` while somebody holds it.
    pub fn try_lock(&self, ino: Ino) -> Option<Locked<'_>> {
        let node = self.shard(ino).lock().entry(ino).or_default().clone();
        self.hold_until(ino, &node, Instant::now()).ok()?
    }

    /// Locks the node of `ino` if there is one and nobody holds it for longer than until `end`.
    pub fn try_existing(&self, ino: Ino, end: Instant) -> Result<Option<Locked<'_>>, Held> {
        let node = self.shard(ino).lock().get(&ino).cloned();
        node.map_or(Ok(None), |node| self.hold_until(ino, &node, end))
    }

    /// Locks the node of `ino`, making one if there is none, unless somebody holds it for longer than until `end`.
    pub fn lock_until(&self, ino: Ino, end: Instant) -> Result<Locked<'_>, Held> {
        loop {
            let node = self.shard(ino).lock().entry(ino).or_default().clone();
            if let Some(locked) = self.hold_until(ino, &node, end)? {
                return Ok(locked);
            }
        }
    }

    /// Shows each of `inos` that has a node; the answer is those that somebody holds, who may be waiting for a disk: what
    /// goes through all nodes must not wait with him.
    pub fn sweep<'a>(&'a self, inos: Vec<Ino>, mut visit: impl FnMut(Locked<'a>)) -> Vec<Ino> {
        // Most are held for a moment only, and all of them together are waited for that long.
        let end = Instant::now() + SWEEP_PATIENCE;
        let mut held = Vec::new();
        for ino in inos {
            match self.try_existing(ino, end) {
                Ok(node) => node.into_iter().for_each(&mut visit),
                Err(Held) => held.push(ino),
            }
        }
        held
    }

    /// Locks two different nodes, neither of them between `put` and its commit; returned in the order asked for.
    ///
    /// Waiting for one with the other locked could wait for ever: one seal may end both, one after the other.
    pub fn lock_two_settled(&self, a: Ino, b: Ino) -> (Locked<'_>, Locked<'_>) {
        loop {
            let (first, second) = self.lock_two(a, b);
            let busy = match (first.putting, second.putting) {
                (false, false) => return (first, second),
                (true, _) => a,
                (_, true) => b,
            };
            drop(first);
            drop(second);
            self.lock(busy).settle();
        }
    }

    /// Locks two different nodes in the one order that cannot deadlock; returned in the order asked for.
    fn lock_two(&self, a: Ino, b: Ino) -> (Locked<'_>, Locked<'_>) {
        if a < b {
            let first = self.lock(a);
            (first, self.lock(b))
        } else {
            let first = self.lock(b);
            (self.lock(a), first)
        }
    }

    /// The inodes that have a node now.
    pub fn inos(&self) -> Vec<Ino> {
        self.shards.iter().flat_map(|s| s.lock().keys().copied().collect::<Vec<_>>()).collect()
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hold(&self, ino: Ino, node: &Arc<Mutex<State>>) -> Option<Locked<'_>> {
        self.alive(ino, node.lock_arc())
    }

    fn hold_until(
        &self,
        ino: Ino,
        node: &Arc<Mutex<State>>,
        end: Instant,
    ) -> Result<Option<Locked<'_>>, Held> {
        let guard = node.try_lock_arc_until(end).ok_or(Held)?;
        Ok(self.alive(ino, guard))
    }

    fn alive(&self, ino: Ino, guard: ArcMutexGuard<RawMutex, State>) -> Option<Locked<'_>> {
        (!guard.dead).then_some(Locked { nodes: self, ino, guard })
    }
}
