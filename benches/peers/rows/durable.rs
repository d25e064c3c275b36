//! What waits for the disk: databases, fsync, and close with `durability=close`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;

use anyhow::Result;
use rusqlite::Connection;

use crate::files::{self, Noise};
use crate::measure::Measure;

/// Files of the rows that force each.
const FILES: u64 = 400;

/// Small transactions of a database in the mount.
pub fn sqlite(m: &mut Measure<'_>) -> Result<()> {
    let dir = m.fresh("sqlite")?;
    let (normal, full) = (m.scaled(10_000), m.scaled(500));
    m.time("SQLite, WAL, NORMAL", || transactions(&dir.join("normal.db"), "NORMAL", normal))?;
    m.time("SQLite, WAL, FULL", || transactions(&dir.join("full.db"), "FULL", full))
}

fn transactions(path: &Path, synchronous: &str, count: u64) -> Result<()> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", synchronous)?;
    db.execute("CREATE TABLE entry (number INTEGER PRIMARY KEY, text TEXT)", [])?;
    let mut insert = db.prepare("INSERT INTO entry VALUES (?1, ?2)")?;
    for n in 0..count {
        insert.execute((n as i64, format!("the text of entry {n}")))?;
    }
    Ok(())
}

/// Files that are forced one by one, by one writer and by eight; in a depot also those whose close forces them.
pub fn fsync(m: &mut Measure<'_>) -> Result<()> {
    let own = m.fresh("fsync")?;
    forced(m, &own, true, ["create + fsync + close, 1 writer", "create + fsync + close, 8 writers"])?;
    flushes(m, &own, true, ["flushes a file, fsync, 1 writer", "flushes a file, fsync, 8 writers"])?;
    if m.depot().is_some() {
        let strict = m.site.strict()?;
        forced(
            m,
            &strict,
            false,
            ["create + close, durability=close, 1 writer", "create + close, durability=close, 8 writers"],
        )?;
        let counts =
            ["flushes a file, durability=close, 1 writer", "flushes a file, durability=close, 8 writers"];
        flushes(m, &strict, false, counts)?;
    }
    Ok(())
}

fn forced(m: &mut Measure<'_>, dir: &Path, fsync: bool, quantities: [&'static str; 2]) -> Result<()> {
    let count = m.scaled(FILES);
    for (quantity, writers) in quantities.into_iter().zip([1, 8]) {
        let dir = empty(dir)?;
        m.time(quantity, || write_all(&dir, count, writers, fsync))?;
    }
    Ok(())
}

fn flushes(m: &mut Measure<'_>, dir: &Path, fsync: bool, quantities: [&'static str; 2]) -> Result<()> {
    let count = m.scaled(FILES);
    for (quantity, writers) in quantities.into_iter().zip([1, 8]) {
        let dir = empty(dir)?;
        m.site.settle()?;
        m.flushes(quantity, count, || write_all(&dir, count, writers, fsync))?;
    }
    Ok(())
}

fn empty(dir: &Path) -> Result<std::path::PathBuf> {
    let dir = dir.join("forced");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Writes `count` files in all, each writer its share.
fn write_all(dir: &Path, count: u64, writers: u64, fsync: bool) -> Result<()> {
    let share = |writer: u64| -> Result<()> {
        let mut bytes = Noise::new(files::unique() ^ writer).bytes(4096);
        for n in (writer..count).step_by(writers as usize) {
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            let mut file = File::create_new(dir.join(files::name(n)))?;
            file.write_all(&bytes)?;
            if fsync {
                file.sync_all()?;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|writer| scope.spawn(move || share(writer))).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })
}
