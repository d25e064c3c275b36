//! A proxy in front of an HTTP server: it delays, stalls, cuts and refuses, and counts what passes.
//!
//! It needs nothing but the standard library, so that tests and benches of every kind can include it.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// More than any head of a request has.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// One request that came through.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET` and so on.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The first and the last byte that were asked for.
    pub range: Option<(u64, u64)>,
    /// Bytes of its body.
    pub sent: u64,
    received: Arc<AtomicU64>,
}

impl Seen {
    /// Bytes of the answer, its head included, that have passed so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }
}

/// See above; gone with its connections when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    upstream: AtomicU64,
    delay_micros: AtomicU64,
    /// Bytes of answers a second, of all connections together; 0: as fast as they come.
    rate: AtomicU64,
    /// When the next of them may pass.
    room_at: Mutex<Option<Instant>>,
    stalled: AtomicBool,
    refusing: AtomicBool,
    ended: AtomicBool,
    /// Answers that the proxy gives itself: status, and how often.
    failing: Mutex<(u16, u64)>,
    /// Bytes of answers after which connections are cut; `u64::MAX`: none.
    cut_after: AtomicU64,
    seen: Mutex<Vec<Seen>>,
    open: Mutex<HashMap<u64, TcpStream>>,
    next: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// A proxy in front of a server on a port of this host.
    pub fn start(upstream: u16) -> io::Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            upstream: AtomicU64::new(upstream.into()),
            cut_after: AtomicU64::new(u64::MAX),
            ..Shared::default()
        });
        let theirs = Arc::clone(&shared);
        thread::Builder::new().name("proxy".into()).spawn(move || theirs.accept(&listener))?;
        Ok(Proxy { port, shared })
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Holds each request back for so long before it goes on.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_micros.store(delay.as_micros() as u64, Ordering::SeqCst);
    }

    /// Lets so many bytes of answers pass a second, of all connections together.
    pub fn limit(&self, bytes_per_second: u64) {
        self.shared.rate.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Lets nothing pass in either direction, without closing anything, or lets all of it go on.
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.store(stalled, Ordering::SeqCst);
    }

    /// Closes every new connection at once, and those that are open.
    pub fn refuse(&self, refusing: bool) {
        self.shared.refusing.store(refusing, Ordering::SeqCst);
        if refusing {
            self.cut();
        }
    }

    /// Closes every open connection.
    pub fn cut(&self) {
        for stream in locked(&self.shared.open).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Cuts the connection on which this byte of answers passes, counted from now on, once.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// Answers the next requests with this status instead of the server.
    pub fn fail(&self, status: u16, times: u64) {
        *locked(&self.shared.failing) = (status, times);
    }

    /// All requests since the start or the last `forget`.
    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.shared.seen).clone()
    }

    /// Forgets what was seen.
    pub fn forget(&self) {
        locked(&self.shared.seen).clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn accept(self: &Arc<Shared>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let Ok(client) = client else { continue };
            if self.refusing.load(Ordering::SeqCst) {
                continue;
            }
            let shared = Arc::clone(self);
            let serve = move || drop(shared.serve(client));
            let _ = thread::Builder::new().name("proxy-client".into()).spawn(serve);
        }
    }

    /// Remembers a connection, to be cut.
    fn note(&self, stream: &TcpStream) -> io::Result<u64> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        locked(&self.open).insert(number, stream.try_clone()?);
        Ok(number)
    }

    fn serve(self: &Arc<Shared>, client: TcpStream) -> io::Result<()> {
        let upstream = TcpStream::connect(("127.0.0.1", self.upstream.load(Ordering::SeqCst) as u16))?;
        for stream in [&client, &upstream] {
            stream.set_nodelay(true)?;
        }
        let numbers = [self.note(&client)?, self.note(&upstream)?];
        let current: Arc<Mutex<Arc<AtomicU64>>> = Arc::default();
        let (shared, counted) = (Arc::clone(self), Arc::clone(&current));
        let (from, to) = (upstream.try_clone()?, client.try_clone()?);
        let back = thread::Builder::new()
            .name("proxy-answers".into())
            .spawn(move || drop(shared.answers(from, to, &counted)))?;
        let _ = self.requests(client.try_clone()?, upstream.try_clone()?, &current);
        // The client has said all; what is still to be answered is.
        let _ = upstream.shutdown(Shutdown::Write);
        let _ = back.join();
        numbers.iter().for_each(|number| drop(locked(&self.open).remove(number)));
        let _ = client.shutdown(Shutdown::Both);
        Ok(())
    }

    /// Waits until so many bytes of an answer have room on the line.
    fn wait_for_room(&self, bytes: usize) {
        let rate = self.rate.load(Ordering::SeqCst);
        if rate == 0 {
            return;
        }
        let now = Instant::now();
        let at = {
            let mut room_at = locked(&self.room_at);
            let at = room_at.map_or(now, |at| at.max(now));
            *room_at = Some(at + Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate));
            at
        };
        thread::sleep(at - now);
    }

    fn wait_while_stalled(&self) {
        while self.stalled.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Hands on request after request.
    fn requests(
        &self,
        mut from: TcpStream,
        mut to: TcpStream,
        current: &Mutex<Arc<AtomicU64>>,
    ) -> io::Result<()> {
        let mut rest = Vec::new();
        while let Some(head) = head(&mut from, &mut rest)? {
            self.wait_while_stalled();
            let text = String::from_utf8_lossy(&head).into_owned();
            let length = header(&text, "content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
            let received: Arc<AtomicU64> = Arc::default();
            *locked(current) = Arc::clone(&received);
            let mut words = text.split_whitespace();
            let mut word = || words.next().unwrap_or_default().to_owned();
            locked(&self.seen).push(Seen {
                method: word(),
                target: word(),
                range: header(&text, "range").and_then(range),
                sent: length,
                received,
            });
            thread::sleep(Duration::from_micros(self.delay_micros.load(Ordering::SeqCst)));
            if let Some(status) = self.own_answer() {
                pass(&mut from, &mut io::sink(), &mut rest, length, || {})?;
                write!(from, "HTTP/1.1 {status} On Purpose\r\ncontent-length: 0\r\n\r\n")?;
                continue;
            }
            to.write_all(&head)?;
            pass(&mut from, &mut to, &mut rest, length, || self.wait_while_stalled())?;
        }
        Ok(())
    }

    fn own_answer(&self) -> Option<u16> {
        let mut failing = locked(&self.failing);
        failing.1 = failing.1.checked_sub(1)?;
        Some(failing.0)
    }

    /// Hands on what the server says.
    fn answers(
        &self,
        mut from: TcpStream,
        mut to: TcpStream,
        current: &Mutex<Arc<AtomicU64>>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                return to.shutdown(Shutdown::Write);
            }
            self.wait_while_stalled();
            self.wait_for_room(read);
            locked(current).fetch_add(read as u64, Ordering::SeqCst);
            let left = self.cut_after.load(Ordering::SeqCst);
            if left != u64::MAX {
                if left <= read as u64 {
                    self.cut_after.store(u64::MAX, Ordering::SeqCst);
                    to.write_all(&buffer[..left as usize])?;
                    to.shutdown(Shutdown::Both)?;
                    return from.shutdown(Shutdown::Both);
                }
                self.cut_after.store(left - read as u64, Ordering::SeqCst);
            }
            to.write_all(&buffer[..read])?;
        }
    }
}

/// The head of the next request, up to its empty line; what was read beyond it stays in `rest`.
fn head(from: &mut TcpStream, rest: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
            let behind = rest.split_off(end + 4);
            return Ok(Some(std::mem::replace(rest, behind)));
        }
        if rest.len() > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match from.read(&mut buffer)? {
            0 => return Ok(None),
            read => rest.extend_from_slice(&buffer[..read]),
        }
    }
}

/// Hands on a body of so many bytes.
fn pass(
    from: &mut TcpStream,
    to: &mut impl Write,
    rest: &mut Vec<u8>,
    mut length: u64,
    before_each: impl Fn(),
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    while length > 0 {
        if rest.is_empty() {
            match from.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => rest.extend_from_slice(&buffer[..read]),
            }
        }
        before_each();
        let n = rest.len().min(length as usize);
        to.write_all(&rest[..n])?;
        rest.drain(..n);
        length -= n as u64;
    }
    Ok(())
}

/// The value of a header.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let line = |line: &'a str| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name));
    head.lines().find_map(line).map(|(_, value)| value.trim())
}

/// `bytes=100-199`.
fn range(value: &str) -> Option<(u64, u64)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().unwrap_or(u64::MAX)))
}
