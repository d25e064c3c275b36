//! Another chain for a depot with files: what is copied, what is refused, what is there afterwards.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use crate::data::noise;
use crate::harness::{Depot, Mode, Ran, command, guarded, run_command, sha1};

const FILES: usize = 60;
/// Files that are written in place meanwhile.
const CHANGED: u64 = 8;

/// What file `i` holds; some are alike, one is empty.
fn bytes(i: usize) -> Vec<u8> {
    noise(1 + (i % 50) as u64, i % 50 * 1_700)
}

/// A depot with files, not mounted.
fn filled(mode: Mode) -> Depot {
    let depot = Depot::new(mode);
    depot.mount();
    fs::create_dir(depot.path("repo")).unwrap();
    for i in 0..FILES {
        fs::write(depot.path(format!("repo/file{i}")), bytes(i)).unwrap();
    }
    depot.umount();
    depot
}

fn rechain(depot: &Depot, args: &[&str]) -> Ran {
    depot.cli(&[&["rechain", depot.dir_str()], args].concat())
}

/// Every file is what it was, and the depot is sound.
#[track_caller]
fn holds(depot: &Depot) {
    if !depot.is_mounted() {
        depot.mount();
    }
    for i in 0..FILES {
        assert!(fs::read(depot.path(format!("repo/file{i}"))).unwrap() == bytes(i), "file{i}");
    }
    depot.umount();
    depot.verify_blobs();
    depot.check();
}

fn kind(depot: &Depot) -> Value {
    depot.status()["chain"][0]["kind"].clone()
}

fn plan(depot: &Depot) -> PathBuf {
    depot.dir.join("rechain.json")
}

