//! A directory of a million entries: listing, walking, and mounting a depot that has it.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::depot::Depot;
use crate::files;
use crate::measure::{Measure, Run};
use crate::rows::names;
use crate::sites::{Peer, Site};
use crate::sys;

/// Entries of the large directory; the other has a tenth.
const ENTRIES: u64 = 1_000_000;

/// The two directories.
pub fn prepare(run: &Run, dir: &Path) -> Result<()> {
    for (name, count) in [("tenth", run.scaled(ENTRIES / 10)), ("whole", run.scaled(ENTRIES))] {
        let dir = dir.join(name);
        fs::create_dir(&dir)?;
        for n in 0..count {
            if n % 1000 == 0 {
                run.go_on()?;
            }
            sys::make_node(&dir.join(files::name(n)))?;
        }
    }
    Ok(())
}

/// Everything that is measured on it.
pub fn million(m: &mut Measure<'_>) -> Result<()> {
    let dir = m.site.shared();
    let (tenth, whole) = (m.scaled(ENTRIES / 10), m.scaled(ENTRIES));
    m.first("listing of 100,000 entries, first", || list_all(&dir.join("tenth"), tenth))?;
    m.first("listing of 1,000,000 entries, first", || list_all(&dir.join("whole"), whole))?;
    let seconds = list_over_restart(m, &dir.join("tenth"), tenth)?;
    m.seconds("listing of 100,000 entries over a restart", seconds);
    let seconds = list_over_restart(m, &dir.join("whole"), whole)?;
    m.seconds("listing of 1,000,000 entries over a restart", seconds);
    m.first("walk of 1,000,000 files, first", || names::walk(&dir.join("whole")))?;
    if let Some(depot) = m.depot() {
        m.bytes("resident memory after the walk", sys::resident_bytes(depot.pid()?)?);
        mount(m, depot)?;
    }
    Ok(())
}

/// How far a listing came.
struct Listed {
    /// Entries seen, `.` and `..` included.
    entries: u64,
    /// Where the next page would start.
    next: i64,
}

/// Lists from an offset until at least `enough` entries were seen, or to the end.
fn list(dir: &Path, from: i64, enough: u64) -> Result<Listed> {
    let directory = File::open(dir)?;
    let mut listed = Listed { entries: 0, next: from };
    let mut buffer = vec![0; 32 * 1024];
    while listed.entries < enough {
        let page = sys::list_page(&directory, listed.next, &mut buffer)?;
        if page.entries == 0 {
            break;
        }
        listed = Listed { entries: listed.entries + page.entries, next: page.next };
    }
    Ok(listed)
}

/// The whole of a listing, which has to have so many entries.
fn list_all(dir: &Path, entries: u64) -> Result<()> {
    let listed = list(dir, 0, u64::MAX)?;
    ensure!(listed.entries == entries + 2, "{} of {entries} entries were listed", listed.entries);
    Ok(())
}

/// Half of a listing, a new daemon, and the rest; the time of both halves.
fn list_over_restart(m: &Measure<'_>, dir: &Path, entries: u64) -> Result<f64> {
    m.site.remount()?;
    let start = Instant::now();
    let half = list(dir, 0, entries / 2)?;
    let took = start.elapsed();
    m.site.remount()?;
    let start = Instant::now();
    let rest = list(dir, half.next, u64::MAX)?;
    let took = took + start.elapsed();
    let seen = half.entries + rest.entries;
    ensure!(seen == entries + 2, "{seen} of {entries} entries were listed over a restart");
    Ok(took.as_secs_f64())
}

/// From the command until the mount has answered, with this depot and with an empty one.
fn mount(m: &mut Measure<'_>, depot: &Depot) -> Result<()> {
    let empty = Site::new(Peer::Depotfs, &m.run.scratch.join("empty"), &m.run.depotfs)?;
    let depots =
        [("mount of an empty depot", empty.depot.as_ref()), ("mount with 1,000,000 files", Some(depot))];
    for (quantity, depot) in depots {
        let Some(depot) = depot else { continue };
        depot.umount()?;
        let start = Instant::now();
        depot.mount()?;
        fs::symlink_metadata(depot.mountpoint.join("repo"))?;
        m.seconds(quantity, start.elapsed().as_secs_f64());
    }
    Ok(())
}
