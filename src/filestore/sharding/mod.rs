//! Spreads blobs over several shards, with as many copies of each as were asked for.
//!
//! Nothing records which shard has a blob: reads ask them, so that operators may move blobs between shards by hand. A put
//! makes all copies at once; a shard that fails is dropped from it, and the copies that it would have had are owed
//! ([`debt`]) until `mend` has made them. A shard that fails is set aside and tried again ([`shard`]); as long as one is
//! away, that a blob or a staging file is nowhere else is an error and not an absence.

mod change;
mod choice;
mod debt;
mod hints;
mod known;
mod mend;
mod merge;
mod plan;
mod shard;
mod taken;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

pub use self::change::Wanted;
pub use self::choice::{Choice, Write};
pub use self::known::is_new_in;
pub use self::shard::{Opener, Shard};

use self::debt::Debt;
use self::hints::Hints;
use self::known::Known;
use self::plan::Plan;
use self::taken::Taken;
use super::blob::{Blob, BlobFile, FileId};
use super::error::{Error, Result};
use super::provider::{Found, Health, Mended, Offer, Provider, ProviderStatus, Reach, Space, Visit};
use super::staging::StagingDir;
use super::timed::within_a_moment;
use super::volume::{HERE, Volume, tidied};
use crate::change::StagingName;
use crate::checksum::Checksum;
use crate::failpoint;
use crate::text::chain;

/// Its name in a chain.
const KIND: &str = "sharding";

/// A shard with less room gets staging files only when the others have no more: a writer would meet its end.
const STAGING_ROOM_BYTES_MIN: u64 = 64 << 20;

/// The provider `sharding`.
#[derive(Debug)]
pub struct Sharding {
    volume: Arc<Volume>,
    plan: RwLock<Arc<Plan>>,
    debt: Debt,
    known: Known,
    taken: Arc<Taken>,
    /// Held by whoever replaces the plan.
    changing: Mutex<()>,
    /// Held while a copy is removed that an earlier removal left, and by whoever ends that removal.
    removing: Mutex<()>,
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

    /// Opens it over shards, of which some may be away. One that was none before is made. Two that are one directory are
    /// refused: of blobs that seem to be on both there is one copy.
    pub fn open(dir: &Path, depot_id: [u8; 16], shards: Vec<Shard>, options: Options) -> Result<Sharding> {
        let volume = Arc::new(Volume::open(dir, depot_id)?);
        let debt = Debt::open(Arc::clone(&volume))?;
        let known = Known::open(Arc::clone(&volume))?;
        shards.iter().filter(|shard| known.is_new(&shard.dir)).for_each(Shard::call_new);
        let taken = Arc::<Taken>::default();
        for shard in &shards {
            shard.place_beside(&taken);
            // Those that are away are tried again when somebody asks.
            if let Err(error @ Error::OneDirectory { .. }) = shard.open() {
                return Err(error);
            }
        }
        let plan = Plan::new(shards, options).with_hints_of(&volume);
        let plan = RwLock::new(Arc::new(plan));
        let sharding = Sharding {
            volume,
            plan,
            debt,
            known,
            taken,
            changing: Mutex::default(),
            removing: Mutex::default(),
        };
        // On a disk that is full or read-only it is written down another time.
        tidied(sharding.note_shards());
        Ok(sharding)
    }

    /// What is to be done, for one call.
    fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.read())
    }

    /// Whether it still is: otherwise what was made by it may be too little now, and whoever balances may have passed it by.
    fn is_in_force(&self, plan: &Arc<Plan>) -> bool {
        Arc::ptr_eq(plan, &self.plan.read())
    }

    /// Remembers the shards that are there, so that one which is missing later is not taken for a new one.
    fn note_shards(&self) -> Result<()> {
        let plan = self.plan();
        let there = |shard: &&Shard| shard.known().is_some() || !self.known.is_new(&shard.dir);
        self.known.set_shards(plan.shards.iter().filter(there).map(|shard| shard.dir.as_path()))
    }

    /// Whether blobs may lie elsewhere than they should, because shards or redundancy are not what they were at the last
    /// balance, and all shards are there to put that right.
    pub fn is_balance_due(&self) -> bool {
        let plan = self.plan();
        !self.known.is_balanced_for(&plan.arrangement()) && plan.absent().is_empty()
    }

    /// The arrangement that a balance which begins now is for.
    pub fn arrangement(&self) -> String {
        self.plan().arrangement()
    }

    /// Remembers that all blobs are where they should be with this arrangement.
    pub fn set_balanced(&self, arrangement: &str) -> Result<()> {
        self.known.set_balanced(arrangement)
    }
}

