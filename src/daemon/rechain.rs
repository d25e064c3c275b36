//! Another chain for a depot that has files: the blobs are copied, then depot.toml is exchanged.
//!
//! 1. The plan, `rechain.json`, holds the depot.toml that is to come. It is what a rechain that was ended early goes on with.
//! 2. The directories of the new chain are made. Blobs are copied to the providers of it that keep them for good, so neither
//!    a cache nor a queue is in between ([`config::rechain::keepers`]); each is compared with its checksum on the way.
//! 3. While the depot is mounted, passes are made until there is little left to copy; then the plan is marked as ready.
//!    Whatever is written goes to the old chain all the time.
//! 4. With the depot unmounted - at once, or before the next mount serves anything - everything is sealed in the old chain,
//!    the last pass copies what is missing, and only then depot.toml is exchanged, by one rename.
//!
//! Until that rename the depot is the old one, whatever happens. The blobs in the old places are never removed.
//! Where both chains keep the blobs in the same place, nothing is copied: step 4 sees that the new chain has them all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::{layers, notify, places, rooms};
use crate::checksum::Checksum;
use crate::config::rechain::{Reach, keepers, reach, with_chain_of};
use crate::config::{self, Config, Layer};
use crate::control::report::{Rechained, Trouble};
use crate::failpoint;
use crate::filestore::{self, Filestore};
use crate::fuse::options::Options;
use crate::jobs::rechain::{self, Pass, Trusted, Way};
use crate::text::shown;
use crate::vfs::Vfs;

/// The plan, in the depot.
pub const FILE: &str = "rechain.json";
/// What was copied or compared, where the new chain had blobs before.
pub const TRUSTED: &str = "rechain.trusted";
/// The depot.toml that was exchanged, in the depot.
pub const OLD: &str = "depot.toml.old";
/// Shape of the plan.
const VERSION: u32 = 1;
/// Passes over a mounted depot at most: what is written meanwhile is for the last one.
const PASSES_MAX: u32 = 5;
/// Blobs that may be left to the last pass, which keeps a mount waiting.
const FEW: u64 = 200;
/// How long a mount waits for the last pass; after that it serves the old chain.
const MOUNT_WAITS_MAX: Duration = Duration::from_secs(600);
/// How long sealing everything may take.
const SEALING_MAX: Duration = Duration::from_secs(24 * 3600);
/// Paths that an error names.
const PATHS_MAX: usize = 5;
/// How often somebody who waits hears news.
const NEWS_PERIOD: Duration = Duration::from_secs(1);

/// Hears news; false: nobody listens any more.
pub type News<'a> = &'a mut dyn FnMut(&str) -> bool;

/// What is to become of a depot.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    version: u32,
    /// The depot.toml that is to come; of what is no chain in it, that holds which the depot has then.
    toml: String,
    /// Whether the new chain had no blobs when this began, so that all it has were copied by it; `None`: nobody looked yet.
    fresh: Option<bool>,
    /// Whether nearly all is copied, so that the next mount does the rest.
    ready: bool,
    /// Whether the directories of the new chain were made: one that is missing later has its disk elsewhere.
    #[serde(default)]
    made: bool,
}

impl Plan {
    /// A plan for these values.
    pub fn new(values: &config::Values) -> Plan {
        let toml = config::render(config::keys::DEPOT, values);
        Plan { version: VERSION, toml, fresh: None, ready: false, made: false }
    }

    /// The plan of a depot, if it has one.
    pub fn load(depot: &Path) -> anyhow::Result<Option<Plan>> {
        let path = depot.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        };
        let plan: Plan = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is no plan of a rechain: take it away with: depotfs rechain {} --cancel",
                path.display(),
                depot.display()
            )
        })?;
        if plan.version != VERSION {
            bail!("{} is of version {}, and this depotfs knows {VERSION}", path.display(), plan.version);
        }
        Ok(Some(plan))
    }

    /// Whether both lead to the same chain.
    pub fn is_same(&self, other: &Plan) -> bool {
        self.toml == other.toml
    }

    /// Writes it, durably.
    pub fn save(&self, depot: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec(self)?;
        write(depot, FILE, &text).with_context(|| format!("{} cannot be written", depot.join(FILE).display()))
    }

    /// Takes away the plan of a depot; whether there was one.
    pub fn remove(depot: &Path) -> anyhow::Result<bool> {
        if !remove(&depot.join(FILE))? {
            return Ok(false);
        }
        // A plan that is still there after a power cut begins anew without it.
        remove(&depot.join(TRUSTED))?;
        let forced = File::open(depot).and_then(|dir| dir.sync_all());
        forced.with_context(|| format!("{} cannot be forced to the disk", depot.display()))?;
        Ok(true)
    }

    /// The values that the depot gets, with the chain they make.
    fn values(&self, depot: &Path) -> anyhow::Result<(config::Values, Config)> {
        let now = config::read_values(&depot.join(config::FILE))?;
        let planned = config::parse_values(&self.toml)
            .map_err(|why| anyhow!("{}: {why}", depot.join(FILE).display()))?;
        let mut chain = config::Values::new();
        planned
            .iter()
            .filter(|(key, _)| config::rechain::is_of_chain(key))
            .for_each(|(key, value)| chain.insert(key, value.into()));
        let values = with_chain_of(&now, &chain).map_err(anyhow::Error::msg)?;
        let config = Config::build(depot, &values).map_err(|why| anyhow!("the new chain: {why}"))?;
        Ok((values, config))
    }
}

