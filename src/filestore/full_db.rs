//! Keeps blobs as rows of one SQLite file: for many tiny blobs, which it packs better than a file system does.
//!
//! A blob is a row of `blob` and its bytes are rows of `part`, [`PART_BYTES`] each, so that any range is read without the
//! rest. Staging files lie beside the database; putting one copies its bytes, a whole batch in one transaction and with
//! one flush. A blob that is removed while somebody reads it loses its name, and its rows with its last reader.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Transaction, params};

use super::blob::{Blob, FileId, Remote};
use super::error::{Doing, Error, Result};
use super::provider::{Found, Health, Listed, Offer, Provider, ProviderStatus, Visit};
use super::staging::StagingDir;
use super::volume::{Volume, Work};
use crate::change::StagingName;
use crate::checksum::{Checksum, Comparison};
use crate::failpoint;
use crate::text;

/// The database in the provider's directory.
const FILE: &str = "blobs.db";

const SCHEMA: &str = "
CREATE TABLE blob (
  id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given out twice
  sum BLOB UNIQUE,                      -- SHA-1, 20 bytes; NULL: removed, and open when it was
  size INTEGER NOT NULL                 -- bytes
) STRICT;
CREATE TABLE part (
  id INTEGER PRIMARY KEY,               -- blob.id * 2^24 + number of the part, from 0
  bytes BLOB NOT NULL                   -- 64 KiB; fewer in the last part
) STRICT;";

/// Bytes of a part: a small read does not read much more, and a large blob has not too many.
const PART_BYTES: u64 = 64 * 1024;
/// Parts that one blob can have: 1 TiB.
const PARTS_MAX: u64 = 1 << 24;
/// Holds 64 KiB of a part in few pages.
const PAGE_BYTES: u32 = 16 * 1024;
/// Pages given back to the file system after a removal, at most.
const VACUUM_PAGES: u32 = 1024;
/// Readers kept for the next question.
const READERS_KEPT: usize = 8;
/// Blobs of one page of a listing.
const LIST_PAGE: usize = 1000;
/// Nobody else should hold a lock; whoever does, as a `sqlite3` of an operator, is waited for this long.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// The provider `full-db`.
#[derive(Debug)]
pub struct FullDb {
    volume: Arc<Volume>,
    staging: Arc<StagingDir>,
    db: Arc<Db>,
}

/// The database.
#[derive(Debug)]
struct Db {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    /// Blobs that are open, by their id.
    open: Mutex<HashMap<i64, Open>>,
}

/// Names that a transaction takes away. Nobody opens a blob before it has ended.
struct Unnaming<'a> {
    open: MutexGuard<'a, HashMap<i64, Open>>,
    /// Those that somebody reads.
    read: Vec<i64>,
}

/// What is known of an open blob.
#[derive(Debug, Default)]
struct Open {
    readers: u32,
    /// It lost its name meanwhile: its rows go with the last reader.
    removed: bool,
}

impl FullDb {
    /// Makes the directory with its database, the empty blob and the depot's id; durable on Ok.
    ///
    /// A directory that this depot has made already is left as it is.
    pub fn create(dir: &Path, depot_id: [u8; 16]) -> Result<()> {
        let volume = Volume::create(dir, std::iter::empty())?;
        if volume.is_marked(depot_id)? {
            return Ok(());
        }
        let db = Db::create(&volume)?;
        db.write("put the empty blob into", |tx| insert(tx, &Checksum::EMPTY, 0).map(drop))?;
        drop(db);
        volume.mark(depot_id)
    }

    /// Opens a directory that `create` made for this depot; only one process at a time may have it open.
    pub fn open(dir: &Path, depot_id: [u8; 16]) -> Result<FullDb> {
        let volume = Arc::new(Volume::open(dir, depot_id)?);
        let db = Arc::new(Db::open(volume.at(FILE))?);
        db.clear_removed()?;
        Ok(FullDb { staging: Arc::new(StagingDir::new(Arc::clone(&volume))), volume, db })
    }

