//! Extended attributes.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use nix::errno::Errno;

use crate::harness::{Fails, Tree, as_user};
use crate::sys::{
    XATTR_CREATE, XATTR_REPLACE, getxattr, getxattr_into, listxattr, listxattr_into, removexattr, setxattr,
};

modes!(all:
    set_get_list_remove, create_and_replace, buffers_that_are_too_small, names_and_values_have_bounds,
    they_belong_to_the_inode, only_files_and_directories_have_user_ones, many_of_them,
);
modes!(root: trusted_ones_are_for_root, security_ones, symlinks_have_trusted_ones);
modes!(mounted: values_of_64_kib);

fn set_get_list_remove(t: &Tree) {
    fs::create_dir(t.path("dir")).unwrap();
    for path in [t.sealed("file", "x"), t.path("dir")] {
        assert_eq!(listxattr(&path).unwrap(), Vec::<String>::new());
        getxattr(&path, "user.a").fails(Errno::ENODATA);
        let values: [(&str, &[u8]); 4] =
            [("user.a", b"value"), ("user.empty", b""), ("user.bytes", b"\0\xff\n"), ("user.\u{e9}", b"x")];
        for (name, value) in values {
            setxattr(&path, name, value, 0).unwrap();
        }
        for _ in 0..2 {
            for (name, value) in values {
                assert_eq!(getxattr(&path, name).unwrap(), value, "{name}");
            }
            assert_eq!(listxattr(&path).unwrap(), ["user.a", "user.bytes", "user.empty", "user.\u{e9}"]);
            t.remount();
        }
        setxattr(&path, "user.a", b"longer than before", 0).unwrap();
        assert_eq!(getxattr(&path, "user.a").unwrap(), b"longer than before");
        setxattr(&path, "user.a", b"", 0).unwrap();
        assert_eq!(getxattr(&path, "user.a").unwrap(), b"");
        removexattr(&path, "user.a").unwrap();
        removexattr(&path, "user.a").fails(Errno::ENODATA);
        getxattr(&path, "user.a").fails(Errno::ENODATA);
        assert_eq!(listxattr(&path).unwrap().len(), 3);
    }
    getxattr(t.path("missing"), "user.a").fails(Errno::ENOENT);
}

fn create_and_replace(t: &Tree) {
    let path = t.file("file", "x");
    setxattr(&path, "user.a", b"1", XATTR_REPLACE).fails(Errno::ENODATA);
    setxattr(&path, "user.a", b"1", XATTR_CREATE).unwrap();
    setxattr(&path, "user.a", b"2", XATTR_CREATE).fails(Errno::EEXIST);
    setxattr(&path, "user.a", b"3", XATTR_REPLACE).unwrap();
    assert_eq!(getxattr(&path, "user.a").unwrap(), b"3");
    setxattr(&path, "user.b", b"1", 0x40).fails(Errno::EINVAL);
}

fn buffers_that_are_too_small(t: &Tree) {
    let path = t.file("file", "x");
    setxattr(&path, "user.a", b"12345", 0).unwrap();
    assert_eq!(getxattr_into(&path, "user.a", &mut []), Ok(5), "asking for the size");
    getxattr_into(&path, "user.a", &mut [0; 4]).fails(Errno::ERANGE);
    assert_eq!(getxattr_into(&path, "user.a", &mut [0; 5]), Ok(5));
    assert_eq!(listxattr_into(&path, &mut []), Ok(7));
    listxattr_into(&path, &mut [0; 6]).fails(Errno::ERANGE);
    assert_eq!(listxattr_into(&path, &mut [0; 7]), Ok(7));
}

fn names_and_values_have_bounds(t: &Tree) {
    let path = t.file("file", "x");
    let long = format!("user.{}", "n".repeat(250));
    setxattr(&path, &long, b"x", 0).unwrap();
    assert_eq!(getxattr(&path, &long).unwrap(), b"x");
    setxattr(&path, format!("{long}n"), b"x", 0).fails(Errno::ERANGE);
    setxattr(&path, "", b"x", 0).fails(Errno::ERANGE);
    setxattr(&path, "nonsense.a", b"x", 0).fails(Errno::EOPNOTSUPP);
    setxattr(&path, "user", b"x", 0).fails(Errno::EOPNOTSUPP);
    getxattr(&path, "nonsense.a").fails(Errno::EOPNOTSUPP);
    setxattr(&path, "user.big", &vec![1; 65_537], 0).fails(Errno::E2BIG);
    setxattr(&path, "user.medium", &[7; 3000], 0).unwrap();
    assert_eq!(getxattr(&path, "user.medium").unwrap(), [7; 3000]);
}

