//! What a device was told, and the images that a power cut at some moment would leave of it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{FallocateFlags, fallocate};
use tempfile::TempDir;

use super::device::copy_sparse;
use super::random::Random;

/// Size of a record in the file of records.
pub const RECORD_BYTES: usize = 40;

/// A disk writes at least this much in one piece.
const BLOCK: u64 = 4096;

/// Nanoseconds since 1970, of a clock that all processes share.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    /// A range became zeroes.
    Zero,
    /// Everything answered before is on the disk when this is answered.
    Flush,
}

/// One call that the device answered.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub kind: Kind,
    pub offset: u64,
    pub len: u64,
    /// Where its bytes are in the file of data.
    pub place: u64,
    pub time: u64,
}

impl Record {
    pub fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let words = [self.kind as u64, self.offset, self.len, self.place, self.time];
        for (to, word) in bytes.chunks_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn of(bytes: &[u8]) -> Record {
        let word = |i: usize| u64::from_le_bytes(bytes[i * 8..i * 8 + 8].try_into().unwrap());
        let kind = [Kind::Write, Kind::Zero, Kind::Flush][word(0) as usize];
        Record { kind, offset: word(1), len: word(2), place: word(3), time: word(4) }
    }
}

/// A moment at which the power goes off.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// The last flush that was answered; everything before it is on the disk.
    pub flush: usize,
    /// How many calls were answered; of those since the flush, any may be on the disk, whole or in part.
    pub at: usize,
    /// The time of the last of them.
    pub time: u64,
}

/// Everything that happened to a device, from the formatting on.
pub struct Recording {
    dir: TempDir,
    data: File,
    pub records: Vec<Record>,
}

impl Recording {
    /// Reads what a helper left in its directory.
    pub fn read(dir: TempDir) -> Recording {
        let bytes = fs::read(dir.path().join("records")).unwrap();
        assert_eq!(bytes.len() % RECORD_BYTES, 0, "a whole number of records");
        let records = bytes.chunks(RECORD_BYTES).map(Record::of).collect();
        let data = File::open(dir.path().join("data")).unwrap();
        Recording { data, records, dir }
    }

    /// Leaves the files where they are, for whoever looks for the cause of a failure.
    pub fn keep(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }

    /// `count` moments between two calls, in order: half of them spread evenly over the calls, half over the time.
    pub fn cuts(&self, from: usize, to: usize, count: usize, random: &mut Random) -> Vec<Cut> {
        let is_flush = |record: &Record| record.kind == Kind::Flush;
        let first = self.records[from..].iter().position(is_flush).expect("a flush") + from + 1;
        let calls = to.checked_sub(first).expect("calls after the first flush") as u64;
        let (begun, ended) = (self.records[first].time, self.records[to - 1].time);
        let cut = |i: u64| {
            let mut part = |of: u64| (of * i + random.below(of.max(1))) / count as u64;
            let at = match i.is_multiple_of(2) {
                true => first + part(calls) as usize,
                false => {
                    let time = begun + part(ended - begun);
                    self.records[..to].partition_point(|record| record.time <= time).max(first)
                }
            };
            let flush = self.records[..at].iter().rposition(is_flush).unwrap();
            Cut { flush, at, time: self.records[at - 1].time }
        };
        let mut cuts: Vec<Cut> = (0..count as u64).map(cut).collect();
        cuts.sort_by_key(|cut| cut.at);
        cuts
    }

    /// An image to be played forward from cut to cut.
    pub fn replay(&self) -> Replay<'_> {
        let image = self.dir.path().join("image");
        copy_sparse(&self.dir.path().join("base"), &image);
        let file = OpenOptions::new().write(true).open(&image).unwrap();
        Replay { recording: self, image, file, done: 0 }
    }

    fn apply(&self, record: &Record, to: &File, from: u64, len: u64) -> io::Result<()> {
        match record.kind {
            Kind::Flush => Ok(()),
            Kind::Zero => punch(to, record.offset + from, len),
            Kind::Write => {
                let mut bytes = vec![0; len as usize];
                self.data.read_exact_at(&mut bytes, record.place + from)?;
                to.write_all_at(&bytes, record.offset + from)
            }
        }
    }
}

/// The image as of a flush that moves on.
pub struct Replay<'a> {
    recording: &'a Recording,
    image: PathBuf,
    file: File,
    done: usize,
}

impl Replay<'_> {
    /// Makes the image that a cut leaves: all up to the flush, and some of what came later. Cuts come in order. The answer
    /// says in words what was left.
    pub fn build(&mut self, cut: &Cut, random: &mut Random, to: &Path) -> String {
        let records = &self.recording.records;
        for record in &records[self.done..cut.flush] {
            self.recording.apply(record, &self.file, 0, record.len).unwrap();
        }
        self.done = cut.flush;
        copy_sparse(&self.image, to);
        let file = OpenOptions::new().write(true).open(to).unwrap();
        let later: Vec<&Record> =
            records[cut.flush..cut.at].iter().filter(|record| record.kind != Kind::Flush).collect();
        let chosen = Chosen::any(later.len(), random);
        let mut blocks = 0;
        for (i, record) in later.iter().enumerate() {
            let mut from = 0;
            while from < record.len {
                let len = (BLOCK - (record.offset + from) % BLOCK).min(record.len - from);
                if chosen.block(i, random) {
                    self.recording.apply(record, &file, from, len).unwrap();
                    blocks += 1;
                }
                from += len;
            }
        }
        format!(
            "cut {} calls after flush {}: {blocks} blocks of {} later writes ({chosen:?})",
            cut.at - cut.flush,
            cut.flush,
            later.len()
        )
    }
}

/// Which of the writes after a flush reach the disk.
#[derive(Debug)]
enum Chosen {
    None,
    All,
    /// Those before this one, as if the disk wrote in order.
    Prefix(usize),
    /// Whole writes, each or not.
    Writes(Vec<bool>),
    /// Each block with this many chances of 8.
    Blocks(u64),
}

impl Chosen {
    fn any(writes: usize, random: &mut Random) -> Chosen {
        match random.below(8) {
            0 => Chosen::None,
            1 => Chosen::All,
            2 => Chosen::Prefix(random.below(writes as u64 + 1) as usize),
            3 | 4 => {
                let chances = [1, 4, 7][random.below(3) as usize];
                Chosen::Writes((0..writes).map(|_| random.below(8) < chances).collect())
            }
            _ => Chosen::Blocks([1, 4, 7][random.below(3) as usize]),
        }
    }

    fn block(&self, write: usize, random: &mut Random) -> bool {
        match self {
            Chosen::None => false,
            Chosen::All => true,
            Chosen::Prefix(end) => write < *end,
            Chosen::Writes(chosen) => chosen[write],
            Chosen::Blocks(chances) => random.below(8) < *chances,
        }
    }
}

/// Makes a range zeroes, without keeping room for them.
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, offset as i64, len as i64)?)
}
