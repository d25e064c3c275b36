//! What the workers do: upload entries, tell the provider below of removals, take away what it has.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::blob::Blob;
use super::super::error::{Error, Result};
use super::super::provider::{Listed, Provider};
use super::table::Task;
use super::{Queue, text_of};
use crate::checksum::Checksum;
use crate::failpoint;
use crate::metrics;
use crate::sys::lease::is_unused;
use crate::worker::Signal;

/// How long a worker waits for work before it looks whether it is to end.
const TAKE_LONGEST: Duration = Duration::from_secs(2);
/// From this size on it is cheaper to ask whether below has a blob than to send it once more.
const ASK_FIRST_BYTES: u64 = 8 << 20;

/// Uploads and removes until it is told to end.
pub(super) fn work(queue: &Arc<Queue>, signal: &Signal) {
    while !signal.stopped() {
        match queue.table.take(TAKE_LONGEST) {
            Some(Task::Upload(sum, attempts)) => queue.upload(&sum, attempts),
            Some(Task::Bury(sums)) => queue.bury(&sums),
            None => {}
        }
    }
}

/// Looks through the directory again and again.
pub(super) fn dispatch(queue: &Arc<Queue>, signal: &Signal) {
    while signal.wait(queue.options().dispatcher_interval) {
        if let Err(error) = queue.scan() {
            queue.quiet.failed(&format!("the upload queue cannot be looked through: {}", text_of(&error)));
        }
        queue.retire_uploaded();
    }
}

impl Queue {
    /// Uploads one entry, and takes it off the queue if nobody uses its file.
    fn upload(&self, sum: &Checksum, attempts: u32) {
        let outcome = self.send(sum, attempts);
        let (ended, size) = match outcome {
            Ok(Some(size)) => (Ok(()), size),
            // Removed, or taken away by somebody: what an entry is is in the directory.
            Ok(None) => return self.table.upload_void(sum, None),
            Err(Error::Altered(_)) => match self.set_aside_if_altered(sum) {
                Some(why) => return self.table.upload_void(sum, why),
                None => (Err(format!("blob {sum} was altered on its way, or is just being put anew")), 0),
            },
            Err(error) => (Err(text_of(&error)), 0),
        };
        let failed = ended.is_err();
        if let Err(why) = &ended {
            metrics::UPLOAD_FAILURES.count();
            self.quiet.failed(&format!("blob {sum} cannot be uploaded, it stays in the queue: {why}"));
        } else {
            metrics::UPLOADS.count();
            metrics::UPLOADED_BYTES.add(size);
            self.quiet.succeeded();
        }
        self.table.upload_ended(sum, ended);
        if !failed {
            // A crash here leaves an entry that below has: it is uploaded again.
            failpoint::hit("eventual.uploaded");
            self.retire(sum);
        }
    }

    /// Stores an entry below; its size, or `None` when it is not there any more.
    fn send(&self, sum: &Checksum, attempts: u32) -> Result<Option<u64>> {
        let Some(blob) = self.entries.open(sum, None)? else { return Ok(None) };
        let size = blob.size();
        let asks = size >= ASK_FIRST_BYTES || attempts > 0;
        if asks && self.below.stat(sum)? == Some(size) {
            return Ok(Some(size));
        }
        self.below.put_copy(sum, &blob)?;
        Ok(Some(size))
    }

    /// An entry whose bytes are not those of its name is set aside; `None` when they are. The text says why, where there is
    /// no good copy below.
    fn set_aside_if_altered(&self, sum: &Checksum) -> Option<Option<String>> {
        let blob = self.entries.open(sum, None).ok()??;
        if blob.digest(|| true).ok()??.checksum == *sum {
            return None;
        }
        // Asked before the claim, for whose end others wait.
        let good_below = self.is_good_below(sum);
        if !self.table.claim_uploading(sum) {
            return None;
        }
        let now = self.entries.open(sum, None).ok().flatten();
        if now.is_none_or(|now| now.file_id() != blob.file_id()) {
            // Somebody has put it anew.
            self.table.unclaim_uploading(sum);
            return None;
        }
        drop(blob);
        let path = match self.files.set_aside(sum) {
            Ok(path) => path,
            Err(error) => {
                tracing::error!("the altered entry {sum} cannot be set aside: {}", text_of(&error));
                return Some(Some(format!(
                    "its bytes were altered in the upload queue: {}",
                    text_of(&error)
                )));
            }
        };
        failpoint::hit("eventual.aside");
        if good_below {
            tracing::warn!(
                "the entry of blob {sum} was altered in the queue; the provider below has a good copy"
            );
            let _ = self.files.remove_bad(sum);
            return Some(None);
        }
        let why = altered(&path);
        tracing::error!("blob {sum}: {why}");
        Some(Some(why))
    }

    /// Whether the provider below has a blob and its bytes are right.
    fn is_good_below(&self, sum: &Checksum) -> bool {
        let found = self.below.open(sum, None).ok().flatten();
        let digest = found.and_then(|blob| blob.digest(|| true).ok()?);
        digest.is_some_and(|digest| digest.checksum == *sum)
    }

