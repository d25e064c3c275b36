//! Safe words for system calls that std and nix lack; every `unsafe` block of the crate is in here.

pub mod file;
