//! What the tree itself costs, without a kernel: files made, written, opened and removed through the daemon.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::Criterion;
use depotfs::change::{Ino, ROOT};
use depotfs::filestore::{self, Filestore};
use depotfs::index::{Index, Init};
use depotfs::vfs::node::Token;
use depotfs::vfs::open::Access;
use depotfs::vfs::{Caller, Durability, Options, Vfs};

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };

fn reading() -> Access {
    Access { read: true, noatime: true, ..Access::default() }
}

fn writing() -> Access {
    Access { write: true, exclusive: true, ..Access::default() }
}

/// The kernel that is not there refuses passthrough.
fn refuse(_: BorrowedFd<'_>) -> io::Result<Token> {
    Err(io::ErrorKind::Unsupported.into())
}

fn tree(dir: &Path) -> Vfs {
    let (db, blobs) = (dir.join("index.db"), dir.join("filestore"));
    let init = Init { depot_id: [7; 16], uid: 0, gid: 0, mode: 0o755, at: 1 };
    Index::create(&db, &init).expect("an index can be made");
    Filestore::create(&blobs, [7; 16]).expect("a filestore can be made");
    let index = Index::open(&db).expect("the new index opens");
    let store =
        Filestore::open(&blobs, [7; 16], &filestore::Options::default()).expect("the new filestore opens");
    let options = Options {
        mountpoint: dir.join("nowhere"),
        subdir: ROOT,
        read_only: false,
        noatime: true,
        durability: Durability::Fsync,
        passthrough: false,
        sync_names: false,
        backlog_bytes_max: u64::MAX,
        backlog_files_max: u64::MAX,
    };
    Vfs::new(index, store, options)
}

/// Makes a file with these bytes and closes it.
fn write(vfs: &Vfs, parent: Ino, name: &str, bytes: &[u8]) -> Ino {
    let (made, _) = vfs
        .create(&CALLER, parent, name.as_bytes(), (0o644, 0o022), writing(), &refuse)
        .expect("a file can be made");
    let ino = made.inode.ino;
    vfs.write(ino, 0, bytes, false).expect("the new file can be written");
    vfs.release(ino, writing());
    ino
}

fn remove(vfs: &Vfs, parent: Ino, name: &str, ino: Ino) {
    vfs.unlink(parent, name.as_bytes()).expect("the file can be removed");
    vfs.forget(ino);
}

fn short_lives(c: &mut Criterion, vfs: &Vfs, dir: Ino) {
    c.bench_function("vfs/create, write 4 KiB, close, unlink", |b| {
        b.iter_custom(|rounds| {
            let start = Instant::now();
            for _ in 0..rounds {
                let ino = write(vfs, dir, "short-lived", &[7; 4096]);
                remove(vfs, dir, "short-lived", ino);
            }
            let took = start.elapsed();
            // What the background does later.
            vfs.reap().expect("removed files end");
            vfs.force(Duration::ZERO, Duration::ZERO).expect("the index can be forced");
            took
        });
    });
}

/// The bench that hashes, forces, puts and commits: what the background does for each batch of closed files.
fn seals(c: &mut Criterion, vfs: &Vfs, dir: Ino) {
    const BATCH: u64 = 64;
    let mut content = 0_u64;
    let mut group = c.benchmark_group("vfs");
    group.sample_size(10);
    group.bench_function("seal 64 files of 4 KiB", |b| {
        b.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                let mut bytes = [0; 4096];
                let mut inos = Vec::new();
                for n in 0..BATCH {
                    content += 1;
                    bytes[..8].copy_from_slice(&content.to_le_bytes());
                    inos.push(write(vfs, dir, &format!("sealed-{n}"), &bytes));
                }
                let start = Instant::now();
                let sealed = vfs.seal(&inos, &|| true).expect("closed files can be sealed");
                took += start.elapsed();
                assert_eq!(sealed as u64, BATCH);
                for (n, ino) in inos.iter().enumerate() {
                    remove(vfs, dir, &format!("sealed-{n}"), *ino);
                }
                vfs.reap().expect("removed files end");
                vfs.force(Duration::ZERO, Duration::ZERO).expect("the index can be forced");
            }
            vfs.reclaim_older_than(Duration::ZERO, &|| true).expect("unreferenced blobs can be removed");
            took
        });
    });
    group.finish();
}

fn opens(c: &mut Criterion, vfs: &Vfs, dir: Ino) {
    let ino = write(vfs, dir, "read", &[7; 4096]);
    vfs.seal(&[ino], &|| true).expect("a closed file can be sealed");
    let mut buffer = [0; 4096];
    c.bench_function("vfs/lookup, open, read 4 KiB, close", |b| {
        b.iter(|| {
            let found = vfs.lookup(dir, b"read").expect("the tree answers").expect("the name is there");
            let ino = found.inode.ino;
            vfs.open(&CALLER, ino, reading(), &refuse).expect("the file opens");
            let n = vfs.read(ino, 0, 0, &mut buffer).expect("the file can be read");
            vfs.release(ino, reading());
            n
        });
    });
}

fn main() {
    let mut c = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let scratch = tempfile::tempdir().expect("a temporary directory can be made");
    let vfs = tree(scratch.path());
    let made = vfs.make_directory(&CALLER, ROOT, b"repo", 0o755, 0o022).expect("a repository can be made");
    let dir = made.inode.ino;
    opens(&mut c, &vfs, dir);
    short_lives(&mut c, &vfs, dir);
    seals(&mut c, &vfs, dir);
    c.final_summary();
}
