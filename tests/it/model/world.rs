//! One thread's directory with its model, its handles and its mappings; each operation is done to both and compared.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, fallocate};
use nix::unistd::{Whence, ftruncate, lseek};

use super::mappings::Mapping;
use super::operations::{Between, FILE_BYTES_MAX, HANDLES, MAPS, Op};
use super::reference::{Id, Reference, Result, Span};
use crate::harness::{Tree, command, run_command};
use crate::sys;

/// What went wrong, in words.
pub type Outcome<T = ()> = std::result::Result<T, String>;

pub struct Handle {
    pub file: File,
    pub id: Id,
    pub flags: OFlag,
}

impl Handle {
    pub fn writes(&self) -> bool {
        self.flags.intersects(OFlag::O_WRONLY | OFlag::O_RDWR)
    }

    pub fn reads(&self) -> bool {
        !self.flags.contains(OFlag::O_WRONLY)
    }
}

/// See above.
pub struct World<'t> {
    pub tree: &'t Tree,
    pub dir: PathBuf,
    pub reference: Reference,
    pub handles: [Option<Handle>; HANDLES],
    pub maps: [Option<Mapping>; MAPS],
}

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64
}

pub fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// Does something, and tells between which moments it happened.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Span) {
    // File systems read a clock that may lag far behind the exact one.
    let low = sys::coarse_clock();
    let done = work();
    (done, Span { low, high: now() })
}

/// Both succeeded, which gives what they found; or both failed in the same way.
pub fn agree<T, U>(seen: Result<T>, expected: Result<U>) -> Outcome<Option<(T, U)>> {
    match (seen, expected) {
        (Ok(seen), Ok(expected)) => Ok(Some((seen, expected))),
        (Err(seen), Err(expected)) if seen == expected => Ok(None),
        (seen, expected) => {
            let text = |e: Option<Errno>| e.map_or_else(|| "success".to_owned(), |e| e.to_string());
            Err(format!("{}, where the model has {}", text(seen.err()), text(expected.err())))
        }
    }
}

/// Says where two contents part.
pub fn same_bytes(what: &str, seen: &[u8], expected: &[u8]) -> Outcome {
    if seen == expected {
        return Ok(());
    }
    let first = seen.iter().zip(expected).position(|(a, b)| a != b);
    let last = seen.iter().zip(expected).rposition(|(a, b)| a != b);
    let zeroes = seen.iter().zip(expected).filter(|(a, b)| a != b).all(|(a, _)| *a == 0);
    Err(format!(
        "{what}: {} bytes, where the model has {}; they differ from {first:?} to {last:?}{}",
        seen.len(),
        expected.len(),
        if zeroes { ", zeroes are seen there" } else { "" },
    ))
}

