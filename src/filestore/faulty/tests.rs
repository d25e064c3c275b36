//! A provider with faults between: without them it keeps the laws, with them it fails and breaks none.

use super::super::laws::{self, bytes_of, hold_for, open, put, sum_of};
use super::super::{FileSystem, Options};
use super::*;

const ID: [u8; 16] = [3; 16];

/// A provider over a fresh directory.
fn faulty(remote: bool, seed: u64) -> (tempfile::TempDir, Arc<Faulty>) {
    let dir = tempfile::tempdir().unwrap();
    FileSystem::create(dir.path(), ID, &Options::default()).unwrap();
    let below = Arc::new(FileSystem::open(dir.path(), ID, &Options::default()).unwrap());
    let control = dir.path().join("none");
    (dir, Arc::new(Faulty::over(below, control, seed, remote)))
}

#[test]
fn without_a_fault_it_keeps_the_laws() {
    for remote in [false, true] {
        hold_for(|| {
            let (dir, provider) = faulty(remote, 1);
            (dir, provider as Arc<dyn Provider>)
        });
    }
}

#[test]
fn with_faults_what_was_answered_holds() {
    for seed in 0..20 {
        for remote in [false, true] {
            let (_dir, provider) = faulty(remote, seed);
            let set =
                |on: bool| provider.set(if on { "*=fail%20\n*=disconnect%20\n*=delay:1%5" } else { "" });
            laws::hold_under_faults(&*provider, &set, seed);
        }
    }
}

#[test]
fn a_store_that_is_far_away_has_no_local_files() {
    let (_dir, provider) = faulty(true, 1);
    let sum = put(&*provider, b"far away");
    provider.set("open=fail\nstat=fail");
    let blob = provider.open(&sum, Some(8)).unwrap().unwrap();
    assert!(blob.local().is_none());
    provider.open(&sum, None).unwrap_err();
    assert_eq!(bytes_of(&blob), b"far away");
    provider.set("");
    let absent = provider.open(&sum_of(b"absent"), Some(6)).unwrap().unwrap();
    assert_eq!(absent.read_at(&mut [0; 6], 0).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn bytes_are_altered_as_told() {
    let (_dir, provider) = faulty(false, 1);
    let sum = put(&*provider, b"0123456789");
    assert!(open(&*provider, &sum).unwrap().local().is_some());
    provider.set("read=truncate");
    let mut buffer = [0; 10];
    assert_eq!(open(&*provider, &sum).unwrap().read_at(&mut buffer, 0).unwrap(), 5);
    provider.set("read=corrupt");
    assert_eq!(open(&*provider, &sum).unwrap().read_at(&mut buffer, 0).unwrap(), 10);
    assert_eq!(&buffer, b"0123456788");
    provider.set("put=corrupt");
    let (other, offer) = laws::staged(&*provider, b"on its way");
    assert!(matches!(provider.put(&[(other, offer)]), Err(Error::Altered(found)) if found == other));
    provider.set("");
    assert_eq!(provider.stat(&other).unwrap(), None);
    assert_eq!(bytes_of(&open(&*provider, &sum).unwrap()), b"0123456789");
}
