//! Reading ahead from file to file.
//!
//! The kernel reads ahead within a file. Small files that are read one after the other, by `tar` or a compiler, wait for the
//! disk each on its own: for the directory, the inode and the bytes of its blob. So when files of a directory are read in the
//! order of a listing or of their names, a thread opens the next ones and asks for their first bytes, and whoever comes for
//! them finds all that in memory. A wrong guess costs time of the disk, and a descriptor for some seconds.
//!
//! Only for disks of this host, without a cache before them: what comes from far away costs money and room.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use crate::change::{Cookie, Entry, Ino, Kind};
use crate::filestore::{Blob, Reach};
use crate::metrics;
use crate::sys::content as sys;
use crate::vfs::node::Source;
use crate::vfs::{GoOn, Result, Vfs};
use crate::worker::Signal;

/// A file is the next one when it is among so many of its order: others may be of a sort that this reader leaves out.
const NEAR: usize = 8;
/// Files made ready at first, and at most at a time.
const WINDOW_MIN: usize = 8;
const WINDOW_MAX: usize = 32;
/// Bytes of each that are asked for.
const BYTES: u64 = 128 * 1024;
/// Files made ready, and directories, that are remembered.
const READY_MAX: usize = 1024;
const COURSES_MAX: usize = 64;
/// How long they are: their descriptors are closed then, and the kernel may have other things in its memory.
const READY_FOR: Duration = Duration::from_secs(5);
/// Files that the thread has not yet looked at; more than that and it is too late anyhow.
const MISSED_MAX: usize = 64;
/// After so many files in a directory without an order it is not looked at again for 2, then 6, 14 and so on, in the end 254.
const FAILURES_MAX: u32 = 8;
/// After so many files in a row that were not ready it is not known any more in which order somebody reads.
const LATELY: u32 = 4;
/// After so many of them, in whatever directories, only two of 4 are looked at, then of 16, in the end of 64.
const UNLUCKY: u32 = 64;

/// The order in which the files of a directory are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// That of a listing, in which `cp`, `find` and `tar` go.
    Listing,
    /// That of the names, in which shells, `make`, `git` and `rsync` go.
    Names,
}

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    dir: Ino,
    cookie: Cookie,
    name: Vec<u8>,
}

/// A file that is ready.
#[derive(Debug)]
struct Ready {
    place: Place,
    since: Instant,
    /// Somebody has opened it: a read of it says nothing new.
    used: bool,
}

impl Ready {
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < READY_FOR
    }
}

/// How somebody goes through a directory.
#[derive(Debug)]
struct Course {
    /// The file read last, as far as is known.
    last: Place,
    /// The last one made ready; `None`: nobody knows what comes next.
    next: Option<Place>,
    /// The order, once there is one.
    order: Option<Order>,
    /// Files made ready the last time.
    window: usize,
    /// Files made ready and not read.
    unread: usize,
    /// How often in a row nothing was known, or what was known was wrong; and how many files are let pass for that.
    failures: u32,
    skip: u32,
    /// When something was last read there, or made ready.
    since: Instant,
}

impl Course {
    fn new(last: Place) -> Course {
        Course {
            last,
            next: None,
            order: None,
            window: 0,
            unread: 0,
            failures: 0,
            skip: 0,
            since: Instant::now(),
        }
    }

    fn is_fresh(&self) -> bool {
        self.since.elapsed() < READY_FOR
    }

    /// Who reads without any order is soon left alone.
    fn fail(&mut self) {
        self.failures = (self.failures + 1).min(FAILURES_MAX);
        self.skip = (1 << self.failures) - 2;
        (self.next, self.order, self.window, self.unread) = (None, None, 0, 0);
    }
}

/// What the thread is to do.
#[derive(Debug)]
enum Task {
    /// This file was read and had not been made ready.
    Missed(Ino),
    /// Half of what was made ready in this directory has been read.
    More(Ino),
}

/// What is known of those who read.
#[derive(Debug)]
pub struct Ahead {
    state: Mutex<State>,
    thread: OnceLock<Arc<Signal>>,
}

#[derive(Debug)]
struct State {
    missed: VecDeque<Ino>,
    more: VecDeque<Ino>,
    ready: LruCache<Ino, Ready>,
    courses: LruCache<Ino, Course>,
    /// Files in a row that were read and not ready.
    unlucky: u32,
    /// The order in which somebody reads just now.
    lately: Option<Order>,
}

impl Default for Ahead {
    fn default() -> Ahead {
        let bound = |n| NonZeroUsize::new(n).expect("not zero");
        let state = State {
            missed: VecDeque::new(),
            more: VecDeque::new(),
            ready: LruCache::new(bound(READY_MAX)),
            courses: LruCache::new(bound(COURSES_MAX)),
            unlucky: 0,
            lately: None,
        };
        Ahead { state: Mutex::new(state), thread: OnceLock::new() }
    }
}

