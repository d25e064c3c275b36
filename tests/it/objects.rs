//! Depots whose blobs are objects of a bucket: what is there after outages, what damage there does, what a user is told.

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::data::noise;
use crate::harness::{Depot, Fails, Mode, Proxy, S3_KEYS, Server, Speaks, eventually, guarded, sha1};

/// Deadlines that a test can wait for.
const SOON: &[&str] = &["s3-storage-v3.socket-timeout=500ms", "retry.read-deadline=1s", "retry.max-trys=2"];

/// A depot whose server is reached by a proxy, mounted, with a repository.
fn behind_a_proxy(settings: &[&str]) -> (Server, Proxy, Depot) {
    let server = Server::start(Speaks::S3);
    let proxy = Proxy::start(server.port()).unwrap();
    let depot = Depot::in_bucket(&server, proxy.port(), settings);
    depot.mount();
    fs::create_dir(depot.path("repo")).unwrap();
    (server, proxy, depot)
}

#[test]
fn blobs_are_objects_named_as_artifactory_names_them() {
    guarded(|| {
        let depot = Depot::new(Mode::Objects);
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        let (small, large) = (noise(1, 10_000), noise(2, 70_000_000));
        fs::write(repo.join("small"), &small).unwrap();
        fs::write(repo.join("large"), &large).unwrap();
        depot.flush();
        let sum = sha1(&small);
        assert!(depot.blob(&sum).ends_with(format!("filestore/{}/{sum}", &sum[..2])));
        let told = depot.cli(&["blob", "locate", depot.dir_str(), &sum]).ok();
        assert!(
            told.contains("s3://bucket") && told.contains(&format!("/filestore/{}/{sum}", &sum[..2])),
            "{told}"
        );
        let status = depot.status();
        assert_eq!(status["chain"][0]["kind"], "retry");
        assert_eq!(status["chain"][0]["children"][0]["kind"], "s3-storage-v3");
        assert_eq!(status["chain"][0]["health"], "up");
        depot.umount();
        depot.mount();
        assert!(fs::read(repo.join("large")).unwrap() == large);
        assert_eq!(fs::read(repo.join("small")).unwrap(), small);
        // Written again in the middle.
        let file = fs::OpenOptions::new().write(true).open(repo.join("small")).unwrap();
        file.write_all_at(b"new", 5_000).unwrap();
        drop(file);
        depot.flush();
        assert_eq!(
            &fs::read(repo.join("small")).unwrap()[4_998..5_004],
            [&small[4_998..5_000], b"new", &small[5_003..5_004]].concat()
        );
        fs::remove_file(repo.join("large")).unwrap();
        eventually("the object to be deleted", || !depot.blobs().contains(&sha1(&large)));
        depot.umount();
        depot.verify_blobs();
        depot.check();
    });
}

/// The server goes away in the middle of an upload and comes back: nothing is lost and nothing is to be done.
#[test]
fn a_server_that_is_killed_in_the_middle_of_an_upload_is_no_loss() {
    guarded(|| {
        let (mut server, proxy, depot) = behind_a_proxy(SOON);
        let repo = depot.path("repo");
        let files: Vec<Vec<u8>> = (0..3).map(|i| noise(i, 40_000_000)).collect();
        proxy.delay(Duration::from_millis(30));
        for (i, bytes) in files.iter().enumerate() {
            fs::write(repo.join(format!("file{i}")), bytes).unwrap();
        }
        proxy.forget();
        eventually("parts to be sent", || proxy.seen().iter().any(|seen| seen.method == "PUT"));
        server.kill();
        thread::sleep(Duration::from_millis(300));
        for (i, bytes) in files.iter().enumerate() {
            assert!(
                fs::read(repo.join(format!("file{i}"))).unwrap() == *bytes,
                "what is not stored yet is read"
            );
        }
        depot.umount();
        depot.mount();
        server.restart();
        eventually("everything to be stored", || {
            // Fails as long as the server counts as away.
            depot.cli(&["flush", depot.dir_str(), "--wait"]);
            depot.blobs().len() == 3
        });
        depot.umount();
        depot.verify_blobs();
        depot.check();
    });
}

