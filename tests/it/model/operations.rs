//! What a program can do to a tree, as values that can be made at random, printed, and left out of a list.
//!
//! Files are named by paths out of a small set and handles by slots, so that a list with parts removed still makes sense:
//! what has lost its file fails in the model as it does in the tree, what has lost its handle is passed over.

use std::fmt;
use std::sync::OnceLock;

use nix::fcntl::{FallocateFlags, OFlag, RenameFlags};

use crate::data::noise;

/// Handles and mappings that one thread keeps open.
pub const HANDLES: usize = 6;
pub const MAPS: usize = 3;

/// Contents that bytes are taken from; few, so that the same ones come together in many files.
const PATTERNS: u64 = 3;

/// No offset is beyond this, and no file much larger.
pub const FILE_BYTES_MAX: usize = 1_200_000;

/// Random numbers that a seed fixes.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A piece of one of the contents.
#[derive(Clone, Copy, PartialEq)]
pub struct Bytes {
    pub pattern: u64,
    pub from: usize,
    pub len: usize,
}

impl Bytes {
    pub fn get(self) -> &'static [u8] {
        static POOL: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
        let pool = POOL.get_or_init(|| (0..PATTERNS).map(|k| noise(1000 + k, 2 * FILE_BYTES_MAX)).collect());
        &pool[self.pattern as usize][self.from..self.from + self.len]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}+{}", ["a", "b", "c"][self.pattern as usize], self.from, self.len)
    }
}

/// Path below the directory of the thread.
pub type Path = String;

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Open {
        slot: usize,
        path: Path,
        flags: OFlag,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    /// Closes a duplicate: nothing may change by that.
    DupClose {
        slot: usize,
    },
    Write {
        slot: usize,
        at: usize,
        bytes: Bytes,
    },
    Append {
        slot: usize,
        bytes: Bytes,
    },
    Read {
        slot: usize,
        at: usize,
        len: usize,
    },
    Resize {
        slot: usize,
        len: usize,
    },
    Allocate {
        slot: usize,
        how: FallocateFlags,
        at: usize,
        len: usize,
    },
    Seek {
        slot: usize,
        at: usize,
        hole: bool,
    },
    Sync {
        slot: usize,
        data_only: bool,
    },
    Stat {
        slot: usize,
    },
    CopyRange {
        from: usize,
        at: usize,
        to: usize,
        to_at: usize,
        len: usize,
    },
    Map {
        map: usize,
        slot: usize,
        len: usize,
    },
    MapWrite {
        map: usize,
        at: usize,
        bytes: Bytes,
    },
    MapRead {
        map: usize,
        at: usize,
        len: usize,
    },
    MapSync {
        map: usize,
    },
    Unmap {
        map: usize,
    },
    /// Opens with O_CREAT and O_TRUNC, writes, closes.
    Put {
        path: Path,
        bytes: Bytes,
    },
    /// Writes a temporary file and renames it.
    Replace {
        path: Path,
        bytes: Bytes,
    },
    /// copy_file_range(2) of the whole into a new or emptied file.
    CopyWhole {
        from: Path,
        to: Path,
    },
    /// The program.
    Cp {
        from: Path,
        to: Path,
    },
    /// copy_file_range(2) of the whole file of another thread.
    CopyForeign {
        owner: usize,
        from: Path,
        to: Path,
    },
    /// Takes a closed file away from another thread.
    MoveForeign {
        owner: usize,
        from: Path,
        to: Path,
    },
    Rename {
        from: Path,
        to: Path,
        how: RenameFlags,
    },
    Unlink {
        path: Path,
    },
    Link {
        from: Path,
        to: Path,
    },
    Symlink {
        path: Path,
        target: String,
    },
    Mkdir {
        path: Path,
        mode: u32,
    },
    Rmdir {
        path: Path,
    },
    Chmod {
        path: Path,
        mode: u32,
    },
    Chown {
        path: Path,
        uid: u32,
        gid: u32,
    },
    SetTimes {
        path: Path,
        atime: i64,
        mtime: i64,
    },
    Truncate {
        path: Path,
        len: usize,
    },
    SetXattr {
        path: Path,
        name: &'static str,
        value: Bytes,
    },
    RemoveXattr {
        path: Path,
        name: &'static str,
    },
    /// stat, and content, listing or target, and attributes.
    Look {
        path: Path,
    },
    /// The checksum that the file tells of itself.
    Checksum {
        path: Path,
    },
    SyncDirectory {
        path: Path,
    },
    Statfs,
    Flush,
    /// What comes between phases, with all threads at rest.
    Between(Between),
}

