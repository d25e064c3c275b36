//! The edges of system calls: numbers, flags and names at which something may go over.
//!
//! Each test makes the same calls in a plain directory and in the mount; the answers have to be the same, call by call.

use std::ffi::OsStr;
use std::fmt::{Debug, Display};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, open};
use nix::sys::stat::{Mode as Bits, SFlag, makedev, mknod};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{ftruncate, truncate};

use crate::data::{noise, rw};
use crate::harness::{Tree, scratch_for};
use crate::sys::{self, Aligned};

modes!(mounted:
    offsets_of_reads_and_writes, offsets_of_direct_reads_and_writes, sizes, positions, ranges_to_allocate, ranges_to_copy,
    flags_of_open, names_of_all_bytes, lengths_of_names, flags_of_rename, targets_of_links, attributes_of_all_names,
    positions_in_directories, commands_of_files, times,
);
modes!(mounted_root: kinds_of_nodes);

/// Offsets and lengths at which arithmetic goes over; files of the local disk end at 16 TiB.
const EDGES: [i64; 20] = [
    0,
    1,
    511,
    4095,
    4096,
    9999,
    10_000,
    10_001,
    1 << 31,
    1 << 32,
    (1 << 43) - 1,
    (1 << 44) - 4096,
    1 << 44,
    (1 << 62) + 1,
    i64::MAX - 4096,
    i64::MAX - 1,
    i64::MAX,
    -1,
    -4096,
    i64::MIN,
];

/// Length of the files that are worked on.
const LENGTH: i64 = 10_000;

/// The answers of calls, to be compared.
#[derive(Default)]
struct Answers(Vec<(String, String)>);

impl Answers {
    fn note<T: Debug>(&mut self, call: impl Display, answer: Result<T, Errno>) {
        let answer = answer.map_or_else(|errno| errno.to_string(), |value| format!("{value:?}"));
        self.0.push((call.to_string(), answer));
    }
}

/// Makes the same calls in a plain directory and in the mount.
#[track_caller]
fn same(t: &Tree, calls: impl Fn(&Path, &mut Answers)) {
    let plain = scratch_for(t);
    let (mut wanted, mut got) = (Answers::default(), Answers::default());
    calls(plain.path(), &mut wanted);
    calls(t.dir(), &mut got);
    assert!(wanted.0.len() > 10, "{} calls", wanted.0.len());
    let different = wanted.0.iter().zip(&got.0).filter(|(wanted, got)| wanted != got);
    let lines: Vec<String> = different.map(|(wanted, got)| format!("{wanted:?}, here {:?}", got.1)).collect();
    assert!(lines.is_empty(), "{} of {} calls:\n{}", lines.len(), wanted.0.len(), lines.join("\n"));
    assert_eq!(wanted.0.len(), got.0.len());
}

fn errno<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// A file of `LENGTH` bytes, open, as new.
fn worked_on(dir: &Path, name: &str) -> File {
    let path = dir.join(name);
    fs::write(&path, noise(1, LENGTH as usize)).unwrap();
    rw(&path)
}

/// Before a close: nobody wants to hash sixteen terabytes.
fn cut(file: &File) {
    ftruncate(file, LENGTH).unwrap();
}

fn offsets_of_reads_and_writes(t: &Tree) {
    same(t, |dir, answers| {
        let file = worked_on(dir, "file");
        for offset in EDGES {
            for length in [0, 1, 4096] {
                let mut bytes = vec![0; length];
                let read = pread(&file, &mut bytes, offset);
                answers.note(format!("pread {offset} {length}"), read);
                answers.note("  its bytes", Ok(sys::sum(&bytes)));
                answers.note(format!("pwrite {offset} {length}"), pwrite(&file, &vec![7; length], offset));
                answers.note("  the size", Ok(file.metadata().unwrap().len()));
                cut(&file);
            }
        }
        drop(file);
        answers.note("the bytes", Ok(sys::sum(&fs::read(dir.join("file")).unwrap())));
    });
}

