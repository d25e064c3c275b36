//! `depotfs mount`: returns when the mount answers.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;

use anyhow::{Context, bail};

use super::exit::{self, Exit, stop};
use super::{Outcome, complain, depot};
use crate::daemon::detach::{self, Handover, Started};
use crate::daemon::{self, Plan, places};
use crate::fuse::options::{self, Options};
use crate::sys::{mountinfo, process};

/// Mount a depot; returns when the mount answers.
///
/// The daemon goes into the background. A second mount of a depot is refused; right after `umount` it waits for the daemon
/// of the first to finish.
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    /// The depot's directory.
    depot: PathBuf,
    /// Where to mount it: a directory outside the depot.
    mountpoint: PathBuf,
    /// Mount options, separated by commas; may be given several times.
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground and log to standard error.
    #[arg(short, long)]
    foreground: bool,
    /// This is the daemon, and its standard output leads to the command that started it.
    #[arg(long, hide = true, conflicts_with = "foreground")]
    detached: bool,
}

fn after_help() -> String {
    format!(
        "Options of -o:\n{}\n\
         Examples:\n  \
           depotfs mount /srv/depot /mnt/repos\n  \
           depotfs mount /srv/depot /mnt/libs -o ro,subdir=libs\n  \
           mount -t fuse.depotfs /srv/depot /mnt/repos -o noatime     (after make install)",
        options::help()
    )
}

impl Args {
    /// What mount(8) asks for.
    pub fn for_helper(depot: PathBuf, mountpoint: PathBuf, options: Vec<String>) -> Args {
        Args { depot, mountpoint, options, foreground: false, detached: false }
    }

    /// Refuses options that are not known, before anything is done.
    pub fn options(&self) -> Result<Options, options::Error> {
        Options::parse(&self.options)
    }
}

pub fn run(args: &Args) -> Outcome {
    if args.detached {
        return serve_detached(args);
    }
    let plan = plan(args)?;
    if args.foreground {
        tell_users_limits(&plan.options);
        daemon::run(&plan, None)?;
        return Ok(Exit::Ok);
    }
    match detach::start(&arguments(&plan, args))? {
        Started::Failed(code, text) => Err(stop(Exit::from_code(code), text)),
        Started::Ready => {
            wait_for_answer(&plan)?;
            tell_users_limits(&plan.options);
            Ok(Exit::Ok)
        }
    }
}

/// The background process: whatever goes wrong goes through the pipe to the command.
fn serve_detached(args: &Args) -> Outcome {
    let served = Handover::begin().and_then(|handover| daemon::run(&plan(args)?, Some(handover)));
    let Err(error) = served else { return Ok(Exit::Ok) };
    let exit = exit::of(&error);
    tracing::error!("{error:#}");
    Handover::failed(exit as u8, &format!("{error:#}"));
    Ok(exit)
}

/// Finds the places, and clears a dead mount of this depot from the mountpoint so that it can be used.
fn plan(args: &Args) -> anyhow::Result<Plan> {
    let options = args.options()?;
    let depot = depot::find(&args.depot)?;
    let mountpoint = places::mountpoint(&args.mountpoint)?;
    let mounts = mountinfo::mounts().context("the mounts cannot be read")?;
    if let Some(there) = places::mount_at(&mounts, &mountpoint)
        && there.is_depot()
        && mountinfo::is_dead(&mountpoint)
    {
        if there.source != depot {
            bail!(
                "{} holds what a dead daemon left of another depot, {}: mount that one first, or take it away with: umount -l {0}",
                mountpoint.display(),
                there.source.display()
            );
        }
        places::clear_dead_mounts(&depot)?;
    }
    Ok(Plan { depot, mountpoint, options, options_text: args.options.join(",") })
}

/// Arguments of the background process; paths are absolute by now.
fn arguments(plan: &Plan, args: &Args) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["mount".into(), "--detached".into()];
    for options in &args.options {
        arguments.extend([OsString::from("-o"), options.into()]);
    }
    arguments.extend([OsStr::new("--").into(), plan.depot.clone().into(), plan.mountpoint.clone().into()]);
    arguments
}

/// Asks the mount itself once, through the kernel.
fn wait_for_answer(plan: &Plan) -> anyhow::Result<()> {
    let shown = plan.mountpoint.display();
    match mountinfo::ask(&plan.mountpoint) {
        Ok(()) => {}
        // The tree's own permissions; somebody answered.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) => return Err(error).with_context(|| format!("{shown} was mounted and does not answer")),
    }
    let mounts = mountinfo::mounts().context("the mounts cannot be read")?;
    match places::mount_at(&mounts, &plan.mountpoint) {
        Some(mount) if mount.is_depot() => Ok(()),
        _ => bail!("{shown} was mounted and is gone again: the log of {} may say why", plan.depot.display()),
    }
}

/// What an ordinary user does not get, said once.
fn tell_users_limits(options: &Options) {
    if !process::is_root() && options.may_pass_through() {
        complain("note: mounted by an ordinary user, so bytes go through the daemon; passthrough needs root");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_gets_the_same_plan() {
        let plan = Plan {
            depot: "/a depot".into(),
            mountpoint: "/-odd".into(),
            options: Options::default(),
            options_text: String::new(),
        };
        let args = Args::for_helper("x".into(), "y".into(), vec!["ro,noatime".into(), "subdir=a".into()]);
        let passed = arguments(&plan, &args);
        let words = std::iter::once("depotfs".into()).chain(passed);
        let parsed = <super::super::Cli as clap::Parser>::try_parse_from(words).unwrap();
        let super::super::Command::Mount(parsed) = parsed.command else { panic!("not a mount") };
        assert!(parsed.detached && !parsed.foreground);
        assert_eq!(parsed.options, args.options);
        assert_eq!((parsed.depot, parsed.mountpoint), (plan.depot, plan.mountpoint));
    }
}
