//! The shapes of answers: what the daemon fills in and the commands print.
//!
//! They are also what `--json` shows, so names stay as they are once released; new fields may be added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Bytes;
use crate::jobs::balance;

/// Everything `depotfs status` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The depot's directory.
    pub depot: String,
    /// Its id.
    pub id: String,
    /// Version of the program that answers.
    pub version: String,
    /// Whether a daemon runs for it; what only a daemon knows is empty otherwise.
    pub running: bool,
    /// The mount.
    pub mount: Option<MountStatus>,
    /// What close(2) waits for at least.
    pub durability: String,
    /// How reads are served.
    pub reads: Reads,
    /// The chain of providers, outermost first.
    pub chain: Vec<Layer>,
    /// What is in the tree.
    pub counts: Counts,
    /// Bytes of all files over bytes of all blobs; 1 for an empty depot.
    pub dedup_ratio: f64,
    /// The index.
    pub index: IndexStatus,
    /// Content on its way into the filestore.
    pub pending: Pending,
    /// Files whose newest bytes cannot be sealed.
    pub failed: Vec<Trouble>,
    /// Bytes that were set aside and can be had with `blob rescue`.
    pub aside: Vec<Aside>,
    /// Blobs found missing, of the wrong size or altered.
    pub damaged: Vec<Trouble>,
    /// What recovery at the start of the daemon found.
    pub reports: Vec<String>,
    /// What the last reading of depot.toml did, if it was read again since the start.
    pub reloaded: Option<Reloaded>,
    /// How the balance goes that is under way, or how the last one went.
    pub balance: Option<Balance>,
}

/// What became of a depot.toml that was read again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reloaded {
    /// Keys whose new value holds.
    pub changed: Vec<String>,
    /// Keys whose new value holds from the next mount on.
    pub waiting: Vec<String>,
    /// What could not be done, and why.
    pub refused: Vec<String>,
    /// Why nothing of it could be used.
    pub error: Option<String>,
}

/// A balance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Balance {
    /// Whether it is under way.
    pub running: bool,
    /// What it did so far.
    #[serde(flatten)]
    pub report: balance::Report,
}

/// Where and how a depot is mounted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountStatus {
    /// Where.
    pub mountpoint: String,
    /// The daemon.
    pub pid: u32,
    /// Seconds since it started.
    pub age_s: u64,
    /// The `-o` options it was given.
    pub options: String,
    /// Whether changes are refused.
    pub read_only: bool,
    /// The directory of the tree that is the root of the mount; empty for the whole tree.
    pub subdir: String,
}

/// How bytes get to readers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reads {
    /// `passthrough` or `daemon`.
    pub mode: String,
    /// Why.
    pub why: String,
}

/// One provider of the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Its type.
    pub kind: String,
    /// Its directory.
    #[serde(default)]
    pub directory: Option<String>,
    /// Type of that directory's file system.
    #[serde(default)]
    pub file_system: Option<String>,
    /// Whether copies there can share blocks.
    #[serde(default)]
    pub reflink: bool,
    /// Its room.
    #[serde(default)]
    pub space: Option<Space>,
    /// Whether it works.
    pub health: Health,
    /// Blobs that have fewer copies than they should.
    #[serde(default)]
    pub owed: u64,
    /// How full it is, if it is a cache.
    #[serde(default)]
    pub cache: Option<Cache>,
    /// What waits to be uploaded.
    #[serde(default)]
    pub queue: Option<Queue>,
    /// Providers below it.
    #[serde(default)]
    pub children: Vec<Layer>,
}

/// How full a cache is, and what it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cache {
    /// Room in bytes that it may take.
    pub limit: u64,
    /// Room that it takes: blobs, what arrives, and what was evicted and is open.
    pub used: u64,
    /// Room of what arrives.
    pub arriving: u64,
    /// Blobs.
    pub entries: u64,
    /// Openings since the daemon started that it answered.
    pub hits: u64,
    /// Openings since then that it did not.
    pub misses: u64,
    /// Blobs evicted since then.
    pub evictions: u64,
}

/// What the past tells about the size of a cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheAdvice {
    /// Openings that are remembered.
    pub asked: u64,
    /// Those that the cache answered.
    pub hits: u64,
    /// Those of blobs that were opened for the first time: no cache has them.
    pub first: u64,
    /// Bytes of all blobs that were asked for.
    pub bytes: u64,
    /// The limit of the cache.
    pub limit: u64,
    /// Hit rates in percent, each with the smallest limit that would have reached it; none where no cache could.
    pub sizes: Vec<(u64, Option<u64>)>,
}

