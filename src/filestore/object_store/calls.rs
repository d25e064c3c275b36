//! Calls of a server: each has an end, is counted by the breaker, and fails with what was attempted on what and why.
//!
//! The callers are threads of other rooms, which wait; the requests run on two threads of this provider, which are started
//! by the first request.

use std::error::Error as StdError;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::object_store::ObjectStore;
use ::object_store::client::{HttpError, HttpErrorKind};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::error::{Doing, Error, Result};
use super::breaker::Breaker;
use super::connect::InTrouble;
use crate::text;

/// Threads that requests run on.
const THREADS: usize = 2;
/// Bytes per second that a server is supposed to take or give at least, of all requests together.
const SLOWEST: u64 = 256 * 1024;
/// Longest wait of what sends bytes for others that do, of which each has its end.
const SEND_WAIT_MAX: Duration = Duration::from_secs(3600);
/// Others that one who sends shares the way with, as far as his time goes: a server that is silent is found out in minutes.
const SHARING_MAX: u64 = 8;
const ALL_IN_USE: &str = "all connections are in use (max-connections)";

/// One bucket of a server, and how to ask it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Of the bucket: `s3://artifacts`.
    pub(super) address: String,
    pub(super) breaker: Breaker,
    patience: Duration,
    places: Places,
    /// Those of the places that what sends bytes may have: some are left to readers, whatever is sent.
    uploads: Places,
    runtime: OnceLock<Runtime>,
}

/// Requests that may be under way at a time.
#[derive(Debug)]
struct Places {
    all: usize,
    free: Semaphore,
}

impl Places {
    fn new(all: usize) -> Places {
        Places { all, free: Semaphore::new(all) }
    }

    /// How many are taken.
    fn taken(&self) -> u64 {
        (self.all - self.free.available_permits().min(self.all)) as u64
    }
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) error: Error,
}

/// What a failure may mean to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no such object.
    Absent,
    /// There is one already.
    Stands,
    /// It is another version than the one asked for.
    Replaced,
    /// The server does not know such a request.
    Unknown,
    /// Nothing but that it failed.
    Other,
}

/// How a part of a call ended before it was done.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server or the client said so.
    Said(::object_store::Error),
    /// The time was up.
    Late(Duration),
}

impl From<::object_store::Error> for Trouble {
    fn from(error: ::object_store::Error) -> Trouble {
        Trouble::Said(error)
    }
}

pub(super) type Outcome<T> = std::result::Result<T, Failure>;

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        failure.error
    }
}

/// What is attempted on which object.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) doing: &'static str,
    pub(super) what: String,
}

