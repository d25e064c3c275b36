//! Programs that work in a mount, and the points at which the daemon dies meanwhile.

use std::time::Duration;

use super::{bare, dies, kill_at, sound, survives};
use crate::harness::{Died, Driver, Mode, Steered, guarded, scratch};

/// What a program does: first what the point is not to meet, then what it may die of.
pub struct Workload {
    name: &'static str,
    /// Mount options.
    options: &'static str,
    prepare: fn(&mut Driver, &Steered) -> Result<(), Died>,
    work: fn(&mut Driver, &Steered) -> Result<(), Died>,
    /// Points in both modes; with `@n`, at the n-th hit.
    pub points: &'static [&'static str],
    /// Points that only one mode passes.
    pub passthrough: &'static [&'static str],
    pub cached: &'static [&'static str],
}

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "writing",
        options: "",
        prepare: |driver, depot| {
            for (name, size) in [("dirty", 20_000), ("emptied", 20_000), ("cut", 100_000)] {
                driver.file(name, &driver.noise(size as u64 % 251, size))?;
            }
            depot.flush();
            Ok(())
        },
        work: write_all_ways,
        points: &[
            "create.staged",
            "create.committed",
            "staging.create",
            "empty.staged",
            "empty.committed",
            "dirty.copied",
            "dirty.committed",
            "staging.copy",
            "resize.done",
            "fsync.forced",
            "fsync.recorded",
            "fsync.synced",
            "staging.force",
            "index.force",
            "index.forced",
            "index.begin@2",
            "index.begin@4",
            "index.applied",
            "index.applied@3",
            "index.applied@6",
            "index.committed@2",
            "index.committed@5",
            "redo.write",
            "redo.write@3",
            "redo.write@7",
            "redo.write.rest",
        ],
        passthrough: &[],
        cached: &[
            "staging.write",
            "staging.write@2",
            "staging.write.rest",
            "staging.written",
            "staging.written@3",
        ],
    },
    Workload {
        name: "reading",
        options: "",
        prepare: |driver, depot| {
            driver.file("small", &driver.noise(1, 300))?;
            // Nothing of it is in the kernel's cache then.
            depot.umount();
            depot.mount();
            Ok(())
        },
        work: |driver, _| driver.read("small"),
        points: &["blob.open", "blob.read"],
        passthrough: &[],
        cached: &[],
    },
    Workload {
        name: "closing",
        options: "durability=close",
        prepare: |driver, depot| {
            driver.file("old", &driver.noise(1, 30_000))?;
            depot.flush();
            Ok(())
        },
        work: |driver, _| {
            driver.file("new", &driver.noise(2, 30_000))?;
            driver.open("old")?;
            driver.write("old", 5, b"changed")?;
            driver.close("old")
        },
        points: &[
            "close.hashed",
            "close.hashed@2",
            "close.recorded",
            "close.recorded@2",
            "close.synced",
            "close.synced@2",
        ],
        passthrough: &[],
        cached: &[],
    },
    Workload {
        name: "sealing",
        options: "",
        prepare: |driver, depot| {
            driver.file("old", &driver.noise(1, 40_000))?;
            driver.file("untouched", &driver.noise(2, 40_000))?;
            depot.flush();
            Ok(())
        },
        work: |driver, depot| {
            driver.open("untouched")?;
            driver.close("untouched")?;
            driver.file("new", &driver.noise(3, 40_000))?;
            driver.file("twin", &driver.noise(3, 40_000))?;
            driver.open("old")?;
            driver.write("old", 5, b"changed")?;
            driver.close("old")?;
            driver.file("open", &driver.noise(4, 100))?;
            driver.open("open")?;
            driver.write("open", 0, b"still open")?;
            depot.flush();
            Ok(())
        },
        points: &[
            "seal.leased",
            "seal.hashed",
            "seal.hashed@2",
            "seal.marked",
            "seal.put",
            "seal.committed",
            "seal.reverted",
            "put.dressed",
            "put.link",
            "link.answered",
            "put.linked",
            "put.linked@2",
            "put.forced",
            "staging.read",
            "disk.sync",
            "force.forced",
            "force.recorded",
            "force.synced",
            "retire.durable",
            "retire.unlinked",
        ],
        passthrough: &[],
        cached: &[],
    },
    Workload {
        name: "sealing alone",
        options: "",
        prepare: |_, _| Ok(()),
        work: |driver, depot| {
            driver.file("alone", &driver.noise(1, 5000))?;
            driver.set_mtime("alone", 1_000_000)?;
            depot.flush();
            Ok(())
        },
        points: &["folder.force"],
        passthrough: &[],
        cached: &[],
    },
    Workload {
        name: "copying",
        options: "",
        prepare: |driver, depot| {
            driver.file("source", &driver.noise(9, 100_000))?;
            depot.flush();
            Ok(())
        },
        work: |driver, _| {
            driver.open_to_read("source")?;
            for (name, at) in [("part", 10), ("copy", 0)] {
                driver.create(name)?;
                driver.copy("source", at, name)?;
                driver.close(name)?;
            }
            Ok(())
        },
        points: &["copy.bytes"],
        passthrough: &[],
        cached: &["copy.committed"],
    },
    Workload {
        name: "swapping",
        options: "",
        prepare: |driver, depot| {
            driver.file("read", &driver.noise(8, 100_000))?;
            driver.file("same", &driver.noise(8, 100_000))?;
            depot.flush();
            Ok(())
        },
        work: |driver, _| {
            driver.open_to_read("read")?;
            driver.open("read")?;
            driver.write("read", 100, b"its readers see this")?;
            driver.read("read")?;
            driver.close("read")
        },
        points: &[],
        passthrough: &[
            "detach.linked",
            "detach.copied",
            "detach.renamed",
            "detach.forced",
            "staging.own",
            "swap.detached",
        ],
        cached: &[],
    },
    Workload {
        name: "naming",
        options: "",
        prepare: |driver, depot| {
            driver.mkdir("dir")?;
            driver.mkdir("dir/below")?;
            driver.file("dir/below/file", b"below")?;
            driver.file("victim", &driver.noise(5, 3000))?;
            driver.file("other", &driver.noise(6, 3000))?;
            depot.flush();
            driver.file("temporary", &driver.noise(7, 3000))
        },
        work: name_all_ways,
        points: &[
            "rename.forced",
            "rename.committed",
            "exchange.committed",
            "remove.committed",
            "reap.committed",
            "index.begin",
            "index.begin@3",
            "index.begin@6",
            "index.begin@9",
            "index.applied@5",
            "index.applied@8",
            "index.applied@11",
            "index.committed",
            "index.committed@4",
            "index.committed@7",
            "index.committed@10",
        ],
        passthrough: &[],
        cached: &[],
    },
    Workload {
        name: "copying the log back",
        options: "",
        prepare: |_, _| Ok(()),
        work: |driver, depot| {
            for number in 0..600 {
                driver.mkdir(&format!("directory{number}"))?;
            }
            depot.flush();
            Ok(())
        },
        points: &[
            "index.flush",
            "index.flushed",
            "index.flushed@2",
            "index.freed",
            "index.copied",
            "wal.write",
            "wal.write@2",
            "wal.write@17",
            "db.write",
            "db.write@50",
            "db.sync",
            "db.synced",
            "wal.sync",
            "wal.synced",
        ],
        passthrough: &[],
        cached: &[],
    },
];

