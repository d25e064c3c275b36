//! Deaths in what follows a death: recovery, the next writer of a half sealed file, bytes that are set aside.

use std::fs;

use nix::errno::Errno;

use super::{dies, sound, survives};
use crate::harness::{Driver, Fails, Mode, Steered, command, guarded, run_command, scratch};

pub const PRIVATE: &[&str] = &["private.detached"];
pub const RECOVERING: &[&str] = &["recover.kept", "recover.reaped", "recover.discarded", "recover.synced"];
/// What a recovery passes only where programs go on writing past a killed daemon.
pub const RECOVERING_PAST: &[&str] = &["restage.copied", "restage.committed"];
pub const SETTING_ASIDE: &[&str] = &["aside.explained", "aside.moved", "recover.aside", "recover.reverted"];
pub const FAILING: &[&str] = &["seal.failed", "reap.kept"];
pub const EXPECTING: &[&str] = &["copy.made"];

both_modes! { dies_in_recovery, dies_making_private, a_put_without_a_commit_leaves_nothing, dies_setting_aside, dies_failing, dies_before_a_copy }

/// Kills the daemon while a program works; what it has open stays open.
fn kill_with_everything(depot: &Steered, driver: &mut Driver) {
    driver.file("sealed", &driver.noise(1, 50_000)).unwrap();
    depot.flush();
    driver.open("sealed").unwrap();
    driver.write("sealed", 10, b"written and open").unwrap();
    driver.file("closed", &driver.noise(2, 50_000)).unwrap();
    driver.file("removed", &driver.noise(3, 50_000)).unwrap();
    driver.open("removed").unwrap();
    driver.unlink("removed").unwrap();
    depot.set("create.staged=kill");
    driver.create("half").unwrap_err();
    dies(depot, "create.staged");
}

fn dies_in_recovery(mode: Mode) {
    let depot = Steered::new(mode, "");
    let logs = scratch();
    let past = if mode == Mode::Passthrough { RECOVERING_PAST } else { &[] };
    for (number, point) in RECOVERING.iter().chain(past).enumerate() {
        depot.mount();
        let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
        kill_with_everything(&depot, &mut driver);
        if !past.contains(point) {
            driver.close_all();
        }
        depot.set(&format!("{point}=kill"));
        assert_ne!(depot.try_mount().code, Some(0), "{point} was passed: {}", depot.hits());
        dies(&depot, point);
        driver.close_all();
        survives(&depot, &mut driver, point);
    }
}

/// A file whose put was not committed is opened for writing, and its blob has become another file's by then.
fn dies_making_private(mode: Mode) {
    let depot = Steered::new(mode, "");
    let logs = scratch();
    for number in 0.. {
        depot.mount();
        let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
        driver.file("put", &driver.noise(1, 50_000)).unwrap();
        depot.set("seal.put=kill");
        depot.flush();
        dies(&depot, "seal.put");
        // The twin is sealed first, and the other seal held up until its writer comes.
        depot.set("private.detached=kill\nseal.leased=hold@2");
        depot.mount();
        driver.file("twin", &driver.noise(1, 50_000)).unwrap();
        let twin = format!("repo/program{number}/twin");
        depot.run(&["blob", "checksum", depot.depot.dir_str(), &twin]).ok();
        let opened = driver.open("put");
        if opened.is_err() {
            dies(&depot, "private.detached");
        }
        survives(&depot, &mut driver, "private.detached");
        if opened.is_err() {
            return;
        }
        // The background was quicker than this test.
        assert!(number < 20, "private.detached was not passed in many tries");
    }
}

