//! What the last daemon left: staging files that stand or do not, orphans, strays.
//!
//! Runs before the first request. A staging file stands when its bytes were forced, or when it was written in this same boot
//! and mount of its disk, so that they are in the page cache at least. Otherwise a power cut may have torn it: it is set
//! aside, and the previous version of the file stands. A new file without any version is removed.

use std::collections::HashSet;

use crate::change::{Change, Ino, StagedRow, StagingName};
use crate::failpoint;
use crate::filestore;
use crate::sys::lease::read_lease;
use crate::text;
use crate::vfs::node::{CloneOf, Staged};
use crate::vfs::{Error, Result, Vfs, now};

/// What was found and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Unsealed files whose bytes stand; they are sealed in the background.
    pub kept: u64,
    /// Unsealed files that went back to their previous version; the bytes are set aside.
    pub reverted: u64,
    /// New files without any version that were removed; the bytes are set aside.
    pub removed: u64,
    /// Removed files that were still open then.
    pub orphans: u64,
    /// Staging files that no row names.
    pub strays: u64,
}

impl Vfs {
    /// Brings index and staging files together.
    pub fn recover(&self) -> Result<Recovered> {
        let mut done = Recovered::default();
        let orphans: HashSet<_> = self.index.orphans()?.into_iter().collect();
        let rows = self.index.staged()?;
        for row in rows {
            if orphans.contains(&row.ino) {
                continue;
            }
            if self.options.read_only {
                self.show_staged(row)?;
            } else {
                self.recover_staged(row, &mut done)?;
            }
        }
        if self.options.read_only {
            return Ok(done);
        }
        for ino in &orphans {
            let row = self.index.staged_of(*ino)?;
            // Bytes that could not be sealed are kept, as `reap` keeps them.
            if let Some((row, why)) = row.as_ref().and_then(|row| Some((row, row.failed.as_ref()?)))
                && self.is_there(row)?
            {
                self.set_aside(row.file, &format!("inode {ino}, removed since: {why}"))?;
            }
            let seq = self.commit(&[Change::Reap { ino: *ino }])?;
            // A crash in a recovery is one before it: the next does what is left.
            failpoint::hit("recover.reaped");
            if let Some(row) = row.filter(|row| row.failed.is_none()) {
                self.retire(seq, row.file);
            }
            done.orphans += 1;
        }
        let named: HashSet<StagingName> = self.index.staged()?.iter().map(|row| row.file).collect();
        for name in self.store.staging_names()? {
            if !named.contains(&name) {
                self.let_go(name);
                failpoint::hit("recover.discarded");
                done.strays += 1;
            }
        }
        self.index.sync()?;
        failpoint::hit("recover.synced");
        self.release_retired();
        Ok(done)
    }

    /// A read-only mount changes nothing, but shows the newest version where it stands.
    fn show_staged(&self, row: StagedRow) -> Result<()> {
        let there = self.is_there(&row)?;
        if self.stands(&row, there)? && (there || row.is_unmade()) {
            let mut node = self.nodes.lock(row.ino);
            node.clone = (!there).then(|| CloneOf::nothing_yet(row.file));
            node.staged = Some(Staged::new(row));
        }
        Ok(())
    }

    /// Whether a staging file is there; that it cannot be looked for is an error.
    fn is_there(&self, row: &StagedRow) -> Result<bool> {
        match self.store.stat_staging(row.file) {
            Ok(_) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            // What was not made is on no shard that is away either.
            Err(filestore::Error::Away { .. }) if row.is_unmade() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the bytes of a staging file, which is there or not, are those that were written.
    fn stands(&self, row: &StagedRow, there: bool) -> Result<bool> {
        if row.failed.is_some() || row.forced {
            return Ok(true);
        }
        if !there {
            // No bytes are on no disk.
            return Ok(row.is_unmade() && row.boot == self.store.mount_of_new()?.boot);
        }
        let now = self.store.mount_of(row.file)?;
        Ok(row.boot == now.boot && row.mount == now.mount)
    }

    fn recover_staged(&self, row: StagedRow, done: &mut Recovered) -> Result<()> {
        let there = self.is_there(&row)?;
        let stands = self.stands(&row, there)?;
        if stands && (there || row.is_unmade()) {
            let row = if there { self.out_of_reach(row)? } else { self.make_staging(row)? };
            let mut node = self.nodes.lock(row.ino);
            node.staged = Some(Staged::new(row));
            self.close_staged(&mut node);
            failpoint::hit("recover.kept");
            done.kept += 1;
            return Ok(());
        }
        let path =
            self.index.path(row.ino)?.map_or_else(|| format!("inode {}", row.ino), |path| text::shown(&path));
        let inode = self.index.inode(row.ino)?.ok_or(Error::Stale(row.ino))?;
        // First the bytes are safe, then the row that names them goes.
        if there {
            if self.store.stat_staging(row.file)?.links > 1 {
                // Put before the crash, and no durable commit says so: nobody else would ever find that blob.
                self.take_back_put(row.file)?;
            }
            self.set_aside(row.file, &format!("unsealed bytes of {path} that a crash may have torn"))?;
        }
        // A crash here leaves a row whose staging file is not there: the next recovery goes on from here.
        failpoint::hit("recover.aside");
        let mut changes = vec![Change::Unstage { ino: row.ino }];
        if inode.checksum.is_some() {
            self.report(format!(
                "{path}: went back to its previous version, the newer one was not on the disk yet"
            ));
            done.reverted += 1;
        } else {
            changes.extend(self.removals(row.ino, inode.nlink)?);
            self.report(format!("{path}: removed, the new file was not on the disk yet"));
            done.removed += 1;
        }
        self.commit(&changes)?;
        failpoint::hit("recover.reverted");
        Ok(())
    }

    /// Programs that had the file open go on writing it past a killed daemon. What they wrote before this is theirs to keep;
    /// from now on they write to a file of their own.
    fn out_of_reach(&self, row: StagedRow) -> Result<StagedRow> {
        let old = self.store.open_staging(row.file)?;
        let what = || Error::io(format!("copy staging file {}", row.file));
        if row.failed.is_some() || read_lease(&old).map_err(what())?.is_some() {
            return Ok(row);
        }
        drop(old);
        let (moved, seq) = self.restage(&row)?;
        self.retire(seq, row.file);
        Ok(moved)
    }

    /// What removes a file with all its names.
    fn removals(&self, ino: Ino, names: u32) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for (parent, name) in self.index.names_of(ino)?.into_iter().take(names as usize) {
            changes.push(Change::Remove { parent, name, ino, at: now() });
        }
        changes.push(Change::Reap { ino });
        Ok(changes)
    }
}
