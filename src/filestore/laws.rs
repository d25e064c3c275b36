//! The laws of the trait: what every provider, and every chain of them, does. Each runs on a fresh provider.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::provider::{Listed, Offer, Provider, ProviderStatus};
use super::{Blob, Error, FileId, FileSystem, Options, Remote};
use crate::change::StagingName;
use crate::checksum::{Checksum, Hasher};

/// Runs every law on a provider made for it alone; `make` also returns what must live as long.
pub(crate) fn hold_for<G>(make: impl Fn() -> (G, Arc<dyn Provider>)) {
    for (name, law) in LAWS {
        let (_guard, provider) = make();
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| law(&*provider)));
        assert!(held.is_ok(), "law broken: {name}");
    }
}

type Law = fn(&dyn Provider);

const LAWS: &[(&str, Law)] = &[
    ("what was put is what is opened until removed", what_was_put_is_opened_until_removed),
    ("absence is not an error", absence_is_not_an_error),
    ("put is idempotent", put_is_idempotent),
    ("a batch may name a blob twice", a_batch_may_name_a_blob_twice),
    ("a failed batch leaves nothing", a_failed_batch_leaves_nothing),
    ("a staging file from elsewhere is copied", a_staging_file_from_elsewhere_is_copied),
    ("a copy is compared with its checksum", a_copy_is_compared_with_its_checksum),
    ("a file that changed since it was hashed is no blob", a_changed_file_is_no_blob),
    ("remove does not disturb open blobs", remove_does_not_disturb_open_blobs),
    ("a blob's descriptor cannot write", a_blobs_descriptor_cannot_write),
    ("list is ordered and resumes anywhere", list_is_ordered_and_resumes_anywhere),
    ("a visitor can stop a listing", a_visitor_can_stop_a_listing),
    ("a detached blob keeps its bytes", a_detached_blob_keeps_its_bytes),
    ("status tells the room, where it is known", status_tells_the_room),
];

/// What is known of a blob while calls may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Present,
    Absent,
    /// A call on it failed: it may have been done or not.
    Nothing,
}

/// Whether a removal is answered when nobody knows whether the blob was there.
fn removes_later(status: &ProviderStatus) -> bool {
    // One that tries again may have done it before, and have lost the answer.
    status.queue.is_some() || status.kind == "retry" || status.children.iter().any(removes_later)
}

/// Contents that `hold_under_faults` works with.
const CONTENTS: usize = 12;
const FAULTY_STEPS: u32 = 150;

/// The laws for a provider whose calls may fail: what was answered with Ok holds. `set(true)` lets calls fail from now on.
pub(crate) fn hold_under_faults(provider: &dyn Provider, set: &dyn Fn(bool), seed: u64) {
    let contents: Vec<Vec<u8>> =
        (0..CONTENTS).map(|i| format!("content {i} ").repeat(1 + 1000 * (i % 3)).into_bytes()).collect();
    let mut known = [Known::Absent; CONTENTS];
    let mut random = seed;
    let mut below = |n: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % n
    };
    set(true);
    for _ in 0..FAULTY_STEPS {
        let (what, i) = (below(8), below(CONTENTS));
        known[i] = faulty_step(provider, what, &contents[i], known[i]);
        if what == 7 {
            list_under_faults(provider, &contents, &known);
        }
    }
    set(false);
    for (content, known) in contents.iter().zip(known) {
        let found = provider.open(&sum_of(content), None).unwrap();
        assert!(
            known == Known::Nothing || found.is_some() == (known == Known::Present),
            "{known:?}: {found:?}"
        );
        found.iter().for_each(|blob| assert_eq!(&bytes_of(blob), content));
    }
    list_under_faults(provider, &contents, &known);
}

