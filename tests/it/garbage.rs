//! Garbage at the daemon's other doors: its socket, and an index with altered bytes.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::data::{noise, rw};
use crate::harness::{Depot, eventually, on_depot};

/// What a peer gets for these bytes until the daemon hangs up.
fn answer(depot: &Depot, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(depot.dir.join("control.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    said
}

fn kib(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn peers_of_the_daemon_cannot_harm_it() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), noise(1, 300_000)).unwrap();
        depot.flush();
        let pid = depot.pid();
        let (memory, descriptors) =
            (kib(pid, "VmRSS:"), fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count());
        let envelope = |request: &str| format!("{{\"v\":1,\"request\":{request}}}\n").into_bytes();
        let long = "x".repeat(60_000);
        let lines: Vec<Vec<u8>> = vec![
            vec![b'x'; 30 << 20],
            vec![b'['; 60_000],
            b"{\"v\":1,\"request\":\"flush\"".to_vec(),
            envelope(
                "\"repo-set\",\"repository\":\"repo\",\"settings\":[[\"durability\",\"close\\u0000\"],[\"x\",null]]",
            ),
            envelope(&format!("\"repo-show\",\"repository\":\"{long}\"")),
            envelope("\"repo-show\",\"repository\":\"..\""),
            envelope("\"repo-set\",\"repository\":\".trash\",\"settings\":[[\"verify\",\"always\"]]"),
            envelope("\"blob-cat\",\"target\":{\"checksum\":\"../../etc/passwd\"}"),
            envelope("\"blob-cat\",\"target\":{\"tree\":\"../../../etc/passwd\"}"),
            envelope("\"blob-cat\",\"target\":{\"tree\":[0,255,47,46,46]}"),
            envelope("\"blob-rescue\",\"target\":{\"aside\":\"../depot.toml\"}"),
            envelope("\"blob-locate\",\"target\":{\"mount\":\"\"}"),
            envelope("\"blob-checksum\",\"target\":{\"tree\":\"repo\"}"),
            envelope(&format!("\"log-level\",\"level\":\"info,[{{x={long}}}]=debug\"")),
            envelope("\"log-level\",\"level\":\"\""),
        ];
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for line in &lines {
                        let said = answer(depot, line);
                        // Nothing where the line was not whole, or the daemon was busy with too many and hung up.
                        let refused = said.is_empty()
                            || said.starts_with(b"{\"error\":")
                            || said.starts_with(b"{\"ok\":");
                        assert!(refused, "{}", String::from_utf8_lossy(&said[..said.len().min(300)]));
                        let text = String::from_utf8_lossy(&said);
                        assert!(!text.contains("root:") && !text.contains("template ="), "{text}");
                    }
                });
            }
        });
        for round in 0..300 {
            let mut stream = UnixStream::connect(depot.dir.join("control.sock")).unwrap();
            let _ = stream.write_all(&envelope("\"blob-cat\",\"target\":{\"tree\":\"repo/file\"}"));
            if round % 2 == 0 {
                let _ = stream.read(&mut [0; 1000]);
            }
        }
        // Whoever asks properly is answered, by the same daemon, which has kept nothing.
        eventually("places to be free again", || depot.cli(&["metrics", depot.dir_str()]).code == Some(0));
        assert_eq!(depot.pid(), pid);
        let open = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        // The index keeps some connections for those who read it at once, with three descriptors each; 300 peers came.
        eventually("descriptors to be closed", || open() <= descriptors + 40);
        assert!(
            kib(pid, "VmRSS:") < memory + (48 << 10),
            "memory: {memory} KiB, {} after",
            kib(pid, "VmRSS:")
        );
        assert!(fs::read(depot.path("repo/file")).unwrap() == noise(1, 300_000));
        assert!(!depot.log().contains("defect: "), "{}", depot.log());
        depot.umount();
        depot.check();
    });
}

/// Everything that can be looked at below a directory; what fails is left out.
fn walk(dir: &Path, depth: usize) -> usize {
    let mut seen = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().take(1000) {
        seen += 1;
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() && depth > 0 => seen += walk(&path, depth - 1),
            // A size may be anything; nothing is to be read to its end.
            Ok(meta) if meta.is_file() => {
                let _ = fs::File::open(&path).and_then(|file| file.read_at(&mut [0; 5000], 0));
            }
            _ => drop(fs::read_link(&path)),
        }
        let _ = crate::sys::listxattr(&path);
    }
    seen
}

#[test]
fn an_index_with_altered_bytes_is_refused_or_served_without_a_defect() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir_all(depot.path("repo/a/b")).unwrap();
        for i in 0..200 {
            fs::write(depot.path(format!("repo/a/f{i}")), noise(i, 3000)).unwrap();
        }
        std::os::unix::fs::symlink("target", depot.path("repo/a/b/link")).unwrap();
        crate::sys::setxattr(depot.path("repo/a/f1"), "user.x", b"y", 0).unwrap();
        depot.umount();
        let index = depot.dir.join("index.db");
        let sound = fs::read(&index).unwrap();
        let (mut refused, mut served) = (0, 0);
        for seed in 1..=16_u64 {
            for name in ["index.db-wal", "index.db-shm"] {
                let _ = fs::remove_file(depot.dir.join(name));
            }
            fs::write(&index, &sound).unwrap();
            let dice = noise(seed, 200);
            for flip in dice.chunks_exact(8).take(1 + seed as usize) {
                let number = u64::from_le_bytes(flip.try_into().unwrap());
                // The head of the first page tells whose file it is, which is another test's.
                let at = 100 + number % (sound.len() as u64 - 100);
                rw(&index).write_all_at(&[(number >> 50) as u8], at).unwrap();
            }
            let checked = depot.cli(&["check", depot.dir_str()]);
            assert!(
                matches!(checked.code, Some(0 | 1 | 4)),
                "seed {seed}: check: {:?} {}",
                checked.code,
                checked.err
            );
            assert!(!checked.err.contains("panicked"), "seed {seed}: {}", checked.err);
            let mounted = depot.mount_with("");
            match mounted.code {
                Some(0) => {
                    walk(&depot.mountpoint, 8);
                    let _ = fs::write(depot.path("repo/a/new"), "x");
                    let _ = fs::remove_file(depot.path("repo/a/f3"));
                    let _ = depot.status();
                    assert_eq!(depot.daemons().len(), 1, "seed {seed}: the daemon is gone\n{}", depot.log());
                    let _ = depot.cli(&["umount", depot.mountpoint_str()]);
                    eventually("the daemon to end", || depot.daemons().is_empty());
                    served += 1;
                }
                code => {
                    assert_eq!(code, Some(1), "seed {seed}: mount: {}", mounted.err);
                    assert!(mounted.err.contains("index.db"), "seed {seed}: {}", mounted.err);
                    refused += 1;
                }
            }
            let log = depot.log();
            assert!(!log.contains("defect: ") && !log.contains("panicked"), "seed {seed}: {log}");
        }
        assert!(refused + served == 16 && served > 0, "{refused} refused, {served} served");
        fs::write(&index, &sound).unwrap();
        for name in ["index.db-wal", "index.db-shm"] {
            let _ = fs::remove_file(depot.dir.join(name));
        }
    });
}
