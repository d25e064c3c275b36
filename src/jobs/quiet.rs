//! Says a failure once, and again when it is another: a full disk is one event, not one per round.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::mem::discriminant;
use std::time::{Duration, Instant};

use crate::text::chain;
use crate::vfs::Error;

/// A failure is over when none came for this long: longer than any pause between two tries of the same thing.
const CALM: Duration = Duration::from_secs(300);

/// What was said of one job.
#[derive(Debug)]
pub struct Quiet {
    job: &'static str,
    /// The failure that was told and is not over, and when it was seen last.
    told: Option<(u64, Instant)>,
}

impl Quiet {
    /// Nothing was said yet.
    pub fn new(job: &'static str) -> Quiet {
        Quiet { job, told: None }
    }

    /// Hears how a round ended, and tells the log what is new in it; whether anything was.
    pub fn hear<T>(&mut self, round: &Result<T, Error>, at: Instant) -> bool {
        match round {
            Ok(_) => self.heard_well(at),
            Err(error) => self.heard_failure(error, at),
        }
    }

    fn heard_well(&mut self, at: Instant) -> bool {
        let over = self.told.is_some_and(|(_, last)| at.saturating_duration_since(last) >= CALM);
        if over {
            self.told = None;
            tracing::info!("{}: works again", self.job);
        }
        over
    }

    fn heard_failure(&mut self, error: &Error, at: Instant) -> bool {
        let kind = kind(error);
        let new = self.told.is_none_or(|(told, _)| told != kind);
        self.told = Some((kind, at));
        if new {
            tracing::error!("{}: {}; tried again", self.job, chain(error));
        }
        new
    }
}

/// What two failures have in common that are one event: not their texts, which name another file each time.
fn kind(error: &Error) -> u64 {
    let mut hasher = DefaultHasher::new();
    discriminant(error).hash(&mut hasher);
    match error {
        Error::Index(error) => discriminant(error).hash(&mut hasher),
        Error::Store(error) => discriminant(error).hash(&mut hasher),
        _ => {}
    }
    let system = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>());
    system.map(io::Error::kind).hash(&mut hasher);
    hasher.finish()
}

/// The error and what it comes from, outermost first.
fn causes(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |cause| cause.source())
}

#[cfg(test)]
mod tests {
    use super::*;
    use io::ErrorKind::{StorageFull, TimedOut};

    fn failed(file: &str, why: io::ErrorKind) -> Result<(), Error> {
        Err(Error::io(format!("read {file}"))(why.into()))
    }

    #[test]
    fn a_failure_is_told_once_until_it_is_another_or_was_over() {
        let (mut quiet, start) = (Quiet::new("test"), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!quiet.hear(&Ok(()), at(0)));
        assert!(quiet.hear(&failed("a", TimedOut), at(0)));
        assert!(!quiet.hear(&failed("b", TimedOut), at(1)), "another file, the same failure");
        assert!(!quiet.hear(&Ok(()), at(2)), "what is tried again later may fail again");
        assert!(!quiet.hear(&failed("a", TimedOut), at(60)));
        assert!(quiet.hear(&failed("a", StorageFull), at(61)));
        assert!(quiet.hear(&Err::<(), _>(Error::Backlog), at(62)));
        assert!(quiet.hear(&Ok(()), at(400)), "over");
        assert!(!quiet.hear(&Ok(()), at(800)), "which is told once");
        assert!(quiet.hear(&Err::<(), _>(Error::Backlog), at(801)), "a month later it is news");
    }
}
