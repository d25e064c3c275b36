//! What the cache remembers: which blobs it has room for, when each was asked for last, and what was asked for lately.
//!
//! A row is there before the file it is about, and forced before that file has the blob's name: after a crash there may be a
//! row without a file, which the next eviction drops. What notes uses or gives room back may be lost by a power cut: the
//! file without a row that can come of it is found by [`super::sweep`]. The total is a row of its own, so that opening reads
//! nothing else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Transaction, params};

use super::super::error::{Error, Result};
use super::super::volume::Volume;
use crate::change::Nanos;
use crate::checksum::Checksum;

/// The database in the first directory of the cache.
pub(super) const FILE: &str = "cache.db";

const SCHEMA: &str = "
CREATE TABLE entry (
  sum BLOB PRIMARY KEY,     -- SHA-1, 20 bytes
  size INTEGER NOT NULL,    -- bytes of the blob
  used INTEGER NOT NULL     -- when it was asked for last, ns since 1970
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_by_use ON entry (used);
CREATE TABLE total (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  room INTEGER NOT NULL,    -- bytes on the disk of all entries: sizes rounded up to blocks
  entries INTEGER NOT NULL  -- how many
) STRICT;
INSERT INTO total VALUES (1, 0, 0);
CREATE TABLE asked (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, -- the order in which blobs were opened; only the newest are kept
  sum BLOB NOT NULL,        -- SHA-1, 20 bytes
  size INTEGER NOT NULL,    -- bytes of the blob
  hit INTEGER NOT NULL      -- 1: the cache had it
) STRICT;";

/// The log stays small: it is on the disk beside what the limit counts.
const PRAGMAS: &str = "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=64;";
/// Openings that are remembered to advise on the size of the cache.
pub(super) const ASKED_MAX: i64 = 100_000;
/// Nobody else should hold a lock; whoever does, as a `sqlite3` of an operator, is waited for this long.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// What a file of this many bytes occupies is a multiple of it.
const BLOCK_BYTES: u64 = 4096;

/// Bytes on the disk of a blob of this size.
pub(super) fn room_of(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// One opening of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) sum: Checksum,
    pub(super) size: u64,
    /// Whether the cache had it.
    pub(super) hit: bool,
    pub(super) at: Nanos,
}

/// See above.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    db: Mutex<Connection>,
    entries: AtomicU64,
}

impl Ledger {
    /// Makes the database, empty; one that a crash left half made is begun anew.
    pub(super) fn create(volume: &Volume) -> Result<()> {
        for suffix in ["", "-wal", "-shm"] {
            volume.remove(&format!("{FILE}{suffix}"))?;
        }
        // SQLite gives what it makes beside it the mode of the database.
        drop(volume.create_file(FILE, 0o600)?);
        let path = volume.at(FILE);
        let make = || -> rusqlite::Result<()> {
            let mut c = connect(&path)?;
            c.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
            let tx = c.transaction()?;
            tx.execute_batch(SCHEMA)?;
            tx.commit()
        };
        make().map_err(|error| in_database(&path, "make", error))
    }

    /// Opens it; the room of all its entries comes with it. One that a crash left half made is invalid data.
    pub(super) fn open(path: PathBuf) -> Result<(Ledger, u64)> {
        let open = || -> rusqlite::Result<(Connection, u64, u64)> {
            let c = connect(&path)?;
            c.execute_batch(PRAGMAS)?;
            let sql = "SELECT room, entries FROM total WHERE id = 1";
            let (room, entries): (i64, i64) = c.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok((c, room.max(0) as u64, entries.max(0) as u64))
        };
        let (db, room, entries) = open().map_err(|error| match is_half_made(&error) {
            true => Error::Io {
                doing: "open",
                path: path.clone(),
                source: io::Error::new(io::ErrorKind::InvalidData, error),
            },
            false => in_database(&path, "open", error),
        })?;
        Ok((Ledger { path, db: Mutex::new(db), entries: AtomicU64::new(entries) }, room))
    }

    /// How many blobs it knows.
    pub(super) fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// Enters blobs, which are used now; not forced. The room that they take more than before.
    pub(super) fn enter(&self, blobs: &[(Checksum, u64)], now: Nanos) -> Result<i64> {
        self.write("enter blobs in", false, |tx| {
            let mut taken = 0;
            for (sum, size) in blobs {
                if find(tx, sum)? == Some(*size) {
                    continue;
                }
                taken -= remove(tx, sum)? as i64;
                let sql = "INSERT INTO entry (sum, size, used) VALUES ($1, $2, $3)";
                tx.prepare_cached(sql)?.execute(params![&sum.0[..], *size as i64, now])?;
                count(tx, room_of(*size) as i64, 1)?;
                taken += room_of(*size) as i64;
            }
            Ok(taken)
        })
    }

    /// What was entered is durable on Ok: from then on its file may have a name.
    pub(super) fn force(&self) -> Result<()> {
        self.write("force", true, |tx| count(tx, 0, 0))
    }