    /// Puts blobs in one transaction, `put` each.
    fn put_all<'a, T>(
        &'a self,
        batch: &[T],
        put: impl Fn(&Transaction<'_>, &T, &mut Option<Unnaming<'a>>) -> Result<()>,
    ) -> Result<()> {
        let (mut failure, mut unnaming) = (None, None);
        let wrote = self.db.write("put blobs into", |tx| {
            for one in batch {
                if let Err(error) = put(tx, one, &mut unnaming) {
                    // Ends the transaction; what is told is the error itself.
                    failure = Some(error);
                    return Err(rusqlite::Error::QueryReturnedNoRows);
                }
            }
            failpoint::hit("db.put");
            Ok(())
        });
        if let Some(error) = failure {
            return Err(error);
        }
        wrote?;
        unnaming.into_iter().for_each(Unnaming::end);
        // A crash here leaves blobs that the index does not know.
        failpoint::hit("db.committed");
        Ok(())
    }

    fn put_offer<'a>(
        &'a self,
        tx: &Transaction<'_>,
        sum: &Checksum,
        offer: &Offer,
        unnaming: &mut Option<Unnaming<'a>>,
    ) -> Result<()> {
        let Offer { from, name, size } = offer;
        from.must_be_sound(*name)?;
        let file = from.open(*name)?;
        let path = from.path().join(name.to_string());
        let changed = |found| Error::Changed { name: *name, expected: *size, found };
        match file.stat().doing("stat", &path)?.size {
            found if found == *size => {}
            found => return Err(changed(found)),
        }
        let sql = |error| self.db.error("put a blob into", error);
        match find(tx, sum).map_err(sql)? {
            Some((_, stands)) if stands == *size => return Ok(()),
            Some((broken, _)) => self.db.unname(tx, broken, unnaming).map_err(sql)?,
            None => {}
        }
        self.insert_parts(tx, sum, *size, |buffer, offset| {
            let read = file.read_at(buffer, offset).doing("read", &path)?;
            if read < buffer.len() { Err(changed(offset + read as u64)) } else { Ok(()) }
        })
    }

    /// A copy of another provider's blob takes the place of what is here.
    fn put_verified<'a>(
        &'a self,
        tx: &Transaction<'_>,
        sum: &Checksum,
        blob: &Blob,
        unnaming: &mut Option<Unnaming<'a>>,
    ) -> Result<()> {
        let sql = |error| self.db.error("put a blob into", error);
        if let Some((stands, _)) = find(tx, sum).map_err(sql)? {
            self.db.unname(tx, stands, unnaming).map_err(sql)?;
        }
        let mut hasher = Comparison::default();
        self.insert_parts(tx, sum, blob.size(), |buffer, offset| {
            let read = blob.read_at(buffer, offset).doing("read blob", sum.to_string())?;
            hasher.update(&buffer[..read]);
            if read < buffer.len() { Err(Error::Altered(*sum)) } else { Ok(()) }
        })?;
        if hasher.finish() == *sum { Ok(()) } else { Err(Error::Altered(*sum)) }
    }

    /// Makes the rows of a blob from what `read` fills whole buffers with, in order.
    fn insert_parts(
        &self,
        tx: &Transaction<'_>,
        sum: &Checksum,
        size: u64,
        mut read: impl FnMut(&mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        if size.div_ceil(PART_BYTES) > PARTS_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge)).doing("put a blob into", &self.db.path);
        }
        let sql = |error| self.db.error("put a blob into", error);
        let id = insert(tx, sum, size).map_err(sql)?;
        let mut insert_part =
            tx.prepare_cached("INSERT INTO part (id, bytes) VALUES ($1, $2)").map_err(sql)?;
        let mut buffer = vec![0; size.min(PART_BYTES) as usize];
        for number in 0..size.div_ceil(PART_BYTES) {
            let offset = number * PART_BYTES;
            let part = &mut buffer[..(size - offset).min(PART_BYTES) as usize];
            read(part, offset)?;
            insert_part.execute(params![part_id(id, number), &*part]).map_err(sql)?;
        }
        Ok(())
    }
}

impl Provider for FullDb {
    fn open(&self, sum: &Checksum, _size: Option<u64>) -> Result<Option<Blob>> {
        // Locked across the look: a removal in between would not know of the reader. The writer's lock is never taken after
        // this one.
        let mut open = self.db.open.lock();
        let Some((id, size)) = self.db.read("open a blob in", |c| find(c, sum))? else { return Ok(None) };
        open.entry(id).or_default().readers += 1;
        Ok(Some(Blob::Remote(Box::new(Rows { db: Arc::clone(&self.db), id, size }))))
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        Ok(self.db.read("look for a blob in", |c| find(c, sum))?.map(|(_, size)| size))
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        let found = self.stat(sum)?.map(|_| Found { kind: KIND, path: self.db.path.clone() });
        Ok(found.into_iter().collect())
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        Ok(Arc::clone(&self.staging))
    }

