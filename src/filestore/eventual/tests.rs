//! The queue: its laws, outages, altered entries, what a new daemon finds, races between workers and callers.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::super::laws::{self, bytes_of, fresh_name, hold_for, listed, open, put, staged, sum_of};
use super::super::{Call, Faulty, Filestore, FullDb, Parts, Verdict};
use super::*;

const ID: [u8; 16] = [5; 16];

fn options() -> Options {
    Options {
        threads: 3,
        dispatcher_interval: Duration::from_millis(20),
        timeout: Duration::from_secs(20),
        drain_timeout: Duration::from_secs(20),
        min_free_space: 0,
        max_queue_size: 0,
    }
}

/// A queue over a directory, with faults between.
struct Rig {
    dir: tempfile::TempDir,
    faulty: Arc<Faulty>,
    queue: Arc<Eventual>,
}

impl Rig {
    fn new(remote: bool) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        Eventual::create(&dir.path().join("queue"), ID).unwrap();
        FileSystem::create(&dir.path().join("below"), ID, &FileOptions::default()).unwrap();
        Rig::over(dir, remote, options())
    }

    fn over(dir: tempfile::TempDir, remote: bool, options: Options) -> Rig {
        let files = FileSystem::open(&dir.path().join("below"), ID, &FileOptions::default()).unwrap();
        let faulty = Arc::new(Faulty::over(Arc::new(files), dir.path().join("none"), 1, remote));
        let below = Arc::clone(&faulty) as Arc<dyn Provider>;
        let queue = Eventual::open(&dir.path().join("queue"), ID, below, options).unwrap();
        Rig { dir, faulty, queue: Arc::new(queue) }
    }

    /// As after a crash.
    fn reopened(self) -> Rig {
        let Rig { dir, queue, faulty } = self;
        queue.stop(Instant::now() + Duration::from_secs(10));
        drop((queue, faulty));
        Rig::over(dir, true, options())
    }

    fn queued(&self, sum: &Checksum) -> PathBuf {
        let name = sum.to_string();
        self.dir.path().join("queue").join(&name[..2]).join(name)
    }

    fn below(&self, sum: &Checksum) -> PathBuf {
        let name = sum.to_string();
        self.dir.path().join("below").join(&name[..2]).join(name)
    }

    fn tombstone(&self, sum: &Checksum) -> PathBuf {
        self.dir.path().join("queue/_delete").join(sum.to_string())
    }

    fn drained(&self) -> bool {
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if self.queue.queue_status().is_empty() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("{:?}", self.queue.queue_status());
    }
}

