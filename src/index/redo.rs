//! The redo log: commits that the database does not have yet, so that a commit costs one small write.
//!
//! A commit is applied within a transaction of SQLite that stays open, and appended here; that write is what makes it safe
//! against a kill, and forcing this file what makes it durable. Now and then the transaction ends (a flush), and what was
//! logged before is needed only until SQLite's own log was forced.
//!
//! There are two files, `index.redo0` and `index.redo1`, written from the start again and again, so that forcing one costs no
//! change of its length or blocks. One is written to; the other is free, or full and kept until what it holds is forced in
//! the database. A record that a crash tore ends the log. Old records behind the newest one are told by their session and
//! number: every opening of the index is a session of its own, and begins only when all of the last one is in the database
//! and forced.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Seq;
use super::connection::Files;
use super::error::{Error, Result};
use crate::change::Change;
use crate::failpoint;

/// What each file is filled with zeros up to when it is made.
const FILE_BYTES: u64 = 2 << 20;

/// A file with so much in it is exchanged for the other at the next flush; less where a test wants to see that happen.
fn full_bytes() -> u64 {
    #[cfg(debug_assertions)]
    if failpoint::steered() {
        return 32 << 10;
    }
    3 << 19
}

/// First bytes of each file; the last is the version of the format, which the shape of [`Change`] is part of.
const MAGIC: [u8; 8] = *b"DPTREDO\x01";

/// Magic and the depot's id.
pub(super) const HEADER_BYTES: u64 = 24;

/// Length of the payload, checksum, session, number.
const RECORD_HEADER_BYTES: usize = 24;

/// Beyond this, whoever commits makes the other file free first if nobody is about to; beyond twice as much it waits.
const OVERGROWN_BYTES: u64 = 32 << 20;

/// Longer records are damage.
const PAYLOAD_BYTES_MAX: u64 = 1 << 30;

/// One commit as it is logged.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Entry {
    /// What a caller committed.
    Changes(Vec<Change>),
    /// A new mark below which numbers may be given out.
    Numbers(u64),
}

/// The same, borrowed; both have the same bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) enum EntryRef<'a> {
    /// What a caller committed.
    Changes(&'a [Change]),
    /// A new mark below which numbers may be given out.
    Numbers(u64),
}

impl Entry {
    /// Without its bytes of its own.
    pub fn as_ref(&self) -> EntryRef<'_> {
        match self {
            Entry::Changes(changes) => EntryRef::Changes(changes),
            Entry::Numbers(mark) => EntryRef::Numbers(*mark),
        }
    }
}

impl EntryRef<'_> {
    /// How many changes it has.
    pub fn changes(self) -> usize {
        match self {
            EntryRef::Changes(changes) => changes.len(),
            EntryRef::Numbers(_) => 1,
        }
    }
}

/// One of the two files.
struct Part {
    path: PathBuf,
    file: Arc<File>,
    /// Where the next record goes.
    end: u64,
    /// Records were written that no force has covered.
    unforced: bool,
}

/// The two files.
pub(super) struct Redo {
    parts: [Part; 2],
    current: usize,
    /// The other one holds what SQLite's own log may not have on the disk yet.
    kept: bool,
    session: u64,
    buffer: Vec<u8>,
}

impl Redo {
    /// Opens the files of an index, makes those that are not there; another depot's are refused, and then none is made.
    /// `begin` comes before the first record.
    pub fn open(files: &Files, depot_id: [u8; 16]) -> Result<Redo> {
        let [first, second] = &files.redo;
        for path in &files.redo {
            Part::accept(path, depot_id)?;
        }
        let parts = [Part::open(first, depot_id)?, Part::open(second, depot_id)?];
        Ok(Redo { parts, current: 0, kept: false, session: 0, buffer: Vec::new() })
    }

    /// Starts a session with both files free. Everything logged before must be forced in the database.
    pub fn begin(&mut self, session: u64) {
        self.session = session;
        self.current = 0;
        self.kept = false;
        for part in &mut self.parts {
            part.reuse();
        }
    }

    /// Logs a commit. After an error it is not logged.
    pub fn append(&mut self, seq: Seq, entry: EntryRef<'_>) -> Result<()> {
        let part = &mut self.parts[self.current];
        self.buffer.clear();
        self.buffer.resize(RECORD_HEADER_BYTES, 0);
        let buffer = std::mem::take(&mut self.buffer);
        let doing = "write the redo log";
        let mut record = postcard::to_extend(&entry, buffer)
            .map_err(|e| Error::io(&part.path, doing, io::Error::other(e)))?;
        seal(&mut record, self.session, seq);
        let written = write(&part.file, &record, part.end);
        self.buffer = record;
        match written {
            Ok(()) => {
                part.end += self.buffer.len() as u64;
                part.unforced = true;
                Ok(())
            }
            Err(e) => {
                // Perhaps all of it arrived: it must not be found after a crash. Best effort, on a disk that refuses writes.
                let _ = part.file.write_all_at(&[0; RECORD_HEADER_BYTES], part.end);
                Err(Error::io(&part.path, doing, e))
            }
        }
    }

