//! The configuration as it holds: the value of every key, and where it comes from.

use std::collections::BTreeMap;
use std::fmt;

use super::environment::{self, HIDDEN, Lookup};
use super::keys::{Key, Kind};
use super::{Chosen, Values};

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value, fit to be shown: a secret is hidden.
    pub value: String,
    /// Where the value comes from.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It stands in depot.toml.
    File,
    /// Nobody set it.
    Default,
    /// It is what the template says.
    Template,
    /// These environment variables are in it.
    Environment(Vec<String>),
    /// These environment variables should be in it, and one of them is not set here, so the value is the text of depot.toml.
    Unset(Vec<String>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File => f.write_str("depot.toml"),
            Origin::Default => f.write_str("default"),
            Origin::Template => f.write_str("template"),
            Origin::Environment(names) => write!(f, "environment {}", names.join(", ")),
            Origin::Unset(names) => write!(f, "environment {}, not set here", names.join(", ")),
        }
    }
}

/// One entry for each key that means something with the chain that is chosen, in the order of the table.
pub fn effective(keys: &'static [Key], chosen: &Chosen, values: &Values, variables: Lookup) -> Vec<Entry> {
    let all = chosen.with_defaults(values);
    let entry = |(key, name): (&Key, String)| match key.name {
        // It would be the default's, which a chain takes the place of.
        "template" if chosen.template.is_none() => None,
        "chain" if chosen.template.is_some() => {
            Some(Entry { key: name, value: chosen.providers.join(","), origin: Origin::Template })
        }
        _ => {
            let (text, origin) = match (values.get(&name), all.get(&name)) {
                (Some(text), _) => (text, Origin::File),
                (None, Some(text)) => (text, Origin::Template),
                (None, None) => (key.default.unwrap_or_default(), Origin::Default),
            };
            Some(entry(key, &name, text, origin, variables))
        }
    };
    names(keys, chosen, &all).into_iter().filter_map(entry).collect()
}

/// Every key that means something with the chain that is chosen and its value, which for a secret is a digest. The defaults
/// of the template are among the values.
pub(super) fn settings(keys: &'static [Key], chosen: &Chosen, values: &Values) -> BTreeMap<String, String> {
    let value = |key: &Key, name: &str| match (key.name, values.get(name).or(key.default)) {
        ("chain", _) => chosen.providers.join(","),
        (_, Some(text)) if key.kind == Kind::Secret => blake3::hash(text.as_bytes()).to_hex().to_string(),
        (_, text) => text.unwrap_or_default().to_owned(),
    };
    let pair = |(key, name): (&Key, String)| (name.clone(), value(key, &name));
    names(keys, chosen, values).into_iter().map(pair).collect()
}

/// The rows that mean something, with the names that they have here: one for each table of a list.
fn names(keys: &'static [Key], chosen: &Chosen, values: &Values) -> Vec<(&'static Key, String)> {
    let mut names = Vec::new();
    for rows in keys.chunk_by(|a, b| a.table() == b.table()).filter(|rows| chosen.uses(rows[0].section())) {
        let Some(list) = rows[0].table().strip_suffix("[]") else {
            names.extend(rows.iter().map(|key| (key, key.name.to_owned())));
            continue;
        };
        for i in values.tables(list) {
            names.extend(rows.iter().map(|key| (key, format!("{list}[{i}].{}", key.own_name()))));
        }
    }
    names
}

fn entry(key: &Key, name: &str, text: &str, origin: Origin, variables: Lookup) -> Entry {
    let (value, origin) = match key.kind {
        Kind::Text | Kind::Secret => with_variables(text, origin, variables),
        _ => (text.to_owned(), origin),
    };
    // Also where there is none, so that nothing is told of it.
    let value = if key.kind == Kind::Secret { HIDDEN.to_owned() } else { value };
    Entry { key: name.to_owned(), value, origin }
}

