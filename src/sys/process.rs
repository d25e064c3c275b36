//! The process itself: limits, its place in the out-of-memory order, its detachment from a terminal.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

/// Raises the soft limit on open files to the hard one; returns the limit that now holds.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes the struct it is given and nothing else.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit reads the struct it is given and nothing else.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// Makes the kernel end other processes first when memory runs out, unless somebody (systemd) has already decided.
///
/// Losing the daemon takes the tree away from everybody, so it goes late. Needs root.
pub fn go_late_when_memory_runs_out() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    if fs::read_to_string(FILE)?.trim() != "0" {
        return Ok(());
    }
    fs::write(FILE, "-500")
}

/// Leaves terminal and process group, so that nothing typed there reaches this process.
pub fn leave_terminal() -> io::Result<()> {
    match nix::unistd::setsid() {
        // EPERM: leads a group already, as when a shell with job control started it; then there is nothing to leave.
        Ok(_) | Err(nix::errno::Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Closes every descriptor beyond the three standard streams. Nothing of this process may have one yet.
pub fn close_inherited() -> io::Result<()> {
    let name = |entry: io::Result<fs::DirEntry>| Some(entry.ok()?.file_name().to_str()?.parse().ok());
    // Among them is that of the listing itself, which is closed by then.
    let open: Vec<libc::c_int> = fs::read_dir("/proc/self/fd")?.filter_map(name).flatten().collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: nothing in this process owns the descriptor, as its caller promises.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Points standard error at `errors` from now on.
pub fn errors_go_to(errors: &File) -> io::Result<()> {
    Ok(nix::unistd::dup2_stderr(errors.as_fd())?)
}

/// Points standard input and output at /dev/null and standard error at `errors`, or also at /dev/null.
///
/// Whoever waits for the end of a pipe that was standard output or error is released.
pub fn release_standard_streams(errors: Option<&File>) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(errors.unwrap_or(&null).as_fd())?;
    Ok(())
}

/// Whether this process may do what root may.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether process `pid` is there and has no memory any more: killed or exiting, its files perhaps still open.
pub fn is_ending(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_without_memory_is_ending() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let eventually = |wanted: bool| {
            (0..1000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                is_ending(child.id()) == wanted
            })
        };
        assert!(!is_ending(std::process::id()) && eventually(false));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGKILL)
            .unwrap();
        assert!(eventually(true));
        child.wait().unwrap();
        assert!(!is_ending(child.id()));
    }

    #[test]
    fn the_limit_on_open_files_is_the_hard_one() {
        let limit = raise_open_files().unwrap();
        assert_eq!(raise_open_files().unwrap(), limit);
        assert!(limit >= 1024, "{limit}");
    }
}
