//! Lets a test break the provider below: it fails, loses answers, is slow, or gives bytes that are not those it keeps.
//!
//! What goes wrong is said by a file that is read again whenever it changes ([`rules`]), so that an outage of a mounted
//! depot begins and ends when a test wants it. With `remote = true` no blob is a local file, and one whose size is known
//! is opened without a request: so the files of a directory play a store that is far away.
//!
//! ```toml
//! chain = ["eventual", "faulty", "file-system"]
//! [faulty]
//! control = "faulty.control"
//! remote = true
//! ```

mod rules;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use self::rules::{Faults, Then};
use super::blob::{Blob, BlobFile, FileId, Remote};
use super::error::{Doing, Error, Result};
use super::provider::{Found, Health, Mended, Offer, Provider, ProviderStatus, Reach, Visit};
use super::staging::{StagingDir, StagingReader};
use crate::change::StagingName;
use crate::checksum::Checksum;

pub use self::rules::Call;

/// Its name in a chain.
const KIND: &str = "faulty";

/// The provider `faulty`.
#[derive(Debug)]
pub struct Faulty {
    below: Arc<dyn Provider>,
    faults: Arc<Faults>,
    remote: bool,
}

impl Faulty {
    /// Over a provider: `control` says what goes wrong, `seed` which of several calls do by chance.
    pub fn over(below: Arc<dyn Provider>, control: PathBuf, seed: u64, remote: bool) -> Faulty {
        Faulty { below, faults: Arc::new(Faults::new(control, seed)), remote }
    }

    /// What goes wrong from now on, in place of what the file says, until that changes.
    pub fn set(&self, rules: &str) {
        self.faults.set(rules);
    }

    /// Calls that came since the start, those included that failed.
    pub fn calls(&self, call: Call) -> u64 {
        self.faults.calls(call)
    }

    /// Runs a call with what goes wrong at it.
    fn run<T>(&self, call: Call, work: impl FnOnce(Then) -> Result<T>) -> Result<T> {
        let then = self.faults.before(call).doing(call.name(), &self.faults.control)?;
        let done = work(then);
        if then == Then::Lose && done.is_ok() {
            let lost = Err(io::Error::from(io::ErrorKind::ConnectionReset));
            return lost.doing(call.name(), &self.faults.control);
        }
        done
    }

    /// A blob whose reads go wrong as they are told to.
    fn distant(&self, sum: &Checksum, size: u64, open: Option<Blob>) -> Blob {
        let (below, faults) = (Arc::clone(&self.below), Arc::clone(&self.faults));
        Blob::Remote(Box::new(Distant { sum: *sum, size, open, below, faults }))
    }

    /// Puts copies of staging files, as a provider does that cannot link them: all or none.
    fn put_copies(&self, batch: &[(Checksum, Offer)], then: Then) -> Result<()> {
        let readers = batch.iter().map(|(_, offer)| reader(offer)).collect::<Result<Vec<_>>>()?;
        let mut made = Vec::new();
        for ((sum, offer), reader) in batch.iter().zip(readers) {
            let put = match self.below.stat(sum) {
                Ok(Some(size)) if size == offer.size => continue,
                Ok(_) => self.below.put_copy(sum, &Altering::of(reader, offer.size, then)),
                Err(error) => Err(error),
            };
            if let Err(error) = put {
                for sum in made {
                    self.below.remove(&sum)?;
                }
                return Err(error);
            }
            made.push(*sum);
        }
        Ok(())
    }
}

/// A staging file that is as it was when it was hashed.
fn reader(offer: &Offer) -> Result<StagingReader> {
    offer.from.must_be_sound(offer.name)?;
    let found = offer.from.stat(offer.name)?.size;
    if found != offer.size {
        return Err(Error::Changed { name: offer.name, expected: offer.size, found });
    }
    offer.from.open(offer.name)
}