    /// Strikes blobs out; the room that they had.
    pub(super) fn strike(&self, sums: &[Checksum]) -> Result<u64> {
        self.write("strike blobs out of", false, |tx| {
            let mut given = 0;
            for sum in sums {
                given += remove(tx, sum)?;
            }
            Ok(given)
        })
    }

    /// Size of a blob that it knows.
    pub(super) fn size(&self, sum: &Checksum) -> Result<Option<u64>> {
        find(&self.db.lock(), sum).map_err(|error| self.error("look for a blob in", error))
    }

    /// The blobs that were asked for longest ago, and their sizes.
    pub(super) fn oldest(&self, limit: usize) -> Result<Vec<(Checksum, u64)>> {
        let db = self.db.lock();
        let look = || -> rusqlite::Result<Vec<(Checksum, u64)>> {
            let mut found = db.prepare_cached("SELECT sum, size FROM entry ORDER BY used LIMIT $1")?;
            let row = |row: &rusqlite::Row<'_>| Ok((Checksum(row.get(0)?), row.get::<_, i64>(1)? as u64));
            found.query_map([limit as i64], row)?.collect()
        };
        look().map_err(|error| self.error("look for the oldest blobs of", error))
    }

    /// Notes uses, in their order.
    pub(super) fn note(&self, asked: &[Asked]) -> Result<()> {
        self.write("note uses in", false, |tx| {
            let mut used = tx.prepare_cached("UPDATE entry SET used = $1 WHERE sum = $2")?;
            let mut log = tx.prepare_cached("INSERT INTO asked (sum, size, hit) VALUES ($1, $2, $3)")?;
            for one in asked {
                used.execute(params![one.at, &one.sum.0[..]])?;
                log.execute(params![&one.sum.0[..], one.size as i64, one.hit])?;
            }
            let newest = tx.last_insert_rowid();
            tx.execute("DELETE FROM asked WHERE seq <= $1", [newest - ASKED_MAX]).map(drop)
        })
    }

    /// Moves blobs to the end of the order without a use: they are open.
    pub(super) fn defer(&self, sums: &[Checksum], now: Nanos) -> Result<()> {
        self.write("reorder", false, |tx| {
            let mut used = tx.prepare_cached("UPDATE entry SET used = $1 WHERE sum = $2")?;
            sums.iter().try_for_each(|sum| used.execute(params![now, &sum.0[..]]).map(drop))
        })
    }

    /// What was asked for lately, in order: checksum, size, whether the cache had it.
    pub(super) fn asked(&self) -> Result<Vec<(Checksum, u64, bool)>> {
        let db = self.db.lock();
        let look = || -> rusqlite::Result<Vec<(Checksum, u64, bool)>> {
            let mut found = db.prepare_cached("SELECT sum, size, hit FROM asked ORDER BY seq")?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok((Checksum(row.get(0)?), row.get::<_, i64>(1)? as u64, row.get(2)?))
            };
            found.query_map([], row)?.collect()
        };
        look().map_err(|error| self.error("read the uses in", error))
    }

    /// Runs `act` in a transaction.
    fn write<T>(
        &self,
        doing: &'static str,
        forced: bool,
        act: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut db = self.db.lock();
        let run = || -> rusqlite::Result<(T, u64)> {
            db.execute_batch(if forced { "PRAGMA synchronous=FULL" } else { "PRAGMA synchronous=NORMAL" })?;
            let tx = db.transaction()?;
            let done = act(&tx)?;
            let sql = "SELECT entries FROM total WHERE id = 1";
            let entries: i64 = tx.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
            tx.commit()?;
            Ok((done, entries.max(0) as u64))
        };
        let (done, entries) = run().map_err(|error| self.error(doing, error))?;
        self.entries.store(entries, Relaxed);
        Ok(done)
    }

    fn error(&self, doing: &'static str, error: rusqlite::Error) -> Error {
        in_database(&self.path, doing, error)
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let c = Connection::open_with_flags(path, flags)?;
    c.busy_timeout(BUSY_WAIT)?;
    Ok(c)
}

/// Whether tables or the total are missing: their making was cut short.
fn is_half_made(error: &rusqlite::Error) -> bool {
    // SQLite has no code of its own for a missing table.
    matches!(error, rusqlite::Error::QueryReturnedNoRows)
        || error.sqlite_error_code() == Some(ErrorCode::Unknown)
}

fn find(c: &Connection, sum: &Checksum) -> rusqlite::Result<Option<u64>> {
    let mut found = c.prepare_cached("SELECT size FROM entry WHERE sum = $1")?;
    found.query_row([&sum.0[..]], |row| Ok(row.get::<_, i64>(0)? as u64)).optional()
}

/// Strikes one out; the room that it had.
fn remove(tx: &Transaction<'_>, sum: &Checksum) -> rusqlite::Result<u64> {
    let mut struck = tx.prepare_cached("DELETE FROM entry WHERE sum = $1 RETURNING size")?;
    let size = struck.query_row([&sum.0[..]], |row| row.get::<_, i64>(0)).optional()?;
    let Some(size) = size else { return Ok(0) };
    let room = room_of(size as u64);
    count(tx, -(room as i64), -1)?;
    Ok(room)
}