fn eventually(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn it_keeps_the_laws_without_workers_and_with_them() {
    for remote in [false, true] {
        hold_for(|| {
            let rig = Rig::new(remote);
            let provider = Arc::clone(&rig.queue) as Arc<dyn Provider>;
            (rig, provider)
        });
    }
    // Over files an upload under way would be told as something left behind.
    hold_for(|| {
        let dir = tempfile::tempdir().unwrap();
        Eventual::create(&dir.path().join("queue"), ID).unwrap();
        FullDb::create(&dir.path().join("below"), ID).unwrap();
        let below = Arc::new(FullDb::open(&dir.path().join("below"), ID).unwrap());
        let queue = Eventual::open(&dir.path().join("queue"), ID, below, options()).unwrap();
        queue.start().unwrap();
        (dir, Arc::new(queue) as Arc<dyn Provider>)
    });
}

#[test]
fn with_faults_below_what_was_answered_holds() {
    for seed in 0..12 {
        let rig = Rig::new(seed % 2 == 0);
        rig.queue.start().unwrap();
        let faults =
            "put=fail%20\nput=disconnect%20\nremove=fail%10\nremove=disconnect%20\nlist=fail%20\n*=delay:1%5";
        let set = |on: bool| {
            rig.faulty.set(if on { faults } else { "" });
            rig.queue.hurry();
        };
        laws::hold_under_faults(&*rig.queue, &set, seed);
        assert!(rig.drained());
    }
}

#[test]
fn entries_are_uploaded_and_taken_off() {
    let rig = Rig::new(true);
    let sums: Vec<Checksum> = (0..20_u8).map(|i| put(&*rig.queue, &[i; 3000])).collect();
    assert_eq!(rig.queue.queue_status().entries, 20);
    assert!(sums.iter().all(|sum| rig.queued(sum).exists() && !rig.below(sum).exists()));
    rig.queue.start().unwrap();
    rig.drained();
    eventually("the files to go", || sums.iter().all(|sum| !rig.queued(sum).exists()));
    assert!(sums.iter().all(|sum| rig.below(sum).exists()));
    assert_eq!(bytes_of(&open(&*rig.queue, &sums[3]).unwrap()), [3; 3000]);
    assert_eq!(rig.faulty.calls(Call::Put), 20);
    eventually("the end of the last claim", || rig.queue.queue_status() == QueueStatus::default());
}

#[test]
fn an_uploaded_file_is_handed_over_or_removed() {
    let rig = Rig::new(true);
    let cache = rig.dir.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let (to, last) = (cache.clone(), sum_of(b"refused"));
    rig.queue.promote_with(Arc::new(move |sum, size, from| {
        assert_eq!(from.metadata().unwrap().len(), size);
        if *sum == last {
            return Ok(false);
        }
        fs::rename(from, to.join(sum.to_string())).doing("take over", from)?;
        Ok(true)
    }));
    let taken = put(&*rig.queue, b"taken over");
    let refused = put(&*rig.queue, b"refused");
    rig.queue.start().unwrap();
    rig.drained();
    eventually("both files to go", || !rig.queued(&taken).exists() && !rig.queued(&refused).exists());
    assert!(cache.join(taken.to_string()).exists() && !cache.join(refused.to_string()).exists());
    assert!(rig.below(&taken).exists() && rig.below(&refused).exists());
}

#[test]
fn an_outage_ends_by_itself() {
    let rig = Rig::new(true);
    rig.queue.start().unwrap();
    let before = put(&*rig.queue, b"before the outage");
    rig.drained();
    rig.faulty.set("*=fail");
    let during: Vec<Checksum> = (0..5_u8).map(|i| put(&*rig.queue, &[i; 100])).collect();
    eventually("a failure", || rig.queue.queue_status().failures > 0);
    let status = rig.queue.status();
    assert!(matches!(&status.health, Health::Failing(why) if why.contains("uploads fail")), "{status:?}");
    assert_eq!(status.queue.unwrap().entries, 5);
    for (i, sum) in during.iter().enumerate() {
        assert_eq!(bytes_of(&open(&*rig.queue, sum).unwrap()), [i as u8; 100]);
    }
    assert!(
        rig.queue.remove(&during[0]).unwrap() && rig.queue.remove(&before).unwrap(),
        "it waits for nobody"
    );
    assert_eq!(rig.queue.stat(&before).unwrap(), None);
    rig.queue.stat(&sum_of(b"never put")).unwrap_err();
    rig.queue.list(None, &mut |_| ControlFlow::Continue(())).unwrap_err();
    rig.faulty.set("");
    rig.drained();
    assert!(during[1..].iter().all(|sum| rig.below(sum).exists()));
    assert!(!rig.below(&during[0]).exists() && !rig.below(&before).exists());
    assert!(!rig.tombstone(&before).exists());
    assert_eq!(rig.queue.status().health, Health::Up);
}

#[test]
fn a_new_daemon_finds_the_queue_as_it_was() {
    let rig = Rig::new(true);
    rig.queue.start().unwrap();
    let gone = put(&*rig.queue, b"removed");
    rig.drained();
    rig.faulty.set("*=fail");
    let kept = put(&*rig.queue, b"kept");
    rig.queue.remove(&gone).unwrap();
    rig.queue.force_removed(&[gone]).unwrap();
    let again = put(&*rig.queue, b"removed and put");
    rig.queue.remove(&again).unwrap();
    let again = put(&*rig.queue, b"removed and put");
    let rig = rig.reopened();
    let status = rig.queue.queue_status();
    assert_eq!((status.entries, status.bytes, status.removals), (2, 19, 1));
    assert!(open(&*rig.queue, &gone).is_none() && open(&*rig.queue, &kept).is_some());
    rig.queue.start().unwrap();
    rig.drained();
    assert!(rig.below(&kept).exists() && rig.below(&again).exists() && !rig.below(&gone).exists());
}

#[test]
fn an_entry_wins_over_its_tombstone() {
    let rig = Rig::new(true);
    let sum = put(&*rig.queue, b"both");
    fs::write(rig.tombstone(&sum), "").unwrap();
    let rig = rig.reopened();
    assert!(!rig.tombstone(&sum).exists() && rig.queue.queue_status().removals == 0);
    rig.queue.start().unwrap();
    rig.drained();
    assert!(rig.below(&sum).exists());
    assert_eq!(bytes_of(&open(&*rig.queue, &sum).unwrap()), b"both");
}

#[test]
fn what_an_operator_puts_there_is_uploaded() {
    let rig = Rig::new(true);
    rig.queue.start().unwrap();
    let sum = sum_of(b"by hand");
    fs::write(rig.queued(&sum), "by hand").unwrap();
    eventually("the upload", || rig.below(&sum).exists() && !rig.queued(&sum).exists());
}

#[test]
fn altered_bytes_are_never_passed_on() {
    let rig = Rig::new(true);
    let (lost, healed) = (put(&*rig.queue, b"lost bytes"), put(&*rig.queue, b"healed bytes"));
    fs::write(rig.below(&healed), "healed bytes").unwrap();
    for sum in [&lost, &healed] {
        fs::set_permissions(rig.queued(sum), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(rig.queued(sum), "evil bytes").unwrap();
    }
    rig.queue.start().unwrap();
    rig.drained();
    let status = rig.queue.queue_status();
    assert!(status.bad.len() == 1 && status.bad[0].starts_with(&lost.to_string()), "{status:?}");
    assert!(open(&*rig.queue, &lost).is_none() && !rig.below(&lost).exists(), "served to nobody");
    assert_eq!(bytes_of(&open(&*rig.queue, &healed).unwrap()), b"healed bytes");
    let rig = rig.reopened();
    assert_eq!(rig.queue.queue_status().bad.len(), 1);
    let aside = rig.dir.path().join("queue/_bad").join(lost.to_string());
    assert_eq!(fs::read(&aside).unwrap(), b"evil bytes");
    put(&*rig.queue, b"lost bytes");
    assert!(rig.queue.queue_status().bad.is_empty() && !aside.exists());
    rig.queue.start().unwrap();
    rig.drained();
    assert_eq!(fs::read(rig.below(&lost)).unwrap(), b"lost bytes");
}

#[test]
fn bytes_altered_on_the_way_are_sent_again() {
    let rig = Rig::new(true);
    rig.faulty.set("put=corrupt*1\nput=truncate*1");
    let sum = put(&*rig.queue, &[7; 5000]);
    rig.queue.start().unwrap();
    rig.drained();
    assert_eq!(fs::read(rig.below(&sum)).unwrap(), [7; 5000]);
    assert!(rig.queue.queue_status().bad.is_empty());
}

#[test]
fn a_file_that_is_read_stays_until_it_is_not() {
    let rig = Rig::new(true);
    let sum = put(&*rig.queue, b"read meanwhile");
    let reader = open(&*rig.queue, &sum).unwrap();
    rig.queue.start().unwrap();
    rig.drained();
    std::thread::sleep(Duration::from_millis(100));
    assert!(rig.queued(&sum).exists());
    eventually("a moment between two looks", || rig.queue.lingering() == [sum]);
    // A writer may still take it.
    let name = fresh_name();
    rig.queue.detach(&sum, name, reader.file_id().unwrap()).unwrap();
    rig.queue.staging(name).unwrap().open_writer(name).unwrap().write_at(b"READ", 0).unwrap();
    assert_eq!(bytes_of(&reader), b"READ meanwhile");
    rig.queue.staging(name).unwrap().discard(name).unwrap();
    drop(reader);
    eventually("the file to go", || !rig.queued(&sum).exists());
    assert_eq!(bytes_of(&open(&*rig.queue, &sum).unwrap()), b"read meanwhile");
    assert_eq!(rig.faulty.calls(Call::Put), 1);
}

#[test]
fn a_look_finds_what_is_below_a_queued_file_that_is_used() {
    let rig = Rig::new(true);
    let sum = put(&*rig.queue, b"read meanwhile");
    let reader = open(&*rig.queue, &sum).unwrap();
    rig.queue.start().unwrap();
    rig.drained();
    let parts = Parts { queue: Some(Arc::clone(&rig.queue)), ..Parts::default() };
    let store = Filestore::of_parts(Arc::clone(&rig.queue) as Arc<dyn Provider>, parts);
    let verify = || store.verify(&sum, 14, None, &|| true).unwrap();
    let write = |path: PathBuf| {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(path, b"read meanwhil3").unwrap();
    };
    assert!(matches!(verify(), Verdict::Good { .. }));
    write(rig.below(&sum));
    assert!(matches!(verify(), Verdict::Healed(_)));
    assert_eq!(fs::read(rig.below(&sum)).unwrap(), b"read meanwhile");
    fs::remove_file(rig.below(&sum)).unwrap();
    assert!(matches!(verify(), Verdict::Healed(_)));
    assert!(matches!(verify(), Verdict::Good { .. }));
    // The other way round: who has the file open keeps it, and is not to be trusted with it.
    let doubts = store.alterations().last_of(&sum);
    write(rig.queued(&sum));
    eventually("a moment between two looks", || {
        assert!(matches!(verify(), Verdict::Good { .. }));
        !rig.queued(&sum).exists()
    });
    assert!(store.alterations().last_of(&sum) > doubts);
    assert_eq!(bytes_of(&reader), b"read meanwhil3");
    assert_eq!(bytes_of(&open(&*rig.queue, &sum).unwrap()), b"read meanwhile");
    // Nothing was promised by it: a removal is a removal.
    assert!(store.remove_blob(&store.latch(&sum)).unwrap());
    rig.drained();
    assert!(!rig.below(&sum).exists());
    // Altered everywhere, it is told and left alone.
    let sum = put(&*rig.queue, b"both of them");
    let reader = open(&*rig.queue, &sum).unwrap();
    rig.drained();
    eventually("a moment between two looks", || rig.queue.lingering() == [sum]);
    write(rig.below(&sum));
    write(rig.queued(&sum));
    assert!(matches!(store.verify(&sum, 12, None, &|| true).unwrap(), Verdict::Altered { .. }));
    assert!(rig.below(&sum).exists() && rig.queued(&sum).exists());
    drop(reader);
}

#[test]
fn what_is_put_through_is_below_at_once() {
    let rig = Rig::new(true);
    let (sum, offer) = staged(&*rig.queue, b"needed elsewhere");
    rig.queue.put_through(&sum, &offer).unwrap();
    assert!(rig.below(&sum).exists() && !rig.queued(&sum).exists());
    // What the index does not know any more is not what was promised just now.
    rig.queue.remove(&sum).unwrap();
    assert!(rig.below(&sum).exists() && !rig.tombstone(&sum).exists());
    rig.queue.start().unwrap();
    rig.queue.put(&[(sum, offer.clone())]).unwrap();
    offer.from.discard(offer.name).unwrap();
    eventually("the seal's entry to go", || !rig.queued(&sum).exists());
    assert_eq!(rig.faulty.calls(Call::Put), 1, "uploaded once");
    let (other, offer) = staged(&*rig.queue, b"changed meanwhile");
    let wrong = sum_of(b"something else");
    assert!(matches!(rig.queue.put_through(&wrong, &offer), Err(Error::Altered(found)) if found == wrong));
    rig.faulty.set("put=fail");
    rig.queue.put_through(&other, &offer).unwrap_err();
    assert!(!rig.below(&other).exists());
}

/// A close that waits for a blob whose bytes were altered in the queue must not end well.
#[test]
fn a_close_hears_of_altered_bytes() {
    let rig = Rig::new(true);
    let sum = put(&*rig.queue, b"good bytes");
    fs::set_permissions(rig.queued(&sum), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(rig.queued(&sum), "evil bytes").unwrap();
    rig.queue.start().unwrap();
    let error = rig.queue.await_upload(&sum).unwrap_err();
    let Error::Io { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::InvalidData, "{error}");
    assert!(source.to_string().contains("altered in the upload queue"), "{source}");
    put(&*rig.queue, b"good bytes");
    rig.queue.await_upload(&sum).unwrap();
    assert!(rig.below(&sum).exists());
}

#[test]
fn a_close_does_not_wait_for_ever() {
    let mut short = options();
    short.timeout = Duration::from_millis(200);
    let Rig { dir, .. } = Rig::new(true);
    let rig = Rig::over(dir, true, short);
    let (sum, offer) = staged(&*rig.queue, b"stalls");
    rig.faulty.set("put=stall");
    let begun = Instant::now();
    let error = rig.queue.put_through(&sum, &offer).unwrap_err();
    assert!(
        matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut),
        "{error}"
    );
    rig.queue.put(&[(sum, offer)]).unwrap();
    rig.queue.await_upload(&sum).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10));
    rig.faulty.set("");
    rig.queue.start().unwrap();
    rig.drained();
    rig.queue.await_upload(&sum).unwrap();
    assert!(rig.below(&sum).exists());
}

