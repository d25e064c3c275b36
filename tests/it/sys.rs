//! System calls that std and nix do not wrap: mappings, credentials of one thread, extended attributes, raw listings.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use nix::errno::Errno;

type Result<T> = std::result::Result<T, Errno>;

fn c(path: impl AsRef<OsStr>) -> CString {
    CString::new(path.as_ref().as_bytes()).unwrap()
}

/// Gives the calling thread (alone) the ids of an ordinary user, for good. Programs it starts inherit them.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) {
    // SAFETY: plain system calls on values and a live slice; the raw forms act on this thread only.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), 0, "setgroups");
        assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0, "setresgid");
        assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0, "setresuid");
    }
}

/// A mapping of a file, unmapped on drop.
pub struct Map {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping is memory of the process; every access goes through volatile reads and writes.
unsafe impl Send for Map {}
// SAFETY: as above; races between threads are the very thing some tests are about, and bytes are all that is exchanged.
unsafe impl Sync for Map {}

impl Map {
    fn new(file: &File, len: usize, prot: i32, flags: i32) -> Result<Map> {
        // SAFETY: a fresh mapping at an address of the kernel's choosing.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Map { start: start.cast(), len })
    }

    pub fn shared(file: &File, len: usize) -> Result<Map> {
        Map::new(file, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
    }

    pub fn shared_readonly(file: &File, len: usize) -> Result<Map> {
        Map::new(file, len, libc::PROT_READ, libc::MAP_SHARED)
    }

    pub fn private(file: &File, len: usize) -> Result<Map> {
        Map::new(file, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
    }

    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: inside the mapping, checked above.
        (at..at + len).map(|i| unsafe { self.start.add(i).read_volatile() }).collect()
    }

    /// As `read`, but EFAULT instead of SIGBUS where the file has ended: the kernel is asked to fetch the bytes.
    pub fn peek(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        assert!(at + len <= self.len);
        // SAFETY: a constant name; the range is inside the mapping, checked above; the descriptor is the one just made.
        unsafe {
            let fd = Errno::result(libc::memfd_create(c"peek".as_ptr(), libc::MFD_CLOEXEC))?;
            let file = <File as std::os::fd::FromRawFd>::from_raw_fd(fd);
            let n = Errno::result(libc::pwrite(fd, self.start.add(at).cast(), len, 0))? as usize;
            let mut bytes = vec![0; n];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
            if n == len { Ok(bytes) } else { Err(Errno::EFAULT) }
        }
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        for (i, b) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping, checked above.
            unsafe { self.start.add(at + i).write_volatile(*b) }
        }
    }

