//! depotfs: repositories of a binary repository manager as ordinary directories.

pub mod fuse;

pub mod control;

pub mod change;
pub mod checksum;
pub mod clock;
pub mod config;
pub mod metrics;
pub mod sys;
pub mod worker;
