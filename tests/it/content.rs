//! Content: one blob for each, whatever happens to names and handles; collisions, damage, healing, space.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;

use crate::data::{noise, rw};
use crate::harness::{Fails, Tree, eventually, on_depot, sha1};

modes!(mounted:
    a_blob_is_named_by_its_bytes, one_content_is_stored_once, files_are_sealed_soon_after_close,
    a_removed_file_is_never_hashed, an_opened_blob_cannot_be_changed, a_missing_blob_concerns_one_file,
    a_blob_of_the_wrong_size_concerns_one_file, writing_the_content_again_heals, a_cut_blob_cannot_be_opened_for_writing, colliding_files_are_kept_apart,
    appending_often_is_not_quadratic, one_changed_page_is_not_a_copy_each_time, emptying_keeps_what_was_forced,
);
modes!(mounted_root:
    space_comes_back, altered_bytes_are_found_where_asked_for, close_tells_a_collision, inherited_descriptors_hash_nothing,
    a_rewritten_collision_serves_again,
);

fn count(t: &Tree, name: &str) -> u64 {
    t.depot().status()["counts"][name].as_u64().unwrap_or_else(|| panic!("status has no counts.{name}"))
}

fn a_blob_is_named_by_its_bytes(t: &Tree) {
    let sizes = [1, 4096, 100_001];
    for (i, size) in sizes.into_iter().enumerate() {
        t.file(format!("f{i}"), noise(i as u64, size));
    }
    t.seal();
    let sums: Vec<String> = sizes.iter().enumerate().map(|(i, size)| sha1(&noise(i as u64, *size))).collect();
    for (i, sum) in sums.iter().enumerate() {
        let blob = t.depot().blob(sum);
        let meta = fs::metadata(&blob).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o400, 1));
        assert_eq!(meta.uid(), nix::unistd::geteuid().as_raw());
        assert!(fs::read(&blob).unwrap() == noise(i as u64, sizes[i]));
    }
    t.blobs_become(&sums);
    eventually("the staging files to be gone", || t.depot().staging().is_empty());
}

fn one_content_is_stored_once(t: &Tree) {
    let bytes = noise(1, 50_000);
    let (files, logical) = (count(t, "files"), count(t, "logical_bytes"));
    fs::create_dir(t.depot().path("other")).unwrap();
    for path in ["repo/a", "repo/b", "repo/c", "other/d"] {
        fs::write(t.depot().path(path), &bytes).unwrap();
        if path == "repo/b" {
            t.seal();
        }
    }
    t.seal();
    t.blobs_become(&[sha1(&bytes)]);
    assert_eq!((count(t, "files"), count(t, "logical_bytes")), (files + 4, logical + 200_000));
    assert_eq!(count(t, "blob_bytes"), 50_000);
    let ratio = t.depot().status()["dedup_ratio"].as_f64().unwrap();
    assert!((3.9..4.1).contains(&ratio), "{ratio}");
    // Changing one of them leaves the others alone.
    rw(&t.path("a")).write_all_at(b"changed", 100).unwrap();
    t.seal();
    for path in ["repo/b", "repo/c", "other/d"] {
        assert!(fs::read(t.depot().path(path)).unwrap() == bytes);
    }
    let mut model = bytes.clone();
    model[100..107].copy_from_slice(b"changed");
    t.blobs_become(&[sha1(&bytes), sha1(&model)]);
}

fn files_are_sealed_soon_after_close(t: &Tree) {
    t.file("file", "bytes");
    let started = Instant::now();
    eventually("the file to be sealed", || t.depot().blobs() == [sha1(b"bytes")]);
    assert!(started.elapsed().as_secs() < 20);
}

fn a_removed_file_is_never_hashed(t: &Tree) {
    for i in 0..50 {
        let path = t.file("file", noise(i, 10_000));
        assert_eq!(fs::read(&path).unwrap().len(), 10_000);
        fs::remove_file(&path).unwrap();
    }
    t.seal();
    t.blobs_become(&[]);
    eventually("the staging files to be gone", || t.depot().staging().is_empty());
}

