//! The file itself: what is refused, upgraded, kept over a restart, forced, copied.

use rusqlite::Connection;

use super::super::forcing::log_pages;
use super::schema::Step;
use super::*;

/// Every file of a directory and its bytes.
fn bytes_of(dir: &Path) -> BTreeMap<std::ffi::OsString, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name(), fs::read(e.path()).unwrap())).collect()
}

/// Opening fails and changes no byte of any file.
fn untouched(dir: &Path) -> Error {
    let before = bytes_of(dir);
    let error = Index::open(&dir.join("index.db")).err().expect("it must be refused");
    assert!(bytes_of(dir) == before, "{error}");
    error
}

fn closed(work: impl Fn(&Depot)) -> TempDir {
    let d = Depot::new();
    work(&d);
    d.dir
}

fn with_a() -> TempDir {
    closed(|d| assert!(d.dir(ROOT, "a") > 0))
}

#[test]
fn create_refuses_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.db");
    fs::write(&path, "precious").unwrap();
    let error = Index::create(&path, &init()).unwrap_err();
    assert!(matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();
    fs::write(dir.path().join("index.db.new"), "left by a crash").unwrap();
    Index::create(&path, &init()).unwrap();
    let names: Vec<_> = bytes_of(dir.path()).into_keys().collect();
    assert_eq!(names, ["index.db", "index.reserve"]);
    assert_eq!(fs::metadata(dir.path().join("index.reserve")).unwrap().len(), reserve::RESERVE_BYTES);
    assert!(matches!(Index::open(&dir.path().join("none.db")), Err(Error::Io { .. })));
}

#[test]
fn foreign_files_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.db");
    for text in ["x", &"not a database ".repeat(99)] {
        fs::write(&path, text).unwrap();
        assert!(matches!(untouched(dir.path()), Error::Foreign { .. }), "{text}");
    }
    fs::remove_file(&path).unwrap();
    let c = Connection::open(&path).unwrap();
    c.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
    assert!(matches!(untouched(dir.path()), Error::Foreign { .. }));
    drop(c);
    assert!(matches!(untouched(dir.path()), Error::Foreign { .. }));
}

