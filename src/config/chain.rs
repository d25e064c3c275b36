//! The chain of providers that a depot.toml asks for.

use std::path::{Path, PathBuf};

use super::keys::DEPOT;
use super::{Values, nearest::suggestion};

/// A chain that has a name.
#[derive(Debug)]
pub struct Template {
    /// As depot.toml says it.
    pub name: &'static str,
    /// Its providers, outermost first; each is also the name of the section with its keys.
    pub chain: &'static [&'static str],
}

/// Every template.
pub const TEMPLATES: &[Template] = &[
    Template { name: "file-system", chain: &["file-system"] },
    Template { name: "full-db-direct", chain: &["full-db"] },
];

/// Their names.
pub const NAMES: &[&str] = &["file-system", "full-db-direct"];

/// A provider of the chain, with what its section says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Keeps blobs in a directory.
    FileSystem(FileSystem),
    /// Keeps blobs in a database.
    FullDb(FullDb),
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

impl Layer {
    /// The directory where it keeps what it has on this host.
    pub fn dir(&self) -> &Path {
        match self {
            Layer::FileSystem(layer) => &layer.dir,
            Layer::FullDb(layer) => &layer.dir,
        }
    }
}

/// The template of this name, which the table of keys has checked.
pub fn template(name: &str) -> Result<&'static Template, String> {
    TEMPLATES
        .iter()
        .find(|template| template.name == name)
        .ok_or_else(|| format!("there is no template \"{name}\"{}", suggestion(name, NAMES.iter().copied())))
}

/// Refuses a key of a provider that the chain does not have: whoever set it believes that it does something.
pub fn refuse_others(chain: &[&str], values: &Values) -> Result<(), String> {
    let section = |name: &'static str| name.rsplit_once('.').map(|(section, _)| section);
    let is_provider = |name: &str| TEMPLATES.iter().any(|template| template.chain.contains(&name));
    for key in DEPOT.iter().filter(|key| values.contains_key(key.name)) {
        let Some(section) = section(key.name) else { continue };
        if is_provider(section) && !chain.contains(&section) {
            return Err(format!(
                "\"{}\" is set, and the chain has no {section}: it is {}",
                key.name,
                chain.join(" > ")
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_named_and_every_provider_has_keys() {
        assert_eq!(TEMPLATES.iter().map(|template| template.name).collect::<Vec<_>>(), NAMES);
        for provider in TEMPLATES.iter().flat_map(|template| template.chain) {
            assert!(DEPOT.iter().any(|key| key.name.starts_with(&format!("{provider}."))), "{provider}");
        }
        assert!(template("file-sytem").unwrap_err().contains("\"file-system\""));
    }
}