fn an_opened_blob_cannot_be_changed(t: &Tree) {
    let bytes = noise(2, 20_000);
    let path = t.sealed("file", &bytes);
    let reader = File::open(&path).unwrap();
    let writer = rw(&path);
    writer.write_all_at(b"changed", 10).unwrap();
    let map = crate::sys::Map::shared(&writer, 20_000).unwrap();
    map.write(15_000, b"stored");
    nix::unistd::ftruncate(&writer, 19_000).unwrap();
    let mut seen = [0; 7];
    reader.read_exact_at(&mut seen, 10).unwrap();
    assert_eq!(&seen, b"changed");
    // The name of the old content, if it is still there, names the old bytes.
    if let Ok(blob) = fs::read(t.depot().blob(&sha1(&bytes))) {
        assert!(blob == bytes);
    }
    drop((map, writer, reader));
    t.seal();
    t.depot().verify_blobs();
}

/// Takes a blob's file away, or changes its size.
fn damage(t: &Tree, sum: &str, how: &str) {
    let blob = t.depot().blob(sum);
    match how {
        "missing" => fs::remove_file(&blob).unwrap(),
        _ => {
            fs::set_permissions(&blob, fs::Permissions::from_mode(0o600)).unwrap();
            rw(&blob).set_len(3).unwrap();
            fs::set_permissions(&blob, fs::Permissions::from_mode(0o400)).unwrap();
        }
    }
}

fn one_file_suffers(t: &Tree, how: &str) {
    t.file("hurt", "the bytes that will be gone");
    t.file("fine", "other bytes");
    t.depot().umount();
    let sum = sha1(b"the bytes that will be gone");
    damage(t, &sum, how);
    let told = t.depot().cli(&["check", t.depot().dir_str()]).fails(4);
    let said = t.depot().cli(&["check", t.depot().dir_str()]).out;
    assert!(format!("{told}{said}").contains(&sum), "check names the blob: {told}{said}");
    t.depot().mount();
    File::open(t.path("hurt")).fails(Errno::EIO);
    assert_eq!(fs::metadata(t.path("hurt")).unwrap().len(), 27, "stat is no open");
    assert_eq!(fs::read(t.path("fine")).unwrap(), b"other bytes");
    assert!(t.depot().status()["damaged"].to_string().contains(&sum), "status names the blob");
    assert!(t.depot().log().contains(&sum), "the log names the blob");
    // The name can be used again.
    fs::write(t.path("hurt"), "new bytes").unwrap();
    t.seal();
    assert_eq!(fs::read(t.path("hurt")).unwrap(), b"new bytes");
    // And the old bytes can be stored again.
    t.sealed("again", "the bytes that will be gone");
    assert_eq!(fs::read(t.path("again")).unwrap(), b"the bytes that will be gone");
}

fn a_missing_blob_concerns_one_file(t: &Tree) {
    one_file_suffers(t, "missing");
}

fn a_blob_of_the_wrong_size_concerns_one_file(t: &Tree) {
    one_file_suffers(t, "short");
}

/// What was cut must not become the next version of the file: the blob stays what `check` tells of.
fn a_cut_blob_cannot_be_opened_for_writing(t: &Tree) {
    let bytes = b"bytes of which some are lost";
    let path = t.sealed("file", bytes);
    t.remount();
    damage(t, &sha1(bytes), "short");
    OpenOptions::new().append(true).open(&path).fails(Errno::EIO);
    OpenOptions::new().read(true).write(true).open(&path).fails(Errno::EIO);
    t.seal();
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes.len() as u64);
    // Emptying it needs none of its bytes.
    fs::write(&path, "others").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"others");
    t.sealed("again", bytes);
}

