//! The socket between the commands and the running daemon.
//!
//! `control.sock` in the depot speaks lines of JSON: the client writes a [`Request`] in an envelope with the protocol's
//! version, the daemon answers with any number of progress lines and one result, after which the client may ask again. Only
//! the depot's owner and root are heard; the kernel says who is calling.

mod cache;
mod client;
mod protocol;
pub mod report;
mod server;
mod service;
mod socket;
mod status;

use std::io;
use std::path::PathBuf;

pub use client::{Client, News, Transfer};
pub use protocol::{Answer, Bytes, Cause, Drain, Failure, LINE_BYTES_MAX, Request, Target, VERSION};
pub use server::{Handler, Progress, Server};
pub use service::Service;

/// Name of the socket in the depot.
pub const SOCKET: &str = "control.sock";

/// What goes wrong between a command and the daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no daemon is running for {0}: mount the depot first, with: depotfs mount {0} MOUNTPOINT")]
    NotRunning(PathBuf),
    /// The socket's permissions, or the daemon, refused the caller.
    #[error("the daemon of {0} answers only the depot's owner and root")]
    NotAllowed(PathBuf, #[source] io::Error),
    /// Somebody else listens in its place.
    #[error(
        "{0}: what listens there is run by user {1}, who is neither the depot's owner nor root: it is not asked"
    )]
    NotTheirs(PathBuf, u32),
    /// The socket cannot be made.
    #[error("the control socket of {0} cannot be opened")]
    Listen(PathBuf, #[source] io::Error),
    /// The conversation broke.
    #[error("the daemon of {0} could not be asked")]
    Broken(PathBuf, #[source] io::Error),
    /// The daemon said something this program does not understand.
    #[error(
        "the daemon of {0} answered in a way this depotfs does not understand ({1}); are they of one version?"
    )]
    Garbled(PathBuf, String),
    /// The daemon could not do it.
    #[error(transparent)]
    Failed(#[from] Failure),
}

#[cfg(test)]
mod tests;
