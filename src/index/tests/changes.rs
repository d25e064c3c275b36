//! What each change does.

use super::*;

#[test]
fn a_new_index_has_the_root_and_the_reserved_directories() {
    let d = Depot::new();
    let root = d.get(ROOT);
    assert_eq!((root.kind, root.mode, root.uid, root.gid, root.nlink), (Kind::Directory, 0o755, 10, 20, 5));
    for (name, ino) in RESERVED {
        let i = d.index.lookup(ROOT, name).unwrap().unwrap();
        assert_eq!((i.ino, i.kind, i.mode, i.nlink), (ino, Kind::Directory, 0o700, 2));
    }
    assert_eq!(d.index.counts().unwrap(), Counts { blobs: 1, ..Counts::default() });
    assert_eq!(d.index.repositories().unwrap(), []);
    assert_eq!(d.index.depot_id(), [7; 16]);
    let empty = d.index.blob(&Checksum::EMPTY).unwrap().unwrap();
    assert_eq!((empty.size, empty.refs), (0, 0));
    assert_eq!(d.index.undigested(10).unwrap(), []);
    assert_eq!(d.index.unreferenced(i64::MAX, 10).unwrap(), []);
    d.clean();
}

#[test]
fn create_makes_inode_name_target_and_attributes_and_changes_the_directory() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    assert_eq!((d.get(ROOT).nlink, d.get(ROOT).mtime, d.get(ROOT).ctime), (6, 2000, 2000));
    assert_eq!(d.get(repo).nlink, 2);
    let (ino, cookie) = (d.number(), d.number());
    let link = Inode { size: 6, ..inode(ino, Kind::Symlink, 2500) };
    let xattrs = vec![(b"user.b".to_vec(), b"2".to_vec()), (b"user.a".to_vec(), vec![])];
    let name = vec![0xff; 255];
    let target = Some(b"../xy\xff".to_vec());
    let inode = link.clone();
    d.ok(&[Change::Create { parent: repo, name: name.clone(), cookie, inode, target, xattrs }]);
    assert_eq!(d.index.lookup(repo, &name).unwrap(), Some(link.clone()));
    assert_eq!(d.index.inode(ino).unwrap(), Some(link.clone()));
    assert_eq!(d.index.target(ino).unwrap().unwrap(), b"../xy\xff");
    assert_eq!(d.index.xattr_names(ino).unwrap(), [b"user.a", b"user.b"]);
    assert_eq!(d.index.xattr(ino, b"user.a").unwrap(), Some(vec![]));
    assert_eq!(d.index.xattr(ino, b"user.c").unwrap(), None);
    assert_eq!(d.index.list(repo, 0, 9).unwrap(), [Entry { cookie, name: name.clone(), inode: link }]);
    assert_eq!(d.index.parent(ino).unwrap(), Some((repo, name)));
    assert_eq!((d.get(repo).mtime, d.get(repo).ctime), (2500, 2500));
    let counts = d.index.counts().unwrap();
    assert_eq!((counts.files, counts.directories, counts.other), (0, 1, 1));
    d.clean();
}

#[test]
fn a_copy_is_one_change_and_counts_a_reference() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let file = d.file(repo, "a");
    d.ok(&[content(file, sum(1), 100)]);
    let copy = Inode { size: 100, checksum: Some(sum(1)), ..inode(d.number(), Kind::File, 4000) };
    d.ok(&[create(repo, "b", d.number(), copy)]);
    assert_eq!(d.index.blob(&sum(1)).unwrap().unwrap().refs, 2);
    let counts = d.index.counts().unwrap();
    assert_eq!((counts.logical_bytes, counts.physical_bytes, counts.blobs), (200, 100, 2));
    assert_eq!(d.index.names(&sum(1), 9).unwrap(), [b"repo/a", b"repo/b"]);
    assert_eq!(d.index.names(&sum(1), 1).unwrap().len(), 1);
    d.clean();
}

