//! One shard: a provider that may be away for a while.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::error::{Error, Result};
use super::super::provider::{Provider, Reach};
use super::super::staging::StagingDir;
use super::super::timed::within;
use super::taken::{Directory, Taken};
use crate::change::MountId;
use crate::checksum::Checksum;
use crate::sys::boot::mount_id;
use crate::sys::content::is_shortage;
use crate::text::chain;

/// How long its directory is waited for.
const OPEN_LONGEST: Duration = Duration::from_secs(10);

/// Opens a shard's provider, again when it comes back; with `true` it is made where there is nothing yet.
pub type Opener = Box<dyn Fn(bool) -> Result<Arc<dyn Provider>> + Send + Sync>;

/// See above.
pub struct Shard {
    /// Its directory, by which it is named.
    pub dir: PathBuf,
    /// Where it is; empty: nowhere in particular.
    pub zone: String,
    /// Whether it takes new blobs; one that does not is drained.
    pub write_enabled: bool,
    /// Shortest time before a shard that failed is tried again.
    pub check_period: Duration,
    disk: Arc<Disk>,
}

/// What stays the same when a shard is configured anew.
struct Disk {
    opener: Opener,
    /// It was no shard before, so it may be made.
    is_new: AtomicBool,
    /// It is on a network file system, as far as it was opened.
    on_network: AtomicBool,
    /// Counts the threads that are opening it.
    opening: Arc<()>,
    /// Which directories it and the shards beside it have.
    taken: OnceLock<Arc<Taken>>,
    /// Its name there.
    token: Arc<()>,
    state: Mutex<State>,
}

impl Disk {
    /// Takes the directory at this place; one that another shard has is refused.
    fn take(&self, dir: &Path, place: Option<Place>) -> Result<()> {
        match (self.taken.get(), place) {
            (Some(taken), Some(place)) => taken.take(dir, &self.token, place.directory),
            _ => Ok(()),
        }
    }
}

#[derive(Default)]
struct State {
    provider: Option<Arc<dyn Provider>>,
    /// Where the directory was when it was opened.
    place: Option<Place>,
    /// It is set aside since then, and why.
    away: Option<(Instant, String)>,
    /// It did not answer in time, so that nobody but a thread of its own asks again.
    late: bool,
    /// It takes nothing since then, and why.
    refuses: Option<(Instant, String)>,
}

/// Which directory a path leads to: another one where a disk is mounted over it.
#[derive(Clone, Copy)]
struct Place {
    directory: Directory,
    mount: MountId,
}

impl PartialEq for Place {
    fn eq(&self, other: &Place) -> bool {
        (self.directory.id, self.mount) == (other.directory.id, other.mount)
    }
}

impl Place {
    fn of(dir: &Path) -> Option<Place> {
        Some(Place { directory: Directory::of(dir)?, mount: mount_id(dir).ok()? })
    }
}

impl Shard {
    /// A shard that is opened when it is first asked for.
    pub fn new(
        dir: PathBuf,
        zone: String,
        write_enabled: bool,
        check_period: Duration,
        opener: Opener,
    ) -> Shard {
        let disk = Disk {
            opener,
            is_new: AtomicBool::new(false),
            on_network: AtomicBool::new(false),
            opening: Arc::default(),
            taken: OnceLock::new(),
            token: Arc::default(),
            state: Mutex::default(),
        };
        Shard { dir, zone, write_enabled, check_period, disk: Arc::new(disk) }
    }

    /// This shard, configured as another one of the same directory is.
    pub fn configured_as(&self, other: &Shard) -> Shard {
        let Shard { dir, zone, write_enabled, check_period, .. } = other;
        let (dir, zone) = (dir.clone(), zone.clone());
        Shard {
            dir,
            zone,
            write_enabled: *write_enabled,
            check_period: *check_period,
            disk: Arc::clone(&self.disk),
        }
    }

    /// This shard, taking nothing any more.
    pub fn drained(&self) -> Shard {
        Shard { write_enabled: false, ..self.configured_as(self) }
    }

    /// It was no shard of the depot before: its directory is made when it is opened, if there is none or an empty one.
    pub fn call_new(&self) {
        self.disk.is_new.store(true, Ordering::SeqCst);
    }

    /// It is one of several, each of which has a directory of its own.
    pub fn place_beside(&self, taken: &Arc<Taken>) {
        self.disk.taken.get_or_init(|| Arc::clone(taken));
    }

