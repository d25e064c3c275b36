//! Blobs on several directories: what a second copy costs, and what a chain of four costs beside one directory.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::course::{Course, Turn, need};
use crate::depot::{self, Depot};
use crate::files::{self, MIB};
use crate::lab;
use crate::meter::{Client, Meter, touch_memory};
use crate::program::quietly;
use crate::sites::Peer;
use crate::sys;

/// Size of the large file.
const LARGE: u64 = 1 << 30;
/// How often a turn reads it with nothing cached, and with all of it.
const COLD: usize = 3;
const AGAIN: usize = 15;
/// Number of the small ones.
const FILES: u64 = 5_000;

/// The chain `sharding` alone.
fn settings(shards: usize, redundancy: usize) -> Vec<String> {
    let mut settings = vec!["chain=sharding".into(), format!("sharding.redundancy={redundancy}")];
    settings.extend((0..shards).map(|i| format!("sharding.shard[{i}].dir=shard{i}")));
    settings
}

/// One copy and two copies over two directories.
pub fn redundancy(course: &mut Course<'_>) -> Result<()> {
    let run = course.run;
    let len = run.scaled(LARGE);
    let make = |copies: usize| {
        let place = run.scratch.join(format!("redundancy-{copies}"));
        Depot::new(&run.depotfs, &place, &settings(2, copies))
    };
    let Some(depots) = course.set_up(Peer::Depotfs, || Ok([make(1)?, make(2)?]))? else { return Ok(()) };
    let names = [
        [
            "write 1 GiB until sealed, redundancy 1",
            "read 1 GiB, cold, redundancy 1",
            "read 1 GiB, warm, redundancy 1",
        ],
        [
            "write 1 GiB until sealed, redundancy 2",
            "read 1 GiB, cold, redundancy 2",
            "read 1 GiB, warm, redundancy 2",
        ],
    ];
    for round in 0..run.rounds {
        for (depot, [write, cold, warm]) in in_turn(round, [0, 1].map(|i| (&depots[i], names[i]))) {
            course.turn(Peer::Depotfs, |turn| {
                let (path, meter) = (depot.repository().join("large"), near(depot));
                sys::sync_disk(&turn.run.scratch)?;
                // As many pages as two copies have.
                touch_memory(2 * len);
                turn.measure(write, meter, || {
                    files::write_noise(&path, files::unique(), len, MIB as usize)?;
                    depot::seal(&path)
                })?;
                depot.checksum(&path)?;
                depot.flush()?;
                read_large(turn, depot, &path, len, [cold, warm])?;
                // It would be hashed and balanced into the next depot's turn.
                fs::remove_file(&path)?;
                depot.flush()
            })?;
        }
    }
    Ok(())
}

/// A chain of four directories beside one directory.
pub fn shards(course: &mut Course<'_>) -> Result<()> {
    let run = course.run;
    let (len, count) = (run.scaled(LARGE), run.scaled(FILES));
    let make = |name: &str, settings: &[String]| {
        let depot = Depot::new(&run.depotfs, &run.scratch.join(name), settings)?;
        files::write_noise(&depot.repository().join("large"), 5, len, MIB as usize)?;
        files::make_sources(&depot.repository().join("tree"), count)?;
        depot.checksum(&depot.repository().join("large"))?;
        depot.flush()?;
        Ok(depot)
    };
    let one = course.set_up(Peer::FileSystem, || make("one", &[]))?;
    let four = course.set_up(Peer::Depotfs, || make("four", &settings(4, 1)))?;
    for round in 0..run.rounds {
        for (peer, depot) in in_turn(round, [(Peer::FileSystem, &one), (Peer::Depotfs, &four)]) {
            course.turn(peer, |turn| {
                let depot = need(depot)?;
                let (large, tree) = (depot.repository().join("large"), depot.repository().join("tree"));
                read_large(turn, depot, &large, len, ["read 1 GiB, cold", "read 1 GiB, warm"])?;
                depot.remount()?;
                turn.measure("find -ls, first", near(depot), || find(&tree))?;
                for _ in 0..AGAIN {
                    turn.measure("find -ls, second", near(depot), || find(&tree))?;
                }
                // In the order of the names, as `rsync` and `make` go.
                let mut paths = lab::files(&tree)?;
                paths.sort();
                ensure!(paths.len() as u64 == count, "{} of {count} files were found", paths.len());
                depot.remount()?;
                let mut buffer = vec![0; 64 * 1024];
                let mut read =
                    || paths.iter().try_for_each(|path| files::read_whole(path, &mut buffer).map(drop));
                turn.measure("read 5,000 files, cold", near(depot), &mut read)?;
                (0..AGAIN).try_for_each(|_| turn.measure("read 5,000 files, warm", near(depot), &mut read))
            })?;
        }
    }
    Ok(())
}

/// Who comes first changes with the round, as the second one finds another state of the disk.
fn in_turn<T>(round: u32, mut both: [T; 2]) -> [T; 2] {
    both.rotate_left(round as usize % 2);
    both
}

fn near(depot: &Depot) -> Meter<'_> {
    Meter { client: Client::Daemon(depot), lab: None }
}

/// A file after a new mount with nothing cached, and then the third time and some more: one takes hundredths of a second.
fn read_large(
    turn: &mut Turn<'_>,
    depot: &Depot,
    path: &Path,
    len: u64,
    [cold, warm]: [&'static str; 2],
) -> Result<()> {
    let mut buffer = vec![0; MIB as usize];
    let mut read = || {
        let n = files::read_whole(path, &mut buffer)?;
        ensure!(n == len, "{n} bytes were read instead of {len}");
        Ok(())
    };
    for _ in 0..COLD {
        depot.remount()?;
        touch_memory(len);
        turn.measure(cold, near(depot), &mut read)?;
    }
    read()?;
    (0..AGAIN).try_for_each(|_| turn.measure(warm, near(depot), &mut read))
}

fn find(tree: &Path) -> Result<()> {
    quietly("find", &[tree.as_os_str(), "-ls".as_ref()])
}
