//! The tree without a kernel, asked what no kernel asks: anything about any inode, in any order, with any numbers.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::Config;
use tempfile::TempDir;

use super::attr::{SetAttributes, SetTime};
use super::copy::Place;
use super::node::Token;
use super::open::Access;
use super::read::Seek;
use super::rename::Flavour;
use super::write::Allocate;
use super::xattr::SetMode;
use super::*;
use crate::change::{FIRST_INO, Kind};
use crate::filestore;
use crate::index::Init;

mod ahead;
mod far;
mod upkeep;

const ID: [u8; 16] = [7; 16];

fn options(passthrough: bool) -> Options {
    Options {
        mountpoint: "/nowhere".into(),
        subdir: ROOT,
        read_only: false,
        noatime: false,
        durability: Durability::Fsync,
        passthrough,
        sync_names: false,
        backlog_bytes_max: u64::MAX,
        backlog_files_max: u64::MAX,
    }
}

fn open_tree(dir: &TempDir, passthrough: bool) -> Vfs {
    let index = Index::open(&dir.path().join("index.db")).unwrap();
    let store = Filestore::open(&dir.path().join("filestore"), ID, &filestore::Options::default()).unwrap();
    Vfs::new(index, store, options(passthrough))
}

fn tree(passthrough: bool) -> (TempDir, Vfs) {
    // A disk: where memory is one, a sparse file may be of any size.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let init = Init { depot_id: ID, uid: 0, gid: 0, mode: 0o755, at: 1 };
    Index::create(&dir.path().join("index.db"), &init).unwrap();
    Filestore::create(&dir.path().join("filestore"), ID).unwrap();
    let vfs = open_tree(&dir, passthrough);
    (dir, vfs)
}

/// Numbers at which something may go over.
fn number() -> impl Strategy<Value = u64> {
    let edges = vec![
        0,
        1,
        2,
        4095,
        4096,
        4097,
        65_536,
        1 << 20,
        (1 << 32) - 1,
        1 << 32,
        1 << 44,
        i64::MAX as u64 - 1,
        i64::MAX as u64,
        i64::MAX as u64 + 1,
        u64::MAX - 1,
        u64::MAX,
    ];
    prop_oneof![3 => select(edges), 1 => 0..100_000_u64, 1 => any::<u64>()]
}

/// Inodes that are there, are reserved, were there, or never are.
fn ino() -> impl Strategy<Value = Ino> {
    prop_oneof![
        // The two directories and the two files that each case starts with.
        10 => select(vec![FIRST_INO, FIRST_INO + 2, FIRST_INO + 4, FIRST_INO + 7]),
        6 => FIRST_INO..FIRST_INO + 40,
        2 => 0..FIRST_INO,
        1 => select(vec![i64::MAX as u64, u64::MAX, 1 << 40]),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let names: Vec<Vec<u8>> = ["a", "b", "c", "d", "lost+found", ".trash"].map(|n| n.into()).to_vec();
    let odd: Vec<Vec<u8>> = vec![
        vec![],
        b".".into(),
        b"..".into(),
        b"a/b".into(),
        b"\0".into(),
        vec![b'x'; 255],
        vec![b'x'; 256],
        vec![0xff; 9],
    ];
    prop_oneof![8 => select(names), 1 => select(odd)]
}

fn access() -> impl Strategy<Value = Access> {
    any::<[bool; 7]>().prop_map(|[read, write, truncate, exclusive, sync, noatime, execute]| Access {
        read,
        write,
        truncate,
        exclusive,
        sync,
        noatime,
        execute,
    })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![]),
        Just(vec![7; 100]),
        Just(vec![9; 70_000]),
        proptest::collection::vec(any::<u8>(), 0..60),
        // The beginning of an access control list, so that some get further.
        proptest::collection::vec(any::<u8>(), 0..60).prop_map(|rest| [vec![2, 0, 0, 0], rest].concat()),
    ]
}

