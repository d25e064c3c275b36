//! Which blobs this process reads, so that none is deleted below its readers.
//!
//! A blob that is removed while somebody reads it is gone for everybody else at once; its object is deleted after the last
//! reader. A put in between keeps it. A crash in between leaves an object that the index does not know.
//!
//! A deletion that was not answered may be carried out some time later: until then the blob is not put again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::checksum::Checksum;

/// Deletes an object that nobody reads any more, and calls [`Readers::deleted`] when that is over.
type Delete = Box<dyn Fn(Checksum) + Send + Sync>;

/// See above.
pub(super) struct Readers {
    of: Mutex<HashMap<Checksum, Open>>,
    /// A deletion has ended.
    ended: Condvar,
    /// Blobs whose deletion was not answered, and when that was given up.
    doubts: Mutex<HashMap<Checksum, Instant>>,
    /// How long a request may be on its way.
    doubt: Duration,
    delete: Delete,
}

#[derive(Debug, Default)]
struct Open {
    readers: usize,
    removed: bool,
}

/// A blob that is read, until this is dropped.
#[derive(Debug)]
pub(super) struct Reading {
    readers: Arc<Readers>,
    sum: Checksum,
}

impl Readers {
    pub(super) fn new(doubt: Duration, delete: Delete) -> Readers {
        let (of, ended, doubts) = (Mutex::default(), Condvar::new(), Mutex::default());
        Readers { of, ended, doubts, doubt, delete }
    }

    /// A deletion was not answered: it may be carried out yet.
    pub(super) fn not_answered(&self, sum: &Checksum) {
        let mut doubts = self.doubts.lock();
        doubts.retain(|_, since| since.elapsed() < self.doubt);
        doubts.insert(*sum, Instant::now());
    }

    /// How long a deletion that was not answered may still be carried out; `None`: there is none.
    pub(super) fn doubt(&self, sum: &Checksum) -> Option<Duration> {
        let since = *self.doubts.lock().get(sum)?;
        self.doubt.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
    }

    /// Begins to read a blob; `None` when it was removed.
    pub(super) fn open(self: &Arc<Readers>, sum: &Checksum) -> Option<Reading> {
        let mut of = self.of.lock();
        let open = of.entry(*sum).or_default();
        if open.removed {
            return None;
        }
        open.readers += 1;
        Some(Reading { readers: Arc::clone(self), sum: *sum })
    }

    /// Whether it was removed, and is still there for its readers.
    pub(super) fn is_removed(&self, sum: &Checksum) -> bool {
        self.of.lock().get(sum).is_some_and(|open| open.removed)
    }

    /// Leaves the deletion of a blob to its last reader; `false`: nobody reads it.
    pub(super) fn remove_later(&self, sum: &Checksum) -> bool {
        match self.of.lock().get_mut(sum) {
            Some(open) => {
                open.removed = true;
                true
            }
            None => false,
        }
    }

    /// Keeps a blob that is going to be put again; one that is just being deleted is waited for, and the deletion has an end.
    pub(super) fn keep(&self, sum: &Checksum) {
        let mut of = self.of.lock();
        while let Some(open) = of.get_mut(sum) {
            if open.readers > 0 || !open.removed {
                open.removed = false;
                return;
            }
            self.ended.wait(&mut of);
        }
    }

    /// The deletion that a last reader began is over, however it went.
    pub(super) fn deleted(&self, sum: &Checksum) {
        self.of.lock().remove(sum);
        self.ended.notify_all();
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut of = self.readers.of.lock();
        let Some(open) = of.get_mut(&self.sum) else { return };
        open.readers -= 1;
        if open.readers > 0 {
            return;
        }
        if !open.removed {
            of.remove(&self.sum);
            return;
        }
        drop(of);
        (self.readers.delete)(self.sum);
    }
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").field("of", &self.of).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: Checksum = Checksum([1; 20]);

    fn readers() -> (Arc<Readers>, Arc<Mutex<Vec<Checksum>>>) {
        let deleted: Arc<Mutex<Vec<Checksum>>> = Arc::default();
        let told = Arc::clone(&deleted);
        let doubt = Duration::from_millis(200);
        (Arc::new(Readers::new(doubt, Box::new(move |sum| told.lock().push(sum)))), deleted)
    }

    #[test]
    fn a_removed_blob_is_deleted_after_its_last_reader() {
        let (readers, deleted) = readers();
        assert!(!readers.remove_later(&SUM));
        let (one, two) = (readers.open(&SUM).unwrap(), readers.open(&SUM).unwrap());
        assert!(readers.remove_later(&SUM) && readers.is_removed(&SUM));
        assert!(readers.open(&SUM).is_none());
        drop(one);
        assert_eq!(*deleted.lock(), []);
        drop(two);
        assert_eq!(*deleted.lock(), [SUM]);
        assert!(readers.open(&SUM).is_none(), "until that is over");
        readers.deleted(&SUM);
        assert!(readers.open(&SUM).is_some() && !readers.is_removed(&SUM));
    }

    #[test]
    fn a_blob_that_is_put_again_is_kept() {
        let (readers, deleted) = readers();
        let one = readers.open(&SUM).unwrap();
        readers.remove_later(&SUM);
        readers.keep(&SUM);
        assert!(!readers.is_removed(&SUM));
        drop(one);
        assert_eq!(*deleted.lock(), []);
        readers.keep(&SUM);
    }

    #[test]
    fn a_put_waits_for_the_deletion() {
        let (readers, _) = readers();
        let one = readers.open(&SUM).unwrap();
        readers.remove_later(&SUM);
        drop(one);
        let waiting = Arc::clone(&readers);
        let put = std::thread::spawn(move || waiting.keep(&SUM));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!put.is_finished());
        readers.deleted(&SUM);
        put.join().unwrap();
    }

    #[test]
    fn a_deletion_without_an_answer_is_in_doubt_for_a_while() {
        let (readers, _) = readers();
        assert_eq!(readers.doubt(&SUM), None);
        let since = Instant::now();
        readers.not_answered(&SUM);
        assert_eq!(readers.doubt(&Checksum([2; 20])), None);
        while readers.doubt(&SUM).is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(since.elapsed() >= Duration::from_millis(200));
        readers.not_answered(&Checksum([2; 20]));
        assert_eq!(readers.doubts.lock().len(), 1, "what is over is forgotten");
    }
}
