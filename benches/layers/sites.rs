//! Who is measured.

use std::fmt;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// The depot that the row is about.
    Depotfs,
    /// A depot with the template `file-system`, on the same disk.
    FileSystem,
    /// `rclone mount --vfs-cache-mode full` of the same bucket.
    Mount,
    /// `rclone copy` from or to the same bucket.
    Copy,
    /// One GET of 4 KiB.
    Get,
    /// A plain file.
    Plain,
}

/// All of them, in the order of the tables.
pub const ALL: [Peer; 6] = [Peer::Depotfs, Peer::FileSystem, Peer::Mount, Peer::Copy, Peer::Get, Peer::Plain];

impl Peer {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Depotfs => "depotfs",
            Peer::FileSystem => "file-system",
            Peer::Mount => "rclone mount",
            Peer::Copy => "rclone copy",
            Peer::Get => "GET",
            Peer::Plain => "plain",
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
