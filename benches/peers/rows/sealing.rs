//! What depotfs does after close(2): hashing, putting, and what the index keeps of it.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use depotfs::checksum::Hasher;
use rusqlite::Connection;
use sha1::Digest;

use crate::files::{self, MIB, Noise};
use crate::measure::Measure;
use crate::program::quietly;
use crate::rows::content::LARGE;
use crate::sys;

/// Size of the files that are sealed in the background.
const FILE_BYTES: usize = 100 * 1024;

/// A large file until its checksum is known; beside it the plain file until it is on the disk, and the SHA-1 of its bytes.
pub fn checksum(m: &mut Measure<'_>) -> Result<()> {
    let (path, len) = (m.fresh("checksum")?.join("large"), m.scaled(LARGE));
    // Other bytes each time: the same would be a blob already.
    let seed = files::unique();
    if let Some(depot) = m.depot() {
        let dir = depot.dir_str()?;
        let in_mount = path.to_str().context("the scratch directory is not UTF-8")?;
        m.time("write 1 GiB until blob checksum", || {
            files::write_noise(&path, seed, len, MIB as usize)?;
            depot.cli(&["blob", "checksum", dir, in_mount])
        })?;
    } else {
        m.time("write 1 GiB + fsync", || {
            files::write_noise(&path, seed, len, MIB as usize)?;
            Ok(File::open(&path)?.sync_all()?)
        })?;
        let bytes = Noise::new(9).bytes(MIB as usize);
        m.core("SHA-1 of 1 GiB", || {
            let mut hasher = sha1::Sha1::new();
            (0..len / MIB).for_each(|_| hasher.update(&bytes));
            std::hint::black_box(hasher.finalize());
        });
    }
    Ok(fs::remove_file(path)?)
}

/// Files closed all at once until all are blobs; beside it `cp` of as many, and the hashing alone.
pub fn background(m: &mut Measure<'_>) -> Result<()> {
    let (dir, count) = (m.fresh("seal")?, m.scaled(10_000));
    let Some(depot) = m.depot() else {
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir(&from)?;
        files::make_files(&from, count, FILE_BYTES, 11)?;
        m.time("cp of 10,000 files + sync", || {
            quietly("cp", &["-r", from.to_str().unwrap_or_default(), to.to_str().unwrap_or_default()])?;
            sys::sync_disk(&to)
        })?;
        let bytes = Noise::new(10).bytes(FILE_BYTES);
        m.core("SHA-1 + BLAKE3 of 10,000 files", || {
            for _ in 0..count {
                let mut hasher = Hasher::default();
                hasher.update(&bytes);
                std::hint::black_box(hasher.finish());
            }
        });
        return Ok(fs::remove_dir_all(dir)?);
    };
    let seed = files::unique();
    let mut open = Vec::new();
    for n in 0..count {
        let mut file = File::create_new(dir.join(files::name(n)))?;
        files::write_to(&mut file, seed ^ n << 20, FILE_BYTES as u64, FILE_BYTES)?;
        open.push(file);
    }
    let pid = depot.pid()?;
    let before = sys::cpu_seconds(pid)?;
    drop(open);
    let mut start = Instant::now();
    // Each look costs the daemon a millisecond: not too often.
    loop {
        let looked = Instant::now();
        match depot.pending()? {
            0 => break,
            // What is closed rests a second first.
            pending if pending == count => start = looked,
            _ => m.run.go_on()?,
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    m.seconds("sealing of 10,000 files", start.elapsed().as_secs_f64());
    let used = sys::cpu_seconds(pid)? - before;
    m.seconds("sealing of 10,000 files, processor", used);
    Ok(fs::remove_dir_all(dir)?)
}

/// What the index grows by for a file of unique content, and for a copy of it.
pub fn index_bytes(m: &mut Measure<'_>) -> Result<()> {
    // Nothing is removed between rounds: what goes from the index in the background would be taken for less growth.
    let count = m.scaled(20_000);
    let dir = m.fresh(&format!("index-{}", files::unique()))?;
    let empty = vacuumed(m)?;
    files::make_files(&dir, count, 16, files::unique())?;
    m.site.settle()?;
    let unique = vacuumed(m)?;
    let to = m.fresh(&format!("copies-{}", files::unique()))?.join("copy");
    quietly("cp", &["-r".as_ref(), dir.as_os_str(), to.as_os_str()])?;
    m.site.settle()?;
    let copied = vacuumed(m)?;
    m.bytes("index bytes a file", (unique - empty) as f64 / count as f64);
    m.bytes("index bytes a further copy", (copied - unique) as f64 / count as f64);
    Ok(())
}

/// Size of a copy of the index without free pages and without the checksums that are filled in later.
fn vacuumed(m: &Measure<'_>) -> Result<u64> {
    let depot = m.depot().context("only a depot has an index")?;
    let copy = m.run.scratch.join("copy-of-index.db");
    let _ = fs::remove_file(&copy);
    let live = Connection::open(depot.dir.join("index.db"))?;
    live.execute("VACUUM INTO ?1", [copy.to_str().context("the scratch directory is not UTF-8")?])?;
    drop(live);
    let db = Connection::open(&copy)?;
    db.execute("UPDATE blob SET sha256 = NULL, md5 = NULL", [])?;
    db.execute_batch("VACUUM")?;
    drop(db);
    Ok(fs::metadata(&copy)?.len())
}