#[test]
fn a_newer_version_is_refused_untouched() {
    let dir = closed(|d| {
        d.dir(ROOT, "a");
        d.hack("PRAGMA user_version = 9");
    });
    assert!(matches!(untouched(dir.path()), Error::Newer { found: 9, known: 1, .. }));
    // As a kill leaves it: the newer version is known to the log only.
    let d = Depot::new();
    d.hack("PRAGMA user_version = 9; UPDATE meta SET value = '9' WHERE key = 'schema'");
    let copy = tempfile::tempdir().unwrap();
    for name in ["index.db", "index.db-wal"] {
        fs::copy(d.dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let files = Files::of(&copy.path().join("index.db"));
    let before = (fs::read(&files.db).unwrap(), fs::read(&files.wal).unwrap());
    assert!(matches!(Index::open(&files.db), Err(Error::Newer { found: 9, .. })));
    assert!((fs::read(&files.db).unwrap(), fs::read(&files.wal).unwrap()) == before);
}

#[test]
fn a_damaged_index_is_refused_untouched() {
    type Damage = fn(&mut Vec<u8>);
    let damage: [(&str, Damage); 6] = [
        ("empty", |b| b.clear()),
        ("cut short", |b| b.truncate(60)),
        ("half of it", |b| b.truncate(b.len() / 2)),
        ("a schema of zeros", |b| b[100..1000].fill(0)),
        ("a schema of nonsense", |b| b[100..2048].fill(0xa5)),
        ("tables of nonsense", |b| b[2048..].fill(0xa5)),
    ];
    for (what, damage) in damage {
        let dir = with_a();
        let path = dir.path().join("index.db");
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let error = untouched(dir.path());
        assert!(matches!(error, Error::Corrupt { .. }), "{what}: {error:?}");
    }
    for sql in [
        "DROP TABLE staged",
        "DELETE FROM meta",
        "UPDATE meta SET value = '?' WHERE key = 'numbers'",
        "DELETE FROM inode",
    ] {
        let dir = closed(|d| d.hack(sql));
        let error = Index::open(&dir.path().join("index.db")).err().unwrap();
        assert!(matches!(error, Error::Corrupt { .. }), "{sql}: {error:?}");
    }
}

#[test]
fn rows_of_nonsense_are_an_error_not_a_panic() {
    let d = Depot::new();
    let a = d.dir(ROOT, "a");
    d.hack(&format!("UPDATE inode SET kind = 77 WHERE ino = {a}"));
    assert!(matches!(d.index.inode(a), Err(Error::Corrupt { .. })));
    d.hack(&format!("UPDATE inode SET kind = 1, checksum = x'00' WHERE ino = {a}"));
    assert!(matches!(d.index.lookup(ROOT, b"a"), Err(Error::Corrupt { .. })));
    d.hack(&format!("UPDATE inode SET checksum = NULL, size = -1 WHERE ino = {a}"));
    assert!(matches!(d.index.list(ROOT, 0, 99), Err(Error::Corrupt { .. })));
}

#[test]
fn an_older_version_is_upgraded_after_a_copy() {
    const STEPS: [Step; 2] = [
        Step { from: 1, sql: "ALTER TABLE inode ADD COLUMN colour TEXT" },
        Step { from: 2, sql: "CREATE TABLE extra (a INTEGER NOT NULL) STRICT" },
    ];
    let dir = with_a();
    let path = dir.path().join("index.db");
    let index = Index::open_with(&path, &STEPS, 3).unwrap();
    assert!(index.lookup(ROOT, b"a").unwrap().is_some());
    assert_eq!(sql::user_version(&index.writer.lock()).unwrap(), 3);
    index.writer.lock().execute_batch("INSERT INTO extra VALUES (1)").unwrap();
    drop(index);
    assert!(matches!(untouched(dir.path()), Error::Newer { found: 3, .. }));
    let kept = tempfile::tempdir().unwrap();
    fs::rename(dir.path().join("index.db.v1"), kept.path().join("index.db")).unwrap();
    let old = Index::open(&kept.path().join("index.db")).unwrap();
    assert!(old.lookup(ROOT, b"a").unwrap().is_some());
    drop(Index::open_with(&path, &STEPS, 3).unwrap());
    assert!(!dir.path().join("index.db.v1").exists(), "nothing to upgrade, nothing to keep");
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_version() {
    const BAD: [Step; 2] = [
        Step { from: 1, sql: "DROP TABLE staged" },
        Step { from: 2, sql: "ALTER TABLE nothing ADD COLUMN a" },
    ];
    let dir = with_a();
    let path = dir.path().join("index.db");
    assert!(matches!(Index::open_with(&path, &BAD, 3), Err(Error::Sql { .. })));
    assert!(matches!(Index::open_with(&path, &BAD[1..], 3), Err(Error::Corrupt { .. })));
    let index = Index::open(&path).unwrap();
    assert_eq!(index.check(false).unwrap(), []);
    assert_eq!(index.staged().unwrap(), []);
}

#[test]
fn one_index_is_open_once() {
    let d = Depot::new();
    assert!(matches!(Index::open(&d.path()), Err(Error::Busy { .. })));
    let path = d.path();
    let Depot { index, dir } = d;
    drop(index);
    drop(Index::open(&path).unwrap());
    fs::remove_file(dir.path().join("index.reserve")).unwrap();
    drop(Index::open(&path).unwrap());
    assert_eq!(fs::metadata(dir.path().join("index.reserve")).unwrap().len(), reserve::RESERVE_BYTES);
}

/// What a kill leaves: files as they are, nothing closed.
pub(super) fn killed(d: &Depot) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["index.db", "index.db-wal", "index.reserve", "index.redo0", "index.redo1"] {
        fs::copy(d.dir.path().join(name), copy.path().join(name)).unwrap();
    }
    copy
}

#[test]
fn commits_are_there_after_a_kill_and_after_a_drop() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "a");
    for n in 0..100 {
        d.file(repo, &format!("{n}"));
    }
    let copy = killed(&d);
    let index = Index::open(&copy.path().join("index.db")).unwrap();
    assert_eq!(index.list(repo, 0, 1000).unwrap().len(), 100);
    assert_eq!(index.check(false).unwrap(), []);
    let Depot { index, dir } = d;
    drop(index);
    assert!(!dir.path().join("index.db-wal").exists());
    let index = Index::open(&dir.path().join("index.db")).unwrap();
    assert_eq!(index.list(repo, 0, 1000).unwrap().len(), 100);
}

