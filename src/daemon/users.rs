//! Who keeps a mount busy.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::sys::mountinfo::Mount;

/// A process that uses something in a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub pid: u32,
    /// The name of its program.
    pub name: String,
    /// What it does there.
    pub how: &'static str,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}: {})", self.pid, self.name, self.how)
    }
}

/// The processes that use `mount`, as far as this user may see; the daemon itself is none of them.
///
/// Only /proc is read, never the mount: a daemon that does not answer cannot hold this up.
pub fn users(mount: &Mount) -> Vec<User> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut users: Vec<User> = pids
        .filter_map(|pid| {
            let how = usage(pid, mount)?;
            let name =
                fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned();
            Some(User { pid, name, how })
        })
        .collect();
    users.sort_by_key(|user| user.pid);
    users
}

fn usage(pid: u32, mount: &Mount) -> Option<&'static str> {
    let leads_in = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(&mount.mountpoint));
    let process = Path::new("/proc").join(pid.to_string());
    for (link, how) in
        [("cwd", "works in it"), ("root", "has its root in it"), ("exe", "runs a program of it")]
    {
        if leads_in(&process.join(link)) {
            return Some(how);
        }
    }
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if files.into_iter().any(|file| leads_in(&file.path())) {
        return Some("has a file open");
    }
    // Mappings outlive their descriptors. The device is the mount's unless the kernel reads the stored file itself.
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    maps.split(|byte| *byte == b'\n').any(|line| maps_into(line, mount)).then_some("has a file mapped")
}

/// Whether a line of /proc/PID/maps (range, permissions, offset, device, inode, path) is of the mount.
fn maps_into(line: &[u8], mount: &Mount) -> bool {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.split_ascii_whitespace();
    let device = fields.nth(3).and_then(|field| field.split_once(':'));
    let number = |digits: &str| u32::from_str_radix(digits, 16).ok();
    let same_device = device.is_some_and(|(major, minor)| {
        number(major) == Some(mount.device.0) && number(minor) == Some(mount.device.1)
    });
    same_device || line.find('/').is_some_and(|at| Path::new(&line[at..]).starts_with(&mount.mountpoint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn mount(mountpoint: &Path) -> Mount {
        let (mountpoint, options) = (mountpoint.to_owned(), String::new());
        let (device, root, source) = ((0, 999_999), "/".into(), "/d".into());
        Mount { device, root, mountpoint, options, kind: String::new(), source }
    }

    #[test]
    fn processes_in_a_directory_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        assert_eq!(users(&mount(&path)), []);
        let mut child = Command::new("cat").current_dir(&path).stdin(Stdio::piped()).spawn().unwrap();
        let found = users(&mount(&path));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].pid, found[0].how), (child.id(), "works in it"));
        let _open = fs::File::create(path.join("file")).unwrap();
        assert_eq!(users(&mount(&path))[0].how, "has a file open");
    }

    #[test]
    fn mappings_are_matched_by_device_or_path() {
        let mount = Mount { device: (0, 0x2a), ..mount(Path::new("/srv/x")) };
        let line =
            |device: &str, path: &str| format!("7f00-7f01 r--p 00000000 {device} 12   {path}").into_bytes();
        assert!(maps_into(&line("00:2a", "/elsewhere"), &mount));
        assert!(maps_into(&line("08:01", "/srv/x/lib so.so"), &mount));
        assert!(!maps_into(&line("08:01", "/srv/xy"), &mount));
        assert!(!maps_into(b"", &mount) && !maps_into(b"7f00-7f01 rw-p 0 00:00 0", &mount));
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_the_matching_panic(line in "(7f00-7f01 r--p 0 )?[0-9a-f:é/ ]{0,40}", noise in ".{0,40}") {
            let mount = Mount { device: (0, 0x2a), ..mount(Path::new("/srv/x")) };
            maps_into(line.as_bytes(), &mount);
            maps_into(noise.as_bytes(), &mount);
        }
    }
}
