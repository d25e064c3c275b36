//! A store that does not answer concerns those who want bytes of it, and nobody else.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use crate::harness::{Depot, Fails, Mode, eventually, guarded};
use crate::sys;

/// A stalled store stays so for minutes: what is done within this time did not wait for it.
const AT_ONCE: Duration = Duration::from_secs(30);

/// A depot whose blobs are far away, mounted with nothing cached.
struct Far {
    depot: Depot,
    repo: PathBuf,
}

impl Far {
    /// With files whose bytes are their own numbers.
    fn with_files(count: u8) -> Far {
        let depot = Depot::uninitialised(Mode::Passthrough);
        let set = ["--set", "chain=faulty,file-system", "--set", "faulty.remote=true"];
        depot.cli(&[&["init", depot.dir_str()], &set[..]].concat()).ok();
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        for i in 0..count {
            fs::write(repo.join(name(i)), content(i)).unwrap();
        }
        depot.flush();
        depot.umount();
        depot.mount();
        Far { depot, repo }
    }

    /// What goes wrong from now on.
    fn rules(&self, rules: &str) {
        let (new, file) = (self.depot.dir.join("rules.new"), self.depot.dir.join("faulty.control"));
        fs::write(&new, rules).unwrap();
        fs::rename(new, file).unwrap();
    }

    /// Begins something that is going to wait, and waits until the daemon has so many requests under way.
    fn begin<T: Send + 'static>(
        &self,
        under_way: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Begun<T> {
        let begun = Begun(thread::spawn(work));
        self.await_under_way(under_way);
        begun
    }

    fn await_under_way(&self, wanted: u64) {
        let text = || self.depot.cli(&["metrics", self.depot.dir_str()]).ok();
        let gauge = |text: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix("depotfs_requests_under_way "));
            line.map(|value| value.parse::<u64>().unwrap())
        };
        eventually("requests wait", || gauge(&text()).expect("the gauge is there") >= wanted);
    }

    /// Everything that needs no bytes of a blob is done at once.
    fn goes_on(&self, files: usize) {
        let repo = self.repo.clone();
        let new = tempfile::Builder::new().tempdir_in(&repo).unwrap().keep();
        let look = move || {
            let listed = fs::read_dir(&repo).unwrap();
            let sizes = listed.map(|entry| entry.unwrap().metadata().unwrap()).filter(|of| of.is_file());
            assert_eq!(sizes.filter(|of| of.len() > 0).count(), files);
            nix::sys::statvfs::statvfs(&repo).unwrap();
            fs::write(new.join("a"), "written").unwrap();
            fs::rename(new.join("a"), new.join("b")).unwrap();
            assert_eq!(fs::read(new.join("b")).unwrap(), b"written");
            fs::remove_file(new.join("b")).unwrap();
            fs::remove_dir(&new).unwrap();
        };
        at_once(look);
        assert_eq!(self.depot.status()["running"], true);
    }
}

/// A thread whose end somebody waits for.
struct Begun<T>(thread::JoinHandle<T>);

impl<T> Begun<T> {
    fn waits(&self) -> bool {
        !self.0.is_finished()
    }

    fn end(self) -> T {
        self.0.join().unwrap()
    }
}

#[track_caller]
fn at_once<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    let thread = thread::spawn(move || drop(done.send(work())));
    match ended.recv_timeout(AT_ONCE) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it waits for the store"),
        Err(mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(thread.join().unwrap_err()),
    }
}

fn name(i: u8) -> String {
    format!("file{i}")
}