    pub fn sync(&self) -> Result<()> {
        // SAFETY: the range is this mapping.
        Errno::result(unsafe { libc::msync(self.start.cast(), self.len, libc::MS_SYNC) }).map(drop)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and nobody uses it any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// A buffer that O_DIRECT takes: its start is aligned to a page.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub fn filled(byte: u8, len: usize) -> Aligned {
        let bytes = vec![byte; len + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Aligned { bytes, start, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

pub const XATTR_CREATE: i32 = libc::XATTR_CREATE;
pub const XATTR_REPLACE: i32 = libc::XATTR_REPLACE;

pub fn setxattr(path: impl AsRef<Path>, name: impl AsRef<OsStr>, value: &[u8], flags: i32) -> Result<()> {
    let (path, name) = (c(path.as_ref()), c(name));
    // SAFETY: both strings end in NUL, the value is passed with its length.
    let done =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    Errno::result(done).map(drop)
}

pub fn getxattr(path: impl AsRef<Path>, name: &str) -> Result<Vec<u8>> {
    let mut value = vec![0; 70_000];
    let len = getxattr_into(path, name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

pub fn getxattr_into(path: impl AsRef<Path>, name: &str, value: &mut [u8]) -> Result<usize> {
    let (path, name) = (c(path.as_ref()), c(name));
    // SAFETY: both strings end in NUL, the buffer is passed with its length.
    let len =
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    Errno::result(len).map(|len| len as usize)
}

pub fn listxattr(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let mut names = vec![0; 70_000];
    let len = listxattr_into(path, &mut names)?;
    let names = names[..len].split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut names: Vec<_> = names.map(|n| String::from_utf8_lossy(n).into_owned()).collect();
    names.sort();
    Ok(names)
}

pub fn listxattr_into(path: impl AsRef<Path>, names: &mut [u8]) -> Result<usize> {
    let path = c(path.as_ref());
    // SAFETY: the string ends in NUL, the buffer is passed with its length.
    let len = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    Errno::result(len).map(|len| len as usize)
}

pub fn removexattr(path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> Result<()> {
    let (path, name) = (c(path.as_ref()), c(name));
    // SAFETY: both strings end in NUL.
    Errno::result(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// One entry as getdents64 gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Dirent {
    pub ino: u64,
    /// Where lseek resumes the listing after this entry.
    pub next: i64,
    pub kind: u8,
    pub name: Vec<u8>,
}

/// One page of a listing of at most `size` bytes; empty at the end.
pub fn getdents(dir: impl AsFd, size: usize) -> Result<Vec<Dirent>> {
    let mut page = vec![0u8; size];
    let fd = dir.as_fd().as_raw_fd();
    // SAFETY: the buffer is passed with its length.
    let len = unsafe { libc::syscall(libc::SYS_getdents64, fd, page.as_mut_ptr(), page.len()) };
    let len = Errno::result(len)? as usize;
    let mut entries = Vec::new();
    let mut at = 0;
    while at < len {
        let field = |from: usize, to: usize| &page[at + from..at + to];
        let reclen = usize::from(u16::from_ne_bytes(field(16, 18).try_into().unwrap()));
        let name = field(19, reclen).split(|b| *b == 0).next().unwrap();
        entries.push(Dirent {
            ino: u64::from_ne_bytes(field(0, 8).try_into().unwrap()),
            next: i64::from_ne_bytes(field(8, 16).try_into().unwrap()),
            kind: page[at + 18],
            name: name.to_vec(),
        });
        at += reclen;
    }
    Ok(entries)
}

/// Runs `work` in a forked child and returns what it returned, 0 to 127.
///
/// The child of a process with threads may only make system calls, so `work` must not allocate, lock or panic.
pub fn in_child(work: impl FnOnce() -> u8) -> u8 {
    // SAFETY: the child runs `work`, which keeps to the rule above, and leaves with _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let code = work();
        // SAFETY: ends the child without running anything of its parent's.
        unsafe { libc::_exit(i32::from(code)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made, into a local.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child ended by signal {}", libc::WTERMSIG(status));
    libc::WEXITSTATUS(status) as u8
}

/// A lock request of fcntl(2) on a range of bytes.
pub fn range_lock(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

/// Whether statx(2) knows when the file was made.
pub fn has_birth_time(path: &Path) -> bool {
    let path = c(path);
    // SAFETY: statx is plain data, for which zeroes are a value; the call fills it in.
    unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        assert_eq!(libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, libc::STATX_BTIME, &mut found), 0);
        found.stx_mask & libc::STATX_BTIME != 0
    }
}

/// The clone request of `cp --reflink`.
pub fn reflink(from: &File, to: &File) -> Result<()> {
    // SAFETY: FICLONE takes a descriptor.
    Errno::result(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) }).map(drop)
}

/// The inode flags of chattr(1).
pub fn inode_flags(file: &File) -> Result<i32> {
    let mut flags = 0;
    // SAFETY: the request writes one int.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) }).map(|_| flags)
}

/// Sends `len` bytes from the start of one file to the other by sendfile(2).
pub fn sendfile(from: &File, to: &File, len: usize) -> Result<usize> {
    let mut offset = 0;
    // SAFETY: two live descriptors and a local offset.
    let sent = unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), &mut offset, len) };
    Errno::result(sent).map(|n| n as usize)
}

/// Sets a process's lock on a range; usable in a forked child.
pub fn set_lock(fd: i32, lock: &libc::flock) -> Result<()> {
    // SAFETY: one system call with a live pointer.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLK, lock) }).map(drop)
}

/// copy_file_range(2) with any numbers.
pub fn copy_range_raw(from: &File, at: i64, to: &File, to_at: i64, len: usize, flags: u32) -> Result<usize> {
    let (mut at, mut to_at) = (at, to_at);
    // SAFETY: two live descriptors and two local offsets.
    let n =
        unsafe { libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut to_at, len, flags) };
    Errno::result(n).map(|n| n as usize)
}

/// lseek(2) with any numbers.
pub fn seek_raw(file: &File, offset: i64, whence: i32) -> Result<i64> {
    // SAFETY: a call on numbers.
    Errno::result(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

/// renameat2(2) with any flags.
pub fn rename_raw(from: &Path, to: &Path, flags: u32) -> Result<()> {
    let (from, to) = (c(from), c(to));
    // SAFETY: both strings end in NUL.
    Errno::result(unsafe {
        libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)
    })
    .map(drop)
}

/// An ioctl(2) that takes a pointer to some bytes, whatever it is.
pub fn ioctl_raw(file: &File, request: u32) -> Result<i32> {
    let mut bytes = [0_u8; 4096];
    // SAFETY: no request of this suite writes more than the buffer has.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::Ioctl::from(request), bytes.as_mut_ptr()) })
}

/// fcntl(2) with any command.
pub fn fcntl_raw(file: &File, command: i32, argument: i32) -> Result<i32> {
    // SAFETY: the commands of this suite take a number, or refuse it as an address.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) })
}

/// Sets atime and mtime to any numbers.
pub fn set_times(path: &Path, seconds: i64, nanoseconds: i64) -> Result<()> {
    let (path, time) = (c(path), libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds });
    // SAFETY: the string ends in NUL, the array has two times.
    Errno::result(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), [time, time].as_ptr(), 0) })
        .map(drop)
}

/// Seconds of the mtime; std has no words for those that are far from 1970.
pub fn mtime(path: &Path) -> i64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().mtime()
}

/// A short name for some bytes.
pub fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// copy_file_range(2) at given offsets; how many bytes it copied.
pub fn copy_range(from: &File, at: i64, to: &File, to_at: i64, len: usize) -> Result<usize> {
    let (mut at, mut to_at) = (at, to_at);
    // SAFETY: two live descriptors and two local offsets.
    let n = unsafe { libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut to_at, len, 0) };
    Errno::result(n).map(|n| n as usize)
}

/// Makes an ext4 file system fail everything from now on, as a disk that was pulled out does.
pub fn shut_down(root: &File) {
    const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d;
    let without_flushing = 2_u32;
    // SAFETY: the request reads one u32.
    assert_eq!(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &without_flushing) }, 0, "shutdown");
}

/// Lets this process open up to `wanted` files where the system allows it; how many it may open besides some hundred.
pub fn raise_open_files(wanted: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls take a pointer to a live local.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        let enough = (wanted + 1000).min(limit.rlim_max);
        if limit.rlim_cur < enough {
            limit.rlim_cur = enough;
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
        }
    }
    limit.rlim_cur.saturating_sub(400)
}

/// The clock that file systems read for their times, in nanoseconds since 1970.
pub fn coarse_clock() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills in a live local.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut now) }, 0, "clock_gettime");
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
