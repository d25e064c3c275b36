//! The way of commits to the disk: the redo log is forced, and what it held moves on into SQLite's files.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

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

/// What is known of the log's way to the disk.
#[derive(Default)]
pub(super) struct Forcing {
    /// A force failed, and nothing since has proved that the disk has what it was to have.
    failed: bool,
}

impl Index {
    /// Forces every commit made so far to the disk; the last of them. Calls that come together share one force.
    ///
    /// Once a force has failed, the system may have dropped the pages that it could not write and will call the next force a
    /// success. So from then on the logs are not trusted: `sync` goes on failing until a complete checkpoint has copied every
    /// page of SQLite's log (from memory, where they still are) into the database file and that was forced. If pages were
    /// lost from memory as well before then, this cannot be seen from here; the failed force was reported.
    pub fn sync(&self) -> Result<Seq> {
        let wanted = self.last_seq();
        let mut forcing = self.forcing.lock();
        if forcing.failed {
            return self.recover(&mut forcing);
        }
        if self.durable_seq() >= wanted {
            return Ok(self.durable_seq());
        }
        let (last, files) = {
            let mut writer = self.writer.lock();
            (writer.last(), writer.redo().take_unforced())
        };
        if let Err(e) = files.iter().try_for_each(|file| self.force(file)) {
            forcing.failed = true;
            return Err(Error::io(&self.files.redo[0], "force the redo log", e));
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
    fn recover(&self, forcing: &mut Forcing) -> Result<Seq> {
        let mut writer = self.writer.lock();
        self.flush_writer(&mut writer)?;
        sql::checkpoint_all(&writer)?;
        self.force_log()?;
        writer.redo().take_unforced();
        writer.redo().free_kept();
        forcing.failed = false;
        let last = writer.last();
        self.durable.store(last, Ordering::Release);
        Ok(last)
    }

    /// Brings the files in order now and then, beside running commits: ends the open transaction, lets go of a redo log
    /// that is not needed any more, copies a grown write-ahead log back into the file. What fails is left to the next call:
    /// the commits are durable in the redo log, or have failed to be.
    pub fn tidy(&self) -> Result<()> {
        let Some(copier) = self.copier.try_lock() else { return Ok(()) };
        let kept = {
            let mut writer = self.writer.lock();
            self.flush_writer(&mut writer)?;
            writer.redo().is_kept()
        };
        if kept {
            let mut forcing = self.forcing.lock();
            if forcing.failed {
                return Ok(());
            }
            self.force_log().inspect_err(|_| forcing.failed = true)?;
            // A crash before the file is used again finds commits in it that the database has too.
            failpoint::hit("index.freed");
            self.writer.lock().redo().free_kept();
        }
        let log = sql::log(&copier)?;
        if log.pages - log.copied >= log_pages() {
            sql::checkpoint_some(&copier)?;
            // The commits are in the database file now, and in the log still.
            failpoint::hit("index.copied");
        }
        Ok(())
    }

    /// Makes the redo log's other file free at once. Best effort: the next commit tries again.
    pub(super) fn shorten_redo(&self, writer: &mut Writer) {
        let Some(mut forcing) = self.forcing.try_lock() else { return };
        if forcing.failed {
            return;
        }
        match self.force(&self.log) {
            Ok(()) => writer.redo().free_kept(),
            Err(error) => {
                tracing::error!(path = %self.files.wal.display(), "cannot force the write-ahead log: {error}");
                forcing.failed = true;
            }
        }
    }
}
