//! Work nobody waits for: a table of plain functions, each run on a named thread of its own.
//!
//! A job that fails is logged and tried again at its next turn; the same failure again and again is logged once.

pub mod check;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::vfs::{self, Vfs};
use crate::worker::{Signal, Worker};

/// One row of the table.
struct Job {
    /// Name of its thread, at most 15 bytes.
    name: &'static str,
    /// Pause between two turns.
    period: Duration,
    /// One turn.
    run: fn(&Vfs, &Signal) -> vfs::Result<()>,
}

/// A file is sealed when it has been closed for this long: most of what a build writes is gone by then.
const SEAL_AGE: Duration = Duration::from_secs(1);
/// Closed bytes are forced from this age on, so that forcing starts within 5 s of close.
const FORCE_AGE: Duration = Duration::from_secs(3);
/// A file that stays open is forced this often.
const FORCE_OPEN_AGE: Duration = Duration::from_secs(30);
/// Files sealed with one round of forces.
const SEAL_BATCH: usize = 256;

const TABLE: &[Job] = &[
    Job { name: "seal", period: Duration::from_millis(250), run: seal },
    Job { name: "force", period: Duration::from_secs(1), run: |vfs, _| vfs.force(FORCE_AGE, FORCE_OPEN_AGE) },
    Job { name: "reclaim", period: Duration::from_secs(5), run: |vfs, _| vfs.reclaim().map(drop) },
    Job { name: "digests", period: Duration::from_secs(10), run: digests },
    Job { name: "expire-aside", period: Duration::from_secs(3600), run: expire_aside },
];

/// Starts every job; they stop, one after the other, when the workers are dropped.
pub fn start(vfs: &Arc<Vfs>) -> io::Result<Vec<Worker>> {
    let start = |job: &'static Job| {
        let vfs = Arc::clone(vfs);
        Worker::start(job.name, move |signal| turns(job, &vfs, signal))
    };
    TABLE.iter().map(start).collect()
}

fn turns(job: &Job, vfs: &Vfs, signal: &Signal) {
    let mut last = None;
    while signal.wait(job.period) {
        let failure = (job.run)(vfs, signal).err().map(|error| error.to_string());
        if failure != last {
            match &failure {
                Some(error) => tracing::warn!(job = job.name, "job failed, it is tried again: {error}"),
                None => tracing::info!(job = job.name, "job works again"),
            }
            last = failure;
        }
    }
}

/// Seals what has been closed long enough, until nothing is left or somebody wants to stop.
fn seal(vfs: &Vfs, signal: &Signal) -> vfs::Result<()> {
    while !signal.stopped() {
        let ready = vfs.sealable(SEAL_AGE, SEAL_BATCH);
        if ready.is_empty() || vfs.seal(&ready)? == 0 {
            break;
        }
    }
    Ok(())
}

/// Computes the digests that ingest left out, with a look at the signal between two blobs.
fn digests(vfs: &Vfs, signal: &Signal) -> vfs::Result<()> {
    while !signal.stopped() && vfs.publish_some_digests()? {}
    Ok(())
}

fn expire_aside(vfs: &Vfs, _: &Signal) -> vfs::Result<()> {
    for gone in vfs.store().expire_aside(crate::filestore::KEPT_FOR)? {
        tracing::warn!(name = %gone.name, bytes = gone.size, "set-aside bytes expired: {}", gone.why);
    }
    Ok(())
}
