//! Keeps blobs as objects of a bucket: `<path>/ab/<sha1>`, the names of an Artifactory filestore.
//!
//! A blob is safe when `put` returns, as safe as the service keeps it. Opening a blob of known size asks for nothing; its
//! bytes are asked for by ranges ([`read`]), and are compared with their name before they become an object ([`upload`]).
//! Every wait has an end ([`calls`]), and a server that is away is told as away at once ([`breaker`]); trying again is the
//! business of the layer `retry`. A directory on this host holds the staging files.
//!
//! ```toml
//! chain = ["retry", "s3-storage-v3"]
//!
//! [s3-storage-v3]
//! endpoint = "http://127.0.0.1:9000"
//! bucket-name = "artifacts"
//! ```

mod breaker;
mod calls;
mod connect;
mod owner;
mod read;
mod readers;
mod upload;
mod versions;

use std::collections::HashSet;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::object_store::ObjectStoreExt as _;
use ::object_store::path::Path as Key;

pub use self::connect::{Options, Service};

use self::calls::{Kind, Request, Server};
use self::owner::Owner;
use self::read::{Object, version_of};
use self::readers::Readers;
use self::upload::{Source, Window, in_parts, size_of, whole};
use self::versions::Versions;
use super::blob::{Blob, BlobFile, FileId};
use super::error::{Doing, Error, Result};
use super::provider::{Found, Health, Listed, Offer, Provider, ProviderStatus, Reach, Visit};
use super::staging::StagingDir;
use super::volume::{MARKER, Volume};
use crate::change::StagingName;
use crate::checksum::Checksum;
use crate::failpoint;
use crate::text;

/// A request that was not answered may be carried out within so many times the wait for an answer.
const ON_ITS_WAY: u32 = 4;

/// The providers `s3-storage-v3`, `azure-blob-storage` and `google-storage`.
#[derive(Debug)]
pub struct ObjectStore {
    volume: Arc<Volume>,
    staging: Arc<StagingDir>,
    server: Arc<Server>,
    versions: Option<Versions>,
    owner: Owner,
    readers: Arc<Readers>,
    options: Options,
}

impl ObjectStore {
    /// Makes the directory on this host, and in the bucket the depot's id and the empty blob, unless the bucket is to be left
    /// alone until it is needed.
    pub fn create(options: &Options, depot_id: [u8; 16]) -> Result<()> {
        let volume = Volume::create(&options.dir, std::iter::empty())?;
        if !volume.is_marked(depot_id)? {
            volume.mark(depot_id)?;
        }
        if !options.test_connection {
            return Ok(());
        }
        let made = ObjectStore::over(volume, options, depot_id)?;
        made.owner.must_be_ours(&made.server)
    }

    /// Opens what `create` made; another depot's is refused. A bucket that cannot be reached is no reason to refuse it: it is
    /// asked before the first change.
    pub fn open(options: &Options, depot_id: [u8; 16]) -> Result<ObjectStore> {
        let volume = Volume::open(&options.dir, depot_id)?;
        let opened = ObjectStore::over(volume, options, depot_id)?;
        if options.test_connection {
            match opened.owner.must_be_ours(&opened.server) {
                Err(error @ Error::Backend { .. }) => {
                    tracing::warn!("whose the bucket is cannot be told now: {}", text::chain(&error));
                }
                told => told?,
            }
        }
        Ok(opened)
    }

    fn over(volume: Volume, options: &Options, depot_id: [u8; 16]) -> Result<ObjectStore> {
        let volume = Arc::new(volume);
        let client = connect::connect(options)?;
        let server = Arc::new(Server::new(
            client.store,
            options.bucket_address(),
            options.socket_timeout,
            options.max_connections,
        ));
        let owner = Owner::new(
            depot_id,
            key_in(&options.path, MARKER),
            key_of(&options.path, &Checksum::EMPTY),
            Arc::clone(&volume),
        );
        let staging = Arc::new(StagingDir::new(Arc::clone(&volume)));
        let readers = readers(&server, options.path.clone(), options.socket_timeout * ON_ITS_WAY);
        let (versions, options) = (client.versions, options.clone());
        Ok(ObjectStore { volume, staging, server, versions, owner, readers, options })
    }

    /// Whether the service can keep earlier versions of objects; whether the bucket does is told when they are asked for.
    pub fn may_keep_versions(&self) -> bool {
        self.versions.is_some()
    }

    /// Puts back a blob that was deleted or spoilt, from an earlier version of its object; whether there was a good one.
    pub fn bring_back(&self, sum: &Checksum, size: u64) -> Result<bool> {
        let key = self.key(sum);
        let Some(versions) = &self.versions else {
            let Request { doing, what } = self.server.request("list the versions of", &key);
            let source = format!("that is not known of {}", self.options.service.kind()).into();
            return Err(Error::Backend { doing, what, transient: false, source });
        };
        for id in versions.of(&self.server, &key, size)? {
            let earlier = Object::earlier(Arc::clone(&self.server), key.clone(), *sum, size, id);
            match self.put_copy(sum, &Blob::Remote(Box::new(earlier))) {
                // Spoilt as well, or gone since: there may be one before it.
                Err(error) if matches!(error, Error::Altered(_)) || is_spoilt(&error) => {}
                done => return done.map(|()| true),
            }
        }
        Ok(false)
    }

