//! Times, sizes, modes and what df(1) says.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;

use crate::data::rw;
use crate::harness::{Depot, Fails, Mode, Tree, as_user, eventually, on_depot};
use crate::sys::{Map, copy_range};

modes!(all:
    times_are_set_to_the_nanosecond, times_set_after_a_write_stay, a_write_moves_mtime_and_ctime, a_read_moves_neither,
    a_store_moves_mtime, sealing_moves_nothing, modes_are_kept, sizes_and_blocks, owners_need_privilege,
    noatime_is_honoured_by_open, statfs_is_honest, truncation_to_the_same_size_moves_times,
);
modes!(root: owners_change, times_need_rights);
modes!(mounted: a_sealed_file_has_no_holes_to_stat);

type Times = ((i64, i64), (i64, i64), (i64, i64));

/// atime, mtime and ctime.
fn times(path: impl AsRef<Path>) -> Times {
    let m = fs::symlink_metadata(path).unwrap();
    ((m.atime(), m.atime_nsec()), (m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()))
}

fn set_times(path: &Path, atime: TimeSpec, mtime: TimeSpec) -> nix::Result<()> {
    utimensat(AT_FDCWD, path, &atime, &mtime, UtimensatFlags::NoFollowSymlink)
}

/// Longer than the clock that stamps files takes for a step.
fn tick() {
    std::thread::sleep(Duration::from_millis(12));
}

const A: (i64, i64) = (1_234_567_890, 123_456_789);
const B: (i64, i64) = (1_500_000_000, 1);

fn spec((s, ns): (i64, i64)) -> TimeSpec {
    TimeSpec::new(s, ns)
}

fn times_are_set_to_the_nanosecond(t: &Tree) {
    let file = t.sealed("file", "x");
    fs::create_dir(t.path("dir")).unwrap();
    std::os::unix::fs::symlink("nowhere", t.path("link")).unwrap();
    for path in [file, t.path("dir"), t.path("link")] {
        let before = times(&path).2;
        tick();
        set_times(&path, spec(A), spec(B)).unwrap();
        assert_eq!((times(&path).0, times(&path).1), (A, B));
        assert!(times(&path).2 > before, "utimensat moves ctime");
        set_times(&path, TimeSpec::UTIME_OMIT, spec(A)).unwrap();
        assert_eq!((times(&path).0, times(&path).1), (A, A));
        set_times(&path, spec(B), TimeSpec::UTIME_OMIT).unwrap();
        assert_eq!((times(&path).0, times(&path).1), (B, A));
        let unmoved = times(&path);
        set_times(&path, TimeSpec::UTIME_OMIT, TimeSpec::UTIME_OMIT).unwrap();
        assert_eq!(times(&path), unmoved);
        set_times(&path, TimeSpec::UTIME_NOW, TimeSpec::UTIME_OMIT).unwrap();
        assert!(times(&path).0 >= before);
        assert_eq!(times(&path).1, A);
    }
    let path = t.file("odd", "x");
    for time in
        [(0, 0), (-1, 999_999_999), (-1_000_000_000, 5), (5_000_000_000, 7), (7_258_118_400, 999_999_999)]
    {
        set_times(&path, spec(time), spec(time)).unwrap();
        assert_eq!((times(&path).0, times(&path).1), (time, time));
    }
    let before = times(&path);
    t.remount();
    assert_eq!(times(&path).1, before.1);
    assert_eq!(times(t.path("dir")).1, A);
}

fn times_set_after_a_write_stay(t: &Tree) {
    let path = t.path("file");
    let file = rw(&path);
    file.write_all_at(b"bytes", 0).unwrap();
    nix::sys::stat::futimens(&file, &spec(A), &spec(B)).unwrap();
    assert_eq!(times(&path).1, B);
    drop(file);
    assert_eq!(times(&path).1, B, "close");
    t.seal();
    assert_eq!(times(&path).1, B, "seal");
    t.remount();
    assert_eq!((times(&path).0, times(&path).1), (A, B), "remount");
    let path = t.file("other", "x");
    set_times(&path, spec(A), spec(B)).unwrap();
    t.seal();
    assert_eq!(times(&path).1, B, "set between close and seal");
    fs::write(&path, "new bytes").unwrap();
    assert!(times(&path).1 > B);
}

