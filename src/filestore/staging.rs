//! Staging files: bytes being written, which have no checksum yet.
//!
//! They lie in `_pre/` of a provider's directory, named by a number that the index never gives out twice, so that putting
//! one is a link. Nothing here deletes bytes on its own: `discard` is told, everything else is set aside.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat, fstat};
use nix::unistd::{Uid, fchownat, getegid, geteuid};
use parking_lot::Mutex;

use super::blob::{Blob, FileId, read_fully};
use super::error::{Doing, Error, Result};
use super::volume::{PRE, ToForce, Volume, Work, tidied};
use crate::change::{MountId, StagingName};
use crate::checksum::{self, Digest};
use crate::crowd::Crowd;
use crate::failpoint;
use crate::sys::file;

/// Mode of a staging file while it is nobody's blob.
const OWN_MODE: u32 = 0o600;

/// Files from this size on are given to the disk when they are hashed.
const WRITTEN_EARLY_BYTES_MIN: i64 = 1 << 20;

/// Path of a staging file relative to its provider's directory.
pub(super) fn staging_path(name: StagingName) -> String {
    format!("{PRE}/{name}")
}

/// Whether a directory has no staging files and no place for them, as one that is lost or was never made.
pub fn lacks_staging(dir: &Path) -> bool {
    matches!(dir.join(PRE).try_exists(), Ok(false))
}

/// The staging files of one provider directory.
#[derive(Debug)]
pub struct StagingDir {
    pub(super) volume: Arc<Volume>,
    /// What flushes found out about a name, for as long as the name is here; a name not listed was never forced.
    forced: Mutex<HashMap<StagingName, Forced>>,
    crowd: Crowd<StagingName>,
}

/// What is known of a staging file's way to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forced {
    /// Its name is durable: another force is one fdatasync.
    Name,
    /// The disk refused bytes of it. The kernel tells that once and would call the next flush a success.
    Refused,
}

/// What stat(2) knows of a staging file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagingStat {
    /// Bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Last write, in ns since 1970.
    pub mtime: i64,
    /// Last change of anything, in ns since 1970.
    pub ctime: i64,
    /// Names: 2 when its bytes are a blob's too.
    pub links: u64,
    /// Which file it is.
    pub file_id: FileId,
}

impl StagingStat {
    fn of(found: &FileStat) -> StagingStat {
        let nanos = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        StagingStat {
            size: found.st_size as u64,
            blocks: found.st_blocks as u64,
            mtime: nanos(found.st_mtime, found.st_mtime_nsec),
            ctime: nanos(found.st_ctime, found.st_ctime_nsec),
            links: found.st_nlink,
            file_id: FileId { dev: found.st_dev, ino: found.st_ino },
        }
    }
}

impl StagingDir {
    pub(super) fn new(volume: Arc<Volume>) -> StagingDir {
        StagingDir { volume, forced: Mutex::default(), crowd: Crowd::default() }
    }

    /// Makes an empty staging file that did not exist.
    pub fn create(&self, name: StagingName) -> Result<StagingWriter> {
        let path = staging_path(name);
        let created = failpoint::call("staging.create")
            .doing("create", self.volume.at(&path))
            .and_then(|()| self.volume.create_file(&path, OWN_MODE));
        Ok(StagingWriter { file: self.volume.noted(Work::Stage, created)? })
    }

    /// Makes a staging file of the first `limit` bytes of a blob, sharing blocks where possible; nothing on failure.
    pub fn create_from(&self, name: StagingName, blob: &Blob, limit: u64) -> Result<StagingWriter> {
        let writer = self.create(name)?;
        let copied = failpoint::call("staging.copy");
        match copied.and_then(|()| blob.copy_start(&writer, limit.min(blob.size()))) {
            Ok(()) => Ok(writer),
            Err(e) => {
                tidied(self.discard(name));
                Err(e).doing("copy a blob into", self.volume.at(&staging_path(name)))
            }
        }
    }

    /// Opens a staging file for reading.
    pub fn open(&self, name: StagingName) -> Result<StagingReader> {
        let path = staging_path(name);
        match self.volume.open_file(&path, OFlag::O_RDONLY)? {
            Some((file, _)) => Ok(StagingReader { file }),
            None => Err(io::Error::from(io::ErrorKind::NotFound)).doing("open", self.volume.at(&path)),
        }
    }

