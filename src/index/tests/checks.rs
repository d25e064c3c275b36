//! What the consistency check finds, and what it mends.

use super::*;

struct Broken {
    d: Depot,
    a: Ino,
    b: Ino,
    f: Ino,
    link: Ino,
}

/// A small tree with a bit of everything.
fn tree() -> Broken {
    let d = Depot::new();
    let (a, b) = (d.dir(ROOT, "a"), d.dir(ROOT, "b"));
    let deep = d.dir(a, "deep");
    let f = d.file(deep, "f");
    let link = d.make(b, "l", Kind::Symlink, 1);
    d.ok(&[content(f, sum(1), 10), Change::Stage(staged(f, 7))]);
    d.clean();
    Broken { d, a, b, f, link }
}

/// Breaks a tree, expects the problem, repairs, and expects none.
fn mended(break_it: impl Fn(&Broken) -> String, expect: impl Fn(&Broken, &Problem) -> bool) -> Broken {
    let t = tree();
    t.d.hack(&break_it(&t));
    let found = t.d.index.check(false).unwrap();
    assert!(found.iter().any(|f| expect(&t, &f.problem)), "{found:?}");
    assert!(found.iter().all(|f| !f.repaired && !f.to_string().is_empty()));
    let repaired = t.d.index.check(true).unwrap();
    assert!(repaired.iter().all(|f| f.repaired), "{repaired:?}");
    assert_eq!(repaired.len(), found.len());
    t.d.clean();
    t
}

