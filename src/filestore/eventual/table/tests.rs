//! Who may do what with an entry, in whatever order things come.

use super::*;

const A: Checksum = Checksum([1; 20]);
const B: Checksum = Checksum([2; 20]);

fn take(table: &Table) -> Option<Task> {
    table.take(Duration::ZERO)
}

#[test]
fn the_oldest_entry_comes_first_and_a_failed_one_later() {
    let table = Table::default();
    table.put(&B, 5);
    table.put(&A, 7);
    assert_eq!((table.bytes(), table.status().entries, table.status().bytes), (12, 2, 12));
    assert_eq!(take(&table), Some(Task::Upload(B, 0)));
    assert_eq!(take(&table), Some(Task::Upload(A, 0)));
    assert_eq!(table.status().uploading, 2);
    table.upload_ended(&B, Err("away".into()));
    assert_eq!((take(&table), table.status().last_error), (None, Some("away".into())));
    table.hurry();
    assert_eq!(take(&table), Some(Task::Upload(B, 1)));
    table.upload_ended(&B, Ok(()));
    table.upload_ended(&A, Ok(()));
    assert_eq!((take(&table), table.status().entries, table.status().in_use), (None, 0, 2));
    assert_eq!(table.claim_uploaded(&A), Some(7));
    table.end_uploaded(&A, true);
    assert_eq!((table.bytes(), table.status().last_error), (5, None));
}

#[test]
fn what_is_removed_while_it_is_uploaded_is_buried_afterwards() {
    let table = Table::default();
    table.put(&A, 1);
    assert_eq!(take(&table), Some(Task::Upload(A, 0)));
    table.removed(&A, true);
    assert!(table.is_buried(&A) && table.status().entries == 0);
    assert_eq!(take(&table), None, "the upload has not ended");
    table.upload_ended(&A, Ok(()));
    assert_eq!(table.claim_uploaded(&A), None);
    assert_eq!(take(&table), Some(Task::Bury(vec![A])));
    table.buried(&[A]);
    assert!(!table.has_tombstone(&A) && take(&table).is_none());
}

#[test]
fn what_is_put_again_while_it_is_buried_is_uploaded_afterwards() {
    for done in [true, false] {
        let table = Table::default();
        table.removed(&A, true);
        assert_eq!(take(&table), Some(Task::Bury(vec![A])));
        table.tombstone_dropped(&A);
        table.put(&A, 1);
        assert!(!table.is_buried(&A));
        assert_eq!(take(&table), None, "the removal has not ended");
        if done {
            table.buried(&[A])
        } else {
            table.not_buried(&[A], Some(A), "away")
        }
        table.hurry();
        assert_eq!(take(&table), Some(Task::Upload(A, 0)));
        assert!(!table.has_tombstone(&A));
    }
}

#[test]
fn a_blob_removed_twice_is_buried_twice() {
    let table = Table::default();
    table.removed(&A, true);
    assert_eq!(take(&table), Some(Task::Bury(vec![A])));
    table.tombstone_dropped(&A);
    table.put(&A, 1);
    table.removed(&A, true);
    assert!(table.is_buried(&A));
    table.buried(&[A]);
    assert_eq!(take(&table), Some(Task::Bury(vec![A])));
}

#[test]
fn a_removal_that_fails_holds_up_no_other() {
    let table = Table::default();
    table.removed(&A, true);
    assert_eq!(take(&table), Some(Task::Bury(vec![A])));
    table.not_buried(&[A], Some(A), "refused");
    table.removed(&B, true);
    assert_eq!(take(&table), None, "all rest");
    let due = table.take(PAUSE_MIN * 4);
    assert_eq!(due, Some(Task::Bury(vec![B])));
    table.hurry();
    assert_eq!(table.status().removals, 2);
}

#[test]
fn what_is_put_while_a_worker_finds_it_gone_waits_again() {
    let table = Table::default();
    table.put(&A, 1);
    assert_eq!(take(&table), Some(Task::Upload(A, 0)));
    table.put(&A, 1);
    table.upload_void(&A, None);
    assert_eq!(take(&table), Some(Task::Upload(A, 0)));
    table.upload_void(&A, None);
    assert_eq!((take(&table), table.status().entries), (None, 0));
}

#[test]
fn a_file_that_somebody_holds_is_not_taken_away() {
    let table = Table::default();
    table.put(&A, 1);
    let held = table.hold([A, B]);
    assert_eq!(take(&table), Some(Task::Upload(A, 0)));
    table.upload_ended(&A, Ok(()));
    assert_eq!(table.claim_uploaded(&A), None);
    assert!(!table.claim_found(&B, 1, SystemTime::now()));
    drop(held);
    assert_eq!(table.claim_uploaded(&A), Some(1));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| drop(table.hold([A])));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waits.is_finished());
        table.end_uploaded(&A, false);
        waits.join().unwrap();
    });
    assert_eq!(table.uploaded(), [A]);
}

#[test]
fn what_was_put_through_is_not_uploaded_again() {
    let table = Table::default();
    assert!(table.begin_through(&A, Instant::now()));
    assert!(!table.begin_through(&A, Instant::now()), "one at a time");
    assert!(table.was_put_through(&A));
    table.end_through(&A, true);
    table.put(&A, 1);
    assert_eq!((take(&table), table.uploaded()), (None, vec![A]));
    assert!(!table.was_put_through(&A));
}

/// A removal that was decided on before a close put the blob through takes nothing away of what that was promised.
#[test]
fn what_was_put_through_meanwhile_is_not_buried() {
    let table = Table::default();
    assert!(table.begin_through(&A, Instant::now()));
    assert!(!table.removed(&A, true), "while it passes");
    table.end_through(&A, true);
    assert!(!table.removed(&A, true), "and after that");
    assert!(!table.is_buried(&A) && !table.has_tombstone(&A) && take(&table).is_none());
    table.put(&A, 1);
    assert_eq!((take(&table), table.uploaded()), (None, vec![A]));
    assert!(table.removed(&A, true), "the seal has come");
    assert_eq!(take(&table), Some(Task::Bury(vec![A])));
}

#[test]
fn what_is_put_while_it_is_buried_is_uploaded_even_if_it_was_put_through() {
    let table = Table::default();
    table.found_tombstone(A);
    table.inner.lock().through.insert(A);
    assert_eq!(take(&table), Some(Task::Bury(vec![A])));
    assert!(!table.is_through(&A), "it is going");
    table.inner.lock().through.insert(A);
    table.tombstone_dropped(&A);
    table.put(&A, 1);
    table.buried(&[A]);
    assert_eq!(take(&table), Some(Task::Upload(A, 0)));
}

#[test]
fn who_waits_for_what_is_bad_is_told_why() {
    let table = Table::default();
    let now = Instant::now();
    table.put(&A, 1);
    assert_eq!(table.await_upload(&A, now), Awaited::TooLate);
    assert_eq!(take(&table), Some(Task::Upload(A, 0)));
    table.upload_void(&A, Some("altered".into()));
    assert_eq!(table.await_upload(&A, now), Awaited::Bad("altered".into()));
    table.put(&A, 1);
    assert_eq!(take(&table), Some(Task::Upload(A, 0)));
    table.upload_ended(&A, Ok(()));
    assert_eq!(table.await_upload(&A, now), Awaited::Stored);
}

#[test]
fn pauses_grow_to_their_limit() {
    assert!((1..40).map(|n| pause(n, REST_MAX)).all(|p| p >= PAUSE_MIN.mul_f64(0.75) && p <= REST_MAX));
    assert!(pause(10, REST_MAX) > pause(1, REST_MAX));
}
