//! Rows that no commit writes, and files with altered bytes: every answer is a value or says what is damaged.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;

/// Every column, so that none is forgotten: a new one has to be added here (`every_column_is_tried`).
const COLUMNS: &[(&str, &[&str])] = &[
    ("meta", &["key", "value"]),
    (
        "inode",
        &[
            "ino", "kind", "mode", "uid", "gid", "rdev", "nlink", "size", "checksum", "atime", "mtime",
            "ctime", "btime",
        ],
    ),
    ("dentry", &["cookie", "parent", "name", "ino"]),
    ("blob", &["checksum", "size", "blake3", "sha256", "md5", "refs", "since"]),
    ("xattr", &["ino", "name", "value"]),
    ("symlink", &["ino", "target"]),
    ("staged", &["ino", "file", "boot", "mount", "forced", "checksum", "mtime", "ctime", "failed"]),
    ("orphan", &["ino"]),
    ("repository", &["ino", "key", "value"]),
    ("counter", &["id", "files", "directories", "other", "logical_bytes", "blobs", "physical_bytes"]),
];

/// A tree with a row in every table.
fn full() -> Depot {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = FILE.get_or_init(|| {
        let Depot { index, dir } = filled();
        // Nothing is left for the redo log, which is not copied.
        index.flush().unwrap();
        drop(index);
        fs::read(dir.path().join("index.db")).unwrap()
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.db");
    fs::write(&path, bytes).unwrap();
    Depot { index: Index::open(&path).unwrap(), dir }
}

/// As many cases as asked for, or `usual` ones.
fn cases(usual: u32) -> Config {
    if std::env::var_os("PROPTEST_CASES").is_some() { Config::default() } else { Config::with_cases(usual) }
}

fn filled() -> Depot {
    let d = Depot::new();
    let (a, b) = (d.dir(ROOT, "a"), d.dir(ROOT, "b"));
    let deep = d.dir(a, "deep");
    let (f, g, orphan) = (d.file(deep, "f"), d.file(deep, "g"), d.file(b, "o"));
    d.make(b, "l", Kind::Symlink, 1);
    let xattr = |ino| Change::Xattr { ino, name: b"user.x".to_vec(), value: Some(b"v".to_vec()), ctime: 1 };
    let setting = Change::Setting { repository: a, key: "verify".into(), value: Some("always".into()) };
    d.ok(&[content(f, sum(1), 10), content(g, sum(2), 20), xattr(f), xattr(a), setting]);
    let staging = d.number();
    d.ok(&[Change::Stage(staged(f, staging)), remove(b, "o", orphan, 9)]);
    let digests = Change::Digests { checksum: sum(2), sha256: [1; 32], md5: [2; 16] };
    d.ok(&[digests]);
    d.clean();
    d
}

#[test]
fn every_column_is_tried() {
    let d = full();
    let c = d.index.readers.get().unwrap();
    for (table, columns) in COLUMNS {
        let statement = c.prepare(&format!("SELECT * FROM {table}")).unwrap();
        assert_eq!(statement.column_names().collect::<Vec<_>>(), *columns, "{table}");
        let rows: i64 = c.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |r| r.get(0)).unwrap();
        assert!(rows > 0, "{table} is empty: nothing of it would be tried");
    }
    assert_eq!(COLUMNS.len(), schema::TABLES.len());
}

/// Asks everything that can be asked; the errors.
fn ask(index: &Index) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut inos: Vec<Ino> = vec![0, ROOT, LOST_FOUND, u64::MAX, i64::MAX as u64];
    inos.extend(FIRST_INO..FIRST_INO + 24);
    macro_rules! tried {
        ($($asked:expr),* $(,)?) => { $( if let Err(error) = $asked { errors.push(error); } )* };
    }
    for ino in inos {
        tried!(
            index.inode(ino),
            index.list(ino, 0, 100),
            index.list(ino, u64::MAX, 1),
            index.parent(ino),
            index.names_of(ino),
            index.path(ino),
            index.repository(ino),
            index.target(ino),
            index.xattr(ino, b"user.x"),
            index.xattr_names(ino),
            index.staged_of(ino),
            index.settings(ino),
        );
        for name in [&b"a"[..], b"deep", b"f", b"l", b"\xff\0/"] {
            tried!(index.lookup(ino, name));
        }
    }
    for sum in [sum(1), sum(2), Checksum::EMPTY, Checksum([0; 20])] {
        tried!(index.blob(&sum), index.names(&sum, 10), index.blobs(Some(&sum), 10));
    }
    for path in [&b""[..], b"a/deep/f", b"b/l", b"a/deep/f/x", b"//a//"] {
        tried!(index.resolve(path));
    }
    tried!(
        index.blobs(None, 100),
        index.staged(),
        index.orphans(),
        index.unreferenced(i64::MAX, 100),
        index.undigested(100),
        index.repositories(),
        index.counts(),
        index.file_bytes(),
    );
    errors
}

