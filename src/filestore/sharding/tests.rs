//! Shards that are lost, broken, full, slow to come back: what stays readable, what is owed, what is mended.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Condvar;

use super::super::laws::{bytes_of, fresh_name, hold_for, open, put, staged, sum_of};
use super::super::{FileSystem, Options as FileOptions};
use super::*;

const ID: [u8; 16] = [7; 16];

/// Holds up calls that change something while it is closed.
#[derive(Debug, Default)]
struct Gate {
    /// Whether it is closed, and how many calls it holds up.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn set_closed(&self, closed: bool) {
        self.state.lock().0 = closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock();
        state.1 += 1;
        self.changed.notify_all();
        self.changed.wait_while(&mut state, |(closed, _)| *closed);
        state.1 -= 1;
    }
}

/// A provider whose disk breaks when it is told to.
#[derive(Debug)]
struct Breakable {
    inner: FileSystem,
    reads: AtomicBool,
    writes: AtomicBool,
    gate: Gate,
}

impl Breakable {
    fn over(inner: FileSystem) -> Arc<Breakable> {
        let (reads, writes) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Breakable { inner, reads, writes, gate: Gate::default() })
    }

    fn check(&self, broken: &AtomicBool) -> Result<()> {
        if broken.load(Ordering::SeqCst) {
            let source = io::Error::from_raw_os_error(libc::EIO);
            return Err(Error::Io { doing: "use", path: "broken".into(), source });
        }
        Ok(())
    }
}

impl Provider for Breakable {
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        self.check(&self.reads)?;
        self.inner.open(sum, size)
    }
    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        self.check(&self.reads)?;
        self.inner.stat(sum)
    }
    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        self.check(&self.reads)?;
        self.inner.locate(sum)
    }
    fn stage(&self) -> Result<Arc<StagingDir>> {
        self.check(&self.writes)?;
        self.inner.stage()
    }
    fn staging(&self, name: StagingName) -> Result<Arc<StagingDir>> {
        self.check(&self.reads)?;
        self.inner.staging(name)
    }
    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        self.inner.staging_dirs()
    }
    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        self.gate.pass();
        self.check(&self.writes)?;
        self.inner.put(batch)
    }
    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.gate.pass();
        self.check(&self.writes)?;
        self.inner.put_copy(sum, blob)
    }
    fn holds_staging(&self, name: StagingName) -> Result<Option<Arc<StagingDir>>> {
        self.gate.pass();
        self.check(&self.reads)?;
        self.inner.holds_staging(name)
    }
    fn detach(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<()> {
        self.check(&self.writes)?;
        self.inner.detach(sum, name, file)
    }
    fn remove(&self, sum: &Checksum) -> Result<bool> {
        self.check(&self.writes)?;
        self.inner.remove(sum)
    }
    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        self.inner.force_removed(sums)
    }
    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        self.check(&self.reads)?;
        self.inner.list(after, visit)
    }
    fn status(&self) -> ProviderStatus {
        self.inner.status()
    }
}

/// How a chain of shards is to be.
#[derive(Clone, Copy)]
struct Plan {
    shards: usize,
    redundancy: usize,
    lenient_limit: usize,
    /// The number of a shard that is drained.
    drained: Option<usize>,
}

const TWO_OF_THREE: Plan = Plan { shards: 3, redundancy: 2, lenient_limit: 1, drained: None };

struct Fixture {
    dir: tempfile::TempDir,
    disks: Vec<Arc<Breakable>>,
    sharding: Sharding,
}

impl Fixture {
    fn new(plan: Plan) -> Fixture {
        Fixture::over(tempfile::tempdir().unwrap(), plan)
    }

    fn over(dir: tempfile::TempDir, plan: Plan) -> Fixture {
        let at = |i: usize| dir.path().join(format!("shard{i}"));
        let disk = |i: usize| {
            FileSystem::create(&at(i), ID, &FileOptions::default()).unwrap();
            let inner = FileSystem::open(&at(i), ID, &FileOptions::default()).unwrap();
            Breakable::over(inner)
        };
        let disks: Vec<Arc<Breakable>> = (0..plan.shards).map(disk).collect();
        let shard = |(i, disk): (usize, &Arc<Breakable>)| {
            let (disk, enabled) = (Arc::clone(disk), plan.drained != Some(i));
            let opener: Opener = Box::new(move |_| {
                disk.check(&disk.reads)?;
                Ok(disk.clone())
            });
            Shard::new(at(i), format!("zone{}", i % 2), enabled, Duration::from_millis(20), opener)
        };
        let shards = disks.iter().enumerate().map(shard).collect();
        let own = dir.path().join("sharding");
        Sharding::create(&own, ID).unwrap();
        let Plan { redundancy, lenient_limit, .. } = plan;
        let choice = Choice::new(Write::RoundRobin, None, None);
        let sharding =
            Sharding::open(&own, ID, shards, Options { redundancy, lenient_limit, choice }).unwrap();
        Fixture { dir, disks, sharding }
    }

