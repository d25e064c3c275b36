//! Putting the rooms together: from a configuration to an index, a filestore and a tree over both.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};

use super::{known_chain, layers};
use crate::change::{Ino, Kind, ROOT};
use crate::checksum::unhex;
use crate::clock;
use crate::config::{self, Atime, Config, Durability, LogTo, Problem};
use crate::filestore::{self, Filestore};
use crate::fuse::options::Options;
use crate::index::{self, Index};
use crate::sys;
use crate::sys::file::FileSystemType;
use crate::vfs::{self, Vfs};

/// Name of the index in its directory.
pub const INDEX_FILE: &str = "index.db";

/// Whether this is the name of one of the index's files, those that it has for a while included.
pub fn is_index_file(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("index.") else { return false };
    let database = |rest: &str| matches!(rest, "" | "-wal" | "-shm" | "-journal");
    match rest.strip_prefix("db") {
        Some(rest) => database(rest.strip_prefix(".new").unwrap_or(rest)) || rest.starts_with(".v"),
        None => matches!(rest, "redo0" | "redo1" | "reserve"),
    }
}

/// Closed files that may wait to be sealed, beyond which writers wait.
const BACKLOG_FILES_MAX: u64 = 100_000;
/// The same in bytes.
const BACKLOG_BYTES_MAX: u64 = 64 << 30;

/// Owner and permission bits of the root of a new tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootDirectory {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// Makes the index and the filestore of a new depot, whose directories exist.
pub fn create(config: &Config, root: RootDirectory) -> anyhow::Result<()> {
    refuse_network(&config.index, "the index", "index")?;
    let depot_id = depot_id(config)?;
    layers::of(config)?.iter().try_for_each(|layer| layer.create(depot_id))?;
    let RootDirectory { uid, gid, mode } = root;
    Index::create(
        &config.index.join(INDEX_FILE),
        &index::Init { depot_id, uid, gid, mode, at: clock::now() },
    )?;
    close_to_others(&config.index)
}

/// Opens index and filestore; the caller holds the depot's lock.
pub fn open(config: &Config) -> anyhow::Result<(Index, Filestore)> {
    refuse_network(&config.index, "the index", "index")?;
    let depot_id = depot_id(config)?;
    let index = Index::open(&config.index.join(INDEX_FILE))?;
    close_to_others(&config.index)?;
    if index.depot_id() != depot_id {
        bail!(
            "the index {} belongs to another depot than depot.toml says: put back the index or the depot.toml that belong \
             together",
            config.index.join(INDEX_FILE).display()
        );
    }
    let chain = layers::of(config)?;
    known_chain::doubt_lost_caches(config, &chain)?;
    let store = filestore::open_chain(&chain, depot_id)?;
    known_chain::examine(config, &index, &store)?;
    Ok((index, store))
}

/// The index tells every name and owner in the tree, so its files are for its owner only. SQLite gives what it makes later
/// the mode of the database.
fn close_to_others(directory: &Path) -> anyhow::Result<()> {
    let what = || format!("the modes of the index in {} cannot be set", directory.display());
    for entry in fs::read_dir(directory).with_context(what)? {
        let entry = entry.with_context(what)?;
        if !entry.file_name().to_str().is_some_and(is_index_file) {
            continue;
        }
        let mode = entry.metadata().with_context(what)?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600)).with_context(what)?;
        }
    }
    Ok(())
}

/// The tree as it is to be mounted, with what the last daemon left put in order.
pub fn tree(config: &Config, options: &Options, mountpoint: &Path) -> anyhow::Result<Arc<Vfs>> {
    let (index, store) = open(config)?;
    let subdir = match &options.subdir {
        Some(path) => subdir(&index, path)?,
        None => ROOT,
    };
    let durability = options.durability.unwrap_or_default().max(config.durability);
    if let Err(why) = config.keeps("durability", durability.name()) {
        bail!("mount option durability: {why}");
    }
    let vfs = Vfs::new(
        index,
        store,
        vfs::Options {
            mountpoint: mountpoint.into(),
            subdir,
            read_only: options.read_only,
            noatime: options.atime.unwrap_or(config.atime) == Atime::Noatime,
            durability: match durability {
                Durability::Fsync => vfs::Durability::Fsync,
                Durability::Close => vfs::Durability::Close,
                Durability::Remote => vfs::Durability::Remote,
            },
            passthrough: options.may_pass_through(),
            sync_names: options.sync || options.dirsync,
            backlog_bytes_max: BACKLOG_BYTES_MAX,
            backlog_files_max: BACKLOG_FILES_MAX,
        },
    );
    if options.may_pass_through() && !sys::process::is_root() {
        vfs.disable_passthrough("an ordinary user mounted, passthrough needs root".into());
    }
    let found = vfs.recover().context("what the last daemon left cannot be put in order")?;
    if found != vfs::recover::Recovered::default() {
        tracing::info!(?found, "put in order what the last daemon left");
    }
    Ok(Arc::new(vfs))
}

