//! Many clients with mixed work for a while: no error, no end to waiting, and nothing left in the daemon afterwards.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::crowds::harmless;
use crate::data::{noise, rw};
use crate::harness::{Mode, Tree, eventually, run_within};
use crate::sys::{Map, getxattr, setxattr};

modes!(mounted_root: forty_eight_clients);

mod two_hundred_clients {
    use super::*;

    #[test]
    #[ignore = "slow"]
    fn passthrough() {
        run_within(Duration::from_secs(1200), Mode::Passthrough, for_five_minutes);
    }

    #[test]
    #[ignore = "slow"]
    fn cached() {
        run_within(Duration::from_secs(1200), Mode::Cached, for_five_minutes);
    }
}

/// Files of each client, and files that belong to all.
const OWN: u64 = 6;
const SHARED: u64 = 12;
/// Longest file: some are served by the kernel itself, some by the daemon.
const BYTES_MAX: u64 = 80_000;
/// Bytes of a shared file, all the same.
const UNIFORM: usize = 50_000;

fn forty_eight_clients(t: &Tree) {
    load(t, 48, Duration::from_secs(3), Duration::from_secs(8));
}

fn for_five_minutes(t: &Tree) {
    load(t, 200, Duration::from_secs(60), Duration::from_secs(300));
}

fn load(t: &Tree, clients: u64, warm_up: Duration, main: Duration) {
    let fresh = Usage::of(t);
    let warmed = (round(t, clients, warm_up), rest(t, &fresh));
    let ended = (round(t, clients, main), rest(t, &fresh));
    // `rest` has seen to the descriptors. Memory: an allocator does not give everything back, but it does not grow either.
    let grown = ended.1.resident.saturating_sub(warmed.1.resident);
    eprintln!(
        "{:?}, {clients} clients: fresh {fresh:?}, calls and usage warm {warmed:?}, at the end {ended:?}",
        t.mode
    );
    assert!(
        grown < (24 << 20) + warmed.1.resident / 4,
        "memory grew by {grown} bytes from {warmed:?} to {ended:?}"
    );
    assert!(ended.1.threads <= warmed.1.threads + 2, "threads: {warmed:?}, {ended:?}");
}

/// What the daemon uses.
#[derive(Clone, Copy, Debug)]
struct Usage {
    resident: u64,
    descriptors: usize,
    threads: usize,
}

