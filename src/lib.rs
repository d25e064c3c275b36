//! depotfs: repositories of a binary repository manager as ordinary directories.

// From the outside in: each room calls those below it only.
pub mod cli;
pub mod daemon;

pub mod control;
pub mod fuse;

pub mod jobs;
pub mod vfs;

pub mod filestore;
pub mod index;

// Leaves.
pub mod change;
pub mod checksum;
pub mod clock;
pub mod config;
pub mod metrics;
pub mod sys;
pub mod worker;
