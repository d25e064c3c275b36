//! What keeping blobs costs: staging files, and putting them by batches as the seal does.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use depotfs::change::StagingName;
use depotfs::checksum::Checksum;
use depotfs::filestore::{Filestore, Options, Staged};

/// Bytes of a file.
const FILE_BYTES: u64 = 4096;
/// Files put together; 128 is what the background seals at once.
const BATCHES: [u64; 3] = [1, 16, 128];

/// Staging files with content of their own, ready to be put.
struct Files<'a> {
    store: &'a Filestore,
    last: u64,
}

impl Files<'_> {
    fn stage(&mut self) -> (Checksum, Staged) {
        self.last += 1;
        let name = StagingName(self.last);
        let mut bytes = [0; FILE_BYTES as usize];
        bytes[..8].copy_from_slice(&self.last.to_le_bytes());
        let writer = self.store.stage(name).expect("a staging file can be made");
        writer.write_at(&bytes, 0).expect("a staging file can be written");
        drop(writer);
        let reader = self.store.open_staging(name).expect("the staging file is there");
        let digest = reader.digest(|| true).expect("the staging file can be read").expect("nothing stops it");
        (digest.checksum, Staged { name, size: FILE_BYTES })
    }

    /// Time that putting `n` new files in one batch takes; staging, hashing and clearing away are not counted.
    fn put(&mut self, n: u64) -> Duration {
        let batch: Vec<(Checksum, Staged)> = (0..n).map(|_| self.stage()).collect();
        let latches = self.store.latch_all(batch.iter().map(|(sum, _)| *sum));
        let start = Instant::now();
        self.store.put(&batch).expect("a batch can be put");
        let took = start.elapsed();
        for (_, staged) in &batch {
            self.store.discard(staged.name).expect("a staging name can be removed");
        }
        for latch in &latches {
            self.store.remove_blob(latch).expect("a blob can be removed");
        }
        took
    }
}

fn puts(c: &mut Criterion, files: &mut Files<'_>) {
    let mut group = c.benchmark_group("filestore/put, files of 4 KiB");
    for n in BATCHES {
        group.throughput(Throughput::Elements(n));
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter_custom(|rounds| (0..rounds).map(|_| files.put(n)).sum());
        });
    }
    group.finish();
}

fn stages(c: &mut Criterion, files: &mut Files<'_>) {
    c.bench_function("filestore/stage, write 4 KiB, discard", |b| {
        b.iter(|| {
            files.last += 1;
            let name = StagingName(files.last);
            let writer = files.store.stage(name).expect("a staging file can be made");
            writer.write_at(&[7; FILE_BYTES as usize], 0).expect("a staging file can be written");
            drop(writer);
            files.store.discard(name).expect("a staging file can be removed");
        });
    });
}

fn main() {
    let mut c = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    Filestore::create(dir.path(), [7; 16]).expect("a filestore can be made");
    let store = Filestore::open(dir.path(), [7; 16], &Options::default()).expect("the new filestore opens");
    let mut files = Files { store: &store, last: 0 };
    stages(&mut c, &mut files);
    puts(&mut c, &mut files);
    c.final_summary();
}