fn write_all_ways(driver: &mut Driver, _: &Steered) -> Result<(), Died> {
    driver.create("new")?;
    driver.write("new", 0, &driver.noise(1, 5000))?;
    driver.write("new", 5000, &driver.noise(2, 100))?;
    driver.open("dirty")?;
    driver.write("dirty", 100, b"written into")?;
    driver.open_empty("emptied")?;
    driver.write("emptied", 0, b"begun again")?;
    driver.close("emptied")?;
    driver.close("dirty")?;
    driver.truncate("cut", 70_000)?;
    driver.read("dirty")?;
    driver.fsync("new")?;
    driver.write("new", 0, b"after the fsync")?;
    driver.close("new")?;
    driver.file("synced", &driver.noise(3, 300))?;
    driver.open("synced")?;
    driver.fsync("synced")?;
    driver.close("synced")?;
    driver.read("cut")?;
    driver.read("new")?;
    driver.file("last", &driver.noise(4, 300))
}

fn name_all_ways(driver: &mut Driver, depot: &Steered) -> Result<(), Died> {
    driver.mkdir("made")?;
    driver.rename("temporary", "victim")?;
    driver.exchange("victim", "other")?;
    driver.link("other", "dir/second")?;
    driver.rename("dir", "made/moved")?;
    driver.symlink("made/moved/below/file", "symlink")?;
    driver.fifo("fifo")?;
    driver.chmod("other", 0o600)?;
    driver.set_xattr("victim", "user.note", b"kept")?;
    driver.set_mtime("victim", 1_234_567)?;
    driver.rename("victim", "made/victim")?;
    driver.unlink("other")?;
    driver.unlink("made/victim")?;
    driver.mkdir("gone")?;
    driver.rmdir("gone")?;
    driver.rename("made/moved", "dir")?;
    driver.unlink("dir/second")?;
    // The kernel forgets what was removed a moment later.
    for _ in 0..20 {
        depot.flush();
        if !depot.serves() {
            return Err(Died);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Kills at each point of a workload in turn, on one depot, a directory each.
fn kill_at_each(mode: Mode, workload: &Workload) {
    let depot = Steered::new(mode, workload.options);
    let logs = scratch();
    let own = if mode == Mode::Cached { workload.cached } else { workload.passthrough };
    let mut drivers: Vec<Driver> = Vec::new();
    for (number, point) in workload.points.iter().chain(own).enumerate() {
        depot.mount();
        let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
        (workload.prepare)(&mut driver, &depot).expect("a living daemon");
        depot.set(&kill_at(point));
        let done = (workload.work)(&mut driver, &depot);
        assert!(
            done.is_err() || depot.fired(bare(point)) == 1,
            "{}: {point} was not passed: {}",
            workload.name,
            depot.hits()
        );
        dies(&depot, point);
        driver.close_all();
        survives(&depot, &mut driver, point);
        drivers.push(driver);
    }
    depot.mount();
    drivers.iter_mut().for_each(Driver::compare);
    sound(&depot);
}

fn workload(name: &str, mode: Mode) {
    let workload = WORKLOADS.iter().find(|w| w.name == name).unwrap();
    kill_at_each(mode, workload);
}

macro_rules! workloads {
    ($($test:ident: $name:literal),+ $(,)?) => { $(mod $test {
        #[test]
        fn passthrough() {
            super::guarded(|| super::workload($name, super::Mode::Passthrough));
        }
        #[test]
        fn cached() {
            super::guarded(|| super::workload($name, super::Mode::Cached));
        }
    })+ };
}

workloads! {
    writing: "writing", reading: "reading", closing: "closing", sealing: "sealing", sealing_alone: "sealing alone", copying: "copying",
    swapping: "swapping", naming: "naming", copying_the_log_back: "copying the log back",
}
