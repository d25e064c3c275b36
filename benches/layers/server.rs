//! The S3 server of a row: `rclone serve s3` on this host, its objects the files of a directory.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// The bucket of all.
pub const BUCKET: &str = "layers";
/// Access key and secret key.
pub const KEYS: (&str, &str) = ("layers", "not-a-secret");

/// No server needs longer than this to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// See above; ended when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    data: PathBuf,
}

impl Server {
    /// Starts one over a directory that has the bucket, or gets it.
    ///
    /// The server keeps what it knows of the files, hashes among them, for ever: nobody else may change them.
    pub fn start(data: &Path) -> Result<Server> {
        fs::create_dir_all(data.join(BUCKET))?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut command = Command::new("rclone");
        command.args(["serve", "s3", "--config", "", "--dir-cache-time", "24h"]);
        command.args([
            "--addr",
            &format!("127.0.0.1:{port}"),
            "--auth-key",
            &format!("{},{}", KEYS.0, KEYS.1),
        ]);
        command.arg(data);
        let log = fs::File::create(data.with_extension("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        let server = Server { child: background(command, Signal::SIGKILL)?, port, data: data.into() };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(begun.elapsed() < PATIENCE, "rclone serve s3 does not listen; {}", server.last_words());
            sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The files that are the objects.
    pub fn bucket(&self) -> PathBuf {
        self.data.join(BUCKET)
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.data.with_extension("log")).unwrap_or_default();
        log.lines().last().unwrap_or("it says nothing").to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a process that a Ctrl-C at the terminal does not reach, and that gets `last` when this process has ended.
pub fn background(mut command: Command, last: Signal) -> Result<Child> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).process_group(0);
    let ends_with_us = move || set_pdeathsig(last).map_err(std::io::Error::from);
    // SAFETY: prctl(2) is all that runs between fork and exec, and may.
    let started = unsafe { command.pre_exec(ends_with_us) }.spawn();
    started.with_context(|| format!("{name} cannot be started"))
}
