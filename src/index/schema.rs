//! The schema of the index, its version, and how an older one becomes this one.
//!
//! The text below is what the file keeps, comments included: `SELECT sql FROM sqlite_schema` shows it. Times are
//! nanoseconds since 1970; names are bytes; checksums are 20 bytes of SHA-1. No foreign keys and no triggers: `apply.rs`
//! keeps the invariants written here, `check.rs` verifies them.

use std::path::Path;

use rusqlite::Connection;

use super::connection::{self, Files};
use super::error::{Error, Result};
use super::sql;
use crate::failpoint;

/// `application_id` of an index ("dpfs"), so that a foreign SQLite file is told apart by its header.
pub(super) const APPLICATION_ID: i64 = 0x6470_6673;

/// `user_version` of the schema below.
pub(super) const VERSION: i64 = 1;

/// Bytes of a page. Against SQLite's usual 4096 this halves what is written for changes all over the index, with the same size
/// of the file.
pub(super) const PAGE_BYTES: u32 = 2048;

/// Version 1.
pub(super) const SCHEMA: &str = r#"
CREATE TABLE meta (
  -- Facts about the index as a whole. Keys: 'schema' (version, as in user_version), 'depot' (id, 32 hex digits),
  -- 'numbers' (high-water mark: every inode number, cookie and staging name given out so far is below it), 'applied' (the
  -- last commit that is in this file) and 'session' (a random number of each opening); the redo log has what follows.
  key   TEXT NOT NULL PRIMARY KEY, -- one of the above
  value TEXT NOT NULL              -- numbers in decimal
) STRICT, WITHOUT ROWID;

CREATE TABLE inode (
  -- Identity of a file, directory or special file. Row 1 is the root, 2, 3 and 4 are .trash, .snapshots and
  -- lost+found, ordinary ones begin at 16. A row without a dentry (but the root) has a row in orphan.
  ino      INTEGER NOT NULL PRIMARY KEY, -- number, never reused
  kind     INTEGER NOT NULL, -- 1 file, 2 directory, 3 symlink, 4 fifo, 5 socket, 6 character and 7 block device
  mode     INTEGER NOT NULL, -- permission bits with setuid, setgid and sticky, at most 0o7777
  uid      INTEGER NOT NULL, -- owner
  gid      INTEGER NOT NULL, -- group
  rdev     INTEGER NOT NULL, -- device number of a device, else 0
  nlink    INTEGER NOT NULL, -- dentries of a file; 2 + subdirectories of a directory; 0 of an orphan
  size     INTEGER NOT NULL, -- bytes of the content (= blob.size); length of a symlink's target; else 0
  checksum BLOB,             -- content of a file (a row of blob); NULL while never sealed, and for other kinds
  atime    INTEGER NOT NULL, -- last read
  mtime    INTEGER NOT NULL, -- last change of the bytes
  ctime    INTEGER NOT NULL, -- last change of anything; of an orphan: when it lost its last name
  btime    INTEGER NOT NULL  -- creation
) STRICT;

CREATE TABLE dentry (
  -- A name in a directory. A directory has exactly one, but the root has none.
  cookie INTEGER NOT NULL PRIMARY KEY, -- where a listing resumes; given at creation and rename, never reused
  parent INTEGER NOT NULL, -- inode of the directory
  name   BLOB NOT NULL,    -- 1 to 255 bytes, no '/' and no NUL
  ino    INTEGER NOT NULL, -- what it names
  UNIQUE (parent, name)
) STRICT;

-- A page of a listing: the rowid (cookie) follows each key, so (parent, cookie) is in order without a sort.
CREATE INDEX dentry_listing ON dentry (parent);

-- The names of an inode: its path, and whether it has one.
CREATE INDEX dentry_of ON dentry (ino);

CREATE TABLE blob (
  -- What is known of one blob; the bytes are in the filestore. The row outlives the last reference until it is
  -- forgotten, which is when its bytes may go. The blob of no bytes is there from the start and stays.
  checksum BLOB NOT NULL PRIMARY KEY, -- SHA-1, its only name
  size     INTEGER NOT NULL, -- bytes
  blake3   BLOB,             -- BLAKE3, tells a duplicate from a collision; NULL: adopted and not read yet
  sha256   BLOB,             -- published SHA-256; NULL: not computed yet
  md5      BLOB,             -- published MD5; NULL: not computed yet
  refs     INTEGER NOT NULL, -- rows of inode whose checksum it is, orphans included
  since    INTEGER NOT NULL  -- when refs last became 0, or the row was made
) STRICT, WITHOUT ROWID;

-- Work for the garbage collector: empty but for what it has to do.
CREATE INDEX blob_unreferenced ON blob (since) WHERE refs = 0;

-- Work for the job that computes the published digests; empty when it is done.
CREATE INDEX blob_undigested ON blob (checksum) WHERE sha256 IS NULL;