/// copy_file_range(2) until `len` bytes are copied or the source ends.
fn copy_all(from: &File, at: usize, to: &File, to_at: usize, len: usize) -> Result<usize> {
    let mut done = 0;
    while done < len {
        match sys::copy_range(from, (at + done) as i64, to, (to_at + done) as i64, len - done)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

impl<'t> World<'t> {
    pub fn new(tree: &'t Tree, name: &str) -> World<'t> {
        let dir = tree.path(name);
        let ((), span) = timed(|| fs::create_dir(&dir).unwrap());
        let me = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let reference = Reference::new(me, span);
        World { tree, dir, reference, handles: Default::default(), maps: Default::default() }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.dir.clone() } else { self.dir.join(path) }
    }

    /// Does one operation; what makes no sense now is passed over.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        self.dispatch(op).map_err(|why| format!("{op:?}: {why}"))
    }

    fn dispatch(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open { .. }
            | Op::Put { .. }
            | Op::Replace { .. }
            | Op::CopyWhole { .. }
            | Op::Cp { .. }
            | Op::CopyForeign { .. }
            | Op::MoveForeign { .. } => self.on_file(op),
            Op::Map { .. }
            | Op::MapWrite { .. }
            | Op::MapRead { .. }
            | Op::MapSync { .. }
            | Op::Unmap { .. } => self.on_map(op),
            Op::Rename { .. }
            | Op::Unlink { .. }
            | Op::Link { .. }
            | Op::Symlink { .. }
            | Op::Mkdir { .. }
            | Op::Rmdir { .. } => self.on_name(op),
            Op::Chmod { .. }
            | Op::Chown { .. }
            | Op::SetTimes { .. }
            | Op::Truncate { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. } => self.on_inode(op),
            Op::Look { path } => self.look(path),
            Op::Checksum { path } => self.checksum(path),
            Op::SyncDirectory { path } => match self.reference.follow(path) {
                Ok(id) if self.reference.inode(id).is_directory() => File::open(self.path(path))
                    .and_then(|dir| dir.sync_all())
                    .map_err(|e| format!("fsyncdir: {e}")),
                _ => Ok(()),
            },
            Op::Statfs => self.statfs(),
            Op::Flush => {
                if !self.tree.mode.is_plain() {
                    self.tree.depot().flush();
                }
                Ok(())
            }
            Op::Between(between) => self.between(*between),
            Op::Close { slot } => {
                self.handles[*slot] = None;
                Ok(())
            }
            Op::DupClose { slot } => {
                if let Some(handle) = &self.handles[*slot] {
                    handle.file.try_clone().map(drop).map_err(|e| e.to_string())?;
                }
                Ok(())
            }
            Op::CopyRange { from, at, to, to_at, len } => self.copy_range(*from, *at, *to, *to_at, *len),
            Op::Write { slot, .. }
            | Op::Append { slot, .. }
            | Op::Read { slot, .. }
            | Op::Resize { slot, .. }
            | Op::Allocate { slot, .. }
            | Op::Seek { slot, .. }
            | Op::Sync { slot, .. }
            | Op::Stat { slot } => {
                let Some(handle) = self.handles[*slot].take() else { return Ok(()) };
                let outcome = self.on_handle(&handle, op);
                self.handles[*slot] = Some(handle);
                outcome
            }
        }
    }

    fn on_handle(&mut self, handle: &Handle, op: &Op) -> Outcome {
        let Handle { file, id, flags } = handle;
        let allowed = |yes: bool, or: Errno| if yes { Ok(()) } else { Err(or) };
        let inode = self.reference.inode_mut(*id);
        let size = inode.bytes().len();
        match op {
            Op::Write { at, bytes, .. } => {
                let at = if flags.contains(OFlag::O_APPEND) { size } else { *at };
                if at + bytes.len > FILE_BYTES_MAX {
                    return Ok(());
                }
                let (seen, span) = timed(|| file.write_at(bytes.get(), at as u64).map_err(errno));
                let Some((n, ())) = agree(seen, allowed(handle.writes(), Errno::EBADF))? else {
                    return Ok(());
                };
                if n != bytes.len {
                    return Err(format!("wrote {n} of {} bytes", bytes.len));
                }
                inode.write(at, bytes.get(), span);
            }
            Op::Append { bytes, .. } => {
                if !handle.writes() || size + bytes.len > FILE_BYTES_MAX {
                    return Ok(());
                }
                let (seen, span) = timed(|| file.write_all_at(bytes.get(), size as u64));
                seen.map_err(|e| e.to_string())?;
                inode.write(size, bytes.get(), span);
            }
            Op::Read { at, len, .. } => {
                let mut buffer = vec![0xee; *len];
                let seen = file.read_at(&mut buffer, *at as u64).map_err(errno);
                let Some((n, ())) = agree(seen, allowed(handle.reads(), Errno::EBADF))? else {
                    return Ok(());
                };
                let (from, to) = ((*at).min(size), (at + len).min(size));
                same_bytes("read", &buffer[..n], &inode.bytes()[from..to])?;
            }
            Op::Resize { len, .. } => {
                let (seen, span) = timed(|| ftruncate(file, *len as i64));
                if agree(seen, allowed(handle.writes(), Errno::EINVAL))?.is_some() {
                    inode.bytes_mut().resize(*len, 0);
                    inode.touch(span);
                }
            }
            Op::Allocate { how, at, len, .. } => {
                let (seen, span) = timed(|| fallocate(file, *how, *at as i64, *len as i64));
                if agree(seen, allowed(handle.writes(), Errno::EBADF))?.is_some() {
                    allocate(inode.bytes_mut(), *how, *at, *len);
                    inode.may_touch(span);
                }
            }
            Op::Seek { at, hole, .. } => seek(file, inode.bytes(), *at, *hole)?,
            Op::Sync { data_only, .. } => {
                let done = if *data_only { file.sync_data() } else { file.sync_all() };
                done.map_err(|e| format!("fsync: {e}"))?;
            }
            Op::Stat { .. } => return self.stat_handle(handle),
            other => panic!("{other:?} is not of a handle"),
        }
        Ok(())
    }

    fn copy_range(&mut self, from: usize, at: usize, to: usize, to_at: usize, len: usize) -> Outcome {
        let (Some(source), Some(target)) = (&self.handles[from], &self.handles[to]) else { return Ok(()) };
        let inside = to_at + len <= FILE_BYTES_MAX
            || to_at + self.reference.inode(source.id).bytes().len() <= FILE_BYTES_MAX;
        if source.id == target.id || !inside {
            return Ok(());
        }
        let fits = source.reads() && target.writes() && !target.flags.contains(OFlag::O_APPEND);
        let (seen, span) = timed(|| copy_all(&source.file, at, &target.file, to_at, len));
        let Some((n, ())) = agree(seen, if fits { Ok(()) } else { Err(Errno::EBADF) })? else {
            return Ok(());
        };
        let bytes = self.reference.inode(source.id).bytes();
        let (start, end) = (at.min(bytes.len()), (at + len).min(bytes.len()));
        if n != end - start {
            return Err(format!("copied {n} of {} bytes", end - start));
        }
        let copied = bytes[start..end].to_vec();
        self.reference.inode_mut(target.id).write(to_at, &copied, span);
        Ok(())
    }

    /// Lets go of all handles and mappings.
    pub fn close_all(&mut self) {
        self.handles = Default::default();
        (0..MAPS).for_each(|map| self.unmap(map));
    }

    /// Whether the path is vacant, or a file other than `source`.
    fn may_become_copy(&self, path: &str, source: Option<Id>) -> bool {
        match self.reference.find(path) {
            Ok(_) => self.reference.file(path).is_some_and(|id| Some(id) != source),
            Err(why) => why == Errno::ENOENT && self.reference.parent(path).is_ok(),
        }
    }

    fn on_file(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open { slot, path, flags, mode } => {
                let changes = OFlag::O_WRONLY | OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC;
                let directory = |id: Id| self.reference.inode(id).is_directory();
                if self.reference.find(path).is_ok_and(directory) && !flags.intersects(changes) {
                    return Ok(());
                }
                let flags = *flags | OFlag::O_NOFOLLOW;
                self.handles[*slot] = None;
                let at = self.path(path);
                let (seen, span) = timed(|| {
                    let file = nix::fcntl::open(
                        &at,
                        flags | OFlag::O_CLOEXEC,
                        nix::sys::stat::Mode::from_bits_truncate(*mode),
                    );
                    file.map(File::from)
                });
                let expected = self.reference.open(path, flags, *mode, span);
                if let Some((file, id)) = agree(seen, expected)? {
                    self.handles[*slot] = Some(Handle { file, id, flags });
                }
            }
            Op::Put { path, bytes } => {
                let at = self.path(path);
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW;
                let write = || {
                    let file = OpenOptions::new()
                        .write(true)
                        .create(true)
                        .truncate(true)
                        .mode(0o644)
                        .custom_flags(libc::O_NOFOLLOW)
                        .open(&at)
                        .map_err(errno)?;
                    file.write_all_at(bytes.get(), 0).map_err(errno)
                };
                let (seen, span) = timed(write);
                let expected = self.reference.open(path, flags, 0o644, span);
                if let Some(((), id)) = agree(seen, expected)? {
                    self.reference.inode_mut(id).write(0, bytes.get(), span);
                }
            }
            Op::Replace { path, bytes } => {
                self.dispatch(&Op::Put { path: TEMPORARY.into(), bytes: *bytes })?;
                let how = RenameFlags::empty();
                self.dispatch(&Op::Rename { from: TEMPORARY.into(), to: path.clone(), how })?;
            }
            Op::CopyWhole { from, to } => {
                let Some(source) = self.reference.file(from) else { return Ok(()) };
                if self.may_become_copy(to, Some(source)) {
                    let bytes = self.reference.inode(source).bytes().clone();
                    return self.copy_whole(self.path(from), to, bytes);
                }
            }
            Op::Cp { from, to } => {
                let Some(source) = self.reference.file(from) else { return Ok(()) };
                if self.may_become_copy(to, Some(source)) {
                    let bytes = self.reference.inode(source).bytes().clone();
                    let (from, at) = (self.path(from), self.path(to));
                    let args = [from.to_str().unwrap(), at.to_str().unwrap()];
                    let (ran, span) = timed(|| run_command(&mut command("cp", &args)));
                    if ran.code != Some(0) {
                        return Err(ran.err);
                    }
                    let mode = self.reference.inode(source).mode & 0o755;
                    self.becomes(to, mode, bytes, span)?;
                }
            }
            Op::CopyForeign { .. } | Op::MoveForeign { .. } => {}
            other => panic!("{other:?} is not of a file"),
        }
        Ok(())
    }

    /// A file was opened with O_TRUNC and filled.
    fn becomes(&mut self, path: &str, mode: u32, bytes: Vec<u8>, span: Span) -> Outcome {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let id = self.reference.open(path, flags, mode, span).map_err(|e| format!("the model has {e}"))?;
        *self.reference.inode_mut(id).bytes_mut() = bytes;
        Ok(())
    }

    fn copy_whole(&mut self, from: PathBuf, to: &str, bytes: Vec<u8>) -> Outcome {
        let at = self.path(to);
        let copy = || {
            let source = File::open(from)?;
            let target = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(at)?;
            copy_all(&source, 0, &target, 0, 1 << 30).map_err(std::io::Error::from)
        };
        let (copied, span) = timed(copy);
        let copied = copied.map_err(|e| e.to_string())?;
        if copied != bytes.len() {
            return Err(format!("copied {copied} of {} bytes", bytes.len()));
        }
        self.becomes(to, 0o644, bytes, span)
    }

    /// What concerns two threads.
    pub fn apply_foreign(&mut self, other: &mut World<'_>, op: &Op) -> Outcome {
        let outcome = match op {
            Op::CopyForeign { from, to, .. } => match other.reference.file(from) {
                Some(source) if self.may_become_copy(to, None) => {
                    let bytes = other.reference.inode(source).bytes().clone();
                    self.copy_whole(other.path(from), to, bytes)
                }
                _ => Ok(()),
            },
            Op::MoveForeign { from, to, .. } => self.move_foreign(other, from, to),
            other => panic!("{other:?} concerns one thread"),
        };
        outcome.map_err(|why| format!("{op:?}: {why}"))
    }

    fn move_foreign(&mut self, other: &mut World<'_>, from: &str, to: &str) -> Outcome {
        let Some(source) = other.reference.file(from) else { return Ok(()) };
        if other.is_in_use(source)
            || other.reference.inode(source).nlink > 1
            || !self.may_become_copy(to, None)
        {
            return Ok(());
        }
        let (done, span) = timed(|| fs::rename(other.path(from), self.path(to)));
        done.map_err(|e| e.to_string())?;
        let inode = other.reference.give_away(from, span);
        self.reference.take_in(to, inode, span);
        Ok(())
    }

    fn is_in_use(&self, id: Id) -> bool {
        self.handles.iter().flatten().any(|handle| handle.id == id)
            || self.maps.iter().flatten().any(|m| m.id == id)
    }

    /// What comes between phases, as far as it concerns this thread alone.
    pub fn between(&mut self, between: Between) -> Outcome {
        match between {
            Between::Compare => {}
            Between::Pause => std::thread::sleep(Duration::from_millis(1_300)),
            Between::Remount => self.close_all(),
            Between::Kill { late } => {
                // Stores reach the file at msync at the latest.
                (0..MAPS).try_for_each(|map| self.sync_map(map))?;
                if !late {
                    self.close_all();
                }
            }
            Between::Reclaim => {
                self.close_all();
                self.thin_out()?;
            }
        }
        Ok(())
    }

    /// Removes every second file.
    fn thin_out(&mut self) -> Outcome {
        let files: Vec<String> = self.reference.walk().into_iter().map(|(path, _)| path).collect();
        for path in files
            .into_iter()
            .filter(|path| self.reference.file(path).is_some())
            .step_by(2)
            .collect::<Vec<_>>()
        {
            self.dispatch(&Op::Unlink { path })?;
        }
        Ok(())
    }
}

