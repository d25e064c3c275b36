//! A file system on a loop device whose image is a file that a FUSE helper serves and records.
//!
//! The helper is this test program, started once more as a process of its own: when it is killed the kernel fails
//! everything that waits for it, so no test can hang on its own device. It answers one request at a time, so that the
//! order of the recording is the order in which things happened, and it never touches what is mounted from its image.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::recording::{Kind, RECORD_BYTES, Record, Recording, now};
use crate::harness::{command, eventually, is_mountpoint, run_command, scratch};

/// Tells the helper which directory holds its files.
const VARIABLE: &str = "DEPOTFS_TEST_DEVICE";

/// Sparse; what is written to it has to be read again for each state.
const IMAGE_BYTES: u64 = 1 << 30;

/// What the device is formatted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

impl FileSystem {
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
        }
    }

    fn format(self, image: &str) {
        let mut make = match self {
            // Nothing is left for later, which would be recorded as writes of nobody's.
            FileSystem::Ext4 => {
                command("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image])
            }
            FileSystem::Xfs => command("mkfs.xfs", &["-q", "-f", "-K", image]),
            FileSystem::Btrfs => command("mkfs.btrfs", &["-q", "-f", "-K", image]),
        };
        run_command(&mut make).ok();
    }

    /// Mounts a device or an image. A kernel that discards by itself would only lengthen the recording.
    pub fn mount(self, from: &str, options: &str, at: &Path) {
        let own = if self == FileSystem::Btrfs { "nodiscard" } else { "" };
        let options: Vec<&str> = [own, options].into_iter().filter(|o| !o.is_empty()).collect();
        let options = if options.is_empty() { "defaults".to_owned() } else { options.join(",") };
        let args = ["-t", self.name(), "-o", &options, from, at.to_str().unwrap()];
        run_command(&mut command("mount", &args)).ok();
    }
}

/// A mounted file system whose device is being recorded.
pub struct Device {
    scratch: Option<TempDir>,
    helper: Child,
    records: File,
    loop_device: String,
}

impl Device {
    pub fn new(file_system: FileSystem) -> Device {
        let scratch = scratch();
        let at = |name: &str| scratch.path().join(name);
        let base = at("base");
        File::create(&base).unwrap().set_len(IMAGE_BYTES).unwrap();
        file_system.format(base.to_str().unwrap());
        copy_sparse(&base, &at("image"));
        for dir in ["served", "disk"] {
            fs::create_dir(at(dir)).unwrap();
        }
        for file in ["records", "data"] {
            File::create(at(file)).unwrap();
        }
        let mut device = Device {
            records: File::open(at("records")).unwrap(),
            helper: start_helper(scratch.path()),
            scratch: Some(scratch),
            loop_device: String::new(),
        };
        let served = device.path("served/image");
        eventually("the helper to serve its image", || served.exists());
        let found = command("losetup", &["--find", "--show", "--direct-io=on", served.to_str().unwrap()]);
        device.loop_device = run_command(&mut { found }).ok().trim().to_owned();
        let direct = ["--noheadings", "--output", "DIO", &device.loop_device];
        // Through the page cache, the order of the writes would be the cache's.
        assert_eq!(
            run_command(&mut command("losetup", &direct)).ok().trim(),
            "1",
            "direct I/O of the loop device"
        );
        file_system.mount(&device.loop_device, "", &device.disk());
        device
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.as_ref().unwrap().path().join(name)
    }

    /// Where the file system is mounted.
    pub fn disk(&self) -> PathBuf {
        self.path("disk")
    }

    /// How many writes and flushes have been recorded.
    pub fn position(&self) -> usize {
        self.records.metadata().unwrap().size() as usize / RECORD_BYTES
    }

