//! Bytes of local files: sharing and copying them, pushing them to the disk, and what kind of file system they are on.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::fstatfs;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, ftruncate, lseek};

use super::offers::KERNEL_COPIES;

/// How much one call copies at most: keeps a copy interruptible, and the fallback's buffer small.
const COPY_BYTES: u64 = 1 << 30;
const BUFFER_BYTES: usize = 256 * 1024;

mod ioctl {
    //! The two calls of linux/fs.h that share blocks between files.
    nix::ioctl_write_int_bad!(ficlone, nix::request_code_write!(0x94, 9, size_of::<libc::c_int>()));
    nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, libc::file_clone_range);
}

/// Makes `to` share all blocks of `from` (FICLONE), replacing what `to` held.
///
/// Fails on file systems that cannot, and between two file systems; nothing is changed then.
pub fn clone(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    KERNEL_COPIES.check()?;
    // SAFETY: FICLONE takes the number of a descriptor and touches no memory; both descriptors are open for the call.
    unsafe { ioctl::ficlone(to.as_fd().as_raw_fd(), from.as_fd().as_raw_fd()) }?;
    Ok(())
}

/// Makes `length` bytes of `to` share the blocks of `from` (FICLONERANGE).
///
/// Offsets and length are multiples of the file system's block size, but for a length that ends at the end of `from`.
pub fn clone_range(
    from: impl AsFd,
    from_offset: u64,
    to: impl AsFd,
    to_offset: u64,
    length: u64,
) -> io::Result<()> {
    KERNEL_COPIES.check()?;
    let range = libc::file_clone_range {
        src_fd: i64::from(from.as_fd().as_raw_fd()),
        src_offset: from_offset,
        src_length: length,
        dest_offset: to_offset,
    };
    // SAFETY: the kernel reads one `file_clone_range`, which lives until the call returns, as do both descriptors.
    unsafe { ioctl::ficlonerange(to.as_fd().as_raw_fd(), &range) }?;
    Ok(())
}

/// Makes the empty file `to` hold the first `length` bytes of `from`: shared blocks where possible, else a copy that
/// keeps holes. `from` must be at least that long.
pub fn copy_start(from: impl AsFd, to: impl AsFd, length: u64) -> io::Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    // Whatever stopped the clone, the copy either works or has an error of its own.
    if clone(from, to).is_err() {
        copy_range(from, 0, to, 0, length)?;
    }
    ftruncate(to, signed(length)?)?;
    Ok(())
}

/// Copies what `from` holds in `length` bytes at `from_offset` to `to_offset` of `to`, skipping holes.
///
/// The range of `to` must be a hole or beyond its end, and a hole at the end of the range does not lengthen `to`.
/// Moves the cursor of `from`. A range that ends beyond the end of `from` is an error of kind `UnexpectedEof`.
pub fn copy_range(
    from: impl AsFd,
    from_offset: u64,
    to: impl AsFd,
    to_offset: u64,
    length: u64,
) -> io::Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let end = from_offset.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
    if length > 0 && signed(end)? > lseek(from, 0, Whence::SeekEnd)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut at = from_offset;
    while let Some((start, stop)) = next_data(from, at, end)? {
        copy_data(from, start, to, to_offset + (start - from_offset), stop - start)?;
        at = stop;
    }
    Ok(())
}

/// As [`copy_range`], over whatever the range of `to` holds: what are holes in `from` become holes there.
pub fn copy_range_over(
    from: impl AsFd,
    from_offset: u64,
    to: impl AsFd,
    to_offset: u64,
    length: u64,
) -> io::Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let end = from_offset.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
    if length > 0 && signed(end)? > lseek(from, 0, Whence::SeekEnd)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let punch = |start: u64, stop: u64| -> io::Result<()> {
        if start < stop {
            let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(to, how, signed(to_offset + (start - from_offset))?, signed(stop - start)?)?;
        }
        Ok(())
    };
    let mut at = from_offset;
    while let Some((start, stop)) = next_data(from, at, end)? {
        punch(at, start)?;
        copy_data(from, start, to, to_offset + (start - from_offset), stop - start)?;
        at = stop;
    }
    punch(at, end)
}

/// The first run of data in `at..end`; a file system that knows no holes has data everywhere.
fn next_data(file: impl AsFd, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    let file = file.as_fd();
    let start = match lseek(file, signed(at)?, Whence::SeekData) {
        Ok(start) => start as u64,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some((at, end))),
        Err(e) => return Err(e.into()),
    };
    if start >= end {
        return Ok(None);
    }
    let stop = lseek(file, signed(start)?, Whence::SeekHole)? as u64;
    Ok(Some((start, stop.min(end))))
}

