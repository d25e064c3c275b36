//! One local directory of a provider: whose it is, what its file system can, and how things in it are forced.
//!
//! Everything is reached through one descriptor of the directory, by paths relative to it: a directory that is unmounted
//! or replaced underneath is not confused with another one of that name.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use parking_lot::Mutex;

use super::error::{Doing, Error, Result};
use super::provider::Space;
use crate::change::MountId;
use crate::checksum::{hex, unhex};
use crate::failpoint;
use crate::sys::boot::mount_id;
use crate::sys::file::{self, FileSystemType};
use crate::text;

/// Where staging files are, below the directory.
pub(super) const PRE: &str = "_pre";
/// Where bytes are that could not be sealed.
pub(super) const ASIDE: &str = "_aside";
/// The file that carries the depot's id: 32 hex digits and a line feed.
pub(super) const MARKER: &str = ".depotfs";
/// More than any marker has.
const MARKER_BYTES_MAX: u64 = 4096;
/// The directory itself, as a path relative to it.
pub(super) const HERE: &str = ".";

/// From this many flushes on, one syncfs(2) takes the place of them.
///
/// Measured on ext4: 2 files of 4 KiB with their folders 0.50 ms and 4 flushes one by one, 0.23 ms and 1 flush together;
/// 256 files 48.5 ms and 512 flushes against 6.4 ms and 1. But syncfs also waits for what strangers wrote: with 1 GB of
/// theirs dirty, 300 to 520 ms against 1.4 ms for 8 files one by one. So one file alone never waits for strangers.
const TOGETHER_FROM: usize = 3;

/// A provider's directory.
#[derive(Debug)]
pub(super) struct Volume {
    path: PathBuf,
    root: File,
    file_system: FileSystemType,
    mount_id: MountId,
    failing: Mutex<Option<(Work, String)>>,
}

/// What a provider does with its disk; each takes all that the ones before it take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// Making a staging file.
    Stage,
    /// Forcing one.
    Force,
    /// Making a blob of one.
    Put,
}

/// A file to force.
pub(super) struct ToForce {
    /// Relative path.
    pub(super) path: String,
    /// Also what a crash may lose beside the bytes: mode, links (fsync instead of fdatasync).
    pub(super) whole: bool,
}

/// A force that failed.
pub(super) struct NotForced {
    /// Which of the files the disk refused; `None` when it is not one of them.
    pub(super) file: Option<usize>,
    /// How.
    pub(super) error: Error,
}

impl From<Error> for NotForced {
    fn from(error: Error) -> NotForced {
        NotForced { file: None, error }
    }
}

impl Volume {
    /// Makes the directory and the folders in it; `mark` ends the making.
    pub(super) fn create(path: &Path, folders: impl Iterator<Item = String>) -> Result<Volume> {
        fs::create_dir_all(path).doing("create", path)?;
        let volume = Volume::reach(path)?;
        for folder in [PRE, ASIDE] {
            volume.make_folder(folder, 0o700)?;
        }
        for folder in folders {
            volume.make_folder(&folder, 0o755)?;
        }
        Ok(volume)
    }

    /// Opens a directory that `mark` marked as this depot's.
    pub(super) fn open(path: &Path, depot_id: [u8; 16]) -> Result<Volume> {
        let volume = Volume::reach(path)?;
        volume.must_be_marked(depot_id)?;
        for folder in [PRE, ASIDE] {
            volume.make_folder(folder, 0o700)?;
        }
        volume.clear_temporaries()?;
        volume.must_link()?;
        Ok(volume)
    }

    /// Refuses what `open` does, as far as that is told without changing anything.
    pub(super) fn examine(path: &Path, depot_id: [u8; 16]) -> Result<()> {
        Volume::reach(path)?.must_be_marked(depot_id)
    }

    fn must_be_marked(&self, depot_id: [u8; 16]) -> Result<()> {
        match self.is_marked(depot_id)? {
            true => Ok(()),
            false => Err(self.no_depot(format!("it has no file {MARKER} (is its disk mounted?)"))),
        }
    }

