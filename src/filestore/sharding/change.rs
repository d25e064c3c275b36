//! Another configuration while everything goes on: shards added, drained and taken away, another redundancy.
//!
//! A shard that is to go gets nothing any more, first of all; when those who began before have ended, it is looked at. It goes
//! if a balance has emptied it, or, where it cannot be asked, if nothing is missing without it; otherwise it stays, and gets
//! nothing.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::error::Result;
use super::super::provider::{Listed, Provider};
use super::plan::Plan;
use super::{Options, Shard, Sharding};
use crate::change::StagingName;
use crate::checksum::Checksum;
use crate::text::chain;

/// How long calls that began before are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The next blobs with their sizes after one, in order; none at the end, `None` when it cannot be told.
pub type BlobsAfter<'a> = &'a dyn Fn(Option<&Checksum>) -> Option<Vec<(Checksum, u64)>>;

/// What must not get lost with a shard that cannot be asked.
pub struct Wanted<'a> {
    /// Blobs that files have.
    pub blobs: BlobsAfter<'a>,
    /// Staging files; `None` when it cannot be told.
    pub staged: &'a dyn Fn() -> Option<Vec<StagingName>>,
}

impl Sharding {
    /// From now on these shards and options; what of it could not be done, and why.
    pub fn change(&self, shards: Vec<Shard>, options: Options, wanted: &Wanted<'_>) -> Result<Vec<String>> {
        let _one_at_a_time = self.changing.lock();
        let old = self.plan();
        let mut refused = Vec::new();
        let mut next: Vec<Shard> = Vec::with_capacity(shards.len());
        for shard in shards {
            if let Some(known) = old.shards.iter().find(|old| old.dir == shard.dir) {
                next.push(known.configured_as(&shard));
                continue;
            }
            if self.known.is_new(&shard.dir) {
                shard.call_new();
            }
            shard.place_beside(&self.taken);
            match shard.get() {
                Some(_) => next.push(shard),
                None => {
                    let why = shard.trouble().unwrap_or_default();
                    refused.push(format!("shard {} is not added: {why}", shard.dir.display()));
                }
            }
        }
        let stays = |old: &&Shard| next.iter().any(|next| next.dir == old.dir);
        let going: Vec<Shard> = old.shards.iter().filter(|old| !stays(old)).map(Shard::drained).collect();
        let plan = |shards: Vec<Shard>| {
            let Options { redundancy, lenient_limit, ref choice } = options;
            Plan::new(shards, Options { redundancy, lenient_limit, choice: choice.again() })
        };
        let staying = next.len();
        next.extend(going);
        let kept = next.len() == staying;
        let interim = self.set_plan(plan(next));
        self.note_shards()?;
        if kept {
            return Ok(refused);
        }
        let settled = is_let_go(old, Instant::now() + PATIENCE);
        let mut left: Vec<Shard> =
            interim.shards[..staying].iter().map(|shard| shard.configured_as(shard)).collect();
        for i in staying..interim.shards.len() {
            let rest: Vec<usize> = (0..staying).collect();
            let needed = match settled {
                true => interim.what_needs(i, &rest, wanted),
                false => Some("calls that use it have not ended".into()),
            };
            let shard = &interim.shards[i];
            if let Some(why) = needed {
                refused.push(format!(
                    "shard {} is not taken away yet, and gets no more blobs: {why}",
                    shard.dir.display()
                ));
                left.push(shard.configured_as(shard));
            } else {
                tracing::info!("shard {} was taken away", shard.dir.display());
            }
        }
        self.set_plan(plan(left));
        self.note_shards()?;
        Ok(refused)
    }

    pub(super) fn set_plan(&self, plan: Plan) -> Arc<Plan> {
        let plan = Arc::new(plan);
        *self.plan.write() = Arc::clone(&plan);
        plan
    }
}

/// Waits until nobody else has it.
fn is_let_go<T>(shared: Arc<T>, until: Instant) -> bool {
    while Arc::strong_count(&shared) > 1 {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    true
}

impl Plan {
    /// Why a shard cannot go yet: what would be on none of the rest.
    fn what_needs(&self, i: usize, rest: &[usize], wanted: &Wanted<'_>) -> Option<String> {
        match self.shards[i].get() {
            Some(provider) => self.what_it_has(&*provider, rest),
            None => self.what_is_missing(rest, wanted),
        }
    }

    /// The same of one that can be asked: what it has itself.
    fn what_it_has(&self, provider: &dyn Provider, rest: &[usize]) -> Option<String> {
        for dir in provider.staging_dirs() {
            // Its own, ours, and that of nobody who is about to make a file there.
            let until = Instant::now() + PATIENCE;
            while Arc::strong_count(&dir) > 2 {
                if Instant::now() >= until {
                    return Some("files are being made on it".into());
                }
                std::thread::sleep(LOOK_EVERY);
            }
            match (dir.names(), dir.aside()) {
                (Ok(names), Ok(aside)) if names.is_empty() && aside.is_empty() => {}
                (Ok(names), Ok(aside)) => {
                    let (staged, aside) = (names.len(), aside.len());
                    return Some(format!(
                        "it has {staged} files that are being written or not sealed yet, and {aside} that were set aside"
                    ));
                }
                (Err(error), _) | (_, Err(error)) => return Some(chain(&error)),
            }
        }
        let (mut alone, mut doubled) = (0_u64, 0_u64);
        let listed = provider.list(None, &mut |listed| {
            if let Listed::Blob { sum, size } = listed
                && sum != Checksum::EMPTY
            {
                let elsewhere = self.has_elsewhere(rest, &sum, size);
                *(if elsewhere { &mut doubled } else { &mut alone }) += 1;
            }
            ControlFlow::Continue(())
        });
        match listed {
            Err(error) => Some(chain(&error)),
            Ok(()) if alone > 0 => {
                Some(format!("{alone} blobs are on no other shard; a balance copies them elsewhere"))
            }
            // Sizes tell nothing of bytes: a balance removes a copy only after it has read the others.
            Ok(()) if doubled > 0 => Some(format!(
                "{doubled} of its blobs are elsewhere too, and are in use or were not compared yet by a balance"
            )),
            Ok(()) => None,
        }
    }

    /// The same of one that cannot be asked: what is missing without it.
    fn what_is_missing(&self, rest: &[usize], wanted: &Wanted<'_>) -> Option<String> {
        let cannot_tell =
            || Some("it cannot be read, and the index cannot tell what it may have had".to_owned());
        let Some(staged) = (wanted.staged)() else { return cannot_tell() };
        let has = |i: usize, name: StagingName| {
            self.ask(i, |provider| provider.holds_staging(name)).flatten().is_some()
        };
        let lost = staged.iter().filter(|name| !rest.iter().any(|i| has(*i, **name))).count();
        if lost > 0 {
            return Some(format!("it cannot be read, and {lost} files that are not sealed yet may be on it"));
        }
        let (mut after, mut missing) = (None, 0_u64);
        loop {
            let Some(page) = (wanted.blobs)(after.as_ref()) else { return cannot_tell() };
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            missing += page.iter().filter(|(sum, size)| !self.has_elsewhere(rest, sum, *size)).count() as u64;
        }
        (missing > 0)
            .then(|| format!("it cannot be read, and {missing} blobs that files have are on no other shard"))
    }

    fn has_elsewhere(&self, rest: &[usize], sum: &Checksum, size: u64) -> bool {
        rest.iter().any(|i| self.ask(*i, |provider| provider.stat(sum)).flatten() == Some(size))
    }
}
