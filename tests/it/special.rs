//! FIFOs, sockets and device nodes.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use nix::errno::Errno;
use nix::sys::stat::{Mode as Bits, SFlag, makedev, mknod};

use crate::harness::{Fails, Tree, as_user, eventually};

modes!(all: a_fifo_connects_two_programs, a_socket_takes_connections, a_file_made_by_mknod);
modes!(root: device_nodes_keep_their_number, users_make_no_devices);

fn a_fifo_connects_two_programs(t: &Tree) {
    let path = t.path("fifo");
    nix::unistd::mkfifo(&path, Bits::from_bits_truncate(0o600)).unwrap();
    assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
    std::thread::scope(|s| {
        s.spawn(|| fs::write(&path, "through").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"through");
    });
    nix::unistd::mkfifo(&path, Bits::S_IRWXU).fails(Errno::EEXIST);
    t.remount();
    assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
    fs::rename(&path, t.path("renamed")).unwrap();
    fs::remove_file(t.path("renamed")).unwrap();
}

fn a_socket_takes_connections(t: &Tree) {
    // Addresses are short: 108 bytes.
    let path = t.path("s");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    UnixStream::connect(&path).unwrap().write_all(b"hello").unwrap();
    let mut heard = String::new();
    listener.accept().unwrap().0.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "hello");
    drop(listener);
    // A child of another test may have it until it runs its program.
    eventually("nobody to listen", || UnixStream::connect(&path).is_err());
    UnixStream::connect(&path).fails(Errno::ECONNREFUSED);
    UnixListener::bind(&path).fails(Errno::EADDRINUSE);
    fs::remove_file(&path).unwrap();
    UnixDatagram::bind(&path).unwrap();
}

fn a_file_made_by_mknod(t: &Tree) {
    let path = t.path("file");
    mknod(&path, SFlag::S_IFREG, Bits::from_bits_truncate(0o640), 0).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mode(), meta.len(), meta.nlink()), (0o100640, 0, 1));
    t.remount();
    assert_eq!(fs::read(&path).unwrap(), b"");
    fs::write(&path, "x").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
}

fn device_nodes_keep_their_number(t: &Tree) {
    for (name, kind, major, minor) in [
        ("null", SFlag::S_IFCHR, 1, 3),
        ("disk", SFlag::S_IFBLK, 7, 0),
        ("odd", SFlag::S_IFCHR, 4000, 300_000),
    ] {
        mknod(&t.path(name), kind, Bits::from_bits_truncate(0o666), makedev(major, minor)).unwrap();
        let told = fs::metadata(t.path(name)).unwrap();
        assert_eq!((told.mode(), told.rdev()), (kind.bits() | 0o644, makedev(major, minor)), "{name}");
    }
    fs::write(t.path("null"), "gone").unwrap();
    assert_eq!(fs::read(t.path("null")).unwrap(), b"");
    t.remount();
    assert_eq!(fs::metadata(t.path("odd")).unwrap().rdev(), makedev(4000, 300_000));
    assert!(fs::metadata(t.path("disk")).unwrap().file_type().is_block_device());
}

fn users_make_no_devices(t: &Tree) {
    fs::set_permissions(t.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    as_user(1001, 1001, || {
        mknod(&t.path("null"), SFlag::S_IFCHR, Bits::S_IRWXU, makedev(1, 3)).fails(Errno::EPERM);
    });
}