    fn reach(path: &Path) -> Result<Volume> {
        let mut options = fs::OpenOptions::new();
        let root = match options.read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let why = "it does not exist (is its disk mounted?)".to_owned();
                return Err(Error::NotADepotDirectory { dir: path.to_owned(), why });
            }
            root => root.doing("open", path)?,
        };
        let file_system = FileSystemType::of(&root).doing("find the file system type of", path)?;
        let mount_id = mount_id(path).doing("find the mount of", path)?;
        Ok(Volume { path: path.to_owned(), root, file_system, mount_id, failing: Mutex::default() })
    }

    fn no_depot(&self, why: String) -> Error {
        Error::NotADepotDirectory { dir: self.path.clone(), why }
    }

    /// Whether the directory carries the depot's id; another depot's is an error.
    pub(super) fn is_marked(&self, depot_id: [u8; 16]) -> Result<bool> {
        let Some((marker, _)) = self.open_file(MARKER, OFlag::O_RDONLY)? else { return Ok(false) };
        let mut text = Vec::new();
        marker.take(MARKER_BYTES_MAX).read_to_end(&mut text).doing("read", self.at(MARKER))?;
        match unhex::<16>(String::from_utf8_lossy(&text).trim_end()) {
            Some(id) if id == depot_id => Ok(true),
            Some(id) => {
                Err(Error::Foreign { dir: self.path.clone(), found: hex(&id), expected: hex(&depot_id) })
            }
            None => Err(self.no_depot(format!("its file {MARKER} holds no id"))),
        }
    }

    /// Writes the depot's id; durable, like everything made in the directory before.
    pub(super) fn mark(&self, depot_id: [u8; 16]) -> Result<()> {
        let temporary = format!("{PRE}/{MARKER}.tmp");
        self.remove(&temporary)?;
        let mut marker = self.create_file(&temporary, 0o444)?;
        marker.write_all(format!("{}\n", hex(&depot_id)).as_bytes()).doing("write", self.at(&temporary))?;
        marker.sync_all().doing("force", self.at(&temporary))?;
        self.rename(&temporary, MARKER)?;
        self.force_folder(HERE)?;
        let above = self.path.join("..");
        File::open(&above).and_then(|dir| dir.sync_all()).doing("force", &above)
    }

    /// Removes what a crash left of steps that go through a temporary name; nobody else uses the directory meanwhile.
    fn clear_temporaries(&self) -> Result<()> {
        for name in self.names(PRE)?.unwrap_or_default() {
            if let Some(name) = name.to_str().filter(|name| name.ends_with(".tmp")) {
                self.remove(&format!("{PRE}/{name}"))?;
            }
        }
        Ok(())
    }

    /// Refuses a file system without hard links. A disk that is full or read-only is no reason to refuse it.
    fn must_link(&self) -> Result<()> {
        let (one, two) = (format!("{PRE}/link.tmp"), format!("{PRE}/links.tmp"));
        let linked = self.create_file(&one, 0o600).is_ok().then(|| self.try_link(&one, &two));
        self.end_trial(&[&two, &one])?;
        match linked {
            Some(Err(e))
                if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) =>
            {
                Err(Error::NoHardLinks { dir: self.path.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Tries whether files here can share blocks; `false` also when that could not be tried.
    pub(super) fn can_reflink(&self) -> Result<bool> {
        let (one, two) = (format!("{PRE}/share.tmp"), format!("{PRE}/shared.tmp"));
        let files = self.create_file(&one, 0o600).and_then(|a| Ok((a, self.create_file(&two, 0o600)?)));
        let shared = files.is_ok_and(|(a, b)| file::clone(&a, &b).is_ok());
        self.end_trial(&[&one, &two])?;
        Ok(shared)
    }

    /// Removes what a trial made. On a read-only disk it made nothing, and removing nothing is refused there.
    fn end_trial(&self, names: &[&str]) -> Result<()> {
        for name in names {
            if self.stat(name)?.is_some() {
                self.remove(name)?;
            }
        }
        Ok(())
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The boot and the mount of its disk.
    pub(super) fn mount_id(&self) -> MountId {
        self.mount_id
    }

    /// The whole path of a relative one.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    /// Type of its file system.
    pub(super) fn file_system(&self) -> &FileSystemType {
        &self.file_system
    }

    /// Room of its file system; `None` where what it answers cannot be.
    pub(super) fn space(&self) -> Result<Option<Space>> {
        let found = fstatvfs(&self.root).doing("find the free space of", &self.path)?;
        let blocks = [found.blocks(), found.blocks_free(), found.blocks_available()];
        let files = [found.files(), found.files_free()];
        Ok(believable(blocks, found.fragment_size(), files, self.file_system.is_network()))
    }

    /// Notes how a piece of work ended, for `failing`, and hands the outcome on.
    ///
    /// A call that the disk refused counts; what is wrong with a single file does not, nor that it is gone.
    pub(super) fn noted<T>(&self, work: Work, outcome: Result<T>) -> Result<T> {
        match &outcome {
            Err(error @ Error::Io { .. }) if !error.is_absent() => {
                *self.failing.lock() = Some((work, text::chain(error)));
            }
            Err(_) => {}
            Ok(_) => {
                let mut failing = self.failing.lock();
                if failing.as_ref().is_some_and(|(failed, _)| *failed <= work) {
                    *failing = None;
                }
            }
        }
        outcome
    }

    /// Why the disk does not work, as far as the last work on it tells.
    pub(super) fn failing(&self) -> Option<String> {
        self.failing.lock().as_ref().map(|(_, why)| why.clone())
    }

    /// Opens a regular file; `None` when there is no such name.
    pub(super) fn open_file(&self, path: &str, access: OFlag) -> Result<Option<(File, Metadata)>> {
        let file = match self.open_at(path, access | OFlag::O_NOFOLLOW, 0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.doing("open", self.at(path))?,
        };
        let metadata = file.metadata().doing("stat", self.at(path))?;
        if !metadata.is_file() {
            let odd = io::Error::new(io::ErrorKind::InvalidData, "not a regular file");
            return Err(odd).doing("open", self.at(path));
        }
        Ok(Some((file, metadata)))
    }

    /// Creates a file that did not exist, for reading and writing.
    pub(super) fn create_file(&self, path: &str, mode: u32) -> Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        self.open_at(path, flags, mode).doing("create", self.at(path))
    }

    fn open_at(&self, path: &str, flags: OFlag, mode: u32) -> io::Result<File> {
        let opened = openat(&self.root, path, flags | OFlag::O_CLOEXEC, Mode::from_bits_truncate(mode))?;
        Ok(File::from(opened))
    }

    /// What stat(2) knows of what has this name (a symlink is not followed); `None` when nothing has.
    pub(super) fn stat(&self, path: &str) -> Result<Option<FileStat>> {
        match fstatat(&self.root, path, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(io::Error::from) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.doing("stat", self.at(path)).map(Some),
        }
    }

    /// Gives a file a second name that nothing has yet.
    pub(super) fn try_link(&self, from: &str, to: &str) -> io::Result<()> {
        let linked = linkat(&self.root, from, &self.root, to, AtFlags::empty()).map_err(io::Error::from);
        match linked.and_then(|()| failpoint::call("link.answered")) {
            // Over a network the answer may be that to a call sent again, of which the first one did it.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.is_one_file(from, to) => Ok(()),
            linked => linked,
        }
    }

    /// Whether two names are of one file.
    fn is_one_file(&self, one: &str, two: &str) -> bool {
        let file = |path: &str| self.stat(path).ok().flatten().map(|found| (found.st_dev, found.st_ino));
        file(one).is_some_and(|one| file(two) == Some(one))
    }

    /// Gives a file of another directory a second name here, that nothing has yet.
    pub(super) fn try_link_from(&self, other: &Volume, from: &str, to: &str) -> io::Result<()> {
        Ok(linkat(&other.root, from, &self.root, to, AtFlags::empty())?)
    }

    /// Moves a file from anywhere on the same file system to here, replacing what has the name.
    pub(super) fn take_in(&self, from: &Path, to: &str) -> io::Result<()> {
        Ok(renameat(nix::fcntl::AT_FDCWD, from, &self.root, to)?)
    }

    /// Moves a name, replacing what has it.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<()> {
        let renamed = || {
            renameat(&self.root, from, &self.root, to)?;
            failpoint::call("rename.answered")
        };
        if !self.asks_twice() {
            return renamed().doing("rename into place", self.at(to));
        }
        let file = |path: &str| Ok::<_, Error>(self.stat(path)?.map(|found| (found.st_dev, found.st_ino)));
        let moved = file(from)?;
        match renamed() {
            // As with a link: the first of two calls did it.
            Err(e)
                if e.kind() == io::ErrorKind::NotFound
                    && moved.is_some()
                    && file(from)?.is_none()
                    && file(to)? == moved =>
            {
                Ok(())
            }
            renamed => renamed.doing("rename into place", self.at(to)),
        }
    }

    /// Whether a call may be sent to a server twice, and the second answer be the one that is heard.
    fn asks_twice(&self) -> bool {
        self.file_system.is_network()
    }

    /// Removes a name; whether there was one.
    pub(super) fn remove(&self, path: &str) -> Result<bool> {
        match unlinkat(&self.root, path, UnlinkatFlags::NoRemoveDir).map_err(io::Error::from) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            done => done.doing("remove", self.at(path)).map(|()| true),
        }
    }

    /// Makes a folder unless it is there; whether it was made.
    pub(super) fn make_folder(&self, name: &str, mode: u32) -> Result<bool> {
        match mkdirat(&self.root, name, Mode::from_bits_truncate(mode)).map_err(io::Error::from) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            done => done.doing("create", self.at(name)).map(|()| true),
        }
    }

    /// The names in a folder, sorted; `None` when there is no such folder.
    pub(super) fn names(&self, folder: &str) -> Result<Option<Vec<OsString>>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = match Dir::openat(&self.root, folder, flags, Mode::empty()).map_err(io::Error::from) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            dir => dir.doing("list", self.at(folder))?,
        };
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.doing("list", self.at(folder))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    /// Whether the fsync of a file that was created here also makes its name durable.
    ///
    /// ext4 and xfs log creation and file in one ordered journal (ext4 without a journal forces the folder with a new
    /// file). Elsewhere the folder needs a flush of its own.
    pub(super) fn names_follow_files(&self) -> bool {
        matches!(self.file_system.name(), "ext4" | "xfs")
    }

    /// Whether syncfs(2) forces everything and reports what it could not.
    fn syncs_as_a_whole(&self) -> bool {
        matches!(self.file_system.name(), "ext4" | "xfs" | "btrfs")
    }

    /// Forces files and the names in folders. On Ok all of them survive a power cut.
    ///
    /// A file that the disk refuses is told once: the kernel forgets the error after reporting it, so the caller must
    /// remember that this file is lost.
    pub(super) fn force(&self, files: &[ToForce], folders: &[&str]) -> std::result::Result<(), NotForced> {
        if files.len() + folders.len() >= TOGETHER_FROM && self.syncs_as_a_whole() {
            self.write_back(files)?;
            // The error may be of a stranger's file: then one by one finds whether it is one of ours.
            if failpoint::call("disk.sync").is_ok() && nix::unistd::syncfs(&self.root).is_ok() {
                return Ok(());
            }
        }
        for (i, file) in files.iter().enumerate() {
            let open = self.open_to_force(&file.path)?;
            let forced = failpoint::call("staging.force");
            let forced = forced.and_then(|()| if file.whole { open.sync_all() } else { open.sync_data() });
            forced.doing("force", self.at(&file.path)).map_err(|error| NotForced { file: Some(i), error })?;
        }
        for folder in folders {
            self.force_folder(folder)?;
        }
        Ok(())
    }

    /// Gets the bytes of all files to the device, all in flight at once, and sees each file's own write errors.
    pub(super) fn write_back(&self, files: &[ToForce]) -> std::result::Result<(), NotForced> {
        /// Bounds the descriptors open at once.
        const IN_FLIGHT: usize = 128;
        for (round, files) in files.chunks(IN_FLIGHT).enumerate() {
            let mut open = Vec::with_capacity(files.len());
            for file in files {
                let descriptor = self.open_to_force(&file.path)?;
                file::start_writeback(&descriptor).doing("force", self.at(&file.path))?;
                open.push(descriptor);
            }
            for (i, (file, descriptor)) in files.iter().zip(&open).enumerate() {
                file::wait_writeback(descriptor)
                    .doing("force", self.at(&file.path))
                    .map_err(|error| NotForced { file: Some(round * IN_FLIGHT + i), error })?;
            }
        }
        Ok(())
    }

    fn open_to_force(&self, path: &str) -> Result<File> {
        let absent = || io::Error::from(io::ErrorKind::NotFound);
        let found = self.open_file(path, OFlag::O_RDONLY)?;
        found.map(|(file, _)| file).ok_or_else(absent).doing("force", self.at(path))
    }

    /// Makes the names in a folder durable.
    pub(super) fn force_folder(&self, folder: &str) -> Result<()> {
        failpoint::call("folder.force")
            .and_then(|()| self.open_at(folder, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0))
            .and_then(|dir| dir.sync_all())
            .doing("force", self.at(folder))
    }
}