fn with_variables(text: &str, origin: Origin, variables: Lookup) -> (String, Origin) {
    let names: Vec<String> = environment::variables(text).into_iter().map(str::to_owned).collect();
    match environment::expand(text, variables) {
        Ok(value) if names.is_empty() => (value, origin),
        Ok(value) => (value, Origin::Environment(names)),
        Err(_) => (text.to_owned(), Origin::Unset(names)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::DEPOT;
    use super::*;
    use std::ffi::OsString;

    fn lines(keys: &'static [Key], values: &Values) -> Vec<String> {
        let variables = |name: &str| (name == "WORD").then(|| OsString::from("open sesame"));
        let chosen = Chosen::of(values).unwrap();
        let entries = effective(keys, &chosen, values, &variables);
        entries.iter().map(|e| format!("{}={} ({})", e.key, e.value, e.origin)).collect()
    }

    #[test]
    fn every_key_of_the_chain_has_a_value_with_its_origin() {
        let id = "00112233445566778899aabbccddeeff";
        let mut values = Values::from([("id", id.to_owned()), ("log.level", "debug".to_owned())]);
        let told = lines(DEPOT, &values);
        for line in [
            "id=00112233445566778899aabbccddeeff (depot.toml)",
            "template=file-system (default)",
            "chain=file-system (template)",
            "log.level=debug (depot.toml)",
            "log.to=file (default)",
            "file-system.blob-owner= (default)",
        ] {
            assert!(told.contains(&line.to_owned()), "{line} is missing in {told:?}");
        }
        assert!(!told.iter().any(|line| line.starts_with("full-db")), "{told:?}");
        values.insert("chain", "full-db".into());
        let told = lines(DEPOT, &values);
        assert!(told.contains(&"chain=full-db (depot.toml)".to_owned()), "{told:?}");
        assert!(told.contains(&"full-db.dir=full-db (default)".to_owned()), "{told:?}");
        assert!(!told.iter().any(|line| line.starts_with("template") || line.starts_with("file-system")));
    }

    #[test]
    fn what_the_template_says_is_told_as_such() {
        let mut values = Values::from([("template", "redundant-shards".to_owned())]);
        let told = lines(DEPOT, &values);
        for line in ["sharding.redundancy=2 (template)", "sharding.shard[1].dir=shard-2 (template)"] {
            assert!(told.contains(&line.to_owned()), "{line} is missing in {told:?}");
        }
        values.insert("sharding.shard[0].dir", "/mnt/a".into());
        let told = lines(DEPOT, &values);
        assert!(told.contains(&"sharding.shard[0].dir=/mnt/a (depot.toml)".to_owned()), "{told:?}");
        assert!(!told.iter().any(|line| line.starts_with("sharding.shard[1]")), "{told:?}");
    }

    #[test]
    fn variables_are_put_in_and_secrets_hidden() {
        const KEYS: &[Key] = &[
            Key { name: "a.text", kind: Kind::Text, default: Some(""), doc: "." },
            Key { name: "a.other", kind: Kind::Text, default: Some(""), doc: "." },
            Key { name: "a.path", kind: Kind::Path, default: Some("."), doc: "." },
            Key { name: "a.list[].secret", kind: Kind::Secret, default: None, doc: "." },
            Key { name: "a.list[].size", kind: Kind::Size, default: Some("5GB"), doc: "." },
        ];
        let mut values = Values::from([
            ("a.text", "<${WORD}>$${".to_owned()),
            ("a.other", "${GONE}${WORD}".to_owned()),
            ("a.path", "${WORD}".to_owned()),
        ]);
        for i in [10, 2, 1] {
            values.insert(format!("a.list[{i}].secret"), if i == 1 { "hush" } else { "${WORD}" }.into());
        }
        assert_eq!(
            lines(KEYS, &values),
            [
                "a.text=<open sesame>${ (environment WORD)",
                "a.other=${GONE}${WORD} (environment GONE, WORD, not set here)",
                "a.path=${WORD} (depot.toml)",
                "a.list[1].secret=*** (depot.toml)",
                "a.list[1].size=5GB (default)",
                "a.list[2].secret=*** (environment WORD)",
                "a.list[2].size=5GB (default)",
                "a.list[10].secret=*** (environment WORD)",
                "a.list[10].size=5GB (default)",
            ]
        );
    }
}
