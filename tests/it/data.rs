//! Bytes: reading, writing, sizes, holes, and files without a name.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, open};
use nix::sys::stat::Mode as Bits;
use nix::unistd::{Whence, ftruncate, lseek, truncate};

use crate::harness::{Fails, Tree, eventually, sh};
use crate::sys::Aligned;

modes!(every_chain:
    bytes_round_trip, scattered_writes_leave_zeroes, vectors, appending, concurrent_appends_lose_nothing,
    open_with_truncation, direct_io, synchronous_writes, holes_are_found, offsets_over_4_gib, truncate_up_and_down,
    allocate, punch_and_zero, fallocate_refuses_what_makes_no_sense, unlinked_files_live_until_closed, sendfile_sends,
    programs_run_and_are_busy, reopened_files_go_on, many_small_files, big_requests,
);
modes!(mounted: calls_that_are_not_supported);

/// `len` bytes that are different for each seed and repeat nowhere soon.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(len).collect()
}

pub fn rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn bytes_round_trip(t: &Tree) {
    for len in [0, 1, 511, 4095, 4096, 4097, 131_071, 1 << 20, (3 << 20) + 1] {
        let bytes = noise(len as u64, len);
        let path = t.file(format!("f{len}"), &bytes);
        assert!(fs::read(&path).unwrap() == bytes, "just closed, {len}");
        assert_eq!(fs::metadata(&path).unwrap().len(), len as u64);
    }
    for when in ["sealed", "after a remount"] {
        match when {
            "sealed" => t.seal(),
            _ => t.remount(),
        }
        for len in [0, 1, 511, 4095, 4096, 4097, 131_071, 1 << 20, (3 << 20) + 1] {
            assert!(fs::read(t.path(format!("f{len}"))).unwrap() == noise(len as u64, len), "{when}, {len}");
        }
    }
}

fn scattered_writes_leave_zeroes(t: &Tree) {
    for start in ["", "sealed before"] {
        let path = t.sealed("file", start);
        let file = rw(&path);
        let mut model = start.as_bytes().to_vec();
        for (at, byte, len) in
            [(10_000, 1, 100), (5_000, 2, 4096), (9_999, 3, 2), (0, 4, 1), (70_001, 5, 1), (4_096, 6, 1)]
        {
            file.write_all_at(&vec![byte; len], at as u64).unwrap();
            model.resize(model.len().max(at + len), 0);
            model[at..at + len].fill(byte);
            assert_eq!(file.metadata().unwrap().len(), model.len() as u64);
        }
        let mut seen = vec![0; model.len() + 10];
        assert_eq!(file.read_at(&mut seen, 0).unwrap(), model.len());
        assert_eq!(&seen[..model.len()], model);
        assert_eq!(file.read_at(&mut seen, model.len() as u64).unwrap(), 0);
        drop(file);
        t.seal();
        assert_eq!(fs::read(&path).unwrap(), model);
    }
}

fn vectors(t: &Tree) {
    let mut file = rw(&t.path("file"));
    let parts = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two")];
    assert_eq!(file.write_vectored(&parts).unwrap(), 7);
    file.rewind().unwrap();
    let (mut a, mut b) = ([0; 3], [0; 10]);
    assert_eq!(file.read_vectored(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]).unwrap(), 7);
    assert_eq!((&a, &b[..4]), (b"one", &b" two"[..]));
    assert_eq!(file.write(b"").unwrap(), 0);
}

fn appending(t: &Tree) {
    let path = t.path("log");
    let append = || OpenOptions::new().append(true).create(true).read(true).open(&path).unwrap();
    let (mut a, mut b) = (append(), append());
    a.write_all(b"a1 ").unwrap();
    b.write_all(b"b1 ").unwrap();
    a.write_all(b"a2 ").unwrap();
    rw(&path).write_all_at(b"X", 0).unwrap();
    b.write_at(b"b2 ", 0).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "X1 b1 a2 b2 ", "pwrite on O_APPEND appends");
    ftruncate(&a, 2).unwrap();
    b.write_all(b"end").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "X1end");
    drop((a, b));
    for round in 0..20 {
        if round % 5 == 4 {
            t.seal();
        }
        append().write_all(b".").unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("X1end{}", ".".repeat(20)));
}