    /// Whether a flush would go over to the other file.
    pub fn is_full(&self) -> bool {
        !self.kept && self.parts[self.current].end >= full_bytes()
    }

    /// Whether the current file has grown far beyond its size because the other one is not free.
    pub fn is_overgrown(&self) -> bool {
        self.kept && self.parts[self.current].end >= OVERGROWN_BYTES
    }

    /// Whether it has grown so far, for whatever reason, that nothing more is to be logged.
    pub fn is_overfull(&self) -> bool {
        self.parts[self.current].end >= 2 * OVERGROWN_BYTES
    }

    /// SQLite has committed everything that is logged: goes over to the other file when this one is full.
    pub fn flushed(&mut self) {
        if self.is_full() {
            self.kept = true;
            self.current = 1 - self.current;
            self.parts[self.current].reuse();
        }
    }

    /// Whether a file is kept until SQLite's own log is forced.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// SQLite's own log was forced after the flush that filled the kept file.
    pub fn free_kept(&mut self) {
        self.kept = false;
        self.parts[1 - self.current].unforced = false;
    }

    /// Files with records that no force has covered, oldest first, by their numbers. The caller forces them, or trusts none
    /// of it again.
    pub fn take_unforced(&mut self) -> Vec<(usize, Arc<File>)> {
        let mut files = Vec::with_capacity(2);
        for at in [1 - self.current, self.current] {
            if std::mem::take(&mut self.parts[at].unforced) {
                files.push((at, self.parts[at].file.clone()));
            }
        }
        files
    }

    /// Commits of `session` that follow `after` without a gap, in order.
    pub fn read(&self, session: u64, after: Seq) -> Result<Vec<(Seq, Entry)>> {
        let mut found: Vec<(Seq, Entry)> = Vec::new();
        let mut parts = Vec::with_capacity(2);
        for part in &self.parts {
            let records = part.read(session)?;
            parts.push(records);
        }
        parts.sort_by_key(|records| records.first().map_or(Seq::MAX, |(seq, _)| *seq));
        for (seq, entry) in parts.into_iter().flatten() {
            let wanted = found.last().map_or(after, |(last, _)| *last).wrapping_add(1);
            match seq {
                old if old < wanted => {}
                next if next == wanted => found.push((seq, entry)),
                // Written later than something that a power cut took.
                _ => break,
            }
        }
        Ok(found)
    }
}

impl Part {
    /// Refuses a file that is not the redo log of this depot; whether there is one.
    fn accept(path: &Path, depot_id: [u8; 16]) -> Result<bool> {
        let io = |e| Error::io(path, "open the redo log", e);
        let header = match File::open(path).and_then(|file| header_of(&file)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            header => header.map_err(io)?,
        };
        // Made by a start that ended before it could write more.
        if header == [0; HEADER_BYTES as usize] {
            return Ok(false);
        }
        if header[..7] != MAGIC[..7] {
            return Err(Error::corrupt(path, "it is no redo log of an index"));
        }
        if header[7] != MAGIC[7] {
            return Err(Error::Unfinished { path: path.to_owned() });
        }
        if header[8..] != depot_id {
            return Err(Error::corrupt(path, "it belongs to another depot"));
        }
        Ok(true)
    }

    fn open(path: &Path, depot_id: [u8; 16]) -> Result<Part> {
        let made = Part::accept(path, depot_id)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|e| Error::io(path, "open the redo log", e))?;
        if !made {
            match fill(&file, depot_id) {
                Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    tracing::warn!(path = %path.display(), "no space to set aside for the redo log: {e}");
                    // Without the header, the next start would take it for one that nobody has used.
                    let header = header_of(&file).map_err(|e| Error::io(path, "make the redo log", e))?;
                    if header[..8] != MAGIC {
                        return Err(Error::io(path, "make the redo log", e));
                    }
                }
                filled => filled.map_err(|e| Error::io(path, "make the redo log", e))?,
            }
        }
        Ok(Part { path: path.to_owned(), file: Arc::new(file), end: HEADER_BYTES, unforced: false })
    }

    /// What is in it is not needed any more.
    fn reuse(&mut self) {
        self.end = HEADER_BYTES;
        self.unforced = false;
        if self.file.metadata().is_ok_and(|m| m.len() > FILE_BYTES) {
            // Best effort: it only gives space back.
            let _ = self.file.set_len(FILE_BYTES);
        }
    }

    /// The records of `session` from the start, up to the first that is none.
    fn read(&self, session: u64) -> Result<Vec<(Seq, Entry)>> {
        let io = |e| Error::io(&self.path, "read the redo log", e);
        let length = self.file.metadata().map_err(io)?.len();
        let (mut at, mut record) = (HEADER_BYTES, Vec::new());
        let mut records: Vec<(Seq, Entry)> = Vec::new();
        while let Some(seq) = next(&self.file, at..length, session, &mut record).map_err(io)? {
            if records.last().is_some_and(|(last, _)| seq != last.wrapping_add(1)) {
                break;
            }
            let entry = postcard::from_bytes(&record[RECORD_HEADER_BYTES..])
                .map_err(|e| Error::corrupt(&self.path, format!("commit {seq} cannot be read: {e}")))?;
            records.push((seq, entry));
            at += record.len() as u64;
        }
        Ok(records)
    }
}

