//! POSIX semantics of the tree: no kernel types, no SQL, no provider names; one file per family of operations.
//!
//! A file's content goes Sealed (a blob) -> Dirty (a staging file, a writer is open) -> Closed (a staging file, no writer)
//! -> Sealed. `stage` and `open` make a file Dirty, `seal` brings it back; [`node`] holds what is between.

pub mod acl;
pub mod ahead;
pub mod attr;
pub mod caller;
pub mod checksums;
pub mod copiers;
pub mod copy;
pub mod descriptors;
pub mod directory;
pub mod error;
pub mod force;
pub mod lookup;
pub mod node;
pub mod open;
pub mod owners;
pub mod put;
pub mod read;
pub mod reclaim;
pub mod recover;
pub mod remove;
pub mod rename;
pub mod seal;
pub mod serve;
pub mod stage;
pub mod status;
pub mod through;
pub mod write;
pub mod xattr;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::change::{Change, Ino, Inode, Nanos, ROOT, StagingName};
use crate::checksum::{Checksum, Digest};
use crate::clock;
use crate::crowd::Crowd;
use crate::filestore::Filestore;
use crate::index::{Index, Seq};
use crate::vfs::ahead::Ahead;
use crate::vfs::checksums::Undigestible;
use crate::vfs::copiers::Copiers;
use crate::vfs::descriptors::Descriptors;
use crate::vfs::node::Nodes;
use crate::vfs::owners::Owner;

pub use caller::Caller;
pub use error::{Error, Result};

/// Asked between the steps of long work: false ends it early, and what is done by then stays done.
pub type GoOn<'a> = &'a dyn Fn() -> bool;

/// What close(2) and fsync(2) wait for; the stricter of mount and repository holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// close waits for nothing, fsync for the disk, as on a local disk.
    #[default]
    Fsync,
    /// close waits until a power cut can lose nothing of the file.
    Close,
    /// close waits until the loss of this host's disk can lose nothing of the file's bytes.
    Remote,
}

impl Durability {
    /// Reads the value of the setting and mount option `durability`.
    pub fn parse(text: &str) -> Option<Durability> {
        match text {
            "fsync" => Some(Durability::Fsync),
            "close" => Some(Durability::Close),
            "remote" => Some(Durability::Remote),
            _ => None,
        }
    }

    /// As written in settings and options.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Fsync => "fsync",
            Durability::Close => "close",
            Durability::Remote => "remote",
        }
    }
}

/// When a blob's bytes are compared with its checksum before they are served; a setting of a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Only existence and size are looked at.
    #[default]
    Never,
    /// At the first open since the mount.
    FirstOpen,
    /// At every open.
    Always,
}

impl Verify {
    /// Reads the value of the setting `verify`.
    pub fn parse(text: &str) -> Option<Verify> {
        match text {
            "never" => Some(Verify::Never),
            "first-open" => Some(Verify::FirstOpen),
            "always" => Some(Verify::Always),
            _ => None,
        }
    }
}

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the tree is mounted, as the daemon itself sees it.
    pub mountpoint: PathBuf,
    /// The directory of the tree that is the root of the mount.
    pub subdir: Ino,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Times of last read are not kept.
    pub noatime: bool,
    /// The least that close waits for.
    pub durability: Durability,
    /// Serve bytes past the daemon where the kernel can.
    pub passthrough: bool,
    /// A change of names is durable when it is answered.
    pub sync_names: bool,
    /// Bytes of files that wait to be sealed, beyond which writers wait.
    pub backlog_bytes_max: u64,
    /// The same as a number of files.
    pub backlog_files_max: u64,
}

/// Settings of a repository, read from the index.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Least durability of its files.
    pub durability: Durability,
    /// When its blobs are verified.
    pub verify: Verify,
}

impl Settings {
    /// Reads the rows of the index.
    fn of(rows: Vec<(String, String)>) -> Settings {
        let mut settings = Settings::default();
        for (key, value) in rows {
            match key.as_str() {
                "durability" => settings.durability = Durability::parse(&value).unwrap_or_default(),
                "verify" => settings.verify = Verify::parse(&value).unwrap_or_default(),
                _ => {}
            }
        }
        settings
    }
}