impl Drop for Sharding {
    fn drop(&mut self) {
        let Some(hints) = self.plan().hints_to_keep() else { return };
        let (dir, volume) = (self.volume.at(HERE), Arc::clone(&self.volume));
        // Its disk may hang like any other.
        if let Err(error) = within_a_moment(&dir, &Arc::default(), move || Hints::save(&hints, &volume)) {
            tracing::debug!("where blobs were found is not kept: {}", chain(&error));
        }
    }
}

impl Provider for Sharding {
    fn open(&self, sum: &Checksum, size: Option<u64>) -> Result<Option<Blob>> {
        let plan = self.plan();
        let fits = |blob: &Blob| size.is_none_or(|size| blob.size() == size);
        let (mut other, mut missed, mut failed, mut odd) = (None, Vec::new(), None, false);
        for i in plan.to_read(sum) {
            match plan.try_ask(i, |provider| provider.open(sum, size)) {
                Ok(Some(Some(blob))) if fits(&blob) => {
                    plan.found(sum, i);
                    // One that is not where it was looked for first may lack copies.
                    let lacking =
                        plan.redundancy > 1 && !missed.is_empty() && plan.copies(sum).len() < plan.redundancy;
                    if lacking || odd || other.is_some() {
                        missed.iter().for_each(|i: &usize| plan.shards[*i].suspect());
                        // Who reads it does not suffer from that.
                        tidied(self.debt.add(&[*sum]));
                    }
                    return Ok(Some(blob));
                }
                Ok(Some(Some(blob))) => other = Some(blob),
                Ok(Some(None)) => missed.push(i),
                Ok(None) => failed = Some(plan.away(i, &format!("blob {sum}"))),
                Err(error) => {
                    odd |= plan.shards[i].is_there();
                    failed = Some(error);
                }
            }
        }
        match (other, failed) {
            (None, Some(error)) => Err(error),
            (None, None) => {
                // A shard that lost everything is not one that never had it.
                missed.iter().for_each(|i| plan.shards[*i].suspect());
                plan.nowhere(&format!("blob {sum}")).map(|()| None)
            }
            (other, _) => Ok(other),
        }
    }

    fn stat(&self, sum: &Checksum) -> Result<Option<u64>> {
        let plan = self.plan();
        let order = plan.to_read(sum);
        plan.first(order, &|| format!("blob {sum}"), |provider| provider.stat(sum))
    }

    fn open_copy(&self, sum: &Checksum, file: FileId) -> Result<Option<BlobFile>> {
        let plan = self.plan();
        let what = || format!("a file of blob {sum}");
        plan.first(plan.to_read(sum), &what, |provider| provider.open_copy(sum, file))
    }

    fn locate(&self, sum: &Checksum) -> Result<Vec<Found>> {
        let plan = self.plan();
        let on = |i: usize| plan.ask(i, |provider| provider.locate(sum)).unwrap_or_default();
        Ok((0..plan.shards.len()).flat_map(on).collect())
    }

    fn stage(&self) -> Result<Arc<StagingDir>> {
        let plan = self.plan();
        let mut tight = None;
        for i in plan.choice.to_write(&plan.shards) {
            let Some(provider) = plan.shards[i].writable() else { continue };
            match (provider.stage(), provider.status()) {
                (Ok(dir), status) if status.health == Health::Up => {
                    if status.space.is_none_or(|space| space.available >= STAGING_ROOM_BYTES_MIN) {
                        return Ok(dir);
                    }
                    tight = tight.or(Some(dir));
                }
                (Ok(_), _) => {}
                (Err(error), _) => plan.shards[i].write_failed(&error),
            }
        }
        if let Some(dir) = tight {
            return Ok(dir);
        }
        // All of them have some trouble: the disk that tells it is as good as another.
        match plan.shards.iter().find_map(Shard::get) {
            Some(provider) => provider.stage(),
            None => plan.nowhere("a place for new files").and(Err(Error::TooFewCopies {
                made: 0,
                needed: 1,
                why: "there are no shards".into(),
            })),
        }
    }

