//! Many at once: on the same names, in the same files, with more files open than a descriptor table likes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::data::{noise, rw};
use crate::harness::Tree;
use crate::sys::{Map, copy_range};

modes!(every_chain: shared_names_under_attack, one_file_many_writers, seals_and_writers, thousands_of_open_files);

/// How long each attack goes on.
const WHILE: Duration = Duration::from_millis(1500);

/// Length of every file whose bytes are all the same.
const UNIFORM: usize = 20_000;

/// Errors that races between names bring about on any file system.
const HARMLESS: [Errno; 6] =
    [Errno::ENOENT, Errno::EEXIST, Errno::ENOTEMPTY, Errno::ENOTDIR, Errno::EISDIR, Errno::EMLINK];

#[track_caller]
pub fn harmless<T>(what: &str, result: io::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) => {
            let errno = e.raw_os_error().map(Errno::from_raw);
            assert!(errno.is_some_and(|e| HARMLESS.contains(&e)), "{what}: {e}");
            None
        }
    }
}

#[track_caller]
fn uniform(what: &str, bytes: &[u8]) {
    assert_eq!(bytes.len(), UNIFORM, "{what}: length");
    assert!(bytes.iter().all(|b| *b == bytes[0]), "{what}: bytes of two versions");
}

fn shared_names_under_attack(t: &Tree) {
    fs::create_dir_all(t.path("d/e")).unwrap();
    let end = Instant::now() + WHILE;
    std::thread::scope(|s| {
        for worker in 0..4_u64 {
            s.spawn(move || {
                let mut random = noise(worker + 1, 200_000).into_iter();
                while Instant::now() < end {
                    let mut pick = |n: u8| random.next().unwrap_or(0) % n;
                    let name = |n: u8| t.path(["a", "b", "d/c", "d/e/f", "d/g"][usize::from(n)]);
                    let (one, two, what) = (name(pick(5)), name(pick(5)), pick(10));
                    attack(t, worker, what, one, two);
                }
            });
        }
    });
}

fn attack(t: &Tree, worker: u64, what: u8, one: PathBuf, two: PathBuf) {
    let own = t.path(format!("tmp{worker}"));
    match what {
        // Every version of a name comes by a rename, so whoever reads one sees it whole.
        0..=2 => {
            fs::write(&own, vec![b'a' + what + worker as u8; UNIFORM]).unwrap();
            harmless("rename", fs::rename(&own, &one));
        }
        3 => {
            let Some(from) = harmless("open", File::open(&one)) else { return };
            let to = File::create(&own).unwrap();
            let mut at = 0;
            while at < UNIFORM {
                at += copy_range(&from, at as i64, &to, at as i64, UNIFORM).unwrap();
            }
            drop(to);
            harmless("rename", fs::rename(&own, &two));
        }
        4 => {
            if harmless("link", fs::hard_link(&one, &own)).is_some() {
                harmless("rename", fs::rename(&own, &two));
                let _ = fs::remove_file(&own);
            }
        }
        5 => drop(harmless("unlink", fs::remove_file(&one))),
        6 => {
            let Some(mut file) = harmless("open", File::open(&one)) else { return };
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            uniform("read", &bytes);
        }
        7 => {
            let Some(file) = harmless("open", File::open(&one)) else { return };
            let map = Map::shared_readonly(&file, UNIFORM).unwrap();
            drop(file);
            uniform("mapping", &map.read(0, UNIFORM));
        }
        8 => {
            harmless("chmod", fs::set_permissions(&one, fs::Permissions::from_mode(0o640)));
            if let Some(entries) = harmless("readdir", fs::read_dir(t.path("d"))) {
                entries.for_each(|e| drop(e.unwrap()));
            }
        }
        _ => {
            harmless("rename of a directory", fs::rename(t.path("d/e"), t.path("e")));
            harmless("rename of a directory", fs::rename(t.path("e"), t.path("d/e")));
        }
    }
}

