//! Connections to the index file: where its files lie, how they are opened, the pool that reads use.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::error::{Error, Result};
use super::writer::{APPLIED, SESSION, number};
use super::{redo, schema, sql};
use crate::failpoint;

/// Page cache of the writer: the inner pages of every tree of a large index, and the leaves in use.
const WRITER_CACHE_KIB: u32 = 16 * 1024;
/// Page cache of each reader.
const READER_CACHE_KIB: u32 = 4 * 1024;
/// Page cache of a connection that only copies.
const SMALL_CACHE_KIB: u32 = 256;
/// Readers kept for the next question; more are opened when more threads ask at once, and closed again.
const READERS_KEPT: usize = 8;
/// Beyond this many pages (32 MiB) a flush copies the write-ahead log back itself, where `Index::tidy` did not.
pub(super) const LOG_PAGES_MAX: i64 = 16 * 1024;
/// Nobody else should hold a lock; whoever does, as a `sqlite3` of an operator, is waited for this long.
pub(super) const BUSY_WAIT: Duration = Duration::from_secs(5);

/// Paths of the index and of what lies beside it.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// The database.
    pub db: PathBuf,
    /// Its write-ahead log.
    pub wal: PathBuf,
    /// SQLite's shared memory.
    pub shm: PathBuf,
    /// The reserve.
    pub reserve: PathBuf,
    /// The redo log.
    pub redo: [PathBuf; 2],
}

impl Files {
    pub fn of(path: &Path) -> Files {
        Files {
            db: path.to_path_buf(),
            wal: suffixed(path, "-wal"),
            shm: suffixed(path, "-shm"),
            reserve: path.with_extension("reserve"),
            redo: [path.with_extension("redo0"), path.with_extension("redo1")],
        }
    }

    /// Where an upgrade keeps the file of version `version`.
    pub fn kept(&self, version: i64) -> PathBuf {
        suffixed(&self.db, &format!(".v{version}"))
    }
}

/// `path` with something after its last name.
pub(super) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut whole = OsString::from(path);
    whole.push(suffix);
    whole.into()
}

/// Forces the directory that holds `path`, so that the names in it are durable.
pub(super) fn force_directory(path: &Path) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| Error::io(directory, "force a directory", e))
}

/// A connection that may make the file; for `create` and copies.
pub(super) fn open_new(path: &Path) -> Result<Connection> {
    open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE, SMALL_CACHE_KIB)
}

fn open(path: &Path, flags: OpenFlags, cache_kib: u32) -> Result<Connection> {
    let doing = "open the index";
    let c = connect(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(|e| Error::at(path, doing, e))?;
    c.busy_timeout(BUSY_WAIT).map_err(|e| Error::of(&c, doing, e))?;
    c.set_prepared_statement_cache_capacity(128);
    // Plans do not depend on values. Without this, a cached statement is parsed again for each new value: 20 us.
    c.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(|e| Error::of(&c, doing, e))?;
    sql::tune(&c, cache_kib)?;
    Ok(c)
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    #[cfg(debug_assertions)]
    if failpoint::steered() && crate::sys::sqlite_vfs::register() {
        return Connection::open_with_flags_and_vfs(path, flags, crate::sys::sqlite_vfs::NAME);
    }
    Connection::open_with_flags(path, flags)
}

/// The connection that commits, on an index that was accepted.
pub(super) fn open_writer(files: &Files) -> Result<Connection> {
    let c = open(&files.db, OpenFlags::SQLITE_OPEN_READ_WRITE, WRITER_CACHE_KIB)?;
    sql::bound_log(&c, LOG_PAGES_MAX)?;
    sql::keep_in_memory(&c)?;
    Ok(c)
}

/// A connection that copies the write-ahead log back while others commit.
pub(super) fn open_copier(files: &Files) -> Result<Connection> {
    open(&files.db, OpenFlags::SQLITE_OPEN_READ_WRITE, SMALL_CACHE_KIB)
}

/// Verifies that the file is an index of ours, brings it up to date, and leaves it untouched where it is not. The connection
/// is `quiet`.
///
/// First the header is read without SQLite, which knows a foreign file and a newer version. The rest is read through SQLite
/// with checkpoints off, so that even the log of a refused index stays as it was.
pub(super) fn open_verified(files: &Files, steps: &[schema::Step], known: i64) -> Result<Connection> {
    match read_header(&files.db)? {
        schema::Header::Foreign => return Err(Error::Foreign { path: files.db.clone() }),
        schema::Header::Ours(found) if found > known => {
            return Err(Error::Newer { path: files.db.clone(), found, known });
        }
        schema::Header::Ours(_) => {}
    }
    let had_log = files.wal.exists();
    let c = open_writer(files)?;
    let verified = quiet(&c, true).and_then(|()| schema::accept(&c, &files.db, known)).and_then(|found| {
        if found < known {
            let [session, applied] = [SESSION, APPLIED].map(|key| number(files, &c, key));
            redo::must_be_done(files, session?, applied?)?;
            schema::upgrade(&c, files, steps, found, known)?;
        }
        schema::TABLES.iter().try_for_each(|table| sql::probe(&c, table))
    });
    if let Err(refused) = verified {
        drop(c);
        if !had_log {
            // Reading made these, empty; best effort, as they do no harm.
            let _ = fs::remove_file(&files.wal);
            let _ = fs::remove_file(&files.shm);
        }
        return Err(refused);
    }
    match sql::use_log(&c)?.as_str() {
        "wal" => Ok(c),
        other => Err(Error::corrupt(&files.db, format!("no write-ahead log is possible here, only {other}"))),
    }
}

/// Whether closing the connection leaves the log alone.
pub(super) fn quiet(c: &Connection, on: bool) -> Result<()> {
    let set = c.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, on);
    set.map(drop).map_err(|e| Error::of(c, "prepare a connection", e))
}

