//! The rows: each a piece of work, prepared once and measured for every peer in every round.

mod content;
mod copies;
mod durable;
mod large;
mod names;
mod programs;
mod sealing;

use std::path::Path;

use anyhow::Result;

use crate::measure::{Measure, Run};
use crate::sites::Peer;

/// Who takes part in a row, besides depotfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Everybody.
    All,
    /// Everybody but rclone, which takes hours or cannot.
    Local,
    /// The plain directory.
    Plain,
    /// Nobody: depotfs is compared with itself.
    Alone,
}

impl Who {
    /// Whether `peer` does.
    pub fn includes(self, peer: Peer) -> bool {
        match self {
            Who::All => true,
            Who::Local => peer != Peer::Rclone,
            Who::Plain => matches!(peer, Peer::Plain | Peer::Depotfs),
            Who::Alone => peer == Peer::Depotfs,
        }
    }
}

/// A piece of work.
pub struct Row {
    /// What `--row` selects.
    pub name: &'static str,
    /// Who takes part.
    pub who: Who,
    /// Whether only `--full` runs it: it takes many minutes or gigabytes.
    pub full: bool,
    /// Makes what the rounds work on, in a directory of the disk for all peers and in the depot; nothing if the row needs nothing.
    pub prepare: fn(&Run, &Path) -> Result<()>,
    /// One peer, one round.
    pub measure: fn(&mut Measure<'_>) -> Result<()>,
}

fn nothing(_: &Run, _: &Path) -> Result<()> {
    Ok(())
}

const fn row(name: &'static str, who: Who, measure: fn(&mut Measure<'_>) -> Result<()>) -> Row {
    Row { name, who, full: false, prepare: nothing, measure }
}

/// All rows, in the order in which they run.
pub const ROWS: &[Row] = &[
    Row { prepare: content::prepare_large, ..row("read", Who::All, content::read) },
    Row { prepare: names::prepare_known, ..row("stat", Who::All, names::stat) },
    Row { prepare: names::prepare_tree, ..row("find", Who::All, names::find) },
    Row { prepare: content::prepare_small, ..row("open", Who::All, content::open) },
    row("create", Who::All, names::create),
    row("rename", Who::All, names::rename),
    row("unlink", Who::All, names::unlink),
    row("mkdir", Who::All, names::mkdir),
    row("write", Who::All, content::write),
    row("checksum", Who::Plain, sealing::checksum),
    row("short", Who::All, content::short_lives),
    row("sqlite", Who::Local, durable::sqlite),
    row("fsync", Who::Local, durable::fsync),
    Row { prepare: programs::prepare_tar, ..row("tar", Who::All, programs::tar) },
    row("make", Who::Local, programs::make),
    Row { prepare: copies::prepare_large, ..row("cp", Who::Local, copies::large) },
    Row { prepare: copies::prepare_tree, ..row("cp-r", Who::Local, copies::tree) },
    Row { prepare: copies::prepare_directory, ..row("mv", Who::Plain, copies::move_directory) },
    row("seal", Who::Plain, sealing::background),
    row("index", Who::Alone, sealing::index_bytes),
    Row { full: true, prepare: large::prepare, ..row("million", Who::Alone, large::million) },
];
