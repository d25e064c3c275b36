//! The disk below fails in single calls: the caller of the operation learns it, and nobody else.
//!
//! Faults are injected at the failpoints of the program, so that each is exactly one call of staging, filestore or index
//! that fails, is cut short, or does not come back for a while. Every test ends without the fault: then all is well again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::data::{noise, rw};
use crate::harness::{Fails, Mode, Steered, eventually, guarded, sha1};

/// Makes a #[test] in each mode of each named `fn(&World)`, on a mounted depot without a durability of its own.
macro_rules! worlds {
    ($($test:ident),+ $(,)?) => { $(mod $test {
        use crate::harness::{Mode, guarded};
        #[test]
        fn passthrough() {
            guarded(|| super::World::run(Mode::Passthrough, "", super::$test));
        }
        #[test]
        fn cached() {
            guarded(|| super::World::run(Mode::Cached, "", super::$test));
        }
    })+ };
}

worlds! {
    a_staging_file_that_cannot_be_made, a_copy_that_cannot_be_made, an_fsync_that_failed_is_never_done,
    an_index_that_is_not_forced, an_index_that_cannot_be_written, a_database_that_cannot_be_written, a_full_index_still_removes, a_log_that_is_not_copied_back,
    a_seal_that_fails_is_tried_again, a_blob_that_cannot_be_read, a_slow_fsync_holds_up_nobody,
    a_slow_index_holds_up_no_names, an_open_on_a_stuck_disk_holds_up_nobody,
    a_disk_that_turns_read_only_is_told, checksums_wait_for_a_seal_under_way,
}

/// A mounted depot with a bystander, whom no fault concerns.
struct World {
    depot: Steered,
    bystander: Vec<u8>,
}

impl World {
    fn run(mode: Mode, options: &'static str, test: fn(&World)) {
        let depot = Steered::new(mode, options);
        depot.mount();
        let world = World { depot, bystander: noise(99, 50_000) };
        fs::write(world.path("bystander"), &world.bystander).unwrap();
        world.depot.flush();
        test(&world);
        world.ends_well();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.depot.depot.path("repo").join(name)
    }

    /// A closed and sealed file.
    fn sealed(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.depot.flush();
        self.path(name)
    }

    /// Other files can be read, whatever is wrong with one.
    fn others_are_read(&self) {
        assert!(fs::read(self.path("bystander")).unwrap() == self.bystander);
        assert!(fs::read_dir(self.path("")).unwrap().count() > 0);
    }

    /// Other files can be made, forced, renamed and removed, whatever was wrong with one.
    fn others_work(&self) {
        self.others_are_read();
        let (path, to) = (self.path("other"), self.path("renamed"));
        fs::write(&path, "other").unwrap();
        rw(&path).sync_all().unwrap();
        fs::rename(&path, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"other");
        fs::remove_file(&to).unwrap();
    }

    /// Without any fault everything works, is sealed, and is there after a remount; `check` finds nothing.
    fn ends_well(&self) {
        self.depot.clear();
        self.others_work();
        let before = tree(&self.path(""));
        self.depot.umount();
        self.depot.depot.check();
        self.depot.depot.verify_blobs();
        self.depot.mount();
        assert!(tree(&self.path("")) == before, "the tree after a remount");
        self.depot.umount();
    }
}

/// Bytes, or why there are none.
type Served = Result<Vec<u8>, Option<i32>>;

/// Names and bytes of a flat directory; the errno in place of bytes that are not served.
fn tree(dir: &Path) -> Vec<(PathBuf, Served)> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all.into_iter().map(|path| (path.clone(), fs::read(&path).map_err(|e| e.raw_os_error()))).collect()
}

fn close(file: File) -> Result<(), Errno> {
    nix::unistd::close(file.into_raw_fd())
}

const BOTH: [(&str, Errno); 2] = [("error:EIO", Errno::EIO), ("error:ENOSPC", Errno::ENOSPC)];

