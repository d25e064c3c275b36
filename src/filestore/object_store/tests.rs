//! The laws on real servers, and what goes wrong with servers and the way to them.

#[allow(dead_code)]
#[path = "../../../tests/it/harness/proxy.rs"]
mod proxy;
#[allow(dead_code)]
#[path = "../../../tests/it/harness/servers.rs"]
mod servers;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use self::proxy::Proxy;
use self::servers::{AZURE_ACCOUNT, AZURE_KEY, S3_KEYS, Server, Speaks};
use super::super::laws::{self, bytes_of, hold_for, listed, put, staged, sum_of};
use super::super::retry::{self, Retry};
use super::*;
use crate::config::Secret;

const ID: [u8; 16] = [7; 16];
const MIB: usize = 1 << 20;
const TRY_AGAIN: retry::Options =
    retry::Options { max_trys: 5, interval: Duration::from_millis(5), read_deadline: Duration::from_secs(9) };

fn options(server: &Server, speaks: Speaks, dir: &Path, bucket: &str) -> Options {
    let service = match speaks {
        Speaks::S3 | Speaks::S3Versions => Service::S3 {
            region: String::new(),
            credentials: Some((S3_KEYS.0.into(), Secret::new(S3_KEYS.1))),
            path_style: true,
        },
        Speaks::Azure => Service::Azure { account: AZURE_ACCOUNT.into(), key: Some(Secret::new(AZURE_KEY)) },
    };
    Options {
        dir: dir.join("state"),
        service,
        endpoint: Some(server.address()),
        bucket: bucket.into(),
        path: "filestore".into(),
        instance_credentials: false,
        max_connections: 64,
        connection_timeout: Duration::from_secs(5),
        socket_timeout: Duration::from_secs(15),
        multipart_limit: 6 << 20,
        multipart_element_size: 5 << 20,
        test_connection: true,
    }
}

/// A bucket of a server, with a proxy before it.
struct Place {
    server: Server,
    proxy: Proxy,
    dir: TempDir,
    options: Options,
}

impl Place {
    fn of(speaks: Speaks) -> Place {
        let (server, dir) = (Server::start(speaks), tempfile::tempdir().unwrap());
        let bucket = server.bucket();
        let proxy = Proxy::start(server.port()).unwrap();
        let mut options = options(&server, speaks, dir.path(), &bucket);
        options.endpoint = Some(server.address_by(proxy.port()));
        Place { server, proxy, dir, options }
    }

    fn store(&self) -> ObjectStore {
        ObjectStore::create(&self.options, ID).unwrap();
        ObjectStore::open(&self.options, ID).unwrap()
    }

    /// The file of an object.
    fn object(&self, sum: &Checksum) -> PathBuf {
        let name = sum.to_string();
        self.server.directory(&self.options.bucket).join("filestore").join(&name[..2]).join(name)
    }

