//! The daemon of one mount: what is started in which order, and stopped in the reverse one.
//!
//! 1. logging, so that everything after it can be heard, a panic too;
//! 2. the depot's lock, held to the end of the process: nothing of the depot is touched without it;
//! 3. dead mounts of this depot are taken away, limits raised, a change of the chain that was prepared is finished;
//! 4. index, filestore, tree; recovery of what the last daemon left;
//! 5. the kernel session: from here on requests are answered;
//! 6. watchdog and jobs, then the control socket;
//! 7. signals; then `ready` to whoever waits.
//!
//! It ends when the tree is unmounted, by whomever: then the control socket closes, the jobs are told to end, everything is
//! forced and then sealed, and the process ends, which gives back the lock. Nothing is waited for without a limit: whatever
//! is left over is for the next mount. SIGTERM and SIGINT flush and unmount first; when the mount is
//! busy it is detached, its users get some seconds, and then the daemon ends all the same.

pub mod detach;
mod known_chain;
mod layers;
pub mod lock;
mod logging;
mod notify;
mod panics;
pub mod places;
pub mod rechain;
mod reload;
pub mod rooms;
pub mod users;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGIO, SIGTERM};
use signal_hook::iterator::Signals;

use self::detach::Handover;
use self::lock::Holder;
use self::logging::Logging;
pub use self::logging::VARIABLE as LOG_VARIABLE;
use self::reload::Reload;
use crate::config::Config;
use crate::control::{self, Cause, Failure, Service, report::MountStatus};
use crate::fuse::options::{Options, Switch};
use crate::fuse::{Mounting, Session, watch};
use crate::jobs;
use crate::jobs::balance::Balancer;
use crate::sys::{mountinfo, process};
use crate::vfs::Vfs;

/// What is to be mounted where.
#[derive(Debug)]
pub struct Plan {
    /// The depot, canonical.
    pub depot: PathBuf,
    /// The mountpoint, canonical.
    pub mountpoint: PathBuf,
    /// How.
    pub options: Options,
    /// The options as they were given, for `status`.
    pub options_text: String,
}

/// How long users of a busy mount get when the daemon is told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// How long the last flush may take: what is left is forced at least, and sealed by the next mount.
const LAST_FLUSH_LONGEST: Duration = Duration::from_secs(60);
/// How soon after somebody has waited for the queue an unmount is his.
const DRAINED_FOR: Duration = Duration::from_secs(30);
/// How long uploads under way get to end, which are done again otherwise.
const UPLOADS_LONGEST: Duration = Duration::from_secs(1);
/// How long the jobs then get to end; a kill in any of their steps is safe.
const JOBS_LONGEST: Duration = Duration::from_secs(10);
// Whoever mounts again has to wait for the end of the last flush, not to be told of a daemon that is about to go.
const _: () = assert!(lock::PATIENCE.as_secs() >= LAST_FLUSH_LONGEST.as_secs() + 2 * JOBS_LONGEST.as_secs());

/// Mounts, serves until unmounted, and puts everything away. In the background `handover` hears when the mount answers.
pub fn run(plan: &Plan, handover: Option<Handover>) -> anyhow::Result<()> {
    let started = Instant::now();
    let config = Config::load(&plan.depot)?;
    let logging = logging::start(&config.log, handover.is_some())?;
    panics::end_the_process();
    let holder = Holder::this("mount", Some(&plan.mountpoint));
    let lock = lock::take(&plan.depot, &holder, lock::PATIENCE)?;
    places::clear_dead_mounts(&plan.depot)?;
    places::refuse_nesting(&config, &plan.mountpoint)?;
    prepare_process();
    let config = rechain::before_mount(config, &plan.options)?;
    plan.options.refused.apply();
    let vfs = rooms::tree(&config, &plan.options, &plan.mountpoint)?;
    let mounting = Mounting { mountpoint: &plan.mountpoint, source: &plan.depot, options: &plan.options };
    let session = Session::mount(Arc::clone(&vfs), &mounting).with_context(|| {
        format!("{} cannot be mounted on {}", plan.depot.display(), plan.mountpoint.display())
    })?;
    insist_on_passthrough(&plan.options, &vfs)?;
    let watchdog = watch::start().context("the watchdog cannot be started")?;
    vfs.store().start(!plan.options.read_only).context("the workers of the filestore cannot be started")?;
    let balancer = Arc::new(Balancer::new(&vfs, config.balancing_longest()));
    let jobs = jobs::start(&vfs, &balancer).context("the background jobs cannot be started")?;
    let drained = Arc::default();
    let stop = Stop::new(&plan.mountpoint, &vfs);
    let reload = Arc::new(Reload::new(&config, &plan.mountpoint, &logging, &balancer)?);
    let service = service(plan, config, &logging, &balancer, &reload, started, &drained);
    let server = control::Server::start(&plan.depot, service)?;
    let signals = handle_signals(&stop, &logging, &reload)?;
    announce(plan, handover, &logging, started);

    let served = session.run().context("the kernel session ended with an error");

    stop.session_ended();
    notify::notify("STOPPING=1\nSTATUS=finishing what was written");
    signals.close();
    server.close();
    jobs.stop();
    vfs.forget_mappings();
    let flushed = put_away(&vfs);
    if !plan.options.read_only {
        drain(&vfs, *drained.lock());
    }
    drop(server);
    drop(watchdog);
    jobs.join_until(Instant::now() + JOBS_LONGEST);
    vfs.store().stop(Instant::now() + JOBS_LONGEST);
    tracing::info!("ended");
    // The end of the process gives the lock back: whoever waits for it may count on the process being gone.
    std::mem::forget(lock);
    served.and(flushed)
}