fn offsets_of_direct_reads_and_writes(t: &Tree) {
    let direct = OFlag::O_RDWR | OFlag::O_DIRECT;
    let length = 4 * 4096;
    fs::write(t.path("file"), noise(1, length)).unwrap();
    let file = File::from(open(&t.path("file"), direct, Bits::empty()).unwrap());
    let mut model = noise(1, length);
    for offset in [0, 1, 512, 4095, 4096, 8192, 12_288, 16_384, i64::MAX - 4095, i64::MAX, -1, -4096] {
        for (skew, length) in [(0, 4096), (0, 512), (1, 4096), (0, 1), (0, 0)] {
            let mut buffer = Aligned::filled(0, length + 8);
            // What is not aligned may be refused, as on the disk below; what is not refused is right.
            match pread(&file, &mut buffer[skew..skew + length], offset) {
                Ok(n) => {
                    let start = (offset as usize).min(model.len());
                    let there = &model[start..(start + length).min(model.len())];
                    assert!(n == there.len() && buffer[skew..skew + n] == *there, "{offset} {skew} {length}");
                }
                Err(why) => assert_eq!(why, Errno::EINVAL, "read {offset} {skew} {length}"),
            }
            buffer.fill(9);
            if offset < 0 || offset as usize + length > model.len() {
                continue;
            }
            match pwrite(&file, &buffer[skew..skew + length], offset) {
                Ok(n) => model[offset as usize..offset as usize + n].fill(9),
                Err(why) => assert_eq!(why, Errno::EINVAL, "write {offset} {skew} {length}"),
            }
        }
    }
    drop(file);
    assert!(fs::read(t.path("file")).unwrap() == model);
}

fn sizes(t: &Tree) {
    same(t, |dir, answers| {
        let file = worked_on(dir, "file");
        for size in EDGES {
            answers.note(format!("ftruncate {size}"), ftruncate(&file, size));
            answers.note("  the size", Ok(file.metadata().unwrap().len()));
            answers.note(format!("truncate {size}"), truncate(&dir.join("file"), size));
            cut(&file);
        }
        fs::create_dir(dir.join("dir")).unwrap();
        answers.note("truncate of a directory", truncate(&dir.join("dir"), 0));
        answers.note("truncate of nothing", truncate(&dir.join("nothing"), 0));
        answers.note(
            "truncate of no descriptor for writing",
            ftruncate(File::open(dir.join("file")).unwrap(), 0),
        );
    });
}

fn positions(t: &Tree) {
    same(t, |dir, answers| {
        let file = worked_on(dir, "file");
        for whence in [-1, 0, 1, 2, 3, 4, 5, 6, 100, i32::MAX, i32::MIN] {
            for offset in EDGES {
                // How far a position may lie behind the largest file is each file system's own.
                if (0..=2).contains(&whence) && offset.unsigned_abs() > 1 << 43 {
                    continue;
                }
                answers.note(format!("lseek {offset} {whence}"), sys::seek_raw(&file, offset, whence));
            }
            sys::seek_raw(&file, 0, 0).unwrap();
        }
    });
}

fn ranges_to_allocate(t: &Tree) {
    same(t, |dir, answers| {
        let file = worked_on(dir, "file");
        let ranges = [
            (0, 0),
            (0, -1),
            (-1, 1),
            (0, 1),
            (0, 4096),
            (4095, 2),
            (9999, 1),
            (10_000, 1),
            (12_345, 6789),
            (i64::MAX, 1),
            (1, i64::MAX),
            (i64::MAX, i64::MAX),
            (i64::MIN, 1),
            (0, i64::MIN),
            (1 << 44, 4096),
            (i64::MAX - 4096, 4096),
        ];
        // 8 and 32, collapsing and inserting, are not supported here.
        for mode in [0, 1, 2, 3, 4, 9, 16, 17, 18, 19, 24, 33, 48, 64, 65, 128, 1 << 20, -1, i32::MIN] {
            for (offset, length) in ranges {
                // What is said first of two things that are wrong is each file system's own.
                if offset >= 1 << 44 && !matches!(mode, 0 | 1 | 3 | 16 | 17) {
                    continue;
                }
                let how = FallocateFlags::from_bits_retain(mode);
                let before = noise(1, LENGTH as usize);
                answers.note(
                    format!("fallocate {mode} {offset} {length}"),
                    fallocate(&file, how, offset, length),
                );
                let mut bytes = vec![0; 20_000];
                let n = pread(&file, &mut bytes, 0).unwrap();
                answers.note("  size and bytes", Ok((n, sys::sum(&bytes[..n]))));
                cut(&file);
                pwrite(&file, &before, 0).unwrap();
            }
        }
    });
}

