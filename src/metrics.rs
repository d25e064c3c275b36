//! Numbers that the daemon counts, and their rendering as Prometheus text.
//!
//! One table row makes a static and its line in `depotfs metrics`. Counters only grow while the daemon runs; gauges are set by
//! whoever knows the value, those that `status` also shows just before rendering. Updates are relaxed atomics: a counter on
//! the path of every request costs a nanosecond.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How a number behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Only grows; starts at 0 with the daemon.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One number of the daemon.
#[derive(Debug)]
pub struct Metric {
    name: &'static str,
    help: &'static str,
    shape: Shape,
    value: AtomicU64,
}

impl Metric {
    const fn new(name: &'static str, shape: Shape, help: &'static str) -> Metric {
        Metric { name, help, shape, value: AtomicU64::new(0) }
    }

    /// One more.
    pub fn count(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.value.fetch_add(n, Relaxed);
    }

    /// `n` fewer; for gauges that are kept by counting.
    pub fn sub(&self, n: u64) {
        self.value.fetch_sub(n, Relaxed);
    }

    /// From now on `n`.
    pub fn set(&self, n: u64) {
        self.value.store(n, Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }
}

macro_rules! metrics {
    ($($ident:ident = $name:literal, $shape:ident, $help:literal;)*) => {
        $(#[doc = $help] pub static $ident: Metric = Metric::new($name, Shape::$shape, $help);)*

        /// Every metric, in the order in which it is printed.
        pub static TABLE: &[&Metric] = &[$(&$ident),*];
    };
}

metrics! {
    // Index and filestore, set when status is taken.
    FILES = "depotfs_files", Gauge, "Regular files in the tree.";
    DIRECTORIES = "depotfs_directories", Gauge, "Directories in the tree.";
    REPOSITORIES = "depotfs_repositories", Gauge, "Directories at the top of the tree.";
    ORPHANS = "depotfs_orphans", Gauge, "Inodes without a name that are still in use.";
    LOGICAL_BYTES = "depotfs_logical_bytes", Gauge, "Bytes of all files as their sizes show them.";
    BLOBS = "depotfs_blobs", Gauge, "Blobs known to the index.";
    BLOB_BYTES = "depotfs_blob_bytes", Gauge, "Bytes of all blobs, each counted once.";
    INDEX_BYTES = "depotfs_index_bytes", Gauge, "Size of the index file and its write-ahead log.";
    FILESTORE_CAPACITY = "depotfs_filestore_capacity_bytes", Gauge, "Size of the file system that holds the filestore.";
    FILESTORE_FREE = "depotfs_filestore_free_bytes", Gauge, "Bytes free for the daemon on that file system.";
    // Content on its way into the filestore.
    DIRTY = "depotfs_dirty_files", Gauge, "Files with a staging file and an open writer.";
    CLOSED = "depotfs_closed_files", Gauge, "Files with a staging file and no writer, waiting to be sealed.";
    QUEUED_BYTES = "depotfs_queued_bytes", Gauge, "Bytes in staging files that wait to be sealed.";
    UNSEALABLE = "depotfs_unsealable_files", Gauge, "Files whose bytes could not be sealed and were set aside or fail to open.";
    HASHED_BYTES = "depotfs_hashed_bytes_total", Counter, "Bytes read and hashed to name blobs or to verify them.";
    READ_AHEAD = "depotfs_read_ahead_files_total", Counter, "Files expected to be read next, and made ready for it.";
    READ_AHEAD_USED = "depotfs_read_ahead_used_total", Counter, "Those of them that were read.";
    // The cache, set when status is taken.
    CACHE_LIMIT = "depotfs_cache_limit_bytes", Gauge, "Room that the cache may take.";
    CACHE_USED = "depotfs_cache_used_bytes", Gauge, "Room that it takes, what arrives and what was evicted and is open included.";
    CACHE_ARRIVING = "depotfs_cache_arriving_bytes", Gauge, "Room of what arrives.";
    CACHE_BLOBS = "depotfs_cache_blobs", Gauge, "Blobs in the cache.";
    CACHE_HITS = "depotfs_cache_hits", Gauge, "Openings of blobs since the start that the cache answered.";
    CACHE_MISSES = "depotfs_cache_misses", Gauge, "Openings of blobs since the start that it did not.";
    CACHE_EVICTIONS = "depotfs_cache_evictions", Gauge, "Blobs evicted since the start.";
    // The queue of a chain that stores later.
    UPLOAD_ENTRIES = "depotfs_upload_queue_blobs", Gauge, "Blobs that wait to be uploaded.";
    UPLOAD_BYTES = "depotfs_upload_queue_bytes", Gauge, "Their bytes.";
    UPLOAD_OLDEST = "depotfs_upload_queue_oldest_seconds", Gauge, "Age of the oldest of them.";
    UPLOAD_REMOVALS = "depotfs_upload_queue_removals", Gauge, "Removals that the provider below the queue has not been told of.";
    UPLOAD_BAD = "depotfs_upload_queue_altered", Gauge, "Entries whose bytes were altered in the queue, of which there is no good copy.";
    UPLOADS = "depotfs_uploads_total", Counter, "Blobs uploaded from the queue.";
    UPLOADED_BYTES = "depotfs_uploaded_bytes_total", Counter, "Their bytes.";
    UPLOAD_FAILURES = "depotfs_upload_failures_total", Counter, "Uploads that failed and are tried again.";
    // Blobs put where the shards' configuration wants them.
    BALANCE_LOOKED = "depotfs_balance_looked_total", Counter, "Blobs that a balance looked at.";
    BALANCE_COPIED = "depotfs_balance_copied_total", Counter, "Copies that a balance made.";
    BALANCE_BYTES = "depotfs_balance_copied_bytes_total", Counter, "Bytes of them.";
    BALANCE_REMOVED = "depotfs_balance_removed_total", Counter, "Copies that a balance removed.";
    BALANCE_FAILED = "depotfs_balance_failed_total", Counter, "Blobs that a balance could do nothing for.";
    BALANCE_LEFT = "depotfs_balance_left_blobs", Gauge, "Blobs that the last balance left as they should not be.";
    // Requests of the kernel, as the watchdog saw them at its last look.
    REQUESTS_UNDER_WAY = "depotfs_requests_under_way", Gauge, "Requests of the kernel being answered.";
    OLDEST_REQUEST = "depotfs_oldest_request_seconds", Gauge, "Age of the oldest of them.";
    REQUESTS_TOLD = "depotfs_slow_requests_told_total", Counter, "Log lines about requests older than 30 s.";
    // Control socket.
    CONTROL_REQUESTS = "depotfs_control_requests_total", Counter, "Requests answered on the control socket.";
    CONTROL_REFUSED = "depotfs_control_refused_total", Counter, "Connections to the control socket refused: wrong user, too many, or not understood.";
}

macro_rules! operations {
    ($($variant:ident = $label:literal,)*) => {
        /// What the kernel can ask for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "named after the requests of the FUSE protocol")]
        pub enum Operation { $($variant,)* }

        /// The label of each, in the order of the variants.
        const OPERATIONS: &[&str] = &[$($label,)*];
    };
}

operations! {
    Lookup = "lookup",
    Forget = "forget",
    Getattr = "getattr",
    Setattr = "setattr",
    Readlink = "readlink",
    Mknod = "mknod",
    Mkdir = "mkdir",
    Unlink = "unlink",
    Rmdir = "rmdir",
    Symlink = "symlink",
    Rename = "rename",
    Link = "link",
    Open = "open",
    Create = "create",
    Read = "read",
    Write = "write",
    Flush = "flush",
    Release = "release",
    Fsync = "fsync",
    Fsyncdir = "fsyncdir",
    Opendir = "opendir",
    Readdir = "readdir",
    Readdirplus = "readdirplus",
    Statfs = "statfs",
    Setxattr = "setxattr",
    Getxattr = "getxattr",
    Listxattr = "listxattr",
    Removexattr = "removexattr",
    Fallocate = "fallocate",
    Lseek = "lseek",
    CopyFileRange = "copy_file_range",
}

/// Requests of the kernel, by operation.
static REQUESTS: [AtomicU64; OPERATIONS.len()] = [const { AtomicU64::new(0) }; OPERATIONS.len()];

/// The name under which they are rendered, each with its label.
const REQUESTS_NAME: &str = "depotfs_requests_total";

impl Operation {
    /// As metrics and the log have it.
    pub fn name(self) -> &'static str {
        OPERATIONS[self as usize]
    }

    /// The one with this number, which is its place among them.
    pub fn numbered(number: u8) -> Option<&'static str> {
        OPERATIONS.get(usize::from(number)).copied()
    }