#[test]
fn link_adds_a_name() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let file = d.file(repo, "a");
    d.ok(&[Change::Link { ino: file, parent: repo, name: b"b".to_vec(), cookie: d.number(), at: 3000 }]);
    assert_eq!((d.get(file).nlink, d.get(file).ctime, d.get(file).mtime), (2, 3000, 2000));
    assert_eq!((d.get(repo).mtime, d.get(repo).nlink), (3000, 2));
    d.ok(&[remove(repo, "a", file, 3100)]);
    assert_eq!(d.get(file).nlink, 1);
    assert_eq!(d.index.orphans().unwrap(), []);
    assert_eq!(d.index.path(file).unwrap().unwrap(), b"repo/b");
    d.clean();
}

#[test]
fn remove_makes_an_orphan_that_keeps_its_content_and_reap_ends_it() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let file = d.file(repo, "a");
    let xattr =
        Change::Xattr { ino: file, name: b"user.x".to_vec(), value: Some(b"1".to_vec()), ctime: 2100 };
    d.ok(&[content(file, sum(1), 100), xattr, Change::Stage(staged(file, 99))]);
    d.ok(&[remove(repo, "a", file, 4000)]);
    assert_eq!(d.index.lookup(repo, b"a").unwrap(), None);
    assert_eq!((d.get(file).nlink, d.get(file).ctime, d.get(file).checksum), (0, 4000, Some(sum(1))));
    assert_eq!(d.index.orphans().unwrap(), [file]);
    assert_eq!(d.index.blob(&sum(1)).unwrap().unwrap().refs, 1);
    assert_eq!(d.index.path(file).unwrap(), None);
    assert_eq!(d.index.repository(file).unwrap(), None);
    assert_eq!(d.index.counts().unwrap().files, 1);
    d.clean();
    d.ok(&[Change::Reap { ino: file }]);
    assert_eq!(d.index.inode(file).unwrap(), None);
    assert_eq!(d.index.staged().unwrap(), []);
    assert_eq!(d.index.xattr_names(file).unwrap(), Vec::<Vec<u8>>::new());
    let blob = d.index.blob(&sum(1)).unwrap().unwrap();
    assert_eq!((blob.refs, blob.since), (0, 4000));
    assert_eq!(d.index.unreferenced(4000, 9).unwrap(), []);
    assert_eq!(d.index.unreferenced(4001, 9).unwrap(), [blob]);
    let counts = d.index.counts().unwrap();
    assert_eq!((counts.files, counts.logical_bytes, counts.physical_bytes, counts.blobs), (0, 0, 100, 2));
    d.ok(&[Change::Forget { checksum: sum(1) }]);
    assert_eq!(d.index.counts().unwrap(), Counts { directories: 1, blobs: 1, ..Counts::default() });
    d.clean();
}

#[test]
fn a_removed_directory_takes_no_names_and_its_settings_end_with_it() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let setting = |value: Option<&str>| Change::Setting {
        repository: repo,
        key: "durability".into(),
        value: value.map(str::to_owned),
    };
    d.ok(&[setting(Some("fsync"))]);
    d.ok(&[setting(Some("close"))]);
    assert_eq!(d.index.settings(repo).unwrap(), [("durability".into(), "close".into())]);
    assert_eq!(d.index.repositories().unwrap(), [(repo, b"repo".to_vec())]);
    d.ok(&[setting(None), setting(None), setting(Some("close"))]);
    d.ok(&[remove(ROOT, "repo", repo, 4000)]);
    assert_eq!((d.get(ROOT).nlink, d.get(repo).nlink), (5, 0));
    assert!(matches!(d.refused(&[d.creation(repo, "x", Kind::File, 1).1]), Error::NotFound { .. }));
    d.ok(&[Change::Reap { ino: repo }]);
    assert_eq!(d.index.settings(repo).unwrap(), []);
    d.clean();
}