    /// Opens it for the first time; an error of it as well that another shard has its directory.
    pub fn open(&self) -> Result<Arc<dyn Provider>> {
        self.try_now()
    }

    /// Its provider, unless it is away. After the check period it is tried again by whoever asks first.
    ///
    /// What was opened once is kept: it remembers which staging files its disk has refused.
    pub fn get(&self) -> Option<Arc<dyn Provider>> {
        {
            let mut guard = self.disk.state.lock();
            let state = &mut *guard;
            match &mut state.away {
                Some((since, _)) if since.elapsed() < self.check_period => return None,
                Some((since, _)) if state.late => {
                    *since = Instant::now();
                    drop(guard);
                    self.try_again_later();
                    return None;
                }
                // The others go on without it meanwhile.
                Some((since, _)) => *since = Instant::now(),
                None if state.provider.is_some() => return state.provider.clone(),
                None => state.away = Some((Instant::now(), "it is being opened".into())),
            }
        }
        self.try_now().ok()
    }

    /// As soon as it answers, which may take a while.
    fn try_again_later(&self) {
        if Arc::strong_count(&self.disk.opening) > 1 {
            return; // Somebody waits for it already.
        }
        let shard = self.configured_as(self);
        let thread = std::thread::Builder::new().name("shard".into()).spawn(move || drop(shard.try_now()));
        if let Err(error) = thread {
            tracing::warn!(%error, "shard {} cannot be tried again", self.dir.display());
        }
    }

    fn try_now(&self) -> Result<Arc<dyn Provider>> {
        let tried = self.try_again().and_then(|(provider, place)| {
            let mut state = self.disk.state.lock();
            // Whatever happened meanwhile: with the lock held, so that it is no other's as long as it is in use.
            self.disk.take(&self.dir, place)?;
            (state.away, state.late) = (None, false);
            state.place = place;
            self.disk.on_network.store(provider.reach() == Reach::Network, Ordering::Relaxed);
            state.provider = Some(Arc::clone(&provider));
            Ok(provider)
        });
        tried.inspect_err(|error| {
            tracing::warn!("shard {} cannot be used: {}", self.dir.display(), chain(error));
            self.set_aside(error);
        })
    }

    /// The provider that it has, if it works, or another one where the directory is another one now.
    fn try_again(&self) -> Result<(Arc<dyn Provider>, Option<Place>)> {
        let (known, was) = {
            let state = self.disk.state.lock();
            (state.provider.clone(), state.place)
        };
        let now = self.within(|dir, _| Ok(Place::of(dir)))?;
        match known {
            Some(provider) if now == was || now.is_none() || self.has_staging_files(&provider) => {
                match sound(&self.dir, &*provider) {
                    // The server forgot the directory under this descriptor.
                    Err(error) if is_io(&error, ErrorKind::StaleNetworkFileHandle) => self.open_anew(),
                    sound => sound.map(|()| (provider, was)),
                }
            }
            None => self.open_anew(),
            Some(_) => {
                tracing::info!("shard {} is another directory now, and is opened anew", self.dir.display());
                self.open_anew()
            }
        }
    }

    /// Whether somebody may still want what is written there. One that cannot even be listed gives nothing out any more.
    fn has_staging_files(&self, provider: &Arc<dyn Provider>) -> bool {
        let provider = Arc::clone(provider);
        let some = |dir: &Arc<StagingDir>| dir.names().is_ok_and(|names| !names.is_empty());
        self.within(move |_, _| Ok(provider.staging_dirs().iter().any(some))).unwrap_or(false)
    }

    fn open_anew(&self) -> Result<(Arc<dyn Provider>, Option<Place>)> {
        let (opened, place) = self.within(|dir, disk| {
            // Opening clears away what was half done, which in another shard's directory is being done.
            disk.take(dir, Place::of(dir))?;
            let opened = (disk.opener)(disk.is_new.load(Ordering::SeqCst))?;
            sound(dir, &*opened)?;
            // It may have been made just now.
            Ok((opened, Place::of(dir)))
        })?;
        self.disk.is_new.store(false, Ordering::SeqCst);
        Ok((opened, place))
    }

