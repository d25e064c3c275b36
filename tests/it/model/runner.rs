//! Several threads at work in one tree, each in a directory of its own and now and then in another's; phase after phase,
//! with something drastic between.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::operations::{Between, Op, Random, any};
use super::reference::Kind;
use super::world::{Outcome, World};
use crate::harness::{EMPTY, Tree, eventually, sha1};

/// What a panic said.
pub fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("something that is no text").to_owned()
}

/// How much is done.
#[derive(Clone, Copy)]
pub struct Plan {
    pub threads: usize,
    pub phases: usize,
    /// By each thread in a phase.
    pub operations: usize,
    /// Whether to wait for reclaim, which takes half a minute each time.
    pub reclaim: bool,
}

/// What each thread did, and what went wrong first.
#[derive(Default)]
pub struct Record {
    pub done: Vec<Vec<Op>>,
    pub failed: Option<(usize, String)>,
}

/// Runs a plan; `record` is filled in on the way.
pub fn run(t: &Tree, seed: u64, plan: Plan, record: &Mutex<Record>) {
    let mut random = Random::new(seed);
    record.lock().done = vec![Vec::new(); plan.threads];
    let worlds: Vec<Mutex<World<'_>>> =
        (0..plan.threads).map(|i| Mutex::new(World::new(t, &format!("w{i}")))).collect();
    for _ in 0..plan.phases {
        phase(&worlds, plan, &mut random, record);
        let between = choose(t, plan, &mut random);
        for done in &mut record.lock().done {
            done.push(Op::Between(between));
        }
        let mut locked: Vec<_> = worlds.iter().map(|world| world.lock()).collect();
        let mut all: Vec<&mut World<'_>> = locked.iter_mut().map(|guard| &mut **guard).collect();
        if let Err((world, why)) = pass(t, &mut all, between) {
            drop(all);
            drop(locked);
            fail(record, world, why);
        }
    }
    worlds.iter().for_each(|world| world.lock().close_all());
}

/// Does what a thread did once more, alone; `begun` counts the operations.
pub fn replay(t: &Tree, ops: &[Op], begun: &AtomicUsize) {
    let mut world = World::new(t, "w0");
    for op in ops {
        begun.fetch_add(1, Ordering::Relaxed);
        let outcome = match op {
            Op::Between(between) => pass(t, &mut [&mut world], *between).map_err(|(_, why)| why),
            op => world.apply(op),
        };
        outcome.unwrap_or_else(|why| panic!("{why}"));
    }
    world.compare().unwrap_or_else(|why| panic!("at the end: {why}"));
    world.close_all();
}

fn fail(record: &Mutex<Record>, world: usize, why: String) -> ! {
    record.lock().failed.get_or_insert((world, why.clone()));
    panic!("thread {world}: {why}");
}

fn choose(t: &Tree, plan: Plan, random: &mut Random) -> Between {
    let late = random.one_in(2);
    let kinds =
        [Between::Compare, Between::Pause, Between::Remount, Between::Kill { late }, Between::Kill { late }];
    match random.pick(&kinds) {
        Between::Compare if plan.reclaim && random.one_in(2) => Between::Reclaim,
        Between::Pause => Between::Pause,
        _ if t.mode.is_plain() => Between::Compare,
        between => between,
    }
}

/// One phase: all threads at once.
fn phase(worlds: &[Mutex<World<'_>>], plan: Plan, random: &mut Random, record: &Mutex<Record>) {
    let stop = AtomicBool::new(false);
    let seeds: Vec<u64> = worlds.iter().map(|_| random.next()).collect();
    std::thread::scope(|s| {
        for (own, seed) in seeds.into_iter().enumerate() {
            let stop = &stop;
            s.spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..plan.operations {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let op = any(&mut random, own, worlds.len());
                    let step = catch_unwind(AssertUnwindSafe(|| step(worlds, own, op, record)));
                    if let Err(why) = step.unwrap_or_else(|panic| Err(said(&*panic))) {
                        stop.store(true, Ordering::Relaxed);
                        record.lock().failed.get_or_insert((own, why));
                    }
                }
            });
        }
    });
    let failed = record.lock().failed.clone();
    if let Some((world, why)) = failed {
        fail(record, world, why);
    }
}

fn step(worlds: &[Mutex<World<'_>>], own: usize, op: Op, record: &Mutex<Record>) -> Outcome {
    let mut world = worlds[own].lock();
    if let Op::CopyForeign { owner, .. } | Op::MoveForeign { owner, .. } = op {
        // Never waited for: the other one may want ours.
        let Some(mut other) = worlds[owner].try_lock() else { return Ok(()) };
        record.lock().done[own].push(op.clone());
        return world.apply_foreign(&mut other, &op);
    }
    record.lock().done[own].push(op.clone());
    world.apply(&op)
}

/// What comes between phases, for all threads; then everything is compared.
fn pass(t: &Tree, worlds: &mut [&mut World<'_>], between: Between) -> Result<(), (usize, String)> {
    let mut each = |act: &mut dyn FnMut(&mut World<'_>) -> Outcome| {
        worlds.iter_mut().enumerate().try_for_each(|(i, world)| act(world).map_err(|why| (i, why)))
    };
    let named = |why: String| format!("{between:?}: {why}");
    if between != Between::Pause {
        each(&mut |world| world.between(between).map_err(named))?;
    } else {
        // Once for all.
        worlds[0].between(between).map_err(|why| (0, why))?;
    }
    let mut each = |act: &mut dyn FnMut(&mut World<'_>) -> Outcome| {
        worlds.iter_mut().enumerate().try_for_each(|(i, world)| act(world).map_err(|why| (i, why)))
    };
    match between {
        Between::Remount => t.remount(),
        Between::Kill { .. } => {
            t.depot().kill();
            t.depot().mount();
            each(&mut |world| {
                world.close_all();
                Ok(())
            })?;
        }
        _ => {}
    }
    each(&mut |world| world.compare().map_err(named))?;
    if between == Between::Reclaim && !t.mode.is_plain() {
        reclaim(t, worlds);
    }
    Ok(())
}

/// The filestore comes to hold the contents that are in the tree, and no other.
fn reclaim(t: &Tree, worlds: &[&mut World<'_>]) {
    let mut wanted = BTreeSet::new();
    for world in worlds {
        for (_, id) in world.reference.walk() {
            if let Kind::File(bytes) = &world.reference.inode(id).kind {
                wanted.insert(sha1(bytes));
            }
        }
    }
    wanted.remove(EMPTY);
    t.seal();
    eventually("the blobs to be those of the tree", || {
        t.depot().blobs().into_iter().eq(wanted.iter().cloned())
    });
}
