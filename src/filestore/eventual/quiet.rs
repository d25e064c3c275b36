//! Failures for the log: the first one, then one a minute, and that it works again.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A failure that comes again is told this often.
const PERIOD: Duration = Duration::from_secs(60);

/// When a failure was told last, if nothing succeeded since.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<Option<Instant>>);

impl Quiet {
    pub(super) fn failed(&self, what: &str) {
        let mut told = self.0.lock();
        if told.is_none_or(|at| at.elapsed() >= PERIOD) {
            tracing::warn!("{what}");
            *told = Some(Instant::now());
        }
    }

    pub(super) fn succeeded(&self) {
        if self.0.lock().take().is_some() {
            tracing::info!("uploads succeed again");
        }
    }
}
