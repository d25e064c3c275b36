//! Section `[eventual]`.

use std::path::PathBuf;
use std::time::Duration;

use super::{Known, Problem, keys, parse_duration, parse_size};

/// Section `[eventual]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eventual {
    /// Directory of the queue.
    pub dir: PathBuf,
    /// Uploads at the same time.
    pub number_of_threads: u64,
    /// How often the directory is looked through.
    pub dispatcher_interval: Duration,
    /// How long a close waits for its upload.
    pub timeout: Duration,
    /// How long the end of a mount waits for the queue.
    pub drain_timeout: Duration,
    /// Bytes that new files leave free on the disk.
    pub min_free_space: u64,
    /// Bytes in the queue beyond which new files are refused; 0: no such limit.
    pub max_queue_size: u64,
}

impl Eventual {
    pub(super) fn read(known: &Known<'_>) -> Eventual {
        let duration = |name: &str| parse_duration(known.get(name)).unwrap_or_default();
        let size = |name: &str| parse_size(known.get(name)).unwrap_or_default();
        Eventual {
            dir: known.path("eventual.dir"),
            number_of_threads: keys::parse_count(known.get("eventual.number-of-threads")).unwrap_or(1),
            dispatcher_interval: duration("eventual.dispatcher-interval"),
            timeout: duration("eventual.timeout"),
            drain_timeout: duration("eventual.drain-timeout"),
            min_free_space: size("eventual.min-free-space"),
            max_queue_size: size("eventual.max-queue-size"),
        }
    }

    /// What is wrong with the keys.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let zero = |name: &str, value: Duration| {
            let text = format!("{name}: nothing can be done in no time: give it a longer one");
            value.is_zero().then(|| Problem::new(name, text))
        };
        let times =
            [("eventual.dispatcher-interval", self.dispatcher_interval), ("eventual.timeout", self.timeout)];
        times.into_iter().filter_map(|(name, value)| zero(name, value)).collect()
    }
}
