//! The commands: what they print, what they refuse, how they exit.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;

use crate::data::rw;
use crate::harness::{Depot, Mode, Tree, command, eventually, guarded, on_depot, run_command, sh, sha1};

modes!(@ [passthrough cached user database] blob_commands);
modes!(mounted: a_checksum_names_one_content_only, what_is_being_written_is_busy, names_begin_no_lines_of_their_own, status_adds_up, metrics_are_prometheus_text, any_path_in_the_mount_names_the_depot);

fn cli(t: &Tree, args: &[&str]) -> crate::harness::Ran {
    t.depot().cli(args)
}

fn blob_commands(t: &Tree) {
    t.sealed("file", "some bytes");
    let (dir, sum) = (t.depot().dir_str(), sha1(b"some bytes"));
    let in_mount = t.path("file").to_str().unwrap().to_owned();
    for name in [sum.as_str(), "repo/file", "/repo/file", &in_mount] {
        let located = cli(t, &["blob", "locate", dir, name]).ok();
        assert!(located.contains(t.depot().blob(&sum).to_str().unwrap()), "{name}: {located}");
        assert!(located.contains("repo/file"), "{name}: {located}");
        assert_eq!(cli(t, &["blob", "cat", dir, name]).ok(), "some bytes");
        cli(t, &["blob", "verify", dir, name]).ok();
        assert!(cli(t, &["blob", "checksum", dir, name]).ok().contains(&sum));
    }
    let none = sha1(b"never stored");
    for verb in ["locate", "verify", "cat", "checksum"] {
        cli(t, &["blob", verb, dir, &none]).fails(1);
        let err = cli(t, &["blob", verb, dir, "repo/missing"]).fails(1);
        assert!(err.contains("missing"), "{err}");
    }
    assert!(cli(t, &["blob", "cat", dir, "repo"]).err.contains("not a regular file"));
    cli(t, &["blob", "rescue", dir, "repo/file"]).fails(1);
    // Checksums of a file that is closed only now.
    t.file("fresh", "fresh bytes");
    assert!(cli(t, &["blob", "checksum", dir, "repo/fresh"]).ok().contains(&sha1(b"fresh bytes")));
    // Bytes that have no place to go to: which place that is.
    let full = sh_fails(t, &format!("blob cat {dir} repo/file > /dev/full"));
    assert!(full.contains("standard output cannot be written"), "{full}");
}

fn sh_fails(t: &Tree, arguments: &str) -> String {
    let line = format!("exec {} {arguments}", t.depot().command(&[]).get_program().display());
    run_command(&mut command("sh", &["-c", &line])).fails(1)
}

fn a_checksum_names_one_content_only(t: &Tree) {
    let path = t.sealed("file", "first");
    let (dir, sum) = (t.depot().dir_str(), sha1(b"first"));
    for open in [true, false] {
        let writer = rw(&path);
        writer.write_all_at(b"other", 0).unwrap();
        let writer = open.then_some(writer);
        let told = cli(t, &["blob", "checksum", dir, &sum]).ok();
        assert!(told.contains(&sum) && told.contains(&md5("first")), "{told}");
        assert_eq!(cli(t, &["blob", "cat", dir, &sum]).ok(), "first");
        cli(t, &["blob", "verify", dir, &sum]).ok();
        drop(writer);
    }
}

fn md5(text: &str) -> String {
    use md5::Digest;
    md5::Md5::digest(text).iter().map(|b| format!("{b:02x}")).collect()
}

fn what_is_being_written_is_busy(t: &Tree) {
    let path = t.sealed("file", "first");
    let writer = rw(&path);
    writer.write_all_at(b"other", 0).unwrap();
    for verb in ["locate", "verify", "cat", "checksum"] {
        let err = cli(t, &["blob", verb, t.depot().dir_str(), "repo/file"]).fails(5);
        assert!(err.contains("repo/file: it is being written"), "{verb}: {err}");
    }
    drop(writer);
    assert_eq!(cli(t, &["blob", "cat", t.depot().dir_str(), "repo/file"]).ok(), "other");
}

fn names_begin_no_lines_of_their_own(t: &Tree) {
    t.sealed("odd\npath made up\x1b[2J", "bytes");
    let located = cli(t, &["blob", "locate", t.depot().dir_str(), &sha1(b"bytes")]).ok();
    assert!(located.contains("path repo/odd\\npath made up\\u{1b}[2J\n"), "{located}");
}

