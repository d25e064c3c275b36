//! Names and attributes: looked at, made, moved and removed.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Result;

use crate::files::{self, Noise};
use crate::measure::{Measure, Run};
use crate::program;

/// Files in each directory of the tree that `find` walks.
const PER_DIRECTORY: u64 = 100;

/// 10,000 files in one directory.
pub fn prepare_known(run: &Run, dir: &Path) -> Result<()> {
    files::make_files(dir, run.scaled(10_000), 8, 11).map(drop)
}

/// Attributes of files that are known.
pub fn stat(m: &mut Measure<'_>) -> Result<()> {
    let (dir, count) = (m.site.shared(), m.scaled(10_000));
    let paths: Vec<_> = (0..count).map(|n| dir.join(files::name(n))).collect();
    m.warm("stat of known files, warm", || {
        for path in &paths {
            fs::symlink_metadata(path)?;
        }
        Ok(())
    })
}

/// 100,000 files in directories of a hundred.
pub fn prepare_tree(run: &Run, dir: &Path) -> Result<()> {
    for d in 0..run.scaled(100_000).div_ceil(PER_DIRECTORY) {
        let dir = dir.join(format!("directory-{d}"));
        fs::create_dir(&dir)?;
        files::make_files(&dir, PER_DIRECTORY, 8, 11)?;
    }
    Ok(())
}

/// `find -ls`, and the same system calls without what find does with the answers.
pub fn find(m: &mut Measure<'_>) -> Result<()> {
    let dir = m.site.shared();
    let find = || program::quietly("find", &[dir.as_os_str(), "-ls".as_ref()]);
    m.first("find -ls, first", find)?;
    m.again("find -ls, second", find)?;
    m.again("find -ls, third", find)?;
    m.first("walk, first", || walk(&dir))?;
    m.warm("walk, warm", || walk(&dir))
}

/// Lists a tree and asks for the attributes of everything in it.
pub fn walk(dir: &Path) -> Result<u64> {
    let (mut seen, mut open) = (0, vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            seen += 1;
            if entry.metadata()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(seen)
}

/// Makes files of 4 KiB.
pub fn create(m: &mut Measure<'_>) -> Result<()> {
    let (dir, count) = (m.fresh("create")?, m.scaled(10_000));
    let mut bytes = Noise::new(files::unique()).bytes(4096);
    let paths: Vec<_> = (0..count).map(|n| dir.join(files::name(n))).collect();
    m.time("create + write 4 KiB + close", || {
        for (n, path) in paths.iter().enumerate() {
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            File::create_new(path)?.write_all(&bytes)?;
        }
        Ok(())
    })
}

/// Renames files to names that are not there, in one directory.
pub fn rename(m: &mut Measure<'_>) -> Result<()> {
    let (dir, count) = (m.fresh("rename")?, m.scaled(10_000));
    let paths = files::make_files(&dir, count, 8, 11)?;
    let renamed: Vec<_> = (0..count).map(|n| dir.join(format!("renamed-{n:012}"))).collect();
    m.time("rename", || {
        for (from, to) in paths.iter().zip(&renamed) {
            fs::rename(from, to)?;
        }
        Ok(())
    })
}

/// Removes files.
pub fn unlink(m: &mut Measure<'_>) -> Result<()> {
    let (dir, count) = (m.fresh("unlink")?, m.scaled(10_000));
    let paths = files::make_files(&dir, count, 8, 11)?;
    m.time("unlink", || {
        for path in &paths {
            fs::remove_file(path)?;
        }
        Ok(())
    })
}

/// Makes directories.
pub fn mkdir(m: &mut Measure<'_>) -> Result<()> {
    let (dir, count) = (m.fresh("mkdir")?, m.scaled(10_000));
    let paths: Vec<_> = (0..count).map(|n| dir.join(files::name(n))).collect();
    m.time("mkdir", || {
        for path in &paths {
            fs::create_dir(path)?;
        }
        Ok(())
    })
}