/// What comes between phases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Between {
    /// Everything is compared.
    Compare,
    /// Long enough for what is closed to be sealed and forced.
    Pause,
    /// Everything is closed, unmounted, mounted.
    Remount,
    /// The daemon is killed; handles and mappings are let go of before (`false`) or after (`true`) the next start.
    Kill { late: bool },
    /// Many files go; the filestore comes to hold what is left, and nothing else.
    Reclaim,
}

pub const XATTRS: [&str; 3] = ["user.one", "user.two", "user.a-rather-longer-name-for-an-attribute"];

const SIZES: [usize; 22] = [
    0, 1, 10, 4_095, 4_096, 4_097, 5_000, 8_192, 20_000, 32_767, 32_768, 32_769, 40_000, 40_000, 65_536,
    65_536, 70_001, 100_000, 131_072, 262_145, 700_000, 1_048_576,
];

fn size(random: &mut Random) -> usize {
    random.pick(&SIZES)
}

fn place(random: &mut Random) -> usize {
    match random.below(4) {
        0 => 0,
        1 | 2 => random.pick(&SIZES[..19]),
        _ => random.below(150_000),
    }
}

/// What a file holds from its start on, or from `at` on.
fn content(random: &mut Random, at: usize, len: usize) -> Bytes {
    Bytes { pattern: random.next() % PATTERNS, from: at, len }
}

fn path(random: &mut Random) -> Path {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    let depth = random.pick(&[1, 1, 1, 2, 2, 2, 3]);
    (0..depth)
        .map(|level| if level + 1 < depth { NAMES[3 + random.below(2)] } else { random.pick(&NAMES) })
        .collect::<Vec<_>>()
        .join("/")
}

fn flags(random: &mut Random) -> OFlag {
    let mut flags =
        random.pick(&[OFlag::O_RDONLY, OFlag::O_RDONLY, OFlag::O_WRONLY, OFlag::O_RDWR, OFlag::O_RDWR]);
    for (flag, rarity) in
        [(OFlag::O_CREAT, 2), (OFlag::O_TRUNC, 5), (OFlag::O_APPEND, 6), (OFlag::O_DSYNC, 25)]
    {
        if random.one_in(rarity) {
            flags |= flag;
        }
    }
    if flags.contains(OFlag::O_CREAT) && random.one_in(6) {
        flags |= OFlag::O_EXCL;
    }
    flags
}

fn time(random: &mut Random) -> i64 {
    let seconds = random.pick(&[0, 1, 1_000_000_000, 1_600_000_000, 4_400_000_000]);
    seconds * 1_000_000_000 + random.below(1_000_000_000) as i64
}

/// A random operation of thread `own` out of `threads`.
pub fn any(random: &mut Random, own: usize, threads: usize) -> Op {
    let slot = random.below(HANDLES);
    match random.below(100) {
        0..=11 => Op::Open {
            slot,
            path: path(random),
            flags: flags(random),
            mode: random.pick(&[0o644, 0o600, 0o755]),
        },
        12..=17 => Op::Close { slot },
        18..=42 => on_handle(random, slot),
        43..=52 => on_map(random, slot),
        53..=67 => whole_file(random),
        68..=71 if threads > 1 => {
            let owner = (own + 1 + random.below(threads - 1)) % threads;
            match random.below(2) {
                0 => Op::CopyForeign { owner, from: path(random), to: path(random) },
                _ => Op::MoveForeign { owner, from: path(random), to: path(random) },
            }
        }
        72..=83 => on_name(random),
        84..=91 => on_inode(random),
        92..=95 => Op::Look { path: path(random) },
        96 | 97 => Op::Checksum { path: path(random) },
        98 => random.pick(&[Op::Statfs, Op::Flush, Op::DupClose { slot }]),
        _ => Op::SyncDirectory { path: path(random) },
    }
}

