//! depotfs: repositories of a binary repository manager as ordinary directories, over a deduplicated filestore.
//!
//! A namespace in an SQL index, blobs in a filestore, and a thin kernel adapter. The index does not know where bytes are, the
//! filestore does not know what paths are, and only [`vfs`] and [`jobs`] know both.
//!
//! The map of rooms, from the outside in; each calls those below it only:
//!
//! | room | what is in it |
//! |---|---|
//! | [`cli`] | the commands, one file each |
//! | [`daemon`] | what is started in which order, and stopped in the reverse one |
//! | [`control`] | the socket between commands and daemon |
//! | [`fuse`] | the kernel boundary: requests, mount options, errno |
//! | [`jobs`] | work that nobody waits for, and the offline check |
//! | [`vfs`] | what a system call means; the way of a file's content |
//! | [`filestore`] | blobs by checksum, and the staging files they are made of |
//! | [`index`] | the namespace, in SQLite |
//! | [`change`], [`checksum`] | the closed set of changes; names of blobs and how they are found |
//! | [`config`] | depot.toml and its table of keys |
//! | [`clock`], [`metrics`], [`text`], [`worker`] | the time, numbers, texts for people, named threads |
//! | [`failpoint`] | points at which a test kills the process or makes a call fail; nothing in a release build |
//! | [`sys`] | every `unsafe` block and raw system call |
//!
//! docs/architecture.md has the invariants, the lock order and the states of a file's content.

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
mod crowd;
pub mod failpoint;
pub mod metrics;
pub mod sys;
pub mod text;
pub mod worker;