/// One call; what is known of the blob after it.
fn faulty_step(provider: &dyn Provider, what: usize, content: &[u8], known: Known) -> Known {
    let sum = sum_of(content);
    let kept = |known| if known == Known::Present { known } else { Known::Nothing };
    match what {
        0 | 1 => {
            let (_, offer) = staged(provider, content);
            let put = provider.put(&[(sum, offer.clone())]);
            offer.from.discard(offer.name).unwrap();
            if put.is_ok() { Known::Present } else { kept(known) }
        }
        2 => match provider.put_copy(&sum, &Blob::Remote(Box::new(Held(content.to_vec())))) {
            Ok(()) => Known::Present,
            Err(_) => kept(known),
        },
        3 => match provider.remove(&sum) {
            Ok(there) => {
                let later = removes_later(&provider.status());
                let right = if known == Known::Present { there } else { !there || later };
                assert!(known == Known::Nothing || right, "{known:?}: {there}");
                Known::Absent
            }
            Err(_) => Known::Nothing,
        },
        4 => {
            if let Ok(found) = provider.stat(&sum) {
                let right = found.is_none_or(|size| size == content.len() as u64);
                let there = found.is_some() == (known == Known::Present);
                assert!(right && (known == Known::Nothing || there), "{known:?}: {found:?}");
            }
            known
        }
        _ => {
            let size = (what == 5).then_some(content.len() as u64);
            let Ok(found) = provider.open(&sum, size) else { return known };
            let mut bytes = vec![0; content.len()];
            match found.map(|blob| blob.read_at(&mut bytes, 0)) {
                Some(Ok(read)) => {
                    assert_eq!((read, &bytes[..]), (content.len(), content));
                    assert_ne!(known, Known::Absent);
                }
                Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {}
                absent => assert_ne!(known, Known::Present, "{absent:?}"),
            }
            known
        }
    }
}

/// A listing that was finished is neither short nor long.
fn list_under_faults(provider: &dyn Provider, contents: &[Vec<u8>], known: &[Known]) {
    let mut found = Vec::new();
    let listing = provider.list(None, &mut |listed| {
        if let Listed::Blob { sum, .. } = listed {
            found.push(sum);
        }
        ControlFlow::Continue(())
    });
    if listing.is_err() {
        return;
    }
    assert!(found.is_sorted(), "{found:?}");
    for (content, known) in contents.iter().zip(known) {
        let there = found.contains(&sum_of(content));
        assert!(*known == Known::Nothing || there == (*known == Known::Present), "{known:?}: {there}");
    }
}

/// Bytes of a blob of another provider.
#[derive(Debug)]
pub(super) struct Held(pub(super) Vec<u8>);