fn writing_the_content_again_heals(t: &Tree) {
    for how in ["missing", "short"] {
        let bytes = format!("bytes that will be {how}");
        t.sealed(how, &bytes);
        t.remount();
        damage(t, &sha1(bytes.as_bytes()), how);
        File::open(t.path(how)).fails(Errno::EIO);
        t.sealed("again", &bytes);
        assert_eq!(fs::read_to_string(t.path(how)).unwrap(), bytes, "{how}");
        assert_eq!(fs::read_to_string(t.path("again")).unwrap(), bytes, "{how}");
    }
}

fn colliding() -> [&'static [u8]; 2] {
    [include_bytes!("data/sha-mbles-1.bin"), include_bytes!("data/sha-mbles-2.bin")]
}

fn colliding_files_are_kept_apart(t: &Tree) {
    let [first, second] = colliding();
    assert_eq!(sha1(first), sha1(second));
    t.sealed("first", first);
    t.file("second", second);
    assert!(t.depot().cli(&["flush", t.depot().dir_str(), "--wait"]).code.is_some());
    eventually("the second to be refused", || File::open(t.path("second")).is_err());
    File::open(t.path("second")).fails(Errno::EIO);
    for _ in 0..2 {
        assert!(fs::read(t.path("first")).unwrap() == first);
        assert!(fs::read(t.depot().blob(&sha1(first))).unwrap() == first);
        File::open(t.path("second")).fails(Errno::EIO);
        let status = t.depot().status();
        let named = format!("{}{}", status["failed"], status["aside"]);
        assert!(named.contains("second"), "status names the file: {status}");
        let rescued =
            t.depot().command(&["blob", "rescue", t.depot().dir_str(), "repo/second"]).output().unwrap();
        assert!(rescued.stdout == second, "{}", String::from_utf8_lossy(&rescued.stderr));
        let listed = t.depot().cli(&["blob", "rescue", t.depot().dir_str()]).ok();
        let name = listed.lines().find(|l| l.contains("repo/second")).and_then(|l| l.split(' ').next());
        let name = name.unwrap_or_else(|| panic!("the list has no repo/second: {listed}"));
        let rescued = t.depot().command(&["blob", "rescue", t.depot().dir_str(), name]).output().unwrap();
        assert!(rescued.stdout == second, "{}", String::from_utf8_lossy(&rescued.stderr));
        t.depot().umount();
        let text = t.depot().cli(&["status", t.depot().dir_str()]).out;
        assert!(text.contains("cannot be sealed: repo/second"), "without a daemon: {text}");
        t.depot().mount();
    }
    fs::remove_file(t.path("second")).unwrap();
    // A copy of the stored one is no collision.
    t.sealed("third", first);
    assert!(fs::read(t.path("third")).unwrap() == first);
}

