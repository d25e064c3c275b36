//! What `depot.toml` says about a depot.
//!
//! Every key is a row of [`keys::DEPOT`]; unknown keys are refused by name. All paths of a [`Config`] are absolute.

pub mod binarystore;
mod cache_fs;
pub mod chain;
mod effective;
pub mod environment;
mod eventual;
mod faulty;
mod file;
pub mod keys;
mod kind;
mod nearest;
mod object_store;
mod quantity;
pub mod rechain;
mod retry;
mod values;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cache_fs::CacheFs;
pub use chain::{Chosen, FileSystem, FullDb, Layer, Shard, Sharding};
pub use effective::{Entry, Origin, effective};
pub use eventual::Eventual;
pub use faulty::Faulty;
pub use file::{assignment, render};
pub use nearest::{nearest, suggestion};
pub use object_store::{ObjectService, ObjectStore, Secret};
pub use quantity::{parse_duration, parse_size};
pub use retry::Retry;
pub use values::{Problem, Values};

/// Name of the configuration file; its presence makes a directory a depot.
pub const FILE: &str = "depot.toml";

/// More than any depot.toml has.
const BYTES_MAX: u64 = 1 << 20;

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
    /// Name of the chain of providers; `None`: depot.toml has a chain of its own.
    pub template: Option<&'static str>,
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
    /// Every key that means something with that chain and its value, in whose place a secret has a digest: for comparing.
    pub settings: BTreeMap<String, String>,
}

/// The text of the depot.toml of `depot`.
pub fn text(depot: &Path) -> Result<String, Error> {
    let path = depot.join(FILE);
    read_text(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NotADepot(depot.into()),
        _ => Error::Read(path, error),
    })
}

fn read_text(path: &Path) -> io::Result<String> {
    // Before it is opened: a pipe would be waited for.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(io::Error::other("it has more than 1 MiB, so it is not what init or an editor wrote"));
    }
    String::from_utf8(text).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        io::Error::other(format!("line {line} is not UTF-8: {}", error.utf8_error()))
    })
}

/// The configuration that the text of a depot.toml makes, as far as it makes one, and all that is wrong with it. What is
/// wrong stands at its default. A text that is not TOML is the error.
pub fn examine(depot: &Path, text: &str) -> Result<(Config, Vec<Problem>), Problem> {
    let (values, problems) = file::read(keys::DEPOT, text)?;
    Ok(Config::assemble(depot, &values, problems))
}

/// The values of any file that has keys of a depot.toml; what is wrong with one is the error.
pub fn read_values(path: &Path) -> Result<Values, Error> {
    let text = read_text(path).map_err(|error| Error::Read(path.into(), error))?;
    parse_values(&text).map_err(|problem| Error::Wrong(path.into(), problem.text))
}

/// The values of such a text; the first thing that is wrong is the error.
pub fn parse_values(text: &str) -> Result<Values, Problem> {
    let (values, problems) = file::read(keys::DEPOT, text)?;
    problems.into_iter().next().map_or(Ok(values), Err)
}

/// Every key that means something in this depot, with its value and where that comes from.
pub fn entries(depot: &Path) -> Result<Vec<Entry>, Error> {
    let text = text(depot)?;
    let not_toml = |problem: Problem| wrong(depot, problem.text);
    let (values, _) = file::read(keys::DEPOT, &text).map_err(not_toml)?;
    let (_, mut problems) = examine(depot, &text).map_err(not_toml)?;
    let chosen = Chosen::of(&values).unwrap_or_default();
    let entries = effective(keys::DEPOT, &chosen, &values, &environment::of_process);
    // A variable may be set where the daemon is started, and not here.
    let unset = |key: &str| entries.iter().any(|e| e.key == key && matches!(e.origin, Origin::Unset(_)));
    problems.retain(|problem| !unset(&problem.key));
    refuse(depot, &problems)?;
    Ok(entries)
}

fn wrong(depot: &Path, why: String) -> Error {
    Error::Wrong(depot.join(FILE), why)
}

/// An error that tells the first problem, if there is one, and where the others are told.
fn refuse(depot: &Path, problems: &[Problem]) -> Result<(), Error> {
    match problems {
        [] => Ok(()),
        [only] => Err(wrong(depot, only.text.clone())),
        [first, others @ ..] => {
            let (more, shown) = (others.len(), depot.display());
            Err(wrong(depot, format!("{first} (and {more} more, told by: depotfs config check {shown})")))
        }
    }
}

impl Config {
    /// Reads the depot.toml of `depot`, a canonical path.
    pub fn load(depot: &Path) -> Result<Config, Error> {
        let (config, problems) =
            examine(depot, &text(depot)?).map_err(|problem| wrong(depot, problem.text))?;
        refuse(depot, &problems)?;
        Ok(config)
    }

    /// The configuration of `depot` with these values and defaults for the rest.
    pub fn build(depot: &Path, values: &Values) -> Result<Config, String> {
        let (config, problems) = Config::assemble(depot, values, Vec::new());
        problems.first().map_or(Ok(config), |problem| Err(problem.text.clone()))
    }