/// Copies bytes in the kernel, or through memory where the two files do not allow that.
fn copy_data(
    from: impl AsFd,
    mut from_offset: u64,
    to: impl AsFd,
    mut to_offset: u64,
    mut length: u64,
) -> io::Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    while length > 0 {
        let ask = length.min(COPY_BYTES) as usize;
        let copied = match copy_in_kernel(from, from_offset, to, to_offset, ask) {
            Ok(n) => n,
            Err(e) if is_about_these_files(&e) => copy_through_memory(from, from_offset, to, to_offset, ask)?,
            Err(e) => return Err(e),
        };
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        from_offset += copied as u64;
        to_offset += copied as u64;
        length -= copied as u64;
    }
    Ok(())
}

/// One copy_file_range(2); how much it copied, 0 at the end of `from`.
fn copy_in_kernel(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    length: usize,
) -> io::Result<usize> {
    KERNEL_COPIES.check()?;
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    let (mut source, mut target) = (signed(from_offset)?, signed(to_offset)?);
    retry(|| {
        // SAFETY: the kernel reads and writes the two offsets, which live until the call returns, as do both
        // descriptors; it touches no other memory.
        let copied = unsafe { libc::copy_file_range(from, &mut source, to, &mut target, length, 0) };
        Errno::result(copied).map(|n| n as usize)
    })
}

/// Whether copy_file_range(2) refused this pair of files (other file systems, other kinds), and not for want of room.
fn is_about_these_files(error: &io::Error) -> bool {
    let refusals = [Errno::EXDEV, Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::EINVAL, Errno::EPERM];
    error.raw_os_error().is_some_and(|number| refusals.contains(&Errno::from_raw(number)))
}

/// Copies up to one buffer; how much it was, 0 at the end of `from`.
fn copy_through_memory(
    from: impl AsFd,
    from_offset: u64,
    to: impl AsFd,
    to_offset: u64,
    length: usize,
) -> io::Result<usize> {
    let mut buffer = vec![0; length.min(BUFFER_BYTES)];
    let at = signed(from_offset)?;
    let read = retry(|| pread(from.as_fd(), &mut buffer, at))?;
    write_all_at(to, &buffer[..read], to_offset)?;
    Ok(read)
}

/// Writes all of `bytes` at `offset`.
pub fn write_all_at(to: impl AsFd, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        let at = signed(offset + written as u64)?;
        written += retry(|| pwrite(to.as_fd(), &bytes[written..], at))?;
    }
    Ok(())
}

/// Calls again while signals interrupt.
fn retry<T, E: Into<io::Error>>(mut call: impl FnMut() -> Result<T, E>) -> io::Result<T> {
    loop {
        match call().map_err(Into::into) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// Starts writing the dirty pages of `file` to the disk and does not wait.
pub fn start_writeback(file: impl AsFd) -> io::Result<()> {
    sync_file_range(file, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes the dirty pages of `file`, waits for them, and reports an error of this or an earlier write of them that this
/// descriptor has not seen. Forces neither the disk's own cache nor the file's size and blocks: that is left to a flush.
pub fn wait_writeback(file: impl AsFd) -> io::Result<()> {
    let all =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file, all)
}

fn sync_file_range(file: impl AsFd, flags: libc::c_uint) -> io::Result<()> {
    retry(|| {
        // SAFETY: takes numbers only; the descriptor is open for the call.
        let result = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, flags) };
        Errno::result(result).map(drop)
    })
}

/// The type of a mounted file system, as mount(8) names it: `ext4`, `xfs`, `nfs4`, `fuse.sshfs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystemType(String);

impl FileSystemType {
    /// The type of the file system that `file` is on.
    pub fn of(file: impl AsFd) -> io::Result<FileSystemType> {
        match mounted_as(file.as_fd())? {
            Some(name) => Ok(FileSystemType(name)),
            None => Ok(FileSystemType(known_by_magic(fstatfs(file)?.filesystem_type().0))),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Whether other hosts may change it, or its locks and shared mappings may not be those of a local disk; nothing
    /// that SQLite writes belongs there. FUSE counts, but for those that serve a block device.
    pub fn is_network(&self) -> bool {
        const NETWORK: [&str; 15] = [
            "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "afs", "coda", "ncpfs",
            "lustre", "gpfs", "ocfs2", "gfs2",
        ];
        self.0 == "fuse" || self.0.starts_with("fuse.") || NETWORK.contains(&self.name())
    }
}

/// Finds the mount of `file` in the process's mount table; `None` where /proc does not tell.
fn mounted_as(file: impl AsFd) -> io::Result<Option<String>> {
    let told = |path: &str| match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    };
    let descriptor = told(&format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd()))?;
    let Some(id) = descriptor.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim) else {
        return Ok(None);
    };
    Ok(type_in_mountinfo(&told("/proc/self/mountinfo")?, id))
}

