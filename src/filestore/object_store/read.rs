//! A blob in a bucket, read by ranges.
//!
//! Nothing is asked for before the first read. The version of the first answer is the one that all others must be of, and
//! each has to have the length that was asked for: bytes of two objects are never mixed.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ::object_store::path::Path as Key;
use ::object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::blob::Remote;
use super::super::error::Error;
use super::calls::{Failure, Kind, Outcome, Server, Trouble, within};
use super::readers::Reading;
use crate::checksum::Checksum;

/// Bytes of the first piece of a stream, for which somebody may wait, and the least of any other.
const PIECE_FIRST: u64 = 256 << 10;
const PIECE_MIN: u64 = 1 << 20;
/// The most: a server may read ahead of each request in vain, and some count requests.
const PIECE_MAX: u64 = 16 << 20;
/// By how much pieces become larger and smaller.
const PIECE_STEP: u64 = 4;
/// Pieces that come in less time than this become larger, and smaller those that take longer than that: whoever follows the
/// stream sees nothing of one before all of it is there, and does not wait for long.
const QUICK: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_secs(3);
/// Pieces of a stream under way at a time, each with memory of its own, which the next one gets.
const UNDER_WAY: usize = 4;
/// As long as the first one has not come: what comes beside it makes it later.
const UNDER_WAY_FIRST: usize = 2;

/// The version that is read, as far as it is known.
type Version = Mutex<Option<String>>;

/// See above.
#[derive(Debug)]
pub(super) struct Object {
    server: Arc<Server>,
    key: Key,
    sum: Checksum,
    size: u64,
    version: Arc<Version>,
    /// The id of an earlier version; `None`: the one that stands.
    earlier: Option<String>,
    _reading: Option<Reading>,
}

impl Object {
    /// An object that is supposed to have so many bytes; `version`: as far as it is known.
    pub(super) fn new(
        server: Arc<Server>,
        key: Key,
        sum: Checksum,
        size: u64,
        version: Option<String>,
        reading: Reading,
    ) -> Object {
        let version = Arc::new(Mutex::new(version));
        Object { server, key, sum, size, version, earlier: None, _reading: Some(reading) }
    }

    /// An earlier version of an object.
    pub(super) fn earlier(server: Arc<Server>, key: Key, sum: Checksum, size: u64, id: String) -> Object {
        Object { server, key, sum, size, version: Arc::default(), earlier: Some(id), _reading: None }
    }

    /// The bytes of a range, which are all there, in the memory of `room`.
    fn fetch(
        &self,
        range: Range<u64>,
        room: Vec<u8>,
    ) -> impl Future<Output = Outcome<Vec<u8>>> + Send + 'static {
        let (server, key, size) = (Arc::clone(&self.server), self.key.clone(), self.size);
        let (version, sum, earlier) = (Arc::clone(&self.version), self.sum, self.earlier.clone());
        async move {
            let request = server.request("read", &key);
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                // One that is no tag, but a time, has no quotes.
                version: earlier,
                if_match: version.lock().clone().filter(|tag| tag.ends_with('"')),
                ..GetOptions::default()
            };
            let work = async {
                let answer = within(server.patience(0), server.store.get_opts(&key, options)).await?;
                let fits = fits(&answer, &range, size, &version);
                Ok((receive(&server, answer, &range, room).await?, fits))
            };
            let (bytes, fits) = match server.converse(&request, work).await {
                Err(failure) => {
                    if failure.kind == Kind::Replaced {
                        *version.lock() = None;
                    }
                    return Err(failure);
                }
                answered => answered?,
            };
            if !fits || bytes.len() as u64 != range.end - range.start {
                return Err(Failure { kind: Kind::Replaced, error: Error::Altered(sum) });
            }
            Ok(bytes)
        }
    }

    /// A failure as it is told to a reader.
    fn told(&self, failure: Failure) -> io::Error {
        match failure.kind {
            Kind::Absent => Error::Missing(self.sum).into_io(),
            Kind::Replaced => Error::Altered(self.sum).into_io(),
            _ => failure.error.into_io(),
        }
    }
}

/// Whether an answer is of the range, the size and the version that are wanted; the first one says which version that is.
///
/// One of another version is an error once. The same blob may have been put again: what is read next begins anew.
fn fits(answer: &GetResult, range: &Range<u64>, size: u64, version: &Version) -> bool {
    if answer.meta.size != size || answer.range != *range {
        return false;
    }
    let (mut known, found) = (version.lock(), version_of(&answer.meta));
    let same = known.as_ref().is_none_or(|known| *known == found);
    *known = same.then_some(found);
    same
}

