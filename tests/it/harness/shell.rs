//! Commands with failures that explain themselves, errors by number, waiting without fixed sleeps.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tempfile::TempDir;

/// No condition of this suite needs longer than this to come true.
const PATIENCE: Duration = Duration::from_secs(100);

/// No command needs longer than this, on a busy machine.
const COMMAND_LIMIT: Duration = Duration::from_secs(560);

/// A directory on a real disk that every user may enter, gone on drop. Its path is short: a socket's address has 108 bytes.
pub fn scratch() -> TempDir {
    let dir = tempfile::Builder::new().prefix("depotfs-").tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// What a finished command said.
pub struct Ran {
    what: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Standard output of a command that has to succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        self.exits(0);
        self.out
    }

    /// Standard error of a command that has to fail with `code`.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        self.exits(code);
        self.err
    }

    #[track_caller]
    fn exits(&self, code: i32) {
        let Ran { what, out, err, .. } = self;
        let end =
            |s: &str| s.chars().rev().take(4000).collect::<Vec<_>>().into_iter().rev().collect::<String>();
        assert!(
            self.code == Some(code),
            "{what}\n  exit code {:?}, wanted {code}\n  stdout: {}\n  stderr: {}",
            self.code,
            end(out),
            end(err)
        );
    }
}

/// Runs a command to its end, output into files (a daemon that keeps a pipe open cannot hang the test).
#[track_caller]
pub fn run_command(command: &mut Command) -> Ran {
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap())
        .spawn()
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let (started, mut pause) = (Instant::now(), Duration::from_micros(200));
    let code = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if started.elapsed() > COMMAND_LIMIT => {
                let _ = child.kill();
                break None;
            }
            None => thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(5));
    };
    Ran { what, code, out: text(&mut out), err: text(&mut err) }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A command with arguments, in a known language and without settings of the person who runs the tests.
pub fn command(program: impl AsRef<OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    command
}

/// Runs a shell script in `dir`; it stops at the first command that fails, which fails the test.
#[track_caller]
pub fn sh(dir: impl AsRef<Path>, script: &str) -> String {
    run_script(dir.as_ref(), script).ok()
}

/// Runs a shell script that has to fail, and gives what it said.
#[track_caller]
pub fn sh_fails(dir: impl AsRef<Path>, script: &str) -> String {
    let ran = run_script(dir.as_ref(), script);
    assert!(
        ran.code.is_some_and(|c| c != 0),
        "{script}\n  should have failed, and said: {}{}",
        ran.out,
        ran.err
    );
    ran.err
}

#[track_caller]
fn run_script(dir: &Path, script: &str) -> Ran {
    run_command(
        command("bash", &["-euo", "pipefail", "-c", script]).current_dir(dir).env("HOME", "/nonexistent"),
    )
}

/// Waits until `done`, and fails with `what` when that does not come.
#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A program of the test set-up: in the project's `.tools/bin`, else on the PATH.
#[track_caller]
pub fn tool(name: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin").join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::iter::once(own).chain(std::env::split_paths(&path).map(|dir| dir.join(name)));
    places
        .find(|p| p.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: `make setup` installs it"))
}

/// A call that has to fail, with the errno it has to fail with.
pub trait Fails {
    fn fails(self, with: Errno);
}

impl<T> Fails for io::Result<T> {
    #[track_caller]
    fn fails(self, with: Errno) {
        match self {
            Ok(_) => panic!("succeeded, wanted {with}"),
            Err(e) => assert_eq!(e.raw_os_error().map(Errno::from_raw), Some(with), "{e}"),
        }
    }
}

impl<T> Fails for Result<T, Errno> {
    #[track_caller]
    fn fails(self, with: Errno) {
        match self {
            Ok(_) => panic!("succeeded, wanted {with}"),
            Err(e) => assert_eq!(e, with),
        }
    }
}
