//! The way of commits to the disk: the redo log is forced, and what it held moves on into SQLite's files.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use rusqlite::Connection;

use super::error::{Error, Result};
use super::writer::Writer;
use super::{Index, Seq, sql};
use crate::failpoint;

/// `Index::tidy` copies the write-ahead log back into the file when it has grown by this many pages (8 MiB); fewer where a
/// test wants to see that happen.
pub(super) fn log_pages() -> i64 {
    #[cfg(debug_assertions)]
    if failpoint::steered() {
        return 32;
    }
    4096
}

/// Whose force it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Log {
    /// A redo log's: SQLite's own has everything after a flush.
    Redo,
    /// SQLite's own.
    Own,
}

/// What is known of the logs' way to the disk.
#[derive(Default)]
pub(super) struct Forcing {
    /// A force failed, and nothing since has proved that the disk has what it was to have.
    failed: Option<Log>,
}

impl Index {
    /// Forces every commit made so far to the disk; the last of them. Calls that come together share one force.
    ///
    /// Once a force has failed, the system may have dropped the pages that it could not write and will call the next force a
    /// success. So from then on the redo log is not trusted: `sync` goes on failing until a flush has brought everything into
    /// SQLite's own log and that was forced; and where that force failed, until a complete checkpoint has copied every page of
    /// it (from memory, where they still are) into the database file. If pages were lost from memory as well before then, this
    /// cannot be seen from here; the failed force was reported.
    pub fn sync(&self) -> Result<Seq> {
        let wanted = self.last_seq();
        let mut forcing = self.forcing.lock();
        if let Some(failed) = forcing.failed {
            return self.recover(&mut forcing, failed);
        }
        if self.durable_seq() >= wanted {
            return Ok(self.durable_seq());
        }
        let (last, files) = {
            let mut writer = self.writer.lock();
            (writer.last(), writer.redo().take_unforced())
        };
        for (part, file) in files {
            self.force(&file).map_err(|e| {
                forcing.failed = Some(Log::Redo);
                Error::io(&self.files.redo[part], "force the redo log", e)
            })?;
        }
        self.durable.store(last, Ordering::Release);
        drop(forcing);
        self.reserve.refill();
        Ok(last)
    }

    /// Forces SQLite's own log.
    pub(super) fn force_log(&self) -> Result<()> {
        self.force(&self.log).map_err(|e| Error::io(&self.files.wal, "force the write-ahead log", e))
    }

    fn force(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        if self.fail_force.swap(false, Ordering::Relaxed) {
            return Err(io::Error::other("injected"));
        }
        failpoint::call("index.force")?;
        file.sync_data()?;
        failpoint::hit("index.forced");
        Ok(())
    }

    /// Gets everything to the disk by another way than the logs.
    fn recover(&self, forcing: &mut Forcing, failed: Log) -> Result<Seq> {
        let mut writer = self.writer.lock();
        self.flush_writer(&mut writer)?;
        if failed == Log::Own {
            self.copy_back(&writer, sql::checkpoint_all)?;
        }
        self.force_log().inspect_err(|_| forcing.failed = Some(Log::Own))?;
        // Where the system dropped pages, the log has a hole, behind which nothing would be found.
        writer.restart_redo();
        forcing.failed = None;
        let last = writer.last();
        self.durable.store(last, Ordering::Release);
        Ok(last)
    }

    /// Brings the files in order now and then, beside running commits: ends the open transaction, lets go of a redo log
    /// that is not needed any more, copies a grown write-ahead log back into the file. What fails is left to the next call:
    /// the commits are durable in the redo log, or have failed to be.
    pub fn tidy(&self) -> Result<()> {
        let Some(copier) = self.copier.try_lock() else { return Ok(()) };
        self.flush()?;
        self.free_redo()?;
        let log = sql::log(&copier)?;
        if log.pages - log.copied >= log_pages() {
            self.copy_back(&copier, sql::checkpoint_some)?;
            // The commits are in the database file now, and in the log still.
            failpoint::hit("index.copied");
        }
        Ok(())
    }

    /// Lets go of a redo log that a flush has filled, once SQLite's own log is forced.
    fn free_redo(&self) -> Result<()> {
        let mut forcing = self.forcing.lock();
        // Asked only now: who holds this lock is the only one to let go of one, so it stays the same.
        if forcing.failed.is_some() || !self.writer.lock().redo().is_kept() {
            return Ok(());
        }
        self.force_log().inspect_err(|_| forcing.failed = Some(Log::Own))?;
        // A crash before the file is used again finds commits in it that the database has too.
        failpoint::hit("index.freed");
        self.writer.lock().redo().free_kept();
        Ok(())
    }

    /// Makes room for more commits, waiting for the disk; the error is why there is none.
    pub(super) fn make_room(&self) -> Result<()> {
        if let Some(error) = self.writer.lock().refusal() {
            return Err(error);
        }
        self.sync()?;
        self.flush()?;
        self.free_redo()
    }

    /// Copies SQLite's log back into the database file, by `how`.
    ///
    /// SQLite forces the file only after a copy that reached the end of the log, and never copies a page again. So once the
    /// disk has failed in between, pages copied earlier may be lost without anybody being told again: nothing more is copied
    /// until the next start, which begins with the whole log.
    pub(super) fn copy_back<T>(
        &self,
        c: &Connection,
        how: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<()> {
        let doing = "copy the write-ahead log into the index";
        if self.copy_failed.load(Ordering::Acquire) {
            let why =
                io::Error::other("the disk failed to do so earlier; unmount, see to the disk, mount again");
            return Err(Error::io(&self.files.db, doing, why));
        }
        how(c).map(drop).inspect_err(|error| {
            if matches!(error, Error::Io { .. }) {
                self.copy_failed.store(true, Ordering::Release);
                let error = error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "the index file cannot be written; its log grows until the next mount"
                );
            }
        })
    }

    /// Makes the redo log's other file free at once. Best effort: the next commit tries again.
    pub(super) fn shorten_redo(&self, writer: &mut Writer) {
        let Some(mut forcing) = self.forcing.try_lock() else { return };
        if forcing.failed.is_some() {
            return;
        }
        match self.force(&self.log) {
            Ok(()) => writer.redo().free_kept(),
            Err(error) => {
                tracing::error!(path = %self.files.wal.display(), "cannot force the write-ahead log: {error}");
                forcing.failed = Some(Log::Own);
            }
        }
    }
}
