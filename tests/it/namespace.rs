//! Names: making them, removing them, what they may be, what directories remember.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::Mode as Bits;

use crate::harness::{Fails, Tree, as_user, sh};

modes!(all:
    create_makes_an_empty_file, create_exclusive, open_refuses_what_does_not_fit, mkdir_and_rmdir, names_are_bytes,
    names_that_are_too_long, hard_links, symbolic_links, every_change_of_a_directory_moves_its_times,
    changes_of_an_inode_move_its_ctime, dot_and_dotdot, inode_numbers_are_stable_and_never_reused, deep_trees,
    the_umask_is_taken_off, setgid_directories, a_removed_directory_takes_nothing,
);
modes!(root: sticky_directories, permissions_hold, a_link_needs_rights);

#[track_caller]
fn open_with(path: &PathBuf, flags: OFlag) -> nix::Result<std::os::fd::OwnedFd> {
    open(path, flags, Bits::from_bits_truncate(0o644))
}

fn create_makes_an_empty_file(t: &Tree) {
    let path = t.path("new");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path).unwrap();
    for meta in [file.metadata().unwrap(), fs::metadata(&path).unwrap()] {
        assert!(meta.is_file());
        assert_eq!((meta.len(), meta.blocks(), meta.nlink(), meta.mode() & 0o7777), (0, 0, 1, 0o640));
        assert_eq!(meta.uid(), nix::unistd::geteuid().as_raw());
    }
    drop(file);
    t.seal();
    assert_eq!(fs::read(&path).unwrap(), b"");
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    t.remount();
    assert_eq!(fs::read(&path).unwrap(), b"");
}

fn create_exclusive(t: &Tree) {
    let exclusive = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
    let path = t.file("there", "x");
    open_with(&path, exclusive).fails(Errno::EEXIST);
    symlink("nowhere", t.path("dangling")).unwrap();
    open_with(&t.path("dangling"), exclusive).fails(Errno::EEXIST);
    fs::create_dir(t.path("dir")).unwrap();
    open_with(&t.path("dir"), exclusive).fails(Errno::EEXIST);
    open_with(&t.path("new"), exclusive).unwrap();
    open_with(&t.path("dangling"), OFlag::O_CREAT | OFlag::O_WRONLY).unwrap();
    assert!(t.path("nowhere").exists(), "a file is made through a dangling link");
}

fn open_refuses_what_does_not_fit(t: &Tree) {
    let file = t.file("file", "x");
    fs::create_dir(t.path("dir")).unwrap();
    symlink("file", t.path("link")).unwrap();
    open_with(&t.path("missing"), OFlag::O_RDONLY).fails(Errno::ENOENT);
    open_with(&t.path("missing/x"), OFlag::O_RDWR | OFlag::O_CREAT).fails(Errno::ENOENT);
    open_with(&t.path("file/x"), OFlag::O_RDONLY).fails(Errno::ENOTDIR);
    open_with(&file, OFlag::O_RDONLY | OFlag::O_DIRECTORY).fails(Errno::ENOTDIR);
    open_with(&t.path("dir"), OFlag::O_WRONLY).fails(Errno::EISDIR);
    open_with(&t.path("dir"), OFlag::O_RDWR | OFlag::O_CREAT).fails(Errno::EISDIR);
    open_with(&t.path("link"), OFlag::O_RDONLY | OFlag::O_NOFOLLOW).fails(Errno::ELOOP);
    open_with(&t.path("link"), OFlag::O_PATH | OFlag::O_NOFOLLOW).unwrap();
    fs::read(t.path("dir")).fails(Errno::EISDIR);
    let mut read_only = File::open(&file).unwrap();
    std::io::Write::write(&mut read_only, b"y").fails(Errno::EBADF);
    let mut write_only = OpenOptions::new().write(true).open(&file).unwrap();
    std::io::Read::read(&mut write_only, &mut [0]).fails(Errno::EBADF);
}