CREATE TABLE xattr (
  -- An extended attribute as the kernel gave it, ACLs included.
  ino   INTEGER NOT NULL, -- the inode
  name  BLOB NOT NULL,    -- full name with its namespace, 'user.x'
  value BLOB NOT NULL,    -- any bytes
  PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE symlink (
  -- Where a symbolic link points; one row for each inode of that kind.
  ino    INTEGER NOT NULL PRIMARY KEY, -- the symlink
  target BLOB NOT NULL                 -- any bytes, never followed here
) STRICT;

CREATE TABLE staged (
  -- A file whose newest bytes are in a staging file; inode keeps the previous version until the seal.
  ino      INTEGER NOT NULL PRIMARY KEY, -- the file
  file     INTEGER NOT NULL, -- name of the staging file (16 hex digits there), in no other row
  boot     BLOB NOT NULL,    -- boot id of the host when it was written, 16 bytes
  mount    BLOB NOT NULL,    -- which mount of the filestore's disk, 16 bytes: device and mount number
  forced   INTEGER NOT NULL, -- 1 when its bytes and its directory entry were forced to the disk, else 0
  checksum BLOB,             -- of its bytes, when close waited for it; else NULL
  mtime    INTEGER NOT NULL, -- of the staged version, as far as a call set it
  ctime    INTEGER NOT NULL, -- of the staged version, likewise
  failed   TEXT              -- why it cannot be sealed (the path answers EIO); NULL: it can
) STRICT;

CREATE TABLE orphan (
  -- An inode without a name that is still open or remembered; it keeps its content until it is reaped.
  ino INTEGER NOT NULL PRIMARY KEY -- the inode, whose nlink is 0
) STRICT;

CREATE TABLE repository (
  -- A setting of a repository. Kept by inode, so it moves with a rename and ends with the directory.
  ino   INTEGER NOT NULL, -- directory below the root
  key   TEXT NOT NULL,    -- name of the setting
  value TEXT NOT NULL,    -- as given
  PRIMARY KEY (ino, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE counter (
  -- Totals, kept in step by every commit so that statfs and status need no scan. Inodes below 16 do not count.
  id             INTEGER NOT NULL PRIMARY KEY, -- 1: there is one row
  files          INTEGER NOT NULL, -- inodes that are files, orphans included
  directories    INTEGER NOT NULL, -- inodes that are directories, orphans included
  other          INTEGER NOT NULL, -- inodes of all other kinds, orphans included
  logical_bytes  INTEGER NOT NULL, -- sum of inode.size of files with content, orphans included
  blobs          INTEGER NOT NULL, -- rows of blob
  physical_bytes INTEGER NOT NULL  -- sum of blob.size
) STRICT;
"#;

/// The tables of [`SCHEMA`].
pub(super) const TABLES: [&str; 10] =
    ["meta", "inode", "dentry", "blob", "xattr", "symlink", "staged", "orphan", "repository", "counter"];

/// How the schema of one version becomes the next one.
pub(super) struct Step {
    /// The version it starts from; it ends at the next.
    pub from: i64,
    /// The statements.
    pub sql: &'static str,
}

/// Every step since version 1, in order.
pub(super) const STEPS: &[Step] = &[];

/// Brings an accepted index from `found` to `known`: a copy of the file is kept as `index.db.v<found>`, then all steps run in
/// one transaction. A crash or an error at any point leaves the old version, or the new one, whole.
pub(super) fn upgrade(c: &Connection, files: &Files, steps: &[Step], found: i64, known: i64) -> Result<()> {
    let chain: Vec<&Step> = steps.iter().filter(|s| s.from >= found && s.from < known).collect();
    let whole = chain.iter().map(|s| s.from).eq(found..known);
    if !whole {
        return Err(Error::corrupt(&files.db, format!("no way from schema version {found} to {known}")));
    }
    connection::copy(c, &files.kept(found))?;
    // A crash before COMMIT has returned leaves the old version whole, one after it the new one.
    failpoint::hit("upgrade.kept");
    sql::durable_commits(c)?;
    sql::begin_write(c)?;
    let stepped = run(c, &chain, known).inspect(|()| failpoint::hit("upgrade.stepped"));
    let done = stepped.and_then(|()| sql::commit(c));
    if done.is_err() && !c.is_autocommit() {
        sql::rollback(c)?;
    }
    done?;
    failpoint::hit("upgrade.committed");
    // The header in the file itself tells an older program to keep off.
    sql::checkpoint_all(c)?;
    sql::normal_commits(c)
}

fn run(c: &Connection, chain: &[&Step], known: i64) -> Result<()> {
    for step in chain {
        sql::script(c, "upgrade the schema", step.sql)?;
    }
    sql::set_meta(c, "schema", &known.to_string())?;
    sql::set_user_version(c, known)
}

/// What the header of a database file says before SQLite is let near it.
pub(super) enum Header {
    /// Not ours: no SQLite file, or another program's.
    Foreign,
    /// Ours, at this version as far as the header knows (a version in the write-ahead log is seen later).
    Ours(i64),
}

/// Reads the application id and version out of the first 100 bytes of a database file.
pub(super) fn header(bytes: &[u8; 100]) -> Header {
    let number =
        |at: usize| i64::from(u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
    if !bytes.starts_with(b"SQLite format 3\0") || number(68) != APPLICATION_ID {
        return Header::Foreign;
    }
    Header::Ours(number(60))
}

/// Verifies that a database which SQLite opened is an index of a version up to `known`; its version.
pub(super) fn accept(c: &Connection, path: &Path, known: i64) -> Result<i64> {
    if sql::application_id(c)? != APPLICATION_ID {
        return Err(Error::Foreign { path: path.to_path_buf() });
    }
    let found = sql::user_version(c)?;
    if found > known {
        return Err(Error::Newer { path: path.to_path_buf(), found, known });
    }
    if found < 1 {
        return Err(Error::corrupt(path, format!("schema version {found}")));
    }
    if sql::meta(c, "schema")?.as_deref() != Some(&found.to_string()) {
        return Err(Error::corrupt(path, "the two records of the schema version differ"));
    }
    Ok(found)
}
