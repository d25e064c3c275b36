//! The namespace of a depot: dentry -> inode -> content, in one SQL file.
//!
//! ```text
//! let index = Index::open(Path::new("depot/index.db"))?;
//! index.commit(&[Change::Remove { parent, name, ino, at }])?;   // atomic, and safe against kill -9 when it returns
//! index.sync()?;                                                // and against a power cut
//! ```
//!
//! One connection commits, behind a lock: within a transaction that stays open for many commits, each safe in the redo log
//! (`writer`, `redo`). Reads use that connection while the transaction has something that others do not see, else connections
//! of their own that wait for nobody. The index does not know where bytes are. Lock order: numbers, copier, forcing, writer;
//! `Places` and the reserve lock nothing further.

mod apply;
mod check;
mod connection;
mod error;
mod forcing;
mod numbers;
mod redo;
mod reserve;
mod schema;
mod sql;
mod tree;
mod writer;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;

pub use self::check::{Finding, Problem, check};
pub use self::error::{Error, Result};

use self::connection::{Files, LOG_PAGES_MAX, Reader, Readers, Snapshot};
use self::forcing::Forcing;
use self::numbers::Numbers;
use self::redo::{EntryRef, Redo};
use self::reserve::Reserve;
use self::tree::Places;
use self::writer::Writer;
use crate::change::{
    BlobRow, Change, Cookie, Entry, FIRST_INO, Ino, Inode, Kind, Nanos, RESERVED, ROOT, StagedRow,
};
use crate::checksum::{Checksum, Hasher, hex, unhex};
use crate::failpoint;

/// The most names of a file, and subdirectories of a directory: what a signed 32-bit `st_nlink` of an old program holds.
pub const LINK_MAX: u32 = i32::MAX as u32;

/// Number of a commit, in the order in which they were made; the first of a depot is 1.
pub type Seq = u64;

/// What a new index begins with.
#[derive(Clone, Debug)]
pub struct Init {
    /// Identity of the depot.
    pub depot_id: [u8; 16],
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Permission bits of the root directory.
    pub mode: u32,
    /// Time of everything that is there from the start.
    pub at: Nanos,
}

/// Totals. Inodes include orphans, and exclude the root and the reserved directories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symlinks, pipes, sockets, devices.
    pub other: u64,
    /// Sizes of all files that have content, each counted.
    pub logical_bytes: u64,
    /// Blobs, the one of no bytes included.
    pub blobs: u64,
    /// Sizes of the blobs, each counted once.
    pub physical_bytes: u64,
}

/// An open index. Only one can be open at a time, in all processes.
pub struct Index {
    files: Files,
    depot_id: [u8; 16],
    // Dropped before the writer: the last connection to close empties the log, and a reader cannot.
    readers: Readers,
    copier: Mutex<Connection>,
    writer: Mutex<Writer>,
    /// SQLite's write-ahead log through a descriptor of our own. SQLite keeps no locks on this file, and it stays the same file
    /// as long as a connection is open.
    log: File,
    forcing: Mutex<Forcing>,
    last: AtomicU64,
    /// The last commit that connections other than the writer see.
    flushed: AtomicU64,
    durable: AtomicU64,
    numbers: Mutex<Numbers>,
    places: Places,
    reserve: Reserve,
    /// Copying the log back into the database file has failed.
    copy_failed: AtomicBool,
    /// Makes the next force fail, for tests.
    #[cfg(test)]
    fail_force: AtomicBool,
}

