//! Chains of providers: made and opened from the inside out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Result;
use super::file_system::{FileSystem, Options};
use super::full_db::FullDb;
use super::provider::Provider;
use super::volume::Volume;

/// One provider of a chain, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Keeps blobs as files of a directory.
    FileSystem {
        /// The directory.
        dir: PathBuf,
        /// How blobs look there.
        options: Options,
    },
    /// Keeps blobs as rows of a database.
    FullDb {
        /// The directory of the database.
        dir: PathBuf,
    },
}

impl Layer {
    /// Makes what it keeps on this host, holding the empty blob; durable on Ok. Made for the depot already, it stays.
    pub fn create(&self, depot_id: [u8; 16]) -> Result<()> {
        match self {
            Layer::FileSystem { dir, options } => FileSystem::create(dir, depot_id, options),
            Layer::FullDb { dir } => FullDb::create(dir, depot_id),
        }
    }

    /// Opens what `create` made; another depot's is refused.
    ///
    /// The caller holds the depot's lock: what a crash left half done is cleared away here.
    pub fn open(&self, depot_id: [u8; 16]) -> Result<Arc<dyn Provider>> {
        Ok(match self {
            Layer::FileSystem { dir, options } => Arc::new(FileSystem::open(dir, depot_id, options)?),
            Layer::FullDb { dir } => Arc::new(FullDb::open(dir, depot_id)?),
        })
    }

    /// Refuses a directory that is not there or is not this depot's. Changes nothing, so it may be in use.
    pub fn examine(&self, depot_id: [u8; 16]) -> Result<()> {
        Volume::examine(self.dir(), depot_id)
    }

    fn dir(&self) -> &Path {
        match self {
            Layer::FileSystem { dir, .. } | Layer::FullDb { dir } => dir,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::Error;
    use super::*;

    #[test]
    fn a_directory_is_examined_without_a_change() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let layers = |name: &str| {
            let (dir, options) = (at(name), Options::default());
            [Layer::FileSystem { dir: dir.clone(), options }, Layer::FullDb { dir }]
        };
        std::fs::create_dir(at("empty")).unwrap();
        for name in ["missing", "empty"] {
            for layer in layers(name) {
                let refused = layer.examine([7; 16]);
                assert!(matches!(refused, Err(Error::NotADepotDirectory { .. })), "{refused:?}");
            }
        }
        for (layer, name) in [(&layers("files")[0], "files"), (&layers("database")[1], "database")] {
            layer.create([7; 16]).unwrap();
            let names = || std::fs::read_dir(at(name)).unwrap().count();
            let before = names();
            layer.examine([7; 16]).unwrap();
            assert_eq!(names(), before);
            let _opened = layer.open([7; 16]).unwrap();
            layer.examine([7; 16]).unwrap();
            let refused = layer.examine([8; 16]);
            assert!(matches!(refused, Err(Error::Foreign { .. })), "{refused:?}");
        }
        assert!(!at("missing").exists() && std::fs::read_dir(at("empty")).unwrap().count() == 0);
    }
}