    /// The same as far as it goes, where `wrong` was left out of the values, and all that is wrong.
    fn assemble(depot: &Path, values: &Values, wrong: Vec<Problem>) -> (Config, Vec<Problem>) {
        // What was left out is not missing as well.
        let told = |key: &str| wrong.iter().any(|problem| problem.concerns(key));
        let (values, mut problems) = environment::resolve(keys::DEPOT, values, &environment::of_process);
        let chosen = match told("chain") || told("template") {
            true => None,
            false => Chosen::of(&values).map_err(|problem| problems.push(problem)).ok(),
        };
        if let Some(chosen) = &chosen {
            problems.extend(chosen.unused(&values));
        }
        let chosen = chosen.unwrap_or_default();
        let values = chosen.with_defaults(&values);
        problems.extend(file::missing(keys::DEPOT, &chosen, &values));
        problems.retain(|problem| !told(&problem.key));
        let known = Known { depot, values: &values };
        let config = Config {
            depot: depot.into(),
            id: known.get("id").to_lowercase(),
            template: chosen.template,
            index: known.path("index"),
            durability: Durability::parse(known.get("durability")).unwrap_or_default(),
            atime: if known.get("atime") == "noatime" { Atime::Noatime } else { Atime::Relatime },
            log: Log {
                dir: known.path("log.dir"),
                level: known.get("log.level").into(),
                to: if known.get("log.to") == "syslog" { LogTo::Syslog } else { LogTo::File },
            },
            chain: chosen.providers.iter().map(|provider| known.layer(provider)).collect(),
            settings: effective::settings(keys::DEPOT, &chosen, &values),
        };
        problems.extend(config.chain.iter().flat_map(Layer::problems));
        // What a chain that is wrong could keep is nobody's to say.
        let kept = config.keeps("durability", config.durability.name());
        if let (false, Err(why)) = (config.chain.is_empty(), kept) {
            problems.push(Problem::new("durability", format!("durability: {why}")));
        }
        (config, wrong.into_iter().chain(problems).collect())
    }

    /// Whether the chain can keep what a setting promises; the error says what it can.
    pub fn keeps(&self, key: &str, value: &str) -> Result<(), String> {
        let remote = self.chain.iter().any(Layer::stores_elsewhere);
        if key == "durability" && value == Durability::Remote.name() && !remote {
            return Err(format!(
                "{} keeps blobs on this host only, so nothing can be remote: use \"close\", the strictest it can keep",
                self.chain_in_words()
            ));
        }
        Ok(())
    }

    /// How long a balance may take.
    pub fn balancing_longest(&self) -> Duration {
        let of = |layer: &Layer| match layer {
            Layer::Sharding(layer) => Some(layer.max_balancing_run_time),
            _ => None,
        };
        self.chain.iter().find_map(of).unwrap_or_default()
    }

    fn chain_in_words(&self) -> String {
        match self.template {
            Some(name) => format!("the template \"{name}\""),
            None => {
                let names: Vec<&str> = self.chain.iter().map(Layer::name).collect();
                format!("the chain {}", names.join(" > "))
            }
        }
    }
}

/// Checked values, with the defaults behind them.
struct Known<'a> {
    depot: &'a Path,
    values: &'a Values,
}

impl Known<'_> {
    /// The value of a key; empty where it is missing, which is told elsewhere.
    fn get(&self, name: &str) -> &str {
        let default = || keys::find(keys::DEPOT, name).ok().and_then(|key| key.default);
        self.values.get(name).or_else(default).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        tidy(&self.depot.join(self.get(name)))
    }

    fn layer(&self, provider: &str) -> Layer {
        match provider {
            "full-db" => Layer::FullDb(FullDb { dir: self.path("full-db.dir") }),
            "sharding" => Layer::Sharding(self.sharding()),
            "eventual" => Layer::Eventual(Eventual::read(self)),
            "faulty" => Layer::Faulty(Faulty::read(self)),
            "cache-fs" => Layer::CacheFs(CacheFs::read(self)),
            "retry" => Layer::Retry(Retry::read(self)),
            "s3-storage-v3" | "azure-blob-storage" | "google-storage" => {
                Layer::ObjectStore(ObjectStore::read(self, provider))
            }
            _ => {
                let (blob_uid, blob_gid) =
                    keys::parse_owner(self.get("file-system.blob-owner")).unwrap_or_default();
                let blob_mode = keys::parse_mode(self.get("file-system.blob-mode")).unwrap_or(0o400);
                let dir = self.path("file-system.dir");
                Layer::FileSystem(FileSystem { dir, blob_mode, blob_uid, blob_gid })
            }
        }
    }
}