/// Settings that were read, by repository.
#[derive(Debug, Default)]
struct KnownSettings {
    /// How often they were forgotten: what was read before the last time may be older than the change that caused it.
    forgotten: u64,
    of: HashMap<Ino, Settings>,
}

/// The tree.
pub struct Vfs {
    index: Index,
    store: Filestore,
    options: Options,
    nodes: Nodes,
    descriptors: Descriptors,
    /// For each blob whose own file the kernel serves by passthrough: the one inode it may serve.
    owners: Mutex<BTreeMap<Checksum, Owner>>,
    /// Files sealed as a blob that stood already, while their staging file was mapped: it is still that of the mapping.
    left: Mutex<BTreeMap<Ino, StagingName>>,
    /// Where the last look at those two ended.
    swept: Mutex<(Option<Checksum>, Option<Ino>)>,
    /// Held for reading while bytes of a blob are read by the daemon, for writing when a blob's file changes hands.
    blob_reads: RwLock<()>,
    /// How often a blob's file changed hands.
    hand_overs: AtomicU64,
    /// Whether the filestore's disk moves the mtime of a file that is written through a mapping.
    mappings_move_mtime: bool,
    /// Why passthrough is off; `None` while it is on.
    passthrough_off: Mutex<Option<String>>,
    passthrough: AtomicBool,
    backlog: Backlog,
    /// How many staged versions have ended: a row read before the last of them may be older than it looks.
    ended: AtomicU64,
    /// Staging names that nothing needs once the commit with that number is durable, and whether it sealed them.
    retired: Mutex<BTreeMap<Seq, Vec<(StagingName, bool)>>>,
    /// Staging files that nothing needs and that are a blob's file too, perhaps of one that no commit ever named.
    half_put: Mutex<Vec<StagingName>>,
    /// Held while retired names are unlinked, so that whoever waits for that finds them gone.
    releasing: Mutex<()>,
    /// Files that are fsynced at the same time.
    fsyncs: Crowd<(Ino, StagingName)>,
    /// Orphans that can end.
    reapable: Mutex<Vec<Ino>>,
    /// Times of last read not yet written to the index.
    atimes: Mutex<HashMap<Ino, Nanos>>,
    settings: RwLock<KnownSettings>,
    verified: Mutex<std::collections::HashSet<Checksum>>,
    /// Blobs that could not be served, and why.
    damaged: Mutex<BTreeMap<Checksum, String>>,
    /// What close told its caller to be storable, until it is stored: a second content of the same name must be refused.
    promised: Mutex<HashMap<Checksum, Digest>>,
    /// Things of the recovery at start that an operator should know.
    reports: Mutex<Vec<String>>,
    copiers: Copiers,
    ahead: Ahead,
    undigested: Mutex<std::collections::VecDeque<Checksum>>,
    /// Blobs whose digests could not be computed.
    undigestible: Mutex<Undigestible>,
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vfs").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What waits to be sealed, bounded.
#[derive(Debug, Default)]
struct Backlog {
    files: AtomicU64,
    bytes: AtomicU64,
    less: Condvar,
    gate: Mutex<()>,
}

impl Vfs {
    /// The tree of an open index and filestore; `recover` comes before the first request.
    pub fn new(index: Index, store: Filestore, options: Options) -> Vfs {
        let off = (!options.passthrough).then(|| "switched off by an option".to_owned());
        Vfs {
            index,
            nodes: Nodes::default(),
            descriptors: Descriptors::default(),
            owners: Mutex::default(),
            left: Mutex::default(),
            swept: Mutex::default(),
            blob_reads: RwLock::default(),
            hand_overs: AtomicU64::new(0),
            mappings_move_mtime: store.status().file_system.is_none_or(|name| name != "tmpfs"),
            passthrough: AtomicBool::new(off.is_none()),
            passthrough_off: Mutex::new(off),
            backlog: Backlog::default(),
            ended: AtomicU64::new(0),
            retired: Mutex::default(),
            half_put: Mutex::default(),
            releasing: Mutex::default(),
            fsyncs: Crowd::default(),
            reapable: Mutex::default(),
            atimes: Mutex::default(),
            settings: RwLock::default(),
            verified: Mutex::default(),
            damaged: Mutex::default(),
            promised: Mutex::default(),
            reports: Mutex::default(),
            copiers: Copiers::default(),
            ahead: Ahead::default(),
            undigested: Mutex::default(),
            undigestible: Mutex::default(),
            store,
            options,
        }
    }

