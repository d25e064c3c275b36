//! `depotfs config`: what depot.toml says, and whether it is right.

mod convert;

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Exit, Outcome, depot, human};
use crate::config::{self, Entry, Origin, Problem};
use crate::daemon::{LOG_VARIABLE, rooms};
use crate::text::shown;

/// Show the configuration of a depot and check it, mounted or not; convert that of Artifactory.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "Examples:
  depotfs config show /srv/depot
  depotfs config show /srv/depot --json | jq '.keys[] | select(.origin != \"default\")'
  depotfs config check /srv/depot     before the next mount, after depot.toml was edited
  depotfs config convert /opt/jfrog/artifactory/var/etc/artifactory/binarystore.xml > new.toml";

#[derive(clap::Subcommand)]
enum Verb {
    /// Shows every key with its value and where that comes from.
    ///
    /// As a mount that is started here and now would find it: a daemon that runs has read depot.toml when it was started.
    /// Keys of providers that the chain does not have are left out, secrets are shown as "***".
    #[command(after_help = AFTER_HELP)]
    Show(Of),
    /// Tells everything that is wrong with depot.toml, and with the directories that it names.
    ///
    /// Changes nothing. The exit code is 0 when nothing is wrong, 4 when problems were found, and 1 when depot.toml cannot be
    /// read.
    #[command(after_help = AFTER_HELP)]
    Check(Of),
    /// Writes a depot.toml for the chain of a binarystore.xml on standard output.
    ///
    /// What could not be carried over stands in it as comments and on standard error; the exit code is then 4. It is written
    /// without an id: `depotfs init --from` and `depotfs rechain --to` take it as it is.
    #[command(after_help = AFTER_HELP)]
    Convert(convert::Args),
}

#[derive(clap::Args)]
struct Of {
    /// The depot's directory, or any path inside its mount.
    depot: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Outcome {
    match &args.verb {
        Verb::Show(of) => show(&depot::find(&of.depot)?, of.json, out),
        Verb::Check(of) => check(&depot::find(&of.depot)?, of.json, out),
        Verb::Convert(args) => convert::run(args, out),
    }
}

fn show(depot: &Path, json: bool, out: &mut dyn Write) -> Outcome {
    let mut entries = config::entries(depot)?;
    if let Ok(level) = std::env::var(LOG_VARIABLE) {
        take_level(&mut entries, level);
    }
    if json {
        writeln!(out, "{:#}", show_json(depot, &entries))?;
        return Ok(Exit::Ok);
    }
    let rows: Vec<[String; 3]> =
        entries.iter().map(|e| [e.key.clone(), value(e), e.origin.to_string()]).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    // One long value does not push all origins out of sight.
    let (keys, values) = (width(0), width(1).min(40));
    for [key, value, origin] in &rows {
        writeln!(out, "{key:<keys$}  {value:<values$}  {origin}")?;
    }
    Ok(Exit::Ok)
}

/// The variable that wins over the level of depot.toml.
fn take_level(entries: &mut [Entry], level: String) {
    if let Some(entry) = entries.iter_mut().find(|entry| entry.key == "log.level") {
        entry.value = level;
        entry.origin = Origin::Environment(vec![LOG_VARIABLE.into()]);
    }
}

/// A value for a line; an empty one is seen as such.
fn value(entry: &Entry) -> String {
    if entry.value.is_empty() { "\"\"".into() } else { shown(entry.value.as_bytes()) }
}

fn show_json(depot: &Path, entries: &[Entry]) -> serde_json::Value {
    let key = |e: &Entry| serde_json::json!({"key": e.key, "value": e.value, "origin": e.origin.to_string()});
    serde_json::json!({
        "depot": depot.display().to_string(),
        "keys": entries.iter().map(key).collect::<Vec<_>>(),
    })
}

fn check(depot: &Path, json: bool, out: &mut dyn Write) -> Outcome {
    let problems = problems(depot, &config::text(depot)?);
    match json {
        true => writeln!(out, "{:#}", check_json(depot, &problems))?,
        false => tell(depot, &problems, out)?,
    }
    Ok(if problems.is_empty() { Exit::Ok } else { Exit::Problems })
}

/// All that is wrong with this text of a depot.toml, and with what it names.
fn problems(depot: &Path, text: &str) -> Vec<Problem> {
    let (config, mut problems) = match config::examine(depot, text) {
        Ok(examined) => examined,
        Err(problem) => return vec![problem],
    };
    // Where a key is wrong its default stands in, and whether that is there matters to nobody.
    let told = |key: &str| problems.iter().any(|problem| problem.concerns(key));
    let on_disk: Vec<Problem> = rooms::examine(&config).into_iter().filter(|p| !told(&p.key)).collect();
    problems.extend(on_disk);
    problems
}

fn tell(depot: &Path, problems: &[Problem], out: &mut dyn Write) -> std::io::Result<()> {
    for problem in problems {
        writeln!(out, "{}", shown(problem.text.as_bytes()))?;
    }
    let file = depot.join(config::FILE);
    match problems.len() as u64 {
        0 => writeln!(out, "nothing wrong with {} and the directories it names", file.display()),
        n => {
            writeln!(out, "{} with {}: the next mount would fail", human::count(n, "problem"), file.display())
        }
    }
}

fn check_json(depot: &Path, problems: &[Problem]) -> serde_json::Value {
    let problem = |p: &Problem| serde_json::json!({"key": p.key, "problem": p.text});
    serde_json::json!({
        "depot": depot.display().to_string(),
        "problems": problems.iter().map(problem).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_key_is_told_once_and_its_directory_not_looked_at() {
        let scratch = tempfile::tempdir().unwrap();
        let keys = |text: &str| -> Vec<String> {
            problems(scratch.path(), text).into_iter().map(|problem| problem.key).collect()
        };
        let id = "id = '00112233445566778899aabbccddeeff'";
        assert_eq!(keys(id), ["index", "log.dir", "file-system.dir"]);
        assert_eq!(keys(&format!("{id}\nindex = 5\n[log]\nto = 'syslog'")), ["index", "file-system.dir"]);
        assert_eq!(keys(&format!("{id}\nchain = []")), ["chain", "index", "log.dir"]);
        assert_eq!(keys("id = 5"), ["id", "index", "log.dir"]);
        assert_eq!(keys("["), [""]);
    }

    #[test]
    fn values_fit_their_lines() {
        let entry = |value: &str| Entry { key: "k".into(), value: value.into(), origin: Origin::File };
        assert_eq!(value(&entry("")), "\"\"");
        assert_eq!(value(&entry("a\n\u{1b}b")), "a\\n\\u{1b}b");
    }

    #[test]
    fn problems_fit_their_lines() {
        let mut out = Vec::new();
        let problem = Problem::new("k", "k: directory a\nb is not there");
        tell(Path::new("/d"), &[problem], &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("1 problem with /d/depot.toml"), "{text}");
    }
}