impl Usage {
    fn of(t: &Tree) -> Usage {
        let process = PathBuf::from(format!("/proc/{}", t.depot().pid()));
        let count = |dir: &str| fs::read_dir(process.join(dir)).unwrap().count();
        let status = fs::read_to_string(process.join("status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: u64 = resident.split_whitespace().next().unwrap().parse().unwrap();
        Usage { resident: kib << 10, descriptors: count("fd"), threads: count("task") }
    }
}

/// With everything removed, the daemon has soon let go of everything; what it uses then.
fn rest(t: &Tree, fresh: &Usage) -> Usage {
    for entry in fs::read_dir(t.dir()).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    t.seal();
    eventually("blobs to be reclaimed", || t.depot().blobs().is_empty());
    eventually("staging files to be gone", || t.depot().staging().is_empty());
    let few = |usage: &Usage| usage.descriptors <= fresh.descriptors + 40;
    eventually("descriptors to be closed", || few(&Usage::of(t)));
    Usage::of(t)
}

/// All clients at once for a while; how many calls they made.
fn round(t: &Tree, clients: u64, time: Duration) -> u64 {
    fs::create_dir(t.path("shared")).unwrap();
    let (end, calls) = (Instant::now() + time, AtomicU64::new(0));
    std::thread::scope(|s| {
        for id in 0..clients {
            let calls = &calls;
            s.spawn(move || {
                let mut client = Client::new(t, id);
                while Instant::now() < end {
                    client.work();
                    calls.fetch_add(1, Ordering::Relaxed);
                }
                client.verify();
            });
        }
    });
    calls.into_inner()
}

/// One client: its directory, what should be in it, and its dice.
struct Client<'a> {
    t: &'a Tree,
    id: u64,
    dir: PathBuf,
    model: Vec<Option<Vec<u8>>>,
    dice: u64,
}

impl<'a> Client<'a> {
    fn new(t: &'a Tree, id: u64) -> Client<'a> {
        let dir = t.path(format!("own{id}"));
        fs::create_dir(&dir).unwrap();
        Client {
            t,
            id,
            dir,
            model: vec![None; OWN as usize],
            dice: id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn roll(&mut self, below: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 11) % below
    }

    fn own(&self, which: usize) -> PathBuf {
        self.dir.join(format!("f{which}"))
    }

    fn shared(&mut self) -> PathBuf {
        let which = self.roll(SHARED);
        self.t.path(format!("shared/s{which}"))
    }

    fn work(&mut self) {
        let (which, other) = (self.roll(OWN) as usize, self.roll(OWN) as usize);
        match self.roll(16) {
            0..=2 => {
                // Some contents are those of other clients, so that blobs are shared.
                let (seed, length) = (self.roll(500), self.roll(BYTES_MAX));
                let bytes = noise(seed, length as usize);
                fs::write(self.own(which), &bytes).unwrap();
                self.model[which] = Some(bytes);
            }
            3 => self.verify_one(which),
            4 => {
                let more = noise(self.id, 1 + self.roll(3000) as usize);
                let file = OpenOptions::new().append(true).create(true).open(self.own(which));
                file.unwrap().write_all(&more).unwrap();
                self.model[which].get_or_insert_default().extend(more);
            }
            5 if self.model[which].is_some() && which != other => {
                fs::rename(self.own(which), self.own(other)).unwrap();
                self.model[other] = self.model[which].take();
            }
            6 if self.model[which].is_some() => {
                fs::remove_file(self.own(which)).unwrap();
                self.model[which] = None;
            }
            7 if self.model[which].is_some() && which != other => {
                fs::copy(self.own(which), self.own(other)).unwrap();
                self.model[other] = self.model[which].clone();
            }
            8 => self.map(which),
            9 => self.change_in_place(which),
            10 => self.names(which),
            11 => self.attributes(which),
            12 if self.model[which].is_some() => File::open(self.own(which)).unwrap().sync_all().unwrap(),
            13 => self.replace_shared(),
            14 => self.read_shared(),
            _ => self.list_shared(),
        }
    }

    fn map(&self, which: usize) {
        let Some(model) = self.model[which].as_ref().filter(|bytes| !bytes.is_empty()) else { return };
        let file = File::open(self.own(which)).unwrap();
        let map = Map::shared_readonly(&file, model.len()).unwrap();
        drop(file);
        assert!(map.read(0, model.len()) == *model, "mapping of {}", self.own(which).display());
    }

    fn change_in_place(&mut self, which: usize) {
        let (at, length, byte) = (self.roll(BYTES_MAX) as usize, self.roll(BYTES_MAX), self.dice as u8);
        let path = self.own(which);
        let Some(model) = &mut self.model[which] else { return };
        let file = rw(&path);
        file.set_len(length).unwrap();
        model.resize(length as usize, 0);
        file.write_all_at(&[byte; 777], at as u64).unwrap();
        model.resize(model.len().max(at + 777), 0);
        model[at..at + 777].fill(byte);
    }

    fn names(&mut self, which: usize) {
        let (dir, link) = (self.dir.join("dir"), self.dir.join("dir/link"));
        fs::create_dir(&dir).unwrap();
        if self.model[which].is_some() {
            fs::hard_link(self.own(which), &link).unwrap();
            assert_eq!(fs::metadata(&link).unwrap().nlink(), 2);
            fs::remove_file(&link).unwrap();
        }
        std::os::unix::fs::symlink("target", &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("target"));
        fs::remove_dir_all(&dir).unwrap();
    }

    fn attributes(&mut self, which: usize) {
        if self.model[which].is_none() {
            return;
        }
        let (path, value) = (self.own(which), self.dice.to_le_bytes());
        setxattr(&path, "user.load", &value, 0).unwrap();
        assert_eq!(getxattr(&path, "user.load").unwrap(), value);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    /// Every version of a shared name comes by a rename, so whoever reads one sees it whole.
    fn replace_shared(&mut self) {
        let (own, shared) = (self.dir.join("new"), self.shared());
        fs::write(&own, vec![self.id as u8; UNIFORM]).unwrap();
        fs::rename(own, shared).unwrap();
    }

    fn read_shared(&mut self) {
        let shared = self.shared();
        if let Some(bytes) = harmless("read", fs::read(shared)) {
            assert!(
                bytes.len() == UNIFORM && bytes.iter().all(|byte| *byte == bytes[0]),
                "two versions in one"
            );
        }
    }

    fn list_shared(&mut self) {
        let one = self.shared();
        harmless("unlink", fs::remove_file(one));
        for entry in fs::read_dir(self.t.path("shared")).unwrap() {
            harmless("stat", entry.unwrap().metadata());
        }
    }

    fn verify_one(&self, which: usize) {
        match &self.model[which] {
            Some(model) => {
                let bytes = fs::read(self.own(which)).unwrap();
                assert!(
                    bytes == *model,
                    "{}: {} bytes, {} written",
                    self.own(which).display(),
                    bytes.len(),
                    model.len()
                );
            }
            None => assert!(!self.own(which).exists()),
        }
    }

    fn verify(&self) {
        (0..OWN as usize).for_each(|which| self.verify_one(which));
    }
}
