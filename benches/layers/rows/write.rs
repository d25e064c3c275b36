//! A file through the queue: its close, and the time until it is a blob; beside it a depot that keeps its blobs here.

use std::fs::File;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::course::{Course, Turn, need};
use crate::depot::{self, Depot};
use crate::files::{self, MIB};
use crate::lab::Lab;
use crate::meter::{Client, Meter, touch_memory};
use crate::sites::Peer;
use crate::sys;

/// Size of the file.
const BYTES: u64 = 100_000_000;
/// What is measured of a file: all of it, and its close alone.
const ORDINARY: [&str; 2] = ["write 100 MB + close", "close of 100 MB"];
/// The same with `durability=close`.
const STRICT: [&str; 2] = ["write 100 MB + close, durability=close", "close of 100 MB, durability=close"];
/// Files in a round.
const TIMES: u64 = 5;
/// No upload takes longer.
const PATIENCE: Duration = Duration::from_secs(600);

/// See above.
pub fn close(course: &mut Course<'_>) -> Result<()> {
    let run = course.run;
    let len = run.scaled(BYTES);
    let lab = run.lab(|_| Ok(()))?;
    let queued = course.set_up(Peer::Depotfs, || lab.depot("depot"))?;
    let local =
        course.set_up(Peer::FileSystem, || Depot::new(&run.depotfs, &run.scratch.join("local"), &[]))?;
    let mount = course.set_up(Peer::Mount, || lab.mount())?;
    for _ in 0..run.rounds {
        course.turn(Peer::FileSystem, |turn| in_depot(turn, need(&local)?, None, len))?;
        course.turn(Peer::Depotfs, |turn| in_depot(turn, need(&queued)?, Some(&lab), len))?;
        course.turn(Peer::Mount, |turn| {
            let mount = need(&mount)?;
            let client = Client::Process(mount.pid().context("no process")?);
            for _ in 0..TIMES {
                let name = format!("peers-{}", files::unique());
                sys::sync_disk(&turn.run.scratch)?;
                written(turn, &mount.dir().join(&name), len, Meter { client, lab: None }, ORDINARY)?;
                // The next one shall not wait for this one.
                let begun = Instant::now();
                while lab.server.bucket().join(&name).metadata().map_or(0, |found| found.len()) < len {
                    turn.run.go_on()?;
                    ensure!(begun.elapsed() < PATIENCE, "rclone mount does not upload");
                    sleep(Duration::from_millis(100));
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Files in a depot; when one begins, all before it are where they are to be.
fn in_depot(turn: &mut Turn<'_>, depot: &Depot, lab: Option<&Lab>, len: u64) -> Result<()> {
    let meter = Meter { client: Client::Daemon(depot), lab };
    for n in 0..TIMES {
        let path = depot.repository().join(format!("file-{n}"));
        settle(turn, depot)?;
        let started = written(turn, &path, len, meter, ORDINARY)?;
        depot::seal(&path)?;
        turn.seconds("100 MB from close until sealed", started.elapsed().as_secs_f64());
        let path = depot.strict().join(format!("file-{n}"));
        settle(turn, depot)?;
        written(turn, &path, len, meter, STRICT)?;
    }
    settle(turn, depot)
}

fn settle(turn: &Turn<'_>, depot: &Depot) -> Result<()> {
    depot.flush()?;
    sys::sync_disk(&turn.run.scratch)
}

/// Writes a file, and closes it at once, as some hash behind the writer; when the close began.
fn written(
    turn: &mut Turn<'_>,
    path: &Path,
    len: u64,
    meter: Meter<'_>,
    [whole, close]: [&'static str; 2],
) -> Result<Instant> {
    let mut closed = Instant::now();
    touch_memory(2 * len);
    let took = turn.measure(whole, meter, || {
        let mut file = File::create(path)?;
        files::write_to(&mut file, files::unique(), len, MIB as usize)?;
        closed = Instant::now();
        shut(file)?;
        Ok(closed.elapsed())
    })?;
    turn.seconds(close, took.as_secs_f64());
    Ok(closed)
}

/// Closes a file, and says how that went.
fn shut(file: File) -> Result<()> {
    nix::unistd::close(file).context("close")
}
