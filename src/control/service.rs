//! What the daemon does for each request.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::report::{Aside, Checksums, Flushed, Located, Place, Repository, Trouble, Verified};
use super::{Answer, Bytes, Cause, Failure, Progress, Request, Target};
use crate::change::{Change, Ino, Kind};
use crate::checksum::{Checksum, hex};
use crate::config::{Config, keys};
use crate::filestore::Verdict;
use crate::vfs::{self, Vfs};
use crate::{index, metrics};

/// Paths that `blob locate` names at most.
const PATHS_MAX: usize = 1000;
/// How long a flush that somebody waits for may take at most.
const FLUSH_LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How often somebody who waits hears news.
const NEWS_PERIOD: Duration = Duration::from_secs(1);

/// Changes the log level, or says why it cannot be.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

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
    /// Makes the daemon flush, unmount and end; returns at once.
    pub stop: Box<dyn Fn() + Send + Sync>,
    /// Whether a flush that nobody waits for is under way.
    pub flushing: Arc<AtomicBool>,
}

type Done = Result<Answer, Failure>;

impl Service {
    /// Does what is asked.
    pub fn answer(&self, request: Request, progress: Progress<'_>) -> Done {
        match request {
            Request::Status => Answer::of(&self.status()?),
            Request::Metrics => self.metrics(),
            Request::Flush { wait: true } => self.flush_and_wait(progress),
            Request::Flush { wait: false } => self.flush_meanwhile(),
            Request::RepoList => self.list_repositories(),
            Request::RepoShow { repository } => self.show_repository(&repository),
            Request::RepoSet { repository, settings } => self.set_repository(&repository, settings),
            Request::BlobLocate { target } => self.locate(&target),
            Request::BlobVerify { target } => self.verify(&target),
            Request::BlobCat { target } => self.cat(&target),
            Request::BlobChecksum { target } => self.checksums(&target),
            Request::BlobRescue { target: None } => Answer::of(&self.rescuable()?),
            Request::BlobRescue { target: Some(target) } => self.rescue(&target),
            Request::LogLevel { level } => self.log_level(&level),
            Request::Stop => {
                (self.stop)();
                Ok(Answer::done())
            }
        }
    }

    /// The gauges that status knows, then all metrics.
    fn metrics(&self) -> Done {
        self.status()?.set_gauges();
        Ok(Answer::Value(Value::String(metrics::render())))
    }

    fn log_level(&self, level: &str) -> Done {
        let refuse = |why| Failure::new(Cause::Usage, format!("the log level cannot be changed: {why}"));
        (self.set_log_level)(level).map_err(refuse)?;
        tracing::info!(level, "log level changed");
        Ok(Answer::done())
    }

