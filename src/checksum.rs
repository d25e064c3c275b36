//! Names of blobs, and the hashing that finds them.
//!
//! SHA-1 names a blob; BLAKE3 is computed in the same pass and tells a collision from a duplicate.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use md5::Md5;
use serde::{Deserialize, Serialize};
use sha1::Digest as _;

use self::sha::{Sha1, Sha256};
use crate::metrics::HASHED_BYTES;

mod sha;

/// SHA-1 of a blob: its only name. Written as 40 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Checksum(pub [u8; 20]);

impl Checksum {
    /// The checksum of no bytes at all.
    pub const EMPTY: Checksum = Checksum([
        0xda, 0x39, 0xa3, 0xee, 0x5e, 0x6b, 0x4b, 0x0d, 0x32, 0x55, 0xbf, 0xef, 0x95, 0x60, 0x18, 0x90, 0xaf,
        0xd8, 0x07, 0x09,
    ]);

    /// Reads 40 hex digits of either case; `None` for anything else.
    pub fn parse(text: &str) -> Option<Checksum> {
        unhex::<20>(text).map(Checksum)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Lower-case hex digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| DIGITS[usize::from(d)] as char).collect()
}

/// Exactly `N` bytes from `2 N` hex digits.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// What one pass over a blob's bytes finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Its name.
    pub checksum: Checksum,
    /// Tells blobs of one name apart.
    pub blake3: [u8; 32],
    /// How many bytes there were.
    pub size: u64,
}

/// SHA-1 and BLAKE3 of a stream of bytes, in one pass.
#[derive(Default)]
pub struct Hasher {
    sha1: Sha1,
    blake3: blake3::Hasher,
    size: u64,
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha1.update(bytes);
        self.blake3.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// The digest of everything taken.
    pub fn finish(self) -> Digest {
        Digest {
            checksum: Checksum(self.sha1.finalize().into()),
            blake3: *self.blake3.finalize().as_bytes(),
            size: self.size,
        }
    }
}

/// Computes a checksum alone, for what is only to be compared with one.
#[derive(Default)]
pub struct Comparison(Sha1);

impl Comparison {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of everything taken.
    pub fn finish(self) -> Checksum {
        Checksum(self.0.finalize().into())
    }
}

/// How many bytes a pass reads at a time: fits the second-level cache, so the second hash finds them there.
const PASS_BYTES: usize = 256 * 1024;

/// Something whose bytes can be read at any offset.
pub trait ReadAt: Sync {
    /// Reads at `offset`, less than asked perhaps; nothing only at the end.
    fn read_piece(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_piece(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buffer, offset)
    }
}

/// Reads the whole of `file`, giving `each` piece in order; stops early with `Ok(false)` when `each` returns false.
fn pass(file: &impl ReadAt, mut each: impl FnMut(&[u8]) -> bool) -> io::Result<bool> {
    let mut buffer = vec![0; PASS_BYTES];
    let mut offset = 0;
    loop {
        match file.read_piece(&mut buffer, offset) {
            Ok(0) => return Ok(true),
            Ok(n) => {
                if !each(&buffer[..n]) {
                    return Ok(false);
                }
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Digest of the whole of `file`; `None` when `go_on` said false on the way.
pub fn digest(file: &impl ReadAt, go_on: impl Fn() -> bool) -> io::Result<Option<Digest>> {
    let mut hasher = Hasher::default();
    let whole = pass(file, |bytes| {
        hasher.update(bytes);
        HASHED_BYTES.add(bytes.len() as u64);
        go_on()
    })?;
    Ok(whole.then(|| hasher.finish()))
}

/// SHA-256 and MD5.
pub type Published = ([u8; 32], [u8; 16]);

/// SHA-256 and MD5 of the whole of `file`; `None` when `go_on` said false on the way.
pub fn published_digests(file: &impl ReadAt, go_on: impl Fn() -> bool) -> io::Result<Option<Published>> {
    let (mut sha256, mut md5) = (Sha256::new(), Md5::new());
    let whole = pass(file, |bytes| {
        sha256.update(bytes);
        md5.update(bytes);
        go_on()
    })?;
    Ok(whole.then(|| (sha256.finalize().into(), md5.finalize().into())))
}

/// The same, by two threads, for whoever waits.
pub fn published_digests_soon(file: &impl ReadAt) -> io::Result<Published> {
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new().name("md5".to_owned());
        let md5 = other.spawn_scoped(scope, || one_digest::<Md5>(file))?;
        let sha256 = one_digest::<Sha256>(file)?;
        let md5 = md5.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((sha256.into(), md5.into()))
    })
}

fn one_digest<D: sha1::Digest>(file: &impl ReadAt) -> io::Result<sha1::digest::Output<D>> {
    let mut hasher = D::new();
    pass(file, |bytes| {
        hasher.update(bytes);
        true
    })?;
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_thread_and_two_find_the_same() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; 3 * PASS_BYTES + 5], 0).unwrap();
        assert_eq!(published_digests(&file, || true).unwrap(), Some(published_digests_soon(&file).unwrap()));
    }

    #[test]
    fn names_round_trip_through_hex() {
        let text = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
        assert_eq!(Checksum::parse(text), Some(Checksum::EMPTY));
        assert_eq!(Checksum::EMPTY.to_string(), text);
        assert_eq!(Checksum::parse(&text.to_uppercase()), Some(Checksum::EMPTY));
        for bad in ["", "da39", "zz39a3ee5e6b4b0d3255bfef95601890afd80709", "é"] {
            assert_eq!(Checksum::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_digest_of_known_bytes_is_the_published_one() {
        let mut hasher = Hasher::default();
        hasher.update(b"a");
        hasher.update(b"bc");
        let digest = hasher.finish();
        assert_eq!(digest.checksum.to_string(), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(digest.size, 3);
        assert_eq!(&hex(&digest.blake3)[..16], "6437b3ac38465133");
        assert_eq!(Hasher::default().finish().checksum, Checksum::EMPTY);
    }

    #[test]
    fn a_pass_that_is_told_to_stop_says_so() {
        let file = tempfile::tempfile().unwrap();
        file.write_at(&vec![7; 3 * PASS_BYTES], 0).unwrap();
        assert!(digest(&file, || false).unwrap().is_none());
        assert!(published_digests(&file, || false).unwrap().is_none());
        assert_eq!(digest(&file, || true).unwrap().unwrap().size, 3 * PASS_BYTES as u64);
    }

    proptest! {
        #[test]
        fn only_forty_hex_digits_are_a_checksum(text in "[0-9a-fA-F]{38,42}", noise in "[0-9a-fx\u{e9} ]{39,41}") {
            for text in [text, noise] {
                let fits = text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                prop_assert_eq!(Checksum::parse(&text).is_some(), fits, "{}", text);
                if let Some(sum) = Checksum::parse(&text) {
                    prop_assert_eq!(sum.to_string(), text.to_lowercase());
                }
            }
        }

        #[test]
        fn digits_come_back_as_bytes(bytes in any::<[u8; 20]>()) {
            prop_assert_eq!(unhex::<20>(&hex(&bytes)), Some(bytes));
        }
    }
}