fn ranges_to_copy(t: &Tree) {
    same(t, |dir, answers| {
        let (from, to) = (worked_on(dir, "from"), worked_on(dir, "to"));
        let copy = |from: &File, at, to: &File, to_at, length, flags| {
            sys::copy_range_raw(from, at, to, to_at, length, flags)
        };
        for at in EDGES {
            for to_at in EDGES {
                for length in [0, 1, 4096, usize::MAX >> 1, usize::MAX] {
                    let call = format!("copy {at} to {to_at}, {length}");
                    let mut copied = copy(&from, at, &to, to_at, length, 0);
                    // Behind the largest file, what is said of a copy of nothing, or from nowhere, is each file system's own.
                    if to_at >= (1 << 44) - 4096 && (length == 0 || !(0..LENGTH).contains(&at)) {
                        copied = Ok(0);
                    }
                    answers.note(call, copied);
                    answers.note("  the size", Ok(to.metadata().unwrap().len()));
                    cut(&to);
                }
            }
        }
        // Within one file: apart, touching, over each other.
        for (at, to_at, length) in
            [(0, 5000, 5000), (0, 5000, 5001), (0, 1, 1), (0, 1, 2), (0, 0, 10), (5, 0, 10), (9000, 0, 5000)]
        {
            answers.note(
                format!("copy within {at} to {to_at}, {length}"),
                copy(&from, at, &from, to_at, length, 0),
            );
        }
        for flags in [1, 2, 4, 1 << 31, u32::MAX] {
            answers.note(format!("copy with {flags}"), copy(&from, 0, &to, 0, 10, flags));
        }
        let (reader, here) = (File::open(dir.join("to")).unwrap(), File::open(dir).unwrap());
        answers.note("copy to no writer", copy(&from, 0, &reader, 0, 10, 0));
        answers.note("copy of a directory", copy(&here, 0, &to, 0, 10, 0));
        let append = OFlag::O_WRONLY | OFlag::O_APPEND;
        let append = File::from(open(&dir.join("to"), append, Bits::empty()).unwrap());
        answers.note("copy to the end", copy(&from, 0, &append, 0, 10, 0));
        drop((from, to, append));
        for name in ["from", "to"] {
            answers.note("the bytes", Ok(sys::sum(&fs::read(dir.join(name)).unwrap())));
        }
    });
}

