//! Who asks: the identity that comes with a request, and what more of it the kernel tells in /proc.

use crate::change::Inode;
use crate::change::Kind;
use crate::sys::caller as proc;

/// setuid bit.
pub const S_ISUID: u32 = 0o4000;
/// setgid bit.
pub const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o010;

/// Identity of the process behind a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// File system user.
    pub uid: u32,
    /// File system group.
    pub gid: u32,
    /// Its process id in the daemon's namespace; 0 when it has none.
    pub pid: u32,
}

impl Caller {
    /// Whether writes by this caller leave setuid and setgid bits (CAP_FSETID).
    ///
    /// Only asked about files that have such bits, so the look into /proc is rare.
    pub fn keeps_set_id_bits(&self) -> bool {
        proc::has_fsetid(self.pid).unwrap_or(self.uid == 0)
    }

    /// Whether the caller administers the system (CAP_SYS_ADMIN).
    pub fn is_administrator(&self) -> bool {
        proc::has_sys_admin(self.pid).unwrap_or(self.uid == 0)
    }

    /// Whether the caller is in `gid`, supplementary groups included.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || proc::groups(self.pid).is_some_and(|groups| groups.contains(&gid))
    }
}

/// `mode` after a write by somebody without the privilege: no setuid, and no setgid where it means execution.
pub fn without_set_id_bits(mode: u32) -> u32 {
    let mode = mode & !S_ISUID;
    if mode & S_IXGRP != 0 { mode & !S_ISGID } else { mode }
}

/// Whether `without_set_id_bits` would change `inode`.
pub fn has_set_id_bits(inode: &Inode) -> bool {
    inode.kind == Kind::File && without_set_id_bits(inode.mode) != inode.mode
}