fn a_staging_file_that_cannot_be_made(world: &World) {
    let sealed = world.sealed("sealed", &noise(1, 5000));
    for (error, errno) in BOTH {
        world.depot.set(&format!("staging.create={error}"));
        File::create_new(world.path("new")).fails(errno);
        OpenOptions::new().write(true).open(&sealed).fails(errno);
        OpenOptions::new().write(true).truncate(true).open(&sealed).fails(errno);
        nix::unistd::truncate(&sealed, 10).fails(errno);
        fs::metadata(world.path("new")).fails(Errno::ENOENT);
        assert!(fs::read(&sealed).unwrap() == noise(1, 5000));
        world.others_are_read();
        // Names need no staging file.
        fs::create_dir(world.path("dir")).unwrap();
        fs::remove_dir(world.path("dir")).unwrap();
        world.depot.clear();
        world.others_work();
    }
}

fn a_copy_that_cannot_be_made(world: &World) {
    let sealed = world.sealed("sealed", &noise(1, 5000));
    for (error, errno) in BOTH {
        world.depot.set(&format!("staging.copy={error}"));
        OpenOptions::new().write(true).open(&sealed).fails(errno);
        nix::unistd::truncate(&sealed, 10).fails(errno);
        assert!(fs::read(&sealed).unwrap() == noise(1, 5000));
        world.others_work();
        world.depot.clear();
    }
    rw(&sealed).write_all_at(b"works again", 0).unwrap();
    assert_eq!(&fs::read(&sealed).unwrap()[..11], b"works again");
}

fn an_fsync_that_failed_is_never_done(world: &World) {
    for (error, errno) in BOTH {
        let path = world.path(error);
        let file = rw(&path);
        file.write_all_at(b"refused by the disk", 0).unwrap();
        world.depot.set(&format!("staging.force={error}*1"));
        file.sync_all().fails(errno);
        assert_eq!(world.depot.fired("staging.force"), 1);
        // The kernel would call the next one a success.
        for _ in 0..3 {
            file.sync_all().fails(Errno::EIO);
        }
        world.others_work();
        drop(file);
        rw(&path).sync_all().fails(Errno::EIO);
        // Neither is it sealed, and the bytes are not served as if they were sound.
        eventually("the seal to give up", || {
            world.depot.flush();
            fs::read(&path).is_err()
        });
        fs::read(&path).fails(Errno::EIO);
        world.others_work();
        // Written anew it is a file like any other.
        fs::write(&path, "written anew").unwrap();
        rw(&path).sync_all().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"written anew");
    }
}

fn an_index_that_is_not_forced(world: &World) {
    let file = rw(&world.path("file"));
    file.write_all_at(b"bytes", 0).unwrap();
    // The redo log fails: SQLite's own takes its place.
    world.depot.set("index.force=error:EIO*1");
    file.sync_all().fails(Errno::EIO);
    file.sync_all().unwrap();
    assert!(!world.depot.hits().contains("db.sync"), "{}", world.depot.hits());
    // That fails, too: everything goes to the disk by way of the database file.
    fs::write(world.path("more"), "more").unwrap();
    world.depot.set("index.force=error:EIO*2");
    for _ in 0..2 {
        file.sync_all().fails(Errno::EIO);
    }
    let dir = File::open(world.path("")).unwrap();
    dir.sync_all().unwrap();
    assert!(world.depot.hits().contains("db.sync"), "{}", world.depot.hits());
    // And that fails: nothing is believed until the next start.
    fs::write(world.path("again"), "again").unwrap();
    world.depot.set("index.force=error:EIO*2\ndb.sync=error:EIO*1");
    for _ in 0..4 {
        dir.sync_all().fails(Errno::EIO);
    }
    assert_eq!(world.depot.fired("db.sync"), 1);
    world.others_are_read();
    // Commits go on; only what asks for the disk fails.
    fs::rename(world.path("more"), world.path("moved")).unwrap();
    world.depot.set("");
    dir.sync_all().fails(Errno::EIO);
    drop((file, dir));
    world.depot.kill();
    world.depot.clear();
    world.depot.mount();
    File::open(world.path("")).unwrap().sync_all().unwrap();
    assert_eq!(fs::read(world.path("moved")).unwrap(), b"more");
    assert_eq!(fs::read(world.path("again")).unwrap(), b"again");
}

