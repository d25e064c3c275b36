//! The course of a row: rounds, and in each the turn of every peer.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Error, Result, bail};

use crate::lab::Lab;
use crate::meter::Meter;
use crate::results::Results;
use crate::samples::Unit;
use crate::sites::Peer;

/// What holds for the whole run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Numbers of files and sizes are multiplied by this.
    pub scale: f64,
    /// Times that everything is measured.
    pub rounds: u32,
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

    /// A server with what `fill` puts into its bucket.
    pub fn lab(&self, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Lab> {
        Lab::new(&self.scratch, &self.depotfs, fill)
    }

    /// An empty directory on the disk, made anew.
    pub fn fresh(&self, name: &str) -> Result<PathBuf> {
        let dir = self.scratch.join("disk").join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

/// One row at work.
#[derive(Debug)]
pub struct Course<'a> {
    /// The run.
    pub run: &'a Run,
    row: &'static str,
    results: &'a mut Results,
    out: BTreeSet<Peer>,
}

impl<'a> Course<'a> {
    /// For one row.
    pub fn new(run: &'a Run, row: &'static str, results: &'a mut Results) -> Course<'a> {
        Course { run, row, results, out: BTreeSet::new() }
    }

    /// Makes what a peer needs; a peer that cannot have it takes no turn. `None` then.
    pub fn set_up<T>(&mut self, peer: Peer, make: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        self.run.go_on()?;
        let started = Instant::now();
        let made = make().map_err(|error| self.fail(peer, &error));
        eprintln!("{}: set up for {peer} in {:.1} s", self.row, started.elapsed().as_secs_f64());
        match made {
            Ok(made) => Ok(Some(made)),
            Err(stopped) => stopped.map(|()| None),
        }
    }

    /// One peer's turn in a round. A peer that fails takes no further one.
    pub fn turn(&mut self, peer: Peer, work: impl FnOnce(&mut Turn<'_>) -> Result<()>) -> Result<()> {
        if self.out.contains(&peer) {
            return Ok(());
        }
        self.run.go_on()?;
        let started = Instant::now();
        if let Err(error) = work(&mut Turn { run: self.run, peer, results: self.results }) {
            self.fail(peer, &error)?;
        }
        eprintln!("{}: {peer:15} {:.1} s", self.row, started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Takes note of a failure; an end that somebody wants is one of the whole run.
    pub fn fail(&mut self, peer: Peer, error: &Error) -> Result<()> {
        self.run.go_on()?;
        eprintln!("{}: {peer} failed: {error:#}", self.row);
        self.results.figures.trouble(self.row, peer, format!("{error:#}"));
        self.out.insert(peer);
        Ok(())
    }
}

/// What was set up for a peer: whoever has a turn has it.
pub fn need<T>(made: &Option<T>) -> Result<&T> {
    made.as_ref().context("it was not set up")
}

/// One peer in one round.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The run.
    pub run: &'a Run,
    peer: Peer,
    results: &'a mut Results,
}

impl Turn<'_> {
    /// Keeps the time that work takes and what it costs; gives what it gives.
    pub fn measure<T>(
        &mut self,
        quantity: &'static str,
        meter: Meter<'_>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.run.go_on()?;
        let before = meter.begin()?;
        let start = Instant::now();
        let done = work()?;
        let seconds = start.elapsed().as_secs_f64();
        let costs = meter.end(&before)?;
        self.results.add(quantity, Unit::Seconds, self.peer, seconds, costs);
        Ok(done)
    }

    /// Keeps a time.
    pub fn seconds(&mut self, quantity: &'static str, value: f64) {
        self.results.add(quantity, Unit::Seconds, self.peer, value, [None; 5]);
    }

    /// Keeps a number.
    pub fn count(&mut self, quantity: &'static str, value: f64) {
        self.results.add(quantity, Unit::Count, self.peer, value, [None; 5]);
    }
}
