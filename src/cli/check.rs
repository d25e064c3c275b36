//! `depotfs check`: offline consistency.

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;

use super::{Exit, Outcome, depot, human};
use crate::config::Config;
use crate::daemon::lock::{self, Holder};
use crate::daemon::{places, rooms};
use crate::jobs::check;

/// Check an unmounted depot: the index in itself, and against the filestore.
///
/// Looks at every row and at the size of every blob, not at the bytes. The exit code is 4 when problems remain, and 5 when
/// the depot is in use.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs check /srv/depot
  depotfs check /srv/depot --repair     put right what can be without losing data, and say what was done")]
pub struct Args {
    /// The depot's directory.
    depot: PathBuf,
    /// Put right what can be put right without losing data.
    #[arg(long)]
    repair: bool,
    /// Put back blobs that are missing or cut, from the earlier versions that their bucket keeps (S3).
    #[arg(long)]
    from_versions: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Outcome {
    let depot = depot::find(&args.depot)?;
    let config = Config::load(&depot)?;
    let _lock = lock::take(&depot, &Holder::this("check", None), lock::PATIENCE)?;
    places::clear_dead_mounts(&depot)?;
    let (index, store) = rooms::open(&config)?;
    let mut report = check::run(&index, &store, args.repair)?;
    if args.from_versions && !check::from_versions(&store, &mut report)? {
        bail!("--from-versions: the blobs of this depot are in no bucket");
    }
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    if report.unsealed > 0 {
        writeln!(out, "{} not sealed yet: the next mount does it", human::count(report.unsealed, "file"))?;
    }
    let (found, left) = (report.findings.len(), report.remaining());
    let blobs = human::count(report.blobs, "blob");
    match (found, left) {
        (0, _) => writeln!(out, "{blobs} and the index are in order")?,
        (_, 0) => writeln!(out, "{} repaired, {blobs}", human::count(found as u64, "problem"))?,
        (_, _) => {
            let hint = if args.repair { "" } else { ": --repair puts right what can be without losing data" };
            writeln!(out, "{} left, {blobs}{hint}", human::count(left as u64, "problem"))?;
        }
    }
    Ok(if left == 0 { Exit::Ok } else { Exit::Problems })
}
