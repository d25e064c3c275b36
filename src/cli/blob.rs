//! `depotfs blob`: from paths to blobs and back.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::exit::Exit;
use super::{Outcome, complain, depot, human};
use crate::control::report::{Aside, Checksums, Located, Verified};
use crate::control::{Client, Request, Target};

/// How many bytes are moved at once.
const COPY_BYTES: usize = 128 * 1024;

/// Look at blobs: where they are, whether they are intact, their bytes and checksums.
///
/// X is a SHA-1 checksum, a path from the root of the tree, or a path in the mount.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs blob checksum /srv/depot libs/a.jar
  depotfs blob locate /srv/depot da39a3ee5e6b4b0d3255bfef95601890afd80709
  depotfs blob verify /mnt/repos /mnt/repos/libs/a.jar
  depotfs blob cat /srv/depot libs/a.jar > a.jar
  depotfs blob rescue /srv/depot                              list what was set aside
  depotfs blob rescue /srv/depot 0000000000000042 -o saved    get it out")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

/// The depot and the thing in it.
#[derive(clap::Args)]
struct What {
    /// The depot's directory, or any path inside its mount.
    depot: PathBuf,
    /// A checksum or a path.
    x: OsString,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Tells where the bytes are and which paths show them.
    Locate(What),
    /// Reads all bytes and compares them with the checksum; exit code 4 when they differ.
    Verify(What),
    /// Writes the bytes to standard output.
    Cat(What),
    /// Prints SHA-1, SHA-256, MD5 and BLAKE3; a file not yet sealed is sealed first.
    Checksum(What),
    /// Lists bytes that were set aside or cannot be sealed, or gets them out.
    Rescue {
        /// The depot's directory, or any path inside its mount.
        depot: PathBuf,
        /// A path that answers EIO, or a name from the list; without it, the list.
        x: Option<OsString>,
        /// A new file for the bytes; standard output without it.
        #[arg(short, long, value_name = "FILE", requires = "x")]
        output: Option<PathBuf>,
    },
}

pub fn run(args: Args, out: &mut dyn Write) -> Outcome {
    match args.verb {
        Verb::Locate(what) => locate(&what, out),
        Verb::Verify(what) => verify(&what, out),
        Verb::Cat(what) => {
            let (daemon, target) = what.resolve()?;
            copy(daemon, &Request::BlobCat { target }, "standard output", out)
        }
        Verb::Checksum(what) => checksum(&what, out),
        Verb::Rescue { depot, x: None, .. } => list_set_aside(&depot, out),
        Verb::Rescue { depot, x: Some(x), output } => rescue(&depot, &x, output.as_deref(), out),
    }
}

impl What {
    fn resolve(&self) -> anyhow::Result<(Client, Target)> {
        let depot = depot::find(&self.depot)?;
        Ok((Client::connect(&depot)?, depot::target(&depot, &self.x)?))
    }
}

fn locate(what: &What, out: &mut dyn Write) -> Outcome {
    let (mut daemon, target) = what.resolve()?;
    let found: Located = daemon.ask(&Request::BlobLocate { target }, &mut |_| {})?;
    writeln!(out, "sha1 {}", found.sha1)?;
    writeln!(out, "size {}", found.size)?;
    for place in &found.places {
        writeln!(out, "stored {} {}", place.provider, place.path)?;
    }
    for path in &found.paths {
        writeln!(out, "path {path}")?;
    }
    if found.references > found.paths.len() as u64 {
        writeln!(out, "and {} more", human::count(found.references - found.paths.len() as u64, "file"))?;
    }
    if found.places.is_empty() {
        complain(&format!("blob {} is missing from the filestore", found.sha1));
        return Ok(Exit::Problems);
    }
    Ok(Exit::Ok)
}

fn verify(what: &What, out: &mut dyn Write) -> Outcome {
    let (mut daemon, target) = what.resolve()?;
    let verified: Verified = daemon.ask(&Request::BlobVerify { target }, &mut |_| {})?;
    match &verified.wrong {
        None => {
            writeln!(out, "{} is intact ({} bytes)", verified.sha1, verified.size)?;
            Ok(Exit::Ok)
        }
        Some(wrong) => {
            complain(&format!("blob {}: {wrong}", verified.sha1));
            Ok(Exit::Problems)
        }
    }
}

fn checksum(what: &What, out: &mut dyn Write) -> Outcome {
    let (mut daemon, target) = what.resolve()?;
    let sums: Checksums = daemon.ask(&Request::BlobChecksum { target }, &mut |_| {})?;
    for (name, sum) in
        [("sha1", &sums.sha1), ("sha256", &sums.sha256), ("md5", &sums.md5), ("blake3", &sums.blake3)]
    {
        if !sum.is_empty() {
            writeln!(out, "{name} {sum}")?;
        }
    }
    writeln!(out, "size {}", sums.size)?;
    Ok(Exit::Ok)
}

fn list_set_aside(given: &Path, out: &mut dyn Write) -> Outcome {
    let request = Request::BlobRescue { target: None };
    let all: Vec<Aside> = Client::connect(&depot::find(given)?)?.ask(&request, &mut |_| {})?;
    for aside in all {
        let (size, age) = (human::bytes(aside.bytes), human::duration(aside.age_s));
        let path = aside.path.map(|path| format!("{path} cannot be sealed: ")).unwrap_or_default();
        writeln!(out, "{} {size}, {age} ago: {path}{}", aside.name, aside.why)?;
    }
    Ok(Exit::Ok)
}

fn rescue(given: &Path, x: &OsStr, output: Option<&Path>, out: &mut dyn Write) -> Outcome {
    let depot = depot::find(given)?;
    let target = match x.to_str().filter(|text| is_aside_name(text)) {
        Some(name) => Target::Aside(name.into()),
        None => depot::target(&depot, x)?,
    };
    let request = Request::BlobRescue { target: Some(target) };
    let daemon = Client::connect(&depot)?;
    let Some(path) = output else { return copy(daemon, &request, "standard output", out) };
    let name = path.display().to_string();
    let what = || format!("{name} cannot be written");
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(what)?;
    let saved = copy(daemon, &request, &name, &mut file)
        .and_then(|exit| file.sync_all().with_context(what).map(|()| exit));
    if saved.is_err() {
        let _ = std::fs::remove_file(path);
    }
    saved
}

/// Names of set-aside files are 16 hex digits.
fn is_aside_name(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Writes the bytes that the daemon sends to `out`, which is called `name`; says which of the two failed.
fn copy(daemon: Client, request: &Request, name: &str, out: &mut dyn Write) -> Outcome {
    let mut bytes = daemon.fetch(request)?;
    let unwritten = || format!("{name} cannot be written");
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let n = match bytes.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("the bytes cannot be had from the daemon"),
        };
        out.write_all(&buffer[..n]).with_context(unwritten)?;
    }
    out.flush().with_context(unwritten)?;
    Ok(Exit::Ok)
}