    fn key(&self, sum: &Checksum) -> Key {
        key_of(&self.options.path, sum)
    }

    /// Sends one blob, at once or by way of the window.
    fn send(&self, source: &Source<'_>, window: &mut Window<'_>) -> Result<()> {
        self.readers.keep(&source.sum);
        if let Some(left) = self.readers.doubt(&source.sum) {
            let Request { doing, what } = self.server.request("put", &source.key);
            let source = format!(
                "its deletion was not answered and may still be carried out: not within the next {:.1} s",
                left.as_secs_f32()
            );
            // Whoever tries it again at once would keep others waiting for it.
            return Err(Error::Backend { doing, what, transient: false, source: source.into() });
        }
        match source.size > self.options.multipart_limit {
            true => in_parts(&self.server, source, self.options.multipart_element_size),
            false => whole(&self.server, source, window),
        }
    }

    fn send_offer(&self, sum: &Checksum, offer: &Offer, window: &mut Window<'_>) -> Result<()> {
        let file = offer.from.open(offer.name)?;
        let path = offer.from.path().join(offer.name.to_string());
        let read = |buffer: &mut [u8], offset| file.read_at(buffer, offset).doing("read", &path);
        let source = Source { sum: *sum, key: self.key(sum), size: offer.size, read: &read, replace: false };
        self.send(&source, window)
    }
}

/// Whether what was read is not what it should be, or is not there.
fn is_spoilt(error: &Error) -> bool {
    use std::io::ErrorKind::{InvalidData, NotFound};
    matches!(error, Error::Io { source, .. } if matches!(source.kind(), InvalidData | NotFound))
}

/// The key of what has this name below the path.
fn key_in(path: &str, name: &str) -> Key {
    if path.is_empty() { Key::from(name) } else { Key::from(format!("{path}/{name}")) }
}

fn key_of(path: &str, sum: &Checksum) -> Key {
    let name = sum.to_string();
    key_in(path, &format!("{}/{name}", &name[..2]))
}

/// The blobs that are read, of which those that are removed are deleted after their last reader.
fn readers(server: &Arc<Server>, path: String, doubt: Duration) -> Arc<Readers> {
    let server = Arc::clone(server);
    Arc::new_cyclic(|readers: &Weak<Readers>| {
        let readers = readers.clone();
        let delete = Box::new(move |sum: Checksum| {
            let (delete, readers, path) = (Arc::clone(&server), readers.clone(), path.clone());
            let over = move |outcome: Result<()>, readers: &Weak<Readers>| {
                let doubtful = matches!(&outcome, Err(error) if error.is_transient());
                if let Err(error) = outcome {
                    tracing::warn!("the object of a removed blob stays: {}", text::chain(&error));
                }
                if let Some(readers) = readers.upgrade() {
                    if doubtful {
                        readers.not_answered(&sum);
                    }
                    readers.deleted(&sum);
                }
            };
            let ended = readers.clone();
            let started = server.start(async move {
                let key = key_of(&path, &sum);
                let deleted = delete.ask(&delete.request("delete", &key), 0, delete.store.delete(&key)).await;
                over(deleted.map_err(Error::from), &ended);
                Ok(())
            });
            if let Err(error) = started {
                over(Err(error), &readers);
            }
        });
        Readers::new(doubt, delete)
    })
}

