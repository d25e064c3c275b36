//! Puts every blob where the configuration of the shards wants it: as many good copies as asked for, and no more.
//!
//! That restores the redundancy after a change of it or the loss of a shard, empties drained shards, and removes surplus
//! copies. It does not level: a new shard gets new blobs and missing copies, and what lies well stays where it is. A blob
//! whose copies are well by number and size is not read: comparing bytes is the verification's work.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::checksum::Checksum;
use crate::metrics;
use crate::text::chain;
use crate::vfs::{GoOn, Result, Vfs};
use crate::worker::Signal;

/// Blobs read from the index at a time.
const PAGE: usize = 1000;
/// How often it is looked whether one is due.
const PERIOD: Duration = Duration::from_secs(2);
/// Pause after one that left something, which is doubled as long as that goes on.
const PAUSE_SHORTEST: Duration = Duration::from_secs(60);
const PAUSE_LONGEST: Duration = Duration::from_secs(6 * 3600);
/// Failures that a report tells.
const FAILURES_MAX: usize = 20;

/// What a balance did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Blobs looked at.
    pub looked: u64,
    /// Copies made.
    pub copied: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Surplus copies removed, and those of drained shards.
    pub removed: u64,
    /// Blobs that nothing could be done for.
    pub failed: u64,
    /// Blobs that are not as they should be yet: a copy is in use, or too few shards take them.
    pub left: u64,
    /// Why some failed.
    pub failures: Vec<String>,
    /// Whether it came to the end of all blobs.
    pub whole: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { looked, copied, bytes, removed, failed, left, .. } = self;
        write!(f, "{looked} blobs looked at, {copied} copies with {bytes} bytes made, {removed} removed")?;
        if failed + left > 0 {
            write!(f, ", {failed} failed, {left} left")?;
        }
        Ok(())
    }
}

/// Balances, one at a time.
#[derive(Debug)]
pub struct Balancer {
    vfs: Arc<Vfs>,
    longest: Mutex<Duration>,
    /// Held by the one that is under way; where the next goes on.
    one: Mutex<Option<Stopped>>,
    now: Mutex<Option<(bool, Report)>>,
    /// Somebody has reason to believe that one is due.
    asked: Mutex<bool>,
}

/// Where a balance had to stop because of its time.
#[derive(Clone, Debug)]
struct Stopped {
    arrangement: String,
    after: Checksum,
    /// Whether all was well until there.
    well: bool,
}