    /// One more request of this kind.
    pub fn count(self) {
        REQUESTS[self as usize].fetch_add(1, Relaxed);
    }
}

/// All metrics in the Prometheus text format, version 0.0.4.
pub fn render() -> String {
    let mut text = String::new();
    for metric in TABLE {
        let shape = match metric.shape {
            Shape::Counter => "counter",
            Shape::Gauge => "gauge",
        };
        let (name, help, value) = (metric.name, metric.help, metric.get());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {shape}\n{name} {value}");
    }
    let help = "Requests of the kernel, by operation; what the kernel answers itself is not among them.";
    let _ = writeln!(text, "# HELP {REQUESTS_NAME} {help}\n# TYPE {REQUESTS_NAME} counter");
    for (operation, count) in OPERATIONS.iter().zip(&REQUESTS) {
        let _ = writeln!(text, "{REQUESTS_NAME}{{operation=\"{operation}\"}} {}", count.load(Relaxed));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        let mut seen = BTreeSet::new();
        for metric in TABLE {
            assert!(seen.insert(metric.name), "{} stands twice in the table", metric.name);
            assert!(metric.name.starts_with("depotfs_"), "{}", metric.name);
            assert!(metric.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            assert_eq!(metric.name.ends_with("_total"), metric.shape == Shape::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\']), "{}", metric.name);
        }
    }

    #[test]
    fn every_operation_has_its_name() {
        assert_eq!((Operation::Lookup.name(), Operation::numbered(0)), ("lookup", Some("lookup")));
        assert_eq!(Operation::CopyFileRange as usize, OPERATIONS.len() - 1);
        assert_eq!(Operation::CopyFileRange.name(), "copy_file_range");
        assert_eq!(Operation::numbered(OPERATIONS.len() as u8), None);
    }

    #[test]
    fn every_metric_is_rendered_with_its_value() {
        CONTROL_REFUSED.add(3);
        let text = render();
        assert!(
            text.contains("# TYPE depotfs_control_refused_total counter\ndepotfs_control_refused_total ")
        );
        assert_eq!(text.lines().filter(|l| !l.starts_with('#')).count(), TABLE.len() + OPERATIONS.len());
        Operation::Lseek.count();
        let label = "depotfs_requests_total{operation=\"lseek\"} ";
        let count = render().lines().find_map(|l| l.strip_prefix(label)?.parse::<u64>().ok());
        assert!(count.is_some_and(|count| count > 0));
    }
}
