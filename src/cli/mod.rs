//! The commands: one file each, and what they share.
//!
//! Results go to standard output, everything else to standard error. Errors say what was attempted, on what, why it failed
//! and what to do; the exit code tells scripts which kind it was.

mod balance;
mod blob;
mod cache;
mod check;
mod config;
mod depot;
#[cfg(test)]
mod docs;
mod exit;
mod flush;
mod human;
mod init;
mod log;
mod metrics;
mod mount;
mod mount_helper;
mod rechain;
mod reload;
mod repo;
mod status;
mod umount;
mod warm;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::Exit;

/// A file system over a deduplicated, content-addressed filestore.
///
/// A depot is one directory that holds everything. Mounted, its repositories are ordinary directories in which copies cost
/// nothing.
#[derive(Parser)]
#[command(name = "depotfs", version, max_term_width = 110, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Commands that act on one depot take DEPOT: its directory, or any path inside its mount.

Exit codes: 0 ok, 1 failed, 2 usage, 3 not running, 4 problems found, 5 busy.

Examples:
  depotfs init /srv/depot
  depotfs mount /srv/depot /mnt/repos
  cp -r /mnt/repos/libs /mnt/repos/libs-copy     takes no space
  depotfs status
  depotfs umount /mnt/repos";

#[derive(Subcommand)]
enum Command {
    Init(init::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    Flush(flush::Args),
    Status(status::Args),
    Metrics(metrics::Args),
    Repo(repo::Args),
    Config(config::Args),
    Rechain(rechain::Args),
    Blob(blob::Args),
    Cache(cache::Args),
    Warm(warm::Args),
    Check(check::Args),
    Balance(balance::Args),
    Reload(reload::Args),
    Log(log::Args),
}

/// What a command returns: the exit code, or why it failed.
type Outcome = anyhow::Result<Exit>;

impl Command {
    fn run(self, out: &mut dyn Write) -> Outcome {
        match self {
            Command::Init(args) => init::run(args, out),
            Command::Mount(args) => mount::run(&args),
            Command::Umount(args) => umount::run(&args),
            Command::Flush(args) => flush::run(&args),
            Command::Status(args) => status::run(&args, out),
            Command::Metrics(args) => metrics::run(&args, out),
            Command::Repo(args) => repo::run(args, out),
            Command::Config(args) => config::run(&args, out),
            Command::Rechain(args) => rechain::run(&args, out),
            Command::Blob(args) => blob::run(args, out),
            Command::Cache(args) => cache::run(&args, out),
            Command::Warm(args) => warm::run(&args, out),
            Command::Check(args) => check::run(&args, out),
            Command::Balance(args) => balance::run(&args, out),
            Command::Reload(args) => reload::run(&args, out),
            Command::Log(args) => log::run(&args),
        }
    }
}

/// Runs the program with these arguments, the first of which is its own name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let name = arguments.first().and_then(|name| Path::new(name).file_name()?.to_str()).unwrap_or_default();
    // mount.fuse(8) uses the plain name; a place is no command, as no command has a slash in it.
    let is_place = arguments.get(1).is_some_and(|first| first.as_encoded_bytes().contains(&b'/'));
    if mount_helper::NAMES.contains(&name) || is_place {
        return mount_helper::main(&arguments[1..]);
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let usage = error.use_stderr();
            return if usage { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    finish(cli.command.run(&mut io::stdout().lock())).into()
}

/// Says what went wrong, if anything did.
fn finish(outcome: Outcome) -> Exit {
    match outcome {
        Ok(exit) => exit,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => Exit::Ok,
        Err(error) => {
            complain(&format!("{error:#}"));
            exit::of(&error)
        }
    }
}

/// One message on standard error.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "depotfs: {text}");
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            assert!(command.get_after_help().is_some(), "{} has no example", command.get_name());
        }
    }
}