/// The room that these answers of statvfs(3) tell, `[in all, free, available]` in blocks and `[in all, free]` in inodes.
///
/// Some file systems answer nonsense: nothing at all, more free than there is, numbers that were negative, or, before an
/// object store, some round number of petabytes of which nothing is ever used.
fn believable(blocks: [u64; 3], block_bytes: u64, files: [u64; 2], network: bool) -> Option<Space> {
    const NO_DISK_BYTES: u64 = 1 << 60;
    const NO_SERVER_BYTES: u64 = 1 << 50;
    let [capacity, free, available] = blocks.map(|blocks| blocks.checked_mul(block_bytes));
    let (capacity, free, available) = (capacity?, free?, available?);
    let made_up = network && capacity >= NO_SERVER_BYTES && free == capacity;
    if capacity == 0 || capacity >= NO_DISK_BYTES || free > capacity || available > free || made_up {
        return None;
    }
    let [inodes, inodes_free] = if files[1] > files[0] { [0, 0] } else { files };
    Some(Space { capacity, free, available, inodes, inodes_free })
}

/// The end of taking back what a failed call had begun: that call's error is what is told, so this one is for the log.
pub(super) fn tidied<T>(outcome: Result<T>) {
    if let Err(error) = outcome {
        tracing::warn!("what a failed call had begun stays: {}", text::chain(&error));
    }
}

