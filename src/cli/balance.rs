//! `depotfs balance`: puts blobs where the configuration of the shards wants them.

use std::io::Write;
use std::path::PathBuf;

use super::{Exit, Outcome, complain, depot, human};
use crate::control::{Client, Request};
use crate::jobs::balance::Report;

/// Put every blob of a mounted depot where the configuration of its shards wants it.
///
/// Copies that are missing are made, those on drained shards moved elsewhere, surplus ones removed unless they are in use.
/// The same begins by itself after a change of the shards. The exit code is 4 when something is left.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs balance /srv/depot
  depotfs balance /srv/depot --json | jq .left")]
pub struct Args {
    /// The depot's directory, or any path inside its mount.
    depot: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Outcome {
    let mut daemon = Client::connect(&depot::find(&args.depot)?)?;
    let report: Report = daemon.ask(&Request::Balance, &mut |news| complain(news))?;
    for failure in &report.failures {
        complain(failure);
    }
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        false => tell(&report, out)?,
    }
    let well = report.whole && report.failed + report.left == 0;
    Ok(if well { Exit::Ok } else { Exit::Problems })
}

fn tell(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    let copies = human::count(report.copied, "copy");
    writeln!(
        out,
        "{} looked at, {copies} made ({}), {} removed",
        human::count(report.looked, "blob"),
        human::bytes(report.bytes),
        human::count(report.removed, "copy"),
    )?;
    if report.failed > 0 {
        writeln!(out, "{} could not be mended", human::count(report.failed, "blob"))?;
    }
    if report.left > 0 {
        let left = human::count(report.left, "blob");
        writeln!(out, "{left} left: a copy is in use, or too few shards take blobs")?;
    }
    if !report.whole {
        writeln!(out, "it ended before all blobs were looked at")?;
    }
    Ok(())
}
