//! `depotfs log`: changes what the running daemon logs.

use std::path::PathBuf;

use serde_json::Value;

use super::{Exit, Outcome, depot};
use crate::control::{Client, Request};

/// Change the running daemon's log level.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs log /srv/depot debug
  depotfs log /srv/depot info,depotfs::vfs=trace

Until the daemon ends; log.level in depot.toml holds for the next one.")]
pub struct Args {
    /// The depot's directory, or any path inside its mount.
    depot: PathBuf,
    /// error, warn, info, debug, trace, or a filter expression.
    level: String,
}

pub fn run(args: &Args) -> Outcome {
    let request = Request::LogLevel { level: args.level.clone() };
    Client::connect(&depot::find(&args.depot)?)?.ask::<Value>(&request, &mut |_| {})?;
    Ok(Exit::Ok)
}