fn an_index_that_cannot_be_written(world: &World) {
    let cut_short = ("short\nredo.write.rest=error:ENOSPC", Errno::ENOSPC);
    for (number, (error, errno)) in [BOTH[0], BOTH[1], cut_short].into_iter().enumerate() {
        let path = world.path(&format!("new-{number}"));
        world.depot.set(&format!("redo.write={error}"));
        File::create_new(&path).fails(errno);
        assert!(world.depot.fired("redo.write") > 0);
        world.others_are_read();
        world.depot.clear();
        fs::metadata(&path).fails(Errno::ENOENT);
        File::create_new(&path).unwrap();
        fs::remove_file(&path).unwrap();
        world.others_work();
    }
}

/// The redo log has what SQLite cannot write: no call fails, and a kill loses nothing.
fn a_database_that_cannot_be_written(world: &World) {
    for (number, (error, _)) in BOTH.into_iter().enumerate() {
        let dir = world.path(&format!("made-{number}"));
        fs::create_dir(&dir).unwrap();
        world.depot.set(&format!("wal.write={error}@{}", 1 + 3 * number));
        for name in 0..200 {
            fs::create_dir(dir.join(format!("{name}"))).unwrap();
        }
        eventually("the index to be brought up to date in vain", || world.depot.fired("wal.write") > 0);
        for name in 200..250 {
            fs::create_dir(dir.join(format!("{name}"))).unwrap();
        }
        File::open(&dir).unwrap().sync_all().unwrap();
        world.others_work();
        world.depot.kill();
        world.depot.clear();
        world.depot.mount();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 250, "{error}");
        world.others_work();
        fs::remove_dir_all(&dir).unwrap();
    }
}

/// A removal that finds the disk full tries again with the space of the reserve.
fn a_full_index_still_removes(world: &World) {
    let sealed = world.sealed("sealed", b"bytes");
    world.depot.set("redo.write=error:ENOSPC*1");
    fs::remove_file(&sealed).unwrap();
    assert_eq!(world.depot.fired("redo.write"), 1);
    world.depot.set("redo.write=error:EIO*1");
    fs::remove_file(world.path("bystander")).fails(Errno::EIO);
    world.others_are_read();
}

fn a_log_that_is_not_copied_back(world: &World) {
    for point in ["db.write", "db.sync", "wal.sync"] {
        world.depot.set(&format!("{point}=error:EIO"));
        let dir = world.path(point);
        fs::create_dir(&dir).unwrap();
        for number in 0..600 {
            fs::create_dir(dir.join(format!("{number}"))).unwrap();
        }
        // The commits are in the log, and forced there.
        File::open(&dir).unwrap().sync_all().unwrap();
        eventually("the log to be copied back in vain", || world.depot.fired(point) > 0);
        world.others_work();
        // Nothing is copied any more, as pages copied before may be lost.
        world.depot.set("");
        for number in 0..600 {
            fs::rename(dir.join(format!("{number}")), dir.join(format!("r{number}"))).unwrap();
        }
        world.depot.flush();
        // A commit forces the log too, when it begins anew; what fails then is tried again.
        let copied = world.depot.hits().contains("db.");
        assert!(!copied || point == "wal.sync", "{point}: {}", world.depot.hits());
        world.depot.kill();
        world.depot.clear();
        world.depot.mount();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 600, "{point}");
        fs::remove_dir_all(&dir).unwrap();
        world.others_work();
    }
}