/// Limits and habits of the process, none of which is worth failing for.
fn prepare_process() {
    if let Err(error) = process::raise_open_files() {
        tracing::warn!(%error, "the limit on open files cannot be raised");
    }
    if process::is_root()
        && let Err(error) = process::go_late_when_memory_runs_out()
    {
        tracing::debug!(%error, "the daemon cannot ask to be spared when memory runs out");
    }
    // Breaking a lease sends SIGIO, which would end the process.
    let ignored = signal_hook::flag::register(SIGIO, Arc::new(AtomicBool::new(false)));
    if let Err(error) = ignored {
        tracing::warn!(%error, "SIGIO cannot be handled");
    }
}

/// With `passthrough=on` the session has tried it.
fn insist_on_passthrough(options: &Options, vfs: &Vfs) -> anyhow::Result<()> {
    if options.passthrough == Switch::On && !vfs.passthrough() {
        bail!(
            "mount option passthrough=on: {}; leave the option out to mount without it",
            vfs.status().reads
        );
    }
    Ok(())
}

/// What answers on the control socket.
fn service(
    plan: &Plan,
    config: Config,
    logging: &Logging,
    balancer: &Arc<Balancer>,
    reload: &Arc<Reload>,
    started: Instant,
    drained: &Arc<Mutex<Option<Instant>>>,
) -> control::Handler {
    let mount = MountStatus {
        mountpoint: plan.mountpoint.display().to_string(),
        pid: std::process::id(),
        age_s: 0,
        options: plan.options_text.clone(),
        read_only: plan.options.read_only,
        subdir: plan.options.subdir.clone().unwrap_or_default(),
    };
    let (logging, reload, again) = (logging.clone(), Arc::clone(reload), Arc::clone(reload));
    let service = Service {
        rechain: Box::new(rechaining(config.clone(), Arc::clone(balancer.vfs()))),
        config,
        vfs: Arc::clone(balancer.vfs()),
        mount,
        started,
        set_log_level: Box::new(move |level| logging.set_level(level).map_err(|error| format!("{error:#}"))),
        flushing: Arc::default(),
        drained: Arc::clone(drained),
        balancer: Arc::clone(balancer),
        reload: Box::new(move || again.run()),
        reloaded: Box::new(move || reload.last()),
    };
    Arc::new(move |request, progress| service.answer(request, progress))
}

/// What copies the blobs to another chain, for one caller at a time.
fn rechaining(
    config: Config,
    vfs: Arc<Vfs>,
) -> impl Fn(control::Progress<'_>) -> Result<control::report::Rechained, Failure> {
    let busy = Mutex::new(());
    move |news| {
        let under_way = || Failure::new(Cause::Busy, "another rechain of this depot is under way");
        let _one = busy.try_lock().ok_or_else(under_way)?;
        rechain::while_mounted(&config, &vfs, news)
            .map_err(|error| Failure::new(Cause::Failed, format!("{error:#}")))
    }
}

/// SIGTERM and SIGINT stop, SIGHUP opens the log and reads depot.toml again.
fn handle_signals(
    stop: &Arc<Stop>,
    logging: &Logging,
    reload: &Arc<Reload>,
) -> anyhow::Result<signal_hook::iterator::Handle> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("signals cannot be handled")?;
    let handle = signals.handle();
    let (stop, logging, reload) = (Arc::clone(stop), logging.clone(), Arc::clone(reload));
    let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGHUP => {
                    match logging.reopen() {
                        Ok(()) => tracing::info!("log opened again"),
                        Err(error) => tracing::error!("{error:#}"),
                    }
                    reload.begin();
                }
                _ => stop.begin(),
            }
        }
    });
    thread.context("the thread for signals cannot be started")?;
    Ok(handle)
}