impl Ahead {
    /// This wakes the thread that does it.
    pub fn wake_with(&self, thread: Arc<Signal>) {
        // There is one thread of a mount.
        let _ = self.thread.set(thread);
    }

    /// The first bytes of a blob in a local file were asked for, as the kernel does not have them.
    pub fn was_read(&self, ino: Ino) {
        let wanted = self.state.lock().was_read(ino);
        self.wake_if(wanted);
    }

    /// A file was opened; perhaps the kernel has its bytes.
    pub fn was_opened(&self, ino: Ino) {
        let wanted = self.state.lock().was_opened(ino);
        self.wake_if(wanted);
    }

    /// Files that are ready and were not read.
    #[cfg(test)]
    pub(super) fn ready(&self) -> std::collections::BTreeSet<Ino> {
        self.state.lock().ready.iter().filter(|(_, ready)| !ready.used).map(|(ino, _)| *ino).collect()
    }

    fn wake_if(&self, wanted: bool) {
        if let (true, Some(thread)) = (wanted, self.thread.get()) {
            thread.wake();
        }
    }
}

impl State {
    /// Whether the thread has something to do now.
    fn was_read(&mut self, ino: Ino) -> bool {
        if self.is_ready(ino) {
            let wanted = self.was_opened(ino);
            self.ready.pop(&ino);
            return wanted;
        }
        self.unlucky = self.unlucky.saturating_add(1);
        self.lately = self.lately.filter(|_| self.unlucky <= LATELY);
        let one_of = 1 << (2 * (self.unlucky / UNLUCKY).min(3));
        if self.unlucky % one_of < 2 && self.missed.len() < MISSED_MAX {
            self.missed.push_back(ino);
        }
        // One alone is not the second of an order.
        self.missed.len() > 1 || self.lately.is_some()
    }

    /// The same for one that is opened.
    fn was_opened(&mut self, ino: Ino) -> bool {
        let ready = self.ready.peek_mut(&ino).filter(|ready| !ready.used && ready.is_fresh());
        let Some(ready) = ready else { return false };
        ready.used = true;
        let place = ready.place.clone();
        metrics::READ_AHEAD_USED.count();
        self.unlucky = 0;
        self.goes_on(place)
    }

    /// Somebody has come to this place in the order that was expected. Whether the thread has something to do now.
    fn goes_on(&mut self, place: Place) -> bool {
        let dir = place.dir;
        let Some(course) = self.courses.get_mut(&dir) else { return false };
        (course.failures, course.since) = (0, Instant::now());
        course.last = place;
        self.lately = course.order.or(self.lately);
        course.unread = course.unread.saturating_sub(1);
        let more = course.next.is_some() && course.unread <= course.window / 2 && !self.more.contains(&dir);
        if more {
            self.more.push_back(dir);
        }
        more
    }

    fn is_ready(&self, ino: Ino) -> bool {
        self.ready.peek(&ino).is_some_and(Ready::is_fresh)
    }

    fn next_task(&mut self) -> Option<Task> {
        let more = self.more.pop_front().map(Task::More);
        more.or_else(|| self.missed.pop_front().map(Task::Missed))
    }
}

impl Vfs {
    /// Makes ready what is likely to be read next, as far as that is known now.
    pub fn read_ahead(&self, go_on: GoOn<'_>) -> Result<()> {
        while go_on() {
            let Some(task) = self.ahead.state.lock().next_task() else { break };
            if !self.reads_ahead() {
                continue;
            }
            match task {
                Task::Missed(ino) => self.look_for_order(ino, go_on)?,
                Task::More(dir) => self.go_further(dir, go_on)?,
            }
        }
        Ok(())
    }

    /// Whether the chain is one to read ahead from.
    pub(super) fn reads_ahead(&self) -> bool {
        self.store.cache().is_none() && self.store.reach() == Reach::Here
    }

    fn place(&self, ino: Ino) -> Result<Option<Place>> {
        let place = self.index.place(ino)?;
        Ok(place.map(|(dir, cookie, name)| Place { dir, cookie, name }))
    }

    fn following(&self, place: &Place, order: Order, limit: usize) -> Result<Vec<Entry>> {
        Ok(match order {
            Order::Listing => self.index.list(place.dir, place.cookie, limit)?,
            Order::Names => self.index.list_by_name(place.dir, &place.name, limit)?,
        })
    }