fn a_seal_that_fails_is_tried_again(world: &World) {
    for point in ["staging.read", "put.link", "folder.force", "index.begin"] {
        for (error, _) in BOTH {
            let (path, bytes) =
                (world.path("unsealed"), noise(point.len() as u64 + error.len() as u64, 5000));
            fs::write(&path, &bytes).unwrap();
            if point == "index.begin" {
                world.depot.set(&format!("redo.write={error}"));
            } else {
                world.depot.set(&format!("{point}={error}"));
            }
            assert_ne!(
                world.depot.run(&["flush", world.depot.depot.dir_str(), "--wait"]).code,
                Some(0),
                "{point}"
            );
            assert!(fs::read(&path).unwrap() == bytes, "{point}");
            world.others_are_read();
            world.depot.clear();
            world.depot.run(&["flush", world.depot.depot.dir_str(), "--wait"]).ok();
            let status = world.depot.depot.status();
            assert_eq!(
                (&status["pending"]["closed"], &status["pending"]["dirty"]),
                (&0.into(), &0.into()),
                "{point}"
            );
            assert!(fs::read(&path).unwrap() == bytes, "{point}");
            fs::remove_file(&path).unwrap();
        }
    }
}

fn a_blob_that_cannot_be_read(world: &World) {
    let sealed = world.sealed("sealed", &noise(1, 5000));
    world.depot.umount();
    world.depot.mount();
    for point in ["blob.open", "blob.read"] {
        world.depot.set(&format!("{point}=error:EIO"));
        fs::read(&sealed).fails(Errno::EIO);
        // Its name, and what is not read from a blob, is as ever.
        assert_eq!(fs::metadata(&sealed).unwrap().len(), 5000);
        fs::write(world.path("written"), "written").unwrap();
        assert_eq!(fs::read(world.path("written")).unwrap(), b"written");
        world.depot.clear();
        assert!(fs::read(&sealed).unwrap() == noise(1, 5000), "{point}");
        fs::remove_file(world.path("written")).unwrap();
        world.depot.umount();
        world.depot.mount();
    }
}

fn a_disk_that_turns_read_only_is_told(world: &World) {
    let health = || world.depot.depot.status()["chain"][0]["health"].clone();
    assert_eq!(health(), "up");
    world.depot.set("staging.create=error:EROFS");
    for _ in 0..50 {
        File::create_new(world.path("new")).fails(Errno::EROFS);
    }
    let log = world.depot.depot.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("Read-only file system")).collect();
    assert_eq!(told.len(), 1, "one line, not one for each: {told:?}");
    assert!(told[0].contains("WARN") && told[0].contains("/_pre/"), "{told:?}");
    let why = health()["failing"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("Read-only file system"), "{why}");
    let text = world.depot.run(&["status", world.depot.depot.dir_str()]).ok();
    assert!(text.contains("FAILING: "), "{text}");
    world.depot.clear();
    fs::write(world.path("new"), "works again").unwrap();
    assert_eq!(health(), "up");
}

fn checksums_wait_for_a_seal_under_way(world: &World) {
    let bytes = noise(5, 100_000);
    let sum = sha1(&bytes);
    let dir = world.depot.depot.dir_str();
    world.depot.set("seal.hashed=hold");
    fs::write(world.path("file"), &bytes).unwrap();
    eventually("the job to hash it", || world.depot.fired("seal.hashed") > 0);
    thread::scope(|s| {
        let asked = ["checksum", "verify", "locate"]
            .map(|verb| s.spawn(move || world.depot.depot.cli(&["blob", verb, dir, "repo/file"])));
        let attribute = s.spawn(|| crate::sys::getxattr(world.path("file"), "user.depotfs.sha1"));
        thread::sleep(Duration::from_millis(2500));
        assert!(!attribute.is_finished() && !asked.iter().any(|a| a.is_finished()), "somebody did not wait");
        world.depot.clear();
        for ran in asked {
            assert!(ran.join().unwrap().ok().contains(&sum));
        }
        assert_eq!(attribute.join().unwrap().unwrap(), sum.as_bytes());
    });
}

