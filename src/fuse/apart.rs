//! Requests that are answered on a thread of their own.
//!
//! The request threads are few. What may wait for a store that is far away, for as long as its deadline, does so elsewhere:
//! a hundred of these hold up no `ls`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::fuse::adapter::Adapter;

/// Threads at a time; what comes beyond is answered where it came.
const THREADS_MAX: usize = 1024;

/// How many there are.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// One of them, until it is dropped.
struct Place;

impl Place {
    fn take() -> Option<Place> {
        let place = Place;
        (THREADS.fetch_add(1, Ordering::Relaxed) < THREADS_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Adapter {
    /// Runs `answer` on a thread called `name`. Where none can be started the request is answered with EIO, by its drop.
    pub(super) fn apart(&self, name: &str, answer: impl FnOnce(&Adapter) + Send + 'static) {
        let Some(place) = Place::take() else { return answer(self) };
        let adapter = self.clone();
        let answer = move || {
            let _place = place;
            answer(&adapter);
        };
        if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(answer) {
            tracing::error!(%error, "a request cannot be answered: no thread can be started");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let before = THREADS.load(Ordering::Relaxed);
        let places: Vec<Place> = (before..THREADS_MAX).map_while(|_| Place::take()).collect();
        assert!(Place::take().is_none());
        drop(places);
        assert_eq!(THREADS.load(Ordering::Relaxed), before);
    }
}
