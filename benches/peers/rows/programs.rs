//! Programs that people run: tar, git, rsync, make.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::files;
use crate::measure::{Measure, Run};
use crate::program::{quietly, run_in};

/// Source files in the tree.
const SOURCES: u64 = 10_000;
/// Source files of the project that is compiled.
const MODULES: u64 = 220;

/// Where the tree of sources and its archive stand, outside of every peer.
fn outside(run: &Run) -> PathBuf {
    run.scratch.join("sources")
}

/// A tree of sources under git, and its archive.
pub fn prepare_tar(run: &Run, _: &Path) -> Result<()> {
    let outside = outside(run);
    if outside.exists() {
        return Ok(());
    }
    let tree = outside.join("tree");
    files::make_sources(&tree, run.scaled(SOURCES))?;
    let git = |args: &[&str]| run_in(&tree, "git", args).map(drop);
    git(&["init", "-q"])?;
    // A commit may begin one in the background, which keeps the one below from its work.
    git(&["config", "gc.auto", "0"])?;
    git(&["add", "-A"])?;
    git(&["-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "sources"])?;
    git(&["gc", "-q"])?;
    run_in(&outside, "tar", &["cf", "tree.tar", "tree"]).map(drop)
}

/// Unpacks the tree, and lets git and rsync find out that nothing has changed.
pub fn tar(m: &mut Measure<'_>) -> Result<()> {
    let (outside, dir) = (outside(m.run), m.fresh("tar")?);
    let archive = outside.join("tree.tar");
    m.time("tar x", || {
        quietly("tar", &["xf".as_ref(), archive.as_os_str(), "-C".as_ref(), dir.as_os_str()])
    })?;
    let tree = dir.join("tree");
    m.warm("git status, warm", || run_in(&tree, "git", &["status", "--porcelain"]))?;
    let (mut from, mut to) = (outside.join("tree").into_os_string(), tree.into_os_string());
    from.push("/");
    to.push("/");
    // git writes its own files anew in each of the two.
    m.warm("rsync -a again, warm", || {
        quietly("rsync", &["-a".as_ref(), "--exclude=.git".as_ref(), from.as_os_str(), &to])
    })
}

/// Compiles a project of a few hundred files.
pub fn make(m: &mut Measure<'_>) -> Result<()> {
    let dir = m.fresh("make")?.join("project");
    files::make_project(&dir, m.scaled(MODULES))?;
    m.time("make -j2", || run_in(&dir, "make", &["-s", "-j2"]))?;
    Ok(fs::remove_dir_all(dir)?)
}