    fn staging(&self, _name: StagingName) -> Result<Arc<StagingDir>> {
        Ok(Arc::clone(&self.staging))
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        vec![Arc::clone(&self.staging)]
    }

    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let put = self.put_all(batch, |tx, (sum, offer), unnaming| self.put_offer(tx, sum, offer, unnaming));
        self.volume.noted(Work::Put, put)
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        let put = self.put_all(&[blob], |tx, blob, unnaming| self.put_verified(tx, sum, blob, unnaming));
        self.volume.noted(Work::Put, put)
    }

    fn detach(&self, sum: &Checksum, name: StagingName, _file: FileId) -> Result<()> {
        // The file that the blob was made of, kept for who has it open, is no blob's.
        match self.staging.stat(name) {
            Err(error) if error.is_absent() => Err(Error::NotLocal(*sum)),
            found => found.map(drop),
        }
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        let mut unnaming = None;
        let removed = self.db.write("remove a blob from", |tx| match find(tx, sum)? {
            Some((id, _)) => self.db.unname(tx, id, &mut unnaming).map(|()| true),
            None => Ok(false),
        })?;
        unnaming.into_iter().for_each(Unnaming::end);
        Ok(removed)
    }

    fn force_removed(&self, _sums: &[Checksum]) -> Result<()> {
        // Every transaction was forced when it ended.
        let writer = self.db.writer.lock();
        let vacuumed = writer.execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"));
        vacuumed.map_err(|error| self.db.error("give back the free pages of", error))
    }

    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        let mut after = after.copied();
        loop {
            let page = self.db.read("list", |c| next_blobs(c, after.as_ref()))?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(*last);
            for (sum, size) in page {
                if visit(Listed::Blob { sum, size }).is_break() {
                    return Ok(());
                }
            }
        }
    }

    fn status(&self) -> ProviderStatus {
        let space = self.volume.space();
        let failing = space.as_ref().err().map(|error| text::chain(error)).or_else(|| self.volume.failing());
        ProviderStatus {
            kind: KIND,
            directory: Some(self.volume.path().to_owned()),
            file_system: Some(self.volume.file_system().name().to_owned()),
            reflink: false,
            health: failing.map_or(Health::Up, Health::Failing),
            space: space.ok().flatten(),
            owed: 0,
            cache: None,
            queue: None,
            children: Vec::new(),
        }
    }
}

/// Its name in a chain.
const KIND: &str = "full-db";

impl Db {
    /// Makes the database; one that a crash left half made is begun anew.
    fn create(volume: &Volume) -> Result<Db> {
        for suffix in ["", "-wal", "-shm"] {
            volume.remove(&format!("{FILE}{suffix}"))?;
        }
        // SQLite gives what it makes beside it the mode of the database.
        drop(volume.create_file(FILE, 0o600)?);
        let path = volume.at(FILE);
        let make = || -> rusqlite::Result<()> {
            let c = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            c.execute_batch(&format!("PRAGMA page_size={PAGE_BYTES}; PRAGMA auto_vacuum=INCREMENTAL;"))?;
            c.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
            c.execute_batch(SCHEMA)
        };
        make().map_err(|error| in_database(&path, "make", error))?;
        Db::open(path)
    }

    fn open(path: PathBuf) -> Result<Db> {
        let open = || -> rusqlite::Result<Connection> {
            let c = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            c.execute_batch("PRAGMA synchronous=FULL;")?;
            Ok(c)
        };
        let writer = open().map_err(|error| in_database(&path, "open", error))?;
        Ok(Db { writer: Mutex::new(writer), path, readers: Mutex::default(), open: Mutex::default() })
    }

    /// Runs `act` with a connection of its own.
    fn read<T>(
        &self,
        doing: &'static str,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let kept = self.readers.lock().pop();
        let connection = match kept {
            Some(connection) => connection,
            None => connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)
                .map_err(|error| self.error("open", error))?,
        };
        let done = act(&connection).map_err(|error| self.error(doing, error));
        let mut readers = self.readers.lock();
        if readers.len() < READERS_KEPT {
            readers.push(connection);
        }
        done
    }

    /// Runs `act` in a transaction, which is durable on Ok and undone otherwise.
    fn write<T>(
        &self,
        doing: &'static str,
        act: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut writer = self.writer.lock();
        let run = || -> rusqlite::Result<T> {
            let tx = writer.transaction()?;
            let done = act(&tx)?;
            tx.commit()?;
            Ok(done)
        };
        run().map_err(|error| self.error(doing, error))
    }

    /// Takes a blob's name away, and its rows unless somebody reads it. `unnaming` is ended after the commit, or dropped.
    fn unname<'a>(
        &'a self,
        tx: &Transaction<'_>,
        id: i64,
        unnaming: &mut Option<Unnaming<'a>>,
    ) -> rusqlite::Result<()> {
        let unnaming = unnaming.get_or_insert_with(|| Unnaming { open: self.open.lock(), read: Vec::new() });
        if !unnaming.open.contains_key(&id) {
            return delete(tx, id);
        }
        unnaming.read.push(id);
        tx.execute("UPDATE blob SET sum = NULL WHERE id = $1", [id]).map(drop)
    }

    /// Deletes what lost its name while it was open, before a crash.
    fn clear_removed(&self) -> Result<()> {
        self.write("tidy", |tx| {
            let mut of = tx.prepare("SELECT id FROM blob WHERE sum IS NULL")?;
            let ids: Vec<i64> = of.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            ids.into_iter().try_for_each(|id| delete(tx, id))
        })
    }

    fn error(&self, doing: &'static str, error: rusqlite::Error) -> Error {
        in_database(&self.path, doing, error)
    }
}