impl Index {
    /// Makes a new index with the root, the reserved directories and the blob of no bytes, and its reserve; durable when it
    /// returns. An existing file is refused. It appears under its name whole, or not at all.
    pub fn create(path: &Path, init: &Init) -> Result<()> {
        let doing = "make an index";
        if path.symlink_metadata().is_ok() {
            return Err(Error::io(path, doing, io::ErrorKind::AlreadyExists.into()));
        }
        let part = Files::of(&connection::suffixed(path, ".new"));
        for old in [&part.db, &part.wal, &part.shm] {
            match fs::remove_file(old) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(old, doing, e)),
                _ => {}
            }
        }
        fill(&connection::open_new(&part.db)?, init)?;
        File::open(&part.db).and_then(|f| f.sync_all()).map_err(|e| Error::io(&part.db, doing, e))?;
        drop(Reserve::make(&Files::of(path).reserve)?);
        fs::hard_link(&part.db, path).map_err(|e| Error::io(path, doing, e))?;
        fs::remove_file(&part.db).map_err(|e| Error::io(&part.db, doing, e))?;
        connection::force_directory(path)
    }

    /// Opens an index. A foreign file, one from a later version and a damaged one are refused before anything is written; an
    /// older schema is brought up to date after a copy was kept as `index.db.v<version>`.
    pub fn open(path: &Path) -> Result<Index> {
        Index::open_with(path, schema::STEPS, schema::VERSION)
    }

    fn open_with(path: &Path, steps: &[schema::Step], known: i64) -> Result<Index> {
        let files = Files::of(path);
        let locked = Reserve::lock(&files.reserve)?;
        let mut opened = Opened::new(&files, steps, known);
        // Opening takes some space too, for the shared memory; on a full disk it is to work, so that removals can.
        if let (Err(Error::Full { .. }), Some(reserve)) = (&opened, &locked) {
            reserve.release();
            opened = Opened::new(&files, steps, known);
        }
        let Opened { writer, log, depot_id, numbers } = opened?;
        let reserve = match locked {
            Some(reserve) => reserve,
            None => Reserve::make(&files.reserve)?,
        };
        connection::force_directory(path)?;
        let last = writer.last();
        Ok(Index {
            depot_id,
            readers: Readers::new(&files),
            copier: Mutex::new(connection::open_copier(&files)?),
            writer: Mutex::new(writer),
            log,
            forcing: Mutex::default(),
            last: AtomicU64::new(last),
            flushed: AtomicU64::new(last),
            durable: AtomicU64::new(last),
            numbers: Mutex::new(numbers),
            places: Places::default(),
            reserve,
            copy_failed: AtomicBool::new(false),
            files,
            #[cfg(test)]
            fail_force: AtomicBool::new(false),
        })
    }

    /// Identity of the depot.
    pub fn depot_id(&self) -> [u8; 16] {
        self.depot_id
    }

    /// A number for an inode, a cookie or a staging file: larger than every one before, never given again, not even after a
    /// power cut.
    ///
    /// The mark below which numbers may be given out is moved ahead and forced first, once in a million numbers.
    pub fn next_number(&self) -> Result<u64> {
        let mut numbers = self.numbers.lock();
        if let Some(number) = numbers.take() {
            return Ok(number);
        }
        let mark = numbers.next_mark();
        self.log_entry(&mut self.writer.lock(), EntryRef::Numbers(mark))?;
        // A crash here leaves the mark ahead of numbers that nobody got.
        failpoint::hit("index.numbers");
        self.sync()?;
        Ok(numbers.raise(mark))
    }

    /// What a name stands for.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Inode>> {
        sql::lookup(&*self.view()?, parent, name)
    }

    /// One inode.
    pub fn inode(&self, ino: Ino) -> Result<Option<Inode>> {
        sql::inode(&*self.view()?, ino)
    }

    /// At most `limit` entries of a directory whose cookies come after `after`, in the order of the cookies; 0 begins. What
    /// stays in the directory during a listing by pages is met exactly once.
    pub fn list(&self, dir: Ino, after: Cookie, limit: usize) -> Result<Vec<Entry>> {
        sql::list(&*self.view()?, dir, after, limit)
    }

    /// At most `limit` entries of a directory whose names come after `after`, in the order of the bytes of the names.
    pub fn list_by_name(&self, dir: Ino, after: &[u8], limit: usize) -> Result<Vec<Entry>> {
        sql::list_by_name(&*self.view()?, dir, after, limit)
    }

    /// One of the names of an inode: directory and name. `None` for the root and for orphans.
    pub fn parent(&self, ino: Ino) -> Result<Option<(Ino, Vec<u8>)>> {
        sql::parent(&*self.view()?, ino)
    }

    /// The same with where a listing of the directory resumes after it.
    pub fn place(&self, ino: Ino) -> Result<Option<(Ino, Cookie, Vec<u8>)>> {
        sql::place(&*self.view()?, ino)
    }

    /// All names of an inode: directory and name.
    pub fn names_of(&self, ino: Ino) -> Result<Vec<(Ino, Vec<u8>)>> {
        sql::parents(&*self.view()?, ino)
    }

    /// Path from the root of the tree, `repo/dir/name`, by one of its names; empty for the root, `None` for orphans.
    pub fn path(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        tree::path(&*self.snapshot()?, ino)
    }

    /// What a path from the root stands for; the empty path and `/` are the root. Symlinks are not followed.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<Inode>> {
        tree::resolve(&*self.snapshot()?, path)
    }

    /// The directory below the root that holds an inode, or is it; `None` for the root and for orphans. From memory for an
    /// inode whose path was asked for before.
    pub fn repository(&self, ino: Ino) -> Result<Option<Ino>> {
        self.places.repository(ino, |ino| Ok(self.parent(ino)?.map(|(parent, _)| parent)))
    }

    /// At most `limit` paths whose content is this blob. Reads every inode.
    pub fn names(&self, sum: &Checksum, limit: usize) -> Result<Vec<Vec<u8>>> {
        // It takes long, so it must not hold commits off.
        self.flush()?;
        let c = self.readers.snapshot()?;
        let mut paths = Vec::new();
        for ino in sql::inodes_of(&c, sum)? {
            for (directory, name) in sql::parents(&c, ino)? {
                if paths.len() >= limit {
                    return Ok(paths);
                }
                paths.extend(tree::path_of(&c, directory, &name)?);
            }
        }
        Ok(paths)
    }

    /// Where a symlink points.
    pub fn target(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        sql::target(&*self.view()?, ino)
    }

    /// Value of an extended attribute.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        sql::xattr(&*self.view()?, ino, name)
    }

    /// Names of the extended attributes, in order.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        sql::xattr_names(&*self.view()?, ino)
    }

    /// What is known of a blob.
    pub fn blob(&self, sum: &Checksum) -> Result<Option<BlobRow>> {
        sql::blob(&*self.view()?, sum)
    }

    /// At most `limit` blobs after `after`, in the order of their checksums.
    pub fn blobs(&self, after: Option<&Checksum>, limit: usize) -> Result<Vec<BlobRow>> {
        sql::blobs(&*self.view()?, after, limit)
    }

    /// Every file whose newest bytes are in a staging file.
    pub fn staged(&self) -> Result<Vec<StagedRow>> {
        sql::staged(&*self.view()?)
    }

    /// The staging file of an inode.
    pub fn staged_of(&self, ino: Ino) -> Result<Option<StagedRow>> {
        sql::staged_of(&*self.view()?, ino)
    }

    /// Every inode without a name.
    pub fn orphans(&self) -> Result<Vec<Ino>> {
        sql::orphans(&*self.view()?)
    }

    /// At most `limit` blobs that have had no references since before `before`, the longest first; never the one of no
    /// bytes.
    pub fn unreferenced(&self, before: Nanos, limit: usize) -> Result<Vec<BlobRow>> {
        sql::unreferenced(&*self.view()?, before, limit)
    }

    /// At most `limit` blobs whose SHA-256 and MD5 are not recorded yet.
    pub fn undigested(&self, limit: usize) -> Result<Vec<Checksum>> {
        sql::undigested(&*self.view()?, limit)
    }

    /// Settings of a repository, by key.
    pub fn settings(&self, repository: Ino) -> Result<Vec<(String, String)>> {
        sql::settings(&*self.view()?, repository)
    }

    /// The repositories and their names, the oldest name first; without the reserved directories.
    pub fn repositories(&self) -> Result<Vec<(Ino, Vec<u8>)>> {
        sql::repositories(&*self.view()?)
    }

    /// The totals.
    pub fn counts(&self) -> Result<Counts> {
        sql::counts(&*self.view()?)?.ok_or_else(|| Error::corrupt(&self.files.db, "the counters are missing"))
    }

    /// Applies `changes` in order in one transaction; all, or none with an error. When it returns they are visible to every
    /// reader and safe against a kill of this process; `sync` makes them safe against a power cut.
    ///
    /// On a full disk, a commit of nothing but removals is tried again with the space of the reserve.
    pub fn commit(&self, changes: &[Change]) -> Result<Seq> {
        if changes.is_empty() {
            return Ok(self.last_seq());
        }
        let releases = apply::releases(changes);
        let mut writer = self.writer.lock();
        if writer.is_overfull() && !releases {
            drop(writer);
            self.make_room()?;
            writer = self.writer.lock();
        }
        // Removals go on as long as they can be logged: they are what makes room.
        if releases && writer.is_overfull() && writer.refusal().is_none() {
            self.flush_with_reserve(&mut writer);
        }
        let mut done = self.log_entry(&mut writer, EntryRef::Changes(changes));
        if matches!(done, Err(Error::Full { .. })) && releases {
            self.flush_with_reserve(&mut writer);
            done = self.log_entry(&mut writer, EntryRef::Changes(changes));
        }
        drop(writer);
        let (effects, seq) = done?;
        self.places.void(&effects.moved);
        Ok(seq)
    }

    /// Brings the file up to date with the space of the reserve. The log needs no new space once it is copied back; where even
    /// that fails, the reserve itself may do.
    fn flush_with_reserve(&self, writer: &mut Writer) {
        self.reserve.release();
        let _ = self.flush_writer(writer).and_then(|()| self.copy_back(writer, sql::checkpoint_some));
    }

    fn log_entry(&self, writer: &mut Writer, entry: EntryRef<'_>) -> Result<(apply::Effects, Seq)> {
        let effects = writer.commit(entry)?;
        let seq = writer.last();
        self.last.store(seq, Ordering::Release);
        if writer.is_flush_due()
            && let Err(error) = self.flush_writer(writer)
        {
            // The commits are safe in the redo log, which grows meanwhile.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the index file was not brought up to date"
            );
        }
        if writer.redo().is_overgrown() {
            self.shorten_redo(writer);
        }
        Ok((effects, seq))
    }

    /// Ends the writer's transaction, so that every other connection sees what was committed.
    pub fn flush(&self) -> Result<()> {
        self.flush_writer(&mut self.writer.lock())
    }

    fn flush_writer(&self, writer: &mut Writer) -> Result<()> {
        let flushed = writer.flush();
        self.flushed.store(writer.flushed(), Ordering::Release);
        flushed?;
        // Ordinarily `tidy` keeps the log short.
        if sql::log(writer)?.pages >= LOG_PAGES_MAX && !self.copy_failed.load(Ordering::Acquire) {
            let _ = self.copy_back(writer, sql::checkpoint_some);
        }
        Ok(())
    }

    /// A connection that sees every commit made so far, for one question.
    fn view(&self) -> Result<View<'_>> {
        // In this order: whoever finds them equal has seen no commit that the other connections lack.
        let flushed = self.flushed.load(Ordering::Acquire);
        if flushed == self.last_seq() {
            return Ok(View::Reader(self.readers.get()?));
        }
        self.own_view()
    }

    /// As `view`, for several questions about one state.
    fn snapshot(&self) -> Result<View<'_>> {
        let flushed = self.flushed.load(Ordering::Acquire);
        if flushed == self.last_seq() {
            return Ok(View::Snapshot(self.readers.snapshot()?));
        }
        self.own_view()
    }

    fn own_view(&self) -> Result<View<'_>> {
        let mut writer = self.writer.lock();
        writer.ready()?;
        Ok(View::Writer(writer))
    }

    /// The last commit made.
    pub fn last_seq(&self) -> Seq {
        self.last.load(Ordering::Acquire)
    }

    /// The last commit known to be on the disk.
    pub fn durable_seq(&self) -> Seq {
        self.durable.load(Ordering::Acquire)
    }

    /// Bytes of the index: database and write-ahead log.
    pub fn file_bytes(&self) -> Result<u64> {
        [&self.files.db, &self.files.wal].into_iter().try_fold(0, |sum, file| {
            let metadata = fs::metadata(file).map_err(|e| Error::io(file, "measure the index", e))?;
            Ok(sum + metadata.len())
        })
    }

    /// A copy of the index as of one moment, under way with commits; it appears at `to` whole and durable, replacing what
    /// was there.
    pub fn backup(&self, to: &Path) -> Result<()> {
        self.flush()?;
        connection::copy(&*self.readers.get()?, to)
    }

    /// Verifies the index in itself; with `repair`, mends what can be mended without losing data, in one commit. Takes time
    /// and memory in proportion to the number of inodes, and holds commits off.
    pub fn check(&self, repair: bool) -> Result<Vec<Finding>> {
        check::run(self, repair)
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the index file was not brought up to date; the next start does that");
        }
        if self.copy_failed.load(Ordering::Acquire) {
            // Closing would copy, and force what has lost pages.
            let _ = connection::quiet(&self.copier.lock(), true);
            self.writer.lock().close_quietly();
        }
    }
}

