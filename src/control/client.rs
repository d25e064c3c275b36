//! The command's end of the control socket.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::{PeerCredentials, SendTimeout};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::geteuid;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Error;
use super::protocol::{self, Cause, Failure, Line, Request};
use super::socket::Address;

/// Hears what a daemon that is waited for tells meanwhile.
pub type News<'a> = &'a mut dyn FnMut(&str);

/// Longest line of an answer: far more than any daemon has to say.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// How long a daemon may take to accept a connection, or a piece of a request.
const REACHED_WITHIN: Duration = Duration::from_secs(30);

/// A connection to the daemon of one depot.
#[derive(Debug)]
pub struct Client {
    depot: PathBuf,
    stream: BufReader<Timed>,
}

/// A stream on which whoever reads may wait only until a certain moment.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    until: Option<Instant>,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(until) = self.until else { return self.stream.read(buffer) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => late(),
            _ => error,
        })
    }
}

/// Bytes the daemon sends: reads to the end of them, then says whether all came.
#[derive(Debug)]
pub struct Transfer {
    length: u64,
    rest: u64,
    stream: BufReader<Timed>,
}

impl Client {
    /// Connects to the daemon of `depot`.
    pub fn connect(depot: &Path) -> Result<Client, Error> {
        let connected = Address::of(depot).and_then(|address| reach(address.path(), REACHED_WITHIN));
        let stream = connected.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning(depot.into()),
            io::ErrorKind::PermissionDenied => Error::NotAllowed(depot.into(), error),
            _ => Error::Broken(depot.into(), error),
        })?;
        let broken = |error| Error::Broken(depot.into(), error);
        let listener =
            socket::getsockopt(&stream, PeerCredentials).map_err(|errno| broken(errno.into()))?.uid();
        let owner = fs::metadata(depot).map_err(broken)?.uid();
        if !is_trusted(listener, owner) {
            return Err(Error::NotTheirs(depot.into(), listener));
        }
        Ok(Client { depot: depot.into(), stream: BufReader::new(Timed { stream, until: None }) })
    }

    /// From now on the whole answer has to come within `patience`: for what a daemon that works tells at once.
    pub fn within(mut self, patience: Duration) -> Client {
        self.stream.get_mut().until = Some(Instant::now() + patience);
        self
    }

    /// Asks, and waits as long as it takes.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request, news: News<'_>) -> Result<T, Error> {
        match self.end_of(request, news)? {
            Line::Ok(value) => self.read(value),
            other => Err(Error::Garbled(self.depot.clone(), format!("{other:?}"))),
        }
    }

    /// Asks for bytes.
    pub fn fetch(mut self, request: &Request) -> Result<Transfer, Error> {
        match self.end_of(request, &mut |_| {})? {
            Line::Bytes(length) => Ok(Transfer { length, rest: length, stream: self.stream }),
            other => Err(Error::Garbled(self.depot.clone(), format!("{other:?}"))),
        }
    }

    /// Sends the request and passes news on until the last line, which is not an error.
    fn end_of(&mut self, request: &Request, news: News<'_>) -> Result<Line, Error> {
        let line =
            protocol::encode(request).map_err(|error| Error::Broken(self.depot.clone(), error.into()))?;
        // A daemon that refused the connection has written why and closed it: read that before complaining.
        let sent = self.stream.get_mut().stream.write_all(&line);
        loop {
            let line = match self.next_line() {
                Err(Error::Broken(depot, error)) => {
                    return Err(Error::Broken(depot, sent.err().unwrap_or(error)));
                }
                other => other?,
            };
            match line {
                Line::Progress(line) => news(&line),
                Line::Error(Failure { cause: Cause::NotAllowed, text }) => {
                    let error = io::Error::new(io::ErrorKind::PermissionDenied, text);
                    return Err(Error::NotAllowed(self.depot.clone(), error));
                }
                Line::Error(failure) => return Err(failure.into()),
                last => return Ok(last),
            }
        }
    }

    fn next_line(&mut self) -> Result<Line, Error> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line);
        match read {
            Ok(_) if line.last() == Some(&b'\n') => serde_json::from_slice(&line)
                .map_err(|error| Error::Garbled(self.depot.clone(), error.to_string())),
            Ok(read) if read as u64 == ANSWER_BYTES_MAX => {
                Err(Error::Garbled(self.depot.clone(), "a line without an end".into()))
            }
            Ok(_) => {
                let error =
                    io::Error::new(io::ErrorKind::UnexpectedEof, "it ended the connection without an answer");
                Err(Error::Broken(self.depot.clone(), error))
            }
            Err(error) => Err(Error::Broken(self.depot.clone(), error)),
        }
    }

    fn read<T: DeserializeOwned>(&self, value: Value) -> Result<T, Error> {
        serde_json::from_value(value).map_err(|error| Error::Garbled(self.depot.clone(), error.to_string()))
    }
}

