//! What /proc tells of the process behind a request.

use std::fs;

/// Bits in a capability set, from linux/capability.h.
const CAP_FSETID: u32 = 4;
const CAP_SYS_ADMIN: u32 = 21;

/// Whether process `pid` has CAP_FSETID; `None` when it cannot be told (gone, or in another namespace).
pub fn has_fsetid(pid: u32) -> Option<bool> {
    has(pid, CAP_FSETID)
}

/// Whether process `pid` has CAP_SYS_ADMIN, likewise.
pub fn has_sys_admin(pid: u32) -> Option<bool> {
    has(pid, CAP_SYS_ADMIN)
}

fn has(pid: u32, capability: u32) -> Option<bool> {
    let effective = u64::from_str_radix(&field(pid, "CapEff:")?, 16).ok()?;
    Some(effective & 1 << capability != 0)
}

/// Supplementary groups of process `pid`.
pub fn groups(pid: u32) -> Option<Vec<u32>> {
    field(pid, "Groups:").map(|line| line.split_whitespace().filter_map(|gid| gid.parse().ok()).collect())
}

fn field(pid: u32, name: &str) -> Option<String> {
    if pid == 0 {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

/// Name of the program that process `pid` runs.
pub fn program(pid: u32) -> Option<String> {
    if pid == 0 {
        return None;
    }
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(path.file_name()?.to_string_lossy().into_owned())
}
