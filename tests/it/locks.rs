//! Advisory locks, which are the kernel's own.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};

use crate::data::rw;
use crate::harness::{Fails, Tree, eventually};
use crate::sys::{in_child, range_lock};

modes!(all: whole_file_locks, open_file_locks, process_locks, a_blocked_lock_gets_its_turn, locks_are_per_inode);

fn try_lock(file: &File, how: FlockArg) -> Result<Flock<File>, Errno> {
    Flock::lock(file.try_clone().unwrap(), how).map_err(|(_, e)| e)
}

fn whole_file_locks(t: &Tree) {
    let path = t.sealed("file", "x");
    let (a, b) = (File::open(&path).unwrap(), rw(&path));
    let held = try_lock(&a, FlockArg::LockExclusiveNonblock).unwrap();
    try_lock(&b, FlockArg::LockExclusiveNonblock).map(drop).fails(Errno::EWOULDBLOCK);
    try_lock(&b, FlockArg::LockSharedNonblock).map(drop).fails(Errno::EWOULDBLOCK);
    held.unlock().unwrap();
    let shared = try_lock(&a, FlockArg::LockSharedNonblock).unwrap();
    let shared_too = try_lock(&b, FlockArg::LockSharedNonblock).unwrap();
    drop(shared_too.unlock().unwrap());
    drop(shared);
    drop(a);
    try_lock(&b, FlockArg::LockExclusiveNonblock).unwrap().unlock().unwrap();
}

fn open_file_locks(t: &Tree) {
    let path = t.sealed("file", "0123456789");
    let (a, b) = (rw(&path), rw(&path));
    let set = |file: &File, kind: i32, start, len| {
        fcntl(file, FcntlArg::F_OFD_SETLK(&range_lock(kind, start, len))).map(drop)
    };
    set(&a, libc::F_WRLCK, 2, 3).unwrap();
    set(&b, libc::F_WRLCK, 4, 1).fails(Errno::EAGAIN);
    set(&b, libc::F_RDLCK, 0, 0).fails(Errno::EAGAIN);
    set(&b, libc::F_WRLCK, 5, 100).unwrap();
    set(&a, libc::F_UNLCK, 2, 2).unwrap();
    set(&b, libc::F_WRLCK, 0, 4).unwrap();
    let mut asked = range_lock(libc::F_WRLCK, 0, 0);
    fcntl(&a, FcntlArg::F_OFD_GETLK(&mut asked)).unwrap();
    assert_eq!((i32::from(asked.l_type), asked.l_start, asked.l_len, asked.l_pid), (libc::F_WRLCK, 0, 4, -1));
    drop(b);
    // A child of another test may have it until it runs its program.
    eventually("the locks to go with their file", || set(&a, libc::F_WRLCK, 0, 0).is_ok());
}

fn process_locks(t: &Tree) {
    let file = rw(&t.sealed("file", "0123456789"));
    let fd = file.as_raw_fd();
    fcntl(&file, FcntlArg::F_SETLK(&range_lock(libc::F_WRLCK, 0, 5))).unwrap();
    let from_child = |start: i64, len: i64| {
        let lock = range_lock(libc::F_WRLCK, start, len);
        in_child(move || match crate::sys::set_lock(fd, &lock) {
            Ok(()) => 0,
            Err(Errno::EAGAIN | Errno::EACCES) => 1,
            Err(_) => 2,
        })
    };
    assert_eq!(from_child(0, 1), 1, "held by the parent");
    assert_eq!(from_child(5, 5), 0, "free");
    fcntl(&file, FcntlArg::F_SETLK(&range_lock(libc::F_UNLCK, 0, 0))).unwrap();
    assert_eq!(from_child(0, 1), 0, "given back");
}

fn a_blocked_lock_gets_its_turn(t: &Tree) {
    let path = t.file("file", "x");
    let (a, b) = (rw(&path), rw(&path));
    let held = try_lock(&a, FlockArg::LockExclusive).unwrap();
    std::thread::scope(|s| {
        let waiting = s.spawn(|| try_lock(&b, FlockArg::LockExclusive).unwrap().unlock().map(drop));
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(!waiting.is_finished());
        held.unlock().unwrap();
        waiting.join().unwrap().map_err(|(_, e)| e).unwrap();
    });
}

fn locks_are_per_inode(t: &Tree) {
    // Two files of one content are two files.
    let (a, b) = (t.file("a", "same"), t.file("b", "same"));
    t.seal();
    let (a, b) = (rw(&a), rw(&b));
    let _a = try_lock(&a, FlockArg::LockExclusiveNonblock).unwrap();
    let _b = try_lock(&b, FlockArg::LockExclusiveNonblock).unwrap();
    // A lock outlives a write, a seal and a rename.
    t.seal();
    std::fs::rename(t.path("a"), t.path("c")).unwrap();
    try_lock(&rw(&t.path("c")), FlockArg::LockExclusiveNonblock).map(drop).fails(Errno::EWOULDBLOCK);
}