impl Provider for Faulty {
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        if let (true, Some(size)) = (self.remote, size) {
            return Ok(Some(self.distant(sum, size, None)));
        }
        let found = self.run(Call::Open, |_| self.below.open(sum, size))?;
        Ok(found.map(|blob| match self.remote || self.faults.concern(Call::Read) {
            true => self.distant(sum, blob.size(), Some(blob)),
            false => blob,
        }))
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        self.run(Call::Stat, |_| self.below.stat(sum))
    }

    fn open_copy(&self, sum: &Checksum, file: FileId) -> Result<Option<BlobFile>> {
        if self.remote {
            return Ok(None);
        }
        self.run(Call::Open, |_| self.below.open_copy(sum, file))
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        self.run(Call::Locate, |_| self.below.locate(sum))
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        self.below.stage()
    }

    fn staging(&self, name: StagingName) -> Result<Arc<StagingDir>> {
        self.below.staging(name)
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        self.below.staging_dirs()
    }

    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.run(Call::Put, |then| match self.remote || then.alters() {
            true => self.put_copies(batch, then),
            false => self.below.put(batch),
        })
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        self.run(Call::Put, |then| match then.alters() {
            // What is borrowed cannot be handed on: its bytes can.
            true => {
                let mut bytes = vec![0; blob.size() as usize];
                blob.read_at(&mut bytes, 0).doing("read blob", sum.to_string())?;
                let size = blob.size();
                self.below.put_copy(sum, &Altering::of(bytes, size, then))
            }
            false => self.below.put_copy(sum, blob),
        })
    }

    fn detach(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<()> {
        if !self.remote {
            return self.run(Call::Put, |_| self.below.detach(sum, name, file));
        }
        match self.staging(name)?.stat(name) {
            Err(error) if error.is_absent() => Err(Error::NotLocal(*sum)),
            found => found.map(drop),
        }
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        self.run(Call::Remove, |_| self.below.remove(sum))
    }

    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        self.run(Call::Remove, |_| self.below.force_removed(sums))
    }

    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        self.run(Call::List, |_| self.below.list(after, visit))
    }

    fn mend(&self, sum: &Checksum) -> Result<Mended> {
        self.run(Call::Put, |_| self.below.mend(sum))
    }

    fn owed(&self, after: Option<&Checksum>, limit: usize) -> Vec<Checksum> {
        self.below.owed(after, limit)
    }

    fn reach(&self) -> Reach {
        Reach::Far
    }

    fn status(&self) -> ProviderStatus {
        let below = self.below.status();
        let played = self.faults.in_words();
        ProviderStatus {
            kind: KIND,
            directory: None,
            file_system: below.file_system.clone(),
            reflink: below.reflink && !self.remote,
            space: below.space,
            health: played.map_or_else(|| below.health.clone(), Health::Failing),
            cache: None,
            owed: 0,
            queue: None,
            children: vec![below],
        }
    }
}

/// A blob that is read through the faults.
#[derive(Debug)]
struct Distant {
    sum: Checksum,
    size: u64,
    /// What was opened; `None`: each read asks.
    open: Option<Blob>,
    below: Arc<dyn Provider>,
    faults: Arc<Faults>,
}

impl Remote for Distant {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let then = self.faults.before(Call::Read)?;
        let asked;
        let blob = match &self.open {
            Some(blob) => blob,
            None => {
                let found = self.below.open(&self.sum, Some(self.size)).map_err(io::Error::other)?;
                asked = found.ok_or(io::ErrorKind::NotFound)?;
                if asked.size() != self.size {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                &asked
            }
        };
        let read = blob.read_at(buffer, offset)?;
        then.read(buffer, read, offset, self.size)
    }
}

/// What can be read at an offset.
trait Source: std::fmt::Debug + Send + Sync {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Source for StagingReader {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        StagingReader::read_at(self, buffer, offset)
    }
}

impl Source for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

/// Bytes that are altered on their way.
#[derive(Debug)]
struct Altering<S> {
    source: S,
    size: u64,
    then: Then,
}

impl<S: Source + 'static> Altering<S> {
    fn of(source: S, size: u64, then: Then) -> Blob {
        Blob::Remote(Box::new(Altering { source, size, then }))
    }
}

impl<S: Source> Remote for Altering<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.source.read_at(buffer, offset)?;
        self.then.read(buffer, read, offset, self.size)
    }
}

#[cfg(test)]
mod tests;