impl AsFd for Volume {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_room_that_can_be_is_believed() {
        let (gb, files) = (1 << 18, [100, 50]);
        let room =
            |blocks, network| believable(blocks, 4096, files, network).map(|space| space.available >> 30);
        assert_eq!(room([8 * gb, 4 * gb, 3 * gb], false), Some(3));
        assert_eq!(room([8 * gb, 8 * gb, 8 * gb], true), Some(8), "an empty one");
        assert_eq!(room([0, 0, 0], false), None, "nothing at all");
        assert_eq!(room([8 * gb, 9 * gb, 3 * gb], false), None, "more free than there is");
        assert_eq!(room([8 * gb, 4 * gb, 5 * gb], false), None);
        assert_eq!(room([8 * gb, 4 * gb, u64::MAX - 5], false), None, "negative");
        assert_eq!(room([u64::MAX / 4096, 0, 0], false), None);
        let petabyte = 1 << 38;
        assert_eq!(room([petabyte, petabyte, petabyte], true), None, "made up");
        assert_eq!(room([petabyte, petabyte / 2, petabyte / 2], true), Some(1 << 19));
        assert_eq!(room([petabyte, petabyte, petabyte], false), Some(1 << 20));
        let space = believable([gb, 0, 0], 4096, [1, u64::MAX], false).unwrap();
        assert_eq!((space.inodes, space.inodes_free), (0, 0));
    }
}
