//! Small files that are read one after the other: the next ones are in the kernel's page cache before anybody asks for them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::harness::{Tree, command, eventually, run_command, sha1};
use crate::sys::getxattr;

modes!(@ [passthrough cached user sharded]
    the_next_files_are_in_memory
    others_are_not
    programs_find_most_of_a_tree_in_memory
);

const FILES: usize = 40;

/// Pages of a file that the kernel has.
fn pages_of_file(path: &Path) -> u64 {
    let ran = run_command(&mut command("fincore", &["-nr", "-o", "PAGES", path.to_str().unwrap()]));
    ran.ok().trim().parse().unwrap()
}

/// The same of a blob, whichever copy they are of.
fn pages(copies: &[PathBuf]) -> u64 {
    copies.iter().map(|path| pages_of_file(path)).sum()
}

/// Has the kernel forget what it has of a file.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    // Only what is on the disk can be forgotten.
    file.sync_all().unwrap();
    eventually("the kernel to forget the bytes of a blob", || {
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        pages_of_file(path) == 0
    });
}

fn bytes(n: usize) -> Vec<u8> {
    format!("the bytes of file {n}\n").repeat(300).into_bytes()
}

/// Files in a directory, and the copies of their blobs, of which nobody has anything in memory.
fn cold(t: &Tree) -> (Vec<PathBuf>, Vec<Vec<PathBuf>>) {
    fs::create_dir(t.path("dir")).unwrap();
    let files: Vec<_> = (0..FILES).map(|n| t.file(format!("dir/{n:02}"), bytes(n))).collect();
    t.seal();
    // No job has a reason to read them, then.
    files.iter().for_each(|file| drop(getxattr(file, "user.depotfs.sha256").unwrap()));
    t.remount();
    let blobs: Vec<_> = (0..FILES).map(|n| t.depot().copies(&sha1(&bytes(n)))).collect();
    blobs.iter().flatten().for_each(|blob| forget(blob));
    (files, blobs)
}

/// So many files that were made ready, and so many of them that were read.
fn told(t: &Tree) -> [u64; 2] {
    let text = t.depot().cli(&["metrics", t.depot().dir_str()]).ok();
    ["files", "used"].map(|what| {
        let name = format!("depotfs_read_ahead_{what}_total ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    })
}

fn the_next_files_are_in_memory(t: &Tree) {
    let (files, blobs) = cold(t);
    for (n, file) in files.iter().enumerate().take(2) {
        assert!(fs::read(file).unwrap() == bytes(n));
    }
    for blob in &blobs[2..8] {
        eventually("the next blob to be in memory", || pages(blob) > 0);
    }
    assert_eq!(pages(&blobs[FILES - 1]), 0, "the last one is far away");
    for (n, file) in files.iter().enumerate().skip(2) {
        assert!(fs::read(file).unwrap() == bytes(n));
    }
    let [made, used] = told(t);
    assert!((6..=FILES as u64).contains(&made) && used >= 6 && used <= made, "{made} {used}");
}

fn others_are_not(t: &Tree) {
    let (files, blobs) = cold(t);
    for n in [20, 3, 35] {
        assert!(fs::read(&files[n]).unwrap() == bytes(n));
    }
    assert_eq!(told(t), [0, 0]);
    let in_memory: Vec<_> = (0..FILES).filter(|n| pages(&blobs[*n]) > 0).collect();
    assert_eq!(in_memory, [3, 20, 35]);
}

fn programs_find_most_of_a_tree_in_memory(t: &Tree) {
    let dirs = ["a", "b", "c", "d", "e"];
    for (n, dir) in dirs.iter().enumerate() {
        fs::create_dir(t.path(dir)).unwrap();
        (0..20).for_each(|i| drop(t.file(format!("{dir}/{i:02}"), bytes(n * 20 + i))));
    }
    t.seal();
    let from = t.dir().to_str().unwrap().to_owned();
    // On a host that is busy with something else the program may be there first.
    eventually("most files to be ready when tar comes for them", || {
        t.remount();
        let ran = run_command(&mut command("tar", &["-C", &from, "-cf", "/dev/stdout", "."]));
        assert!(ran.ok().contains("the bytes of file 99"));
        let [made, used] = told(t);
        assert!(made <= 100 && used <= made, "{made} {used}");
        used >= 80
    });
}