fn a_write_moves_mtime_and_ctime(t: &Tree) {
    for sealed in [true, false] {
        let path = t.file("file", "x");
        if sealed {
            t.seal();
        }
        let file = rw(&path);
        let mut before = times(&path);
        let mut moved = |what: &str| {
            let now = times(&path);
            assert!(now.1 > before.1 && now.2 > before.2, "{what}: {before:?} {now:?}");
            before = now;
            tick();
        };
        tick();
        file.write_all_at(b"y", 0).unwrap();
        moved("write");
        nix::unistd::ftruncate(&file, 100).unwrap();
        moved("ftruncate");
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 200).unwrap();
        moved("fallocate");
        nix::unistd::truncate(&path, 50).unwrap();
        moved("truncate");
        copy_range(&file, 0, &file, 10, 5).unwrap();
        moved("copy_file_range");
        fs::write(&path, "all anew").unwrap();
        moved("open with O_TRUNC");
        let last = times(&path);
        drop(file);
        t.seal();
        assert_eq!((times(&path).1, times(&path).2), (last.1, last.2), "close and seal move nothing");
    }
}

fn truncation_to_the_same_size_moves_times(t: &Tree) {
    let path = t.sealed("file", "12345");
    let before = times(&path);
    tick();
    nix::unistd::truncate(&path, 5).unwrap();
    assert!(times(&path).1 > before.1 && times(&path).2 > before.2);
}

fn a_read_moves_neither(t: &Tree) {
    let path = t.sealed("file", "x");
    let before = times(&path);
    tick();
    fs::read(&path).unwrap();
    drop(OpenOptions::new().write(true).open(&path).unwrap());
    drop(OpenOptions::new().append(true).open(&path).unwrap());
    t.seal();
    let after = times(&path);
    assert_eq!((after.1, after.2), (before.1, before.2), "opening for writing without a write moves nothing");
}

fn a_store_moves_mtime(t: &Tree) {
    for sealed in [true, false] {
        let path = t.file("file", vec![0; 4096]);
        if sealed {
            t.seal();
        }
        let file = rw(&path);
        let map = Map::shared(&file, 4096).unwrap();
        let before = times(&path);
        tick();
        map.write(0, b"stored");
        map.sync().unwrap();
        assert!(times(&path).1 > before.1, "after msync");
        drop((map, file));
        let after = times(&path);
        t.seal();
        assert_eq!(times(&path).1, after.1);
    }
}

fn sealing_moves_nothing(t: &Tree) {
    let path = t.file("file", "some bytes");
    let look = || {
        let m = fs::metadata(&path).unwrap();
        (m.ino(), m.len(), m.mode(), m.nlink(), times(&path))
    };
    let before = look();
    tick();
    t.seal();
    assert_eq!(look(), before);
    t.remount();
    assert_eq!(look(), before);
}

fn modes_are_kept(t: &Tree) {
    let file = t.file("file", "x");
    fs::create_dir(t.path("dir")).unwrap();
    for path in [file, t.path("dir")] {
        for mode in [0, 0o777, 0o1755, 0o4711, 0o2755, 0o6755, 0o700] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
        }
        t.remount();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
    }
    fs::set_permissions(t.path("missing"), fs::Permissions::from_mode(0o000)).fails(Errno::ENOENT);
}

fn sizes_and_blocks(t: &Tree) {
    let path = t.sealed("file", vec![1; 10_000]);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.len(), 10_000);
    assert!((20..=24).contains(&meta.blocks()), "{} blocks", meta.blocks());
    assert!(meta.blksize() >= 4096 && meta.blksize().is_power_of_two());
    fs::create_dir(t.path("dir")).unwrap();
    assert!(fs::metadata(t.path("dir")).unwrap().is_dir());
}

fn a_sealed_file_has_no_holes_to_stat(t: &Tree) {
    let file = rw(&t.path("sparse"));
    nix::unistd::ftruncate(&file, 3_000_001).unwrap();
    drop(file);
    t.seal();
    assert_eq!(fs::metadata(t.path("sparse")).unwrap().blocks(), 3_000_001_u64.div_ceil(512));
}

fn owners_need_privilege(t: &Tree) {
    let path = t.file("file", "x");
    let meta = fs::metadata(&path).unwrap();
    chown(&path, Some(meta.uid()), Some(meta.gid())).unwrap();
    chown(&path, None, None).unwrap();
    if t.mode.is_user() {
        chown(&path, Some(0), None).fails(Errno::EPERM);
        chown(&path, None, Some(0)).fails(Errno::EPERM);
    }
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.uid(), after.gid()), (meta.uid(), meta.gid()));
}

fn owners_change(t: &Tree) {
    let path = t.sealed("file", "x");
    std::os::unix::fs::symlink("file", t.path("link")).unwrap();
    chown(&path, Some(1001), None).unwrap();
    chown(&path, None, Some(4_000_000_000)).unwrap();
    std::os::unix::fs::lchown(t.path("link"), Some(7), Some(8)).unwrap();
    t.remount();
    let owner = |m: fs::Metadata| (m.uid(), m.gid());
    assert_eq!(owner(fs::metadata(&path).unwrap()), (1001, 4_000_000_000));
    assert_eq!(owner(fs::symlink_metadata(t.path("link")).unwrap()), (7, 8));
    fs::set_permissions(t.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    as_user(1001, 1001, || {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, None, Some(1001)).unwrap();
        chown(&path, None, Some(1002)).fails(Errno::EPERM);
        chown(&path, Some(1002), None).fails(Errno::EPERM);
        fs::write(t.path("own"), "x").unwrap();
        assert_eq!(owner(fs::metadata(t.path("own")).unwrap()), (1001, 1001));
    });
}