fn flags_of_open(t: &Tree) {
    // O_TMPFILE is not supported here, and O_ASYNC and the like mean nothing for files.
    const FLAGS: [i32; 14] = [
        libc::O_CREAT,
        libc::O_EXCL,
        libc::O_TRUNC,
        libc::O_APPEND,
        libc::O_DIRECTORY,
        libc::O_NOFOLLOW,
        libc::O_PATH,
        libc::O_SYNC,
        libc::O_DSYNC,
        libc::O_NOATIME,
        libc::O_NONBLOCK,
        libc::O_CLOEXEC,
        libc::O_NOCTTY,
        libc::O_LARGEFILE,
    ];
    const PLACES: [&str; 10] = [
        "file",
        "file/",
        "dir",
        "dir/",
        "nothing",
        "nothing/",
        "to-file",
        "to-dir",
        "to-nothing",
        "to-itself",
    ];
    let prepare = |dir: &Path| {
        let _ = fs::remove_dir_all(dir.join("d"));
        fs::create_dir_all(dir.join("d/dir")).unwrap();
        fs::write(dir.join("d/file"), "0123456789").unwrap();
        for (link, to) in
            [("to-file", "file"), ("to-dir", "dir"), ("to-nothing", "none"), ("to-itself", "to-itself")]
        {
            std::os::unix::fs::symlink(to, dir.join("d").join(link)).unwrap();
        }
    };
    for seed in 1..=3_u64 {
        same(t, |dir, answers| {
            prepare(dir);
            for dice in noise(seed, 8 * 300).chunks_exact(8) {
                let dice = u64::from_le_bytes(dice.try_into().unwrap());
                // Few flags at a time, as many at once are nearly always refused.
                let chosen = (0..14).filter(|bit| dice >> (2 * bit) & 3 == 0).map(|bit| FLAGS[bit as usize]);
                let flags = chosen.fold((dice >> 40) as i32 & 3, |all, one| all | one);
                let place = PLACES[(dice >> 50) as usize % PLACES.len()];
                let path = dir.join("d").join(place);
                let opened = open(&path, OFlag::from_bits_retain(flags), Bits::from_bits_truncate(0o644));
                answers.note(
                    format!("seed {seed}: open {place} {flags:#o}"),
                    opened.as_ref().map(drop).map_err(|e| *e),
                );
                if let Ok(descriptor) = opened {
                    let file = File::from(descriptor);
                    answers.note("  read", nix::unistd::read(&file, &mut [0; 3]));
                    answers.note("  write", nix::unistd::write(&file, b"ab"));
                    answers.note(
                        "  size",
                        Ok(file.metadata().map(|m| if m.is_dir() { 0 } else { m.len() }).ok()),
                    );
                }
                if flags & (libc::O_CREAT | libc::O_TRUNC) != 0 || flags & libc::O_ACCMODE != 0 {
                    prepare(dir);
                }
            }
        });
    }
}

fn names_of_all_bytes(t: &Tree) {
    same(t, |dir, answers| {
        let names = (1..=255_u8).filter(|byte| *byte != b'/').map(|byte| vec![byte]);
        let odd =
            [&b"\xff\xfe\xfd"[..], b"\xc3\x28", b"..x", b"...", b" ", b"a\nb", b"-rf", b"\xe2\x82", b".\xff"];
        let names: Vec<Vec<u8>> = names.chain(odd.map(<[u8]>::to_vec)).collect();
        let path = |name: &[u8]| dir.join(OsStr::from_bytes(name));
        for name in &names {
            // Not by fs::write, which would empty `.`.
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            answers.note(format!("create {name:?}"), open(&path(name), flags, Bits::S_IRWXU).map(drop));
        }
        let mut listed: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        listed.sort();
        answers.note("the list", Ok(listed));
        for name in &names {
            answers
                .note(format!("stat {name:?}"), errno(fs::symlink_metadata(path(name))).map(|m| m.is_file()));
            answers.note("  rename", errno(fs::rename(path(name), path(&[name.as_slice(), b"+"].concat()))));
            answers.note("  unlink", errno(fs::remove_file(path(&[name.as_slice(), b"+"].concat()))));
        }
        for name in [".", "..", "", "./.", "x/..", "./x/"] {
            let path = dir.join(name);
            answers.note(format!("mkdir {name:?}"), errno(fs::create_dir(&path)));
            answers.note("  rmdir", errno(fs::remove_dir(path)));
            fs::create_dir(dir.join("x")).ok();
        }
        let here = dir.join("x/.");
        answers.note("rmdir of .", errno(fs::remove_dir(&here)));
        answers.note("rename of .", errno(fs::rename(&here, dir.join("y"))));
        answers.note("unlink of .", errno(fs::remove_file(&here)));
    });
}