#[derive(Clone, Debug)]
enum Ask {
    Lookup(Ino, Vec<u8>),
    Forget(Ino),
    Attributes(Ino),
    Set(Ino, [Option<u32>; 3], Option<u64>, Option<i64>),
    ClearSetId(Ino),
    ReadLink(Ino),
    MakeDirectory(Ino, Vec<u8>, u32),
    MakeNode(Ino, Vec<u8>, u8, u32),
    MakeSymlink(Ino, Vec<u8>, Vec<u8>),
    Link(Ino, Ino, Vec<u8>),
    Unlink(Ino, Vec<u8>),
    RemoveDirectory(Ino, Vec<u8>),
    Rename(Ino, Vec<u8>, Ino, Vec<u8>, u8),
    Create(Ino, Vec<u8>, u32, Access),
    Open(Ino, Access),
    Release(Ino, Access),
    Read(Ino, u64, usize),
    Write(Ino, u64, Vec<u8>, bool),
    Allocate(Ino, u64, u64, i32),
    Seek(Ino, u64, bool),
    Copy(Ino, u64, Ino, u64, u64),
    Fsync(Ino),
    Flush(Ino),
    List(Ino, u64, usize),
    ParentOf(Ino),
    Xattr(Ino, Vec<u8>),
    SetXattr(Ino, Vec<u8>, Vec<u8>, u8),
    RemoveXattr(Ino, Vec<u8>),
    Checksums(Ino),
    Seal(Vec<Ino>),
    Job(u8),
}

fn xattr_name() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "user.x",
        "user.",
        "",
        "trusted.x",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "user.depotfs.sha1",
        "user.depotfs.",
        "system.x",
        "x",
    ];
    prop_oneof![
        10 => select(names.map(|n| n.as_bytes().to_vec()).to_vec()),
        1 => Just(vec![b'u'; 300]),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ]
}

fn asked() -> impl Strategy<Value = Ask> {
    let mode = || any::<u32>();
    prop_oneof![
        2 => (ino(), name()).prop_map(|(i, n)| Ask::Lookup(i, n)),
        2 => ino().prop_map(Ask::Forget),
        2 => ino().prop_map(Ask::Attributes),
        2 => (ino(), any::<[Option<u32>; 3]>(), proptest::option::of(number()), any::<Option<i64>>())
            .prop_map(|(i, ids, size, time)| Ask::Set(i, ids, size, time)),
        1 => ino().prop_map(Ask::ClearSetId),
        1 => ino().prop_map(Ask::ReadLink),
        4 => (ino(), name(), mode()).prop_map(|(i, n, m)| Ask::MakeDirectory(i, n, m)),
        2 => (ino(), name(), 0..9_u8, mode()).prop_map(|(i, n, k, m)| Ask::MakeNode(i, n, k, m)),
        1 => (ino(), name(), bytes()).prop_map(|(i, n, t)| Ask::MakeSymlink(i, n, t)),
        2 => (ino(), ino(), name()).prop_map(|(i, p, n)| Ask::Link(i, p, n)),
        3 => (ino(), name()).prop_map(|(p, n)| Ask::Unlink(p, n)),
        1 => (ino(), name()).prop_map(|(p, n)| Ask::RemoveDirectory(p, n)),
        3 => (ino(), name(), ino(), name(), 0..3_u8).prop_map(|(p, n, q, m, f)| Ask::Rename(p, n, q, m, f)),
        8 => (ino(), name(), mode(), access()).prop_map(|(p, n, m, a)| Ask::Create(p, n, m, a)),
        4 => (ino(), access()).prop_map(|(i, a)| Ask::Open(i, a)),
        6 => (ino(), access()).prop_map(|(i, a)| Ask::Release(i, a)),
        3 => (ino(), number(), 0..100_000_usize).prop_map(|(i, o, n)| Ask::Read(i, o, n)),
        6 => (ino(), number(), bytes(), any::<bool>()).prop_map(|(i, o, b, k)| Ask::Write(i, o, b, k)),
        2 => (ino(), number(), number(), select(vec![0, 1, 3, 16, 17, 8, 32, -1])).prop_map(|(i, o, l, m)| Ask::Allocate(i, o, l, m)),
        2 => (ino(), number(), any::<bool>()).prop_map(|(i, o, h)| Ask::Seek(i, o, h)),
        4 => (ino(), number(), ino(), number(), number()).prop_map(|(i, a, j, b, l)| Ask::Copy(i, a, j, b, l)),
        2 => (ino(), ino()).prop_map(|(i, j)| Ask::Copy(i, 0, j, 0, u64::from(u32::MAX))),
        2 => (ino(), ino(), 0..50_000_u64, number()).prop_map(|(i, j, o, l)| Ask::Copy(i, o, j, o, l)),
        1 => ino().prop_map(Ask::Fsync),
        1 => ino().prop_map(Ask::Flush),
        1 => (ino(), number(), 0..5_usize).prop_map(|(i, c, n)| Ask::List(i, c, n)),
        1 => ino().prop_map(Ask::ParentOf),
        1 => (ino(), xattr_name()).prop_map(|(i, n)| Ask::Xattr(i, n)),
        2 => (ino(), xattr_name(), bytes(), 0..4_u8).prop_map(|(i, n, v, m)| Ask::SetXattr(i, n, v, m)),
        1 => (ino(), xattr_name()).prop_map(|(i, n)| Ask::RemoveXattr(i, n)),
        1 => ino().prop_map(Ask::Checksums),
        2 => proptest::collection::vec(ino(), 0..6).prop_map(Ask::Seal),
        3 => (0..7_u8).prop_map(Ask::Job),
    ]
}

