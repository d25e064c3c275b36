//! `depotfs cache`: how full the cache is, emptying it, how large it should be.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use super::exit::Exit;
use super::{Outcome, depot, human};
use crate::control::report::{Cache, CacheAdvice, Dropped};
use crate::control::{Client, Request};

/// Look at the cache of a mounted depot, empty it, or learn how large it should be.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs cache status /srv/depot
  depotfs cache drop /srv/depot libs/old          what is cached of a file or directory
  depotfs cache drop /srv/depot --all             everything that nobody has open
  depotfs cache advise /srv/depot                 the size it should have, from what was read")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Shows how full it is and how often it had what was asked for.
    Status {
        /// The depot's directory, or any path inside its mount.
        depot: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Takes blobs out of it; the files themselves stay.
    Drop {
        /// The depot's directory, or any path inside its mount.
        depot: PathBuf,
        /// Files and directories: paths from the root of the tree, or in the mount; or checksums.
        #[arg(required_unless_present = "all", value_name = "PATH")]
        paths: Vec<OsString>,
        /// Everything that nobody has open.
        #[arg(long, conflicts_with = "paths")]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tells for some hit rates how large the cache would have to be.
    Advise {
        /// The depot's directory, or any path inside its mount.
        depot: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub fn run(args: &Args, out: &mut dyn Write) -> Outcome {
    match &args.verb {
        Verb::Status { depot, json } => {
            let status: Cache = ask(depot, &Request::CacheStatus)?;
            if *json {
                writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
            } else {
                print_status(&status, out)?;
            }
        }
        Verb::Drop { depot, paths, json, .. } => {
            let found = depot::find(depot)?;
            let targets = paths.iter().map(|path| depot::target(&found, path)).collect::<Result<_, _>>()?;
            let dropped: Dropped = ask(depot, &Request::CacheDrop { targets })?;
            if *json {
                writeln!(out, "{}", serde_json::to_string_pretty(&dropped)?)?;
            } else {
                writeln!(out, "{} dropped", human::count(dropped.blobs, "blob"))?;
            }
        }
        Verb::Advise { depot, json } => {
            let advice: CacheAdvice = ask(depot, &Request::CacheAdvise)?;
            if *json {
                writeln!(out, "{}", serde_json::to_string_pretty(&advice)?)?;
            } else {
                print_advice(&advice, out)?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn ask<T: serde::de::DeserializeOwned>(given: &std::path::Path, request: &Request) -> anyhow::Result<T> {
    Ok(Client::connect(&depot::find(given)?)?.ask(request, &mut |_| {})?)
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "none".into() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

fn print_status(status: &Cache, out: &mut dyn Write) -> io::Result<()> {
    let (used, limit) = (human::bytes(status.used), human::bytes(status.limit));
    writeln!(out, "used      {used} of {limit}, {} of it arriving", human::bytes(status.arriving))?;
    writeln!(out, "blobs     {}", status.entries)?;
    let opened = status.hits + status.misses;
    writeln!(
        out,
        "hits      {} of {opened} since the start ({})",
        status.hits,
        percent(status.hits, opened)
    )?;
    writeln!(out, "evictions {} since the start", status.evictions)
}

fn print_advice(advice: &CacheAdvice, out: &mut dyn Write) -> io::Result<()> {
    if advice.asked == 0 {
        return writeln!(out, "nothing was read yet, so there is nothing to tell");
    }
    let (hits, asked) = (advice.hits, advice.asked);
    let limit = human::bytes(advice.limit);
    writeln!(out, "of the last {asked} openings the cache of {limit} answered {}", percent(hits, asked))?;
    let first = percent(advice.first, asked);
    writeln!(out, "{first} were first ones, which no cache has unless it is warmed")?;
    for (rate, size) in &advice.sizes {
        match size {
            Some(size) => writeln!(out, "{rate} % would take max-cache-size = {}", human::bytes(*size))?,
            None => writeln!(out, "{rate} % are not to be had by size alone")?,
        }
    }
    writeln!(out, "all that was read has {}", human::bytes(advice.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_reads_well() {
        let advice = CacheAdvice {
            asked: 200,
            hits: 100,
            first: 30,
            bytes: 7_000_000_000,
            limit: 5_000_000_000,
            sizes: vec![(80, Some(6_000_000_000)), (90, None)],
        };
        let mut out = Vec::new();
        print_advice(&advice, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "200 openings",
            "5.0 GB answered 50.0 %",
            "15.0 % were first",
            "80 % would take max-cache-size = 6.0 GB",
            "90 % are not",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