fn lengths_of_names(t: &Tree) {
    same(t, |dir, answers| {
        fs::write(dir.join("file"), "x").unwrap();
        for length in [1, 254, 255, 256, 300, 4094, 4095, 5000] {
            for letter in ["n", "\u{e9}"] {
                let path = dir.join(letter.repeat(length / letter.len()));
                answers.note(format!("mkdir {length} {letter}"), errno(fs::create_dir(&path)));
                answers.note("  stat", errno(fs::metadata(&path)).map(drop));
                answers.note("  rmdir", errno(fs::remove_dir(&path)));
                answers.note("  link", errno(fs::hard_link(dir.join("file"), &path)));
                answers.note("  unlink", errno(fs::remove_file(&path)));
                answers.note("  symlink", errno(std::os::unix::fs::symlink("x", &path)));
                answers.note("  rename", errno(fs::rename(&path, dir.join("moved"))));
                answers.note("  rename back", errno(fs::rename(dir.join("moved"), &path)));
                answers.note("  unlink", errno(fs::remove_file(&path)));
            }
        }
        // Deeper than any path can tell: each step starts where the last one ended.
        let mut at = File::open(dir).unwrap();
        for depth in 0..300 {
            let name = format!("{depth:0100}");
            nix::sys::stat::mkdirat(&at, name.as_str(), Bits::S_IRWXU).unwrap();
            at = File::from(
                nix::fcntl::openat(&at, name.as_str(), OFlag::O_DIRECTORY, Bits::empty()).unwrap(),
            );
        }
        let made = nix::fcntl::openat(&at, "file", OFlag::O_CREAT | OFlag::O_RDWR, Bits::S_IRWXU);
        answers.note("a file at the bottom", made.map(|fd| pwrite(fd, b"deep", 0)));
        answers.note(
            "its directory by path",
            errno(fs::read_dir(dir.join(format!("{:0100}", 0)))).map(Iterator::count),
        );
        answers.note("all of it", errno(fs::remove_dir_all(dir.join(format!("{:0100}", 0)))));
    });
}

fn flags_of_rename(t: &Tree) {
    same(t, |dir, answers| {
        // 4, to leave a whiteout, is not supported here.
        for flags in [0, 1, 2, 3, 6, 7, 8, 16, 1 << 31, u32::MAX] {
            for (from, to) in [
                ("a", "b"),
                ("a", "a"),
                ("a", "d"),
                ("d", "a"),
                ("d", "none"),
                ("none", "a"),
                ("d", "d/x"),
                ("a", "a/x"),
            ] {
                fs::write(dir.join("a"), "a").unwrap();
                fs::write(dir.join("b"), "b").unwrap();
                fs::create_dir_all(dir.join("d")).unwrap();
                let renamed = sys::rename_raw(&dir.join(from), &dir.join(to), flags);
                answers.note(format!("rename {from} {to} {flags}"), renamed);
                let mut left: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
                left.sort();
                answers.note("  left", Ok(left));
                for name in ["a", "b", "d", "none"] {
                    let path = dir.join(name);
                    let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
                }
            }
        }
    });
}

fn targets_of_links(t: &Tree) {
    same(t, |dir, answers| {
        let targets = [0, 1, 255, 256, 1000, 4094, 4095, 4096, 5000].map(|length| vec![b't'; length]);
        let odd = [&b"\xff\xfe"[..], b"/", b"//", b"a\nb", b"../../../../../.."];
        for (i, target) in targets.iter().map(Vec::as_slice).chain(odd).enumerate() {
            let path = dir.join(format!("link{i}"));
            let made = std::os::unix::fs::symlink(OsStr::from_bytes(target), &path);
            answers.note(format!("symlink of {} bytes", target.len()), errno(made));
            answers.note("  readlink", errno(fs::read_link(&path)));
            answers.note("  size", errno(fs::symlink_metadata(&path)).map(|meta| meta.len()));
        }
    });
}

fn attributes_of_all_names(t: &Tree) {
    same(t, |dir, answers| {
        let path = dir.join("file");
        fs::write(&path, "x").unwrap();
        for byte in 1..=255_u8 {
            let name = [b"user.", [byte].as_slice()].concat();
            answers
                .note(format!("setxattr {byte}"), sys::setxattr(&path, OsStr::from_bytes(&name), &[byte], 0));
            answers.note("  the list", sys::listxattr(&path));
            answers.note("  removexattr", sys::removexattr(&path, OsStr::from_bytes(&name)));
        }
        for name in [
            "",
            "user",
            "user.",
            ".",
            "user..",
            "trusted",
            "system.",
            "system.nonsense",
            "nonsense.x",
            "USER.x",
        ] {
            answers.note(format!("getxattr {name:?}"), sys::getxattr(&path, name));
            answers.note("  removexattr", sys::removexattr(&path, name));
        }
        for flags in [1, 2, 3, 4, -1] {
            let answer = sys::setxattr(&path, "user.flag", b"v", flags);
            answers.note(format!("setxattr with {flags}"), answer);
        }
        answers.note("an empty value", sys::setxattr(&path, "user.empty", b"", 0));
        answers.note("  and back", sys::getxattr(&path, "user.empty"));
    });
}

