//! A disk below that is full, read-only or dead, and an index that cannot be used.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::data::{noise, rw};
use crate::harness::{Depot, Fails, command, eventually, guarded, on_depot, run_command, scratch, sha1};

/// A small ext4 of its own in a file, mounted.
pub struct Disk {
    pub at: PathBuf,
    _scratch: tempfile::TempDir,
}

impl Disk {
    pub fn new(mib: u64) -> Disk {
        let scratch = scratch();
        let (image, at) = (scratch.path().join("image"), scratch.path().join("disk"));
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir(&at).unwrap();
        let (image, dir) = (image.to_str().unwrap(), at.to_str().unwrap());
        // No blocks are kept back for root, so that full is full.
        run_command(&mut command("mkfs.ext4", &["-q", "-F", "-m", "0", image])).ok();
        run_command(&mut command("mount", &["-o", "loop", image, dir])).ok();
        Disk { at, _scratch: scratch }
    }

    pub fn path(&self) -> &str {
        self.at.to_str().unwrap()
    }

    /// Fills what is left, to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.at.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        file.sync_all().unwrap();
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run_command(&mut command("umount", &["-l", self.path()]));
    }
}

/// A mounted depot with a repository on a small disk.
fn depot_on(disk: &Disk) -> Depot {
    let depot = Depot::new_in(&disk.at);
    depot.mount();
    fs::create_dir(depot.path("repo")).unwrap();
    depot
}

#[test]
fn a_full_disk_says_so_at_write() {
    guarded(|| {
        let disk = Disk::new(96);
        let depot = depot_on(&disk);
        let kept = noise(1, 1 << 20);
        fs::write(depot.path("repo/kept"), &kept).unwrap();
        depot.flush();
        let mut file = File::create(depot.path("repo/big")).unwrap();
        let chunk = noise(2, 1 << 20);
        let error = (0..200).find_map(|_| file.write_all(&chunk).err()).expect("a full disk");
        assert_eq!(error.raw_os_error(), Some(Errno::ENOSPC as i32), "{error}");
        assert!(fs::read(depot.path("repo/kept")).unwrap() == kept);
        drop(file);
        fs::remove_file(depot.path("repo/big")).unwrap();
        eventually("space to come back", || fs::write(depot.path("repo/again"), noise(3, 8 << 20)).is_ok());
        depot.flush();
        assert!(fs::read(depot.path("repo/again")).unwrap() == noise(3, 8 << 20));
        assert!(fs::read(depot.path("repo/kept")).unwrap() == kept);
        depot.umount();
        depot.verify_blobs();
        depot.check();
    });
}

#[test]
fn a_full_disk_keeps_the_earlier_content() {
    guarded(|| {
        let disk = Disk::new(64);
        let depot = depot_on(&disk);
        let path = depot.path("repo/file");
        fs::write(&path, noise(1, 2 << 20)).unwrap();
        depot.flush();
        let filler = disk.fill();
        // The first write needs a copy of the content, for which there is no room.
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let written = file.and_then(|f| f.write_all_at(b"changed", 0).and_then(|()| f.sync_all()));
        if let Err(e) = written {
            assert_eq!(e.raw_os_error(), Some(Errno::ENOSPC as i32), "{e}");
            assert!(fs::read(&path).unwrap() == noise(1, 2 << 20));
        }
        fs::remove_file(filler).unwrap();
        eventually("writing to work again", || rw(&path).write_all_at(b"changed", 0).is_ok());
        let mut model = noise(1, 2 << 20);
        model[..7].copy_from_slice(b"changed");
        assert!(fs::read(&path).unwrap() == model);
        depot.umount();
        depot.check();
    });
}

#[test]
fn removal_works_on_a_disk_filled_to_the_last_byte() {
    guarded(|| {
        let disk = Disk::new(64);
        let depot = depot_on(&disk);
        for i in 0..40 {
            fs::write(depot.path(format!("repo/f{i}")), noise(i, 200_000)).unwrap();
        }
        fs::create_dir(depot.path("repo/dir")).unwrap();
        depot.flush();
        let filler = disk.fill();
        for i in 0..30 {
            fs::remove_file(depot.path(format!("repo/f{i}"))).unwrap();
        }
        fs::remove_dir(depot.path("repo/dir")).unwrap();
        assert!(fs::read(depot.path("repo/f35")).unwrap() == noise(35, 200_000));
        assert_eq!(fs::read_dir(depot.path("repo")).unwrap().count(), 10);
        depot.status();
        // What was removed gives the room for new things, without anybody else's help.
        eventually("space to come back", || fs::write(depot.path("repo/new"), noise(50, 200_000)).is_ok());
        depot.umount();
        depot.verify_blobs();
        depot.mount();
        assert_eq!(fs::read_dir(depot.path("repo")).unwrap().count(), 11);
        assert!(fs::read(depot.path("repo/new")).unwrap() == noise(50, 200_000));
        fs::remove_file(filler).unwrap();
        depot.umount();
        depot.check();
    });
}