/// A connection that sees every commit.
enum View<'a> {
    /// The writer's own: others do not see everything.
    Writer(MutexGuard<'a, Writer>),
    /// One of the readers'.
    Reader(Reader<'a>),
    /// The same, within a transaction.
    Snapshot(Snapshot<'a>),
}

impl Deref for View<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            View::Writer(writer) => writer,
            View::Reader(reader) => reader,
            View::Snapshot(snapshot) => snapshot,
        }
    }
}

/// What opening a file yields.
struct Opened {
    writer: Writer,
    log: File,
    depot_id: [u8; 16],
    numbers: Numbers,
}

impl Opened {
    fn new(files: &Files, steps: &[schema::Step], known: i64) -> Result<Opened> {
        let path = &files.db;
        let c = connection::open_verified(files, steps, known)?;
        let fact = |c: &Connection, key| {
            sql::meta(c, key)?.ok_or_else(|| Error::corrupt(path, format!("no {key} in meta")))
        };
        let depot_id =
            unhex(&fact(&c, "depot")?).ok_or_else(|| Error::corrupt(path, "the depot's id is unreadable"))?;
        let usable_mark = |c: &Connection| {
            let mark = fact(c, "numbers")?;
            let usable = mark.parse().ok().filter(|mark| (FIRST_INO..numbers::MARK_MAX).contains(mark));
            usable.ok_or_else(|| Error::corrupt(path, format!("\"{mark}\" is no high-water mark of numbers")))
        };
        // Before the first write: what cannot be used stays as it is.
        usable_mark(&c)?;
        if sql::counts(&c)?.is_none() || sql::inode(&c, ROOT)?.is_none() {
            return Err(Error::corrupt(path, "no root or no counters"));
        }
        let log = File::open(&files.wal).map_err(|e| Error::io(&files.wal, "open the write-ahead log", e))?;
        let redo = Redo::open(files, depot_id)?;
        let writer = Writer::start(files, c, redo, || {
            log.sync_data().map_err(|e| Error::io(&files.wal, "force the write-ahead log", e))
        })?;
        connection::quiet(&writer, false)?;
        let numbers = Numbers::from_mark(usable_mark(&writer)?);
        Ok(Opened { writer, log, depot_id, numbers })
    }
}

