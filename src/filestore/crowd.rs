//! Forces that come while one is under way are done together by the next one.
//!
//! A force of one file costs a flush of the disk, one of many files costs one as well. So whoever comes alone does not wait
//! for company, and many writers that force at the same time share what they would otherwise queue for.

use std::collections::BTreeSet;

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
    /// Rounds of several that failed: which of its files it was is for each to find out.
    failed: BTreeSet<u64>,
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
                state.failed.insert(mine);
            }
        }
        let failed = state.failed.contains(&mine);
        drop(state);
        if failed { force(&[name]) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::super::error::Error;
    use super::*;

    #[test]
    fn those_who_come_meanwhile_share_the_next_force() {
        let (crowd, calls, most) = (Crowd::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for number in 0..8 {
                let (crowd, calls, most) = (&crowd, &calls, &most);
                scope.spawn(move || {
                    for round in 0..20 {
                        let name = StagingName(number * 100 + round);
                        let force = |names: &[StagingName]| {
                            assert!(names.contains(&name) || names.len() > 1);
                            calls.fetch_add(1, Ordering::Relaxed);
                            most.fetch_max(names.len(), Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(2));
                            Ok(())
                        };
                        crowd.force(name, force).unwrap();
                    }
                });
            }
        });
        assert!(calls.load(Ordering::Relaxed) < 160 && most.load(Ordering::Relaxed) > 1);
    }

    #[test]
    fn an_error_is_told_to_whom_it_concerns() {
        let crowd = Crowd::default();
        let bad = StagingName(3);
        let force = |names: &[StagingName]| {
            std::thread::sleep(Duration::from_millis(20));
            if names.contains(&bad) { Err(Error::Unforced { name: bad }) } else { Ok(()) }
        };
        for _ in 0..5 {
            let told: Vec<bool> = std::thread::scope(|scope| {
                let (crowd, force) = (&crowd, &force);
                let ask = |number| scope.spawn(move || crowd.force(StagingName(number), force).is_ok());
                let threads: Vec<_> = (0..6).map(ask).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            assert_eq!(told, [true, true, true, false, true, true]);
        }
    }
}
