//! What a row has in hand while it measures one peer in one round.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::depot::Depot;
use crate::samples::{Samples, Unit};
use crate::sites::{Peer, Site};
use crate::sys;

/// What holds for the whole run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Numbers of files and sizes are multiplied by this.
    pub scale: f64,
    /// The scratch directory.
    pub scratch: PathBuf,
    /// The program that is measured.
    pub depotfs: PathBuf,
    /// Set when the run is to end early.
    pub stopped: Arc<AtomicBool>,
}

impl Run {
    /// So many, scaled; at least one.
    pub fn scaled(&self, n: u64) -> u64 {
        ((n as f64 * self.scale) as u64).max(1)
    }

    /// Fails when somebody pressed Ctrl-C.
    pub fn go_on(&self) -> Result<()> {
        if self.stopped.load(Relaxed) { bail!("stopped") } else { Ok(()) }
    }
}

/// One peer in one round.
#[derive(Debug)]
pub struct Measure<'a> {
    /// The run.
    pub run: &'a Run,
    /// The peer.
    pub site: &'a Site,
    samples: &'a mut Samples,
}

impl<'a> Measure<'a> {
    /// For one peer.
    pub fn new(run: &'a Run, site: &'a Site, samples: &'a mut Samples) -> Measure<'a> {
        Measure { run, site, samples }
    }

    /// So many, scaled.
    pub fn scaled(&self, n: u64) -> u64 {
        self.run.scaled(n)
    }

    /// An empty directory of this peer, made anew.
    pub fn fresh(&self, name: &str) -> Result<PathBuf> {
        let dir = self.site.own().join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// How long it took, in seconds.
    pub fn take<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<f64> {
        self.run.go_on()?;
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Measures the time of work that writes, and keeps it; what was written before is at rest first.
    pub fn time<T>(&mut self, quantity: &'static str, work: impl FnOnce() -> Result<T>) -> Result<()> {
        self.site.settle()?;
        self.again(quantity, work)
    }

    /// Measures the time of work that comes right after something else, and keeps it.
    pub fn again<T>(&mut self, quantity: &'static str, work: impl FnOnce() -> Result<T>) -> Result<()> {
        let seconds = self.take(work)?;
        self.seconds(quantity, seconds);
        Ok(())
    }

    /// Does the work three times and keeps the third time: by then everything is known that can be.
    pub fn warm<T>(&mut self, quantity: &'static str, mut work: impl FnMut() -> Result<T>) -> Result<()> {
        work()?;
        work()?;
        self.again(quantity, work)
    }

    /// Measures the time of `work` after a new mount with nothing cached.
    pub fn first<T>(&mut self, quantity: &'static str, work: impl FnOnce() -> Result<T>) -> Result<()> {
        self.site.settle()?;
        self.site.remount()?;
        let start = Instant::now();
        work()?;
        self.seconds(quantity, start.elapsed().as_secs_f64());
        Ok(())
    }

    /// How often the device was flushed during `work`.
    pub fn flushes<T>(
        &mut self,
        quantity: &'static str,
        per: u64,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let before = sys::flushes(self.site.disk());
        let done = work()?;
        if let (Some(before), Some(after)) = (before, sys::flushes(self.site.disk())) {
            self.count(quantity, (after - before) as f64 / per as f64);
        }
        Ok(done)
    }

    /// Keeps a time.
    pub fn seconds(&mut self, quantity: &'static str, value: f64) {
        self.samples.add(quantity, Unit::Seconds, self.site.peer, value);
    }

    /// Keeps a size.
    pub fn bytes(&mut self, quantity: &'static str, value: f64) {
        self.samples.add(quantity, Unit::Bytes, self.site.peer, value);
    }

    /// Keeps a count.
    pub fn count(&mut self, quantity: &'static str, value: f64) {
        self.samples.add(quantity, Unit::Count, self.site.peer, value);
    }

    /// Keeps what a computation takes on one core.
    pub fn core(&mut self, quantity: &'static str, work: impl FnOnce()) {
        let start = Instant::now();
        work();
        self.samples.add(quantity, Unit::Seconds, Peer::Core, start.elapsed().as_secs_f64());
    }

    /// The depot, if this is depotfs.
    pub fn depot(&self) -> Option<&'a Depot> {
        self.site.depot.as_ref()
    }
}