fn content(i: u8) -> Vec<u8> {
    vec![i + 1; 70_000 + usize::from(i)]
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_hundred_stalled_readers_hold_up_nobody() {
    guarded(|| {
        let far = Far::with_files(100);
        far.rules("read=stall");
        let path = |i: u8| far.repo.join(name(i));
        let paths: Vec<PathBuf> = (0..100).map(path).collect();
        let readers: Vec<_> =
            paths.iter().cloned().map(|path| Begun(thread::spawn(move || read(&path)))).collect();
        far.await_under_way(100);
        far.goes_on(100);
        assert!(readers.iter().all(Begun::waits));
        far.rules("");
        for (i, reader) in readers.into_iter().enumerate() {
            assert_eq!(reader.end(), content(i as u8));
        }
        far.depot.umount();
        far.depot.check();
    });
}

/// A file that is copied to be written, cut or verified is looked at meanwhile as it was.
#[test]
fn a_file_that_waits_for_its_bytes_can_be_looked_at() {
    guarded(|| {
        let far = Far::with_files(4);
        far.depot.cli(&["repo", "set", far.depot.dir_str(), "repo", "verify=always"]).ok();
        far.rules("read=stall");
        let path = |i: u8| far.repo.join(name(i));
        let file = path(0);
        let appended = far.begin(1, move || {
            use std::io::Write as _;
            OpenOptions::new().append(true).open(file).unwrap().write_all(b"more").unwrap();
        });
        let file = path(1);
        let cut =
            far.begin(2, move || OpenOptions::new().write(true).open(file).unwrap().set_len(10).unwrap());
        let file = path(2);
        let verified = far.begin(3, move || read(&file));
        let file = path(3);
        let cut_by_name = far.begin(4, move || nix::unistd::truncate(&file, 20).unwrap());
        far.goes_on(4);
        let paths: Vec<PathBuf> = (0..4).map(path).collect();
        let sizes =
            at_once(move || paths.iter().map(|path| fs::metadata(path).unwrap().len()).collect::<Vec<_>>());
        assert_eq!(sizes, (0..4).map(|i| content(i).len() as u64).collect::<Vec<_>>());
        // Emptying it, removing it and giving it another name need no bytes.
        let (one, other) = (path(2), far.repo.join("renamed"));
        at_once(move || fs::rename(one, other).unwrap());
        assert!(appended.waits() && cut.waits() && verified.waits() && cut_by_name.waits());
        far.rules("");
        appended.end();
        cut.end();
        cut_by_name.end();
        assert_eq!(verified.end(), content(2));
        assert_eq!(read(&path(0)), [content(0), b"more".to_vec()].concat());
        assert_eq!(read(&path(1)), content(1)[..10]);
        assert_eq!(read(&path(3)), content(3)[..20]);
        far.depot.umount();
        far.depot.check();
    });
}

/// A copy of which no byte was moved is written before its descriptor is closed.
#[test]
fn a_copy_that_is_written_waits_alone_for_its_bytes() {
    guarded(|| {
        let far = Far::with_files(1);
        let target = far.repo.join("copy");
        let copied = |target: &Path| {
            let (source, copy) = (File::open(far.repo.join(name(0))).unwrap(), File::create(target).unwrap());
            assert_eq!(sys::copy_range(&source, 0, &copy, 0, usize::MAX >> 1).unwrap(), content(0).len());
            copy
        };
        // By the first one the program is known for what it does.
        drop(copied(&far.repo.join("first")));
        let copy = copied(&target);
        far.rules("read=stall");
        let written = far.begin(1, move || copy.write_all_at(b"new", 10).unwrap());
        far.goes_on(3);
        let (shown, path) = (target.clone(), far.repo.join(name(0)));
        assert_eq!(at_once(move || fs::metadata(shown).unwrap().len()), fs::metadata(path).unwrap().len());
        assert!(written.waits());
        far.rules("");
        written.end();
        let mut wanted = content(0);
        wanted[10..13].copy_from_slice(b"new");
        assert_eq!((read(&target), read(&far.repo.join(name(0)))), (wanted, content(0)));
        far.depot.umount();
        far.depot.check();
    });
}

/// Nobody waits for ever: when the store is given up, readers and writers get an error, and the file is as it was.
#[test]
fn a_store_that_is_given_up_is_an_error() {
    guarded(|| {
        let far = Far::with_files(2);
        far.rules("read=stall:300");
        let path = |i: u8| far.repo.join(name(i));
        let mut byte = [0];
        File::open(path(0)).unwrap().read(&mut byte).fails(Errno::EIO);
        OpenOptions::new().append(true).open(path(1)).fails(Errno::EIO);
        nix::unistd::truncate(&path(1), 5).fails(Errno::EIO);
        far.goes_on(2);
        far.rules("");
        for i in 0..2 {
            assert_eq!(read(&path(i)), content(i));
        }
        far.depot.umount();
        far.depot.check();
    });
}
