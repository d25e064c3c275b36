//! Blobs put where the shards' configuration wants them, while the depot is in use.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::harness::{Depot, Mode, eventually, guarded, sha1};

/// A mounted depot over shards with a repository, and files in it.
struct Shards {
    depot: Depot,
    repo: PathBuf,
}

impl Shards {
    fn new() -> Shards {
        let depot = Depot::new(Mode::Sharded);
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        Shards { depot, repo }
    }

    fn write(&self, names: std::ops::Range<u32>) -> BTreeMap<String, Vec<u8>> {
        let files = names.map(|i| (format!("file{i}"), format!("content {i} ").repeat(500).into_bytes()));
        let files: BTreeMap<String, Vec<u8>> = files.collect();
        files.iter().for_each(|(name, bytes)| fs::write(self.repo.join(name), bytes).unwrap());
        self.depot.flush();
        files
    }

    /// The shards by name that have a blob.
    fn holders(&self, sum: &str) -> Vec<String> {
        let found = (0..5).map(|i| format!("shard{i}"));
        found.filter(|name| self.depot.dir.join(name).join(&sum[..2]).join(sum).exists()).collect()
    }

    /// Puts a depot.toml with these shards in the place of the one that is there.
    fn configure(&self, redundancy: u32, shards: &[&str]) {
        let file = self.depot.dir.join("depot.toml");
        let old = fs::read_to_string(&file).unwrap();
        let id = old.lines().find(|line| line.starts_with("id = ")).unwrap();
        let mut text = format!("{id}\nchain = [\"sharding\"]\n[sharding]\nredundancy = {redundancy}\n");
        text.push_str("check-period = \"100ms\"\n");
        for shard in shards {
            let (name, enabled) = shard.strip_suffix('-').map_or((*shard, true), |name| (name, false));
            text.push_str(&format!("[[sharding.shard]]\ndir = \"{name}\"\nwrite-enabled = {enabled}\n"));
        }
        fs::write(&file, text).unwrap();
    }

    #[track_caller]
    fn reload(&self) -> String {
        self.depot.cli(&["reload", self.depot.dir_str()]).ok()
    }

    /// Balances until nothing is left: what is in use stays for a while.
    #[track_caller]
    fn balance(&self) -> Value {
        let mut last = Value::Null;
        eventually("a balance that leaves nothing", || {
            let ran = self.depot.cli(&["balance", self.depot.dir_str(), "--json"]);
            let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}", ran.err));
            assert_eq!(report["failed"], 0, "{report}");
            assert_eq!(report["whole"], true, "{report}");
            assert_eq!(ran.code, Some(if report["left"] == 0 { 0 } else { 4 }));
            if last.is_null() || report["copied"] != 0 || report["removed"] != 0 {
                last = report.clone();
            }
            report["left"] == 0
        });
        last
    }

    fn read_all(&self, files: &BTreeMap<String, Vec<u8>>) {
        for (name, bytes) in files {
            assert!(fs::read(self.repo.join(name)).unwrap() == *bytes, "{name}");
        }
    }
}

#[test]
fn redundancy_follows_the_configuration() {
    guarded(|| {
        let shards = Shards::new();
        let files = shards.write(0..25);
        let counts = |n: usize| files.values().all(|bytes| shards.holders(&sha1(bytes)).len() == n);
        assert!(counts(2));
        shards.configure(3, &["shard0", "shard1", "shard2"]);
        let told = shards.reload();
        assert!(told.contains("sharding.redundancy was changed"), "{told}");
        shards.balance();
        assert!(counts(3));
        let status = shards.depot.status();
        assert_eq!(status["balance"]["running"], false);
        shards.configure(1, &["shard0", "shard1", "shard2"]);
        shards.reload();
        // Files that are open stay as they are, and are read on.
        let (name, bytes) = files.first_key_value().unwrap();
        let mut open = fs::File::open(shards.repo.join(name)).unwrap();
        let mut begin = [0; 10];
        open.read_exact(&mut begin).unwrap();
        shards.depot.cli(&["balance", shards.depot.dir_str()]);
        let mut rest = Vec::new();
        open.read_to_end(&mut rest).unwrap();
        assert_eq!([&begin[..], &rest].concat(), *bytes);
        drop(open);
        shards.balance();
        assert!(counts(1));
        shards.read_all(&files);
        let metrics = shards.depot.cli(&["metrics", shards.depot.dir_str()]).ok();
        let removed = metrics.lines().find_map(|l| l.strip_prefix("depotfs_balance_removed_total "));
        assert!(removed.unwrap().parse::<u64>().unwrap() >= 50, "{removed:?}");
        shards.depot.umount();
        assert!(
            shards.depot.dir.join("sharding/hints").exists(),
            "the next daemon asks where they were found"
        );
        shards.depot.check();
    });
}