    fn staging(&self, name: StagingName) -> Result<Arc<StagingDir>> {
        let plan = self.plan();
        let held = |i: usize, provider: &dyn Provider| Ok(provider.holds_staging(name)?.map(|dir| (i, dir)));
        match plan.first_with(plan.to_stage(name), &|| format!("staging file {name}"), held)? {
            Some((i, dir)) => {
                plan.staged(name, i);
                Ok(dir)
            }
            None => self.stage(),
        }
    }

    fn staging_dirs(&self) -> Vec<Arc<StagingDir>> {
        let plan = self.plan();
        plan.shards.iter().filter_map(Shard::get).flat_map(|provider| provider.staging_dirs()).collect()
    }

    fn put(&self, batch: &[(Checksum, Offer)]) -> Result<()> {
        let plan = self.plan();
        let best = plan.choice.to_write(&plan.shards);
        let mut of_shard: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut stood: HashMap<usize, Vec<bool>> = HashMap::new();
        let removals = self.end_removals(batch.iter().map(|(sum, _)| *sum))?;
        for (item, (sum, offer)) in batch.iter().enumerate() {
            // What should be gone, or mended, may be altered: no copy is taken for made by it where there are other places.
            let left = if self.debt.is_owed(sum) { plan.copies(sum) } else { Vec::new() };
            let others = best.iter().copied().filter(|i| left.iter().all(|(left, _)| left != i));
            let others: Vec<usize> = others.collect();
            let best = if others.len() < plan.lenient { &best } else { &others };
            for i in plan.targets(sum, offer, best) {
                of_shard.entry(i).or_default().push(item);
                stood.entry(i).or_default().push(!plan.surely_lacks(i, sum));
            }
        }
        let mut made = vec![0; batch.len()];
        let mut failure: Option<Error> = None;
        let outcomes = plan.put_on(batch, &of_shard);
        for (i, outcome) in &outcomes {
            match outcome {
                Ok(()) => of_shard[i].iter().for_each(|item| made[*item] += 1),
                Err(error) => plan.shards[*i].write_failed(error),
            }
        }
        let good: Vec<usize> = outcomes.iter().filter(|(_, done)| done.is_ok()).map(|(i, _)| *i).collect();
        for (_, outcome) in outcomes {
            failure = failure.or(outcome.err());
        }
        // A crash here leaves copies that the index does not know.
        failpoint::hit("shards.put");
        let fewest = made.iter().copied().min().unwrap_or(plan.redundancy);
        if fewest < plan.lenient {
            for i in good {
                let new = of_shard[&i].iter().zip(&stood[&i]).filter(|(_, stood)| !**stood);
                plan.take_back(i, &new.map(|(item, _)| batch[*item].0).collect::<Vec<_>>());
            }
            self.not_stored(&removals);
            return Err(too_few(fewest, plan.lenient, failure));
        }
        for (i, items) in of_shard.iter().filter(|(i, _)| good.contains(i)) {
            items.iter().for_each(|item| plan.found(&batch[*item].0, *i));
        }
        let changed = !self.is_in_force(&plan);
        let owed = batch.iter().zip(&made).filter(|(_, made)| changed || **made < plan.redundancy);
        let owed: Vec<Checksum> = owed.map(|((sum, _), _)| *sum).collect();
        self.debt.add(&owed)
    }