/// Changes of every sort, as the tree would make them; they may fail, one by one.
fn commit_some(index: &Index) {
    let number = || index.next_number().unwrap_or(1 << 40);
    let mut changes = Vec::new();
    for ino in FIRST_INO..FIRST_INO + 16 {
        let at = 9000;
        let attr = |ino| Change::Attr {
            ino,
            mode: Some(0o600),
            uid: None,
            gid: None,
            atime: None,
            mtime: Some(at),
            ctime: Some(at),
        };
        changes.extend([
            attr(ino),
            create(ino, "new", number(), inode(number(), Kind::File, at)),
            create(ino, "newdir", number(), inode(number(), Kind::Directory, at)),
            content(ino, sum(1), 10),
            content(ino, sum(3), 30),
            Change::Stage(staged(ino, number())),
            Change::Unstage { ino },
            Change::Link { ino, parent: FIRST_INO, name: b"link".to_vec(), cookie: number(), at },
            rename((ROOT, "a"), FIRST_INO, (ino, "moved"), None, number()),
            remove(ino, "f", FIRST_INO + 6, at),
            Change::Reap { ino },
        ]);
    }
    changes.push(Change::Forget { checksum: sum(2) });
    for change in changes {
        let _ = index.commit(&[change]);
    }
}

#[track_caller]
fn all_say_damaged(what: &str, errors: &[Error]) {
    for error in errors {
        let honest = matches!(error, Error::Corrupt { .. });
        assert!(honest, "{what}: {error:?}");
    }
}

/// Runs `work` and fails when it does not come back.
fn in_time(what: String, work: impl FnOnce() + Send + 'static) {
    let (done, wait) = channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    if wait.recv_timeout(Duration::from_secs(60)).is_err() && !thread.is_finished() {
        panic!("hangs: {what}");
    }
    if let Err(panic) = thread.join() {
        eprintln!("in: {what}");
        std::panic::resume_unwind(panic);
    }
}

/// What may be put into a column, as SQL; STRICT tables refuse some, and then nothing happens.
fn nonsense() -> impl Strategy<Value = String> {
    let edge = prop_oneof![
        Just(i64::MIN),
        Just(i64::MAX),
        Just(-1),
        Just(0),
        Just(1),
        Just(2),
        Just(3),
        Just(4),
        Just(15),
        Just(16),
        Just(17),
        Just(18),
        Just(255),
        Just(1 << 31),
        Just((1 << 32) - 1),
        Just(1 << 32),
        Just(-(1 << 40)),
        any::<i64>(),
    ];
    prop_oneof![
        6 => edge.clone().prop_map(|n| n.to_string()),
        1 => edge.prop_map(|n| format!("'{n}'")),
        3 => proptest::collection::vec(any::<u8>(), 0..50).prop_map(|bytes| format!("x'{}'", hex(&bytes))),
        1 => Just("zeroblob(20)".into()),
        1 => Just("zeroblob(1000000)".into()),
        1 => Just("NULL".into()),
        1 => Just("CAST(x'ff00fe' AS TEXT)".into()),
        1 => Just("'18446744073709551615'".into()),
        1 => "[a-z'-]{0,20}".prop_map(|text| format!("'{}'", text.replace('\'', "''"))),
    ]
}

/// A column of a table and which of its rows.
fn place() -> impl Strategy<Value = (&'static str, &'static str, u8)> {
    let columns: Vec<_> = COLUMNS.iter().flat_map(|(t, columns)| columns.iter().map(|c| (*t, *c))).collect();
    (proptest::sample::select(columns), 0..8_u8).prop_map(|((table, column), row)| (table, column, row))
}

