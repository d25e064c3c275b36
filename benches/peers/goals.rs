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

/// A row of the table, or two: bindfs as it comes and with its caches.
macro_rules! goals {
    ($($ours:literal: $kind:ident $($arg:expr),*;)*) => { &[$(goals!(@ $ours, $kind $($arg),*)),*] };
    (@ $ours:literal, plain $times:expr) => { goal($ours, Judge::Fast(&[(Plain, $ours)], $times)) };
    (@ $ours:literal, plain_of $theirs:expr, $times:expr) => { goal($ours, Judge::Fast(&[(Plain, $theirs)], $times)) };
    (@ $ours:literal, bindfs $times:expr) => { goal($ours, Judge::Fast(&[(Bindfs, $ours)], $times)) };
    (@ $ours:literal, cached $times:expr) => { goal($ours, Judge::Fast(&[(BindfsCached, $ours)], $times)) };
    (@ $ours:literal, within $theirs:expr, $times:expr) => { goal($ours, Judge::Within($theirs, $times)) };
    (@ $ours:literal, small $limit:expr) => { goal($ours, Judge::Small($limit)) };
}

/// Every goal, in the order of the rows. Those that speak of bindfs are judged for both ways of mounting it.
#[rustfmt::skip]
pub const GOALS: &[Goal] = goals! {
    "read 1 GiB, warm": plain 0.95;
    "random 64 KiB reads, warm": plain 0.95;
    "mmap of 1 GiB, warm": plain 0.95;
    "random 4 KiB preads, warm": plain 0.75;
    "read 1 GiB, cold": plain 0.9;
    "stat of known files, warm": plain 0.9;
    "find -ls, second": plain 0.9;
    "find -ls, first": bindfs 5.0;
    "find -ls, first": cached 5.0;
    "find -ls, first": plain_of "find -ls, third", 0.4;
    "open + read + close, warm": bindfs 2.0;
    "open + read + close, warm": cached 2.0;
    "create + write 4 KiB + close": bindfs 1.5;
    "create + write 4 KiB + close": cached 1.5;
    "rename": bindfs 1.4;
    "rename": cached 1.4;
    "unlink": bindfs 1.4;
    "unlink": cached 1.4;
    "mkdir": bindfs 1.4;
    "mkdir": cached 1.4;
    "write 1 GiB + close": plain 0.9;
    "write 100 MB in 4 KiB calls + close": plain 0.9;
    "write 1 GiB until blob checksum": within &[(Plain, "write 1 GiB + fsync"), (Core, "SHA-1 of 1 GiB")], 1.3;
    "write, read, delete 100 KiB": bindfs 1.5;
    "write, read, delete 100 KiB": cached 1.5;
    "bytes hashed of short-lived files": small 0.0;
    "SQLite, WAL, NORMAL": plain 0.8;
    "SQLite, WAL, FULL": plain 0.6;
    "create + fsync + close, 1 writer": plain 0.3;
    "create + fsync + close, 8 writers": plain 0.5;
    "create + close, durability=close, 1 writer": plain_of "create + fsync + close, 1 writer", 0.3;
    "create + close, durability=close, 8 writers": plain_of "create + fsync + close, 8 writers", 0.5;
    "flushes a file, fsync, 1 writer": small 2.0;
    "flushes a file, fsync, 8 writers": small 0.5;
    "flushes a file, durability=close, 1 writer": small 2.0;
    "flushes a file, durability=close, 8 writers": small 0.5;
    "tar x": bindfs 1.4;
    "tar x": cached 1.4;
    "git status, warm": plain 0.8;
    "rsync -a again, warm": plain 0.8;
    "make -j2": plain 0.85;
    "cp of 1 GiB": plain 100.0;
    "cp -r of 10,000 files": plain 2.0;
    "mv of a full directory": within &[(Depotfs, "mv of an empty directory")], 2.0;
    "sealing of 10,000 files, processor": within &[(Core, "SHA-1 + BLAKE3 of 10,000 files")], 1.5;
    "sealing of 10,000 files": plain_of "cp of 10,000 files + sync", 0.5;
    "index bytes a file": small 350.0;
    "index bytes a further copy": small 200.0;
    "listing of 1,000,000 entries, first": within &[(Depotfs, "listing of 100,000 entries, first")], 12.0;
    "listing of 1,000,000 entries over a restart": within &[(Depotfs, "listing of 100,000 entries over a restart")], 12.0;
    "resident memory after the walk": small 150e6;
    "mount with 1,000,000 files": within &[(Depotfs, "mount of an empty depot")], 2.0;
};

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
                let unit = samples
                    .quantities()
                    .find(|(of, _)| *of == self.ours)
                    .map_or(Unit::Count, |(_, unit)| unit);
                // What is counted for the whole machine can only be too much.
                let value = if unit == Unit::Count { ours.least() } else { ours.median() };
                Verdict { value, wanted: format!("at most {}", unit.show(limit)), met: value <= limit }
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
        Core | Depotfs => (*of).to_owned(),
        peer if *of == ours => peer.to_string(),
        peer => format!("{peer}, {of}"),
    };
    theirs.iter().map(name).collect::<Vec<_>>().join(" or ")
}
