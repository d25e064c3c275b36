//! The requests about the cache: filling it, emptying it, how large it should be.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender};
use parking_lot::Mutex;

use super::report::{Dropped, Trouble, Warmed};
use super::service::{NEWS_PERIOD, Service, in_index, in_store};
use super::{Answer, Cause, Failure, Progress, Target};
use crate::change::{Ino, Inode, Kind};
use crate::checksum::Checksum;
use crate::filestore::{self, CacheFs};
use crate::text::{chain, shown};

/// Files that are fetched at a time.
const AT_A_TIME: usize = 8;
/// Files found that wait to be fetched.
const WAITING_MAX: usize = 1000;
/// Entries of a directory that are looked at together.
const PAGE: usize = 1000;
/// How long a found file waits for its turn before somebody looks whether it is still wanted.
const SEND_LONGEST: Duration = Duration::from_millis(200);
/// Failures that are told one by one.
const TOLD_MAX: usize = 100;

/// A file that is to be warmed or dropped.
struct Content {
    path: Vec<u8>,
    sum: Checksum,
    size: u64,
}

/// What all threads of a warming count.
#[derive(Default)]
struct Count {
    fetched: AtomicU64,
    bytes: AtomicU64,
    there: AtomicU64,
    passed_over: AtomicU64,
    failed: Mutex<Vec<Trouble>>,
}

impl Service {
    fn cache(&self) -> Result<&CacheFs, Failure> {
        self.vfs.store().cache().ok_or_else(|| {
            let text =
                "the chain of this depot has no cache: one with \"cache-fs\" has, see the key \"template\"";
            Failure::new(Cause::Failed, text)
        })
    }

    /// Fetches all files at and below some paths into the cache.
    pub(super) fn warm(&self, targets: &[Target], progress: Progress<'_>) -> Result<Answer, Failure> {
        let cache = self.cache()?;
        let roots = targets.iter().map(|target| self.inode_at(target)).collect::<Result<Vec<_>, _>>()?;
        let (count, listening, done) = (Count::default(), AtomicBool::new(true), AtomicBool::new(false));
        let go_on = || listening.load(SeqCst);
        let (give, take) = crossbeam_channel::bounded(WAITING_MAX);
        let walked = std::thread::scope(|scope| {
            let walk = scope.spawn(move || {
                let give = give;
                roots.into_iter().try_for_each(|(path, inode)| {
                    self.each_file(path, &inode, &mut |file| send(&give, file, &go_on))
                })
            });
            let (count, listening, done) = (&count, &listening, &done);
            let workers: Vec<_> =
                (0..AT_A_TIME).map(|_| scope.spawn(|| warm_all(cache, &take, count, &go_on))).collect();
            scope.spawn(move || {
                workers.into_iter().for_each(|worker| drop(worker.join()));
                done.store(true, SeqCst);
            });
            let mut next_news = Instant::now() + NEWS_PERIOD;
            while !done.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(2));
                if Instant::now() >= next_news {
                    listening.store(progress(&count.news()), SeqCst);
                    next_news = Instant::now() + NEWS_PERIOD;
                }
            }
            walk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        walked?;
        Answer::of(&count.into_report())
    }

    /// Takes files at and below some paths out of the cache, or without paths all that nobody has open.
    pub(super) fn drop_cached(&self, targets: &[Target]) -> Result<Answer, Failure> {
        let cache = self.cache()?;
        let mut blobs = 0;
        if targets.is_empty() {
            blobs = cache.drop_all();
        }
        for target in targets {
            let mut failure = None;
            let mut drop_one = |sum: &Checksum| match self.vfs.store().drop_cached(sum) {
                Ok(dropped) => blobs += u64::from(dropped),
                Err(error) => failure = Some(error),
            };
            match target {
                Target::Checksum(text) => match Checksum::parse(text) {
                    Some(sum) => drop_one(&sum),
                    None => return Err(Failure::new(Cause::Usage, format!("\"{text}\" is not a checksum"))),
                },
                path => {
                    let (path, inode) = self.inode_at(path)?;
                    self.each_file(path, &inode, &mut |file| {
                        drop_one(&file.sum);
                        true
                    })?;
                }
            }
            failure.map_or(Ok(()), |error| Err(in_store(error)))?;
        }
        Answer::of(&Dropped { blobs })
    }

