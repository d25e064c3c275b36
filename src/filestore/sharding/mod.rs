//! Spreads blobs over several shards, with as many copies of each as were asked for.
//!
//! Nothing records which shard has a blob: reads ask them, so that operators may move blobs between shards by hand. A put
//! makes all copies at once; a shard that fails is dropped from it, and the copies that it would have had are owed
//! ([`debt`]) until `mend` has made them. A shard that fails is set aside and tried again ([`shard`]); as long as one is
//! away, that a blob or a staging file is nowhere else is an error and not an absence.

mod choice;
mod debt;
mod merge;
mod shard;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

pub use self::choice::{Choice, Write};
pub use self::shard::{Opener, Shard};

use self::debt::Debt;
use super::blob::{Blob, BlobFile, FileId};
use super::error::{Error, Result};
use super::provider::{Found, Health, Mended, Offer, Provider, ProviderStatus, Space, Visit};
use super::staging::StagingDir;
use super::volume::{Volume, tidied};
use crate::change::StagingName;
use crate::checksum::{self, Checksum};
use crate::failpoint;
use crate::sys::lease::is_unused;
use crate::text::chain;

/// Its name in a chain.
const KIND: &str = "sharding";

/// The provider `sharding`.
#[derive(Debug)]
pub struct Sharding {
    volume: Arc<Volume>,
    shards: Vec<Shard>,
    choice: Choice,
    /// Copies of each blob.
    redundancy: usize,
    /// Copies without which a put fails.
    lenient: usize,
    debt: Debt,
}

/// What it is to do.
#[derive(Debug)]
pub struct Options {
    /// Copies of each blob; at most as many as there are shards.
    pub redundancy: usize,
    /// Copies without which a put fails; 0: all of them.
    pub lenient_limit: usize,
    /// How shards are chosen.
    pub choice: Choice,
}

impl Sharding {
    /// Makes the directory of what it remembers; durable on Ok.
    pub fn create(dir: &Path, depot_id: [u8; 16]) -> Result<()> {
        let volume = Volume::create(dir, std::iter::empty())?;
        if volume.is_marked(depot_id)? { Ok(()) } else { volume.mark(depot_id) }
    }

    /// Opens it over shards, of which some may be away.
    pub fn open(dir: &Path, depot_id: [u8; 16], shards: Vec<Shard>, options: Options) -> Result<Sharding> {
        let volume = Arc::new(Volume::open(dir, depot_id)?);
        let debt = Debt::open(Arc::clone(&volume))?;
        // Those that are away are tried again when somebody asks.
        shards.iter().for_each(|shard| drop(shard.get()));
        let redundancy = options.redundancy.clamp(1, shards.len().max(1));
        let lenient = if options.lenient_limit == 0 { redundancy } else { options.lenient_limit };
        let lenient = lenient.min(redundancy);
        Ok(Sharding { volume, shards, choice: options.choice, redundancy, lenient, debt })
    }

    /// Runs a look at one shard; what is wrong with the shard sets it aside.
    fn ask<T>(&self, i: usize, look: impl FnOnce(&dyn Provider) -> Result<T>) -> Option<T> {
        self.try_ask(i, look).ok().flatten()
    }

    /// As `ask`, with the error; `None` when the shard is away.
    fn try_ask<T>(&self, i: usize, look: impl FnOnce(&dyn Provider) -> Result<T>) -> Result<Option<T>> {
        let Some(provider) = self.shards[i].get() else { return Ok(None) };
        look(&*provider).map(Some).inspect_err(|error| self.shards[i].read_failed(error))
    }

