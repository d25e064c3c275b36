//! Random operations through real system calls, compared with a model of a POSIX tree (`reference`), over remounts, kills
//! of the daemon and the return of space.
//!
//! A failure prints its seed and the shortest list of operations that was found to fail when one thread does them alone.
//! `MODEL_SEEDS=7` or `MODEL_SEEDS=100..200` runs other seeds than usual.

mod compare;
mod inodes;
mod mappings;
mod operations;
mod reference;
mod runner;
mod shrink;
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::harness::{self, Mode};
pub use operations::Random;
use runner::{Plan, Record, said};

const SHORT: Plan = Plan { threads: 3, phases: 6, operations: 120, reclaim: false };
const LONG: Plan = Plan { threads: 3, phases: 14, operations: 250, reclaim: true };

fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("MODEL_SEEDS") else { return usual };
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("MODEL_SEEDS={text} is no number"));
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    }
}

fn try_seeds(mode: Mode, usual: Range<u64>, plan: Plan) {
    for seed in seeds(usual) {
        let begun = Instant::now();
        try_seed(mode, seed, plan);
        println!("seed {seed} in mode {mode:?}: {:?}", begun.elapsed());
    }
}

fn try_seed(mode: Mode, seed: u64, plan: Plan) {
    let record = Arc::new(Mutex::new(Record::default()));
    let inside = record.clone();
    let run = || harness::run(mode, move |t| runner::run(t, seed, plan, &inside));
    let Err(panic) = catch_unwind(AssertUnwindSafe(run)) else { return };
    let why = said(&*panic);
    println!("seed {seed} in mode {mode:?} fails: {why}");
    let record = record.lock();
    // What fails at the very end may be of any thread.
    let suspects: Vec<usize> =
        record.failed.as_ref().map_or((0..record.done.len()).collect(), |(thread, _)| vec![*thread]);
    for thread in suspects {
        let fails = |ops: &[operations::Op]| {
            let (ops, needed) = (ops.to_vec(), Arc::new(AtomicUsize::new(0)));
            let begun = needed.clone();
            let replay = move || harness::run(mode, move |t| runner::replay(t, &ops, &begun));
            catch_unwind(AssertUnwindSafe(replay)).err().map(|_| needed.load(Ordering::Relaxed))
        };
        match shrink::shrink(&record.done[thread], fails) {
            Some(least) => {
                println!("alone, these operations of thread {thread} fail:");
                least.iter().for_each(|op| println!("    {op:?}"));
            }
            None => {
                println!("the operations of thread {thread} do not fail alone; these they were:");
                record.done[thread].iter().for_each(|op| println!("    {op:?}"));
            }
        }
    }
    panic!("seed {seed} in mode {mode:?}: {why}");
}

#[test]
fn plain() {
    try_seeds(Mode::Plain, 1..4, SHORT);
}

#[test]
fn plain_user() {
    try_seeds(Mode::PlainUser, 11..13, SHORT);
}

#[test]
fn passthrough() {
    try_seeds(Mode::Passthrough, 21..23, SHORT);
}

#[test]
fn cached() {
    try_seeds(Mode::Cached, 31..33, SHORT);
}

#[test]
fn user() {
    try_seeds(Mode::User, 41..43, SHORT);
}

#[test]
#[ignore = "slow"]
fn many_seeds_passthrough() {
    try_seeds(Mode::Passthrough, 1000..1020, LONG);
}

#[test]
#[ignore = "slow"]
fn many_seeds_cached() {
    try_seeds(Mode::Cached, 2000..2020, LONG);
}

#[test]
#[ignore = "slow"]
fn many_seeds_user() {
    try_seeds(Mode::User, 3000..3020, LONG);
}
