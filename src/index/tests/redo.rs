//! Commits that only the redo log has, after kills, torn writes and failures of SQLite.

use std::sync::atomic::Ordering;

use super::files::killed;
use super::*;
use crate::index::redo::HEADER_BYTES;

/// Names in a directory, in the order in which they were made.
fn names(index: &Index, dir: Ino) -> Vec<String> {
    let entries = index.list(dir, 0, 100_000).unwrap();
    entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect()
}

fn reopened(copy: &TempDir) -> Index {
    Index::open(&copy.path().join("index.db")).unwrap()
}

#[test]
fn a_torn_log_gives_a_prefix() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    for n in 0..20 {
        d.file(repo, &format!("{n:02}"));
    }
    let expected: Vec<String> = (0..20).map(|n| format!("{n:02}")).collect();
    let whole = fs::read(d.dir.path().join("index.redo0")).unwrap();
    let end = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    let mut seen = std::collections::BTreeSet::new();
    for cut in (24..=end).step_by(7).chain([end]) {
        for damage in [0, 0xff] {
            let mut torn = whole.clone();
            torn[cut..(cut + 300).min(end)].fill(damage);
            let copy = killed(&d);
            fs::write(copy.path().join("index.redo0"), &torn).unwrap();
            let index = reopened(&copy);
            let survived = names(&index, repo);
            assert_eq!(survived, expected[..survived.len()], "cut at {cut}");
            assert_eq!(index.check(false).unwrap(), []);
            seen.insert(survived.len());
        }
    }
    assert!(seen.contains(&20) && seen.contains(&0) && seen.len() > 15, "{seen:?}");
}

#[test]
fn what_a_crash_left_behind_the_log_is_never_applied_later() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    for n in 0..20 {
        d.file(repo, &format!("{n:02}"));
    }
    let whole = fs::read(d.dir.path().join("index.redo0")).unwrap();
    let end = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    // One record in the middle is lost; those behind it are whole, and of the same length as what comes next.
    let record = (end - 24) / 21;
    let mut torn = whole.clone();
    torn[24 + 10 * record..24 + 10 * record + 8].fill(0);
    let copy = killed(&d);
    fs::write(copy.path().join("index.redo0"), &torn).unwrap();
    let index = reopened(&copy);
    let survived = names(&index, repo).len();
    assert!(survived < 20, "{survived}");
    for n in 0..12 {
        make_file(&index, repo, &format!("x{n}"));
        let again = killed_at(copy.path());
        let found = names(&reopened(&again), repo);
        assert_eq!(found, names(&index, repo));
    }
}

/// As `killed`, of an index that is no [`Depot`]'s.
fn killed_at(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(dir).unwrap().flatten() {
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    fs::remove_file(copy.path().join("index.db-shm")).unwrap();
    copy
}

fn make_file(index: &Index, parent: Ino, name: &str) {
    let ino = index.next_number().unwrap();
    let cookie = index.next_number().unwrap();
    index.commit(&[create(parent, name, cookie, inode(ino, Kind::File, 1))]).unwrap();
}

#[test]
fn the_files_take_turns() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let long = "n".repeat(200);
    let mut turns = 0;
    for n in 0..24_000 {
        d.file(repo, &format!("{long}{n}"));
        if n % 3000 == 2999 {
            let kept = d.index.writer.lock().redo().is_kept();
            turns += usize::from(kept);
            // With and without anybody who makes the other file free.
            if n > 12_000 {
                d.index.tidy().unwrap();
                assert!(!d.index.writer.lock().redo().is_kept());
            }
            let copy = killed(&d);
            assert!(dump(&reopened(&copy)) == dump(&d.index), "after {n}");
        }
    }
    assert!(turns >= 4, "{turns}");
    for file in ["index.redo0", "index.redo1"] {
        assert!(fs::metadata(d.dir.path().join(file)).unwrap().len() < 12 << 20);
    }
    d.clean();
}

#[test]
fn commits_outlive_a_transaction_that_sqlite_gives_up() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    d.index.tidy().unwrap();
    for n in 0..10 {
        d.file(repo, &format!("{n}"));
    }
    d.hack("PRAGMA max_page_count = 1");
    let mut made = 10;
    let refused = loop {
        let (_, creation) = d.creation(repo, &format!("{made}"), Kind::File, 1);
        match d.index.commit(&[creation]) {
            Ok(_) => made += 1,
            Err(error) => break error,
        };
    };
    assert!(matches!(refused, Error::Full { .. }), "{refused}");
    // SQLite may have given up all of the transaction, which it cannot repeat in so few pages.
    {
        let writer = d.index.writer.lock();
        if !writer.is_autocommit() {
            writer.execute_batch("ROLLBACK").unwrap();
        }
        writer.execute_batch("PRAGMA max_page_count = 1000000").unwrap();
    }
    assert_eq!(names(&d.index, repo).len(), made);
    assert!(d.index.commit(&[remove(repo, "3", 999, 1)]).is_err());
    d.file(repo, "one more");
    assert_eq!(names(&d.index, repo).len(), made + 1);
    d.index.flush().unwrap();
    let copy = killed(&d);
    assert!(dump(&reopened(&copy)) == dump(&d.index));
    d.clean();
}

