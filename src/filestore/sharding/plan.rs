//! The shards and what is to be done with them, as one call sees them from its beginning to its end.
//!
//! The plan in force is replaced as a whole when the configuration changes; whoever has begun with the old one ends with it.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::super::blob::Blob;
use super::super::error::{Error, Result};
use super::super::provider::{Offer, Provider};
use super::super::volume::Volume;
use super::choice::Choice;
use super::hints::{self, Hints};
use super::shard::Shard;
use super::{Options, joined, too_few};
use crate::change::StagingName;
use crate::checksum::{Checksum, Hasher};
use crate::sys::file::FileSystemType;
use crate::sys::lease::is_unused;

/// See above.
#[derive(Debug)]
pub struct Plan {
    /// In the order of the configuration.
    pub shards: Vec<Shard>,
    /// How they are chosen.
    pub choice: Choice,
    /// Copies of each blob.
    pub redundancy: usize,
    /// Copies without which a put fails.
    pub lenient: usize,
    hints: Hints,
    staging_hints: Hints,
}

impl Plan {
    /// What was asked for, as far as there are shards for it.
    pub fn new(shards: Vec<Shard>, options: Options) -> Plan {
        let redundancy = options.redundancy.clamp(1, shards.len().max(1));
        let lenient = if options.lenient_limit == 0 { redundancy } else { options.lenient_limit };
        Plan {
            shards,
            choice: options.choice,
            redundancy,
            lenient: lenient.min(redundancy),
            hints: Hints::default(),
            staging_hints: Hints::default(),
        }
    }

    /// The same, with the guesses that were kept.
    pub fn with_hints_of(self, volume: &Volume) -> Plan {
        Plan { hints: Hints::load(volume, &self.order()), ..self }
    }

    /// What to keep of the guesses, if they make a difference.
    pub fn hints_to_keep(&self) -> Option<Vec<u8>> {
        (self.redundancy == 1 && self.shards.len() > 1).then(|| self.hints.to_bytes(&self.order()))
    }

    /// Tells the shards and their order, which numbers are of.
    fn order(&self) -> Checksum {
        let mut hasher = Hasher::default();
        for shard in &self.shards {
            hasher.update(shard.dir.as_os_str().as_bytes());
            hasher.update(&[0]);
        }
        hasher.finish().checksum
    }

    /// Numbers of all shards, in the order in which they are asked for this blob.
    pub fn to_read(&self, sum: &Checksum) -> Vec<usize> {
        let mut order = self.choice.to_read(&self.shards);
        // Of several copies each is read in its turn; of a single one it is known where it was.
        let hint = if self.redundancy == 1 { self.hints.get(hints::of_blob(sum)) } else { None };
        if let Some(at) = order.iter().position(|i| Some(*i) == hint) {
            order[..=at].rotate_right(1);
        }
        order
    }

    /// A blob was found on this shard.
    pub fn found(&self, sum: &Checksum, i: usize) {
        if self.redundancy == 1 {
            self.hints.set(hints::of_blob(sum), i);
        }
    }

