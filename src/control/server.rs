//! The daemon's end of the control socket.
//!
//! Each connection has a named thread of its own; their number is bounded, and so is the time a peer may take for a request
//! or for taking an answer. Nothing that a peer sends ends the daemon: what is not understood gets an error line.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::AT_FDCWD;
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt::PeerCredentials};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};

use super::protocol::{self, Answer, Cause, Failure, LINE_BYTES_MAX, Line, Request};
use super::socket::Address;
use super::{Error, SOCKET};
use crate::{metrics, text};

/// Tells the waiting client one line of news; whether it still listens.
pub type Progress<'a> = &'a mut dyn FnMut(&str) -> bool;

/// What answers requests; given by `daemon`, called from many threads at once.
pub type Handler = Arc<dyn Fn(Request, Progress<'_>) -> Result<Answer, Failure> + Send + Sync>;

/// Connections served at a time; more are told to come later.
const CONNECTIONS_MAX: usize = 32;
/// How long a peer may take to send a request, or to take a piece of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The listening socket and its thread; dropping it closes and removes the socket.
pub struct Server {
    depot: PathBuf,
    listener: Arc<UnixListener>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the threads share.
struct Shared {
    handler: Handler,
    owner: u32,
    connections: AtomicUsize,
}

impl Server {
    /// Listens in `depot`, whose lock the caller holds: a socket found there is a dead daemon's and is replaced.
    pub fn start(depot: &Path, handler: Handler) -> Result<Server, Error> {
        let listen = || -> io::Result<(UnixListener, u32)> {
            let owner = fs::metadata(depot)?;
            match fs::remove_file(depot.join(SOCKET)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(Address::of(depot)?.path())?;
            make_private(&depot.join(SOCKET), &owner)?;
            Ok((listener, owner.uid()))
        };
        let (listener, owner) = listen().map_err(|error| Error::Listen(depot.into(), error))?;
        let listener = Arc::new(listener);
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared { handler, owner, connections: AtomicUsize::new(0) });
        let (stopped, accepting) = (Arc::clone(&stop), Arc::clone(&listener));
        let accept = std::thread::Builder::new().name("control".into());
        let thread = accept.spawn(move || accept_until(&stopped, &accepting, &shared));
        let thread = thread.map_err(|error| Error::Listen(depot.into(), error))?;
        Ok(Server { depot: depot.into(), listener, stop, thread: Some(thread) })
    }

    /// From now on nobody can connect; returns at once. Whether the thread ends of it.
    pub fn close(&self) -> bool {
        self.stop.store(true, SeqCst);
        // Wakes accept(2) and refuses whoever connects, wherever the socket's file is by now.
        let closed = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        closed.inspect_err(|error| tracing::warn!(%error, "the control socket cannot be closed")).is_ok()
    }
}

/// Who may talk is decided by peer credentials; the mode keeps everybody else from even connecting.
///
/// The depot's owner may have put a link in the place of the socket, which is not followed.
fn make_private(socket: &Path, owner: &fs::Metadata) -> io::Result<()> {
    fchmodat(AT_FDCWD, socket, Mode::S_IRUSR | Mode::S_IWUSR, FchmodatFlags::NoFollowSymlink)?;
    if crate::sys::process::is_root() {
        lchown(socket, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

impl Drop for Server {
    /// Stops listening; connections being served end by their own, at the latest with the process.
    fn drop(&mut self) {
        if self.close()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
        let _ = fs::remove_file(self.depot.join(SOCKET));
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("depot", &self.depot).finish_non_exhaustive()
    }
}

/// The listening thread.
fn accept_until(stop: &AtomicBool, listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        let accepted = listener.accept();
        if stop.load(SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) => begin(stream, shared),
            Err(error) => {
                // Out of descriptors, say: wait for some to come back.
                tracing::warn!(%error, "control socket cannot accept a connection");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Checks who calls and gives the connection a thread.
fn begin(stream: UnixStream, shared: &Arc<Shared>) {
    if let Err(failure) = admit(&stream, shared) {
        metrics::CONTROL_REFUSED.count();
        let _ = say(&stream, &Line::Error(failure));
        return;
    }
    let place = Place::take(shared);
    let thread = std::thread::Builder::new().name("control-peer".into());
    if let Err(error) = thread.spawn(move || serve(&stream, &place.0)) {
        tracing::warn!(%error, "control socket cannot start a thread");
    }
}

/// One of the places for connections, given back when dropped.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Place {
        shared.connections.fetch_add(1, SeqCst);
        Place(Arc::clone(shared))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, SeqCst);
    }
}

/// Whether this peer is served: its user, and a free place. Also sets the deadlines.
fn admit(stream: &UnixStream, shared: &Shared) -> Result<(), Failure> {
    let broken = |error: &dyn std::error::Error| Failure::because("the connection cannot be used", error);
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| broken(&e))?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(|e| broken(&e))?;
    let peer = getsockopt(stream, PeerCredentials).map_err(|e| broken(&e))?;
    if peer.uid() != 0 && peer.uid() != shared.owner {
        let text = format!(
            "user {} may not ask: only the depot's owner (user {}) and root",
            peer.uid(),
            shared.owner
        );
        return Err(Failure::new(Cause::NotAllowed, text));
    }
    if shared.connections.load(SeqCst) >= CONNECTIONS_MAX {
        let text = format!("the daemon is answering {CONNECTIONS_MAX} others: try again in a moment");
        return Err(Failure::new(Cause::Busy, text));
    }
    Ok(())
}

/// One connection: requests until the peer leaves.
fn serve(stream: &UnixStream, shared: &Shared) {
    let mut reader = BufReader::new(stream);
    loop {
        let request = match read_line(&mut reader, PATIENCE) {
            Ok(Some(line)) => protocol::decode(&line),
            // The peer left, in the middle of a line or between two, or said nothing for too long.
            Ok(None) | Err(_) => return,
        };
        let understood = request.is_ok();
        let answer = request.and_then(|request| handle(stream, shared, request));
        metrics::CONTROL_REQUESTS.count();
        if !understood {
            metrics::CONTROL_REFUSED.count();
        }
        // After a line that was not understood nobody knows where the next one begins.
        if reply(stream, answer).is_err() || !understood {
            return;
        }
    }
}

/// Reads one line; `None` at the end of the stream. A line over the limit comes back cut, which no decoder accepts.
///
/// The whole line has to come within `patience` of its first byte: a peer that sends it in bits gets no more time.
fn read_line(reader: &mut impl BufRead, patience: Duration) -> io::Result<Option<Vec<u8>>> {
    let (mut line, mut begun) = (Vec::new(), None);
    loop {
        let some = reader.fill_buf()?;
        if some.is_empty() {
            return Ok(None);
        }
        let wanted = some.len().min(LINE_BYTES_MAX - line.len());
        let end = some[..wanted].iter().position(|byte| *byte == b'\n');
        let used = end.map_or(wanted, |at| at + 1);
        line.extend_from_slice(&some[..used]);
        reader.consume(used);
        if end.is_some() || line.len() == LINE_BYTES_MAX {
            return Ok(Some(line));
        }
        if begun.get_or_insert_with(Instant::now).elapsed() > patience {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Runs the handler, and passes its news on.
fn handle(stream: &UnixStream, shared: &Shared, request: Request) -> Result<Answer, Failure> {
    (shared.handler)(request, &mut |news| say(stream, &Line::Progress(news.into())).is_ok())
}

fn reply(stream: &UnixStream, answer: Result<Answer, Failure>) -> io::Result<()> {
    match answer {
        Ok(Answer::Value(value)) => say(stream, &Line::Ok(value)),
        Err(failure) => say(stream, &Line::Error(failure)),
        Ok(Answer::Bytes { length, from }) => {
            say(stream, &Line::Bytes(length))?;
            let copied = io::copy(&mut Told(from).take(length), &mut &*stream)?;
            // Too few: the peer counts, and learns it from the end of the stream.
            if copied == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        }
    }
}

/// Bytes for a peer, whose failure the log tells: the peer only learns that they were too few.
struct Told(Box<dyn Read + Send>);

impl Read for Told {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                tracing::error!("bytes that were asked for on the control socket: {}", text::chain(error));
            }
        })
    }
}

fn say(mut stream: &UnixStream, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    stream.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, slowly.
    struct Dribble<'a>(&'a [u8]);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(Duration::from_millis(2));
            let n = self.0.len().min(1).min(buffer.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn a_link_in_the_place_of_the_socket_is_not_followed() {
        use std::os::unix::fs::PermissionsExt;
        let depot = tempfile::tempdir().unwrap();
        let (other, socket) = (depot.path().join("other"), depot.path().join(SOCKET));
        fs::write(&other, "").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&other, &socket).unwrap();
        let owner = fs::metadata(depot.path()).unwrap();
        make_private(&socket, &owner).unwrap_err();
        assert_eq!(fs::metadata(&other).unwrap().mode() & 0o777, 0o644);
        fs::remove_file(&socket).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        make_private(&socket, &owner).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn lines_come_whole_however_they_are_sent() {
        let mut reader = BufReader::with_capacity(3, &b"one\n\nthree\nrest"[..]);
        let mut next = || read_line(&mut reader, PATIENCE).unwrap();
        assert_eq!(next().unwrap(), b"one\n");
        assert_eq!(next().unwrap(), b"\n");
        assert_eq!(next().unwrap(), b"three\n");
        assert_eq!(next(), None, "half a line is none");
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        let cut = read_line(&mut BufReader::new(&long[..]), PATIENCE).unwrap().unwrap();
        assert_eq!(cut.len(), LINE_BYTES_MAX);
        let slow = read_line(&mut BufReader::new(Dribble(b"a line\n")), PATIENCE).unwrap();
        assert_eq!(slow.unwrap(), b"a line\n");
    }

    #[test]
    fn a_line_that_is_sent_in_bits_gets_no_more_time() {
        let bytes = vec![b'x'; 1000];
        let why = read_line(&mut BufReader::new(Dribble(&bytes)), Duration::from_millis(50)).unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::TimedOut);
    }
}