fn mkdir_and_rmdir(t: &Tree) {
    let links = |path: PathBuf| fs::metadata(path).unwrap().nlink();
    let before = links(t.path("."));
    fs::create_dir(t.path("dir")).unwrap();
    assert_eq!(links(t.path("dir")), 2);
    assert_eq!(links(t.path(".")), before + 1);
    fs::create_dir(t.path("dir")).fails(Errno::EEXIST);
    fs::create_dir(t.path("missing/dir")).fails(Errno::ENOENT);
    fs::create_dir(t.path("dir/sub")).unwrap();
    assert_eq!(links(t.path("dir")), 3);
    fs::remove_dir(t.path("dir")).fails(Errno::ENOTEMPTY);
    fs::remove_file(t.path("dir")).fails(Errno::EISDIR);
    nix::unistd::unlinkat(nix::fcntl::AT_FDCWD, &t.path("dir/sub/."), nix::unistd::UnlinkatFlags::RemoveDir)
        .fails(Errno::EINVAL);
    fs::remove_dir(t.path("dir/sub")).unwrap();
    assert_eq!(links(t.path("dir")), 2);
    t.file("dir/file", "x");
    fs::remove_dir(t.path("dir")).fails(Errno::ENOTEMPTY);
    fs::remove_dir(t.path("dir/file")).fails(Errno::ENOTDIR);
    fs::remove_file(t.path("dir/file")).unwrap();
    fs::remove_dir(t.path("dir")).unwrap();
    fs::remove_dir(t.path("dir")).fails(Errno::ENOENT);
    assert_eq!(links(t.path(".")), before);
}

fn names_are_bytes(t: &Tree) {
    let every_byte: Vec<u8> = (1..=255).filter(|b| *b != b'/').collect();
    let mut names: BTreeSet<Vec<u8>> =
        [every_byte, vec![0xff; 255], vec![b'a'; 255], b"\xc3\xa9".to_vec()].into();
    names.extend(
        ["e\u{301}", "a", "A", " ", "...", "-rf", "new\nline", "*?[", "\\", "'\"", "%s%n"].map(|n| n.into()),
    );
    for name in &names {
        t.file(OsStr::from_bytes(name), name);
    }
    for _ in ["before", "after"] {
        let listed = fs::read_dir(t.dir()).unwrap().map(|e| e.unwrap().file_name().as_bytes().to_vec());
        assert_eq!(listed.collect::<BTreeSet<_>>(), names);
        for name in &names {
            assert_eq!(&fs::read(t.path(OsStr::from_bytes(name))).unwrap(), name);
        }
        t.remount();
    }
}

fn names_that_are_too_long(t: &Tree) {
    let (fits, long) = (t.path("x".repeat(255)), t.path("x".repeat(256)));
    t.file(&fits, "x");
    fs::metadata(&long).fails(Errno::ENAMETOOLONG);
    File::create(&long).fails(Errno::ENAMETOOLONG);
    fs::create_dir(&long).fails(Errno::ENAMETOOLONG);
    symlink("x", &long).fails(Errno::ENAMETOOLONG);
    fs::hard_link(&fits, &long).fails(Errno::ENAMETOOLONG);
    fs::rename(&fits, &long).fails(Errno::ENAMETOOLONG);
    fs::rename(&fits, t.path("y".repeat(255))).unwrap();
}

fn hard_links(t: &Tree) {
    let a = t.file("a", "one");
    let (b, c) = (t.path("b"), t.path("dir/c"));
    fs::create_dir(t.path("dir")).unwrap();
    fs::hard_link(&a, &b).unwrap();
    t.seal();
    fs::hard_link(&b, &c).unwrap();
    let inode = |path: &PathBuf| fs::metadata(path).map(|m| (m.ino(), m.nlink())).unwrap();
    assert_eq!(inode(&a).1, 3);
    assert_eq!([inode(&b), inode(&c)], [inode(&a); 2]);
    fs::write(&b, "two, longer").unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"two, longer");
    fs::hard_link(&a, &b).fails(Errno::EEXIST);
    fs::hard_link(t.path("dir"), t.path("dir2")).fails(Errno::EPERM);
    fs::hard_link(t.path("missing"), t.path("d")).fails(Errno::ENOENT);
    fs::remove_file(&a).unwrap();
    assert_eq!(inode(&c).1, 2);
    t.remount();
    assert_eq!(inode(&b), inode(&c));
    fs::remove_file(&b).unwrap();
    assert_eq!(inode(&c).1, 1);
    assert_eq!(fs::read(&c).unwrap(), b"two, longer");
    symlink("nowhere", t.path("link")).unwrap();
    fs::hard_link(t.path("link"), t.path("link2")).unwrap();
    assert_eq!(fs::symlink_metadata(t.path("link")).unwrap().nlink(), 2);
}

