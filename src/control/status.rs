//! Taking stock for `status` and the metrics.

use super::report::{Counts, IndexStatus, Layer, MountStatus, Pending, Reads, Status};
use super::service::{Service, in_index, troubles};
use super::{Cause, Failure};
use crate::metrics;

impl Service {
    /// Everything at once.
    pub(super) fn status(&self) -> Result<Status, Failure> {
        let (index, store, tree) = (self.vfs.index(), self.vfs.store(), self.vfs.status());
        let totals = index.counts().map_err(in_index)?;
        let counts = Counts {
            repositories: index.repositories().map_err(in_index)?.len() as u64,
            directories: totals.directories,
            files: totals.files,
            others: totals.other,
            orphans: tree.orphans,
            logical_bytes: totals.logical_bytes,
            blobs: totals.blobs,
            blob_bytes: totals.physical_bytes,
        };
        let bytes = index.file_bytes().map_err(in_index)?;
        let chain = serde_json::to_value(store.status()).and_then(serde_json::from_value::<Layer>);
        let chain = chain.map_err(|error| {
            Failure::new(Cause::Failed, format!("the chain's state is unreadable: {error}"))
        })?;
        let (mode, why) = tree.reads.split_once(": ").unwrap_or((&tree.reads, ""));
        Ok(Status {
            depot: self.config.depot.display().to_string(),
            id: self.config.id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            running: true,
            mount: Some(MountStatus { age_s: self.started.elapsed().as_secs(), ..self.mount.clone() }),
            durability: tree.durability.into(),
            reads: Reads { mode: mode.into(), why: why.into() },
            chain: vec![chain],
            counts,
            dedup_ratio: ratio(counts.logical_bytes, counts.blob_bytes).unwrap_or(1.0),
            index: IndexStatus {
                path: self.config.index.join("index.db").display().to_string(),
                bytes,
                filestore_ratio: ratio(bytes, counts.blob_bytes).unwrap_or(0.0),
            },
            pending: Pending { dirty: tree.dirty, closed: tree.closed, bytes: tree.closed_bytes },
            failed: troubles(&tree),
            aside: self.rescuable()?,
            damaged: Vec::new(),
            reports: tree.reports,
        })
    }
}

impl Status {
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
