//! Threads of this process, as the kernel shows them in `/proc/self/task`.

use std::fs;

/// Number of a thread on this host.
pub type Tid = i32;

/// The calling thread.
pub fn current() -> Tid {
    nix::unistd::gettid().as_raw()
}

/// The name of a thread, its first 15 bytes; empty when it is gone.
pub fn name(tid: Tid) -> String {
    read(tid, "comm")
}

/// What a thread does or waits for, as the end of "the thread ...", as far as the kernel tells it.
pub fn state(tid: Tid) -> String {
    describe(&read(tid, "stat"), &read(tid, "syscall"), &read(tid, "wchan"))
}

fn read(tid: Tid, what: &str) -> String {
    fs::read(format!("/proc/self/task/{tid}/{what}"))
        .map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned())
        .unwrap_or_default()
}

/// From the texts of `stat`, `syscall` and `wchan` (proc(5)), each empty where it is not told.
fn describe(stat: &str, syscall: &str, wchan: &str) -> String {
    // The name before the state is in brackets and may hold brackets.
    let letter = stat.rsplit_once(')').map_or("", |(_, rest)| rest.trim_start());
    let mut text = match letter.chars().next() {
        Some('D') => "waits for a disk or another file system".to_owned(),
        Some('R') => "is computing".to_owned(),
        Some('S') => "sleeps".to_owned(),
        Some(other) => format!("is in state {other}"),
        None => "is gone".to_owned(),
    };
    let number = syscall.split(' ').next().and_then(|number| number.parse::<i64>().ok());
    if let Some(number) = number.filter(|number| *number >= 0) {
        text.push_str(&format!(" in {}", call(number)));
    }
    if !matches!(wchan, "" | "0") {
        text.push_str(&format!(" at {wchan}"));
    }
    text
}

/// The system calls in which a request can wait.
fn call(number: i64) -> String {
    let known = [
        (libc::SYS_futex, "a lock of the daemon (futex)"),
        (libc::SYS_fsync, "fsync"),
        (libc::SYS_fdatasync, "fdatasync"),
        (libc::SYS_syncfs, "syncfs"),
        (libc::SYS_sync_file_range, "sync_file_range"),
        (libc::SYS_read, "read"),
        (libc::SYS_write, "write"),
        (libc::SYS_pread64, "pread"),
        (libc::SYS_pwrite64, "pwrite"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_linkat, "linkat"),
        (libc::SYS_unlinkat, "unlinkat"),
        (libc::SYS_renameat, "renameat"),
        (libc::SYS_ftruncate, "ftruncate"),
        (libc::SYS_fallocate, "fallocate"),
        (libc::SYS_copy_file_range, "copy_file_range"),
        (libc::SYS_ioctl, "ioctl"),
        (libc::SYS_utimensat, "utimensat"),
        (libc::SYS_fcntl, "fcntl"),
    ];
    match known.iter().find(|(known, _)| *known == number) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("system call {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_shows_becomes_words() {
        let fsync = format!("{} 0x7 0x0", libc::SYS_fdatasync);
        assert_eq!(
            describe("17 (fuser-3) D 1 17 17 0", &fsync, "jbd2_log_wait_commit"),
            "waits for a disk or another file system in fdatasync at jbd2_log_wait_commit"
        );
        assert_eq!(describe("17 (a) b) R 1 17", "running", "0"), "is computing");
        assert_eq!(describe("17 (a) S 1", "-1 0x0 0x0", ""), "sleeps");
        assert_eq!(describe("17 (a) S 1", "99999 0x0", "0"), "sleeps in system call 99999");
        assert_eq!(describe("", "", ""), "is gone");
        for odd in [")", "a)", ") ", "(()))", "17 (a"] {
            describe(odd, odd, odd);
        }
    }

    #[test]
    fn this_thread_is_computing() {
        assert_eq!(current(), nix::unistd::gettid().as_raw());
        assert!(state(current()).starts_with("is computing"), "{}", state(current()));
        let named = std::thread::Builder::new().name("a-name".into());
        assert_eq!(named.spawn(|| name(current())).unwrap().join().unwrap(), "a-name");
        assert_eq!(state(i32::MAX), "is gone");
    }
}
