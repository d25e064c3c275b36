//! setuid, setgid and file capabilities: what clears them.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{ftruncate, truncate};

use crate::data::rw;
use crate::harness::{Tree, as_user, sh};
use crate::sys::{copy_range, getxattr, setxattr};

modes!(root:
    an_unprivileged_change_clears_setuid_and_setgid, root_keeps_them, chown_clears_them, a_foreign_group_clears_setgid,
    any_write_clears_capabilities, capabilities_are_kept_and_work,
);
modes!(all: the_owner_s_write_clears_setuid);

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

type Change = fn(&Path);

/// Every way to change a file's bytes.
const CHANGES: [(&str, Change); 8] = [
    ("write", |p| OpenOptions::new().write(true).open(p).unwrap().write_all_at(b"x", 0).unwrap()),
    ("append", |p| {
        let file = OpenOptions::new().append(true).open(p).unwrap();
        file.write_all_at(b"x", 0).unwrap();
    }),
    ("truncate", |p| truncate(p, 3).unwrap()),
    ("ftruncate", |p| ftruncate(rw(p), 3).unwrap()),
    ("open with O_TRUNC", |p| drop(OpenOptions::new().write(true).truncate(true).open(p).unwrap())),
    ("fallocate", |p| fallocate(rw(p), FallocateFlags::empty(), 0, 10_000).unwrap()),
    ("punch", |p| {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(rw(p), punch, 0, 4096).unwrap()
    }),
    ("copy_file_range", |p| {
        let file = rw(p);
        assert_eq!(copy_range(&file, 0, &file, 2, 2).unwrap(), 2);
    }),
];

fn an_unprivileged_change_clears_setuid_and_setgid(t: &Tree) {
    for sealed in [false, true] {
        for (what, change) in CHANGES {
            let path = t.file("file", "some bytes");
            if sealed {
                t.seal();
            }
            set_mode(&path, 0o6777);
            as_user(1001, 1001, || change(&path));
            assert_eq!(mode(&path), 0o777, "{what}, sealed before: {sealed}");
        }
    }
}

fn root_keeps_them(t: &Tree) {
    for (what, change) in CHANGES {
        let path = t.file("file", "some bytes");
        set_mode(&path, 0o6777);
        change(&path);
        assert_eq!(mode(&path), 0o6777, "{what}");
    }
}

fn the_owner_s_write_clears_setuid(t: &Tree) {
    let path = t.file("file", "some bytes");
    set_mode(&path, 0o4755);
    CHANGES[0].1(&path);
    assert_eq!(mode(&path), if t.mode.is_user() { 0o755 } else { 0o4755 });
    t.seal();
    let map = crate::sys::Map::shared(&rw(&path), 4).unwrap();
    drop(map);
    assert_eq!(mode(&path), if t.mode.is_user() { 0o755 } else { 0o4755 });
}

fn chown_clears_them(t: &Tree) {
    let path = t.file("file", "x");
    set_mode(&path, 0o6755);
    chown(&path, Some(1001), None).unwrap();
    assert_eq!(mode(&path), 0o755, "by root");
    set_mode(&path, 0o6755);
    as_user(1001, 1001, || chown(&path, None, Some(1001)).unwrap());
    assert_eq!(mode(&path), 0o755, "by the owner");
    set_mode(&path, 0o2745);
    chown(&path, None, Some(0)).unwrap();
    assert_eq!(mode(&path), 0o2745, "setgid without group execution is another matter");
    fs::create_dir(t.path("dir")).unwrap();
    set_mode(&t.path("dir"), 0o6755);
    chown(t.path("dir"), Some(1001), None).unwrap();
    assert_eq!(mode(&t.path("dir")), 0o6755, "directories keep them");
}

fn a_foreign_group_clears_setgid(t: &Tree) {
    let path = t.file("file", "x");
    chown(&path, Some(1001), Some(4242)).unwrap();
    as_user(1001, 1001, || set_mode(&path, 0o2755));
    assert_eq!(mode(&path), 0o755, "a group the owner is not in");
    chown(&path, Some(1001), Some(1001)).unwrap();
    as_user(1001, 1001, || set_mode(&path, 0o2755));
    assert_eq!(mode(&path), 0o2755);
}

/// cap_net_raw in the permitted set, as setcap(8) writes it.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn any_write_clears_capabilities(t: &Tree) {
    for sealed in [false, true] {
        for (what, change) in CHANGES {
            if matches!(what, "open with O_TRUNC") && t.mode.is_plain() {
                // Covered by "truncate"; here only to be as strict in the mount.
                continue;
            }
            let path = t.file("file", "some bytes");
            if sealed {
                t.seal();
            }
            setxattr(&path, "security.capability", &NET_RAW, 0).unwrap();
            change(&path);
            assert!(getxattr(&path, "security.capability").is_err(), "{what}, sealed before: {sealed}");
        }
    }
    let path = t.file("file", "x");
    setxattr(&path, "security.capability", &NET_RAW, 0).unwrap();
    chown(&path, Some(1001), None).unwrap();
    assert!(getxattr(&path, "security.capability").is_err(), "chown");
}

fn capabilities_are_kept_and_work(t: &Tree) {
    sh(t.dir(), "cp \"$(command -v grep)\" grep; chmod 755 grep; setcap cap_net_raw+ep grep");
    let effective = |t: &Tree| {
        let path = t.path("grep");
        let ask = || sh("/", &format!("{} CapEff: /proc/self/status", path.display()));
        as_user(1001, 1001, ask).trim().to_owned()
    };
    for _ in 0..2 {
        assert!(sh(t.dir(), "getcap grep").contains("cap_net_raw=ep"));
        assert_eq!(effective(t), "CapEff:\t0000000000002000");
        t.seal();
        assert_eq!(effective(t), "CapEff:\t0000000000002000");
        t.remount();
    }
    assert_eq!(
        getxattr(t.path("grep"), "security.capability").unwrap(),
        [1, 0, 0, 2, 0, 0x20].into_iter().chain([0; 14]).collect::<Vec<u8>>()
    );
}
