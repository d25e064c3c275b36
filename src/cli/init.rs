//! `depotfs init`: makes an empty depot, or nothing at all.

mod traces;

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use self::traces::{BACKUP, MARKER, Traces};
use super::{Exit, Outcome};
use crate::config::keys::DEPOT;
use crate::config::{self, Config, Values};
use crate::daemon::lock::{self, Holder};
use crate::daemon::places;
use crate::daemon::rooms::{self, RootDirectory};
use crate::sys::mountinfo;

/// Make an empty depot.
///
/// DEPOT is made, or is an empty directory: then the root of the tree gets its owner and permissions. When anything goes
/// wrong nothing is left behind.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  depotfs init /srv/depot
  depotfs init /srv/depot --set index=/ssd/depot-index --set file-system.dir=/raid/blobs
  depotfs init /srv/depot --set durability=close
  depotfs init /srv/depot --set chain=full-db     provider by provider, in place of --template
  depotfs init /srv/depot --from new.toml         with the keys of a file, such as `depotfs config convert` writes

The keys are explained in the depot.toml that is written.")]
pub struct Args {
    /// Directory of the new depot.
    depot: PathBuf,
    /// Chain of providers that keeps the blobs.
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// File with keys of a depot.toml, such as `config convert` writes; --template and --set win over it.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Sets a key of depot.toml; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

pub fn run(args: Args, out: &mut dyn Write) -> Outcome {
    let mut values = args.from.as_deref().map_or(Ok(Values::new()), config::read_values)?;
    values.remove("id");
    if args.template.is_some() {
        values.remove("chain");
    }
    let template = args.template.map(|name| format!("template={name}"));
    for assignment in template.iter().chain(&args.settings) {
        let (key, value) =
            config::assignment(DEPOT, assignment).map_err(|why| super::exit::stop(Exit::Usage, why))?;
        values.insert(key, value);
    }
    let shown = args.depot.display();
    let depot = places::absolute(&args.depot).with_context(|| format!("depot {shown} cannot be made"))?;
    let mounts = mountinfo::mounts().context("the mounts cannot be read")?;
    if mountinfo::holder(&mounts, &depot).is_some_and(|mount| mount.is_depot()) {
        bail!("depot {shown} cannot be made inside a mounted depot");
    }
    let id = make(&depot, values).with_context(|| format!("depot {shown} cannot be made"))?;
    writeln!(out, "made depot {shown} with id {id}")?;
    writeln!(out, "mount it with: depotfs mount {shown} MOUNTPOINT")?;
    Ok(Exit::Ok)
}

/// Makes it, or takes back what was made.
fn make(depot: &Path, values: Values) -> anyhow::Result<String> {
    let (root, made) = claim(depot)?;
    make_in(depot, root, made, values)
}

/// Makes the directory, or sees that it is empty; what the root of the tree inherits from it, and the directory if it is new.
fn claim(depot: &Path) -> anyhow::Result<(RootDirectory, Vec<PathBuf>)> {
    refuse_depot(depot)?;
    if !depot.exists() {
        // What the tree shows is for the tree's permissions to say; the files below it are nobody else's.
        DirBuilder::new().mode(0o700).create(depot).context("the directory cannot be made")?;
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        return Ok((RootDirectory { uid, gid, mode: 0o755 }, vec![depot.canonicalize()?]));
    }
    let found = traces::names(depot).context("the directory cannot be read")?;
    if !found.is_empty() && !depot.join(MARKER).exists() {
        let first = found.first().map(|name| name.display().to_string()).unwrap_or_default();
        bail!("the directory is not empty, it has \"{first}\" in it: empty it or name another");
    }
    let there = fs::metadata(depot)?;
    Ok((RootDirectory { uid: there.uid(), gid: there.gid(), mode: there.mode() & 0o7777 }, Vec::new()))
}

fn refuse_depot(depot: &Path) -> anyhow::Result<()> {
    if depot.join(config::FILE).exists() {
        bail!("it is a depot already");
    }
    Ok(())
}

fn make_in(
    depot: &Path,
    root: RootDirectory,
    made: Vec<PathBuf>,
    mut values: Values,
) -> anyhow::Result<String> {
    let depot = &depot.canonicalize()?;
    let _lock = lock::take(depot, &Holder::this("init", None), Duration::ZERO).inspect_err(|_| {
        // What another process has locked has a file in it, and stays.
        made.iter().for_each(|made| drop(fs::remove_dir(made)));
    })?;
    // Another init may have been here between the look and the lock: what it made is not to be taken back.
    refuse_depot(depot)?;
    let mut traces = Traces::new(depot, made);
    let filled = fill(depot, root, &mut values, &mut traces);
    if filled.is_err() {
        traces.take_back();
    }
    filled
}

fn fill(
    depot: &Path,
    root: RootDirectory,
    values: &mut Values,
    traces: &mut Traces,
) -> anyhow::Result<String> {
    let id = traces.begin()?;
    values.insert("id", id.clone());
    let config = Config::build(depot, values).map_err(anyhow::Error::msg)?;
    rooms::make_directories(&config, &mut traces.made)?;
    traces.watch_parts(&config)?;
    fs::create_dir(depot.join(BACKUP))?;
    rooms::create(&config, root)?;
    config::write(depot, values)?;
    traces.end()?;
    fs::File::open(depot)?.sync_all()?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::traces::names;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_depot_is_made_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let depot = scratch.path().join("depot");
        let id = make(&depot, Values::new()).unwrap();
        let config = Config::load(&depot).unwrap();
        assert_eq!(config.id, id);
        let opened = rooms::open(&config).unwrap();
        let found: Vec<_> = names(&depot).unwrap().into_iter().collect();
        for name in ["backup", "depot.toml", "filestore", "index.db", "lock", "log"] {
            assert!(found.contains(&name.into()), "{name} is missing in {found:?}");
        }
        assert!(!depot.join(MARKER).exists());
        assert_eq!(fs::metadata(&depot).unwrap().mode() & 0o777, 0o700);
        for name in found.iter().filter_map(|name| name.to_str()) {
            let mode = fs::metadata(depot.join(name)).unwrap().mode() & 0o777;
            assert!(
                !(name == "lock" || rooms::is_index_file(name)) || mode == 0o600,
                "{name} has mode {mode:o}"
            );
        }
        drop(opened);
        let why = format!("{:#}", make(&depot, Values::new()).unwrap_err());
        assert!(why.contains("a depot already"), "{why}");
        rooms::open(&config).unwrap();
    }

