//! Each error, and that it changes nothing.

use super::*;

/// A commit whose first change would do much and whose second is refused.
fn after_work(d: &Depot, change: Change) -> Error {
    let (_, work) = d.creation(ROOT, "work", Kind::Directory, 9999);
    d.refused(&[work, change])
}

#[test]
fn a_taken_name() {
    let d = Depot::new();
    let (a, f) = (d.dir(ROOT, "a"), d.dir(ROOT, "f"));
    let file = d.file(a, "x");
    let (_, again) = d.creation(ROOT, "a", Kind::File, 1);
    assert!(matches!(after_work(&d, again), Error::Exists { parent: ROOT, name } if name == b"a"));
    let link = Change::Link { ino: file, parent: ROOT, name: b"f".to_vec(), cookie: d.number(), at: 1 };
    assert!(matches!(after_work(&d, link), Error::Exists { .. }));
    let over = rename((ROOT, "a"), a, (ROOT, "f"), None, d.number());
    assert!(matches!(after_work(&d, over), Error::Exists { .. }));
    let same = rename((ROOT, "f"), f, (ROOT, "f"), None, d.number());
    assert!(matches!(after_work(&d, same), Error::Exists { .. }));
    d.clean();
}

#[test]
fn what_is_not_there() {
    let d = Depot::new();
    let (a, gone) = (d.dir(ROOT, "a"), 12345);
    let missing = [
        d.creation(gone, "x", Kind::File, 1).1,
        Change::Link { ino: gone, parent: a, name: b"l".to_vec(), cookie: d.number(), at: 1 },
        remove(a, "x", gone, 1),
        rename((a, "x"), gone, (a, "y"), None, d.number()),
        rename((ROOT, "a"), a, (gone, "y"), None, d.number()),
        rename((ROOT, "a"), a, (ROOT, "y"), Some(gone), d.number()),
        exchange((ROOT, "a"), a, (ROOT, "b"), gone),
        Change::Attr {
            ino: gone,
            mode: Some(1),
            uid: None,
            gid: None,
            atime: None,
            mtime: None,
            ctime: None,
        },
        Change::Xattr { ino: gone, name: b"user.a".to_vec(), value: None, ctime: 1 },
        Change::Stage(staged(gone, 1)),
        content(gone, sum(1), 1),
        Change::Reap { ino: gone },
        Change::Digests { checksum: sum(1), sha256: [0; 32], md5: [0; 16] },
        Change::Forget { checksum: sum(1) },
        Change::Setting { repository: gone, key: "k".into(), value: None },
        create(a, "c", d.number(), Inode { checksum: Some(sum(1)), ..inode(d.number(), Kind::File, 1) }),
    ];
    for change in missing {
        let text = format!("{change:?}");
        assert!(matches!(after_work(&d, change), Error::NotFound { .. }), "{text}");
    }
    d.clean();
}

#[test]
fn a_directory_that_is_not_empty() {
    let d = Depot::new();
    let (a, b) = (d.dir(ROOT, "a"), d.dir(ROOT, "b"));
    let x = d.dir(a, "x");
    assert!(matches!(after_work(&d, remove(ROOT, "a", a, 1)), Error::NotEmpty { ino } if ino == a));
    let over = rename((ROOT, "b"), b, (ROOT, "a"), Some(a), d.number());
    assert!(matches!(after_work(&d, over), Error::NotEmpty { .. }));
    let own_entry = rename((a, "x"), x, (ROOT, "a"), Some(a), d.number());
    assert!(matches!(after_work(&d, own_entry), Error::NotEmpty { .. }));
    d.clean();
}

#[test]
fn an_old_picture() {
    let d = Depot::new();
    let (a, b) = (d.dir(ROOT, "a"), d.dir(ROOT, "b"));
    let file = d.file(a, "f");
    d.ok(&[content(file, sum(1), 3)]);
    let stale = [
        remove(ROOT, "a", b, 1),
        rename((ROOT, "a"), b, (ROOT, "c"), None, d.number()),
        rename((ROOT, "a"), a, (ROOT, "b"), Some(file), d.number()),
        exchange((ROOT, "a"), b, (ROOT, "b"), a),
        Change::Forget { checksum: sum(1) },
        Change::Reap { ino: file },
    ];
    for change in stale {
        let text = format!("{change:?}");
        assert!(matches!(after_work(&d, change), Error::Stale { .. }), "{text}");
    }
    d.clean();
}

