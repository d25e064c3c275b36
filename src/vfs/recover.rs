//! What the last daemon left: staging files that stand or do not, orphans, strays.
//!
//! Runs before the first request. A staging file stands when its bytes were forced, or when it was written in this same boot
//! and mount of its disk, so that they are in the page cache at least. Otherwise a power cut may have torn it: it is set
//! aside, and the previous version of the file stands. A new file without any version is removed.

use std::collections::HashSet;

use crate::change::{Change, StagedRow, StagingName};
use crate::sys::content::set_mtime;
use crate::sys::file::copy_range;
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
        let orphans: HashSet<_> = self.index.orphans()?.into_iter().collect();
        let rows = self.index.staged()?;
        let named: HashSet<StagingName> = rows.iter().map(|row| row.file).collect();
        if self.options.read_only {
            return Ok(done);
        }
        for row in rows {
            if !orphans.contains(&row.ino) {
                self.recover_staged(row, &mut done)?;
            }
        }
        for ino in &orphans {
            let file = self.index.staged_of(*ino)?.map(|row| row.file);
            let seq = self.commit(&[Change::Reap { ino: *ino }])?;
            if let Some(file) = file {
                self.retire(seq, file);
            }
            done.orphans += 1;
        }
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

    fn recover_staged(&self, row: StagedRow, done: &mut Recovered) -> Result<()> {
        let id = &self.options.mount_id;
        let stands = row.failed.is_some() || row.forced || (row.boot == id.boot && row.mount == id.mount);
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
        self.commit(&[Change::Unstage { ino: row.ino }])?;
        if inode.checksum.is_some() {
            self.report(format!(
                "{path}: went back to its previous version, the newer one was not on the disk yet"
            ));
            done.reverted += 1;
        } else {
            self.remove_all_names(row.ino)?;
            self.report(format!("{path}: removed, the new file was not on the disk yet"));
            done.removed += 1;
        }
        if there {
            self.keep_aside(row.file, &format!("unsealed bytes of {path} that a crash may have torn"));
        }
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
        let name = self.next_staging()?;
        let new = self.store.stage(name)?;
        let stat = old.stat().map_err(what())?;
        copy_range(&old, 0, &new, 0, stat.size).map_err(what())?;
        new.set_len(stat.size).map_err(what())?;
        set_mtime(&new, stat.mtime).map_err(what())?;
        if row.forced {
            self.store.force_staging(&[name])?;
        }
        let moved = StagedRow { file: name, ..row };
        let seq = self.commit(&[Change::Stage(moved.clone())])?;
        self.retire(seq, row.file);
        Ok(moved)
    }

    fn remove_all_names(&self, ino: u64) -> Result<()> {
        while let Some((parent, name)) = self.index.parent(ino)? {
            self.commit(&[Change::Remove { parent, name, ino, at: now() }])?;
        }
        self.commit(&[Change::Reap { ino }])?;
        Ok(())
    }
}
