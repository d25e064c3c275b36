//! `depotfs flush`: seals and forces everything that is closed.

use std::path::PathBuf;

use super::exit::Exit;
use super::{Outcome, complain, depot, human};
use crate::control::report::{Flushed, Queue};
use crate::control::{Client, Drain, Request};

/// Seal and force everything that is closed; with --wait, also upload what is in the queue.
///
/// sync(2) does not reach a file system of this kind; this does.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs flush /srv/depot            begin, and return at once
  depotfs flush /mnt/repos --wait     return when everything closed is a blob, safe against a power cut and uploaded")]
pub struct Args {
    /// The depot's directory, or any path inside its mount.
    depot: PathBuf,
    /// Return when it is done, not when it has begun.
    #[arg(long)]
    wait: bool,
}

pub fn run(args: &Args) -> Outcome {
    let mut daemon = Client::connect(&depot::find(&args.depot)?)?;
    let request = Request::Flush { wait: args.wait };
    let flushed: Option<Flushed> = daemon.ask(&request, &mut |news| complain(news))?;
    let Some(flushed) = flushed else { return Ok(Exit::Ok) };
    if flushed.open > 0 {
        complain(&format!(
            "note: {} still open for writing: forced, not sealed",
            human::count(flushed.open, "file")
        ));
    }
    if flushed.left > 0 {
        complain(&format!(
            "note: {} closed meanwhile: sealed in a moment",
            human::count(flushed.left, "file")
        ));
    }
    for trouble in &flushed.failed {
        complain(&format!("cannot be sealed: {}: {}", trouble.what, trouble.why));
    }
    let left: Option<Queue> =
        daemon.ask(&Request::Drain { how: Drain::UntilEmpty }, &mut |news| complain(news))?;
    let bad = left.is_some_and(|left| {
        left.bad.iter().for_each(|bad| complain(&format!("cannot be uploaded: blob {bad}")));
        !left.bad.is_empty()
    });
    Ok(if flushed.failed.is_empty() && !bad { Exit::Ok } else { Exit::Problems })
}