    /// The index below.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The filestore below.
    pub fn store(&self) -> &Filestore {
        &self.store
    }

    /// Who reads what is going to be read next.
    pub fn ahead(&self) -> &Ahead {
        &self.ahead
    }

    /// How this mount behaves.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether the kernel is given files to serve by itself.
    pub fn passthrough(&self) -> bool {
        self.passthrough.load(Ordering::Relaxed)
    }

    /// Stops the use of passthrough for new opens, and remembers why for `status`.
    pub fn disable_passthrough(&self, why: String) {
        if self.passthrough.swap(false, Ordering::Relaxed) {
            tracing::warn!("passthrough is off, bytes go through the daemon: {why}");
            *self.passthrough_off.lock() = Some(why);
        }
    }

    /// The row of an inode that must be there.
    fn inode(&self, ino: Ino) -> Result<Inode> {
        self.index.inode(ino)?.ok_or(Error::Stale(ino))
    }

    /// Commits `changes` in one transaction.
    fn commit(&self, changes: &[Change]) -> Result<Seq> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        Ok(self.index.commit(changes)?)
    }

    fn next_staging(&self) -> Result<StagingName> {
        Ok(StagingName(self.index.next_number()?))
    }

    /// Settings that hold for a file, by its repository.
    fn settings_of(&self, ino: Ino) -> Result<Settings> {
        let Some(repository) = self.index.repository(ino)? else { return Ok(Settings::default()) };
        let forgotten = {
            let known = self.settings.read();
            if let Some(settings) = known.of.get(&repository) {
                return Ok(*settings);
            }
            known.forgotten
        };
        let settings = Settings::of(self.index.settings(repository)?);
        self.keep_settings(repository, settings, forgotten);
        Ok(settings)
    }

    /// Remembers settings that were read when they had been forgotten `forgotten` times, unless they were again since.
    fn keep_settings(&self, repository: Ino, settings: Settings, forgotten: u64) {
        let mut known = self.settings.write();
        if known.forgotten == forgotten {
            known.of.insert(repository, settings);
        }
    }

    /// Makes changed settings hold for what is opened from now on.
    pub fn forget_settings(&self) {
        let mut known = self.settings.write();
        known.forgotten += 1;
        known.of.clear();
    }

    /// The durability that holds for a file.
    fn durability_of(&self, ino: Ino) -> Result<Durability> {
        Ok(self.settings_of(ino)?.durability.max(self.options.durability))
    }

    /// Unlinks `name` once the commit `seq`, which stopped naming it, is durable. Its version was not sealed.
    fn retire(&self, seq: Seq, name: StagingName) {
        self.descriptors.forget_staging(name);
        self.retired.lock().entry(seq).or_default().push((name, false));
    }

    /// As `retire`, of a version whose seal is what `seq` committed: a blob that is the same file is known.
    fn retire_sealed(&self, seq: Seq, name: StagingName) {
        self.descriptors.forget_staging(name);
        self.retired.lock().entry(seq).or_default().push((name, true));
    }
}

/// Names of the mount's own directories in a listing of its root stay hidden; they can be looked up.
fn is_reserved(ino: Ino) -> bool {
    ino > ROOT && ino < crate::change::FIRST_INO
}

/// Refuses names that no directory can hold, and the reserved ones at the top.
fn check_new_name(parent: Ino, name: &[u8]) -> Result<()> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(Error::Invalid("a name"));
    }
    if parent == ROOT && crate::change::RESERVED.iter().any(|(reserved, _)| *reserved == name) {
        return Err(Error::NotPermitted("the name is reserved"));
    }
    if parent == crate::change::TRASH || parent == crate::change::SNAPSHOTS {
        return Err(Error::NotPermitted("nothing can be put here"));
    }
    Ok(())
}

/// Longest name of a dentry.
pub const NAME_BYTES_MAX: usize = 255;

fn now() -> Nanos {
    clock::now()
}

#[cfg(test)]
mod tests;
