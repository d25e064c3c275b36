//! Tests of the room: a depot's index in a directory of its own, and short words to build changes.

mod changes;
mod checks;
mod files;
mod full;
mod nonsense;
mod random;
mod reading;
mod redo;
mod refused;
mod size;
#[cfg(debug_assertions)]
mod upgrades;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::types::Value;
use tempfile::TempDir;

use super::*;
use crate::change::{LOST_FOUND, StagingName};

thread_local! {
    /// Every statement that this thread prepared.
    static SEEN: RefCell<BTreeMap<&'static str, ()>> = const { RefCell::new(BTreeMap::new()) };
}

/// Called for each statement: its parameters are numbered as PostgreSQL would number them.
pub(super) fn note(sql: &'static str, statement: &rusqlite::Statement<'_>) {
    for n in 1..=statement.parameter_count() {
        assert_eq!(statement.parameter_name(n), Some(format!("${n}").as_str()), "{sql}");
    }
    SEEN.with_borrow_mut(|seen| seen.insert(sql, ()));
}

pub(super) fn init() -> Init {
    Init { depot_id: [7; 16], uid: 10, gid: 20, mode: 0o755, at: 1000 }
}

impl Index {
    fn reserve_bytes(&self) -> u64 {
        self.reserve.bytes()
    }
}

pub(super) struct Depot {
    pub index: Index,
    pub dir: TempDir,
}

impl Depot {
    pub fn new() -> Depot {
        let dir = tempfile::tempdir().unwrap();
        Index::create(&dir.path().join("index.db"), &init()).unwrap();
        Depot { index: Index::open(&dir.path().join("index.db")).unwrap(), dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("index.db")
    }

    pub fn number(&self) -> u64 {
        self.index.next_number().unwrap()
    }

    pub fn creation(&self, parent: Ino, name: &str, kind: Kind, at: Nanos) -> (Ino, Change) {
        let ino = self.number();
        (ino, create(parent, name, self.number(), inode(ino, kind, at)))
    }

    pub fn make(&self, parent: Ino, name: &str, kind: Kind, at: Nanos) -> Ino {
        let (ino, change) = self.creation(parent, name, kind, at);
        self.ok(&[change]);
        ino
    }

    pub fn dir(&self, parent: Ino, name: &str) -> Ino {
        self.make(parent, name, Kind::Directory, 2000)
    }

    pub fn file(&self, parent: Ino, name: &str) -> Ino {
        self.make(parent, name, Kind::File, 2000)
    }

    pub fn ok(&self, changes: &[Change]) -> Seq {
        self.index.commit(changes).unwrap()
    }

    /// The commit fails and leaves every row as it was.
    pub fn refused(&self, changes: &[Change]) -> Error {
        let before = dump(&self.index);
        let error = self.index.commit(changes).unwrap_err();
        assert_eq!(dump(&self.index), before, "{error}");
        error
    }

    pub fn get(&self, ino: Ino) -> Inode {
        self.index.inode(ino).unwrap().unwrap()
    }

    pub fn clean(&self) {
        assert_eq!(self.index.check(false).unwrap(), []);
    }

    /// SQL behind the back of the room.
    pub fn hack(&self, sql: &str) {
        self.index.writer.lock().execute_batch(sql).unwrap();
    }
}

pub(super) fn inode(ino: Ino, kind: Kind, at: Nanos) -> Inode {
    Inode {
        ino,
        kind,
        mode: 0o644,
        uid: 1,
        gid: 2,
        rdev: 0,
        nlink: 1,
        size: 0,
        checksum: None,
        atime: at,
        mtime: at,
        ctime: at,
        btime: at,
    }
}

pub(super) fn create(parent: Ino, name: &str, cookie: Cookie, inode: Inode) -> Change {
    let target = (inode.kind == Kind::Symlink).then(|| b"target".to_vec());
    Change::Create { parent, name: name.into(), cookie, inode, target, xattrs: vec![] }
}

pub(super) fn remove(parent: Ino, name: &str, ino: Ino, at: Nanos) -> Change {
    Change::Remove { parent, name: name.into(), ino, at }
}

pub(super) fn rename(
    from: (Ino, &str),
    ino: Ino,
    to: (Ino, &str),
    replaced: Option<Ino>,
    cookie: Cookie,
) -> Change {
    Change::Rename {
        parent: from.0,
        name: from.1.into(),
        new_parent: to.0,
        new_name: to.1.into(),
        cookie,
        ino,
        replaced,
        at: 5000,
    }
}

pub(super) fn exchange(a: (Ino, &str), ino: Ino, b: (Ino, &str), new_ino: Ino) -> Change {
    Change::Exchange {
        parent: a.0,
        name: a.1.into(),
        ino,
        new_parent: b.0,
        new_name: b.1.into(),
        new_ino,
        at: 5000,
    }
}

pub(super) fn content(ino: Ino, sum: Checksum, size: u64) -> Change {
    Change::Content { ino, checksum: sum, size, blake3: Some([sum.0[0]; 32]), mtime: 3000, ctime: 3001 }
}

pub(super) fn sum(n: u64) -> Checksum {
    let mut bytes = [0xee; 20];
    bytes[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Checksum(bytes)
}

pub(super) fn staged(ino: Ino, file: u64) -> StagedRow {
    StagedRow {
        ino,
        file: StagingName(file),
        boot: [1; 16],
        mount: [2; 16],
        forced: false,
        checksum: None,
        mtime: 7,
        ctime: 8,
        failed: None,
    }
}

/// Every row of every table, in order, but for what says how far the redo log is applied.
pub(super) fn dump(index: &Index) -> Vec<(String, Vec<Vec<Value>>)> {
    let c = index.snapshot().unwrap();
    let rows = |table: &str| {
        let mut statement = c.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap();
        let columns = statement.column_count();
        let row = |r: &rusqlite::Row<'_>| (0..columns).map(|at| r.get(at)).collect();
        statement.query_map([], row).unwrap().map(|r| r.unwrap()).collect()
    };
    let one_column = |table: &str| match table {
        "orphan" => "(SELECT ino, 0 FROM orphan)".to_owned(),
        "meta" => "(SELECT * FROM meta WHERE key NOT IN ('applied', 'session'))".to_owned(),
        other => other.to_owned(),
    };
    schema::TABLES.iter().map(|table| (table.to_string(), rows(&one_column(table)))).collect()
}
