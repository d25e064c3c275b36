//! A large object that the cache does not have: read by one, read again, read by many at once; over a network of a given speed as
//! well, where it is not the processors that everybody waits for.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::course::{Course, Turn, need};
use crate::files::{self, MIB};
use crate::lab::Lab;
use crate::meter::{Client, Meter, touch_memory};
use crate::rclone;
use crate::sites::Peer;

/// Size of the object.
const LARGE: u64 = 1 << 30;
/// Those who read at once.
const READERS: usize = 16;
/// Bytes of one call, as `cat` and `cp` read.
const CALL: usize = 128 << 10;
/// How often it is read again.
const AGAIN: usize = 5;
/// Memory that a first read takes: the pages of the mount and those of its cache.
const PLACES: u64 = 2;
/// Bytes a second of that network: 2 Gbit/s.
const NETWORK: u64 = 250_000_000;
/// What a first read is called, and that of many.
type Names = [&'static str; 2];
const ON_LOOPBACK: Names = ["first read of 1 GiB", "16 first readers of 1 GiB"];
const ON_NETWORK: Names = ["first read of 1 GiB at 250 MB/s", "16 first readers of 1 GiB at 250 MB/s"];
/// The object of the peers.
const KEY: &str = "peers/large";

/// See above.
pub fn read(course: &mut Course<'_>) -> Result<()> {
    let run = course.run;
    let len = run.scaled(LARGE);
    let lab = run.lab(|bucket| {
        std::fs::create_dir(bucket.join("peers"))?;
        files::write_noise(&bucket.join(KEY), 1, len, MIB as usize)
    })?;
    let depot = course.set_up(Peer::Depotfs, || {
        let depot = lab.depot("depot")?;
        let path = depot.repository().join("large");
        files::write_noise(&path, 2, len, MIB as usize)?;
        depot.checksum(&path)?;
        depot.flush()?;
        Ok(depot)
    })?;
    let mut mount = course.set_up(Peer::Mount, || lab.mount())?;
    lab.warm()?;
    for _ in 0..run.rounds {
        // Whoever failed before may have left it slow.
        lab.proxy.limit(0);
        course.turn(Peer::Get, |turn| {
            for _ in 0..5 {
                turn.measure("4 KiB of 1 GiB", far(Client::Nobody, &lab), || lab.get(KEY, 0))?;
            }
            Ok(())
        })?;
        course.turn(Peer::Copy, |turn| copy(turn, &lab, len))?;
        course.turn(Peer::Plain, |turn| {
            // What `rclone copy` has just left: on the disk, and in the page cache.
            again(turn, &run.scratch.join("disk/copy/large"), len, Client::Nobody)
        })?;
        course.turn(Peer::Depotfs, |turn| {
            let depot = need(&depot)?;
            let (path, client) = (depot.repository().join("large"), Client::Daemon(depot));
            let large = Large { lab: &lab, path: &path, len };
            large.reads(turn, || depot.forget().map(|()| client))
        })?;
        course.turn(Peer::Mount, |turn| {
            let mount = mount.as_mut().context("it was not set up")?;
            let path = mount.dir().join(KEY);
            let large = Large { lab: &lab, path: &path, len };
            large.reads(turn, || {
                mount.forget()?;
                Ok(Client::Process(mount.pid().context("no process")?))
            })
        })?;
    }
    Ok(())
}

fn far<'a>(client: Client<'a>, lab: &'a Lab) -> Meter<'a> {
    Meter { client, lab: Some(lab) }
}

/// The object by `rclone copy` to the disk.
fn copy(turn: &mut Turn<'_>, lab: &Lab, len: u64) -> Result<()> {
    let to = turn.run.fresh("copy")?;
    let to_str = to.to_str().context("the scratch directory is not UTF-8")?;
    touch_memory(PLACES * len);
    turn.measure("first read of 1 GiB", far(Client::Programs, lab), || {
        rclone::copy(lab.proxy.port(), &rclone::remote(KEY), to_str)
    })?;
    let copied = to.join("large").metadata()?.len();
    ensure!(copied == len, "{copied} bytes were copied instead of {len}");
    Ok(())
}

/// Reads to the end; how long the first bytes took.
fn read_all(path: &Path, len: u64) -> Result<Duration> {
    let start = Instant::now();
    let file = File::open(path)?;
    let mut buffer = vec![0; CALL];
    let mut at = file.read_at(&mut buffer[..4096.min(len as usize)], 0)? as u64;
    let first = start.elapsed();
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => break,
            n => at += n as u64,
        }
    }
    ensure!(at == len, "{}: {at} bytes were read instead of {len}", path.display());
    Ok(first)
}

/// The object as somebody shows it.
struct Large<'a> {
    lab: &'a Lab,
    path: &'a Path,
    len: u64,
}

impl Large<'_> {
    /// All reads, on loopback and over the network. `forget` empties the caches, and tells who does the work then.
    fn reads<'a>(&self, turn: &mut Turn<'_>, mut forget: impl FnMut() -> Result<Client<'a>>) -> Result<()> {
        let mut cold = |rate| {
            self.lab.proxy.limit(0);
            let client = forget()?;
            self.lab.warm()?;
            self.lab.proxy.limit(rate);
            Ok::<_, anyhow::Error>(client)
        };
        let [one, many] = ON_LOOPBACK;
        let client = cold(0)?;
        let first = self.first(turn, client, one)?;
        turn.seconds("first byte of 1 GiB", first.as_secs_f64());
        again(turn, self.path, self.len, client)?;
        self.many(turn, cold(0)?, many)?;
        let left = self.lab.passed().0;
        turn.count("times that each byte left the server, 16 first readers", left as f64 / self.len as f64);
        let [one, many] = ON_NETWORK;
        self.first(turn, cold(NETWORK)?, one)?;
        self.many(turn, cold(NETWORK)?, many)
    }

    /// The first read; how long its first bytes took. Fails when the far side was not asked for all of them.
    fn first(&self, turn: &mut Turn<'_>, client: Client<'_>, name: &'static str) -> Result<Duration> {
        touch_memory(PLACES * self.len);
        turn.measure(name, far(client, self.lab), || {
            let first = read_all(self.path, self.len)?;
            self.was_served()?;
            Ok(first)
        })
    }

    /// Many first readers, who begin at once.
    fn many(&self, turn: &mut Turn<'_>, client: Client<'_>, name: &'static str) -> Result<()> {
        touch_memory(PLACES * self.len);
        turn.measure(name, far(client, self.lab), || {
            let barrier = Barrier::new(READERS);
            thread::scope(|scope| {
                let read = || {
                    barrier.wait();
                    read_all(self.path, self.len).map(drop)
                };
                let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
                let mut done = readers.into_iter().map(|reader| reader.join());
                done.try_for_each(|done| done.unwrap_or_else(|_| bail!("a reader panicked")))
            })?;
            self.was_served()
        })
    }

    fn was_served(&self) -> Result<()> {
        ensure!(self.lab.passed().0 >= self.len, "a first read that the server did not serve");
        Ok(())
    }
}

/// A read of what is in memory, a few times: one takes hundredths of a second.
fn again(turn: &mut Turn<'_>, path: &Path, len: u64, client: Client<'_>) -> Result<()> {
    let near = Meter { client, lab: None };
    for _ in 0..AGAIN {
        turn.measure("second read of 1 GiB", near, || read_all(path, len))?;
    }
    Ok(())
}
