//! depot.toml read again while the depot is mounted, and templates that have defaults.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Depot, Mode, eventually, guarded};

fn edit(depot: &Depot, change: impl FnOnce(String) -> String) {
    let file = depot.dir.join("depot.toml");
    let text = change(fs::read_to_string(&file).unwrap());
    fs::write(&file, text).unwrap();
}

#[test]
fn what_can_change_does_and_the_rest_waits() {
    guarded(|| {
        let depot = Depot::new(Mode::Passthrough);
        depot.mount();
        assert!(depot.cli(&["reload", depot.dir_str()]).ok().contains("nothing has changed"));
        edit(&depot, |text| {
            text.replace("# level = \"info\"", "level = \"trace\"")
                .replace("# durability = \"fsync\"", "durability = \"close\"")
        });
        let told = depot.cli(&["reload", depot.dir_str()]).ok();
        assert!(told.contains("log.level was changed"), "{told}");
        assert!(told.contains("durability is changed at the next mount"), "{told}");
        let quiet = depot.log().lines().count();
        crate::sys::getxattr(depot.path("."), "user.missing").unwrap_err();
        eventually("more in the log", || depot.log().lines().count() > quiet);
        let status = depot.status();
        assert_eq!(status["reloaded"]["waiting"][0], "durability");
        assert_eq!(status["durability"], "fsync");
        let text = depot.cli(&["status", depot.dir_str()]).ok();
        assert!(text.contains("durability is changed at the next mount"), "{text}");
        depot.umount();
        depot.mount();
        assert_eq!(depot.status()["durability"], "close");
        assert!(depot.status()["reloaded"].is_null());
    });
}

#[test]
fn a_bad_file_changes_nothing() {
    guarded(|| {
        let depot = Depot::new(Mode::Sharded);
        depot.mount();
        for (bad, part) in [
            ("no toml [", "not TOML"),
            ("redundancy = 9\n", "9 copies need as many shards"),
            ("lenient-limti = 1\n", "lenient-limit"),
        ] {
            let file = depot.dir.join("depot.toml");
            let good = fs::read_to_string(&file).unwrap();
            let begin = good.replace("redundancy = 2\n", bad);
            fs::write(&file, &begin).unwrap();
            let ran = depot.cli(&["reload", depot.dir_str()]);
            assert_eq!(ran.code, Some(4), "{bad}");
            assert!(ran.out.contains("nothing was changed") && ran.out.contains(part), "{}", ran.out);
            let error = depot.status()["reloaded"]["error"].to_string();
            assert!(error.contains(part), "{error}");
            fs::write(&file, good).unwrap();
        }
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.flush();
        depot.cli(&["reload", depot.dir_str()]).ok();
        assert!(depot.status()["reloaded"]["error"].is_null());
    });
}

#[test]
fn the_signal_reads_it_too() {
    guarded(|| {
        let depot = Depot::new(Mode::Sharded);
        depot.mount();
        edit(&depot, |text| text.replace("redundancy = 2\n", "redundancy = 1\n"));
        kill(Pid::from_raw(depot.pid()), Signal::SIGHUP).unwrap();
        eventually("the change to be made", || {
            depot.status()["reloaded"]["changed"][0] == "sharding.redundancy"
        });
        assert!(depot.log().contains("sharding.redundancy"), "{}", depot.log());
        edit(&depot, |text| format!("{text}\nnonsense = 1\n"));
        kill(Pid::from_raw(depot.pid()), Signal::SIGHUP).unwrap();
        eventually("the error to be told", || depot.log().contains("nonsense"));
    });
}

#[test]
fn templates_with_shards_have_their_directories() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        depot.cli(&["init", depot.dir_str(), "--template", "redundant-shards"]).ok();
        let shown = depot.cli(&["config", "show", depot.dir_str()]).ok();
        let line =
            |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        assert!(line("sharding.redundancy ").ends_with("template"), "{shown}");
        assert!(line("sharding.shard[1].dir").contains("shard-2"), "{shown}");
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.flush();
        let sum = depot.checksum("repo/file");
        for shard in ["shard-1", "shard-2"] {
            assert!(depot.dir.join(shard).join(&sum[..2]).join(&sum).exists(), "{shard}");
        }
        depot.umount();

        let other = Depot::uninitialised(Mode::Passthrough);
        let (a, b) = (other.scratch().join("a"), other.scratch().join("b"));
        let set = |i: u32, dir: &std::path::Path| format!("sharding.shard[{i}].dir={}", dir.display());
        let (first, second) = (set(0, &a), set(1, &b));
        other
            .cli(&["init", other.dir_str(), "--template", "double-shards", "--set", &first, "--set", &second])
            .ok();
        assert!(a.join(".depotfs").exists() && b.join(".depotfs").exists());
        assert!(!other.dir.join("shard-1").exists());
        other.mount();
        other.umount();
    });
}
