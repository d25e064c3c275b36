//! SQLite's calls on the files of an index, with a failpoint before each write and around each sync; debug builds only.
//!
//! A VFS of its own that is SQLite's `unix` one in everything but the opening of files: a write-ahead log and a database
//! get a table of methods in which `xWrite` and `xSync` pass a failpoint first. All others, shared memory and locks
//! included, are the very functions of `unix`, on the very file objects of `unix`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::sync::OnceLock;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods, sqlite3_vfs};

use crate::failpoint;

/// Name of the VFS, to be opened with.
pub const NAME: &CStr = c"depotfs-failpoints";

/// SQLite's own VFS, which lives as long as the process.
struct Unix(*mut sqlite3_vfs);

// SAFETY: SQLite allows its VFS objects to be used by any thread; nothing is written through the pointer.
unsafe impl Send for Unix {}
// SAFETY: as above.
unsafe impl Sync for Unix {}

/// The methods that `unix` gives to one kind of file (a log takes no locks, so it has others than a database), and ours.
struct Methods {
    unix: sqlite3_io_methods,
    ours: sqlite3_io_methods,
}

static UNIX: OnceLock<Option<Unix>> = OnceLock::new();
static LOG: OnceLock<Methods> = OnceLock::new();
static DATABASE: OnceLock<Methods> = OnceLock::new();

/// Makes the VFS known to SQLite, once; whether it is.
pub fn register() -> bool {
    UNIX.get_or_init(|| {
        // SAFETY: a search by a constant name; SQLite initialises itself first.
        let unix = unsafe { ffi::sqlite3_vfs_find(c"unix".as_ptr()) };
        // SAFETY: SQLite's VFS objects stay valid and unchanged as long as they are registered, which `unix` always is.
        let copy = sqlite3_vfs { zName: NAME.as_ptr(), xOpen: Some(open), ..*unsafe { unix.as_ref() }? };
        let ours = Box::leak(Box::new(copy));
        // SAFETY: `ours` is never freed, and nobody else changes it; its methods do not look at the object they come by.
        let done = unsafe { ffi::sqlite3_vfs_register(ours, 0) };
        (done == ffi::SQLITE_OK).then_some(Unix(unix))
    })
    .is_some()
}

/// Opens a file as `unix` does, and gives it the methods below if it is one of the index.
unsafe extern "C" fn open(
    _vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let Some(Some(unix)) = UNIX.get() else { return ffi::SQLITE_CANTOPEN };
    // SAFETY: the caller's arguments go on to the function that they are meant for, with its own VFS object; the file
    // object is as large as `unix` asks for, as our `szOsFile` is its one.
    unsafe {
        let Some(unix_open) = (*unix.0).xOpen else { return ffi::SQLITE_CANTOPEN };
        let done = unix_open(unix.0, name, file, flags, out_flags);
        if let Some(unix) = (*file).pMethods.as_ref().filter(|_| done == ffi::SQLITE_OK) {
            let unix = *unix;
            let log = || sqlite3_io_methods { xWrite: Some(write_log), xSync: Some(sync_log), ..unix };
            let database =
                || sqlite3_io_methods { xWrite: Some(write_database), xSync: Some(sync_database), ..unix };
            if flags & ffi::SQLITE_OPEN_WAL != 0 {
                (*file).pMethods = &LOG.get_or_init(|| Methods { unix, ours: log() }).ours;
            } else if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 {
                (*file).pMethods = &DATABASE.get_or_init(|| Methods { unix, ours: database() }).ours;
            }
        }
        done
    }
}

/// What `unix` answers to such a failure of the system.
fn code(error: &io::Error, otherwise: c_int) -> c_int {
    if error.kind() == io::ErrorKind::StorageFull { ffi::SQLITE_FULL } else { otherwise }
}

/// # Safety
/// As for `xWrite` of the file.
unsafe fn write(
    point: &str,
    methods: &OnceLock<Methods>,
    file: *mut sqlite3_file,
    bytes: *const c_void,
    count: c_int,
    offset: i64,
) -> c_int {
    let Some(unix_write) = methods.get().and_then(|methods| methods.unix.xWrite) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    let whole = usize::try_from(count).unwrap_or_default();
    let now = match failpoint::write(point, whole) {
        Ok(now) => now,
        Err(error) => return code(&error, ffi::SQLITE_IOERR_WRITE),
    };
    // SAFETY: the caller's own arguments, with no more bytes than it has.
    let done = unsafe { unix_write(file, bytes, c_int::try_from(now).unwrap_or(count), offset) };
    // A write that is cut short is a full disk to SQLite.
    if done == ffi::SQLITE_OK && now < whole { ffi::SQLITE_FULL } else { done }
}

/// # Safety
/// As for `xSync` of the file.
unsafe fn sync(
    (before, after): (&str, &str),
    methods: &OnceLock<Methods>,
    file: *mut sqlite3_file,
    flags: c_int,
) -> c_int {
    let Some(unix_sync) = methods.get().and_then(|methods| methods.unix.xSync) else {
        return ffi::SQLITE_IOERR_FSYNC;
    };
    if let Err(error) = failpoint::call(before) {
        return code(&error, ffi::SQLITE_IOERR_FSYNC);
    }
    // SAFETY: the caller's own arguments.
    let done = unsafe { unix_sync(file, flags) };
    failpoint::hit(after);
    done
}

/// A crash here leaves a torn frame at most, which no reader takes for a commit.
unsafe extern "C" fn write_log(f: *mut sqlite3_file, bytes: *const c_void, count: c_int, at: i64) -> c_int {
    // SAFETY: called by SQLite as `xWrite` of this file.
    unsafe { write("wal.write", &LOG, f, bytes, count, at) }
}

/// A crash here loses nothing that was promised: what is forced now is what a checkpoint is going to copy.
unsafe extern "C" fn sync_log(f: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: called by SQLite as `xSync` of this file.
    unsafe { sync(("wal.sync", "wal.synced"), &LOG, f, flags) }
}

/// A crash here leaves a database that the log makes whole again: every page being written is in the forced log.
unsafe extern "C" fn write_database(
    f: *mut sqlite3_file,
    bytes: *const c_void,
    count: c_int,
    at: i64,
) -> c_int {
    // SAFETY: called by SQLite as `xWrite` of this file.
    unsafe { write("db.write", &DATABASE, f, bytes, count, at) }
}

/// A crash here is one before the log begins anew: it still has every page.
unsafe extern "C" fn sync_database(f: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: called by SQLite as `xSync` of this file.
    unsafe { sync(("db.sync", "db.synced"), &DATABASE, f, flags) }
}
