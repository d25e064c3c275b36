//! `depotfs status`: how a depot is doing.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::exit::{Exit, stop};
use super::{Outcome, complain, depot, human};
use crate::config::Config;
use crate::control::report::{Health, Layer, Queue, Status};
use crate::control::{Client, Error, Request};
use crate::daemon::lock::{self, Holder, Lock};
use crate::daemon::rooms;
use crate::text;

/// Show how a depot is doing: mount, providers, counts, index, and what needs attention.
///
/// Without DEPOT, all mounted ones. The exit code is 3 when no daemon runs.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs status
  depotfs status /srv/depot --json | jq .dedup_ratio")]
pub struct Args {
    /// The depot's directory, or any path inside its mount.
    depot: Option<PathBuf>,
    /// Print JSON: one object, or without DEPOT a list of them.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Outcome {
    match &args.depot {
        Some(given) => one(&depot::find(given)?, args.json, out),
        None => all(args.json, out),
    }
}

/// How long a daemon may take to answer.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How often a daemon that starts or ends is looked at.
const PERIOD: Duration = Duration::from_millis(50);

fn one(depot: &Path, json: bool, out: &mut dyn Write) -> Outcome {
    let (status, exit) = of_any(depot)?;
    match json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?,
        false => print(&status, out)?,
    }
    Ok(exit)
}

/// The status of a depot with a daemon or without; one that is starting or ending is waited for.
fn of_any(depot: &Path) -> anyhow::Result<(Status, Exit)> {
    let end = Instant::now() + lock::PATIENCE;
    loop {
        match ask(depot) {
            Ok(status) => return Ok((status, Exit::Ok)),
            Err(Error::NotRunning(_)) => {}
            Err(error) => return Err(error.into()),
        }
        match lock::take(depot, &Holder::this("status", None), Duration::ZERO) {
            Ok(lock) => return Ok((offline(depot, &lock)?, Exit::NotRunning)),
            Err(lock::Error::Busy(_, daemon)) if daemon.command == "mount" => {
                if Instant::now() >= end {
                    return Err(between(depot, daemon.pid));
                }
            }
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(PERIOD);
    }
}

fn between(depot: &Path, pid: u32) -> anyhow::Error {
    let text = format!(
        "depot {} cannot be looked at: its daemon (process {pid}) is starting or ending: try again in a moment",
        depot.display()
    );
    stop(Exit::Busy, text)
}

fn all(json: bool, out: &mut dyn Write) -> Outcome {
    let (mut found, mut exit) = (Vec::new(), Exit::Ok);
    for depot in depot::mounted()? {
        match ask(&depot) {
            Ok(status) => found.push(status),
            Err(error) => {
                complain(&text::chain(&error));
                exit = Exit::Failed;
            }
        }
    }
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    } else {
        for (i, status) in found.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            print(status, out)?;
        }
    }
    if found.is_empty() && exit == Exit::Ok {
        complain("no depot is mounted");
        return Ok(Exit::NotRunning);
    }
    Ok(exit)
}

fn ask(depot: &Path) -> Result<Status, Error> {
    Client::connect(depot)?.within(ANSWER_WITHIN).ask(&Request::Status, &mut |_| {})
}

/// What can be told without a daemon: what a mount would find.
fn offline(depot: &Path, _held: &Lock) -> anyhow::Result<Status> {
    let config = Config::load(depot)?;
    let (index, store) = rooms::open(&config)?;
    Ok(Status::offline(&config, &index, &store))
}

/// The lines of one depot.
fn print(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |name: &str, text: String| writeln!(out, "{name:<11} {text}");
    line("depot", format!("{} (id {})", status.depot, status.id))?;
    match &status.mount {
        None => line("mount", "none: no daemon is running".into())?,
        Some(mount) => {
            let mut text = format!(
                "{} by process {} since {}",
                mount.mountpoint,
                mount.pid,
                human::duration(mount.age_s)
            );
            for (what, value) in [(", options ", &mount.options), (", only ", &mount.subdir)] {
                if !value.is_empty() {
                    text.push_str(&format!("{what}{value}"));
                }
            }
            line("mount", text)?;
        }
    }
    if status.running {
        let why = if status.reads.why.is_empty() { String::new() } else { format!(": {}", status.reads.why) };
        line("reads", format!("{}{why}", status.reads.mode))?;
    }
    line("durability", status.durability.clone())?;
    for layer in &status.chain {
        line("filestore", describe(layer))?;
    }
    let (counts, pending) = (&status.counts, &status.pending);
    line("tree", tree(status))?;
    let blobs = human::count(counts.blobs, "blob");
    line(
        "blobs",
        format!("{blobs}, {}, dedup ratio {:.2}", human::bytes(counts.blob_bytes), status.dedup_ratio),
    )?;
    let percent = status.index.filestore_ratio * 100.0;
    let index_bytes = human::bytes(status.index.bytes);
    let health = match &status.index.health {
        Health::Up => String::new(),
        Health::Failing(why) => format!(", FAILING: {why}"),
    };
    line("index", format!("{}, {index_bytes}, {percent:.1} % of the blobs{health}", status.index.path))?;
    let closed = human::count(pending.closed, "closed file");
    let bytes = human::bytes(pending.bytes);
    if status.running {
        let held = match pending.held {
            0 => String::new(),
            held => format!(", {} held by a request just now", human::count(held, "file")),
        };
        line("pending", format!("{} being written, {closed} with {bytes} to seal{held}", pending.dirty))?;
    }
    tell_troubles(status, out)
}

