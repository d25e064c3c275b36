//! The time of day in the unit of the index.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::change::Nanos;

/// Now, in nanoseconds since 1970.
pub fn now() -> Nanos {
    nanos(SystemTime::now())
}

/// `time` in nanoseconds since 1970; negative before it, and clamped to what 64 bits hold (the year 2262).
pub fn nanos(time: SystemTime) -> Nanos {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Nanos::try_from(after.as_nanos()).unwrap_or(Nanos::MAX),
        Err(before) => Nanos::try_from(before.duration().as_nanos()).map_or(Nanos::MIN, |n| -n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_before_1970_are_negative() {
        assert_eq!(nanos(UNIX_EPOCH), 0);
        assert_eq!(nanos(UNIX_EPOCH + Duration::new(2, 5)), 2_000_000_005);
        assert_eq!(nanos(UNIX_EPOCH - Duration::new(1, 1)), -1_000_000_001);
        assert!(now() > 1_700_000_000_000_000_000);
    }
}