    /// The first answer of a shard that has one. That none has it is an error if a shard could not be asked.
    fn first<T>(
        &self,
        order: impl IntoIterator<Item = usize>,
        what: &dyn Fn() -> String,
        look: impl Fn(&dyn Provider) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut failed = None;
        for i in order {
            match self.try_ask(i, &look) {
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
    fn away(&self, i: usize, what: &str) -> Error {
        let shard = &self.shards[i];
        let why = shard.trouble().unwrap_or_else(|| "it was away a moment ago".into());
        Error::Away { what: what.to_owned(), dir: shard.dir.clone(), why }
    }

    /// That something is nowhere, unless a shard is away that may have it.
    fn nowhere(&self, what: &str) -> Result<()> {
        match (0..self.shards.len()).find(|i| self.shards[*i].get().is_none()) {
            Some(i) => Err(self.away(i, what)),
            None => Ok(()),
        }
    }

    /// The size of each copy, by the number of its shard, as far as shards can be asked.
    fn copies(&self, sum: &Checksum) -> Vec<(usize, u64)> {
        let size = |i: usize| Some((i, self.ask(i, |provider| provider.stat(sum))??));
        (0..self.shards.len()).filter_map(size).collect()
    }

    /// Whether a shard says itself that it has no such blob.
    fn surely_lacks(&self, i: usize, sum: &Checksum) -> bool {
        matches!(self.try_ask(i, |provider| provider.stat(sum)), Ok(Some(None)))
    }

    /// Where the copies of an offer are to be: where some stand already, where it lies, and then wherever is best.
    fn targets(&self, sum: &Checksum, offer: &Offer, best: &[usize]) -> Vec<usize> {
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
    fn put_on(
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
    fn take_back(&self, i: usize, sums: &[Checksum]) {
        for sum in sums {
            let removed = self.ask(i, |provider| provider.remove(sum));
            if removed.is_none() {
                tracing::warn!("a copy of blob {sum} stays on shard {}", self.shards[i].dir.display());
            }
        }
    }

    /// A copy whose bytes are those of its name.
    fn good_copy(&self, sum: &Checksum, copies: &[(usize, u64)]) -> Option<(usize, Blob)> {
        copies.iter().find_map(|(i, _)| {
            let blob = self.ask(*i, |provider| provider.open(sum, None))??;
            let digest = checksum::digest(&blob, || true).ok()??;
            (digest.checksum == *sum).then_some((*i, blob))
        })
    }

    /// Removes copies beyond those that there should be, from drained shards first; how many.
    fn remove_surplus(&self, sum: &Checksum, mut holders: Vec<usize>) -> u64 {
        let keep = self.choice.to_write(&self.shards);
        // Drained ones first, then those that would get it last.
        holders.sort_by_key(|i| std::cmp::Reverse(keep.iter().position(|k| k == i).unwrap_or(usize::MAX)));
        let counted = holders.iter().filter(|i| self.shards[**i].write_enabled).count();
        let mut surplus = counted.saturating_sub(self.redundancy);
        let mut removed = 0;
        for i in holders {
            let drained = !self.shards[i].write_enabled;
            if (drained && counted < self.redundancy) || (!drained && surplus == 0) || self.is_in_use(i, sum)
            {
                continue;
            }
            if self.ask(i, |provider| provider.remove(sum)) == Some(true) {
                removed += 1;
                surplus -= usize::from(!drained);
            }
        }
        removed
    }

    /// Whether somebody has this copy open: a writer may want this very file.
    fn is_in_use(&self, i: usize, sum: &Checksum) -> bool {
        let blob = self.ask(i, |provider| provider.open(sum, None)).flatten();
        blob.as_ref().and_then(Blob::local).is_none_or(|file| !is_unused(file).unwrap_or(false))
    }
}

impl Provider for Sharding {
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        let fits = |blob: &Blob| size.is_none_or(|size| blob.size() == size);
        let (mut other, mut missed, mut failed) = (None, 0, None);
        for i in self.choice.to_read(&self.shards) {
            match self.try_ask(i, |provider| provider.open(sum, size)) {
                Ok(Some(Some(blob))) if fits(&blob) => {
                    // One that is not where it was looked for first may lack copies.
                    if missed > 0 && self.copies(sum).len() < self.redundancy || other.is_some() {
                        // Who reads it does not suffer from that.
                        tidied(self.debt.add(&[*sum]));
                    }
                    return Ok(Some(blob));
                }
                Ok(Some(Some(blob))) => other = Some(blob),
                Ok(Some(None)) => missed += 1,
                Ok(None) => failed = Some(self.away(i, &format!("blob {sum}"))),
                Err(error) => failed = Some(error),
            }
        }
        match (other, failed) {
            (None, Some(error)) => Err(error),
            (other, _) => Ok(other),
        }
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        let order = self.choice.to_read(&self.shards);
        self.first(order, &|| format!("blob {sum}"), |provider| provider.stat(sum))
    }

    fn open_copy(&self, sum: &Checksum, file: FileId) -> Result<Option<BlobFile>> {
        let what = || format!("a file of blob {sum}");
        self.first(0..self.shards.len(), &what, |provider| provider.open_copy(sum, file))
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        let on = |i: usize| self.ask(i, |provider| provider.locate(sum)).unwrap_or_default();
        Ok((0..self.shards.len()).flat_map(on).collect())
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        for i in self.choice.to_write(&self.shards) {
            let Some(provider) = self.shards[i].writable() else { continue };
            match provider.stage() {
                Ok(dir) if matches!(provider.status().health, Health::Up) => return Ok(dir),
                Ok(_) => {}
                Err(error) => self.shards[i].write_failed(&error),
            }
        }
        // All of them have some trouble: the disk that tells it is as good as another.
        match self.shards.iter().find_map(Shard::get) {
            Some(provider) => provider.stage(),
            None => self.nowhere("a place for new files").and(Err(Error::TooFewCopies {
                made: 0,
                needed: 1,
                why: "there are no shards".into(),
            })),
        }
    }

    fn staging(&self, name: StagingName) -> Result<Arc<StagingDir>> {
        let held = |provider: &dyn Provider| {
            let dir = provider.staging(name)?;
            Ok(dir.holds(name)?.then_some(dir))
        };
        match self.first(0..self.shards.len(), &|| format!("staging file {name}"), held)? {
            Some(dir) => Ok(dir),
            None => self.stage(),
        }
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        self.shards.iter().filter_map(Shard::get).flat_map(|provider| provider.staging_dirs()).collect()
    }

    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        let best = self.choice.to_write(&self.shards);
        let mut of_shard: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut stood: HashMap<usize, Vec<bool>> = HashMap::new();
        for (item, (sum, offer)) in batch.iter().enumerate() {
            for i in self.targets(sum, offer, &best) {
                of_shard.entry(i).or_default().push(item);
                stood.entry(i).or_default().push(!self.surely_lacks(i, sum));
            }
        }
        let mut made = vec![0; batch.len()];
        let mut failure: Option<Error> = None;
        let outcomes = self.put_on(batch, &of_shard);
        for (i, outcome) in &outcomes {
            match outcome {
                Ok(()) => of_shard[i].iter().for_each(|item| made[*item] += 1),
                Err(error) => self.shards[*i].write_failed(error),
            }
        }
        let good: Vec<usize> = outcomes.iter().filter(|(_, done)| done.is_ok()).map(|(i, _)| *i).collect();
        for (_, outcome) in outcomes {
            failure = failure.or(outcome.err());
        }
        // A crash here leaves copies that the index does not know.
        failpoint::hit("shards.put");
        let fewest = made.iter().copied().min().unwrap_or(self.redundancy);
        if fewest < self.lenient {
            for i in good {
                let new = of_shard[&i].iter().zip(&stood[&i]).filter(|(_, stood)| !**stood);
                self.take_back(i, &new.map(|(item, _)| batch[*item].0).collect::<Vec<_>>());
            }
            return Err(too_few(fewest, self.lenient, failure));
        }
        let owed: Vec<Checksum> = batch
            .iter()
            .zip(&made)
            .filter(|(_, made)| **made < self.redundancy)
            .map(|((sum, _), _)| *sum)
            .collect();
        self.debt.add(&owed)
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        let mut made = 0;
        let mut failure = None;
        for i in self.choice.to_write(&self.shards) {
            let Some(provider) = self.shards[i].writable() else { continue };
            match provider.put_copy(sum, blob) {
                Ok(()) => made += 1,
                Err(error @ Error::Altered(_)) => return Err(error),
                Err(error) => {
                    self.shards[i].write_failed(&error);
                    failure = Some(error);
                }
            }
            if made == self.redundancy {
                return Ok(());
            }
        }
        if made < self.lenient {
            return Err(too_few(made, self.lenient, failure));
        }
        self.debt.add(&[*sum])
    }

    fn detach(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<()> {
        let is_here = |provider: &dyn Provider| {
            let here = provider.staging(name)?.holds(name)? || provider.open_copy(sum, file)?.is_some();
            Ok(here.then_some(()))
        };
        let holder = |i: &usize| self.ask(*i, is_here).flatten().is_some();
        match (0..self.shards.len()).find(holder).and_then(|i| self.shards[i].get()) {
            Some(provider) => provider.detach(sum, name, file),
            None => self.nowhere(&format!("blob {sum}")).and(Err(Error::Missing(*sum))),
        }
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        let mut removed = false;
        for (i, _) in self.copies(sum) {
            if let Some(provider) = self.shards[i].get() {
                removed |= provider.remove(sum)?;
            }
        }
        self.debt.settle(sum)?;
        Ok(removed)
    }

    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        self.shards.iter().filter_map(Shard::get).try_for_each(|provider| provider.force_removed(sums))
    }

    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        let get = |i: usize| self.shards[i].get().ok_or_else(|| self.away(i, "the listing of all blobs"));
        let shards = (0..self.shards.len()).map(get).collect::<Result<Vec<Arc<dyn Provider>>>>()?;
        merge::list(&shards, after, visit)
    }

    fn mend(&self, sum: &Checksum) -> Result<Mended> {
        if *sum == Checksum::EMPTY {
            // Every shard was made with it.
            return Ok(Mended::default());
        }
        let copies = self.copies(sum);
        let mut mended = Mended::default();
        let Some((source, good)) = self.good_copy(sum, &copies) else {
            if (0..self.shards.len()).all(|i| self.surely_lacks(i, sum)) {
                self.debt.settle(sum)?;
                return Ok(mended);
            }
            self.nowhere(&format!("blob {sum}"))?;
            return Err(Error::Altered(*sum));
        };
        // Every copy is read before one is called too many: those that are not good are replaced.
        let mut holders = vec![source];
        for (i, found) in copies.iter().filter(|(i, _)| *i != source) {
            if self.good_copy(sum, &[(*i, *found)]).is_some() {
                holders.push(*i);
            } else if self.ask(*i, |provider| provider.put_copy(sum, &good)).is_some() {
                mended.copied += 1;
                holders.push(*i);
            }
        }
        let counted = |holders: &[usize]| holders.iter().filter(|i| self.shards[**i].write_enabled).count();
        for i in self.choice.to_write(&self.shards) {
            let Some(provider) = self.shards[i].writable() else { continue };
            if counted(&holders) >= self.redundancy || holders.contains(&i) {
                continue;
            }
            match provider.put_copy(sum, &good) {
                Ok(()) => {
                    mended.copied += 1;
                    holders.push(i);
                }
                Err(error @ Error::Altered(_)) => return Err(error),
                Err(error) => self.shards[i].write_failed(&error),
            }
        }
        // A crash here leaves a copy too many, which the next balance removes.
        failpoint::hit("shards.mended");
        drop(good);
        if counted(&holders) < self.redundancy {
            self.debt.add(&[*sum])?;
            return Ok(mended);
        }
        mended.removed = self.remove_surplus(sum, holders);
        self.debt.settle(sum)?;
        Ok(mended)
    }

    fn owed(&self, after: Option<&Checksum>, limit: usize) -> Vec<Checksum> {
        self.debt.some(after, limit)
    }

    fn status(&self) -> ProviderStatus {
        let children: Vec<ProviderStatus> = self.shards.iter().map(status_of).collect();
        let spaces = || children.iter().zip(&self.shards).filter(|(_, s)| s.write_enabled);
        let sum = |of: fn(&Space) -> u64| {
            spaces().filter_map(|(child, _)| Some(of(child.space.as_ref()?))).sum::<u64>()
        };
        let copies = self.redundancy as u64;
        let space = Space {
            capacity: sum(|s| s.capacity) / copies,
            free: sum(|s| s.free) / copies,
            available: sum(|s| s.available) / copies,
            inodes: sum(|s| s.inodes) / copies,
            inodes_free: sum(|s| s.inodes_free) / copies,
        };
        let failing = children.iter().find_map(|child| match &child.health {
            Health::Failing(why) => Some(why.clone()),
            Health::Up => None,
        });
        ProviderStatus {
            kind: KIND,
            directory: Some(self.volume.path().to_owned()),
            file_system: None,
            reflink: children.iter().all(|child| child.reflink),
            space: Some(space),
            health: failing.map_or(Health::Up, Health::Failing),
            owed: self.debt.len() as u64,
            cache: None,
            queue: None,
            children,
        }
    }
}

/// A shard as it says itself that it does, or why it cannot.
fn status_of(shard: &Shard) -> ProviderStatus {
    let provider = shard.known();
    let trouble = shard.trouble().map(|why| format!("shard {}: {why}", shard.dir.display()));
    let mut status = match provider {
        Some(provider) => provider.status(),
        None => ProviderStatus {
            kind: "file-system",
            directory: Some(shard.dir.clone()),
            file_system: None,
            reflink: false,
            space: None,
            health: Health::Up,
            owed: 0,
            cache: None,
            queue: None,
            children: Vec::new(),
        },
    };
    if let Some(why) = trouble {
        status.health = Health::Failing(why);
    }
    status
}

fn joined(thread: std::thread::Result<Result<()>>) -> Result<()> {
    thread.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What fewer copies than needed is told as: an error of the file itself, else that of a shard.
fn too_few(made: usize, needed: usize, failure: Option<Error>) -> Error {
    match failure {
        Some(error @ (Error::Changed { .. } | Error::Unforced { .. } | Error::Linked { .. })) => error,
        // Room can be made, and the same put done again.
        Some(error) if error.is_full() => error,
        failure => {
            let why = failure.as_ref().map_or_else(|| "too few shards take blobs".to_owned(), |e| chain(e));
            Error::TooFewCopies { made, needed, why }
        }
    }
}

#[cfg(test)]
mod tests;