fn read_header(path: &Path) -> Result<schema::Header> {
    let doing = "read the header of the index";
    let mut bytes = [0; 100];
    let mut file = File::open(path).map_err(|e| Error::io(path, doing, e))?;
    match file.read_exact(&mut bytes) {
        Ok(()) => Ok(schema::header(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            let what =
                if bytes.starts_with(b"SQLite format 3\0") || bytes == [0; 100] { "cut short" } else { "" };
            if what.is_empty() { Ok(schema::Header::Foreign) } else { Err(Error::corrupt(path, what)) }
        }
        Err(e) => Err(Error::io(path, doing, e)),
    }
}

/// Copies the state that `from` sees to a file that appears whole and durable, replacing an earlier one.
pub(super) fn copy(from: &Connection, to: &Path) -> Result<()> {
    let part = suffixed(to, ".part");
    let doing = "copy the index";
    match fs::remove_file(&part) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(&part, doing, e)),
        _ => {}
    }
    let copied = copy_pages(from, &part).and_then(|()| {
        File::open(&part).and_then(|f| f.sync_all()).map_err(|e| Error::io(&part, doing, e))?;
        // A crash here leaves no copy under its name, or the earlier one.
        failpoint::hit("backup.copied");
        fs::rename(&part, to).map_err(|e| Error::io(to, doing, e))?;
        force_directory(to)
    });
    if copied.is_err() {
        let _ = fs::remove_file(&part);
    }
    copied
}

fn copy_pages(from: &Connection, part: &Path) -> Result<()> {
    let doing = "copy the index";
    let mut to = open_new(part)?;
    // One step, one state: in several, each commit meanwhile would start the copy again.
    for _ in 0..10 {
        let step =
            Backup::new(from, &mut to).and_then(|b| b.step(-1)).map_err(|e| Error::at(part, doing, e))?;
        if step == StepResult::Done {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Error::Busy { doing, path: part.to_path_buf() })
}

/// Read-only connections, kept between questions.
pub(super) struct Readers {
    db: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub fn new(files: &Files) -> Readers {
        Readers { db: files.db.clone(), idle: Mutex::new(Vec::new()) }
    }

    /// A connection of one's own until it is dropped.
    pub fn get(&self) -> Result<Reader<'_>> {
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(c) => c,
            None => open(&self.db, OpenFlags::SQLITE_OPEN_READ_ONLY, READER_CACHE_KIB)?,
        };
        Ok(Reader { pool: self, connection: Some(connection) })
    }

    /// As `get`, and everything read until it is dropped is of one state.
    pub fn snapshot(&self) -> Result<Snapshot<'_>> {
        let reader = self.get()?;
        sql::begin_read(&reader)?;
        Ok(Snapshot(reader))
    }
}

/// A connection on loan; gives itself back.
pub(super) struct Reader<'a> {
    pool: &'a Readers,
    connection: Option<Connection>,
}

impl Deref for Reader<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("a reader holds its connection until it is dropped")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut idle = self.pool.idle.lock();
        match self.connection.take() {
            Some(c) if c.is_autocommit() && idle.len() < READERS_KEPT => idle.push(c),
            surplus => {
                drop(idle);
                drop(surplus);
            }
        }
    }
}

/// A read transaction; ends when dropped.
pub(super) struct Snapshot<'a>(Reader<'a>);

impl Deref for Snapshot<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        // A connection whose transaction does not end is closed instead of kept (see `Reader`).
        let _ = sql::commit(&self.0);
    }
}
