//! The far side of a row: a server, the proxy that makes it far, and depots and mounts that use it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::depot::Depot;
use crate::get;
use crate::proxy::Proxy;
use crate::rclone::Mount;
use crate::server::{BUCKET, KEYS, Server};
use crate::sys;

/// Added to every request.
const DELAY: Duration = Duration::from_millis(50);

/// See above; gone with everything when dropped.
#[derive(Debug)]
pub struct Lab {
    /// The server behind the proxy.
    pub server: Server,
    /// The proxy that everybody talks to.
    pub proxy: Proxy,
    scratch: PathBuf,
    depotfs: PathBuf,
}

impl Lab {
    /// A server in `scratch`, whose bucket `fill` may put objects in as files before it begins.
    pub fn new(scratch: &Path, depotfs: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Lab> {
        let data = scratch.join("server");
        let bucket = data.join(BUCKET);
        fs::create_dir_all(&bucket)?;
        fill(&bucket)?;
        let server = Server::start(&data)?;
        let proxy = Proxy::start(server.port()).context("the proxy cannot be started")?;
        proxy.delay(DELAY);
        Ok(Lab { server, proxy, scratch: scratch.into(), depotfs: depotfs.into() })
    }

    /// A mounted depot with the chain `cache-fs`, `eventual`, `retry`, `s3-storage-v3`; its blobs below its name in the bucket.
    pub fn depot(&self, name: &str) -> Result<Depot> {
        let mut settings = vec!["chain=cache-fs,eventual,retry,s3-storage-v3".to_owned()];
        let keys = [
            ("endpoint", self.proxy.address()),
            ("bucket-name", BUCKET.to_owned()),
            ("path", name.to_owned()),
            ("identity", KEYS.0.to_owned()),
            ("credential", KEYS.1.to_owned()),
        ];
        settings.extend(keys.map(|(key, value)| format!("s3-storage-v3.{key}={value}")));
        Depot::new(&self.depotfs, &self.scratch.join(name), &settings)
    }

    /// The bucket, mounted by rclone.
    pub fn mount(&self) -> Result<Mount> {
        Mount::new(self.proxy.port(), &self.scratch.join("rclone"))
    }

    /// Asks for 4 KiB of an object through the proxy.
    pub fn get(&self, key: &str, from: u64) -> Result<()> {
        get::ranged(self.proxy.port(), key, from, 4096)
    }

    /// Makes the server know its objects and have their bytes in memory: what its own disk and hashing take is no part of a row.
    pub fn warm(&self) -> Result<()> {
        let bucket = self.server.bucket();
        for file in files(&bucket)? {
            let key = file.strip_prefix(&bucket)?.to_str().context("an object whose key is not UTF-8")?;
            // The server hashes an object when it is first asked for it.
            if file.metadata()?.len() > 4096 {
                get::ranged(self.server.port(), key, 0, 4096)?;
            }
            io::copy(&mut File::open(&file)?, &mut io::sink())?;
        }
        sys::sync_disk(&bucket)
    }

    /// Bytes of answers and of requests since the last look, and the number of requests.
    pub fn passed(&self) -> (u64, u64, u64) {
        let seen = self.proxy.seen();
        let from = seen.iter().map(|one| one.received()).sum();
        (from, seen.iter().map(|one| one.sent).sum(), seen.len() as u64)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The objects are gigabytes, and the next row has its own; the server ends a moment later and does not mind.
        let _ = fs::remove_dir_all(self.scratch.join("server"));
    }
}

/// All files below a directory.
pub fn files(below: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![below.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let is_dir = entry.file_type()?.is_dir();
            if is_dir { open.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    Ok(found)
}
