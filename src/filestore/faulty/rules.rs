//! What goes wrong: lines of a file, each for one kind of call or for all of them.
//!
//! ```text
//! *=fail                 an outage: every call is refused at once
//! put=fail*2             the first two
//! put=fail%30            three of ten, by chance
//! remove=disconnect      what was asked is done, and the answer is lost
//! put=full               there is no room
//! stat=broken            an error that trying again does not help
//! open=delay:200         200 ms later than otherwise
//! *=stall                no answer before the file changes
//! read=stall:500         none, which is noticed after 500 ms
//! read=truncate          bytes behind the middle of a blob are missing
//! read=corrupt           one bit of each piece is another
//! ```
//!
//! Of the rules for a call the first that is due holds. Bytes that are put are altered as those that are read.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// Longest stall: nothing waits for ever, not even for a fault.
const STALL_LONGEST: Duration = Duration::from_secs(600);
const STALL_POLL: Duration = Duration::from_millis(5);

/// A kind of call on a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Opening a blob.
    Open,
    /// Reading one.
    Read,
    /// Asking for a size.
    Stat,
    /// Asking where a blob is.
    Locate,
    /// Making a blob.
    Put,
    /// Removing one, or forcing that.
    Remove,
    /// Listing.
    List,
}

const CALLS: [(&str, Call); 7] = [
    ("open", Call::Open),
    ("read", Call::Read),
    ("stat", Call::Stat),
    ("locate", Call::Locate),
    ("put", Call::Put),
    ("remove", Call::Remove),
    ("list", Call::List),
];

impl Call {
    /// As rules and errors have it.
    pub fn name(self) -> &'static str {
        CALLS[self as usize].0
    }
}

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Fail,
    Broken,
    Full,
    Disconnect,
    Delay(Duration),
    Stall(Option<Duration>),
    Truncate,
    Corrupt,
}

/// What is left to do for the call itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Its work.
    Work,
    /// Its work, and an error.
    Lose,
    /// Its work on bytes that end early.
    Truncate,
    /// Its work on other bytes.
    Corrupt,
}

impl Then {
    /// Whether the bytes are not those that they should be.
    pub(super) fn alters(self) -> bool {
        matches!(self, Then::Truncate | Then::Corrupt)
    }

    /// What becomes of `read` bytes, which begin at `offset` of `size`.
    pub(super) fn read(self, buffer: &mut [u8], read: usize, offset: u64, size: u64) -> io::Result<usize> {
        match self {
            Then::Work => Ok(read),
            Then::Lose => Err(io::ErrorKind::ConnectionReset.into()),
            Then::Truncate => Ok(read.min((size / 2).saturating_sub(offset) as usize)),
            Then::Corrupt => {
                if let Some(byte) = buffer[..read].last_mut() {
                    *byte ^= 1;
                }
                Ok(read)
            }
        }
    }
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// `None`: every call.
    call: Option<Call>,
    fault: Fault,
    /// Of a hundred calls.
    percent: u64,
    /// How many calls are left that it may be for.
    left: u64,
}

impl Rule {
    fn parse(line: &str) -> Option<Rule> {
        let (name, rest) = line.trim().split_once('=')?;
        let call = match name {
            "*" => None,
            name => Some(CALLS.iter().find(|(known, _)| *known == name)?.1),
        };
        let (rest, left) = match rest.split_once('*') {
            Some((rest, times)) => (rest, times.parse().ok()?),
            None => (rest, u64::MAX),
        };
        let (rest, percent) = match rest.split_once('%') {
            Some((rest, percent)) => (rest, percent.parse().ok()?),
            None => (rest, 100),
        };
        let (fault, time) = match rest.split_once(':') {
            Some((fault, ms)) => (fault, Some(Duration::from_millis(ms.parse().ok()?))),
            None => (rest, None),
        };
        let fault = match (fault, time) {
            ("fail", None) => Fault::Fail,
            ("broken", None) => Fault::Broken,
            ("full", None) => Fault::Full,
            ("disconnect", None) => Fault::Disconnect,
            ("delay", Some(time)) => Fault::Delay(time),
            ("stall", time) => Fault::Stall(time),
            ("truncate", None) => Fault::Truncate,
            ("corrupt", None) => Fault::Corrupt,
            _ => return None,
        };
        Some(Rule { call, fault, percent, left })
    }

    fn is_for(&self, call: Call) -> bool {
        self.call.is_none_or(|own| own == call)
    }
}

/// Inode, size, seconds and nanoseconds: another file has another one of them.
type Version = (u64, u64, i64, i64);

/// The rules as they are now.
#[derive(Debug, Default)]
struct Current {
    version: Version,
    /// How often they changed.
    generation: u64,
    rules: Vec<Rule>,
}

/// The faults of one provider.
#[derive(Debug)]
pub(super) struct Faults {
    /// The file with the rules.
    pub(super) control: PathBuf,
    current: Mutex<Current>,
    chance: AtomicU64,
    calls: [AtomicU64; CALLS.len()],
}

impl Faults {
    pub(super) fn new(control: PathBuf, seed: u64) -> Faults {
        Faults {
            control,
            current: Mutex::default(),
            chance: AtomicU64::new(seed),
            calls: [const { AtomicU64::new(0) }; CALLS.len()],
        }
    }

    pub(super) fn set(&self, rules: &str) {
        self.current().change(rules);
    }

    pub(super) fn calls(&self, call: Call) -> u64 {
        self.calls[call as usize].load(Ordering::Relaxed)
    }

