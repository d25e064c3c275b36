//! From the command until the mount has answered: with a full cache, with an empty one, and before a store that is far away.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, params};

use crate::course::{Course, Turn, need};
use crate::depot::Depot;
use crate::files::Noise;
use crate::meter::{Client, Meter};
use crate::sites::Peer;

/// Blobs in the full cache.
const ENTRIES: u64 = 1_000_000;
/// Starts in a round.
const TIMES: usize = 5;
/// What is compared with rclone.
const FAR: &str = "start with an empty cache before S3";

/// See above.
pub fn start(course: &mut Course<'_>) -> Result<()> {
    let run = course.run;
    let entries = run.scaled(ENTRIES);
    // Nothing below the cache may take part: the chain ends on this host.
    let settings = ["chain=cache-fs,file-system".to_owned()];
    let make = |name: &str, entries: u64| {
        let depot = Depot::new(&run.depotfs, &run.scratch.join(name), &settings)?;
        depot.umount()?;
        fill(&depot.dir().join("cache/cache.db"), entries)?;
        depot.mount()?;
        let cached = depot.cached()?;
        ensure!(cached == entries, "the cache has {cached} entries instead of {entries}");
        Ok(depot)
    };
    let near = course.set_up(Peer::Depotfs, || Ok((make("empty", 0)?, make("full", entries)?)))?;
    let lab = run.lab(|_| Ok(()))?;
    let far = course.set_up(Peer::Depotfs, || lab.depot("depot"))?;
    let mut mount = course.set_up(Peer::Mount, || lab.mount())?;
    for _ in 0..run.rounds {
        course.turn(Peer::Depotfs, |turn| {
            let (empty, full) = need(&near)?;
            for _ in 0..TIMES {
                mounted(turn, empty, "start with none in the cache", None)?;
                mounted(turn, full, "start with 1,000,000 blobs in the cache", None)?;
                mounted(turn, need(&far)?, FAR, Some(&lab))?;
            }
            Ok(())
        })?;
        course.turn(Peer::Mount, |turn| {
            let mount = mount.as_mut().context("it was not set up")?;
            for _ in 0..TIMES {
                mount.umount()?;
                let meter = Meter { client: Client::Nobody, lab: Some(&lab) };
                turn.measure(FAR, meter, || {
                    mount.mount()?;
                    Ok(fs::symlink_metadata(mount.dir().join("nothing")).is_err())
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Unmounts, and measures the next mount.
fn mounted(
    turn: &mut Turn<'_>,
    depot: &Depot,
    quantity: &'static str,
    lab: Option<&crate::lab::Lab>,
) -> Result<()> {
    depot.umount()?;
    turn.measure(quantity, Meter { client: Client::Daemon(depot), lab }, || {
        depot.mount()?;
        // The name is nobody's: it has to be looked for.
        Ok(fs::symlink_metadata(depot.mountpoint().join("nothing")).is_err())
    })
    .map(drop)
}

/// Writes rows into the database of an empty cache, as if blobs of one block were cached. There are no files to them.
fn fill(database: &Path, entries: u64) -> Result<()> {
    let age = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as i64;
    let mut db = Connection::open(database)?;
    let tx = db.transaction()?;
    {
        let mut insert = tx.prepare("INSERT INTO entry (sum, size, used) VALUES (?1, ?2, ?3)")?;
        let mut noise = Noise::new(6);
        for n in 0..entries {
            let mut sum = noise.bytes(20);
            // In order, which is faster, and spread over all of them.
            sum[..8].copy_from_slice(&(n * (u64::MAX / entries)).to_be_bytes());
            insert.execute(params![sum, 4096, age - (entries - n) as i64])?;
        }
    }
    let total = "UPDATE total SET room = room + ?1, entries = entries + ?2";
    tx.execute(total, params![4096 * entries as i64, entries as i64])?;
    Ok(tx.commit()?)
}
