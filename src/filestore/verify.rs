//! A look at every byte of a blob, at each place that has it, and good bytes in the place of altered ones where there are any.

use std::fmt;
use std::io;

use super::Filestore;
use super::blob::Blob;
use super::error::{Doing, Result};
use crate::checksum::Checksum;
use crate::text;

/// What such a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The bytes are those of its name (and of its BLAKE3, where that was given).
    Good {
        /// BLAKE3 of them.
        blake3: [u8; 32],
        /// How many.
        size: u64,
    },
    /// They are not.
    Altered {
        /// How many there are.
        size: u64,
    },
    /// Some of its copies are good and others not, which are made anew by the next `mend`.
    SomeAltered {
        /// How many are not.
        bad: u64,
        /// How many there are.
        of: u64,
    },
    /// Its bytes were altered or missing where it is stored, and were put back.
    Healed(Source),
    /// There is no such blob.
    Missing,
}

/// Where good bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A copy on this host: the cached one, or that of the upload queue.
    Copy,
    /// An earlier version that the bucket keeps.
    EarlierVersion,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Copy => "a good copy on this host",
            Source::EarlierVersion => "an earlier version in the bucket",
        })
    }
}

impl Filestore {
    /// Reads every byte of a blob, of each copy where there are several, a cached one too, and compares: by BLAKE3 where the
    /// caller knows it, which is faster, else by SHA-1. What is stored is put right where there are good bytes of it.
    ///
    /// `is_known`: whether some durable state names the blob; asked with the latch held, before bytes are put anywhere.
    pub fn verify(
        &self,
        sum: &Checksum,
        size: u64,
        blake3: Option<&[u8; 32]>,
        is_known: &dyn Fn() -> bool,
    ) -> Result<Verdict> {
        let (verdict, good) = self.look_everywhere(sum, blake3)?;
        match verdict {
            Verdict::Altered { .. } | Verdict::Missing => {
                Ok(self.heal(sum, size, good, is_known).unwrap_or(verdict))
            }
            verdict => Ok(verdict),
        }
    }

    /// The same, and what is stored stays as it is.
    pub fn examine(&self, sum: &Checksum, blake3: Option<&[u8; 32]>) -> Result<Verdict> {
        Ok(self.look_everywhere(sum, blake3)?.0)
    }

    /// What is stored, and a good copy on this host, if there is one.
    fn look_everywhere(&self, sum: &Checksum, blake3: Option<&[u8; 32]>) -> Result<(Verdict, Option<Blob>)> {
        let Some(sharding) = &self.parts.sharding else { return self.look_below_copies(sum, blake3) };
        let (mut good, mut of) = (0, 0);
        for blob in sharding.open_all(sum) {
            let (is_good, _) = look_at(&blob, sum, blake3)?;
            // What is a writer's by now was nobody's copy.
            if is_good || self.is_still(sum, &blob)? {
                good += u64::from(is_good);
                of += 1;
            }
        }
        if good == of || good == 0 {
            return self.look_below_copies(sum, blake3);
        }
        sharding.owe(sum)?;
        Ok((Verdict::SomeAltered { bad: of - good, of }, None))
    }

    fn look_below_copies(
        &self,
        sum: &Checksum,
        blake3: Option<&[u8; 32]>,
    ) -> Result<(Verdict, Option<Blob>)> {
        let cached = self.verify_cached(sum, blake3)?;
        let queued = self.parts.queue.as_ref().and_then(|queue| queue.open_uploaded(sum).transpose());
        let queued = queued.transpose()?;
        let verdict = self.verify_stored(sum, blake3, queued.is_some())?;
        // A queued file that was uploaded and is still used is a copy, like a cached one.
        let queued = match queued {
            Some(queued) if !look_at(&queued, sum, blake3)?.0 => {
                if matches!(verdict, Verdict::Good { .. }) {
                    self.drop_queued(sum, &queued)?;
                }
                None
            }
            queued => queued,
        };
        Ok((verdict, cached.or(queued)))
    }

