//! What `depotfs status` and the metrics tell of the tree.

use std::sync::atomic::Ordering;

use crate::change::Ino;
use crate::checksum::Checksum;
use crate::text;
use crate::vfs::Vfs;
use crate::vfs::node::Locked;

/// A file whose bytes cannot be sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsealable {
    /// The inode.
    pub ino: Ino,
    /// A path of it.
    pub path: String,
    /// Name of its staging file.
    pub staging: String,
    /// Why.
    pub why: String,
}

/// The state of the tree.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Files with a staging file and an open writer.
    pub dirty: u64,
    /// Files with a staging file and no writer.
    pub closed: u64,
    /// Bytes of those.
    pub closed_bytes: u64,
    /// Files that somebody is working on just now, whose state is not in the other numbers.
    pub held: u64,
    /// Removed files that are still in use.
    pub orphans: u64,
    /// Open files.
    pub open: u64,
    /// Files whose bytes cannot be sealed.
    pub unsealable: Vec<Unsealable>,
    /// Blobs that could not be served, and why.
    pub damaged: Vec<(Checksum, String)>,
    /// Lines for an operator, since the start.
    pub reports: Vec<String>,
    /// How the kernel reads and writes, in words.
    pub reads: String,
    /// The least that close waits for.
    pub durability: &'static str,
}

impl Vfs {
    /// Takes stock.
    pub fn status(&self) -> Status {
        let mut status = Status {
            closed: self.backlog.files.load(Ordering::Relaxed),
            closed_bytes: self.backlog.bytes.load(Ordering::Relaxed),
            damaged: self.damaged.lock().iter().map(|(sum, why)| (*sum, why.clone())).collect(),
            reports: self.reports.lock().clone(),
            reads: match self.passthrough_off.lock().as_deref() {
                None => "passthrough".to_owned(),
                Some(why) => format!("through the daemon: {why}"),
            },
            durability: self.options.durability.name(),
            ..Status::default()
        };
        let held = self.nodes.sweep(self.nodes.inos(), |node| self.count(&node, &mut status));
        status.held = held.len() as u64;
        status
    }

    fn count(&self, node: &Locked<'_>, status: &mut Status) {
        status.open += u64::from(node.opens > 0);
        status.orphans += u64::from(node.orphan);
        let Some(staged) = &node.staged else { return };
        status.dirty += u64::from(staged.closed.is_none());
        let Some(why) = &staged.row.failed else { return };
        let path = self.index.path(node.ino()).ok().flatten().unwrap_or_default();
        status.unsealable.push(Unsealable {
            ino: node.ino(),
            path: text::shown(&path),
            staging: staged.row.file.to_string(),
            why: why.clone(),
        });
    }
}