/// Removes a file; whether it was there.
fn remove(path: &Path) -> anyhow::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        gone => gone.map(|()| true).with_context(|| format!("{} cannot be removed", path.display())),
    }
}

/// Writes a file of the depot so that it is there whole and durable, or not at all; it may hold secrets.
fn write(depot: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let half = depot.join(format!(".{name}.new"));
    match fs::remove_file(&half) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&half, depot.join(name))?;
    File::open(depot)?.sync_all()
}

/// A plan that is carried out.
struct Move<'a> {
    old: &'a Config,
    new: Config,
    values: config::Values,
    plan: Plan,
    reach: Reach,
    depot_id: [u8; 16],
}

impl<'a> Move<'a> {
    /// The plan of the depot; what is new in the new chain is made, once.
    fn begin(old: &'a Config) -> anyhow::Result<Move<'a>> {
        let plan = Plan::load(&old.depot)?;
        let plan = plan.context("there is no rechain to go on with: name the new chain with --to")?;
        let (values, new) = plan.values(&old.depot)?;
        let depot_id = rooms::depot_id(old)?;
        let theirs: Vec<&Path> = old.chain.iter().flat_map(Layer::dirs).collect();
        if !plan.made {
            let dirs = new.chain.iter().flat_map(Layer::dirs);
            rooms::make_all(dirs.filter(|dir| !theirs.contains(dir)), &mut Vec::new())?;
        }
        // Not before: only what is there tells by what other ways it is reached.
        let reach = reach(old, &new).map_err(anyhow::Error::msg)?;
        let mut step = Move { old, new, values, plan, reach, depot_id };
        if !step.plan.made {
            step.make(&theirs)?;
        }
        Ok(step)
    }

    /// Makes what the new chain has and the old one has not.
    fn make(&mut self, theirs: &[&Path]) -> anyhow::Result<()> {
        let other_ways: Vec<PathBuf> = theirs.iter().filter_map(|dir| dir.canonicalize().ok()).collect();
        let known = |dir: &Path| {
            theirs.contains(&dir) || dir.canonicalize().is_ok_and(|dir| other_ways.contains(&dir))
        };
        for layer in &self.new.chain {
            let made = layers::layer(layer)?.create_beside(self.depot_id, &known);
            made.with_context(|| format!("the directories of {} cannot be made", layer.name()))?;
        }
        failpoint::hit("rechain.made");
        self.plan.made = true;
        self.save_plan()
    }

    /// Refuses what repositories are promised and the new chain cannot keep.
    fn must_keep(&self, vfs: &Vfs) -> anyhow::Result<()> {
        for (ino, name) in vfs.index().repositories()? {
            for (key, value) in vfs.index().settings(ino)? {
                let kept = self.new.keeps(&key, &value);
                kept.map_err(|why| anyhow!("repository {}: {key}: {why}", shown(&name)))?;
            }
        }
        Ok(())
    }

    /// The providers of the new chain that keep blobs for good.
    fn target(&mut self) -> anyhow::Result<Filestore> {
        let chain: Vec<filestore::Layer> =
            keepers(&self.new).into_iter().map(layers::layer).collect::<anyhow::Result<_>>()?;
        let target =
            filestore::open_chain(&chain, self.depot_id).context("the new chain cannot be opened")?;
        if self.plan.fresh.is_none() {
            remove(&self.trusted_file())?;
            self.plan.fresh = Some(rechain::is_empty(&target).context("the new chain cannot be listed")?);
            self.save_plan()?;
        }
        Ok(target)
    }

    fn trusted_file(&self) -> PathBuf {
        self.old.depot.join(TRUSTED)
    }

    /// What of the target counts as it stands there; `None`: all of it.
    fn trusted(&self) -> anyhow::Result<Option<Trusted>> {
        if self.plan.fresh == Some(true) {
            return Ok(None);
        }
        let path = self.trusted_file();
        let trusted = Trusted::open(&path);
        trusted.map(Some).with_context(|| format!("{} cannot be opened", path.display()))
    }

    /// One pass, of which the report tells; whether all that there was is in the target now, and how much was copied.
    fn pass(
        &self,
        vfs: &Vfs,
        target: &Filestore,
        trusted: Option<&Trusted>,
        report: &mut Rechained,
        news: News<'_>,
    ) -> anyhow::Result<(bool, u64)> {
        let way = Way { index: vfs.index(), from: vfs.store(), to: target, trusted };
        let pass = Pass::default();
        let ended =
            watch(&pass, way, news).context("the blobs cannot be copied; the same command goes on from here");
        if let Some(error) = trusted.and_then(|trusted| trusted.save().err()) {
            tracing::warn!(%error, "{} cannot be written: blobs will be compared again", self.trusted_file().display());
        }
        let copied = pass.copied.load(Relaxed);
        report.copied += copied;
        report.bytes += pass.bytes.load(Relaxed);
        report.failures = pass.failed.load(Relaxed);
        let trouble = |(sum, why): (Checksum, String)| {
            let paths = vfs.index().names(&sum, 1).unwrap_or_default();
            let path = paths.first().map(|path| format!(" ({})", shown(path))).unwrap_or_default();
            Trouble { what: format!("blob {sum}{path}"), why }
        };
        report.failed = pass.failures().into_iter().map(trouble).collect();
        Ok((ended? && report.failures == 0, copied))
    }

    /// Writes the plan anew, unless somebody has taken it away.
    fn save_plan(&self) -> anyhow::Result<()> {
        if Plan::load(&self.old.depot)?.is_none_or(|plan| !plan.is_same(&self.plan)) {
            bail!("it was cancelled meanwhile");
        }
        self.plan.save(&self.old.depot)
    }

    fn report(&self) -> Rechained {
        let there: Vec<&Path> = self.new.chain.iter().flat_map(Layer::dirs).collect();
        let left = keepers(self.old).into_iter().flat_map(Layer::dirs).filter(|dir| !there.contains(dir));
        Rechained {
            chain: self.new.chain.iter().map(|layer| layer.name().to_owned()).collect(),
            left: left.map(|dir| dir.display().to_string()).collect(),
            ..Rechained::default()
        }
    }

    /// The depot has this chain: a death came between the exchange and the end of the plan.
    fn is_done(&self) -> anyhow::Result<Rechained> {
        Plan::remove(&self.old.depot)?;
        Ok(Rechained { switched: true, ..self.report() })
    }

    /// Exchanges depot.toml; the old one is kept beside it.
    fn exchange(&self) -> anyhow::Result<()> {
        let depot = &self.old.depot;
        let old = config::text(depot)?;
        write(depot, OLD, old.as_bytes())
            .with_context(|| format!("{} cannot be written", depot.join(OLD).display()))?;
        failpoint::hit("rechain.kept");
        config::write(depot, &self.values)?;
        // From here on the depot is the new one; a plan that leads to where it is already is taken away by the next mount.
        failpoint::hit("rechain.exchanged");
        Plan::remove(depot)?;
        Ok(())
    }
}

/// Copies while the depot is mounted, until the next mount can do the rest.
pub fn while_mounted(old: &Config, vfs: &Vfs, news: News<'_>) -> anyhow::Result<Rechained> {
    let mut step = Move::begin(old)?;
    if step.new.chain == old.chain {
        return step.is_done();
    }
    places::refuse_nesting(&step.new, &vfs.options().mountpoint)?;
    step.must_keep(vfs)?;
    let mut report = step.report();
    if step.reach == Reach::Apart {
        let target = step.target()?;
        let trusted = step.trusted()?;
        for _ in 0..PASSES_MAX {
            let (complete, copied) = step.pass(vfs, &target, trusted.as_ref(), &mut report, news)?;
            if !complete {
                return Ok(report);
            }
            if copied <= FEW {
                break;
            }
        }
    }
    step.plan.ready = true;
    step.save_plan()?;
    failpoint::hit("rechain.ready");
    report.ready = true;
    Ok(report)
}

/// Does all that is left to do of an unmounted depot, of which the caller holds the lock.
pub fn unmounted(old: &Config, news: News<'_>) -> anyhow::Result<Rechained> {
    let mut step = Move::begin(old)?;
    if step.new.chain == old.chain {
        return step.is_done();
    }
    let mut report = step.report();
    let vfs = sealed(old)?;
    step.must_keep(&vfs)?;
    let aside = vfs.store().aside()?.len() as u64;
    let lacking = match step.reach {
        Reach::Apart => {
            let target = step.target()?;
            let trusted = step.trusted()?;
            if !step.pass(&vfs, &target, trusted.as_ref(), &mut report, news)?.0 {
                return Ok(report);
            }
            if step.plan.fresh == Some(true) {
                // Copied, and then no file's any more.
                rechain::remove_unknown(vfs.index(), &target)?;
            }
            rechain::lacking(vfs.index(), &target)?
        }
        Reach::Shared => {
            // Both in one place: only one may have it open.
            drop(vfs);
            let (index, store) = rooms::open(&step.new)?;
            rechain::lacking(&index, &store)?
        }
    };
    if let (lacking @ 1.., Some(first)) = lacking {
        bail!(
            "{lacking} blobs, blob {first} first, are not in the new chain: the depot keeps its old one. Blobs that wait to be \
             uploaded get there with: depotfs flush --wait; others lack in the old chain as well (depotfs check)"
        );
    }
    step.exchange()?;
    (report.switched, report.aside) = (true, if step.reach == Reach::Apart { aside } else { 0 });
    Ok(report)
}

/// The tree of an unmounted depot in which everything is sealed: the staging files of the old chain are not the new one's.
fn sealed(config: &Config) -> anyhow::Result<Arc<Vfs>> {
    let vfs = rooms::tree(config, &Options::default(), Path::new("/"))?;
    vfs.put_away(Instant::now() + SEALING_MAX).context("not everything could be sealed")?;
    let staged = vfs.index().staged()?;
    if !staged.is_empty() {
        let mut names = Vec::new();
        for row in staged.iter().take(PATHS_MAX) {
            names.extend(vfs.index().path(row.ino)?.map(|path| shown(&path)));
        }
        bail!(
            "{} files cannot be sealed, and their newest bytes would stay behind in the old chain: {}: mount the depot, and \
             overwrite, remove or rescue them (depotfs status, depotfs blob rescue)",
            staged.len(),
            names.join(", ")
        );
    }
    vfs.reclaim_older_than(Duration::ZERO, &|| true)?;
    failpoint::hit("rechain.sealed");
    Ok(vfs)
}

/// Ends a rechain that is ready, before anything is served. Where that is impossible, the depot is mounted as it was, and
/// the log says why.
pub(super) fn before_mount(config: Config, options: &Options) -> anyhow::Result<Config> {
    let plan = match Plan::load(&config.depot) {
        Ok(Some(plan)) if plan.ready && !options.read_only => plan,
        Ok(_) => return Ok(config),
        Err(error) => {
            tracing::warn!("{error:#}");
            return Ok(config);
        }
    };
    if plan.values(&config.depot).is_ok_and(|(_, new)| new == config) {
        Plan::remove(&config.depot)?;
        return Ok(config);
    }
    let end = Instant::now() + MOUNT_WAITS_MAX;
    let mut news = |news: &str| {
        tracing::info!("rechain: {news}");
        notify::notify(&format!("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=rechain: {news}"));
        Instant::now() < end
    };
    match unmounted(&config, &mut news) {
        Ok(report) if report.switched => {
            tracing::info!(
                copied = report.copied,
                "the depot keeps its blobs in {} now",
                report.chain.join(" > ")
            );
            return Ok(Config::load(&config.depot)?);
        }
        Ok(report) => {
            let first = report.failed.first().map(|trouble| format!(": {}: {}", trouble.what, trouble.why));
            let why = first.unwrap_or_else(|| ": there is more to copy than a mount waits for".into());
            tracing::error!("rechain: the depot keeps its old chain{why}");
        }
        Err(error) => tracing::error!("rechain: the depot keeps its old chain: {error:#}"),
    }
    Ok(config)
}

/// Runs a pass and tells how far it is; false when it was ended early because nobody listened any more.
fn watch(pass: &Pass, way: Way<'_>, news: News<'_>) -> anyhow::Result<bool> {
    let (total, listening) = (way.index.counts()?.blobs, AtomicBool::new(true));
    let go_on = || listening.load(Relaxed);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| pass.run(way, &go_on));
        let mut next = Instant::now() + NEWS_PERIOD;
        while !run.is_finished() {
            std::thread::sleep(Duration::from_millis(2));
            if Instant::now() >= next {
                let (seen, copied) = (pass.seen.load(Relaxed), pass.copied.load(Relaxed));
                let bytes = pass.bytes.load(Relaxed);
                let text = format!("{seen} of {total} blobs looked at, {copied} with {bytes} bytes copied");
                listening.store(news(&text), Relaxed);
                next = Instant::now() + NEWS_PERIOD;
            }
        }
        match run.join() {
            Ok(ended) => Ok(ended?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