#[test]
fn a_full_queue_is_told_in_time() {
    let mut small = options();
    small.max_queue_size = 1000;
    let Rig { dir, .. } = Rig::new(true);
    let rig = Rig::over(dir, true, small);
    assert!(!rig.queue.must_write_through());
    rig.queue.make_room(1000).unwrap();
    put(&*rig.queue, &[1; 800]);
    assert!(rig.queue.must_write_through());
    rig.queue.make_room(100).unwrap();
    assert!(rig.queue.make_room(300).unwrap_err().is_full());
    rig.queue.start().unwrap();
    rig.drained();
    eventually("room", || rig.queue.make_room(1000).is_ok());
    let mut reserve = options();
    reserve.min_free_space = u64::MAX / 4;
    let rig = Rig::over(rig.reopened().dir, true, reserve);
    assert!(rig.queue.must_write_through() && rig.queue.make_room(1).unwrap_err().is_full());
}

#[test]
fn putting_removing_and_uploading_at_once_lose_nothing() {
    let rig = Rig::new(true);
    rig.faulty.set("put=fail%10\nput=disconnect%10\nremove=disconnect%20\n*=delay:1%30");
    rig.queue.start().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3_u8 {
            let rig = &rig;
            scope.spawn(move || {
                let content = |i: u8| vec![thread * 10 + i; 500];
                let mut there = [false; 4];
                for round in 0..120_u32 {
                    let i = (round.wrapping_mul(2_654_435_761) >> 7) as usize % 4;
                    let sum = sum_of(&content(i as u8));
                    match round % 3 {
                        0 | 1 => {
                            put(&*rig.queue, &content(i as u8));
                            there[i] = true;
                        }
                        _ => {
                            rig.queue.remove(&sum).unwrap();
                            there[i] = false;
                        }
                    }
                    let found = rig.queue.open(&sum, None).unwrap().map(|blob| bytes_of(&blob));
                    assert_eq!(found, there[i].then(|| content(i as u8)));
                }
                for (i, there) in there.into_iter().enumerate() {
                    if !there {
                        put(&*rig.queue, &content(i as u8));
                    }
                }
            });
        }
    });
    rig.faulty.set("");
    rig.queue.hurry();
    rig.drained();
    eventually("the directory to be empty", || {
        listed(&rig.queue.queue.entries, None)
            .iter()
            .all(|(name, _)| name == &Checksum::EMPTY.to_string() || name.starts_with('_'))
    });
    for value in (0..3_u8).flat_map(|thread| (0..4).map(move |i| thread * 10 + i)) {
        assert_eq!(fs::read(rig.below(&sum_of(&[value; 500]))).unwrap(), [value; 500]);
    }
}
