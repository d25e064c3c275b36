//! How many bytes the closes that store their files themselves may have in memory at a time.
//!
//! Where a queue is in the chain, it bounds them. Without one each close has a window of requests of its own, and there can
//! be hundreds: they have turns, in the order in which they came.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Of all closes together.
const BYTES_MAX: u64 = 512 << 20;
/// Most bytes that one put has in memory.
const WINDOW_BYTES: u64 = 64 << 20;

/// See above.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    free: u64,
    /// Those who wait, the first of whom is next.
    waiting: VecDeque<u64>,
    came: u64,
}

impl Default for Turns {
    fn default() -> Turns {
        let state = State { free: BYTES_MAX, waiting: VecDeque::new(), came: 0 };
        Turns { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Turns {
    /// Waits for the turn of a file of so many bytes, until `end` at most. The caller holds no latch, for which one who has
    /// his turn may be waiting.
    pub(super) fn take(&self, size: u64, end: Instant) -> Option<Turn<'_>> {
        let bytes = size.min(WINDOW_BYTES);
        let mut state = self.state.lock();
        let me = state.came;
        state.came += 1;
        state.waiting.push_back(me);
        let mut in_time = true;
        while in_time && (state.waiting.front() != Some(&me) || state.free < bytes) {
            in_time = !self.changed.wait_until(&mut state, end).timed_out();
        }
        state.waiting.retain(|other| *other != me);
        // There may be room for the next one as well.
        self.changed.notify_all();
        if !in_time {
            return None;
        }
        state.free -= bytes;
        Some(Turn { turns: self, bytes })
    }
}

/// Given back when it is dropped.
#[must_use = "it is had only as long as it lives"]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    bytes: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.state.lock().free += self.bytes;
        self.turns.changed.notify_all();
    }
}

/// Longest wait for a turn; those who have theirs have ends of their own.
pub(super) const TURN_WAIT_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    const BIG: u64 = 10 << 30;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn those_who_came_first_have_their_turn_first_and_no_more_than_fit() {
        let turns = Turns::default();
        let mut had: Vec<_> = (0..7).map(|_| turns.take(BIG, soon()).unwrap()).collect();
        had.insert(0, turns.take(WINDOW_BYTES / 2, soon()).unwrap());
        assert!(turns.take(BIG, Instant::now()).is_none(), "it is full");
        let (told, order) = channel();
        thread::scope(|scope| {
            for (number, size) in [(0, BIG), (1, 1)] {
                let (told, turns) = (told.clone(), &turns);
                scope.spawn(move || {
                    let turn = turns.take(size, soon()).unwrap();
                    told.send(number).unwrap();
                    drop(turn);
                });
                while turns.state.lock().waiting.len() <= number {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            // There is room for the second, who does not overtake the first.
            assert!(order.recv_timeout(Duration::from_millis(50)).is_err());
            drop(had.pop());
            assert_eq!(order.recv().unwrap() + order.recv().unwrap(), 1);
        });
        drop(had);
        let state = turns.state.lock();
        assert!(state.free == BYTES_MAX && state.waiting.is_empty());
    }
}
