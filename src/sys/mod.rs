//! Raw system calls and interfaces of the kernel; the only room where `unsafe` may stand.

pub mod boot;
pub mod mountinfo;
pub mod process;
