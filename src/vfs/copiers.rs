//! Guesses which new file is going to be a copy of another one.
//!
//! A lazy copy needs its destination served through the daemon, because writes that the kernel passes through are not seen.
//! But how a file is served is decided when it is made, before the copy is asked for, and passing through is what makes all
//! other writing fast. So a destination is recognised by who makes it: a program known to copy with copy_file_range(2)
//! that has just opened a file of this mount for reading. A wrong guess costs speed, nothing else.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use crate::sys::caller::program;
use crate::vfs::Caller;

/// Programs that copy so from the start; others are learned when they do it.
const KNOWN: [&str; 2] = ["cp", "install"];

/// Programs remembered at most.
const LEARNED_MAX: usize = 64;

/// How long after opening its source a copier makes its destination, at most.
const SOURCE_AGE_MAX: Duration = Duration::from_secs(5);

/// Processes remembered at most.
const RECENT_MAX: usize = 256;

/// What is known of processes and programs that copy.
#[derive(Debug)]
pub struct Copiers {
    /// Processes that opened a file for reading, and when.
    recent: Mutex<LruCache<u32, Instant>>,
    programs: Mutex<HashSet<String>>,
}

impl Default for Copiers {
    fn default() -> Copiers {
        Copiers {
            recent: Mutex::new(LruCache::new(NonZeroUsize::new(RECENT_MAX).expect("not zero"))),
            programs: Mutex::new(KNOWN.iter().map(|name| (*name).to_owned()).collect()),
        }
    }
}

impl Copiers {
    /// A process opened a file for reading only.
    pub fn source_opened(&self, caller: &Caller) {
        self.recent.lock().put(caller.pid, Instant::now());
    }

    /// A process copied with copy_file_range(2) and a destination that was not served for it.
    pub fn learn(&self, caller: &Caller) {
        let Some(name) = program(caller.pid) else { return };
        let mut programs = self.programs.lock();
        if programs.len() < LEARNED_MAX {
            programs.insert(name);
        }
    }

    /// Whether a file that the process makes now is likely to become a copy.
    pub fn is_likely(&self, caller: &Caller) -> bool {
        let opened = self.recent.lock().peek(&caller.pid).copied();
        opened.is_some_and(|at| at.elapsed() < SOURCE_AGE_MAX)
            && program(caller.pid).is_some_and(|name| self.programs.lock().contains(&name))
    }
}
