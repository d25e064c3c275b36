//! Another configuration while blobs come and go.

use std::path::{Path, PathBuf};

use super::super::super::{Filestore, Layer, ShardOptions, Staged, open_chain};
use super::ID;
use crate::checksum::Checksum;
use crate::filestore::Wanted;
use crate::filestore::laws::{fresh_name, sum_of};
use crate::filestore::sharding::Write;

fn layer(dir: &Path, names: &[&str], redundancy: usize, drained: &[&str]) -> Layer {
    let shard = |name: &&str| ShardOptions {
        dir: dir.join(name),
        zone: String::new(),
        write_enabled: !drained.contains(name),
    };
    Layer::Sharding {
        dir: dir.join("sharding"),
        shards: names.iter().map(shard).collect(),
        redundancy,
        lenient_limit: 1,
        write: Write::RoundRobin,
        read_zone: None,
        write_zone: None,
        check_period: std::time::Duration::from_millis(20),
    }
}

struct Live {
    dir: tempfile::TempDir,
    store: Filestore,
    sums: Vec<(Checksum, u64)>,
}

impl Live {
    fn new(names: &[&str], redundancy: usize) -> Live {
        let dir = tempfile::tempdir().unwrap();
        let layer = layer(dir.path(), names, redundancy, &[]);
        layer.create(ID).unwrap();
        let store = open_chain(&[layer], ID).unwrap();
        Live { dir, store, sums: Vec::new() }
    }

    fn put(&mut self, text: &str) -> Checksum {
        let sum = put(&self.store, text);
        self.sums.push((sum, text.len() as u64));
        sum
    }

    fn change(&self, names: &[&str], redundancy: usize, drained: &[&str]) -> Vec<String> {
        let blobs = |after: Option<&Checksum>| {
            let mut rest = self.sums.clone();
            rest.sort();
            rest.retain(|(sum, _)| after.is_none_or(|after| sum > after));
            Some(rest)
        };
        let wanted = Wanted { blobs: &blobs, staged: &|| Some(Vec::new()) };
        self.store.change(&[layer(self.dir.path(), names, redundancy, drained)], ID, &wanted).unwrap()
    }

    fn path(&self, shard: &str, sum: &Checksum) -> PathBuf {
        let name = sum.to_string();
        self.dir.path().join(shard).join(&name[..2]).join(name)
    }

    fn holders<'a>(&self, shards: &[&'a str], sum: &Checksum) -> Vec<&'a str> {
        shards.iter().copied().filter(|shard| self.path(shard, sum).exists()).collect()
    }

    fn balance(&self) {
        for (sum, size) in &self.sums {
            if self.store.needs_mending(sum, *size) {
                self.store.mend(sum).unwrap();
            }
            assert!(!self.store.needs_mending(sum, *size), "{sum}");
        }
    }
}

fn put(store: &Filestore, text: &str) -> Checksum {
    let (name, sum) = (fresh_name(), sum_of(text.as_bytes()));
    store.stage(name).unwrap().write_at(text.as_bytes(), 0).unwrap();
    let latch = store.latch(&sum);
    store.put(&[(sum, Staged { name, size: text.len() as u64 })]).unwrap();
    drop(latch);
    store.discard(name).unwrap();
    sum
}

#[test]
fn another_redundancy_is_due_and_then_balanced() {
    let mut live = Live::new(&["a", "b", "c"], 1);
    for i in 0..12 {
        live.put(&format!("blob {i}"));
    }
    assert!(live.store.is_balance_due());
    live.balance();
    live.store.set_balanced(&live.store.arrangement().unwrap()).unwrap();
    assert!(!live.store.is_balance_due());
    assert_eq!(live.change(&["a", "b", "c"], 2, &[]), [""; 0]);
    assert!(live.store.is_balance_due());
    live.balance();
    for (sum, _) in &live.sums {
        assert_eq!(live.holders(&["a", "b", "c"], sum).len(), 2);
    }
    assert_eq!(live.change(&["a", "b", "c"], 1, &[]), [""; 0]);
    live.balance();
    for (sum, _) in &live.sums {
        assert_eq!(live.holders(&["a", "b", "c"], sum).len(), 1);
    }
}

