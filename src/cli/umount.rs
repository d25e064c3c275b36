//! `depotfs umount`: seals and forces what is pending, unmounts, waits for the daemon to end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::exit::{Exit, stop};
use super::status::waiting;
use super::{Outcome, complain};
use crate::control::report::Queue;
use crate::control::{self, Client, Drain, Request};
use crate::daemon::{lock, places, users};
use crate::sys::mountinfo::{self, Mount};
use crate::text;

/// Unmount a depot: seal and force what is pending, upload what is in the queue, unmount, wait for the daemon to end.
///
/// The queue is waited for at most as long as eventual.drain-timeout says; what is left is uploaded by the next mount.
/// When something in the mount is in use, nothing is unmounted and the exit code is 5.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs umount /mnt/repos
  depotfs umount /mnt/repos --no-drain keep what is not uploaded for the next mount
  depotfs umount /mnt/repos --lazy     detach at once; the daemon ends when the last user has let go")]
pub struct Args {
    /// Where the depot is mounted.
    mountpoint: PathBuf,
    /// Take the mount out of the tree at once, and wait for nothing.
    #[arg(long)]
    lazy: bool,
    /// Leave the upload queue as it is, for the next mount.
    #[arg(long, conflicts_with = "lazy")]
    no_drain: bool,
}

/// How long the daemon may need to finish after the unmount, before this command gives up waiting.
const PATIENCE: Duration = Duration::from_secs(600);
/// After this long somebody wants to know what is being waited for.
const SILENCE: Duration = Duration::from_secs(2);

pub fn run(args: &Args) -> Outcome {
    let mount = find(&args.mountpoint)?;
    let (mountpoint, depot) = (&mount.mountpoint, &mount.source);
    let shown = mountpoint.display();
    let holder = lock::holder(depot).ok().flatten();
    if !args.lazy {
        flush(depot);
        drain(depot, if args.no_drain { Drain::Not } else { Drain::BeforeUnmount });
    }
    if let Err(error) = mountinfo::unmount(mountpoint, args.lazy) {
        if error.kind() == io::ErrorKind::ResourceBusy {
            return Err(busy(&mount));
        }
        return Err(error).with_context(|| format!("{shown} cannot be unmounted"));
    }
    let elsewhere =
        mountinfo::mounts().unwrap_or_default().into_iter().find(|other| other.device == mount.device);
    if let Some(other) = elsewhere {
        complain(&format!("note: the depot is also mounted on {}", other.mountpoint.display()));
        return Ok(Exit::Ok);
    }
    if let (false, Some(holder)) = (args.lazy, holder) {
        wait(depot, holder.pid)?;
    }
    Ok(Exit::Ok)
}

/// The mount on top at the mountpoint.
fn find(given: &Path) -> anyhow::Result<Mount> {
    let mounts = mountinfo::mounts().context("the mounts cannot be read")?;
    let there = places::mountpoint(given).ok().and_then(|place| places::mount_at(&mounts, &place)).cloned();
    there.filter(Mount::is_depot).ok_or_else(|| {
        let depots: Vec<String> = mounts
            .iter()
            .filter(|mount| mount.is_depot())
            .map(|mount| mount.mountpoint.display().to_string())
            .collect();
        let known = match depots.is_empty() {
            true => "no depot is mounted".to_owned(),
            false => format!("depots are mounted on {}", depots.join(", ")),
        };
        stop(Exit::NotRunning, format!("no depot is mounted on {}: {known}", given.display()))
    })
}

/// Has the daemon seal and force. Whatever it cannot seal is kept, so a failure is no reason to stay mounted.
fn flush(depot: &Path) {
    let mut progress = |news: &str| complain(news);
    let flushed = Client::connect(depot)
        .and_then(|mut daemon| daemon.ask::<Value>(&Request::Flush { wait: true }, &mut progress));
    match flushed {
        // A dead daemon has nothing to flush; who may not ask may not unmount either, and is told so there.
        Ok(_) | Err(control::Error::NotRunning(_) | control::Error::NotAllowed(..)) => {}
        Err(error) => complain(&format!("warning: {}; the next mount tries again", text::chain(&error))),
    }
}

/// Has the daemon wait for its queue, and says what stays in it.
fn drain(depot: &Path, how: Drain) {
    let mut progress = |news: &str| complain(news);
    let left = Client::connect(depot)
        .and_then(|mut daemon| daemon.ask::<Option<Queue>>(&Request::Drain { how }, &mut progress));
    match left {
        Ok(Some(left)) if left.entries + left.removals > 0 => {
            complain(&format!("note: kept for the next mount: {}", waiting(&left)));
        }
        Ok(_) | Err(control::Error::NotRunning(_) | control::Error::NotAllowed(..)) => {}
        Err(error) => complain(&format!("warning: {}; the next mount tries again", text::chain(&error))),
    }
}

fn busy(mount: &Mount) -> anyhow::Error {
    let users: Vec<String> = users::users(mount).iter().map(ToString::to_string).collect();
    let by = match users.is_empty() {
        true => "a process that this user may not see, or another mount inside it".to_owned(),
        false => format!("process {}", users.join(", ")),
    };
    let text = format!(
        "{} is in use by {by}: end it, or detach the mount with: depotfs umount --lazy {0}",
        mount.mountpoint.display()
    );
    stop(Exit::Busy, text)
}

fn wait(depot: &Path, pid: u32) -> anyhow::Result<()> {
    let released =
        |patience| lock::wait_for_release(depot, pid, patience).context("the depot's lock cannot be read");
    if released(SILENCE)? {
        return Ok(());
    }
    complain(&format!("unmounted; waiting for process {pid} to finish what was written"));
    if released(PATIENCE)? {
        return Ok(());
    }
    Err(stop(Exit::Failed, format!("unmounted, but process {pid} has not ended yet: its log may say why")))
}
