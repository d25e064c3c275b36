//! The last 4 KiB of a large object that the cache does not have, as programs look for the directory of an archive.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::course::{Course, Turn, need};
use crate::files::{self, MIB};
use crate::lab::Lab;
use crate::meter::{Client, Meter};
use crate::sites::Peer;

/// Size of the object.
const HUGE: u64 = 2 << 30;
/// What is read of it.
const TAIL: usize = 4096;
/// Reads of each in a round.
const TIMES: usize = 3;
/// The object of the peers.
const KEY: &str = "peers/huge";
/// What is measured.
const QUANTITY: &str = "last 4 KiB of 2 GiB";

/// See above.
pub fn tail(course: &mut Course<'_>) -> Result<()> {
    let run = course.run;
    let len = run.scaled(HUGE).max(2 * MIB);
    let lab = run.lab(|bucket| {
        fs::create_dir(bucket.join("peers"))?;
        files::write_noise(&bucket.join(KEY), 3, len, MIB as usize)
    })?;
    let depot = course.set_up(Peer::Depotfs, || {
        let depot = lab.depot("depot")?;
        let path = depot.repository().join("huge");
        files::write_noise(&path, 4, len, MIB as usize)?;
        depot.checksum(&path)?;
        depot.flush()?;
        Ok(depot)
    })?;
    let mut mount = course.set_up(Peer::Mount, || lab.mount())?;
    for _ in 0..run.rounds {
        lab.warm()?;
        course.turn(Peer::Get, |turn| {
            let meter = Meter { client: Client::Nobody, lab: Some(&lab) };
            (0..TIMES).try_for_each(|_| turn.measure(QUANTITY, meter, || lab.get(KEY, len - TAIL as u64)))
        })?;
        course.turn(Peer::Depotfs, |turn| {
            let depot = need(&depot)?;
            for _ in 0..TIMES {
                depot.forget()?;
                lab.warm()?;
                read_tail(turn, &lab, &depot.repository().join("huge"), len, Client::Daemon(depot))?;
            }
            Ok(())
        })?;
        course.turn(Peer::Mount, |turn| {
            let mount = mount.as_mut().context("it was not set up")?;
            for _ in 0..TIMES {
                mount.forget()?;
                lab.warm()?;
                let client = Client::Process(mount.pid().context("no process")?);
                read_tail(turn, &lab, &mount.dir().join(KEY), len, client)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// From the path to the bytes. Fails when they were on this host.
fn read_tail(turn: &mut Turn<'_>, lab: &Lab, path: &Path, len: u64, client: Client<'_>) -> Result<()> {
    let mut buffer = [0; TAIL];
    let meter = Meter { client, lab: Some(lab) };
    turn.measure(QUANTITY, meter, || {
        File::open(path)?.read_exact_at(&mut buffer, len - TAIL as u64)?;
        ensure!(lab.passed().0 >= TAIL as u64, "a read that the server did not serve");
        Ok(())
    })
}