/// Without anybody asking, some seconds after the change.
#[test]
fn a_changed_configuration_is_balanced_by_itself() {
    guarded(|| {
        let shards = Shards::new();
        let files = shards.write(0..10);
        shards.depot.umount();
        shards.configure(3, &["shard0", "shard1", "shard2"]);
        shards.depot.mount();
        eventually("three copies of each", || {
            files.values().all(|bytes| shards.holders(&sha1(bytes)).len() == 3)
        });
    });
}

/// A shard is added, another one drained and taken away, while programs write and read.
#[test]
fn shards_come_and_go_under_writers() {
    guarded(|| {
        let shards = Shards::new();
        let before = shards.write(0..40);
        let stop = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let writer = |w: u32| {
                let (repo, stop) = (&shards.repo, &stop);
                move || {
                    let mut files = BTreeMap::new();
                    for i in 0.. {
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                        let (name, bytes) =
                            (format!("w{w}-{i}"), format!("{w} {i} ").repeat(2000).into_bytes());
                        fs::write(repo.join(&name), &bytes).unwrap();
                        assert!(fs::read(repo.join(&name)).unwrap() == bytes);
                        files.insert(name, bytes);
                        std::thread::sleep(std::time::Duration::from_millis(3));
                    }
                    files
                }
            };
            let writers = [scope.spawn(writer(0)), scope.spawn(writer(1))];
            shards.configure(2, &["shard0", "shard1", "shard2", "shard3"]);
            let told = shards.reload();
            assert!(told.contains("sharding.shard[3].dir was changed"), "{told}");
            assert!(shards.depot.dir.join("shard3/.depotfs").exists());
            shards.read_all(&before);
            shards.configure(2, &["shard0", "shard1-", "shard2", "shard3"]);
            shards.reload();
            eventually("shard1 to be empty", || {
                shards.depot.cli(&["balance", shards.depot.dir_str()]);
                before.values().all(|bytes| !shards.holders(&sha1(bytes)).contains(&"shard1".to_owned()))
            });
            shards.configure(2, &["shard0", "shard2", "shard3"]);
            eventually("shard1 to go", || {
                shards.depot.cli(&["balance", shards.depot.dir_str()]);
                let ran = shards.depot.cli(&["reload", shards.depot.dir_str()]);
                ran.code == Some(0)
                    && shards.depot.status()["chain"][0]["children"].as_array().unwrap().len() == 3
            });
            fs::remove_dir_all(shards.depot.dir.join("shard1")).unwrap();
            stop.store(true, Ordering::SeqCst);
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<BTreeMap<_, _>>()
        });
        shards.read_all(&before);
        shards.read_all(&written);
        shards.depot.flush();
        shards.depot.umount();
        shards.depot.check();
        shards.depot.mount();
        shards.read_all(&before);
        shards.read_all(&written);
        shards.balance();
        for bytes in before.values().chain(written.values()) {
            assert_eq!(shards.holders(&sha1(bytes)).len(), 2);
        }
    });
}

