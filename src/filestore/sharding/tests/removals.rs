//! Removals that a shard does not do now.

use super::*;

#[test]
fn what_cannot_be_removed_now_is_removed_later() {
    let fixture = three_of(1);
    let sum = put(&fixture.sharding, b"dead");
    let holder = fixture.holders(&sum)[0];
    // Read-only, then away: neither is an error, and neither is forgotten.
    fixture.disks[holder].writes.store(true, Ordering::SeqCst);
    assert!(fixture.sharding.remove(&sum).unwrap());
    fixture.sharding.force_removed(&[sum]).unwrap();
    assert!(fixture.sharding.owes_removal(&sum) && fixture.sharding.status().owed == 0);
    fixture.break_disk(holder, true);
    assert!(fixture.sharding.remove(&sum).unwrap());
    fixture.sharding.remove_left(&sum).unwrap();
    let fixture = fixture.reopened(Plan { shards: 3, redundancy: 1, lenient_limit: 1, drained: None });
    assert_eq!(fixture.sharding.owed(None, 9), [sum], "over a restart");
    assert_eq!(fixture.holders(&sum), [holder]);
    fixture.sharding.remove_left(&sum).unwrap();
    assert_eq!((fixture.holders(&sum), fixture.sharding.owed(None, 9)), (Vec::new(), Vec::new()));
}

/// What is put again is nobody's to remove.
#[test]
fn a_removal_that_is_owed_ends_with_the_next_put() {
    let fixture = three_of(1);
    for copied in [false, true] {
        let sum = put(&fixture.sharding, b"dead, and alive again");
        let holder = fixture.holders(&sum)[0];
        fixture.disks[holder].writes.store(true, Ordering::SeqCst);
        fixture.sharding.remove(&sum).unwrap();
        fixture.spoil(holder, &sum, b"DEAD, and alive again");
        match copied {
            false => {
                let fresh = staged(&fixture.sharding, b"dead, and alive again");
                // One that meets the shard which takes nothing is done again.
                while fixture.sharding.put(std::slice::from_ref(&fresh)).is_err() {}
            }
            true => fixture.sharding.put_copy(&sum, &held(b"dead, and alive again")).unwrap(),
        }
        assert!(!fixture.sharding.owes_removal(&sum));
        assert_eq!(fixture.holders(&sum).len(), 2, "what is left there is no copy");
        fixture.break_disk(holder, false);
        fixture.sharding.remove_left(&sum).unwrap();
        fixture.sharding.mend(&sum).unwrap();
        assert_eq!((fixture.holders(&sum).len(), fixture.sharding.owed(None, 9)), (1, Vec::new()));
        fixture.sharding.remove(&sum).unwrap();
    }
}

/// Whoever stores it again does not hold the latch, as a close does with durability=remote.
#[test]
fn a_removal_that_is_owed_ends_before_the_first_copy_is_stored() {
    let fixture = three_of(3);
    let sum = put(&fixture.sharding, b"dead, and alive again");
    fixture.disks[0].writes.store(true, Ordering::SeqCst);
    fixture.sharding.remove(&sum).unwrap();
    assert!(fixture.sharding.owes_removal(&sum));
    fixture.break_disk(0, false);
    fixture.sharding.put_copy(&sum, &held(b"dead, and alive again")).unwrap();
    fixture.sharding.remove_left(&sum).unwrap();
    assert_eq!(fixture.holders(&sum).len(), 3);
    // Where it is left on every shard, there is no other place for it.
    for i in 0..3 {
        fixture.disks[i].writes.store(true, Ordering::SeqCst);
    }
    fixture.sharding.remove(&sum).unwrap();
    assert!(fixture.sharding.owes_removal(&sum));
    (0..3).for_each(|i| fixture.break_disk(i, false));
    let fresh = staged(&fixture.sharding, b"dead, and alive again");
    fixture.sharding.put(std::slice::from_ref(&fresh)).unwrap();
    fixture.sharding.remove_left(&sum).unwrap();
    assert_eq!(fixture.holders(&sum).len(), 3);
}

/// Otherwise nobody would ever remove what is left: no name leads to it.
#[test]
fn a_removal_that_is_owed_outlasts_a_put_that_fails() {
    let fixture = three_of(3);
    let sum = put(&fixture.sharding, b"dead for good");
    let fresh = staged(&fixture.sharding, b"dead for good");
    let takes_writes = |i: usize, takes: bool| fixture.disks[i].writes.store(!takes, Ordering::SeqCst);
    takes_writes(0, false);
    fixture.sharding.remove(&sum).unwrap();
    assert_eq!(fixture.holders(&sum), [0]);
    (1..3).for_each(|i| takes_writes(i, false));
    fixture.sharding.put(std::slice::from_ref(&fresh)).unwrap_err();
    assert!(fixture.sharding.owes_removal(&sum));
    fixture.sharding.put_copy(&sum, &held(b"dead for good")).unwrap_err();
    assert!(fixture.sharding.owes_removal(&sum));
    fixture.sharding.put_copy(&sum, &held(b"of another one")).unwrap_err();
    assert!(fixture.sharding.owes_removal(&sum));
    (0..3).for_each(|i| fixture.break_disk(i, false));
    fixture.sharding.put_copy(&sum, &held(b"of another one")).unwrap_err();
    assert!(fixture.sharding.owes_removal(&sum));
    fixture.sharding.remove_left(&sum).unwrap();
    assert_eq!((fixture.holders(&sum), fixture.sharding.owed(None, 9)), (Vec::new(), Vec::new()));
}

#[test]
fn removals_are_still_owed_where_their_end_cannot_be_noted() {
    let fixture = three_of(1);
    let contents: Vec<Vec<u8>> = (0..40).map(|i: u8| vec![i; 10]).collect();
    let sums: Vec<Checksum> = contents.iter().map(|bytes| put(&fixture.sharding, bytes)).collect();
    (0..3).for_each(|i| fixture.disks[i].writes.store(true, Ordering::SeqCst));
    sums.iter().for_each(|sum| assert!(fixture.sharding.remove(sum).unwrap()));
    (0..3).for_each(|i| fixture.break_disk(i, false));
    let owed = || sums.iter().filter(|sum| fixture.sharding.owes_removal(sum)).count();
    assert_eq!(owed(), 40);
    let again: Vec<_> = contents.iter().map(|bytes| staged(&fixture.sharding, bytes)).collect();
    fixture.sharding.debt.fill_disk();
    fixture.sharding.put(&again).unwrap_err();
    assert_eq!(owed(), 40);
    fixture.sharding.put(&again).unwrap();
    assert_eq!(owed(), 0);
    for (sum, bytes) in sums.iter().zip(&contents) {
        fixture.sharding.remove_left(sum).unwrap();
        assert_eq!(&bytes_of(&open(&fixture.sharding, sum).unwrap()), bytes);
    }
}
