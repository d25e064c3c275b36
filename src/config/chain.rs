//! The chain of providers that a depot.toml asks for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache_fs::CacheFs;
use super::eventual::Eventual;
use super::faulty::Faulty;
use super::keys::brief;
use super::nearest::suggestion;
use super::{ObjectStore, Problem, Retry, Values};

/// A chain that has a name.
#[derive(Debug)]
pub struct Template {
    /// As depot.toml says it.
    pub name: &'static str,
    /// Its providers, outermost first; each is also the name of the section with its keys.
    pub chain: &'static [&'static str],
    /// What stands behind depot.toml and before the defaults of the keys. The tables of a list are taken if depot.toml has
    /// none of it.
    pub defaults: &'static [(&'static str, &'static str)],
}

/// Every template.
pub const TEMPLATES: &[Template] = &[
    Template { name: "file-system", chain: &["file-system"], defaults: &[] },
    Template { name: "cache-fs", chain: &["cache-fs", "file-system"], defaults: &[] },
    Template { name: "full-db", chain: &["cache-fs", "full-db"], defaults: &[] },
    Template { name: "full-db-direct", chain: &["full-db"], defaults: &[] },
    Template { name: "double-shards", chain: SHARDS, defaults: &[FIRST_SHARD, SECOND_SHARD] },
    Template {
        name: "redundant-shards",
        chain: SHARDS,
        defaults: &[("sharding.redundancy", "2"), FIRST_SHARD, SECOND_SHARD],
    },
    Template {
        name: "s3-storage-v3",
        chain: &["cache-fs", "eventual", "retry", "s3-storage-v3"],
        defaults: &[],
    },
    Template { name: "s3-storage-v3-direct", chain: &["cache-fs", "retry", "s3-storage-v3"], defaults: &[] },
    Template {
        name: "azure-blob-storage",
        chain: &["cache-fs", "eventual", "retry", "azure-blob-storage"],
        defaults: &[],
    },
    Template {
        name: "azure-blob-storage-direct",
        chain: &["cache-fs", "retry", "azure-blob-storage"],
        defaults: &[],
    },
    Template {
        name: "google-storage",
        chain: &["cache-fs", "eventual", "retry", "google-storage"],
        defaults: &[],
    },
    Template {
        name: "google-storage-direct",
        chain: &["cache-fs", "retry", "google-storage"],
        defaults: &[],
    },
];

/// Their names.
pub const NAMES: &[&str] = &[
    "file-system",
    "cache-fs",
    "full-db",
    "full-db-direct",
    "double-shards",
    "redundant-shards",
    "s3-storage-v3",
    "s3-storage-v3-direct",
    "azure-blob-storage",
    "azure-blob-storage-direct",
    "google-storage",
    "google-storage-direct",
];

/// The chain of the templates with shards.
const SHARDS: &[&str] = &["cache-fs", "sharding"];
const FIRST_SHARD: (&str, &str) = ("sharding.shard[0].dir", "shard-1");
const SECOND_SHARD: (&str, &str) = ("sharding.shard[1].dir", "shard-2");

/// The template of a depot.toml that says nothing, and its only provider.
pub(super) const DEFAULT: &str = "file-system";

/// What a chain may be made of.
#[derive(Debug)]
pub struct Provider {
    /// As depot.toml says it, and the name of the section with its keys.
    pub name: &'static str,
    /// Where it may stand.
    pub place: Place,
}

/// Where in a chain a provider stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the end: it keeps the blobs itself.
    Leaf,
    /// Over one other.
    Layer,
}

/// Every provider.
pub const PROVIDERS: &[Provider] = &[
    Provider { name: "retry", place: Place::Layer },
    Provider { name: "file-system", place: Place::Leaf },
    Provider { name: "full-db", place: Place::Leaf },
    Provider { name: "sharding", place: Place::Leaf },
    Provider { name: "eventual", place: Place::Layer },
    Provider { name: "faulty", place: Place::Layer },
    Provider { name: "cache-fs", place: Place::Layer },
    Provider { name: "s3-storage-v3", place: Place::Leaf },
    Provider { name: "azure-blob-storage", place: Place::Leaf },
    Provider { name: "google-storage", place: Place::Leaf },
];

