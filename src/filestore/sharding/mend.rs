//! As many good copies of a blob as there should be, and no more.

use std::collections::HashMap;

use super::super::blob::{Blob, FileId};
use super::super::error::{Error, Result};
use super::super::provider::Mended;
use super::super::volume::tidied;
use super::Sharding;
use super::plan::Plan;
use crate::checksum::{self, Checksum};
use crate::failpoint;

/// What was done for a blob before its latch was taken: only what takes long, and nothing that others see.
#[derive(Default)]
struct Prepared {
    /// Files whose bytes were read and found good, by the number of their shard.
    good: HashMap<usize, FileId>,
    /// Shards that have a copy under a temporary name.
    waiting: Vec<usize>,
}

impl Sharding {
    /// Whether `mend` would find something to do, as far as sizes tell: bytes are not read.
    pub fn needs_mending(&self, sum: &Checksum, size: u64) -> bool {
        if *sum == Checksum::EMPTY {
            return false;
        }
        let plan = self.plan();
        let copies = plan.copies(sum);
        let holders: Vec<usize> = copies.iter().map(|(i, _)| *i).collect();
        let counted = plan.counted(&holders);
        if counted < plan.redundancy {
            // A shard that lost everything is set aside, and not filled anew.
            let lacking = (0..plan.shards.len()).filter(|i| !holders.contains(i));
            lacking.for_each(|i| plan.shards[i].suspect());
        }
        copies.iter().any(|(_, found)| *found != size)
            || counted != plan.redundancy
            || counted < holders.len()
    }

    /// See [`Provider::mend`](super::super::Provider::mend), of a caller who does not hold the latch yet: `hold` takes it,
    /// once, after all that takes long.
    pub fn mend_holding(&self, sum: &Checksum, hold: &mut dyn FnMut()) -> Result<Mended> {
        if *sum == Checksum::EMPTY {
            // Every shard was made with it.
            return Ok(Mended::default());
        }
        let plan = self.plan();
        // The same order in both parts, as it is another one each time.
        let order = plan.choice.to_write(&plan.shards);
        let prepared = plan.prepare(sum, &order);
        hold();
        // A crash here leaves temporary names, which go when the shards are opened again.
        failpoint::hit("shards.prepared");
        let mended = self.mend_held(&plan, sum, &order, &prepared.good);
        for i in prepared.waiting {
            plan.ask(i, |provider| provider.forget_copy(sum));
        }
        mended
    }

    /// Under the latch: what was prepared is taken if everything is as it was, and done again otherwise.
    fn mend_held(
        &self,
        plan: &Plan,
        sum: &Checksum,
        order: &[usize],
        read: &HashMap<usize, FileId>,
    ) -> Result<Mended> {
        let copies = plan.copies(sum);
        let mut mended = Mended::default();
        let Some((source, good)) =
            copies.iter().find_map(|(i, _)| Some((*i, plan.good_copy(*i, sum, read)?)))
        else {
            if (0..plan.shards.len()).all(|i| plan.surely_lacks(i, sum)) {
                self.debt.settle(sum)?;
                return Ok(mended);
            }
            plan.nowhere(&format!("blob {sum}"))?;
            return Err(Error::Altered(*sum));
        };
        // Every copy is read before one is called too many: those that are not good are replaced.
        let mut holders = vec![source];
        for (i, _) in copies.iter().filter(|(i, _)| *i != source) {
            if plan.good_copy(*i, sum, read).is_some() {
                holders.push(*i);
            } else if plan.ask(*i, |provider| provider.put_copy(sum, &good)).is_some() {
                mended.copied += 1;
                holders.push(*i);
            }
        }
        let (mut holders, twins) = plan.told_apart(sum, holders);
        for i in order.iter().copied() {
            let Some(provider) = plan.shards[i].writable() else { continue };
            if plan.counted(&holders) >= plan.redundancy || holders.contains(&i) || twins.contains(&i) {
                continue;
            }
            match provider.put_copy(sum, &good) {
                Ok(()) => {
                    mended.copied += 1;
                    holders.push(i);
                }
                Err(error @ Error::Altered(_)) => return Err(error),
                Err(error) => plan.shards[i].write_failed(&error),
            }
        }
        // A crash here leaves a copy too many, which the next balance removes.
        failpoint::hit("shards.mended");
        drop(good);
        let (holders, _) = plan.told_apart(sum, holders);
        if plan.counted(&holders) < plan.redundancy {
            self.debt.add(&[*sum])?;
            return Ok(mended);
        }
        mended.removed = plan.remove_surplus(sum, holders, order);
        self.debt.settle(sum)?;
        Ok(mended)
    }

    /// Whether a blob was removed and copies of it may be left.
    pub fn owes_removal(&self, sum: &Checksum) -> bool {
        self.debt.is_removal(sum)
    }

