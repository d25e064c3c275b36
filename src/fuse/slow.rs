//! Threads for requests that may have to wait for something far away, so that those that answer the rest are never all
//! taken: `ls`, `stat` and `df` go on while a hundred readers wait for a store that does not answer.
//!
//! A thread is made when none is free, up to a bound, and stays: a mount over local disks never has one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Most threads; what comes beyond waits for one of them to be free. Each wait for a store has its deadline.
const THREADS_MAX: usize = 512;

type Work = Box<dyn FnOnce() + Send>;

/// The threads and what waits for them.
#[derive(Default)]
pub(super) struct Slow {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    threads: usize,
    free: usize,
}

impl Slow {
    /// Has a thread do it; in the caller's own where none can be had.
    pub(super) fn run(self: &Arc<Slow>, work: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        state.waiting.push_back(Box::new(work));
        if state.free >= state.waiting.len() || state.threads >= THREADS_MAX {
            drop(state);
            self.more.notify_one();
            return;
        }
        state.threads += 1;
        let number = state.threads;
        drop(state);
        let slow = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("slow-{number}"));
        if let Err(error) = thread.spawn(move || slow.work()) {
            tracing::warn!(%error, "a thread for slow requests cannot be started");
            let work = {
                let mut state = self.state.lock();
                state.threads -= 1;
                // The others see to what waits, as long as there are any.
                if state.threads > 0 { None } else { state.waiting.pop_front() }
            };
            work.into_iter().for_each(|work| work());
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            while let Some(work) = state.waiting.pop_front() {
                drop(state);
                work();
                state = self.state.lock();
            }
            state.free += 1;
            self.more.wait(&mut state);
            state.free -= 1;
        }
    }
}

impl fmt::Debug for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Slow")
            .field("threads", &state.threads)
            .field("free", &state.free)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn all_are_done_at_the_same_time_and_threads_are_used_again() {
        let slow = Arc::new(Slow::default());
        let (done, all_done) = mpsc::channel();
        for _ in 0..2 {
            // Each waits for all others: fewer threads than that would never end.
            let barrier = Arc::new(std::sync::Barrier::new(100));
            for _ in 0..100 {
                let (barrier, done) = (Arc::clone(&barrier), done.clone());
                slow.run(move || {
                    barrier.wait();
                    done.send(()).unwrap();
                });
            }
            for _ in 0..100 {
                all_done.recv_timeout(Duration::from_secs(60)).unwrap();
            }
            while slow.state.lock().free < 100 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(slow.state.lock().threads, 100);
    }
}
