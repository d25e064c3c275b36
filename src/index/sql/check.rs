//! Statements of the consistency check. They read whole tables; none is used while the tree is served.

use rusqlite::{Connection, params};

use super::{db, many, one, run, unsigned};
use crate::change::{FIRST_INO, Ino, ROOT};
use crate::checksum::Checksum;
use crate::index::Counts;
use crate::index::error::Result;

/// A dentry: directory, name, inode.
pub(in crate::index) type Name = (Ino, Vec<u8>, Ino);

/// What SQLite finds wrong with the file itself; empty when it is sound.
pub(in crate::index) fn damage(c: &Connection) -> Result<Vec<String>> {
    let mut lines: Vec<String> = many(c, "check the file", "PRAGMA quick_check", [], |r| r.get(0))?;
    lines.retain(|line| line != "ok");
    Ok(lines)
}

/// Names that stand for no inode.
pub(in crate::index) fn names_of_nothing(c: &Connection) -> Result<Vec<Name>> {
    const SQL: &str = "SELECT d.parent, d.name, d.ino FROM dentry d LEFT JOIN inode i ON i.ino = d.ino \
        WHERE i.ino IS NULL ORDER BY d.cookie";
    many(c, "check names", SQL, [], |r| Ok((unsigned(r, 0)?, r.get(1)?, unsigned(r, 2)?)))
}

/// Names in what is no directory.
pub(in crate::index) fn names_in_nothing(c: &Connection) -> Result<Vec<Name>> {
    const SQL: &str = "SELECT d.parent, d.name, d.ino FROM dentry d LEFT JOIN inode p ON p.ino = d.parent AND p.kind = 2 \
        WHERE p.ino IS NULL ORDER BY d.cookie";
    many(c, "check names", SQL, [], |r| Ok((unsigned(r, 0)?, r.get(1)?, unsigned(r, 2)?)))
}

/// Inodes without a name that are no orphans.
pub(in crate::index) fn unnamed(c: &Connection) -> Result<Vec<Ino>> {
    const SQL: &str = "SELECT i.ino FROM inode i WHERE i.ino <> $1 \
        AND NOT EXISTS (SELECT 1 FROM dentry d WHERE d.ino = i.ino) \
        AND NOT EXISTS (SELECT 1 FROM orphan o WHERE o.ino = i.ino) ORDER BY i.ino";
    many(c, "check inodes", SQL, params![db(ROOT)], |r| unsigned(r, 0))
}

/// Orphans that have a name or entries, or are no inodes.
pub(in crate::index) fn false_orphans(c: &Connection) -> Result<Vec<Ino>> {
    const SQL: &str = "SELECT o.ino FROM orphan o WHERE EXISTS (SELECT 1 FROM dentry d WHERE d.ino = o.ino) \
        OR EXISTS (SELECT 1 FROM dentry e WHERE e.parent = o.ino) \
        OR NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = o.ino) ORDER BY o.ino";
    many(c, "check orphans", SQL, [], |r| unsigned(r, 0))
}

/// Each directory with each directory that holds it.
pub(in crate::index) fn directories(c: &Connection) -> Result<Vec<(Ino, Ino)>> {
    const SQL: &str = "SELECT d.ino, d.parent FROM dentry d JOIN inode i ON i.ino = d.ino WHERE i.kind = 2 ORDER BY d.cookie";
    many(c, "check directories", SQL, [], |r| Ok((unsigned(r, 0)?, unsigned(r, 1)?)))
}

/// Inodes whose link count is wrong: recorded, actual.
pub(in crate::index) fn nlink_drift(c: &Connection) -> Result<Vec<(Ino, i64, i64)>> {
    const SQL: &str = "SELECT ino, nlink, actual FROM (SELECT i.ino AS ino, i.nlink AS nlink, \
        CASE WHEN i.kind <> 2 THEN (SELECT COUNT(*) FROM dentry d WHERE d.ino = i.ino) \
        WHEN i.ino <> $1 AND NOT EXISTS (SELECT 1 FROM dentry d WHERE d.ino = i.ino) THEN 0 \
        ELSE 2 + (SELECT COUNT(*) FROM dentry d JOIN inode s ON s.ino = d.ino WHERE d.parent = i.ino AND s.kind = 2) \
        END AS actual FROM inode i) AS counted WHERE nlink <> actual ORDER BY ino";
    many(c, "check link counts", SQL, params![db(ROOT)], |r| Ok((unsigned(r, 0)?, r.get(1)?, r.get(2)?)))
}

/// Blobs whose reference count is wrong: recorded, actual.
pub(in crate::index) fn refs_drift(c: &Connection) -> Result<Vec<(Checksum, i64, i64)>> {
    const SQL: &str = "SELECT b.checksum, b.refs, COALESCE(n.refs, 0) FROM blob b LEFT JOIN \
        (SELECT checksum, COUNT(*) AS refs FROM inode WHERE checksum IS NOT NULL GROUP BY checksum) AS n \
        ON n.checksum = b.checksum WHERE b.refs <> COALESCE(n.refs, 0) ORDER BY b.checksum";
    many(c, "check reference counts", SQL, [], |r| Ok((super::checksum(r, 0)?, r.get(1)?, r.get(2)?)))
}

/// Contents that have no blob: checksum, the size a file has with it.
pub(in crate::index) fn unknown_blobs(c: &Connection) -> Result<Vec<(Checksum, u64)>> {
    const SQL: &str = "SELECT i.checksum, MIN(i.size) FROM inode i LEFT JOIN blob b ON b.checksum = i.checksum \
        WHERE i.checksum IS NOT NULL AND b.checksum IS NULL GROUP BY i.checksum ORDER BY i.checksum";
    many(c, "check contents", SQL, [], |r| Ok((super::checksum(r, 0)?, unsigned(r, 1)?)))
}

