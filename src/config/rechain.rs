//! Another chain for a depot: its values, and whether the old blobs stay where they are.

use std::path::{Path, PathBuf};

use super::chain::PROVIDERS;
use super::keys::{self, brief};
use super::{Config, Layer, Values};

/// How the blobs get from the old chain to the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// They are copied: the chains keep blobs in different places.
    Apart,
    /// They stay: the new chain keeps blobs where the old one does.
    Shared,
}

/// Layers that hold blobs for a while only: those below them are where blobs are kept.
const PASSING: &[&str] = &["cache-fs", "eventual"];

/// Whether a key says what the chain is.
pub fn is_of_chain(key: &str) -> bool {
    let section = key.split_once('.').map_or("", |(section, _)| section);
    matches!(key, "template" | "chain") || PROVIDERS.iter().any(|provider| provider.name == section)
}

/// The values of a depot with the chain that others have. Those may not change anything else.
pub fn with_chain_of(depot: &Values, chain: &Values) -> Result<Values, String> {
    let mut values = Values::new();
    depot
        .iter()
        .filter(|(key, _)| !is_of_chain(key))
        .for_each(|(key, value)| values.insert(key, value.into()));
    for (key, value) in chain.iter() {
        if is_of_chain(key) {
            values.insert(key, value.into());
            continue;
        }
        let default = || keys::find(keys::DEPOT, key).ok().and_then(|key| key.default);
        if depot.get(key).or_else(default).is_none_or(|known| known != value) {
            return Err(format!(
                "\"{}\" is no part of the chain, and the depot has another value for it: only the chain is exchanged, so \
                 leave it out",
                brief(key)
            ));
        }
    }
    Ok(values)
}

/// The providers that keep blobs for good, outermost first.
pub fn keepers(config: &Config) -> Vec<&Layer> {
    config.chain.iter().filter(|layer| !PASSING.contains(&layer.name())).collect()
}

/// How the blobs get from one chain to the other; an error says which directory is in the way.
pub fn reach(old: &Config, new: &Config) -> Result<Reach, String> {
    let (from, to) = (Places::of(old), Places::of(new));
    for (a, b, what) in [
        (&from.passing, &to.kept, "holds blobs for a while in the old chain"),
        (&from.kept, &to.passing, "keeps blobs in the old chain"),
    ] {
        if let Some((key, dir)) = b.iter().find(|(_, dir)| a.iter().any(|(_, other)| overlap(dir, other))) {
            return Err(format!("{key}: {} {what}: name another directory", dir.display()));
        }
    }
    let other_use = |(key, dir): &&(String, PathBuf)| {
        from.passing.iter().any(|(other_key, other)| key != other_key && overlap(dir, other))
    };
    if let Some((key, dir)) = to.passing.iter().find(other_use) {
        return Err(format!(
            "{key}: {} is of another layer in the old chain: name another directory",
            dir.display()
        ));
    }
    let meeting = to.kept.iter().find(|(_, dir)| from.kept.iter().any(|(_, other)| overlap(dir, other)));
    let Some((key, dir)) = meeting else { return Ok(Reach::Apart) };
    match (keepers(old).last(), keepers(new).last()) {
        (Some(old), Some(new)) if keeps_in_place(old, new) => Ok(Reach::Shared),
        _ => Err(format!(
            "{key}: {} is a directory of the old chain too, which keeps something else there: name another directory",
            dir.display()
        )),
    }
}

/// Whether every blob of the old provider is one of the new provider as it stands.
fn keeps_in_place(old: &Layer, new: &Layer) -> bool {
    match (file_directories(old), file_directories(new)) {
        (Some(old), Some(new)) => old.iter().all(|dir| new.contains(dir)),
        (None, None) => old == new,
        _ => false,
    }
}