/// The depot.toml of a chain over two of three shards, in a file outside.
fn shards(depot: &Depot, first: &str) -> PathBuf {
    let path = depot.scratch().join("new.toml");
    let text = format!(
        "chain = ['sharding']\n[sharding]\nredundancy = 2\n[[sharding.shard]]\ndir = '{first}'\n[[sharding.shard]]\ndir = 'shard1'\n\
         [[sharding.shard]]\ndir = 'shard2'\n"
    );
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn there_and_back() {
    guarded(|| {
        let mut depot = filled(Mode::Passthrough);
        let (before, was) = (depot.blobs(), fs::read_to_string(depot.dir.join("depot.toml")).unwrap());
        let told = rechain(&depot, &["--to", "full-db-direct"]).ok();
        assert!(told.contains("copied") && told.contains("filestore"), "{told}");
        assert_eq!(depot.blobs(), before, "the old blobs stay");
        assert_eq!(fs::read_to_string(depot.dir.join("depot.toml.old")).unwrap(), was);
        depot.mode = Mode::Database;
        assert_eq!(kind(&depot), "full-db");
        assert_eq!(depot.blobs(), before);
        holds(&depot);
        // What stands in the old place since then counts only after a look at its bytes.
        let damaged = depot.dir.join("filestore").join(&sha1(&bytes(7))[..2]).join(sha1(&bytes(7)));
        let size = fs::metadata(&damaged).unwrap().len() as usize;
        fs::remove_file(&damaged).unwrap();
        fs::write(&damaged, vec![b'x'; size]).unwrap();
        let report: Value =
            serde_json::from_str(&rechain(&depot, &["--to", "file-system", "--json"]).ok()).unwrap();
        assert_eq!((&report["copied"], &report["switched"]), (&1.into(), &true.into()), "{report}");
        depot.mode = Mode::Passthrough;
        assert!(fs::read(&damaged).unwrap() == bytes(7));
        assert!(!plan(&depot).exists());
        holds(&depot);
        assert!(rechain(&depot, &["--to", "file-system"]).fails(2).contains("this chain already"));
        assert!(rechain(&depot, &[]).fails(1).contains("name the new chain with --to"));
    });
}

#[test]
fn onto_shards_by_a_file() {
    guarded(|| {
        let mut depot = filled(Mode::Passthrough);
        let file = shards(&depot, "shard0");
        rechain(&depot, &["--to", file.to_str().unwrap()]).ok();
        depot.mode = Mode::Sharded;
        let holders =
            |sum: &str| depot.stores().iter().filter(|s| s.join(&sum[..2]).join(sum).exists()).count();
        assert!(depot.blobs().iter().all(|sum| holders(sum) == 2));
        holds(&depot);
    });
}

/// While it is mounted nearly all is copied, the next mount does the rest; what is removed meanwhile leaves nothing behind.
#[test]
fn while_it_is_mounted_and_written() {
    guarded(|| {
        let mut depot = filled(Mode::Passthrough);
        depot.mount();
        for i in 0..40 {
            fs::write(depot.path(format!("repo/gone{i}")), noise(1000 + i, 3_000)).unwrap();
        }
        for i in 0..CHANGED {
            fs::write(depot.path(format!("repo/changed{i}")), noise(9000 + i, 300_000)).unwrap();
        }
        depot.flush();
        // Their readers have the blobs' own files, which become the writer's.
        let open = |i| fs::File::open(depot.path(format!("repo/changed{i}"))).unwrap();
        let readers: Vec<fs::File> = (0..CHANGED).map(open).collect();
        let (go_on, made, last) = (AtomicBool::new(true), std::sync::Mutex::new(0), AtomicU64::new(0));
        let told = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut i = 0;
                while go_on.load(Ordering::Relaxed) {
                    fs::write(depot.path(format!("repo/new{i}")), noise(5000 + i, 2_000)).unwrap();
                    i += 1;
                    *made.lock().unwrap() = i;
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            });
            scope.spawn(|| {
                for round in 1.. {
                    for i in 0..CHANGED {
                        let to_write =
                            fs::OpenOptions::new().write(true).open(depot.path(format!("repo/changed{i}")));
                        to_write.unwrap().write_all_at(&noise(9000 + 100 * round + i, 300_000), 0).unwrap();
                    }
                    last.store(round, Ordering::Relaxed);
                    if !go_on.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            let ran = rechain(&depot, &["--to", "full-db-direct"]);
            go_on.store(false, Ordering::Relaxed);
            ran.ok()
        });
        assert!(told.contains("the next mount"), "{told}");
        assert_eq!(kind(&depot), "file-system");
        for i in 0..40 {
            fs::remove_file(depot.path(format!("repo/gone{i}"))).unwrap();
        }
        fs::write(depot.path("repo/late"), noise(77, 50_000)).unwrap();
        drop(readers);
        depot.umount();
        depot.mount();
        depot.mode = Mode::Database;
        let last = last.into_inner();
        for i in 0..CHANGED {
            let found = fs::read(depot.path(format!("repo/changed{i}"))).unwrap();
            assert!(found == noise(9000 + 100 * last + i, 300_000), "changed{i}");
        }
        assert_eq!(kind(&depot), "full-db");
        assert!(fs::read(depot.path("repo/late")).unwrap() == noise(77, 50_000));
        for i in 0..made.into_inner().unwrap() {
            assert!(
                fs::read(depot.path(format!("repo/new{i}"))).unwrap() == noise(5000 + i, 2_000),
                "new{i}"
            );
        }
        holds(&depot);
    });
}

/// Bytes that nobody sealed yet lie in the old chain; they are sealed there first.
#[test]
fn what_a_killed_daemon_left_is_sealed_first() {
    guarded(|| {
        let mut depot = filled(Mode::Passthrough);
        depot.mount();
        fs::write(depot.path("repo/unsealed"), noise(3, 100_000)).unwrap();
        depot.kill();
        rechain(&depot, &["--to", "full-db-direct"]).ok();
        depot.mode = Mode::Database;
        depot.mount();
        assert!(fs::read(depot.path("repo/unsealed")).unwrap() == noise(3, 100_000));
        holds(&depot);
    });
}

#[test]
fn altered_blobs_are_named_and_nothing_is_exchanged() {
    guarded(|| {
        let mut depot = filled(Mode::Passthrough);
        let (sum, lost) = (sha1(&bytes(20)), sha1(&bytes(30)));
        let at = |sum: &str| depot.dir.join("filestore").join(&sum[..2]).join(sum);
        fs::remove_file(at(&lost)).unwrap();
        let altered = at(&sum);
        let good = fs::read(&altered).unwrap();
        fs::remove_file(&altered).unwrap();
        fs::write(&altered, vec![b'x'; good.len()]).unwrap();
        let ran = rechain(&depot, &["--to", "full-db-direct"]);
        assert_eq!(ran.code, Some(4), "{}", ran.err);
        assert!(
            ran.err.contains(&sum) && ran.err.contains(&lost) && ran.err.contains("repo/file20"),
            "{}",
            ran.err
        );
        assert!(ran.out.contains("keeps its chain"), "{}", ran.out);
        assert_eq!(kind(&depot), "file-system");
        assert!(depot.dir.join("full-db/blobs.db").exists());
        depot.mode = Mode::Database;
        let copied = depot.blobs();
        depot.mode = Mode::Passthrough;
        assert!(!copied.contains(&sum) && copied.len() > 40, "{copied:?}");
        // The content written again makes it good, and the same command goes on.
        depot.mount();
        fs::write(depot.path("repo/again20"), bytes(20)).unwrap();
        fs::write(depot.path("repo/again30"), bytes(30)).unwrap();
        depot.flush();
        if fs::read(&altered).unwrap() != good {
            // A blob of the right size stays as it is: only its bytes are wrong.
            fs::remove_file(&altered).unwrap();
            fs::write(&altered, &good).unwrap();
        }
        depot.umount();
        let report: Value = serde_json::from_str(&rechain(&depot, &["--json"]).ok()).unwrap();
        assert_eq!((&report["copied"], &report["switched"]), (&2.into(), &true.into()), "{report}");
        depot.mode = Mode::Database;
        holds(&depot);
    });
}

/// A directory that loses its disk: what is below the mount point is empty.
fn unmount_disk(depot: &Depot, dir: &Path) -> PathBuf {
    let away = depot.scratch().join("away");
    fs::rename(dir, &away).unwrap();
    fs::create_dir(dir).unwrap();
    away
}

/// The disk is there again; nothing was made in its absence.
#[track_caller]
fn mount_disk(dir: &Path, away: &Path) {
    fs::remove_dir(dir).expect("nothing was put below the mount point");
    fs::rename(away, dir).unwrap();
}

#[test]
fn where_the_disk_of_the_old_chain_is_away_nothing_is_made() {
    guarded(|| {
        let depot = filled(Mode::Passthrough);
        depot.mount();
        let forced = fs::File::create(depot.path("repo/forced")).unwrap();
        forced.write_all_at(&noise(3, 100_000), 0).unwrap();
        forced.sync_all().unwrap();
        drop(forced);
        depot.kill();
        let blobs = depot.dir.join("filestore");
        let away = unmount_disk(&depot, &blobs);
        let err = rechain(&depot, &["--to", "cache-fs"]).fails(1);
        assert!(err.contains("is its disk mounted?"), "{err}");
        mount_disk(&blobs, &away);
        rechain(&depot, &[]).ok();
        assert_eq!(kind(&depot), "cache-fs");
        depot.mount();
        assert!(fs::read(depot.path("repo/forced")).unwrap() == noise(3, 100_000));
        holds(&depot);
    });
}

#[test]
fn where_the_disk_of_the_new_chain_is_away_it_waits() {
    guarded(|| {
        let depot = filled(Mode::Passthrough);
        let raid = depot.scratch().join("raid");
        let new = depot.scratch().join("new.toml");
        fs::write(&new, "template = 'file-system'").unwrap();
        let dir = format!("file-system.dir={}", raid.display());
        depot.mount();
        let told = rechain(&depot, &["--to", new.to_str().unwrap(), "--set", &dir]).ok();
        assert!(told.contains("the next mount"), "{told}");
        depot.umount();
        let away = unmount_disk(&depot, &raid);
        depot.mount();
        assert!(fs::read(depot.path("repo/file7")).unwrap() == bytes(7));
        depot.umount();
        assert!(rechain(&depot, &[]).fails(1).contains("is its disk mounted?"));
        mount_disk(&raid, &away);
        depot.mount();
        assert_eq!(depot.status()["chain"][0]["directory"], raid.to_str().unwrap());
        for i in 0..FILES {
            assert!(fs::read(depot.path(format!("repo/file{i}"))).unwrap() == bytes(i));
        }
        depot.umount();
        depot.check();
    });
}

/// A blob that is stored when most is copied already, and stands in the new chain from another time, is compared as well.
#[test]
fn what_comes_late_is_compared_too() {
    guarded(|| {
        let mut depot = filled(Mode::Passthrough);
        rechain(&depot, &["--to", "full-db-direct"]).ok();
        depot.mode = Mode::Database;
        let late = noise(78, 50_000);
        let sum = sha1(&late);
        let old = depot.dir.join("filestore").join(&sum[..2]).join(&sum);
        fs::write(&old, vec![b'x'; late.len()]).unwrap();
        depot.mount();
        let told = rechain(&depot, &["--to", "file-system"]).ok();
        assert!(told.contains("the next mount"), "{told}");
        fs::write(depot.path("repo/late"), &late).unwrap();
        depot.umount();
        let before = fs::metadata(depot.dir.join("rechain.trusted")).unwrap().len();
        assert!(before >= 20 * 40, "what was compared is not compared again: {before}");
        depot.mount();
        depot.mode = Mode::Passthrough;
        assert_eq!(kind(&depot), "file-system");
        assert!(fs::read(depot.path("repo/late")).unwrap() == late);
        assert!(!depot.dir.join("rechain.trusted").exists());
        holds(&depot);
    });
}

/// A small disk of the memory, gone with the value.
struct Small(PathBuf);

impl Small {
    fn new(dir: PathBuf) -> Small {
        fs::create_dir(&dir).unwrap();
        let small = Small(dir);
        small.mount("size=1m");
        small
    }

    fn mount(&self, options: &str) {
        run_command(&mut command("mount", &["-t", "tmpfs", "-o", options, "tmpfs", self.path()])).ok();
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run_command(&mut command("umount", &["-l", self.path()]));
    }
}

#[test]
fn a_full_disk_ends_it_and_the_same_command_goes_on() {
    guarded(|| {
        let depot = filled(Mode::Passthrough);
        let small = Small::new(depot.scratch().join("small"));
        let dir = format!("file-system.dir={}/blobs", small.path());
        let new = depot.scratch().join("new.toml");
        fs::write(&new, "template = 'file-system'").unwrap();
        let args = ["--to", new.to_str().unwrap(), "--set", &dir];
        for mounted in [false, true] {
            if mounted {
                depot.mount();
            }
            let err = rechain(&depot, &args).fails(1);
            assert!(err.contains("No space left") && err.contains("goes on"), "{err}");
            if mounted {
                depot.umount();
            }
        }
        holds(&depot);
        run_command(&mut command("mount", &["-o", "remount,size=64m", small.path()])).ok();
        rechain(&depot, &args).ok();
        assert_eq!(depot.status()["chain"][0]["directory"], format!("{}/blobs", small.path()));
        depot.mount();
        for i in 0..FILES {
            assert!(fs::read(depot.path(format!("repo/file{i}"))).unwrap() == bytes(i));
        }
        depot.umount();
        depot.check();
    });
}

/// The directory of blobs becomes the first of three shards: nothing is copied, and nothing else is the same.
#[test]
fn a_filestore_becomes_a_shard() {
    guarded(|| {
        let depot = filled(Mode::Passthrough);
        let file = shards(&depot, "filestore");
        depot.mount();
        let told = rechain(&depot, &["--to", file.to_str().unwrap()]).ok();
        assert!(told.contains("the next mount") && !told.contains("copied"), "{told}");
        depot.umount();
        depot.mount();
        assert_eq!(kind(&depot), "sharding");
        for i in 0..FILES {
            assert!(fs::read(depot.path(format!("repo/file{i}"))).unwrap() == bytes(i));
        }
        depot.umount();
        depot.check();
    });
}

#[test]
fn what_cannot_be_is_refused() {
    guarded(|| {
        let depot = filled(Mode::Passthrough);
        let refused = |args: &[&str], code: i32, part: &str| {
            let err = rechain(&depot, args).fails(code);
            assert!(err.contains(part), "{args:?}: {err}");
            assert!(!plan(&depot).exists(), "{args:?}");
        };
        refused(&["--to", "full-db-dierct"], 1, "neither a template nor a file");
        refused(&["--to", "full-db-direct", "--set", "full-db.dri=x"], 2, "full-db.dir");
        refused(&["--to", "full-db-direct", "--set", "log.level=debug"], 1, "only the chain is exchanged");
        refused(&["--to", "full-db-direct", "--set", "file-system.dir=x"], 4, "has no file-system");
        refused(&["--to", "full-db-direct", "--set", "full-db.dir=filestore"], 1, "name another directory");
        let file = depot.scratch().join("new.toml");
        fs::write(&file, "id = '00112233445566778899aabbccddeeff'\nchain = ['full-db']").unwrap();
        refused(&["--to", file.to_str().unwrap()], 1, "\"id\" is no part of the chain");
        fs::write(&file, "chain = ['full-db'").unwrap();
        refused(&["--to", file.to_str().unwrap()], 1, "not TOML");
        assert!(rechain(&depot, &["--cancel"]).ok().contains("no rechain to cancel"));
        // Another one is not begun over one that was.
        let elsewhere = depot.scratch().join("other");
        make_depot_directory(&depot, &elsewhere);
        let dir = format!("full-db.dir={}", elsewhere.display());
        assert!(
            rechain(&depot, &["--to", "full-db-direct", "--set", &dir]).fails(1).contains("belongs to depot")
        );
        assert!(rechain(&depot, &["--to", "full-db-direct"]).fails(1).contains("--cancel"));
        assert!(rechain(&depot, &["--cancel"]).ok().contains("cancelled"));
        // A plan that makes no sense is in nobody's way.
        for garbage in
            [&b""[..], b"{}", b"\xff", b"{\"version\":9,\"toml\":\"\",\"fresh\":null,\"ready\":true}"]
        {
            fs::write(plan(&depot), garbage).unwrap();
            let err = rechain(&depot, &[]).fails(1);
            assert!(err.contains("rechain.json"), "{err}");
            depot.mount();
            depot.umount();
            assert!(rechain(&depot, &["--cancel"]).ok().contains("cancelled"));
        }
        holds(&depot);
    });
}

/// A directory that another depot keeps its blobs in.
fn make_depot_directory(depot: &Depot, dir: &Path) {
    let other = depot.scratch().join("another");
    let set = format!("full-db.dir={}", dir.display());
    depot.cli(&["init", other.to_str().unwrap(), "--template", "full-db-direct", "--set", &set]).ok();
}

/// A chain that was changed in depot.toml and does not reach the blobs is refused before anything is done.
#[test]
fn a_chain_changed_by_hand_is_refused() {
    guarded(|| {
        let depot = filled(Mode::Passthrough);
        let path = depot.dir.join("depot.toml");
        let good = fs::read_to_string(&path).unwrap();
        depot.mount();
        fs::write(depot.path("repo/more"), noise(8, 200_000)).unwrap();
        depot.kill();
        let blank = depot.scratch().join("blank");
        let copied = run_command(&mut command(
            "cp",
            &["-a", depot.dir.join("filestore").to_str().unwrap(), blank.to_str().unwrap()],
        ));
        copied.ok();
        for folder in fs::read_dir(&blank).unwrap().flatten().filter(|f| f.file_name().len() == 2) {
            for blob in fs::read_dir(folder.path()).unwrap().flatten() {
                fs::remove_file(blob.path()).unwrap();
            }
        }
        let chosen = |dir: &Path| {
            good.replace("# dir = \"filestore\"", &format!("dir = {:?}", dir.display().to_string()))
        };
        assert_ne!(chosen(&blank), good);
        fs::write(&path, chosen(&blank)).unwrap();
        let err = depot.mount_with("").fails(1);
        assert!(err.contains("are not in the chain file-system") && err.contains("depotfs rechain"), "{err}");
        for staged in fs::read_dir(blank.join("_pre")).unwrap().flatten() {
            fs::remove_file(staged.path()).unwrap();
        }
        let err = depot.mount_with("").fails(1);
        assert!(err.contains("not sealed yet have their bytes in another chain"), "{err}");
        assert!(depot.cli(&["check", depot.dir_str()]).fails(1).contains("another chain"));
        fs::write(&path, &good).unwrap();
        depot.mount();
        assert!(fs::read(depot.path("repo/more")).unwrap() == noise(8, 200_000));
        holds(&depot);
    });
}
