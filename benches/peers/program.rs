//! Other programs: started, waited for, and their failure told.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program to its end and gives what it printed; fails with what it said when it did not succeed.
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: &[S]) -> Result<String> {
    let mut command = Command::new(program.as_ref());
    command.args(args);
    finish(&mut command)
}

/// The same in a directory.
pub fn run_in<S: AsRef<OsStr>>(dir: &Path, program: impl AsRef<OsStr>, args: &[S]) -> Result<String> {
    let mut command = Command::new(program.as_ref());
    command.args(args).current_dir(dir);
    finish(&mut command)
}

/// Runs a program whose output nobody reads.
pub fn quietly<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null());
    finish(&mut command).map(drop)
}

/// Runs what was put together.
pub fn finish(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("{name} cannot be started"))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        let first: Vec<&str> = said.lines().take(3).collect();
        bail!("{name}: {}: {}", out.status, first.join("; "));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Where a program is, if it is installed.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}