fn positions_in_directories(t: &Tree) {
    for i in 0..20 {
        t.file(format!("f{i}"), "x");
    }
    let dir = File::open(t.dir()).unwrap();
    for offset in EDGES {
        match sys::seek_raw(&dir, offset, libc::SEEK_SET) {
            Ok(_) => {
                // Whatever is listed from a position that nobody was told is there.
                for entry in sys::getdents(&dir, 4096).unwrap() {
                    assert!(t.path(OsStr::from_bytes(&entry.name)).exists());
                }
            }
            Err(why) => assert_eq!(why, Errno::EINVAL, "{offset}"),
        }
    }
    for size in [0, 1, 23] {
        sys::seek_raw(&dir, 0, libc::SEEK_SET).unwrap();
        let why = sys::getdents(&dir, size).expect_err("no entry fits");
        assert_eq!(why, Errno::EINVAL, "a page of {size} bytes");
    }
    assert_eq!(fs::read_dir(t.dir()).unwrap().count(), 20);
}

fn commands_of_files(t: &Tree) {
    same(t, |dir, answers| {
        fs::create_dir(dir.join("dir")).unwrap();
        for file in [worked_on(dir, "file"), File::open(dir.join("dir")).unwrap()] {
            // Requests for a terminal, a socket, a block device, and for nobody.
            for request in [0, 0x5401, 0x8905, 0x1268, 0xdead, 0xdead_beef, 0x4004_0000] {
                answers.note(format!("ioctl {request:#x}"), sys::ioctl_raw(&file, request));
            }
            for command in [-1, 3, 8, 9, 10, 99, 1031, 1032, 1034, 9999, i32::MAX, i32::MIN] {
                answers.note(format!("fcntl {command}"), sys::fcntl_raw(&file, command, 0));
            }
        }
    });
}

fn times(t: &Tree) {
    let path = t.file("file", "x");
    let far = [i64::MIN, i64::MIN + 1, -1 << 40, -1, 0, 1 << 31, 1 << 32, 1 << 40, i64::MAX - 1, i64::MAX];
    for seconds in far {
        for nanoseconds in [0, 1, 999_999_999] {
            // How far times reach is the file system's own; what cannot be kept is the nearest that can.
            sys::set_times(&path, seconds, nanoseconds).unwrap();
            let kept = sys::mtime(&path);
            let near = seconds.clamp(i64::MIN / 1_000_000_000, i64::MAX / 1_000_000_000);
            assert!((kept - near).abs() <= 1, "{seconds}: {kept}");
        }
    }
    sys::set_times(&path, 0, 1_000_000_000).expect_err("no such nanosecond");
    sys::set_times(&path, 0, -1).expect_err("no such nanosecond");
    t.remount();
    assert!(fs::metadata(&path).is_ok());
}

fn kinds_of_nodes(t: &Tree) {
    same(t, |dir, answers| {
        for kind in 0..16 {
            for bits in [0, 0o644, 0o7777] {
                for device in [0, makedev(1, 3), makedev(4095, 255), makedev(4095, 1_048_575)] {
                    let (path, kind) = (dir.join("node"), SFlag::from_bits_retain(kind << 12));
                    let made = mknod(&path, kind, Bits::from_bits_retain(bits), device);
                    answers.note(format!("mknod {kind:?} {bits:o} {device:x}"), made);
                    use std::os::unix::fs::MetadataExt;
                    let kept = errno(fs::symlink_metadata(&path))
                        .map(|meta| (meta.mode(), meta.rdev(), meta.nlink()));
                    answers.note("  kept", kept);
                    let _ = fs::remove_file(&path);
                }
            }
        }
    });
}