fn status_adds_up(t: &Tree) {
    fs::create_dir(t.path("dir")).unwrap();
    std::os::unix::fs::symlink("x", t.path("link")).unwrap();
    t.file("a", "12345678");
    t.file("b", "12345678");
    t.seal();
    let status = t.depot().status();
    let counts = &status["counts"];
    assert_eq!((counts["repositories"].as_u64(), counts["files"].as_u64()), (Some(1), Some(2)));
    assert_eq!((counts["logical_bytes"].as_u64(), counts["blob_bytes"].as_u64()), (Some(16), Some(8)));
    assert_eq!(status["dedup_ratio"].as_f64(), Some(2.0));
    assert_eq!((status["running"].as_bool(), status["durability"].as_str()), (Some(true), Some("fsync")));
    assert!(status["index"]["bytes"].as_u64() > Some(1000));
    assert!(status["index"]["filestore_ratio"].as_f64() > Some(1.0));
    assert_eq!(status["chain"][0]["kind"], "file-system");
    assert_eq!(status["chain"][0]["health"], "up");
    assert!(status["chain"][0]["space"]["capacity"].as_u64() > Some(1 << 20));
    let text = cli(t, &["status", t.depot().dir_str()]).ok();
    for part in [t.depot().mountpoint_str(), &t.depot().pid().to_string(), "file-system", "fsync"] {
        assert!(text.contains(part), "status does not say {part}: {text}");
    }
    t.depot().umount();
    let status = t.depot().status();
    assert_eq!(status["running"], false);
    assert_eq!(status["counts"]["files"], 2, "the index tells that without a daemon");
    t.depot().mount();
}

fn metrics_are_prometheus_text(t: &Tree) {
    t.sealed("file", "bytes");
    let text = cli(t, &["metrics", t.depot().dir_str()]).ok();
    let (mut typed, mut values) = (BTreeSet::new(), 0);
    for line in text.lines().filter(|l| !l.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] == "#" {
            assert!(["HELP", "TYPE"].contains(&words[1]), "{line}");
            typed.insert(words[2].to_owned());
            continue;
        }
        let name = words[0].split('{').next().unwrap();
        assert!(name.starts_with("depotfs_"), "{line}");
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
        assert!(typed.contains(name) || typed.contains(base), "no TYPE for {line}");
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        values += 1;
    }
    assert!(values >= 10, "{text}");
}

fn any_path_in_the_mount_names_the_depot(t: &Tree) {
    fs::create_dir(t.path("dir")).unwrap();
    t.file("dir/file", "x");
    for place in [t.path("dir/file"), t.path("dir"), t.depot().mountpoint.clone(), t.depot().dir.clone()] {
        let text = cli(t, &["status", place.to_str().unwrap(), "--json"]).ok();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status["depot"], t.depot().dir_str());
        cli(t, &["flush", place.to_str().unwrap(), "--wait"]).ok();
    }
    cli(t, &["status", "/proc"]).fails(1);
}

#[test]
fn flush_without_wait_only_asks() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        let open = fs::File::create(depot.path("repo/open")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.cli(&["flush", depot.dir_str()]).ok();
        eventually("the blob", || depot.blobs() == [sha1(b"bytes")]);
        drop(open);
    });
}

#[test]
fn a_part_of_the_tree_that_is_mounted_elsewhere() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir_all(depot.path("repo/dir")).unwrap();
        fs::write(depot.path("repo/dir/file"), "bytes").unwrap();
        sh(depot.scratch(), "mkdir bound; mount --bind mnt/repo bound");
        let bound = depot.scratch().join("bound");
        let file = bound.join("dir/file");
        let ran = depot.cli(&["blob", "checksum", bound.to_str().unwrap(), file.to_str().unwrap()]);
        sh(depot.scratch(), "umount bound");
        assert!(ran.ok().contains(&sha1(b"bytes")));
    });
}

#[test]
fn settings_are_of_the_repository_that_was_named() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("releases")).unwrap();
        fs::create_dir_all(depot.path("libs/releases")).unwrap();
        let set = |name: &str| depot.cli(&["repo", "set", depot.dir_str(), name, "verify=always"]);
        for wrong in ["libs/releases", depot.path("libs/releases").to_str().unwrap(), "/releases/x"] {
            let err = set(wrong).fails(2);
            assert!(err.contains(wrong), "{err}");
        }
        let list = || depot.cli(&["repo", "list", depot.dir_str()]).ok();
        assert!(!list().contains("verify"), "{}", list());
        set(depot.path("libs").to_str().unwrap()).ok();
        assert_eq!(list(), "libs verify=always\nreleases\n");
        depot.umount();
        // Here the top of the mount is not that of the tree.
        depot.mount_with("subdir=libs").ok();
        set(depot.path("releases").to_str().unwrap()).fails(2);
        set(depot.mountpoint_str()).ok();
        assert_eq!(list(), "libs verify=always\nreleases\n");
    });
}

