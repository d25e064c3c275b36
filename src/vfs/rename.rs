//! rename(2): one commit, whatever moves.

use crate::change::{Change, Ino, Inode, Kind, ROOT};
use crate::failpoint;
use crate::vfs::node::Locked;
use crate::vfs::{Error, Result, Vfs, check_new_name, is_reserved, now};

/// Which rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// What stands at the new name is replaced.
    Replace,
    /// What stands at the new name stays, and the call fails.
    NoReplace,
    /// The two names swap what they name.
    Exchange,
}

impl Vfs {
    /// The files of which a rename takes the bytes to the disk: those of one that replaces.
    pub fn forced_by_rename(
        &self,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
    ) -> Vec<Ino> {
        let ino = |parent, name| self.index.lookup(parent, name).ok().flatten().map(|inode| inode.ino);
        let there = ino(new_parent, new_name);
        there.into_iter().chain(there.and_then(|_| ino(parent, name))).collect()
    }

    /// Moves `name` of `parent` to `new_name` of `new_parent`.
    pub fn rename(
        &self,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        flavour: Flavour,
    ) -> Result<()> {
        check_new_name(new_parent, new_name)?;
        let moved = self.index.lookup(parent, name)?.ok_or(Error::NotFound)?;
        let there = self.index.lookup(new_parent, new_name)?;
        if is_reserved(moved.ino) || there.as_ref().is_some_and(|inode| is_reserved(inode.ino)) {
            return Err(Error::NotPermitted("a reserved directory"));
        }
        match (flavour, &there) {
            (Flavour::NoReplace, Some(_)) => return Err(Error::Exists),
            (Flavour::Exchange, None) => return Err(Error::NotFound),
            _ => {}
        }
        if there.as_ref().is_some_and(|inode| inode.ino == moved.ino) {
            return Ok(());
        }
        self.check_place(&moved, parent, new_parent)?;
        if let (Flavour::Exchange, Some(there)) = (flavour, &there) {
            self.check_place(there, new_parent, parent)?;
        }
        if let (Flavour::Replace, Some(there)) = (flavour, &there) {
            match (moved.kind == Kind::Directory, there.kind == Kind::Directory) {
                (true, false) => return Err(Error::NotDirectory),
                (false, true) => return Err(Error::IsDirectory),
                _ => {}
            }
        }
        self.rename_locked((parent, name, &moved), (new_parent, new_name, there.as_ref()), flavour)?;
        if parent == ROOT || new_parent == ROOT {
            self.forget_settings();
        }
        Ok(())
    }

    fn check_place(&self, moved: &Inode, parent: Ino, new_parent: Ino) -> Result<()> {
        if moved.kind == Kind::Directory || parent == new_parent {
            return Ok(());
        }
        if new_parent == ROOT {
            return Err(Error::NotPermitted(
                "only directories stand at the top of the tree: they are the repositories",
            ));
        }
        if moved.nlink > 1 && self.index.repository(parent)? != self.index.repository(new_parent)? {
            return Err(Error::CrossRepository);
        }
        Ok(())
    }

    fn rename_locked(
        &self,
        (parent, name, moved): (Ino, &[u8], &Inode),
        (new_parent, new_name, there): (Ino, &[u8], Option<&Inode>),
        flavour: Flavour,
    ) -> Result<()> {
        let at = now();
        let (name, new_name) = (name.to_vec(), new_name.to_vec());
        let Some(there) = there else {
            let cookie = self.index.next_number()?;
            let ino = moved.ino;
            self.commit(&[Change::Rename {
                parent,
                name,
                new_parent,
                new_name,
                cookie,
                ino,
                replaced: None,
                at,
            }])?;
            return Ok(());
        };
        // What takes time is done before the locks, so that nobody who looks at the files waits for the disk.
        self.force_ahead(moved.ino)?;
        if flavour == Flavour::Exchange {
            self.force_ahead(there.ino)?;
        }
        let (mut moved_node, mut there_node) = self.nodes.lock_two_settled(moved.ino, there.ino);
        let there = &self.inode(there.ino)?;
        // Write-temporary-and-rename must not leave an empty file after a power cut: the bytes go to the disk first.
        let mut changes = Vec::with_capacity(3);
        self.force_before_rename(&mut moved_node, &mut changes)?;
        if flavour == Flavour::Exchange {
            self.force_before_rename(&mut there_node, &mut changes)?;
            let (ino, new_ino) = (moved.ino, there.ino);
            changes.push(Change::Exchange { parent, name, ino, new_parent, new_name, new_ino, at });
            self.commit(&changes)?;
            // A crash here leaves both names exchanged.
            failpoint::hit("exchange.committed");
            record_forced(&mut there_node, &changes);
        } else {
            let cookie = self.index.next_number()?;
            let (ino, replaced) = (moved.ino, Some(there.ino));
            changes.push(Change::Rename { parent, name, new_parent, new_name, cookie, ino, replaced, at });
            self.commit(&changes)?;
            // A crash here leaves the new name with the moved file; the replaced one is an orphan, which recovery ends.
            failpoint::hit("rename.committed");
            if there.kind == Kind::Directory || there.nlink == 1 {
                self.orphaned(&mut there_node);
            }
        }
        record_forced(&mut moved_node, &changes);
        Ok(())
    }

    /// Gets the unsealed bytes of a file to the disk; the force under its lock then has little to do. Whether it worked is
    /// for that one to find out.
    fn force_ahead(&self, ino: Ino) -> Result<()> {
        self.copy_ahead(ino)?;
        let name = self.nodes.existing(ino).and_then(|node| {
            let staged = node.staged.as_ref()?;
            let forced = staged.row.forced && staged.unforced_since.is_none();
            (!forced && staged.row.failed.is_none() && node.clone.is_none()).then_some(staged.row.file)
        });
        if let Some(name) = name {
            let _ = self.store.force_staging(&[name]);
        }
        Ok(())
    }

    fn force_before_rename(&self, node: &mut Locked<'_>, changes: &mut Vec<Change>) -> Result<()> {
        self.materialise(node)?;
        let writers = node.writers;
        let Some(staged) = &mut node.staged else { return Ok(()) };
        // What was forced once may have been written again since.
        if staged.row.forced && staged.unforced_since.is_none() || staged.row.failed.is_some() {
            return Ok(());
        }
        let mut row = staged.row.clone();
        self.store.force_staging(&[row.file])?;
        // A crash here leaves both names as they were.
        failpoint::hit("rename.forced");
        if writers == 0 {
            staged.unforced_since = None;
        }
        if !row.forced {
            row.forced = true;
            changes.push(Change::Stage(row));
        }
        Ok(())
    }
}

/// What was committed is so here, too.
fn record_forced(node: &mut Locked<'_>, changes: &[Change]) {
    let ino = node.ino();
    let Some(staged) = &mut node.staged else { return };
    if changes.iter().any(|change| matches!(change, Change::Stage(row) if row.ino == ino)) {
        staged.row.forced = true;
    }
}
