//! What the daemon does for each request.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::Value;

use super::report::{
    Aside, Checksums, Flushed, Located, Place, Rechained, Reloaded, Repository, Trouble, Verified,
};
use super::{Answer, Bytes, Cause, Drain, Failure, Progress, Request, Target};
use crate::change::{BlobRow, Change, Ino, Kind};
use crate::checksum::{Checksum, hex};
use crate::config::{Config, keys};
use crate::filestore::{self, Filestore, Found, Verdict};
use crate::jobs::balance::Balancer;
use crate::text::{chain, shown};
use crate::vfs::{self, Vfs};
use crate::{index, metrics};

/// Paths that `blob locate` names at most.
const PATHS_MAX: usize = 1000;
/// How long a flush that somebody waits for may take at most.
const FLUSH_LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How often somebody who waits hears news.
pub(super) const NEWS_PERIOD: Duration = Duration::from_secs(1);

/// Changes the log level, or says why it cannot be.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Copies blobs to another chain as long as its news are heard.
pub type Rechain = Box<dyn Fn(Progress<'_>) -> Result<Rechained, Failure> + Send + Sync>;

/// What requests are about.
pub struct Service {
    /// The depot.
    pub config: Config,
    /// Its tree.
    pub vfs: Arc<Vfs>,
    /// How it is mounted.
    pub mount: super::report::MountStatus,
    /// When the daemon was started.
    pub started: Instant,
    /// Logs at this level from now on.
    pub set_log_level: SetLogLevel,
    /// Copies the blobs to the chain that the depot is to have.
    pub rechain: Rechain,
    /// Whether a flush that nobody waits for is under way.
    pub flushing: Arc<AtomicBool>,
    /// When somebody who is about to unmount has waited for the queue, or did not want to.
    pub drained: Arc<Mutex<Option<Instant>>>,
    /// Puts blobs where they should be.
    pub balancer: Arc<Balancer>,
    /// Reads depot.toml again.
    pub reload: Box<dyn Fn() -> Reloaded + Send + Sync>,
    /// What the last reading did.
    pub reloaded: Box<dyn Fn() -> Option<Reloaded> + Send + Sync>,
}

type Done = Result<Answer, Failure>;

impl Service {
    /// Does what is asked.
    pub fn answer(&self, request: Request, progress: Progress<'_>) -> Done {
        match request {
            Request::Status => Answer::of(&self.status()),
            Request::Metrics => self.metrics(),
            Request::Flush { wait: true } => self.flush_and_wait(progress),
            Request::Flush { wait: false } => self.flush_meanwhile(),
            Request::Drain { how } => self.drain(how, progress),
            Request::Balance => self.balance(progress),
            Request::Reload => Answer::of(&(self.reload)()),
            Request::RepoList => self.list_repositories(),
            Request::RepoShow { repository } => self.show_repository(&repository),
            Request::RepoSet { repository, settings } => self.set_repository(&repository, settings),
            Request::BlobLocate { target } => self.locate(&target),
            Request::BlobVerify { target } => self.verify(&target),
            Request::BlobCat { target } => self.cat(&target),
            Request::BlobChecksum { target } => self.checksums(&target),
            Request::BlobRescue { target: None } => self.rescuable(),
            Request::BlobRescue { target: Some(target) } => self.rescue(&target),
            Request::Rechain => Answer::of(&(self.rechain)(progress)?),
            Request::Warm { targets } => self.warm(&targets, progress),
            Request::CacheStatus => self.cache_status(),
            Request::CacheDrop { targets } => self.drop_cached(&targets),
            Request::CacheAdvise => self.advise_on_cache(),
            Request::LogLevel { level } => self.log_level(&level),
        }
    }

    /// The gauges that status knows, then all metrics.
    fn metrics(&self) -> Done {
        self.status().set_gauges();
        Ok(Answer::Value(Value::String(metrics::render())))
    }

    fn log_level(&self, level: &str) -> Done {
        let refuse = |why| Failure::new(Cause::Usage, format!("the log level cannot be changed: {why}"));
        (self.set_log_level)(level).map_err(refuse)?;
        tracing::info!(level, "log level changed");
        Ok(Answer::done())
    }

    /// Flushes as long as somebody waits for it: what is left then is for the jobs.
    fn flush_and_wait(&self, progress: Progress<'_>) -> Done {
        let failed =
            |error: vfs::Error| Failure::because("not everything could be sealed and forced", &error);
        let (begun, listening) = (Instant::now(), AtomicBool::new(true));
        let go_on = || listening.load(SeqCst) && begun.elapsed() < FLUSH_LONGEST;
        let left = std::thread::scope(|scope| {
            let flush = scope.spawn(|| self.vfs.flush_all(&go_on));
            let mut next_news = begun + NEWS_PERIOD;
            while !flush.is_finished() {
                std::thread::sleep(Duration::from_millis(2));
                if Instant::now() >= next_news {
                    let status = self.vfs.status();
                    let news = format!("{} files with {} bytes to seal", status.closed, status.closed_bytes);
                    listening.store(progress(&news), SeqCst);
                    next_news = Instant::now() + NEWS_PERIOD;
                }
            }
            match flush.join() {
                Ok(left) => left.map_err(failed),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        let status = self.vfs.status();
        Answer::of(&Flushed { left, open: status.dirty, failed: troubles(&status) })
    }

    /// Waits for the queue as long as it is told to and somebody listens.
    fn drain(&self, how: Drain, progress: Progress<'_>) -> Done {
        let store = self.vfs.store();
        let longest = match how {
            Drain::UntilEmpty => FLUSH_LONGEST,
            Drain::BeforeUnmount => store.drain_timeout(),
            Drain::Not => Duration::ZERO,
        };
        let begun = Instant::now();
        let mut next_news = begun + NEWS_PERIOD;
        let left = store.drain(&mut |status| {
            let mut go_on = begun.elapsed() < longest;
            if go_on && Instant::now() >= next_news {
                let (blobs, bytes) = (status.entries, status.bytes);
                let error = status.last_error.as_ref().map_or(String::new(), |why| format!(": {why}"));
                let news = format!(
                    "{blobs} blobs with {bytes} bytes to upload, {} removals{error}",
                    status.removals
                );
                go_on = progress(&news);
                next_news = Instant::now() + NEWS_PERIOD;
            }
            go_on
        });
        if how != Drain::UntilEmpty {
            *self.drained.lock() = Some(Instant::now());
        }
        Answer::of(&left.map(super::status::queue))
    }

    /// Balances as long as somebody waits for it.
    fn balance(&self, progress: Progress<'_>) -> Done {
        if self.vfs.options().read_only {
            return Err(Failure::new(Cause::Failed, "blobs cannot be moved: the depot is mounted read-only"));
        }
        let listening = AtomicBool::new(true);
        let report = std::thread::scope(|scope| {
            let run = scope.spawn(|| self.balancer.run(&|| listening.load(SeqCst)));
            let mut next_news = Instant::now() + NEWS_PERIOD;
            while !run.is_finished() {
                std::thread::sleep(Duration::from_millis(2));
                if Instant::now() >= next_news {
                    listening.store(progress(&self.balancer.now().to_string()), SeqCst);
                    next_news = Instant::now() + NEWS_PERIOD;
                }
            }
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        Answer::of(&report.map_err(|error| Failure::because("the blobs could not be balanced", &error))?)
    }

    fn flush_meanwhile(&self) -> Done {
        if self.flushing.swap(true, SeqCst) {
            return Ok(Answer::done());
        }
        let (vfs, flushing) = (Arc::clone(&self.vfs), Arc::clone(&self.flushing));
        let flush = move || {
            let begun = Instant::now();
            if let Err(error) = vfs.flush_all(&|| begun.elapsed() < FLUSH_LONGEST) {
                tracing::warn!("flush: not everything could be sealed and forced: {}", chain(&error));
            }
            flushing.store(false, SeqCst);
        };
        if let Err(error) = std::thread::Builder::new().name("flush".into()).spawn(flush) {
            self.flushing.store(false, SeqCst);
            return Err(Failure::because("the flush cannot be started", &error));
        }
        Ok(Answer::done())
    }

    fn list_repositories(&self) -> Done {
        let index = self.vfs.index();
        let mut found = Vec::new();
        for (ino, name) in index.repositories().map_err(in_index)? {
            found.push(self.repository(ino, name)?);
        }
        found.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        Answer::of(&found)
    }

    fn repository(&self, ino: Ino, name: Vec<u8>) -> Result<Repository, Failure> {
        let settings = self.vfs.index().settings(ino).map_err(in_index)?;
        Ok(Repository { name: Bytes::from(&name[..]), settings: settings.into_iter().collect() })
    }

    fn show_repository(&self, name: &Bytes) -> Done {
        let ino = self.find_repository(name)?;
        Answer::of(&self.repository(ino, name.as_bytes().to_vec())?)
    }

    fn find_repository(&self, name: &Bytes) -> Result<Ino, Failure> {
        let all = self.vfs.index().repositories().map_err(in_index)?;
        let found = all.into_iter().find(|(_, known)| known == name.as_bytes());
        found.map(|(ino, _)| ino).ok_or_else(|| {
            let text =
                format!("there is no repository \"{name}\": `depotfs repo list` names those there are");
            Failure::new(Cause::NotFound, text)
        })
    }

    fn set_repository(&self, name: &Bytes, settings: Vec<(String, Option<String>)>) -> Done {
        let repository = self.find_repository(name)?;
        let refuse = |why: String| Failure::new(Cause::Usage, format!("repository \"{name}\": {why}"));
        if self.vfs.options().read_only {
            return Err(Failure::new(
                Cause::Failed,
                "settings cannot be changed: the depot is mounted read-only",
            ));
        }
        let mut changes = Vec::new();
        for (key, value) in settings {
            let known = keys::find(keys::REPOSITORY, &key).map_err(refuse)?;
            if let Some(value) = &value {
                known.kind.check(value).map_err(|why| refuse(format!("{key}: {why}")))?;
                self.config.keeps(&key, value).map_err(|why| refuse(format!("{key}: {why}")))?;
            }
            changes.push(Change::Setting { repository, key, value });
        }
        let index = self.vfs.index();
        index.commit(&changes).and_then(|_| index.sync()).map_err(in_index)?;
        self.vfs.forget_settings();
        tracing::info!(repository = %name, "settings changed");
        Answer::of(&self.repository(repository, name.as_bytes().to_vec())?)
    }

    fn locate(&self, target: &Target) -> Done {
        let row = self.blob(target)?;
        let sum = row.checksum;
        let found = self.vfs.store().locate(&sum).map_err(in_store)?;
        let place = |found: Found| Place {
            provider: found.kind.into(),
            path: Bytes::from(found.path.into_os_string()),
        };
        let paths = self.vfs.index().names(&sum, PATHS_MAX).map_err(in_index)?;
        Answer::of(&Located {
            sha1: sum.to_string(),
            size: row.size,
            places: found.into_iter().map(place).collect(),
            paths: paths.iter().map(|path| Bytes::from(&path[..])).collect(),
            references: row.refs,
        })
    }

    fn verify(&self, target: &Target) -> Done {
        let BlobRow { checksum: sum, size, blake3, .. } = self.blob(target)?;
        let is_known = || self.vfs.index().blob(&sum).is_ok_and(|row| row.is_some());
        let verdict = self.vfs.store().verify(&sum, size, blake3.as_ref(), &is_known);
        let wrong = match verdict.map_err(in_store)? {
            Verdict::Good { size: found, .. } if found == size => None,
            Verdict::Good { size: found, .. } => Some(format!("it has {found} bytes, the index says {size}")),
            Verdict::Altered { size: found } if found == size => Some("its bytes were altered".into()),
            Verdict::Altered { size: found } => Some(format!("it has {found} bytes instead of {size}")),
            Verdict::SomeAltered { bad, of } => {
                Some(format!("{bad} of its {of} copies were altered: they are made anew from another"))
            }
            Verdict::Healed(from) => Some(format!("its bytes were altered or missing: put back from {from}")),
            Verdict::Missing => Some("it is missing from the filestore".into()),
        };
        Answer::of(&Verified { sha1: sum.to_string(), size, wrong })
    }

    fn cat(&self, target: &Target) -> Done {
        let BlobRow { checksum: sum, size, .. } = self.blob(target)?;
        let vfs = Arc::clone(&self.vfs);
        let mut blob = vfs.open_blob(&sum, size).map_err(|error| in_tree(&blob_name(&sum), &error))?;
        let read_at = move |buffer: &mut [u8], at| {
            vfs.read_blob(&mut blob, at, buffer).map_err(|error| io::Error::other(chain(&error)))
        };
        Ok(Answer::Bytes { length: size, from: Box::new(FromStart { read_at, offset: 0 }) })
    }

    fn checksums(&self, target: &Target) -> Done {
        let row = self.blob(target)?;
        let name = blob_name(&row.checksum);
        let row = self.vfs.checksums(row).map_err(|error| in_tree(&name, &error))?;
        let text = |bytes: Option<&[u8]>| bytes.map(hex).unwrap_or_default();
        Answer::of(&Checksums {
            sha1: row.checksum.to_string(),
            sha256: text(row.sha256.as_ref().map(|b| &b[..])),
            md5: text(row.md5.as_ref().map(|b| &b[..])),
            blake3: text(row.blake3.as_ref().map(|b| &b[..])),
            size: row.size,
        })
    }

    /// Everything that `rescue` gives out: what was set aside, and what cannot be sealed.
    fn rescuable(&self) -> Done {
        let mut all = set_aside(self.vfs.store()).map_err(in_store)?;
        for file in self.vfs.status().unsealable {
            let row = self.vfs.index().staged_of(file.ino).map_err(in_index)?;
            let Some(row) = row.filter(|row| row.failed.is_some()) else { continue };
            // One that is lost is still what somebody looks for.
            let stat = self.vfs.store().stat_staging(row.file).ok();
            let written = stat.map_or(row.mtime, |stat| stat.mtime);
            let written = UNIX_EPOCH + Duration::from_nanos(written.try_into().unwrap_or(0));
            all.push(Aside {
                name: file.staging,
                path: Some(Bytes::Text(file.path)),
                bytes: stat.map_or(0, |stat| stat.size),
                age_s: age_s(written),
                why: file.why,
            });
        }
        Answer::of(&all)
    }

    fn rescue(&self, target: &Target) -> Done {
        let Target::Aside(name) = target else {
            let path = self.path(target)?;
            return self.rescue_unsealable(self.file(&path)?, &shown(&path));
        };
        let aside = self.vfs.store().aside().map_err(in_store)?;
        if let Some(file) = aside.into_iter().find(|file| file.name.to_string() == *name) {
            let opened = std::fs::File::open(&file.path);
            let what = format!("the set-aside bytes {} cannot be read", file.path.display());
            let from = opened.map_err(|error| Failure::because(what, &error))?;
            return Ok(Answer::Bytes { length: file.size, from: Box::new(from) });
        }
        let unsealable = self.vfs.status().unsealable;
        match unsealable.iter().find(|file| file.staging == *name) {
            Some(file) => self.rescue_unsealable(file.ino, &file.path),
            None => Err(Failure::new(Cause::NotFound, format!("nothing called {name} was set aside"))),
        }
    }

    fn rescue_unsealable(&self, ino: Ino, shown: &str) -> Done {
        let row = self.vfs.index().staged_of(ino).map_err(in_index)?;
        let Some(row) = row.filter(|row| row.failed.is_some()) else {
            let text = format!("{shown}: nothing is wrong with it, read it as usual");
            return Err(Failure::new(Cause::NotFound, text));
        };
        let broken = |error: io::Error| Failure::because("its staging file cannot be read", &error);
        let file = self.vfs.store().open_staging(row.file).map_err(in_store)?;
        let length = file.stat().map_err(broken)?.size;
        Ok(Answer::Bytes {
            length,
            from: Box::new(FromStart { read_at: move |b: &mut [u8], at| file.read_at(b, at), offset: 0 }),
        })
    }

    /// The path from the root of the tree that a target names.
    pub(super) fn path(&self, target: &Target) -> Result<Vec<u8>, Failure> {
        match target {
            Target::Tree(path) => Ok(path.as_bytes().to_vec()),
            Target::Mount(path) if self.mount.subdir.is_empty() => Ok(path.as_bytes().to_vec()),
            Target::Mount(path) => Ok([self.mount.subdir.as_bytes(), b"/", path.as_bytes()].concat()),
            Target::Checksum(name) | Target::Aside(name) => {
                Err(Failure::new(Cause::Usage, format!("\"{name}\" is not a path")))
            }
        }
    }

    /// The blob that a target names or shows; a file that waits to be sealed is sealed first.
    fn blob(&self, target: &Target) -> Result<BlobRow, Failure> {
        if let Target::Checksum(text) = target {
            let refuse =
                || Failure::new(Cause::Usage, format!("\"{text}\" is not a SHA-1 checksum (40 hex digits)"));
            return self.known_blob(&Checksum::parse(text).ok_or_else(refuse)?);
        }
        let path = self.path(target)?;
        let shown = shown(&path);
        let row = self.vfs.sealed_blob(self.file(&path)?).map_err(|error| in_tree(&shown, &error))?;
        row.ok_or_else(|| {
            let text = format!("{shown}: it is being written, so it has no checksum yet");
            Failure::new(Cause::Busy, text)
        })
    }

    fn known_blob(&self, sum: &Checksum) -> Result<BlobRow, Failure> {
        let row = self.vfs.index().blob(sum).map_err(in_index)?;
        row.ok_or_else(|| {
            Failure::new(Cause::NotFound, format!("no file has content with the checksum {sum}"))
        })
    }

    /// Inode of the regular file at a path from the root of the tree.
    fn file(&self, path: &[u8]) -> Result<Ino, Failure> {
        let inode = self.vfs.index().resolve(path).map_err(in_index)?;
        let absent = || Failure::new(Cause::NotFound, format!("there is no {} in the depot", shown(path)));
        let inode = inode.ok_or_else(absent)?;
        if inode.kind != Kind::File {
            return Err(Failure::new(Cause::Failed, format!("{} is not a regular file", shown(path))));
        }
        Ok(inode.ino)
    }
}

/// Bytes that were set aside, for people.
pub(super) fn set_aside(store: &Filestore) -> filestore::Result<Vec<Aside>> {
    let for_people = |file: filestore::Aside| Aside {
        name: file.name.to_string(),
        path: None,
        bytes: file.size,
        age_s: age_s(file.since),
        why: file.why,
    };
    Ok(store.aside()?.into_iter().map(for_people).collect())
}

fn age_s(since: SystemTime) -> u64 {
    SystemTime::now().duration_since(since).unwrap_or_default().as_secs()
}

/// Files whose seal failed, for people.
pub(super) fn troubles(status: &vfs::status::Status) -> Vec<Trouble> {
    let trouble = |file: &vfs::status::Unsealable| Trouble { what: file.path.clone(), why: file.why.clone() };
    status.unsealable.iter().map(trouble).collect()
}

pub(super) fn in_index(error: index::Error) -> Failure {
    Failure::because("the index could not answer", &error)
}

pub(super) fn in_store(error: filestore::Error) -> Failure {
    Failure::because("the filestore could not answer", &error)
}

fn in_tree(what: &str, error: &vfs::Error) -> Failure {
    Failure::because(format!("{what} could not be used"), error)
}

fn blob_name(sum: &Checksum) -> String {
    format!("blob {sum}")
}

/// Reads from the beginning what can be read at an offset.
struct FromStart<R> {
    read_at: R,
    offset: u64,
}

impl<R: FnMut(&mut [u8], u64) -> io::Result<usize>> Read for FromStart<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = (self.read_at)(buffer, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}