#[test]
fn a_shard_is_added_drained_and_taken_away() {
    let mut live = Live::new(&["a", "b"], 1);
    for i in 0..20 {
        live.put(&format!("blob {i}"));
    }
    assert_eq!(live.change(&["a", "b", "c"], 1, &[]), [""; 0]);
    for i in 20..40 {
        live.put(&format!("blob {i}"));
    }
    let on_c = live.sums.iter().filter(|(sum, _)| live.path("c", sum).exists()).count();
    assert!(on_c > 3, "the new shard got {on_c} blobs");
    let refused = live.change(&["b", "c"], 1, &[]);
    assert!(refused.len() == 1 && refused[0].contains("on no other shard"), "{refused:?}");
    assert!(!live.holders(&["a"], &live.sums[0].0).is_empty() || live.path("b", &live.sums[0].0).exists());
    // It stays and gets nothing; a balance empties it, and then it goes.
    let new = live.put("while it is drained");
    assert!(!live.path("a", &new).exists());
    let blob = live.store.open_blob(&live.sums[0].0, live.sums[0].1).unwrap();
    drop(blob);
    live.balance();
    assert_eq!(live.change(&["b", "c"], 1, &[]), [""; 0]);
    for (sum, size) in &live.sums {
        assert_eq!(live.holders(&["a", "b", "c"], sum).len(), 1);
        assert_eq!(live.store.open_blob(sum, *size).unwrap().size(), *size);
    }
    std::fs::remove_dir_all(live.dir.path().join("a")).unwrap();
    assert_eq!(live.store.status().children.len(), 2);
}

#[test]
fn a_shard_with_a_staging_file_or_an_open_blob_does_not_go() {
    let mut live = Live::new(&["a", "b"], 1);
    let sum = live.put("blob");
    let holder = live.holders(&["a", "b"], &sum)[0];
    let rest: Vec<&str> = ["a", "b"].into_iter().filter(|name| *name != holder).collect();
    assert_eq!(live.change(&["a", "b"], 1, &[holder]), [""; 0]);
    let reader = live.store.open_blob(&sum, 4).unwrap();
    live.store.mend(&sum).unwrap();
    assert!(live.path(rest[0], &sum).exists() && live.path(holder, &sum).exists(), "copied, and in use");
    let refused = live.change(&rest, 1, &[]);
    assert!(refused[0].contains("in use"), "{refused:?}");
    drop(reader);
    assert!(live.store.needs_mending(&sum, 4));
    live.store.mend(&sum).unwrap();
    std::fs::write(live.dir.path().join(holder).join("_pre/00000000000000ff"), "bytes").unwrap();
    let refused = live.change(&rest, 1, &[]);
    assert!(refused[0].contains("being written"), "{refused:?}");
    std::fs::remove_file(live.dir.path().join(holder).join("_pre/00000000000000ff")).unwrap();
    assert_eq!(live.change(&rest, 1, &[]), [""; 0]);
}

