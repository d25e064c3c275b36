//! Taking stock for `status` and the metrics.
//!
//! What cannot be asked is said to be failing, and the rest is told all the same.

use super::report::{
    Balance, Cache, Counts, Health, IndexStatus, Layer, MountStatus, Pending, Queue, Reads, Status, Trouble,
};
use super::service::{Service, set_aside, troubles};
use crate::checksum::Checksum;
use crate::config::Config;
use crate::filestore::{self, Filestore};
use crate::index::{self, Index};
use crate::metrics;
use crate::text::{chain, shown};

impl Service {
    /// Everything at once.
    pub(super) fn status(&self) -> Status {
        let tree = self.vfs.status();
        let mut status = Status::of_depot(&self.config, self.vfs.index(), self.vfs.store());
        status.running = true;
        status.mount = Some(MountStatus { age_s: self.started.elapsed().as_secs(), ..self.mount.clone() });
        status.durability = tree.durability.into();
        status.reads = match tree.reads.strip_prefix("through the daemon: ") {
            Some(why) => Reads { mode: "daemon".into(), why: why.into() },
            None => Reads {
                mode: tree.reads.clone(),
                why: "the kernel reads and writes stored files itself".into(),
            },
        };
        status.counts.orphans = tree.orphans;
        status.pending =
            Pending { dirty: tree.dirty, closed: tree.closed, bytes: tree.closed_bytes, held: tree.held };
        status.failed = troubles(&tree);
        let damaged = |(sum, why): &(Checksum, String)| Trouble { what: sum.to_string(), why: why.clone() };
        status.damaged = tree.damaged.iter().map(damaged).collect();
        status.reports.extend(tree.reports);
        status.reloaded = (self.reloaded)();
        status.balance = self.balancer.last().map(|(running, report)| Balance { running, report });
        status
    }
}

impl Status {
    /// What index and filestore tell, whether they are mounted or not.
    fn of_depot(config: &Config, index: &Index, store: &Filestore) -> Status {
        let mut status = Status {
            depot: config.depot.display().to_string(),
            id: config.id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            durability: config.durability.name().into(),
            chain: vec![layer(store)],
            ..Status::default()
        };
        status.index.path = config.index.join("index.db").display().to_string();
        if let Err(error) = status.ask_index(index) {
            status.index.health = Health::Failing(chain(&error));
        }
        match set_aside(store) {
            Ok(aside) => status.aside = aside,
            Err(error) => {
                status.reports.push(format!("what was set aside cannot be listed: {}", chain(&error)));
            }
        }
        status
    }

    /// What a mount of a depot that has none would find.
    pub fn offline(config: &Config, index: &Index, store: &Filestore) -> Status {
        let mut status = Status::of_depot(config, index, store);
        match unsealable(index) {
            Ok(failed) => status.failed = failed,
            Err(error) => status.index.health = Health::Failing(chain(&error)),
        }
        status
    }

    fn ask_index(&mut self, index: &Index) -> index::Result<()> {
        let totals = index.counts()?;
        self.counts = Counts {
            repositories: index.repositories()?.len() as u64,
            directories: totals.directories,
            files: totals.files,
            others: totals.other,
            orphans: 0,
            logical_bytes: totals.logical_bytes,
            blobs: totals.blobs,
            blob_bytes: totals.physical_bytes,
        };
        let (counts, bytes) = (&self.counts, index.file_bytes()?);
        self.dedup_ratio = ratio(counts.logical_bytes, counts.blob_bytes).unwrap_or(1.0);
        let filestore_ratio = ratio(bytes, counts.blob_bytes).unwrap_or(0.0);
        self.index = IndexStatus { bytes, filestore_ratio, ..std::mem::take(&mut self.index) };
        Ok(())
    }

    /// Puts what is known here into the gauges of the same meaning.
    pub(super) fn set_gauges(&self) {
        let (counts, pending) = (&self.counts, &self.pending);
        // What could not be asked keeps the figures of the last time.
        if self.index.health == Health::Up {
            metrics::FILES.set(counts.files);
            metrics::DIRECTORIES.set(counts.directories);
            metrics::REPOSITORIES.set(counts.repositories);
            metrics::LOGICAL_BYTES.set(counts.logical_bytes);
            metrics::BLOBS.set(counts.blobs);
            metrics::BLOB_BYTES.set(counts.blob_bytes);
            metrics::INDEX_BYTES.set(self.index.bytes);
        }
        metrics::ORPHANS.set(counts.orphans);
        metrics::DIRTY.set(pending.dirty);
        metrics::CLOSED.set(pending.closed);
        metrics::QUEUED_BYTES.set(pending.bytes);
        metrics::UNSEALABLE.set((self.failed.len() + self.aside.len()) as u64);
        if let Some(cache) = self.chain.iter().find_map(cache_of) {
            metrics::CACHE_LIMIT.set(cache.limit);
            metrics::CACHE_USED.set(cache.used);
            metrics::CACHE_ARRIVING.set(cache.arriving);
            metrics::CACHE_BLOBS.set(cache.entries);
            metrics::CACHE_HITS.set(cache.hits);
            metrics::CACHE_MISSES.set(cache.misses);
            metrics::CACHE_EVICTIONS.set(cache.evictions);
        }
        if let Some(queue) = self.chain.iter().find_map(Layer::queue) {
            metrics::UPLOAD_ENTRIES.set(queue.entries);
            metrics::UPLOAD_BYTES.set(queue.bytes);
            metrics::UPLOAD_OLDEST.set(queue.oldest_s);
            metrics::UPLOAD_REMOVALS.set(queue.removals);
            metrics::UPLOAD_BAD.set(queue.bad.len() as u64);
        }
        if let Some(space) = self.chain.first().and_then(|layer| layer.space) {
            metrics::FILESTORE_CAPACITY.set(space.capacity);
            metrics::FILESTORE_FREE.set(space.available);
        }
    }
}

/// The cache among a provider and those below it.
fn cache_of(layer: &Layer) -> Option<Cache> {
    layer.cache.or_else(|| layer.children.iter().find_map(cache_of))
}

impl Layer {
    /// The queue of it or of what stands below it.
    pub fn queue(&self) -> Option<&Queue> {
        self.queue.as_ref().or_else(|| self.children.iter().find_map(Layer::queue))
    }
}

/// What waits to be uploaded, for people.
pub(super) fn queue(status: filestore::QueueStatus) -> Queue {
    let told = serde_json::to_value(status).and_then(serde_json::from_value::<Queue>);
    told.unwrap_or_else(|error| Queue { last_error: Some(error.to_string()), ..Queue::default() })
}

/// The chain as it says itself that it does.
fn layer(store: &Filestore) -> Layer {
    let status = store.status();
    let kind = status.kind;
    let told = serde_json::to_value(status).and_then(serde_json::from_value::<Layer>);
    told.unwrap_or_else(|error| Layer {
        kind: kind.into(),
        directory: None,
        file_system: None,
        reflink: false,
        space: None,
        health: Health::Failing(format!("what it tells cannot be read: {error}")),
        owed: 0,
        cache: None,
        queue: None,
        children: Vec::new(),
    })
}

/// Files whose seal failed, as the index remembers them.
fn unsealable(index: &Index) -> index::Result<Vec<Trouble>> {
    let mut found = Vec::new();
    for row in index.staged()? {
        let Some(why) = row.failed else { continue };
        let path = index.path(row.ino)?.unwrap_or_default();
        found.push(Trouble { what: shown(&path), why });
    }
    Ok(found)
}

fn ratio(a: u64, b: u64) -> Option<f64> {
    (b > 0).then(|| a as f64 / b as f64)
}