/// Writes a record. A crash in the middle leaves one whose checksum is wrong, which ends the log.
fn write(file: &File, record: &[u8], at: u64) -> io::Result<()> {
    let (now, rest) = record.split_at(failpoint::write("redo.write", record.len())?);
    file.write_all_at(now, at)?;
    if !rest.is_empty() {
        failpoint::call("redo.write.rest")?;
        file.write_all_at(rest, at + now.len() as u64)?;
    }
    Ok(())
}

/// The header of a file; zeros where there is none.
fn header_of(file: &File) -> io::Result<[u8; HEADER_BYTES as usize]> {
    let mut header = [0; HEADER_BYTES as usize];
    if file.metadata()?.len() >= HEADER_BYTES {
        file.read_exact_at(&mut header, 0)?;
    }
    Ok(header)
}

/// Header and zeros, forced. The header first: on a disk that has no space for all of it, the file is used as far as it goes.
fn fill(file: &File, depot_id: [u8; 16]) -> io::Result<()> {
    file.write_all_at(&[MAGIC.as_slice(), &depot_id].concat(), 0)?;
    file.write_all_at(&vec![0; (FILE_BYTES - HEADER_BYTES) as usize], HEADER_BYTES)?;
    file.sync_all()
}

/// Refuses a redo log that has commits of `session` after `after`, whatever its version.
pub(super) fn must_be_done(files: &Files, session: u64, after: Seq) -> Result<()> {
    for path in &files.redo {
        let io = |e| Error::io(path, "read the redo log", e);
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(io)?,
        };
        let length = file.metadata().map_err(io)?.len();
        let (mut at, mut record) = (HEADER_BYTES, Vec::new());
        while let Some(seq) = next(&file, at..length, session, &mut record).map_err(io)? {
            if seq > after {
                return Err(Error::Unfinished { path: path.clone() });
            }
            at += record.len() as u64;
        }
    }
    Ok(())
}

/// Fills in the header of a record whose payload follows it.
fn seal(record: &mut [u8], session: u64, seq: Seq) {
    let length = (record.len() - RECORD_HEADER_BYTES) as u32;
    record[..4].copy_from_slice(&length.to_le_bytes());
    record[8..16].copy_from_slice(&session.to_le_bytes());
    record[16..24].copy_from_slice(&seq.to_le_bytes());
    let sum = checksum(record);
    record[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Over everything in a record but itself.
fn checksum(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    hasher.finalize()
}

/// Reads the whole record of `session` that begins at the start of `range`, if there is one; its number.
fn next(file: &File, range: Range<u64>, session: u64, record: &mut Vec<u8>) -> io::Result<Option<Seq>> {
    let room = range.end.saturating_sub(range.start);
    if room < RECORD_HEADER_BYTES as u64 {
        return Ok(None);
    }
    record.clear();
    record.resize(RECORD_HEADER_BYTES, 0);
    file.read_exact_at(record, range.start)?;
    let length = number(record, 0) & 0xffff_ffff;
    if length == 0 || length > PAYLOAD_BYTES_MAX || length > room - RECORD_HEADER_BYTES as u64 {
        return Ok(None);
    }
    // Before the payload is read, which may be of any length in a damaged file.
    if number(record, 8) != session {
        return Ok(None);
    }
    record.resize(RECORD_HEADER_BYTES + length as usize, 0);
    file.read_exact_at(&mut record[RECORD_HEADER_BYTES..], range.start + RECORD_HEADER_BYTES as u64)?;
    let whole = u64::from(checksum(record)) == number(record, 0) >> 32;
    Ok(whole.then(|| number(record, 16)))
}

fn number(record: &[u8], at: usize) -> u64 {
    record[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