impl Unnaming<'_> {
    /// The names are gone: so are the rows with their last readers.
    fn end(mut self) {
        for id in &self.read {
            if let Some(open) = self.open.get_mut(id) {
                open.removed = true;
            }
        }
    }
}

/// An open blob.
#[derive(Debug)]
struct Rows {
    db: Arc<Db>,
    id: i64,
    size: u64,
}

impl Remote for Rows {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let wanted = self.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let end = offset + wanted as u64;
        let (first, last) = (offset / PART_BYTES, (end - 1) / PART_BYTES);
        let read = self.db.read("read a blob in", |c| {
            const SQL: &str = "SELECT id, bytes FROM part WHERE id BETWEEN $1 AND $2 ORDER BY id";
            let mut parts = c.prepare_cached(SQL)?;
            let mut rows = parts.query(params![part_id(self.id, first), part_id(self.id, last)])?;
            let mut done = 0;
            while let Some(row) = rows.next()? {
                let start = (row.get::<_, i64>(0)? - part_id(self.id, 0)) as u64 * PART_BYTES;
                let bytes = row.get_ref(1)?.as_blob()?;
                let from = (offset + done as u64).saturating_sub(start) as usize;
                let to = (end.saturating_sub(start) as usize).min(bytes.len());
                if start > offset + done as u64 || from > to {
                    break;
                }
                buffer[done..done + to - from].copy_from_slice(&bytes[from..to]);
                done += to - from;
            }
            Ok(done)
        });
        match read {
            Ok(done) if done == wanted => Ok(done),
            // Rows that are gone or cut must not pass for the end of the blob.
            Ok(done) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the database has {done} of {wanted} bytes at {offset}"),
            )),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let mut open = self.db.open.lock();
        let Some(known) = open.get_mut(&self.id) else { return };
        known.readers -= 1;
        if known.readers > 0 {
            return;
        }
        let removed = known.removed;
        open.remove(&self.id);
        drop(open);
        if removed && let Err(error) = self.db.write("remove a blob from", |tx| delete(tx, self.id)) {
            tracing::warn!("a removed blob keeps its room until the next start: {}", text::chain(&error));
        }
    }
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let c = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    c.busy_timeout(BUSY_WAIT)?;
    Ok(c)
}

fn part_id(blob: i64, number: u64) -> i64 {
    blob * PARTS_MAX as i64 + number as i64
}

/// Id and size of a blob.
fn find(c: &Connection, sum: &Checksum) -> rusqlite::Result<Option<(i64, u64)>> {
    let mut found = c.prepare_cached("SELECT id, size FROM blob WHERE sum = $1")?;
    found.query_row([&sum.0[..]], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64))).optional()
}

fn insert(tx: &Transaction<'_>, sum: &Checksum, size: u64) -> rusqlite::Result<i64> {
    let mut blob = tx.prepare_cached("INSERT INTO blob (sum, size) VALUES ($1, $2) RETURNING id")?;
    blob.query_row(params![&sum.0[..], size as i64], |row| row.get(0))
}

fn delete(tx: &Transaction<'_>, id: i64) -> rusqlite::Result<()> {
    let range = params![part_id(id, 0), part_id(id, PARTS_MAX - 1)];
    tx.execute("DELETE FROM part WHERE id BETWEEN $1 AND $2", range)?;
    tx.execute("DELETE FROM blob WHERE id = $1", [id]).map(drop)
}

/// The next blobs in the order of their checksums.
fn next_blobs(c: &Connection, after: Option<&Checksum>) -> rusqlite::Result<Vec<(Checksum, u64)>> {
    const SQL: &str = "SELECT sum, size FROM blob WHERE sum > $1 ORDER BY sum LIMIT $2";
    let mut blobs = c.prepare_cached(SQL)?;
    let after = after.map_or(&[][..], |sum| &sum.0[..]);
    let page = blobs.query_map(params![after, LIST_PAGE as i64], |row| {
        Ok((Checksum(row.get(0)?), row.get::<_, i64>(1)? as u64))
    })?;
    page.collect()
}

/// What SQLite says, with the kinds of error that callers tell apart.
fn in_database(path: &Path, doing: &'static str, error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => io::ErrorKind::StorageFull,
        Some(ErrorCode::ReadOnly) => io::ErrorKind::ReadOnlyFilesystem,
        _ => io::ErrorKind::Other,
    };
    Error::Io { doing, path: path.to_owned(), source: io::Error::new(kind, error) }
}

#[cfg(test)]
mod tests;