fn symbolic_links(t: &Tree) {
    let long = "t".repeat(4095);
    let odd = OsStr::from_bytes(b"\xff\n ");
    for (name, target) in [("long", OsStr::new(&long)), ("odd", odd), ("loop", OsStr::new("loop"))] {
        symlink(target, t.path(name)).unwrap();
        let meta = fs::symlink_metadata(t.path(name)).unwrap();
        assert!(meta.is_symlink());
        assert_eq!((meta.len(), meta.mode() & 0o777), (target.len() as u64, 0o777));
        assert_eq!(fs::read_link(t.path(name)).unwrap(), target);
    }
    t.remount();
    assert_eq!(fs::read_link(t.path("odd")).unwrap(), odd);
    assert_eq!(fs::read_link(t.path("long")).unwrap(), OsStr::new(&long));
    fs::read(t.path("loop")).fails(Errno::ELOOP);
    t.file("target", "found");
    symlink("target", t.path("good")).unwrap();
    assert_eq!(fs::read(t.path("good")).unwrap(), b"found");
    fs::read_link(t.path("target")).fails(Errno::EINVAL);
    symlink("x", t.path("good")).fails(Errno::EEXIST);
    fs::remove_file(t.path("good")).unwrap();
    assert!(t.path("target").exists());
}

/// Both times of a directory are later after `change` than before.
#[track_caller]
fn moves_times(dir: &PathBuf, what: &str, change: impl FnOnce()) {
    let times = || fs::metadata(dir).map(|m| (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec())).unwrap();
    let before = times();
    std::thread::sleep(std::time::Duration::from_millis(12));
    change();
    let after = times();
    assert!(after.0 * 1_000_000_000 + after.1 > before.0 * 1_000_000_000 + before.1, "{what}: mtime");
    assert!(after.2 * 1_000_000_000 + after.3 > before.2 * 1_000_000_000 + before.3, "{what}: ctime");
}

fn every_change_of_a_directory_moves_its_times(t: &Tree) {
    let dir = t.path("dir");
    fs::create_dir(&dir).unwrap();
    fs::create_dir(t.path("other")).unwrap();
    moves_times(&dir, "create", || drop(File::create(dir.join("file")).unwrap()));
    moves_times(&dir, "mkdir", || fs::create_dir(dir.join("sub")).unwrap());
    moves_times(&dir, "symlink", || symlink("x", dir.join("link")).unwrap());
    moves_times(&dir, "mkfifo", || nix::unistd::mkfifo(&dir.join("fifo"), Bits::S_IRWXU).unwrap());
    moves_times(&dir, "link", || fs::hard_link(dir.join("file"), dir.join("file2")).unwrap());
    moves_times(&dir, "unlink", || fs::remove_file(dir.join("file2")).unwrap());
    moves_times(&dir, "rename inside", || fs::rename(dir.join("file"), dir.join("file3")).unwrap());
    moves_times(&dir, "rename away", || fs::rename(dir.join("file3"), t.path("other/file")).unwrap());
    moves_times(&dir, "rename in", || fs::rename(t.path("other/file"), dir.join("file")).unwrap());
    moves_times(&t.path("other"), "rename of a directory", || {
        fs::rename(dir.join("sub"), t.path("other/s")).unwrap()
    });
    moves_times(&t.path("other"), "rmdir", || fs::remove_dir(t.path("other/s")).unwrap());
}