/// Between the put of a file and its commit the daemon dies; then the file changes, or goes. No blob stays behind that
/// nobody knows.
fn a_put_without_a_commit_leaves_nothing(mode: Mode) {
    let depot = Steered::new(mode, "");
    let logs = scratch();
    type Then = fn(&mut Driver);
    let ways: [Then; 4] = [
        |driver| driver.unlink("put").unwrap(),
        |driver| driver.open_empty("put").unwrap(),
        |driver| driver.truncate("put", 17).unwrap(),
        |driver| {
            driver.open("put").unwrap();
            driver.write("put", 0, b"other bytes").unwrap();
        },
    ];
    for (number, then) in ways.into_iter().enumerate() {
        depot.mount();
        let mut driver = Driver::new(&depot.depot.path("repo"), number, logs.path());
        driver.file("put", &driver.noise(1, 50_000)).unwrap();
        depot.set("seal.put=kill");
        depot.flush();
        dies(&depot, "seal.put");
        depot.set("seal.hashed=hold");
        depot.mount();
        then(&mut driver);
        driver.close_all();
        depot.clear();
        driver.compare();
        sound(&depot);
    }
}

/// A power cut: what was not forced is set aside, and nothing of it is lost or half there when the daemon dies on the way.
fn dies_setting_aside(mode: Mode) {
    for point in SETTING_ASIDE {
        let depot = Steered::new(mode, "");
        depot.mount();
        let (old, new) = (depot.depot.path("repo/old"), depot.depot.path("repo/new"));
        fs::write(&old, "the earlier version").unwrap();
        depot.flush();
        // Nothing is forced before the daemon is gone.
        depot.set("staging.force=hold\ndisk.sync=hold\nseal.hashed=hold");
        fs::write(&old, "a later version").unwrap();
        fs::write(&new, "a new file").unwrap();
        depot.kill();
        depot.pretend_another_boot(true);
        depot.set(&format!("{point}=kill"));
        assert_ne!(depot.try_mount().code, Some(0), "{point} was passed: {}", depot.hits());
        dies(&depot, point);
        depot.clear();
        depot.mount();
        assert_eq!(fs::read(&old).unwrap(), b"the earlier version", "{point}");
        fs::metadata(&new).fails(Errno::ENOENT);
        let mut kept: Vec<Vec<u8>> = fs::read_dir(depot.depot.dir.join("filestore/_aside"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_none())
            .map(|path| fs::read(path).unwrap())
            .collect();
        kept.sort();
        assert_eq!(kept, [b"a later version".to_vec(), b"a new file".to_vec()], "{point}");
        sound(&depot);
    }
}

/// Bytes that the disk refuses cannot be sealed: they are kept, also when their file is removed.
fn dies_failing(mode: Mode) {
    for point in FAILING {
        let depot = Steered::new(mode, "");
        depot.mount();
        let path = depot.depot.path("repo/refused");
        fs::write(&path, "bytes").unwrap();
        depot.set(&format!("staging.force=error:EIO*1\n{point}=kill"));
        depot.flush();
        if *point == "reap.kept" {
            fs::read(&path).fails(Errno::EIO);
            fs::remove_file(&path).unwrap();
            crate::harness::eventually("the removed file to be ended", || {
                depot.flush();
                !depot.serves()
            });
        }
        dies(&depot, point);
        depot.clear();
        depot.mount();
        if *point == "reap.kept" {
            fs::metadata(&path).fails(Errno::ENOENT);
        } else {
            fs::read(&path).fails(Errno::EIO);
            fs::remove_file(&path).unwrap();
        }
        let aside = depot.depot.dir.join("filestore/_aside");
        crate::harness::eventually("the bytes to be set aside", || {
            depot.flush();
            fs::read_dir(&aside).unwrap().count() == 2
        });
        let kept = fs::read_dir(&aside).unwrap().map(|file| file.unwrap().path());
        let kept = kept.filter(|path| path.extension().is_none()).map(|path| fs::read(path).unwrap());
        assert_eq!(kept.collect::<Vec<_>>(), [b"bytes".to_vec()], "{point}");
        sound(&depot);
    }
}

/// The target of a copy has no staging file. It is an empty file like any other, until the copy comes, or something else.
fn dies_before_a_copy(mode: Mode) {
    for point in ["create.committed", "copy.made"] {
        let depot = Steered::new(mode, "");
        depot.mount();
        let (source, target) = (depot.depot.path("repo/source"), depot.depot.path("repo/target"));
        fs::write(&source, [5; 100_000]).unwrap();
        depot.flush();
        depot.set("copy.committed=kill");
        let copied = run_command(&mut command("cp", &[source.to_str().unwrap(), target.to_str().unwrap()]));
        assert_ne!(copied.code, Some(0), "the copy was not lazy: {}", depot.hits());
        dies(&depot, "copy.committed");
        depot.clear();
        depot.mount();
        assert_eq!(fs::read(&target).unwrap(), [5; 100_000]);
        fs::remove_file(&target).unwrap();

        // The daemon dies before the copy is asked for.
        depot.set("create.committed=kill");
        run_command(&mut command("cp", &[source.to_str().unwrap(), target.to_str().unwrap()]));
        dies(&depot, "create.committed");
        assert_eq!(depot.depot.staging(), [""; 0], "a staging file that no copy needs");
        depot.clear();
        depot.run(&["check", depot.depot.dir_str()]).ok();
        let read_only = depot.depot.mount_with("ro");
        read_only.ok();
        assert_eq!(fs::read(&target).unwrap(), b"", "{point}");
        depot.umount();
        if point == "copy.made" {
            depot.set("copy.made=kill");
            assert_ne!(depot.try_mount().code, Some(0), "{point} was passed: {}", depot.hits());
            dies(&depot, point);
            depot.clear();
        }
        depot.mount();
        assert_eq!(fs::read(&target).unwrap(), b"", "{point}");
        fs::write(&target, "written after all").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"written after all", "{point}");

        // A copier that gets other bytes than those of a blob.
        let outside = scratch();
        fs::write(outside.path().join("other"), "from elsewhere").unwrap();
        let into = depot.depot.path("repo/into");
        fs::create_dir(&into).unwrap();
        let copies = || {
            let other = outside.path().join("other");
            let paths = [&source, &other, &into].map(|path| path.to_str().unwrap());
            run_command(&mut command("cp", &paths))
        };
        if point == "copy.made" {
            depot.set("copy.made=kill");
            copies();
            dies(&depot, point);
            depot.clear();
            depot.mount();
            assert_eq!(fs::read(into.join("other")).unwrap(), b"");
        }
        copies().ok();
        assert_eq!(fs::read(into.join("other")).unwrap(), b"from elsewhere");
        assert_eq!(fs::read(into.join("source")).unwrap(), [5; 100_000]);
        let status = depot.depot.status();
        assert_eq!(status["reports"].as_array().map_or(0, Vec::len), 0, "{}", status["reports"]);
        sound(&depot);
    }
}