    /// Does what may hang where the directory is a dead server's; nobody waits for that longer than a moment.
    fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path, &Disk) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (dir, disk) = (self.dir.clone(), Arc::clone(&self.disk));
        within(&self.dir, &self.disk.opening, OPEN_LONGEST, move || work(&dir, &disk))
    }

    /// Its provider as far as it is known, without a look at the disk.
    pub fn known(&self) -> Option<Arc<dyn Provider>> {
        self.disk.state.lock().provider.clone()
    }

    /// Whether its calls may hang. This is asked with every request of the kernel.
    pub fn is_on_network(&self) -> bool {
        self.disk.on_network.load(Ordering::Relaxed)
    }

    /// Its provider, if it takes new blobs.
    pub fn writable(&self) -> Option<Arc<dyn Provider>> {
        if !self.write_enabled {
            return None;
        }
        {
            let mut state = self.disk.state.lock();
            match &state.refuses {
                Some((since, _)) if since.elapsed() < self.check_period => return None,
                _ => state.refuses = None,
            }
        }
        self.get()
    }

    /// Sets it aside if this is an error of the shard, and not of what was asked for.
    pub fn read_failed(&self, error: &Error) {
        if !is_of_the_disk(error) {
            return;
        }
        // One file that cannot be opened says nothing of the others: whoever reads it must not take them away.
        if !is_of_the_whole(error) && self.known().is_some_and(|known| sound(&self.dir, &*known).is_ok()) {
            return;
        }
        tracing::warn!("shard {} is set aside: {}", self.dir.display(), chain(error));
        self.set_aside(error);
    }

    /// Whether it works, as far as is known.
    pub fn is_there(&self) -> bool {
        let state = self.disk.state.lock();
        state.away.is_none() && state.provider.is_some()
    }

    fn set_aside(&self, error: &Error) {
        let mut state = self.disk.state.lock();
        if let Some(taken) = self.disk.taken.get() {
            taken.leave(&self.disk.token);
        }
        state.away = Some((Instant::now(), chain(error)));
        state.late = is_io(error, ErrorKind::TimedOut);
    }

    /// It lacks what it should have: it is set aside if it lacks everything.
    pub fn suspect(&self) {
        if let Some(provider) = self.get()
            && let Err(error) = sound(&self.dir, &*provider)
        {
            self.read_failed(&error);
        }
    }

    /// Gives it no blobs for a while, likewise.
    pub fn write_failed(&self, error: &Error) {
        if is_of_the_disk(error) {
            tracing::warn!("shard {} gets no blobs for now: {}", self.dir.display(), chain(error));
            self.disk.state.lock().refuses = Some((Instant::now(), chain(error)));
        }
    }

    /// It did not remove a blob: likewise, unless that is the fault of the one file.
    pub fn remove_failed(&self, error: &Error) {
        let kind = |kind| is_io(error, kind);
        if !kind(ErrorKind::PermissionDenied) && !kind(ErrorKind::IsADirectory) {
            self.write_failed(error);
        }
    }

    /// Why it does not work, as far as is known.
    pub fn trouble(&self) -> Option<String> {
        let state = self.disk.state.lock();
        state.away.as_ref().or(state.refuses.as_ref()).map(|(_, why)| why.clone())
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("dir", &self.dir)
            .field("trouble", &self.trouble())
            .finish_non_exhaustive()
    }
}

fn is_io(error: &Error, kind: ErrorKind) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == kind)
}

/// Refuses a directory that was emptied: every shard is made with the blob of no bytes.
fn sound(dir: &Path, provider: &dyn Provider) -> Result<()> {
    match provider.stat(&Checksum::EMPTY)? {
        Some(_) => Ok(()),
        None => Err(Error::NotADepotDirectory {
            dir: dir.to_owned(),
            why: "its blobs are gone, even the one of no bytes (was it emptied, or its disk unmounted?)"
                .into(),
        }),
    }
}

/// Whether an error of the shard is one of all of it: it does not answer, or its directory is another one.
fn is_of_the_whole(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => {
            matches!(source.kind(), ErrorKind::TimedOut | ErrorKind::StaleNetworkFileHandle)
        }
        _ => true,
    }
}

/// Whether it is the shard that is in trouble: not this process, and not the one file.
fn is_of_the_disk(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => !is_shortage(source),
        Error::NotADepotDirectory { .. } | Error::Foreign { .. } => true,
        _ => false,
    }
}
