//! depotfs: repositories of a binary repository manager as ordinary directories.

pub mod change;
pub mod checksum;
pub mod filestore;
pub mod index;
pub mod sys;
