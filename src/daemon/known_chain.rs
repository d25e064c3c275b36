//! Whether the chain still has the blobs of the depot: looked at when it is another one than at the last start, or a cache of
//! it is lost.
//!
//! Somebody may have changed depot.toml by hand. A chain that does not reach the blobs would show files that cannot be read,
//! and recovery would take staging files that lie elsewhere for lost, so such a chain is refused before anything is done.

use std::collections::BTreeSet;
use std::fs::{self, File};

use anyhow::{Context as _, bail};

use crate::change::StagedRow;
use crate::checksum::{Checksum, Hasher};
use crate::config::{Config, Layer};
use crate::filestore::{self, Filestore};
use crate::index::Index;

/// Tells the chain of the last start, in the depot. It is a note: without it, or with a wrong one, there is a look more.
const FILE: &str = "chain.known";
/// Blobs that are looked for, from all over the index.
const PROBES: u8 = 16;

/// Before the chain is opened, which makes a cache that is not there: a lost one may have had staging files, so that the chain
/// is looked at as if it were another one, until it has all of them.
pub(super) fn doubt_lost_caches(config: &Config, chain: &[filestore::Layer]) -> anyhow::Result<()> {
    let dirs = chain.iter().filter_map(|layer| match layer {
        filestore::Layer::CacheFs { dirs, .. } => Some(dirs),
        _ => None,
    });
    let Some(lost) = dirs.flatten().find(|dir| filestore::lacks_staging(dir)) else { return Ok(()) };
    let path = config.depot.join(FILE);
    let emptied = File::create(&path).and_then(|file| file.sync_all());
    emptied.with_context(|| {
        format!("{} is lost, and {} cannot be written to note it", lost.display(), path.display())
    })
}

/// Refuses a chain that is new and lacks what the index knows.
pub(super) fn examine(config: &Config, index: &Index, store: &Filestore) -> anyhow::Result<()> {
    let (path, now) = (config.depot.join(FILE), fingerprint(config));
    let before = fs::read(&path).ok();
    if before.as_deref() == Some(now.to_string().as_bytes()) {
        return Ok(());
    }
    // Written without being forced: after a power cut it may be anything. That it is there says that there was a chain.
    if before.is_some() {
        must_have_staging(config, index, store)?;
    }
    if !must_have_blobs(config, index, store)? {
        // The next start looks again.
        return Ok(());
    }
    if let Err(error) = fs::write(&path, now.to_string()) {
        tracing::debug!(%error, "{} cannot be written", path.display());
    }
    Ok(())
}

/// Another one for another chain, and telling nothing of it. A depot that was moved as a whole has the same chain.
fn fingerprint(config: &Config) -> Checksum {
    let mut hasher = Hasher::default();
    let chain = format!("{:?}", config.chain).replace(&*config.depot.to_string_lossy(), "");
    hasher.update(chain.as_bytes());
    hasher.finish().checksum
}

/// A staging file that has to be there is in the chain, or somebody else's chain has it.
fn must_have_staging(config: &Config, index: &Index, store: &Filestore) -> anyhow::Result<()> {
    let rows = index.staged()?;
    if rows.is_empty() {
        return Ok(());
    }
    let boot = store.mount_of_new()?.boot;
    // A power cut may have taken what was not forced.
    let stands =
        |row: &StagedRow| !row.is_unmade() && (row.forced || row.failed.is_some() || row.boot == boot);
    let absent = |row: &StagedRow| store.stat_staging(row.file).is_err_and(|error| error.is_absent());
    let lost = rows.iter().filter(|row| stands(row) && absent(row)).count();
    if lost > 0 {
        bail!(
            "{lost} of {} files that are not sealed yet have their bytes in another chain than {}, or in a cache that is lost: \
             put back the chain that depot.toml had, or the directory of the cache, and mount the depot with it once; depotfs \
             rechain exchanges a chain. If the bytes are gone for good, remove {}: then the next mount goes back to the \
             previous versions of these files",
            rows.len(),
            in_words(config),
            config.depot.join(FILE).display()
        );
    }
    Ok(())
}

/// Most of the blobs that are looked for have to be there; a few that lack are damage, which is told elsewhere. False: some
/// of them may be or not, as a provider did not answer.
fn must_have_blobs(config: &Config, index: &Index, store: &Filestore) -> anyhow::Result<bool> {
    let mut sums = BTreeSet::new();
    for number in 0..PROBES {
        let mut after = [0; 20];
        after[0] = number * (u8::MAX / PROBES + 1);
        let rows = index.blobs(Some(&Checksum(after)), 1)?;
        sums.extend(rows.iter().filter(|row| row.refs > 0 && row.size > 0).map(|row| row.checksum));
    }
    let (mut there, mut missing, mut unanswered) = (0, 0, 0);
    for sum in &sums {
        match store.stat_blob(sum) {
            Ok(Some(_)) => there += 1,
            Ok(None) => missing += 1,
            Err(_) => unanswered += 1,
        }
    }
    if missing > there {
        bail!(
            "{missing} of {} blobs that were looked for are not in {}: put back the chain that depot.toml had, and copy the \
             blobs to the new one with: depotfs rechain {} --to ...",
            sums.len(),
            in_words(config),
            config.depot.display()
        );
    }
    if missing > 0 {
        tracing::warn!(
            "{missing} of {} blobs that were looked for are not in {}",
            sums.len(),
            in_words(config)
        );
    }
    Ok(unanswered == 0)
}

fn in_words(config: &Config) -> String {
    let names: Vec<&str> = config.chain.iter().map(Layer::name).collect();
    format!("the chain {}", names.join(" > "))
}