#[test]
fn numbers_are_never_given_twice() {
    let d = Depot::new();
    let first = d.number();
    assert!(first >= FIRST_INO);
    assert_eq!(d.number(), first + 1);
    // A power cut takes everything after the last force, which was the one for the mark.
    let copy = killed(&d);
    let mut highest = (0..1000).map(|_| d.number()).max().unwrap();
    let cut = Index::open(&copy.path().join("index.db")).unwrap();
    assert!(cut.next_number().unwrap() > highest);
    let Depot { mut index, dir } = d;
    for _ in 0..3 {
        drop(index);
        index = Index::open(&dir.path().join("index.db")).unwrap();
        let next = index.next_number().unwrap();
        assert!(next > highest);
        highest = next;
    }
    // Beyond the mark, and from several threads.
    index.numbers.lock().skip_to_mark(10);
    let all: Vec<u64> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..4)
            .map(|_| s.spawn(|| (0..50).map(|_| index.next_number().unwrap()).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let unique: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(unique.len(), 200);
    assert!(all.iter().all(|n| *n > highest));
    let mark: u64 = sql::meta(&index.writer.lock(), "numbers").unwrap().unwrap().parse().unwrap();
    assert!(all.iter().all(|n| *n < mark));
    assert_eq!(index.durable_seq(), index.last_seq());
}

#[test]
fn sync_covers_the_commits_before_it() {
    let d = Depot::new();
    d.number();
    let seq = d.ok(&[d.creation(ROOT, "a", Kind::Directory, 1).1]);
    assert_eq!(d.index.last_seq(), seq);
    assert!(d.index.durable_seq() < seq);
    assert_eq!(d.index.sync().unwrap(), seq);
    assert_eq!(d.index.durable_seq(), seq);
    assert_eq!(d.index.sync().unwrap(), seq);
    assert_eq!(d.index.commit(&[]).unwrap(), seq);
}

#[test]
fn a_failed_force_is_not_forgotten() {
    let d = Depot::new();
    d.number();
    let before = d.index.sync().unwrap();
    let seq = d.ok(&[d.creation(ROOT, "a", Kind::Directory, 1).1]);
    d.index.fail_force.store(true, Ordering::Relaxed);
    assert!(matches!(d.index.sync(), Err(Error::Io { .. })));
    assert_eq!(d.index.durable_seq(), before);
    // SQLite's own log, which would do, cannot be forced either.
    d.index.fail_force.store(true, Ordering::Relaxed);
    assert!(matches!(d.index.sync(), Err(Error::Io { .. })));
    assert_eq!(d.index.durable_seq(), before);
    // The complete way to the database file fails too: a reader is in the way, then the disk again.
    d.index.flush().unwrap();
    let reader = d.index.readers.snapshot().unwrap();
    assert!(sql::lookup(&reader, ROOT, b"a").unwrap().is_some());
    d.ok(&[d.creation(ROOT, "b", Kind::Directory, 1).1]);
    assert!(d.index.sync().is_err());
    drop(reader);
    d.index.fail_force.store(true, Ordering::Relaxed);
    assert!(d.index.sync().is_err());
    assert_eq!(d.index.durable_seq(), before);
    assert_eq!(d.index.sync().unwrap(), seq + 1);
    assert_eq!(fs::metadata(&d.index.files.wal).unwrap().len(), 0);
    d.ok(&[d.creation(ROOT, "c", Kind::Directory, 1).1]);
    assert_eq!(d.index.sync().unwrap(), seq + 2);
    // The redo log alone: SQLite's own is enough, and the database file is left alone.
    d.index.fail_force.store(true, Ordering::Relaxed);
    d.ok(&[d.creation(ROOT, "d", Kind::Directory, 1).1]);
    assert!(d.index.sync().is_err());
    assert_eq!(d.index.sync().unwrap(), seq + 3);
    assert!(fs::metadata(&d.index.files.wal).unwrap().len() > 0);
}

#[test]
fn the_log_stays_bounded() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "a");
    let bound = (LOG_PAGES_MAX as u64 + 1000) * 2072;
    let mut largest = 0;
    for n in 0..6000 {
        d.file(repo, &format!("file number {n}"));
        if n % 100 == 0 {
            largest = largest.max(fs::metadata(&d.index.files.wal).unwrap().len());
        }
    }
    assert!(largest < bound, "{largest}");
    d.index.tidy().unwrap();
    let log = sql::log(&d.index.copier.lock()).unwrap();
    assert!(log.pages - log.copied < log_pages());
    assert_eq!(
        d.index.file_bytes().unwrap(),
        [&d.index.files.db, &d.index.files.wal].map(|f| fs::metadata(f).unwrap().len()).iter().sum::<u64>()
    );
}

#[test]
fn a_backup_is_an_index_of_one_moment() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "a");
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("index.db");
    fs::write(&to, "an older backup").unwrap();
    std::thread::scope(|s| {
        s.spawn(|| (0..300).map(|n| d.file(repo, &format!("{n}"))).sum::<u64>());
        d.index.backup(&to).unwrap();
    });
    d.index.backup(&to).unwrap();
    let copy = Index::open(&to).unwrap();
    assert_eq!(dump(&copy), dump(&d.index));
    assert_eq!(copy.check(false).unwrap(), []);
    drop(copy);
    let names: Vec<_> = bytes_of(place.path()).into_keys().collect();
    assert_eq!(names, ["index.db", "index.redo0", "index.redo1", "index.reserve"]);
}

#[test]
fn every_table_and_column_is_explained_in_the_file_itself() {
    let d = Depot::new();
    let c = d.index.readers.get().unwrap();
    for table in schema::TABLES {
        let sql = "SELECT sql FROM sqlite_schema WHERE name = ?1 AND type = 'table'";
        let text: String = c.query_row(sql, [table], |r| r.get(0)).unwrap();
        assert!(text.lines().nth(1).unwrap().trim().starts_with("-- "), "{table}");
        assert!(text.contains("STRICT"), "{table}");
        let mut columns = c.prepare(&format!("SELECT name FROM pragma_table_info('{table}')")).unwrap();
        for column in columns.query_map([], |r| r.get::<_, String>(0)).unwrap() {
            let start = format!("{} ", column.unwrap());
            let line = text.lines().map(str::trim).find(|l| l.starts_with(&start)).unwrap();
            assert!(line.contains("-- "), "{table}: {line}");
        }
    }
}

#[test]
fn an_index_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Index>();
}
