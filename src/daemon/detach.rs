//! Putting the daemon into the background, and hearing from it until the mount answers.
//!
//! The command starts this program once more with `--detached` and its standard output as a pipe. The daemon leaves the
//! terminal, starts up, and writes `ready` or why it could not; then it lets go of all three standard streams, so that
//! whoever waits for the end of their pipes is not kept waiting for the daemon's life.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::sys::process;

/// First word when all went well.
const READY: &str = "ready";

/// How a start in the background ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Started {
    /// The daemon serves requests.
    Ready,
    /// It could not; exit code and text for the user.
    Failed(u8, String),
}

/// Starts this program with `arguments` in the background and waits for its word.
pub fn start<S: AsRef<OsStr>>(arguments: &[S]) -> anyhow::Result<Started> {
    let mut child = Command::new("/proc/self/exe")
        .arg0("depotfs")
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("the daemon cannot be started")?;
    let said = child.stdout.take().map_or(Ok(String::new()), hear).context("the daemon cannot be heard")?;
    if let Some(started) = parse(&said) {
        return Ok(started);
    }
    let status = child.wait().context("the daemon cannot be waited for")?;
    Ok(Started::Failed(
        1,
        format!("the daemon ended before the mount answered ({status}); its log may say why"),
    ))
}

/// The daemon's word: its first line when that says it all, else everything up to the end of the pipe. The end may not come
/// as long as the daemon lives, should it be unable to let go of the pipe.
fn hear(pipe: impl Read) -> io::Result<String> {
    let (mut pipe, mut said) = (BufReader::new(pipe), String::new());
    pipe.read_line(&mut said)?;
    if said.trim_end() != READY {
        pipe.read_to_string(&mut said)?;
    }
    Ok(said)
}

fn parse(said: &str) -> Option<Started> {
    let (first, text) = said.split_once('\n')?;
    match first.split_once(' ') {
        None if first == READY => Some(Started::Ready),
        Some(("failed", code)) => Some(Started::Failed(code.parse().ok()?, text.trim_end().into())),
        _ => None,
    }
}

/// The daemon's end of the pipe.
#[derive(Debug)]
pub struct Handover(());

impl Handover {
    /// Takes the daemon away from the terminal, and from what its starter had open: a lock or the end of a pipe there is not
    /// to be held for the daemon's life. Comes first in the process, before it has opened anything.
    pub fn begin() -> anyhow::Result<Handover> {
        process::close_inherited().context("the daemon cannot let go of its starter's files")?;
        process::leave_terminal().context("the daemon cannot leave the terminal")?;
        Ok(Handover(()))
    }

    /// The mount answers. From now on standard error is the log file, if there is one.
    pub fn ready(self, errors: Option<&std::fs::File>) -> io::Result<()> {
        say(&format!("{READY}\n"));
        process::release_standard_streams(errors)
    }

    /// It could not be mounted.
    pub fn failed(code: u8, text: &str) {
        say(&format!("failed {code}\n{text}\n"));
    }
}

/// Writes to the pipe. When the command has been killed meanwhile nobody listens, and the daemon goes on.
fn say(text: &str) {
    let mut pipe = io::stdout();
    let _ = pipe.write_all(text.as_bytes()).and_then(|()| pipe.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_word_is_understood() {
        assert_eq!(parse("ready\n"), Some(Started::Ready));
        assert_eq!(parse("failed 5\nin use\nby 12\n"), Some(Started::Failed(5, "in use\nby 12".into())));
        for odd in ["", "ready", "readyish\n", "failed\n", "failed x\ny\n", "failed 999\ny\n"] {
            assert_eq!(parse(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn nobody_waits_for_a_pipe_that_stays_open() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"ready\n").unwrap();
        assert_eq!(hear(reader).unwrap(), "ready\n");
        drop(writer);
        assert_eq!(hear(&b"failed 5\nin use\nby 12\n"[..]).unwrap(), "failed 5\nin use\nby 12\n");
        assert_eq!(hear(&b""[..]).unwrap(), "");
    }

    proptest::proptest! {
        #[test]
        fn no_word_makes_the_listener_panic(said in "(ready|failed)?[ 0-9]{0,5}\n?.{0,20}\n?") {
            parse(&said);
        }
    }
}
