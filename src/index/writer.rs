//! The one connection that changes the index: one open transaction, the redo log beside it.
//!
//! What is committed is applied in the open transaction and logged (`redo`); a flush ends the transaction. SQLite never has a
//! commit that the redo log has not, and what the redo log has can always be applied again: after a crash, and after SQLite
//! gave its transaction up by itself, as it does when the disk refuses it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::apply::{self, Effects};
use super::connection::{self, Files};
use super::error::{Error, Result};
use super::redo::{EntryRef, Redo};
use super::{Seq, sql};
use crate::failpoint;

/// A transaction with so many changes is ended. While that fails, nothing more is taken: what is pending stays in memory, has to
/// be applied again after a crash, and must fit in the reserve of a full disk.
const PENDING_CHANGES_MAX: usize = 4096;

/// How long a flush that failed is not tried again unasked.
const FLUSH_PAUSE: Duration = Duration::from_secs(1);

/// Keys of `meta`.
pub(super) const APPLIED: &str = "applied";
pub(super) const SESSION: &str = "session";

/// The connection and the log.
pub(super) struct Writer {
    files: Files,
    /// `None` only while it is being replaced.
    c: Option<Connection>,
    redo: Redo,
    session: u64,
    last: Seq,
    flushed: Seq,
    /// Changes in the open transaction.
    pending: usize,
    /// SQLite may lack commits that are logged.
    behind: bool,
    flush_failed: Option<Refusal>,
}

/// A flush that failed.
#[derive(Clone, Copy)]
struct Refusal {
    at: Instant,
    full: bool,
}

impl Deref for Writer {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.c
            .as_ref()
            .expect("there is a connection unless replacing it failed, which `ready` reports first")
    }
}

impl Writer {
    /// Takes over an accepted index: applies what only the redo log has, and begins a session. `force` makes SQLite's own
    /// log durable.
    pub fn start(
        files: &Files,
        c: Connection,
        redo: Redo,
        force: impl FnOnce() -> Result<()>,
    ) -> Result<Writer> {
        let session = number(files, &c, SESSION)?;
        let last = number(files, &c, APPLIED)?;
        let mut writer = Writer {
            files: files.clone(),
            c: Some(c),
            redo,
            session,
            last,
            flushed: last,
            pending: 0,
            behind: true,
            flush_failed: None,
        };
        writer.catch_up()?;
        writer.end_transaction()?;
        writer.session = new_session().map_err(|e| Error::io(&files.db, "begin a session of", e))?;
        let session = writer.session.to_string();
        writer.directly(|c| sql::set_meta(c, SESSION, &session))?;
        force()?;
        writer.redo.begin(writer.session);
        Ok(writer)
    }

    /// The last commit.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// The last commit that SQLite has ended a transaction with: what other connections see.
    pub fn flushed(&self) -> Seq {
        self.flushed
    }

    /// The redo log.
    pub fn redo(&mut self) -> &mut Redo {
        &mut self.redo
    }

    /// Sees to it that the connection has every commit.
    pub fn ready(&mut self) -> Result<()> {
        // After an error of the disk, of a read as well, SQLite has rolled the transaction back by itself.
        let lost = !self.behind && self.flushed != self.last && self.is_autocommit();
        if !self.behind && !lost {
            return Ok(());
        }
        // Until all of it is applied: a start that fails may leave a transaction with a part.
        self.behind = true;
        self.renew()?;
        self.catch_up()
    }

    /// Applies and logs `entry`: when this returns it is visible here and safe against a kill. After an error nothing has
    /// changed.
    pub fn commit(&mut self, entry: EntryRef<'_>) -> Result<Effects> {
        self.ready()?;
        // A crash before the entry is logged leaves none of its changes, one after that all of them.
        failpoint::hit("index.begin");
        if self.is_autocommit() {
            sql::begin_write(self)?;
        }
        sql::savepoint(self)?;
        let applied = apply_entry(self, entry).inspect(|_| failpoint::hit("index.applied"));
        match applied.and_then(|effects| self.redo.append(self.last + 1, entry).map(|()| effects)) {
            Ok(effects) => {
                self.last += 1;
                self.pending += entry.changes();
                failpoint::hit("index.committed");
                // It is logged, so it holds; if SQLite lost its transaction, it is applied again before the next use.
                self.behind = sql::keep(self).is_err();
                Ok(effects)
            }
            Err(error) => {
                self.behind = self.is_autocommit() || sql::undo(self).is_err();
                Err(error)
            }
        }
    }

    /// Whether so much is pending that a flush is due, and the last one that failed is long ago.
    pub fn is_flush_due(&self) -> bool {
        (self.redo.is_full() || self.pending >= PENDING_CHANGES_MAX)
            && self.flush_failed.is_none_or(|failed| failed.at.elapsed() >= FLUSH_PAUSE)
    }

