//! The integration suite: real mounts of the built program, judged from outside.
//!
//! `harness` makes depots, mounts them and cleans up; the families that speak of POSIX run each test on a plain directory
//! of the local disk first (what we demand is what a local disk does) and then in the mount, once for each mode.
//! The suite is run as root: it mounts with passthrough, changes users and makes device nodes.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod harness;
mod sys;

mod acl;
mod attributes;
mod balance;
mod boundary;
mod cache;
mod check;
mod checksums;
mod coherence;
mod command_line;
mod config;
mod conformance;
mod content;
mod convert;
mod copies;
mod crowds;
mod data;
mod dependencies;
mod directories;
mod disk_errors;
#[cfg(debug_assertions)]
mod eventual;
#[cfg(debug_assertions)]
mod failpoints;
#[cfg(debug_assertions)]
mod faults;
mod garbage;
mod kills;
mod layers;
mod lifecycle;
mod load;
mod locks;
mod mappings;
mod model;
mod mount_options;
mod namespace;
mod network_disks;
mod objects;
#[cfg(debug_assertions)]
mod outage;
mod powercut;
mod privileges;
mod programs;
mod races;
mod read_ahead;
mod rechain;
mod reload;
mod rename;
mod reports;
mod repositories;
mod requests;
mod services;
mod special;
#[cfg(debug_assertions)]
mod stalls;
mod tidy;
#[cfg(debug_assertions)]
mod watchdog;
mod xattrs;
