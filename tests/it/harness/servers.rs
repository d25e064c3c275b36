//! Real servers for the providers that are far away: S3 and Azure by programs of the test set-up.
//!
//! Each runs on a free port of 127.0.0.1 with its data in a directory of its own, and ends with whoever started it, however
//! that ends. It needs no other part of the suite, so that unit tests and benches can include it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Access key and secret key of the S3 server.
pub const S3_KEYS: (&str, &str) = ("someone", "hush-hush");
/// Account and key that azurite knows.
pub const AZURE_ACCOUNT: &str = "devstoreaccount1";
/// See above.
pub const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// No server needs longer than this to begin, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a signed request says.
const SIGNED: &str =
    "AWS4-HMAC-SHA256 Credential=someone/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// Buckets of a server whose buckets are directories.
const BUCKETS: u64 = 300;

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// S3, by `rclone serve s3`; the objects are files of its directory.
    S3,
    /// S3 with buckets that keep earlier versions, by moto; all of it is gone with the process.
    S3Versions,
    /// Azure Blob Storage, by azurite.
    Azure,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    speaks: Speaks,
    port: u16,
    data: TempDir,
    /// The number of the next bucket.
    next: AtomicU64,
    running: Option<Running>,
}

/// The process, and the thread that has started it: the kernel ends the process with that thread.
#[derive(Debug)]
struct Running {
    pid: Pid,
    end: Sender<()>,
    keeper: JoinHandle<()>,
}

impl Server {
    /// Starts one with nothing in it.
    #[track_caller]
    pub fn start(speaks: Speaks) -> Server {
        let data = tempfile::Builder::new().prefix("depotfs-server-").tempdir_in("/var/tmp").unwrap();
        if speaks == Speaks::S3 {
            for number in 0..BUCKETS {
                std::fs::create_dir(data.path().join(format!("bucket{number}"))).unwrap();
            }
        }
        let next = AtomicU64::new(0);
        let mut server = Server { speaks, port: free_port(), data, next, running: None };
        server.restart();
        server
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:PORT`, with the account behind it where there is one.
    pub fn address(&self) -> String {
        self.address_by(self.port)
    }

    /// The same, by way of another port.
    pub fn address_by(&self, port: u16) -> String {
        match self.speaks {
            Speaks::Azure => format!("http://127.0.0.1:{port}/{AZURE_ACCOUNT}"),
            _ => format!("http://127.0.0.1:{port}"),
        }
    }

    /// Makes a bucket that no other test has.
    #[track_caller]
    pub fn bucket(&self) -> String {
        let name = format!("bucket{}", self.next.fetch_add(1, Ordering::Relaxed));
        match self.speaks {
            Speaks::Azure => {
                let remote = format!(
                    ":azureblob,account={AZURE_ACCOUNT},key='{AZURE_KEY}',endpoint='{}':{name}",
                    self.address()
                );
                let made = Command::new(program("rclone")).args(["--config", "", "mkdir", &remote]).output();
                let made = made.unwrap();
                assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            }
            // Made before the server began.
            Speaks::S3 => assert!(self.directory(&name).is_dir(), "more buckets than {BUCKETS}"),
            Speaks::S3Versions => {
                let enabled = "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                               <Status>Enabled</Status></VersioningConfiguration>";
                self.plain_request("PUT", &format!("/{name}"), "");
                self.plain_request("PUT", &format!("/{name}?versioning"), enabled);
            }
        }
        name
    }

    /// A request with a signature that is none, for a server that does not look; it has to succeed.
    #[track_caller]
    pub fn plain_request(&self, method: &str, target: &str, body: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head =
            format!("{method} {target} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nconnection: close\r\n", self.port);
        let head = format!("{head}authorization: {SIGNED}\r\n");
        write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 2"), "{method} {target}: {answer}");
    }

    /// Where the objects of a bucket are files.
    pub fn directory(&self, bucket: &str) -> PathBuf {
        self.data.path().join(bucket)
    }

    /// kill -9; what it has stored stays.
    pub fn kill(&mut self) {
        if let Some(Running { end, keeper, .. }) = self.running.take() {
            drop(end);
            let _ = keeper.join();
        }
    }

    /// Starts it again on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        let command = self.command();
        let ((end, ended), (begin, began)) = (channel(), channel());
        let keep = move || keep(command, &begin, &ended);
        let keeper = thread::Builder::new().name("server".into()).spawn(keep).unwrap();
        self.running = Some(Running { pid: Pid::from_raw(began.recv().unwrap()), end, keeper });
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "{:?} does not listen", self.speaks);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes it see what was changed in the directory of a bucket: it remembers names and sizes.
    #[track_caller]
    pub fn refresh(&self) {
        assert_eq!(self.speaks, Speaks::S3);
        kill(self.running.as_ref().unwrap().pid, Signal::SIGHUP).unwrap();
        // It says nothing when it has done so.
        thread::sleep(Duration::from_millis(50));
    }

    fn command(&self) -> Command {
        let (port, data) = (self.port.to_string(), self.data.path().to_str().unwrap());
        let at = format!("127.0.0.1:{port}");
        let keys = format!("{},{}", S3_KEYS.0, S3_KEYS.1);
        let (name, args): (&str, Vec<&str>) = match self.speaks {
            Speaks::S3 => {
                ("rclone", vec!["--config", "", "serve", "s3", "--addr", &at, "--auth-key", &keys, data])
            }
            Speaks::S3Versions => ("python3", vec!["-m", "moto.server", "-H", "127.0.0.1", "-p", &port]),
            Speaks::Azure => (
                "azurite-blob",
                vec![
                    "--blobHost",
                    "127.0.0.1",
                    "--blobPort",
                    &port,
                    "--location",
                    data,
                    "--silent",
                    "--skipApiVersionCheck",
                    "--disableTelemetry",
                ],
            ),
        };
        let mut command = Command::new(program(name));
        let log = std::fs::File::create(self.data.path().with_extension("log")).unwrap();
        if self.speaks == Speaks::S3Versions {
            let moto = tools().join("moto");
            assert!(moto.is_dir(), "moto is not installed: `make setup` installs it");
            command.env("PYTHONPATH", moto);
        }
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_file(self.data.path().with_extension("log"));
    }
}

/// Starts a process and ends it when nobody wants it any more.
fn keep(mut command: Command, begin: &Sender<i32>, ended: &Receiver<()>) {
    let dies_with_us = || set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from);
    // SAFETY: prctl(2) is all that runs between fork and exec, and may.
    let mut child: Child = unsafe { command.pre_exec(dies_with_us) }.spawn().unwrap();
    let _ = begin.send(child.id() as i32);
    let _ = ended.recv();
    let _ = child.kill();
    let _ = child.wait();
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools")
}

/// A program of the test set-up, which `make setup` installs.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    let own = ["bin", "rclone/bin", "azurite/node_modules/.bin"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = own.iter().map(|dir| tools().join(dir)).chain(std::env::split_paths(&path));
    let found = places.find(|dir| dir.join(name).is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: `make setup` installs it")).join(name)
}