/// The directory of the tree that the option `subdir` names.
fn subdir(index: &Index, path: &str) -> anyhow::Result<Ino> {
    match index.resolve(path.as_bytes())? {
        Some(inode) if inode.kind == Kind::Directory => Ok(inode.ino),
        Some(_) => bail!("mount option subdir={path}: it is not a directory"),
        None => bail!("mount option subdir={path}: there is no such directory in the depot"),
    }
}

pub(super) fn depot_id(config: &Config) -> anyhow::Result<[u8; 16]> {
    unhex(&config.id).with_context(|| format!("\"{}\" is no depot id", config.id))
}

/// What of a configuration is not so on the disks. Changes nothing and needs no lock, so the depot may be mounted.
pub fn examine(config: &Config) -> Vec<Problem> {
    let mut found = vec![("index".to_owned(), examine_index(&config.index))];
    if config.log.to == LogTo::File {
        found.push(("log.dir".into(), must_be_directory(&config.log.dir)));
    }
    // Without an id there is nothing to compare theirs with.
    if let Ok(id) = depot_id(config) {
        let examined = |of: &config::Layer| Ok(layers::layer(of)?.examine(id)?);
        found.extend(config.chain.iter().map(|of| (of.dir_key(), examined(of))));
    }
    let problem = |(key, found): (String, anyhow::Result<()>)| {
        let text = format!("{key}: {:#}", found.err()?);
        Some(Problem::new(key, text))
    };
    found.into_iter().filter_map(problem).collect()
}

/// Whose index it is stands in the database, which is not touched while others may use it; a mount looks there.
fn examine_index(directory: &Path) -> anyhow::Result<()> {
    must_be_directory(directory)?;
    refuse_network(directory, "the index", "index")?;
    let file = directory.join(INDEX_FILE);
    match fs::metadata(&file) {
        Ok(there) if there.is_file() => Ok(()),
        Ok(_) => bail!("{} is not a file: put back the index of this depot", file.display()),
        Err(error) => {
            Err(error).with_context(|| format!("{} cannot be found (is its disk mounted?)", file.display()))
        }
    }
}

fn must_be_directory(path: &Path) -> anyhow::Result<()> {
    let there = fs::metadata(path)
        .with_context(|| format!("directory {} cannot be found (is its disk mounted?)", path.display()))?;
    if !there.is_dir() {
        bail!("{} is not a directory: name one", path.display());
    }
    Ok(())
}

/// SQLite's shared memory and locks do not work between hosts, and would fail silently.
pub(super) fn refuse_network(directory: &Path, what: &str, key: &str) -> anyhow::Result<()> {
    let cannot = || format!("the directory of {what}, {}, cannot be used", directory.display());
    let kind = File::open(directory).and_then(FileSystemType::of).with_context(cannot)?;
    if kind.is_network() {
        bail!(
            "{what} cannot be on {}, which is {}: set \"{key}\" in depot.toml to a directory on a local disk",
            directory.display(),
            kind.name()
        );
    }
    Ok(())
}

/// Makes the directories that the configuration names and that are missing, and notes each in `made` at once.
pub fn make_directories(config: &Config, made: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let providers = config.chain.iter().flat_map(config::Layer::dirs);
    make_all(providers.chain([config.index.as_path(), config.log.dir.as_path()]), made)
}

/// Makes these and their parents where they are missing, and adds what it made.
pub(super) fn make_all<'a>(
    directories: impl Iterator<Item = &'a Path>,
    made: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    for directory in directories {
        let missing: Vec<&Path> = directory.ancestors().take_while(|dir| !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            fs::create_dir(dir).with_context(|| format!("directory {} cannot be made", dir.display()))?;
            made.push(dir.to_owned());
        }
    }
    Ok(())
}
