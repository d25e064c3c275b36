//! Safe words for system calls that std and nix lack; every `unsafe` block of the crate is in here.

pub mod boot;
pub mod caller;
pub mod content;
pub mod file;
pub mod fuse_mount;
pub mod lease;
pub mod mountinfo;
pub mod offers;
pub mod process;
#[cfg(debug_assertions)]
pub mod sqlite_vfs;
pub mod thread;
