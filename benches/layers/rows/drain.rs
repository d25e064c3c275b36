//! Many files on their way to the server: a full queue that empties, and files from the first write until they are there.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::course::{Course, Turn, need};
use crate::depot::Depot;
use crate::files;
use crate::lab::{self, Lab};
use crate::meter::{Client, Meter};
use crate::rclone::{self, Mount};
use crate::sites::Peer;
use crate::sys;

/// How many.
const FILES: u64 = 1_000;
/// Size of each.
const BYTES: usize = 1_000_000;
/// No upload of all takes longer.
const PATIENCE: Duration = Duration::from_secs(600);
/// What depots and rclone do alike.
const THROUGH: &str = "1,000 files of 1 MB until on the server";

/// See above.
pub fn drain(course: &mut Course<'_>) -> Result<()> {
    let run = course.run;
    let count = run.scaled(FILES);
    let lab = run.lab(|_| Ok(()))?;
    let depot = course.set_up(Peer::Depotfs, || lab.depot("depot"))?;
    let mount = course.set_up(Peer::Mount, || lab.mount())?;
    for _ in 0..run.rounds {
        course.turn(Peer::Copy, |turn| copy(turn, &lab, count))?;
        course.turn(Peer::Depotfs, |turn| {
            let depot = need(&depot)?;
            let emptied = empty_queue(turn, &lab, depot, count);
            lab.proxy.stall(false);
            emptied?;
            through_queue(turn, &lab, depot, count)
        })?;
        course.turn(Peer::Mount, |turn| through_mount(turn, &lab, need(&mount)?, count))?;
    }
    Ok(())
}

/// `rclone copy` of as many files.
fn copy(turn: &mut Turn<'_>, lab: &Lab, count: u64) -> Result<()> {
    let from = turn.run.fresh("copied")?;
    files::make_files(&from, count, BYTES, files::unique())?;
    sys::sync_disk(&from)?;
    let (from, key) = (from.to_str().context("the scratch directory is not UTF-8")?, unused("copied"));
    let meter = Meter { client: Client::Programs, lab: Some(lab) };
    turn.measure("draining 1,000 files of 1 MB", meter, || {
        rclone::copy(lab.proxy.port(), from, &rclone::remote(&key))
    })?;
    let to = lab.server.bucket().join(&key);
    arrived(lab::files(&to)?.len() as u64, count)?;
    Ok(fs::remove_dir_all(to)?)
}

/// Fills the queue while the server lets everybody wait, and empties it from when it goes on.
fn empty_queue(turn: &mut Turn<'_>, lab: &Lab, depot: &Depot, count: u64) -> Result<()> {
    let before = objects(lab)?;
    lab.proxy.stall(true);
    let dir = depot.repository().join(unused("drained"));
    fs::create_dir(&dir)?;
    files::make_files(&dir, count, BYTES, files::unique())?;
    depot.sealed(|| turn.run.go_on())?;
    let queued = depot.queued()?;
    ensure!(queued == count, "{queued} blobs are in the queue instead of {count}");
    sys::sync_disk(depot.dir())?;
    let meter = Meter { client: Client::Daemon(depot), lab: Some(lab) };
    turn.measure("draining 1,000 files of 1 MB", meter, || {
        lab.proxy.stall(false);
        depot.flush()
    })?;
    arrived(objects(lab)? - before, count)
}

/// Writes files and waits until they are on the server.
fn through_queue(turn: &mut Turn<'_>, lab: &Lab, depot: &Depot, count: u64) -> Result<()> {
    let before = objects(lab)?;
    let dir = depot.repository().join(unused("through"));
    fs::create_dir(&dir)?;
    sys::sync_disk(depot.dir())?;
    let meter = Meter { client: Client::Daemon(depot), lab: Some(lab) };
    turn.measure(THROUGH, meter, || {
        files::make_files(&dir, count, BYTES, files::unique())?;
        depot.flush()
    })?;
    arrived(objects(lab)? - before, count)
}

/// The same through a mount of rclone.
fn through_mount(turn: &mut Turn<'_>, lab: &Lab, mount: &Mount, count: u64) -> Result<()> {
    let key = unused("through");
    let (dir, on_server) = (mount.dir().join(&key), lab.server.bucket().join(&key));
    sys::sync_disk(&turn.run.scratch)?;
    let client = Client::Process(mount.pid().context("no process")?);
    let run = turn.run;
    turn.measure(THROUGH, Meter { client, lab: Some(lab) }, || {
        fs::create_dir(&dir)?;
        files::make_files(&dir, count, BYTES, files::unique())?;
        let begun = Instant::now();
        let whole =
            |path: &std::path::PathBuf| path.metadata().is_ok_and(|found| found.len() == BYTES as u64);
        let there =
            || lab::files(&on_server).map_or(0, |found| found.iter().filter(|path| whole(path)).count());
        while (there() as u64) < count {
            run.go_on()?;
            ensure!(begun.elapsed() < PATIENCE, "rclone mount does not upload");
            sleep(Duration::from_millis(50));
        }
        Ok(())
    })?;
    Ok(fs::remove_dir_all(on_server)?)
}

/// A name that nothing in the bucket had.
fn unused(what: &str) -> String {
    format!("{what}-{}", files::unique())
}

/// Blobs of the depot that are on the server.
fn objects(lab: &Lab) -> Result<u64> {
    Ok(lab::files(&lab.server.bucket().join("depot"))?.len() as u64)
}

fn arrived(found: u64, count: u64) -> Result<()> {
    ensure!(found == count, "{found} objects are on the server instead of {count}");
    Ok(())
}