/// Waits until somebody waits at a point, does `work`, and lets go; `waits` must not have ended meanwhile.
fn while_held(
    world: &World,
    point: &str,
    waits: impl FnOnce() -> io::Result<()> + Send,
    work: impl FnOnce(),
) {
    world.depot.set(&format!("{point}=hold"));
    thread::scope(|s| {
        let waiting = s.spawn(waits);
        eventually("somebody to be held", || world.depot.fired(point) > 0);
        work();
        assert!(!waiting.is_finished(), "{point}: what has to wait for the disk did not");
        world.depot.clear();
        waiting.join().unwrap().unwrap();
    });
}

fn a_slow_fsync_holds_up_nobody(world: &World) {
    let slow = rw(&world.path("slow"));
    slow.write_all_at(b"slow", 0).unwrap();
    while_held(
        world,
        "staging.force",
        || slow.sync_all(),
        || {
            world.others_are_read();
            fs::write(world.path("other"), "other").unwrap();
            fs::rename(world.path("other"), world.path("renamed")).unwrap();
            assert_eq!(fs::read(world.path("renamed")).unwrap(), b"other");
            // The durability of names does not wait for the bytes of a stranger.
            File::open(world.path("")).unwrap().sync_all().unwrap();
        },
    );
}

fn a_slow_index_holds_up_no_names(world: &World) {
    let slow = rw(&world.path("slow"));
    slow.write_all_at(b"slow", 0).unwrap();
    while_held(
        world,
        "index.force",
        || slow.sync_all(),
        || {
            world.others_are_read();
            fs::write(world.path("other"), "other").unwrap();
            fs::rename(world.path("other"), world.path("renamed")).unwrap();
            fs::remove_file(world.path("renamed")).unwrap();
            assert_eq!(fs::metadata(world.path("slow")).unwrap().len(), 4);
        },
    );
}

fn an_open_on_a_stuck_disk_holds_up_nobody(world: &World) {
    let slow = world.sealed("slow", &noise(1, 5000));
    while_held(
        world,
        "dirty.copied",
        || OpenOptions::new().write(true).open(&slow)?.write_all_at(b"slow", 0),
        || {
            let depot = &world.depot;
            assert_eq!(depot.depot.status()["pending"]["held"], 1);
            assert!(
                depot.depot.cli(&["metrics", depot.depot.dir_str()]).ok().contains("depotfs_closed_files")
            );
            fs::write(world.path("other"), "other").unwrap();
            eventually("another file to be sealed", || depot.depot.blobs().contains(&sha1(b"other")));
            depot.set("dirty.copied=hold\nseal.leased=hold");
            fs::write(world.path("third"), "third").unwrap();
            eventually("another file to be forced", || depot.hits().contains("force.recorded"));
            eventually("and the names", || depot.hits().contains("force.synced"));
        },
    );
    assert_eq!(&fs::read(&slow).unwrap()[..4], b"slow");
}

/// A job that hangs must not keep the daemon, and its lock, for ever.
#[test]
fn an_end_waits_for_no_job_for_ever() {
    guarded(|| {
        let depot = Steered::new(Mode::Passthrough, "");
        depot.mount();
        depot.set("force.synced=hold*1");
        eventually("the job to be held", || depot.fired("force.synced") > 0);
        fs::write(depot.depot.path("repo/file"), "bytes").unwrap();
        depot.umount();
        assert_eq!(depot.depot.blobs(), [sha1(b"bytes")]);
        assert_eq!(depot.depot.staging(), Vec::<String>::new());
        assert!(depot.depot.log().contains("not ended in time"), "{}", depot.depot.log());
        depot.clear();
        depot.depot.check();
    });
}