fn changes_of_an_inode_move_its_ctime(t: &Tree) {
    let path = t.sealed("file", "x");
    let mtime = fs::metadata(&path).map(|m| (m.mtime(), m.mtime_nsec())).unwrap();
    let mut before = (0, 0);
    let mut moved = |what: &str, path: &PathBuf| {
        let meta = fs::metadata(path).unwrap();
        let now = (meta.ctime(), meta.ctime_nsec());
        assert!(now > before, "ctime after {what}");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), mtime, "mtime after {what}");
        before = now;
        std::thread::sleep(std::time::Duration::from_millis(12));
    };
    moved("nothing", &path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    moved("chmod", &path);
    std::os::unix::fs::chown(&path, None, Some(nix::unistd::getegid().as_raw())).unwrap();
    moved("chown", &path);
    fs::hard_link(&path, t.path("second")).unwrap();
    moved("link", &path);
    fs::rename(&path, t.path("renamed")).unwrap();
    moved("rename", &t.path("renamed"));
    fs::remove_file(t.path("renamed")).unwrap();
    moved("unlink", &t.path("second"));
    crate::sys::setxattr(t.path("second"), "user.x", b"y", 0).unwrap();
    moved("setxattr", &t.path("second"));
    crate::sys::removexattr(t.path("second"), "user.x").unwrap();
    moved("removexattr", &t.path("second"));
}

fn dot_and_dotdot(t: &Tree) {
    fs::create_dir_all(t.path("a/b")).unwrap();
    fs::create_dir(t.path("c")).unwrap();
    let ino = |name: &str| fs::metadata(t.path(name)).unwrap().ino();
    assert_eq!(ino("a/b/."), ino("a/b"));
    assert_eq!(ino("a/b/.."), ino("a"));
    let b = File::open(t.path("a/b")).unwrap();
    fs::rename(t.path("a/b"), t.path("c/b")).unwrap();
    assert_eq!(ino("c/b/.."), ino("c"));
    let listed = crate::sys::getdents(&b, 4096).unwrap();
    let listed = |name: &[u8]| listed.iter().find(|e| e.name == name).unwrap().ino;
    assert_eq!(listed(b"."), ino("c/b"));
    assert_eq!(listed(b".."), ino("c"));
}

fn inode_numbers_are_stable_and_never_reused(t: &Tree) {
    let ino = |name: &str| fs::symlink_metadata(t.path(name)).unwrap().ino();
    t.file("a", "x");
    let first = ino("a");
    fs::rename(t.path("a"), t.path("b")).unwrap();
    t.seal();
    fs::write(t.path("b"), "other").unwrap();
    assert_eq!(ino("b"), first);
    t.remount();
    assert_eq!(ino("b"), first);
    if t.mode.is_plain() {
        return;
    }
    let mut seen: BTreeSet<u64> = [first, ino(".")].into();
    fs::remove_file(t.path("b")).unwrap();
    for round in 0..3 {
        for i in 0..20 {
            t.file("x", format!("{round} {i}"));
            assert!(seen.insert(ino("x")), "an inode number was given twice");
            fs::remove_file(t.path("x")).unwrap();
        }
        t.remount();
    }
}

fn deep_trees(t: &Tree) {
    let deep = t.path("d/".repeat(300));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "found").unwrap();
    t.remount();
    assert_eq!(fs::read(deep.join("bottom")).unwrap(), b"found");
    fs::rename(t.path("d"), t.path("e")).unwrap();
    fs::metadata(&deep).fails(Errno::ENOENT);
    fs::remove_dir_all(t.path("e")).unwrap();
    assert_eq!(fs::read_dir(t.dir()).unwrap().count(), 0);
}

fn the_umask_is_taken_off(t: &Tree) {
    sh(t.dir(), "umask 027; touch f; mkdir d; mkfifo p; umask 077; echo x > g");
    let mode = |name: &str| fs::metadata(t.path(name)).unwrap().mode() & 0o7777;
    assert_eq!([mode("f"), mode("d"), mode("p"), mode("g")], [0o640, 0o750, 0o640, 0o600]);
}

fn setgid_directories(t: &Tree) {
    let group = if t.mode.is_user() { nix::unistd::getegid().as_raw() } else { 1234 };
    let dir = t.path("dir");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, None, Some(group)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("file"), "x").unwrap();
    symlink("x", dir.join("link")).unwrap();
    let meta = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap();
    assert_eq!((meta("sub").gid(), meta("sub").mode() & 0o7777), (group, 0o2755));
    assert_eq!((meta("file").gid(), meta("file").mode() & 0o7777), (group, 0o644));
    assert_eq!(meta("link").gid(), group);
}

