//! The rules of docs/architecture.md that a machine can check, on the text of the sources and docs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a directory whose name ends so, as path from the project's root and text.
fn files(below: &str, ending: &str) -> Vec<(String, String)> {
    let (mut found, mut open) = (Vec::new(), vec![root().join(below)]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The sources of the program without comments and without their unit tests.
fn code() -> Vec<(String, String)> {
    let is_test =
        |name: &str| name.ends_with("/tests.rs") || name.contains("/tests/") || name.ends_with("/laws.rs");
    let strip = |text: String| {
        let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
        text.lines().map(code).collect::<Vec<_>>().join("\n")
    };
    files("src", ".rs")
        .into_iter()
        .filter(|(name, _)| !is_test(name))
        .map(|(name, text)| (name, strip(text)))
        .collect()
}

/// Fails with all of them when there are any.
#[track_caller]
fn none(what: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{what}:\n  {}", offences.join("\n  "));
}

/// Whether `text` has `word` as a word of its own.
fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        let begun_before = part_of_word(word.chars().next()) && part_of_word(text[..at].chars().last());
        let after = text[at + word.len()..].chars().next();
        let goes_on = part_of_word(word.chars().last()) && part_of_word(after);
        !begun_before && !goes_on
    })
}

/// Only files whose path begins with one of `places` may have one of `words`.
#[track_caller]
fn only(places: &[&str], words: &[&str]) {
    let mut offences = Vec::new();
    for (name, text) in code() {
        if places.iter().any(|place| name.starts_with(place)) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let mut found = words.iter().filter(|word| has_word(line, word));
            if let Some(word) = found.next() {
                offences.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    none(&format!("only {places:?} may say"), offences);
}

#[test]
fn every_file_says_what_it_is() {
    let all = files("src", ".rs").into_iter().chain(files("tests", ".rs")).chain(files("benches", ".rs"));
    none(
        "files without //! at the top",
        all.filter(|(_, t)| !t.starts_with("//! ")).map(|(n, _)| n).collect(),
    );
}

#[test]
fn every_file_is_reached_by_a_mod_line() {
    let all: Vec<(String, String)> =
        files("src", ".rs").into_iter().chain(files("tests/it", ".rs")).collect();
    let text = |name: &str| all.iter().find(|(n, _)| n == name).map(|(_, t)| t.as_str());
    let mut forgotten = Vec::new();
    for (name, _) in &all {
        let path = Path::new(name);
        let module = match path.file_stem().unwrap().to_str().unwrap() {
            "lib" | "main" => continue,
            "mod" => path.parent().unwrap().to_path_buf(),
            _ => path.with_extension(""),
        };
        let (parent, own) = (module.parent().unwrap(), module.file_name().unwrap().to_str().unwrap());
        let parents = ["lib.rs", "main.rs", "mod.rs"]
            .map(|f| parent.join(f))
            .into_iter()
            .chain([parent.with_extension("rs")]);
        let named =
            |p: PathBuf| text(p.to_str().unwrap()).is_some_and(|t| has_word(t, &format!("mod {own};")));
        if !parents.into_iter().any(named) {
            forgotten.push(name.clone());
        }
    }
    none("no mod line names", forgotten);
}

#[test]
fn only_fuse_names_fuser() {
    only(&["src/fuse/"], &["fuser"]);
}

#[test]
fn only_the_index_speaks_sql() {
    only(
        &[
            "src/index/",
            "src/sys/sqlite_vfs.rs",
            "src/filestore/full_db.rs",
            "src/filestore/cache_fs/ledger.rs",
        ],
        &["rusqlite", "SELECT ", "INSERT INTO", "DELETE FROM", "PRAGMA", "CREATE TABLE", "ON CONFLICT"],
    );
}

#[test]
fn only_the_object_stores_know_a_runtime() {
    only(&["src/filestore/object_store/"], &["tokio"]);
}

#[test]
fn only_sys_is_unsafe() {
    only(&["src/sys/"], &["unsafe"]);
}

#[test]
fn only_the_command_line_prints() {
    only(&["src/cli/", "src/main.rs"], &["println!", "eprintln!", "print!", "eprint!"]);
}

#[test]
fn only_the_edge_handles_any_error() {
    only(&["src/cli/", "src/main.rs", "src/daemon"], &["anyhow"]);
}

#[test]
fn only_fuse_and_sys_know_errnos() {
    let names = [
        "Errno",
        "libc::EIO",
        "libc::ENOENT",
        "libc::ENOSPC",
        "libc::EPERM",
        "libc::EACCES",
        "libc::EINVAL",
        "raw_os_error",
    ];
    only(&["src/fuse/", "src/sys/"], &names);
}

#[test]
fn the_table_of_errnos_is_exhaustive() {
    let text = fs::read_to_string(root().join("src/fuse/errno.rs")).unwrap();
    let text = text.split("\n#[cfg(test)]").next().unwrap();
    let wild: Vec<String> = text
        .lines()
        .filter(|l| l.trim_start().starts_with("_ =>") && !l.contains("Level::"))
        .map(str::to_owned)
        .collect();
    none("a new error must not fall through", wild);
}

#[test]
fn errors_keep_their_source() {
    only(&[], &["map_err(|_|"]);
}

#[test]
fn log_lines_tell_the_causes() {
    let mut offences = Vec::new();
    // What the index tells by itself are failed system calls, behind which there is nothing.
    for (name, text) in code().into_iter().filter(|(name, _)| !name.starts_with("src/index/")) {
        for (at, _) in text.match_indices("tracing::") {
            let statement = text[at..].split_once(";\n").map_or(&text[at..], |(statement, _)| statement);
            let arm = statement.split("),\n").next().unwrap_or_default();
            let line = arm.split(")\n").next().unwrap_or_default();
            if line.contains("{error}") {
                offences.push(format!("{name}:{}", text[..at].lines().count()));
            }
        }
    }
    none("only the top of an error is told, take text::chain", offences);
}

/// The rooms from the outside in; those of one row do not call each other, but where `BESIDE` says so.
const ROOMS: [&[&str]; 7] = [
    &["main", "cli"],
    &["daemon"],
    &["fuse", "control"],
    &["vfs", "jobs"],
    &["journal"],
    &["index", "filestore"],
    &["checksum", "change", "config", "worker", "clock", "crowd", "metrics", "text", "failpoint", "sys"],
];

/// Calls within a row: jobs work on the tree; leaves may use each other; main starts cli.
const BESIDE: [(&str, &str); 2] = [("jobs", "vfs"), ("main", "cli")];

fn row(room: &str) -> Option<usize> {
    ROOMS.iter().position(|row| row.contains(&room))
}

/// The room a source file belongs to.
fn room_of(name: &str) -> &str {
    let inside = name.strip_prefix("src/").unwrap();
    inside.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The rooms that a text names after `root`: `crate::room` and the members of `crate::{...}`.
fn named_rooms(text: &str, root: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    let word = |t: &str| t.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for (at, _) in text.match_indices(root) {
        let after = &text[at + root.len()..];
        let Some(list) = after.strip_prefix('{') else {
            rooms.insert(word(after));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && depth == 0 && c.is_alphabetic() => {
                    rooms.insert(word(&list[i..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

#[test]
fn calls_go_downwards() {
    let mut offences = Vec::new();
    for (name, text) in code() {
        let own = room_of(&name);
        if own == "lib" {
            continue;
        }
        let Some(from) = row(own) else {
            offences.push(format!("{name}: {own} is no room of docs/architecture.md"));
            continue;
        };
        let root = if own == "main" { "depotfs::" } else { "crate::" };
        for room in named_rooms(&text, root) {
            let Some(to) = row(&room) else { continue };
            let leaves = from == ROOMS.len() - 1;
            let beside = room == own || leaves || BESIDE.contains(&(own, &room));
            if to < from || (to == from && !beside) {
                offences.push(format!("{name} names {room}"));
            }
        }
    }
    none("calls that go upwards or sideways", offences);
}

/// All docs that a user reads.
fn docs() -> String {
    let mut texts = files("docs", ".md");
    texts.extend(["README.md"].map(|n| (n.into(), fs::read_to_string(root().join(n)).unwrap_or_default())));
    texts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("\n")
}

/// What `depotfs ARGS --help` prints.
fn help(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_depotfs")).args(args).arg("--help").output().unwrap();
    assert!(out.status.success(), "{args:?} --help");
    String::from_utf8(out.stdout).unwrap()
}

/// The commands that a help text lists.
fn commands(help: &str) -> Vec<String> {
    let list =
        help.lines().skip_while(|l| l.trim() != "Commands:").skip(1).take_while(|l| !l.trim().is_empty());
    let name = |l: &str| {
        let inside = l.strip_prefix("  ")?;
        (!inside.starts_with(' ')).then(|| inside.split_whitespace().next().map(str::to_owned))?
    };
    list.filter_map(name).filter(|n| n != "help").collect()
}

#[test]
fn every_command_stands_in_the_docs() {
    let (docs, mut missing) = (docs(), Vec::new());
    let all = commands(&help(&[]));
    assert!(all.len() >= 9, "{all:?}");
    for command in all {
        let below = commands(&help(&[&command]));
        let whole = below.iter().map(|sub| format!("depotfs {command} {sub}"));
        let whole: Vec<String> =
            if below.is_empty() { vec![format!("depotfs {command}")] } else { whole.collect() };
        missing.extend(whole.into_iter().filter(|line| !has_word(&docs, line)));
    }
    none("commands that no page of docs/ and not the README shows", missing);
}

#[test]
fn every_key_stands_in_the_docs() {
    use depotfs::config::keys::{DEPOT, REPOSITORY};
    let docs = docs();
    let keys = DEPOT.iter().chain(REPOSITORY).map(|key| key.name);
    // A key stands as `section.key`, or as `key` below its section.
    let known = |name: &str| {
        let (section, key) = name.rsplit_once('.').unwrap_or(("", name));
        has_word(&docs, name) || (docs.contains(&format!("[{section}]")) && has_word(&docs, key))
    };
    none(
        "keys that no page of docs/ explains",
        keys.filter(|name| !known(name)).map(str::to_owned).collect(),
    );
}

#[test]
fn every_mount_option_stands_in_the_docs() {
    let docs = docs();
    let options = depotfs::fuse::options::help();
    let names = options.lines().filter_map(|l| l.split_whitespace().next());
    let known = |name: &str| docs.contains(&format!("`{name}")) || docs.contains(&format!(" {name}"));
    none(
        "mount options that no page of docs/ explains",
        names.filter(|n| !known(n)).map(str::to_owned).collect(),
    );
}

#[test]
fn every_claim_of_semantics_names_its_test() {
    let page = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let tests = files("tests/it", ".rs");
    let mut missing = Vec::new();
    let mut named = 0;
    // A test is named in backquotes as `module::function`.
    for part in page.split('`').skip(1).step_by(2) {
        let Some((module, function)) = part.split_once("::") else { continue };
        let plain = |s: &str| s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !plain(module) || !plain(function) {
            continue;
        }
        named += 1;
        let there = tests
            .iter()
            .any(|(n, t)| *n == format!("tests/it/{module}.rs") && has_word(t, &format!("fn {function}(")));
        if !there {
            missing.push(part.to_owned());
        }
    }
    assert!(named > 50, "the table of docs/semantics.md names {named} tests");
    none("docs/semantics.md names tests that do not exist", missing);
    let rows =
        page.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| ---") && !l.contains("| test"));
    none(
        "rows of docs/semantics.md without a test",
        rows.filter(|l| !l.contains("::")).map(str::to_owned).collect(),
    );
}

#[test]
fn the_project_has_its_papers() {
    let pages =
        ["architecture", "semantics", "durability", "format", "operations", "configuration", "benchmarks"];
    let papers = [
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "deny.toml",
        "Makefile",
        ".ci/run",
        "systemd/depotfs@.service",
    ];
    let wanted = pages.map(|p| format!("docs/{p}.md")).into_iter().chain(papers.map(str::to_owned));
    let missing = |path: &String| fs::metadata(root().join(path)).map_or(0, |m| m.len()) == 0;
    none("missing or empty", wanted.filter(missing).collect());
    let architecture = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    assert!(architecture.lines().count() <= 300, "docs/architecture.md is a bird's eye view");
}

#[test]
fn nothing_speaks_of_the_workplace() {
    // Put together here, so that this file does not offend.
    let words = [
        ["/wo", "rk/"],
        ["../sha", "red"],
        ["iss", "ues show"],
        ["cra", "tes.io"],
        ["wt-", "tests"],
        ["this ses", "sion"],
    ];
    let words = words.map(|w| w.concat());
    let numbered = |text: &str| {
        let lower = text.to_lowercase();
        let word = ["iss", "ue "].concat();
        let mut at = lower.match_indices(&word).map(|(i, m)| i + m.len());
        at.any(|i| lower[i..].trim_start_matches('#').starts_with(|c: char| c.is_ascii_digit()))
    };
    let mut offences = Vec::new();
    let places = ["src", "tests", "benches", "docs", "systemd", ".ci"];
    let mut all: Vec<(String, String)> = places
        .iter()
        .flat_map(|p| {
            ["rs", "md", "toml", "service", "run", "conf"]
                .iter()
                .flat_map(|e| files(p, e))
                .collect::<Vec<_>>()
        })
        .collect();
    for name in ["README.md", "CHANGELOG.md", "Makefile", "Cargo.toml", "deny.toml"] {
        all.push((name.into(), fs::read_to_string(root().join(name)).unwrap_or_default()));
    }
    for (name, text) in all {
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|w| line.contains(w.as_str())) || numbered(line) {
                offences.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none("lines that speak of where the project is made", offences);
}

#[test]
fn the_systemd_unit_is_valid() {
    let unit = root().join("systemd/depotfs@.service");
    let text = fs::read_to_string(&unit).unwrap();
    for setting in ["Type=notify", "Restart=on-failure", "LimitNOFILE=", "OOMScoreAdjust=", "ExecStart="] {
        assert!(text.contains(setting), "{setting} is missing");
    }
    // The program is not installed where the unit looks for it while it is tested.
    let place = tempfile::tempdir().unwrap();
    let here = text
        .replace("/usr/local/bin/depotfs", env!("CARGO_BIN_EXE_depotfs"))
        .replace("/usr/bin/depotfs", env!("CARGO_BIN_EXE_depotfs"));
    let copy = place.path().join("depotfs@test.service");
    fs::write(&copy, here).unwrap();
    let out = Command::new(crate::harness::tool("systemd-analyze"))
        .args(["verify", "--man=no"])
        .arg(&copy)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    none(
        "systemd-analyze verify",
        said.lines().filter(|l| l.contains("depotfs@")).map(str::to_owned).collect(),
    );
}

#[test]
fn every_failpoint_stands_in_the_code_once() {
    let names = depotfs::failpoint::NAMES;
    let calls = ["failpoint::hit(", "failpoint::call(", "failpoint::write("];
    let mut found: Vec<String> = Vec::new();
    for (_, text) in code().iter().filter(|(name, _)| name != "src/failpoint.rs") {
        let quoted = text.split('"').skip(1).step_by(2).filter(|word| names.contains(word));
        found.extend(quoted.map(str::to_owned));
        for call in calls {
            let after = text.split(call).skip(1).filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
            found.extend(
                after.filter(|name| !names.contains(name)).map(|name| format!("{name} is not in the table")),
            );
        }
    }
    found.sort();
    let mut wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    wanted.sort();
    let odd = |a: &[String], b: &[String]| a.iter().filter(|n| !b.contains(n)).cloned().collect::<Vec<_>>();
    none("failpoints in the code that the table lacks", odd(&found, &wanted));
    none("failpoints of the table that the code lacks", odd(&wanted, &found));
    assert_eq!(found, wanted, "each stands in the code once, and in the table once");
}
