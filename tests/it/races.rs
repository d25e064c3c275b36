//! Seals against everything else: a flush runs all the time while files are written, renamed, dated and removed.

use std::fs::{self, FileTimes, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use crate::data::noise;
use crate::harness::{Tree, sha1};
use crate::sys::getxattr;

modes!(mounted:
    renames_meet_seals, writers_meet_seals, times_set_during_a_seal_stay, removals_meet_seals,
    a_seal_that_is_not_durable_yet_stops_no_writer, listings_meet_seals,
);

/// Ends the work of other threads, also when the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` while another thread flushes without a pause, then seals what is left.
fn while_sealing(t: &Tree, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = t.depot().cli(&["flush", t.depot().dir_str(), "--wait"]);
            }
        });
        let _done = Done(&done);
        work();
    });
    t.seal();
}

fn renames_meet_seals(t: &Tree) {
    const FILES: u64 = 12;
    let name = |kind: &str, i: u64| t.path(format!("{kind}{i}"));
    while_sealing(t, || {
        for round in 0..12 {
            for i in 0..FILES {
                fs::write(name("a", i), noise(round * 100 + i, 20_000)).unwrap();
                fs::write(name("b", i), noise(round * 100 + 50 + i, 20_000)).unwrap();
            }
            for i in 0..FILES {
                fs::rename(name("b", i), name("a", i)).unwrap();
                assert!(
                    fs::read(name("a", i)).unwrap() == noise(round * 100 + 50 + i, 20_000),
                    "round {round}"
                );
            }
        }
    });
    for i in 0..FILES {
        assert!(fs::read(name("a", i)).unwrap() == noise(1100 + 50 + i, 20_000));
    }
}

fn writers_meet_seals(t: &Tree) {
    const FILES: usize = 6;
    let mut models = vec![Vec::new(); FILES];
    while_sealing(t, || {
        for round in 0..60 {
            for (i, model) in models.iter_mut().enumerate() {
                let bytes = noise((round * FILES + i) as u64, 3_000);
                let mut file =
                    OpenOptions::new().append(true).create(true).open(t.path(format!("log{i}"))).unwrap();
                file.write_all(&bytes).unwrap();
                model.extend_from_slice(&bytes);
            }
        }
    });
    for (i, model) in models.iter().enumerate() {
        assert!(fs::read(t.path(format!("log{i}"))).unwrap() == *model, "file {i}");
    }
}

fn times_set_during_a_seal_stay(t: &Tree) {
    let date = |i: u64| SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000 + i, 5);
    while_sealing(t, || {
        for i in 0..80 {
            let path = t.path(format!("dated{i}"));
            fs::write(&path, noise(i, 30_000)).unwrap();
            OpenOptions::new()
                .read(true)
                .open(&path)
                .unwrap()
                .set_times(FileTimes::new().set_modified(date(i)))
                .unwrap();
        }
    });
    for i in 0..80 {
        assert_eq!(
            fs::metadata(t.path(format!("dated{i}"))).unwrap().modified().unwrap(),
            date(i),
            "file {i}"
        );
    }
}

fn removals_meet_seals(t: &Tree) {
    while_sealing(t, || {
        for i in 0..200 {
            let path = t.path(format!("short{i}"));
            fs::write(&path, noise(i, 10_000)).unwrap();
            if i % 2 == 0 {
                fs::remove_file(&path).unwrap();
            }
        }
    });
    assert_eq!(fs::read_dir(t.dir()).unwrap().count(), 100);
}

fn a_seal_that_is_not_durable_yet_stops_no_writer(t: &Tree) {
    let mut model = noise(1, 100_000);
    for round in 0..5 {
        let path = t.file("file", &model);
        // Seals it at once, and forces nothing.
        let told = getxattr(&path, "user.depotfs.sha1").unwrap();
        assert_eq!(String::from_utf8(told).unwrap(), sha1(&model));
        let reader = fs::File::open(&path).unwrap();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all_at(b"changed", 50_000).unwrap();
        model[50_000..50_007].copy_from_slice(b"changed");
        let mut seen = vec![0; model.len()];
        reader.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == model, "round {round}");
        drop((reader, writer));
        model[0] = round;
    }
}

fn listings_meet_seals(t: &Tree) {
    const LEN: usize = 5_000;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each look at the directory tells the kernel the attributes of everything in it, which it keeps.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::read_dir(t.dir()).unwrap().for_each(|entry| drop(entry.unwrap()));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let _done = Done(&done);
        while_sealing(t, || {
            for round in 0..20 {
                for i in 0..20 {
                    fs::write(t.path(format!("temporary{i}")), noise(round * 20 + i, LEN)).unwrap();
                    fs::rename(t.path(format!("temporary{i}")), t.path(format!("listed{i}"))).unwrap();
                }
                std::thread::sleep(Duration::from_millis(20));
                for i in 0..20 {
                    let path = t.path(format!("listed{i}"));
                    assert_eq!(fs::metadata(&path).unwrap().len(), LEN as u64, "file {i} in round {round}");
                }
            }
        });
    });
}