/// Everything a new index has.
fn fill(c: &Connection, init: &Init) -> Result<()> {
    sql::set_page_size(c, schema::PAGE_BYTES)?;
    sql::use_log(c)?;
    sql::durable_commits(c)?;
    sql::set_application_id(c, schema::APPLICATION_ID)?;
    sql::begin_write(c)?;
    sql::script(c, "make the schema", schema::SCHEMA)?;
    sql::set_user_version(c, schema::VERSION)?;
    sql::set_meta(c, "schema", &schema::VERSION.to_string())?;
    sql::set_meta(c, "depot", &hex(&init.depot_id))?;
    sql::set_meta(c, "numbers", &FIRST_INO.to_string())?;
    let root = directory(ROOT, init, init.mode & 0o7777, 2 + RESERVED.len() as u32);
    sql::insert_inode(c, &root)?;
    for (name, ino) in RESERVED {
        sql::insert_inode(c, &directory(ino, init, 0o700, 2))?;
        sql::insert_dentry(c, ROOT, name, ino, ino)?;
    }
    sql::insert_blob(c, &empty_blob(init.at))?;
    sql::set_counts(c, &Counts { blobs: 1, ..Counts::default() })?;
    sql::commit(c)?;
    sql::checkpoint_all(c)
}

fn directory(ino: Ino, init: &Init, mode: u32, nlink: u32) -> Inode {
    let (kind, at) = (Kind::Directory, init.at);
    Inode {
        ino,
        kind,
        mode,
        uid: init.uid,
        gid: init.gid,
        rdev: 0,
        nlink,
        size: 0,
        checksum: None,
        atime: at,
        mtime: at,
        ctime: at,
        btime: at,
    }
}

/// The blob of no bytes, with all its digests.
fn empty_blob(at: Nanos) -> BlobRow {
    use md5::Digest as _;
    BlobRow {
        checksum: Checksum::EMPTY,
        size: 0,
        blake3: Some(Hasher::default().finish().blake3),
        sha256: Some(sha2::Sha256::digest(b"").into()),
        md5: Some(md5::Md5::digest(b"").into()),
        refs: 0,
        since: at,
    }
}
