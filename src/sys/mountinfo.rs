//! What is mounted where, as `/proc/self/mountinfo` tells it, and the calls that unmount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use nix::mount::MntFlags;

/// The type under which a depot is mounted.
pub const FILE_SYSTEM_TYPE: &str = "fuse.depotfs";

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number of the file system as `major:minor`, as in /proc/PID/maps.
    pub device: (u32, u32),
    /// Which directory of the file system is mounted, from its top: `/`, or the part that a bind mount shows.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Options of this mount and of the file system, comma-separated.
    pub options: String,
    /// Type, with its subtype after a dot.
    pub kind: String,
    /// What is mounted: the depot's directory for one of ours.
    pub source: PathBuf,
}

impl Mount {
    /// Whether it is a depot's.
    pub fn is_depot(&self) -> bool {
        self.kind == FILE_SYSTEM_TYPE
    }

    /// Where `path`, which lies in this mount, is in the file system: without a slash at either end.
    pub fn inside(&self, path: &Path) -> Option<PathBuf> {
        let root = self.root.strip_prefix("/").unwrap_or(&self.root);
        Some(root.join(path.strip_prefix(&self.mountpoint).ok()?).components().collect())
    }
}

/// All mounts of this process's namespace, in the order in which they were made: the last one at a place is on top.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The depots among them.
pub fn depots() -> io::Result<Vec<Mount>> {
    Ok(mounts()?.into_iter().filter(Mount::is_depot).collect())
}

/// The mount that holds `path`, an absolute path without `..` or symbolic links: found without touching the path.
pub fn holder<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    // max_by_key returns the last of equals, which is the one on top.
    mounts
        .iter()
        .filter(|m| path.starts_with(&m.mountpoint))
        .max_by_key(|m| m.mountpoint.components().count())
}

