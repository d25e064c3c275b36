//! What `depot.toml` says about a depot.
//!
//! Every key is a row of [`keys::DEPOT`]; unknown keys are refused by name. All paths of a [`Config`] are absolute.

pub mod chain;
mod file;
pub mod keys;
mod nearest;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

pub use chain::{FileSystem, FullDb, Layer};
pub use file::{Values, assignment, render};
pub use nearest::{nearest, suggestion};

/// Name of the configuration file; its presence makes a directory a depot.
pub const FILE: &str = "depot.toml";

/// A depot.toml that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory has no depot.toml.
    #[error("{0} is not a depot: it has no {FILE}. Make one with: depotfs init {0}")]
    NotADepot(PathBuf),
    /// The file cannot be read.
    #[error("{0} cannot be read")]
    Read(PathBuf, #[source] io::Error),
    /// The file cannot be written.
    #[error("{0} cannot be written")]
    Write(PathBuf, #[source] io::Error),
    /// Syntax, an unknown key, or a value that does not fit.
    #[error("{0}: {1}")]
    Wrong(PathBuf, String),
}

/// What close(2) waits for; ordered, the stricter wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Durability {
    /// Nothing; fsync(2) makes durable.
    #[default]
    Fsync,
    /// Until a power cut can lose nothing of the file.
    Close,
    /// Until the bytes are also stored off this host.
    Remote,
}

impl Durability {
    /// The durability called `word`.
    pub fn parse(word: &str) -> Option<Durability> {
        [Durability::Fsync, Durability::Close, Durability::Remote].into_iter().find(|d| d.name() == word)
    }

    /// Its word in options and settings.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Fsync => "fsync",
            Durability::Close => "close",
            Durability::Remote => "remote",
        }
    }
}

/// Whether reading moves access times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atime {
    /// When it is not younger than mtime or ctime, or older than a day.
    Relatime,
    /// Never.
    Noatime,
}

/// Where the daemon in the background writes its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTo {
    /// `depotfs.log` in [`Log::dir`].
    File,
    /// The system's log, through /dev/log.
    Syslog,
}

/// Section `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Directory of depotfs.log.
    pub dir: PathBuf,
    /// Level or filter expression.
    pub level: String,
    /// Destination.
    pub to: LogTo,
}

/// Everything that depot.toml says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The depot's directory, canonical.
    pub depot: PathBuf,
    /// The depot's id, 32 lower-case hex digits.
    pub id: String,
    /// Name of the chain of providers.
    pub template: String,
    /// Directory of index.db.
    pub index: PathBuf,
    /// What close(2) waits for unless somebody asks for more.
    pub durability: Durability,
    /// Whether reading moves access times.
    pub atime: Atime,
    /// Where the log goes.
    pub log: Log,
    /// The providers that keep the blobs, outermost first.
    pub chain: Vec<Layer>,
}

impl Config {
    /// Reads the depot.toml of `depot`, a canonical path.
    pub fn load(depot: &Path) -> Result<Config, Error> {
        let path = depot.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotADepot(depot.into()));
            }
            Err(error) => return Err(Error::Read(path, error)),
        };
        let values = file::parse(&text).map_err(|why| Error::Wrong(path.clone(), why))?;
        Config::build(depot, &values).map_err(|why| Error::Wrong(path, why))
    }

    /// The configuration of `depot` with these values and defaults for the rest.
    pub fn build(depot: &Path, values: &Values) -> Result<Config, String> {
        let get = |name: &str| {
            let key = keys::find(keys::DEPOT, name)?;
            let value = values.get(key.name).map(String::as_str).or(key.default);
            value.ok_or_else(|| format!("\"{name}\" is missing"))
        };
        let path = |name: &str| get(name).map(|value| tidy(&depot.join(value)));
        let template = chain::template(get("template")?)?;
        chain::refuse_others(template.chain, values)?;
        let layer = |provider: &&str| match *provider {
            "full-db" => Ok(Layer::FullDb(FullDb { dir: path("full-db.dir")? })),
            _ => {
                let (blob_uid, blob_gid) = keys::parse_owner(get("file-system.blob-owner")?)?;
                let blob_mode = keys::parse_mode(get("file-system.blob-mode")?).unwrap_or(0o400);
                let dir = path("file-system.dir")?;
                Ok(Layer::FileSystem(FileSystem { dir, blob_mode, blob_uid, blob_gid }))
            }
        };
        let config = Config {
            depot: depot.into(),
            id: get("id")?.to_lowercase(),
            template: template.name.into(),
            index: path("index")?,
            durability: Durability::parse(get("durability")?).unwrap_or_default(),
            atime: if get("atime")? == "noatime" { Atime::Noatime } else { Atime::Relatime },
            log: Log {
                dir: path("log.dir")?,
                level: get("log.level")?.into(),
                to: if get("log.to")? == "syslog" { LogTo::Syslog } else { LogTo::File },
            },
            chain: template.chain.iter().map(layer).collect::<Result<_, String>>()?,
        };
        config.keeps("durability", config.durability.name()).map_err(|why| format!("durability: {why}"))?;
        Ok(config)
    }
}

