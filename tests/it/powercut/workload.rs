//! Workers that use a mounted depot in every way whose outcome is promised, each in a directory of its own.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::diary::{Clock, Diary, Names, Node, Object, Span, Tag, What};
use super::random::Random;
use crate::harness::{Depot, command, run_command};

/// The default repository.
pub const PLAIN: &str = "plain";
/// The one whose close waits.
pub const STRICT: &str = "strict";

/// Names of files that a worker has at most.
const SLOTS: u64 = 24;

/// Contents that several files share, by the tag; the size follows from it.
const SHARED_TAGS: Tag = 6;

/// Everything that was done.
pub struct Done {
    pub diaries: Vec<Diary>,
    /// What `depotfs flush --wait` took.
    pub flushes: Vec<Span>,
}

/// The ways to work.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Everything, in random order.
    Mixed,
    /// A log that stays open: appended, forced, patched.
    Log,
    /// Only names.
    Names,
    /// The same contents again and again, with pauses long enough for their blobs to be reclaimed.
    Reuse,
}

const WORKERS: [(&str, &str, Kind); 7] = [
    (PLAIN, "mixed", Kind::Mixed),
    (PLAIN, "mixed too", Kind::Mixed),
    (STRICT, "mixed", Kind::Mixed),
    (PLAIN, "log", Kind::Log),
    (PLAIN, "names", Kind::Names),
    (PLAIN, "reuse", Kind::Reuse),
    (STRICT, "reuse", Kind::Reuse),
];

/// Makes the repositories and the workers' directories, durably.
pub fn prepare(depot: &Depot) {
    for repository in [PLAIN, STRICT] {
        fs::create_dir(depot.path(repository)).unwrap();
    }
    depot.cli(&["repo", "set", depot.dir_str(), STRICT, "durability=close"]).ok();
    for (repository, name, _) in WORKERS {
        fs::create_dir(depot.path(repository).join(name)).unwrap();
    }
    depot.flush();
}

/// Lets all workers work for `time`.
///
/// With `calm`, nobody asks for anything durable: what is, is so by itself. Then hardly a file is closed either, since the
/// seal of some files makes everything else durable, too.
pub fn run(depot: &Depot, clock: &Clock, time: Duration, calm: bool, seed: u64) -> Done {
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    thread::scope(|scope| {
        let start = |(i, (repository, name, kind)): (usize, &(&str, &str, Kind))| {
            let mut worker = Worker {
                root: depot.path(repository).join(name),
                diary: Diary { place: format!("{repository}/{name}"), ..Diary::default() },
                clock,
                random: Random::new(seed.wrapping_add(1000 + i as u64)),
                durable_close: *repository == STRICT,
                next_tag: (i as Tag + 1) << 32,
                marker: 0,
                started,
                calm,
            };
            let (kind, stop) = (*kind, &stop);
            let work = move || {
                // A worker that fails stops the others, too.
                let _guard = StopOnPanic(stop);
                worker.work(kind, stop);
                worker.diary
            };
            thread::Builder::new().name(format!("{repository}/{name}")).spawn_scoped(scope, work).unwrap()
        };
        let at_work = |kind: Kind| !calm || matches!(kind, Kind::Names | Kind::Log);
        let workers = WORKERS.iter().enumerate().filter(|(_, (.., kind))| at_work(*kind));
        let workers: Vec<_> = workers.map(start).collect();
        let _guard = StopOnPanic(&stop);
        let mut flushes = Vec::new();
        let mut next = Duration::from_secs(6);
        while started.elapsed() < time && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20));
            if started.elapsed() >= next && !calm {
                let (span, ran) = clock.span(|| depot.cli(&["flush", depot.dir_str(), "--wait"]));
                ran.ok();
                flushes.push(span);
                next = started.elapsed() + Duration::from_secs(9);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let diaries = workers.into_iter().map(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        Done { diaries: diaries.collect(), flushes }
    })
}

struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Name of the directory whose number counts a worker's changes of names.
pub fn marker_name(number: u64) -> String {
    format!("marker.{number}")
}

struct Worker<'a> {
    root: PathBuf,
    diary: Diary,
    clock: &'a Clock<'a>,
    random: Random,
    durable_close: bool,
    next_tag: Tag,
    marker: u64,
    started: Instant,
    calm: bool,
}

