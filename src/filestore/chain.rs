//! Chains of providers: made and opened from the inside out.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::Result;
use super::file_system::{FileSystem, Options};
use super::full_db::FullDb;
use super::provider::Provider;

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
}
