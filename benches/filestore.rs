//! What keeping blobs costs each leaf: staging files, putting them by batches as the seal does, reading them, room.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use depotfs::change::StagingName;
use depotfs::checksum::Checksum;
use depotfs::filestore::{Filestore, Layer, Options, Staged, open_chain};

/// Files put together; 128 is what the background seals at once.
const BATCHES: [u64; 3] = [1, 16, 128];
/// Bytes of a file.
const SIZES: [usize; 4] = [200, 4096, 65_536, 1 << 20];
/// Blobs that are read, and measured.
const STORED: u64 = 2_000;

/// Staging files with content of their own, ready to be put.
struct Files<'a> {
    store: &'a Filestore,
    size: usize,
    last: u64,
}

impl Files<'_> {
    fn stage(&mut self) -> (Checksum, Staged) {
        self.last += 1;
        let name = StagingName(self.last);
        let mut bytes = vec![0; self.size];
        bytes[..8].copy_from_slice(&self.last.to_le_bytes());
        let writer = self.store.stage(name).expect("a staging file can be made");
        writer.write_at(&bytes, 0).expect("a staging file can be written");
        drop(writer);
        let reader = self.store.open_staging(name).expect("the staging file is there");
        let digest = reader.digest(|| true).expect("the staging file can be read").expect("nothing stops it");
        (digest.checksum, Staged { name, size: self.size as u64 })
    }

    fn put(&mut self, n: u64) -> (Vec<Checksum>, Duration) {
        let batch: Vec<(Checksum, Staged)> = (0..n).map(|_| self.stage()).collect();
        let latches = self.store.latch_all(batch.iter().map(|(sum, _)| *sum));
        let start = Instant::now();
        self.store.put(&batch).expect("a batch can be put");
        let took = start.elapsed();
        drop(latches);
        for (_, staged) in &batch {
            self.store.discard(staged.name).expect("a staging name can be removed");
        }
        (batch.into_iter().map(|(sum, _)| sum).collect(), took)
    }

    /// Time that putting `n` new files in one batch takes; staging, hashing and clearing away are not counted.
    fn put_for_a_moment(&mut self, n: u64) -> Duration {
        let (sums, took) = self.put(n);
        for latch in &self.store.latch_all(sums) {
            self.store.remove_blob(latch).expect("a blob can be removed");
        }
        took
    }
}

fn puts(c: &mut Criterion, kind: &str, files: &mut Files<'_>) {
    let mut group = c.benchmark_group(format!("{kind}/put, files of {} bytes", files.size));
    for n in BATCHES {
        group.throughput(Throughput::Elements(n));
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter_custom(|rounds| (0..rounds).map(|_| files.put_for_a_moment(n)).sum());
        });
    }
    group.finish();
}

fn reads(c: &mut Criterion, kind: &str, files: &Files<'_>, sums: &[Checksum]) {
    let mut next = sums.iter().cycle();
    let mut buffer = vec![0; files.size];
    c.bench_function(format!("{kind}/open and read {} bytes", files.size).as_str(), |b| {
        b.iter(|| {
            let sum = next.next().expect("there are blobs");
            let blob = files.store.open_blob(sum, files.size as u64).expect("the blob is there");
            blob.read_at(&mut buffer, 0).expect("the blob can be read");
        });
    });
}

fn stages(c: &mut Criterion, kind: &str, files: &mut Files<'_>) {
    let bytes = vec![7; files.size];
    c.bench_function(format!("{kind}/stage, write {} bytes, discard", files.size).as_str(), |b| {
        b.iter(|| {
            files.last += 1;
            let name = StagingName(files.last);
            let writer = files.store.stage(name).expect("a staging file can be made");
            writer.write_at(&bytes, 0).expect("a staging file can be written");
            drop(writer);
            files.store.discard(name).expect("a staging file can be removed");
        });
    });
}

/// Bytes that a directory takes on its disk.
fn room(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("the directory can be read");
    let of = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("the directory can be read").path();
        let found = path.symlink_metadata().expect("the entry is there");
        found.blocks() * 512 + if found.is_dir() { room(&path) } else { 0 }
    };
    entries.map(of).sum()
}

fn measure(c: &mut Criterion, kind: &str, layer: &dyn Fn(&Path) -> Layer) {
    for size in SIZES {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let layer = layer(dir.path());
        layer.create([7; 16]).expect("a filestore can be made");
        let store = open_chain(&[layer], [7; 16]).expect("the new filestore opens");
        let mut files = Files { store: &store, size, last: 0 };
        if size == SIZES[1] {
            stages(c, kind, &mut files);
        }
        let before = room(dir.path());
        let sums: Vec<Checksum> = (0..STORED.div_ceil(128)).flat_map(|_| files.put(128).0).collect();
        let room = room(dir.path()) - before;
        println!("{kind}/room of a blob of {size} bytes: {} bytes", room / sums.len() as u64);
        reads(c, kind, &files, &sums);
        puts(c, kind, &mut files);
    }
}

fn main() {
    let mut c = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let options = Options::default();
    measure(&mut c, "file-system", &|dir| Layer::FileSystem { dir: dir.to_owned(), options });
    measure(&mut c, "full-db", &|dir| Layer::FullDb { dir: dir.to_owned() });
    c.final_summary();
}