/// A name that no random path has.
const TEMPORARY: &str = "temporary";

fn allocate(bytes: &mut Vec<u8>, how: nix::fcntl::FallocateFlags, at: usize, len: usize) {
    use nix::fcntl::FallocateFlags as Flags;
    if !how.contains(Flags::FALLOC_FL_KEEP_SIZE) && bytes.len() < at + len {
        bytes.resize(at + len, 0);
    }
    if how.intersects(Flags::FALLOC_FL_PUNCH_HOLE | Flags::FALLOC_FL_ZERO_RANGE) {
        let size = bytes.len();
        bytes[at.min(size)..(at + len).min(size)].fill(0);
    }
}

/// What lseek(2) finds is true, if not exact: holes may count as data.
fn seek(file: &File, bytes: &[u8], at: usize, hole: bool) -> Outcome {
    let seen = lseek(file.as_fd(), at as i64, if hole { Whence::SeekHole } else { Whence::SeekData });
    match seen {
        Err(Errno::ENXIO) if at >= bytes.len() => Ok(()),
        Err(Errno::ENXIO) if !hole && bytes[at..].iter().all(|b| *b == 0) => Ok(()),
        Ok(found) if found as usize >= at && found as usize <= bytes.len() && at < bytes.len() => {
            if !hole && bytes[at..found as usize].iter().any(|b| *b != 0) {
                return Err(format!("lseek passes over data from {at} to {found}"));
            }
            Ok(())
        }
        other => Err(format!("lseek gives {other:?} in a file of {} bytes", bytes.len())),
    }
}