    pub(super) fn cache_status(&self) -> Result<Answer, Failure> {
        Answer::of(&self.cache()?.cache_status())
    }

    pub(super) fn advise_on_cache(&self) -> Result<Answer, Failure> {
        Answer::of(&self.cache()?.advise().map_err(in_store)?)
    }

    /// What has this path, and the path from the root of the tree.
    fn inode_at(&self, target: &Target) -> Result<(Vec<u8>, Inode), Failure> {
        let path = self.path(target)?;
        let inode = self.vfs.index().resolve(&path).map_err(in_index)?;
        let absent = || Failure::new(Cause::NotFound, format!("there is no {} in the depot", shown(&path)));
        inode.ok_or_else(absent).map(|inode| (path, inode))
    }

    /// Shows every file with content at and below a path, until `each` says that it is enough.
    fn each_file(
        &self,
        path: Vec<u8>,
        inode: &Inode,
        each: &mut dyn FnMut(Content) -> bool,
    ) -> Result<(), Failure> {
        let content = |path: Vec<u8>, inode: &Inode| {
            let sum = inode.checksum.filter(|_| inode.kind == Kind::File)?;
            Some(Content { path, sum, size: inode.size })
        };
        if inode.kind != Kind::Directory {
            content(path, inode).map(each);
            return Ok(());
        }
        let mut open: Vec<(Vec<u8>, Ino)> = vec![(path, inode.ino)];
        while let Some((path, dir)) = open.pop() {
            let mut after = 0;
            loop {
                let page = self.vfs.index().list(dir, after, PAGE).map_err(in_index)?;
                let Some(last) = page.last() else { break };
                after = last.cookie;
                for entry in page {
                    let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    let below = [&path, separator, &entry.name].concat();
                    if entry.inode.kind == Kind::Directory {
                        open.push((below, entry.inode.ino));
                    } else if let Some(file) = content(below, &entry.inode)
                        && !each(file)
                    {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Hands a file to whoever fetches, as long as somebody wants that.
fn send(give: &Sender<Content>, mut file: Content, go_on: &dyn Fn() -> bool) -> bool {
    while go_on() {
        match give.send_timeout(file, SEND_LONGEST) {
            Ok(()) => return true,
            Err(SendTimeoutError::Timeout(back)) => file = back,
            Err(SendTimeoutError::Disconnected(_)) => return false,
        }
    }
    false
}

fn warm_all(cache: &CacheFs, files: &Receiver<Content>, count: &Count, go_on: &dyn Fn() -> bool) {
    for file in files {
        if !go_on() {
            return;
        }
        match cache.warm(&file.sum, file.size, go_on) {
            Ok(filestore::Warmed::Fetched) => {
                count.fetched.fetch_add(1, SeqCst);
                count.bytes.fetch_add(file.size, SeqCst);
            }
            Ok(filestore::Warmed::There) => drop(count.there.fetch_add(1, SeqCst)),
            Ok(filestore::Warmed::NotCached) => drop(count.passed_over.fetch_add(1, SeqCst)),
            Err(error) => count.failed.lock().push(Trouble { what: shown(&file.path), why: chain(&error) }),
        }
    }
}

impl Count {
    fn news(&self) -> String {
        let (fetched, there) = (self.fetched.load(SeqCst), self.there.load(SeqCst));
        format!("{fetched} files with {} bytes fetched, {there} were there", self.bytes.load(SeqCst))
    }

    fn into_report(self) -> Warmed {
        let mut failed = self.failed.into_inner();
        if failed.len() > TOLD_MAX {
            let more = failed.len() - TOLD_MAX;
            failed.truncate(TOLD_MAX);
            failed.push(Trouble { what: format!("{more} more"), why: "not told one by one".into() });
        }
        Warmed {
            fetched: self.fetched.into_inner(),
            bytes: self.bytes.into_inner(),
            there: self.there.into_inner(),
            passed_over: self.passed_over.into_inner(),
            failed,
        }
    }
}
