//! Exit codes, and which error becomes which.

use std::process::ExitCode;

use crate::control::{self, Cause};
use crate::daemon::lock;
use crate::fuse::options;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It went wrong.
    Failed = 1,
    /// The command makes no sense.
    Usage = 2,
    /// No daemon is running for the depot.
    NotRunning = 3,
    /// Something is not as it should be.
    Problems = 4,
    /// Somebody is using it.
    Busy = 5,
}

impl Exit {
    /// The exit with this code; an unknown one is a failure.
    pub fn from_code(code: u8) -> Exit {
        use Exit::*;
        [Ok, Failed, Usage, NotRunning, Problems, Busy]
            .into_iter()
            .find(|exit| *exit as u8 == code)
            .unwrap_or(Failed)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// An error that knows its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Stop {
    exit: Exit,
    text: String,
}

/// An error with this exit code and text.
pub fn stop(exit: Exit, text: impl Into<String>) -> anyhow::Error {
    Stop { exit, text: text.into() }.into()
}

/// The exit code of an error: that of the first in its chain that has one.
pub fn of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(code).unwrap_or(Exit::Failed)
}

fn code(error: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        return Some(stop.exit);
    }
    if error.is::<options::Error>() {
        return Some(Exit::Usage);
    }
    if let Some(lock::Error::Busy(..) | lock::Error::Finishing(..)) = error.downcast_ref() {
        return Some(Exit::Busy);
    }
    match error.downcast_ref::<control::Error>()? {
        control::Error::NotRunning(_) => Some(Exit::NotRunning),
        control::Error::Failed(failure) => Some(of_cause(failure.cause)),
        _ => None,
    }
}

fn of_cause(cause: Cause) -> Exit {
    match cause {
        Cause::Failed | Cause::NotFound | Cause::NotAllowed => Exit::Failed,
        Cause::Usage => Exit::Usage,
        Cause::Busy => Exit::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_first_error_that_knows_decides() {
        let not_running = || control::Error::NotRunning("/d".into());
        assert_eq!(of(&not_running().into()), Exit::NotRunning);
        assert_eq!(of(&Err::<(), _>(not_running()).context("asking").unwrap_err()), Exit::NotRunning);
        assert_eq!(of(&options::Error("x".into()).into()), Exit::Usage);
        assert_eq!(of(&stop(Exit::Problems, "x")), Exit::Problems);
        assert_eq!(of(&anyhow::anyhow!("x")), Exit::Failed);
        let failure = control::Failure::new(Cause::Busy, "x");
        assert_eq!(of(&control::Error::Failed(failure).into()), Exit::Busy);
    }

    #[test]
    fn codes_are_the_published_ones() {
        use Exit::*;
        for (exit, code) in [(Ok, 0), (Failed, 1), (Usage, 2), (NotRunning, 3), (Problems, 4), (Busy, 5)] {
            assert_eq!(exit as u8, code);
            assert_eq!(Exit::from_code(code), exit);
        }
        assert_eq!(Exit::from_code(77), Failed);
    }
}
