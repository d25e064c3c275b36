//! `depotfs reload`: has the daemon read depot.toml again, as SIGHUP does.

use std::io::{self, Write};
use std::path::PathBuf;

use super::{Exit, Outcome, depot};
use crate::control::report::Reloaded;
use crate::control::{Client, Request};

/// Read depot.toml again, and apply what can change while the depot is mounted.
///
/// SIGHUP does the same and opens the log again. The exit code is 4 when something could not be done.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs reload /srv/depot        tells what holds now, what waits for the next mount, and what could not be done")]
pub struct Args {
    /// The depot's directory, or any path inside its mount.
    depot: PathBuf,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Outcome {
    let mut daemon = Client::connect(&depot::find(&args.depot)?)?;
    let reloaded: Reloaded = daemon.ask(&Request::Reload, &mut |_| {})?;
    for key in &reloaded.changed {
        writeln!(out, "{key} was changed")?;
    }
    tell(&reloaded, &mut |line| writeln!(out, "{line}"))?;
    if reloaded == Reloaded::default() {
        writeln!(out, "nothing has changed")?;
    }
    let well = reloaded.error.is_none() && reloaded.refused.is_empty();
    Ok(if well { Exit::Ok } else { Exit::Problems })
}

/// What somebody has to know of it, a line each.
pub fn tell(reloaded: &Reloaded, line: &mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    if let Some(error) = &reloaded.error {
        line(&format!("nothing was changed: {error}"))?;
    }
    for key in &reloaded.waiting {
        line(&format!("{key} is changed at the next mount"))?;
    }
    reloaded.refused.iter().try_for_each(|refused| line(refused))
}
