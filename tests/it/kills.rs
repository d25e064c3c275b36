//! Writers, renamers, copiers and deleters over many directories, and a daemon that is killed at a random moment.
//!
//! Each worker keeps in memory what every call that was answered has made of its own directories, and what the one call
//! under way would make of them. After the next start all of the first is there, and of the second all or nothing; bytes
//! that were being appended may be there in part.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::statvfs::statvfs;

use crate::data::noise;
use crate::harness::{Mode, Tree, run};
use crate::model::Random;
use crate::sys::copy_range;

const WORKERS: u64 = 6;
const DIRECTORIES: usize = 4;
const NAMES: usize = 6;

/// Longest time until the kill: some rounds see seals and forces, most see a storm of calls.
const LIFE_MAX_MS: [usize; 4] = [150, 400, 1_000, 3_000];

type Bytes = Arc<Vec<u8>>;
type Files = BTreeMap<String, Bytes>;

/// What a call makes of some paths; `None`: gone.
type Changes = Vec<(String, Option<Bytes>)>;

struct Worker {
    dir: PathBuf,
    random: Random,
    files: Files,
    /// Of the call that was not answered.
    pending: Changes,
    /// Descriptors that are open when the daemon dies.
    open: Vec<File>,
}

/// The daemon is gone.
struct Killed;

impl Worker {
    fn new(t: &Tree, number: u64, seed: u64) -> Worker {
        let dir = t.path(format!("worker{number}"));
        (0..DIRECTORIES).for_each(|i| fs::create_dir_all(dir.join(format!("d{i}"))).unwrap());
        let random = Random::new(seed.wrapping_mul(1000) + number);
        Worker { dir, random, files: Files::new(), pending: Changes::new(), open: Vec::new() }
    }

