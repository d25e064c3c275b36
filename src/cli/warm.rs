//! `depotfs warm`: fills the cache.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use super::exit::Exit;
use super::{Outcome, complain, depot, human};
use crate::control::report::Warmed;
use crate::control::{Client, Request};

/// Fetch files into the cache, so that their next readers do not wait.
///
/// A directory stands for everything in it. The exit code is 4 when files could not be read.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs warm /srv/depot libs/releases
  depotfs warm /mnt/repos /mnt/repos/libs /mnt/repos/images/base.iso --json")]
pub struct Args {
    /// The depot's directory, or any path inside its mount.
    depot: PathBuf,
    /// Files and directories: paths from the root of the tree, or in the mount.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Outcome {
    let depot = depot::find(&args.depot)?;
    let targets = args.paths.iter().map(|path| depot::path(&depot, path)).collect::<Result<_, _>>()?;
    let warmed: Warmed =
        Client::connect(&depot)?.ask(&Request::Warm { targets }, &mut |news| complain(news))?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&warmed)?)?;
    } else {
        let (files, bytes) = (human::count(warmed.fetched, "file"), human::bytes(warmed.bytes));
        writeln!(out, "{files} with {bytes} fetched, {} there already", warmed.there)?;
        if warmed.passed_over > 0 {
            let files = human::count(warmed.passed_over, "file");
            complain(&format!("{files} not cached: too large, or there is no room left that nobody uses"));
        }
        for trouble in &warmed.failed {
            complain(&format!("{} cannot be fetched: {}", trouble.what, trouble.why));
        }
    }
    Ok(if warmed.failed.is_empty() { Exit::Ok } else { Exit::Problems })
}