    #[test]
    fn the_root_of_the_tree_follows_the_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let mode = fs::Permissions::from_mode(0o2775);
        fs::set_permissions(scratch.path(), mode).unwrap();
        make(scratch.path(), Values::new()).unwrap();
        let (index, _) = rooms::open(&Config::load(scratch.path()).unwrap()).unwrap();
        assert_eq!(index.inode(crate::change::ROOT).unwrap().unwrap().mode, 0o2775);
    }

    #[test]
    fn a_failed_init_leaves_nothing_behind() {
        let scratch = tempfile::tempdir().unwrap();
        let (depot, blobs) = (scratch.path().join("depot"), scratch.path().join("blobs"));
        let values = || {
            let mut values = Values::from([("file-system.dir", blobs.display().to_string())]);
            values.insert("index", scratch.path().join("ix").display().to_string());
            values
        };
        // A depot whose filestore another one uses cannot be made.
        make(&scratch.path().join("other"), Values::from([("file-system.dir", blobs.display().to_string())]))
            .unwrap();
        let before = names(&blobs).unwrap();
        assert!(make(&depot, values()).is_err());
        assert!(!depot.exists() && !scratch.path().join("ix").exists());
        assert_eq!(names(&blobs).unwrap(), before);
        // The same in a directory that was there.
        fs::create_dir(&depot).unwrap();
        assert!(make(&depot, values()).is_err());
        assert!(names(&depot).unwrap().is_empty());
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("precious"), "").unwrap();
        let why = format!("{:#}", make(scratch.path(), Values::new()).unwrap_err());
        assert!(why.contains("\"precious\""), "{why}");
        assert!(make(&scratch.path().join("a/b"), Values::new()).is_err());
        assert!(scratch.path().join("precious").exists());
    }

    #[test]
    fn an_init_that_was_killed_is_no_obstacle() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join(MARKER), "00112233445566778899aabbccddeeff").unwrap();
        fs::write(scratch.path().join("index.db"), "half").unwrap();
        fs::create_dir(scratch.path().join("filestore")).unwrap();
        assert_eq!(make(scratch.path(), Values::new()).unwrap(), "00112233445566778899aabbccddeeff");
    }

    #[test]
    fn a_killed_one_with_its_index_elsewhere_is_no_obstacle_either() {
        let scratch = tempfile::tempdir().unwrap();
        let (depot, index) = (scratch.path().join("depot"), scratch.path().join("index"));
        let values = || Values::from([("index", index.display().to_string())]);
        let id = make(&depot, values()).unwrap();
        // As far as it comes without its last steps.
        fs::remove_file(depot.join(config::FILE)).unwrap();
        for directory in [&depot, &index] {
            fs::write(directory.join(MARKER), &id).unwrap();
        }
        fs::write(index.join("mine"), "").unwrap();
        assert_eq!(make(&depot, values()).unwrap(), id);
        assert!(index.join("mine").exists() && !index.join(MARKER).exists());
        rooms::open(&Config::load(&depot).unwrap()).unwrap();
        // Nobody else's index is taken for what was left.
        let other = scratch.path().join("other");
        let why = format!("{:#}", make(&other, values()).unwrap_err());
        assert!(why.contains("exist"), "{why}");
        assert!(!other.exists() && !index.join(MARKER).exists());
        rooms::open(&Config::load(&depot).unwrap()).unwrap();
        fs::write(index.join(MARKER), &id).unwrap();
        let why = format!("{:#}", make(&other, values()).unwrap_err());
        assert!(why.contains("another depot's init") && why.contains(MARKER), "{why}");
        assert!(index.join(MARKER).exists());
    }

    #[test]
    fn a_failed_init_takes_back_nothing_of_others() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let (depot, index, blobs) = (at("depot"), at("index"), at("blobs"));
        for directory in [&depot, &index, &blobs] {
            fs::create_dir(directory).unwrap();
        }
        let mut values = Values::from([("index", index.display().to_string())]);
        values.insert("file-system.dir", blobs.display().to_string());
        let (root, made) = claim(&depot).unwrap();
        let mut traces = Traces::new(&depot, made);
        fill(&depot, root, &mut values, &mut traces).unwrap();
        // What comes while it runs.
        for name in ["depot/mine", "index/mine", "blobs/mine", "blobs/ab/mine"] {
            fs::write(at(name), "").unwrap();
        }
        traces.take_back();
        for directory in [&depot, &index] {
            assert_eq!(names(directory).unwrap(), ["mine".into()].into(), "{directory:?}");
        }
        assert_eq!(names(&blobs).unwrap(), ["ab".into(), "mine".into()].into());
        assert!(blobs.join("ab/mine").exists());
    }

    #[test]
    fn the_slower_of_two_leaves_the_quicker_ones_depot_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let depot = scratch.path().join("depot");
        let (root, made) = claim(&depot).unwrap();
        let id = make(&depot, Values::new()).unwrap();
        let why = format!("{:#}", make_in(&depot, root, made, Values::new()).unwrap_err());
        assert!(why.contains("a depot already"), "{why}");
        let config = Config::load(&depot).unwrap();
        assert_eq!(config.id, id);
        rooms::open(&config).unwrap();
    }
}