/// A kernel that gives out a token for each registration, or refuses.
fn register(refuse: bool) -> impl Fn(BorrowedFd<'_>) -> io::Result<Token> {
    move |_| if refuse { Err(io::ErrorKind::Unsupported.into()) } else { Ok(Arc::new(()) as Token) }
}

/// Sparse files of terabytes are fine to have and too long to hash.
const LENGTH_MAX: u64 = 4 << 20;

fn answer(vfs: &Vfs, ask: Ask, refuse: bool) -> Result<()> {
    let me = Caller { uid: 0, gid: 0, pid: 0 };
    let register = register(refuse);
    let small = |offset: u64, len: u64| offset.saturating_add(len) <= LENGTH_MAX || offset > i64::MAX as u64;
    match ask {
        Ask::Lookup(parent, name) => vfs.lookup(parent, &name).map(drop),
        Ask::Forget(ino) => {
            vfs.forget(ino);
            Ok(())
        }
        Ask::Attributes(ino) => vfs.attributes(ino).map(drop),
        Ask::Set(ino, [mode, uid, gid], size, time) => {
            let size = size.filter(|size| small(*size, 0));
            let (atime, mtime) = (time.map(SetTime::At), time.map(|t| SetTime::At(t.wrapping_neg())));
            vfs.set_attributes(&me, ino, &SetAttributes { mode, uid, gid, size, atime, mtime }).map(drop)
        }
        Ask::ClearSetId(ino) => vfs.clear_set_id_bits(ino).map(drop),
        Ask::ReadLink(ino) => vfs.read_link(ino).map(drop),
        Ask::MakeDirectory(parent, name, mode) => {
            vfs.make_directory(&me, parent, &name, mode, 0o22).map(drop)
        }
        Ask::MakeNode(parent, name, kind, mode) => {
            let kind = Kind::from_number(kind.into()).unwrap_or(Kind::File);
            vfs.make_node(&me, parent, &name, (kind, mode), mode, mode >> 3).map(drop)
        }
        Ask::MakeSymlink(parent, name, target) => vfs.make_symlink(&me, parent, &name, &target).map(drop),
        Ask::Link(ino, parent, name) => vfs.link(ino, parent, &name).map(drop),
        Ask::Unlink(parent, name) => vfs.unlink(parent, &name),
        Ask::RemoveDirectory(parent, name) => vfs.remove_directory(parent, &name),
        Ask::Rename(parent, name, new_parent, new_name, flavour) => {
            let flavour = [Flavour::Replace, Flavour::NoReplace, Flavour::Exchange][usize::from(flavour)];
            vfs.rename((parent, &name), (new_parent, &new_name), flavour)
        }
        Ask::Create(parent, name, mode, access) => {
            vfs.create(&me, parent, &name, (mode, 0o22), access, &register).map(drop)
        }
        Ask::Open(ino, access) => vfs.open(&me, ino, access, &register).map(drop),
        Ask::Release(ino, access) => {
            vfs.release(ino, access);
            Ok(())
        }
        Ask::Read(ino, offset, len) => vfs.read(ino, 0, offset, &mut vec![0; len]).map(drop),
        Ask::Write(ino, offset, data, kill) if small(offset, data.len() as u64) => {
            vfs.write(ino, offset, &data, kill)
        }
        Ask::Allocate(ino, offset, len, mode) if small(offset, len) || len > i64::MAX as u64 => {
            match Allocate::from_mode(mode) {
                Some(how) => vfs.allocate(&me, ino, offset, len, how),
                None => Ok(()),
            }
        }
        Ask::Seek(ino, offset, hole) => {
            vfs.seek(ino, offset, if hole { Seek::Hole } else { Seek::Data }).map(drop)
        }
        Ask::Copy(from, offset, to, to_offset, len) if small(to_offset, 0) => {
            let (from, to) = (Place { ino: from, offset }, Place { ino: to, offset: to_offset });
            vfs.copy_range(&me, from, to, len).map(drop)
        }
        Ask::Write(..) | Ask::Allocate(..) | Ask::Copy(..) => Ok(()),
        Ask::Fsync(ino) => vfs.fsync(ino),
        Ask::Flush(ino) => vfs.flush(ino),
        Ask::List(dir, after, most) => {
            let mut left = most;
            vfs.list(dir, after, |_| {
                left = left.saturating_sub(1);
                left > 0
            })
        }
        Ask::ParentOf(ino) => vfs.parent_of(ino).map(drop),
        Ask::Xattr(ino, name) => {
            vfs.list_xattrs(&me, ino)?;
            vfs.get_xattr(ino, &name).map(drop)
        }
        Ask::SetXattr(ino, name, value, mode) => {
            let mode = [SetMode::Any, SetMode::Create, SetMode::Replace, SetMode::Neither][usize::from(mode)];
            vfs.set_xattr(&me, ino, &name, &value, mode)
        }
        Ask::RemoveXattr(ino, name) => vfs.remove_xattr(ino, &name),
        Ask::Checksums(ino) => match vfs.sealed_blob(ino)? {
            Some(row) => vfs.checksums(row).map(drop),
            None => Ok(()),
        },
        Ask::Seal(inos) => vfs.seal(&inos, &|| true).map(drop),
        Ask::Job(0) => vfs.force(Duration::ZERO, Duration::ZERO),
        Ask::Job(1) => vfs.reap().map(drop),
        Ask::Job(2) => vfs.reclaim_older_than(Duration::ZERO, &|| true).map(drop),
        Ask::Job(3) => vfs.write_atimes(),
        Ask::Job(4) => vfs.sweep_owners(),
        Ask::Job(5) => vfs.publish_some_digests(&|| true).map(drop),
        Ask::Job(_) => {
            vfs.status();
            vfs.seal(&vfs.sealable(Duration::ZERO, 100), &|| true).map(drop)
        }
    }
}

