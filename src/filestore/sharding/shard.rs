//! One shard: a provider that may be away for a while.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::error::{Error, Result};
use super::super::provider::Provider;
use crate::checksum::Checksum;
use crate::sys::content::is_shortage;
use crate::text::chain;

/// Opens a shard's provider, again when it comes back.
pub type Opener = Box<dyn Fn() -> Result<Arc<dyn Provider>> + Send + Sync>;

/// See above.
pub struct Shard {
    /// Its directory, by which it is named.
    pub dir: PathBuf,
    /// Where it is; empty: nowhere in particular.
    pub zone: String,
    /// Whether it takes new blobs; one that does not is drained.
    pub write_enabled: bool,
    /// Shortest time before a shard that failed is tried again.
    pub check_period: Duration,
    opener: Opener,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    provider: Option<Arc<dyn Provider>>,
    /// It is set aside since then, and why.
    away: Option<(Instant, String)>,
    /// It takes nothing since then, and why.
    refuses: Option<(Instant, String)>,
}

impl Shard {
    /// A shard that is opened when it is first asked for.
    pub fn new(
        dir: PathBuf,
        zone: String,
        write_enabled: bool,
        check_period: Duration,
        opener: Opener,
    ) -> Shard {
        Shard { dir, zone, write_enabled, check_period, opener, state: Mutex::default() }
    }

    /// Its provider, unless it is away. After the check period it is tried again by whoever asks first.
    ///
    /// What was opened once is kept: it remembers which staging files its disk has refused.
    pub fn get(&self) -> Option<Arc<dyn Provider>> {
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            match &mut state.away {
                Some((since, _)) if since.elapsed() < self.check_period => return None,
                // The others go on without it meanwhile.
                Some((since, _)) => *since = Instant::now(),
                None if state.provider.is_some() => return state.provider.clone(),
                None => state.away = Some((Instant::now(), "it is being opened".into())),
            }
        }
        let known = self.state.lock().provider.clone();
        let opened = match known {
            Some(provider) => provider.stat(&Checksum::EMPTY).map(|_| provider),
            None => (self.opener)(),
        };
        let mut state = self.state.lock();
        match opened {
            Ok(provider) => {
                state.away = None;
                state.provider = Some(Arc::clone(&provider));
                Some(provider)
            }
            Err(error) => {
                tracing::warn!("shard {} cannot be used: {}", self.dir.display(), chain(&error));
                state.away = Some((Instant::now(), chain(&error)));
                None
            }
        }
    }

    /// Its provider as far as it is known, without a look at the disk.
    pub fn known(&self) -> Option<Arc<dyn Provider>> {
        self.state.lock().provider.clone()
    }

    /// Its provider, if it takes new blobs.
    pub fn writable(&self) -> Option<Arc<dyn Provider>> {
        if !self.write_enabled {
            return None;
        }
        {
            let mut state = self.state.lock();
            match &state.refuses {
                Some((since, _)) if since.elapsed() < self.check_period => return None,
                _ => state.refuses = None,
            }
        }
        self.get()
    }

    /// Sets it aside if this is an error of the shard, and not of what was asked for.
    pub fn read_failed(&self, error: &Error) {
        if is_of_the_disk(error) {
            tracing::warn!("shard {} is set aside: {}", self.dir.display(), chain(error));
            self.state.lock().away = Some((Instant::now(), chain(error)));
        }
    }

    /// Gives it no blobs for a while, likewise.
    pub fn write_failed(&self, error: &Error) {
        if is_of_the_disk(error) {
            tracing::warn!("shard {} gets no blobs for now: {}", self.dir.display(), chain(error));
            self.state.lock().refuses = Some((Instant::now(), chain(error)));
        }
    }

    /// Why it does not work, as far as is known.
    pub fn trouble(&self) -> Option<String> {
        let state = self.state.lock();
        state.away.as_ref().or(state.refuses.as_ref()).map(|(_, why)| why.clone())
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("dir", &self.dir)
            .field("trouble", &self.trouble())
            .finish_non_exhaustive()
    }
}

/// Whether it is the shard that is in trouble: not this process, and not the one file.
fn is_of_the_disk(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => !is_shortage(source),
        Error::NotADepotDirectory { .. } | Error::Foreign { .. } => true,
        _ => false,
    }
}
