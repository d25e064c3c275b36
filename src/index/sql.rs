//! Every SQL statement of the index, one named function each.
//!
//! Statements on tables keep to what SQLite and PostgreSQL share (`ON CONFLICT`, `RETURNING`, parameters `$1`, `$2` ... in the
//! order of their first use), so that a second driver can run them unchanged; what is SQLite's own is in `own`. A
//! function that changes rows says how many it met where the caller must know.

use rusqlite::types::Value;
use rusqlite::{CachedStatement, Connection, Params, Row, params};

use super::error::{Error, Result};
use super::{BlobRow, Cookie, Counts, Entry, Ino, Inode, Kind, Nanos, StagedRow};
use crate::change::{FIRST_INO, ROOT, StagingName};
use crate::checksum::Checksum;

pub(super) mod check;
mod own;

pub(super) use self::own::*;

fn prepare<'c>(c: &'c Connection, doing: &'static str, sql: &'static str) -> Result<CachedStatement<'c>> {
    let statement = c.prepare_cached(sql).map_err(|e| Error::of(c, doing, e))?;
    #[cfg(test)]
    super::tests::note(sql, &statement);
    Ok(statement)
}

/// Runs a statement that returns no rows; how many rows it changed.
fn run(c: &Connection, doing: &'static str, sql: &'static str, values: impl Params) -> Result<usize> {
    prepare(c, doing, sql)?.execute(values).map_err(|e| Error::of(c, doing, e))
}

