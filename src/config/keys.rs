//! The table of keys: what may stand in `depot.toml`, and what may be set for a repository.
//!
//! Checks, defaults, help and the page docs/configuration.md come from these rows. A new key is a row here and one line
//! where `Config` is built.

use std::borrow::Cow;

use super::chain;
use super::nearest::suggestion;
use crate::text;

pub use super::kind::{Kind, parse_count, parse_flag};
pub(super) use super::kind::{parse_mode, parse_owner};

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Dotted name: the part before the last dot is the table it stands in. With `[]` behind it there may be several such
    /// tables, `[[sharding.shard]]` for `sharding.shard[].dir`.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// Value when it is not given; `None` for a key that must stand in the file, where its section is a provider's only when
    /// the chain has that provider.
    pub default: Option<&'static str>,
    /// One sentence for the user.
    pub doc: &'static str,
}

/// The words for `durability`, weakest first.
pub const DURABILITY: &[&str] = &["fsync", "close", "remote"];

/// The words for `sharding.write-behavior`.
pub const WRITE_BEHAVIORS: &[&str] =
    &["round-robin", "free-space", "percentage-free-space", "zone-free-space", "zone-percentage-free-space"];

/// The keys of `depot.toml`.
pub const DEPOT: &[Key] = &[
    Key {
        name: "id",
        kind: Kind::Id,
        default: None,
        doc: "Identity of the depot; every provider directory carries it, and another depot's directory is refused. \
              Written by init, never changed.",
    },
    Key {
        name: "template",
        kind: Kind::Choice(chain::NAMES),
        default: Some(chain::DEFAULT),
        doc: "The chain of providers that keeps the blobs, by its name.",
    },
    Key {
        name: "chain",
        kind: Kind::Chain,
        default: Some(chain::DEFAULT),
        doc: "The chain provider by provider, outermost first, in place of a template; the last one keeps the blobs.",
    },
    Key {
        name: "index",
        kind: Kind::Path,
        default: Some("."),
        doc: "Directory of index.db; must be on a local file system.",
    },
    Key {
        name: "durability",
        kind: Kind::Choice(DURABILITY),
        default: Some("fsync"),
        doc: "What close(2) waits for where neither the mount nor the repository asks for more.",
    },
    Key {
        name: "atime",
        kind: Kind::Choice(&["relatime", "noatime"]),
        default: Some("relatime"),
        doc: "Whether reading a file moves its access time; the mount options of the same names win.",
    },
    Key {
        name: "log.dir",
        kind: Kind::Path,
        default: Some("log"),
        doc: "Directory of depotfs.log, written when the daemon runs in the background.",
    },
    Key {
        name: "log.level",
        kind: Kind::LogFilter,
        default: Some("info"),
        doc: "error, warn, info, debug or trace, or a filter such as \"info,depotfs=debug\"; the environment \
              variable DEPOTFS_LOG wins.",
    },
    Key {
        name: "log.to",
        kind: Kind::Choice(&["file", "syslog"]),
        default: Some("file"),
        doc: "Where the daemon in the background writes its log; in the foreground it is standard error.",
    },
    Key {
        name: "file-system.dir",
        kind: Kind::Path,
        default: Some("filestore"),
        doc: "Directory of the blobs and of the staging files.",
    },
    Key {
        name: "file-system.blob-mode",
        kind: Kind::ReadOnlyMode,
        default: Some("0400"),
        doc: "Permission bits of a blob's file.",
    },
    Key {
        name: "file-system.blob-owner",
        kind: Kind::Owner,
        default: Some(""),
        doc: "Owner of a blob's file as \"user:group\"; empty: whoever runs the daemon.",
    },
    Key {
        name: "sharding.dir",
        kind: Kind::Path,
        default: Some("sharding"),
        doc: "Directory of what the sharding remembers: which blobs lack copies.",
    },
    Key {
        name: "sharding.redundancy",
        kind: Kind::Count { min: 1, max: 64 },
        default: Some("1"),
        doc: "Copies of each blob; at most as many as there are shards.",
    },
    Key {
        name: "sharding.lenient-limit",
        kind: Kind::Count { min: 0, max: 64 },
        default: Some("1"),
        doc: "Copies that must be made for a blob to count as stored; what is missing is made later. 0: all of them.",
    },
    Key {
        name: "sharding.write-behavior",
        kind: Kind::Choice(WRITE_BEHAVIORS),
        default: Some("round-robin"),
        doc: "Which shards get a blob: one after the other, those with the most free bytes, or with the largest free part; \
              with zone, those of sharding.zone first.",
    },
    Key {
        name: "sharding.read-behavior",
        kind: Kind::Choice(&["round-robin", "zone"]),
        default: Some("round-robin"),
        doc: "Which shards are asked for a blob first: one after the other, or those of sharding.zone.",
    },
    Key { name: "sharding.zone", kind: Kind::Text, default: Some(""), doc: "The zone that this host is in." },
    Key {
        name: "sharding.check-period",
        kind: Kind::Duration,
        default: Some("15s"),
        doc: "Shortest time before a shard that failed is tried again.",
    },
    Key {
        name: "sharding.max-balancing-run-time",
        kind: Kind::Duration,
        default: Some("10h"),
        doc: "Longest time that a balance takes, which moves blobs where the shards' configuration wants them; the next one \
              goes on where it stopped.",
    },
    Key {
        name: "sharding.shard[].dir",
        kind: Kind::Path,
        default: None,
        doc: "Directory of a shard: of blobs and staging files.",
    },
    Key {
        name: "sharding.shard[].zone",
        kind: Kind::Text,
        default: Some(""),
        doc: "The zone that the shard is in.",
    },
    Key {
        name: "sharding.shard[].write-enabled",
        kind: Kind::Flag,
        default: Some("true"),
        doc: "Whether the shard gets new blobs; one that does not is drained: it serves those it has until a balance has moved \
              them elsewhere.",
    },
    Key {
        name: "cache-fs.cache-provider-dir",
        kind: Kind::Path,
        default: Some("cache"),
        doc: "Directory of the cache, and of what it remembers; must be on a local file system.",
    },
    Key {
        name: "cache-fs.max-cache-size",
        kind: Kind::Size,
        default: Some("5GB"),
        doc: "Room that the cache may take in all its directories; what arrives, and what was evicted and is still open, \
              counts.",
    },
    Key {
        name: "cache-fs.max-file-size-limit",
        kind: Kind::Size,
        default: Some("0"),
        doc: "The largest blob that is cached; larger ones are read past the cache. 0: any that has room.",
    },
    Key {
        name: "cache-fs.min-free-space",
        kind: Kind::Size,
        default: Some("100MB"),
        doc: "Bytes that the cache leaves free on the disk of each of its directories, giving up what it has if need be.",
    },
    Key {
        name: "cache-fs.skip-during-upload",
        kind: Kind::Flag,
        default: Some("false"),
        doc: "Whether only reads fill the cache, and not what is written.",
    },
    Key {
        name: "cache-fs.further[].dir",
        kind: Kind::Path,
        default: None,
        doc: "A further directory of the cache, on another disk say: blobs are spread over all of them.",
    },
    Key {
        name: "full-db.dir",
        kind: Kind::Path,
        default: Some("full-db"),
        doc: "Directory of the database that keeps the blobs, and of the staging files; must be on a local file system.",
    },
    Key {
        name: "eventual.dir",
        kind: Kind::Path,
        default: Some("eventual"),
        doc: "Directory of the upload queue, and of the staging files; its bytes are nowhere else until they are uploaded.",
    },
    Key {
        name: "eventual.number-of-threads",
        kind: Kind::Count { min: 1, max: 64 },
        default: Some("5"),
        doc: "Blobs that are uploaded at the same time.",
    },
    Key {
        name: "eventual.dispatcher-interval",
        kind: Kind::Duration,
        default: Some("5s"),
        doc: "How often the directory of the queue is looked through for what nobody told of.",
    },
    Key {
        name: "eventual.timeout",
        kind: Kind::Duration,
        default: Some("2min"),
        doc: "How long close(2) waits for the upload with durability=remote before it fails.",
    },
    Key {
        name: "eventual.drain-timeout",
        kind: Kind::Duration,
        default: Some("1min"),
        doc: "How long the end of a mount waits for the queue to be empty; what is left is uploaded by the next mount.",
    },
    Key {
        name: "eventual.min-free-space",
        kind: Kind::Size,
        default: Some("256MB"),
        doc: "Bytes of the queue's disk that new files leave free: a write that would take them fails with ENOSPC.",
    },
    Key {
        name: "eventual.max-queue-size",
        kind: Kind::Size,
        default: Some("0"),
        doc: "Bytes in the queue beyond which writes fail with ENOSPC; 0: the disk is the limit.",
    },
    Key {
        name: "faulty.control",
        kind: Kind::Path,
        default: Some("faulty.control"),
        doc: "The file that says what goes wrong, one rule a line; read again when it changes. For tests: a build for users \
              refuses the provider.",
    },
    Key {
        name: "faulty.seed",
        kind: Kind::Count { min: 0, max: u64::MAX },
        default: Some("1"),
        doc: "What chance begins with, for rules that hold for some calls only.",
    },
    Key {
        name: "faulty.remote",
        kind: Kind::Flag,
        default: Some("false"),
        doc: "Whether the blobs below are served as from far away: no local files, nothing asked at an open.",
    },
    Key {
        name: "retry.max-trys",
        kind: Kind::Count { min: 1, max: 1000 },
        default: Some("5"),
        doc: "Attempts at what fails for a reason that passes, in all.",
    },
    Key {
        name: "retry.interval",
        kind: Kind::Duration,
        default: Some("5s"),
        doc: "Pause after the first attempt that fails; each further one is twice as long, up to a minute. Readers begin with 100ms.",
    },
    Key {
        name: "retry.read-deadline",
        kind: Kind::Duration,
        default: Some("15s"),
        doc: "A reader begins no further attempt after so long, and gets the error.",
    },
    Key {
        name: "s3-storage-v3.dir",
        kind: Kind::Path,
        default: Some("s3-storage-v3"),
        doc: "Directory on this host: of the staging files; must be on a local file system.",
    },
    Key {
        name: "s3-storage-v3.endpoint",
        kind: Kind::Text,
        default: Some(""),
        doc: "Address of the server, such as https://s3.example.org:9000; empty: Amazon's of the region.",
    },
    Key {
        name: "s3-storage-v3.use-http",
        kind: Kind::Flag,
        default: Some("false"),
        doc: "Whether an endpoint without http:// or https:// is spoken to without TLS.",
    },
    Key {
        name: "s3-storage-v3.region",
        kind: Kind::Text,
        default: Some(""),
        doc: "Region of the bucket; empty: that of AWS_REGION, else us-east-1.",
    },
    Key {
        name: "s3-storage-v3.bucket-name",
        kind: Kind::Text,
        default: None,
        doc: "The bucket, which must exist.",
    },
    Key {
        name: "s3-storage-v3.path",
        kind: Kind::Text,
        default: Some("filestore"),
        doc: "What the keys of all objects begin with: a blob is PATH/ab/SHA1.",
    },
    Key {
        name: "s3-storage-v3.enable-path-style-access",
        kind: Kind::Flag,
        default: Some("true"),
        doc: "Whether the bucket stands in the path of an address, and not in its host.",
    },
    Key {
        name: "s3-storage-v3.identity",
        kind: Kind::Text,
        default: Some(""),
        doc: "Access key; empty: the credentials of AWS_ACCESS_KEY_ID and its like, of a web identity or of a container.",
    },
    Key {
        name: "s3-storage-v3.credential",
        kind: Kind::Secret,
        default: Some(""),
        doc: "Secret key; best written as a variable, ${S3_SECRET_KEY}.",
    },
    Key {
        name: "s3-storage-v3.use-instance-credentials",
        kind: Kind::Flag,
        default: Some("false"),
        doc: "Whether the role of the machine or container gives the credentials where neither keys nor variables do.",
    },
    Key {
        name: "s3-storage-v3.max-connections",
        kind: Kind::Count { min: 1, max: 1000 },
        default: Some("64"),
        doc: "Requests under way at a time; three quarters of them may send bytes.",
    },
    Key {
        name: "s3-storage-v3.connection-timeout",
        kind: Kind::Duration,
        default: Some("5s"),
        doc: "Longest wait for a connection.",
    },
    Key {
        name: "s3-storage-v3.socket-timeout",
        kind: Kind::Duration,
        default: Some("15s"),
        doc: "Longest wait for an answer and for the next bytes of one; each 256 KiB of what is sent or read at the same time have a second more.",
    },
    Key {
        name: "s3-storage-v3.multipart-limit",
        kind: Kind::Size,
        default: Some("32MB"),
        doc: "Blobs of more bytes are sent in parts, several at a time.",
    },
    Key {
        name: "s3-storage-v3.multipart-element-size",
        kind: Kind::Size,
        default: Some("16MB"),
        doc: "Bytes of a part, from 5MiB on; four of them are in memory for each blob that is sent.",
    },
    Key {
        name: "s3-storage-v3.test-connection",
        kind: Kind::Flag,
        default: Some("true"),
        doc: "Whether init and mount ask the bucket whose it is, and not only the first change; a mount goes on where it cannot be asked.",
    },
    Key {
        name: "azure-blob-storage.dir",
        kind: Kind::Path,
        default: Some("azure-blob-storage"),
        doc: "Directory on this host: of the staging files; must be on a local file system.",
    },
    Key {
        name: "azure-blob-storage.endpoint",
        kind: Kind::Text,
        default: Some(""),
        doc: "Address of the account, where it is not Azure's own; it may have a path.",
    },
    Key {
        name: "azure-blob-storage.use-http",
        kind: Kind::Flag,
        default: Some("false"),
        doc: "Whether an endpoint without http:// or https:// is spoken to without TLS.",
    },
    Key {
        name: "azure-blob-storage.account-name",
        kind: Kind::Text,
        default: None,
        doc: "The storage account.",
    },
    Key {
        name: "azure-blob-storage.account-key",
        kind: Kind::Secret,
        default: Some(""),
        doc: "Key of the account; empty: the credentials of AZURE_STORAGE_ACCOUNT_KEY, AZURE_CLIENT_SECRET and their like.",
    },
    Key {
        name: "azure-blob-storage.container-name",
        kind: Kind::Text,
        default: None,
        doc: "The container, which must exist.",
    },
    Key {
        name: "azure-blob-storage.path",
        kind: Kind::Text,
        default: Some("filestore"),
        doc: "What the names of all objects begin with: a blob is PATH/ab/SHA1.",
    },
    Key {
        name: "azure-blob-storage.use-instance-credentials",
        kind: Kind::Flag,
        default: Some("false"),
        doc: "Whether the role of the machine or container gives the credentials where neither keys nor variables do.",
    },
    Key {
        name: "azure-blob-storage.max-connections",
        kind: Kind::Count { min: 1, max: 1000 },
        default: Some("64"),
        doc: "Requests under way at a time; three quarters of them may send bytes.",
    },
    Key {
        name: "azure-blob-storage.connection-timeout",
        kind: Kind::Duration,
        default: Some("5s"),
        doc: "Longest wait for a connection.",
    },
    Key {
        name: "azure-blob-storage.socket-timeout",
        kind: Kind::Duration,
        default: Some("15s"),
        doc: "Longest wait for an answer and for the next bytes of one; each 256 KiB of what is sent or read at the same time have a second more.",
    },
    Key {
        name: "azure-blob-storage.multipart-limit",
        kind: Kind::Size,
        default: Some("32MB"),
        doc: "Blobs of more bytes are sent in parts, several at a time.",
    },
    Key {
        name: "azure-blob-storage.multipart-element-size",
        kind: Kind::Size,
        default: Some("16MB"),
        doc: "Bytes of a part, from 5MiB on; four of them are in memory for each blob that is sent.",
    },
    Key {
        name: "azure-blob-storage.test-connection",
        kind: Kind::Flag,
        default: Some("true"),
        doc: "Whether init and mount ask the bucket whose it is, and not only the first change; a mount goes on where it cannot be asked.",
    },
    Key {
        name: "google-storage.dir",
        kind: Kind::Path,
        default: Some("google-storage"),
        doc: "Directory on this host: of the staging files; must be on a local file system.",
    },
    Key {
        name: "google-storage.endpoint",
        kind: Kind::Text,
        default: Some(""),
        doc: "Address of the server, where it is not Google's own.",
    },
    Key {
        name: "google-storage.use-http",
        kind: Kind::Flag,
        default: Some("false"),
        doc: "Whether an endpoint without http:// or https:// is spoken to without TLS.",
    },
    Key {
        name: "google-storage.bucket-name",
        kind: Kind::Text,
        default: None,
        doc: "The bucket, which must exist.",
    },
    Key {
        name: "google-storage.path",
        kind: Kind::Text,
        default: Some("filestore"),
        doc: "What the names of all objects begin with: a blob is PATH/ab/SHA1.",
    },
    Key {
        name: "google-storage.service-account",
        kind: Kind::Text,
        default: Some(""),
        doc: "File with the key of a service account; empty: the credentials of GOOGLE_APPLICATION_CREDENTIALS and its like.",
    },
    Key {
        name: "google-storage.use-instance-credentials",
        kind: Kind::Flag,
        default: Some("false"),
        doc: "Whether the role of the machine or container gives the credentials where neither keys nor variables do.",
    },
    Key {
        name: "google-storage.max-connections",
        kind: Kind::Count { min: 1, max: 1000 },
        default: Some("64"),
        doc: "Requests under way at a time; three quarters of them may send bytes.",
    },
    Key {
        name: "google-storage.connection-timeout",
        kind: Kind::Duration,
        default: Some("5s"),
        doc: "Longest wait for a connection.",
    },
    Key {
        name: "google-storage.socket-timeout",
        kind: Kind::Duration,
        default: Some("15s"),
        doc: "Longest wait for an answer and for the next bytes of one; each 256 KiB of what is sent or read at the same time have a second more.",
    },
    Key {
        name: "google-storage.multipart-limit",
        kind: Kind::Size,
        default: Some("32MB"),
        doc: "Blobs of more bytes are sent in parts, several at a time.",
    },
    Key {
        name: "google-storage.multipart-element-size",
        kind: Kind::Size,
        default: Some("16MB"),
        doc: "Bytes of a part, from 5MiB on; four of them are in memory for each blob that is sent.",
    },
    Key {
        name: "google-storage.test-connection",
        kind: Kind::Flag,
        default: Some("true"),
        doc: "Whether init and mount ask the bucket whose it is, and not only the first change; a mount goes on where it cannot be asked.",
    },
];