/// The one inode in lost+found.
fn lost(t: &Broken) -> Entry {
    let mut entries = t.d.index.list(LOST_FOUND, 0, 9).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

#[test]
fn a_name_of_nothing_goes() {
    let t = mended(
        |t| format!("DELETE FROM inode WHERE ino = {}", t.link),
        |t, p| matches!(p, Problem::NameOfNothing { ino, .. } if *ino == t.link),
    );
    assert_eq!(t.d.index.lookup(t.b, b"l").unwrap(), None);
    assert_eq!(t.d.index.target(t.link).unwrap(), None);
}

#[test]
fn an_inode_without_a_name_gets_one() {
    let t = mended(|t| format!("DELETE FROM dentry WHERE ino = {}", t.f), |t, p| *p == Problem::Unnamed(t.f));
    let entry = lost(&t);
    assert_eq!((entry.name, entry.inode.ino), (format!("#{}", t.f).into_bytes(), t.f));
    assert!(entry.cookie < t.d.number());
}

#[test]
fn what_was_below_a_lost_directory_is_found_again() {
    let t = mended(
        |t| format!("DELETE FROM inode WHERE ino = {}", t.a),
        |t, p| matches!(p, Problem::NameInNothing { parent, .. } if *parent == t.a),
    );
    assert!(t.d.index.path(t.f).unwrap().unwrap().starts_with(b"lost+found/#"));
}

#[test]
fn a_cycle_is_cut() {
    let t = mended(
        |t| {
            format!(
                "UPDATE dentry SET parent = (SELECT ino FROM dentry WHERE name = x'64656570') WHERE ino = {}",
                t.a
            )
        },
        |_, p| matches!(p, Problem::Cycle(_)),
    );
    assert!(t.d.index.path(t.f).unwrap().unwrap().starts_with(b"lost+found/#"));
}

#[test]
fn a_directory_keeps_its_first_name_only() {
    let t = mended(
        |t| format!("INSERT INTO dentry VALUES (900, {}, x'78', {})", t.b, t.a),
        |t, p| *p == Problem::TwoNames(t.a),
    );
    assert_eq!(t.d.index.path(t.a).unwrap().unwrap(), b"a");
}

#[test]
fn drifts_are_counted_again() {
    let t = mended(
        |t| format!("UPDATE inode SET nlink = 9 WHERE ino IN ({}, {}, 1)", t.f, t.a),
        |t, p| *p == Problem::Links { ino: t.f, recorded: 9, actual: 1 },
    );
    assert_eq!((t.d.get(t.f).nlink, t.d.get(t.a).nlink, t.d.get(ROOT).nlink), (1, 3, 7));
    mended(
        |_| "UPDATE blob SET refs = 5".into(),
        |_, p| *p == Problem::References { checksum: sum(1), recorded: 5, actual: 1 },
    );
    mended(
        |_| "UPDATE counter SET files = 0, blobs = 9".into(),
        |_, p| matches!(p, Problem::Counters { .. }),
    );
    mended(|_| "DELETE FROM counter".into(), |_, p| matches!(p, Problem::Counters { recorded: None, .. }));
    mended(
        |t| format!("UPDATE inode SET size = 11 WHERE ino = {}", t.f),
        |t, p| *p == Problem::Size { ino: t.f, recorded: 11, actual: 10 },
    );
}

#[test]
fn content_without_a_blob_is_recorded() {
    let t = mended(
        |_| "DELETE FROM blob WHERE size > 0".into(),
        |_, p| *p == Problem::UnknownBlob { checksum: sum(1), size: 10 },
    );
    let blob = t.d.index.blob(&sum(1)).unwrap().unwrap();
    assert_eq!((blob.size, blob.refs, blob.blake3), (10, 1, None));
}

#[test]
fn orphans_that_are_none() {
    let t = mended(
        |t| format!("INSERT INTO orphan VALUES ({}), (777)", t.f),
        |t, p| *p == Problem::FalseOrphan(t.f),
    );
    assert_eq!(t.d.index.orphans().unwrap(), []);
    mended(
        |t| format!("DELETE FROM dentry WHERE ino = {0}; INSERT INTO orphan VALUES ({0})", t.a),
        |t, p| *p == Problem::FalseOrphan(t.a),
    );
}

#[test]
fn a_staging_file_without_an_inode_is_saved() {
    let t = mended(
        |_| "INSERT INTO staged SELECT 900, 901, boot, mount, 1, NULL, 5, 6, NULL FROM staged".into(),
        |_, p| *p == Problem::StagedNothing(900),
    );
    let entry = lost(&t);
    assert_eq!((entry.inode.ino, entry.inode.mode, entry.inode.uid, entry.inode.mtime), (900, 0o600, 10, 5));
    assert!(t.d.index.staged_of(900).unwrap().is_some());
}

#[test]
fn leftovers_and_numbers() {
    mended(
        |_| {
            "INSERT INTO xattr VALUES (900, x'61', x''); INSERT INTO repository VALUES (901, 'k', 'v')".into()
        },
        |_, p| *p == Problem::Leftovers(901),
    );
    let t = mended(
        |_| "UPDATE meta SET value = '16' WHERE key = 'numbers'".into(),
        |_, p| matches!(p, Problem::Numbers { mark: 16, .. }),
    );
    let highest = t.d.index.list(ROOT, 0, 99).unwrap().iter().map(|e| e.cookie).max().unwrap();
    assert!(t.d.number() > highest);
    mended(
        |_| "DELETE FROM dentry WHERE ino = 4; DELETE FROM inode WHERE ino = 2".into(),
        |_, p| *p == Problem::Reserved(LOST_FOUND),
    );
}

#[test]
fn what_cannot_be_mended_is_said() {
    let t = tree();
    t.d.hack(&format!("DELETE FROM symlink; INSERT INTO staged SELECT {}, file, boot, mount, 1, NULL, 5, 6, NULL FROM staged", t.b));
    let found = t.d.index.check(true).unwrap();
    assert!(found.contains(&Finding { problem: Problem::Targetless(t.link), repaired: false }), "{found:?}");
    assert!(found.contains(&Finding { problem: Problem::StagedWrongly(t.b), repaired: false }), "{found:?}");
    assert_eq!(t.d.index.check(false).unwrap(), found);
}

#[test]
fn a_closed_index_is_checked_by_its_path() {
    let t = tree();
    let path = t.d.path();
    assert!(matches!(check(&path, false), Err(Error::Busy { .. })));
    let Depot { index, dir } = t.d;
    drop(index);
    assert_eq!(check(&path, true).unwrap(), []);
    drop(dir);
}
