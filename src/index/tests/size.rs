//! How many bytes a file takes in the index.

use super::*;

fn vacuumed(d: &Depot) -> u64 {
    d.index.flush().unwrap();
    d.hack("VACUUM");
    sql::checkpoint_all(&d.index.writer.lock()).unwrap();
    fs::metadata(d.path()).unwrap().len()
}

#[test]
fn a_file_of_unique_content_and_a_further_copy_stay_small() {
    const FILES: u64 = 10_000;
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let now = 1_700_000_000_123_456_789;
    let empty = vacuumed(&d);
    for batch in 0..10 {
        let mut changes = Vec::new();
        for n in batch * FILES / 10..(batch + 1) * FILES / 10 {
            let (ino, creation) = d.creation(repo, &format!("{n:020}"), Kind::File, now);
            let (checksum, blake3) = (sum(n + 1), Some([n as u8; 32]));
            changes.extend([
                creation,
                Change::Content { ino, checksum, size: 4096 + n, blake3, mtime: now, ctime: now },
            ]);
        }
        d.ok(&changes);
    }
    let unique = vacuumed(&d);
    let copies = d.dir(ROOT, "copies");
    let mut changes = Vec::new();
    for n in 0..FILES {
        let copy = Inode { size: 4096 + n, checksum: Some(sum(n + 1)), ..inode(d.number(), Kind::File, now) };
        changes.push(create(copies, &format!("{n:020}"), d.number(), copy));
    }
    d.ok(&changes);
    let copied = vacuumed(&d);
    let without = {
        d.hack("DROP INDEX blob_undigested");
        vacuumed(&d)
    };
    let per_file = (unique - empty) / FILES;
    let per_copy = (copied - unique) / FILES;
    println!(
        "{per_file} bytes a file, {per_copy} a copy, {} of a file for blob_undigested",
        (copied - without) / FILES
    );
    assert!(per_file <= 350 && per_copy <= 200, "{per_file} {per_copy}");
}
