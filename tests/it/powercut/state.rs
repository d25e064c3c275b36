//! One rebuilt state: the local file system recovers, then the depot, and what is there is judged.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use depotfs::index::Index;

use super::Plan;
use super::compare::judge;
use super::random::Random;
use super::recording::{Cut, Replay};
use super::workload::Done;
use crate::harness::{Depot, command, run_command, scratch, sha1};

/// The local file system of an image, mounted; unmounted on drop.
struct Disk {
    scratch: tempfile::TempDir,
}

impl Disk {
    fn path(&self) -> std::path::PathBuf {
        self.scratch.path().join("disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let path = self.path();
        if !run_command(&mut command("umount", &[path.to_str().unwrap()])).err.is_empty() {
            run_command(&mut command("umount", &["-l", path.to_str().unwrap()]));
        }
    }
}

/// Says which state it was when a test fails in the middle of it.
struct Context<'a>(&'a str);

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// Rebuilds what a cut leaves, and says what is wrong with it.
pub fn try_cut(plan: Plan, replay: &mut Replay, cut: &Cut, done: &Done, random: &mut Random) -> Vec<String> {
    let disk = Disk { scratch: scratch() };
    fs::create_dir(disk.path()).unwrap();
    let image = disk.scratch.path().join("image");
    let what = replay.build(cut, random, &image);
    let _context = Context(&what);
    plan.file_system.mount(image.to_str().unwrap(), "loop", &disk.path());
    let mut faults = recover_and_judge(plan, &disk.path(), cut, done, random);
    if !faults.is_empty() {
        faults.insert(0, what.clone());
    }
    faults
}

fn recover_and_judge(plan: Plan, disk: &Path, cut: &Cut, done: &Done, random: &mut Random) -> Vec<String> {
    let mut depot = Depot::uninitialised(plan.mode);
    depot.dir = disk.join("depot");
    let unsealed = unsealed(&depot);
    // The host has been switched off and on.
    let boot = format!("{:016x}{:016x}", random.next(), random.next());
    depot.environment.push(("DEPOTFS_TEST_BOOT_ID".into(), boot));
    depot.mount();
    let status = depot.status();
    let reports: Vec<String> =
        status["reports"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect();
    let mut faults = judge(done, cut, &depot.mountpoint, &reports);
    depot.flush();
    let kept: HashSet<String> = depot.blobs().into_iter().chain(aside(&depot)).collect();
    for (name, sum) in unsealed {
        if !kept.contains(&sum) {
            faults.push(format!("the unsealed bytes of staging file {name} are nowhere"));
        }
    }
    depot.umount();
    faults.extend(depot.blobs().into_iter().filter_map(|sum| altered(&depot, &sum)));
    let checked = depot.cli(&["check", depot.dir_str()]);
    if checked.code != Some(0) {
        faults.push(format!("check: {}{}", checked.out, checked.err));
    }
    faults
}

/// What is wrong with the bytes of a blob.
fn altered(depot: &Depot, sum: &str) -> Option<String> {
    let path = depot.blob(sum);
    let (found, meta) = (sha1(&fs::read(&path).unwrap()), fs::metadata(&path).unwrap());
    let tell =
        || format!("blob {sum} has the bytes of {found} ({} bytes, {} links)", meta.len(), meta.nlink());
    (found != sum).then(tell)
}

/// Names and checksums of the staging files that the index names, orphans aside, before recovery sees them.
fn unsealed(depot: &Depot) -> Vec<(String, String)> {
    let copy = scratch();
    for file in fs::read_dir(&depot.dir).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("index.") {
            fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    let index = Index::open(&copy.path().join("index.db")).unwrap();
    let orphans = index.orphans().unwrap();
    let rows = index.staged().unwrap().into_iter().filter(|row| !orphans.contains(&row.ino));
    let bytes = |name: String| {
        let bytes = fs::read(depot.dir.join("filestore/_pre").join(&name)).ok()?;
        (!bytes.is_empty()).then(|| (name, sha1(&bytes)))
    };
    rows.filter_map(|row| bytes(row.file.to_string())).collect()
}

/// Checksums of the bytes that were set aside.
fn aside(depot: &Depot) -> Vec<String> {
    let dir = fs::read_dir(depot.dir.join("filestore/_aside")).unwrap().flatten();
    dir.map(|file| sha1(&fs::read(file.path()).unwrap())).collect()
}