#[test]
fn a_log_that_is_not_ours_is_refused() {
    let d = Depot::new();
    d.dir(ROOT, "a");
    for (at, what) in [(0, "no redo log"), (7, "version"), (8, "another depot")] {
        let copy = killed(&d);
        let path = copy.path().join("index.redo1");
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 0x40;
        fs::write(&path, &bytes).unwrap();
        let error = Index::open(&copy.path().join("index.db")).map(drop).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert!(fs::read(&path).unwrap() == bytes);
    }
}

#[test]
fn a_read_that_fails_and_ends_the_transaction_loses_nothing() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    d.index.tidy().unwrap();
    for n in 0..10 {
        d.file(repo, &format!("{n}"));
    }
    // What SQLite does by itself when a read meets an error of the disk.
    d.index.writer.lock().execute_batch("ROLLBACK").unwrap();
    assert_eq!(names(&d.index, repo).len(), 10);
    d.index.writer.lock().execute_batch("ROLLBACK").unwrap();
    d.file(repo, "one more");
    d.index.writer.lock().execute_batch("ROLLBACK").unwrap();
    d.index.flush().unwrap();
    assert_eq!(d.index.flushed.load(Ordering::Acquire), d.index.last_seq());
    let copy = killed(&d);
    assert_eq!(names(&reopened(&copy), repo).len(), 11);
    d.clean();
}

#[test]
fn commits_after_a_hole_in_the_log_are_found() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    d.index.sync().unwrap();
    for n in 0..100 {
        d.file(repo, &format!("{n}"));
    }
    d.index.fail_force.store(true, Ordering::Relaxed);
    assert!(d.index.sync().is_err());
    // The page that the disk refused is clean in memory, and what it was before on the disk.
    let redo = fs::OpenOptions::new().write(true).open(d.dir.path().join("index.redo0")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&redo, &[0; 512], HEADER_BYTES).unwrap();
    assert_eq!(d.index.sync().unwrap(), d.index.last_seq());
    d.file(repo, "after");
    d.index.sync().unwrap();
    let copy = killed(&d);
    let index = reopened(&copy);
    assert_eq!(names(&index, repo).len(), 101);
    assert!(dump(&index) == dump(&d.index));
    d.clean();
}

#[test]
fn a_log_made_on_a_full_disk_keeps_its_commits() {
    let Some(disk) = full::Small::new(24) else { return };
    let path = disk.path().join("index.db");
    for left in [0, 1, 100, 1000, 3000] {
        for name in [
            "index.db",
            "index.db-wal",
            "index.db-shm",
            "index.reserve",
            "index.redo0",
            "index.redo1",
            "filler",
        ] {
            let _ = fs::remove_file(disk.path().join(name));
        }
        Index::create(&path, &init()).unwrap();
        disk.fill();
        let filler = fs::OpenOptions::new().write(true).open(disk.path().join("filler")).unwrap();
        filler.set_len(filler.metadata().unwrap().len() - (left << 10)).unwrap();
        let index = Index::open(&path).unwrap();
        let mut made = 0;
        while made < 50 && full::make(&index, ROOT, &format!("repo{made}"), Kind::Directory).is_ok() {
            made += 1;
        }
        index.sync().unwrap();
        let killed = killed_at(disk.path());
        let found = reopened(&killed);
        assert_eq!(
            names(&found, ROOT).iter().filter(|name| name.starts_with("repo")).count(),
            made,
            "{left}"
        );
        assert!(left < 100 || made == 50, "{left}: {made}");
    }
}

#[test]
fn what_is_pending_is_bounded_while_the_file_takes_nothing() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    d.index.tidy().unwrap();
    let pages: i64 = d.index.writer.lock().query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    d.hack(&format!("PRAGMA max_page_count = {}", pages + 200));
    let mut made = 0;
    let refused = loop {
        let (_, creation) = d.creation(repo, &format!("{made}"), Kind::File, 1);
        match d.index.commit(&[creation]) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
        assert!(made < 20_000);
    };
    assert!(matches!(refused, Error::Full { .. }), "{refused}");
    d.hack("PRAGMA max_page_count = 1000000");
    assert_eq!(names(&d.index, repo).len(), made);
    d.file(repo, "goes on");
    d.clean();
}

#[test]
fn an_upgrade_waits_for_commits_that_only_the_log_has() {
    let d = Depot::new();
    d.index.tidy().unwrap();
    let upgradable = killed(&d);
    d.dir(ROOT, "pending");
    let pending = killed(&d);
    const STEPS: &[schema::Step] =
        &[schema::Step { from: 1, sql: "UPDATE meta SET value = '2' WHERE key = 'schema'" }];
    let open = |copy: &TempDir| Index::open_with(&copy.path().join("index.db"), STEPS, 2);
    let refused = open(&pending).map(drop).unwrap_err();
    assert!(matches!(refused, Error::Unfinished { .. }), "{refused}");
    assert!(!pending.path().join("index.db.v1").exists());
    drop(Index::open(&pending.path().join("index.db")).unwrap());
    open(&pending).unwrap();
    open(&upgradable).unwrap();
}