#[test]
fn rename_moves_replaces_and_keeps_the_link_counts_of_directories() {
    let d = Depot::new();
    let (a, b) = (d.dir(ROOT, "a"), d.dir(ROOT, "b"));
    let (sub, empty) = (d.dir(a, "sub"), d.dir(b, "empty"));
    let file = d.file(sub, "f");
    assert_eq!(d.index.repository(file).unwrap(), Some(a));
    d.ok(&[rename((a, "sub"), sub, (b, "empty"), Some(empty), d.number())]);
    assert_eq!((d.get(a).nlink, d.get(b).nlink, d.get(empty).nlink), (2, 3, 0));
    assert_eq!(
        (d.get(a).mtime, d.get(b).ctime, d.get(sub).ctime, d.get(sub).mtime),
        (5000, 5000, 5000, 2000)
    );
    assert_eq!(d.index.path(file).unwrap().unwrap(), b"b/empty/f");
    assert_eq!(d.index.resolve(b"/b//empty/f/").unwrap().unwrap().ino, file);
    assert_eq!(d.index.resolve(b"a/sub/f").unwrap(), None);
    assert_eq!(d.index.repository(file).unwrap(), Some(b));
    assert_eq!(d.index.orphans().unwrap(), [empty]);
    let other = d.file(b, "g");
    d.ok(&[rename((sub, "f"), file, (b, "g"), Some(other), d.number())]);
    assert_eq!((d.get(other).nlink, d.get(file).nlink, d.get(b).nlink), (0, 1, 3));
    d.ok(&[rename((b, "g"), file, (b, "h"), None, d.number())]);
    assert_eq!(d.index.lookup(b, b"h").unwrap().unwrap().ino, file);
    d.clean();
}

#[test]
fn exchange_swaps_a_file_with_a_tree() {
    let d = Depot::new();
    let (a, b) = (d.dir(ROOT, "a"), d.dir(ROOT, "b"));
    let (sub, file) = (d.dir(a, "x"), d.file(b, "y"));
    let inner = d.file(sub, "f");
    assert_eq!(d.index.repository(inner).unwrap(), Some(a));
    d.ok(&[exchange((a, "x"), sub, (b, "y"), file)]);
    assert_eq!((d.get(a).nlink, d.get(b).nlink), (2, 3));
    assert_eq!(d.index.path(inner).unwrap().unwrap(), b"b/y/f");
    assert_eq!(d.index.path(file).unwrap().unwrap(), b"a/x");
    assert_eq!(d.index.repository(inner).unwrap(), Some(b));
    d.ok(&[exchange((ROOT, "a"), a, (ROOT, "b"), b)]);
    assert_eq!(d.index.path(inner).unwrap().unwrap(), b"a/y/f");
    d.clean();
}

#[test]
fn attributes_change_one_by_one() {
    let d = Depot::new();
    let file = d.dir(ROOT, "a");
    let before = d.get(file);
    let attr =
        |mode, uid, mtime, ctime| Change::Attr { ino: file, mode, uid, gid: None, atime: None, mtime, ctime };
    d.ok(&[attr(Some(0o4711), None, None, Some(9))]);
    d.ok(&[attr(None, Some(u32::MAX), Some(-5), None)]);
    assert_eq!(d.get(file), Inode { mode: 0o4711, uid: u32::MAX, mtime: -5, ctime: 9, ..before });
    let set = |value: Option<&[u8]>, ctime| Change::Xattr {
        ino: file,
        name: b"user.n".to_vec(),
        value: value.map(<[u8]>::to_vec),
        ctime,
    };
    d.ok(&[set(Some(b"1"), 10), set(Some(&[9; 65536]), 11)]);
    assert_eq!(d.index.xattr(file, b"user.n").unwrap().unwrap().len(), 65536);
    d.ok(&[set(None, 12), set(None, 13)]);
    assert_eq!((d.index.xattr(file, b"user.n").unwrap(), d.get(file).ctime), (None, 13));
    d.clean();
}

