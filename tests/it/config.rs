//! depot.toml as people write it: what `config show` and `config check` tell of it, and what is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::harness::{Depot, Mode, Ran, guarded, on_depot, run_command, sha1};

fn config(depot: &Depot, verb: &str, more: &[&str]) -> Ran {
    depot.cli(&[&["config", verb, depot.dir_str()], more].concat())
}

/// The value and the origin of a key as `config show --json` tells them; none where the key is left out.
fn key(depot: &Depot, name: &str) -> Option<(String, String)> {
    let shown: Value = serde_json::from_str(&config(depot, "show", &["--json"]).ok()).unwrap();
    assert_eq!(shown["depot"], depot.dir_str());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found = shown["keys"].as_array().unwrap().iter().find(|key| key["key"] == name)?;
    Some((text(&found["value"]), text(&found["origin"])))
}

/// The keys of which `config check --json` tells a problem; the exit code has to fit.
#[track_caller]
fn problems(depot: &Depot) -> Vec<String> {
    let ran = config(depot, "check", &["--json"]);
    let told: Value =
        serde_json::from_str(&ran.out).unwrap_or_else(|why| panic!("{why}: {}{}", ran.out, ran.err));
    let problems = told["problems"].as_array().unwrap();
    assert_eq!(ran.code, Some(if problems.is_empty() { 0 } else { 4 }), "{}", ran.out);
    assert!(problems.iter().all(|problem| !problem["problem"].as_str().unwrap().is_empty()));
    problems.iter().map(|problem| problem["key"].as_str().unwrap().to_owned()).collect()
}

fn write(depot: &Depot, text: impl AsRef<[u8]>) {
    fs::write(depot.dir.join("depot.toml"), text).unwrap();
}

fn read(depot: &Depot) -> String {
    fs::read_to_string(depot.dir.join("depot.toml")).unwrap()
}

#[test]
fn show_tells_every_key_with_its_origin() {
    on_depot(|depot| {
        let own = |value: &str, origin: &str| Some((value.to_owned(), origin.to_owned()));
        write(depot, read(depot).replace("# level = \"info\"", "level = \"debug\""));
        for mounted in [false, true] {
            if mounted {
                depot.mount();
            }
            assert_eq!(key(depot, "template"), own("file-system", "depot.toml"));
            assert_eq!(key(depot, "chain"), own("file-system", "template"));
            assert_eq!(key(depot, "durability"), own("fsync", "default"));
            assert_eq!(key(depot, "log.level"), own("debug", "depot.toml"));
            assert_eq!(key(depot, "file-system.blob-owner"), own("", "default"));
            assert_eq!(key(depot, "full-db.dir"), None);
            let text = config(depot, "show", &[]).ok();
            let line = text.lines().find(|line| line.starts_with("log.level")).unwrap();
            assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["log.level", "debug", "depot.toml"]);
            assert!(text.starts_with("id "), "{text}");
            assert_eq!(problems(depot), [""; 0]);
            assert!(config(depot, "check", &[]).ok().starts_with("nothing wrong with "));
        }
        fs::create_dir(depot.path("repo")).unwrap();
        for verb in ["show", "check"] {
            let inside = depot.path("repo");
            assert_eq!(
                depot.cli(&["config", verb, inside.to_str().unwrap()]).ok(),
                config(depot, verb, &[]).ok()
            );
        }
        let mut command = depot.command(&["config", "show", depot.dir_str()]);
        let text = run_command(command.env("DEPOTFS_LOG", "trace")).ok();
        let line = text.lines().find(|line| line.starts_with("log.level")).unwrap();
        assert!(line.contains(" trace ") && line.ends_with("environment DEPOTFS_LOG"), "{line}");
    });
}

#[test]
fn check_tells_everything_at_once() {
    on_depot(|depot| {
        depot.mount();
        let good = read(depot);
        write(
            depot,
            good.replace("# durability = \"fsync\"", "durability = \"sometimes\"")
                .replace("# level = \"info\"", "level = 5\nlevle = \"info\"")
                .replace("# dir = \"full-db\"", "dir = \"elsewhere\""),
        );
        assert_eq!(problems(depot), ["durability", "log.level", "log.levle", "full-db.dir"]);
        let ran = config(depot, "check", &[]);
        assert_eq!(ran.code, Some(4), "{}", ran.err);
        for part in [
            "one of \"fsync\", \"close\"",
            "5 is not a log level",
            "\"log.level\"",
            "has no full-db",
            "4 problems",
        ] {
            assert!(ran.out.contains(part), "{part} is missing in {}", ran.out);
        }
        // What is told one by one elsewhere says where the rest is told; the mount goes on with what it has read.
        let err = config(depot, "show", &[]).fails(1);
        assert!(
            err.contains("durability: ") && err.contains("and 3 more, told by: depotfs config check"),
            "{err}"
        );
        fs::create_dir(depot.path("repo")).unwrap();
        depot.umount();
        assert!(depot.mount_with("").fails(1).contains("and 3 more"));
        write(depot, good);
        depot.mount();
    });
}