#[test]
fn a_dead_shard_goes_when_nothing_is_missing_without_it() {
    let mut live = Live::new(&["a", "b", "c"], 2);
    for i in 0..9 {
        live.put(&format!("blob {i}"));
    }
    std::fs::rename(live.dir.path().join("a"), live.dir.path().join("dead")).unwrap();
    std::fs::create_dir(live.dir.path().join("a")).unwrap();
    // The old descriptor still works; with the blob of no bytes gone it is not believed.
    let dead = live.dir.path().join("dead");
    std::fs::remove_dir_all(&dead).unwrap();
    let lost = live.sums.iter().find(|(sum, _)| live.holders(&["b", "c"], sum).len() == 1).copied().unwrap();
    let size = lost.1;
    for _ in 0..3 {
        assert_eq!(live.store.open_blob(&lost.0, size).unwrap().size(), size);
    }
    // One more copy lost by hand: then it cannot be told that nothing is missing.
    let (sum, copy) = (lost.0, live.holders(&["b", "c"], &lost.0)[0]);
    let path = live.path(copy, &sum);
    std::fs::rename(&path, live.dir.path().join("kept")).unwrap();
    let refused = live.change(&["b", "c"], 2, &[]);
    assert!(refused[0].contains("1 blobs that files have are on no other shard"), "{refused:?}");
    std::fs::rename(live.dir.path().join("kept"), &path).unwrap();
    assert_eq!(live.change(&["b", "c"], 2, &[]), [""; 0]);
    live.balance();
    for (sum, _) in &live.sums {
        assert_eq!(live.holders(&["b", "c"], sum), ["b", "c"]);
    }
    // A new disk in the place of the old one is a new shard.
    assert_eq!(live.change(&["a", "b", "c"], 2, &[]), [""; 0]);
    assert!(live.dir.path().join("a/.depotfs").exists());
}

#[test]
fn nothing_is_lost_while_shards_come_and_go() {
    let live = Live::new(&["a", "b"], 1);
    let sums: Vec<Checksum> = std::thread::scope(|scope| {
        let store = &live.store;
        let writers: Vec<_> = (0..3)
            .map(|w| {
                scope.spawn(move || {
                    (0..40).map(|i| put(store, &format!("writer {w} blob {i}"))).collect::<Vec<_>>()
                })
            })
            .collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            assert_eq!(live.change(&["a", "b", "c"], 1, &[]), [""; 0]);
            // It may have blobs, or files that become some, and may be gone then as well.
            live.change(&["b", "c"], 2, &[]);
            live.change(&["a", "c"], 1, &["a"]);
        }
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    live.change(&["a", "b", "c"], 1, &[]);
    for sum in sums {
        assert!(live.store.stat_blob(&sum).unwrap().is_some(), "{sum}");
    }
}

#[test]
fn two_shards_that_were_exchanged_are_as_good_as_before() {
    let mut live = Live::new(&["a", "b"], 1);
    for i in 0..10 {
        live.put(&format!("blob {i}"));
    }
    let Live { dir, store, sums } = live;
    drop(store);
    let at = |name: &str| dir.path().join(name);
    for (from, to) in [("a", "x"), ("b", "a"), ("x", "b")] {
        std::fs::rename(at(from), at(to)).unwrap();
    }
    let store = open_chain(&[layer(dir.path(), &["a", "b"], 1, &[])], ID).unwrap();
    for (sum, size) in &sums {
        assert_eq!(store.open_blob(sum, *size).unwrap().size(), *size);
        assert!(!store.needs_mending(sum, *size));
    }
}

#[test]
fn a_shard_whose_directory_is_another_one_is_opened_anew() {
    let mut live = Live::new(&["a", "b"], 2);
    let sum = live.put("blob");
    let at = |name: &str| live.dir.path().join(name);
    // As after a disk was taken away and is mounted again: the old directory is empty, and the name leads to another one.
    std::fs::rename(at("a"), at("old")).unwrap();
    let copied = std::process::Command::new("cp").arg("-a").arg(at("old")).arg(at("a")).status().unwrap();
    assert!(copied.success());
    std::fs::remove_dir_all(at("old")).unwrap();
    let is_up = || {
        live.store.stat_blob(&sum).unwrap();
        let health = live.store.status().children[0].health.clone();
        (health == crate::filestore::Health::Up, live.store.needs_mending(&sum, 4))
    };
    for _ in 0..200 {
        if is_up() == (true, false) {
            return;
        }
        // Reads that miss it there find out that it is gone.
        let _ = live.store.open_blob(&sum, 4);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("{:?}", live.store.status());
}
