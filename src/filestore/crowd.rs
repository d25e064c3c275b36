//! Forces that come while one is under way are done together by the next one.
//!
//! A force of one file costs a flush of the disk, one of many files costs one as well. So whoever comes alone does not wait
//! for company, and many writers that force at the same time share what they would otherwise queue for.

use std::collections::BTreeMap;

use parking_lot::{Condvar, Mutex};

use super::error::Result;
use crate::change::StagingName;

/// Who waits for the next force.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// A force is under way.
    running: bool,
    /// What the next one is of, and its number; they are done in order.
    next: Vec<StagingName>,
    round: u64,
    /// The first round that is not done yet.
    pending: u64,
    /// Rounds of several that failed, and how many have not been told: which of its files it was is for each to find out.
    failed: BTreeMap<u64, usize>,
}

impl Crowd {
    /// Has `name` forced by `force`, which is given all that came together. Its error is told to whom it concerns.
    pub fn force(&self, name: StagingName, force: impl Fn(&[StagingName]) -> Result<()>) -> Result<()> {
        let mut state = self.state.lock();
        let mine = state.round;
        state.next.push(name);
        while state.pending <= mine {
            if state.running {
                self.changed.wait(&mut state);
                continue;
            }
            let names = std::mem::take(&mut state.next);
            state.running = true;
            state.round += 1;
            drop(state);
            let done = force(&names);
            state = self.state.lock();
            state.running = false;
            state.pending = mine + 1;
            self.changed.notify_all();
            if names.len() == 1 {
                return done;
            }
            if done.is_err() {
                state.failed.insert(mine, names.len());
            }
        }
        let failed = state.is_failed(mine);
        drop(state);
        if failed { force(&[name]) } else { Ok(()) }
    }
}

impl State {
    /// Tells one of a round whether it failed; forgets the round with the last of them.
    fn is_failed(&mut self, round: u64) -> bool {
        let Some(untold) = self.failed.get_mut(&round) else { return false };
        *untold -= 1;
        if *untold == 0 {
            self.failed.remove(&round);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::ScopedJoinHandle;

    use super::super::error::Error;
    use super::*;

    /// What each was told, and which names each force was given.
    struct Gathered {
        told: Vec<bool>,
        rounds: Vec<Vec<StagingName>>,
    }

    /// Has `first` forced, lets `others` come while that is under way, and ends it only then.
    fn gather(crowd: &Crowd, first: u64, others: &[u64], bad: Option<u64>) -> Gathered {
        let rounds = Mutex::new(Vec::new());
        let (begun, wait_begun) = mpsc::channel();
        let (let_go, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let force = |names: &[StagingName]| {
            rounds.lock().push(names.to_vec());
            if names == [StagingName(first)] {
                begun.send(()).unwrap();
                held.lock().recv().unwrap();
            }
            match bad.map(StagingName).filter(|bad| names.contains(bad)) {
                Some(name) => Err(Error::Unforced { name }),
                None => Ok(()),
            }
        };
        let told = std::thread::scope(|scope| {
            let force = &force;
            let ask = |number: u64| -> ScopedJoinHandle<'_, bool> {
                scope.spawn(move || crowd.force(StagingName(number), force).is_ok())
            };
            let mut threads = vec![ask(first)];
            wait_begun.recv().unwrap();
            threads.extend(others.iter().map(|number| ask(*number)));
            while crowd.state.lock().next.len() < others.len() {
                std::thread::yield_now();
            }
            let_go.send(()).unwrap();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        Gathered { told, rounds: rounds.into_inner() }
    }

    #[test]
    fn those_who_come_meanwhile_share_the_next_force() {
        let crowd = Crowd::default();
        for base in [0, 100] {
            let others: Vec<u64> = (base + 1..base + 8).collect();
            let mut found = gather(&crowd, base, &others, None);
            assert_eq!(found.told, [true; 8]);
            assert_eq!(found.rounds.len(), 2);
            found.rounds[1].sort();
            assert_eq!(found.rounds[1], others.into_iter().map(StagingName).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_is_told_to_whom_it_concerns() {
        let crowd = Crowd::default();
        for _ in 0..3 {
            let found = gather(&crowd, 0, &[1, 2, 3, 4], Some(3));
            assert_eq!(found.told, [true, true, true, false, true]);
            assert!(crowd.state.lock().failed.is_empty(), "a failed round is forgotten when all know of it");
            assert_eq!(gather(&crowd, 3, &[1, 2], Some(3)).told, [false, true, true]);
        }
    }
}
