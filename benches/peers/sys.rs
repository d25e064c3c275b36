//! The machine: page cache, device flushes, processor time, and the system calls that std does not have.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr;

use anyhow::{Context, Result};

/// Forgets everything that the kernel keeps of files: pages, dentries and inodes.
pub fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("the kernel's caches cannot be dropped (not root?)")
}

/// Brings everything written so far to the disk of `path`.
pub fn sync_disk(path: &Path) -> Result<()> {
    nix::unistd::syncfs(File::open(path)?).context("syncfs")
}

/// How often the device below `path` was told to empty its cache, since the machine was started; by anybody.
///
/// `None` where the file system has no device that counts.
pub fn flushes(path: &Path) -> Option<u64> {
    let device = fs::metadata(path).ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let disk = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // The kernel counts them for whole disks.
    let whole =
        if disk.join("partition").exists() { disk.canonicalize().ok()?.parent()?.to_owned() } else { disk };
    let stat = fs::read_to_string(whole.join("stat")).ok()?;
    stat.split_whitespace().nth(15)?.parse().ok()
}

/// Processor time that a process has used so far, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the daemon is gone")?;
    // The second field is a name in parentheses that may hold anything.
    let after = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    // SAFETY: takes a number and gives one.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / ticks_per_second as f64)
}

/// Memory of a process that is in use, in bytes.
pub fn resident_bytes(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the daemon is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
    Ok(kib * 1024.0)
}

/// Asks for the space of a file system, which no cache answers.
pub fn statfs(path: &Path) -> Result<()> {
    nix::sys::statfs::statfs(path).map(drop).with_context(|| format!("statfs {}", path.display()))
}

/// The whole of a file through a mapping, copied out page by page; gives the bytes seen.
pub fn read_mapped(file: &File, buffer: &mut [u8]) -> io::Result<u64> {
    let len = file.metadata()?.len() as usize;
    // SAFETY: a fresh read-only mapping at an address of the kernel's choosing.
    let start =
        unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut at = 0;
    while at < len {
        let n = buffer.len().min(len - at);
        // SAFETY: `at + n` is within the mapping, which does not overlap the buffer, and nobody cuts the file meanwhile.
        unsafe { ptr::copy_nonoverlapping(start.cast::<u8>().add(at), buffer.as_mut_ptr(), n) };
        std::hint::black_box(&buffer);
        at += n;
    }
    // SAFETY: the mapping made above, used no more.
    unsafe { libc::munmap(start, len) };
    Ok(len as u64)
}

/// One page of a listing.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Entries in it, `.` and `..` included; 0 at the end.
    pub entries: u64,
    /// Where the next page starts.
    pub next: i64,
}

/// Reads the page of a directory that starts at `offset`.
pub fn list_page(directory: &File, offset: i64, buffer: &mut [u8]) -> io::Result<Page> {
    let fd = directory.as_raw_fd();
    // SAFETY: moves the position of an open descriptor.
    if unsafe { libc::lseek(fd, offset, libc::SEEK_SET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel writes at most `buffer.len()` bytes into the live buffer.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    let filled = n as usize;
    let (mut at, mut page) = (0, Page { entries: 0, next: offset });
    // struct linux_dirent64: d_ino (8 bytes), d_off (8), d_reclen (2), d_type (1), d_name.
    while at < filled {
        let field = |from: usize, to: usize| &buffer[at + from..at + to];
        page.next = i64::from_ne_bytes(field(8, 16).try_into().unwrap_or_default());
        page.entries += 1;
        at += usize::from(u16::from_ne_bytes(field(16, 18).try_into().unwrap_or_default())).max(1);
    }
    Ok(page)
}

/// Makes an empty file without opening it.
pub fn make_node(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: a path that ends in a zero byte.
    match unsafe { libc::mknod(path.as_ptr(), libc::S_IFREG | 0o644, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets this process have as many open files as it may.
pub fn raise_open_files() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills in, and then reads, a live structure.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
        }
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()).context("the limit on open files") }
}