    /// Opens a staging file for writing, unless its bytes are a blob's too.
    pub fn open_writer(&self, name: StagingName) -> Result<StagingWriter> {
        let path = staging_path(name);
        let absent = || io::Error::from(io::ErrorKind::NotFound);
        let found = self.volume.stat(&path)?.ok_or_else(absent).doing("open", self.volume.at(&path))?;
        if found.st_nlink > 1 {
            return Err(Error::Linked { name });
        }
        if found.st_mode & 0o7777 != OWN_MODE || found.st_uid != geteuid().as_raw() {
            self.make_own(name)?;
        }
        let opened = self.volume.open_file(&path, OFlag::O_RDWR)?;
        let (file, metadata) = opened.ok_or_else(absent).doing("open", self.volume.at(&path))?;
        // Looked at again through the descriptor: whatever was linked in between is not handed out.
        if metadata.nlink() > 1 { Err(Error::Linked { name }) } else { Ok(StagingWriter { file }) }
    }

    /// Takes mode and owner of a blob off a file that is (again) only a staging file.
    pub(super) fn make_own(&self, name: StagingName) -> Result<()> {
        let path = staging_path(name);
        let found = self.volume.stat(&path)?;
        let own = |uid, gid| {
            fchownat(&*self.volume, path.as_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(io::Error::from)
        };
        let owned = failpoint::call("staging.own").and_then(|()| match found {
            Some(found) if found.st_uid != geteuid().as_raw() => own(Some(geteuid()), Some(getegid())),
            _ => Ok(()),
        });
        match owned {
            // A server that takes root for nobody made it nobody's, and lets us write it all the same.
            Err(e)
                if e.kind() == io::ErrorKind::PermissionDenied && self.volume.file_system().is_network() => {}
            owned => owned.doing("change the owner of", self.volume.at(&path))?,
        }
        self.set_mode(&path, OWN_MODE)
    }

    /// Gives a file the mode and, where asked, the owner of a blob.
    pub(super) fn dress(&self, path: &str, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(nix::unistd::Gid::from_raw(gid)));
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            fchownat(&*self.volume, path, uid, gid, flags)
                .map_err(|e| explain_refusal(e.into()))
                .doing("change the owner of", self.volume.at(path))?;
        }
        self.set_mode(path, mode)
    }

    fn set_mode(&self, path: &str, mode: u32) -> Result<()> {
        fchmodat(&*self.volume, path, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
            .doing("change the mode of", self.volume.at(path))
    }

    /// Whether it has a staging file of this name.
    pub fn holds(&self, name: StagingName) -> Result<bool> {
        Ok(self.volume.stat(&staging_path(name))?.is_some())
    }

    /// What stat(2) knows of a staging file.
    pub fn stat(&self, name: StagingName) -> Result<StagingStat> {
        let path = staging_path(name);
        match self.volume.stat(&path)? {
            Some(found) => Ok(StagingStat::of(&found)),
            None => Err(io::Error::from(io::ErrorKind::NotFound)).doing("stat", self.volume.at(&path)),
        }
    }

    /// Makes bytes and names durable, many at once with one flush.
    ///
    /// A file that the disk refused once is refused for ever: what it holds is not what was written.
    pub fn force(&self, names: &[StagingName]) -> Result<()> {
        let mut files = Vec::with_capacity(names.len());
        let mut all_named = true;
        {
            let forced = self.forced.lock();
            for name in names {
                let known = forced.get(name);
                if known == Some(&Forced::Refused) {
                    return Err(Error::Unforced { name: *name });
                }
                all_named &= known.is_some();
                files.push(ToForce { path: staging_path(*name), whole: known.is_none() });
            }
        }
        let folders: &[&str] = if all_named || self.volume.names_follow_files() { &[] } else { &[PRE] };
        let outcome = self.volume.force(&files, folders).map_err(|failed| {
            if let Some(i) = failed.file {
                self.refuse(names[i]);
            }
            failed.error
        });
        self.volume.noted(Work::Force, outcome)?;
        let mut forced = self.forced.lock();
        for name in names {
            forced.entry(*name).or_insert(Forced::Name);
        }
        Ok(())
    }

    /// As `force`, of one file, together with others that are asked for meanwhile.
    pub fn force_one(&self, name: StagingName) -> Result<()> {
        let together = |names: &[StagingName]| match self.force(names) {
            Ok(()) => Vec::new(),
            Err(_) => names.to_vec(),
        };
        self.crowd.join(name, together, || self.force(&[name]))
    }

    /// Remembers that the disk refused bytes of a staging file.
    pub(super) fn refuse(&self, name: StagingName) {
        self.forced.lock().insert(name, Forced::Refused);
    }

    /// Fails for a staging file that the disk refused.
    pub(super) fn must_be_sound(&self, name: StagingName) -> Result<()> {
        match self.forced.lock().get(&name) {
            Some(Forced::Refused) => Err(Error::Unforced { name }),
            _ => Ok(()),
        }
    }

    /// Removes the name of a staging file that nobody names any more; one that is gone already is no error.
    pub fn discard(&self, name: StagingName) -> Result<()> {
        self.volume.remove(&staging_path(name))?;
        self.forget(name);
        Ok(())
    }

    /// Drops what is remembered of a name that is gone from `_pre/`.
    pub(super) fn forget(&self, name: StagingName) {
        self.forced.lock().remove(&name);
    }

    /// Every staging file, in order; what is not named like one is not told.
    pub fn names(&self) -> Result<Vec<StagingName>> {
        let names = self.volume.names(PRE)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        let names = names.doing("list", self.volume.at(PRE))?;
        Ok(names.iter().filter_map(|name| parse_name(name)).collect())
    }

    /// The boot and the mount of the disk that the staging files are on.
    pub fn mount_id(&self) -> MountId {
        self.volume.mount_id()
    }

    /// Whether it is on a network or FUSE file system, of which calls may hang.
    pub fn is_on_network(&self) -> bool {
        self.volume.file_system().is_network()
    }

    /// The directory that the staging files are in.
    pub fn path(&self) -> PathBuf {
        self.volume.at(PRE)
    }
}