/// A provider of the chain, with what its section says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Keeps blobs in a directory.
    FileSystem(FileSystem),
    /// Keeps blobs in a database.
    FullDb(FullDb),
    /// Spreads blobs over several directories.
    Sharding(Sharding),
    /// Keeps blobs in a queue and uploads them later.
    Eventual(Eventual),
    /// Breaks what stands below it.
    Faulty(Faulty),
    /// Keeps copies of what the provider below it has.
    CacheFs(CacheFs),
    /// Keeps blobs in a bucket.
    ObjectStore(ObjectStore),
    /// Tries again.
    Retry(Retry),
}

/// Section `[file-system]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its directory.
    pub dir: PathBuf,
    /// Permission bits of a blob's file.
    pub blob_mode: u32,
    /// User that owns a blob's file; `None`: whoever runs the daemon.
    pub blob_uid: Option<u32>,
    /// Group of a blob's file, likewise.
    pub blob_gid: Option<u32>,
}

/// Section `[full-db]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullDb {
    /// Its directory.
    pub dir: PathBuf,
}

/// Section `[sharding]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharding {
    /// Directory of what it remembers.
    pub dir: PathBuf,
    /// Copies of each blob.
    pub redundancy: u64,
    /// Copies without which a put fails; 0: all.
    pub lenient_limit: u64,
    /// A word of [`WRITE_BEHAVIORS`](super::keys::WRITE_BEHAVIORS).
    pub write_behavior: String,
    /// Whether those of `zone` are asked first.
    pub reads_zone: bool,
    /// The zone of this host.
    pub zone: String,
    /// Shortest time before a shard that failed is tried again.
    pub check_period: Duration,
    /// Longest time that a balance takes.
    pub max_balancing_run_time: Duration,
    /// The shards.
    pub shards: Vec<Shard>,
}

/// Section `[[sharding.shard]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its directory.
    pub dir: PathBuf,
    /// Its zone.
    pub zone: String,
    /// Whether it gets new blobs.
    pub write_enabled: bool,
}

impl Sharding {
    /// What is wrong with the keys taken together.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, text: String| problems.push(Problem::new(key, format!("{key}: {text}")));
        let shards = self.shards.len() as u64;
        if shards == 0 {
            wrong("sharding.shard", "there is none: add a [[sharding.shard]] with a dir for each".into());
        } else if self.redundancy > shards {
            let text = format!("{} copies need as many shards, and there are {shards}", self.redundancy);
            wrong("sharding.redundancy", text);
        }
        if self.lenient_limit > self.redundancy {
            let text = format!("{} is more than the redundancy, {}", self.lenient_limit, self.redundancy);
            wrong("sharding.lenient-limit", text);
        }
        let zoned = self.reads_zone || self.write_behavior.starts_with("zone");
        if zoned && !self.shards.iter().any(|shard| shard.zone == self.zone) {
            wrong("sharding.zone", format!("no shard is in zone \"{}\"", brief(&self.zone)));
        }
        for (i, shard) in self.shards.iter().enumerate() {
            if self.shards[..i].iter().any(|other| other.dir == shard.dir) {
                wrong(&format!("sharding.shard[{i}].dir"), "another shard has the same directory".into());
            }
        }
        problems
    }
}

