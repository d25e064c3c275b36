//! The goals: what is asked of the layers, as numbers.

use crate::samples::{Samples, Unit};
use crate::sites::Peer::{self, Copy, Depotfs, FileSystem, Get, Mount, Plain};

/// How a goal is judged.
#[derive(Debug, Clone, Copy)]
pub enum Judge {
    /// Ours must be so many times as fast as that.
    Fast(Peer, &'static str, f64),
    /// Ours may take so many times as long as that.
    Within(Peer, &'static str, f64),
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
    /// The same in words.
    pub shown: String,
    /// The goal in words.
    pub wanted: String,
    /// Whether it was reached.
    pub met: bool,
}

const fn goal(ours: &'static str, judge: Judge) -> Goal {
    Goal { ours, judge }
}

macro_rules! goals {
    ($($ours:literal: $kind:ident $($arg:expr),*;)*) => { &[$(goals!(@ $ours, $kind $($arg),*)),*] };
    (@ $ours:literal, fast $peer:expr, $times:expr) => { goal($ours, Judge::Fast($peer, $ours, $times)) };
    (@ $ours:literal, fast_as $peer:expr, $of:expr, $times:expr) => { goal($ours, Judge::Fast($peer, $of, $times)) };
    (@ $ours:literal, ahead $peer:expr) => { goal($ours, Judge::Fast($peer, $ours, 1.0)) };
    (@ $ours:literal, within $peer:expr, $times:expr) => { goal($ours, Judge::Within($peer, $ours, $times)) };
    (@ $ours:literal, within_of $peer:expr, $of:expr, $times:expr) => {
        goal($ours, Judge::Within($peer, $of, $times))
    };
    (@ $ours:literal, small $limit:expr) => { goal($ours, Judge::Small($limit)) };
}

/// Every goal, in the order of the rows.
#[rustfmt::skip]
pub const GOALS: &[Goal] = goals! {
    "first read of 1 GiB": fast Copy, 0.9;
    "first read of 1 GiB": ahead Mount;
    "first byte of 1 GiB": within_of Get, "4 KiB of 1 GiB", 1.3;
    "first byte of 1 GiB": ahead Mount;
    "second read of 1 GiB": fast Plain, 0.95;
    "second read of 1 GiB": ahead Mount;
    "16 first readers of 1 GiB": within_of Depotfs, "first read of 1 GiB", 1.2;
    "16 first readers of 1 GiB": ahead Mount;
    "16 first readers of 1 GiB at 250 MB/s": within_of Depotfs, "first read of 1 GiB at 250 MB/s", 1.2;
    "16 first readers of 1 GiB at 250 MB/s": ahead Mount;
    // Heads of answers are counted too.
    "times that each byte left the server, 16 first readers": small 1.01;
    "last 4 KiB of 2 GiB": within Get, 3.0;
    "last 4 KiB of 2 GiB": ahead Mount;
    "write 100 MB + close": within FileSystem, 1.2;
    "write 100 MB + close": ahead Mount;
    "close of 100 MB": within FileSystem, 1.2;
    "write 100 MB + close, durability=close": within FileSystem, 1.2;
    "close of 100 MB, durability=close": within FileSystem, 1.2;
    "100 MB from close until sealed": within FileSystem, 1.2;
    "draining 1,000 files of 1 MB": fast Copy, 0.9;
    "1,000 files of 1 MB until on the server": ahead Mount;
    "write 1 GiB until sealed, redundancy 2": fast_as Depotfs, "write 1 GiB until sealed, redundancy 1", 0.45;
    "read 1 GiB, cold, redundancy 2": fast_as Depotfs, "read 1 GiB, cold, redundancy 1", 0.95;
    "read 1 GiB, warm, redundancy 2": fast_as Depotfs, "read 1 GiB, warm, redundancy 1", 0.95;
    "read 1 GiB, cold": fast FileSystem, 0.95;
    "read 1 GiB, warm": fast FileSystem, 0.95;
    "read 5,000 files, cold": fast FileSystem, 0.95;
    "read 5,000 files, warm": fast FileSystem, 0.95;
    "find -ls, first": fast FileSystem, 0.95;
    "find -ls, second": fast FileSystem, 0.95;
    "start with 1,000,000 blobs in the cache": within_of Depotfs, "start with none in the cache", 1.5;
    "start with an empty cache before S3": ahead Mount;
};

impl Goal {
    /// How it came out; `None` when something it needs was not measured.
    pub fn verdict(&self, figures: &Samples) -> Option<Verdict> {
        let ours = figures.get(self.ours, Depotfs)?.median();
        let theirs = |peer: Peer, of: &'static str| Some(figures.get(of, peer)?.median());
        let named = |peer: Peer, of: &'static str| match (peer == Depotfs, of == self.ours) {
            (true, _) => of.to_owned(),
            (false, true) => peer.to_string(),
            (false, false) => format!("{peer}, {of}"),
        };
        Some(match self.judge {
            Judge::Fast(peer, of, times) => {
                let value = theirs(peer, of)? / ours;
                let wanted = format!("at least {times}x {}", named(peer, of));
                Verdict { value, shown: format!("{value:.2}x"), wanted, met: value >= times }
            }
            Judge::Within(peer, of, times) => {
                let value = ours / theirs(peer, of)?;
                let wanted = format!("at most {times}x {}", named(peer, of));
                Verdict { value, shown: format!("{value:.2}x"), wanted, met: value <= times }
            }
            Judge::Small(limit) => {
                let (shown, wanted) =
                    (Unit::Count.show(ours), format!("at most {}", Unit::Count.show(limit)));
                Verdict { value: ours, shown, wanted, met: ours <= limit }
            }
        })
    }
}