    /// Numbers of all shards, in the order in which they are asked for this staging file: one that hangs keeps nobody from a
    /// file that is known to be on another.
    pub fn to_stage(&self, name: StagingName) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.shards.len()).collect();
        if let Some(at) = self.staging_hints.get(hints::of_staging(name)).filter(|at| *at < order.len()) {
            order[..=at].rotate_right(1);
        }
        order
    }

    /// A staging file was found on this shard.
    pub fn staged(&self, name: StagingName, i: usize) {
        self.staging_hints.set(hints::of_staging(name), i);
    }

    /// One text for each arrangement of blobs on shards: where it is another one, blobs may have to move.
    pub fn arrangement(&self) -> String {
        let mut shards: Vec<String> = self
            .shards
            .iter()
            .map(|shard| format!("{}{}", if shard.write_enabled { '+' } else { '-' }, shard.dir.display()))
            .collect();
        shards.sort();
        format!("{} of {}", self.redundancy, shards.join(" "))
    }

    /// Runs a look at one shard; what is wrong with the shard sets it aside.
    pub fn ask<T>(&self, i: usize, look: impl FnOnce(&dyn Provider) -> Result<T>) -> Option<T> {
        self.try_ask(i, look).ok().flatten()
    }

    /// As `ask`, with the error; `None` when the shard is away.
    pub fn try_ask<T>(&self, i: usize, look: impl FnOnce(&dyn Provider) -> Result<T>) -> Result<Option<T>> {
        let Some(provider) = self.shards[i].get() else { return Ok(None) };
        look(&*provider).map(Some).inspect_err(|error| self.shards[i].read_failed(error))
    }

    /// The first answer of a shard that has one. That none has it is an error if a shard could not be asked.
    pub fn first<T>(
        &self,
        order: impl IntoIterator<Item = usize>,
        what: &dyn Fn() -> String,
        look: impl Fn(&dyn Provider) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        self.first_with(order, what, |_, provider| look(provider))
    }

    /// The same of a look that is told which shard it is at.
    pub fn first_with<T>(
        &self,
        order: impl IntoIterator<Item = usize>,
        what: &dyn Fn() -> String,
        look: impl Fn(usize, &dyn Provider) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut failed = None;
        for i in order {
            match self.try_ask(i, |provider| look(i, provider)) {
                Ok(Some(Some(found))) => return Ok(Some(found)),
                Ok(Some(None)) => {}
                // It was not asked, even if it should be back by now.
                Ok(None) => failed = Some(self.away(i, &what())),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// That something may be on a shard that is away.
    pub fn away(&self, i: usize, what: &str) -> Error {
        let shard = &self.shards[i];
        let why = shard.trouble().unwrap_or_else(|| "it was away a moment ago".into());
        Error::Away { what: what.to_owned(), dir: shard.dir.clone(), why }
    }

    /// That something is nowhere, unless a shard is away that may have it.
    pub fn nowhere(&self, what: &str) -> Result<()> {
        match (0..self.shards.len()).find(|i| self.shards[*i].get().is_none()) {
            Some(i) => Err(self.away(i, what)),
            None => Ok(()),
        }
    }

    /// The size of each copy, by the number of its shard, as far as shards can be asked.
    pub fn copies(&self, sum: &Checksum) -> Vec<(usize, u64)> {
        let size = |i: usize| Some((i, self.ask(i, |provider| provider.stat(sum))??));
        (0..self.shards.len()).filter_map(size).collect()
    }

    /// Whether a shard says itself that it has no such blob.
    pub fn surely_lacks(&self, i: usize, sum: &Checksum) -> bool {
        matches!(self.try_ask(i, |provider| provider.stat(sum)), Ok(Some(None)))
    }

    /// Where the copies of an offer are to be: where some stand already, where it lies, and then wherever is best.
    pub fn targets(&self, sum: &Checksum, offer: &Offer, best: &[usize]) -> Vec<usize> {
        let standing = self.copies(sum).into_iter().map(|(i, _)| i).filter(|i| best.contains(i));
        let lies = best.iter().copied().filter(|i| self.lies_on(*i, offer));
        let mut targets: Vec<usize> = Vec::with_capacity(self.redundancy);
        // Those that stand come first: one more would be a copy too many.
        for i in standing.chain(lies).chain(best.iter().copied()) {
            if targets.len() < self.redundancy && !targets.contains(&i) {
                targets.push(i);
            }
        }
        targets
    }

    fn lies_on(&self, i: usize, offer: &Offer) -> bool {
        let dirs = self.shards[i].get().map(|provider| provider.staging_dirs()).unwrap_or_default();
        dirs.iter().any(|dir| Arc::ptr_eq(dir, &offer.from))
    }

    /// Puts on each shard what is to be there, on all at the same time; how it went on each.
    pub fn put_on(
        &self,
        batch: &[(Checksum, Offer)],
        of_shard: &HashMap<usize, Vec<usize>>,
    ) -> Vec<(usize, Result<()>)> {
        let put = |i: usize, items: &[usize]| {
            let part: Vec<(Checksum, Offer)> = items.iter().map(|item| batch[*item].clone()).collect();
            match self.shards[i].writable() {
                Some(provider) => provider.put(&part),
                None => Err(too_few(0, 1, None)),
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                of_shard.iter().map(|(i, items)| (*i, scope.spawn(move || put(*i, items)))).collect();
            threads.into_iter().map(|(i, thread)| (i, joined(thread.join()))).collect()
        })
    }

    /// Removes from a shard what a failed put has made there.
    pub fn take_back(&self, i: usize, sums: &[Checksum]) {
        for sum in sums {
            let removed = self.ask(i, |provider| provider.remove(sum));
            if removed.is_none() {
                tracing::warn!("a copy of blob {sum} stays on shard {}", self.shards[i].dir.display());
            }
        }
    }

    /// Removes every copy that can be removed now: whether there was one, and whether one may be left.
    pub fn remove(&self, sum: &Checksum) -> (bool, bool) {
        let (mut removed, mut left) = (false, false);
        for i in 0..self.shards.len() {
            match self.remove_on(i, sum) {
                Some(there) => removed |= there,
                None => left = true,
            }
        }
        (removed, left)
    }

    /// Removes a shard's copy; whether there was one, `None` when that cannot be told or it stays.
    pub fn remove_on(&self, i: usize, sum: &Checksum) -> Option<bool> {
        let provider = self.shards[i].get()?;
        if self.ask(i, |provider| provider.stat(sum))?.is_none() {
            return Some(false);
        }
        provider.remove(sum).inspect_err(|error| self.shards[i].remove_failed(error)).ok()
    }

    /// Makes removals durable on every shard; whether all of them are.
    pub fn force_removed(&self, sums: &[Checksum]) -> bool {
        let force = |shard: &Shard| {
            let Some(provider) = shard.get() else { return false };
            match provider.force_removed(sums) {
                Ok(()) => true,
                // In a folder that is gone there is nothing.
                Err(error) if error.is_absent() => true,
                Err(error) => {
                    shard.remove_failed(&error);
                    false
                }
            }
        };
        // Each of them is asked, whatever another one says.
        self.shards.iter().filter(|shard| !force(shard)).count() == 0
    }

    /// How many of these shards have copies that count: a drained one's do not.
    pub fn counted(&self, holders: &[usize]) -> usize {
        holders.iter().filter(|i| self.shards[**i].write_enabled).count()
    }

    /// Opens a shard's copy.
    pub fn open_on(&self, i: usize, sum: &Checksum) -> Option<Blob> {
        self.ask(i, |provider| provider.open(sum, None))?
    }

    /// Whether somebody has this copy open: a writer may want this very file.
    pub fn is_in_use(&self, i: usize, sum: &Checksum) -> bool {
        let Some(blob) = self.open_on(i, sum) else { return true };
        // Bytes that are asked for are in no file that anybody could be given.
        let Some(file) = blob.local() else { return false };
        // There is no telling on a network file system, whose files no kernel serves by passthrough: open ones go on there.
        is_unused(file)
            .map_or_else(|_| !FileSystemType::of(file).is_ok_and(|kind| kind.is_network()), |unused| !unused)
    }

    /// The shards that are away, each with the reason.
    pub fn absent(&self) -> Vec<(usize, String)> {
        let why = |i: usize| self.shards[i].trouble().unwrap_or_default();
        (0..self.shards.len()).filter(|i| self.shards[*i].get().is_none()).map(|i| (i, why(i))).collect()
    }
}