    /// Removes what an earlier removal could not reach. The caller holds the latch and knows that nobody has the blob.
    pub fn remove_left(&self, sum: &Checksum) -> Result<()> {
        let plan = self.plan();
        if !self.debt.is_removal(sum) {
            return Ok(());
        }
        for i in 0..plan.shards.len() {
            // Who stores the blob again has ended its removal before he stores the first copy.
            let _one_or_the_other = self.removing.lock();
            if !self.debt.is_removal(sum) {
                return Ok(());
            }
            if plan.remove_on(i, sum).is_none() {
                return Ok(());
            }
        }
        if plan.force_removed(std::slice::from_ref(sum)) {
            self.debt.settle_removal(sum)?;
        }
        Ok(())
    }

    /// Blobs that are about to be stored are not removed any more, whatever was owed: their copies are looked at instead. Those
    /// whose removal was owed; on an error all of them still are.
    pub(super) fn end_removals(&self, sums: impl Iterator<Item = Checksum>) -> Result<Vec<Checksum>> {
        let removals: Vec<Checksum> = sums.filter(|sum| self.debt.is_removal(sum)).collect();
        if !removals.is_empty() {
            let _one_or_the_other = self.removing.lock();
            self.debt.add(&removals)?;
        }
        Ok(removals)
    }

    /// Blobs that were to be stored were not: those whose removal was owed before are owed it again.
    pub(super) fn not_stored(&self, removals: &[Checksum]) {
        tidied(self.debt.add_removals(removals));
    }

    /// Remembers that a blob has copies which are not as they should be.
    pub fn owe(&self, sum: &Checksum) -> Result<()> {
        self.debt.add(&[*sum])
    }

    /// Every copy of a blob that can be opened.
    pub fn open_all(&self, sum: &Checksum) -> Vec<Blob> {
        let plan = self.plan();
        (0..plan.shards.len()).filter_map(|i| plan.open_on(i, sum)).collect()
    }
}

impl Plan {
    /// Reads every copy, and copies a good one under a temporary name to where one will be missing.
    fn prepare(&self, sum: &Checksum, order: &[usize]) -> Prepared {
        let mut prepared = Prepared::default();
        let (mut source, mut bad) = (None, Vec::new());
        for (i, _) in self.copies(sum) {
            match self.good_copy(i, sum, &prepared.good) {
                Some(blob) => {
                    prepared.good.extend(blob.file_id().map(|file| (i, file)));
                    source = source.or(Some(blob));
                }
                None => bad.push(i),
            }
        }
        let Some(source) = source else { return prepared };
        let mut holders: Vec<usize> = prepared.good.keys().copied().chain(bad.iter().copied()).collect();
        let mut wanted = bad;
        for i in order.iter().copied() {
            if self.counted(&holders) < self.redundancy && !holders.contains(&i) {
                holders.push(i);
                wanted.push(i);
            }
        }
        for i in wanted {
            // What went wrong here goes wrong under the latch again, and is told then.
            if self.shards[i].get().is_some_and(|provider| provider.prepare_copy(sum, &source).is_ok()) {
                prepared.waiting.push(i);
            }
        }
        prepared
    }

    /// A shard's copy, if its bytes are those of its name; a file that was read before is not read again.
    fn good_copy(&self, i: usize, sum: &Checksum, read: &HashMap<usize, FileId>) -> Option<Blob> {
        let blob = self.open_on(i, sum)?;
        if blob.file_id().is_some_and(|file| read.get(&i) == Some(&file)) {
            return Some(blob);
        }
        let digest = checksum::digest(&blob, || true).ok()??;
        (digest.checksum == *sum).then_some(blob)
    }

    /// Those of the holders whose copies are files of their own, and those whose copy is the file of one before: to remove that
    /// is to remove both. One that cannot be looked at is neither.
    fn told_apart(&self, sum: &Checksum, holders: Vec<usize>) -> (Vec<usize>, Vec<usize>) {
        let (mut apart, mut twins) = (Vec::with_capacity(holders.len()), Vec::new());
        let mut files: Vec<FileId> = Vec::with_capacity(holders.len());
        for i in holders {
            match self.open_on(i, sum).map(|blob| blob.file_id()) {
                None => {}
                Some(Some(file)) if files.contains(&file) => twins.push(i),
                Some(file) => {
                    files.extend(file);
                    apart.push(i);
                }
            }
        }
        (apart, twins)
    }

    /// Removes copies beyond those that there should be, from drained shards first; how many.
    fn remove_surplus(&self, sum: &Checksum, mut holders: Vec<usize>, order: &[usize]) -> u64 {
        // Drained ones first, then those that would get it last.
        holders.sort_by_key(|i| std::cmp::Reverse(order.iter().position(|k| k == i).unwrap_or(usize::MAX)));
        let counted = self.counted(&holders);
        let mut surplus = counted.saturating_sub(self.redundancy);
        let mut removed = 0;
        for i in holders {
            let drained = !self.shards[i].write_enabled;
            if (!drained && surplus == 0) || self.is_in_use(i, sum) {
                continue;
            }
            if self.ask(i, |provider| provider.remove(sum)) == Some(true) {
                removed += 1;
                surplus -= usize::from(!drained);
            }
        }
        removed
    }
}