impl Config {
    /// Whether the chain can keep what a setting promises; the error says what it can.
    pub fn keeps(&self, key: &str, value: &str) -> Result<(), String> {
        if key == "durability" && value == Durability::Remote.name() {
            return Err(format!(
                "the template \"{}\" keeps blobs on this host only, so nothing can be remote: use \"close\", the \
                 strictest it can keep",
                self.template
            ));
        }
        Ok(())
    }
}

/// Writes depot.toml so that it is there whole and durable, or not at all.
pub fn write(depot: &Path, values: &Values) -> Result<(), Error> {
    let path = depot.join(FILE);
    let half = depot.join(".depot.toml.new");
    let wrote = || -> io::Result<()> {
        let mut file = File::create(&half)?;
        file.write_all(render(values).as_bytes())?;
        file.sync_all()?;
        fs::rename(&half, &path)?;
        File::open(depot)?.sync_all()
    };
    wrote().map_err(|error| Error::Write(path.clone(), error))
}

/// A fresh depot id.
pub fn new_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(crate::checksum::hex(&bytes))
}

/// `path` without `.` components, so that paths shown to people are short.
fn tidy(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values::from([("id", "00112233445566778899AABBCCDDEEFF".to_owned())])
    }

    #[test]
    fn defaults_lie_below_the_depot() {
        let config = Config::build(Path::new("/d"), &values()).unwrap();
        assert_eq!(config.id, "00112233445566778899aabbccddeeff");
        assert_eq!(config.index, Path::new("/d"));
        let dir = "/d/filestore".into();
        let leaf = FileSystem { dir, blob_mode: 0o400, blob_uid: None, blob_gid: None };
        assert_eq!(config.chain, [Layer::FileSystem(leaf)]);
        assert_eq!((config.durability, config.atime), (Durability::Fsync, Atime::Relatime));
        assert_eq!(config.log.dir, Path::new("/d/log"));
    }

    #[test]
    fn paths_may_lead_anywhere() {
        let mut values = values();
        values.insert("index", "/fast/index".into());
        values.insert("file-system.dir", "../blobs".into());
        values.insert("durability", "remote".into());
        assert!(Config::build(Path::new("/d/e"), &values).unwrap_err().contains("\"close\""));
        values.insert("durability", "close".into());
        let config = Config::build(Path::new("/d/e"), &values).unwrap();
        assert_eq!(config.index, Path::new("/fast/index"));
        assert_eq!(config.chain[0].dir(), Path::new("/d/e/../blobs"));
        assert_eq!(config.durability, Durability::Close);
    }

    #[test]
    fn a_template_is_a_chain_and_takes_its_own_keys_only() {
        let mut values = values();
        values.insert("template", "full-db-direct".into());
        let config = Config::build(Path::new("/d"), &values).unwrap();
        assert_eq!(config.chain, [Layer::FullDb(FullDb { dir: "/d/full-db".into() })]);
        values.insert("file-system.dir", "blobs".into());
        let why = Config::build(Path::new("/d"), &values).unwrap_err();
        assert!(why.contains("\"file-system.dir\"") && why.contains("it is full-db"), "{why}");
    }

    #[test]
    fn a_written_file_is_loaded_and_a_missing_one_explained() {
        let depot = tempfile::tempdir().unwrap();
        let why = Config::load(depot.path()).unwrap_err().to_string();
        assert!(why.contains("is not a depot") && why.contains("depotfs init"), "{why}");
        write(depot.path(), &values()).unwrap();
        assert_eq!(Config::load(depot.path()).unwrap(), Config::build(depot.path(), &values()).unwrap());
        assert_eq!(fs::read_dir(depot.path()).unwrap().count(), 1, "nothing else is left behind");
        assert_ne!(new_id().unwrap(), new_id().unwrap());
    }

    #[test]
    fn the_stricter_durability_is_the_greater_one() {
        assert!(Durability::Fsync < Durability::Close && Durability::Close < Durability::Remote);
        assert_eq!(Durability::parse("close"), Some(Durability::Close));
        assert_eq!(Durability::parse("closed"), None);
        assert_eq!(keys::DURABILITY.len(), 3);
        assert!(keys::DURABILITY.iter().all(|word| Durability::parse(word).is_some()));
    }
}
