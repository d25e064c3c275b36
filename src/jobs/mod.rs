//! Work that nobody waits for: a table of plain functions, each on a thread of its own.

pub mod balance;
pub mod check;
pub mod rechain;

mod quiet;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::balance::Balancer;
use self::quiet::Quiet;
use crate::vfs::seal::{SEAL_AFTER, SEAL_BATCH};
use crate::vfs::{GoOn, Result, Vfs};
use crate::worker::{Signal, Worker};

/// One kind of work.
struct Job {
    /// Name of its thread.
    name: &'static str,
    /// Pause between two rounds; a round that found work is followed by the next at once.
    period: Duration,
    /// Whether a read-only mount has it too: the others change what is on the disk.
    on_read_only: bool,
    /// A round; true when it found work and there may be more.
    round: fn(&Vfs, GoOn<'_>) -> Result<bool>,
    /// Gets what begins a round before its time.
    wake: fn(&Vfs, Arc<Signal>),
}

const fn job(name: &'static str, period_ms: u64, round: fn(&Vfs, GoOn<'_>) -> Result<bool>) -> Job {
    Job { name, period: Duration::from_millis(period_ms), on_read_only: false, round, wake: |_, _| {} }
}

/// The table.
const JOBS: &[Job] = &[
    job("seal", 200, seal),
    job("force", 3_000, force),
    job("reap", 500, |vfs, _| vfs.reap().map(|_| false)),
    Job { on_read_only: true, ..job("owners", 500, |vfs, _| vfs.sweep_owners().map(|()| false)) },
    Job { on_read_only: true, ..job("idle", 1_000, close_idle) },
    Job {
        on_read_only: true,
        wake: |vfs, signal| vfs.ahead().wake_with(signal),
        ..job("read-ahead", 3_600_000, |vfs, go_on| vfs.read_ahead(go_on).map(|()| false))
    },
    job("reclaim", 10_000, reclaim),
    job("atime", 30_000, |vfs, _| vfs.write_atimes().map(|()| false)),
    job("digest", 5_000, |vfs, go_on| vfs.publish_some_digests(go_on)),
    job("mend", 15_000, |vfs, go_on| vfs.mend_owed(go_on).map(|()| false)),
    job("expire", 3_600_000, expire),
];

/// Closed files are forced when they were not sealed this soon.
const FORCE_AFTER: Duration = Duration::from_millis(1500);
/// Open files are forced this often.
const FORCE_OPEN_EVERY: Duration = Duration::from_secs(30);

/// The running jobs; dropping them stops them after their current step.
#[derive(Debug)]
pub struct Jobs {
    workers: Vec<Worker>,
}

impl Jobs {
    /// Asks all of them to end, and waits for none.
    pub fn stop(&self) {
        self.workers.iter().for_each(Worker::stop);
    }

    /// Stops all and waits for them until `end`; one that has not ended then runs on.
    pub fn join_until(mut self, end: Instant) {
        self.stop();
        for worker in std::mem::take(&mut self.workers) {
            worker.join_until(end);
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        // All at once, before one is waited for.
        self.stop();
    }
}

/// Starts the jobs that the mount has.
pub fn start(vfs: &Arc<Vfs>, balancer: &Arc<Balancer>) -> io::Result<Jobs> {
    let read_only = vfs.options().read_only;
    let mut workers = Vec::with_capacity(JOBS.len());
    for job in JOBS.iter().filter(|job| job.on_read_only || !read_only) {
        let tree = vfs.clone();
        let worker = Worker::start(job.name, move |signal| rounds(job, &tree, signal))?;
        (job.wake)(vfs, worker.signal());
        workers.push(worker);
    }
    if !read_only {
        let balancer = Arc::clone(balancer);
        workers.push(Worker::start("balance", move |signal| balancer.watch(signal))?);
    }
    Ok(Jobs { workers })
}

fn rounds(job: &Job, vfs: &Vfs, signal: &Signal) {
    let mut quiet = Quiet::new(job.name);
    while !signal.stopped() {
        let round = (job.round)(vfs, &|| !signal.stopped());
        quiet.hear(&round, Instant::now());
        if !round.unwrap_or(false) && !signal.wait(job.period) {
            return;
        }
    }
}

fn seal(vfs: &Vfs, go_on: GoOn<'_>) -> Result<bool> {
    let ready = vfs.sealable(SEAL_AFTER, SEAL_BATCH);
    let full = ready.len() == SEAL_BATCH;
    Ok(vfs.seal(&ready, go_on)? > 0 && full)
}

fn force(vfs: &Vfs, _go_on: GoOn<'_>) -> Result<bool> {
    let forced = vfs.force(FORCE_AFTER, FORCE_OPEN_EVERY);
    // After it, as it needs space: what was unlinked may be what gives it. And whatever became of it: one file that the
    // disk refuses must not let the index's log grow for ever.
    let tidied = vfs.index().tidy();
    forced?;
    tidied?;
    Ok(false)
}

fn reclaim(vfs: &Vfs, go_on: GoOn<'_>) -> Result<bool> {
    vfs.settle_half_put(go_on);
    let (blobs, bytes) = vfs.reclaim(go_on)?;
    if blobs > 0 {
        tracing::debug!("reclaimed {blobs} blobs, {bytes} bytes");
    }
    Ok(false)
}

fn close_idle(vfs: &Vfs, _go_on: GoOn<'_>) -> Result<bool> {
    vfs.close_idle();
    Ok(false)
}

fn expire(vfs: &Vfs, _go_on: GoOn<'_>) -> Result<bool> {
    for gone in vfs.expire_aside()? {
        tracing::info!("deleted after its time: {gone:?}");
    }
    Ok(false)
}
