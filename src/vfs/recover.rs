//! What the last daemon left: staging files that stand or do not, orphans, strays.
//!
//! Runs before the first request. A staging file stands when its bytes were forced, or when it was written in this same boot
//! and mount of its disk, so that they are in the page cache at least. Otherwise a power cut may have torn it: it is set
//! aside, and the previous version of the file stands. A new file without any version is removed.

use std::collections::HashSet;

use crate::change::{Change, Ino, StagedRow, StagingName};
use crate::sys::lease::read_lease;
use crate::vfs::node::Staged;
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
        if !self.options.read_only {
            self.take_back_puts()?;
        }
        let orphans: HashSet<_> = self.index.orphans()?.into_iter().collect();
        let rows = self.index.staged()?;
        for row in rows {
            if orphans.contains(&row.ino) {
                continue;
            }
            if self.options.read_only {
                self.show_staged(row);
            } else {
                self.recover_staged(row, &mut done)?;
            }
        }
        if self.options.read_only {
            return Ok(done);
        }
        for ino in &orphans {
            let file = self.index.staged_of(*ino)?.map(|row| row.file);
            let seq = self.commit(&[Change::Reap { ino: *ino }])?;
            if let Some(file) = file {
                self.retire(seq, file);
            }
            done.orphans += 1;
        }
        let named: HashSet<StagingName> = self.index.staged()?.iter().map(|row| row.file).collect();
        for name in self.store.staging_names()? {
            if !named.contains(&name) {
                self.store.discard(name)?;
                done.strays += 1;
            }
        }
        self.index.sync()?;
        self.release_retired();
        Ok(done)
    }

    /// A crash between a put and its commit leaves a blob that the index does not know. If its file is not sealed again,
    /// nobody would ever find the blob; so its name goes, and the staging file is a staging file only.
    fn take_back_puts(&self) -> Result<()> {
        for name in self.store.staging_names()? {
            if self.store.stat_staging(name)?.links == 1 {
                continue;
            }
            let digest = self.store.open_staging(name)?.digest(|| true);
            let digest = match digest.map_err(Error::io(format!("read staging file {name}"))) {
                Ok(Some(digest)) => digest,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!("whether it is an unknown blob, too, was not found out: {error}");
                    continue;
                }
            };
            let latch = self.store.latch(&digest.checksum);
            if self.index.blob(&digest.checksum)?.is_none() {
                self.store.take_back(&latch, name)?;
            }
        }
        Ok(())
    }

    /// A read-only mount changes nothing, but shows the newest version where it stands.
    fn show_staged(&self, row: StagedRow) {
        if self.stands(&row) && self.store.stat_staging(row.file).is_ok() {
            let mut node = self.nodes.lock(row.ino);
            node.staged = Some(Staged::new(row));
        }
    }

    fn stands(&self, row: &StagedRow) -> bool {
        let id = &self.options.mount_id;
        row.failed.is_some() || row.forced || (row.boot == id.boot && row.mount == id.mount)
    }

    fn recover_staged(&self, row: StagedRow, done: &mut Recovered) -> Result<()> {
        let stands = self.stands(&row);
        let there = match self.store.stat_staging(row.file) {
            Ok(_) => true,
            Err(error) if error.is_absent() => false,
            Err(error) => return Err(error.into()),
        };
        if stands && there {
            let row = self.out_of_reach(row)?;
            let mut node = self.nodes.lock(row.ino);
            node.staged = Some(Staged::new(row));
            self.close_staged(&mut node);
            done.kept += 1;
            return Ok(());
        }
        let path = self
            .index
            .path(row.ino)?
            .map_or_else(|| format!("inode {}", row.ino), |p| String::from_utf8_lossy(&p).into_owned());
        let inode = self.index.inode(row.ino)?.ok_or(Error::Stale(row.ino))?;
        // First the bytes are safe, then the row that names them goes.
        if there {
            self.set_aside(row.file, &format!("unsealed bytes of {path} that a crash may have torn"))?;
        }
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