#[test]
fn a_full_disk_is_no_obstacle_to_mounting() {
    guarded(|| {
        let disk = Disk::new(64);
        let depot = depot_on(&disk);
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.umount();
        disk.fill();
        depot.mount();
        assert_eq!(fs::read(depot.path("repo/file")).unwrap(), b"bytes");
        fs::remove_file(depot.path("repo/file")).unwrap();
        depot.kill();
        depot.mount();
        fs::metadata(depot.path("repo/file")).fails(Errno::ENOENT);
        depot.umount();
    });
}

#[test]
fn a_disk_that_becomes_read_only() {
    guarded(|| {
        let disk = Disk::new(64);
        let depot = depot_on(&disk);
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.flush();
        // What has happened is on the disk; what the daemon holds open for writing must not stand in the way.
        run_command(&mut command("umount", &[depot.mountpoint_str()]));
        eventually("the daemon to end", || depot.daemons().is_empty());
        run_command(&mut command("mount", &["-o", "remount,ro", disk.path()])).ok();
        let ran = depot.mount_with("");
        if ran.code == Some(0) {
            assert_eq!(fs::read(depot.path("repo/file")).unwrap(), b"bytes");
            fs::write(depot.path("repo/file"), "x").fails(Errno::EROFS);
            depot.umount();
        } else {
            let err = ran.fails(1);
            assert!(err.to_lowercase().contains("read-only"), "{err}");
        }
        run_command(&mut command("mount", &["-o", "remount,rw", disk.path()])).ok();
        depot.mount();
        assert_eq!(fs::read(depot.path("repo/file")).unwrap(), b"bytes");
        fs::write(depot.path("repo/file"), "works again").unwrap();
        depot.umount();
        depot.check();
    });
}

#[test]
fn a_disk_that_dies() {
    guarded(|| {
        let disk = Disk::new(64);
        let depot = depot_on(&disk);
        fs::write(depot.path("repo/file"), noise(1, 1 << 20)).unwrap();
        depot.flush();
        crate::sys::shut_down(&File::open(&disk.at).unwrap());
        // Nothing hangs, nothing pretends to have worked.
        assert!(
            fs::write(depot.path("repo/new"), "x")
                .and_then(|()| File::open(depot.path("repo/new"))?.sync_all())
                .is_err()
        );
        let _ = fs::read_dir(depot.path("repo")).map(|d| d.count());
        let _ = fs::metadata(depot.path("repo/file"));
        let _ = nix::sys::statvfs::statvfs(&depot.mountpoint);
        let text = depot.cli(&["status", depot.dir_str()]).ok();
        assert!(text.contains("FAILING: "), "{text}");
        let ran = depot.cli(&["umount", depot.mountpoint_str()]);
        assert!(ran.code.is_some(), "umount comes back");
    });
}

/// Everything in the depot's directory but what is expected to change.
fn look(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter(|f| f.file_name().to_string_lossy().starts_with("index."))
        .map(|f| (f.path(), sha1(&fs::read(f.path()).unwrap())))
        .collect();
    files.sort();
    files
}

/// Neither `mount` nor `check` touches an index it does not understand.
fn refused_untouched(depot: &Depot, part: &str) {
    let before = look(&depot.dir);
    let err = depot.mount_with("").fails(1).to_lowercase();
    assert!(err.contains("index.db") && err.contains(part), "{err}");
    assert_eq!(look(&depot.dir), before);
    let ran = depot.cli(&["check", depot.dir_str(), "--repair"]);
    assert!(matches!(ran.code, Some(1 | 4)), "check: {:?} {}", ran.code, ran.err);
    assert_eq!(look(&depot.dir), before);
}

/// A depot that was used and cleanly unmounted.
fn used(depot: &Depot) -> PathBuf {
    depot.mount();
    fs::create_dir(depot.path("repo")).unwrap();
    fs::write(depot.path("repo/file"), "bytes").unwrap();
    depot.umount();
    depot.dir.join("index.db")
}

#[test]
fn a_newer_index_is_refused() {
    on_depot(|depot| {
        let index = used(depot);
        // `user_version` in the header of an SQLite file.
        rw(&index).write_all_at(&99_u32.to_be_bytes(), 60).unwrap();
        refused_untouched(depot, "newer");
    });
}

#[test]
fn a_foreign_database_is_refused() {
    on_depot(|depot| {
        let index = used(depot);
        for name in ["index.db", "index.db-wal", "index.db-shm"] {
            let _ = fs::remove_file(depot.dir.join(name));
        }
        let foreign = rusqlite::Connection::open(&index).unwrap();
        foreign.execute_batch("CREATE TABLE songs (name TEXT); INSERT INTO songs VALUES ('x')").unwrap();
        drop(foreign);
        refused_untouched(depot, "index");
    });
}

#[test]
fn a_corrupt_index_is_refused() {
    on_depot(|depot| {
        let index = used(depot);
        for (at, bytes) in [(4096, noise(1, 4096)), (0, b"garbage, no database at all".to_vec())] {
            rw(&index).write_all_at(&bytes, at).unwrap();
            refused_untouched(depot, "");
        }
        fs::write(&index, "").unwrap();
        refused_untouched(depot, "");
    });
}

#[test]
fn a_missing_index_is_refused() {
    on_depot(|depot| {
        let index = used(depot);
        fs::remove_file(&index).unwrap();
        let err = depot.mount_with("").fails(1);
        assert!(err.contains("index.db"), "{err}");
        assert!(!index.exists(), "an empty one is not put in its place");
    });
}
