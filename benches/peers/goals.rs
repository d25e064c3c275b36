//! The goals: what is asked of depotfs, as numbers.

use crate::samples::{Samples, Unit};
use crate::sites::Peer::{self, Bindfs, BindfsCached, Core, Depotfs, Plain};

/// Times of others.
type Theirs = &'static [(Peer, &'static str)];

/// How a goal is judged.
#[derive(Debug, Clone, Copy)]
pub enum Judge {
    /// Ours must be so many times as fast as the fastest of theirs.
    Fast(Theirs, f64),
    /// Ours may take so many times the longest of theirs.
    Within(Theirs, f64),
    /// Ours may be so large.
    Small(f64),
}

/// One goal.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// The quantity of depotfs.
    pub ours: &'static str,
    /// What is asked of it.
    pub judge: Judge,
}

/// How a goal came out.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The ratio or the number that was judged.
    pub value: f64,
    /// The goal in words.
    pub wanted: String,
    /// Whether it was reached.
    pub met: bool,
}

const fn goal(ours: &'static str, judge: Judge) -> Goal {
    Goal { ours, judge }
}

/// At least so many times as fast as the plain directory.
const fn plain(ours: &'static str, theirs: Theirs, times: f64) -> Goal {
    Goal { ours, judge: Judge::Fast(theirs, times) }
}

/// Both ways of mounting bindfs: the faster one counts.
macro_rules! bindfs {
    ($quantity:literal, $times:expr) => {
        goal($quantity, Judge::Fast(&[(Bindfs, $quantity), (BindfsCached, $quantity)], $times))
    };
}

macro_rules! same {
    ($quantity:literal, $times:expr) => {
        plain($quantity, &[(Plain, $quantity)], $times)
    };
}

/// Every goal, in the order of the rows.
#[rustfmt::skip]
pub const GOALS: &[Goal] = &[
    same!("read 1 GiB, warm", 0.95),
    same!("random 64 KiB reads, warm", 0.95),
    same!("mmap of 1 GiB, warm", 0.95),
    same!("random 4 KiB preads, warm", 0.75),
    same!("read 1 GiB, cold", 0.9),
    same!("stat of known files, warm", 0.9),
    same!("find -ls, second", 0.9),
    bindfs!("find -ls, first", 5.0),
    plain("find -ls, first", &[(Plain, "find -ls, third")], 0.4),
    bindfs!("open + read + close, warm", 2.0),
    bindfs!("create + write 4 KiB + close", 1.5),
    bindfs!("rename", 1.4),
    bindfs!("unlink", 1.4),
    bindfs!("mkdir", 1.4),
    same!("write 1 GiB + close", 0.9),
    same!("write 100 MB in 4 KiB calls + close", 0.9),
    goal("write 1 GiB until blob checksum", Judge::Within(&[(Plain, "write 1 GiB + fsync"), (Core, "SHA-1 of 1 GiB")], 1.3)),
    bindfs!("write, read, delete 100 KiB", 1.5),
    goal("bytes hashed of short-lived files", Judge::Small(0.0)),
    same!("SQLite, WAL, NORMAL", 0.8),
    same!("SQLite, WAL, FULL", 0.6),
    same!("create + fsync + close, 1 writer", 0.3),
    same!("create + fsync + close, 8 writers", 0.5),
    plain("create + close, durability=close, 1 writer", &[(Plain, "create + fsync + close, 1 writer")], 0.3),
    plain("create + close, durability=close, 8 writers", &[(Plain, "create + fsync + close, 8 writers")], 0.5),
    goal("flushes a file, fsync, 1 writer", Judge::Small(2.0)),
    goal("flushes a file, fsync, 8 writers", Judge::Small(0.5)),
    goal("flushes a file, durability=close, 1 writer", Judge::Small(2.0)),
    goal("flushes a file, durability=close, 8 writers", Judge::Small(0.5)),
    bindfs!("tar x", 1.4),
    same!("git status, warm", 0.8),
    same!("rsync -a again, warm", 0.8),
    same!("make -j2", 0.85),
    same!("cp of 1 GiB", 100.0),
    same!("cp -r of 10,000 files", 2.0),
    goal("mv of a full directory", Judge::Within(&[(Depotfs, "mv of an empty directory")], 2.0)),
    goal("sealing of 10,000 files, processor", Judge::Within(&[(Core, "SHA-1 + BLAKE3 of 10,000 files")], 1.5)),
    plain("sealing of 10,000 files", &[(Plain, "cp of 10,000 files + sync")], 0.5),
    goal("index bytes a file", Judge::Small(350.0)),
    goal("index bytes a further copy", Judge::Small(200.0)),
    goal("listing of 1,000,000 entries, first", Judge::Within(&[(Depotfs, "listing of 100,000 entries, first")], 12.0)),
    goal("listing of 1,000,000 entries over a restart", Judge::Within(&[(Depotfs, "listing of 100,000 entries over a restart")], 12.0)),
    goal("resident memory after the walk", Judge::Small(150e6)),
    goal("mount with 1,000,000 files", Judge::Within(&[(Depotfs, "mount of an empty depot")], 2.0)),
];

impl Goal {
    /// How it came out; `None` when something it needs was not measured.
    pub fn verdict(&self, samples: &Samples) -> Option<Verdict> {
        let ours = samples.get(self.ours, Depotfs)?;
        let theirs = |theirs: Theirs, pick: fn(f64, f64) -> f64| {
            theirs.iter().filter_map(|(peer, of)| Some(samples.get(of, *peer)?.median())).reduce(pick)
        };
        Some(match self.judge {
            Judge::Fast(of, times) => {
                let value = theirs(of, f64::min)? / ours.median();
                Verdict {
                    value,
                    wanted: format!("at least {times}x {}", named(self.ours, of)),
                    met: value >= times,
                }
            }
            Judge::Within(of, times) => {
                let value = ours.median() / theirs(of, f64::max)?;
                Verdict {
                    value,
                    wanted: format!("at most {times}x {}", named(self.ours, of)),
                    met: value <= times,
                }
            }
            Judge::Small(limit) => {
                let value = ours.least();
                let unit = samples
                    .quantities()
                    .find(|(of, _)| *of == self.ours)
                    .map_or(Unit::Count, |(_, unit)| unit);
                Verdict {
                    value,
                    wanted: format!("at most {}", crate::report::show(unit, limit)),
                    met: value <= limit,
                }
            }
        })
    }

    /// Whether the value of its verdict is a ratio.
    pub fn is_ratio(&self) -> bool {
        !matches!(self.judge, Judge::Small(_))
    }
}

/// With whom something is compared, in words.
fn named(ours: &str, theirs: Theirs) -> String {
    let name = |(peer, of): &(Peer, &str)| match peer {
        BindfsCached => None,
        Core | Depotfs => Some((*of).to_owned()),
        peer if *of == ours => Some(peer.to_string()),
        peer => Some(format!("{peer}, {of}")),
    };
    theirs.iter().filter_map(name).collect::<Vec<_>>().join(" or ")
}