    fn flush_and_wait(&self, progress: Progress<'_>) -> Done {
        let failed =
            |error: vfs::Error| Failure::because("not everything could be sealed and forced", &error);
        let left = std::thread::scope(|scope| {
            let flush = scope.spawn(|| self.vfs.flush_all(Instant::now() + FLUSH_LONGEST));
            let mut next_news = Instant::now() + NEWS_PERIOD;
            while !flush.is_finished() {
                std::thread::sleep(Duration::from_millis(2));
                if Instant::now() >= next_news {
                    let status = self.vfs.status();
                    progress(&format!("{} files with {} bytes to seal", status.closed, status.closed_bytes));
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

    fn flush_meanwhile(&self) -> Done {
        if self.flushing.swap(true, SeqCst) {
            return Ok(Answer::done());
        }
        let (vfs, flushing) = (Arc::clone(&self.vfs), Arc::clone(&self.flushing));
        let flush = move || {
            if let Err(error) = vfs.flush_all(Instant::now() + FLUSH_LONGEST) {
                tracing::warn!("flush: not everything could be sealed and forced: {error}");
            }
            flushing.store(false, SeqCst);
        };
        let thread = std::thread::Builder::new().name("flush".into()).spawn(flush);
        thread.map_err(|error| Failure::because("the flush cannot be started", &error))?;
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
        let (sum, size) = self.blob(target)?;
        let store = self.vfs.store();
        let stored = store.stat_blob(&sum).map_err(in_store)?;
        let hex = sum.to_string();
        let path = self.config.file_system.dir.join(&hex[..2]).join(&hex);
        let place = Place { provider: "file-system".into(), path: Bytes::from(path.into_os_string()) };
        let index = self.vfs.index();
        let paths = index.names(&sum, PATHS_MAX).map_err(in_index)?;
        let references = index.blob(&sum).map_err(in_index)?.map_or(0, |row| row.refs);
        Answer::of(&Located {
            sha1: hex,
            size,
            places: stored.map(|_| place).into_iter().collect(),
            paths: paths.iter().map(|path| Bytes::from(&path[..])).collect(),
            references,
        })
    }

    fn verify(&self, target: &Target) -> Done {
        let (sum, size) = self.blob(target)?;
        let blake3 = self.vfs.index().blob(&sum).map_err(in_index)?.and_then(|row| row.blake3);
        let wrong = match self.vfs.store().verify(&sum, blake3.as_ref()).map_err(in_store)? {
            Verdict::Good { size: found, .. } if found == size => None,
            Verdict::Good { size: found, .. } => Some(format!("it has {found} bytes, the index says {size}")),
            Verdict::Altered { size: found } if found == size => Some("its bytes were altered".into()),
            Verdict::Altered { size: found } => Some(format!("it has {found} bytes instead of {size}")),
            Verdict::Missing => Some("it is missing from the filestore".into()),
        };
        Answer::of(&Verified { sha1: sum.to_string(), size, wrong })
    }

    fn cat(&self, target: &Target) -> Done {
        let (sum, size) = self.blob(target)?;
        let blob = self.vfs.store().open_blob(&sum, size).map_err(in_store)?;
        Ok(Answer::Bytes {
            length: size,
            from: Box::new(FromStart { read_at: move |b: &mut [u8], at| blob.read_at(b, at), offset: 0 }),
        })
    }

    fn checksums(&self, target: &Target) -> Done {
        let row = match target {
            Target::Checksum(_) => {
                let (sum, _) = self.blob(target)?;
                // The published digests are computed for files: any that shows the blob will do.
                let paths = self.vfs.index().names(&sum, 1).map_err(in_index)?;
                match paths.first() {
                    Some(path) => self.vfs.checksums(self.file(path)?.0).map_err(in_tree)?,
                    None => self.known_blob(&sum)?,
                }
            }
            path => self.vfs.checksums(self.file(&self.path(path)?)?.0).map_err(in_tree)?,
        };
        let text = |bytes: Option<&[u8]>| bytes.map(hex).unwrap_or_default();
        Answer::of(&Checksums {
            sha1: row.checksum.to_string(),
            sha256: text(row.sha256.as_ref().map(|b| &b[..])),
            md5: text(row.md5.as_ref().map(|b| &b[..])),
            blake3: text(row.blake3.as_ref().map(|b| &b[..])),
            size: row.size,
        })
    }

    /// Everything `rescue` can bring back: bytes set aside, and files whose seal failed.
    pub(super) fn rescuable(&self) -> Result<Vec<Aside>, Failure> {
        let now = SystemTime::now();
        let age = |since: SystemTime| now.duration_since(since).unwrap_or_default().as_secs();
        let mut found = Vec::new();
        for file in self.vfs.store().aside().map_err(in_store)? {
            let (name, bytes, age_s) = (file.name.to_string(), file.size, age(file.since));
            found.push(Aside { name, path: None, bytes, age_s, why: file.why });
        }
        Ok(found)
    }

    fn rescue(&self, target: &Target) -> Done {
        let Target::Aside(name) = target else { return self.rescue_path(&self.path(target)?) };
        let aside = self.vfs.store().aside().map_err(in_store)?;
        if let Some(file) = aside.into_iter().find(|file| file.name.to_string() == *name) {
            let opened = std::fs::File::open(&file.path);
            let what = format!("the set-aside bytes {} cannot be read", file.path.display());
            let from = opened.map_err(|error| Failure::because(what, &error))?;
            return Ok(Answer::Bytes { length: file.size, from: Box::new(from) });
        }
        let unsealable = self.vfs.status().unsealable;
        match unsealable.iter().find(|file| file.staging == *name) {
            Some(file) => self.rescue_path(file.path.as_bytes()),
            None => Err(Failure::new(Cause::NotFound, format!("nothing called {name} was set aside"))),
        }
    }

    fn rescue_path(&self, path: &[u8]) -> Done {
        let (ino, _) = self.file(path)?;
        let row = self.vfs.index().staged_of(ino).map_err(in_index)?;
        let Some(row) = row.filter(|row| row.failed.is_some()) else {
            let text =
                format!("{}: nothing is wrong with it, read it as usual", String::from_utf8_lossy(path));
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
    fn path(&self, target: &Target) -> Result<Vec<u8>, Failure> {
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
    fn blob(&self, target: &Target) -> Result<(Checksum, u64), Failure> {
        if let Target::Checksum(text) = target {
            let refuse =
                || Failure::new(Cause::Usage, format!("\"{text}\" is not a SHA-1 checksum (40 hex digits)"));
            let row = self.known_blob(&Checksum::parse(text).ok_or_else(refuse)?)?;
            return Ok((row.checksum, row.size));
        }
        let path = self.path(target)?;
        let (ino, _) = self.file(&path)?;
        self.vfs.seal_if_closed(ino).map_err(in_tree)?;
        let (_, content) = self.file(&path)?;
        let unsealed = self.vfs.index().staged_of(ino).map_err(in_index)?.is_some();
        content.filter(|_| !unsealed).ok_or_else(|| {
            let text =
                format!("{}: it is being written, so it has no checksum yet", String::from_utf8_lossy(&path));
            Failure::new(Cause::Busy, text)
        })
    }

    fn known_blob(&self, sum: &Checksum) -> Result<crate::change::BlobRow, Failure> {
        let row = self.vfs.index().blob(sum).map_err(in_index)?;
        row.ok_or_else(|| {
            Failure::new(Cause::NotFound, format!("no file has content with the checksum {sum}"))
        })
    }

    /// Inode and content of the regular file at a path from the root of the tree.
    fn file(&self, path: &[u8]) -> Result<(Ino, Option<(Checksum, u64)>), Failure> {
        let shown = String::from_utf8_lossy(path);
        let inode = self.vfs.index().resolve(path).map_err(in_index)?;
        let inode = inode
            .ok_or_else(|| Failure::new(Cause::NotFound, format!("there is no {shown} in the depot")))?;
        if inode.kind != Kind::File {
            return Err(Failure::new(Cause::Usage, format!("{shown} is not a regular file")));
        }
        Ok((inode.ino, inode.checksum.map(|sum| (sum, inode.size))))
    }
}

/// Files whose seal failed, for people.
pub(super) fn troubles(status: &vfs::status::Status) -> Vec<Trouble> {
    let trouble = |file: &vfs::status::Unsealable| Trouble { what: file.path.clone(), why: file.why.clone() };
    status.unsealable.iter().map(trouble).collect()
}

pub(super) fn in_index(error: index::Error) -> Failure {
    Failure::because("the index could not answer", &error)
}

pub(super) fn in_store(error: crate::filestore::Error) -> Failure {
    Failure::because("the filestore could not answer", &error)
}

fn in_tree(error: vfs::Error) -> Failure {
    Failure::because("the file could not be used", &error)
}

/// Reads from the beginning what can be read at an offset.
struct FromStart<R> {
    read_at: R,
    offset: u64,
}

impl<R: Fn(&mut [u8], u64) -> io::Result<usize>> Read for FromStart<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = (self.read_at)(buffer, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}
