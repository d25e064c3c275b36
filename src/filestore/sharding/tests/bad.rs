//! Copies that are lost, cut or altered: not passed on, and replaced.

use super::*;

#[test]
fn bad_copies_are_not_passed_on_and_are_replaced() {
    let fixture = Fixture::new(TWO_OF_THREE);
    let sum = put(&fixture.sharding, b"good bytes");
    let holders = fixture.holders(&sum);
    // Cut: the other one is read, and the bad one replaced.
    fixture.spoil(holders[0], &sum, b"good");
    for _ in 0..6 {
        let blob = fixture.sharding.open(&sum, Some(10)).unwrap().unwrap();
        assert_eq!(bytes_of(&blob), b"good bytes");
    }
    assert_eq!(fixture.sharding.owed(None, 9), [sum]);
    assert_eq!(fixture.sharding.mend(&sum).unwrap(), Mended { copied: 1, removed: 0 });
    assert_eq!(std::fs::read(fixture.path(holders[0], &sum)).unwrap(), b"good bytes");
    // Lost on one shard and altered on the other: nothing to copy from.
    std::fs::remove_file(fixture.path(holders[0], &sum)).unwrap();
    fixture.spoil(holders[1], &sum, b"evil bytes");
    assert!(matches!(fixture.sharding.mend(&sum), Err(Error::Altered(found)) if found == sum));
    assert_eq!(fixture.holders(&sum), [holders[1]]);
}

#[test]
fn a_lost_copy_is_noticed_by_reading() {
    let fixture = Fixture::new(Plan { shards: 2, ..TWO_OF_THREE });
    let sum = put(&fixture.sharding, b"some bytes");
    std::fs::remove_file(fixture.path(1, &sum)).unwrap();
    for _ in 0..2 {
        assert_eq!(bytes_of(&open(&fixture.sharding, &sum).unwrap()), b"some bytes");
    }
    assert_eq!(fixture.sharding.owed(None, 9), [sum]);
    fixture.sharding.mend(&sum).unwrap();
    assert_eq!(fixture.holders(&sum), [0, 1]);
}

/// Of two copies of the right size one has rotted: it is replaced, and never the one that is kept.
#[test]
fn a_surplus_is_removed_only_from_good_copies() {
    let all = Plan { shards: 3, redundancy: 3, lenient_limit: 0, drained: None };
    for round in 0..3 {
        let fixture = Fixture::new(all);
        let sum = put(&fixture.sharding, b"good bytes");
        fixture.spoil(round, &sum, b"evil bytes");
        fixture.spoil((round + 1) % 3, &sum, b"evil bytes");
        let fixture = fixture.reopened(Plan { redundancy: 1, lenient_limit: 1, ..all });
        fixture.sharding.mend(&sum).unwrap();
        for i in fixture.holders(&sum) {
            assert_eq!(std::fs::read(fixture.path(i, &sum)).unwrap(), b"good bytes");
        }
        assert_eq!(fixture.holders(&sum).len(), 1);
    }
}

/// What is put in the place of a copy that is bad: not beside it.
#[test]
fn a_copy_that_is_put_again_replaces_those_that_stand() {
    for _ in 0..3 {
        let fixture = three_of(1);
        let sum = put(&fixture.sharding, b"good bytes");
        let holder = fixture.holders(&sum)[0];
        for _ in 0..3 {
            fixture.spoil(holder, &sum, b"evil bytes");
            fixture.sharding.put_copy(&sum, &held(b"good bytes")).unwrap();
            assert_eq!(fixture.holders(&sum), [holder]);
            assert_eq!(std::fs::read(fixture.path(holder, &sum)).unwrap(), b"good bytes");
        }
        assert_eq!(fixture.sharding.owed(None, 9), []);
        // Where it cannot be replaced it is owed, and is no copy for long.
        fixture.spoil(holder, &sum, b"evil bytes");
        fixture.disks[holder].writes.store(true, Ordering::SeqCst);
        fixture.sharding.put_copy(&sum, &held(b"good bytes")).unwrap();
        assert_eq!(fixture.sharding.owed(None, 9), [sum]);
        fixture.break_disk(holder, false);
        fixture.sharding.mend(&sum).unwrap();
        let left = fixture.holders(&sum);
        assert_eq!((left.len(), fixture.sharding.owed(None, 9)), (1, Vec::new()));
        assert_eq!(std::fs::read(fixture.path(left[0], &sum)).unwrap(), b"good bytes");
    }
}

/// Something else in the place of a blob's file, that cannot be opened as one.
#[test]
fn one_odd_file_takes_no_shard_away() {
    let fixture = three_of(1);
    let sums: Vec<Checksum> = (0..9).map(|i| put(&fixture.sharding, &[i; 50])).collect();
    let holder = fixture.holders(&sums[0])[0];
    std::fs::remove_file(fixture.path(holder, &sums[0])).unwrap();
    std::os::unix::fs::symlink("/dev/null", fixture.path(holder, &sums[0])).unwrap();
    for _ in 0..3 {
        assert!(matches!(fixture.sharding.open(&sums[0], None), Err(Error::Io { .. })));
        assert_eq!(fixture.sharding.status().health, Health::Up);
        sums[1..]
            .iter()
            .for_each(|sum| assert_eq!(bytes_of(&open(&fixture.sharding, sum).unwrap()).len(), 50));
    }
}

/// The same where there is another copy, which is read, and of which a new one is made.
#[test]
fn one_odd_file_is_made_anew() {
    let fixture = Fixture::new(Plan { shards: 2, ..TWO_OF_THREE });
    let sum = put(&fixture.sharding, b"good bytes");
    std::fs::remove_file(fixture.path(0, &sum)).unwrap();
    std::fs::create_dir(fixture.path(0, &sum)).unwrap();
    for _ in 0..2 {
        assert_eq!(bytes_of(&open(&fixture.sharding, &sum).unwrap()), b"good bytes");
    }
    assert_eq!(fixture.sharding.owed(None, 9), [sum]);
    assert_eq!(fixture.sharding.status().health, Health::Up);
}