    /// What is stored, below the copies on this host.
    fn verify_stored(&self, sum: &Checksum, blake3: Option<&[u8; 32]>, is_sent: bool) -> Result<Verdict> {
        loop {
            let found = match (&self.parts.queue, self.cache()) {
                (Some(queue), _) if is_sent => queue.open_sent(sum)?,
                (_, Some(cache)) => cache.open_below(sum)?,
                (_, None) => self.provider.open(sum, None)?,
            };
            let Some(blob) = found else { return Ok(Verdict::Missing) };
            let size = blob.size();
            let (good, blake3) = look_at(&blob, sum, blake3)?;
            // A blob's file can change hands and be written while it is read: then what was read is nobody's.
            if self.is_still(sum, &blob)? {
                return Ok(if good { Verdict::Good { blake3, size } } else { Verdict::Altered { size } });
            }
        }
    }

    /// Looks at the cached copy: one that is altered is dropped. If it is good that says nothing of the blob, which is what is
    /// below.
    fn verify_cached(&self, sum: &Checksum, blake3: Option<&[u8; 32]>) -> Result<Option<Blob>> {
        let Some(blob) = self.cache().and_then(|cache| cache.open_cached(sum)) else { return Ok(None) };
        if look_at(&blob, sum, blake3)?.0 {
            return Ok(Some(blob));
        }
        if let (Some(cache), Some(file)) = (self.cache(), blob.file_id()) {
            let _latch = self.latches.take(*sum);
            if cache.drop_copy(sum, file)? {
                tracing::warn!("the cached copy of blob {sum} was altered: dropped");
            }
        }
        Ok(None)
    }

    /// Drops an altered file from the upload queue, of a blob that is stored below.
    fn drop_queued(&self, sum: &Checksum, altered: &Blob) -> Result<()> {
        let (Some(queue), Some(file)) = (&self.parts.queue, altered.file_id()) else { return Ok(()) };
        let _latch = self.latches.take(*sum);
        if queue.drop_uploaded(sum, file)? {
            // Those who have it open read it on; they are not to take it for the blob.
            self.alterations.note(sum);
            tracing::warn!(
                "the file of blob {sum} in the upload queue was altered after its upload: dropped"
            );
        }
        Ok(())
    }

    /// Puts good bytes in the place of those below: of a good copy, or else of an earlier version. `None`: it could not be
    /// done, and the log says why if there was something to try.
    fn heal(
        &self,
        sum: &Checksum,
        size: u64,
        good: Option<Blob>,
        is_known: &dyn Fn() -> bool,
    ) -> Option<Verdict> {
        let _one = self.mending.take(*sum);
        let _latch = self.latches.take(*sum);
        if !is_known() {
            return None;
        }
        let healed = match good {
            Some(good) => self.heal_from(sum, &good).map(|done| done.then_some(Source::Copy)),
            None => self.heal_from_versions(sum, size).map(|done| done.then_some(Source::EarlierVersion)),
        };
        let source = healed.unwrap_or_else(|error| {
            tracing::info!("blob {sum} could not be healed: {}", text::chain(&error));
            None
        })?;
        // What was read of it before is in doubt.
        self.alterations.note(sum);
        tracing::warn!("blob {sum} was altered or missing and was put back from {source}");
        Some(Verdict::Healed(source))
    }

    fn heal_from(&self, sum: &Checksum, good: &Blob) -> Result<bool> {
        // Removed meanwhile, or a writer's, it is nobody's copy.
        if !self.is_still(sum, good)? {
            return Ok(false);
        }
        self.provider.heal(sum, good).map(|()| true)
    }

    fn heal_from_versions(&self, sum: &Checksum, size: u64) -> Result<bool> {
        let Some(objects) = self.parts.objects.as_ref().filter(|objects| objects.may_keep_versions()) else {
            return Ok(false);
        };
        let is_back = objects.bring_back(sum, size)?;
        if let (true, Some(queue)) = (is_back, &self.parts.queue) {
            queue.is_healed(sum)?;
        }
        Ok(is_back)
    }
}

/// Whether the bytes are the expected ones, and their BLAKE3.
fn look_at(blob: &Blob, sum: &Checksum, blake3: Option<&[u8; 32]>) -> Result<(bool, [u8; 32])> {
    let look = || -> io::Result<(bool, [u8; 32])> {
        if let Some(expected) = blake3 {
            let found = blob.blake3()?;
            return Ok((found == *expected, found));
        }
        let found = blob.digest(|| true)?;
        Ok(found.map_or((false, [0; 32]), |found| (found.checksum == *sum, found.blake3)))
    };
    look().doing("read all of blob", sum.to_string())
}