/// Says what may be behind it that somebody may not give a file away.
fn explain_refusal(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{error} (a server with root_squash lets nobody: take out blob-owner, or export without root_squash)"
            ),
        ),
        _ => error,
    }
}

/// Reads what `StagingName` writes, and nothing else.
pub(super) fn parse_name(text: &OsStr) -> Option<StagingName> {
    let text = text.to_str()?;
    let name = StagingName(u64::from_str_radix(text, 16).ok()?);
    (name.to_string() == text).then_some(name)
}

/// A staging file opened for reading only.
#[derive(Debug)]
pub struct StagingReader {
    file: File,
}

impl StagingReader {
    /// Reads at `offset`; fewer bytes than asked only at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        read_fully(&self.file, buffer, offset)
    }

    /// What stat(2) knows of it.
    pub fn stat(&self) -> io::Result<StagingStat> {
        Ok(StagingStat::of(&fstat(&self.file)?))
    }

    /// SHA-1 and BLAKE3 of its bytes; `None` when `go_on` said false on the way.
    ///
    /// The disk writes a large file meanwhile: whoever has it hashed has it forced next.
    pub fn digest(&self, go_on: impl Fn() -> bool) -> io::Result<Option<Digest>> {
        failpoint::call("staging.read")?;
        if fstat(&self.file)?.st_size >= WRITTEN_EARLY_BYTES_MIN {
            file::start_writeback(&self.file)?;
        }
        checksum::digest(&self.file, go_on)
    }
}

impl AsFd for StagingReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A staging file opened for reading and writing; its bytes were no blob's when it was opened.
#[derive(Debug)]
pub struct StagingWriter {
    file: File,
}

impl StagingWriter {
    /// Reads at `offset`; fewer bytes than asked only at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        read_fully(&self.file, buffer, offset)
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // A crash leaves any part of a write that was not answered, as on a local disk.
        let (now, rest) = bytes.split_at(failpoint::write("staging.write", bytes.len())?);
        self.file.write_all_at(now, offset)?;
        if !rest.is_empty() {
            failpoint::call("staging.write.rest")?;
            self.file.write_all_at(rest, offset + now.len() as u64)?;
        }
        failpoint::hit("staging.written");
        Ok(())
    }

    /// Cuts or lengthens it.
    pub fn set_len(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    /// What stat(2) knows of it.
    pub fn stat(&self) -> io::Result<StagingStat> {
        Ok(StagingStat::of(&fstat(&self.file)?))
    }
}

impl AsFd for StagingWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