fn a_rewritten_collision_serves_again(t: &Tree) {
    let [first, second] = colliding();
    t.sealed("first", first);
    t.file("second", second);
    eventually("the second to be refused", || {
        let _ = t.depot().cli(&["flush", t.depot().dir_str(), "--wait"]);
        File::open(t.path("second")).is_err()
    });
    fs::write(t.path("second"), "harmless").unwrap();
    t.seal();
    assert_eq!(fs::read(t.path("second")).unwrap(), b"harmless");
    let aside = t.depot().status()["aside"].clone();
    let name = aside[0]["name"].as_str().expect("the bytes are kept");
    let listed = t.depot().cli(&["blob", "rescue", t.depot().dir_str()]).ok();
    assert!(listed.contains(name), "{listed}");
    let rescued = t.depot().command(&["blob", "rescue", t.depot().dir_str(), name]).output().unwrap();
    assert!(rescued.stdout == second);
    let saved = t.depot().scratch().join("saved");
    let save =
        || t.depot().cli(&["blob", "rescue", t.depot().dir_str(), name, "-o", saved.to_str().unwrap()]);
    save().ok();
    assert!(fs::read(&saved).unwrap() == second, "and into a file, which is its owner's only");
    assert_eq!(fs::metadata(&saved).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(save().fails(1).contains("saved"), "a file that is there is not replaced");
}

fn close_tells_a_collision(t: &Tree) {
    let [first, second] = colliding();
    t.depot().cli(&["repo", "set", t.depot().dir_str(), "repo", "durability=close"]).ok();
    t.file("first", first);
    let file = rw(&t.path("second"));
    file.write_all_at(second, 0).unwrap();
    nix::unistd::close(file.into_raw_fd()).fails(Errno::EIO);
    assert!(fs::read(t.path("first")).unwrap() == first);
    assert!(fs::read(t.path("second")).map_or(true, |bytes| bytes == second), "never the first file's bytes");
    let again = rw(&t.path("third"));
    again.write_all_at(first, 0).unwrap();
    nix::unistd::close(again.into_raw_fd()).unwrap();
}

#[test]
fn the_stricter_durability_wins() {
    on_depot(|depot| {
        let [first, second] = colliding();
        depot.mount_with("durability=close").ok();
        fs::create_dir(depot.path("repo")).unwrap();
        depot.cli(&["repo", "set", depot.dir_str(), "repo", "durability=fsync"]).ok();
        fs::write(depot.path("repo/first"), first).unwrap();
        let file = rw(&depot.path("repo/second"));
        file.write_all_at(second, 0).unwrap();
        nix::unistd::close(file.into_raw_fd()).fails(Errno::EIO);
        assert_eq!(depot.status()["durability"], "close");
    });
}

fn space_comes_back(t: &Tree) {
    let files =
        [("removed", 1), ("overwritten", 2), ("truncated", 3), ("open", 4), ("shared", 5), ("replaced", 6)];
    for (name, seed) in files {
        t.file(name, noise(seed, 1 << 20));
    }
    t.file("shared too", noise(5, 1 << 20));
    t.seal();
    t.blobs_become(&files.map(|(_, seed)| sha1(&noise(seed, 1 << 20))));
    let open = File::open(t.path("open")).unwrap();
    for name in ["removed", "open", "shared"] {
        fs::remove_file(t.path(name)).unwrap();
    }
    fs::write(t.path("overwritten"), "").unwrap();
    nix::unistd::truncate(&t.path("truncated"), 0).unwrap();
    t.file("new", "");
    fs::rename(t.path("new"), t.path("replaced")).unwrap();
    let started = Instant::now();
    t.blobs_become(&[sha1(&noise(4, 1 << 20)), sha1(&noise(5, 1 << 20))]);
    assert!(started.elapsed().as_secs() <= 60, "within a minute");
    let mut bytes = vec![0; 1 << 20];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == noise(4, 1 << 20), "an open file keeps its blob");
    drop(open);
    let started = Instant::now();
    t.blobs_become(&[sha1(&noise(5, 1 << 20))]);
    assert!(started.elapsed().as_secs() <= 60, "within a minute");
    // The same content again is a new blob.
    t.sealed("removed", noise(1, 1 << 20));
    assert!(fs::read(t.path("removed")).unwrap() == noise(1, 1 << 20));
}

/// Changes one byte of a blob, keeping its size.
fn alter(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    rw(path).write_all_at(b"#", 1).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
}