    /// A file was read that nobody expected: perhaps it tells in which order its directory is read.
    fn look_for_order(&self, ino: Ino, go_on: GoOn<'_>) -> Result<()> {
        let Some(place) = self.place(ino)? else { return Ok(()) };
        let (last, lately) = {
            let mut state = self.ahead.state.lock();
            if state.is_ready(ino) {
                // The order was known before this one was looked at.
                state.ready.pop(&ino);
                state.goes_on(place);
                return Ok(());
            }
            let lately = state.lately;
            let course = state.courses.get_or_insert_mut(place.dir, || Course::new(place.clone()));
            if !course.is_fresh() {
                *course = Course::new(place.clone());
            }
            // The first one in the directory, or the same one again.
            if course.last == place && lately.is_none() {
                return Ok(());
            }
            course.since = Instant::now();
            let last = std::mem::replace(&mut course.last, place.clone());
            if course.unread > course.window / 2 {
                course.fail();
            }
            if course.skip > 0 {
                course.skip -= 1;
                return Ok(());
            }
            (last, lately)
        };
        for order in [Order::Listing, Order::Names] {
            if self.following(&last, order, NEAR)?.iter().any(|entry| entry.inode.ino == ino) {
                return self.make_ready(place, order, WINDOW_MIN, go_on);
            }
        }
        if let Some(order) = lately {
            return self.make_ready(place, order, WINDOW_MIN, go_on);
        }
        self.ahead.state.lock().courses.get_mut(&place.dir).into_iter().for_each(Course::fail);
        Ok(())
    }

    fn go_further(&self, dir: Ino, go_on: GoOn<'_>) -> Result<()> {
        let (from, order, window) = {
            let mut state = self.ahead.state.lock();
            let Some(course) = state.courses.get_mut(&dir) else { return Ok(()) };
            let (Some(from), Some(order)) = (course.next.clone(), course.order) else { return Ok(()) };
            (from, order, (course.window * 2).clamp(WINDOW_MIN, WINDOW_MAX))
        };
        self.make_ready(from, order, window, go_on)
    }

    /// Makes ready what follows a place, at the end of its directory the beginning of the next one.
    fn make_ready(&self, from: Place, order: Order, window: usize, go_on: GoOn<'_>) -> Result<()> {
        let here = from.dir;
        let entries = self.following(&from, order, window)?;
        let ends = entries.len() < window;
        self.open_ahead(from, order, entries, go_on)?;
        if !ends {
            return Ok(());
        }
        self.ahead.state.lock().courses.get_mut(&here).into_iter().for_each(|course| course.next = None);
        if here == self.options.subdir {
            return Ok(());
        }
        let Some(dir) = self.place(here)? else { return Ok(()) };
        let beside = self.following(&dir, order, NEAR)?;
        let Some(next) = beside.iter().find(|entry| entry.inode.kind == Kind::Directory) else {
            return Ok(());
        };
        let begin = Place { dir: next.inode.ino, cookie: 0, name: Vec::new() };
        // Somebody may be there already, or come from there.
        if self.ahead.state.lock().courses.peek(&begin.dir).is_some_and(Course::is_fresh) {
            return Ok(());
        }
        let entries = self.following(&begin, order, WINDOW_MIN)?;
        self.open_ahead(begin, order, entries, go_on)
    }

    /// Opens files and asks for their first bytes, but those that were read before their turn came.
    fn open_ahead(&self, from: Place, order: Order, entries: Vec<Entry>, go_on: GoOn<'_>) -> Result<()> {
        let mut files = Vec::new();
        {
            let mut state = self.ahead.state.lock();
            let State { ready, courses, .. } = &mut *state;
            let dir = from.dir;
            let since = Instant::now();
            let course = courses.get_or_insert_mut(dir, || Course::new(from.clone()));
            (course.next, course.order) = (Some(from), Some(order));
            for Entry { cookie, name, inode } in entries {
                let place = Place { dir, cookie, name };
                course.next = Some(place.clone());
                let Some(sum) = inode.checksum.filter(|_| inode.kind == Kind::File && inode.size > 0) else {
                    continue;
                };
                if ready.peek(&inode.ino).is_none_or(|known| !known.is_fresh()) {
                    ready.put(inode.ino, Ready { place, since, used: false });
                    files.push((inode.ino, sum, inode.size));
                }
            }
            metrics::READ_AHEAD.add(files.len() as u64);
            course.since = since;
            course.window = files.len();
            course.unread += files.len();
        }
        for (ino, sum, size) in files {
            // It may be too late already.
            let waited_for = self.ahead.state.lock().ready.peek(&ino).is_some_and(|ready| !ready.used);
            if !go_on() || !waited_for {
                continue;
            }
            // Whoever opens it is told what is wrong with it.
            if self.passthrough_serves(size) {
                self.store.open_blob(&sum, size).iter().for_each(will_need);
                continue;
            }
            let source = Source::Blob(sum);
            let reader = self.descriptors.reader_early(source, || self.open_source(source, size));
            reader.iter().filter_map(|reader| reader.blob()).for_each(will_need);
        }
        Ok(())
    }
}

/// Has the kernel read the beginning of a blob.
fn will_need(blob: &Blob) {
    if let Some(file) = blob.local() {
        // A hint: what is wrong with the disk is told to whoever reads.
        let _ = sys::will_need(file, 0, blob.size().min(BYTES));
    }
}
