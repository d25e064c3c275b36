//! What the namespace costs: the commit that makes a file, a lookup, a page of a listing, a commit made durable.

use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use depotfs::change::{Change, Ino, Inode, Kind, ROOT, StagedRow, StagingName};
use depotfs::index::{Index, Init};

/// Entries of the directory that is looked into.
const ENTRIES: u64 = 20_000;
/// Entries of a page of a listing, as `vfs` reads it.
const PAGE: usize = 256;
/// Changes in one commit while the directory is filled.
const BATCH: u64 = 1_000;

fn open(dir: &Path) -> Index {
    let path = dir.join("index.db");
    let init = Init { depot_id: [7; 16], uid: 0, gid: 0, mode: 0o755, at: 1 };
    Index::create(&path, &init).expect("an index can be made");
    Index::open(&path).expect("the new index opens")
}

fn number(index: &Index) -> u64 {
    index.next_number().expect("numbers do not run out")
}

/// The change that makes `name`, and the number of the new inode.
fn creation(index: &Index, parent: Ino, name: String, kind: Kind) -> (Ino, Change) {
    let ino = number(index);
    let at = 1_700_000_000_000_000_000;
    let inode = Inode {
        ino,
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: if kind == Kind::Directory { 2 } else { 1 },
        size: 0,
        checksum: None,
        atime: at,
        mtime: at,
        ctime: at,
        btime: at,
    };
    let (name, cookie, xattrs) = (name.into_bytes(), number(index), Vec::new());
    (ino, Change::Create { parent, name, cookie, inode, target: None, xattrs })
}

/// What open(2) with O_CREAT commits: the file and the row of its staging file.
fn new_file(index: &Index, parent: Ino, name: String) -> [Change; 2] {
    let (ino, create) = creation(index, parent, name, Kind::File);
    let row = StagedRow {
        ino,
        file: StagingName(number(index)),
        boot: [1; 16],
        mount: [2; 16],
        forced: false,
        checksum: None,
        mtime: 1,
        ctime: 1,
        failed: None,
    };
    [create, Change::Stage(row)]
}

fn repository(index: &Index, name: &str) -> Ino {
    let (ino, create) = creation(index, ROOT, name.to_owned(), Kind::Directory);
    index.commit(&[create]).expect("a repository can be made");
    ino
}

/// A directory with `ENTRIES` files and its last cookies before each page.
fn filled(index: &Index) -> Ino {
    let dir = repository(index, "filled");
    for batch in 0..ENTRIES / BATCH {
        let names = (batch * BATCH..(batch + 1) * BATCH).map(|n| format!("file-{n:08}"));
        let changes: Vec<Change> = names.flat_map(|name| new_file(index, dir, name)).collect();
        index.commit(&changes).expect("the directory can be filled");
    }
    index.sync().expect("the index can be forced");
    dir
}

fn commits(c: &mut Criterion, index: &Index) {
    let dir = repository(index, "commits");
    let mut n = 0;
    let mut next = || {
        n += 1;
        new_file(index, dir, format!("file-{n:012}"))
    };
    c.bench_function("index/create a file (one commit)", |b| {
        b.iter(|| index.commit(&next()).expect("a file can be made"));
    });
    c.bench_function("index/create a file and force it", |b| {
        b.iter(|| {
            index.commit(&next()).expect("a file can be made");
            index.sync().expect("the index can be forced")
        });
    });
}

fn reads(c: &mut Criterion, index: &Index) {
    let dir = filled(index);
    let mut n = 0;
    c.bench_function("index/lookup of one of 20,000", |b| {
        b.iter(|| {
            n = (n + 7919) % ENTRIES;
            let name = format!("file-{n:08}");
            index.lookup(dir, name.as_bytes()).expect("the index answers").expect("the name is there")
        });
    });
    let mut group = c.benchmark_group("index");
    group.throughput(Throughput::Elements(PAGE as u64));
    let mut after = 0;
    group.bench_function("page of 256 of a listing of 20,000", |b| {
        b.iter(|| {
            let page = index.list(dir, after, PAGE).expect("the index answers");
            after = if page.len() == PAGE { page[PAGE - 1].cookie } else { 0 };
            page
        });
    });
    group.finish();
}

fn main() {
    let mut c = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let index = open(dir.path());
    reads(&mut c, &index);
    commits(&mut c, &index);
    c.final_summary();
}