    /// Takes the file of an entry that below has off the queue: into the cache where there is one. It stays while somebody
    /// has it open, and while a staging name leads to it.
    fn retire(&self, sum: &Checksum) {
        let Some(size) = self.table.claim_uploaded(sum) else { return };
        let gone = self.take_away(sum, size).unwrap_or_else(|error| {
            tracing::warn!("blob {sum} is uploaded and cannot be taken off the queue: {}", text_of(&error));
            false
        });
        self.table.end_uploaded(sum, gone);
    }

    /// Whether the file of an uploaded entry is gone now.
    fn take_away(&self, sum: &Checksum, size: u64) -> Result<bool> {
        let Some(links) = self.files.links(sum)? else { return Ok(true) };
        let blob = self.entries.open(sum, None)?;
        // Where the kernel knows no leases it serves no file past the daemon either.
        let unused = blob.as_ref().and_then(|b| b.local()).is_none_or(|file| is_unused(file).unwrap_or(true));
        if links > 1 || !unused {
            return Ok(false);
        }
        drop(blob);
        if let Some(promote) = self.promote.get() {
            match promote(sum, size, &self.files.entry(sum)) {
                Ok(true) => {}
                Ok(false) => drop(self.entries.remove(sum)?),
                Err(error) => {
                    tracing::debug!("blob {sum} was not promoted: {}", text_of(&error));
                    self.entries.remove(sum)?;
                }
            }
        } else {
            self.entries.remove(sum)?;
        }
        // A crash here leaves nothing to do: below has it.
        failpoint::hit("eventual.retired");
        Ok(true)
    }

    /// Takes away what was uploaded and is not used any more.
    pub(super) fn retire_uploaded(&self) {
        self.table.uploaded().iter().for_each(|sum| self.retire(sum));
    }

    /// Removes blobs below, and then their tombstones. The first failure ends it: the others come later.
    fn bury(&self, sums: &[Checksum]) {
        let failed = sums.iter().find_map(|sum| Some((*sum, self.below.remove(sum).err()?)));
        let done = failed
            .as_ref()
            .map_or(sums.len(), |(bad, _)| sums.iter().position(|sum| sum == bad).unwrap_or_default());
        let (gone, left) = sums.split_at(done);
        match self.unbury(gone) {
            Ok(()) => self.table.buried(gone),
            Err(error) => self.table.not_buried(gone, None, &text_of(&error)),
        }
        if let Some((sum, error)) = failed {
            let why = text_of(&error);
            self.quiet.failed(&format!("removed blobs cannot be removed below, which is tried again: {why}"));
            self.table.not_buried(left, Some(sum), &why);
        }
    }

    /// Makes removals below durable, and takes their tombstones away.
    fn unbury(&self, sums: &[Checksum]) -> Result<()> {
        if sums.is_empty() {
            return Ok(());
        }
        self.below.force_removed(sums)?;
        // A crash here leaves tombstones of blobs that are gone: they are removed once more.
        failpoint::hit("eventual.buried");
        self.files.unbury(sums)
    }

    /// Finds entries that nobody told of: at the start all of them, later what an operator put into the directory.
    pub(super) fn scan(&self) -> Result<()> {
        let mut found = Vec::new();
        self.entries.list(None, &mut |listed| {
            if let Listed::Blob { sum, size } = listed {
                found.push((sum, size));
            }
            ControlFlow::Continue(())
        })?;
        for (sum, size) in found.into_iter().filter(|(sum, _)| *sum != Checksum::EMPTY) {
            let since = || self.files.entry(&sum).metadata().and_then(|found| found.modified());
            if self.table.knows(&sum)
                || !self.table.claim_found(&sum, size, since().unwrap_or(SystemTime::now()))
            {
                continue;
            }
            // It may have been removed since it was listed, and an entry wins over its tombstone.
            let there = self.entries.stat(&sum).map(|found| found.is_some());
            let there = there
                .and_then(|there| if there { self.drop_tombstone(&sum).map(|()| true) } else { Ok(false) });
            self.table.end_found(&sum, matches!(there, Ok(true)));
            there?;
        }
        Ok(())
    }

    /// Takes away the tombstone of a blob that is there again, durably.
    pub(super) fn drop_tombstone(&self, sum: &Checksum) -> Result<()> {
        if self.table.has_tombstone(sum) {
            self.files.unbury(&[*sum])?;
            self.table.tombstone_dropped(sum);
        }
        Ok(())
    }

    /// Remembers the tombstones and the altered entries that lie in the directory, and then the entries.
    pub(super) fn recover(&self) -> Result<()> {
        self.files.tombstones()?.into_iter().for_each(|sum| self.table.found_tombstone(sum));
        for sum in self.files.bad()? {
            self.table.found_bad(sum, altered(&self.files.bad_path(&sum)));
        }
        self.scan()
    }

    /// Stores bytes below, comparing them with their checksum on the way.
    pub(super) fn store_through(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        loop {
            self.drop_tombstone(sum)?;
            self.below.put_copy(sum, blob)?;
            // A crash here leaves a blob below that is uploaded once more, or that the index does not know.
            failpoint::hit("eventual.through");
            // Removed meanwhile, as an old content: what is promised now must not be taken away again.
            if !self.table.has_tombstone(sum) {
                return Ok(());
            }
        }
    }
}

fn altered(path: &std::path::Path) -> String {
    format!(
        "its bytes were altered in the upload queue and there is no good copy below: they are kept as {}; writing the \
         content again heals it",
        path.display()
    )
}
