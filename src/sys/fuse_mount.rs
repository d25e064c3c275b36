//! Mounting a FUSE file system: mount(2) for root, fusermount3 for everybody else.
//!
//! fuser can mount too, but it unmounts the mountpoint by name when its session ends, which may by then be another file
//! system; and it does not ask fusermount3 where /dev/fuse is closed to the user.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::MsFlags;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};

use super::mountinfo::{self, FILE_SYSTEM_TYPE};

/// What to mount where and how.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// An existing directory, canonical.
    pub mountpoint: &'a Path,
    /// What the table of mounts shows as the source.
    pub source: &'a Path,
    /// Flags of the mount.
    pub flags: MsFlags,
    /// Let other users in.
    pub allow_other: bool,
}

/// A mount of this process; dropping it takes it away, if it is still there.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    /// Another mount may get its number once it is gone, but not of the same source: that is locked.
    source: PathBuf,
    device: Option<(u32, u32)>,
}

/// Follow no symbolic links; Linux 5.10.
pub const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(libc::MS_NOSYMFOLLOW);

/// The flags that have a word in the options of fusermount3.
const WORDS: [(MsFlags, &str); 8] = [
    (MsFlags::MS_RDONLY, "ro"),
    (MsFlags::MS_NOSUID, "nosuid"),
    (MsFlags::MS_NODEV, "nodev"),
    (MsFlags::MS_NOEXEC, "noexec"),
    (NOSYMFOLLOW, "nosymfollow"),
    (MsFlags::MS_NOATIME, "noatime"),
    (MsFlags::MS_SYNCHRONOUS, "sync"),
    (MsFlags::MS_DIRSYNC, "dirsync"),
];

/// Mounts, and gives the descriptor on which the kernel asks.
pub fn mount(wanted: &Wanted<'_>) -> io::Result<(OwnedFd, Mounted)> {
    let fd = match super::process::is_root() {
        true => mount_as_root(wanted)?,
        false => mount_as_user(wanted)?,
    };
    let mounts = mountinfo::depots().unwrap_or_default();
    let device =
        mounts.iter().rev().find(|mount| mount.mountpoint == wanted.mountpoint).map(|mount| mount.device);
    Ok((fd, Mounted { mountpoint: wanted.mountpoint.into(), source: wanted.source.into(), device }))
}

fn mount_as_root(wanted: &Wanted<'_>) -> io::Result<OwnedFd> {
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::new(error.kind(), "there is no /dev/fuse: load the kernel module fuse")
        }
        _ => io::Error::new(error.kind(), format!("/dev/fuse: {error}")),
    };
    let device = File::options().read(true).write(true).open("/dev/fuse").map_err(explain)?;
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    // The root's type; its permission bits come with its attributes.
    let mut data =
        format!("fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions", device.as_raw_fd());
    if wanted.allow_other {
        data.push_str(",allow_other");
    }
    let kind = Some(FILE_SYSTEM_TYPE);
    nix::mount::mount(Some(wanted.source), wanted.mountpoint, kind, wanted.flags, Some(data.as_str()))?;
    Ok(device.into())
}

/// fusermount3 mounts with root's rights, and sends the descriptor over a socket whose number stands in its environment.
fn mount_as_user(wanted: &Wanted<'_>) -> io::Result<OwnedFd> {
    let flags = SockFlag::empty(); // Without close-on-exec: the program inherits one end.
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
    let mut child = Command::new("fusermount3")
        .arg("-o")
        .arg(std::ffi::OsStr::from_bytes(&user_options(wanted)))
        .arg("--")
        .arg(wanted.mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("fusermount3 cannot be run, install fuse3: {error}"))
        })?;
    drop(theirs);
    let received = receive_descriptor(ours.as_raw_fd());
    drop(ours);
    let mut said = String::new();
    if let Some(mut errors) = child.stderr.take() {
        errors.read_to_string(&mut said)?;
    }
    child.wait()?;
    match received? {
        Some(fd) => Ok(fd),
        None => Err(io::Error::other(format!("fusermount3 says: {}", said.trim()))),
    }
}

/// Options of fusermount3; commas and backslashes within a value are escaped.
fn user_options(wanted: &Wanted<'_>) -> Vec<u8> {
    let mut options = b"default_permissions,subtype=depotfs,fsname=".to_vec();
    for byte in wanted.source.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(*byte);
    }
    for (flag, word) in WORDS {
        if wanted.flags.contains(flag) {
            options.extend([b",", word.as_bytes()].concat());
        }
    }
    if wanted.allow_other {
        options.extend(b",allow_other");
    }
    options
}

/// The descriptor that comes over `socket`; `None` when it is closed without one.
fn receive_descriptor(socket: RawFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut buffer = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(socket, &mut buffer, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(fd) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for us, and nothing else knows its number.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    Ok(None)
}

impl Mounted {
    /// How far the kernel reads ahead of one who reads in order, from now on: in one request where the file system takes as much.
    ///
    /// It starts with what the kernel has for every device, 128 KiB, and FUSE can only lower that. Needs root.
    pub fn set_read_ahead(&self, bytes: usize) -> io::Result<()> {
        let (major, minor) = self.device.ok_or(io::ErrorKind::NotFound)?;
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), (bytes >> 10).to_string())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let mounts = mountinfo::depots().unwrap_or_default();
        let top = mounts.iter().rev().find(|mount| mount.mountpoint == self.mountpoint);
        if top.is_some_and(|mount| Some(mount.device) == self.device && mount.source == self.source)
            && let Err(error) = mountinfo::unmount(&self.mountpoint, true)
        {
            tracing::error!(%error, "{} cannot be unmounted", self.mountpoint.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_fusermount3_keep_any_source() {
        let wanted = Wanted {
            mountpoint: Path::new("/m"),
            source: Path::new("/a,b\\c d"),
            flags: MsFlags::MS_RDONLY | MsFlags::MS_NOATIME,
            allow_other: true,
        };
        let options = String::from_utf8(user_options(&wanted)).unwrap();
        assert_eq!(
            options,
            "default_permissions,subtype=depotfs,fsname=/a\\,b\\\\c d,ro,noatime,allow_other"
        );
    }

    #[test]
    fn a_socket_that_closes_brings_no_descriptor() {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
        drop(theirs);
        assert!(receive_descriptor(ours.as_raw_fd()).unwrap().is_none());
    }
}