    fn reopened(self, plan: Plan) -> Fixture {
        let Fixture { dir, disks, sharding } = self;
        drop((disks, sharding));
        Fixture::over(dir, plan)
    }

    fn holders(&self, sum: &Checksum) -> Vec<usize> {
        (0..self.disks.len()).filter(|i| self.disks[*i].inner.stat(sum).unwrap().is_some()).collect()
    }

    fn path(&self, i: usize, sum: &Checksum) -> std::path::PathBuf {
        let name = sum.to_string();
        self.dir.path().join(format!("shard{i}")).join(&name[..2]).join(name)
    }

    fn break_disk(&self, i: usize, broken: bool) {
        self.disks[i].reads.store(broken, Ordering::SeqCst);
        self.disks[i].writes.store(broken, Ordering::SeqCst);
        if !broken {
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Fills the blob's file on one shard with other bytes.
    fn spoil(&self, i: usize, sum: &Checksum, bytes: &[u8]) {
        std::fs::remove_file(self.path(i, sum)).unwrap();
        std::fs::write(self.path(i, sum), bytes).unwrap();
    }
}

fn laws_of(plan: Plan) {
    hold_for(|| {
        let Fixture { dir, sharding, .. } = Fixture::new(plan);
        (dir, Arc::new(sharding))
    });
}

#[test]
fn the_laws_hold() {
    laws_of(Plan { shards: 1, redundancy: 1, lenient_limit: 0, drained: None });
    laws_of(Plan { shards: 2, redundancy: 1, lenient_limit: 1, drained: None });
    laws_of(TWO_OF_THREE);
    laws_of(Plan { shards: 3, redundancy: 3, lenient_limit: 0, drained: None });
}

#[test]
fn blobs_are_spread_with_as_many_copies_as_asked_for() {
    let fixture = Fixture::new(TWO_OF_THREE);
    let mut on = [0; 3];
    for i in 0..30_u8 {
        let holders = fixture.holders(&put(&fixture.sharding, &[i; 100]));
        assert_eq!(holders.len(), 2);
        holders.into_iter().for_each(|i| on[i] += 1);
    }
    assert!(on.iter().all(|count| *count >= 10), "{on:?}");
    assert_eq!(fixture.sharding.status().owed, 0);
}

#[test]
fn a_broken_shard_is_owed_its_copies() {
    let fixture = Fixture::new(Plan { shards: 2, ..TWO_OF_THREE });
    let before = put(&fixture.sharding, b"before");
    fixture.break_disk(1, true);
    let during = put(&fixture.sharding, b"during");
    assert_eq!(fixture.holders(&during), [0]);
    assert_eq!(bytes_of(&open(&fixture.sharding, &before).unwrap()), b"before");
    assert_eq!(fixture.sharding.owed(None, 9), [during]);
    assert!(matches!(fixture.sharding.status().children[1].health, Health::Failing(_)));
    // Nothing is said to be absent that may be there.
    let absent = sum_of(b"never put");
    assert!(matches!(fixture.sharding.stat(&absent), Err(Error::Away { .. } | Error::Io { .. })));
    assert!(matches!(fixture.sharding.open(&absent, None), Err(Error::Away { .. } | Error::Io { .. })));
    let listing = fixture.sharding.list(None, &mut |_| std::ops::ControlFlow::Continue(()));
    assert!(listing.is_err(), "a listing that lacks a shard");

    let fixture = fixture.reopened(Plan { shards: 2, ..TWO_OF_THREE });
    assert_eq!(fixture.sharding.owed(None, 9), [during], "over a restart");
    assert_eq!(fixture.sharding.mend(&during).unwrap(), Mended { copied: 1, removed: 0 });
    assert_eq!(fixture.holders(&during), [0, 1]);
    assert_eq!(fixture.sharding.owed(None, 9), []);
    assert_eq!(fixture.sharding.stat(&absent).unwrap(), None);
}

#[test]
fn a_shard_that_comes_back_is_used_again() {
    let fixture = Fixture::new(Plan { shards: 2, ..TWO_OF_THREE });
    fixture.break_disk(0, true);
    assert_eq!(fixture.holders(&put(&fixture.sharding, b"without it")), [1]);
    fixture.break_disk(0, false);
    assert_eq!(fixture.holders(&put(&fixture.sharding, b"with it")), [0, 1]);
}

#[test]
fn below_the_lenient_limit_nothing_is_left() {
    let fixture = Fixture::new(Plan { lenient_limit: 0, ..TWO_OF_THREE });
    fixture.disks[1].writes.store(true, Ordering::SeqCst);
    fixture.disks[2].writes.store(true, Ordering::SeqCst);
    let old = {
        let fresh = staged(&fixture.disks[0].inner, b"there already");
        fixture.disks[0].put(std::slice::from_ref(&fresh)).unwrap();
        fresh.0
    };
    let name = fresh_name();
    let from = fixture.disks[0].inner.stage().unwrap();
    from.create(name).unwrap().write_at(b"new", 0).unwrap();
    let again = staged(&fixture.disks[0].inner, b"there already");
    let batch = [(sum_of(b"new"), Offer { from: Arc::clone(&from), name, size: 3 }), again];
    let error = fixture.sharding.put(&batch).unwrap_err();
    assert!(matches!(error, Error::TooFewCopies { made: 1, needed: 2, .. }), "{error}");
    assert_eq!(fixture.holders(&sum_of(b"new")), [0; 0]);
    assert_eq!(fixture.holders(&old), [0], "what stood before stands");
    from.open_writer(name).unwrap().write_at(b"NEW", 0).unwrap();
    assert_eq!(fixture.sharding.owed(None, 9), []);
}

#[test]
fn after_a_restart_blobs_are_asked_for_where_they_were() {
    let fixture = three_of(1);
    let contents: Vec<Vec<u8>> = (0..20).map(|i: u8| vec![i; 10]).collect();
    let sums: Vec<Checksum> = contents.iter().map(|bytes| put(&fixture.sharding, bytes)).collect();
    let fixture = fixture.reopened(Plan { shards: 3, redundancy: 1, lenient_limit: 1, drained: None });
    for sum in &sums {
        assert_eq!(fixture.sharding.plan().to_read(sum)[0], fixture.holders(sum)[0]);
    }
    // A guess, and no more.
    let holder = fixture.holders(&sums[0])[0];
    std::fs::rename(fixture.path(holder, &sums[0]), fixture.path((holder + 1) % 3, &sums[0])).unwrap();
    let fixture = fixture.reopened(Plan { shards: 3, redundancy: 1, lenient_limit: 1, drained: None });
    assert_eq!(bytes_of(&open(&fixture.sharding, &sums[0]).unwrap()), contents[0]);
}

#[test]
fn blobs_may_be_moved_between_shards_by_hand() {
    let fixture = Fixture::new(Plan { shards: 2, redundancy: 1, lenient_limit: 1, drained: None });
    let sums: Vec<Checksum> = (0..8).map(|i| put(&fixture.sharding, &[i; 50])).collect();
    for sum in &sums {
        let from = fixture.holders(sum)[0];
        let to = fixture.path(1 - from, sum);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::rename(fixture.path(from, sum), to).unwrap();
        assert_eq!(bytes_of(&open(&fixture.sharding, sum).unwrap()).len(), 50);
    }
    assert_eq!(fixture.sharding.owed(None, 99), []);
}

#[test]
fn surplus_copies_go_and_a_drained_shard_empties() {
    let all = Plan { shards: 3, redundancy: 3, lenient_limit: 0, drained: None };
    let fixture = Fixture::new(all);
    let sum = put(&fixture.sharding, b"everywhere");
    let fixture = fixture.reopened(Plan { redundancy: 2, ..all });
    let reader = open(&fixture.disks[0].inner, &sum).unwrap();
    assert_eq!(fixture.sharding.mend(&sum).unwrap(), Mended { copied: 0, removed: 1 });
    assert_eq!(fixture.holders(&sum).len(), 2);
    assert!(fixture.holders(&sum).contains(&0), "one that is in use stays");
    drop(reader);

    let drained = fixture.holders(&sum)[0];
    let fixture = fixture.reopened(Plan { redundancy: 2, drained: Some(drained), ..all });
    assert_eq!(bytes_of(&open(&fixture.sharding, &sum).unwrap()), b"everywhere");
    assert_eq!(fixture.sharding.mend(&sum).unwrap(), Mended { copied: 1, removed: 1 });
    assert!(!fixture.holders(&sum).contains(&drained));
    assert_eq!(fixture.holders(&sum).len(), 2);
    let new = put(&fixture.sharding, b"new");
    assert!(!fixture.holders(&new).contains(&drained));
}

#[test]
fn a_staging_file_on_a_shard_that_is_away_is_not_absent() {
    let fixture = Fixture::new(TWO_OF_THREE);
    let name = fresh_name();
    let dir = fixture.sharding.stage().unwrap();
    dir.create(name).unwrap();
    let i = (0..3).find(|i| Arc::ptr_eq(&fixture.disks[*i].inner.stage().unwrap(), &dir)).unwrap();
    assert!(Arc::ptr_eq(&fixture.sharding.staging(name).unwrap(), &dir));
    fixture.break_disk(i, true);
    assert!(fixture.sharding.staging(name).is_err_and(|error| !error.is_absent()));
    fixture.break_disk(i, false);
    assert!(Arc::ptr_eq(&fixture.sharding.staging(name).unwrap(), &dir));
}

#[test]
fn a_copy_is_handed_to_a_writer_beside_a_broken_shard() {
    let fixture = Fixture::new(TWO_OF_THREE);
    let sum = put(&fixture.sharding, b"old bytes");
    let holders = fixture.holders(&sum);
    fixture.break_disk((0..3).find(|i| !holders.contains(i)).unwrap(), true);
    let copy = open(&fixture.disks[holders[1]].inner, &sum).unwrap();
    let name = fresh_name();
    fixture.sharding.detach(&sum, name, copy.file_id().unwrap()).unwrap();
    fixture.sharding.staging(name).unwrap().open_writer(name).unwrap().write_at(b"NEW", 0).unwrap();
    assert_eq!(bytes_of(&copy), b"NEW bytes");
    for i in holders {
        assert_eq!(std::fs::read(fixture.path(i, &sum)).unwrap(), b"old bytes");
    }
}

/// A shard that stops taking blobs between the choice and the put has made no copy.
#[test]
fn a_shard_that_takes_nothing_has_made_no_copy() {
    let fixture = Fixture::new(Plan { shards: 1, redundancy: 1, lenient_limit: 1, drained: None });
    let (sum, offer) = staged(&fixture.sharding, b"not stored");
    let of_shard = HashMap::from([(0, vec![0])]);
    let error = Error::Io { doing: "put", path: "full".into(), source: io::Error::other("full") };
    let plan = fixture.sharding.plan();
    plan.shards[0].write_failed(&error);
    let outcomes = plan.put_on(&[(sum, offer)], &of_shard);
    assert!(outcomes[0].1.is_err());
    assert_eq!(fixture.holders(&sum), [0; 0]);
}

#[test]
fn the_nearest_zone_is_read_and_written_first() {
    let fixture = Fixture::new(Plan { shards: 4, redundancy: 2, lenient_limit: 1, drained: None });
    let zone = || Some("zone1".to_owned());
    let plan = fixture.sharding.plan();
    let shards = plan.shards.iter().map(|shard| shard.configured_as(shard)).collect();
    let choice = Choice::new(Write::FreeSpace, zone(), zone());
    let options = Options { redundancy: 2, lenient_limit: 1, choice };
    fixture.sharding.set_plan(plan::Plan::new(shards, options));
    let plan = fixture.sharding.plan();
    for i in 0..5_u8 {
        let sum = put(&fixture.sharding, &[i; 10]);
        assert_eq!(fixture.holders(&sum), [1, 3]);
        assert!([1, 3].contains(&plan.choice.to_read(&plan.shards)[0]));
    }
}

fn three_of(redundancy: usize) -> Fixture {
    Fixture::new(Plan { shards: 3, redundancy, lenient_limit: 1, drained: None })
}

fn held(bytes: &[u8]) -> Blob {
    Blob::Remote(Box::new(super::super::laws::Held(bytes.to_vec())))
}

/// More copies are wanted while a put is under way, which may be committed behind the back of a balance.
#[test]
fn a_put_that_began_with_another_plan_is_looked_at_again() {
    for copied in [false, true] {
        let fixture = three_of(1);
        let fresh = staged(&fixture.sharding, b"some bytes");
        fixture.disks.iter().for_each(|disk| disk.gate.set_closed(true));
        std::thread::scope(|scope| {
            let putting = scope.spawn(|| match copied {
                false => fixture.sharding.put(std::slice::from_ref(&fresh)),
                true => fixture.sharding.put_copy(&fresh.0, &held(b"some bytes")),
            });
            let until = Instant::now() + Duration::from_secs(20);
            while fixture.disks.iter().all(|disk| disk.gate.state.lock().1 == 0) {
                assert!(Instant::now() < until);
                std::thread::sleep(Duration::from_millis(1));
            }
            let plan = fixture.sharding.plan();
            let shards = plan.shards.iter().map(|shard| shard.configured_as(shard)).collect();
            let options = Options { redundancy: 2, lenient_limit: 1, choice: plan.choice.again() };
            fixture.sharding.set_plan(plan::Plan::new(shards, options));
            fixture.disks.iter().for_each(|disk| disk.gate.set_closed(false));
            putting.join().unwrap().unwrap();
        });
        assert_eq!(fixture.sharding.owed(None, 9), [fresh.0]);
        fixture.sharding.mend(&fresh.0).unwrap();
        assert_eq!(fixture.holders(&fresh.0).len(), 2);
    }
}

mod bad;
mod hangs;
mod live;
mod removals;
mod twins;
