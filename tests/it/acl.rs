//! POSIX access control lists.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::errno::Errno;

use crate::harness::{Fails, Tree, as_user, sh, sh_fails};
use crate::sys::{getxattr, listxattr, setxattr};

modes!(all:
    round_trip, the_mode_shows_the_mask, a_minimal_list_is_only_a_mode, default_lists_are_inherited,
    nonsense_is_refused, dump_and_restore, lists_are_removed,
);
modes!(root: lists_grant_and_deny, default_lists_beat_the_umask, setting_a_list_clears_a_foreign_setgid);

fn getfacl(t: &Tree, name: &str) -> Vec<String> {
    let text = sh(t.dir(), &format!("getfacl -cpEn {name}"));
    text.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect()
}

fn mode(t: &Tree, name: &str) -> u32 {
    fs::metadata(t.path(name)).unwrap().mode() & 0o7777
}

fn round_trip(t: &Tree) {
    t.sealed("file", "x");
    sh(t.dir(), "setfacl -m u:1001:rw,g:1002:r,u:1003:0 file");
    let list = [
        "user::rw-",
        "user:1001:rw-",
        "user:1003:---",
        "group::r--",
        "group:1002:r--",
        "mask::rw-",
        "other::r--",
    ];
    assert_eq!(getfacl(t, "file"), list);
    assert_eq!(listxattr(t.path("file")).unwrap(), ["system.posix_acl_access"]);
    t.remount();
    assert_eq!(getfacl(t, "file"), list);
    fs::write(t.path("file"), "y").unwrap();
    t.seal();
    assert_eq!(getfacl(t, "file"), list);
}

fn the_mode_shows_the_mask(t: &Tree) {
    t.file("file", "x");
    sh(t.dir(), "chmod 640 file; setfacl -m u:1001:rwx file");
    assert_eq!(mode(t, "file"), 0o670, "the group bits are the mask");
    sh(t.dir(), "chmod g=r file");
    assert_eq!(getfacl(t, "file"), ["user::rw-", "user:1001:rwx", "group::r--", "mask::r--", "other::---"]);
    sh(t.dir(), "chmod 705 file");
    assert_eq!(getfacl(t, "file"), ["user::rwx", "user:1001:rwx", "group::r--", "mask::---", "other::r-x"]);
    sh(t.dir(), "setfacl -m m::rw,o::- file");
    assert_eq!(mode(t, "file"), 0o760);
}

fn a_minimal_list_is_only_a_mode(t: &Tree) {
    t.file("file", "x");
    sh(t.dir(), "setfacl -m u::rw,g::rw,o::- file");
    assert_eq!(mode(t, "file"), 0o660);
    assert_eq!(listxattr(t.path("file")).unwrap(), Vec::<String>::new());
    getxattr(t.path("file"), "system.posix_acl_access").fails(Errno::ENODATA);
}

fn default_lists_are_inherited(t: &Tree) {
    sh(t.dir(), "mkdir dir; setfacl -d -m u::rwx,g::rx,o::-,u:1001:rwx dir; setfacl -m u:1004:x dir");
    sh(
        t.path("dir").as_path(),
        "umask 022; touch file; mkdir sub; mkfifo fifo; ln -s x link; touch sub/file",
    );
    let inherited = ["user::rw-", "user:1001:rwx", "group::r-x", "mask::rw-", "other::---"];
    for name in ["dir/file", "dir/fifo", "dir/sub/file"] {
        assert_eq!(getfacl(t, name), inherited, "{name}");
        assert_eq!(mode(t, name), 0o660, "{name}");
    }
    let sub = getfacl(t, "dir/sub");
    assert!(
        sub.contains(&"default:user:1001:rwx".to_owned()) && sub.contains(&"user:1001:rwx".to_owned()),
        "{sub:?}"
    );
    assert!(!sub.contains(&"user:1004:--x".to_owned()), "only the default list is inherited");
    let create = |name: &str, bits: u32| {
        use std::os::unix::fs::OpenOptionsExt;
        fs::OpenOptions::new().write(true).create_new(true).mode(bits).open(t.path(name)).unwrap()
    };
    create("dir/strict", 0o600);
    assert_eq!(getfacl(t, "dir/strict")[3..], ["mask::---".to_owned(), "other::---".to_owned()]);
    t.remount();
    assert_eq!(getfacl(t, "dir/file"), inherited);
    sh(t.dir(), "setfacl -k dir; touch dir/plain");
    assert_eq!(getfacl(t, "dir/plain").len(), 3);
}