    /// Whether there is a rule for such calls.
    pub(super) fn concern(&self, call: Call) -> bool {
        self.current().rules.iter().any(|rule| rule.is_for(call))
    }

    /// The rules, for people; `None` when there is none.
    pub(super) fn in_words(&self) -> Option<String> {
        let current = self.current();
        let rule = current.rules.first()?;
        let call = rule.call.map_or("every call", Call::name);
        Some(format!("a test plays a fault: {call}: {:?}", rule.fault).to_lowercase())
    }

    /// Does what comes before the work of a call.
    pub(super) fn before(&self, call: Call) -> io::Result<Then> {
        self.calls[call as usize].fetch_add(1, Ordering::Relaxed);
        let Some((fault, generation)) = self.due(call) else { return Ok(Then::Work) };
        match fault {
            Fault::Fail => return Err(io::ErrorKind::ConnectionRefused.into()),
            Fault::Broken => return Err(io::Error::other("the answer makes no sense")),
            Fault::Full => return Err(io::ErrorKind::StorageFull.into()),
            Fault::Delay(time) => thread::sleep(time),
            Fault::Stall(time) => return self.stall(generation, time),
            Fault::Disconnect => return Ok(Then::Lose),
            Fault::Truncate => return Ok(Then::Truncate),
            Fault::Corrupt => return Ok(Then::Corrupt),
        }
        Ok(Then::Work)
    }

    fn due(&self, call: Call) -> Option<(Fault, u64)> {
        let mut current = self.current();
        let generation = current.generation;
        let chance = || self.chance() % 100;
        let due = |rule: &&mut Rule| rule.is_for(call) && rule.left > 0 && chance() < rule.percent;
        let rule = current.rules.iter_mut().find(due)?;
        rule.left -= 1;
        Some((rule.fault, generation))
    }

    /// Waits for other rules, for `time` at most, which is an error.
    fn stall(&self, generation: u64, time: Option<Duration>) -> io::Result<Then> {
        let end = Instant::now() + time.unwrap_or(STALL_LONGEST);
        while self.current().generation == generation {
            if Instant::now() >= end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(STALL_POLL);
        }
        Ok(Then::Work)
    }

    /// Splitmix64, which is as good for several threads as for one.
    fn chance(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.chance.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        let mut current = self.current.lock();
        let found = fs::metadata(&self.control);
        let version = found.map_or(Version::default(), |m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
        if version != current.version {
            current.change(&fs::read_to_string(&self.control).unwrap_or_default());
            current.version = version;
        }
        current
    }
}

impl Current {
    fn change(&mut self, rules: &str) {
        self.rules = rules.lines().filter_map(Rule::parse).collect();
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_documented() {
        let rule = |call, fault, percent, left| Some(Rule { call, fault, percent, left });
        let ms = Duration::from_millis;
        assert_eq!(Rule::parse("*=fail"), rule(None, Fault::Fail, 100, u64::MAX));
        assert_eq!(Rule::parse(" put=fail*2\n"), rule(Some(Call::Put), Fault::Fail, 100, 2));
        assert_eq!(Rule::parse("put=fail%30*2"), rule(Some(Call::Put), Fault::Fail, 30, 2));
        let delay = Fault::Delay(ms(200));
        assert_eq!(Rule::parse("open=delay:200"), rule(Some(Call::Open), delay, 100, u64::MAX));
        let stall = Fault::Stall(Some(ms(500)));
        assert_eq!(Rule::parse("read=stall:500"), rule(Some(Call::Read), stall, 100, u64::MAX));
        assert_eq!(Rule::parse("*=stall"), rule(None, Fault::Stall(None), 100, u64::MAX));
        for wrong in ["", "put", "put=", "putt=fail", "put=fail:1", "open=delay", "put=fail%x", "put=fail*x"]
        {
            assert_eq!(Rule::parse(wrong), None, "{wrong}");
        }
        for (i, (name, call)) in CALLS.iter().enumerate() {
            assert_eq!((*call as usize, call.name()), (i, *name));
        }
    }

    #[test]
    fn chance_follows_the_seed() {
        let failed = |seed: u64| -> Vec<bool> {
            let faults = Faults::new("/nonexistent".into(), seed);
            faults.set("put=fail%30");
            (0..1000).map(|_| faults.before(Call::Put).is_err()).collect()
        };
        let count = failed(7).iter().filter(|failed| **failed).count();
        assert!((200..400).contains(&count), "{count}");
        assert_eq!(failed(7), failed(7));
        assert_ne!(failed(7), failed(8));
    }

    #[test]
    fn the_file_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("control");
        let faults = Faults::new(control.clone(), 1);
        assert_eq!(faults.before(Call::Put).unwrap(), Then::Work);
        fs::write(&control, "put=fail*1\nremove=disconnect\n").unwrap();
        faults.before(Call::Put).unwrap_err();
        assert_eq!(faults.before(Call::Put).unwrap(), Then::Work);
        assert_eq!(faults.before(Call::Remove).unwrap(), Then::Lose);
        fs::write(&control, "*=stall").unwrap();
        thread::scope(|scope| {
            let stalled = scope.spawn(|| faults.before(Call::Stat));
            thread::sleep(Duration::from_millis(50));
            assert!(!stalled.is_finished());
            fs::remove_file(&control).unwrap();
            assert_eq!(stalled.join().unwrap().unwrap(), Then::Work);
        });
        assert_eq!(faults.calls(Call::Put), 3);
    }
}