impl Layer {
    /// The provider's name, which is that of its section.
    pub fn name(&self) -> &'static str {
        match self {
            Layer::FileSystem(_) => "file-system",
            Layer::FullDb(_) => "full-db",
            Layer::Sharding(_) => "sharding",
            Layer::Eventual(_) => "eventual",
            Layer::Faulty(_) => "faulty",
            Layer::CacheFs(_) => "cache-fs",
            Layer::ObjectStore(layer) => layer.service.section(),
            Layer::Retry(_) => "retry",
        }
    }

    /// The directory where it keeps what it has on this host, if it keeps anything.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            Layer::FileSystem(layer) => Some(&layer.dir),
            Layer::FullDb(layer) => Some(&layer.dir),
            Layer::Sharding(layer) => Some(&layer.dir),
            Layer::CacheFs(layer) => Some(&layer.dir),
            Layer::Eventual(layer) => Some(&layer.dir),
            Layer::Faulty(_) => None,
            Layer::ObjectStore(layer) => Some(&layer.dir),
            Layer::Retry(_) => None,
        }
    }

    /// The key of that directory.
    pub fn dir_key(&self) -> String {
        match self {
            Layer::CacheFs(_) => "cache-fs.cache-provider-dir".into(),
            _ => format!("{}.dir", self.name()),
        }
    }

    /// That directory and all further ones, those of its shards say.
    pub fn dirs(&self) -> Vec<&Path> {
        let further: Vec<&Path> = match self {
            Layer::Sharding(layer) => layer.shards.iter().map(|shard| shard.dir.as_path()).collect(),
            Layer::CacheFs(layer) => layer.further.iter().map(PathBuf::as_path).collect(),
            _ => Vec::new(),
        };
        self.dir().into_iter().chain(further).collect()
    }

    /// Whether it brings blobs to a place that this host's disk is not needed for.
    pub fn stores_elsewhere(&self) -> bool {
        matches!(self, Layer::Eventual(_) | Layer::ObjectStore(_))
    }

    /// What is wrong with the keys of its section taken together.
    pub(super) fn problems(&self) -> Vec<Problem> {
        match self {
            Layer::FileSystem(_) | Layer::FullDb(_) | Layer::Retry(_) => Vec::new(),
            Layer::ObjectStore(layer) => layer.problems(),
            Layer::Sharding(layer) => layer.problems(),
            Layer::CacheFs(layer) => layer.problems(),
            Layer::Eventual(layer) => layer.problems(),
            Layer::Faulty(layer) => layer.problems(),
        }
    }
}

/// What a depot.toml chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The template; `None`: a chain of its own.
    pub template: Option<&'static str>,
    /// The providers, outermost first.
    pub providers: Vec<&'static str>,
}

impl Chosen {
    /// What these values choose, by `template` or by `chain`.
    pub fn of(values: &Values) -> Result<Chosen, Problem> {
        let problem = |text: String| Problem::new("chain", text);
        let Some(chain) = values.get("chain") else {
            let template = template(values.get("template").unwrap_or(DEFAULT));
            let template = template.map_err(|why| Problem::new("template", format!("template: {why}")))?;
            return Ok(Chosen { template: Some(template.name), providers: template.chain.to_vec() });
        };
        if values.contains_key("template") {
            let text = "\"template\" and \"chain\" are both set, and each says where the blobs are kept: take out one of them";
            return Err(problem(text.into()));
        }
        let providers = parse(PROVIDERS, chain).map_err(|why| problem(format!("chain: {why}")))?;
        Ok(Chosen { template: None, providers })
    }

    /// The default that the template has for a key, before that of the key.
    pub fn default(&self, key: &str) -> Option<&'static str> {
        let template = TEMPLATES.iter().find(|template| Some(template.name) == self.template)?;
        template.defaults.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    /// `values` with the defaults of the template behind them.
    pub fn with_defaults(&self, values: &Values) -> Values {
        let mut all = values.clone();
        let template = TEMPLATES.iter().find(|template| Some(template.name) == self.template);
        for (key, value) in template.map_or(&[][..], |template| template.defaults) {
            let stands_back = match key.split_once('[') {
                Some((list, _)) => !values.tables(list).is_empty(),
                None => values.contains_key(key),
            };
            if !stands_back {
                all.insert(*key, (*value).to_owned());
            }
        }
        all
    }

    /// Whether keys of this section mean something: a provider's do if the chain has it.
    pub fn uses(&self, section: &str) -> bool {
        self.providers.contains(&section) || !PROVIDERS.iter().any(|provider| provider.name == section)
    }

