//! Threads for requests that may have to wait for something far away, so that those that answer the rest are never all
//! taken: `ls`, `stat` and `df` go on while a hundred readers wait for a store that does not answer.
//!
//! A thread is made when none is free, up to a bound, and stays: a mount over local disks never has one. What no deadline ends
//! has half of them at most: closes that wait until their files are stored, which may take an hour, and what is done with
//! staging files on a network file system, whose server may be away for as long.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// Most threads; what comes beyond waits for one of them to be free.
const THREADS_MAX: usize = 512;

/// Most threads that do what has no deadline.
const ENDLESS_MAX: usize = THREADS_MAX / 2;

/// Who does the work of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Whoever asks: it waits for nothing that is not on this host.
    Here,
    /// A thread made for such: it may wait for something far away, which has a deadline.
    Slow,
    /// One of half of those: it may wait for ever.
    Endless,
}

/// The lane of what may wait for something far away, or not.
pub(super) fn slow_if(slow: bool) -> Lane {
    if slow { Lane::Slow } else { Lane::Here }
}

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
    endless: VecDeque<Work>,
    /// Threads that do what has no deadline.
    in_endless: usize,
    threads: usize,
    free: usize,
}

impl State {
    /// How much of what waits a free thread may do.
    fn due(&self) -> usize {
        self.waiting.len() + self.endless.len().min(ENDLESS_MAX - self.in_endless)
    }

    /// What a free thread does next, and whether that has no deadline. Such comes first: it cannot take all threads.
    fn next(&mut self) -> Option<(Work, bool)> {
        if self.in_endless < ENDLESS_MAX
            && let Some(work) = self.endless.pop_front()
        {
            self.in_endless += 1;
            return Some((work, true));
        }
        Some((self.waiting.pop_front()?, false))
    }
}

impl Slow {
    /// Has it done in this lane; in the caller's own thread where no other can be had.
    pub(super) fn run(self: &Arc<Slow>, lane: Lane, work: impl FnOnce() + Send + 'static) {
        match lane {
            Lane::Here => work(),
            Lane::Slow => self.add(|state| state.waiting.push_back(Box::new(work))),
            Lane::Endless => self.add(|state| state.endless.push_back(Box::new(work))),
        }
    }

    fn add(self: &Arc<Slow>, put: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        put(&mut state);
        if state.free >= state.due() || state.threads >= THREADS_MAX {
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
            let mut state = self.state.lock();
            state.threads -= 1;
            // The others see to what waits, as long as there are any.
            if state.threads == 0 {
                drop(self.do_one(state));
            }
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            state = match self.do_one(state) {
                Ok(state) => state,
                Err(mut state) => {
                    state.free += 1;
                    self.more.wait(&mut state);
                    state.free -= 1;
                    state
                }
            };
        }
    }

    /// Does what is next with the lock given back meanwhile; an error when there is nothing.
    fn do_one<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> Result<MutexGuard<'a, State>, MutexGuard<'a, State>> {
        let Some((work, is_endless)) = state.next() else { return Err(state) };
        drop(state);
        work();
        let mut state = self.state.lock();
        state.in_endless -= usize::from(is_endless);
        Ok(state)
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
                slow.run(Lane::Slow, move || {
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

    #[test]
    fn what_has_no_deadline_leaves_threads_to_the_rest() {
        let slow = Arc::new(Slow::default());
        let (begun, all_begun) = mpsc::channel();
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        for _ in 0..THREADS_MAX + 10 {
            let (begun, ended) = (begun.clone(), ended.clone());
            slow.run(Lane::Endless, move || {
                begun.send(()).unwrap();
                let _ = ended.recv();
            });
        }
        let soon = Duration::from_secs(60);
        (0..ENDLESS_MAX).for_each(|_| all_begun.recv_timeout(soon).unwrap());
        let (done, all_done) = mpsc::channel();
        for _ in 0..1000 {
            let done = done.clone();
            slow.run(Lane::Slow, move || done.send(()).unwrap());
        }
        (0..1000).for_each(|_| all_done.recv_timeout(soon).unwrap());
        assert!(all_begun.try_recv().is_err(), "more than there may be");
        drop(end);
        (0..THREADS_MAX + 10 - ENDLESS_MAX).for_each(|_| all_begun.recv_timeout(soon).unwrap());
        while slow.state.lock().in_endless > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
