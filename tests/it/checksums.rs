//! Checksums as attributes of files.

use std::fs;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode as Bits;

use crate::data::{noise, rw};
use crate::harness::{EMPTY, Fails, Tree, eventually, sh, sha1};
use crate::sys::{getxattr, listxattr, removexattr, setxattr};

modes!(mounted:
    they_answer_for_a_file, a_closed_file_is_sealed_first, they_follow_the_content, they_are_not_listed,
    setting_and_removing_do_nothing, an_empty_file_has_them, a_file_made_by_a_reader_has_them, only_regular_files_have_them, big_files_take_a_moment,
);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Name of the attribute and what it has to say about `bytes`.
fn expected(bytes: &[u8]) -> [(&'static str, String); 4] {
    use sha2::Digest;
    [
        ("user.depotfs.sha1", sha1(bytes)),
        ("user.depotfs.sha256", hex(&sha2::Sha256::digest(bytes))),
        ("user.depotfs.md5", hex(&md5::Md5::digest(bytes))),
        ("user.depotfs.blake3", blake3::hash(bytes).to_hex().to_string()),
    ]
}

#[track_caller]
fn tells(t: &Tree, name: &str, bytes: &[u8]) {
    for (attribute, value) in expected(bytes) {
        let told = getxattr(t.path(name), attribute).unwrap_or_else(|e| panic!("{attribute} of {name}: {e}"));
        assert_eq!(String::from_utf8_lossy(&told), value, "{attribute} of {name}");
    }
}

fn they_answer_for_a_file(t: &Tree) {
    let bytes = noise(1, 100_000);
    t.sealed("file", &bytes);
    tells(t, "file", &bytes);
    t.remount();
    tells(t, "file", &bytes);
    let text = sh(t.dir(), "getfattr --only-values -n user.depotfs.sha1 file");
    assert_eq!(text, sha1(&bytes));
    assert_eq!(t.depot().checksum("repo/file"), sha1(&bytes));
    let told = t.depot().cli(&["blob", "checksum", t.depot().dir_str(), "repo/file"]).ok();
    assert!(expected(&bytes).iter().all(|(_, sum)| told.contains(sum)), "{told}");
}

fn a_closed_file_is_sealed_first(t: &Tree) {
    for i in 0..5 {
        let bytes = noise(i, 5000);
        t.file(format!("f{i}"), &bytes);
        tells(t, &format!("f{i}"), &bytes);
        assert!(t.depot().blobs().contains(&sha1(&bytes)));
    }
}

fn they_follow_the_content(t: &Tree) {
    let path = t.file("file", "one");
    tells(t, "file", b"one");
    fs::write(&path, "two").unwrap();
    tells(t, "file", b"two");
    let file = rw(&path);
    file.write_all_at(b"T", 0).unwrap();
    getxattr(&path, "user.depotfs.sha1").fails(Errno::ENODATA);
    drop(file);
    tells(t, "file", b"Two");
    fs::rename(&path, t.path("renamed")).unwrap();
    tells(t, "renamed", b"Two");
    fs::hard_link(t.path("renamed"), t.path("linked")).unwrap();
    tells(t, "linked", b"Two");
}

fn they_are_not_listed(t: &Tree) {
    let path = t.sealed("file", "x");
    assert_eq!(listxattr(&path).unwrap(), Vec::<String>::new());
    setxattr(&path, "user.own", b"y", 0).unwrap();
    assert_eq!(listxattr(&path).unwrap(), ["user.own"]);
}

fn setting_and_removing_do_nothing(t: &Tree) {
    let path = t.file("file", "x");
    for (attribute, _) in expected(b"x") {
        setxattr(&path, attribute, b"nonsense", 0).unwrap();
        removexattr(&path, attribute).unwrap();
    }
    tells(t, "file", b"x");
    assert_eq!(listxattr(&path).unwrap(), Vec::<String>::new());
}

fn an_empty_file_has_them(t: &Tree) {
    t.file("empty", "");
    tells(t, "empty", b"");
    assert_eq!(t.depot().checksum("repo/empty"), EMPTY);
}

fn a_file_made_by_a_reader_has_them(t: &Tree) {
    let flags = OFlag::O_RDONLY | OFlag::O_CREAT;
    let made = open(&t.path("made"), flags, Bits::from_bits_truncate(0o644)).unwrap();
    tells(t, "made", b"");
    drop(made);
    tells(t, "made", b"");
}

fn only_regular_files_have_them(t: &Tree) {
    fs::create_dir(t.path("dir")).unwrap();
    getxattr(t.path("dir"), "user.depotfs.sha1").fails(Errno::ENODATA);
    getxattr(t.dir(), "user.depotfs.sha256").fails(Errno::ENODATA);
}

fn big_files_take_a_moment(t: &Tree) {
    let bytes = noise(9, 17 << 20);
    t.sealed("big", &bytes);
    let [sha1, sha256, md5, blake3] = expected(&bytes);
    for (attribute, value) in [sha1, blake3] {
        assert_eq!(getxattr(t.path("big"), attribute).unwrap(), value.as_bytes());
    }
    for (attribute, value) in [&sha256, &md5] {
        match getxattr(t.path("big"), attribute) {
            Ok(told) => assert_eq!(told, value.as_bytes()),
            Err(e) => assert_eq!(e, Errno::ENODATA, "queued"),
        }
    }
    let told = t.depot().cli(&["blob", "checksum", t.depot().dir_str(), "repo/big"]).ok();
    assert!(told.contains(&sha256.1) && told.contains(&md5.1), "{told}");
    eventually("the queued checksums", || {
        getxattr(t.path("big"), sha256.0).is_ok_and(|v| v == sha256.1.as_bytes())
    });
}