#[test]
fn a_directory_below_itself() {
    let d = Depot::new();
    let a = d.dir(ROOT, "a");
    let b = d.dir(a, "b");
    let c = d.dir(b, "c");
    let f = d.dir(c, "f");
    let loops = [
        rename((ROOT, "a"), a, (c, "a"), None, d.number()),
        rename((ROOT, "a"), a, (a, "a"), None, d.number()),
        rename((a, "b"), b, (c, "f"), Some(f), d.number()),
        exchange((ROOT, "a"), a, (c, "f"), f),
        exchange((c, "f"), f, (a, "b"), b),
    ];
    for change in loops {
        let text = format!("{change:?}");
        assert!(matches!(after_work(&d, change), Error::Loop { .. }), "{text}");
    }
    d.clean();
}

#[test]
fn too_many_links() {
    let d = Depot::new();
    let a = d.dir(ROOT, "a");
    let (f, s) = (d.file(a, "f"), d.dir(a, "s"));
    d.hack(&format!("UPDATE inode SET nlink = {LINK_MAX} WHERE ino IN ({a}, {f})"));
    let link = Change::Link { ino: f, parent: ROOT, name: b"l".to_vec(), cookie: d.number(), at: 1 };
    assert!(matches!(after_work(&d, link), Error::TooManyLinks { ino } if ino == f));
    assert!(
        matches!(after_work(&d, d.creation(a, "d", Kind::Directory, 1).1), Error::TooManyLinks { ino } if ino == a)
    );
    d.ok(&[d.creation(a, "g", Kind::File, 1).1]);
    d.ok(&[remove(a, "s", s, 1)]);
}

#[test]
fn changes_that_make_no_sense() {
    let d = Depot::new();
    let a = d.dir(ROOT, "a");
    let f = d.file(a, "f");
    let named = |name: &str| d.creation(a, name, Kind::File, 1).1;
    let long = "x".repeat(256);
    let mut invalid = ["", ".", "..", "a/b", "a\0b", &long].map(named).to_vec();
    invalid.extend([
        create(a, "n", d.number(), inode(5, Kind::File, 1)),
        create(a, "n", d.number(), inode(u64::MAX, Kind::File, 1)),
        create(f, "n", d.number(), inode(d.number(), Kind::File, 1)),
        create(
            a,
            "n",
            d.number(),
            Inode { checksum: Some(Checksum::EMPTY), ..inode(d.number(), Kind::Fifo, 1) },
        ),
        create(
            a,
            "n",
            d.number(),
            Inode { checksum: Some(Checksum::EMPTY), size: 3, ..inode(d.number(), Kind::File, 1) },
        ),
        Change::Link { ino: a, parent: a, name: b"l".to_vec(), cookie: d.number(), at: 1 },
        remove(ROOT, ".trash", 2, 1),
        rename((ROOT, ".trash"), 2, (a, "t"), None, d.number()),
        rename((ROOT, "a"), a, (ROOT, ".trash"), Some(2), d.number()),
        exchange((ROOT, "a"), a, (ROOT, ".trash"), 2),
        Change::Stage(staged(a, 1)),
        content(a, sum(1), 1),
        Change::Setting { repository: f, key: "k".into(), value: None },
        Change::Forget { checksum: Checksum::EMPTY },
    ]);
    for change in invalid {
        let text = format!("{change:?}");
        assert!(matches!(after_work(&d, change), Error::Invalid { .. }), "{text}");
    }
    d.clean();
}

#[test]
fn a_collision_is_never_aliased() {
    let d = Depot::new();
    let a = d.dir(ROOT, "a");
    let (f, g) = (d.file(a, "f"), d.file(a, "g"));
    d.ok(&[content(f, sum(1), 10)]);
    let other = |size, blake3| Change::Content { ino: g, checksum: sum(1), size, blake3, mtime: 1, ctime: 1 };
    for change in [other(11, None), other(10, Some([9; 32]))] {
        assert!(matches!(after_work(&d, change), Error::Collision { checksum } if checksum == sum(1)));
    }
    d.ok(&[other(10, None)]);
    d.clean();
}

#[test]
fn an_error_in_the_middle_leaves_the_connection_usable() {
    let d = Depot::new();
    let a = d.dir(ROOT, "a");
    let (ino, change) = d.creation(a, "f", Kind::File, 1);
    // The same cookie twice: a statement that SQLite itself refuses.
    let again = create(a, "g", ino + 1, inode(d.number(), Kind::File, 1));
    assert!(matches!(d.refused(&[change.clone(), again]), Error::Sql { .. }));
    d.ok(&[change]);
    d.clean();
}

#[test]
fn messages_say_what_and_why() {
    let d = Depot::new();
    d.dir(ROOT, "a");
    let (_, again) = d.creation(ROOT, "a", Kind::File, 1);
    assert_eq!(d.refused(&[again]).to_string(), "cannot use the name \"a\" in directory 1: it is taken");
    let gone = d.refused(&[remove(ROOT, "\u{1}", 99, 1)]).to_string();
    assert_eq!(gone, "name 0x01 in directory 1 is not in the index");
}