/// Reads lines as proc_pid_mountinfo(5) describes them; those that do not fit are skipped.
fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    // id parent major:minor root mountpoint options [tag]... - type source super-options
    let mut fields = line.split(|b| *b == b' ');
    let device = str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let (root, mountpoint) = (path(fields.next()?), path(fields.next()?));
    let own_options = String::from_utf8_lossy(fields.next()?).into_owned();
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let source = path(fields.next()?);
    let options = match fields.next() {
        Some(more) => format!("{own_options},{}", String::from_utf8_lossy(more)),
        None => own_options,
    };
    Some(Mount {
        device: (device.0.parse().ok()?, device.1.parse().ok()?),
        root,
        mountpoint,
        options,
        kind,
        source,
    })
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Undoes the kernel's `\040` for space, tab, newline, backslash and hash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = |b: u8| (b'0'..=b'7').contains(&b).then(|| u32::from(b - b'0'));
        let escaped = match rest {
            [b'\\', a, b, c, ..] => {
                octal(*a).zip(octal(*b)).zip(octal(*c)).map(|((a, b), c)| a * 64 + b * 8 + c)
            }
            _ => None,
        };
        match escaped.and_then(|value| u8::try_from(value).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Unmounts `mountpoint`; `lazily`: now from the tree, from its users when they let go of it.
///
/// An ordinary user goes through fusermount3. Busy is `ErrorKind::ResourceBusy` either way.
pub fn unmount(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    if super::process::is_root() {
        let how = if lazily { MntFlags::MNT_DETACH } else { MntFlags::empty() };
        return Ok(nix::mount::umount2(mountpoint, how | MntFlags::UMOUNT_NOFOLLOW)?);
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazily.then_some("-z")).arg("--").arg(mountpoint);
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // fusermount3 tells the cause only in words; these are the C library's for EBUSY.
    let kind =
        if said.contains("resource busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, format!("fusermount3 -u says: {said}")))
}

/// Asks the file system at `mountpoint` a question that the kernel never answers by itself.
pub fn ask(mountpoint: &Path) -> io::Result<()> {
    nix::sys::statfs::statfs(mountpoint)?;
    Ok(())
}

/// Whether the file system at `mountpoint` has lost its daemon. Attributes would not tell: the kernel remembers them.
pub fn is_dead(mountpoint: &Path) -> bool {
    // Connection aborted: the question was asked just while the daemon died.
    use io::ErrorKind::{ConnectionAborted, NotConnected};
    matches!(ask(mountpoint), Err(error) if matches!(error.kind(), NotConnected | ConnectionAborted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection, prelude::*};
    use std::os::unix::ffi::OsStrExt;

    const TEXT: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
        30 22 0:45 / /srv/my\\040tree rw,nosuid,nodev shared:9 master:3 - fuse.depotfs /var/de\\134pot\\011\\043 rw,user_id=0\n\
        31 22 0:46 / /srv/plain rw - tmpfs tmpfs rw\n\
        32 30 0:47 / /srv/my\\040tree/in rw - fuse.depotfs /d2 rw\n\
        34 22 0:47 /a\\040b/c /srv/bound rw - fuse.depotfs /d2 rw\n\
        garbage line\n\n33 22 x:y / /broken rw - t s rw\n";

    #[test]
    fn lines_are_read_with_their_escapes() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 5);
        let depot = &mounts[1];
        assert!(depot.is_depot() && !mounts[2].is_depot());
        assert_eq!(depot.device, (0, 45));
        assert_eq!(depot.mountpoint, Path::new("/srv/my tree"));
        assert_eq!(depot.source, Path::new("/var/de\\pot\t#"));
        assert_eq!(depot.options, "rw,nosuid,nodev,rw,user_id=0");
    }

    #[test]
    fn the_innermost_mount_holds_a_path() {
        let mounts = parse(TEXT);
        let source = |path: &str| holder(&mounts, Path::new(path)).unwrap().source.display().to_string();
        assert_eq!(source("/srv/my tree/in/x"), "/d2");
        assert_eq!(source("/srv/my tree/inner"), "/var/de\\pot\t#");
        assert_eq!(source("/srv/my tree2"), "/dev/root");
    }

    #[test]
    fn a_bind_mount_shows_a_part() {
        let mounts = parse(TEXT);
        let inside = |path: &str| holder(&mounts, Path::new(path)).unwrap().inside(Path::new(path)).unwrap();
        assert_eq!(inside("/srv/bound/x/y"), Path::new("a b/c/x/y"));
        assert_eq!(inside("/srv/bound").as_os_str(), "a b/c");
        assert_eq!(inside("/srv/my tree/in/x").as_os_str(), "x");
        assert_eq!(inside("/srv/my tree/in").as_os_str(), "");
        assert_eq!(mounts[1].inside(Path::new("/elsewhere")), None);
    }

    #[test]
    fn odd_escapes_are_left_alone() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\777"), b"\\777");
        assert_eq!(unescape(b"\\\\040"), b"\\ ");
        assert_eq!(unescape(b"\\"), b"\\");
    }

    #[test]
    fn this_process_has_a_root_mount() {
        assert!(holder(&mounts().unwrap(), Path::new("/")).is_some());
    }

    /// As the kernel writes a path.
    fn escape(path: &[u8]) -> Vec<u8> {
        let escaped = |byte: &u8| match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
            other => vec![*other],
        };
        path.iter().flat_map(escaped).collect()
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            noise in collection::vec(any::<u8>(), 0..200),
            changes in collection::vec((0..TEXT.len(), any::<u8>()), 0..20),
        ) {
            parse(&noise);
            let mut text = TEXT.to_vec();
            for (at, byte) in changes {
                text[at] = byte;
            }
            for mount in parse(&text) {
                holder(&[mount], Path::new("/srv/x"));
            }
        }

        #[test]
        fn any_path_comes_back(
            path in collection::vec(1..=255_u8, 1..30),
            source in collection::vec(1..=255_u8, 1..30),
        ) {
            let path = [b"/".as_slice(), &path].concat();
            let fields = [b"30 22 0:45 / ".as_slice(), &escape(&path), b" rw - fuse.depotfs ", &escape(&source), b" rw\n"];
            let mounts = parse(&fields.concat());
            prop_assert_eq!(mounts.len(), 1);
            prop_assert_eq!(mounts[0].mountpoint.as_os_str().as_bytes(), &path);
            prop_assert_eq!(mounts[0].source.as_os_str().as_bytes(), &source);
        }
    }
}