/// What is broken in the tree when everything was let go.
fn verify(dir: &TempDir, vfs: Vfs) {
    let all = || Access { read: true, write: true, ..Access::default() };
    for ino in vfs.nodes.inos() {
        for _ in 0..50 {
            vfs.release(ino, all());
        }
        vfs.forget(ino);
    }
    vfs.flush_all(&|| true).unwrap();
    vfs.reap().unwrap();
    assert_eq!(vfs.index.check(false).unwrap(), []);
    drop(vfs);
    let vfs = open_tree(dir, false);
    vfs.recover().unwrap();
    vfs.flush_all(&|| true).unwrap();
    assert_eq!(vfs.index.check(false).unwrap(), []);
    assert_eq!(
        vfs.nodes.inos().len() as u64,
        vfs.status().unsealable.len() as u64,
        "nodes that nobody needs"
    );
    for blob in vfs.index.blobs(None, 1000).unwrap() {
        if blob.size > 0 {
            let there = vfs.store.stat_blob(&blob.checksum).unwrap();
            assert_eq!(there, Some(blob.size), "{}", blob.checksum);
        }
    }
}

fn in_time(what: String, work: impl FnOnce() + Send + 'static) {
    let (done, wait) = channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    if wait.recv_timeout(Duration::from_secs(120)).is_err() && !thread.is_finished() {
        panic!("hangs: {what}");
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A case is a hundred requests, so few of them do.
fn cases(usual: u32) -> Config {
    let config = if std::env::var_os("PROPTEST_CASES").is_some() {
        Config::default()
    } else {
        Config::with_cases(usual)
    };
    Config { max_shrink_iters: 300, ..config }
}

#[test]
fn a_blob_s_file_is_written_only_after_its_staging_name_is_gone() {
    let (dir, vfs) = tree(true);
    let me = Caller { uid: 0, gid: 0, pid: 0 };
    let repo = vfs.make_directory(&me, ROOT, b"a", 0o755, 0).unwrap().inode.ino;
    let (read, write) =
        (Access { read: true, ..Access::default() }, Access { write: true, ..Access::default() });
    for truncate in [true, false] {
        let name = if truncate { b"t" } else { b"w" };
        let (made, _) = vfs.create(&me, repo, name, (0o644, 0), write, &register(false)).unwrap();
        let ino = made.inode.ino;
        vfs.write(ino, 0, &[u8::from(truncate); 50_000], false).unwrap();
        vfs.release(ino, write);
        assert_eq!(vfs.seal(&[ino], &|| true).unwrap(), 1);
        assert_eq!(vfs.store.staging_names().unwrap().len(), 1, "the commit is not durable yet");
        // A reader that the kernel serves from the blob's file is there when the writer comes.
        vfs.open(&me, ino, read, &register(false)).unwrap();
        let writer = Access { truncate, ..write };
        vfs.open(&me, ino, writer, &register(false)).unwrap();
        let staged = vfs.nodes.lock(ino).staged.as_ref().map(|staged| staged.row.file).unwrap();
        assert_eq!(vfs.store.staging_names().unwrap(), [staged]);
        vfs.write(ino, 0, b"new", false).unwrap();
        let mut bytes = [0; 3];
        vfs.read(ino, 0, 0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"new");
        vfs.release(ino, writer);
        vfs.release(ino, read);
        vfs.flush_all(&|| true).unwrap();
    }
    verify(&dir, vfs);
}

#[test]
fn a_blob_that_is_read_by_its_checksum_shows_no_writer_s_bytes() {
    let (dir, vfs) = tree(true);
    let me = Caller { uid: 0, gid: 0, pid: 0 };
    let repo = vfs.make_directory(&me, ROOT, b"a", 0o755, 0).unwrap().inode.ino;
    let (read, write) =
        (Access { read: true, ..Access::default() }, Access { write: true, ..Access::default() });
    let (made, _) = vfs.create(&me, repo, b"f", (0o644, 0), write, &register(false)).unwrap();
    let ino = made.inode.ino;
    vfs.write(ino, 0, &[1; 50_000], false).unwrap();
    vfs.release(ino, write);
    let row = vfs.sealed_blob(ino).unwrap().unwrap();
    let mut blob = vfs.open_blob(&row.checksum, row.size).unwrap();
    let mut bytes = [0; 1000];
    vfs.read_blob(&mut blob, 0, &mut bytes).unwrap();
    // With a reader on the blob's file, that file becomes the writer's.
    vfs.open(&me, ino, read, &register(false)).unwrap();
    vfs.open(&me, ino, write, &register(false)).unwrap();
    vfs.write(ino, 0, &[2; 50_000], false).unwrap();
    for at in [1000, 0, 49_000] {
        assert_eq!(vfs.read_blob(&mut blob, at, &mut bytes).unwrap(), 1000);
        assert_eq!(bytes, [1; 1000], "at {at}");
    }
    assert_eq!(vfs.sealed_blob(ino).unwrap(), None, "it has a writer");
    vfs.release(ino, write);
    vfs.release(ino, read);
    assert_ne!(vfs.sealed_blob(ino).unwrap().unwrap().checksum, row.checksum);
    verify(&dir, vfs);
}

#[test]
fn a_flush_that_nobody_waits_for_any_more_seals_no_more() {
    let (dir, vfs) = tree(false);
    let me = Caller { uid: 0, gid: 0, pid: 0 };
    let repo = vfs.make_directory(&me, ROOT, b"a", 0o755, 0).unwrap().inode.ino;
    let write = Access { write: true, ..Access::default() };
    let (made, _) = vfs.create(&me, repo, b"f", (0o644, 0), write, &register(false)).unwrap();
    vfs.write(made.inode.ino, 0, &[1; 1000], false).unwrap();
    vfs.release(made.inode.ino, write);
    assert_eq!(vfs.flush_all(&|| false).unwrap(), 1);
    assert!(vfs.index.staged_of(made.inode.ino).unwrap().unwrap().forced, "forced it is all the same");
    assert_eq!(vfs.flush_all(&|| true).unwrap(), 0);
    verify(&dir, vfs);
}

#[test]
fn settings_that_were_read_before_a_change_are_not_kept() {
    let (_dir, vfs) = tree(false);
    let me = Caller { uid: 0, gid: 0, pid: 0 };
    let repository = vfs.make_directory(&me, ROOT, b"a", 0o755, 0).unwrap().inode.ino;
    let before = vfs.settings.read().forgotten;
    let set =
        |value: &str| Change::Setting { repository, key: "durability".into(), value: Some(value.into()) };
    vfs.commit(&[set("close")]).unwrap();
    vfs.forget_settings();
    // A reader that was quicker with the index than with the memory.
    vfs.keep_settings(repository, Settings::default(), before);
    assert_eq!(vfs.settings_of(repository).unwrap().durability, Durability::Close);
    assert!(vfs.settings.read().of.contains_key(&repository));
}

/// A put without a commit leaves a blob that no row knows; a staging file that has a second name for another reason must not
/// make it go.
#[test]
fn a_staging_file_of_two_names_takes_no_other_file_s_blob_along() {
    let (dir, vfs) = tree(false);
    let me = Caller { uid: 0, gid: 0, pid: 0 };
    let repo = vfs.make_directory(&me, ROOT, b"a", 0o755, 0).unwrap().inode.ino;
    let write = Access { write: true, ..Access::default() };
    let (made, _) = vfs.create(&me, repo, b"f", (0o644, 0), write, &register(false)).unwrap();
    let ino = made.inode.ino;
    vfs.write(ino, 0, &[5; 1000], false).unwrap();
    vfs.release(ino, write);
    let name = vfs.nodes.lock(ino).staged.as_ref().map(|staged| staged.row.file).unwrap();
    let path = dir.path().join("filestore").join("_pre").join(name.to_string());
    std::fs::hard_link(path, dir.path().join("kept")).unwrap();

    let other = vfs.next_staging().unwrap();
    vfs.store.stage(other).unwrap().write_at(&[5; 1000], 0).unwrap();
    let sum = vfs.store.open_staging(other).unwrap().digest(|| true).unwrap().unwrap().checksum;
    vfs.store.put(&[(sum, filestore::Staged { name: other, size: 1000 })]).unwrap();

    vfs.open(&me, ino, write, &register(false)).unwrap();
    vfs.write(ino, 0, b"new", false).unwrap();
    assert_eq!(vfs.store.stat_blob(&sum).unwrap(), Some(1000));
    assert_eq!(std::fs::read(dir.path().join("kept")).unwrap(), [5; 1000]);
    let mut bytes = [0; 4];
    vfs.read(ino, 0, 0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"new\x05");
    vfs.release(ino, write);

    // The blob goes with the staging file that it is, when nothing names either.
    vfs.let_go(other);
    vfs.settle_half_put(&|| true);
    assert_eq!(vfs.store.stat_blob(&sum).unwrap(), None);
    verify(&dir, vfs);
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn no_request_makes_the_tree_panic_or_lose_its_order(
        asks in proptest::collection::vec(asked(), 1..150),
        (passthrough, refuse) in any::<(bool, bool)>(),
    ) {
        in_time(format!("{passthrough} {refuse} {asks:?}"), move || {
            let (dir, vfs) = tree(passthrough);
            let me = Caller { uid: 0, gid: 0, pid: 0 };
            // A repository with a directory and two files, so that many requests find something.
            let repo = vfs.make_directory(&me, ROOT, b"a", 0o755, 0).unwrap().inode.ino;
            let inner = vfs.make_directory(&me, repo, b"a", 0o755, 0).unwrap().inode.ino;
            let mut files = Vec::new();
            for parent in [repo, inner] {
                let write = Access { write: true, ..Access::default() };
                let (made, _) = vfs.create(&me, parent, b"b", (0o6755, 0), write, &register(refuse)).unwrap();
                vfs.write(made.inode.ino, 0, &[3; 50_000], false).unwrap();
                vfs.release(made.inode.ino, write);
                vfs.seal(&[made.inode.ino], &|| true).unwrap();
                files.push(made.inode.ino);
            }
            assert_eq!([repo, inner, files[0], files[1]], [0, 2, 4, 7].map(|n| FIRST_INO + n), "see `ino`");
            for ask in asks {
                let _ = answer(&vfs, ask, refuse);
            }
            verify(&dir, vfs);
        });
    }
}