fn on_handle(random: &mut Random, slot: usize) -> Op {
    let at = place(random);
    match random.below(25) {
        0..=7 => {
            let len = random.pick(&[0, 1, 3, 100, 4_096, 4_096, 9_000, 33_000, 65_536]);
            Op::Write { slot, at, bytes: content(random, at, len) }
        }
        8 | 9 => {
            let len = random.pick(&[1, 500, 4_096, 33_000]);
            Op::Append { slot, bytes: content(random, 0, len) }
        }
        10..=13 => Op::Read { slot, at, len: random.pick(&[1, 100, 4_096, 33_000, 200_000]) },
        14 | 15 => Op::Resize { slot, len: place(random) },
        16 | 17 => {
            let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
            let how = [
                FallocateFlags::empty(),
                keep,
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep,
                zero,
                zero | keep,
            ];
            Op::Allocate { slot, how: random.pick(&how), at, len: 1 + random.below(50_000) }
        }
        18 => Op::Seek { slot, at, hole: random.one_in(2) },
        19 => Op::Sync { slot, data_only: random.one_in(2) },
        20 => Op::Stat { slot },
        21 => Op::DupClose { slot },
        _ => {
            let to_at = if random.one_in(2) { at } else { place(random) };
            let len = random.pick(&[1, 5_000, 40_000, 65_536, FILE_BYTES_MAX]);
            Op::CopyRange { from: random.below(HANDLES), at, to: slot, to_at, len }
        }
    }
}

fn on_map(random: &mut Random, slot: usize) -> Op {
    let map = random.below(MAPS);
    let at = place(random);
    match random.below(10) {
        0..=2 => Op::Map { map, slot, len: 1 + size(random) },
        3..=5 => {
            let len = random.pick(&[1, 100, 5_000]);
            Op::MapWrite { map, at, bytes: content(random, at, len) }
        }
        6 | 7 => Op::MapRead { map, at, len: random.pick(&[1, 100, 5_000]) },
        8 => Op::MapSync { map },
        _ => Op::Unmap { map },
    }
}

fn whole_file(random: &mut Random) -> Op {
    let (path, other) = (path(random), path(random));
    let len = size(random);
    match random.below(15) {
        0..=6 => Op::Put { path, bytes: content(random, 0, len) },
        7..=9 => Op::Replace { path, bytes: content(random, 0, len) },
        10..=13 => Op::CopyWhole { from: path, to: other },
        _ => Op::Cp { from: path, to: other },
    }
}

fn on_name(random: &mut Random) -> Op {
    let (path, other) = (path(random), path(random));
    match random.below(20) {
        0..=4 => Op::Rename { from: path, to: other, how: RenameFlags::empty() },
        5 => Op::Rename { from: path, to: other, how: RenameFlags::RENAME_NOREPLACE },
        6 | 7 => Op::Rename { from: path, to: other, how: RenameFlags::RENAME_EXCHANGE },
        8..=11 => Op::Unlink { path },
        12 | 13 => Op::Link { from: path, to: other },
        14 => Op::Symlink { path, target: format!("nowhere/{}", "x/".repeat(random.pick(&[1, 40, 1500]))) },
        15..=18 => Op::Mkdir { path, mode: random.pick(&[0o755, 0o700]) },
        _ => Op::Rmdir { path },
    }
}

fn on_inode(random: &mut Random) -> Op {
    let path = path(random);
    match random.below(9) {
        0 | 1 => Op::Chmod { path, mode: random.pick(&[0o644, 0o600, 0o755, 0o701, 0o1777]) },
        2 => Op::Chown { path, uid: random.below(3) as u32, gid: random.below(3) as u32 },
        3 | 4 => Op::SetTimes { path, atime: time(random), mtime: time(random) },
        5 => Op::Truncate { path, len: place(random) },
        6 | 7 => {
            let len = random.pick(&[0, 1, 100, 1_000]);
            Op::SetXattr { path, name: random.pick(&XATTRS), value: content(random, 0, len) }
        }
        _ => Op::RemoveXattr { path, name: random.pick(&XATTRS) },
    }
}