/// The type of mount `id`: the word after the lone dash of its line (proc_pid_mountinfo(5)).
fn type_in_mountinfo(table: &str, id: &str) -> Option<String> {
    let line = table.lines().find(|line| line.split(' ').next() == Some(id))?;
    line.split_once(" - ")?.1.split(' ').next().map(str::to_owned)
}

/// A name from statfs(2)'s number; the three ext share one, so it is not called by any of their names.
fn known_by_magic(magic: libc::__fsword_t) -> String {
    const KNOWN: [(i64, &str); 11] = [
        (libc::EXT4_SUPER_MAGIC, "ext"),
        (libc::XFS_SUPER_MAGIC, "xfs"),
        (libc::BTRFS_SUPER_MAGIC, "btrfs"),
        (libc::TMPFS_MAGIC, "tmpfs"),
        (libc::OVERLAYFS_SUPER_MAGIC, "overlay"),
        (libc::NFS_SUPER_MAGIC, "nfs"),
        (0xff53_4d42, "cifs"),
        (0xfe53_4d42, "smb3"),
        (0x0102_1997, "9p"),
        (0x00c3_6400, "ceph"),
        (libc::FUSE_SUPER_MAGIC, "fuse"),
    ];
    let known = KNOWN.iter().find(|(number, _)| *number == magic);
    known.map_or_else(|| format!("0x{magic:x}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_copy_keeps_holes_and_bytes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"head", 0).unwrap();
        from.write_all_at(b"tail", 600 * MIB).unwrap();
        from.set_len(900 * MIB).unwrap();
        copy_start(&from, &to, 800 * MIB).unwrap();
        let mut found = [0; 4];
        to.read_exact_at(&mut found, 600 * MIB).unwrap();
        assert_eq!(&found, b"tail");
        to.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"head");
        assert_eq!(to.metadata().unwrap().len(), 800 * MIB);
        assert!(to.metadata().unwrap().blocks() * 512 < MIB);
    }

    #[test]
    fn a_range_is_copied_to_another_offset() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"0123456789", 0).unwrap();
        copy_range(&from, 3, &to, 5, 4).unwrap();
        let mut found = [9; 9];
        to.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"\0\0\0\0\x003456");
        assert_eq!(copy_range(&from, 3, &to, 5, 8).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn bytes_pass_through_memory_where_the_kernel_does_not_copy() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes: Vec<u8> = (0..BUFFER_BYTES + 17).map(|i| i as u8).collect();
        from.write_all_at(&bytes, 0).unwrap();
        let first = copy_through_memory(&from, 0, &to, 0, bytes.len()).unwrap();
        assert_eq!(first, BUFFER_BYTES);
        assert_eq!(copy_through_memory(&from, first as u64, &to, first as u64, bytes.len()).unwrap(), 17);
        let mut found = vec![0; bytes.len()];
        to.read_exact_at(&mut found, 0).unwrap();
        assert!(found == bytes);
    }

    #[test]
    fn the_mount_table_names_the_type() {
        assert_eq!(FileSystemType::of(File::open("/proc/self").unwrap()).unwrap().name(), "proc");
        let table = "21 1 8:1 / / rw shared:1 - ext4 /dev/root rw\n22 21 0:40 / /mnt/a\\040b rw - fuse.sshfs h:/ rw\n";
        assert_eq!(type_in_mountinfo(table, "22").as_deref(), Some("fuse.sshfs"));
        assert_eq!(type_in_mountinfo(table, "2"), None);
        for (name, network) in [("ext4", false), ("fuseblk", false), ("fuse.rclone", true), ("nfs4", true)] {
            assert_eq!(FileSystemType(name.to_owned()).is_network(), network, "{name}");
        }
        assert_eq!(known_by_magic(libc::XFS_SUPER_MAGIC), "xfs");
        assert_eq!(known_by_magic(0x77), "0x77");
    }
}