fn values_of_64_kib(t: &Tree) {
    let path = t.file("file", "x");
    for name in ["user.one", "user.two"] {
        setxattr(&path, name, &vec![9; 65_536], 0).unwrap();
    }
    t.remount();
    assert_eq!(getxattr(&path, "user.two").unwrap(), vec![9; 65_536]);
}

fn they_belong_to_the_inode(t: &Tree) {
    let (a, b) = (t.file("a", "same"), t.file("b", "same"));
    setxattr(&a, "user.x", b"of a", 0).unwrap();
    t.seal();
    getxattr(&b, "user.x").fails(Errno::ENODATA);
    fs::hard_link(&a, t.path("c")).unwrap();
    fs::rename(&a, t.path("d")).unwrap();
    fs::write(t.path("d"), "new bytes").unwrap();
    t.seal();
    for name in ["c", "d"] {
        assert_eq!(getxattr(t.path(name), "user.x").unwrap(), b"of a");
    }
    fs::write(&a, "a new file").unwrap();
    getxattr(&a, "user.x").fails(Errno::ENODATA);
    let before = fs::metadata(&b).unwrap();
    setxattr(&b, "user.x", b"y", 0).unwrap();
    let after = fs::metadata(&b).unwrap();
    assert_eq!((after.mtime(), after.len()), (before.mtime(), before.len()));
}

fn only_files_and_directories_have_user_ones(t: &Tree) {
    symlink("x", t.path("link")).unwrap();
    nix::unistd::mkfifo(&t.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in ["link", "fifo"] {
        setxattr(t.path(name), "user.x", b"y", 0).fails(Errno::EPERM);
        getxattr(t.path(name), "user.x").fails(Errno::ENODATA);
        assert_eq!(listxattr(t.path(name)).unwrap(), Vec::<String>::new());
    }
}

fn many_of_them(t: &Tree) {
    let path = t.file("file", "x");
    let mut names: Vec<String> = (0..40).map(|i| format!("user.number{i}")).collect();
    for name in &names {
        setxattr(&path, name, name.as_bytes(), 0).unwrap();
    }
    names.sort();
    t.remount();
    assert_eq!(listxattr(&path).unwrap(), names);
    for name in &names {
        removexattr(&path, name).unwrap();
    }
    assert_eq!(listxattr(&path).unwrap(), Vec::<String>::new());
}

fn trusted_ones_are_for_root(t: &Tree) {
    let path = t.file("file", "x");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    setxattr(&path, "trusted.a", b"secret", 0).unwrap();
    setxattr(&path, "user.b", b"open", 0).unwrap();
    assert_eq!(getxattr(&path, "trusted.a").unwrap(), b"secret");
    assert_eq!(listxattr(&path).unwrap(), ["trusted.a", "user.b"]);
    as_user(1001, 1001, || {
        getxattr(&path, "trusted.a").fails(Errno::ENODATA);
        setxattr(&path, "trusted.a", b"x", 0).fails(Errno::EPERM);
        removexattr(&path, "trusted.a").fails(Errno::EPERM);
        assert_eq!(listxattr(&path).unwrap(), ["user.b"]);
        setxattr(&path, "user.b", b"changed", 0).unwrap();
    });
    removexattr(&path, "trusted.a").unwrap();
}

fn security_ones(t: &Tree) {
    let path = t.file("file", "x");
    setxattr(&path, "security.test", b"label", 0).unwrap();
    assert_eq!(getxattr(&path, "security.test").unwrap(), b"label");
    as_user(1001, 1001, || {
        assert_eq!(getxattr(&path, "security.test").unwrap(), b"label");
        setxattr(&path, "security.test", b"x", 0).fails(Errno::EPERM);
    });
    t.remount();
    assert_eq!(listxattr(&path).unwrap(), ["security.test"]);
}

fn symlinks_have_trusted_ones(t: &Tree) {
    symlink("x", t.path("link")).unwrap();
    setxattr(t.path("link"), "trusted.a", b"on a link", 0).unwrap();
    assert_eq!(getxattr(t.path("link"), "trusted.a").unwrap(), b"on a link");
}
