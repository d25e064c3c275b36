//! SQLite's own: transactions, settings of a connection, the header of the file, the write-ahead log.

use std::time::Duration;

use rusqlite::Connection;

use super::{one, run};
use crate::index::error::{Error, Result};

/// Takes the write lock at once, so that a commit never fails half way for another's.
pub(in crate::index) fn begin_write(c: &Connection) -> Result<()> {
    run(c, "begin a commit", "BEGIN IMMEDIATE", []).map(drop)
}

/// Begins a series of reads that all see one state.
pub(in crate::index) fn begin_read(c: &Connection) -> Result<()> {
    run(c, "begin to read", "BEGIN", []).map(drop)
}

pub(in crate::index) fn commit(c: &Connection) -> Result<()> {
    run(c, "commit", "COMMIT", []).map(drop)
}

pub(in crate::index) fn rollback(c: &Connection) -> Result<()> {
    run(c, "roll back", "ROLLBACK", []).map(drop)
}

/// Begins a commit within the open transaction.
pub(in crate::index) fn savepoint(c: &Connection) -> Result<()> {
    run(c, "begin a commit", "SAVEPOINT one", []).map(drop)
}

/// The commit becomes part of the open transaction.
pub(in crate::index) fn keep(c: &Connection) -> Result<()> {
    run(c, "commit", "RELEASE one", []).map(drop)
}

/// The commit leaves the open transaction as it was before.
pub(in crate::index) fn undo(c: &Connection) -> Result<()> {
    run(c, "roll back", "ROLLBACK TO one", [])?;
    keep(c)
}

/// Several statements that return nothing: the schema, its upgrades, pragmas.
pub(in crate::index) fn script(c: &Connection, doing: &'static str, sql: &str) -> Result<()> {
    c.execute_batch(sql).map_err(|e| Error::of(c, doing, e))
}

/// Settings of every connection to an existing index. Memory is bounded by `cache_kib` and there is no memory map, which would
/// count as resident; the system's page cache is behind both.
pub(in crate::index) fn tune(c: &Connection, cache_kib: u32) -> Result<()> {
    let pragmas = format!(
        "PRAGMA synchronous = NORMAL; PRAGMA cache_size = -{cache_kib}; PRAGMA temp_store = MEMORY; \
         PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = OFF; PRAGMA mmap_size = 0"
    );
    script(c, "prepare a connection", &pragmas)
}

/// Bounds what the write-ahead log keeps on disk after it was copied back. SQLite itself never copies it back, as it would tell
/// nobody of an error.
pub(in crate::index) fn bound_log(c: &Connection, pages: i64) -> Result<()> {
    let bytes = pages * i64::from(crate::index::schema::PAGE_BYTES + 24);
    let pragmas = format!("PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = {bytes}");
    script(c, "prepare a connection", &pragmas)
}

/// Changed pages stay in memory until the transaction ends: nothing but its end can meet a full disk.
pub(in crate::index) fn keep_in_memory(c: &Connection) -> Result<()> {
    script(c, "prepare a connection", "PRAGMA cache_spill = OFF")
}

/// For a file that has no page yet.
pub(in crate::index) fn set_page_size(c: &Connection, bytes: u32) -> Result<()> {
    script(c, "write the header", &format!("PRAGMA page_size = {bytes}"))
}

/// Switches to a write-ahead log; the mode that is then set.
pub(in crate::index) fn use_log(c: &Connection) -> Result<String> {
    let mode = one(c, "switch on the write-ahead log", "PRAGMA journal_mode = WAL", [], |r| r.get(0))?;
    Ok(mode.unwrap_or_default())
}

/// From here on each commit forces what it wrote.
pub(in crate::index) fn durable_commits(c: &Connection) -> Result<()> {
    script(c, "prepare a connection", "PRAGMA synchronous = FULL")
}

/// From here on commits are forced by `Index::sync`, in the redo log.
pub(in crate::index) fn normal_commits(c: &Connection) -> Result<()> {
    script(c, "prepare a connection", "PRAGMA synchronous = NORMAL")
}

pub(in crate::index) fn application_id(c: &Connection) -> Result<i64> {
    let id = one(c, "read the header", "PRAGMA application_id", [], |r| r.get(0))?;
    Ok(id.unwrap_or_default())
}

pub(in crate::index) fn set_application_id(c: &Connection, id: i64) -> Result<()> {
    script(c, "write the header", &format!("PRAGMA application_id = {id}"))
}

pub(in crate::index) fn user_version(c: &Connection) -> Result<i64> {
    let version = one(c, "read the header", "PRAGMA user_version", [], |r| r.get(0))?;
    Ok(version.unwrap_or_default())
}

pub(in crate::index) fn set_user_version(c: &Connection, version: i64) -> Result<()> {
    script(c, "write the header", &format!("PRAGMA user_version = {version}"))
}

/// Reads one row of a table of the schema: it is there and its root is sound.
pub(in crate::index) fn probe(c: &Connection, table: &'static str) -> Result<()> {
    let sql = format!("SELECT * FROM {table} LIMIT 1");
    let read = || c.prepare(&sql)?.query([])?.next().map(drop);
    read().map_err(|e| match Error::of(c, "read a table", e) {
        Error::Sql { source, .. } => Error::damaged(c, format!("table {table}: {source}")),
        other => other,
    })
}

/// Pages in the write-ahead log, and how many of them are in the database file too.
pub(in crate::index) struct Log {
    /// A reader or writer kept the checkpoint from finishing.
    pub busy: bool,
    /// Pages in the log.
    pub pages: i64,
    /// Pages of them that a checkpoint has copied; forced when they are all.
    pub copied: i64,
}

fn checkpoint(c: &Connection, sql: &'static str) -> Result<Log> {
    let doing = "copy the write-ahead log into the index";
    let log = one(c, doing, sql, [], |r| Ok(Log { busy: r.get(0)?, pages: r.get(1)?, copied: r.get(2)? }))?;
    log.ok_or_else(|| Error::damaged(c, "a checkpoint told nothing"))
}

/// How full the log is; copies nothing.
pub(in crate::index) fn log(c: &Connection) -> Result<Log> {
    checkpoint(c, "PRAGMA wal_checkpoint(NOOP)")
}

/// Copies what can be copied without making anybody wait, and forces it if that is all.
pub(in crate::index) fn checkpoint_some(c: &Connection) -> Result<Log> {
    checkpoint(c, "PRAGMA wal_checkpoint(PASSIVE)")
}

/// Copies everything, forces it and empties the log; waits for readers, but not long.
pub(in crate::index) fn checkpoint_all(c: &Connection) -> Result<()> {
    // Whoever reads for long must not hold up everybody else.
    let wait = |time| c.busy_timeout(time).map_err(|e| Error::of(c, "prepare a connection", e));
    wait(Duration::from_millis(200))?;
    let done = checkpoint(c, "PRAGMA wal_checkpoint(TRUNCATE)");
    wait(crate::index::connection::BUSY_WAIT)?;
    match done? {
        Log { busy: false, .. } => Ok(()),
        _ => {
            Err(Error::Busy { doing: "empty the write-ahead log", path: c.path().unwrap_or_default().into() })
        }
    }
}