    /// Whether nothing more is taken before a flush and a force have made room.
    pub fn is_overfull(&self) -> bool {
        self.pending >= PENDING_CHANGES_MAX || self.redo.is_overfull()
    }

    /// Why the next flush would fail, if one failed a moment ago.
    pub fn refusal(&self) -> Option<Error> {
        let failed = self.flush_failed.filter(|failed| failed.at.elapsed() < FLUSH_PAUSE)?;
        let kind = if failed.full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
        let source = io::Error::new(kind, "the index file was not brought up to date a moment ago");
        Some(Error::io(&self.files.db, "commit", source))
    }

    /// Ends the open transaction, so that other connections see every commit.
    pub fn flush(&mut self) -> Result<()> {
        let flushed = self.ready().and_then(|()| self.end_transaction());
        let refusal =
            |error: &Error| Refusal { at: Instant::now(), full: matches!(error, Error::Full { .. }) };
        self.flush_failed = flushed.as_ref().err().map(refusal);
        flushed
    }

    fn end_transaction(&mut self) -> Result<()> {
        if self.is_autocommit() {
            return Ok(());
        }
        // A crash anywhere in here leaves the commits in the redo log, and perhaps in the database too.
        failpoint::hit("index.flush");
        let last = self.last.to_string();
        let ended = sql::set_meta(self, APPLIED, &last).and_then(|()| sql::commit(self));
        if let Err(error) = ended {
            // SQLite may have given up the transaction.
            self.behind = true;
            return Err(error);
        }
        self.flushed = self.last;
        self.pending = 0;
        self.redo.flushed();
        failpoint::hit("index.flushed");
        Ok(())
    }

    /// A transaction of its own that the redo log knows nothing of, after a flush. The caller forces it.
    pub fn directly<T>(&mut self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.flush()?;
        sql::begin_write(self)?;
        let done = work(self).and_then(|done| sql::commit(self).map(|()| done));
        if done.is_err() && !self.is_autocommit() && sql::rollback(self).is_err() {
            self.behind = true;
        }
        done
    }

    /// Starts the redo log anew. Everything in it must be forced in SQLite's files.
    pub fn restart_redo(&mut self) {
        self.redo.begin(self.session);
    }

    /// The end of the connection, if there is one, will leave SQLite's log alone.
    pub fn close_quietly(&self) {
        if let Some(c) = &self.c {
            let _ = connection::quiet(c, true);
        }
    }

    /// A connection without a transaction.
    fn renew(&mut self) -> Result<()> {
        if let Some(c) = &self.c
            && (c.is_autocommit() || sql::rollback(c).is_ok())
        {
            return Ok(());
        }
        // The old one first: its locks would be in the way.
        self.c = None;
        self.c = Some(connection::open_writer(&self.files)?);
        Ok(())
    }

    /// Applies every logged commit that SQLite does not have.
    fn catch_up(&mut self) -> Result<()> {
        let applied = number(&self.files, self, APPLIED)?;
        let missing = self.redo.read(self.session, applied)?;
        let last = missing.last().map_or(applied, |(seq, _)| *seq);
        if last < self.last {
            let what = format!("commit {} was made, and the redo log ends with {last}", self.last);
            return Err(Error::corrupt(&self.files.db, what));
        }
        if !missing.is_empty() {
            sql::begin_write(self)?;
            for (seq, entry) in &missing {
                if let Err(error) = apply_entry(self, entry.as_ref()) {
                    let _ = sql::rollback(self);
                    if !error.is_refusal() {
                        return Err(error);
                    }
                    let what = format!("commit {seq} of the redo log does not fit the index: {error}");
                    return Err(Error::corrupt(&self.files.db, what));
                }
            }
        }
        self.pending = missing.iter().map(|(_, entry)| entry.as_ref().changes()).sum();
        (self.flushed, self.last, self.behind) = (applied, last, false);
        Ok(())
    }
}

/// A number that no earlier session of this index has, even if an older copy of it was put back.
fn new_session() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn apply_entry(c: &Connection, entry: EntryRef<'_>) -> Result<Effects> {
    match entry {
        EntryRef::Changes(changes) => apply::apply(c, changes),
        EntryRef::Numbers(mark) => {
            sql::set_meta(c, "numbers", &mark.to_string()).map(|()| Effects::default())
        }
    }
}

/// A number in `meta`, 0 where there is none.
pub(super) fn number(files: &Files, c: &Connection, key: &str) -> Result<u64> {
    match sql::meta(c, key)? {
        None => Ok(0),
        Some(text) => match text.parse() {
            // So many commits nobody makes; and the next ones have to be counted too.
            Ok(number) if key == APPLIED && number > Seq::MAX / 2 => {
                Err(Error::corrupt(&files.db, format!("{key} in meta: {number}")))
            }
            Ok(number) => Ok(number),
            Err(e) => Err(Error::corrupt(&files.db, format!("{key} in meta: {e}"))),
        },
    }
}