fn a_removed_directory_takes_nothing(t: &Tree) {
    let path = t.path("dir");
    fs::create_dir(&path).unwrap();
    let dir = File::open(&path).unwrap();
    fs::remove_dir(&path).unwrap();
    assert_eq!(dir.metadata().unwrap().nlink(), 0);
    let create = OFlag::O_CREAT | OFlag::O_WRONLY;
    nix::fcntl::openat(&dir, "file", create, Bits::S_IRWXU).fails(Errno::ENOENT);
    nix::sys::stat::mkdirat(&dir, "sub", Bits::S_IRWXU).fails(Errno::ENOENT);
    t.file("file", "x");
    let here = File::open(t.dir()).unwrap();
    nix::unistd::linkat(&here, "file", &dir, "file", AtFlags::empty()).fails(Errno::ENOENT);
    nix::fcntl::renameat(&here, "file", &dir, "file").fails(Errno::ENOENT);
    let left = crate::sys::getdents(&dir, 4096).unwrap_or_default();
    assert!(left.iter().all(|e| e.name == b"." || e.name == b".."), "{left:?}");
    assert_eq!(fs::read(t.path("file")).unwrap(), b"x");
}

/// A directory in the tree that everybody may write.
fn open_to_all(t: &Tree, name: &str, mode: u32) -> PathBuf {
    fs::create_dir(t.path(name)).unwrap();
    fs::set_permissions(t.path(name), fs::Permissions::from_mode(mode)).unwrap();
    t.path(name)
}

fn sticky_directories(t: &Tree) {
    let dir = open_to_all(t, "tmp", 0o1777);
    as_user(1001, 1001, || fs::write(dir.join("mine"), "x").unwrap());
    as_user(1002, 1002, || {
        fs::remove_file(dir.join("mine")).fails(Errno::EPERM);
        fs::rename(dir.join("mine"), dir.join("yours")).fails(Errno::EPERM);
        fs::write(dir.join("other"), "x").unwrap();
        fs::rename(dir.join("other"), dir.join("mine")).fails(Errno::EPERM);
    });
    as_user(1001, 1001, || fs::remove_file(dir.join("mine")).unwrap());
}

fn permissions_hold(t: &Tree) {
    let path = t.sealed("secret", "x");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(t.path("closed")).unwrap();
    fs::write(t.path("closed/file"), "x").unwrap();
    fs::set_permissions(t.path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    as_user(1001, 1001, || {
        fs::read(&path).fails(Errno::EACCES);
        fs::write(&path, "y").fails(Errno::EACCES);
        nix::unistd::truncate(&path, 0).fails(Errno::EACCES);
        fs::metadata(t.path("closed/file")).fails(Errno::EACCES);
        fs::read_dir(t.path("closed")).fails(Errno::EACCES);
        File::create(t.path("new")).fails(Errno::EACCES);
        fs::create_dir(t.path("newdir")).fails(Errno::EACCES);
        fs::remove_file(&path).fails(Errno::EACCES);
        fs::rename(&path, t.path("moved")).fails(Errno::EACCES);
        nix::unistd::access(&path, nix::unistd::AccessFlags::R_OK).fails(Errno::EACCES);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).fails(Errno::EPERM);
        std::os::unix::fs::chown(&path, Some(1001), None).fails(Errno::EPERM);
    });
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    assert_eq!(as_user(1001, 1001, || fs::read(&path)).unwrap(), b"x");
}

fn a_link_needs_rights(t: &Tree) {
    let (from, to) = (open_to_all(t, "from", 0o755), open_to_all(t, "to", 0o777));
    fs::write(from.join("file"), "x").unwrap();
    fs::set_permissions(from.join("file"), fs::Permissions::from_mode(0o666)).unwrap();
    as_user(1001, 1001, || {
        fs::rename(from.join("file"), to.join("file")).fails(Errno::EACCES);
        fs::hard_link(to.join("missing"), from.join("file2")).fails(Errno::ENOENT);
    });
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
}