fn one_file_many_writers(t: &Tree) {
    // Each writer owns a part of one file and uses whatever kind of handle comes next.
    const PART: usize = 8192;
    let path = t.sealed("file", vec![0; 4 * PART]);
    let end = Instant::now() + WHILE;
    let last: Vec<u8> = std::thread::scope(|s| {
        let writer = |worker: usize| {
            let path = &path;
            move || {
                let (mut value, at) = (0_u8, worker * PART);
                while Instant::now() < end {
                    value = value.wrapping_add(1);
                    match value % 4 {
                        0 => {
                            let map = Map::shared(&rw(path), 4 * PART).unwrap();
                            map.write(at, &[value; PART]);
                        }
                        1 => {
                            use std::os::unix::fs::OpenOptionsExt;
                            let file = OpenOptions::new()
                                .write(true)
                                .custom_flags(libc::O_DIRECT)
                                .open(path)
                                .unwrap();
                            file.write_all_at(&crate::sys::Aligned::filled(value, PART), at as u64).unwrap();
                        }
                        _ => rw(path).write_all_at(&[value; PART], at as u64).unwrap(),
                    }
                    let mut seen = vec![0; PART];
                    File::open(path).unwrap().read_exact_at(&mut seen, at as u64).unwrap();
                    assert!(seen.iter().all(|b| *b == value), "writer {worker} does not find what it wrote");
                }
                value
            }
        };
        let threads: Vec<_> = (0..4).map(|worker| s.spawn(writer(worker))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let model: Vec<u8> = last.iter().flat_map(|value| vec![*value; PART]).collect();
    assert!(fs::read(&path).unwrap() == model);
    t.seal();
    assert!(fs::read(&path).unwrap() == model);
    t.remount();
    assert!(fs::read(&path).unwrap() == model);
}

fn seals_and_writers(t: &Tree) {
    // One thread makes blobs all the time, the other appends and counts: no append is lost, none comes twice.
    let path = t.file("log", "");
    let (done, appended) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                t.seal();
            }
        });
        let end = Instant::now() + WHILE;
        while Instant::now() < end {
            let n = appended.fetch_add(1, Ordering::Relaxed);
            OpenOptions::new()
                .append(true)
                .open(&path)
                .unwrap()
                .write_all(format!("{n}\n").as_bytes())
                .unwrap();
            if n % 16 == 0 {
                // So that some appends find a sealed file.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let expected: String = (0..appended.into_inner()).map(|n| format!("{n}\n")).collect();
    let seen = fs::read_to_string(&path).unwrap();
    let first = seen.lines().zip(expected.lines()).find(|(seen, expected)| seen != expected);
    assert!(seen == expected, "first difference: {first:?}; {} and {} bytes", seen.len(), expected.len());
}

fn thousands_of_open_files(t: &Tree) {
    let n = crate::sys::raise_open_files(3000).min(3000) as usize / 2;
    for i in 0..n {
        t.file(format!("f{i}"), format!("{i}"));
        if i == n / 2 {
            t.seal();
        }
    }
    let files: Vec<(File, File)> = (0..n)
        .map(|i| t.path(format!("f{i}")))
        .map(|path| (File::open(&path).unwrap(), OpenOptions::new().append(true).open(&path).unwrap()))
        .collect();
    for (i, (_, writer)) in files.iter().enumerate() {
        let mut writer = writer;
        writer.write_all(format!(" {i}").as_bytes()).unwrap();
    }
    for (i, (reader, _)) in files.iter().enumerate() {
        let mut bytes = [0; 20];
        let len = reader.read_at(&mut bytes, 0).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes[..len]), format!("{i} {i}"));
    }
    drop(files);
    t.remount();
    for i in (0..n).step_by(97) {
        assert_eq!(fs::read_to_string(t.path(format!("f{i}"))).unwrap(), format!("{i} {i}"));
    }
}
