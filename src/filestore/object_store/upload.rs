//! Bytes on their way into the bucket.
//!
//! No object is seen before its bytes have been compared with its name: what is sent whole is hashed before it is sent, and
//! what is sent in parts becomes an object only when the last part is there and the checksum fits.

use std::collections::VecDeque;
use std::sync::Arc;

use ::object_store::path::Path as Key;
use ::object_store::{MultipartUpload, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use tokio::task::JoinHandle;

use super::super::error::{Error, Result};
use super::calls::{Kind, Outcome, Server};
use crate::checksum::{Checksum, Comparison};
use crate::failpoint;
use crate::text;

/// Bytes in memory at a time, of all that one call has under way.
const UNDER_WAY_BYTES: u64 = 64 << 20;
/// Requests that one call has under way at a time.
const UNDER_WAY: usize = 16;
/// Parts that an upload may have; S3 allows as many.
const PARTS_MAX: u64 = 10_000;

/// Bytes that are to become an object.
pub(super) struct Source<'a> {
    pub(super) sum: Checksum,
    pub(super) key: Key,
    pub(super) size: u64,
    /// Fills a buffer with the bytes from an offset on, as far as there are any.
    pub(super) read: &'a dyn Fn(&mut [u8], u64) -> Result<usize>,
    /// Whether an object that stands with the right size is replaced all the same.
    pub(super) replace: bool,
}

impl Source<'_> {
    /// The bytes of one part.
    fn part(&self, from: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        let read = (self.read)(&mut bytes, from)?;
        if read < bytes.len() { Err(Error::Altered(self.sum)) } else { Ok(bytes) }
    }

    /// Whether there is nothing behind the last byte.
    fn ends(&self) -> Result<bool> {
        Ok((self.read)(&mut [0], self.size)? == 0)
    }
}

/// Requests under way, in the order in which they were started.
pub(super) struct Window<'a> {
    server: &'a Server,
    started: VecDeque<(u64, JoinHandle<Outcome<()>>)>,
    bytes: u64,
}

impl<'a> Window<'a> {
    pub(super) fn new(server: &'a Server) -> Window<'a> {
        Window { server, started: VecDeque::new(), bytes: 0 }
    }

    /// Waits until there is room for so many bytes more.
    fn make_room(&mut self, bytes: u64) -> Result<()> {
        while !self.started.is_empty()
            && (self.started.len() >= UNDER_WAY || self.bytes + bytes > UNDER_WAY_BYTES)
        {
            self.wait_for_one()?;
        }
        Ok(())
    }

    fn start(&mut self, bytes: u64, work: impl Future<Output = Outcome<()>> + Send + 'static) -> Result<()> {
        self.started.push_back((bytes, self.server.start(work)?));
        self.bytes += bytes;
        Ok(())
    }

    fn wait_for_one(&mut self) -> Result<()> {
        let Some((bytes, oldest)) = self.started.pop_front() else { return Ok(()) };
        self.bytes -= bytes;
        Ok(self.server.join(oldest)?)
    }

    /// Waits for all.
    pub(super) fn finish(&mut self) -> Result<()> {
        while !self.started.is_empty() {
            self.wait_for_one()?;
        }
        Ok(())
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        self.started.iter().for_each(|(_, started)| started.abort());
    }
}

/// Sends a blob in one request; that it has arrived is told when the window is finished.
pub(super) fn whole(server: &Arc<Server>, source: &Source<'_>, window: &mut Window<'_>) -> Result<()> {
    window.make_room(source.size)?;
    let bytes = source.part(0, source.size)?;
    let mut hasher = Comparison::default();
    hasher.update(&bytes);
    if hasher.finish() != source.sum || !source.ends()? {
        return Err(Error::Altered(source.sum));
    }
    let (server, key, replace) = (Arc::clone(server), source.key.clone(), source.replace);
    window.start(source.size, async move { send(&server, &key, bytes, replace).await })
}

/// One request where no object stands. One of the right size stays, one of another size is replaced.
async fn send(server: &Server, key: &Key, bytes: Vec<u8>, replace: bool) -> Outcome<()> {
    let (request, size) = (server.request("put", key), bytes.len() as u64);
    let payload = PutPayload::from(bytes);
    let put = |mode: PutMode| {
        let options = PutOptions { mode, ..PutOptions::default() };
        server.send(&request, size, server.store.put_opts(key, payload.clone(), options))
    };
    if !replace {
        match put(PutMode::Create).await {
            Ok(_) => return Ok(()),
            Err(failure) if matches!(failure.kind, Kind::Stands | Kind::Replaced) => {
                if size_of(server, key).await? == Some(size) {
                    return Ok(());
                }
            }
            // A server that knows no conditions.
            Err(failure) if failure.kind == Kind::Unknown => {}
            Err(failure) => return Err(failure),
        }
    }
    put(PutMode::Overwrite).await.map(drop)
}

/// Bytes of an object; `None` when there is none.
pub(super) async fn size_of(server: &Server, key: &Key) -> Outcome<Option<u64>> {
    match server.ask(&server.request("look for", key), 0, server.store.head(key)).await {
        Ok(found) => Ok(Some(found.size)),
        Err(failure) if failure.kind == Kind::Absent => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Sends a blob in parts, several at a time. What was sent of one that fails is thrown away.
pub(super) fn in_parts(server: &Arc<Server>, source: &Source<'_>, element: u64) -> Result<()> {
    if !source.replace && server.wait(size_of(server, &source.key))? == Some(source.size) {
        return Ok(());
    }
    let request = server.request("put", &source.key);
    let mut upload = server.wait(server.ask(&request, 0, server.store.put_multipart(&source.key)))?;
    let sent = send_parts(server, source, element, &mut *upload).and_then(|()| {
        // A crash here leaves parts that are no object: the bucket's own rules remove them.
        failpoint::hit("objects.parts");
        // The server may read all of it once more.
        Ok(server.wait(server.send(&request, source.size / 16, upload.complete())).map(drop)?)
    });
    if sent.is_err() {
        let abort = server.request("throw away the parts of", &source.key);
        // The failure may be what made the server count as away, and nobody else knows these parts.
        if let Err(failure) = server.wait(server.ask_all_the_same(&abort, upload.abort())) {
            tracing::warn!("parts that are no object may stay: {}", text::chain(&failure.error));
        }
    }
    sent
}

fn send_parts(
    server: &Arc<Server>,
    source: &Source<'_>,
    element: u64,
    upload: &mut dyn MultipartUpload,
) -> Result<()> {
    let element = element.max(source.size.div_ceil(PARTS_MAX)).max(1);
    let mut window = Window::new(server);
    let (mut hasher, mut from) = (Comparison::default(), 0);
    while from < source.size {
        let length = element.min(source.size - from);
        window.make_room(length)?;
        let bytes = source.part(from, length)?;
        hasher.update(&bytes);
        let part = upload.put_part(bytes.into());
        let (server, request) = (Arc::clone(server), server.request("put a part of", &source.key));
        window.start(length, async move { server.send(&request, length, part).await })?;
        from += length;
    }
    window.finish()?;
    if hasher.finish() != source.sum || !source.ends()? {
        return Err(Error::Altered(source.sum));
    }
    Ok(())
}
