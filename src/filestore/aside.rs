//! Bytes that could not be sealed: kept in `_aside/` with the reason beside them until somebody rescues them or they age.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use super::error::{Doing, Result};
use super::staging::{StagingDir, parse_name, staging_path};
use super::volume::{ASIDE, PRE};
use crate::change::StagingName;
use crate::failpoint;
use crate::text::chain;

/// How long set-aside bytes are kept.
pub const KEPT_FOR: Duration = Duration::from_secs(14 * 24 * 3600);

/// How much of a note is read.
const REASON_BYTES_MAX: u64 = 64 * 1024;

/// A staging file that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    /// Its name as a staging file.
    pub name: StagingName,
    /// Where the bytes are now.
    pub path: PathBuf,
    /// How many they are.
    pub size: u64,
    /// Why they were set aside.
    pub why: String,
    /// When.
    pub since: SystemTime,
}

fn bytes_path(name: StagingName) -> String {
    format!("{ASIDE}/{name}")
}

fn reason_path(name: StagingName) -> String {
    format!("{ASIDE}/{name}.txt")
}

impl StagingDir {
    /// Moves a staging file to `_aside/` and writes the reason beside it; durable on Ok, and where it is now.
    ///
    /// The reason is there before the bytes are, so nothing in `_aside/` is unexplained. Doing it again is no error.
    pub fn set_aside(&self, name: StagingName, why: &str) -> Result<PathBuf> {
        let (staged, bytes, reason) = (staging_path(name), bytes_path(name), reason_path(name));
        if self.volume.stat(&staged)?.is_none() && self.volume.stat(&bytes)?.is_some() {
            return Ok(self.volume.at(&bytes));
        }
        // Forced if the disk takes them; bytes that it does not take are set aside all the same.
        let _ = self.force(&[name]);
        self.volume.remove(&reason)?;
        let mut text = self.volume.create_file(&reason, 0o600)?;
        text.write_all(why.as_bytes())
            .and_then(|()| text.write_all(b"\n"))
            .and_then(|()| text.sync_all())
            .doing("write", self.volume.at(&reason))?;
        // A crash here leaves a reason without bytes; it is written anew.
        failpoint::hit("aside.explained");
        self.volume.rename(&staged, &bytes)?;
        // A crash here leaves a row that names a file which is not there, and the bytes safe.
        failpoint::hit("aside.moved");
        self.forget(name);
        self.volume.force_folder(ASIDE)?;
        self.volume.force_folder(PRE)?;
        Ok(self.volume.at(&bytes))
    }

    /// What was set aside, in the order of the names.
    pub fn aside(&self) -> Result<Vec<Aside>> {
        let mut found = Vec::new();
        for name in self.volume.names(ASIDE)?.unwrap_or_default() {
            let Some(name) = parse_name(&name) else { continue };
            if let Some(aside) = self.one_aside(name)? {
                found.push(aside);
            }
        }
        Ok(found)
    }

    fn one_aside(&self, name: StagingName) -> Result<Option<Aside>> {
        let path = bytes_path(name);
        let Some(bytes) = self.volume.stat(&path)?.filter(is_plain) else { return Ok(None) };
        // A note is for people: one that somebody spoiled must not hide the bytes it belongs to.
        let (why, since) = match self.note(name) {
            Ok(Some(note)) => note,
            Ok(None) => (String::new(), moved_at(&bytes)),
            Err(error) => (format!("why is not known: {}", chain(&error)), moved_at(&bytes)),
        };
        Ok(Some(Aside { name, path: self.volume.at(&path), size: bytes.st_size as u64, why, since }))
    }

    /// Why something was set aside, and when; `None` without a note.
    fn note(&self, name: StagingName) -> Result<Option<(String, SystemTime)>> {
        let path = reason_path(name);
        // Opening something else could wait for ever.
        if !self.volume.stat(&path)?.is_some_and(|found| is_plain(&found)) {
            return Ok(None);
        }
        let Some((note, metadata)) = self.volume.open_file(&path, OFlag::O_RDONLY)? else { return Ok(None) };
        let mut why = Vec::new();
        note.take(REASON_BYTES_MAX).read_to_end(&mut why).doing("read", self.volume.at(&path))?;
        let since = metadata.modified().doing("stat", self.volume.at(&path))?;
        Ok(Some((String::from_utf8_lossy(&why).trim_end().to_owned(), since)))
    }

    /// Deletes what was set aside longer ago than `age`, and tells what it was.
    pub fn expire_aside(&self, age: Duration) -> Result<Vec<Aside>> {
        let now = SystemTime::now();
        let mut gone = Vec::new();
        for aside in self.aside()? {
            if now.duration_since(aside.since).is_ok_and(|old| old >= age) {
                self.drop_aside(aside.name)?;
                gone.push(aside);
            }
        }
        Ok(gone)
    }

    /// Deletes one set-aside file, after it was rescued; one that is gone already is no error.
    pub fn drop_aside(&self, name: StagingName) -> Result<()> {
        self.volume.remove(&bytes_path(name))?;
        self.volume.remove(&reason_path(name))?;
        Ok(())
    }
}

/// Whether it is a regular file.
fn is_plain(found: &FileStat) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

/// When bytes without a note were set aside, or later: moving them was a change of the file.
fn moved_at(bytes: &FileStat) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(bytes.st_ctime.try_into().unwrap_or(0))
}