    fn put_copy(&self, sum: &Checksum, blob: &Blob) -> Result<()> {
        let plan = self.plan();
        let removals = self.end_removals(std::iter::once(*sum))?;
        let stands: Vec<usize> = plan.copies(sum).into_iter().map(|(i, _)| i).collect();
        let mut order = plan.choice.to_write(&plan.shards);
        // The copies that stand are replaced: one may be bad, and another beside them would be one too many.
        order.sort_by_key(|i| !stands.contains(i));
        let (mut written, mut failure) = (Vec::with_capacity(plan.redundancy), None);
        for i in order {
            if written.len() == plan.redundancy {
                break;
            }
            let Some(provider) = plan.shards[i].writable() else { continue };
            match provider.put_copy(sum, blob) {
                Ok(()) => written.push(i),
                Err(error @ Error::Altered(_)) => {
                    failure = Some(error);
                    break;
                }
                Err(error) => {
                    plan.shards[i].write_failed(&error);
                    failure = Some(error);
                }
            }
        }
        if written.is_empty() {
            self.not_stored(&removals);
        }
        if let Some(error @ Error::Altered(_)) = failure {
            return Err(error);
        }
        if written.len() < plan.lenient {
            return Err(too_few(written.len(), plan.lenient, failure));
        }
        // One that stands and could not be replaced is read, and may be too many.
        let whole = written.len() == plan.redundancy && stands.iter().all(|i| written.contains(i));
        if whole && self.is_in_force(&plan) {
            return Ok(());
        }
        self.debt.add(&[*sum])
    }

    fn detach(&self, sum: &Checksum, name: StagingName, file: FileId) -> Result<()> {
        let plan = self.plan();
        let is_here = |provider: &dyn Provider| {
            let here = provider.holds_staging(name)?.is_some() || provider.open_copy(sum, file)?.is_some();
            Ok(here.then_some(()))
        };
        let holder = |i: &usize| plan.ask(*i, is_here).flatten().is_some();
        match (0..plan.shards.len()).find(holder).and_then(|i| plan.shards[i].get()) {
            Some(provider) => provider.detach(sum, name, file),
            None => plan.nowhere(&format!("blob {sum}")).and(Err(Error::Missing(*sum))),
        }
    }

    fn remove(&self, sum: &Checksum) -> Result<bool> {
        let (removed, left) = self.plan().remove(sum);
        // A shard that is away or takes no change for now must not keep others from giving space back.
        match left {
            true => self.debt.add_removals(&[*sum])?,
            false => self.debt.settle(sum)?,
        }
        Ok(removed || left)
    }

    fn force_removed(&self, sums: &[Checksum]) -> Result<()> {
        if self.plan().force_removed(sums) { Ok(()) } else { self.debt.add_removals(sums) }
    }

    fn list(&self, after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
        let plan = self.plan();
        let get = |i: usize| plan.shards[i].get().ok_or_else(|| plan.away(i, "the listing of all blobs"));
        let shards = (0..plan.shards.len()).map(get).collect::<Result<Vec<Arc<dyn Provider>>>>()?;
        merge::list(&shards, after, visit)
    }

    fn mend(&self, sum: &Checksum) -> Result<Mended> {
        self.mend_holding(sum, &mut || {})
    }

    fn owed(&self, after: Option<&Checksum>, limit: usize) -> Vec<Checksum> {
        // A removal that cannot be done now would be tried on all the others again and again.
        let all_there = self.plan().absent().is_empty();
        self.debt.some(after, limit, all_there)
    }

    fn reach(&self) -> Reach {
        if self.plan().shards.iter().any(Shard::is_on_network) { Reach::Network } else { Reach::Here }
    }

    fn status(&self) -> ProviderStatus {
        let plan = self.plan();
        let children: Vec<ProviderStatus> = plan.shards.iter().map(status_of).collect();
        let spaces = || children.iter().zip(&plan.shards).filter(|(_, s)| s.write_enabled);
        let known: Vec<&Space> = spaces().filter_map(|(child, _)| child.space.as_ref()).collect();
        let sum = |of: fn(&Space) -> u64| known.iter().map(|space| of(space)).sum::<u64>();
        let copies = plan.redundancy as u64;
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
            space: (!known.is_empty()).then_some(space),
            health: failing.map_or(Health::Up, Health::Failing),
            owed: self.debt.lacking() as u64,
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