impl Balancer {
    /// Nothing is under way.
    pub fn new(vfs: &Arc<Vfs>, longest: Duration) -> Balancer {
        Balancer {
            vfs: Arc::clone(vfs),
            longest: Mutex::new(longest),
            one: Mutex::default(),
            now: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    /// The tree whose blobs they are.
    pub fn vfs(&self) -> &Arc<Vfs> {
        &self.vfs
    }

    /// From now on one takes at most this long.
    pub fn set_longest(&self, longest: Duration) {
        *self.longest.lock() = longest;
    }

    /// Asks for one soon, whatever the last one left: the configuration was changed, or blobs were collected.
    pub fn ask(&self) {
        *self.asked.lock() = true;
    }

    /// What the one under way did so far, or the last one.
    pub fn now(&self) -> Report {
        self.now.lock().as_ref().map(|(_, report)| report.clone()).unwrap_or_default()
    }

    /// The same, and whether it is under way; `None` if there was none.
    pub fn last(&self) -> Option<(bool, Report)> {
        self.now.lock().clone()
    }

    /// Balances by itself whenever the shards are not what they were at the last one.
    pub fn watch(&self, signal: &Signal) {
        let (mut pause, mut not_before) = (PAUSE_SHORTEST, Instant::now());
        while signal.wait(PERIOD) {
            if std::mem::take(&mut *self.asked.lock()) {
                (pause, not_before) = (PAUSE_SHORTEST, Instant::now());
            }
            if Instant::now() < not_before || !self.vfs.store().is_balance_due() {
                continue;
            }
            let run = self.run_from(true, &|| !signal.stopped());
            match run {
                Ok(report) if report.looked > 0 => tracing::info!("balance: {report}"),
                Ok(_) => {}
                Err(error) => tracing::warn!("the blobs could not be balanced: {}", chain(&error)),
            }
            if self.vfs.store().is_balance_due() {
                not_before = Instant::now() + pause;
                pause = (pause * 2).min(PAUSE_LONGEST);
            }
        }
    }

    /// Balances from the first blob to the last, after the one that may be under way.
    pub fn run(&self, go_on: GoOn<'_>) -> Result<Report> {
        self.run_from(false, go_on)
    }

    fn run_from(&self, where_it_stopped: bool, go_on: GoOn<'_>) -> Result<Report> {
        let mut one = loop {
            match self.one.try_lock_for(Duration::from_millis(50)) {
                Some(one) => break one,
                None if go_on() => {}
                None => return Ok(Report::default()),
            }
        };
        let Some(arrangement) = self.vfs.store().arrangement() else {
            return Ok(Report { whole: true, ..Report::default() });
        };
        let stopped = one.take().filter(|s| where_it_stopped && s.arrangement == arrangement);
        let well = stopped.as_ref().is_none_or(|stopped| stopped.well);
        let end = Instant::now() + *self.longest.lock();
        *self.now.lock() = Some((true, Report::default()));
        let walked = self.walk(stopped.map(|stopped| stopped.after), end, go_on);
        let report = self.now();
        *self.now.lock() = Some((false, report.clone()));
        let last = walked?;
        metrics::BALANCE_LEFT.set(report.left + report.failed);
        let well = well && report.left + report.failed == 0;
        match last {
            Some(after) => *one = Some(Stopped { arrangement, after, well }),
            None if well && report.whole => self.vfs.store().set_balanced(&arrangement)?,
            None => {}
        }
        Ok(report)
    }

    /// Looks at every blob after one; where it had to stop because of the time.
    fn walk(&self, mut after: Option<Checksum>, end: Instant, go_on: GoOn<'_>) -> Result<Option<Checksum>> {
        // What readers found wrong already: of bytes, too. What could not be mended is met again below.
        let _ = self.vfs.mend_owed(go_on);
        loop {
            let page = self.vfs.index().blobs(after.as_ref(), PAGE)?;
            if page.is_empty() {
                self.note(|report| report.whole = true);
                return Ok(None);
            }
            for row in page {
                if !go_on() {
                    return Ok(None);
                }
                if Instant::now() >= end {
                    return Ok(after);
                }
                self.look_at(&row.checksum, row.size);
                after = Some(row.checksum);
            }
        }
    }

    /// One that cannot be mended does not hold up the others.
    fn look_at(&self, sum: &Checksum, size: u64) {
        metrics::BALANCE_LOOKED.count();
        if !self.vfs.store().needs_mending(sum, size) {
            return self.note(|report| report.looked += 1);
        }
        let mended = self.vfs.mend(sum);
        let left = mended.is_ok() && self.vfs.store().needs_mending(sum, size);
        self.note(|report| {
            report.looked += 1;
            report.left += u64::from(left);
            match &mended {
                Ok(mended) => {
                    report.copied += mended.copied;
                    report.bytes += mended.copied * size;
                    report.removed += mended.removed;
                    metrics::BALANCE_COPIED.add(mended.copied);
                    metrics::BALANCE_BYTES.add(mended.copied * size);
                    metrics::BALANCE_REMOVED.add(mended.removed);
                }
                Err(error) => {
                    report.failed += 1;
                    metrics::BALANCE_FAILED.count();
                    if report.failures.len() < FAILURES_MAX {
                        report.failures.push(chain(error));
                    }
                }
            }
        });
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        if let Some((_, report)) = &mut *self.now.lock() {
            change(report);
        }
    }
}