/// The first row, if there is one. The statement runs to its end, as one with RETURNING must.
fn one<T>(
    c: &Connection,
    doing: &'static str,
    sql: &'static str,
    values: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>> {
    Ok(many(c, doing, sql, values, read)?.pop())
}

/// All rows.
fn many<T>(
    c: &Connection,
    doing: &'static str,
    sql: &'static str,
    values: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = prepare(c, doing, sql)?;
    let rows = statement.query_map(values, read).map_err(|e| Error::of(c, doing, e))?;
    rows.collect::<rusqlite::Result<Vec<T>>>().map_err(|e| Error::of(c, doing, e))
}

/// A number as SQL has it. Numbers beyond its range name nothing and come after everything.
fn db(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A column that is never negative.
fn unsigned(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(at)?;
    u64::try_from(number).map_err(|_out_of_range| rusqlite::Error::IntegralValueOutOfRange(at, number))
}

fn checksum(row: &Row<'_>, at: usize) -> rusqlite::Result<Checksum> {
    row.get(at).map(Checksum)
}

fn checksum_or_null(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Checksum>> {
    row.get::<_, Option<[u8; 20]>>(at).map(|sum| sum.map(Checksum))
}

fn kind(row: &Row<'_>, at: usize) -> rusqlite::Result<Kind> {
    let number = row.get(at)?;
    Kind::from_number(number).ok_or(rusqlite::Error::IntegralValueOutOfRange(at, number))
}

fn bytes(sum: &Option<Checksum>) -> Option<&[u8; 20]> {
    sum.as_ref().map(|sum| &sum.0)
}

// inode

/// The columns of `inode` (as `i`), in the order that [`inode_row`] reads.
macro_rules! inode_columns {
    () => {
        "i.ino, i.kind, i.mode, i.uid, i.gid, i.rdev, i.nlink, i.size, i.checksum, i.atime, i.mtime, i.ctime, i.btime"
    };
}

fn inode_row(row: &Row<'_>) -> rusqlite::Result<Inode> {
    Ok(Inode {
        ino: unsigned(row, 0)?,
        kind: kind(row, 1)?,
        mode: row.get(2)?,
        uid: row.get(3)?,
        gid: row.get(4)?,
        rdev: row.get(5)?,
        nlink: row.get(6)?,
        size: unsigned(row, 7)?,
        checksum: checksum_or_null(row, 8)?,
        atime: row.get(9)?,
        mtime: row.get(10)?,
        ctime: row.get(11)?,
        btime: row.get(12)?,
    })
}

pub(super) fn inode(c: &Connection, ino: Ino) -> Result<Option<Inode>> {
    const SQL: &str = concat!("SELECT ", inode_columns!(), " FROM inode i WHERE i.ino = $1");
    one(c, "read an inode", SQL, params![db(ino)], inode_row)
}

pub(super) fn insert_inode(c: &Connection, i: &Inode) -> Result<()> {
    const SQL: &str = "INSERT INTO inode \
        (ino, kind, mode, uid, gid, rdev, nlink, size, checksum, atime, mtime, ctime, btime) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
    let values = params![
        db(i.ino),
        i.kind as u8,
        i.mode,
        i.uid,
        i.gid,
        i.rdev,
        i.nlink,
        db(i.size),
        bytes(&i.checksum),
        i.atime,
        i.mtime,
        i.ctime,
        i.btime
    ];
    run(c, "make an inode", SQL, values).map(drop)
}

/// What an inode was, as far as its references matter.
pub(super) struct Ended {
    pub kind: Kind,
    pub size: u64,
    pub checksum: Option<Checksum>,
    pub ctime: Nanos,
}

/// Deletes an inode.
pub(super) fn delete_inode(c: &Connection, ino: Ino) -> Result<Option<Ended>> {
    const SQL: &str = "DELETE FROM inode WHERE ino = $1 RETURNING kind, size, checksum, ctime";
    one(c, "end an inode", SQL, params![db(ino)], |r| {
        Ok(Ended {
            kind: kind(r, 0)?,
            size: unsigned(r, 1)?,
            checksum: checksum_or_null(r, 2)?,
            ctime: r.get(3)?,
        })
    })
}

/// New times for a living directory with room for `subdirectories` more; whether there is one.
pub(super) fn touch_directory(
    c: &Connection,
    ino: Ino,
    at: Nanos,
    subdirectories: i64,
    max: u32,
) -> Result<bool> {
    const SQL: &str = "UPDATE inode SET mtime = $1, ctime = $1, nlink = nlink + $2 \
        WHERE ino = $3 AND kind = 2 AND nlink > 0 AND nlink + $2 <= $4";
    Ok(run(c, "change a directory", SQL, params![at, subdirectories, db(ino), max])? == 1)
}

/// One more name for a living inode that is no directory, within `max`; whether there is one.
pub(super) fn add_name(c: &Connection, ino: Ino, at: Nanos, max: u32) -> Result<bool> {
    const SQL: &str = "UPDATE inode SET nlink = nlink + 1, ctime = $1 \
        WHERE ino = $2 AND kind <> 2 AND nlink > 0 AND nlink < $3";
    Ok(run(c, "add a name to an inode", SQL, params![at, db(ino), max])? == 1)
}

/// One name less; the kind of the inode and the links it has left (none for a directory).
pub(super) fn drop_name(c: &Connection, ino: Ino, at: Nanos) -> Result<Option<(Kind, u32)>> {
    const SQL: &str = "UPDATE inode SET nlink = CASE WHEN kind = 2 OR nlink < 1 THEN 0 ELSE nlink - 1 END, ctime = $1 \
        WHERE ino = $2 RETURNING kind, nlink";
    one(c, "take a name from an inode", SQL, params![at, db(ino)], |r| Ok((kind(r, 0)?, r.get(1)?)))
}

/// A new ctime; the kind of the inode.
pub(super) fn touch(c: &Connection, ino: Ino, at: Nanos) -> Result<Option<Kind>> {
    const SQL: &str = "UPDATE inode SET ctime = $1 WHERE ino = $2 RETURNING kind";
    one(c, "change an inode", SQL, params![at, db(ino)], |r| kind(r, 0))
}

/// The attributes that are given; whether the inode is there.
pub(super) fn set_attributes(
    c: &Connection,
    ino: Ino,
    [mode, uid, gid]: [Option<u32>; 3],
    [atime, mtime, ctime]: [Option<Nanos>; 3],
) -> Result<bool> {
    const SQL: &str = "UPDATE inode SET mode = COALESCE($1, mode), uid = COALESCE($2, uid), gid = COALESCE($3, gid), \
        atime = COALESCE($4, atime), mtime = COALESCE($5, mtime), ctime = COALESCE($6, ctime) WHERE ino = $7";
    Ok(run(c, "change attributes", SQL, params![mode, uid, gid, atime, mtime, ctime, db(ino)])? == 1)
}

/// Kind, size and content of an inode.
pub(super) fn content(c: &Connection, ino: Ino) -> Result<Option<(Kind, u64, Option<Checksum>)>> {
    const SQL: &str = "SELECT kind, size, checksum FROM inode WHERE ino = $1";
    one(c, "read a content", SQL, params![db(ino)], |r| {
        Ok((kind(r, 0)?, unsigned(r, 1)?, checksum_or_null(r, 2)?))
    })
}

pub(super) fn set_content(
    c: &Connection,
    ino: Ino,
    sum: &Checksum,
    size: u64,
    mtime: Nanos,
    ctime: Nanos,
) -> Result<()> {
    const SQL: &str = "UPDATE inode SET checksum = $1, size = $2, mtime = $3, \
        ctime = CASE WHEN ctime > $4 THEN ctime ELSE $4 END WHERE ino = $5";
    run(c, "set a content", SQL, params![sum.0, db(size), mtime, ctime, db(ino)]).map(drop)
}

/// Inodes whose content is `sum`; reads the whole table.
pub(super) fn inodes_of(c: &Connection, sum: &Checksum) -> Result<Vec<Ino>> {
    const SQL: &str = "SELECT ino FROM inode WHERE checksum = $1 ORDER BY ino";
    many(c, "find the files of a blob", SQL, params![sum.0], |r| unsigned(r, 0))
}

// dentry

/// The inode that a name stands for.
pub(super) fn lookup(c: &Connection, parent: Ino, name: &[u8]) -> Result<Option<Inode>> {
    const SQL: &str = concat!(
        "SELECT ",
        inode_columns!(),
        " FROM dentry d JOIN inode i ON i.ino = d.ino WHERE d.parent = $1 AND d.name = $2"
    );
    one(c, "look up a name", SQL, params![db(parent), name], inode_row)
}

/// The number that a name stands for, whether or not the inode is there.
pub(super) fn dentry(c: &Connection, parent: Ino, name: &[u8]) -> Result<Option<Ino>> {
    const SQL: &str = "SELECT ino FROM dentry WHERE parent = $1 AND name = $2";
    one(c, "read a name", SQL, params![db(parent), name], |r| unsigned(r, 0))
}

/// A page of a listing, in the order of the cookies.
pub(super) fn list(c: &Connection, parent: Ino, after: Cookie, limit: usize) -> Result<Vec<Entry>> {
    const SQL: &str = concat!(
        "SELECT ",
        inode_columns!(),
        ", d.cookie, d.name FROM dentry d JOIN inode i ON i.ino = d.ino \
         WHERE d.parent = $1 AND d.cookie > $2 ORDER BY d.cookie LIMIT $3"
    );
    many(c, "list a directory", SQL, params![db(parent), db(after), db(limit as u64)], entry_row)
}

/// The same in the order of the names.
pub(super) fn list_by_name(c: &Connection, parent: Ino, after: &[u8], limit: usize) -> Result<Vec<Entry>> {
    const SQL: &str = concat!(
        "SELECT ",
        inode_columns!(),
        ", d.cookie, d.name FROM dentry d JOIN inode i ON i.ino = d.ino \
         WHERE d.parent = $1 AND d.name > $2 ORDER BY d.name LIMIT $3"
    );
    many(c, "list a directory by names", SQL, params![db(parent), after, db(limit as u64)], entry_row)
}

fn entry_row(r: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { inode: inode_row(r)?, cookie: unsigned(r, 13)?, name: r.get(14)? })
}

/// Whether a directory has entries.
pub(super) fn has_entries(c: &Connection, parent: Ino) -> Result<bool> {
    const SQL: &str = "SELECT 1 FROM dentry WHERE parent = $1 LIMIT 1";
    Ok(one(c, "look into a directory", SQL, params![db(parent)], |_| Ok(()))?.is_some())
}

/// One of the names of an inode: the one that was made first.
pub(super) fn parent(c: &Connection, ino: Ino) -> Result<Option<(Ino, Vec<u8>)>> {
    Ok(place(c, ino)?.map(|(parent, _, name)| (parent, name)))
}

/// The same with its cookie.
pub(super) fn place(c: &Connection, ino: Ino) -> Result<Option<(Ino, Cookie, Vec<u8>)>> {
    const SQL: &str = "SELECT parent, cookie, name FROM dentry WHERE ino = $1 ORDER BY cookie LIMIT 1";
    one(c, "find a name of an inode", SQL, params![db(ino)], |r| {
        Ok((unsigned(r, 0)?, unsigned(r, 1)?, r.get(2)?))
    })
}

/// All names of an inode.
pub(super) fn parents(c: &Connection, ino: Ino) -> Result<Vec<(Ino, Vec<u8>)>> {
    const SQL: &str = "SELECT parent, name FROM dentry WHERE ino = $1 ORDER BY cookie";
    many(c, "find the names of an inode", SQL, params![db(ino)], |r| Ok((unsigned(r, 0)?, r.get(1)?)))
}

/// A new name; false when it is taken.
pub(super) fn insert_dentry(
    c: &Connection,
    parent: Ino,
    name: &[u8],
    cookie: Cookie,
    ino: Ino,
) -> Result<bool> {
    const SQL: &str = "INSERT INTO dentry (cookie, parent, name, ino) VALUES ($1, $2, $3, $4) \
        ON CONFLICT (parent, name) DO NOTHING";
    Ok(run(c, "make a name", SQL, params![db(cookie), db(parent), name, db(ino)])? == 1)
}

/// A name goes; false when it does not stand for `ino`.
pub(super) fn delete_dentry(c: &Connection, parent: Ino, name: &[u8], ino: Ino) -> Result<bool> {
    const SQL: &str = "DELETE FROM dentry WHERE parent = $1 AND name = $2 AND ino = $3";
    Ok(run(c, "remove a name", SQL, params![db(parent), name, db(ino)])? == 1)
}

/// A name moves to a place that is free; false when it does not stand for `ino`.
pub(super) fn move_dentry(
    c: &Connection,
    (parent, name): (Ino, &[u8]),
    ino: Ino,
    (new_parent, new_name): (Ino, &[u8]),
    cookie: Cookie,
) -> Result<bool> {
    const SQL: &str =
        "UPDATE dentry SET parent = $1, name = $2, cookie = $3 WHERE parent = $4 AND name = $5 AND ino = $6";
    let values = params![db(new_parent), new_name, db(cookie), db(parent), name, db(ino)];
    Ok(run(c, "move a name", SQL, values)? == 1)
}

/// A name stands for another inode; false when it does not stand for `ino` before.
pub(super) fn point_dentry(c: &Connection, parent: Ino, name: &[u8], ino: Ino, new_ino: Ino) -> Result<bool> {
    const SQL: &str = "UPDATE dentry SET ino = $1 WHERE parent = $2 AND name = $3 AND ino = $4";
    Ok(run(c, "exchange a name", SQL, params![db(new_ino), db(parent), name, db(ino)])? == 1)
}

/// Directories below the root that are repositories: not the reserved ones.
pub(super) fn repositories(c: &Connection) -> Result<Vec<(Ino, Vec<u8>)>> {
    const SQL: &str = "SELECT d.ino, d.name FROM dentry d JOIN inode i ON i.ino = d.ino \
        WHERE d.parent = $1 AND i.kind = 2 AND d.ino >= $2 ORDER BY d.cookie";
    many(c, "list the repositories", SQL, params![db(ROOT), db(FIRST_INO)], |r| {
        Ok((unsigned(r, 0)?, r.get(1)?))
    })
}

// blob

fn blob_row(r: &Row<'_>) -> rusqlite::Result<BlobRow> {
    Ok(BlobRow {
        checksum: checksum(r, 0)?,
        size: unsigned(r, 1)?,
        blake3: r.get(2)?,
        sha256: r.get(3)?,
        md5: r.get(4)?,
        refs: unsigned(r, 5)?,
        since: r.get(6)?,
    })
}

pub(super) fn blob(c: &Connection, sum: &Checksum) -> Result<Option<BlobRow>> {
    const SQL: &str = "SELECT checksum, size, blake3, sha256, md5, refs, since FROM blob WHERE checksum = $1";
    one(c, "read a blob", SQL, params![sum.0], blob_row)
}

/// Blobs in order of their checksums.
pub(super) fn blobs(c: &Connection, after: Option<&Checksum>, limit: usize) -> Result<Vec<BlobRow>> {
    const SQL: &str = "SELECT checksum, size, blake3, sha256, md5, refs, since FROM blob \
        WHERE checksum > $1 ORDER BY checksum LIMIT $2";
    let after: &[u8] = after.map_or(&[], |sum| &sum.0);
    many(c, "list blobs", SQL, params![after, db(limit as u64)], blob_row)
}

/// Blobs without references since before `before`, the longest first. The blob of no bytes is never among them.
pub(super) fn unreferenced(c: &Connection, before: Nanos, limit: usize) -> Result<Vec<BlobRow>> {
    const SQL: &str = "SELECT checksum, size, blake3, sha256, md5, refs, since FROM blob \
        WHERE refs = 0 AND since < $1 AND size > 0 ORDER BY since LIMIT $2";
    many(c, "list unreferenced blobs", SQL, params![before, db(limit as u64)], blob_row)
}

pub(super) fn undigested(c: &Connection, limit: usize) -> Result<Vec<Checksum>> {
    const SQL: &str = "SELECT checksum FROM blob WHERE sha256 IS NULL ORDER BY checksum LIMIT $1";
    many(c, "list blobs without digests", SQL, params![db(limit as u64)], |r| checksum(r, 0))
}

pub(super) fn insert_blob(c: &Connection, b: &BlobRow) -> Result<()> {
    const SQL: &str = "INSERT INTO blob (checksum, size, blake3, sha256, md5, refs, since) VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let values = params![b.checksum.0, db(b.size), b.blake3, b.sha256, b.md5, db(b.refs), b.since];
    run(c, "record a blob", SQL, values).map(drop)
}

/// `refs` more references and the BLAKE3 where none was recorded; size and BLAKE3 as recorded then.
pub(super) fn add_refs(
    c: &Connection,
    sum: &Checksum,
    refs: i64,
    blake3: Option<&[u8; 32]>,
) -> Result<Option<(u64, Option<[u8; 32]>)>> {
    const SQL: &str = "UPDATE blob SET refs = refs + $1, blake3 = COALESCE(blake3, $2) WHERE checksum = $3 \
        RETURNING size, blake3";
    one(c, "refer to a blob", SQL, params![refs, blake3, sum.0], |r| Ok((unsigned(r, 0)?, r.get(1)?)))
}

/// One reference less; the last one going makes the blob unreferenced since `at`. Whether there was one.
pub(super) fn drop_ref(c: &Connection, sum: &Checksum, at: Nanos) -> Result<bool> {
    const SQL: &str = "UPDATE blob SET refs = refs - 1, since = CASE WHEN refs = 1 THEN $1 ELSE since END \
        WHERE checksum = $2 AND refs > 0";
    Ok(run(c, "release a blob", SQL, params![at, sum.0])? == 1)
}

pub(super) fn set_digests(c: &Connection, sum: &Checksum, sha256: &[u8; 32], md5: &[u8; 16]) -> Result<bool> {
    const SQL: &str = "UPDATE blob SET sha256 = $1, md5 = $2 WHERE checksum = $3";
    Ok(run(c, "record digests", SQL, params![sha256, md5, sum.0])? == 1)
}

/// Deletes a blob that nothing refers to; its size.
pub(super) fn delete_blob(c: &Connection, sum: &Checksum) -> Result<Option<u64>> {
    const SQL: &str = "DELETE FROM blob WHERE checksum = $1 AND refs = 0 RETURNING size";
    one(c, "forget a blob", SQL, params![sum.0], |r| unsigned(r, 0))
}

// symlink, xattr

pub(super) fn target(c: &Connection, ino: Ino) -> Result<Option<Vec<u8>>> {
    const SQL: &str = "SELECT target FROM symlink WHERE ino = $1";
    one(c, "read a symlink", SQL, params![db(ino)], |r| r.get(0))
}

pub(super) fn insert_target(c: &Connection, ino: Ino, target: &[u8]) -> Result<()> {
    const SQL: &str = "INSERT INTO symlink (ino, target) VALUES ($1, $2)";
    run(c, "make a symlink", SQL, params![db(ino), target]).map(drop)
}

pub(super) fn delete_target(c: &Connection, ino: Ino) -> Result<()> {
    const SQL: &str = "DELETE FROM symlink WHERE ino = $1";
    run(c, "end a symlink", SQL, params![db(ino)]).map(drop)
}

pub(super) fn xattr(c: &Connection, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
    const SQL: &str = "SELECT value FROM xattr WHERE ino = $1 AND name = $2";
    one(c, "read an extended attribute", SQL, params![db(ino), name], |r| r.get(0))
}

pub(super) fn xattr_names(c: &Connection, ino: Ino) -> Result<Vec<Vec<u8>>> {
    const SQL: &str = "SELECT name FROM xattr WHERE ino = $1 ORDER BY name";
    many(c, "list extended attributes", SQL, params![db(ino)], |r| r.get(0))
}

pub(super) fn set_xattr(c: &Connection, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
    const SQL: &str = "INSERT INTO xattr (ino, name, value) VALUES ($1, $2, $3) \
        ON CONFLICT (ino, name) DO UPDATE SET value = excluded.value";
    run(c, "set an extended attribute", SQL, params![db(ino), name, value]).map(drop)
}

pub(super) fn delete_xattr(c: &Connection, ino: Ino, name: &[u8]) -> Result<()> {
    const SQL: &str = "DELETE FROM xattr WHERE ino = $1 AND name = $2";
    run(c, "remove an extended attribute", SQL, params![db(ino), name]).map(drop)
}

pub(super) fn delete_xattrs(c: &Connection, ino: Ino) -> Result<()> {
    const SQL: &str = "DELETE FROM xattr WHERE ino = $1";
    run(c, "remove extended attributes", SQL, params![db(ino)]).map(drop)
}

// staged, orphan

fn staged_row(r: &Row<'_>) -> rusqlite::Result<StagedRow> {
    Ok(StagedRow {
        ino: unsigned(r, 0)?,
        file: StagingName(unsigned(r, 1)?),
        boot: r.get(2)?,
        mount: r.get(3)?,
        forced: r.get(4)?,
        checksum: checksum_or_null(r, 5)?,
        mtime: r.get(6)?,
        ctime: r.get(7)?,
        failed: r.get(8)?,
    })
}

pub(super) fn staged(c: &Connection) -> Result<Vec<StagedRow>> {
    const SQL: &str =
        "SELECT ino, file, boot, mount, forced, checksum, mtime, ctime, failed FROM staged ORDER BY ino";
    many(c, "list staged files", SQL, [], staged_row)
}

pub(super) fn staged_of(c: &Connection, ino: Ino) -> Result<Option<StagedRow>> {
    const SQL: &str =
        "SELECT ino, file, boot, mount, forced, checksum, mtime, ctime, failed FROM staged WHERE ino = $1";
    one(c, "read a staged file", SQL, params![db(ino)], staged_row)
}

pub(super) fn set_staged(c: &Connection, s: &StagedRow) -> Result<()> {
    const SQL: &str = "INSERT INTO staged (ino, file, boot, mount, forced, checksum, mtime, ctime, failed) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
        ON CONFLICT (ino) DO UPDATE SET file = excluded.file, boot = excluded.boot, mount = excluded.mount, \
        forced = excluded.forced, checksum = excluded.checksum, mtime = excluded.mtime, ctime = excluded.ctime, \
        failed = excluded.failed";
    let forced = i64::from(s.forced);
    let values = params![
        db(s.ino),
        db(s.file.0),
        s.boot,
        s.mount,
        forced,
        bytes(&s.checksum),
        s.mtime,
        s.ctime,
        s.failed
    ];
    run(c, "record a staged file", SQL, values).map(drop)
}

pub(super) fn delete_staged(c: &Connection, ino: Ino) -> Result<()> {
    const SQL: &str = "DELETE FROM staged WHERE ino = $1";
    run(c, "forget a staged file", SQL, params![db(ino)]).map(drop)
}

pub(super) fn orphans(c: &Connection) -> Result<Vec<Ino>> {
    const SQL: &str = "SELECT ino FROM orphan ORDER BY ino";
    many(c, "list orphans", SQL, [], |r| unsigned(r, 0))
}

pub(super) fn insert_orphan(c: &Connection, ino: Ino) -> Result<()> {
    const SQL: &str = "INSERT INTO orphan (ino) VALUES ($1)";
    run(c, "make an orphan", SQL, params![db(ino)]).map(drop)
}

/// Whether it was one.
pub(super) fn delete_orphan(c: &Connection, ino: Ino) -> Result<bool> {
    const SQL: &str = "DELETE FROM orphan WHERE ino = $1";
    Ok(run(c, "end an orphan", SQL, params![db(ino)])? == 1)
}

// repository, counter, meta

pub(super) fn settings(c: &Connection, ino: Ino) -> Result<Vec<(String, String)>> {
    const SQL: &str = "SELECT key, value FROM repository WHERE ino = $1 ORDER BY key";
    many(c, "read the settings of a repository", SQL, params![db(ino)], |r| Ok((r.get(0)?, r.get(1)?)))
}

pub(super) fn set_setting(c: &Connection, ino: Ino, key: &str, value: &str) -> Result<()> {
    const SQL: &str = "INSERT INTO repository (ino, key, value) VALUES ($1, $2, $3) \
        ON CONFLICT (ino, key) DO UPDATE SET value = excluded.value";
    run(c, "set a setting of a repository", SQL, params![db(ino), key, value]).map(drop)
}

pub(super) fn delete_setting(c: &Connection, ino: Ino, key: &str) -> Result<()> {
    const SQL: &str = "DELETE FROM repository WHERE ino = $1 AND key = $2";
    run(c, "remove a setting of a repository", SQL, params![db(ino), key]).map(drop)
}

pub(super) fn delete_settings(c: &Connection, ino: Ino) -> Result<()> {
    const SQL: &str = "DELETE FROM repository WHERE ino = $1";
    run(c, "remove the settings of a repository", SQL, params![db(ino)]).map(drop)
}

pub(super) fn counts(c: &Connection) -> Result<Option<Counts>> {
    const SQL: &str =
        "SELECT files, directories, other, logical_bytes, blobs, physical_bytes FROM counter WHERE id = 1";
    one(c, "read the counters", SQL, [], |r| {
        Ok(Counts {
            files: unsigned(r, 0)?,
            directories: unsigned(r, 1)?,
            other: unsigned(r, 2)?,
            logical_bytes: unsigned(r, 3)?,
            blobs: unsigned(r, 4)?,
            physical_bytes: unsigned(r, 5)?,
        })
    })
}

pub(super) fn set_counts(c: &Connection, n: &Counts) -> Result<()> {
    const SQL: &str = "INSERT INTO counter (id, files, directories, other, logical_bytes, blobs, physical_bytes) \
        VALUES (1, $1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET files = excluded.files, \
        directories = excluded.directories, other = excluded.other, logical_bytes = excluded.logical_bytes, \
        blobs = excluded.blobs, physical_bytes = excluded.physical_bytes";
    let values = [n.files, n.directories, n.other, n.logical_bytes, n.blobs, n.physical_bytes]
        .map(|number| Value::Integer(db(number)));
    run(c, "set the counters", SQL, values).map(drop)
}

/// Adds to each counter, in the order of its columns.
pub(super) fn add_counts(c: &Connection, by: [i64; 6]) -> Result<()> {
    const SQL: &str = "UPDATE counter SET files = files + $1, directories = directories + $2, other = other + $3, \
        logical_bytes = logical_bytes + $4, blobs = blobs + $5, physical_bytes = physical_bytes + $6 WHERE id = 1";
    run(c, "count", SQL, by).map(drop)
}

pub(super) fn meta(c: &Connection, key: &str) -> Result<Option<String>> {
    const SQL: &str = "SELECT value FROM meta WHERE key = $1";
    one(c, "read a fact about the index", SQL, params![key], |r| r.get(0))
}

pub(super) fn set_meta(c: &Connection, key: &str, value: &str) -> Result<()> {
    const SQL: &str = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    run(c, "record a fact about the index", SQL, params![key, value]).map(drop)
}
