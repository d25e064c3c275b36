//! Section `[retry]`: trying again.

use std::time::Duration;

use super::keys::parse_count;
use super::{Known, parse_duration};

/// The section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all.
    pub max_trys: u64,
    /// The pause after the first one that fails; those after it are longer.
    pub interval: Duration,
    /// A reader is not kept waiting by pauses for longer.
    pub read_deadline: Duration,
}

impl Retry {
    /// What the section says.
    pub(super) fn read(known: &Known<'_>) -> Retry {
        Retry {
            max_trys: parse_count(known.get("retry.max-trys")).unwrap_or(1),
            interval: parse_duration(known.get("retry.interval")).unwrap_or_default(),
            read_deadline: parse_duration(known.get("retry.read-deadline")).unwrap_or_default(),
        }
    }
}