fn times_need_rights(t: &Tree) {
    let path = t.file("file", "x");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    as_user(1001, 1001, || {
        set_times(&path, TimeSpec::UTIME_NOW, TimeSpec::UTIME_NOW).unwrap();
        set_times(&path, spec(A), spec(A)).fails(Errno::EPERM);
    });
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    as_user(1001, 1001, || {
        set_times(&path, TimeSpec::UTIME_NOW, TimeSpec::UTIME_NOW).fails(Errno::EACCES);
    });
}

fn noatime_is_honoured_by_open(t: &Tree) {
    let path = t.sealed("file", "x");
    set_times(&path, spec(A), spec(B)).unwrap();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(&path).unwrap();
    assert_eq!(file.read_at(&mut [0; 4], 0).unwrap(), 1);
    drop(file);
    t.remount();
    assert_eq!(times(&path).0, A);
}

fn statfs_is_honest(t: &Tree) {
    let told = statvfs(t.dir()).unwrap();
    let below = statvfs(t.dir().ancestors().nth(2).unwrap()).unwrap();
    let bytes = |s: &nix::sys::statvfs::Statvfs| s.blocks() as i128 * s.fragment_size() as i128;
    let free = |s: &nix::sys::statvfs::Statvfs| s.blocks_available() as i128 * s.fragment_size() as i128;
    assert_eq!(bytes(&told), bytes(&below), "the size is that of the disk below");
    assert!((free(&told) - free(&below)).abs() < 4 << 30, "free: {} and {}", free(&told), free(&below));
    assert_eq!(told.files(), below.files(), "so are the inodes that it can have");
    assert!(told.files_free().abs_diff(below.files_free()) < 100_000, "others make files meanwhile");
    assert_eq!(told.name_max(), 255);
    assert!(told.blocks_free() >= told.blocks_available() && told.files() >= told.files_free());
    let file = File::open(t.dir()).unwrap();
    assert_eq!(nix::sys::statvfs::fstatvfs(&file).unwrap().blocks(), told.blocks());
}

/// Whether reading moves the atime of a file that was modified after it was last read.
fn read_moves_atime(depot: &Depot, name: &str) -> bool {
    let path = depot.path(format!("repo/{name}"));
    let _ = fs::create_dir(depot.path("repo"));
    fs::write(&path, "x").unwrap();
    depot.flush();
    set_times(&path, spec(A), spec(B)).unwrap();
    fs::read(&path).unwrap();
    // It is written in batches; an unmount writes what is left.
    depot.umount();
    depot.mount();
    times(&path).0 != A
}

#[test]
fn relatime_is_the_default() {
    on_depot(|depot| {
        depot.mount();
        assert!(read_moves_atime(depot, "file"));
        let path = depot.path("repo/file");
        let first = times(&path).0;
        fs::read(&path).unwrap();
        depot.umount();
        depot.mount();
        assert_eq!(times(&path).0, first, "read again within a day: not moved");
    });
}

#[test]
fn atime_moves_without_an_unmount() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let path = depot.path("repo/file");
        fs::write(&path, "x").unwrap();
        set_times(&path, spec(A), spec(B)).unwrap();
        fs::read(&path).unwrap();
        eventually("atime to move", || times(&path).0 != A);
    });
}

#[test]
fn noatime_moves_none() {
    on_depot(|depot| {
        depot.mount_with("noatime").ok();
        fs::create_dir(depot.path("repo")).unwrap();
        let path = depot.path("repo/file");
        fs::write(&path, "x").unwrap();
        set_times(&path, spec(A), spec(B)).unwrap();
        fs::read(&path).unwrap();
        depot.umount();
        depot.mount();
        assert_eq!(times(&path).0, A);
    });
}

#[test]
fn df_follows_what_is_written_and_removed() {
    on_depot(|depot| {
        assert_eq!(depot.mode, Mode::Passthrough);
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let used = || {
            let s = statvfs(&depot.mountpoint).unwrap();
            (s.blocks() - s.blocks_free()) * s.fragment_size()
        };
        let below = || {
            let s = statvfs(&depot.dir).unwrap();
            (s.blocks() - s.blocks_free()) * s.fragment_size()
        };
        // Other tests write to the same disk meanwhile: the two are compared with each other.
        eventually("df in the mount to say what df of the disk says", || used().abs_diff(below()) < 1 << 20);
    });
}
