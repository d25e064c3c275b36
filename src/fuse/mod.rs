//! The kernel boundary: the only place that knows `fuser` and errno.
//!
//! Requests are turned into calls of `vfs` and its answers into replies; nothing is decided here but how long the kernel may
//! keep what it is told (for ever, unless it can change without a request) and by which flags a file is served.

mod adapter;
mod answer;
mod behind;
mod convert;
mod errno;
mod lanes;
pub mod options;
mod quiet;
mod session;
mod slow;
pub mod watch;

pub use session::{Mounting, Session};
