//! depotfs beside the plain directory, bindfs, mergerfs and rclone mount: what system calls and programs take in each.
//!
//! One run goes through all rows; a row is prepared once and then measured for each peer in turn, round after round, so
//! that what else the machine does falls on all of them. It prints the goals and the table of docs/benchmarks.md. It needs
//! root, and the programs of the peers; those that are missing are left out.
//!
//! ```sh
//! cargo bench --bench peers -- --row create --rounds 3 --scale 0.1 --peers plain,bindfs
//! ```

mod depot;
mod files;
mod goals;
mod measure;
mod program;
mod report;
mod rows;
mod samples;
mod sites;
mod sys;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Error, Result, ensure};
use clap::Parser;

use measure::{Measure, Run};
use rows::{ROWS, Row};
use samples::Samples;
use sites::{ALL, Peer, Site};

/// Compares depotfs with other file systems by system calls.
#[derive(Parser)]
struct Args {
    /// Rows to run, by part of their name; may be given several times or with commas.
    #[arg(long, value_delimiter = ',')]
    row: Vec<String>,
    /// Peers beside depotfs.
    #[arg(long, value_delimiter = ',', value_parser = Peer::named)]
    peers: Vec<Peer>,
    /// Times that everything is measured.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Numbers of files and sizes of files are multiplied by this.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Also the rows of a million files.
    #[arg(long)]
    full: bool,
    /// Directory on the disk to measure; TMPDIR otherwise.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Program to measure instead of the one just built.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_depotfs"))]
    depotfs: PathBuf,
    /// File for the tables, beside standard output.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// File for all numbers, as lines of JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Names the rows and ends.
    #[arg(long)]
    list: bool,
    /// What cargo says.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut rows = ROWS.iter().filter(|row| args.wants(row)).peekable();
    if args.list || rows.peek().is_none() {
        ROWS.iter().for_each(|row| println!("{}{}", row.name, if row.full { " (with --full)" } else { "" }));
        return Ok(());
    }
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stopped.clone())?;
    }
    sys::raise_open_files()?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = tempfile::Builder::new().prefix("depotfs-peers-").tempdir_in(parent)?;
    let run =
        Run { scale: args.scale, scratch: scratch.path().into(), depotfs: args.depotfs.clone(), stopped };
    let peers = args.peers();
    let mut all = Samples::default();
    for row in rows {
        all.extend(measure_row(row, &run, &peers, args.rounds)?);
        args.write(&all)?;
    }
    print!("{}", tables(&all));
    let ours = all.troubles().iter().filter(|trouble| trouble.peer == Peer::Depotfs).count();
    ensure!(ours == 0, "depotfs failed in {ours} rows");
    Ok(())
}

impl Args {
    fn wants(&self, row: &Row) -> bool {
        let named = self.row.iter().any(|part| row.name.contains(part.as_str()));
        if self.row.is_empty() { self.full || !row.full } else { named }
    }

    /// Those asked for, depotfs always, without those whose program is missing.
    fn peers(&self) -> Vec<Peer> {
        let asked =
            |peer: &Peer| self.peers.is_empty() || self.peers.contains(peer) || *peer == Peer::Depotfs;
        let mut peers: Vec<Peer> = ALL.into_iter().filter(asked).collect();
        peers.retain(|peer| match peer.program() {
            Some(program) if program::find(program).is_none() => {
                eprintln!("{peer}: left out, {program} is not installed");
                false
            }
            _ => true,
        });
        peers
    }

    /// Writes what there is so far: a long run may be ended early.
    fn write(&self, samples: &Samples) -> Result<()> {
        if let Some(path) = &self.markdown {
            fs::write(path, tables(samples)).with_context(|| format!("write {}", path.display()))?;
        }
        if let Some(path) = &self.json {
            fs::write(path, report::json_lines(samples))
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

fn tables(samples: &Samples) -> String {
    format!("{}\n{}{}", report::goals(samples), report::table(samples), report::troubles(samples))
}

/// One row: sites made anew, prepared, and measured in turn. A peer that fails takes part no more.
fn measure_row(row: &Row, run: &Run, peers: &[Peer], rounds: u32) -> Result<Samples> {
    let mut samples = Samples::default();
    let mut sites = Vec::new();
    for peer in peers.iter().filter(|peer| row.who.includes(**peer)) {
        match Site::new(*peer, &run.scratch, &run.depotfs).and_then(|site| prepare(row, run, site)) {
            Ok(site) => sites.push(site),
            Err(error) => fail(row, run, *peer, &error, &mut samples)?,
        }
    }
    for round in 1..=rounds {
        let mut failed = Vec::new();
        for site in &sites {
            let started = Instant::now();
            if let Err(error) = measure_site(row, run, site, &mut samples) {
                fail(row, run, site.peer, &error, &mut samples)?;
                failed.push(site.peer);
            }
            eprintln!(
                "{}: round {round}, {:15} {:.1} s",
                row.name,
                site.peer,
                started.elapsed().as_secs_f64()
            );
        }
        sites.retain(|site| !failed.contains(&site.peer));
    }
    drop(sites);
    fs::remove_dir_all(run.scratch.join("disk"))?;
    Ok(samples)
}

/// Makes what the row works on: in the depot, and on the disk for all others, by whoever comes first.
fn prepare(row: &Row, run: &Run, site: Site) -> Result<Site> {
    let started = Instant::now();
    if !site.shared().exists() {
        fs::create_dir_all(site.shared())?;
        (row.prepare)(run, &site.shared())?;
        site.settle()?;
        eprintln!("{}: prepared for {} in {:.0} s", row.name, site.peer, started.elapsed().as_secs_f64());
    }
    Ok(site)
}

/// Takes note of a failure; an end that somebody wants is one of the whole run.
fn fail(row: &Row, run: &Run, peer: Peer, error: &Error, samples: &mut Samples) -> Result<()> {
    run.go_on()?;
    eprintln!("{}: {peer} failed: {error:#}", row.name);
    samples.trouble(row.name, peer, format!("{error:#}"));
    Ok(())
}

/// The row and a null round trip.
fn measure_site(row: &Row, run: &Run, site: &Site, samples: &mut Samples) -> Result<()> {
    /// Requests in a row of which the mean is taken.
    const TRIPS: u32 = 2_000;
    let mut m = Measure::new(run, site, samples);
    (row.measure)(&mut m)?;
    site.settle()?;
    let start = Instant::now();
    for _ in 0..TRIPS {
        sys::statfs(&site.dir)?;
    }
    m.seconds("null round trip (statfs)", start.elapsed().as_secs_f64() / f64::from(TRIPS));
    Ok(())
}