#[test]
fn check_looks_at_the_directories() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        let at = |name: &str| depot.scratch().join(name);
        let (index, blobs, logs) = (at("index"), at("blobs"), at("logs"));
        let set = |key: &str, to: &std::path::Path| format!("{key}={}", to.display());
        let settings = [set("index", &index), set("file-system.dir", &blobs), set("log.dir", &logs)];
        let mut args = vec!["init", depot.dir_str()];
        settings.iter().for_each(|setting| args.extend(["--set", setting.as_str()]));
        depot.cli(&args).ok();
        assert_eq!(problems(&depot), [""; 0]);
        for (dir, key) in [(&index, "index"), (&blobs, "file-system.dir"), (&logs, "log.dir")] {
            let aside = dir.with_extension("aside");
            fs::rename(dir, &aside).unwrap();
            assert_eq!(problems(&depot), [key]);
            fs::write(dir, "in the way").unwrap();
            assert_eq!(problems(&depot), [key]);
            fs::remove_file(dir).unwrap();
            fs::create_dir(dir).unwrap();
            // An empty directory will do for the log only.
            let wanted: &[&str] = if key == "log.dir" { &[] } else { &[key] };
            assert_eq!(problems(&depot), wanted);
            fs::remove_dir(dir).unwrap();
            fs::rename(&aside, dir).unwrap();
        }
        fs::set_permissions(blobs.join(".depotfs"), fs::Permissions::from_mode(0o644)).unwrap();
        for bad in ["00112233445566778899aabbccddeeff\n", "", "\u{1b}[2J"] {
            let good = fs::read(blobs.join(".depotfs")).unwrap();
            fs::write(blobs.join(".depotfs"), bad).unwrap();
            assert_eq!(problems(&depot), ["file-system.dir"], "{bad}");
            fs::write(blobs.join(".depotfs"), good).unwrap();
        }
        fs::rename(&blobs, at("others")).unwrap();
        let told = config(&depot, "check", &[]);
        assert!(told.out.contains("does not exist (is its disk mounted?)"), "{}", told.out);
        fs::rename(at("others"), &blobs).unwrap();
        // It leaves nothing, and nothing is different after it.
        let names = |dir| fs::read_dir(dir).unwrap().count();
        let before = [&depot.dir, &index, &blobs].map(names);
        assert_eq!(problems(&depot), [""; 0]);
        assert_eq!([&depot.dir, &index, &blobs].map(names), before);
        depot.mount();
    });
}

#[test]
fn a_chain_of_its_own_takes_the_place_of_a_template() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        let init = |args: &[&str]| depot.cli(&[&["init", depot.dir_str()], args].concat());
        for (chain, part) in [
            ("chain=", "an empty chain"),
            ("chain=ful-db", "\"full-db\""),
            ("chain=full-db,full-db", "put it last"),
            ("chain=file-system,full-db", "put it last"),
        ] {
            let err = init(&["--set", chain]).fails(2);
            assert!(err.contains(part), "{err}");
        }
        let err = init(&["--template", "full-db-direct", "--set", "chain=full-db"]).fails(1);
        assert!(err.contains("both set"), "{err}");
        assert!(!depot.dir.exists(), "a refused init leaves nothing");
        init(&["--set", "chain=full-db"]).ok();
        assert!(read(&depot).contains("\nchain = [\"full-db\"]\n"), "{}", read(&depot));
        assert_eq!(key(&depot, "chain"), Some(("full-db".into(), "depot.toml".into())));
        assert_eq!((key(&depot, "template"), key(&depot, "file-system.dir")), (None, None));
        depot.mount();
        assert_eq!(depot.status()["chain"][0]["kind"], "full-db");
        fs::create_dir(depot.path("repo")).unwrap();
        fs::write(depot.path("repo/file"), "bytes").unwrap();
        depot.flush();
        let located = depot.cli(&["blob", "locate", depot.dir_str(), &sha1(b"bytes")]).ok();
        assert!(located.contains("blobs.db"), "{located}");
        let err = depot.cli(&["repo", "set", depot.dir_str(), "repo", "durability=remote"]).fails(2);
        assert!(err.contains("the chain full-db keeps blobs on this host only"), "{err}");
        depot.umount();
        // Another chain does not find its directory.
        write(&depot, read(&depot).replace("chain = [\"full-db\"]", "chain = [\"file-system\"]"));
        assert_eq!(problems(&depot), ["file-system.dir"]);
        assert!(depot.mount_with("").fails(1).contains("filestore"));
        write(&depot, read(&depot).replace("chain = [\"file-system\"]", "chain = []"));
        assert_eq!(problems(&depot), ["chain"]);
        write(
            &depot,
            read(&depot).replace("chain = []", "chain = [\"full-db\"]\ntemplate = \"full-db-direct\""),
        );
        assert_eq!(problems(&depot), ["chain"]);
        assert!(depot.mount_with("").fails(1).contains("both set"));
    });
}