fn nonsense_is_refused(t: &Tree) {
    let path = t.file("file", "x");
    setxattr(&path, "system.posix_acl_access", b"\x02\0\0\0\x01", 0).fails(Errno::EINVAL);
    setxattr(&path, "system.posix_acl_access", b"\x07\0\0\0", 0).fails(Errno::EOPNOTSUPP);
    let err = sh_fails(t.dir(), "setfacl -d -m u:1001:rw file");
    assert!(
        err.contains("Only directories") || err.contains("not permitted") || err.contains("denied"),
        "{err}"
    );
    std::os::unix::fs::symlink("file", t.path("link")).unwrap();
    setxattr(t.path("link"), "system.posix_acl_access", b"", 0).fails(Errno::EOPNOTSUPP);
    assert_eq!(getfacl(t, "file").len(), 3);
}

fn dump_and_restore(t: &Tree) {
    sh(
        t.dir(),
        "mkdir -p d/e; touch d/f d/e/g; setfacl -R -m u:1001:rX,d:g:1002:rwx d; getfacl -R d > dump; cp dump before",
    );
    sh(t.dir(), "setfacl -R -b d; setfacl --restore=dump; getfacl -R d > after; cmp before after");
}

fn lists_are_removed(t: &Tree) {
    t.file("file", "x");
    sh(t.dir(), "setfacl -m u:1001:rw file; setfacl -b file");
    assert_eq!(getfacl(t, "file"), ["user::rw-", "group::r--", "other::r--"]);
    assert_eq!(listxattr(t.path("file")).unwrap(), Vec::<String>::new());
}

fn lists_grant_and_deny(t: &Tree) {
    let path = t.sealed("file", "x");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    sh(t.dir(), "setfacl -m u:1001:rw,u:1002:-,g:1003:r file");
    as_user(1001, 1001, || fs::write(&path, "by 1001").unwrap());
    as_user(1002, 1002, || File::open(&path).map(drop).fails(Errno::EACCES));
    as_user(1003, 1003, || {
        assert_eq!(fs::read(&path).unwrap(), b"by 1001");
        fs::OpenOptions::new().write(true).open(&path).map(drop).fails(Errno::EACCES);
    });
    sh(t.dir(), "setfacl -m m::r file");
    as_user(1001, 1001, || fs::OpenOptions::new().write(true).open(&path).map(drop).fails(Errno::EACCES));
    as_user(1001, 1001, || fs::read(&path).map(drop).unwrap());
    sh(t.dir(), "mkdir shared; chmod 700 shared; setfacl -m u:1001:rwx shared");
    as_user(1001, 1001, || fs::write(t.path("shared/new"), "x").unwrap());
    as_user(1002, 1002, || fs::read(t.path("shared/new")).map(drop).fails(Errno::EACCES));
}

fn default_lists_beat_the_umask(t: &Tree) {
    sh(
        t.dir(),
        "mkdir dir; chmod 777 dir; setfacl -d -m u::rwx,g::rwx,o::rwx dir; umask 077; touch dir/file; mkdir dir/sub",
    );
    assert_eq!((mode(t, "dir/file"), mode(t, "dir/sub")), (0o666, 0o777));
    as_user(1001, 1001, || fs::write(t.path("dir/file"), "x").unwrap());
}

fn setting_a_list_clears_a_foreign_setgid(t: &Tree) {
    let path = t.file("file", "x");
    std::os::unix::fs::chown(&path, Some(1001), Some(4242)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).unwrap();
    as_user(1001, 1001, || sh(t.dir(), "setfacl -m u:1002:r file"));
    assert_eq!(mode(t, "file") & 0o2000, 0);
}
