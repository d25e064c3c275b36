//! Deaths in what nobody asked for: numbers, healing, reclaiming, and in `check --repair`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{dies, sound, survives};
use crate::data::noise;
use crate::harness::{Driver, Mode, Steered, eventually, scratch, sha1};

pub const NUMBERING: &[&str] = &["index.numbers"];
pub const HEALING: &[&str] = &["heal.linked", "heal.renamed"];
pub const RECLAIMING: &[&str] = &["reclaim.synced", "reclaim.unlinked", "reclaim.committed"];
pub const REPAIRING: &[&str] =
    &["repair.mended", "repair.committed", "repair.discarded", "repair.unstaged", "repair.adopted"];
/// There is no older schema to mount yet: `index::tests::upgrades` kills an upgrade that it makes up.
pub const IN_UNIT_TESTS: &[&str] = &["upgrade.kept", "upgrade.stepped", "upgrade.committed", "backup.copied"];

both_modes! { dies_numbering, dies_healing, dies_reclaiming }

fn dies_numbering(mode: Mode) {
    let depot = Steered::new(mode, "");
    depot.mount();
    depot.set("index.numbers=kill");
    let made = depot.depot.path("repo/made");
    fs::create_dir(&made).unwrap_err();
    dies(&depot, "index.numbers");
    depot.clear();
    depot.mount();
    assert!(!made.exists());
    fs::create_dir(&made).unwrap();
    sound(&depot);
}

/// A blob that was cut is replaced by the next put of its content.
fn dies_healing(mode: Mode) {
    for point in HEALING {
        let depot = Steered::new(mode, "");
        let logs = scratch();
        depot.mount();
        let mut driver = Driver::new(&depot.depot.path("repo"), 1, logs.path());
        let bytes = driver.noise(1, 5000);
        driver.file("cut", &bytes).unwrap();
        depot.flush();
        depot.umount();
        let blob = depot.depot.blob(&sha1(&bytes));
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o600)).unwrap();
        fs::File::options().write(true).open(&blob).unwrap().set_len(100).unwrap();
        depot.mount();
        driver.file("again", &bytes).unwrap();
        depot.set(&format!("{point}=kill"));
        depot.flush();
        dies(&depot, point);
        // What is cut is seen to be, until the next seal has replaced it.
        depot.clear();
        depot.mount();
        depot.flush();
        survives(&depot, &mut driver, point);
    }
}

/// One depot for each point, as all of them wait for the time that a blob stays without references.
fn dies_reclaiming(mode: Mode) {
    let each = |point: &str| {
        let depot = Steered::new(mode, "");
        let logs = scratch();
        depot.mount();
        let mut driver = Driver::new(&depot.depot.path("repo"), 1, logs.path());
        for number in 0..3 {
            driver.file(&format!("gone{number}"), &driver.noise(number, 5000)).unwrap();
        }
        driver.file("kept", &driver.noise(9, 5000)).unwrap();
        depot.flush();
        let gone: Vec<_> = (0..3).map(|n| depot.depot.blob(&sha1(&driver.noise(n, 5000)))).collect();
        assert!(gone.iter().all(|blob| blob.exists()));
        for number in 0..3 {
            driver.unlink(&format!("gone{number}")).unwrap();
        }
        depot.set(&format!("{point}=kill"));
        eventually("the blobs to be reclaimed", || !depot.serves());
        dies(&depot, point);
        // The same content comes back, whatever is left of it.
        depot.clear();
        depot.mount();
        driver.compare();
        driver.file("back", &driver.noise(0, 5000)).unwrap();
        depot.flush();
        survives(&depot, &mut driver, point);
    };
    std::thread::scope(|s| {
        let threads: Vec<_> = RECLAIMING.iter().map(|point| s.spawn(|| each(point))).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// A depot in which everything that `check --repair` mends is broken.
fn broken(depot: &Steered) -> Vec<u8> {
    depot.mount();
    let path = depot.depot.path("repo/file");
    fs::write(&path, "the earlier version").unwrap();
    depot.flush();
    depot.set("staging.force=hold\ndisk.sync=hold\nseal.hashed=hold");
    fs::write(&path, "a later version").unwrap();
    depot.kill();
    depot.clear();
    let stray = noise(7, 3000);
    let pre = depot.depot.dir.join("filestore/_pre");
    let staged: Vec<_> = fs::read_dir(&pre).unwrap().map(|file| file.unwrap().path()).collect();
    staged.iter().for_each(|path| fs::remove_file(path).unwrap());
    fs::write(pre.join("00000000000fffff"), "nobody's").unwrap();
    let blob = depot.depot.blob(&sha1(&stray));
    fs::write(&blob, &stray).unwrap();
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o400)).unwrap();
    let index = rusqlite::Connection::open(depot.depot.dir.join("index.db")).unwrap();
    index
        .execute_batch("UPDATE inode SET nlink = 17 WHERE kind = 1; UPDATE blob SET refs = 99 WHERE size > 0")
        .unwrap();
    stray
}

#[test]
fn dies_repairing() {
    crate::harness::guarded(|| {
        for point in REPAIRING {
            let depot = Steered::new(Mode::Passthrough, "");
            let stray = broken(&depot);
            depot.set(&format!("{point}=kill"));
            assert_eq!(depot.run(&["check", depot.depot.dir_str(), "--repair"]).code, None, "{point}");
            dies(&depot, point);
            depot.clear();
            depot.run(&["check", depot.depot.dir_str(), "--repair"]).ok();
            depot.depot.check();
            depot.mount();
            assert_eq!(fs::read(depot.depot.path("repo/file")).unwrap(), b"the earlier version", "{point}");
            let found = depot.depot.path(format!("lost+found/{}", sha1(&stray)));
            assert!(fs::read(found).unwrap() == stray, "{point}");
            assert_eq!(fs::read_dir(depot.depot.path("lost+found")).unwrap().count(), 1, "{point}");
            sound(&depot);
        }
    });
}
