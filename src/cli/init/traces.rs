//! What an init leaves in which directory, and how it is taken back.
//!
//! Only what init makes by that name goes, and only where it was not there before: a directory that a key of depot.toml
//! names may be used by others, who go on meanwhile.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::checksum::Checksum;
use crate::config::{self, Config, Layer};
use crate::daemon::{lock, rooms};

/// Stands in a depot that is being made, and in a directory of its own for the index; holds the depot's id. What is left of
/// an init that was killed is recognised by it.
pub const MARKER: &str = ".initialising";

/// The directory of the reserved backups.
pub const BACKUP: &str = "backup";

/// What an init has changed so far.
pub struct Traces {
    depot: PathBuf,
    id: String,
    /// Directories that were not there, outermost first.
    pub made: Vec<PathBuf>,
    parts: Vec<Part>,
}

/// A directory in which something is made.
struct Part {
    directory: PathBuf,
    /// Whether init makes something of this name there.
    own: fn(&OsStr) -> bool,
    /// What was there before.
    before: BTreeSet<OsString>,
}

impl Traces {
    /// Nothing yet but the directories `made`, perhaps the depot's own.
    pub fn new(depot: &Path, made: Vec<PathBuf>) -> Traces {
        Traces { depot: depot.into(), id: String::new(), made, parts: Vec::new() }
    }

    /// Marks the depot; its id, the one of the init that was killed here, if one was. What that one left goes.
    pub fn begin(&mut self) -> anyhow::Result<String> {
        let marker = self.depot.join(MARKER);
        let id = match fs::read_to_string(&marker) {
            Ok(id) => id,
            Err(_) => config::new_id().context("no id can be made")?,
        };
        let is_left = |name: &OsStr| {
            (is_in_depot(name) && name != MARKER)
                || ["filestore", "full-db", "sharding", "log"].iter().any(|own| name == *own)
        };
        remove(&self.depot, is_left, &BTreeSet::new());
        self.watch(&self.depot.clone(), is_in_depot)?;
        fs::write(&marker, &id)?;
        self.id.clone_from(&id);
        Ok(id)
    }

    /// Notes what is in the directories of the configuration, which exist by now, and marks that of the index.
    pub fn watch_parts(&mut self, config: &Config) -> anyhow::Result<()> {
        for dir in config.chain.iter().flat_map(Layer::dirs) {
            self.watch(dir, is_in_provider)?;
        }
        if config.index != self.depot {
            mark(&config.index, &config.id)?;
            self.watch(&config.index, is_in_index)?;
        }
        Ok(())
    }

    fn watch(&mut self, directory: &Path, own: fn(&OsStr) -> bool) -> io::Result<()> {
        let mut before = names(directory)?;
        before.remove(OsStr::new(MARKER));
        self.parts.push(Part { directory: directory.into(), own, before });
        Ok(())
    }

    /// The depot is made: it needs no marks any more.
    pub fn end(&self) -> anyhow::Result<()> {
        for part in self.parts.iter().rev() {
            match fs::remove_file(part.directory.join(MARKER)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Best effort: this runs where something has failed already. The caller holds the depot's lock.
    pub fn take_back(&self) {
        for part in &self.parts {
            if !is_foreign(&part.directory, &self.id) {
                remove(&part.directory, part.own, &part.before);
            }
        }
        for directory in self.made.iter().rev().filter(|made| **made != self.depot) {
            let _ = fs::remove_dir(directory);
        }
        let _ = fs::remove_file(self.depot.join(lock::FILE));
        if self.made.contains(&self.depot) {
            let _ = fs::remove_dir(&self.depot);
        }
    }
}

/// Takes a directory for the index of the depot with this `id`, and clears what a killed init of the same depot left there.
fn mark(directory: &Path, id: &str) -> anyhow::Result<()> {
    let marker = directory.join(MARKER);
    match File::create_new(&marker) {
        Ok(mut file) => file.write_all(id.as_bytes())?,
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("{} cannot be made", marker.display()));
        }
        Err(_) if fs::read_to_string(&marker)? == id => remove(directory, is_in_index, &BTreeSet::new()),
        Err(_) => bail!(
            "another depot's init uses {}, or was killed there: remove {} when none is running",
            directory.display(),
            marker.display()
        ),
    }
    Ok(())
}

/// Whether a directory is the filestore of another depot by now.
fn is_foreign(directory: &Path, id: &str) -> bool {
    fs::read_to_string(directory.join(".depotfs")).is_ok_and(|found| found.trim_end() != id)
}

fn is_in_depot(name: &OsStr) -> bool {
    [MARKER, config::FILE, ".depot.toml.new", BACKUP].iter().any(|own| name == *own) || is_in_index(name)
}

fn is_in_index(name: &OsStr) -> bool {
    name == MARKER || name.to_str().is_some_and(rooms::is_index_file)
}

fn is_in_provider(name: &OsStr) -> bool {
    let own = [".depotfs", "_pre", "_aside", "blobs.db", "blobs.db-wal", "blobs.db-shm", "debt"];
    own.iter().any(|own| name == *own) || is_folder(name)
}

/// Whether this is a folder of blobs by its name.
fn is_folder(name: &OsStr) -> bool {
    let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.len() == 2 && name.as_encoded_bytes().iter().all(digit)
}

/// The names in a directory.
pub fn names(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn remove(directory: &Path, own: impl Fn(&OsStr) -> bool, keep: &BTreeSet<OsString>) {
    for name in names(directory).unwrap_or_default().difference(keep).filter(|name| own(name)) {
        let path = directory.join(name);
        let _ = match path.is_dir() && !path.is_symlink() {
            false => fs::remove_file(&path),
            true if is_folder(name) => {
                let _ = fs::remove_file(path.join(Checksum::EMPTY.to_string()));
                fs::remove_dir(&path)
            }
            true => fs::remove_dir_all(&path),
        };
    }
}