/// Directories in which a provider keeps each blob as a file.
fn file_directories(layer: &Layer) -> Option<Vec<PathBuf>> {
    match layer {
        Layer::FileSystem(layer) => Some(vec![canonical(&layer.dir)]),
        Layer::Sharding(layer) => Some(layer.shards.iter().map(|shard| canonical(&shard.dir)).collect()),
        _ => None,
    }
}

/// Directories with the keys that name them.
struct Places {
    kept: Vec<(String, PathBuf)>,
    passing: Vec<(String, PathBuf)>,
}

impl Places {
    fn of(config: &Config) -> Places {
        let mut places = Places { kept: Vec::new(), passing: Vec::new() };
        for layer in &config.chain {
            let list = if PASSING.contains(&layer.name()) { &mut places.passing } else { &mut places.kept };
            // What a sharding remembers of its own is nobody's blob, and is the same for the same shards.
            let dirs = layer.dirs().into_iter().map(|dir| (format!("{}.dir", layer.name()), canonical(dir)));
            list.extend(dirs);
        }
        places
    }
}

/// Whether one directory is the other, or lies in it.
fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

fn canonical(dir: &Path) -> PathBuf {
    dir.canonicalize().unwrap_or_else(|_| dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &[(&str, &str)]) -> Values {
        let mut values = Values::from([("id", "00112233445566778899aabbccddeeff".to_owned())]);
        text.iter().for_each(|(key, value)| values.insert(*key, (*value).to_owned()));
        values
    }

    fn config(text: &[(&str, &str)]) -> Config {
        Config::build(Path::new("/nowhere"), &values(text)).unwrap()
    }

    #[test]
    fn only_the_chain_is_exchanged() {
        let depot = values(&[("template", "file-system"), ("file-system.dir", "a"), ("log.level", "debug")]);
        let chain = Values::from([("chain", "full-db".to_owned()), ("full-db.dir", "b".to_owned())]);
        let new = with_chain_of(&depot, &chain).unwrap();
        let expected = [("log.level", "debug"), ("chain", "full-db"), ("full-db.dir", "b")];
        assert_eq!(new, values(&expected));
        for (key, value, good) in
            [("log.level", "debug", true), ("log.level", "info", false), ("index", ".", true)]
        {
            let mut chain = chain.clone();
            chain.insert(key, value.into());
            assert_eq!(with_chain_of(&depot, &chain).is_ok(), good, "{key}={value}");
        }
    }

    #[test]
    fn blobs_stay_where_both_chains_keep_them() {
        let files = config(&[]);
        let sharded = |shards: &[&str]| {
            let keys: Vec<String> = (0..shards.len()).map(|i| format!("sharding.shard[{i}].dir")).collect();
            let mut all = vec![("chain", "sharding")];
            all.extend(keys.iter().map(String::as_str).zip(shards.iter().copied()));
            config(&all)
        };
        let database = config(&[("template", "full-db-direct")]);
        assert_eq!(reach(&files, &database), Ok(Reach::Apart));
        assert_eq!(reach(&files, &config(&[("chain", "file-system")])), Ok(Reach::Shared));
        assert_eq!(reach(&files, &sharded(&["a", "b"])), Ok(Reach::Apart));
        assert_eq!(reach(&files, &sharded(&["filestore", "b"])), Ok(Reach::Shared));
        assert_eq!(reach(&sharded(&["a", "b"]), &sharded(&["a", "b", "c"])), Ok(Reach::Shared));
        assert_eq!(reach(&sharded(&["filestore"]), &files), Ok(Reach::Shared));
        for (old, new) in [
            (&sharded(&["a", "b"]), &sharded(&["a", "c"])),
            (&sharded(&["filestore", "b"]), &files),
            (&files, &config(&[("template", "full-db-direct"), ("full-db.dir", "filestore")])),
            (&files, &config(&[("template", "full-db-direct"), ("full-db.dir", "filestore/x")])),
            (&files, &sharded(&["filestore/x", "b"])),
        ] {
            let why = reach(old, new).unwrap_err();
            assert!(why.contains("name another directory"), "{why}");
        }
    }
}
