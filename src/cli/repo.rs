//! `depotfs repo`: settings of repositories.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use super::exit::{Exit, stop};
use super::{Outcome, depot};
use crate::config::keys;
use crate::control::report::{Repository, Status};
use crate::control::{Bytes, Client, Request, Target};

/// Show and change settings of repositories.
///
/// A repository is a directory at the top of the tree. Its settings are kept with it and move when it is renamed.
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Names the repositories and the settings that differ from the default.
    List {
        /// The depot's directory, or any path inside its mount.
        depot: PathBuf,
    },
    /// Shows all settings of a repository.
    Show {
        /// The depot's directory, or any path inside its mount.
        depot: PathBuf,
        /// Name of the repository.
        repository: OsString,
    },
    /// Changes settings; `KEY=` goes back to the default.
    Set {
        /// The depot's directory, or any path inside its mount.
        depot: PathBuf,
        /// Name of the repository.
        repository: OsString,
        /// What to set.
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
}

fn after_help() -> String {
    let key =
        |key: &keys::Key| format!("  {:<12} {}\n  {:<12} {}\n", key.name, key.kind.wanted(), "", key.doc);
    let settings: String = keys::REPOSITORY.iter().map(key).collect();
    format!(
        "Settings:\n{settings}\nExamples:\n  \
         depotfs repo list /srv/depot\n  \
         depotfs repo set /srv/depot releases durability=close verify=first-open\n  \
         depotfs repo set /srv/depot releases verify="
    )
}

pub fn run(args: Args, out: &mut dyn Write) -> Outcome {
    match args.verb {
        Verb::List { depot } => list(&depot, out),
        Verb::Show { depot, repository } => {
            let depot = depot::find(&depot)?;
            let mut daemon = Client::connect(&depot)?;
            let repository = name(&depot, &repository, || subdir(&mut daemon))?;
            show(&daemon.ask(&Request::RepoShow { repository }, &mut |_| {})?, out)
        }
        Verb::Set { depot, repository, settings } => {
            let settings = settings.iter().map(|text| assignment(text)).collect::<anyhow::Result<_>>()?;
            let depot = depot::find(&depot)?;
            let mut daemon = Client::connect(&depot)?;
            let repository = name(&depot, &repository, || subdir(&mut daemon))?;
            daemon.ask::<Repository>(&Request::RepoSet { repository, settings }, &mut |_| {})?;
            Ok(Exit::Ok)
        }
    }
}

fn list(depot: &Path, out: &mut dyn Write) -> Outcome {
    let all: Vec<Repository> = Client::connect(&depot::find(depot)?)?.ask(&Request::RepoList, &mut |_| {})?;
    for repository in all {
        write!(out, "{}", repository.name)?;
        for (key, value) in &repository.settings {
            write!(out, " {key}={value}")?;
        }
        writeln!(out)?;
    }
    Ok(Exit::Ok)
}

fn show(repository: &Repository, out: &mut dyn Write) -> Outcome {
    for key in keys::REPOSITORY {
        match repository.settings.get(key.name) {
            Some(value) => writeln!(out, "{}={value}", key.name)?,
            None => writeln!(out, "{}={} (default)", key.name, key.default.unwrap_or_default())?,
        }
    }
    Ok(Exit::Ok)
}

/// The name of a repository, also when the shell completed it to a path: of a directory at the top of the tree, which is not
/// the top of the mount where `subdir` says so.
fn name(
    depot: &Path,
    given: &OsStr,
    subdir: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<Bytes> {
    if let Some(name) = only_name(Path::new(given)) {
        return Ok(name);
    }
    let in_tree = match depot::target(depot, given)? {
        Target::Mount(path) => only_name(&Path::new(&subdir()?).join(path.as_os_str())),
        _ => None,
    };
    in_tree.ok_or_else(|| {
        let given = given.display();
        stop(Exit::Usage, format!("{given} is no repository: name a directory at the top of the tree"))
    })
}

/// The directory of the tree that is the root of the mount; empty for the tree's own root.
fn subdir(daemon: &mut Client) -> anyhow::Result<String> {
    let status: Status = daemon.ask(&Request::Status, &mut |_| {})?;
    Ok(status.mount.map(|mount| mount.subdir).unwrap_or_default())
}

/// The name that a path has only one of.
fn only_name(path: &Path) -> Option<Bytes> {
    let mut names = path.components().filter(|part| *part != Component::CurDir);
    match (names.next(), names.next()) {
        (Some(Component::Normal(name)), None) => Some(Bytes::from(name)),
        _ => None,
    }
}

/// `key=value`, or `key=` for the default; checked here as well, so that a mistake is explained without a daemon.
fn assignment(text: &str) -> anyhow::Result<(String, Option<String>)> {
    let usage = |why: String| stop(Exit::Usage, why);
    let (key, value) =
        text.split_once('=').ok_or_else(|| usage(format!("\"{text}\" is not of the form key=value")))?;
    let known = keys::find(keys::REPOSITORY, key).map_err(usage)?;
    if value.is_empty() {
        return Ok((key.into(), None));
    }
    known.kind.check(value).map_err(|why| usage(format!("{key}: {why}")))?;
    Ok((key.into(), Some(value.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked_before_they_are_sent() {
        assert_eq!(assignment("durability=close").unwrap(), ("durability".into(), Some("close".into())));
        assert_eq!(assignment("verify=").unwrap(), ("verify".into(), None));
        for (bad, part) in
            [("verify", "key=value"), ("verfy=always", "\"verify\""), ("verify=maybe", "one of")]
        {
            let why = assignment(bad).unwrap_err();
            assert!(why.to_string().contains(part), "{why}");
            assert_eq!(super::super::exit::of(&why), Exit::Usage);
        }
    }

    #[test]
    fn a_path_of_several_names_is_no_repository() {
        let name = |given: &str| name(Path::new("/no/depot"), OsStr::new(given), || Ok(String::new()));
        for given in ["libs", "libs/", "./libs"] {
            assert_eq!(name(given).unwrap(), Bytes::Text("libs".into()), "{given}");
        }
        for given in ["libs/releases", "/elsewhere/libs", "..", "/", "."] {
            let why = name(given).unwrap_err();
            assert_eq!(super::super::exit::of(&why), Exit::Usage, "{why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_setting_is_taken_or_refused_with_its_name(
            key in "(durability|verify|[a-z]{0,10})",
            value in "(=)?(close|always|\\PC{0,10})",
        ) {
            if let Err(why) = assignment(&format!("{key}={value}")) {
                proptest::prop_assert!(why.to_string().contains(&key), "{why}");
            }
        }
    }
}