/// What `warm` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Warmed {
    /// Files that were fetched.
    pub fetched: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Files that were in the cache already, or were not sealed yet and are on this host.
    pub there: u64,
    /// Files that are not cached, as there is no room or they are too large.
    pub passed_over: u64,
    /// Files that could not be read.
    pub failed: Vec<Trouble>,
}

/// What `cache drop` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dropped {
    /// Blobs that are gone from the cache.
    pub blobs: u64,
}

/// What waits to be uploaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Blobs.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Age of the oldest.
    pub oldest_s: u64,
    /// Of them, those that are being uploaded.
    pub uploading: u64,
    /// Removals that the provider below has not been told of.
    pub removals: u64,
    /// Uploaded blobs whose files somebody still uses.
    pub in_use: u64,
    /// Failures since the last success.
    pub failures: u64,
    /// The last of these.
    pub last_error: Option<String>,
    /// Entries whose bytes are not those of their name.
    pub bad: Vec<String>,
}

/// Room of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes the daemon may still use.
    pub available: u64,
}

/// Whether a provider or the index works.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It does.
    #[default]
    Up,
    /// It does not, and why.
    Failing(String),
}

/// What is in the tree and in the filestore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Directories at the top.
    pub repositories: u64,
    /// Directories in all.
    pub directories: u64,
    /// Regular files.
    pub files: u64,
    /// Everything else: links, pipes, sockets, devices.
    pub others: u64,
    /// Inodes without a name.
    pub orphans: u64,
    /// Bytes of all files.
    pub logical_bytes: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of all blobs.
    pub blob_bytes: u64,
}

/// The index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexStatus {
    /// Its file.
    pub path: String,
    /// Bytes of it and of its write-ahead log.
    pub bytes: u64,
    /// Those bytes over the bytes of all blobs; 0 while there are none.
    pub filestore_ratio: f64,
    /// Whether it could be asked; the counts are 0 when not.
    pub health: Health,
}

/// Content on its way into the filestore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pending {
    /// Files with a writer.
    pub dirty: u64,
    /// Files without one that wait to be sealed.
    pub closed: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Files that a request or a job holds just now, of which this does not tell whether they are among `dirty`.
    pub held: u64,
}

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// A path or checksum.
    pub what: String,
    /// What is wrong.
    pub why: String,
}

/// What became of a change of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rechained {
    /// The providers of the new chain, outermost first.
    pub chain: Vec<String>,
    /// Blobs copied.
    pub copied: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Blobs that could not be copied.
    pub failures: u64,
    /// The first of them, and why.
    pub failed: Vec<Trouble>,
    /// Nearly all is copied: the next mount does the rest.
    pub ready: bool,
    /// The depot has the new chain.
    pub switched: bool,
    /// Files that were set aside in the old chain, where nobody tells of them any more.
    pub aside: u64,
    /// Directories of the old chain that the new one does not use.
    pub left: Vec<String>,
}

/// Bytes that were set aside, or cannot be sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// The name `blob rescue` takes.
    pub name: String,
    /// The path of a file that cannot be sealed; none for bytes that were set aside.
    pub path: Option<Bytes>,
    /// How many.
    pub bytes: u64,
    /// Seconds since they were set aside, or written.
    pub age_s: u64,
    /// Why.
    pub why: String,
}

/// What `flush` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flushed {
    /// Files closed meanwhile, or that could not be sealed yet and are tried again.
    pub left: u64,
    /// Files that still have a writer, forced but not sealed.
    pub open: u64,
    /// Files that could not be sealed.
    pub failed: Vec<Trouble>,
}

/// One repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// Its name.
    pub name: Bytes,
    /// The settings that differ from the default.
    pub settings: BTreeMap<String, String>,
}

/// Where a blob is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// Its name.
    pub sha1: String,
    /// Its bytes.
    pub size: u64,
    /// The files that hold it: provider and path.
    pub places: Vec<Place>,
    /// Paths of the tree that show it; cut after a thousand.
    pub paths: Vec<Bytes>,
    /// How many inodes have it as their content.
    pub references: u64,
}

/// One copy of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Type of the provider.
    pub provider: String,
    /// Where.
    pub path: Bytes,
}

/// The outcome of `blob verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Its name.
    pub sha1: String,
    /// Bytes read.
    pub size: u64,
    /// What is wrong with them; `None`: nothing.
    pub wrong: Option<String>,
}

/// All checksums of one content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    /// SHA-1, the blob's name.
    pub sha1: String,
    /// SHA-256.
    pub sha256: String,
    /// MD5.
    pub md5: String,
    /// BLAKE3.
    pub blake3: String,
    /// Bytes.
    pub size: u64,
}