impl Server {
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        address: String,
        patience: Duration,
        connections: usize,
    ) -> Server {
        Server {
            store,
            address,
            breaker: Breaker::default(),
            patience,
            places: Places::new(connections.max(1)),
            uploads: Places::new(
                (connections - connections / 4).clamp(1, connections.saturating_sub(1).max(1)),
            ),
            runtime: OnceLock::new(),
        }
    }

    /// A request about an object, for what is told of it.
    pub(super) fn request(&self, doing: &'static str, key: impl Display) -> Request {
        Request { doing, what: format!("{}/{key}", self.address) }
    }

    fn runtime(&self) -> Result<&Runtime> {
        if let Some(runtime) = self.runtime.get() {
            return Ok(runtime);
        }
        let mut threads = Builder::new_multi_thread();
        threads.worker_threads(THREADS).thread_name("objects").enable_all();
        let made = threads.build().doing("start the threads that talk to", &self.address)?;
        // Another caller may have been first: then this one is of no use.
        if let Err(surplus) = self.runtime.set(made) {
            surplus.shutdown_background();
        }
        let gone = || io::Error::other("they have ended");
        self.runtime.get().ok_or_else(gone).doing("use the threads that talk to", &self.address)
    }

    /// Waits for what does all its waiting through `ask`.
    pub(super) fn wait<T>(&self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        match self.runtime() {
            Ok(runtime) => runtime.block_on(work),
            Err(error) => Err(Failure { kind: Kind::Other, error }),
        }
    }

    /// Lets it run, to be waited for later or not at all.
    pub(super) fn start<T: Send + 'static>(
        &self,
        work: impl Future<Output = Outcome<T>> + Send + 'static,
    ) -> Result<JoinHandle<Outcome<T>>> {
        Ok(self.runtime()?.spawn(work))
    }

    /// Waits for what `start` has started.
    pub(super) fn join<T>(&self, started: JoinHandle<Outcome<T>>) -> Outcome<T> {
        self.wait(async {
            match started.await {
                Ok(outcome) => outcome,
                Err(panic) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
                Err(ended) => Err(Failure {
                    kind: Kind::Other,
                    error: Error::Backend {
                        doing: "finish a request to",
                        what: self.address.clone(),
                        transient: true,
                        source: ended.into(),
                    },
                }),
            }
        })
    }

    /// The time within which a server has to answer a request that carries so many bytes.
    pub(super) fn patience(&self, bytes: u64) -> Duration {
        self.patience + Duration::from_secs(bytes / SLOWEST)
    }

    /// How many requests share the way now.
    pub(super) fn busy(&self) -> u64 {
        self.places.taken()
    }

    /// Refuses an answer of so many bytes that should have ended by now.
    pub(super) fn must_be_in_time(&self, begun: Instant, bytes: u64) -> std::result::Result<(), Trouble> {
        let limit = self.patience(bytes);
        if begun.elapsed() > limit { Err(Trouble::Late(limit)) } else { Ok(()) }
    }

    /// A call of one answer, which has to come within the time for a request of so many bytes.
    pub(super) async fn ask<T>(
        &self,
        request: &Request,
        bytes: u64,
        work: impl Future<Output = ::object_store::Result<T>>,
    ) -> Outcome<T> {
        self.converse(request, within(self.patience(bytes), work)).await
    }

    /// The same, also of a server that counts as away.
    pub(super) async fn ask_all_the_same<T>(
        &self,
        request: &Request,
        work: impl Future<Output = ::object_store::Result<T>>,
    ) -> Outcome<T> {
        self.in_place(request, within(self.patience(0), work)).await
    }

    /// A call that sends so many bytes. It waits for others that do, however long that takes: if it gave up, what has been
    /// sent of a blob would have to be sent again.
    pub(super) async fn send<T>(
        &self,
        request: &Request,
        bytes: u64,
        work: impl Future<Output = ::object_store::Result<T>>,
    ) -> Outcome<T> {
        let refused = |why| failure(request, Kind::Other, true, why);
        self.breaker.allows().map_err(refused)?;
        let places = async { (self.uploads.free.acquire().await, self.places.free.acquire().await) };
        let Ok(places) = tokio::time::timeout(SEND_WAIT_MAX, places).await else {
            return Err(refused(ALL_IN_USE.to_owned()));
        };
        // It may have become away meanwhile.
        self.breaker.enter().map_err(refused)?;
        let outcome = self.sharing(bytes, work).await;
        drop(places);
        self.told(request, outcome)
    }

    /// Waits for the end of what sends bytes, which share the way with all that are sent meanwhile.
    async fn sharing<T>(
        &self,
        bytes: u64,
        work: impl Future<Output = ::object_store::Result<T>>,
    ) -> std::result::Result<T, Trouble> {
        let (begun, mut work, mut most) = (Instant::now(), std::pin::pin!(work), 0);
        loop {
            most = self.uploads.taken().clamp(most, SHARING_MAX);
            let limit = self.patience(bytes.saturating_mul(most));
            match tokio::time::timeout_at(begun + limit, &mut work).await {
                Ok(done) => return Ok(done?),
                // More have come since.
                Err(_elapsed) if self.uploads.taken().min(SHARING_MAX) > most => {}
                Err(_elapsed) => return Err(Trouble::Late(limit)),
            }
        }
    }

    /// A call whose parts have their own ends, each by `within`.
    pub(super) async fn converse<T>(
        &self,
        request: &Request,
        work: impl Future<Output = std::result::Result<T, Trouble>>,
    ) -> Outcome<T> {
        self.breaker.enter().map_err(|why| failure(request, Kind::Other, true, why))?;
        self.in_place(request, work).await
    }

    async fn in_place<T>(
        &self,
        request: &Request,
        work: impl Future<Output = std::result::Result<T, Trouble>>,
    ) -> Outcome<T> {
        // Those who have the places have them for a bounded time.
        let Ok(place) = tokio::time::timeout(self.patience, self.places.free.acquire()).await else {
            return Err(failure(request, Kind::Other, true, ALL_IN_USE.to_owned()));
        };
        let outcome = work.await;
        drop(place);
        self.told(request, outcome)
    }

    fn told<T>(&self, request: &Request, outcome: std::result::Result<T, Trouble>) -> Outcome<T> {
        match outcome {
            Ok(answer) => {
                self.answers();
                Ok(answer)
            }
            Err(trouble) => Err(self.failed(request, trouble)),
        }
    }

    fn answers(&self) {
        if self.breaker.answered() {
            tracing::info!("{} answers again", self.address);
        }
    }

    /// What a failed call is, noted by the breaker.
    fn failed(&self, request: &Request, trouble: Trouble) -> Failure {
        let (kind, transient, why) = match &trouble {
            Trouble::Late(limit) => {
                (Kind::Other, true, format!("no answer came within {:.1} s", limit.as_secs_f32()))
            }
            Trouble::Said(error) => {
                let (kind, transient) = sort(error);
                (kind, transient, words(error))
            }
        };
        match kind {
            Kind::Absent | Kind::Stands | Kind::Replaced | Kind::Unknown => self.answers(),
            Kind::Other if !transient => self.breaker.refused(why.clone()),
            Kind::Other => {
                if self.breaker.failed(why.clone()) {
                    tracing::warn!("{} counts as away, which is tried again every 5 s: {why}", self.address);
                }
            }
        }
        failure(request, kind, transient, why)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Requests that nobody waits for are of no use any more, and the end of a process waits for nothing.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits for a part of an answer, at most so long.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = ::object_store::Result<T>>,
) -> std::result::Result<T, Trouble> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => Ok(done?),
        Err(_elapsed) => Err(Trouble::Late(limit)),
    }
}

