//! Work that nobody waits for: a table of plain functions, each on a thread of its own.

pub mod check;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::text::chain;
use crate::vfs::seal::{SEAL_AFTER, SEAL_BATCH};
use crate::vfs::{Result, Vfs};
use crate::worker::Worker;

/// One kind of work.
struct Job {
    /// Name of its thread.
    name: &'static str,
    /// Pause between two rounds; a round that found work is followed by the next at once.
    period: Duration,
    /// A round; true when it found work and there may be more.
    round: fn(&Vfs) -> Result<bool>,
}

/// The table.
const JOBS: &[Job] = &[
    Job { name: "seal", period: Duration::from_millis(200), round: seal },
    Job { name: "force", period: Duration::from_secs(3), round: force },
    Job { name: "reap", period: Duration::from_millis(500), round: reap },
    Job { name: "reclaim", period: Duration::from_secs(10), round: reclaim },
    Job { name: "atime", period: Duration::from_secs(30), round: atimes },
    Job { name: "digest", period: Duration::from_secs(5), round: digests },
    Job { name: "expire", period: Duration::from_secs(3600), round: expire },
];

/// Closed files are forced when they were not sealed this soon.
const FORCE_AFTER: Duration = Duration::from_millis(1500);
/// Open files are forced this often.
const FORCE_OPEN_EVERY: Duration = Duration::from_secs(30);

/// The running jobs; dropping them stops them after their current round.
#[derive(Debug)]
pub struct Jobs {
    _workers: Vec<Worker>,
}

/// Starts all jobs.
pub fn start(vfs: &Arc<Vfs>) -> io::Result<Jobs> {
    let mut workers = Vec::with_capacity(JOBS.len());
    for job in JOBS {
        let vfs = vfs.clone();
        workers.push(Worker::start(job.name, move |signal| {
            let mut quiet = Quiet::default();
            while !signal.stopped() {
                let more = match (job.round)(&vfs) {
                    Ok(more) => more,
                    Err(error) => {
                        quiet.tell(job.name, &error);
                        false
                    }
                };
                if !more && !signal.wait(job.period) {
                    return;
                }
            }
        })?);
    }
    Ok(Jobs { _workers: workers })
}

/// Says a failure once, and again when it changes: a full disk is one event, not one per round.
#[derive(Default)]
struct Quiet {
    last: String,
}

impl Quiet {
    fn tell(&mut self, job: &str, error: &crate::vfs::Error) {
        let text = chain(error);
        if text != self.last {
            tracing::error!("{job}: {text}; tried again");
            self.last = text;
        }
    }
}

fn seal(vfs: &Vfs) -> Result<bool> {
    let ready = vfs.sealable(SEAL_AFTER, SEAL_BATCH);
    let full = ready.len() == SEAL_BATCH;
    Ok(vfs.seal(&ready)? > 0 && full)
}

fn force(vfs: &Vfs) -> Result<bool> {
    vfs.force(FORCE_AFTER, FORCE_OPEN_EVERY)?;
    // After it, as it needs space: what was unlinked may be what gives it.
    Ok(vfs.index().tidy().map(|()| false)?)
}

fn reap(vfs: &Vfs) -> Result<bool> {
    vfs.sweep_owners()?;
    vfs.reap().map(|_| false)
}

fn reclaim(vfs: &Vfs) -> Result<bool> {
    vfs.settle_half_put();
    let (blobs, bytes) = vfs.reclaim()?;
    if blobs > 0 {
        tracing::debug!("reclaimed {blobs} blobs, {bytes} bytes");
    }
    Ok(false)
}

fn atimes(vfs: &Vfs) -> Result<bool> {
    vfs.write_atimes().map(|()| false)
}

fn digests(vfs: &Vfs) -> Result<bool> {
    vfs.publish_some_digests()
}

fn expire(vfs: &Vfs) -> Result<bool> {
    for gone in vfs.store().expire_aside(crate::filestore::KEPT_FOR)? {
        tracing::info!("deleted after its time: {gone:?}");
    }
    Ok(false)
}
