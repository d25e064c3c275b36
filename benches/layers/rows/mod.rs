//! The rows: each a piece of work, set up once and measured for every peer in every round.

mod drain;
mod read;
mod shards;
mod start;
mod tail;
mod write;

use anyhow::Result;

use crate::course::Course;

/// A piece of work.
pub struct Row {
    /// What `--row` selects.
    pub name: &'static str,
    /// Everything: what is set up, all rounds, all peers.
    pub measure: fn(&mut Course<'_>) -> Result<()>,
}

/// All rows, in the order in which they run.
pub const ROWS: &[Row] = &[
    Row { name: "read", measure: read::read },
    Row { name: "tail", measure: tail::tail },
    Row { name: "close", measure: write::close },
    Row { name: "drain", measure: drain::drain },
    Row { name: "redundancy", measure: shards::redundancy },
    Row { name: "shards", measure: shards::shards },
    Row { name: "start", measure: start::start },
];