    /// Ends a test that hangs: whatever waits for the device fails from now on.
    pub fn break_down(&self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.helper.id() as i32), Signal::SIGKILL);
    }

    /// Unmounts, and gives what was recorded.
    pub fn stop(mut self) -> Recording {
        run_command(&mut command("umount", &[self.disk().to_str().unwrap()])).ok();
        run_command(&mut command("losetup", &["--detach", &self.loop_device])).ok();
        self.loop_device.clear();
        run_command(&mut command("umount", &[self.path("served").to_str().unwrap()])).ok();
        self.helper.wait().unwrap();
        Recording::read(self.scratch.take().unwrap())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let Some(scratch) = &self.scratch else { return };
        // From the top down; what is stuck comes loose when the helper is gone.
        let disk = scratch.path().join("disk");
        let served = scratch.path().join("served");
        if is_mountpoint(&disk) {
            run_command(&mut command("umount", &["-l", disk.to_str().unwrap()]));
        }
        if !self.loop_device.is_empty() {
            run_command(&mut command("losetup", &["--detach", &self.loop_device]));
        }
        if is_mountpoint(&served) {
            run_command(&mut command("umount", &["-l", served.to_str().unwrap()]));
        }
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}

/// Copies an image; holes stay holes.
pub fn copy_sparse(from: &Path, to: &Path) {
    let args = ["--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()];
    run_command(&mut command("cp", &args)).ok();
}

fn start_helper(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "powercut::device::helper", "--ignored", "--test-threads=1"])
        .env(VARIABLE, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The helper's process, when `Device` starts it; nothing otherwise.
#[test]
#[ignore = "a part of other tests"]
fn helper() {
    let Some(dir) = std::env::var_os(VARIABLE) else { return };
    // It has no purpose without who started it.
    set_pdeathsig(Signal::SIGKILL).unwrap();
    let dir = Path::new(&dir);
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(dir.join(name)).unwrap();
    let tape = Tape { image: open("image"), records: open("records"), data: open("data"), place: 0 };
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::FSName("depotfs-test-device".into())];
    let session = fuser::Session::new(Served(Mutex::new(tape)), dir.join("served"), &config).unwrap();
    session.run().unwrap();
}

/// The image, and what was done to it.
struct Tape {
    image: File,
    records: File,
    data: File,
    place: u64,
}

impl Tape {
    /// A call is recorded before it is answered, its bytes before the record that names them.
    fn record(&mut self, kind: Kind, offset: u64, len: u64, bytes: &[u8]) -> std::io::Result<()> {
        let place = self.place;
        self.data.write_all(bytes)?;
        self.place += bytes.len() as u64;
        self.records.write_all(&Record { kind, offset, len, place, time: now() }.to_bytes())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.image.write_all_at(bytes, offset)?;
        if bytes.iter().all(|b| *b == 0) {
            return self.record(Kind::Zero, offset, bytes.len() as u64, &[]);
        }
        self.record(Kind::Write, offset, bytes.len() as u64, bytes)
    }

    fn zero(&mut self, offset: u64, len: u64) -> std::io::Result<()> {
        super::recording::punch(&self.image, offset, len)?;
        self.record(Kind::Zero, offset, len, &[])
    }
}

/// A directory with one file, the image.
struct Served(Mutex<Tape>);

const IMAGE: INodeNo = INodeNo(2);
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

fn attributes(ino: INodeNo) -> FileAttr {
    let is_image = ino == IMAGE;
    FileAttr {
        ino,
        size: if is_image { IMAGE_BYTES } else { 0 },
        blocks: if is_image { IMAGE_BYTES / 512 } else { 0 },
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_image { FileType::RegularFile } else { FileType::Directory },
        perm: if is_image { 0o600 } else { 0o700 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}

fn answer(reply: ReplyEmpty, done: std::io::Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(_) => reply.error(Errno::EIO),
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("image") => reply.entry(&FOR_EVER, &attributes(IMAGE), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = u64::from(size).min(IMAGE_BYTES.saturating_sub(offset));
        let mut bytes = vec![0; size as usize];
        match self.0.lock().unwrap().image.read_exact_at(&mut bytes, offset) {
            Ok(()) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.lock().unwrap().write(offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.0.lock().unwrap().record(Kind::Flush, 0, 0, &[]));
    }

    /// Discards and the writing of zeroes, which the loop device asks for so.
    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.0.lock().unwrap().zero(offset, length));
    }
}
