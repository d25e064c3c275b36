//! A shard that does not answer, and what it does when it answers again.

use super::super::super::Listed;
use super::super::super::timed::Timed;
use super::*;

const PATIENCE: Duration = Duration::from_secs(1);

/// A shard that hangs when its gate is closed, as it is behind a network.
fn far() -> (tempfile::TempDir, Arc<Breakable>, Timed) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("shard");
    FileSystem::create(&at, ID, &FileOptions::default()).unwrap();
    let disk = Breakable::over(FileSystem::open(&at, ID, &FileOptions::default()).unwrap());
    let timed = Timed::over(at, disk.clone()).with_patience(PATIENCE);
    (dir, disk, timed)
}

fn is_io<T: std::fmt::Debug>(outcome: Result<T>, kind: io::ErrorKind) {
    assert!(matches!(&outcome, Err(Error::Io { source, .. }) if source.kind() == kind), "{outcome:?}");
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn no_copy_waits_for_longer_than_it_may() {
    let (_dir, disk, timed) = far();
    let sum = sum_of(b"some bytes");
    disk.gate.set_closed(true);
    is_io(timed.put_copy(&sum, &held(b"some bytes")), io::ErrorKind::TimedOut);
    is_io(timed.holds_staging(fresh_name()), io::ErrorKind::TimedOut);
    // It may still be made: nothing else is changed before that is over.
    is_io(timed.put_copy(&sum, &held(b"some bytes")), io::ErrorKind::ResourceBusy);
    is_io(timed.remove(&sum), io::ErrorKind::ResourceBusy);
    assert_eq!(timed.stat(&sum).unwrap(), None);
    disk.gate.set_closed(false);
    // Whoever had the bytes is gone, so there is nothing to copy.
    eventually("the end of the copy", || timed.remove(&sum).is_ok());
    assert_eq!(timed.stat(&sum).unwrap(), None);
    timed.put_copy(&sum, &held(b"some bytes")).unwrap();
    assert_eq!(bytes_of(&open(&timed, &sum).unwrap()), b"some bytes");
}

/// More than a page of them, with something between that is no blob.
#[test]
fn a_listing_is_asked_for_in_parts() {
    let (dir, _disk, timed) = far();
    let sums: Vec<Checksum> = (0..2500_u32).map(|i| sum_of(&i.to_le_bytes())).collect();
    for sum in &sums {
        let name = sum.to_string();
        std::fs::write(dir.path().join("shard").join(&name[..2]).join(&name), "bytes").unwrap();
    }
    std::fs::write(dir.path().join("shard/80/stray"), "bytes").unwrap();
    let mut wanted: Vec<Checksum> = sums.into_iter().chain([Checksum::EMPTY]).collect();
    wanted.sort();
    let (mut found, mut strays) = (Vec::new(), 0);
    let listed = Timed::with_patience(timed, Duration::from_secs(20)).list(None, &mut |listed| {
        match listed {
            Listed::Blob { sum, .. } => found.push(sum),
            Listed::Stray(_) => strays += 1,
        }
        std::ops::ControlFlow::Continue(())
    });
    listed.unwrap();
    assert!(found == wanted && strays == 1, "{} of {}, {strays}", found.len(), wanted.len());
}

/// Nobody waits for the first shard to find what is known to be on the second one.
#[test]
fn a_staging_file_is_looked_for_where_it_was_found() {
    let fixture = three_of(2);
    let name = fresh_name();
    let dir = fixture.disks[2].inner.stage().unwrap();
    dir.create(name).unwrap();
    assert!(Arc::ptr_eq(&fixture.sharding.staging(name).unwrap(), &dir));
    fixture.disks[0].gate.set_closed(true);
    assert!(Arc::ptr_eq(&fixture.sharding.staging(name).unwrap(), &dir));
    fixture.disks[0].gate.set_closed(false);
}
