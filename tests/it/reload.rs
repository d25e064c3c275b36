//! depot.toml read again while the depot is mounted, and templates that have defaults.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::data::noise;
use crate::eventual::{cut_off, fill};
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

/// The settings of depot.toml that begin like these have other values from now on.
fn set(depot: &Depot, section: &str, key: &str, value: &str) -> String {
    let line = format!("{key} = {value}");
    edit(depot, |text| {
        let kept = text.lines().filter(|old| !old.starts_with(&format!("{key} = ")));
        let at = format!("[{section}]");
        let lines = kept.flat_map(|old| [Some(old), (old == at).then_some(&line[..])]).flatten();
        let text = lines.collect::<Vec<_>>().join("\n");
        if text.contains(&line) { text } else { format!("{text}\n{at}\n{line}\n") }
    });
    depot.cli(&["reload", depot.dir_str()]).ok()
}

#[test]
fn limits_of_the_cache_change_while_it_is_used() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        depot.cli(&["init", depot.dir_str(), "--template", "cache-fs"]).ok();
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let path = |i: u64| depot.path(format!("repo/file{i}"));
        for i in 0..10 {
            fs::write(path(i), noise(i, 1_000_000)).unwrap();
        }
        depot.flush();
        let cache = || depot.status()["chain"][0]["cache"].clone();
        eventually("copies of all", || cache()["entries"] == 10);
        let open = fs::File::open(path(3)).unwrap();
        let told = set(&depot, "cache-fs", "max-cache-size", "\"3MB\"");
        assert!(told.contains("cache-fs.max-cache-size was changed"), "{told}");
        assert_eq!(cache()["limit"], 3_000_000);
        eventually("what is too much to go", || cache()["used"].as_u64().unwrap() <= 3_000_000);
        drop(open);
        for i in 0..10 {
            assert_eq!(fs::read(path(i)).unwrap(), noise(i, 1_000_000));
            assert!(cache()["used"].as_u64().unwrap() <= 3_000_000);
        }
        set(&depot, "cache-fs", "max-file-size-limit", "\"1kB\"");
        depot.cli(&["cache", "drop", depot.dir_str(), "--all"]).ok();
        depot.cli(&["warm", depot.dir_str(), "repo"]).ok();
        assert_eq!(cache()["entries"], 0);
        set(&depot, "cache-fs", "max-file-size-limit", "\"100MB\"");
        set(&depot, "cache-fs", "max-cache-size", "\"50MB\"");
        depot.cli(&["warm", depot.dir_str(), "repo"]).ok();
        assert_eq!(cache()["entries"], 10);
    });
}

#[test]
fn limits_of_the_queue_change_while_it_is_used() {
    guarded(|| {
        let depot = cut_off(&[]);
        fill(&depot, 3);
        let big = depot.path("repo/big");
        let told = set(&depot, "eventual", "max-queue-size", "\"1MB\"");
        assert!(told.contains("eventual.max-queue-size was changed"), "{told}");
        let told = set(&depot, "eventual", "drain-timeout", "\"100ms\"");
        assert!(told.contains("eventual.drain-timeout was changed"), "{told}");
        let told = set(&depot, "eventual", "number-of-threads", "7");
        assert!(told.contains("eventual.number-of-threads is changed at the next mount"), "{told}");
        let full = (0..40).find_map(|i| {
            let wrote = fs::write(&big, noise(7, 2_000_000)).err();
            depot.cli(&["flush", depot.dir_str()]).ok();
            wrote.or_else(|| fs::write(depot.path(format!("repo/more{i}")), noise(i, 400_000)).err())
        });
        assert_eq!(full.and_then(|error| error.raw_os_error()), Some(libc::ENOSPC));
        set(&depot, "eventual", "max-queue-size", "\"0B\"");
        fs::write(&big, noise(8, 2_000_000)).unwrap();
        let begun = Instant::now();
        depot.umount();
        assert!(begun.elapsed() < Duration::from_secs(30), "it did not wait for a minute");
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