#[test]
fn a_shard_with_blobs_that_are_nowhere_else_stays() {
    guarded(|| {
        let shards = Shards::new();
        shards.configure(1, &["shard0", "shard1", "shard2"]);
        shards.reload();
        let files = shards.write(0..12);
        shards.configure(1, &["shard0", "shard1"]);
        let ran = shards.depot.cli(&["reload", shards.depot.dir_str()]);
        assert_eq!(ran.code, Some(4));
        assert!(
            ran.out.contains("shard2 is not taken away yet") && ran.out.contains("on no other shard"),
            "{}",
            ran.out
        );
        shards.read_all(&files);
        let status = shards.depot.status();
        assert!(status["reloaded"]["refused"][0].as_str().unwrap().contains("shard2"), "{status}");
        shards.balance();
        shards.reload();
        assert_eq!(shards.depot.status()["chain"][0]["children"].as_array().unwrap().len(), 2);
        shards.read_all(&files);
    });
}

/// A copy whose bytes were changed, its size not: nobody copies it, verification finds it, and it is made anew.
#[test]
fn an_altered_copy_is_found_and_made_anew() {
    guarded(|| {
        let shards = Shards::new();
        let files = shards.write(0..3);
        let bytes = &files["file1"];
        let sum = sha1(bytes);
        let copy = shards.depot.dir.join(&shards.holders(&sum)[1]).join(&sum[..2]).join(&sum);
        shards.depot.cli(&["blob", "verify", shards.depot.dir_str(), &sum]).ok();
        fs::remove_file(&copy).unwrap();
        fs::write(&copy, vec![b'?'; bytes.len()]).unwrap();
        let ran = shards.depot.cli(&["blob", "verify", shards.depot.dir_str(), &sum]);
        assert_eq!(ran.code, Some(4));
        assert!(
            ran.out.contains("1 of its 2 copies") || ran.err.contains("1 of its 2 copies"),
            "{}{}",
            ran.out,
            ran.err
        );
        shards.balance();
        assert_eq!(fs::read(&copy).unwrap(), *bytes);
        shards.depot.cli(&["blob", "verify", shards.depot.dir_str(), &sum]).ok();
    });
}

/// A shard that lost everything under the daemon's hands is set aside, and what it had is served from the others.
#[test]
fn an_emptied_shard_is_set_aside() {
    guarded(|| {
        let shards = Shards::new();
        let files = shards.write(0..20);
        let dir = shards.depot.dir.join("shard1");
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            match entry.path().is_dir() {
                true => fs::remove_dir_all(entry.path()).unwrap(),
                false => fs::remove_file(entry.path()).unwrap(),
            }
        }
        shards.read_all(&files);
        let more = shards.write(100..110);
        eventually("the shard to be called failing", || {
            shards.read_all(&files);
            let status = shards.depot.status();
            status["chain"][0]["children"][1]["health"]["failing"].to_string().contains("emptied")
        });
        shards.read_all(&more);
        // Taken out, and put back as a new one, it gets its copies again.
        shards.configure(2, &["shard0", "shard2"]);
        shards.reload();
        shards.balance();
        shards.configure(2, &["shard0", "shard1", "shard2"]);
        shards.reload();
        shards.balance();
        let newest = shards.write(200..230);
        assert!(newest.values().any(|bytes| shards.holders(&sha1(bytes)).contains(&"shard1".to_owned())));
        shards.depot.umount();
        shards.depot.check();
    });
}

/// A disk of its own, gone with the value.
struct Disk(PathBuf);

