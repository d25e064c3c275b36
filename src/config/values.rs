//! Values by the names of their keys, and what is wrong with some.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Values by key, as text, each checked against its row of the table.
///
/// A key of one of several tables has the table's number in its name: `sharding.shard[0].dir`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<String, String>);

impl Values {
    /// None.
    pub fn new() -> Values {
        Values::default()
    }

    /// Sets one, in place of an earlier value.
    pub fn insert(&mut self, key: impl Into<String>, value: String) {
        self.0.insert(key.into(), value);
    }

    /// Takes one out.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    /// The value that was given for this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether a value was given for this key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The numbers of the tables `list[0]`, `list[1]`, ... that have values.
    pub fn tables(&self, list: &str) -> BTreeSet<usize> {
        let number = |key: &str| key.strip_prefix(list)?.strip_prefix('[')?.split_once(']')?.0.parse().ok();
        self.0.keys().filter_map(|key| number(key)).collect()
    }
}

impl<const N: usize> From<[(&str, String); N]> for Values {
    fn from(values: [(&str, String); N]) -> Values {
        Values(values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
}

/// One thing that is wrong with a depot.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key or table it concerns; empty: the file as a whole.
    pub key: String,
    /// What is wrong and what is wanted, naming the key.
    pub text: String,
}

impl Problem {
    /// A problem with this key.
    pub fn new(key: impl Into<String>, text: impl Into<String>) -> Problem {
        Problem { key: key.into(), text: text.into() }
    }

    /// Whether it concerns `key` or something in the table `key`.
    pub fn concerns(&self, key: &str) -> bool {
        self.key.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_counted_by_their_numbers() {
        let names =
            ["a.b[0].x", "a.b[10].x", "a.b[2].x", "a.b[2].y", "a.bc[5].x", "a.b[x].x", "a.b[7", "a.b"];
        let mut values = Values::new();
        for name in names {
            values.insert(name, String::new());
        }
        assert_eq!(values.tables("a.b"), [0, 2, 10].into());
        assert_eq!(values.tables("a"), [].into());
    }

    #[test]
    fn a_problem_concerns_its_key_and_the_tables_around_it() {
        let problem = Problem::new("a.b[0].dir", "");
        for (key, concerned) in
            [("a.b[0].dir", true), ("a.b[0]", true), ("a.b", true), ("a.b[0].di", false), ("b", false)]
        {
            assert_eq!(problem.concerns(key), concerned, "{key}");
        }
    }
}
