//! Keeps a failure that comes again and again from filling the log: of one kind on one inode, a line a minute.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::change::Ino;

/// How often a failure of one kind on one inode is told.
const PERIOD: Duration = Duration::from_secs(60);

/// Failures remembered at most; what comes on top in one period is told by its kind alone.
const KNOWN_MAX: usize = 1024;

/// In place of an inode for what comes on top.
const ANY: Ino = 0;

/// What was told when.
#[derive(Debug, Default)]
pub struct Quiet {
    told: Mutex<HashMap<(i32, Ino), Told>>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    kept_back: u64,
}

impl Quiet {
    /// Whether a failure of this kind is to be told: then how many like it were kept back since the last that was.
    pub fn admit(&self, kind: i32, ino: Ino, now: Instant) -> Option<u64> {
        let mut told = self.told.lock();
        if told.len() >= KNOWN_MAX && !told.contains_key(&(kind, ino)) {
            told.retain(|_, last| now.saturating_duration_since(last.at) < PERIOD);
        }
        let room = told.len() < KNOWN_MAX || told.contains_key(&(kind, ino));
        let key = (kind, if room { ino } else { ANY });
        let Some(last) = told.get_mut(&key) else {
            told.insert(key, Told { at: now, kept_back: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(last.at) < PERIOD {
            last.kept_back += 1;
            return None;
        }
        last.at = now;
        Some(std::mem::take(&mut last.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_told_once_a_minute_with_how_many_there_were() {
        let (quiet, begun) = (Quiet::default(), Instant::now());
        assert_eq!(quiet.admit(5, 16, begun), Some(0));
        for _ in 0..100 {
            assert_eq!(quiet.admit(5, 16, begun + Duration::from_secs(59)), None);
        }
        assert_eq!(quiet.admit(28, 16, begun), Some(0), "another kind");
        assert_eq!(quiet.admit(5, 17, begun), Some(0), "another inode");
        assert_eq!(quiet.admit(5, 16, begun + PERIOD), Some(100));
        assert_eq!(quiet.admit(5, 16, begun + PERIOD), None);
    }

    #[test]
    fn many_inodes_make_no_more_lines_than_are_remembered() {
        let (quiet, begun) = (Quiet::default(), Instant::now());
        let told = |at| (1..100_000).filter(|ino| quiet.admit(5, *ino, at).is_some()).count();
        assert_eq!(told(begun), KNOWN_MAX + 1);
        assert!(quiet.told.lock().len() <= KNOWN_MAX + 1);
        assert!(told(begun + PERIOD) <= KNOWN_MAX + 1, "a minute later some are told again");
    }
}