    /// Makes a call that changes things in this way.
    fn call<T>(&mut self, changes: Changes, call: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, Killed> {
        self.pending = changes;
        match call(&self.dir) {
            Ok(value) => {
                for (path, bytes) in std::mem::take(&mut self.pending) {
                    match bytes {
                        Some(bytes) => drop(self.files.insert(path, bytes)),
                        None => drop(self.files.remove(&path)),
                    }
                }
                Ok(value)
            }
            Err(e) => {
                let path = self.pending.first().map(|(path, _)| path);
                assert!(self.is_killed(&e), "{path:?}: {e}");
                Err(Killed)
            }
        }
    }

    /// Whether this is how a call ends when the daemon is killed. A write into a part of a page whose rest cannot be read any
    /// more gets EIO from the kernel.
    fn is_killed(&self, error: &io::Error) -> bool {
        // Aborted: it was under way when the last descriptor of /dev/fuse was closed. Not connected: it came later.
        let over = |errno: Errno| matches!(errno, Errno::ENOTCONN | Errno::ECONNABORTED);
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EIO) => statvfs(&self.dir).is_err_and(over),
            Some(errno) => over(errno),
            None => false,
        }
    }

    fn path(&mut self) -> String {
        format!("d{}/f{}", self.random.below(DIRECTORIES), self.random.below(NAMES))
    }

    fn existing(&mut self) -> Option<String> {
        let n = self.files.len();
        (n > 0).then(|| self.files.keys().nth(self.random.below(n)).unwrap().clone())
    }

    /// Few contents in many sizes.
    fn bytes(&mut self) -> Vec<u8> {
        let len = self.random.pick(&[0, 1, 4_096, 5_000, 32_768, 40_000, 100_000, 300_000]);
        noise(self.random.below(4) as u64, len)
    }

    fn work(&mut self, killed: &AtomicBool) {
        while self.step().is_ok() {}
        // Nothing else may end the work.
        let begun = Instant::now();
        while !killed.load(Ordering::Acquire) {
            assert!(begun.elapsed() < Duration::from_secs(60), "the mount broke down without a kill");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn step(&mut self) -> Result<(), Killed> {
        self.open.truncate(self.random.below(4));
        match self.random.below(12) {
            0..=3 => {
                let path = self.path();
                self.write(path)
            }
            4 => {
                let (temporary, path) = ("d0/temporary".to_owned(), self.path());
                self.write(temporary.clone())?;
                self.rename(temporary, path)
            }
            5 | 6 => {
                let (Some(from), to) = (self.existing(), self.path()) else { return Ok(()) };
                self.rename(from, to)
            }
            7 => self.append(),
            8 => self.copy(),
            9 => self.swap_directories(),
            _ => {
                let Some(path) = self.existing() else { return Ok(()) };
                self.call(vec![(path.clone(), None)], |dir| fs::remove_file(dir.join(path)))
            }
        }
    }

    fn write(&mut self, path: String) -> Result<(), Killed> {
        let created = vec![(path.clone(), Some(Bytes::default()))];
        let file = self.call(created, |dir| {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(dir.join(&path))
        })?;
        let bytes = self.bytes();
        let part = self.random.pick(&[4_096, 50_000, 300_000]);
        for at in (0..bytes.len()).step_by(part) {
            let end = (at + part).min(bytes.len());
            self.call(vec![(path.clone(), Some(Arc::new(bytes[..end].to_vec())))], |_| {
                file.write_all_at(&bytes[at..end], at as u64)
            })?;
        }
        if self.random.one_in(4) {
            self.call(Vec::new(), |_| file.sync_all())?;
        }
        self.open.push(file);
        Ok(())
    }

    fn append(&mut self) -> Result<(), Killed> {
        let Some(path) = self.existing() else { return Ok(()) };
        let file = self.call(Vec::new(), |dir| OpenOptions::new().append(true).open(dir.join(&path)))?;
        let mut bytes = self.files[&path].to_vec();
        if bytes.len() > 500_000 {
            return self.call(vec![(path, Some(Bytes::default()))], |_| file.set_len(0));
        }
        let more = noise(7, 4_096);
        bytes.extend(&more);
        self.call(vec![(path, Some(Arc::new(bytes)))], |_| file.write_all_at(&more, 0))?;
        self.open.push(file);
        Ok(())
    }

    fn copy(&mut self) -> Result<(), Killed> {
        let (Some(from), to) = (self.existing(), self.path()) else { return Ok(()) };
        if from == to {
            return Ok(());
        }
        let source = self.call(Vec::new(), |dir| File::open(dir.join(&from)))?;
        let target =
            self.call(vec![(to.clone(), Some(Bytes::default()))], |dir| File::create(dir.join(&to)))?;
        let bytes = self.files[&from].clone();
        self.call(vec![(to, Some(bytes.clone()))], |_| {
            let mut at = 0;
            while at < bytes.len() {
                match copy_range(&source, at as i64, &target, at as i64, 1 << 30)? {
                    0 => panic!("a copy ends at {at} of {} bytes", bytes.len()),
                    n => at += n,
                }
            }
            Ok(())
        })
    }

    fn rename(&mut self, from: String, to: String) -> Result<(), Killed> {
        if from == to {
            return Ok(());
        }
        let bytes = self.files[&from].clone();
        let (old, new) = (from.clone(), to.clone());
        self.call(vec![(from, None), (to, Some(bytes))], |dir| fs::rename(dir.join(old), dir.join(new)))
    }

    fn swap_directories(&mut self) -> Result<(), Killed> {
        let (one, two) = (self.random.below(DIRECTORIES), self.random.below(DIRECTORIES));
        let (one, two) = (format!("d{one}"), format!("d{two}"));
        let below = |dir: &str, path: &str| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        let mut changes = Changes::new();
        for from in [&one, &two] {
            let gone = self.files.keys().filter(|path| below(from, path)).map(|path| (path.clone(), None));
            changes.extend(gone);
        }
        for (from, to) in [(&one, &two), (&two, &one)] {
            let moved = self.files.iter().filter(|(path, _)| below(from, path));
            changes.extend(moved.map(|(path, bytes)| (path.replacen(from, to, 1), Some(bytes.clone()))));
        }
        self.call(changes, |dir| {
            let how = RenameFlags::RENAME_EXCHANGE;
            Ok(renameat2(AT_FDCWD, &dir.join(one), AT_FDCWD, &dir.join(two), how)?)
        })
    }

    /// Compares what is there with what was answered, and goes on from there.
    fn compare(&mut self) {
        let mut seen = Files::new();
        for i in 0..DIRECTORIES {
            for entry in fs::read_dir(self.dir.join(format!("d{i}"))).unwrap() {
                let path = format!("d{i}/{}", entry.unwrap().file_name().into_string().unwrap());
                let bytes = fs::read(self.dir.join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
                seen.insert(path, Arc::new(bytes));
            }
        }
        let pending = std::mem::take(&mut self.pending);
        let mut done = self.files.clone();
        for (path, bytes) in &pending {
            match bytes {
                Some(bytes) => drop(done.insert(path.clone(), bytes.clone())),
                None => drop(done.remove(path)),
            }
        }
        if seen != self.files && seen != done && !self.is_between(&seen, &pending) {
            panic!(
                "{}: {}; the call under way was about {:?}",
                self.dir.display(),
                differences(&seen, &self.files),
                pending.iter().map(|(path, b)| (path, b.as_ref().map(|b| b.len()))).collect::<Vec<_>>()
            );
        }
        self.files = seen;
    }

    /// Whether the call that was not answered added a part of its bytes to one file.
    fn is_between(&self, seen: &Files, pending: &Changes) -> bool {
        let [(path, Some(whole))] = pending.as_slice() else { return false };
        let (Some(before), Some(found)) = (self.files.get(path), seen.get(path)) else { return false };
        let mut others = self.files.clone();
        others.insert(path.clone(), found.clone());
        *seen == others && whole.starts_with(found) && found.starts_with(before)
    }
}

fn differences(seen: &Files, expected: &Files) -> String {
    let mut all: Vec<&String> = seen.keys().chain(expected.keys()).collect();
    all.sort();
    all.dedup();
    let text = |files: &Files, path: &String| {
        files.get(path).map_or("absent".to_owned(), |b| format!("{} bytes {:02x?}", b.len(), b.get(..4)))
    };
    let different = all.into_iter().filter(|path| seen.get(*path) != expected.get(*path));
    different
        .map(|path| format!("{path} is {}, was answered {}", text(seen, path), text(expected, path)))
        .collect::<Vec<_>>()
        .join("; ")
}

/// Some rounds of work and sudden death in one depot.
fn rounds(t: &Tree, seed: u64, rounds: usize) {
    let mut random = Random::new(seed);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|i| Worker::new(t, i, seed)).collect();
    for round in 0..rounds {
        let longest = random.pick(&LIFE_MAX_MS);
        let life = Duration::from_millis(random.below(longest) as u64);
        println!("seed {seed}, round {round}: killed after {life:?}");
        let killed = AtomicBool::new(false);
        std::thread::scope(|s| {
            workers.iter_mut().for_each(|worker| drop(s.spawn(|| worker.work(&killed))));
            if round % 3 == 2 {
                s.spawn(|| {
                    while !killed.load(Ordering::Acquire) {
                        let _ = t.depot().cli(&["flush", t.depot().dir_str(), "--wait"]);
                    }
                });
            }
            std::thread::sleep(life);
            t.depot().kill();
            killed.store(true, Ordering::Release);
        });
        // Descriptors of the dead mount stay open over the start, or do not.
        if random.one_in(2) {
            workers.iter_mut().for_each(|worker| worker.open.clear());
        }
        t.depot().mount_with(random.pick(&["", "durability=close"])).ok();
        workers.iter_mut().for_each(Worker::compare);
        workers.iter_mut().for_each(|worker| worker.open.clear());
        if random.one_in(4) {
            t.depot().umount();
            t.depot().verify_blobs();
            t.depot().check();
            t.depot().mount();
            workers.iter_mut().for_each(Worker::compare);
        }
    }
}

fn in_mode(mode: Mode, seed: u64, count: usize) {
    run(mode, move |t| rounds(t, seed, count));
}

#[test]
fn passthrough() {
    in_mode(Mode::Passthrough, 1, 10);
}

#[test]
fn cached() {
    in_mode(Mode::Cached, 2, 5);
}

#[test]
fn user() {
    in_mode(Mode::User, 3, 5);
}

/// Depots of ten rounds each, in turn in each mode: every second one with passthrough.
#[test]
#[ignore = "slow"]
fn a_thousand_rounds() {
    for seed in 100..200 {
        let mode = [Mode::Passthrough, Mode::Cached, Mode::Passthrough, Mode::User][seed as usize % 4];
        in_mode(mode, seed, 10);
    }
}