fn altered_bytes_are_found_where_asked_for(t: &Tree) {
    let depot = t.depot();
    for (repo, verify) in [("first", "first-open"), ("always", "always")] {
        fs::create_dir(depot.path(repo)).unwrap();
        depot.cli(&["repo", "set", depot.dir_str(), repo, &format!("verify={verify}")]).ok();
        fs::write(depot.path(format!("{repo}/bad")), format!("bad of {repo}")).unwrap();
        fs::write(depot.path(format!("{repo}/good")), format!("good of {repo}")).unwrap();
    }
    depot.umount();
    for repo in ["first", "always"] {
        alter(&depot.blob(&sha1(format!("bad of {repo}").as_bytes())));
    }
    depot.mount();
    for repo in ["first", "always"] {
        for _ in 0..2 {
            File::open(depot.path(format!("{repo}/bad"))).fails(Errno::EIO);
            assert_eq!(
                fs::read_to_string(depot.path(format!("{repo}/good"))).unwrap(),
                format!("good of {repo}")
            );
        }
        let sum = sha1(format!("bad of {repo}").as_bytes());
        assert!(depot.status()["damaged"].to_string().contains(&sum));
        depot.cli(&["blob", "verify", depot.dir_str(), &sum]).fails(4);
        depot.cli(&["blob", "verify", depot.dir_str(), &format!("{repo}/good")]).ok();
    }
    // Altered while mounted: only `always` looks again.
    depot.flush();
    alter(&depot.blob(&sha1(b"good of always")));
    File::open(depot.path("always/good")).fails(Errno::EIO);
    // So that the check at the end of the test finds whole blobs.
    for repo in ["first", "always"] {
        for kind in ["bad", "good"] {
            fs::remove_file(depot.path(format!("{repo}/{kind}"))).unwrap();
        }
    }
    t.blobs_become(&[]);
}

/// Time of the slowest of three rounds of `work`, in milliseconds, never 0.
fn time(mut work: impl FnMut()) -> u128 {
    let round = |work: &mut dyn FnMut()| {
        let started = Instant::now();
        work();
        started.elapsed().as_millis()
    };
    (0..3).map(|_| round(&mut work)).min().unwrap() + 1
}

fn appending_often_is_not_quadratic(t: &Tree) {
    let append = |name: &str| {
        use std::io::Write;
        let path = t.path(name);
        for _ in 0..100 {
            OpenOptions::new().append(true).open(&path).unwrap().write_all(b"x\n").unwrap();
        }
    };
    t.sealed("small", "x");
    t.sealed("big", noise(1, 64 << 20));
    append("small");
    append("big");
    let (small, big) = (time(|| append("small")), time(|| append("big")));
    assert!(big <= small * 3 + 50, "100 appends: {small} ms to a small file, {big} ms to one of 64 MB");
    assert_eq!(fs::metadata(t.path("big")).unwrap().len(), (64 << 20) + 800);
}

fn one_changed_page_is_not_a_copy_each_time(t: &Tree) {
    let path = t.sealed("database", noise(1, 64 << 20));
    let change = |round: u64| rw(&path).write_all_at(&[round as u8; 4096], 4096 * round).unwrap();
    change(0);
    let mut round = 0;
    let each = time(|| {
        for _ in 0..20 {
            round += 1;
            change(round);
        }
    });
    assert!(each < 200, "20 changed pages of a 64 MB file took {each} ms");
}

fn inherited_descriptors_hash_nothing(t: &Tree) {
    let file = rw(&t.path("log"));
    file.write_all_at(&noise(1, 8 << 20), 0).unwrap();
    // Each child closes its copy of the descriptor; none of them is the last.
    for _ in 0..100 {
        assert_eq!(crate::sys::in_child(|| 0), 0);
    }
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(t.depot().blobs(), Vec::<String>::new(), "a file with a writer is not sealed");
    drop(file);
    t.blobs_become(&[sha1(&noise(1, 8 << 20))]);
}

/// What fsync promised is not lost when the file is opened with O_TRUNC right after: it is a blob by then.
fn emptying_keeps_what_was_forced(t: &Tree) {
    for i in 0..30 {
        let bytes = noise(i, 5000);
        let path = t.path("file");
        let mut file = File::create(&path).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
        drop(file);
        let emptied = File::create(&path).unwrap();
        assert!(t.depot().blob(&sha1(&bytes)).exists(), "round {i}");
        drop(emptied);
    }
}