/// The mount answers: tells the log, systemd and the command.
fn announce(plan: &Plan, handover: Option<Handover>, logging: &Logging, started: Instant) {
    let (depot, mountpoint) = (plan.depot.display(), plan.mountpoint.display());
    let took_ms = started.elapsed().as_millis() as u64;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), took_ms, "{depot} is mounted on {mountpoint}");
    notify::notify(&format!("READY=1\nSTATUS={depot} is mounted on {mountpoint}"));
    if let Some(handover) = handover
        && let Err(error) = handover.ready(logging.standard_error().as_ref())
    {
        tracing::warn!(%error, "the daemon cannot let go of the terminal");
    }
}

/// The last flush: first all bytes and names are forced, then what can be is sealed.
fn put_away(vfs: &Vfs) -> anyhow::Result<()> {
    let left = vfs.put_away(Instant::now() + LAST_FLUSH_LONGEST);
    let left = left.context("not everything could be sealed and forced, the next mount tries again")?;
    if left > 0 {
        tracing::info!(left, "files were forced but not sealed; the next mount does it");
    }
    Ok(())
}

/// Waits for the queue, unless the unmount was of somebody who has, or did not want to; and ends the uploads.
fn drain(vfs: &Vfs, drained: Option<Instant>) {
    let store = vfs.store();
    let begun = Instant::now();
    let longest = match drained.is_some_and(|at| at.elapsed() < DRAINED_FOR) {
        true => Duration::ZERO,
        false => store.drain_timeout(),
    };
    notify::notify("STATUS=uploading what is in the queue");
    let left = store.drain(&mut |_| begun.elapsed() < longest);
    if let Some(left) = left.filter(|left| !left.is_empty()) {
        let why = left.last_error.map_or(String::new(), |why| format!(" (the last upload failed: {why})"));
        tracing::warn!(
            "the upload queue keeps {} blobs with {} bytes and {} removals for the next mount{why}",
            left.entries,
            left.bytes,
            left.removals
        );
    }
    // What the daemon alone still has open of uploaded blobs goes now.
    if let Err(error) = vfs.sweep_owners() {
        tracing::debug!("former owners were not looked at: {}", crate::text::chain(&error));
    }
    store.stop(Instant::now() + UPLOADS_LONGEST);
}

/// The way to an orderly end from inside.
struct Stop {
    mountpoint: PathBuf,
    vfs: Arc<Vfs>,
    begun: AtomicBool,
    ended: Mutex<bool>,
    changed: parking_lot::Condvar,
}

impl Stop {
    fn new(mountpoint: &Path, vfs: &Arc<Vfs>) -> Arc<Stop> {
        Arc::new(Stop {
            mountpoint: mountpoint.into(),
            vfs: Arc::clone(vfs),
            begun: AtomicBool::new(false),
            ended: Mutex::new(false),
            changed: parking_lot::Condvar::new(),
        })
    }

    /// Starts to stop, once; returns at once.
    fn begin(self: &Arc<Stop>) {
        if self.begun.swap(true, SeqCst) {
            return;
        }
        tracing::info!("stopping: signalled");
        notify::notify("STOPPING=1\nSTATUS=sealing and forcing what was written");
        let stop = Arc::clone(self);
        let thread = std::thread::Builder::new().name("stop".into()).spawn(move || stop.run());
        if let Err(error) = thread {
            tracing::error!(%error, "the daemon cannot stop by itself: unmount it");
            self.begun.store(false, SeqCst);
        }
    }

    fn run(&self) {
        if let Err(error) = put_away(&self.vfs) {
            tracing::warn!("{error:#}");
        }
        if let Err(error) = mountinfo::unmount(&self.mountpoint, false) {
            self.explain(&error);
            if let Err(error) = mountinfo::unmount(&self.mountpoint, true) {
                tracing::error!(%error, "{} cannot be unmounted", self.mountpoint.display());
            }
        }
        let mut ended = self.ended.lock();
        if !*ended {
            self.changed.wait_for(&mut ended, GRACE);
        }
        if *ended {
            return; // The main thread does the rest.
        }
        drop(ended);
        tracing::warn!("the mount is still in use; ending all the same, its users get errors from now on");
        let flushed = put_away(&self.vfs).inspect_err(|error| tracing::error!("{error:#}"));
        std::process::exit(if flushed.is_ok() { 0 } else { 1 });
    }

    /// Says who holds a busy mount.
    fn explain(&self, error: &std::io::Error) {
        let mounts = mountinfo::depots().unwrap_or_default();
        let users = places::mount_at(&mounts, &self.mountpoint).map(users::users).unwrap_or_default();
        let users: Vec<String> = users.iter().map(ToString::to_string).collect();
        tracing::warn!(%error, users = users.join(", "), "detaching {}", self.mountpoint.display());
    }

    /// The kernel session is over.
    fn session_ended(&self) {
        *self.ended.lock() = true;
        self.changed.notify_all();
    }
}