/// Connects. A listener that takes nobody keeps its queue full, and whoever connects waiting: not for longer than `patience`.
fn reach(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let end = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::setsockopt(&end, SendTimeout, &TimeVal::milliseconds(patience.as_millis() as i64))?;
    match socket::connect(end.as_raw_fd(), &UnixAddr::new(path)?).map_err(io::Error::from) {
        Ok(()) => Ok(UnixStream::from(end)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(late()),
        Err(error) => Err(error),
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time")
}

/// Whether a daemon of user `listener` may speak for a depot of `owner`.
fn is_trusted(listener: u32, owner: u32) -> bool {
    [0, owner, geteuid().as_raw()].contains(&listener)
}

impl Transfer {
    /// How many bytes there are.
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl Read for Transfer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        if most == 0 {
            return Ok(0); // A BufReader asked for nothing still waits for something.
        }
        let n = self.stream.read(&mut buffer[..most])?;
        if n == 0 {
            let text = format!(
                "the daemon could send only {} of {} bytes: its log says why",
                self.length - self.rest,
                self.length
            );
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.rest -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Answer, Bytes, Server, Target};
    use std::sync::Arc;
    use std::time::Duration;

    fn answering() -> super::super::Handler {
        Arc::new(|request, progress| match request {
            Request::Flush { wait } => {
                progress("one");
                progress("two");
                Answer::of(&wait)
            }
            Request::BlobCat { target: Target::Tree(path) } => {
                let bytes = path.as_bytes().repeat(100_000);
                let short = path.as_bytes() == b"short";
                let length = bytes.len() as u64 + u64::from(short);
                Ok(Answer::Bytes { length, from: Box::new(io::Cursor::new(bytes)) })
            }
            _ => Err(Failure::new(Cause::NotFound, "there is none")),
        })
    }

    fn raw(depot: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(Address::of(depot).unwrap().path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // The server may answer and leave before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn requests_are_answered_in_turn_with_progress() {
        let depot = tempfile::tempdir().unwrap();
        let _server = Server::start(depot.path(), answering()).unwrap();
        let mut client = Client::connect(depot.path()).unwrap();
        let mut news = Vec::new();
        assert!(
            client.ask::<bool>(&Request::Flush { wait: true }, &mut |n| news.push(n.to_owned())).unwrap()
        );
        assert_eq!(news, ["one", "two"]);
        let why = client.ask::<Value>(&Request::Status, &mut |_| {}).unwrap_err();
        assert!(matches!(&why, Error::Failed(f) if f.cause == Cause::NotFound), "{why}");
        assert!(client.ask::<bool>(&Request::Flush { wait: true }, &mut |_| {}).unwrap());
    }

    #[test]
    fn bytes_come_whole_or_say_that_they_did_not() {
        let depot = tempfile::tempdir().unwrap();
        let _server = Server::start(depot.path(), answering()).unwrap();
        let cat = |path: &str| Request::BlobCat { target: Target::Tree(Bytes::Text(path.into())) };
        let mut got = Vec::new();
        let mut transfer = Client::connect(depot.path()).unwrap().fetch(&cat("abc")).unwrap();
        assert_eq!(transfer.length(), 300_000);
        transfer.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"abc".repeat(100_000));
        let mut transfer = Client::connect(depot.path()).unwrap().fetch(&cat("short")).unwrap();
        let why = transfer.read_to_end(&mut got).unwrap_err();
        assert!(why.to_string().contains("only 500000 of 500001"), "{why}");
    }

    #[test]
    fn garbage_gets_an_error_line_and_harms_nobody() {
        let depot = tempfile::tempdir().unwrap();
        let _server = Server::start(depot.path(), answering()).unwrap();
        assert!(raw(depot.path(), b"hello\n").starts_with("{\"error\":"));
        assert!(raw(depot.path(), b"{\"v\":9,\"request\":\"status\"}\n").contains("version 9"));
        assert!(raw(depot.path(), &vec![b'x'; 10 << 20]).starts_with("{\"error\":"));
        assert!(raw(depot.path(), &[0xff, 0, b'\n']).starts_with("{\"error\":"));
        assert_eq!(raw(depot.path(), b"{\"v\":1,\"requ"), "", "half a request is no request");
        assert_eq!(raw(depot.path(), b""), "");
        let mut client = Client::connect(depot.path()).unwrap();
        assert!(client.ask::<bool>(&Request::Flush { wait: true }, &mut |_| {}).unwrap());
    }

    #[test]
    fn idle_connections_are_bounded() {
        let depot = tempfile::tempdir().unwrap();
        let _server = Server::start(depot.path(), answering()).unwrap();
        let mut idle: Vec<_> = (0..40).map(|_| Client::connect(depot.path()).unwrap()).collect();
        let why = idle[39].ask::<bool>(&Request::Flush { wait: true }, &mut |_| {}).unwrap_err();
        assert!(matches!(&why, Error::Failed(f) if f.cause == Cause::Busy), "{why}");
        assert!(idle[0].ask::<bool>(&Request::Flush { wait: true }, &mut |_| {}).unwrap());
    }

    #[test]
    fn a_daemon_that_says_nothing_is_not_waited_for_longer_than_asked() {
        let depot = tempfile::tempdir().unwrap();
        let listener =
            std::os::unix::net::UnixListener::bind(depot.path().join(super::super::SOCKET)).unwrap();
        let begun = Instant::now();
        let patience = Duration::from_millis(100);
        let mut client = Client::connect(depot.path()).unwrap().within(patience);
        let talker = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // News now and then are no answer.
            while stream.write_all(b"{\"progress\":\"soon\"}\n").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let why = client.ask::<Value>(&Request::Status, &mut |_| {}).unwrap_err();
        assert!(matches!(&why, Error::Broken(_, error) if error.kind() == io::ErrorKind::TimedOut), "{why}");
        assert!(begun.elapsed() >= patience);
        drop(client);
        talker.join().unwrap();
    }

    #[test]
    fn a_queue_that_stays_full_is_not_waited_for_longer_than_that() {
        let depot = tempfile::tempdir().unwrap();
        let path = depot.path().join("socket");
        let end = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        socket::bind(end.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        socket::listen(&end, socket::Backlog::new(1).unwrap()).unwrap();
        let reached: Vec<_> = (0..4).map(|_| reach(&path, Duration::from_millis(50))).collect();
        assert!(reached[0].is_ok());
        assert_eq!(reached[3].as_ref().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_stranger_does_not_speak_for_a_depot() {
        let own = geteuid().as_raw();
        assert!(is_trusted(0, own + 1) && is_trusted(own, own + 1) && is_trusted(own + 1, own + 1));
        assert!(!is_trusted(own + 2, own + 1));
    }

    #[test]
    fn a_depot_may_lie_deep() {
        let depot = tempfile::tempdir().unwrap();
        let deep = depot.path().join("d".repeat(120)).join("e".repeat(120));
        fs::create_dir_all(&deep).unwrap();
        let server = Server::start(&deep, answering()).unwrap();
        assert!(
            Client::connect(&deep).unwrap().ask::<bool>(&Request::Flush { wait: true }, &mut |_| {}).unwrap()
        );
        drop(server);
        assert!(matches!(Client::connect(&deep), Err(Error::NotRunning(_))));
        assert!(!deep.join(super::super::SOCKET).exists());
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced() {
        let depot = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(depot.path().join(super::super::SOCKET)).unwrap());
        assert!(matches!(Client::connect(depot.path()), Err(Error::NotRunning(_))));
        let _server = Server::start(depot.path(), answering()).unwrap();
        assert!(Client::connect(depot.path()).is_ok());
    }
}