#[test]
fn staging_and_contents() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let file = d.file(repo, "a");
    let row =
        StagedRow { forced: true, checksum: Some(sum(5)), failed: Some("why".into()), ..staged(file, 77) };
    d.ok(&[Change::Stage(staged(file, 76)), Change::Stage(row.clone())]);
    assert_eq!(d.index.staged().unwrap(), std::slice::from_ref(&row));
    assert_eq!(d.index.staged_of(file).unwrap(), Some(row.clone()));
    d.ok(&[Change::Unstage { ino: file }]);
    assert_eq!(d.index.staged_of(file).unwrap(), None);
    d.ok(&[Change::Stage(row), content(file, sum(1), 10)]);
    assert_eq!(d.index.staged().unwrap(), []);
    let i = d.get(file);
    assert_eq!((i.checksum, i.size, i.mtime, i.ctime), (Some(sum(1)), 10, 3000, 3001));
    for _ in 0..3 {
        d.ok(&[content(file, sum(1), 10)]);
    }
    assert_eq!(d.index.blob(&sum(1)).unwrap().unwrap().refs, 1);
    d.ok(&[content(file, sum(2), 30)]);
    let old = d.index.blob(&sum(1)).unwrap().unwrap();
    assert_eq!((old.refs, old.since, old.blake3), (0, 3001, Some([sum(1).0[0]; 32])));
    assert_eq!(d.index.counts().unwrap().logical_bytes, 30);
    assert_eq!(d.index.counts().unwrap().physical_bytes, 40);
    d.ok(&[content(file, Checksum::EMPTY, 0)].map(|c| match c {
        Change::Content { ino, checksum, size, mtime, ctime, .. } => {
            Change::Content { ino, checksum, size, blake3: None, mtime, ctime }
        }
        other => other,
    }));
    assert_eq!(d.index.blob(&Checksum::EMPTY).unwrap().unwrap().refs, 1);
    d.clean();
}

#[test]
fn an_adopted_blob_gets_its_blake3_and_every_blob_its_digests() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let (a, b) = (d.file(repo, "a"), d.file(repo, "b"));
    let adopted = Change::Content { ino: a, checksum: sum(1), size: 5, blake3: None, mtime: 1, ctime: 1 };
    d.ok(std::slice::from_ref(&adopted));
    assert_eq!(d.index.blob(&sum(1)).unwrap().unwrap().blake3, None);
    d.ok(&[content(b, sum(1), 5), adopted]);
    let blob = d.index.blob(&sum(1)).unwrap().unwrap();
    assert_eq!((blob.blake3, blob.refs), (Some([sum(1).0[0]; 32]), 2));
    assert_eq!(d.index.undigested(9).unwrap(), [sum(1)]);
    d.ok(&[Change::Digests { checksum: sum(1), sha256: [3; 32], md5: [4; 16] }]);
    assert_eq!(d.index.undigested(9).unwrap(), []);
    let blob = d.index.blob(&sum(1)).unwrap().unwrap();
    assert_eq!((blob.sha256, blob.md5), (Some([3; 32]), Some([4; 16])));
    let all = d.index.blobs(None, 9).unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(d.index.blobs(Some(&all[0].checksum), 9).unwrap(), all[1..]);
    assert_eq!(d.index.blobs(None, 1).unwrap(), all[..1]);
    d.clean();
}

#[test]
fn equal_changes_make_equal_indexes() {
    let (one, two) = (Depot::new(), Depot::new());
    let repo = inode(20, Kind::Directory, 1);
    let commits = [
        vec![create(ROOT, "r", 21, repo), create(20, "d", 23, inode(22, Kind::Directory, 2))],
        vec![create(20, "f", 25, inode(24, Kind::File, 3)), content(24, sum(1), 9), content(24, sum(2), 4)],
        vec![rename((20, "f"), 24, (22, "g"), None, 26), remove(22, "g", 24, 9), Change::Reap { ino: 24 }],
        vec![rename((20, "d"), 22, (ROOT, "d"), None, 27), Change::Forget { checksum: sum(1) }],
    ];
    for changes in &commits {
        one.ok(changes);
        two.ok(changes);
    }
    assert_eq!(dump(&one.index), dump(&two.index));
    assert_eq!(two.index.last_seq(), commits.len() as u64);
}
