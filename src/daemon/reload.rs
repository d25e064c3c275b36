//! Reads depot.toml again while the depot is mounted: what can change does, and the rest is named.
//!
//! A file that cannot be used changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;

use super::logging::{self, Logging};
use super::{layers, places, rooms};
use crate::change::StagingName;
use crate::checksum::Checksum;
use crate::config::Config;
use crate::control::report::Reloaded;
use crate::filestore::Wanted;
use crate::jobs::balance::Balancer;
use crate::vfs::Vfs;

/// See above.
pub struct Reload {
    depot: PathBuf,
    depot_id: [u8; 16],
    mountpoint: PathBuf,
    logging: Logging,
    balancer: Arc<Balancer>,
    /// The settings that hold, by key.
    settings: Mutex<BTreeMap<String, String>>,
    last: Mutex<Option<Reloaded>>,
}

/// Blobs asked of the index at a time.
const PAGE: usize = 1000;

impl Reload {
    /// With what is mounted now.
    pub fn new(
        config: &Config,
        mountpoint: &Path,
        logging: &Logging,
        balancer: &Arc<Balancer>,
    ) -> anyhow::Result<Reload> {
        Ok(Reload {
            depot: config.depot.clone(),
            depot_id: rooms::depot_id(config)?,
            mountpoint: mountpoint.to_owned(),
            logging: logging.clone(),
            balancer: Arc::clone(balancer),
            settings: Mutex::new(config.settings.clone()),
            last: Mutex::default(),
        })
    }

    /// Does it on a thread of its own: signals go on being heard.
    pub fn begin(self: &Arc<Reload>) {
        let reload = Arc::clone(self);
        let thread = std::thread::Builder::new().name("reload".into()).spawn(move || reload.run());
        if let Err(error) = thread {
            tracing::error!(%error, "depot.toml cannot be read again");
        }
    }

    /// What the last one did; `None` if there was none.
    pub fn last(&self) -> Option<Reloaded> {
        self.last.lock().clone()
    }

    /// Reads depot.toml and applies it, one at a time.
    pub fn run(&self) -> Reloaded {
        let mut settings = self.settings.lock();
        let reloaded = self
            .apply(&mut settings)
            .unwrap_or_else(|error| Reloaded { error: Some(format!("{error:#}")), ..Reloaded::default() });
        if let Some(why) = &reloaded.error {
            tracing::error!("depot.toml cannot be used, and what it said before holds: {why}");
        }
        for (what, keys) in [("changed", &reloaded.changed), ("changed at the next mount", &reloaded.waiting)]
        {
            if !keys.is_empty() {
                tracing::info!("depot.toml was read again, {what}: {}", keys.join(", "));
            }
        }
        reloaded.refused.iter().for_each(|refused| tracing::warn!("depot.toml was read again: {refused}"));
        *self.last.lock() = Some(reloaded.clone());
        reloaded
    }

    fn apply(&self, settings: &mut BTreeMap<String, String>) -> anyhow::Result<Reloaded> {
        let config = Config::load(&self.depot)?;
        places::refuse_nesting(&config, &self.mountpoint)?;
        let layers = layers::of(&config)?;
        let old = |key: &str| settings.get(key);
        let new = |key: &str| config.settings.get(key);
        let same_chain = old("chain") == new("chain");
        let keys = settings.keys().chain(config.settings.keys());
        let mut differ: Vec<String> = keys.filter(|key| old(key) != new(key)).cloned().collect();
        differ.sort();
        differ.dedup();
        let (changed, waiting): (Vec<String>, Vec<String>) =
            differ.into_iter().partition(|key| changes_now(key, same_chain));
        let mut reloaded = Reloaded { changed, waiting, ..Reloaded::default() };
        if reloaded.changed.iter().any(|key| key == "log.level")
            && std::env::var_os(logging::VARIABLE).is_none()
        {
            self.logging.set_level(&config.log.level).context("log.level")?;
        }
        if same_chain {
            // Also when nothing differs: what was refused may be possible by now.
            reloaded.refused = self.change_layers(&layers)?;
            self.balancer.set_longest(config.balancing_longest());
            self.balancer.ask();
        }
        for key in &reloaded.changed {
            match config.settings.get(key) {
                Some(value) => settings.insert(key.clone(), value.clone()),
                None => settings.remove(key),
            };
        }
        Ok(reloaded)
    }

    fn change_layers(&self, layers: &[crate::filestore::Layer]) -> anyhow::Result<Vec<String>> {
        let vfs = self.balancer.vfs();
        let wanted = Wanted { blobs: &|after| blobs(vfs, after), staged: &|| staged(vfs) };
        Ok(vfs.store().change(layers, self.depot_id, &wanted)?)
    }
}

/// Whether another value of this key can hold while the depot is mounted.
fn changes_now(key: &str, same_chain: bool) -> bool {
    key == "log.level"
        || same_chain && (key.starts_with("sharding.") && key != "sharding.dir" || is_limit(key))
}

/// Whether a key is one of the limits and times that a layer looks at when it needs them.
fn is_limit(key: &str) -> bool {
    const LIMITS: [&str; 9] = [
        "cache-fs.max-cache-size",
        "cache-fs.max-file-size-limit",
        "cache-fs.min-free-space",
        "cache-fs.skip-during-upload",
        "eventual.dispatcher-interval",
        "eventual.timeout",
        "eventual.drain-timeout",
        "eventual.min-free-space",
        "eventual.max-queue-size",
    ];
    key.starts_with("retry.") || LIMITS.contains(&key)
}

/// The next blobs that files have; `None` when the index cannot tell.
fn blobs(vfs: &Vfs, after: Option<&Checksum>) -> Option<Vec<(Checksum, u64)>> {
    let mut after = after.copied();
    loop {
        let page = vfs.index().blobs(after.as_ref(), PAGE).ok()?;
        let Some(last) = page.last() else { return Some(Vec::new()) };
        after = Some(last.checksum);
        let page: Vec<_> =
            page.iter().filter(|row| row.refs > 0).map(|row| (row.checksum, row.size)).collect();
        if !page.is_empty() {
            return Some(page);
        }
    }
}

fn staged(vfs: &Vfs) -> Option<Vec<StagingName>> {
    Some(vfs.index().staged().ok()?.into_iter().map(|row| row.file).collect())
}
