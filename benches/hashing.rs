//! What naming a blob costs: SHA-1 and BLAKE3 in one pass, from the page cache, as the seal does it.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use depotfs::checksum::{Hasher, digest, published_digests};

/// Sizes of the files.
const SIZES_KIB: [u64; 2] = [100, 1024];

/// Bytes that no hash can shorten.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file can be made");
    file.write_all(bytes).expect("the temporary file can be written");
    file
}

fn hashing(c: &mut Criterion) {
    let mut group = c.benchmark_group("hashing");
    for kib in SIZES_KIB {
        let bytes = noise(kib as usize * 1024);
        let file = file_of(&bytes);
        group.throughput(Throughput::Bytes(kib * 1024));
        group.bench_function(BenchmarkId::new("sha1+blake3 of a file", format!("{kib} KiB")), |b| {
            b.iter(|| digest(&file, || true).expect("the temporary file can be read"));
        });
        group.bench_function(BenchmarkId::new("sha1+blake3 of memory", format!("{kib} KiB")), |b| {
            b.iter(|| {
                let mut hasher = Hasher::default();
                hasher.update(&bytes);
                hasher.finish()
            });
        });
        group.bench_function(BenchmarkId::new("sha256+md5 of a file", format!("{kib} KiB")), |b| {
            b.iter(|| published_digests(&file, || true).expect("the temporary file can be read"));
        });
    }
    group.finish();
}

fn main() {
    let mut c = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    hashing(&mut c);
    c.final_summary();
}