#[test]
fn a_depot_toml_that_is_none_is_refused() {
    on_depot(|depot| {
        let (path, good) = (depot.dir.join("depot.toml"), read(depot));
        let unreadable = |what: &str| {
            for args in [&["config", "show"][..], &["config", "check"], &["check"], &["status"]] {
                let ran = depot.cli(&[args, &[depot.dir_str()]].concat());
                assert_eq!(ran.code, Some(1), "{args:?} with {what}: {}{}", ran.out, ran.err);
                assert!(
                    ran.err.contains("depot.toml cannot be read") && !ran.err.contains("panicked"),
                    "{}",
                    ran.err
                );
                assert!(ran.err.len() < 1000, "{}", ran.err);
            }
            assert!(depot.mount_with("").fails(1).contains("depot.toml cannot be read"), "{what}");
        };
        write(depot, b"id = \"\xff\"");
        unreadable("what is not UTF-8");
        fs::File::options().write(true).open(&path).unwrap().set_len(100 << 20).unwrap();
        unreadable("100 MiB");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        unreadable("a directory");
        fs::remove_dir(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        unreadable("a pipe");
        fs::remove_file(&path).unwrap();
        config(depot, "check", &[]).fails(1);
        // Not TOML at all is a problem like others, and the line is not shown: it may be one with a secret.
        for text in ["id = \"hush", "hush", "[hush\n", "\0", "id = 1\nid = 2"] {
            write(depot, text);
            assert_eq!(problems(depot), [""], "{text}");
            let told = config(depot, "check", &[]).out;
            assert!(told.contains("is not TOML") && !told.contains("hush"), "{told}");
            let err = config(depot, "show", &[]).fails(1);
            assert!(err.contains("is not TOML") && !err.contains("hush"), "{err}");
        }
        write(depot, good);
        depot.mount();
    });
}

#[test]
fn odd_texts_are_problems_with_their_keys() {
    on_depot(|depot| {
        let good = read(depot);
        let id = good.lines().find(|line| line.starts_with("id = ")).unwrap();
        let long = "x".repeat(500_000);
        for (text, keys) in [
            ("".to_owned(), &[][..]),
            ("template = \"\"".into(), &["template"]),
            ("index = \"\"".into(), &["index"]),
            ("index = \"\\u0000\"".into(), &["index"]),
            ("index = {a = 1}".into(), &["index"]),
            ("[[index]]".into(), &["index"]),
            ("durability = \"fsync \"\natime = \"\u{202e}ſ\"".into(), &["atime", "durability"]),
            ("log = 5\nfile-system = []".into(), &["file-system", "log"]),
            ("[[file-system]]\ndir = \"x\"".into(), &["file-system"]),
            ("[file-system.dir]\ndir = \"x\"".into(), &["file-system.dir"]),
            ("\"file-system.dir\" = \"x\"".into(), &["file-system.dir"]),
            ("file-system.blob-mode = 99999999999".into(), &["file-system.blob-mode"]),
            ("file-system.blob-owner = \"99999999999\"".into(), &["file-system.blob-owner"]),
            ("[sharding]\nx = 1\n[[retry]]\nx = 1".into(), &["retry", "sharding.x"]),
            (format!("durability = \"{long}\""), &["durability"]),
            (format!("\"{long}\" = 1"), &[&long]),
        ] {
            write(depot, format!("{id}\n{text}"));
            assert_eq!(problems(depot), keys, "{}", &text[..text.len().min(100)]);
            let told = config(depot, "check", &[]).out;
            assert!(told.len() < 2000, "{}", &told[..2000]);
            assert_eq!(config(depot, "show", &[]).code, Some(if keys.is_empty() { 0 } else { 1 }));
        }
        write(depot, good);
        depot.mount();
    });
}

#[test]
fn what_others_may_not_read_is_told_so() {
    guarded(|| {
        let depot = Depot::new(Mode::User);
        let path = depot.dir.join("depot.toml");
        config(&depot, "check", &[]).ok();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        let err = config(&depot, "check", &[]).fails(1);
        assert!(err.contains("depot.toml cannot be read") && err.contains("ermission denied"), "{err}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(depot.store(), fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(problems(&depot), ["file-system.dir"]);
        fs::set_permissions(depot.store(), fs::Permissions::from_mode(0o700)).unwrap();
        for verb in ["show", "check"] {
            depot.cli(&["config", verb, depot.scratch().to_str().unwrap()]).fails(1);
            depot.cli(&["config", verb, "/nowhere"]).fails(1);
            depot.cli(&["config", verb]).fails(2);
        }
    });
}