impl Known<'_> {
    fn sharding(&self) -> Sharding {
        let count = |name: &str| keys::parse_count(self.get(name)).unwrap_or(1);
        let shard = |i: usize| {
            let key = |name: &str| format!("sharding.shard[{i}].{name}");
            Shard {
                dir: self.path(&key("dir")),
                zone: self.get(&key("zone")).to_owned(),
                write_enabled: keys::parse_flag(self.get(&key("write-enabled"))).unwrap_or(true),
            }
        };
        Sharding {
            dir: self.path("sharding.dir"),
            redundancy: count("sharding.redundancy"),
            lenient_limit: count("sharding.lenient-limit"),
            write_behavior: self.get("sharding.write-behavior").to_owned(),
            reads_zone: self.get("sharding.read-behavior") == "zone",
            zone: self.get("sharding.zone").to_owned(),
            check_period: parse_duration(self.get("sharding.check-period")).unwrap_or_default(),
            max_balancing_run_time: parse_duration(self.get("sharding.max-balancing-run-time"))
                .unwrap_or_default(),
            shards: self.values.tables("sharding.shard").into_iter().map(shard).collect(),
        }
    }
}

/// Writes depot.toml so that it is there whole and durable, or not at all.
pub fn write(depot: &Path, values: &Values) -> Result<(), Error> {
    let path = depot.join(FILE);
    let half = depot.join(".depot.toml.new");
    let wrote = || -> io::Result<()> {
        let mode = mode(keys::DEPOT, values);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&half)?;
        if mode & 0o077 == 0 {
            // One that a crash left has the mode it had.
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        file.write_all(render(keys::DEPOT, values).as_bytes())?;
        file.sync_all()?;
        fs::rename(&half, &path)?;
        File::open(depot)?.sync_all()
    };
    wrote().map_err(|error| Error::Write(path.clone(), error))
}

/// Permission bits of a depot.toml, before the umask: one with a secret in it is for its owner only.
fn mode(table: &'static [keys::Key], values: &Values) -> u32 {
    let is_secret = |name: &str| keys::find(table, name).is_ok_and(|key| key.kind == keys::Kind::Secret);
    if values.iter().any(|(name, _)| is_secret(name)) { 0o600 } else { 0o666 }
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
        assert_eq!(config.chain[0].dir(), Some(Path::new("/d/e/../blobs")));
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
    fn a_chain_of_its_own_has_no_template() {
        let mut values = values();
        values.insert("chain", "full-db".into());
        let config = Config::build(Path::new("/d"), &values).unwrap();
        assert_eq!(config.template, None);
        assert_eq!(config.chain, [Layer::FullDb(FullDb { dir: "/d/full-db".into() })]);
        assert!(config.keeps("durability", "remote").unwrap_err().starts_with("the chain full-db keeps"));
        values.insert("template", "full-db-direct".into());
        assert!(Config::build(Path::new("/d"), &values).unwrap_err().contains("both set"));
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        let told = |text: &str| -> Vec<String> {
            let (_, problems) = examine(Path::new("/d"), text).unwrap();
            problems.into_iter().map(|problem| problem.key).collect()
        };
        assert_eq!(told(""), ["id"]);
        assert_eq!(told("id = 'x'"), ["id"], "it is wrong, and not missing");
        let text = "template = 'full-db-direct'\ndurability = 'remote'\nidnex = 1\n[log]\nto = 5\n[file-system]\ndir = 'x'";
        assert_eq!(told(text), ["idnex", "log.to", "file-system.dir", "id", "durability"]);
        assert_eq!(told("chain = ['x']\nfull-db.dir = 'x'"), ["chain", "id"], "nobody knows what it has");
        assert_eq!(told("chain = []\ndurability = 'remote'"), ["chain", "id"]);
        assert_eq!(examine(Path::new("/d"), "id = ").unwrap_err().key, "");
    }

    #[test]
    fn a_file_that_is_none_is_refused_with_the_reason() {
        let depot = tempfile::tempdir().unwrap();
        let path = depot.path().join(FILE);
        let refused = |part: &str| {
            let why = crate::text::chain(&Config::load(depot.path()).unwrap_err());
            assert!(why.contains("depot.toml cannot be read") && why.contains(part), "{why}");
        };
        fs::create_dir(&path).unwrap();
        refused("not a regular file");
        fs::remove_dir(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused("not a regular file");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        refused("not a regular file");
        fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(100 << 20).unwrap();
        refused("1 MiB");
        fs::write(&path, b"id = 'x'\n# \xff").unwrap();
        refused("line 2 is not UTF-8");
        fs::write(&path, "id = 'x'\nidnex = 5").unwrap();
        let why = Config::load(depot.path()).unwrap_err().to_string();
        assert!(why.contains("and 1 more, told by: depotfs config check"), "{why}");
    }

    #[test]
    fn a_file_with_a_secret_is_for_its_owner() {
        const TABLE: &[keys::Key] =
            &[keys::Key { name: "a.b[].word", kind: keys::Kind::Secret, default: None, doc: "." }];
        assert_eq!(mode(TABLE, &Values::from([("a.b[1].word", "hush".into())])), 0o600);
        assert_eq!(mode(keys::DEPOT, &values()), 0o666);
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
