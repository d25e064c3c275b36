//! Bytes that a close waits for go past the queue: they are stored below at once.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::super::blob::{Blob, Remote};
use super::super::error::{Doing, Result};
use super::super::provider::Offer;
use super::super::staging::StagingReader;
use super::{Eventual, Queue};
use crate::checksum::Checksum;

impl Eventual {
    /// Stores the bytes of a staging file below, and leaves nothing of it in the queue; waits for `timeout` at most.
    ///
    /// Nobody needs to hold a latch: it is no blob that is decided on, but a promise that this content will be found below.
    pub fn put_through(&self, sum: &Checksum, offer: &Offer) -> Result<()> {
        let too_late = || io::Error::from(io::ErrorKind::TimedOut);
        let what = format!("blob {sum} before its close ends");
        let end = Instant::now() + self.queue.options().timeout;
        let blob = through(offer)?;
        let Some(place) = Place::of(&self.queue, end) else {
            return Err(too_late()).doing("begin to upload", &what);
        };
        if !self.queue.table.begin_through(sum, end) {
            return Err(too_late()).doing("begin to upload", &what);
        }
        if self.queue.table.is_through(sum) {
            // Another close of the same content came first.
            self.queue.table.end_through(sum, true);
            return Ok(());
        }
        let (told, outcome) = crossbeam_channel::bounded(1);
        let (queue, of) = (Arc::clone(&self.queue), *sum);
        let store = move || {
            let _place = place;
            let stored = queue.store_through(&of, &blob);
            queue.table.end_through(&of, stored.is_ok());
            // Whoever waited may have given up.
            let _ = told.send(stored);
        };
        if let Err(error) = std::thread::Builder::new().name("upload-close".to_owned()).spawn(store) {
            self.queue.table.end_through(sum, false);
            return Err(error).doing("start a thread to upload", &what);
        }
        match outcome.recv_deadline(end) {
            Ok(stored) => stored,
            Err(_) => Err(too_late()).doing("upload", &what),
        }
    }
}

/// One of the uploads that closes may wait for at the same time, however many there are.
struct Place(Arc<Queue>);

/// As many as this many times the workers.
const CLOSES_PER_WORKER: usize = 4;

impl Place {
    /// The next one that is free; `None` when none is until `end`.
    fn of(queue: &Arc<Queue>, end: Instant) -> Option<Place> {
        let mut closes = queue.closes.lock();
        while *closes >= CLOSES_PER_WORKER * queue.options().threads {
            if queue.fewer_closes.wait_until(&mut closes, end).timed_out() {
                return None;
            }
        }
        *closes += 1;
        Some(Place(Arc::clone(queue)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.closes.lock() -= 1;
        self.0.fewer_closes.notify_one();
    }
}

/// A staging file as the bytes of a blob.
#[derive(Debug)]
struct Through {
    reader: StagingReader,
    size: u64,
}

impl Remote for Through {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let longest = buffer.len().min(self.size.saturating_sub(offset) as usize);
        self.reader.read_at(&mut buffer[..longest], offset)
    }
}

fn through(offer: &Offer) -> Result<Blob> {
    offer.from.must_be_sound(offer.name)?;
    let reader = offer.from.open(offer.name)?;
    Ok(Blob::Remote(Box::new(Through { reader, size: offer.size })))
}
