//! Looking at what is there, and comparing it with the model.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::mappings::Mapping;
use super::reference::{Id, Kind};
use super::world::{Handle, Outcome, World, errno, same_bytes};
use crate::harness::sha1;
use crate::sys;

/// How long a file that nobody has open may go on without a checksum: a program that another thread is just starting has
/// our descriptors for a moment.
const CHECKSUM_PATIENCE: Duration = Duration::from_secs(20);

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, seen: T, expected: T) -> Outcome {
    if seen == expected {
        return Ok(());
    }
    Err(format!("{what} is {seen:?}, where the model has {expected:?}"))
}

impl World<'_> {
    /// Compares everything.
    pub fn compare(&mut self) -> Outcome {
        for (path, id) in self.reference.walk() {
            self.look_at(&path, id).map_err(|why| format!("comparing {path:?}: {why}"))?;
        }
        for map in 0..self.maps.len() {
            let len = self.maps[map].as_ref().map_or(0, Mapping::len);
            self.read_map(map, 0, len).map_err(|why| format!("comparing mapping {map}: {why}"))?;
        }
        for slot in 0..self.handles.len() {
            let Some(handle) = self.handles[slot].take() else { continue };
            let outcome = self.stat_handle(&handle);
            self.handles[slot] = Some(handle);
            outcome.map_err(|why| format!("comparing handle {slot}: {why}"))?;
        }
        Ok(())
    }

    /// Compares what a path names, if it names anything.
    pub fn look(&mut self, path: &str) -> Outcome {
        match self.reference.find(path) {
            Ok(id) => self.look_at(path, id),
            Err(expected) => match fs::symlink_metadata(self.path(path)).map_err(errno) {
                Err(seen) if seen == expected => Ok(()),
                seen => Err(format!("stat gives {seen:?}, where the model has {expected}")),
            },
        }
    }

    fn look_at(&mut self, path: &str, id: Id) -> Outcome {
        let at = self.path(path);
        let meta = fs::symlink_metadata(&at).map_err(|e| format!("stat: {e}"))?;
        self.check_meta(id, &meta)?;
        let inode = self.reference.inode(id);
        match &inode.kind {
            Kind::File(bytes) => {
                same_bytes("content", &fs::read(&at).map_err(|e| format!("read: {e}"))?, bytes)?
            }
            Kind::Symlink(target) => {
                let seen = fs::read_link(&at).map_err(|e| format!("readlink: {e}"))?;
                equal("target", seen.to_str(), Some(target))?;
            }
            Kind::Directory(entries) => {
                let mut seen = BTreeSet::new();
                for entry in fs::read_dir(&at).map_err(|e| format!("readdir: {e}"))? {
                    let entry = entry.map_err(|e| format!("readdir: {e}"))?;
                    let name = entry.file_name().into_string().unwrap();
                    if let Some(child) = entries.get(&name) {
                        let kind = entry.file_type().map_err(|e| e.to_string())?;
                        let child = &self.reference.inode(*child).kind;
                        equal(&name, (kind.is_dir(), kind.is_symlink()), kind_bits(child))?;
                    }
                    if !seen.insert(name.clone()) {
                        return Err(format!("{name} is listed twice"));
                    }
                }
                equal("listing", seen, entries.keys().cloned().collect())?;
            }
        }
        if !matches!(inode.kind, Kind::Symlink(_)) {
            let names = sys::listxattr(&at).map_err(|e| format!("listxattr: {e}"))?;
            let names: Vec<_> = names.into_iter().filter(|name| name.starts_with("user.")).collect();
            let expected = inode.xattrs.keys().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
            equal("attributes", names.into_iter().collect(), expected)?;
            for (name, value) in &inode.xattrs {
                same_bytes(name, &sys::getxattr(&at, name).map_err(|e| format!("getxattr: {e}"))?, value)?;
            }
        }
        Ok(())
    }

    pub fn stat_handle(&mut self, handle: &Handle) -> Outcome {
        let meta = handle.file.metadata().map_err(|e| format!("fstat: {e}"))?;
        self.check_meta(handle.id, &meta)
    }

    fn check_meta(&mut self, id: Id, meta: &Metadata) -> Outcome {
        let unsettled = self.maps.iter().flatten().any(|map| map.id == id && map.stored.is_some());
        let inode = self.reference.inode_mut(id);
        equal("kind", (meta.is_dir(), meta.is_symlink()), kind_bits(&inode.kind))?;
        equal("mode", format!("{:o}", meta.mode() & 0o7777), format!("{:o}", inode.mode))?;
        equal("owner", (meta.uid(), meta.gid()), inode.owner)?;
        equal("nlink", meta.nlink(), inode.nlink)?;
        match &inode.kind {
            Kind::File(bytes) => equal("size", meta.size(), bytes.len() as u64)?,
            Kind::Symlink(target) => equal("size", meta.size(), target.len() as u64)?,
            Kind::Directory(_) => {}
        }
        equal("inode number", meta.ino(), *inode.number.get_or_insert(meta.ino()))?;
        if unsettled {
            return Ok(());
        }
        let nanos = |seconds: i64, nanos: i64| seconds * 1_000_000_000 + nanos;
        let times = [
            ("mtime", nanos(meta.mtime(), meta.mtime_nsec()), &mut inode.mtime),
            ("ctime", nanos(meta.ctime(), meta.ctime_nsec()), &mut inode.ctime),
        ];
        for (what, seen, stamp) in times {
            let expected = *stamp;
            if !stamp.check(seen) {
                return Err(format!("{what} is {seen}, where the model has {expected:?}"));
            }
        }
        Ok(())
    }

    pub fn has_atime(&self, path: &str, expected: i64) -> Outcome {
        let meta = fs::symlink_metadata(self.path(path)).map_err(|e| format!("stat: {e}"))?;
        equal("atime", meta.atime() * 1_000_000_000 + meta.atime_nsec(), expected)
    }

    /// Compares the SHA-1 that a file tells of itself.
    pub fn checksum(&self, path: &str) -> Outcome {
        let Some(id) = self.reference.file(path) else { return Ok(()) };
        let ask = || sys::getxattr(self.path(path), "user.depotfs.sha1");
        let written = self.handles.iter().flatten().any(|handle| handle.id == id && handle.writes());
        if self.tree.mode.is_plain() || written {
            // A file with a writer that has become a copy, and was not written since, has one.
            return match ask() {
                Ok(seen) if !self.tree.mode.is_plain() => self.is_checksum(id, &seen),
                seen => equal("checksum", seen, Err(Errno::ENODATA)),
            };
        }
        if self.maps.iter().flatten().any(|map| map.id == id) {
            // It may be sealed only when the mapping is gone.
            return ask().map_or(Ok(()), |seen| self.is_checksum(id, &seen));
        }
        let begun = Instant::now();
        let mut seen = ask();
        while seen == Err(Errno::ENODATA) && begun.elapsed() < CHECKSUM_PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
            seen = ask();
        }
        self.is_checksum(id, &seen.map_err(|e| format!("checksum: {e}"))?)
    }

    fn is_checksum(&self, id: Id, seen: &[u8]) -> Outcome {
        equal("checksum", String::from_utf8_lossy(seen).into_owned(), sha1(self.reference.inode(id).bytes()))
    }

    pub fn statfs(&self) -> Outcome {
        let space = nix::sys::statvfs::statvfs(&self.dir).map_err(|e| format!("statfs: {e}"))?;
        let sane = space.fragment_size() > 0
            && space.blocks() > 0
            && space.blocks_free() <= space.blocks()
            && space.blocks_available() <= space.blocks_free()
            && space.name_max() >= 255;
        if sane { Ok(()) } else { Err(format!("statfs tells {space:?}")) }
    }
}

fn kind_bits(kind: &Kind) -> (bool, bool) {
    (matches!(kind, Kind::Directory(_)), matches!(kind, Kind::Symlink(_)))
}
