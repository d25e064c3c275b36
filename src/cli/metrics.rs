//! `depotfs metrics`: the daemon's numbers as Prometheus text.

use std::io::Write;
use std::path::PathBuf;

use super::status::ANSWER_WITHIN;
use super::{Exit, Outcome, depot};
use crate::control::{Client, Request};

/// Print the running daemon's numbers as Prometheus text.
#[derive(clap::Args)]
#[command(after_help = "Example, for the textfile collector of node_exporter:
  depotfs metrics /srv/depot > depotfs.prom.new && mv depotfs.prom.new depotfs.prom")]
pub struct Args {
    /// The depot's directory, or any path inside its mount; may be left out when one depot is mounted.
    depot: Option<PathBuf>,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Outcome {
    let depot = depot::find_or_only(args.depot.as_deref())?;
    let text: String = Client::connect(&depot)?.within(ANSWER_WITHIN).ask(&Request::Metrics, &mut |_| {})?;
    out.write_all(text.as_bytes())?;
    Ok(Exit::Ok)
}