#[test]
fn a_last_flush_that_fails_shows_in_the_exit_code() {
    guarded(|| {
        for busy in [false, true] {
            let depot = Steered::new(Mode::Passthrough, "");
            let args = ["mount", depot.depot.dir_str(), depot.depot.mountpoint_str(), "-f"];
            let mut daemon = depot.command(&args).stderr(Stdio::null()).spawn().unwrap();
            let path = depot.depot.path("repo/file");
            eventually("the mount", || depot.depot.path("repo").is_dir());
            let file = rw(&path);
            file.write_all_at(b"bytes", 0).unwrap();
            depot.set("index.force=error:EIO\ndb.sync=error:EIO");
            fs::create_dir(depot.depot.path("repo/not-forced")).unwrap();
            let user = busy.then_some(file);
            kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
            eventually("the daemon to end", || daemon.try_wait().unwrap().is_some());
            assert_eq!(daemon.wait().unwrap().code(), Some(1), "busy: {busy}");
            drop(user);
            depot.clear();
            depot.mount();
            assert_eq!(fs::read(&path).unwrap(), b"bytes");
            depot.umount();
            depot.depot.check();
        }
    });
}

/// Writes come to the daemon in this mode only; by passthrough they are the kernel's, which tells their errors itself.
#[test]
fn a_write_that_fails() {
    guarded(|| {
        World::run(Mode::Cached, "", |world| {
            let (file, other) = (rw(&world.path("file")), rw(&world.path("another")));
            file.write_all_at(&[1; 5000], 0).unwrap();
            for (error, errno) in BOTH {
                world.depot.set(&format!("staging.write={error}*1"));
                file.write_all_at(&[2; 5000], 0).fails(errno);
                other.write_all_at(b"other", 0).unwrap();
                assert!(fs::read(world.path("file")).unwrap() == [1; 5000]);
                world.others_work();
            }
            // Cut short, the rest is written by another call.
            world.depot.set("staging.write=short");
            file.write_all_at(&[3; 5000], 0).unwrap();
            assert!(world.depot.hits().contains("staging.write.rest"), "{}", world.depot.hits());
            assert!(fs::read(world.path("file")).unwrap() == [3; 5000]);
            world.depot.set("staging.write=short\nstaging.write.rest=error:ENOSPC");
            file.write_all_at(&[4; 5000], 0).fails(Errno::ENOSPC);
            let found = fs::read(world.path("file")).unwrap();
            assert!(
                found.len() == 5000 && found.iter().all(|byte| matches!(byte, 3 | 4)),
                "old and new bytes only"
            );
            world.depot.clear();
            file.write_all_at(&[5; 5000], 0).unwrap();
            file.sync_all().unwrap();
            assert!(fs::read(world.path("file")).unwrap() == [5; 5000]);
        });
    });
}

#[test]
fn a_close_that_fails() {
    guarded(|| {
        for mode in [Mode::Passthrough, Mode::Cached] {
            World::run(mode, "durability=close", |world| {
                for (number, point) in
                    ["staging.force", "staging.read", "index.force"].into_iter().enumerate()
                {
                    let path = world.path(point);
                    world.depot.set(&format!("{point}=error:EIO*1"));
                    let file = File::create_new(&path).unwrap();
                    file.write_all_at(&noise(number as u64, 3000), 0).unwrap();
                    assert_eq!(close(file), Err(Errno::EIO), "{point}");
                    world.others_are_read();
                    world.depot.clear();
                    if point == "staging.force" {
                        // What the disk refused once is never durable.
                        assert_eq!(close(rw(&path)), Err(Errno::EIO), "{point}");
                        fs::remove_file(&path).unwrap();
                    } else {
                        assert_eq!(close(rw(&path)), Ok(()), "{point}");
                        assert!(fs::read(&path).unwrap() == noise(number as u64, 3000));
                    }
                    world.others_work();
                }
            });
        }
    });
}