impl Provider for ObjectStore {
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        let Some(reading) = self.readers.open(sum) else { return Ok(None) };
        let key = self.key(sum);
        let (size, version) = match size {
            Some(size) => (size, None),
            None => {
                let request = self.server.request("look for", &key);
                match self.server.wait(self.server.ask(&request, 0, self.server.store.head(&key))) {
                    Ok(found) => (found.size, Some(version_of(&found))),
                    Err(failure) if failure.kind == Kind::Absent => return Ok(None),
                    Err(failure) => return Err(failure.into()),
                }
            }
        };
        let object = Object::new(Arc::clone(&self.server), key, *sum, size, version, reading);
        Ok(Some(Blob::Remote(Box::new(object))))
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        if self.readers.is_removed(sum) {
            return Ok(None);
        }
        Ok(self.server.wait(size_of(&self.server, &self.key(sum)))?)
    }

    fn stat_at_hand(&self, _sum: &Checksum) -> Result<Option<u64>> {
        Ok(None)
    }

    fn open_copy(&self, _sum: &Checksum, _file: FileId) -> Result<Option<BlobFile>> {
        Ok(None)
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        let path = || PathBuf::from(format!("{}/{}", self.server.address, self.key(sum)));
        let found = self.stat(sum)?.map(|_| Found { kind: self.options.service.kind(), path: path() });
        Ok(found.into_iter().collect())
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        Ok(Arc::clone(&self.staging))
    }

    fn staging(&self, _name: StagingName) -> Result<Arc<StagingDir>> {
        Ok(Arc::clone(&self.staging))
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        vec![Arc::clone(&self.staging)]
    }

    /// An error may leave some of the objects, whole: the next put of them finds them.
    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        // All are looked at before the first is sent.
        for (_, offer) in batch {
            offer.from.must_be_sound(offer.name)?;
            let found = offer.from.stat(offer.name)?.size;
            if found != offer.size {
                return Err(Error::Changed { name: offer.name, expected: offer.size, found });
            }
        }
        self.owner.must_be_ours(&self.server)?;
        let (mut window, mut sent) = (Window::new(&self.server), HashSet::new());
        for (sum, offer) in batch.iter().filter(|(sum, _)| sent.insert(*sum)) {
            self.send_offer(sum, offer, &mut window)?;
        }
        window.finish()?;
        // A crash here leaves objects that the index does not know.
        failpoint::hit("objects.put");
        Ok(())
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.owner.must_be_ours(&self.server)?;
        let read =
            |buffer: &mut [u8], offset| blob.read_at(buffer, offset).doing("read blob", sum.to_string());
        let source = Source { sum: *sum, key: self.key(sum), size: blob.size(), read: &read, replace: true };
        let mut window = Window::new(&self.server);
        self.send(&source, &mut window)?;
        window.finish()
    }

    fn detach(&self, sum: &Checksum, name: StagingName, _file: FileId) -> Result<()> {
        // The file that the blob was made of, kept for who has it open, is no blob's.
        match self.staging.stat(name) {
            Err(error) if error.is_absent() => Err(Error::NotLocal(*sum)),
            found => found.map(drop),
        }
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        self.owner.must_be_ours(&self.server)?;
        // S3 does not say whether there was anything to delete.
        if self.stat(sum)?.is_none() {
            return Ok(false);
        }
        if self.readers.remove_later(sum) {
            return Ok(true);
        }
        let key = self.key(sum);
        let request = self.server.request("delete", &key);
        match self.server.wait(self.server.ask(&request, 0, self.server.store.delete(&key))) {
            Err(failure) if failure.kind == Kind::Absent => Ok(false),
            done => {
                if matches!(&done, Err(failure) if failure.error.is_transient()) {
                    self.readers.not_answered(sum);
                }
                Ok(done.map(|()| true)?)
            }
        }
    }

    fn force_removed(&self, _sums: &[Checksum]) -> Result<()> {
        // A service that has answered has it on its disks.
        Ok(())
    }

    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        let prefix = (!self.options.path.is_empty()).then(|| Key::from(self.options.path.as_str()));
        let store = &self.server.store;
        let mut found = match after {
            Some(after) => store.list_with_offset(prefix.as_ref(), &self.key(after)),
            None => store.list(prefix.as_ref()),
        };
        let request = self.server.request("list", &self.options.path);
        let mut last: Option<Checksum> = after.copied();
        loop {
            let next = async { poll_fn(|context| found.as_mut().poll_next(context)).await.transpose() };
            let Some(object) = self.server.wait(self.server.ask(&request, 0, next))? else { return Ok(()) };
            let name = object.location.filename().unwrap_or_default();
            let sum = Checksum::parse(name).filter(|sum| self.key(sum) == object.location);
            let shown = match sum {
                // Not every server begins where it is asked to.
                Some(sum) if after.is_some_and(|after| sum <= *after) => continue,
                Some(sum) if last.is_some_and(|last| sum <= last) => {
                    return Err(Error::Backend {
                        doing: request.doing,
                        what: request.what,
                        transient: false,
                        source: "the server does not list objects in the order of their names".into(),
                    });
                }
                Some(sum) if self.readers.is_removed(&sum) => continue,
                Some(sum) => {
                    last = Some(sum);
                    visit(Listed::Blob { sum, size: object.size })
                }
                None if object.location == *self.owner.key() => continue,
                None => {
                    let place = format!("{}/{}", self.server.address, object.location);
                    visit(Listed::Stray(Path::new(&place)))
                }
            };
            if shown.is_break() {
                return Ok(());
            }
        }
    }

    fn reach(&self) -> Reach {
        Reach::Far
    }

    fn status(&self) -> ProviderStatus {
        let trouble = self.server.breaker.trouble().or_else(|| self.volume.failing());
        ProviderStatus {
            kind: self.options.service.kind(),
            directory: Some(self.owner.place(&self.server).into()),
            file_system: None,
            reflink: false,
            space: None,
            health: trouble.map_or(Health::Up, Health::Failing),
            cache: None,
            queue: None,
            owed: 0,
            children: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