fn count(tx: &Transaction<'_>, room: i64, entries: i64) -> rusqlite::Result<()> {
    let sql = "UPDATE total SET room = room + $1, entries = entries + $2 WHERE id = 1";
    tx.prepare_cached(sql)?.execute([room, entries]).map(drop)
}

/// What SQLite says, with the kinds of error that callers tell apart.
fn in_database(path: &Path, doing: &'static str, error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => io::ErrorKind::StorageFull,
        Some(ErrorCode::ReadOnly) => io::ErrorKind::ReadOnlyFilesystem,
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    Error::Io { doing, path: path.to_owned(), source: io::Error::new(kind, error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, PathBuf, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::create(dir.path(), std::iter::empty()).unwrap();
        Ledger::create(&volume).unwrap();
        let path = volume.at(FILE);
        let ledger = Ledger::open(path.clone()).unwrap().0;
        (dir, path, ledger)
    }

    fn sum(i: u32) -> Checksum {
        let mut sum = Checksum([0; 20]);
        sum.0[..4].copy_from_slice(&i.to_be_bytes());
        sum
    }

    #[test]
    fn the_total_is_that_of_the_entries() {
        let (_dir, path, ledger) = fresh();
        assert_eq!(ledger.enter(&[(sum(1), 1), (sum(2), 4097), (sum(1), 1)], 5).unwrap(), 3 * 4096);
        assert_eq!(ledger.enter(&[(sum(2), 4097)], 6).unwrap(), 0, "known already");
        assert_eq!(ledger.enter(&[(sum(2), 1)], 6).unwrap(), -4096, "of another size");
        assert_eq!((ledger.size(&sum(2)).unwrap(), ledger.entries()), (Some(1), 2));
        drop(ledger);
        let (ledger, room) = Ledger::open(path).unwrap();
        assert_eq!((room, ledger.entries()), (2 * 4096, 2));
        assert_eq!(ledger.strike(&[sum(1), sum(7), sum(1)]).unwrap(), 4096);
        assert_eq!((ledger.entries(), ledger.size(&sum(1)).unwrap()), (1, None));
    }

    #[test]
    fn one_that_is_half_made_is_told_from_one_that_cannot_be_read() {
        let (_dir, path, ledger) = fresh();
        drop(ledger);
        Connection::open(&path).unwrap().execute("DELETE FROM total", []).unwrap();
        let kind = || match Ledger::open(path.clone()).map(drop) {
            Err(Error::Io { source, .. }) => source.kind(),
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(), io::ErrorKind::InvalidData);
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
        std::fs::write(&path, "").unwrap();
        assert_eq!(kind(), io::ErrorKind::InvalidData);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(kind(), io::ErrorKind::Other, "nothing says that it may be made anew");
    }

    #[test]
    fn the_order_is_that_of_the_last_use_and_outlives_the_process() {
        let (_dir, path, ledger) = fresh();
        for i in 0..4 {
            ledger.enter(&[(sum(i), 10)], i64::from(i)).unwrap();
        }
        ledger.note(&[Asked { sum: sum(0), size: 10, hit: true, at: 9 }]).unwrap();
        ledger.defer(&[sum(1)], 10).unwrap();
        drop(ledger);
        let (ledger, _) = Ledger::open(path).unwrap();
        let order: Vec<Checksum> = ledger.oldest(9).unwrap().into_iter().map(|(sum, _)| sum).collect();
        assert_eq!(order, [sum(2), sum(3), sum(0), sum(1)]);
        assert_eq!(ledger.asked().unwrap(), [(sum(0), 10, true)]);
    }

    /// What opening reads does not grow with the entries: SQLite counts the steps of its programs.
    #[test]
    fn opening_costs_the_same_whatever_is_in_it() {
        let (_dir, path, ledger) = fresh();
        let steps = |path: &Path| {
            let (ledger, _) = Ledger::open(path.to_owned()).unwrap();
            let db = ledger.db.lock();
            let mut total = db.prepare("SELECT room, entries FROM total WHERE id = 1").unwrap();
            let _: i64 = total.query_row([], |row| row.get(0)).unwrap();
            (
                total.get_status(rusqlite::StatementStatus::VmStep),
                total.get_status(rusqlite::StatementStatus::FullscanStep),
            )
        };
        let empty = steps(&path);
        let many: Vec<(Checksum, u64)> = (0..20_000).map(|i| (sum(i), 10)).collect();
        ledger.enter(&many, 1).unwrap();
        drop(ledger);
        assert_eq!(steps(&path), empty);
    }

    #[test]
    fn only_the_newest_uses_are_kept() {
        let (_dir, _path, ledger) = fresh();
        let uses: Vec<Asked> =
            (0..ASKED_MAX as u32 + 500).map(|i| Asked { sum: sum(i), size: 1, hit: false, at: 0 }).collect();
        ledger.note(&uses).unwrap();
        let kept = ledger.asked().unwrap();
        assert_eq!((kept.len() as i64, kept[0].0), (ASKED_MAX, sum(500)));
    }
}