    /// Keys of providers that the chain does not have: whoever set one believes that it does something.
    pub fn unused(&self, values: &Values) -> Vec<Problem> {
        let section = |name: &str| name.split_once('.').map(|(section, _)| section.to_owned());
        let unused = |name: &str| {
            let section = section(name).filter(|section| !self.uses(section))?;
            let chain = self.providers.join(" > ");
            Some(Problem::new(
                name,
                format!("\"{name}\" is set, and the chain has no {section}: it is {chain}"),
            ))
        };
        values.iter().filter_map(|(name, _)| unused(name)).collect()
    }
}

/// The template of this name.
fn template(name: &str) -> Result<&'static Template, String> {
    TEMPLATES.iter().find(|template| template.name == name).ok_or_else(|| {
        format!("there is no template \"{}\"{}", brief(name), suggestion(name, NAMES.iter().copied()))
    })
}

/// The providers that a text with commas names.
pub(super) fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

/// The chain that a text with commas names, which is one that works.
pub(super) fn parse(providers: &'static [Provider], text: &str) -> Result<Vec<&'static str>, String> {
    if text.trim().is_empty() {
        return Err(format!("an empty chain keeps no blobs: name providers, of {}", known(providers)));
    }
    let chain = names(text).map(|name| provider(providers, name)).collect::<Result<Vec<_>, _>>()?;
    for (at, provider) in chain.iter().enumerate() {
        let name = provider.name;
        if chain[..at].iter().any(|before| before.name == name) {
            return Err(format!("\"{name}\" stands in the chain twice: name it once"));
        }
        match (provider.place, at + 1 == chain.len()) {
            (Place::Leaf, true) | (Place::Layer, false) => {}
            (Place::Leaf, false) => {
                return Err(format!(
                    "\"{name}\" keeps the blobs itself and cannot stand over \"{}\": put it last, or leave out what follows",
                    chain[at + 1].name
                ));
            }
            (Place::Layer, true) => {
                let leaves: Vec<&str> = leaves(providers).collect();
                return Err(format!(
                    "\"{name}\" is a layer over another provider and cannot be the last: end the chain with one of \"{}\"",
                    leaves.join("\", \"")
                ));
            }
        }
    }
    Ok(chain.iter().map(|provider| provider.name).collect())
}

fn leaves(providers: &[Provider]) -> impl Iterator<Item = &str> {
    providers.iter().filter(|provider| provider.place == Place::Leaf).map(|provider| provider.name)
}

/// The names of all providers, in quotes.
pub(super) fn known(providers: &[Provider]) -> String {
    let names: Vec<&str> = providers.iter().map(|provider| provider.name).collect();
    format!("\"{}\"", names.join("\", \""))
}

fn provider(providers: &'static [Provider], name: &str) -> Result<&'static Provider, String> {
    providers.iter().find(|provider| provider.name == name).ok_or_else(|| {
        let names = providers.iter().map(|provider| provider.name);
        match suggestion(name, names) {
            nearest if nearest.is_empty() => {
                format!("there is no provider \"{}\": there are {}", brief(name), known(providers))
            }
            nearest => format!("there is no provider \"{}\"{nearest}", brief(name)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::keys::DEPOT;
    use super::*;
    use proptest::prelude::*;

    const ALL: &[Provider] = &[
        Provider { name: "cache", place: Place::Layer },
        Provider { name: "retry", place: Place::Layer },
        Provider { name: "file-system", place: Place::Leaf },
        Provider { name: "full-db", place: Place::Leaf },
    ];

    #[test]
    fn every_template_is_named_and_is_a_chain_of_providers_with_keys() {
        assert_eq!(TEMPLATES.iter().map(|template| template.name).collect::<Vec<_>>(), NAMES);
        for template in TEMPLATES {
            assert_eq!(parse(PROVIDERS, &template.chain.join(",")).unwrap(), template.chain);
            for (key, value) in template.defaults {
                let row = super::super::keys::find(DEPOT, key).unwrap();
                assert_eq!(row.kind.check(value), Ok(()), "{key}");
                assert!(template.chain.contains(&row.section()), "{key}");
            }
        }
        for provider in PROVIDERS {
            assert!(DEPOT.iter().any(|key| key.section() == provider.name), "{}", provider.name);
        }
        assert!(template("file-sytem").unwrap_err().contains("\"file-system\""));
        assert_eq!(template(DEFAULT).unwrap().chain, [DEFAULT]);
    }

    #[test]
    fn layers_stand_over_one_leaf() {
        for good in [&["full-db"][..], &["retry", "full-db"], &["cache", "retry", "file-system"]] {
            assert_eq!(parse(ALL, &good.join(" , ")).unwrap(), good);
        }
    }

    #[test]
    fn other_chains_are_refused_with_the_reason() {
        for (text, parts) in [
            ("", &["empty chain", "\"full-db\""][..]),
            (" ", &["empty chain"]),
            (",", &["no provider \"\""]),
            ("full-db,", &["no provider \"\""]),
            ("ful-db", &["\"ful-db\"", "nearest known one is \"full-db\""]),
            ("s3", &["\"s3\"", "there are \"cache\""]),
            ("Full-DB", &["no provider"]),
            ("\u{1b}[2J", &["\\u{1b}[2J"]),
            ("retry", &["\"retry\" is a layer", "\"file-system\", \"full-db\""]),
            ("cache,retry", &["\"retry\" is a layer"]),
            ("full-db,retry", &["\"full-db\" keeps the blobs itself", "\"retry\""]),
            ("file-system,full-db", &["\"file-system\" keeps the blobs itself"]),
            ("full-db,full-db", &["\"full-db\" keeps the blobs itself"]),
            ("retry,retry,full-db", &["\"retry\" stands in the chain twice"]),
        ] {
            let why = parse(ALL, text).unwrap_err();
            assert!(parts.iter().all(|part| why.contains(part)), "{text}: {why}");
        }
    }

    #[test]
    fn a_chain_takes_the_place_of_a_template() {
        let of = |values: &[(&str, &str)]| {
            let mut all = Values::new();
            values.iter().for_each(|(key, value)| all.insert(*key, (*value).to_owned()));
            Chosen::of(&all)
        };
        assert_eq!(of(&[]).unwrap().template, Some("file-system"));
        assert_eq!(of(&[("template", "full-db-direct")]).unwrap().providers, ["full-db"]);
        assert_eq!(of(&[("chain", "full-db")]), Ok(Chosen { template: None, providers: vec!["full-db"] }));
        let both = of(&[("chain", "full-db"), ("template", "full-db-direct")]).unwrap_err();
        assert!(both.key == "chain" && both.text.contains("both set"), "{both}");
    }

    #[test]
    fn a_template_has_defaults_that_stand_behind_depot_toml() {
        let of = |values: &[(&str, &str)]| {
            let mut all = Values::from([("template", "redundant-shards".to_owned())]);
            values.iter().for_each(|(key, value)| all.insert(*key, (*value).to_owned()));
            Chosen::of(&all).unwrap().with_defaults(&all)
        };
        let (redundancy, second) = ("sharding.redundancy", "sharding.shard[1].dir");
        let plain = of(&[]);
        assert_eq!((plain.get(redundancy), plain.get(second)), (Some("2"), Some("shard-2")));
        assert_eq!(of(&[(redundancy, "1")]).get(redundancy), Some("1"));
        let own = of(&[("sharding.shard[0].dir", "/mnt/a")]);
        assert_eq!((own.get("sharding.shard[0].dir"), own.get(second)), (Some("/mnt/a"), None));
    }

    proptest! {
        #[test]
        fn what_is_a_chain_ends_with_its_only_leaf(
            names in proptest::collection::vec(proptest::sample::select(vec!["cache", "retry", "file-system", "full-db"]), 0..5),
        ) {
            let leaves = names.iter().filter(|name| ALL[2..].iter().any(|leaf| leaf.name == **name)).count();
            let ends = names.last().is_some_and(|name| ALL[2..].iter().any(|leaf| leaf.name == *name));
            let twice = (1..names.len()).any(|at| names[..at].contains(&names[at]));
            prop_assert_eq!(parse(ALL, &names.join(",")).is_ok(), leaves == 1 && ends && !twice);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a-z,\\PC-]{0,30}") {
            let _ = parse(ALL, &text);
        }
    }
}