fn tree(status: &Status) -> String {
    let counts = &status.counts;
    format!(
        "{}, {}, {} with {}, {} others, {}",
        human::count(counts.repositories, "repository"),
        human::count(counts.directories, "directory"),
        human::count(counts.files, "file"),
        human::bytes(counts.logical_bytes),
        counts.others,
        human::count(counts.orphans, "orphan"),
    )
}

/// One provider: type, directory, room, health.
fn describe(layer: &Layer) -> String {
    let mut text = layer.kind.clone();
    if let Some(directory) = &layer.directory {
        text.push_str(&format!(" {directory}"));
    }
    if let Some(file_system) = &layer.file_system {
        text.push_str(&format!(" on {file_system}"));
    }
    if layer.reflink {
        text.push_str(" with reflinks");
    }
    if let Some(space) = layer.space {
        text.push_str(&format!(
            ": {} free of {}",
            human::bytes(space.available),
            human::bytes(space.capacity)
        ));
    }
    match &layer.health {
        Health::Up => text.push_str(", up"),
        Health::Failing(why) => text.push_str(&format!(", FAILING: {why}")),
    }
    if layer.owed > 0 {
        text.push_str(&format!(", {} to come", human::count(layer.owed, "copy")));
    }
    if let Some(cache) = &layer.cache {
        let (used, limit) = (human::bytes(cache.used), human::bytes(cache.limit));
        text.push_str(&format!(", {used} of {limit} used by {}", human::count(cache.entries, "blob")));
    }
    if let Some(queue) = &layer.queue {
        text.push_str(&format!("; queue: {}", waiting(queue)));
    }
    for child in &layer.children {
        text.push_str(&format!("; below it {}", describe(child)));
    }
    text
}

/// What waits to be uploaded, in words.
pub(super) fn waiting(queue: &Queue) -> String {
    let mut text = match queue.entries {
        0 => "nothing to upload".to_owned(),
        n => format!(
            "{} with {} to upload, the oldest {} old, {} under way",
            human::count(n, "blob"),
            human::bytes(queue.bytes),
            human::duration(queue.oldest_s),
            queue.uploading
        ),
    };
    if queue.removals > 0 {
        text.push_str(&format!(", {} to do below", human::count(queue.removals, "removal")));
    }
    if queue.in_use > 0 {
        text.push_str(&format!(", {} uploaded and in use", human::count(queue.in_use, "blob")));
    }
    if let Some(error) = &queue.last_error {
        text.push_str(&format!(", {} in a row: {error}", human::count(queue.failures, "failure")));
    }
    text
}

/// What needs attention, a line each.
fn tell_troubles(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    for bad in status.chain.iter().filter_map(Layer::queue).flat_map(|queue| &queue.bad) {
        writeln!(out, "! blob {bad}")?;
    }
    for trouble in &status.failed {
        writeln!(out, "! cannot be sealed: {}: {}", trouble.what, trouble.why)?;
    }
    for aside in &status.aside {
        let (size, age) = (human::bytes(aside.bytes), human::duration(aside.age_s));
        writeln!(out, "! set aside {age} ago as {} ({size}): {}", aside.name, aside.why)?;
    }
    for trouble in &status.damaged {
        writeln!(out, "! damaged: {}: {}", trouble.what, trouble.why)?;
    }
    if let Some(balance) = &status.balance {
        match balance.running {
            true => writeln!(out, "balance     under way: {}", balance.report)?,
            false => writeln!(out, "balance     {}", balance.report)?,
        }
    }
    if let Some(reloaded) = &status.reloaded {
        super::reload::tell(reloaded, &mut |line| writeln!(out, "! depot.toml: {line}"))?;
    }
    for report in &status.reports {
        writeln!(out, "! {report}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::report::{Aside, Counts, MountStatus, Reads, Trouble};

    #[test]
    fn everything_that_needs_attention_is_printed() {
        let trouble = |what: &str| Trouble { what: what.into(), why: "because".into() };
        let status = Status {
            depot: "/d".into(),
            running: true,
            mount: Some(MountStatus {
                mountpoint: "/m".into(),
                pid: 7,
                options: "ro".into(),
                ..MountStatus::default()
            }),
            reads: Reads { mode: "daemon".into(), why: "an ordinary user mounts".into() },
            counts: Counts { files: 3, ..Counts::default() },
            failed: vec![trouble("libs/x")],
            damaged: vec![trouble("da39")],
            aside: vec![Aside { name: "42".into(), path: None, bytes: 5, age_s: 3, why: "torn".into() }],
            reports: vec!["libs/y: removed".into()],
            ..Status::default()
        };
        let mut out = Vec::new();
        print(&status, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "/m by process 7",
            "options ro",
            "an ordinary user",
            "3 files",
            "libs/x",
            "da39",
            "torn",
            "libs/y",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
