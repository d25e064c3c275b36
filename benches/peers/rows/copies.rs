//! Copies inside the mount, and directories that move.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::files;
use crate::measure::{Measure, Run};
use crate::program::quietly;
use crate::rows::content;
use crate::sys;

/// Renames of one directory that are measured together.
const MOVES: u32 = 20;

/// One large file.
pub fn prepare_large(run: &Run, dir: &Path) -> Result<()> {
    content::prepare_large(run, dir)
}

/// `cp` of the large file.
pub fn large(m: &mut Measure<'_>) -> Result<()> {
    let (from, to) = (m.site.shared().join("large"), m.fresh("cp")?.join("copy"));
    // Whoever copies has read the file before, or has not: here it has.
    files::read_whole(&from, &mut vec![0; files::MIB as usize])?;
    m.time("cp of 1 GiB", || quietly("cp", &[&from, &to]))?;
    Ok(fs::remove_file(to)?)
}

/// 10,000 files of 100 KiB.
pub fn prepare_tree(run: &Run, dir: &Path) -> Result<()> {
    files::make_files(dir, run.scaled(10_000), 100 * 1024, 11).map(drop)
}

/// `cp -r` of them.
pub fn tree(m: &mut Measure<'_>) -> Result<()> {
    let (from, to) = (m.site.shared(), m.fresh("cp-r")?.join("copy"));
    m.time("cp -r of 10,000 files", || quietly("cp", &["-r".as_ref(), from.as_os_str(), to.as_os_str()]))?;
    Ok(fs::remove_dir_all(to)?)
}

/// A directory with 100,000 files and one without any.
pub fn prepare_directory(run: &Run, dir: &Path) -> Result<()> {
    for (name, count) in [("full", run.scaled(100_000)), ("empty", 0)] {
        let dir = dir.join(name);
        fs::create_dir(&dir)?;
        for n in 0..count {
            sys::make_node(&dir.join(files::name(n)))?;
        }
    }
    Ok(())
}

/// Moves each into another directory and back, and keeps the time of one move.
pub fn move_directory(m: &mut Measure<'_>) -> Result<()> {
    let (dir, other) = (m.site.shared(), m.fresh("mv")?);
    for (quantity, name) in [("mv of a full directory", "full"), ("mv of an empty directory", "empty")] {
        let (here, there) = (dir.join(name), other.join(name));
        let seconds = m.take(|| {
            for _ in 0..MOVES / 2 {
                fs::rename(&here, &there)?;
                fs::rename(&there, &here)?;
            }
            Ok(())
        })?;
        m.seconds(quantity, seconds / f64::from(MOVES));
    }
    Ok(())
}
