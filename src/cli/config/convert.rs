//! `depotfs config convert`: a depot.toml from Artifactory's binarystore.xml.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use super::super::{Exit, Outcome, complain, human};
use crate::config::binarystore::{self, BYTES_MAX};
use crate::text::shown;

#[derive(clap::Args)]
pub struct Args {
    /// The binarystore.xml; "-": standard input.
    file: PathBuf,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Outcome {
    let file = args.file.display();
    let cannot = || format!("{file} cannot be converted");
    let xml = read(&args.file).with_context(cannot)?;
    let converted = binarystore::convert(&xml).map_err(|why| anyhow!(why)).with_context(cannot)?;
    write!(out, "{}", converted.text)?;
    converted.notes.iter().for_each(|note| complain(&format!("note: {note}")));
    converted.lost.iter().for_each(|lost| complain(&format!("not carried over: {lost}")));
    for problem in &converted.problems {
        complain(&format!("problem: {}", shown(problem.text.as_bytes())));
    }
    let (lost, problems) = (converted.lost.len() as u64, converted.problems.len() as u64);
    if lost + problems == 0 {
        return Ok(Exit::Ok);
    }
    let (things, problems) = (human::count(lost, "thing"), human::count(problems, "problem"));
    complain(&format!(
        "{file}: {things} not carried over, {problems} with what was: look through the output"
    ));
    Ok(Exit::Problems)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let from: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(path)?),
    };
    let mut bytes = Vec::new();
    from.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        bail!("it has more than 1 MiB, so it is no binarystore.xml");
    }
    String::from_utf8(bytes).context("it is not UTF-8")
}
