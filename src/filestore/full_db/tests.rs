//! Blobs as rows: the laws, pieces, room, and what is refused.

use super::super::laws::{self, bytes_of, hold_for, put};
use super::*;

const ID: [u8; 16] = [7; 16];

fn fresh() -> (tempfile::TempDir, FullDb) {
    let dir = tempfile::tempdir().unwrap();
    FullDb::create(dir.path(), ID).unwrap();
    let db = FullDb::open(dir.path(), ID).unwrap();
    (dir, db)
}

fn rows(db: &FullDb) -> (u64, u64) {
    let count = |table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        db.db.read("count", |c| c.query_row(&sql, [], |row| row.get::<_, i64>(0))).unwrap() as u64
    };
    (count("blob"), count("part"))
}

#[test]
fn the_laws_hold() {
    hold_for(|| {
        let (dir, db) = fresh();
        (dir, Arc::new(db))
    });
}

#[test]
fn any_range_of_many_parts_is_read() {
    let (_dir, db) = fresh();
    let bytes: Vec<u8> = (0..3 * PART_BYTES + 100).map(|i| (i % 251) as u8).collect();
    let blob = laws::open(&db, &put(&db, &bytes)).unwrap();
    assert_eq!(bytes_of(&blob), bytes);
    for (offset, len) in [(0, 1), (65_535, 2), (65_536, 65_536), (100, 150_000), (196_700, 8), (196_707, 9)] {
        let mut buffer = vec![0; len];
        let wanted = len.min(bytes.len() - offset);
        assert_eq!(blob.read_at(&mut buffer, offset as u64).unwrap(), wanted, "{offset} {len}");
        assert_eq!(buffer[..wanted], bytes[offset..offset + wanted], "{offset} {len}");
    }
    assert_eq!(blob.read_at(&mut [0; 4], 3 * PART_BYTES + 100).unwrap(), 0);
}

#[test]
fn rows_go_with_the_last_reader() {
    let (_dir, db) = fresh();
    let sum = put(&db, &[1; 100_000]);
    let (one, two) = (laws::open(&db, &sum).unwrap(), laws::open(&db, &sum).unwrap());
    assert!(db.remove(&sum).unwrap());
    put(&db, &[1; 100_000]);
    assert_eq!(rows(&db), (3, 4), "the removed one, its successor and the empty blob");
    assert_eq!(bytes_of(&one), [1; 100_000]);
    drop(one);
    assert_eq!(bytes_of(&two), [1; 100_000]);
    drop(two);
    assert_eq!(rows(&db), (2, 2));
}

#[test]
fn a_crash_leaves_no_rows_of_removed_blobs() {
    let (dir, db) = fresh();
    let sum = put(&db, &[1; 100_000]);
    let reader = laws::open(&db, &sum).unwrap();
    db.remove(&sum).unwrap();
    std::mem::forget(reader);
    drop(db);
    assert_eq!(rows(&FullDb::open(dir.path(), ID).unwrap()), (1, 0));
}

#[test]
fn cut_rows_are_an_error_and_not_the_end() {
    let (_dir, db) = fresh();
    let sum = put(&db, &[1; 200_000]);
    let blob = laws::open(&db, &sum).unwrap();
    db.db.write("spoil", |tx| tx.execute("DELETE FROM part WHERE id % 16777216 = 1", [])).unwrap();
    let found = blob.read_at(&mut vec![0; 200_000], 0).unwrap_err();
    assert_eq!(found.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(blob.read_at(&mut [0; 10], 190_000).unwrap(), 10);
}

#[test]
fn another_depots_directory_is_refused() {
    let (dir, db) = fresh();
    drop(db);
    assert!(matches!(FullDb::open(dir.path(), [8; 16]), Err(Error::Foreign { .. })));
    assert!(matches!(FullDb::create(dir.path(), [8; 16]), Err(Error::Foreign { .. })));
    FullDb::create(dir.path(), ID).unwrap();
}