fn failure(request: &Request, kind: Kind, transient: bool, why: String) -> Failure {
    let Request { doing, what } = request.clone();
    Failure { kind, error: Error::Backend { doing, what, transient, source: why.into() } }
}

/// What an error means, and whether the same can succeed a moment later.
fn sort(error: &::object_store::Error) -> (Kind, bool) {
    use ::object_store::Error as E;
    match error {
        E::NotFound { .. } => (Kind::Absent, false),
        E::AlreadyExists { .. } => (Kind::Stands, false),
        E::Precondition { .. } | E::NotModified { .. } => (Kind::Replaced, false),
        E::NotImplemented { .. } | E::NotSupported { .. } => (Kind::Unknown, false),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => (Kind::Other, false),
        other => match causes(other).find_map(|cause| cause.downcast_ref::<InTrouble>()) {
            Some(InTrouble(501)) => (Kind::Unknown, false),
            Some(_) => (Kind::Other, true),
            None => (Kind::Other, causes(other).any(is_of_the_way)),
        },
    }
}

/// Whether a cause is one of the network or of a server that went away.
fn is_of_the_way(cause: &(dyn StdError + 'static)) -> bool {
    // A body that cannot be decoded was cut on the way.
    let cut = |error: &HttpError| !matches!(error.kind(), HttpErrorKind::Unknown);
    cause.downcast_ref::<HttpError>().is_some_and(cut)
        || cause.downcast_ref::<io::Error>().is_some_and(super::super::error::is_transient)
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

/// Longest text of a server that is handed on.
const WORDS_MAX: usize = 600;

/// What an error says: its innermost causes where it is one of the network, for what is around them repeats them.
fn words(error: &::object_store::Error) -> String {
    let http = causes(error).find_map(|cause| cause.downcast_ref::<HttpError>());
    let said = match http.and_then(|http| http.source()) {
        Some(cause) => text::chain(cause),
        None => error.to_string(),
    };
    let mut short: String = text::shown(said.as_bytes()).chars().take(WORDS_MAX).collect();
    if short.len() < said.len() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use ::object_store::memory::InMemory;

    use super::*;

    fn server(patience: Duration) -> Arc<Server> {
        Arc::new(Server::new(Arc::new(InMemory::new()), "s3://bucket".into(), patience, 4))
    }

    /// Begins to send so many bytes, which takes so long.
    fn send(server: &Arc<Server>, bytes: u64, takes: Duration) -> JoinHandle<Outcome<()>> {
        let theirs = Arc::clone(server);
        let work = async move {
            let request = theirs.request("put", "object");
            let work = async {
                tokio::time::sleep(takes).await;
                Ok(())
            };
            theirs.send(&request, bytes, work).await
        };
        server.start(work).unwrap()
    }

    fn ask(server: &Server) -> Outcome<()> {
        server.wait(server.ask(&server.request("read", "object"), 0, async { Ok(()) }))
    }

    #[test]
    fn readers_have_places_whatever_is_sent_and_senders_wait_for_theirs() {
        let server = server(Duration::from_millis(200));
        let sent: Vec<_> = (0..12).map(|_| send(&server, SLOWEST, Duration::from_millis(300))).collect();
        while server.uploads.taken() < 3 {
            std::thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..10 {
            ask(&server).unwrap();
        }
        assert_eq!(server.busy(), 3);
        for one in sent {
            server.join(one).unwrap();
        }
        assert_eq!((server.busy(), server.uploads.taken()), (0, 0));
        for (connections, uploads) in [(1, 1), (2, 1), (4, 3), (64, 48)] {
            let store = Arc::new(InMemory::new());
            let server = Server::new(store, "s3://bucket".into(), Duration::ZERO, connections);
            assert_eq!((server.places.all, server.uploads.all), (connections, uploads));
        }
    }

    #[test]
    fn those_who_send_share_the_time_for_their_bytes() {
        let server = server(Duration::from_millis(100));
        let takes = Duration::from_millis(2500);
        let late = server.join(send(&server, SLOWEST, takes)).unwrap_err();
        assert!(text::chain(&late.error).contains("no answer came within 1.1 s"), "{late:?}");
        let first = send(&server, SLOWEST, takes);
        std::thread::sleep(Duration::from_millis(300));
        let others = [send(&server, SLOWEST, takes), send(&server, SLOWEST, takes)];
        server.join(first).unwrap();
        for other in others {
            server.join(other).unwrap();
        }
    }
}