fn concurrent_appends_lose_nothing(t: &Tree) {
    let path = t.sealed("log", "start\n");
    std::thread::scope(|s| {
        for writer in 0..4 {
            let path = &path;
            s.spawn(move || {
                for i in 0..100 {
                    let mut file = OpenOptions::new().append(true).open(path).unwrap();
                    file.write_all(format!("{writer} {i}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 401);
    for writer in 0..4 {
        let own: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix(&format!("{writer} "))).collect();
        assert_eq!(own, (0..100).map(|i| i.to_string()).collect::<Vec<_>>(), "in order");
    }
}

fn open_with_truncation(t: &Tree) {
    for sealed in [true, false] {
        let path = if sealed { t.sealed("file", "old bytes") } else { t.file("file", "old bytes") };
        let reader = File::open(&path).unwrap();
        let before = reader.metadata().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(12));
        let writer = open(&path, OFlag::O_WRONLY | OFlag::O_TRUNC, Bits::empty()).unwrap();
        let after = reader.metadata().unwrap();
        assert_eq!(after.len(), 0);
        assert!((after.mtime(), after.mtime_nsec()) > (before.mtime(), before.mtime_nsec()));
        assert_eq!(reader.read_at(&mut [0; 4], 0).unwrap(), 0);
        drop(writer);
        assert_eq!(fs::read(&path).unwrap(), b"");
        t.seal();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
    let read_only_truncation = open(&t.path("file"), OFlag::O_RDONLY | OFlag::O_TRUNC, Bits::empty());
    read_only_truncation.unwrap();
}

fn direct_io(t: &Tree) {
    let path = t.path("file");
    let direct = |create: bool| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).custom_flags(libc::O_DIRECT).open(&path).unwrap()
    };
    let file = direct(true);
    file.write_all_at(&Aligned::filled(1, 8192), 0).unwrap();
    file.write_all_at(&Aligned::filled(2, 4096), 4096).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [vec![1; 4096], vec![2; 4096]].concat());
    rw(&path).write_all_at(&[3; 10], 4000).unwrap();
    let mut seen = Aligned::filled(0, 8192);
    assert_eq!(file.read_at(&mut seen, 0).unwrap(), 8192);
    assert_eq!(seen[3990..4020], [vec![1; 10], vec![3; 10], vec![1; 10]].concat());
    drop(file);
    t.seal();
    let file = direct(false);
    let mut seen = Aligned::filled(0, 16_384);
    assert_eq!(file.read_at(&mut seen, 4096).unwrap(), 4096);
    assert!(seen[..4096].iter().all(|b| *b == 2));
    assert_eq!(file.read_at(&mut seen, 8192).unwrap(), 0);
    file.write_all_at(&Aligned::filled(4, 4096), 8192).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 12_288);
    assert_eq!(fs::read(&path).unwrap()[8192..], [4; 4096]);
}

fn synchronous_writes(t: &Tree) {
    for (i, flag) in [libc::O_SYNC, libc::O_DSYNC, libc::O_SYNC | libc::O_APPEND].into_iter().enumerate() {
        let path = t.path(format!("f{i}"));
        let mut file = OpenOptions::new().write(true).create(true).custom_flags(flag).open(&path).unwrap();
        file.write_all(b"one ").unwrap();
        file.write_all(b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one two");
    }
    let file = rw(&t.path("f0"));
    file.write_all_at(b"ONE", 0).unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    let reader = File::open(t.path("f0")).unwrap();
    reader.sync_all().unwrap();
    drop(file);
    t.seal();
    reader.sync_all().unwrap();
    File::open(t.dir()).unwrap().sync_all().unwrap();
    File::open(t.dir()).unwrap().sync_data().unwrap();
    assert_eq!(fs::read(t.path("f0")).unwrap(), b"ONE two");
}

fn holes_are_found(t: &Tree) {
    const MIB: i64 = 1 << 20;
    let path = t.path("sparse");
    let file = rw(&path);
    file.write_all_at(&noise(1, 65_536), 16 * MIB as u64).unwrap();
    ftruncate(&file, 64 * MIB).unwrap();
    file.sync_all().unwrap();
    let seek = |file: &File, at: i64, whence| lseek(file, at, whence);
    assert_eq!(seek(&file, 0, Whence::SeekData), Ok(16 * MIB));
    assert_eq!(seek(&file, 0, Whence::SeekHole), Ok(0));
    assert_eq!(seek(&file, 16 * MIB, Whence::SeekHole), Ok(16 * MIB + 65_536));
    assert_eq!(seek(&file, 16 * MIB + 5, Whence::SeekData), Ok(16 * MIB + 5));
    seek(&file, 17 * MIB, Whence::SeekData).fails(Errno::ENXIO);
    seek(&file, 64 * MIB, Whence::SeekHole).fails(Errno::ENXIO);
    assert!(file.metadata().unwrap().blocks() < 1024, "a hole takes no space while it is written");
    drop(file);
    t.seal();
    // A blob may tell its holes or call them data; both describe the same bytes.
    let file = File::open(&path).unwrap();
    let data = seek(&file, 0, Whence::SeekData).unwrap();
    assert!((0..=16 * MIB).contains(&data));
    let hole = seek(&file, 16 * MIB, Whence::SeekHole).unwrap();
    assert!(hole == 16 * MIB + 65_536 || hole == 64 * MIB, "{hole}");
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as i64, 64 * MIB);
    assert!(bytes.drain(16 << 20..(16 << 20) + 65_536).eq(noise(1, 65_536)));
    assert!(bytes.iter().all(|b| *b == 0));
}

fn offsets_over_4_gib(t: &Tree) {
    let path = t.path("big");
    let file = rw(&path);
    for at in [(4 << 30) - 1, (5 << 30) + 7, 1 << 40] {
        file.write_all_at(b"far", at).unwrap();
        let mut seen = [9; 5];
        assert_eq!(file.read_at(&mut seen, at).unwrap(), 3);
        assert_eq!(&seen, b"far\x09\x09");
        assert_eq!(fs::metadata(&path).unwrap().len(), at + 3);
    }
    ftruncate(&file, (4 << 30) + 1).unwrap();
    let mut seen = [9; 5];
    assert_eq!(file.read_at(&mut seen, (4 << 30) - 1).unwrap(), 2);
    assert_eq!(&seen[..2], b"fa");
    // Removed before it is closed: nobody hashes four gigabytes of holes.
    fs::remove_file(&path).unwrap();
}

fn truncate_up_and_down(t: &Tree) {
    for sealed in [false, true] {
        let path = t.file("file", noise(2, 10_000));
        if sealed {
            t.seal();
        }
        let reader = File::open(&path).unwrap();
        truncate(&path, 5000).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 5000);
        truncate(&path, 12_000).unwrap();
        let seen = fs::read(&path).unwrap();
        assert_eq!(seen.len(), 12_000);
        assert_eq!(seen[..5000], noise(2, 10_000)[..5000]);
        assert!(seen[5000..].iter().all(|b| *b == 0), "what was cut off does not come back");
        assert_eq!(reader.read_at(&mut [0; 8192], 8000).unwrap(), 4000);
        t.seal();
        let file = rw(&path);
        ftruncate(&file, 1).unwrap();
        ftruncate(&file, 3).unwrap();
        file.write_all_at(b"!", 3).unwrap();
        drop(file);
        t.seal();
        assert_eq!(fs::read(&path).unwrap(), [noise(2, 1)[0], 0, 0, b'!']);
        truncate(&path, 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
    let file = rw(&t.path("file"));
    ftruncate(&file, -1).fails(Errno::EINVAL);
    ftruncate(File::open(t.path("file")).unwrap(), 1).fails(Errno::EINVAL);
    truncate(t.dir(), 0).fails(Errno::EISDIR);
    truncate(&t.path("missing"), 0).fails(Errno::ENOENT);
}

fn allocate(t: &Tree) {
    let file = rw(&t.path("file"));
    file.write_all_at(b"x", 0).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    assert!(file.metadata().unwrap().blocks() >= 100_000 / 512);
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 200_000, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    drop(file);
    let bytes = fs::read(t.path("file")).unwrap();
    assert_eq!((bytes.len(), bytes[0]), (100_000, b'x'));
    assert!(bytes[1..].iter().all(|b| *b == 0));
    let file = rw(&t.sealed("sealed", "abc"));
    fallocate(&file, FallocateFlags::empty(), 2, 4).unwrap();
    assert_eq!(fs::read(t.path("sealed")).unwrap(), b"abc\0\0\0");
}

fn punch_and_zero(t: &Tree) {
    use FallocateFlags as F;
    let keep = F::FALLOC_FL_KEEP_SIZE;
    for sealed in [false, true] {
        let path = t.file("file", vec![7; 40_000]);
        if sealed {
            t.seal();
        }
        let file = rw(&path);
        let mut model = vec![7; 40_000];
        fallocate(&file, F::FALLOC_FL_PUNCH_HOLE | keep, 5000, 10_000).unwrap();
        model[5000..15_000].fill(0);
        fallocate(&file, F::FALLOC_FL_ZERO_RANGE | keep, 20_001, 9).unwrap();
        model[20_001..20_010].fill(0);
        assert_eq!(fs::read(&path).unwrap(), model);
        fallocate(&file, F::FALLOC_FL_PUNCH_HOLE | keep, 39_000, 50_000).unwrap();
        model[39_000..].fill(0);
        assert_eq!(fs::read(&path).unwrap(), model, "a hole over the end keeps the size");
        fallocate(&file, F::FALLOC_FL_ZERO_RANGE, 39_500, 1000).unwrap();
        model.resize(40_500, 0);
        assert_eq!(fs::read(&path).unwrap(), model);
        fallocate(&file, F::FALLOC_FL_ZERO_RANGE | keep, 40_000, 5000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 40_500);
        drop(file);
        t.seal();
        assert_eq!(fs::read(&path).unwrap(), model);
    }
}

fn fallocate_refuses_what_makes_no_sense(t: &Tree) {
    let path = t.file("file", "x");
    let file = rw(&path);
    let none = FallocateFlags::empty();
    fallocate(&file, none, 0, 0).fails(Errno::EINVAL);
    fallocate(&file, none, -1, 1).fails(Errno::EINVAL);
    fallocate(File::open(&path).unwrap(), none, 0, 1).fails(Errno::EBADF);
    fallocate(&file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, 0, 1).fails(Errno::EOPNOTSUPP);
    assert_eq!(fs::read(&path).unwrap(), b"x");
}

fn unlinked_files_live_until_closed(t: &Tree) {
    for sealed in [false, true] {
        let path = t.file("file", "before");
        if sealed {
            t.seal();
        }
        let file = rw(&path);
        let reader = File::open(&path).unwrap();
        let map = crate::sys::Map::shared(&file, 6).unwrap();
        fs::remove_file(&path).unwrap();
        fs::metadata(&path).fails(Errno::ENOENT);
        assert_eq!(reader.metadata().unwrap().nlink(), 0);
        file.write_all_at(b"after!", 0).unwrap();
        file.write_all_at(b"more", 6).unwrap();
        assert_eq!(map.read(0, 6), b"after!");
        t.seal();
        let mut seen = [0; 20];
        assert_eq!(reader.read_at(&mut seen, 0).unwrap(), 10);
        assert_eq!(&seen[..10], b"after!more");
        ftruncate(&file, 3).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 3);
        file.sync_all().unwrap();
        nix::sys::stat::fchmod(&file, Bits::from_bits_truncate(0o600)).unwrap();
        // The name is free for another file, which has nothing to do with the first.
        fs::write(&path, "another").unwrap();
        assert_eq!(reader.read_at(&mut seen, 0).unwrap(), 3);
        drop((file, reader));
        map.write(0, b"A");
        assert_eq!(map.read(0, 3), b"Aft");
        assert_eq!(fs::read(&path).unwrap(), b"another");
    }
}

fn sendfile_sends(t: &Tree) {
    let bytes = noise(3, 200_000);
    let from = File::open(t.sealed("from", &bytes)).unwrap();
    let to = File::create(t.path("to")).unwrap();
    assert_eq!(crate::sys::sendfile(&from, &to, 200_000), Ok(200_000));
    drop(to);
    assert!(fs::read(t.path("to")).unwrap() == bytes);
}

fn programs_run_and_are_busy(t: &Tree) {
    sh(
        t.dir(),
        "cp \"$(command -v sleep)\" program; printf '#!/bin/sh\\necho \"said $1\"\\n' > script; chmod +x script",
    );
    assert_eq!(sh(t.dir(), "./script this"), "said this\n");
    t.seal();
    assert_eq!(sh(t.dir(), "./script this"), "said this\n");
    let program = t.path("program");
    let mut running = std::process::Command::new(&program).arg("100").spawn().unwrap();
    eventually("the program to run", || {
        fs::read_link(format!("/proc/{}/exe", running.id())).is_ok_and(|exe| exe == program)
    });
    let for_writing = OpenOptions::new().write(true).open(&program).map(drop);
    let truncated = truncate(&program, 0);
    let emptied = OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(&program).map(drop);
    let (len, ended) = (fs::metadata(&program).unwrap().len(), running.try_wait().unwrap());
    running.kill().unwrap();
    running.wait().unwrap();
    emptied.fails(Errno::ETXTBSY);
    assert!(len > 0 && ended.is_none(), "{len} {ended:?}");
    for_writing.fails(Errno::ETXTBSY);
    truncated.fails(Errno::ETXTBSY);
    let writer = OpenOptions::new().append(true).open(t.path("program")).unwrap();
    std::process::Command::new(t.path("program")).arg("0").spawn().fails(Errno::ETXTBSY);
    drop(writer);
    // Another test may be starting a program, which holds our descriptors until it runs.
    eventually("the program to be free", || {
        std::process::Command::new(t.path("program")).arg("0").status().is_ok_and(|s| s.success())
    });
}

fn reopened_files_go_on(t: &Tree) {
    let path = t.path("file");
    let mut model = Vec::new();
    for round in 0..40u8 {
        let file = rw(&path);
        file.write_all_at(&[round; 5000], u64::from(round) * 3000).unwrap();
        model.resize(usize::from(round) * 3000 + 5000, 0);
        model[usize::from(round) * 3000..].fill(round);
        drop(file);
        if round % 10 == 5 {
            t.seal();
        }
    }
    assert!(fs::read(&path).unwrap() == model);
    t.remount();
    assert!(fs::read(&path).unwrap() == model);
}

fn many_small_files(t: &Tree) {
    let content = |i: usize| noise(i as u64, 100 + i % 50);
    for i in 0..300 {
        t.file(format!("f{i}"), content(i));
    }
    t.remount();
    for i in 0..300 {
        assert_eq!(fs::read(t.path(format!("f{i}"))).unwrap(), content(i), "{i}");
    }
}

fn big_requests(t: &Tree) {
    let bytes = noise(5, 9_000_001);
    let path = t.path("file");
    let mut file = rw(&path);
    assert_eq!(file.write(&bytes).unwrap(), bytes.len());
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut seen = vec![0; bytes.len() + 5];
    assert_eq!(file.read(&mut seen).unwrap(), bytes.len());
    assert!(seen[..bytes.len()] == bytes);
}

fn calls_that_are_not_supported(t: &Tree) {
    let path: PathBuf = t.file("file", vec![1; 8192]);
    let file = rw(&path);
    for mode in [FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, FallocateFlags::FALLOC_FL_INSERT_RANGE] {
        fallocate(&file, mode, 0, 4096).fails(Errno::EOPNOTSUPP);
    }
    open(t.dir(), OFlag::O_TMPFILE | OFlag::O_RDWR, Bits::S_IRWXU).fails(Errno::EOPNOTSUPP);
    crate::sys::reflink(&file, &rw(&t.path("clone"))).fails(Errno::EOPNOTSUPP);
    crate::sys::inode_flags(&file).fails(Errno::ENOTTY);
    assert!(!crate::sys::has_birth_time(&path));
    assert_eq!(fs::read(&path).unwrap(), vec![1; 8192]);
}
