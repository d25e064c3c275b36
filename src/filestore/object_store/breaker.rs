//! Whether a server is asked at all: after several failures in a row it is left alone for a while.
//!
//! So that whoever needs it hears at once that it is away, and nobody waits for a dead server but one who tries it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Failures in a row after which a server counts as away.
const FAILURES: u32 = 3;
/// How long it is left alone then, before one call tries it.
const PERIOD: Duration = Duration::from_secs(5);

/// See above.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// In a row, of those that the server or the way to it is to blame for.
    failures: u32,
    /// Until when nobody asks it.
    away_until: Option<Instant>,
    /// Why the last call failed, if it did.
    why: Option<String>,
}

impl Breaker {
    /// Asks whether the server may be asked; the error says why it may not. One of those who ask after the period may: the
    /// others wait for how it fares.
    pub(super) fn enter(&self) -> Result<(), String> {
        let mut state = self.0.lock();
        state.allows()?;
        if state.away_until.is_some() {
            state.away_until = Some(Instant::now() + PERIOD);
        }
        Ok(())
    }

    /// The same for who has something else to wait for first, and then enters.
    pub(super) fn allows(&self) -> Result<(), String> {
        self.0.lock().allows()
    }

    /// Notes an answer, whatever it was; whether it ends a time of being away.
    pub(super) fn answered(&self) -> bool {
        std::mem::take(&mut *self.0.lock()).away_until.is_some()
    }

    /// Notes an answer that forbids something; the server is there.
    pub(super) fn refused(&self, why: String) {
        *self.0.lock() = State { why: Some(why), ..State::default() };
    }

    /// Notes that there was no answer, or one of a server in trouble; whether it counts as away from now on.
    pub(super) fn failed(&self, why: String) -> bool {
        let mut state = self.0.lock();
        state.failures = state.failures.saturating_add(1);
        state.why = Some(why);
        if state.failures < FAILURES {
            return false;
        }
        state.away_until.replace(Instant::now() + PERIOD).is_none()
    }

    /// Why the server does not work, as far as the last call tells.
    pub(super) fn trouble(&self) -> Option<String> {
        self.0.lock().why.clone()
    }
}

impl State {
    fn allows(&self) -> Result<(), String> {
        let (Some(until), now) = (self.away_until, Instant::now()) else { return Ok(()) };
        if now >= until {
            return Ok(());
        }
        let why = self.why.as_deref().unwrap_or("it does not answer");
        let (times, left) = (self.failures, (until - now).as_secs_f32());
        Err(format!("it has failed {times} times in a row and is tried again in {left:.1} s: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_fails_is_left_alone_and_then_tried_by_one() {
        let breaker = Breaker::default();
        assert!(!breaker.failed("one".into()) && !breaker.failed("two".into()));
        breaker.enter().unwrap();
        assert!(breaker.failed("three".into()) && !breaker.failed("four".into()));
        let why = breaker.enter().unwrap_err();
        assert!(why.contains("4 times") && why.contains("four"), "{why}");
        assert_eq!(breaker.trouble().as_deref(), Some("four"));
        breaker.allows().unwrap_err();
        breaker.0.lock().away_until = Some(Instant::now());
        breaker.allows().unwrap();
        breaker.enter().unwrap();
        breaker.enter().unwrap_err();
        assert!(breaker.answered() && !breaker.answered());
        breaker.enter().unwrap();
        assert_eq!(breaker.trouble(), None);
    }

    #[test]
    fn an_answer_in_between_begins_the_count_anew() {
        let breaker = Breaker::default();
        for _ in 0..10 {
            assert!(!breaker.failed("busy".into()));
            breaker.refused("403".into());
            assert!(!breaker.failed("busy".into()));
            breaker.answered();
        }
        breaker.enter().unwrap();
        breaker.refused("403".into());
        assert_eq!(breaker.trouble().as_deref(), Some("403"));
    }
}