/// What tells one version of an object from another: its tag, or where the server gives none its time.
pub(super) fn version_of(found: &ObjectMeta) -> String {
    let tag = found.e_tag.as_ref().filter(|tag| !tag.trim_matches('"').is_empty());
    tag.cloned().unwrap_or_else(|| found.last_modified.to_rfc3339())
}

/// The bytes of an answer, each of which has to come within the time for one, and all within that for so many: a server that
/// sends a little now and then holds up nobody for ever.
async fn receive(
    server: &Server,
    answer: GetResult,
    range: &Range<u64>,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>, Trouble> {
    let GetResultPayload::Stream(mut pieces) = answer.payload;
    let wanted = (range.end - range.start) as usize;
    bytes.clear();
    bytes.reserve_exact(wanted);
    let (begun, mut busy) = (Instant::now(), 1);
    loop {
        // They share the way with what is read and sent meanwhile.
        busy = server.busy().max(busy);
        server.must_be_in_time(begun, busy * wanted as u64)?;
        let next = async { poll_fn(|context| pieces.as_mut().poll_next(context)).await.transpose() };
        match within(server.patience(0), next).await? {
            Some(piece) if bytes.len() + piece.len() <= wanted => bytes.extend_from_slice(&piece),
            // More than was asked for: the caller sees that it does not fit.
            Some(piece) => {
                bytes.extend_from_slice(&piece);
                return Ok(bytes);
            }
            None => return Ok(bytes),
        }
    }
}

impl Remote for Object {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = self.size.min(offset.saturating_add(buffer.len() as u64));
        if offset >= end {
            return Ok(0);
        }
        let bytes =
            self.server.wait(self.fetch(offset..end, Vec::new())).map_err(|failure| self.told(failure))?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn stream(&self, from: u64, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let (mut under_way, mut done) = (UnderWay::default(), Vec::new());
        let (mut asked, mut most, mut length) = (from, UNDER_WAY_FIRST, PIECE_MIN);
        while asked < self.size || !under_way.0.is_empty() {
            if asked < self.size && under_way.0.len() < most {
                let end = self.size.min(asked + if asked == from { PIECE_FIRST } else { length });
                let piece = self.fetch(asked..end, done.pop().unwrap_or_default());
                let begun = Instant::now();
                let timed = async move { piece.await.map(|bytes| (bytes, begun.elapsed())) };
                under_way.0.push_back(self.server.start(timed).map_err(Error::into_io)?);
                asked = end;
                continue;
            }
            let Some(first) = under_way.0.pop_front() else { continue };
            let (bytes, took) = self.server.join(first).map_err(|failure| self.told(failure))?;
            most = UNDER_WAY;
            length = length_after(length, took);
            each(&bytes)?;
            // Memory that was used is there already: fresh one costs as much as a copy of the bytes.
            done.push(bytes);
        }
        Ok(())
    }
}

/// The length of pieces after one that took so long.
fn length_after(length: u64, took: Duration) -> u64 {
    match took {
        _ if took < QUICK => (length * PIECE_STEP).min(PIECE_MAX),
        _ if took > SLOW => (length / PIECE_STEP).max(PIECE_MIN),
        _ => length,
    }
}

/// The bytes of a piece, and how long they took.
type Piece = (Vec<u8>, Duration);

/// Requests that end when nobody wants their answers any more.
#[derive(Default)]
struct UnderWay(VecDeque<JoinHandle<Outcome<Piece>>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_as_large_as_they_come_soon() {
        let quick = Duration::from_millis(200);
        assert_eq!(length_after(PIECE_MIN, quick), 4 << 20);
        assert_eq!(length_after(4 << 20, quick), PIECE_MAX);
        assert_eq!(length_after(PIECE_MAX, quick), PIECE_MAX);
        assert_eq!(length_after(PIECE_MAX, Duration::from_secs(2)), PIECE_MAX);
        assert_eq!(length_after(PIECE_MAX, Duration::from_secs(4)), 4 << 20);
        assert_eq!(length_after(PIECE_MIN, Duration::from_secs(40)), PIECE_MIN);
    }
}