/// A power cut before a copy: its target never was.
#[test]
fn the_target_of_a_copy_goes_with_a_power_cut() {
    guarded(|| {
        let depot = Steered::new(Mode::Passthrough, "");
        depot.mount();
        let (source, target) = (depot.depot.path("repo/source"), depot.depot.path("repo/target"));
        fs::write(&source, [5; 100_000]).unwrap();
        depot.flush();
        depot.set("create.committed=kill");
        run_command(&mut command("cp", &[source.to_str().unwrap(), target.to_str().unwrap()]));
        dies(&depot, "create.committed");
        depot.clear();
        depot.pretend_another_boot(true);
        depot.mount();
        fs::metadata(&target).fails(Errno::ENOENT);
        assert_eq!(fs::read(&source).unwrap(), [5; 100_000]);
        assert_eq!(depot.depot.status()["reports"].as_array().unwrap().len(), 1);
        sound(&depot);
    });
}

#[test]
fn a_refused_file_that_was_removed_before_a_death_is_kept() {
    guarded(|| {
        let depot = Steered::new(Mode::Passthrough, "");
        depot.mount();
        let path = depot.depot.path("repo/refused");
        fs::write(&path, "bytes").unwrap();
        depot.set("staging.force=error:EIO*1\nremove.committed=kill");
        depot.flush();
        let _ = fs::remove_file(&path);
        dies(&depot, "remove.committed");
        depot.clear();
        depot.mount();
        fs::metadata(&path).fails(Errno::ENOENT);
        assert_eq!(fs::read_dir(depot.depot.dir.join("filestore/_aside")).unwrap().count(), 2);
        sound(&depot);
    });
}
