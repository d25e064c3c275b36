//! Work that is asked for while some is under way is done together by the next one.
//!
//! A force of one file costs a flush of the disk, one of many files costs one as well. So many writers that force at the same
//! time share what they would otherwise queue for. Those who came together are expected to come together again: the next
//! round waits for them, no longer than the last one took. Whoever comes alone is not made to wait.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// Longest wait for company.
const GATHER_MAX: Duration = Duration::from_millis(5);

/// Who waits for the next round.
#[derive(Debug)]
pub struct Crowd<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// Somebody joined the round that is gathering.
    came: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// A round is under way, or gathering.
    running: bool,
    /// What the next one is of, and its number; they are done in order.
    next: Vec<T>,
    round: u64,
    /// The first round that is not done yet.
    pending: u64,
    /// What rounds of several left undone.
    left: BTreeMap<u64, Left<T>>,
    /// How many the next one is likely to be of, and how long the last one took.
    expected: usize,
    took: Duration,
}

/// What one round left undone.
#[derive(Debug)]
struct Left<T> {
    items: Vec<T>,
    /// How many of the round have not looked yet.
    untold: usize,
}

impl<T> Default for Crowd<T> {
    fn default() -> Crowd<T> {
        let state = State {
            running: false,
            next: Vec::new(),
            round: 0,
            pending: 0,
            left: BTreeMap::new(),
            expected: 0,
            took: Duration::ZERO,
        };
        Crowd { state: Mutex::new(state), changed: Condvar::new(), came: Condvar::new() }
    }
}

impl<T: Copy + PartialEq> Crowd<T> {
    /// Has `item` done: by `alone` where nobody else came, else by `together` of one of those who came meanwhile. What that
    /// leaves undone, for whatever reason, everybody does alone, so that an error is told to whom it concerns.
    pub fn join<E>(
        &self,
        item: T,
        together: impl FnOnce(&[T]) -> Vec<T>,
        alone: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut state = self.state.lock();
        let mine = state.round;
        state.next.push(item);
        self.came.notify_one();
        while state.pending <= mine && state.running {
            self.changed.wait(&mut state);
        }
        if state.pending <= mine {
            state.running = true;
            let complete = self.gather(&mut state);
            let items = std::mem::take(&mut state.next);
            state.round += 1;
            drop(state);
            let begun = Instant::now();
            if items.len() == 1 {
                let done = alone();
                drop(self.end_round(mine, 1, Vec::new(), complete, begun));
                return done;
            }
            let left = together(&items);
            state = self.end_round(mine, items.len(), left, complete, begun);
        }
        let undone = state.is_left(mine, item);
        drop(state);
        if undone { alone() } else { Ok(()) }
    }

    /// Waits for those who came together before; whether they did.
    fn gather(&self, state: &mut MutexGuard<'_, State<T>>) -> bool {
        let until = Instant::now() + state.took.min(GATHER_MAX);
        while state.next.len() < state.expected {
            if self.came.wait_until(state, until).timed_out() {
                break;
            }
        }
        state.next.len() >= state.expected
    }

    /// `complete`: as many had come as were expected.
    fn end_round(
        &self,
        round: u64,
        members: usize,
        items: Vec<T>,
        complete: bool,
        begun: Instant,
    ) -> MutexGuard<'_, State<T>> {
        let mut state = self.state.lock();
        state.running = false;
        state.pending = round + 1;
        state.took = begun.elapsed();
        state.expected = if complete { members + state.next.len() } else { members };
        if !items.is_empty() {
            state.left.insert(round, Left { items, untold: members });
        }
        self.changed.notify_all();
        state
    }
}

impl<T: PartialEq> State<T> {
    /// Tells one of a round whether its item was left; forgets the round with the last of them.
    fn is_left(&mut self, round: u64, item: T) -> bool {
        let Some(left) = self.left.get_mut(&round) else { return false };
        let undone = left.items.contains(&item);
        left.untold -= 1;
        if left.untold == 0 {
            self.left.remove(&round);
        }
        undone
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::ScopedJoinHandle;

    use super::*;

    /// What each was told, and which items each round had.
    struct Gathered {
        told: Vec<bool>,
        rounds: Vec<Vec<u64>>,
    }

    /// Has `first` done, lets `others` come while that is under way, and ends it only then.
    fn gather(crowd: &Crowd<u64>, first: u64, others: &[u64], bad: Option<u64>) -> Gathered {
        let rounds = Mutex::new(Vec::new());
        let (begun, wait_begun) = mpsc::channel();
        let (let_go, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let together = |items: &[u64]| {
            rounds.lock().push(items.to_vec());
            if items.iter().any(|item| Some(*item) == bad) { items.to_vec() } else { Vec::new() }
        };
        let alone = |item: u64| {
            rounds.lock().push(vec![item]);
            if item == first {
                begun.send(()).unwrap();
                held.lock().recv().unwrap();
            }
            if Some(item) == bad { Err(()) } else { Ok(()) }
        };
        let told = std::thread::scope(|scope| {
            let (together, alone) = (&together, &alone);
            let ask = |item: u64| -> ScopedJoinHandle<'_, bool> {
                scope.spawn(move || crowd.join(item, together, || alone(item)).is_ok())
            };
            let mut threads = vec![ask(first)];
            wait_begun.recv().unwrap();
            threads.extend(others.iter().map(|item| ask(*item)));
            while crowd.state.lock().next.len() < others.len() {
                std::thread::yield_now();
            }
            let_go.send(()).unwrap();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        Gathered { told, rounds: rounds.into_inner() }
    }

    #[test]
    fn those_who_come_meanwhile_share_the_next_round() {
        let crowd = Crowd::default();
        for base in [0, 100] {
            let others: Vec<u64> = (base + 1..base + 8).collect();
            let mut found = gather(&crowd, base, &others, None);
            assert_eq!(found.told, [true; 8]);
            assert_eq!(found.rounds.len(), 2);
            found.rounds[1].sort_unstable();
            assert_eq!(found.rounds[1], others);
        }
    }

    #[test]
    fn an_error_is_told_to_whom_it_concerns() {
        let crowd = Crowd::default();
        for _ in 0..3 {
            let found = gather(&crowd, 0, &[1, 2, 3, 4], Some(3));
            assert_eq!(found.told, [true, true, true, false, true]);
            assert!(crowd.state.lock().left.is_empty(), "a round is forgotten when all have looked");
            assert_eq!(gather(&crowd, 3, &[1, 2], Some(3)).told, [false, true, true]);
        }
    }
}
