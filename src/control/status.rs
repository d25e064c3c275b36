//! Taking stock for `status` and the metrics.

use super::report::{Counts, IndexStatus, Layer, MountStatus, Pending, Reads, Status, Trouble};
use super::service::{Service, in_index, set_aside, troubles};
use super::{Cause, Failure};
use crate::checksum::Checksum;
use crate::config::Config;
use crate::filestore::Filestore;
use crate::index::Index;
use crate::metrics;

impl Service {
    /// Everything at once.
    pub(super) fn status(&self) -> Result<Status, Failure> {
        let tree = self.vfs.status();
        let mut status = Status::of_depot(&self.config, self.vfs.index(), self.vfs.store())?;
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
        status.reports = tree.reports;
        Ok(status)
    }
}

impl Status {
    /// What index and filestore tell, whether they are mounted or not.
    pub fn of_depot(config: &Config, index: &Index, store: &Filestore) -> Result<Status, Failure> {
        let totals = index.counts().map_err(in_index)?;
        let counts = Counts {
            repositories: index.repositories().map_err(in_index)?.len() as u64,
            directories: totals.directories,
            files: totals.files,
            others: totals.other,
            orphans: 0,
            logical_bytes: totals.logical_bytes,
            blobs: totals.blobs,
            blob_bytes: totals.physical_bytes,
        };
        let bytes = index.file_bytes().map_err(in_index)?;
        let chain = serde_json::to_value(store.status()).and_then(serde_json::from_value::<Layer>);
        let chain = chain.map_err(|error| {
            Failure::new(Cause::Failed, format!("the chain's state is unreadable: {error}"))
        })?;
        Ok(Status {
            depot: config.depot.display().to_string(),
            id: config.id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            durability: config.durability.name().into(),
            chain: vec![chain],
            counts,
            dedup_ratio: ratio(counts.logical_bytes, counts.blob_bytes).unwrap_or(1.0),
            index: IndexStatus {
                path: config.index.join("index.db").display().to_string(),
                bytes,
                filestore_ratio: ratio(bytes, counts.blob_bytes).unwrap_or(0.0),
            },
            aside: set_aside(store)?,
            ..Status::default()
        })
    }

    /// Puts what is known here into the gauges of the same meaning.
    pub(super) fn set_gauges(&self) {
        let (counts, pending) = (&self.counts, &self.pending);
        metrics::FILES.set(counts.files);
        metrics::DIRECTORIES.set(counts.directories);
        metrics::REPOSITORIES.set(counts.repositories);
        metrics::ORPHANS.set(counts.orphans);
        metrics::LOGICAL_BYTES.set(counts.logical_bytes);
        metrics::BLOBS.set(counts.blobs);
        metrics::BLOB_BYTES.set(counts.blob_bytes);
        metrics::INDEX_BYTES.set(self.index.bytes);
        metrics::DIRTY.set(pending.dirty);
        metrics::CLOSED.set(pending.closed);
        metrics::QUEUED_BYTES.set(pending.bytes);
        metrics::UNSEALABLE.set((self.failed.len() + self.aside.len()) as u64);
        if let Some(space) = self.chain.first().and_then(|layer| layer.space) {
            metrics::FILESTORE_CAPACITY.set(space.capacity);
            metrics::FILESTORE_FREE.set(space.available);
        }
    }
}

fn ratio(a: u64, b: u64) -> Option<f64> {
    (b > 0).then(|| a as f64 / b as f64)
}