fn statement((table, column, row): (&str, &str, u8), value: &str) -> String {
    let first = COLUMNS.iter().find(|(t, _)| *t == table).map_or("", |(_, columns)| columns[0]);
    let which = match row {
        0 => String::new(),
        row => {
            format!(
                " WHERE {first} = (SELECT {first} FROM {table} ORDER BY {first} LIMIT 1 OFFSET {})",
                row - 1
            )
        }
    };
    format!("UPDATE OR IGNORE {table} SET {column} = {value}{which}")
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn rows_with_nonsense_values_are_values_or_damage(
        edits in proptest::collection::vec((place(), nonsense()), 1..4),
    ) {
        let script: Vec<String> = edits.iter().map(|(place, value)| statement(*place, value)).collect();
        in_time(script.join("; "), move || {
            let d = full();
            for sql in &script {
                let _ = d.index.writer.lock().execute_batch(sql);
            }
            all_say_damaged("asked", &ask(&d.index));
            let before = dump_bytes(&d.index);
            if let Err(error) = d.index.check(false) {
                all_say_damaged("check", &[error]);
            }
            assert!(dump_bytes(&d.index) == before, "a check without repair changes nothing");
            // As the next daemon would find it.
            let path = d.path();
            let Depot { index, dir } = d;
            drop(index);
            match Index::open(&path) {
                Ok(index) => {
                    all_say_damaged("asked after opening", &ask(&index));
                    commit_some(&index);
                    let _ = index.check(true);
                    all_say_damaged("asked after the repair", &ask(&index));
                }
                Err(error) => all_say_damaged("opened", &[error]),
            }
            drop(dir);
        });
    }

    #[test]
    fn a_file_with_altered_bytes_is_read_or_refused_and_then_left_alone(
        flips in proptest::collection::vec((any::<u32>(), 1..=255_u8), 1..40),
    ) {
        in_time(format!("{flips:?}"), move || {
            let d = full();
            let path = d.path();
            let Depot { index, dir } = d;
            drop(index);
            let size = fs::metadata(&path).unwrap().len();
            let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
            for (at, bits) in flips {
                let (at, mut byte) = (u64::from(at) % size, [0]);
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ bits], at).unwrap();
            }
            let altered = fs::read(&path).unwrap();
            match Index::open(&path) {
                Ok(index) => {
                    ask(&index);
                    let _ = index.check(false);
                }
                Err(_) => assert!(fs::read(&path).unwrap() == altered, "a refused file is left alone"),
            }
            if let Ok(index) = Index::open(&path) {
                commit_some(&index);
                let _ = index.check(true);
                ask(&index);
            }
            drop(dir);
        });
    }
}

/// The database as its pages are, log included.
fn dump_bytes(index: &Index) -> [Vec<u8>; 2] {
    [&index.files.db, &index.files.wal].map(|file| fs::read(file).unwrap())
}

#[test]
fn a_directory_below_itself_is_noticed_at_once() {
    let d = Depot::new();
    let a = d.dir(ROOT, "a");
    let mut below = vec![a];
    for depth in 0..5 {
        below.push(d.dir(below[depth], &format!("d{depth}")));
    }
    d.index.flush().unwrap();
    d.hack(&format!("UPDATE dentry SET parent = {} WHERE ino = {}", below[3], below[1]));
    let started = std::time::Instant::now();
    assert!(matches!(d.index.path(below[5]), Err(Error::Corrupt { .. })));
    let moved = rename((ROOT, "a"), a, (below[5], "a"), None, d.number());
    assert!(matches!(d.index.commit(&[moved]), Err(Error::Corrupt { .. })));
    assert_eq!(d.index.repository(below[5]).unwrap(), None);
    // A million looks at the index take many times as long.
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[test]
fn a_mark_of_numbers_that_is_none_is_refused() {
    for mark in ["", "x", "-1", "0", "15", "9223372036854775807", "18446744073709551615", "1e9"] {
        let d = full();
        d.hack(&format!("UPDATE meta SET value = '{mark}' WHERE key = 'numbers'"));
        let path = d.path();
        let Depot { index, dir } = d;
        drop(index);
        let why = Index::open(&path).err().expect("refused");
        assert!(matches!(why, Error::Corrupt { .. }) && why.to_string().contains("mark"), "{mark}: {why}");
        drop(dir);
    }
}