    fn methods(&self) -> Vec<String> {
        self.proxy.seen().into_iter().map(|seen| seen.method).collect()
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// As in every template, with `retry` before it: rclone answers 500 now and then when two first objects come to one directory.
fn laws_hold_for(speaks: Speaks) {
    let server = Server::start(speaks);
    hold_for(|| {
        let dir = tempfile::tempdir().unwrap();
        let options = options(&server, speaks, dir.path(), &server.bucket());
        ObjectStore::create(&options, ID).unwrap();
        let store = ObjectStore::open(&options, ID).unwrap();
        (dir, Arc::new(Retry::over(Arc::new(store), TRY_AGAIN)))
    });
}

#[test]
fn the_laws_hold_on_s3() {
    laws_hold_for(Speaks::S3);
}

#[test]
fn the_laws_hold_on_azure() {
    laws_hold_for(Speaks::Azure);
}

fn many_parts_make_one_object(speaks: Speaks) {
    let place = Place::of(speaks);
    let store = place.store();
    let bytes = noise(13 * MIB + 5);
    let sum = put(&store, &bytes);
    let blob = laws::open(&store, &sum).unwrap();
    assert_eq!(blob.size(), bytes.len() as u64);
    let mut buffer = vec![0; 3 * MIB];
    assert_eq!(blob.read_at(&mut buffer, 4 << 20).unwrap(), buffer.len());
    assert_eq!(buffer, bytes[4 * MIB..7 * MIB]);
    let Blob::Remote(remote) = &blob else { panic!("{blob:?}") };
    let mut streamed = Vec::new();
    let mut take = |piece: &[u8]| {
        streamed.extend_from_slice(piece);
        Ok(())
    };
    remote.stream(3, &mut take).unwrap();
    assert!(streamed == bytes[3..], "{} bytes", streamed.len());
    // Put again, it stays, and nothing of it is sent.
    place.proxy.forget();
    put(&store, &bytes);
    assert_eq!(place.methods(), ["HEAD"]);
    // What is not what its name says becomes no object.
    let (sum, offer) = staged(&store, &noise(7 * MIB));
    let wrong = Checksum([9; 20]);
    let refused = store.put(&[(wrong, offer)]);
    assert!(matches!(refused, Err(Error::Altered(found)) if found == wrong), "{refused:?}");
    assert_eq!((store.stat(&wrong).unwrap(), store.stat(&sum).unwrap()), (None, None));
}

#[test]
fn many_parts_make_one_object_on_s3() {
    many_parts_make_one_object(Speaks::S3);
}

#[test]
fn many_parts_make_one_object_on_azure() {
    many_parts_make_one_object(Speaks::Azure);
}

#[test]
fn opening_a_blob_of_known_size_asks_for_nothing() {
    let place = Place::of(Speaks::S3);
    let store = place.store();
    let sum = put(&store, b"some bytes");
    place.proxy.forget();
    let blob = store.open(&sum, Some(10)).unwrap().unwrap();
    let absent = store.open(&sum_of(b"never put"), Some(3)).unwrap().unwrap();
    assert_eq!(place.methods(), [""; 0]);
    assert_eq!(bytes_of(&blob), b"some bytes");
    let mut four = [0; 4];
    assert_eq!(blob.read_at(&mut four, 3).unwrap(), 4);
    assert_eq!(&four, b"e by");
    assert_eq!(blob.read_at(&mut four, 10).unwrap(), 0);
    assert_eq!(absent.read_at(&mut four, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    let seen: Vec<_> = place.proxy.seen().into_iter().map(|seen| (seen.method, seen.range)).collect();
    let get = |range| ("GET".to_owned(), Some(range));
    assert_eq!(seen, [get((0, 9)), get((3, 6)), get((0, 2))]);
    place.proxy.forget();
    put(&store, b"other bytes");
    assert_eq!(place.methods(), ["PUT"], "one request for a small blob");
}

#[test]
fn an_object_that_changes_below_its_reader_is_no_longer_read() {
    let place = Place::of(Speaks::S3);
    let store = place.store();
    for (altered, first) in
        [(&b"Some bytes"[..], true), (b"some", true), (b"some", false), (b"some bytes more", false)]
    {
        let sum = sum_of(b"some bytes");
        store.put_copy(&sum, &laws::open(&store, &put(&store, b"some bytes")).unwrap()).unwrap();
        let blob = store.open(&sum, Some(10)).unwrap().unwrap();
        if first {
            blob.read_at(&mut [0; 4], 0).unwrap();
        }
        fs::write(place.object(&sum), altered).unwrap();
        place.server.refresh();
        let found = blob.read_at(&mut [0; 4], 0).unwrap_err();
        assert_eq!(found.kind(), io::ErrorKind::InvalidData, "{altered:?}: {found}");
        if altered.len() == 10 {
            continue;
        }
        let Blob::Remote(remote) = &blob else { panic!("{blob:?}") };
        remote.stream(0, &mut |_| Ok(())).unwrap_err();
        // A put heals an object of another size, for those who have it open as well.
        put(&store, b"some bytes");
        let _ = blob.read_at(&mut [0; 4], 0);
        assert_eq!(bytes_of(&blob), b"some bytes");
    }
}

#[test]
fn a_removed_blob_that_is_read_goes_with_its_last_reader() {
    let place = Place::of(Speaks::S3);
    let store = place.store();
    let sum = put(&store, b"still read");
    let blob = store.open(&sum, Some(10)).unwrap().unwrap();
    assert!(store.remove(&sum).unwrap() && !store.remove(&sum).unwrap());
    assert_eq!((store.stat(&sum).unwrap(), store.locate(&sum).unwrap()), (None, vec![]));
    assert!(listed(&store, None).iter().all(|(name, _)| *name != sum.to_string()));
    assert!(place.object(&sum).exists());
    drop(blob);
    let start = Instant::now();
    while place.object(&sum).exists() {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
    let sum = put(&store, b"put again");
    let blob = store.open(&sum, Some(9)).unwrap().unwrap();
    assert!(store.remove(&sum).unwrap());
    put(&store, b"put again");
    drop(blob);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(bytes_of(&laws::open(&store, &sum).unwrap()), b"put again");
}

#[test]
fn a_prefix_belongs_to_one_depot() {
    let place = Place::of(Speaks::S3);
    let store = place.store();
    put(&store, b"bytes");
    drop(store);
    let (elsewhere, another) = (tempfile::tempdir().unwrap(), [8; 16]);
    let options = Options { dir: elsewhere.path().join("state"), ..place.options.clone() };
    let refused = ObjectStore::create(&options, another).unwrap_err();
    assert!(matches!(refused, Error::Foreign { .. }), "{refused}");
    assert!(refused.to_string().contains("s3://bucket") && refused.to_string().contains("/filestore"));
    // Whoever looks late is refused before anything is changed.
    let late = Options { test_connection: false, ..options.clone() };
    ObjectStore::create(&late, another).unwrap();
    let store = ObjectStore::open(&late, another).unwrap();
    let one = staged(&store, b"more bytes");
    assert!(matches!(store.put(&[one]), Err(Error::Foreign { .. })));
    assert!(matches!(store.remove(&sum_of(b"bytes")), Err(Error::Foreign { .. })));
    // Another path of the bucket is free, and a bucket that was emptied is told.
    let beside = Options { path: "other/place".into(), ..late.clone() };
    let store = ObjectStore::open(&beside, another).unwrap();
    let sum = put(&store, b"more bytes");
    assert_eq!(listed(&store, None).len(), 2, "with the empty blob");
    assert_eq!(store.status().directory.unwrap().to_str().unwrap().rsplit_once('/').unwrap().1, "place");
    drop(store);
    let objects = place.server.directory(&place.options.bucket).join("other/place");
    fs::remove_file(objects.join(".depotfs")).unwrap();
    place.server.refresh();
    let store = ObjectStore::open(&beside, another).unwrap();
    let refused = store.remove(&sum).unwrap_err();
    assert!(refused.to_string().contains("which it had before"), "{refused}");
}

#[test]
fn what_is_no_blob_is_told_as_a_stray() {
    let place = Place::of(Speaks::S3);
    let store = place.store();
    let sum = put(&store, b"bytes");
    let objects = place.server.directory(&place.options.bucket).join("filestore");
    fs::create_dir_all(objects.join("zz")).unwrap();
    for stray in ["readme", "zz/file", &format!("zz/{sum}")] {
        fs::write(objects.join(stray), "x").unwrap();
    }
    place.server.refresh();
    let strays: Vec<_> = listed(&store, None).into_iter().filter(|(_, size)| size.is_none()).collect();
    assert_eq!(strays.len(), 3, "{strays:?}");
}

#[test]
fn a_server_that_is_away_is_told_so_soon() {
    let mut place = Place::of(Speaks::S3);
    let sum = put(&place.store(), b"bytes");
    place.server.kill();
    let store = ObjectStore::open(&place.options, ID).unwrap();
    let one = staged(&store, b"more");
    for _ in 0..4 {
        let error = store.put(std::slice::from_ref(&one)).unwrap_err();
        assert!(error.is_transient(), "{error}");
    }
    assert!(matches!(store.status().health, Health::Failing(_)));
    place.proxy.forget();
    let error = store.stat(&sum).unwrap_err();
    assert!(text::chain(&error).contains("times in a row"), "{}", text::chain(&error));
    assert_eq!(place.proxy.seen().len(), 0, "nobody is asked");
    let blob = store.open(&sum, Some(5)).unwrap().unwrap();
    assert!(super::super::error::is_transient(&blob.read_at(&mut [0; 5], 0).unwrap_err()));
    place.server.restart();
    let start = Instant::now();
    while store.put(std::slice::from_ref(&one)).is_err() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(bytes_of(&blob), b"bytes");
    assert_eq!(store.status().health, Health::Up);
}

#[test]
fn a_server_that_stalls_is_waited_for_a_bounded_time() {
    let mut place = Place::of(Speaks::S3);
    place.options.socket_timeout = Duration::from_millis(300);
    let store = place.store();
    let sum = put(&store, &noise(2 * MIB));
    let blob = store.open(&sum, Some(2 << 20)).unwrap().unwrap();
    place.proxy.stall(true);
    let start = Instant::now();
    let error = blob.read_at(&mut [0; 4], 0).unwrap_err();
    assert!(super::super::error::is_transient(&error), "{error}");
    let told = text::chain(error.get_ref().unwrap());
    assert!(told.contains("no answer came within 0.3 s") && told.contains("s3://bucket"), "{told}");
    assert!(start.elapsed() < Duration::from_secs(10));
    place.proxy.stall(false);
    assert_eq!(bytes_of(&blob), noise(2 * MIB));
}

/// A request that nobody waits for any more can be on its way still.
#[test]
fn a_deletion_that_comes_late_takes_nothing_that_was_put_since() {
    let mut place = Place::of(Speaks::S3);
    place.options.socket_timeout = Duration::from_millis(500);
    let store = place.store();
    for with_reader in [false, true] {
        let one = staged(&store, b"put, removed and put again");
        store.put(std::slice::from_ref(&one)).unwrap();
        let reader = with_reader.then(|| store.open(&one.0, Some(26)).unwrap().unwrap());
        place.proxy.forget();
        let await_request = |method: &str| {
            let begun = Instant::now();
            while !place.proxy.seen().iter().any(|seen| seen.method == method) {
                assert!(begun.elapsed() < Duration::from_secs(20), "{method}: {:?}", place.proxy.seen());
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let late = Duration::from_millis(1200);
        match reader {
            Some(reader) => {
                assert!(store.remove(&one.0).unwrap());
                place.proxy.delay(late);
                drop(reader);
                await_request("POST");
                std::thread::sleep(Duration::from_millis(100));
            }
            None => std::thread::scope(|scope| {
                // It is asked first whether there is anything to delete.
                place.proxy.delay(Duration::from_millis(300));
                let removal = scope.spawn(|| store.remove(&one.0));
                await_request("HEAD");
                std::thread::sleep(Duration::from_millis(100));
                place.proxy.delay(late);
                assert!(removal.join().unwrap().is_err());
            }),
        }
        place.proxy.delay(Duration::ZERO);
        let (begun, mut gone) = (Instant::now(), false);
        // It is refused as long as the deletion may come, which it does meanwhile.
        while let Err(error) = store.put(std::slice::from_ref(&one)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
            gone |= !place.object(&one.0).exists();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(gone, "the deletion came late");
        assert_eq!(bytes_of(&store.open(&one.0, Some(26)).unwrap().unwrap()), b"put, removed and put again");
        assert!(store.remove(&one.0).unwrap());
    }
}

#[test]
fn troubles_of_a_server_pass_and_refusals_do_not() {
    let place = Place::of(Speaks::S3);
    let store = place.store();
    let sum = put(&store, b"bytes");
    for (status, transient) in
        [(500, true), (503, true), (429, true), (408, true), (403, false), (401, false), (400, false)]
    {
        place.proxy.fail(status, 1);
        let error = store.stat(&sum).unwrap_err();
        assert_eq!(error.is_transient(), transient, "{status}: {}", text::chain(&error));
        assert_eq!(store.stat(&sum).unwrap(), Some(5));
    }
    let retry = Retry::over(Arc::new(store), TRY_AGAIN);
    place.proxy.fail(503, 2);
    assert_eq!(retry.stat(&sum).unwrap(), Some(5));
    place.proxy.fail(500, 2);
    let sum = put(&retry, &noise(11 * MIB));
    let blob = laws::open(&retry, &sum).unwrap();
    place.proxy.cut_after(3 << 20);
    let Blob::Remote(remote) = &blob else { panic!("{blob:?}") };
    let mut streamed = Vec::new();
    let mut take = |piece: &[u8]| {
        streamed.extend_from_slice(piece);
        Ok(())
    };
    remote.stream(0, &mut take).unwrap();
    assert!(streamed == noise(11 * MIB));
}

#[test]
fn wrong_credentials_and_buckets_are_told() {
    let mut place = Place::of(Speaks::S3);
    let right = place.options.clone();
    let told = |options: &Options| text::chain(&ObjectStore::create(options, ID).unwrap_err());
    place.options.bucket = "nowhere".into();
    let text = told(&place.options);
    assert!(text.contains("s3://nowhere/filestore/.depotfs") && text.contains("NoSuchBucket"), "{text}");
    place.options = right;
    let Service::S3 { credentials, .. } = &mut place.options.service else { panic!() };
    *credentials = Some(("someone".into(), Secret::new("guessed")));
    let text = told(&place.options);
    assert!(text.contains("403") && !text.contains("guessed"), "{text}");
    drop(place.dir);
}

#[test]
fn what_was_deleted_or_spoilt_comes_back_from_its_versions() {
    let place = Place::of(Speaks::S3Versions);
    let store = place.store();
    let (small, large) = (put(&store, b"some bytes"), put(&store, &noise(7 * MIB)));
    let target = |sum: &Checksum| format!("/{}/{}", place.options.bucket, store.key(sum));
    place.server.plain_request("PUT", &target(&small), "SOME BYTES");
    for sum in [&small, &large] {
        place.server.plain_request("DELETE", &target(sum), "");
        assert_eq!(store.stat(sum).unwrap(), None);
    }
    assert!(!store.bring_back(&small, 11).unwrap(), "no version has so many bytes");
    assert!(!store.bring_back(&sum_of(b"never put"), 9).unwrap());
    assert!(store.bring_back(&small, 10).unwrap() && store.bring_back(&large, 7 << 20).unwrap());
    assert_eq!(bytes_of(&laws::open(&store, &small).unwrap()), b"some bytes");
    assert!(bytes_of(&laws::open(&store, &large).unwrap()) == noise(7 * MIB));
    // A service whose versions are not known says so.
    let azure = Place::of(Speaks::Azure).store();
    let refused = text::chain(&azure.bring_back(&small, 10).unwrap_err());
    assert!(refused.contains("not known of azure-blob-storage"), "{refused}");
}

#[test]
fn parts_of_an_upload_that_failed_are_thrown_away_though_the_server_counts_as_away() {
    let place = Place::of(Speaks::S3);
    let store = place.store();
    let bytes = noise(12 * MIB);
    let read = |buffer: &mut [u8], offset: u64| {
        // The first part fails, and what others ask for meanwhile.
        if offset == 0 {
            place.proxy.fail(503, 1);
        } else {
            while store.server.breaker.trouble().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            while store.server.breaker.allows().is_ok() {
                store.server.breaker.failed("busy".into());
            }
        }
        let part = &bytes[offset as usize..];
        let n = part.len().min(buffer.len());
        buffer[..n].copy_from_slice(&part[..n]);
        Ok(n)
    };
    let sum = sum_of(&bytes);
    let source = Source { sum, key: store.key(&sum), size: bytes.len() as u64, read: &read, replace: false };
    place.proxy.forget();
    let error = in_parts(&store.server, &source, 5 << 20).unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(place.methods().last().map(String::as_str), Some("DELETE"), "{:?}", place.methods());
    assert_eq!(store.stat(&sum).unwrap(), None, "its answer ended the time of being away");
}

#[test]
fn a_server_that_sends_a_little_now_and_then_holds_up_no_reader() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let trickle = move || -> io::Result<()> {
        let (mut client, _) = listener.accept()?;
        let _ = client.read(&mut [0; 64 << 10])?;
        let head = "HTTP/1.1 206 Partial Content\r\nContent-Length: 65536\r\nContent-Range: bytes 0-65535/65536\r\n\
            ETag: \"1\"\r\nLast-Modified: Sun, 22 Nov 2026 10:00:00 GMT\r\n\r\n";
        client.write_all(head.as_bytes())?;
        loop {
            client.write_all(b"x")?;
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    std::thread::spawn(trickle);
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        dir: dir.path().join("state"),
        service: Service::S3 {
            region: String::new(),
            credentials: Some(("someone".into(), Secret::new("guessed"))),
            path_style: true,
        },
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        bucket: "bucket".into(),
        path: "filestore".into(),
        instance_credentials: false,
        max_connections: 4,
        connection_timeout: Duration::from_secs(5),
        socket_timeout: Duration::from_millis(500),
        multipart_limit: 6 << 20,
        multipart_element_size: 5 << 20,
        test_connection: false,
    };
    ObjectStore::create(&options, ID).unwrap();
    let store = ObjectStore::open(&options, ID).unwrap();
    let blob = store.open(&sum_of(b"any"), Some(65_536)).unwrap().unwrap();
    let start = Instant::now();
    let error = blob.read_at(&mut vec![0; 65_536], 0).unwrap_err();
    assert!(super::super::error::is_transient(&error), "{error}");
    let told = text::chain(error.get_ref().unwrap());
    assert!(told.contains("no answer came within 0.5 s"), "{told}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}