impl Disk {
    fn mount(dir: PathBuf, options: &str) -> Disk {
        fs::create_dir_all(&dir).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("disk"), &dir, Some("tmpfs"), flags, Some(options)).unwrap();
        Disk(dir)
    }

    fn make_read_only(&self) {
        self.remount(nix::mount::MsFlags::MS_RDONLY);
    }

    fn remount(&self, flags: nix::mount::MsFlags) {
        let flags = flags | nix::mount::MsFlags::MS_REMOUNT;
        nix::mount::mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// One shard gets full in the middle of a batch, and is read-only after that: files are stored all the same and every one is
/// read; with room for them the copies are made.
#[test]
fn a_full_and_a_read_only_shard_are_no_obstacle() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Sharded);
        let disk = Disk::mount(depot.scratch().join("small"), "size=6m");
        let small = format!("sharding.shard[1].dir={}", disk.0.join("shard").display());
        let mut args = vec!["init", depot.dir_str()];
        for setting in [
            "chain=sharding",
            "sharding.redundancy=2",
            "sharding.check-period=100ms",
            "sharding.shard[0].dir=shard0",
            &small,
        ] {
            args.extend(["--set", setting]);
        }
        depot.cli(&args).ok();
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        let bytes = |i: usize| format!("{i} ").repeat(300_000).into_bytes();
        let write = |names: std::ops::Range<usize>| {
            names.for_each(|i| fs::write(repo.join(format!("file{i}")), bytes(i)).unwrap());
            eventually("all to be sealed", || {
                depot.cli(&["flush", depot.dir_str(), "--wait"]);
                depot.status()["pending"]["closed"] == 0
            });
        };
        let read = |names: std::ops::Range<usize>| {
            names.for_each(|i| {
                assert!(fs::read(repo.join(format!("file{i}"))).unwrap() == bytes(i), "file{i}")
            });
        };
        write(0..20);
        read(0..20);
        assert!(depot.status()["chain"][0]["owed"].as_u64().unwrap() > 0, "{}", depot.status());
        disk.make_read_only();
        write(20..26);
        read(0..26);
        depot.umount();
        depot.check();
    });
}

/// What is removed while a shard is read-only gives back the space on the others at once, and there when it takes changes.
#[test]
fn a_read_only_shard_gives_its_space_back_later() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Sharded);
        let disk = Disk::mount(depot.scratch().join("small"), "size=200m");
        let small = format!("sharding.shard[1].dir={}", disk.0.join("shard").display());
        let mut args = vec!["init", depot.dir_str()];
        for setting in
            ["chain=sharding", "sharding.check-period=100ms", "sharding.shard[0].dir=shard0", &small]
        {
            args.extend(["--set", setting]);
        }
        depot.cli(&args).ok();
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        let bytes = |i: usize| format!("{i} ").repeat(3_000).into_bytes();
        (0..16).for_each(|i| fs::write(repo.join(format!("file{i}")), bytes(i)).unwrap());
        depot.flush();
        let left = |shard: PathBuf| {
            let has = |sum: &String| shard.join(&sum[..2]).join(sum).exists();
            (0..16).map(|i| sha1(&bytes(i))).filter(has).count()
        };
        let (here, there) = (depot.dir.join("shard0"), disk.0.join("shard"));
        let on_disk = left(there.clone());
        assert!(left(here.clone()) > 0 && on_disk > 0);
        disk.make_read_only();
        (0..16).for_each(|i| fs::remove_file(repo.join(format!("file{i}"))).unwrap());
        eventually("the blobs to go from the other shard", || left(here.clone()) == 0);
        assert_eq!(left(there.clone()), on_disk);
        disk.remount(nix::mount::MsFlags::empty());
        eventually("the rest to go as well", || left(there.clone()) == 0);
        depot.umount();
        depot.check();
    });
}

#[test]
fn a_depot_without_shards_has_nothing_to_balance() {
    guarded(|| {
        let depot = Depot::new(Mode::Passthrough);
        depot.mount();
        let told = depot.cli(&["balance", depot.dir_str()]).ok();
        assert!(told.contains("0 blobs looked at"), "{told}");
        depot.umount();
        depot.cli(&["balance", depot.dir_str()]).fails(3);
        depot.mount_with("ro").ok();
        let err = depot.cli(&["balance", depot.dir_str()]).fails(1);
        assert!(err.contains("read-only"), "{err}");
    });
}