/// While the server does not answer, a reader gets EIO when its time is up, and everything else is as quick as ever.
#[test]
fn a_server_that_stalls_gives_eio_and_holds_up_nobody() {
    guarded(|| {
        let (_server, proxy, depot) = behind_a_proxy(SOON);
        let repo = depot.path("repo");
        fs::write(repo.join("file"), noise(1, 3_000_000)).unwrap();
        depot.flush();
        depot.umount();
        depot.mount();
        proxy.stall(true);
        let path = repo.join("file");
        let start = Instant::now();
        let reader = thread::spawn(move || fs::read(path).map(drop));
        let mut slowest = Duration::ZERO;
        while !reader.is_finished() {
            let begun = Instant::now();
            assert_eq!(fs::metadata(repo.join("file")).unwrap().len(), 3_000_000);
            assert_eq!(fs::read_dir(&repo).unwrap().count(), 1);
            fs::write(repo.join("other"), "x").unwrap();
            fs::remove_file(repo.join("other")).unwrap();
            slowest = slowest.max(begun.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        reader.join().unwrap().fails(Errno::EIO);
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        eventually("status to tell", || {
            fs::read(repo.join("file")).fails(Errno::EIO);
            let health = depot.status()["chain"][0]["health"]["failing"].clone();
            health.as_str().is_some_and(|why| why.contains("no answer came within 0.5 s"))
        });
        proxy.stall(false);
        eventually("the file to be read", || {
            fs::read(repo.join("file")).is_ok_and(|bytes| bytes == noise(1, 3_000_000))
        });
    });
}

/// Bytes that were changed in the bucket are found; so are objects that are gone, and writing the content again heals.
#[test]
fn damage_in_the_bucket_is_found() {
    guarded(|| {
        let server = Server::start(Speaks::S3);
        let depot = Depot::in_bucket(&server, server.port(), &[]);
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        let contents = [
            ("good", noise(1, 50_000)),
            ("lost", noise(2, 50_000)),
            ("altered", noise(3, 50_000)),
            ("cut", noise(4, 50_000)),
        ];
        for (name, bytes) in &contents {
            fs::write(repo.join(name), bytes).unwrap();
        }
        depot.flush();
        depot.umount();
        let object = |i: usize| depot.blob(&sha1(&contents[i].1));
        fs::remove_file(object(1)).unwrap();
        fs::write(object(2), noise(5, 50_000)).unwrap();
        fs::write(object(3), &contents[3].1[..40_000]).unwrap();
        server.refresh();
        let found = depot.cli(&["check", depot.dir_str()]);
        assert_eq!(found.code, Some(4), "{}", found.err);
        assert!(found.out.contains("repo/lost") && found.out.contains("repo/cut"), "{}", found.out);
        assert!(!found.out.contains("repo/good"), "{}", found.out);
        depot.mount();
        assert_eq!(fs::read(repo.join("good")).unwrap(), contents[0].1);
        fs::read(repo.join("lost")).fails(Errno::EIO);
        fs::read(repo.join("cut")).fails(Errno::EIO);
        assert_eq!(depot.cli(&["blob", "verify", depot.dir_str(), "repo/altered"]).code, Some(4));
        depot.cli(&["blob", "verify", depot.dir_str(), "repo/good"]).ok();
        for i in [1, 3] {
            fs::write(repo.join(format!("again{i}")), &contents[i].1).unwrap();
        }
        depot.flush();
        assert_eq!(fs::read(repo.join("lost")).unwrap(), contents[1].1);
        eventually("the healed file to be read", || {
            fs::read(repo.join("cut")).is_ok_and(|bytes| bytes == contents[3].1)
        });
    });
}

/// Who read a spoilt object is not given the rest of the good one that took its place, and nobody sees the two together.
#[test]
fn bytes_of_two_objects_are_never_in_one_file() {
    guarded(|| {
        let server = Server::start(Speaks::S3);
        let depot = Depot::in_bucket(&server, server.port(), &[]);
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let (file, good) = (depot.path("repo/file"), noise(1, 4_000_000));
        fs::write(&file, &good).unwrap();
        depot.flush();
        depot.umount();
        let object = depot.blob(&sha1(&good));
        let exchange = |bytes: &[u8], age: u64| {
            fs::remove_file(&object).unwrap();
            fs::write(&object, bytes).unwrap();
            let at = SystemTime::now() - Duration::from_secs(age);
            fs::File::options().write(true).open(&object).unwrap().set_modified(at).unwrap();
            server.refresh();
        };
        exchange(&noise(2, good.len()), 100);
        depot.mount();
        let early = fs::File::open(&file).unwrap();
        let mut piece = [0; 4096];
        early.read_exact_at(&mut piece, 0).unwrap();
        assert!(piece[..] != good[..4096]);
        exchange(&good, 50);
        for _ in 0..2 {
            early.read_exact_at(&mut piece, 3_000_000).fails(Errno::EIO);
        }
        assert!(fs::read(&file).unwrap() == good, "what was spoilt is not kept");
        drop(early);
        assert!(fs::read(&file).unwrap() == good);
    });
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    guarded(|| {
        let server = Server::start(Speaks::S3);
        let used = Depot::in_bucket(&server, server.port(), &[]);
        let bucket = used.objects_dir().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let depot = Depot::uninitialised(Mode::Passthrough);
        let refused = |settings: &[&str], parts: &[&str]| {
            let endpoint = format!("s3-storage-v3.endpoint={}", server.address());
            let mut args = vec!["init", depot.dir_str(), "--set", "chain=s3-storage-v3", "--set", &endpoint];
            settings.iter().for_each(|setting| args.extend(["--set", *setting]));
            let err = depot.cli(&args).fails(1);
            assert!(parts.iter().all(|part| err.contains(part)), "{settings:?}: {err}");
            assert!(!err.contains(S3_KEYS.1), "{err}");
            assert!(!depot.dir.exists(), "a refused init leaves nothing");
        };
        let (mine, identity) =
            (format!("s3-storage-v3.bucket-name={bucket}"), format!("s3-storage-v3.identity={}", S3_KEYS.0));
        let credential = format!("s3-storage-v3.credential={}", S3_KEYS.1);
        refused(&[], &["bucket-name"]);
        refused(&[&mine], &["there are no credentials", "AWS_ACCESS_KEY_ID"]);
        refused(&[&mine, &identity, &credential], &["belongs to depot", &bucket]);
        refused(
            &["s3-storage-v3.bucket-name=nowhere", &identity, &credential],
            &["s3://nowhere/filestore", "NoSuchBucket"],
        );
        refused(&[&mine, &identity, "s3-storage-v3.credential=guessed"], &["403"]);
        let free = "s3-storage-v3.path=second";
        let args = ["init", depot.dir_str(), "--set", "chain=s3-storage-v3", "--set", free];
        let endpoint = format!("s3-storage-v3.endpoint={}", server.address());
        let rest = [&endpoint, &mine, &identity, &credential].map(|setting| ["--set", setting]);
        depot.cli(&[&args[..], rest.as_flattened()].concat()).ok();
        let shown = depot.cli(&["config", "show", depot.dir_str()]).ok();
        assert!(shown.contains("s3-storage-v3.credential") && !shown.contains(S3_KEYS.1), "{shown}");
        depot.check();
    });
}

/// A mount does not need the server, and says that it is away.
#[test]
fn a_depot_is_mounted_without_its_server() {
    guarded(|| {
        let (mut server, proxy, depot) = behind_a_proxy(SOON);
        let repo = depot.path("repo");
        fs::write(repo.join("before"), noise(1, 50_000)).unwrap();
        depot.flush();
        depot.umount();
        server.kill();
        depot.mount();
        fs::write(repo.join("during"), noise(2, 50_000)).unwrap();
        assert_eq!(fs::read(repo.join("during")).unwrap(), noise(2, 50_000));
        fs::read(repo.join("before")).fails(Errno::EIO);
        eventually("status to tell", || depot.status()["chain"][0]["health"]["failing"].is_string());
        depot.umount();
        depot.mount();
        assert_eq!(fs::read(repo.join("during")).unwrap(), noise(2, 50_000));
        server.restart();
        eventually("all to be well", || {
            // Fails as long as the server counts as away.
            depot.cli(&["flush", depot.dir_str(), "--wait"]);
            depot.blobs().len() == 2
        });
        eventually("the other file to be read", || {
            fs::read(repo.join("before")).is_ok_and(|bytes| bytes == noise(1, 50_000))
        });
        assert_eq!(depot.status()["chain"][0]["health"], "up");
        drop(proxy);
    });
}

/// What was altered in the bucket is replaced by the cached copy, also by way of a queue.
#[test]
fn what_was_altered_in_the_bucket_is_healed_from_the_cache() {
    guarded(|| {
        let server = Server::start(Speaks::S3);
        for chain in ["cache-fs,retry,s3-storage-v3", "cache-fs,eventual,retry,s3-storage-v3"] {
            let depot = Depot::in_bucket(&server, server.port(), &[&format!("chain={chain}")]);
            depot.mount();
            fs::create_dir(depot.path("repo")).unwrap();
            // Of a size that an upload asks for first.
            let (file, bytes) = (depot.path("repo/file"), noise(1, 12_000_000));
            fs::write(&file, &bytes).unwrap();
            depot.flush();
            depot.cli(&["flush", depot.dir_str(), "--wait"]).ok();
            depot.cli(&["warm", depot.dir_str(), "repo"]).ok();
            let object = depot.blob(&sha1(&bytes));
            let verify = || depot.cli(&["blob", "verify", depot.dir_str(), "repo/file"]);
            verify().ok();
            let mut altered = bytes.clone();
            altered[7_000_000] ^= 1;
            for damage in ["altered", "missing"] {
                match damage {
                    "altered" => fs::write(&object, &altered).unwrap(),
                    _ => fs::remove_file(&object).unwrap(),
                }
                server.refresh();
                let found = verify();
                assert!(
                    found.code == Some(4) && found.err.contains("put back from a good copy"),
                    "{chain}, {damage}: {}",
                    found.err
                );
                assert!(fs::read(&object).unwrap() == bytes, "{chain}, {damage}");
                verify().ok();
            }
            depot.umount();
            depot.mount();
            depot.cli(&["cache", "drop", depot.dir_str(), "--all"]).ok();
            assert!(fs::read(&file).unwrap() == bytes, "{chain}");
            // It is removed like any other.
            fs::remove_file(&file).unwrap();
            depot.umount();
        }
    });
}

/// Has everything uploaded, and nothing of it on this host.
fn leave_to_the_server(depot: &Depot) {
    depot.cli(&["flush", depot.dir_str(), "--wait"]).ok();
    depot.umount();
    depot.mount();
    eventually("the cache to be empty", || {
        depot.cli(&["cache", "drop", depot.dir_str(), "--all"]).ok();
        crate::cache::cache(depot)["entries"] == 0
    });
}

/// However far the kernel reads ahead: of one who says that he reads in order it is twice as far.
#[test]
fn one_who_reads_in_order_has_nothing_fetched_twice() {
    guarded(|| {
        const LEN: usize = 48 << 20;
        let chain = "chain=cache-fs,eventual,retry,s3-storage-v3";
        let (_server, proxy, depot) = behind_a_proxy(&[chain]);
        let contents = [noise(1, LEN), noise(2, LEN)];
        let path = |i: usize| depot.path(format!("repo/file{i}"));
        contents.iter().enumerate().for_each(|(i, bytes)| fs::write(path(i), bytes).unwrap());
        leave_to_the_server(&depot);
        proxy.delay(Duration::from_millis(50));
        for (i, bytes) in contents.iter().enumerate() {
            proxy.forget();
            let file = fs::File::open(path(i)).unwrap();
            if i == 1 {
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL).unwrap();
            }
            let (mut read, mut buffer) = (0, vec![0; 128 << 10]);
            while read < LEN {
                let n = file.read_at(&mut buffer, read as u64).unwrap();
                assert!(n > 0 && buffer[..n] == bytes[read..read + n], "{n} bytes at {read}");
                read += n;
            }
            let received: u64 = proxy.seen().iter().map(|seen| seen.received()).sum();
            assert!((LEN as u64..LEN as u64 * 51 / 50).contains(&received), "{received} of {LEN} bytes");
        }
    });
}

/// Where answers take long, pieces stay small: who follows the arrival sees it move.
#[test]
fn a_slow_server_is_asked_for_little_at_a_time() {
    guarded(|| {
        let bytes = noise(3, 4 << 20);
        let (_server, proxy, depot) = behind_a_proxy(&["chain=cache-fs,eventual,retry,s3-storage-v3"]);
        fs::write(depot.path("repo/file"), &bytes).unwrap();
        leave_to_the_server(&depot);
        proxy.forget();
        proxy.delay(Duration::from_millis(1_200));
        assert!(fs::read(depot.path("repo/file")).unwrap() == bytes);
        let lengths: Vec<u64> =
            proxy.seen().iter().filter_map(|seen| seen.range).map(|(first, last)| last - first + 1).collect();
        assert!(lengths.len() >= 5 && lengths.iter().all(|length| *length <= 1 << 20), "{lengths:?}");
    });
}

/// An object that was deleted by mistake comes back from a bucket that keeps versions.
#[test]
fn check_brings_back_what_was_deleted_by_mistake() {
    guarded(|| {
        let server = Server::start(Speaks::S3Versions);
        let depot = Depot::in_bucket(&server, server.port(), &[]);
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/kept"), noise(1, 20_000)).unwrap();
        fs::write(depot.path("repo/lost"), noise(2, 20_000)).unwrap();
        depot.flush();
        depot.umount();
        let sum = sha1(&noise(2, 20_000));
        let bucket = depot.objects_dir().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        server.plain_request("DELETE", &format!("/{bucket}/filestore/{}/{sum}", &sum[..2]), "");
        let found = depot.cli(&["check", depot.dir_str()]);
        assert!(found.code == Some(4) && found.out.contains("repo/lost"), "{}{}", found.out, found.err);
        let told = depot.cli(&["check", depot.dir_str(), "--from-versions"]).ok();
        assert!(told.contains("put back from an earlier version"), "{told}");
        depot.check();
        depot.mount();
        assert_eq!(fs::read(depot.path("repo/lost")).unwrap(), noise(2, 20_000));
        // While it is mounted, a look at one blob does the same: also of one that was overwritten.
        for (method, body) in [("DELETE", ""), ("PUT", "something else")] {
            server.plain_request(method, &format!("/{bucket}/filestore/{}/{sum}", &sum[..2]), body);
            let found = depot.cli(&["blob", "verify", depot.dir_str(), "repo/lost"]);
            assert!(
                found.code == Some(4) && found.err.contains("put back from an earlier version"),
                "{method}: {}",
                found.err
            );
            depot.cli(&["blob", "verify", depot.dir_str(), "repo/lost"]).ok();
        }
    });
}