/// The settings of a repository, kept in the index.
pub const REPOSITORY: &[Key] = &[
    Key {
        name: "durability",
        kind: Kind::Choice(DURABILITY),
        default: Some("fsync"),
        doc: "What close(2) waits for; the stricter of mount, depot and repository wins.",
    },
    Key {
        name: "verify",
        kind: Kind::Choice(&["never", "first-open", "always"]),
        default: Some("never"),
        doc: "When a blob is read and compared with its checksum before it is served.",
    },
];

impl Key {
    /// Name of the table it stands in, empty at the top of the file: `file-system`, `sharding.shard[]`.
    pub fn table(&self) -> &'static str {
        self.name.rsplit_once('.').map_or("", |(table, _)| table)
    }

    /// Its name in that table.
    pub fn own_name(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(_, name)| name)
    }

    /// The outermost table it stands in, that of a provider or of another part; empty at the top of the file.
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }
}

/// The row of `name`, which has numbers where the row has `[]`, or a message that names the nearest known key.
pub fn find(table: &'static [Key], name: &str) -> Result<&'static Key, String> {
    let (wanted, known) = (row_name(name), |key: &&Key| key.name);
    if let Some(key) = table.iter().find(|key| known(key) == wanted && !name.contains("[]")) {
        return Ok(key);
    }
    let numbered: Vec<String> = table.iter().map(|key| key.name.replace("[]", "[0]")).collect();
    let nearest = suggestion(name, numbered.iter().map(String::as_str));
    Err(format!("unknown key \"{}\"{nearest}", brief(name)))
}

/// `sharding.shard[2].dir` as the table of keys has it, `sharding.shard[].dir`.
pub(super) fn row_name(name: &str) -> Cow<'_, str> {
    let parts = name.split_once('[').and_then(|(list, rest)| Some((list, rest.split_once(']')?)));
    match parts {
        // One way to write a number, so that no key has two names.
        Some((list, (number, rest))) if number.parse::<usize>().is_ok_and(|n| n.to_string() == number) => {
            format!("{list}[]{rest}").into()
        }
        _ => name.into(),
    }
}

/// What somebody wrote, for a message: nobody's value fills the screen.
pub(super) fn brief(value: &str) -> String {
    const LONGEST: usize = 80;
    let mut begin: String = value.chars().take(LONGEST).collect();
    if begin.len() < value.len() {
        begin.push_str("...");
    }
    text::shown(begin.as_bytes())
}

#[cfg(test)]
mod tests;
