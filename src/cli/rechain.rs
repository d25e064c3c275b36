//! `depotfs rechain`: copies the blobs to another chain, and then gives that to the depot.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use super::exit::{self, Exit};
use super::{Outcome, complain, depot, human};
use crate::config::chain::TEMPLATES;
use crate::config::keys::DEPOT;
use crate::config::rechain::{is_of_chain, reach, with_chain_of};
use crate::config::{self, Chosen, Config, Values};
use crate::control::report::Rechained;
use crate::control::{self, Client, Request};
use crate::daemon::lock::{self, Holder};
use crate::daemon::places;
use crate::daemon::rechain::{self, Plan};
use crate::text::shown;

/// Move the blobs of a depot to another chain of providers.
///
/// Of an unmounted depot it copies what the new chain lacks and then exchanges depot.toml. While the depot is mounted it
/// copies nearly everything, and the next mount does the rest. Every blob is compared with its checksum on the way; the old
/// ones are left where they are. Ended early, the same command goes on.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs rechain /srv/depot --to full-db-direct
  depotfs rechain /srv/depot --to new.toml        a file with template or chain, and the sections of its providers
  depotfs rechain /srv/depot --to file-system --set file-system.dir=/raid/blobs
  depotfs rechain /srv/depot                      go on with the one that was begun
  depotfs rechain /srv/depot --cancel             forget it; what was copied is left where it is

Exit codes: 0 when the depot has the new chain, or gets it with the next mount; 4 when blobs could not be copied.")]
pub struct Args {
    /// The depot's directory, or any path inside its mount.
    depot: PathBuf,
    /// Name of a template, or a file with keys of a depot.toml.
    #[arg(long, value_name = "TEMPLATE|FILE", conflicts_with = "cancel")]
    to: Option<PathBuf>,
    /// Sets a key of the new chain; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "to")]
    settings: Vec<String>,
    /// Forget a rechain that was begun.
    #[arg(long)]
    cancel: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Outcome {
    let depot = depot::find(&args.depot)?;
    if args.cancel {
        let text =
            if Plan::remove(&depot)? { "the rechain is cancelled" } else { "there is no rechain to cancel" };
        writeln!(out, "{text}")?;
        return Ok(Exit::Ok);
    }
    if let Some(to) = &args.to
        && let Some(problems) = plan(&depot, to, &args.settings)?
    {
        return Ok(problems);
    }
    let report = carry_out(&depot)?;
    match args.json {
        true => writeln!(out, "{:#}", serde_json::to_value(&report)?)?,
        false => tell(&depot, &report, out)?,
    }
    for trouble in &report.failed {
        complain(&format!("cannot be copied: {}: {}", trouble.what, trouble.why));
    }
    Ok(if report.switched || report.ready { Exit::Ok } else { Exit::Problems })
}

/// Notes what is to be done; the exit is for a chain with which something is wrong.
fn plan(depot: &Path, to: &Path, settings: &[String]) -> anyhow::Result<Option<Exit>> {
    let old = Config::load(depot)?;
    let now = config::read_values(&depot.join(config::FILE))?;
    let values = with_chain_of(&now, &chain(&now, to, settings)?).map_err(anyhow::Error::msg)?;
    let text = config::render(DEPOT, &values);
    let (new, problems) = config::examine(depot, &text).map_err(|problem| anyhow!("{problem}"))?;
    if !problems.is_empty() {
        problems.iter().for_each(|problem| complain(&shown(problem.text.as_bytes())));
        complain(&format!(
            "{} with the new chain: nothing was done",
            human::count(problems.len() as u64, "problem")
        ));
        return Ok(Some(Exit::Problems));
    }
    if new.chain == old.chain {
        return Err(exit::stop(Exit::Usage, format!("depot {} has this chain already", depot.display())));
    }
    reach(&old, &new).map_err(anyhow::Error::msg).context("the chain cannot be exchanged")?;
    let plan = Plan::new(&values);
    match Plan::load(depot)? {
        Some(other) if other.is_same(&plan) => {}
        Some(_) => bail!(
            "a rechain of depot {0} to another chain was begun: end it with `depotfs rechain {0}`, or forget it with --cancel",
            depot.display()
        ),
        None => plan.save(depot)?,
    }
    Ok(None)
}

/// The keys of the chain that is asked for: a file's, or a template's with what the depot says of its providers.
fn chain(now: &Values, to: &Path, settings: &[String]) -> anyhow::Result<Values> {
    let template = to.to_str().and_then(|name| TEMPLATES.iter().find(|template| template.name == name));
    let mut values = match template {
        Some(template) => {
            let mut values = Values::from([("template", template.name.to_owned())]);
            let chosen = Chosen { template: Some(template.name), providers: template.chain.to_vec() };
            let kept =
                now.iter().filter(|(key, _)| !matches!(*key, "template" | "chain") && is_of_chain(key));
            let section = |key: &str| key.split_once('.').map_or("", |(section, _)| section).to_owned();
            kept.filter(|(key, _)| chosen.uses(&section(key)))
                .for_each(|(key, value)| values.insert(key, value.into()));
            values
        }
        None => config::read_values(to).with_context(|| {
            format!("--to {}: it is neither a template nor a file that can be used", to.display())
        })?,
    };
    for assignment in settings {
        let (key, value) =
            config::assignment(DEPOT, assignment).map_err(|why| exit::stop(Exit::Usage, why))?;
        values.insert(key, value);
    }
    Ok(values)
}

/// Lets the daemon copy where there is one, else does everything.
fn carry_out(depot: &Path) -> anyhow::Result<Rechained> {
    match Client::connect(depot) {
        Ok(mut daemon) => Ok(daemon.ask(&Request::Rechain, &mut |news| complain(news))?),
        Err(control::Error::NotRunning(_)) => {
            let _lock = lock::take(depot, &Holder::this("rechain", None), lock::PATIENCE)?;
            places::clear_dead_mounts(depot)?;
            rechain::unmounted(&Config::load(depot)?, &mut |news| {
                complain(news);
                true
            })
        }
        Err(error) => Err(error.into()),
    }
}

fn tell(depot: &Path, report: &Rechained, out: &mut dyn Write) -> std::io::Result<()> {
    let (depot, chain) = (depot.display(), report.chain.join(" > "));
    if report.copied > 0 {
        let (blobs, bytes) = (human::count(report.copied, "blob"), report.bytes);
        writeln!(out, "copied {blobs} with {bytes} bytes, each compared with its checksum")?;
    }
    match (report.switched, report.ready) {
        (true, _) => writeln!(out, "depot {depot} keeps its blobs in {chain} now")?,
        (_, true) => writeln!(
            out,
            "the next mount of depot {depot} ends it, and so does `depotfs rechain {depot}` once it is unmounted"
        )?,
        _ if report.failures > 0 => {
            let blobs = human::count(report.failures, "blob");
            writeln!(
                out,
                "{blobs} could not be copied: depot {depot} keeps its chain; write the content of the files that show them \
                 again, or remove these"
            )?;
        }
        _ => writeln!(out, "ended early: depot {depot} keeps its chain; the same command goes on")?,
    }
    if !report.left.is_empty() && (report.switched || report.ready) {
        let when = if report.switched { "" } else { ", and are of no use after that" };
        writeln!(out, "the old blobs stay in {}{when}: remove them when you like", report.left.join(", "))?;
    }
    if report.aside > 0 {
        let files = human::count(report.aside, "file");
        writeln!(
            out,
            "{files} set aside stay in the folder _aside there: look through them before it is removed"
        )?;
    }
    Ok(())
}