#[test]
fn init_makes_a_depot_once() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        depot.cli(&["init", depot.dir_str()]).ok();
        for name in ["depot.toml", "index.db", "filestore"] {
            assert!(depot.dir.join(name).exists(), "{name}");
        }
        let before = fs::read(depot.dir.join("depot.toml")).unwrap();
        let err = depot.cli(&["init", depot.dir_str()]).fails(1);
        assert!(err.contains(depot.dir_str()), "{err}");
        assert_eq!(fs::read(depot.dir.join("depot.toml")).unwrap(), before);
        let used = depot.scratch().join("used");
        fs::create_dir(&used).unwrap();
        fs::write(used.join("mine"), "x").unwrap();
        depot.cli(&["init", used.to_str().unwrap()]).fails(1);
        assert_eq!(fs::read_dir(&used).unwrap().count(), 1, "nothing was put there");
        depot.check();
    });
}

#[test]
fn init_takes_settings() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        let init = |set: &str| depot.cli(&["init", depot.dir_str(), "--set", set]);
        let err = init("durabilty=close").fails(2);
        assert!(err.contains("\"durabilty\"") && err.contains("\"durability\""), "{err}");
        init("durability=sometimes").fails(2);
        init("nonsense").fails(2);
        depot.cli(&["init", depot.dir_str(), "--template", "file-sytem"]).fails(2);
        assert!(!depot.dir.exists(), "a refused init leaves nothing");
        depot
            .cli(&[
                "init",
                depot.dir_str(),
                "--template",
                "file-system",
                "--set",
                "durability=close",
                "--set",
                "file-system.blob-mode=0440",
            ])
            .ok();
        depot.mount();
        assert_eq!(depot.status()["durability"], "close");
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.umount();
        let blob = fs::metadata(depot.blob(&sha1(b"bytes"))).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&blob.permissions()) & 0o7777, 0o440);
    });
}

#[test]
fn what_needs_a_daemon_says_so() {
    on_depot(|depot| {
        let dir = depot.dir_str();
        let commands: [&[&str]; 4] = [
            &["flush", dir, "--wait"],
            &["metrics", dir],
            &["repo", "list", dir],
            &["blob", "cat", dir, "repo/x"],
        ];
        for args in commands {
            let err = depot.cli(args).fails(3);
            assert!(err.contains("mount"), "{args:?}: {err}");
        }
        let ran = depot.cli(&["umount", depot.mountpoint_str()]);
        assert!(matches!(ran.code, Some(1 | 3)) && ran.err.contains(depot.mountpoint_str()), "{}", ran.err);
        depot.cli(&["status", dir]).fails(3);
    });
}

#[test]
fn what_needs_the_depot_offline_says_so() {
    on_depot(|depot| {
        depot.mount();
        let pid = depot.pid().to_string();
        for args in [&["check", depot.dir_str()][..], &["check", depot.dir_str(), "--repair"]] {
            let err = depot.cli(args).fails(5);
            assert!(err.contains(&pid), "{err}");
        }
    });
}

#[test]
fn wrong_usage_exits_2() {
    on_depot(|depot| {
        for args in [
            &["mont"][..],
            &[],
            &["mount"],
            &["mount", depot.dir_str()],
            &["status", "--jsn"],
            &["blob", "lok"],
        ] {
            depot.cli(args).fails(2);
        }
        assert!(depot.cli(&["--version"]).ok().starts_with("depotfs "));
        let help = depot.cli(&["--help"]).ok();
        for command in
            ["init", "mount", "umount", "flush", "status", "metrics", "repo", "config", "blob", "check"]
        {
            assert!(help.contains(command), "{command} is not in the help");
            depot.cli(&[command, "--help"]).ok();
        }
        assert!(depot.cli(&["mount", "--help"]).ok().contains("subdir="), "options are explained");
    });
}

#[test]
fn check_finds_and_repairs() {
    on_depot(|depot| {
        depot.mount();
        fs::create_dir(depot.path("repo")).unwrap();
        for name in ["kept", "lost"] {
            fs::write(depot.path(format!("repo/{name}")), format!("bytes of {name}")).unwrap();
        }
        depot.umount();
        let stray = sha1(b"a stray blob");
        fs::create_dir_all(depot.blob(&stray).parent().unwrap()).unwrap();
        fs::write(depot.blob(&stray), "a stray blob").unwrap();
        fs::remove_file(depot.blob(&sha1(b"bytes of lost"))).unwrap();
        let check = |more: &[&str]| {
            let ran = depot.cli(&[&["check", depot.dir_str()], more].concat());
            (ran.code, format!("{}{}", ran.out, ran.err))
        };
        let (code, said) = check(&[]);
        assert_eq!(code, Some(4), "{said}");
        for part in [&stray, &sha1(b"bytes of lost")] {
            assert!(said.contains(part.as_str()), "{said}");
        }
        let (_, repaired) = check(&["--repair"]);
        assert!(repaired.contains(&stray), "says what it did: {repaired}");
        // What is lost stays lost, and is still told; nothing that was there is gone.
        let (_, after) = check(&[]);
        assert!(!after.contains(&stray), "{after}");
        depot.mount();
        assert_eq!(fs::read(depot.path("repo/kept")).unwrap(), b"bytes of kept");
    });
}