impl Remote for Held {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = &self.0[(offset as usize).min(self.0.len())..];
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A name that no other test uses.
pub(super) fn fresh_name() -> StagingName {
    StagingName(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Checksum of `bytes`.
pub(super) fn sum_of(bytes: &[u8]) -> Checksum {
    let mut hasher = Hasher::default();
    hasher.update(bytes);
    hasher.finish().checksum
}

/// A staging file that holds `bytes`, as an element of a batch.
pub(super) fn staged(provider: &dyn Provider, bytes: &[u8]) -> (Checksum, Offer) {
    let (from, name) = (provider.stage().unwrap(), fresh_name());
    from.create(name).unwrap().write_at(bytes, 0).unwrap();
    (sum_of(bytes), Offer { from, name, size: bytes.len() as u64 })
}

/// Puts `bytes` and gives their checksum.
pub(super) fn put(provider: &dyn Provider, bytes: &[u8]) -> Checksum {
    let (sum, offer) = staged(provider, bytes);
    provider.put(&[(sum, offer.clone())]).unwrap();
    offer.from.discard(offer.name).unwrap();
    sum
}

/// Everything in a blob.
pub(super) fn bytes_of(blob: &Blob) -> Vec<u8> {
    let mut bytes = vec![0; blob.size() as usize];
    assert_eq!(blob.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

pub(super) fn open(provider: &dyn Provider, sum: &Checksum) -> Option<Blob> {
    provider.open(sum, None).unwrap()
}

/// What a listing shows, with strays as the last part of their path.
pub(super) fn listed(provider: &dyn Provider, after: Option<&Checksum>) -> Vec<(String, Option<u64>)> {
    let mut found = Vec::new();
    provider
        .list(after, &mut |listed| {
            found.push(match listed {
                Listed::Blob { sum, size } => (sum.to_string(), Some(size)),
                Listed::Stray(path) => (path.file_name().unwrap().to_string_lossy().into_owned(), None),
            });
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn what_was_put_is_opened_until_removed(provider: &dyn Provider) {
    let one = staged(provider, b"some bytes");
    provider.put(std::slice::from_ref(&one)).unwrap();
    assert_eq!(provider.staging(one.1.name).unwrap().stat(one.1.name).unwrap().size, 10, "the name stays");
    provider.staging(one.1.name).unwrap().discard(one.1.name).unwrap();
    assert_eq!(bytes_of(&open(provider, &one.0).unwrap()), b"some bytes");
    assert_eq!(provider.stat(&one.0).unwrap(), Some(10));
    assert!(provider.remove(&one.0).unwrap());
    assert!(open(provider, &one.0).is_none());
}

fn absence_is_not_an_error(provider: &dyn Provider) {
    let sum = sum_of(b"never put");
    assert!(provider.open(&sum, None).unwrap().is_none());
    assert_eq!(provider.stat(&sum).unwrap(), None);
    assert!(!provider.remove(&sum).unwrap() || removes_later(&provider.status()));
    let detached = provider.detach(&sum, fresh_name(), FileId { dev: 0, ino: 0 });
    assert!(matches!(detached, Err(Error::Missing(lost) | Error::NotLocal(lost)) if lost == sum));
}

fn put_is_idempotent(provider: &dyn Provider) {
    let one = staged(provider, b"twice");
    provider.put(std::slice::from_ref(&one)).unwrap();
    provider.put(std::slice::from_ref(&one)).unwrap();
    let other = staged(provider, b"twice");
    provider.put(&[other]).unwrap();
    assert_eq!(bytes_of(&open(provider, &one.0).unwrap()), b"twice");
    provider.put(&[]).unwrap();
}

fn a_batch_may_name_a_blob_twice(provider: &dyn Provider) {
    let batch: Vec<_> = (0..40).map(|i| staged(provider, &[i % 20; 100])).collect();
    provider.put(&batch).unwrap();
    for (sum, staged) in &batch {
        assert_eq!(provider.stat(sum).unwrap(), Some(staged.size));
    }
}

fn a_failed_batch_leaves_nothing(provider: &dyn Provider) {
    let before = listed(provider, None);
    let first = staged(provider, b"first of the batch");
    let never = Offer { from: provider.stage().unwrap(), name: fresh_name(), size: 1 };
    provider.put(&[first.clone(), (sum_of(b"x"), never)]).unwrap_err();
    assert_eq!(listed(provider, None), before);
    let writer = provider.staging(first.1.name).unwrap().open_writer(first.1.name).unwrap();
    writer.write_at(b"FIRST", 0).unwrap();
}

fn a_staging_file_from_elsewhere_is_copied(provider: &dyn Provider) {
    let dir = tempfile::tempdir().unwrap();
    FileSystem::create(dir.path(), [9; 16], &Options::default()).unwrap();
    let elsewhere = FileSystem::open(dir.path(), [9; 16], &Options::default()).unwrap();
    let batch = [staged(&elsewhere, b"from elsewhere"), staged(provider, b"from here")];
    let again = staged(&elsewhere, b"from here");
    provider.put(&batch).unwrap();
    provider.put(std::slice::from_ref(&again)).unwrap();
    for (sum, offer) in &batch {
        assert_eq!(provider.stat(sum).unwrap(), Some(offer.size));
        assert_eq!(offer.from.stat(offer.name).unwrap().size, offer.size, "the name stays");
    }
    batch[0].1.from.open_writer(batch[0].1.name).unwrap().write_at(b"FROM", 0).unwrap();
    assert_eq!(bytes_of(&open(provider, &batch[0].0).unwrap()), b"from elsewhere", "a file of its own");
    let (sum, offer) = staged(&elsewhere, b"changed since");
    let changed = Offer { size: offer.size + 1, ..offer };
    assert!(matches!(provider.put(&[(sum, changed)]), Err(Error::Changed { .. })));
    assert_eq!(provider.stat(&sum).unwrap(), None);
    let own = batch[1].1.name.to_string();
    // What is fetched into a cache meanwhile has its name in a moment.
    let end = Instant::now() + Duration::from_secs(10);
    let left = || -> Vec<String> {
        let dirs = provider.staging_dirs();
        let names = dirs.iter().flat_map(|dir| dir.path().read_dir().unwrap());
        names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    while left() != [own.as_str()] {
        assert!(Instant::now() < end, "left behind: {:?}", left());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_copy_is_compared_with_its_checksum(provider: &dyn Provider) {
    let good = b"good bytes";
    let sum = sum_of(good);
    for altered in [&b"evil bytes"[..], b"good", b"good bytes and more"] {
        let put = provider.put_copy(&sum, &Blob::Remote(Box::new(Held(altered.to_vec()))));
        assert!(matches!(put, Err(Error::Altered(found)) if found == sum), "{put:?}");
        assert_eq!(provider.stat(&sum).unwrap(), None);
    }
    for _ in 0..2 {
        provider.put_copy(&sum, &Blob::Remote(Box::new(Held(good.to_vec())))).unwrap();
        assert_eq!(bytes_of(&open(provider, &sum).unwrap()), good);
    }
    let end = Instant::now() + Duration::from_secs(10);
    let left = || -> usize {
        provider.staging_dirs().iter().map(|dir| dir.path().read_dir().unwrap().count()).sum()
    };
    while left() > 0 {
        assert!(Instant::now() < end, "left behind");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_changed_file_is_no_blob(provider: &dyn Provider) {
    let (sum, staged) = staged(provider, b"hashed");
    let wrong = Offer { size: staged.size - 1, ..staged };
    assert!(matches!(provider.put(&[(sum, wrong)]), Err(Error::Changed { expected: 5, found: 6, .. })));
    assert!(open(provider, &sum).is_none());
}

fn remove_does_not_disturb_open_blobs(provider: &dyn Provider) {
    let sum = put(provider, b"still read");
    let blob = open(provider, &sum).unwrap();
    assert!(provider.remove(&sum).unwrap());
    provider.force_removed(&[sum]).unwrap();
    put(provider, b"something else");
    assert_eq!(bytes_of(&blob), b"still read");
}

fn a_blobs_descriptor_cannot_write(provider: &dyn Provider) {
    let sum = put(provider, b"read-only");
    let blob = open(provider, &sum).unwrap();
    let Blob::Local(blob) = blob else { return };
    let flags = OFlag::from_bits_truncate(fcntl(blob.as_fd(), FcntlArg::F_GETFL).unwrap());
    assert_eq!(flags & OFlag::O_ACCMODE, OFlag::O_RDONLY);
    nix::sys::uio::pwrite(blob.as_fd(), b"x", 0).unwrap_err();
}

fn list_is_ordered_and_resumes_anywhere(provider: &dyn Provider) {
    let mut sums: Vec<Checksum> = (0..300_u32).map(|i| sum_of(&i.to_le_bytes())).collect();
    let batch: Vec<_> = (0..300_u32).map(|i| staged(provider, &i.to_le_bytes())).collect();
    provider.put(&batch).unwrap();
    sums.push(Checksum::EMPTY);
    sums.sort();
    let all = listed(provider, None);
    let expected: Vec<_> =
        sums.iter().map(|s| (s.to_string(), Some(if *s == Checksum::EMPTY { 0 } else { 4 }))).collect();
    assert_eq!(all, expected);
    for (i, sum) in sums.iter().enumerate().step_by(7) {
        assert_eq!(listed(provider, Some(sum)), expected[i + 1..]);
        let mut absent = *sum;
        absent.0[19] ^= 1;
        let from = sums.partition_point(|s| *s <= absent);
        assert_eq!(listed(provider, Some(&absent)), expected[from..]);
    }
    assert_eq!(listed(provider, Some(&Checksum([0xff; 20]))), []);
}

fn a_visitor_can_stop_a_listing(provider: &dyn Provider) {
    for i in 0..10_u8 {
        put(provider, &[i]);
    }
    let mut seen = 0;
    provider
        .list(None, &mut |_| {
            seen += 1;
            if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(seen, 3);
}

fn a_detached_blob_keeps_its_bytes(provider: &dyn Provider) {
    let sum = put(provider, b"old bytes");
    let reader = open(provider, &sum).unwrap();
    let name = fresh_name();
    let Some(file) = reader.file_id() else {
        let detached = provider.detach(&sum, name, FileId { dev: 0, ino: 0 });
        assert!(matches!(detached, Err(Error::NotLocal(found)) if found == sum));
        return;
    };
    provider.detach(&sum, name, file).unwrap();
    let dir = provider.staging(name).unwrap();
    assert_eq!(dir.stat(name).unwrap().links, 1);
    let writer = dir.open_writer(name).unwrap();
    writer.write_at(b"NEW", 0).unwrap();
    assert_eq!(bytes_of(&reader), b"NEW bytes", "who read the blob follows the writer");
    assert_eq!(bytes_of(&open(provider, &sum).unwrap()), b"old bytes");
    assert_eq!(provider.stat(&sum).unwrap(), Some(9));
}

fn status_tells_the_room(provider: &dyn Provider) {
    let Some(space) = provider.status().space else { return };
    assert!(space.available <= space.free && space.free <= space.capacity && space.capacity > 0);
}
