//! Peers that misbehave on a real socket: the server answers or hangs up, and everybody else is served.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::socket::Address;
use super::*;

fn server(depot: &Path) -> Server {
    let handler: Handler = Arc::new(|request, progress| match request {
        Request::Flush { wait } => {
            progress("news");
            Answer::of(&wait)
        }
        // More than a socket holds, so that a peer that leaves is noticed in the middle.
        Request::BlobCat { .. } => {
            Ok(Answer::Bytes { length: 64 << 20, from: Box::new(io::repeat(7).take(64 << 20)) })
        }
        _ => Err(Failure::new(Cause::NotFound, "there is none")),
    });
    Server::start(depot, handler).unwrap()
}

fn connect(depot: &Path) -> UnixStream {
    let stream = UnixStream::connect(Address::of(depot).unwrap().path()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Everything that comes back for these bytes, until the server hangs up.
fn answer(depot: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(depot);
    // The server may leave before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    said
}

#[test]
fn a_server_whose_socket_is_gone_ends() {
    let depot = tempfile::tempdir().unwrap();
    let ending = server(depot.path());
    std::fs::remove_file(depot.path().join(SOCKET)).unwrap();
    let (told, ended) = std::sync::mpsc::channel();
    thread::spawn(move || {
        drop(ending);
        told.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(30)).unwrap();
}

#[test]
fn a_closed_server_takes_nobody_and_its_peers_stay() {
    let depot = tempfile::tempdir().unwrap();
    let server = server(depot.path());
    let mut peer = Client::connect(depot.path()).unwrap();
    assert!(peer.ask::<bool>(&Request::Flush { wait: true }, &mut |_| {}).unwrap());
    assert!(server.close());
    assert!(matches!(Client::connect(depot.path()), Err(Error::NotRunning(_))));
    assert!(peer.ask::<bool>(&Request::Flush { wait: true }, &mut |_| {}).unwrap());
}

/// Somebody who asks properly is served, sooner or later: places of those who left are given back a moment after.
#[track_caller]
fn is_served(depot: &Path) {
    let end = Instant::now() + Duration::from_secs(30);
    let mut why = String::new();
    while Instant::now() < end {
        let asked = Client::connect(depot)
            .and_then(|mut c| c.ask::<bool>(&Request::Flush { wait: true }, &mut |_| {}));
        match asked {
            Ok(answer) => return assert!(answer),
            Err(error) => why = error.to_string(),
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("nobody is served any more: {why}");
}

#[test]
fn lines_of_every_length_around_the_limit_are_answered() {
    let depot = tempfile::tempdir().unwrap();
    let _server = server(depot.path());
    for length in [LINE_BYTES_MAX - 2, LINE_BYTES_MAX - 1, LINE_BYTES_MAX, LINE_BYTES_MAX + 1, 40 << 20] {
        for filling in [b'x', b' ', b'[', b'{', b'"', 0, 0xff] {
            let said = answer(depot.path(), &[vec![filling; length], b"\n".to_vec()].concat());
            assert!(said.starts_with(b"{\"error\":") && said.ends_with(b"\n"), "{length} of {filling}");
            assert!(said.len() < 1000, "{}", String::from_utf8_lossy(&said));
        }
    }
    is_served(depot.path());
}

#[test]
fn peers_that_leave_in_the_middle_leave_their_places() {
    let depot = tempfile::tempdir().unwrap();
    let _server = server(depot.path());
    let cat = b"{\"v\":1,\"request\":\"blob-cat\",\"target\":{\"tree\":\"a\"}}\n";
    for round in 0..100 {
        let mut stream = connect(depot.path());
        match round % 4 {
            0 => drop(stream.write_all(&cat[..round % cat.len()])),
            1 => drop(stream.write_all(cat)),
            2 => {
                let _ = stream.write_all(cat);
                let _ = stream.read(&mut [0; 1000]);
            }
            _ => {}
        }
    }
    is_served(depot.path());
}

#[test]
fn whoever_works_for_a_peer_learns_that_it_left() {
    let depot = tempfile::tempdir().unwrap();
    let (left, learnt) = std::sync::mpsc::channel();
    let handler: Handler = Arc::new(move |_, progress| {
        while progress("still at it") {
            thread::sleep(Duration::from_millis(2));
        }
        left.send(()).unwrap();
        Ok(Answer::done())
    });
    let _server = Server::start(depot.path(), handler).unwrap();
    let mut stream = connect(depot.path());
    stream.write_all(b"{\"v\":1,\"request\":\"flush\",\"wait\":true}\n").unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    assert!(learnt.try_recv().is_err());
    drop(stream);
    learnt.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn a_crowd_of_peers_is_turned_away_one_by_one() {
    let depot = tempfile::tempdir().unwrap();
    let _server = server(depot.path());
    thread::scope(|s| {
        for peer in 0..200_u8 {
            let depot = depot.path();
            s.spawn(move || {
                let garbage = [peer; 5000];
                match peer % 3 {
                    0 => drop(answer(depot, &garbage)),
                    1 => drop(answer(depot, b"{\"v\":1,\"request\":\"status\"}\n")),
                    _ => {
                        let mut stream = connect(depot);
                        let _ = stream.write_all(b"{\"v\":1,");
                        thread::sleep(Duration::from_millis(u64::from(peer)));
                    }
                }
            });
        }
    });
    is_served(depot.path());
    let mut all: Vec<_> = (0..20).map(|_| Client::connect(depot.path()).unwrap()).collect();
    for client in &mut all {
        assert!(client.ask::<bool>(&Request::Flush { wait: true }, &mut |_| {}).unwrap());
    }
}

#[test]
fn a_daemon_that_says_garbage_is_explained() {
    for said in
        [&b""[..], b"\n", b"hello\n", b"{\"ok\":", b"{\"bytes\":-1}\n", b"{\"ok\":[]}\n", &[0xff; 4000]]
    {
        let depot = tempfile::tempdir().unwrap();
        let listener =
            std::os::unix::net::UnixListener::bind(Address::of(depot.path()).unwrap().path()).unwrap();
        thread::scope(|s| {
            s.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 100]);
                let _ = stream.write_all(said);
            });
            let mut client = Client::connect(depot.path()).unwrap();
            let why = client.ask::<bool>(&Request::Flush { wait: true }, &mut |_| {}).unwrap_err();
            assert!(matches!(why, Error::Broken(..) | Error::Garbled(..)), "{said:?}: {why}");
        });
    }
}

proptest! {
    #[test]
    fn no_bytes_stop_the_server(
        parts in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..300),
                Just(b"{\"v\":1,\"request\":\"flush\",\"wait\":true}\n".to_vec()),
                Just(b"{\"v\":1,\"request\":\"status\"}\n".to_vec()),
                Just(b"\n".to_vec()),
                Just(b"{\"v\":1,".to_vec()),
            ],
            0..6,
        ),
    ) {
        let depot = tempfile::tempdir().unwrap();
        let _server = server(depot.path());
        let said = answer(depot.path(), &parts.concat());
        prop_assert!(said.is_empty() || said.ends_with(b"\n"));
        for line in said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(line).is_ok());
        }
        is_served(depot.path());
    }
}