/// Files whose size is not that of their blob: recorded, the blob's.
pub(in crate::index) fn size_drift(c: &Connection) -> Result<Vec<(Ino, u64, u64)>> {
    const SQL: &str = "SELECT i.ino, i.size, b.size FROM inode i JOIN blob b ON b.checksum = i.checksum \
        WHERE i.size <> b.size ORDER BY i.ino";
    many(c, "check sizes", SQL, [], |r| Ok((unsigned(r, 0)?, unsigned(r, 1)?, unsigned(r, 2)?)))
}

/// Staged rows without an inode.
pub(in crate::index) fn staged_nothing(c: &Connection) -> Result<Vec<Ino>> {
    const SQL: &str =
        "SELECT s.ino FROM staged s LEFT JOIN inode i ON i.ino = s.ino WHERE i.ino IS NULL ORDER BY s.ino";
    many(c, "check staged files", SQL, [], |r| unsigned(r, 0))
}

/// Staged rows of what is no file, or that share a staging file with another.
pub(in crate::index) fn staged_wrongly(c: &Connection) -> Result<Vec<Ino>> {
    const SQL: &str = "SELECT s.ino FROM staged s LEFT JOIN inode i ON i.ino = s.ino WHERE i.kind <> 1 \
        OR s.file IN (SELECT file FROM staged GROUP BY file HAVING COUNT(*) > 1) ORDER BY s.ino";
    many(c, "check staged files", SQL, [], |r| unsigned(r, 0))
}

/// Symlinks without a target.
pub(in crate::index) fn targetless(c: &Connection) -> Result<Vec<Ino>> {
    const SQL: &str = "SELECT i.ino FROM inode i LEFT JOIN symlink s ON s.ino = i.ino \
        WHERE i.kind = 3 AND s.ino IS NULL ORDER BY i.ino";
    many(c, "check symlinks", SQL, [], |r| unsigned(r, 0))
}

/// Inodes that are not there but have attributes, a target or settings.
pub(in crate::index) fn leftovers(c: &Connection) -> Result<Vec<Ino>> {
    const SQL: &str = "SELECT l.ino FROM (SELECT ino FROM xattr UNION SELECT ino FROM symlink UNION \
        SELECT ino FROM repository) AS l LEFT JOIN inode i ON i.ino = l.ino WHERE i.ino IS NULL ORDER BY l.ino";
    many(c, "check leftovers", SQL, [], |r| unsigned(r, 0))
}

/// The counters as they should be. The sums are taken in two halves: sizes that no disk holds must not end the check.
pub(in crate::index) fn actual_counts(c: &Connection) -> Result<Counts> {
    const INODES: &str = "SELECT COALESCE(SUM(CASE WHEN kind = 1 THEN 1 ELSE 0 END), 0), \
        COALESCE(SUM(CASE WHEN kind = 2 THEN 1 ELSE 0 END), 0), \
        COALESCE(SUM(CASE WHEN kind > 2 THEN 1 ELSE 0 END), 0), \
        COALESCE(SUM(CASE WHEN checksum IS NOT NULL THEN size >> 20 ELSE 0 END), 0), \
        COALESCE(SUM(CASE WHEN checksum IS NOT NULL THEN size & 1048575 ELSE 0 END), 0) FROM inode WHERE ino >= $1";
    const BLOBS: &str =
        "SELECT COUNT(*), COALESCE(SUM(size >> 20), 0), COALESCE(SUM(size & 1048575), 0) FROM blob";
    let whole = |high: u64, low: u64| high.saturating_mul(1 << 20).saturating_add(low);
    let inodes = one(c, "count inodes", INODES, params![db(FIRST_INO)], |r| {
        Ok([unsigned(r, 0)?, unsigned(r, 1)?, unsigned(r, 2)?, whole(unsigned(r, 3)?, unsigned(r, 4)?)])
    })?;
    let blobs =
        one(c, "count blobs", BLOBS, [], |r| Ok([unsigned(r, 0)?, whole(unsigned(r, 1)?, unsigned(r, 2)?)]))?;
    let [files, directories, other, logical_bytes] = inodes.unwrap_or_default();
    let [blobs, physical_bytes] = blobs.unwrap_or_default();
    Ok(Counts { files, directories, other, logical_bytes, blobs, physical_bytes })
}

/// The highest number in use.
pub(in crate::index) fn highest_number(c: &Connection) -> Result<u64> {
    const SQL: &str = "SELECT MAX(n) FROM (SELECT COALESCE(MAX(ino), 0) AS n FROM inode \
        UNION ALL SELECT COALESCE(MAX(cookie), 0) FROM dentry UNION ALL SELECT COALESCE(MAX(file), 0) FROM staged) AS numbers";
    Ok(one(c, "find the highest number", SQL, [], |r| unsigned(r, 0))?.unwrap_or_default())
}

pub(in crate::index) fn set_nlink(c: &Connection, ino: Ino, nlink: i64) -> Result<()> {
    const SQL: &str = "UPDATE inode SET nlink = $1 WHERE ino = $2";
    run(c, "mend a link count", SQL, params![nlink, db(ino)]).map(drop)
}

pub(in crate::index) fn set_size(c: &Connection, ino: Ino, size: u64) -> Result<()> {
    const SQL: &str = "UPDATE inode SET size = $1 WHERE ino = $2";
    run(c, "mend a size", SQL, params![db(size), db(ino)]).map(drop)
}

pub(in crate::index) fn set_refs(c: &Connection, sum: &Checksum, refs: i64) -> Result<()> {
    const SQL: &str = "UPDATE blob SET refs = $1 WHERE checksum = $2";
    run(c, "mend a reference count", SQL, params![refs, sum.0]).map(drop)
}