impl Worker<'_> {
    fn work(&mut self, kind: Kind, stop: &AtomicBool) {
        self.make_directory(&marker_name(0));
        let mut log = None;
        let mut reuse = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            if self.durable_close && self.is_calm() {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            match kind {
                Kind::Mixed => self.mixed(),
                Kind::Log => self.log(&mut log),
                Kind::Names => self.only_names(),
                Kind::Reuse => self.reuse(&mut reuse),
            }
            let pause = if self.random.chance(2) { 1500 } else { self.random.below(25) };
            thread::sleep(Duration::from_millis(pause));
        }
    }

    /// Half of the time nobody asks for anything durable, so that many writes lie between two flushes of the device.
    fn is_calm(&self) -> bool {
        self.calm || self.started.elapsed().as_millis() % 5000 > 2500
    }

    fn wants_sync(&mut self, of_hundred: u64) -> bool {
        self.random.chance(of_hundred) && !self.is_calm()
    }

    fn mixed(&mut self) {
        match self.random.below(100) {
            0..20 => self.make_file(),
            20..32 => self.rewrite(),
            32..44 => self.append(),
            44..54 => self.patch(),
            54..66 => self.replace(),
            66..71 => self.rename(),
            71..75 => self.exchange(),
            75..83 => self.remove(),
            83..88 => self.link(),
            88..96 => self.copy(),
            96..98 => self.only_names(),
            _ => self.sync_names(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A name that is free, if any.
    fn free(&mut self) -> Option<String> {
        let name = format!("file{}", self.random.below(SLOTS));
        (!self.diary.tree.contains_key(&name)).then_some(name)
    }

    /// A file that is there.
    fn some_file(&mut self) -> Option<(String, Object)> {
        let file = |(name, node): (&String, &Node)| match node {
            Node::File(object) => Some((name.clone(), *object)),
            _ => None,
        };
        let files: Vec<_> = self.diary.tree.iter().filter_map(file).collect();
        self.random.pick(&files).cloned()
    }

    fn some_size(&mut self) -> u64 {
        match self.random.below(20) {
            0 => 0,
            1..8 => self.random.below(200) + 1,
            8..14 => self.random.below(8192) + 1,
            14..19 => self.random.below(100_000) + 1,
            _ => self.random.below(1_000_000) + 1,
        }
    }

    /// A tag of its own with a size, or one of those that several files share.
    fn some_content(&mut self) -> (u64, Tag) {
        if self.random.chance(25) {
            let tag = self.random.below(SHARED_TAGS) + 1;
            return (shared_size(tag), tag);
        }
        (self.some_size(), self.new_tag())
    }

    fn new_tag(&mut self) -> Tag {
        self.next_tag += 1;
        self.next_tag
    }

    /// Makes a change of names, and counts it in the name of the marker.
    fn names(&mut self, names: Names, forced: Vec<Object>, call: impl FnOnce() -> io::Result<()>) {
        self.diary.call(self.clock, &[What::Names(names, forced)], call);
        self.mark();
    }

    fn mark(&mut self) {
        let (from, to) = (marker_name(self.marker), marker_name(self.marker + 1));
        let (old, new) = (self.path(&from), self.path(&to));
        let rename = What::Names(Names::Rename { from, to }, vec![]);
        self.diary.call(self.clock, &[rename], || fs::rename(old, new));
        self.marker += 1;
    }

    fn make_directory(&mut self, name: &str) {
        let path = self.path(name);
        let make = What::Names(Names::Make(name.to_owned(), Node::Directory), vec![]);
        self.diary.call(self.clock, &[make], || fs::create_dir(path));
    }

    fn open_new(&mut self, name: &str) -> (File, Object) {
        let (path, object) = (self.path(name), self.diary.new_object());
        let what =
            [What::Names(Names::Make(name.to_owned(), Node::File(object)), vec![]), What::Open(object)];
        let open = || OpenOptions::new().read(true).write(true).create_new(true).open(path);
        (self.diary.call(self.clock, &what, open), object)
    }

    /// A new file that gets its bytes in one to three writes.
    fn make_named(&mut self, name: &str, (len, tag): (u64, Tag), sync: bool) -> Object {
        let (file, object) = self.open_new(name);
        self.write_in_parts(&file, object, 0, len, tag);
        if sync {
            self.sync(&file, object);
        }
        self.close(file, object);
        self.mark();
        object
    }

    fn make_file(&mut self) {
        let Some(name) = self.free() else { return };
        let content = self.some_content();
        let sync = self.wants_sync(20);
        self.make_named(&name, content, sync);
        // Many files live no longer than this.
        if self.random.chance(20) {
            let path = self.path(&name);
            self.names(Names::Remove(name), vec![], || fs::remove_file(path));
        }
    }

    fn write_in_parts(&mut self, file: &File, object: Object, at: u64, len: u64, tag: Tag) {
        let (mut offset, end) = (at, at + len);
        while offset < end {
            let part =
                if self.random.chance(50) { end - offset } else { self.random.below(end - offset) + 1 };
            self.write(file, object, offset, part, tag);
            offset += part;
        }
    }

    fn write(&mut self, file: &File, object: Object, offset: u64, len: u64, tag: Tag) {
        let bytes = super::diary::bytes_of(tag, offset, len);
        let what = What::Write { object, offset, len, tag };
        self.diary.call(self.clock, &[what], || file.write_all_at(&bytes, offset));
    }

    fn sync(&mut self, file: &File, object: Object) {
        self.diary.call(self.clock, &[What::Fsync(object)], || file.sync_all());
    }

    fn close(&mut self, file: File, object: Object) {
        let what = What::Close { object, durable: self.durable_close };
        self.diary.call(self.clock, &[what], || nix::unistd::close(file).map_err(io::Error::from));
    }

    fn open(&mut self, name: &str, object: Object, empty: bool) -> File {
        let path = self.path(name);
        let what = if empty { What::Truncate(object) } else { What::Open(object) };
        let open = || OpenOptions::new().read(true).write(true).truncate(empty).open(path);
        self.diary.call(self.clock, &[what], open)
    }

    fn rewrite(&mut self) {
        let Some((name, object)) = self.some_file() else { return };
        // Sometimes twice, the second at the heels of the first.
        for _ in 0..=self.random.below(2) {
            self.rewrite_file(&name, object);
        }
    }

    fn rewrite_file(&mut self, name: &str, object: Object) {
        let file = self.open(name, object, true);
        let (len, tag) = self.some_content();
        self.write_in_parts(&file, object, 0, len, tag);
        if self.wants_sync(25) {
            self.sync(&file, object);
        }
        self.close(file, object);
    }

    fn append(&mut self) {
        let Some((name, object)) = self.some_file() else { return };
        let size = self.diary.objects[object].size();
        if size > 2_000_000 {
            return;
        }
        let file = self.open(&name, object, false);
        let (len, tag) = (self.some_size(), self.new_tag());
        self.write_in_parts(&file, object, size, len, tag);
        if self.wants_sync(35) {
            self.sync(&file, object);
        }
        self.close(file, object);
    }

    fn patch(&mut self) {
        let Some((name, object)) = self.some_file() else { return };
        // A reader makes a blob's file change hands.
        let _reader = self.random.chance(40).then(|| File::open(self.path(&name)).unwrap());
        let file = self.open(&name, object, false);
        let size = self.diary.objects[object].size();
        for _ in 0..self.random.below(3) {
            let (offset, len, tag) = (self.random.below(size + 1), self.random.below(9000), self.new_tag());
            self.write(&file, object, offset, len, tag);
        }
        if self.wants_sync(35) {
            self.sync(&file, object);
        }
        self.close(file, object);
    }

    /// Write-temporary-and-rename.
    fn replace(&mut self) {
        let Some((name, _)) = self.some_file() else { return };
        let content = self.some_content();
        let sync = self.wants_sync(10);
        let object = self.make_named("temporary", content, sync);
        let (from, to) = (self.path("temporary"), self.path(&name));
        let names = Names::Rename { from: "temporary".into(), to: name };
        self.names(names, vec![object], || fs::rename(from, to));
    }

    fn rename(&mut self) {
        let (Some((name, _)), Some(free)) = (self.some_file(), self.free()) else { return };
        let (from, to) = (self.path(&name), self.path(&free));
        self.names(Names::Rename { from: name, to: free }, vec![], || fs::rename(from, to));
    }

    fn exchange(&mut self) {
        let (Some((a, first)), Some((b, second))) = (self.some_file(), self.some_file()) else { return };
        if first == second {
            return;
        }
        let (from, to) = (self.path(&a), self.path(&b));
        let exchange = || Ok(renameat2(AT_FDCWD, &from, AT_FDCWD, &to, RenameFlags::RENAME_EXCHANGE)?);
        self.names(Names::Exchange(a, b), vec![first, second], exchange);
    }

    fn remove(&mut self) {
        let Some((name, _)) = self.some_file() else { return };
        let path = self.path(&name);
        self.names(Names::Remove(name), vec![], || fs::remove_file(path));
    }

    fn link(&mut self) {
        let (Some((from, _)), Some(to)) = (self.some_file(), self.free()) else { return };
        let (old, new) = (self.path(&from), self.path(&to));
        self.names(Names::Link { from, to }, vec![], || fs::hard_link(old, new));
    }

    /// A copy by `cp`, whose steps count as one.
    fn copy(&mut self) {
        let (Some((from, source)), Some(to)) = (self.some_file(), self.free()) else { return };
        let object = self.diary.new_object();
        let content = self.diary.objects[source].clone();
        let make = What::Names(Names::Make(to.clone(), Node::File(object)), vec![]);
        let mut what = vec![make, What::Open(object)];
        what.extend(content.extents().map(|(offset, len, tag)| What::Write { object, offset, len, tag }));
        what.push(What::Close { object, durable: self.durable_close });
        let (old, new) = (self.path(&from), self.path(&to));
        let by_program = self.random.chance(50);
        self.diary.call(self.clock, &what, || match by_program {
            true => {
                run_command(&mut command("cp", &[old.to_str().unwrap(), new.to_str().unwrap()])).ok();
                Ok(())
            }
            false => fs::copy(old, new).map(drop),
        });
        self.mark();
    }

    fn sync_names(&mut self) {
        if self.is_calm() {
            return;
        }
        let root = self.root.clone();
        self.diary.call(self.clock, &[What::SyncNames], || File::open(root)?.sync_all());
    }

    fn only_names(&mut self) {
        let number = self.diary.events.len();
        match self.random.below(10) {
            0..4 => {
                let name = format!("directory{number}");
                let path = self.path(&name);
                self.names(Names::Make(name, Node::Directory), vec![], || fs::create_dir(path));
            }
            4..7 => {
                let name = format!("symlink{number}");
                let path = self.path(&name);
                self.names(Names::Make(name, Node::Symlink), vec![], || symlink("nowhere", path));
            }
            7..9 => self.move_other(number),
            _ => self.sync_names(),
        }
    }

    /// Renames or removes a directory or a symlink.
    fn move_other(&mut self, number: usize) {
        let other = |(name, node): (&String, &Node)| {
            let other = !matches!(node, Node::File(_)) && !name.starts_with("marker");
            other.then(|| (name.clone(), *node))
        };
        let others: Vec<_> = self.diary.tree.iter().filter_map(other).collect();
        let Some((name, node)) = self.random.pick(&others).cloned() else { return };
        let path = self.path(&name);
        if self.random.chance(50) {
            let to = format!("moved{number}");
            let new = self.path(&to);
            return self.names(Names::Rename { from: name, to }, vec![], || fs::rename(path, new));
        }
        let remove = || if node == Node::Directory { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        self.names(Names::Remove(name), vec![], remove);
    }

    /// A few steps with one log.
    fn log(&mut self, open: &mut Option<(File, Object, Instant)>) {
        let (file, object, opened) = match open.take() {
            Some(open) => open,
            None => {
                let name = format!("log{}", self.diary.objects.len());
                let (file, object) = self.open_new(&name);
                self.mark();
                if !self.is_calm() {
                    self.sync(&file, object);
                }
                (file, object, Instant::now())
            }
        };
        let size = self.diary.objects[object].size();
        let tag = self.new_tag();
        match self.random.below(10) {
            0..6 => {
                let len = self.random.below(6000) + 1;
                self.write(&file, object, size, len, tag);
            }
            6 => {
                let (offset, len) = (self.random.below(size + 1), self.random.below(5000));
                self.write(&file, object, offset, len, tag);
            }
            _ if self.is_calm() => {}
            _ => self.sync(&file, object),
        }
        // What is open for longer is forced unasked, and then may be there in any part.
        if size > 400_000 || opened.elapsed() > Duration::from_secs(15) {
            self.close(file, object);
        } else {
            *open = Some((file, object, opened));
        }
    }

    /// Makes a file, removes it, and makes it again with the same bytes some seconds later.
    fn reuse(&mut self, later: &mut Vec<(Instant, String, Tag)>) {
        let due = later.iter().position(|(when, ..)| *when <= Instant::now());
        let wait = |random: &mut Random| Instant::now() + Duration::from_millis(random.below(14_000) + 500);
        match due {
            Some(i) => {
                let (_, name, tag) = later.swap_remove(i);
                let path = self.path(&name);
                if self.diary.tree.contains_key(&name) {
                    self.names(Names::Remove(name.clone()), vec![], || fs::remove_file(path));
                } else {
                    self.make_named(&name, (shared_size(tag), tag), false);
                }
                later.push((wait(&mut self.random), name, tag));
            }
            None if later.len() < 40 => {
                // Of this worker alone, so that the blob has no other reference.
                let tag = self.new_tag();
                let name = format!("reused{tag:x}");
                self.make_named(&name, (shared_size(tag), tag), false);
                later.push((wait(&mut self.random), name, tag));
            }
            None => {}
        }
    }
}

/// Files of one tag have one size, so that they are of one content.
fn shared_size(tag: Tag) -> u64 {
    [1, 300, 4096, 40_000, 70_000, 131_072][(tag % 6) as usize]
}
