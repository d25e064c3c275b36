//! A named thread that does rounds of work until it is told to stop.
//!
//! The owner keeps the [`Worker`]; dropping it stops the thread and waits for its current round. Nothing is started by a
//! constructor of a room: `daemon` starts the workers once everything they use is there.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How often a thread that is waited for, for a time, is looked at.
const JOIN_POLL: Duration = Duration::from_millis(1);

/// What the thread sees of its owner's wishes.
#[derive(Debug, Default)]
pub struct Signal {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    wake: bool,
}

impl Signal {
    /// Ends the current or the next [`Signal::wait`] early.
    pub fn wake(&self) {
        self.state.lock().wake = true;
        self.changed.notify_all();
    }

    /// Asks the thread to return.
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// Whether the thread has been asked to return; long rounds look at it between their steps.
    pub fn stopped(&self) -> bool {
        self.state.lock().stop
    }

    /// Sleeps until woken, stopped, or `longest` has passed. False once stopped.
    pub fn wait(&self, longest: Duration) -> bool {
        let end = Instant::now() + longest;
        let mut state = self.state.lock();
        while !state.stop && !state.wake {
            if self.changed.wait_until(&mut state, end).timed_out() {
                break;
            }
        }
        state.wake = false;
        !state.stop
    }
}

/// Owner's end of a named thread.
pub struct Worker {
    name: String,
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread called `name` (the kernel shows the first 15 bytes) that runs `work` once.
    ///
    /// `work` loops itself, typically `while signal.wait(period) { round() }`.
    pub fn start(name: &str, work: impl FnOnce(&Signal) + Send + 'static) -> io::Result<Worker> {
        let signal = Arc::new(Signal::default());
        let theirs = Arc::clone(&signal);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&theirs))?;
        Ok(Worker { name: name.to_owned(), signal, thread: Some(thread) })
    }

    /// Makes the thread do its next round now.
    pub fn wake(&self) {
        self.signal.wake();
    }

    /// A handle that can wake the thread and outlive the owner's borrow.
    pub fn signal(&self) -> Arc<Signal> {
        Arc::clone(&self.signal)
    }

    /// Asks the thread to return, and waits for nothing.
    pub fn stop(&self) {
        self.signal.stop();
    }

    /// Stops the thread and waits for it.
    pub fn join(self) {}

    /// Stops the thread and waits for it until `end`, then lets it run on; whether it has returned.
    pub fn join_until(mut self, end: Instant) -> bool {
        self.stop();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if Instant::now() >= end {
                tracing::warn!(worker = self.name, "worker has not ended in time");
                self.thread = None;
                return false;
            }
            std::thread::sleep(JOIN_POLL);
        }
        true
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal.stop();
        let Some(thread) = self.thread.take() else { return };
        if thread.thread().id() == std::thread::current().id() {
            return; // The last owner is the worker itself: it returns by its own.
        }
        if thread.join().is_err() {
            tracing::error!(worker = self.name, "worker ended with a panic");
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_worker_is_woken_and_joined() {
        let rounds = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&rounds);
        let (tell, told) = crossbeam_channel::unbounded::<()>();
        let worker = Worker::start("test-worker", move |signal| {
            while signal.wait(Duration::from_secs(60)) {
                counted.fetch_add(1, Ordering::SeqCst);
                tell.send(()).unwrap();
            }
        })
        .unwrap();
        worker.wake();
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        worker.wake();
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        let start = Instant::now();
        worker.join();
        assert!(start.elapsed() < Duration::from_secs(30));
        assert_eq!(rounds.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_worker_that_does_not_end_is_not_waited_for_longer_than_said() {
        let (hold, held) = crossbeam_channel::unbounded::<()>();
        let worker = Worker::start("test-worker", move |_| held.iter().for_each(drop)).unwrap();
        assert!(!worker.join_until(Instant::now() + Duration::from_millis(20)));
        drop(hold);
        let worker =
            Worker::start("test-worker", |signal| while signal.wait(Duration::from_secs(60)) {}).unwrap();
        assert!(worker.join_until(Instant::now() + Duration::from_secs(30)));
    }

    #[test]
    fn a_wake_before_the_wait_is_not_lost() {
        let signal = Signal::default();
        signal.wake();
        let start = Instant::now();
        assert!(signal.wait(Duration::from_secs(60)));
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(signal.wait(Duration::from_millis(1)), "a wait that times out is not a stop");
        signal.stop();
        assert!(!signal.wait(Duration::from_secs(60)));
    }
}
