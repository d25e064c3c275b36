//! Chains of providers: made and opened from the inside out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Filestore;
use super::cache_fs::{self, CacheFs};
use super::error::{Error, Result};
use super::eventual::{self, Eventual};
use super::faulty::Faulty;
use super::file_system::{FileSystem, Options};
use super::full_db::FullDb;
use super::object_store::{self, ObjectStore};
use super::provider::Provider;
use super::retry::{self, Retry};
use super::sharding::{self, Choice, Shard, Sharding, Write};
use super::timed::Timed;
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
    /// Keeps copies of what the provider below it has.
    CacheFs {
        /// Its directories; the first one also has what it remembers.
        dirs: Vec<PathBuf>,
        /// What it is to do.
        options: cache_fs::Options,
    },
    /// Spreads blobs over directories.
    Sharding {
        /// The directory of what it remembers.
        dir: PathBuf,
        /// The directories.
        shards: Vec<ShardOptions>,
        /// Copies of each blob.
        redundancy: usize,
        /// Copies without which a put fails; 0: all of them.
        lenient_limit: usize,
        /// Which shards get a blob.
        write: Write,
        /// The zone whose shards are asked first.
        read_zone: Option<String>,
        /// The zone whose shards get blobs first.
        write_zone: Option<String>,
        /// Shortest time before a shard that failed is tried again.
        check_period: Duration,
    },
    /// Keeps blobs in a queue and uploads them later.
    Eventual {
        /// The directory of the queue.
        dir: PathBuf,
        /// How it works.
        options: eventual::Options,
    },
    /// Breaks what stands below it, for tests.
    Faulty {
        /// The file that says what goes wrong.
        control: PathBuf,
        /// What chance begins with.
        seed: u64,
        /// Whether no blob is a local file.
        remote: bool,
    },
    /// Keeps blobs as objects of a bucket.
    ObjectStore(Box<object_store::Options>),
    /// Does again what failed for a reason that passes.
    Retry(retry::Options),
}

/// One shard, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardOptions {
    /// Its directory.
    pub dir: PathBuf,
    /// Its zone.
    pub zone: String,
    /// Whether it gets new blobs.
    pub write_enabled: bool,
}

/// What layers of a chain offer beyond the trait.
#[derive(Debug, Default)]
pub struct Parts {
    /// The cache.
    pub cache: Option<Arc<CacheFs>>,
    /// The queue.
    pub queue: Option<Arc<Eventual>>,
    /// What does again what failed.
    pub retry: Option<Arc<Retry>>,
    /// Where blobs are spread over shards.
    pub sharding: Option<Arc<Sharding>>,
    /// The bucket.
    pub objects: Option<Arc<ObjectStore>>,
}

/// Opens a chain, outermost first; the last one keeps the blobs. What belongs to another depot is refused.
///
/// The caller holds the depot's lock: what a crash left half done is cleared away here.
pub fn open(chain: &[Layer], depot_id: [u8; 16]) -> Result<Filestore> {
    let mut outermost: Option<Arc<dyn Provider>> = None;
    let mut parts = Parts::default();
    for layer in chain.iter().rev() {
        outermost = Some(layer.open(depot_id, outermost.take(), &mut parts)?);
    }
    Ok(Filestore::of_parts(outermost.ok_or(Error::NoProvider)?, parts))
}

impl Layer {
    /// The same providers, where each knows what the one below it does for it.
    pub fn linked(mut chain: Vec<Layer>) -> Vec<Layer> {
        for i in 1..chain.len() {
            let (over, below) = chain.split_at_mut(i);
            if let (Some(Layer::CacheFs { options, .. }), Some(Layer::Eventual { .. })) =
                (over.last_mut(), below.first())
            {
                options.handed_over = true;
            }
        }
        chain
    }

    /// Makes what it keeps on this host, holding the empty blob; durable on Ok. Made for the depot already, it stays.
    pub fn create(&self, depot_id: [u8; 16]) -> Result<()> {
        self.create_beside(depot_id, &|_| false)
    }

    /// The same, but nothing in directories that were `known` before: where one lacks everything, its disk is elsewhere.
    pub fn create_beside(&self, depot_id: [u8; 16], known: &dyn Fn(&Path) -> bool) -> Result<()> {
        match self {
            Layer::FileSystem { dir, options } if !known(dir) => FileSystem::create(dir, depot_id, options),
            Layer::FullDb { dir } if !known(dir) => FullDb::create(dir, depot_id),
            Layer::Eventual { dir, .. } if !known(dir) => Eventual::create(dir, depot_id),
            Layer::ObjectStore(options) if !known(&options.dir) => ObjectStore::create(options, depot_id),
            Layer::CacheFs { dirs, .. } => {
                let new: Vec<PathBuf> = dirs.iter().filter(|dir| !known(dir)).cloned().collect();
                CacheFs::create(&new, depot_id)
            }
            Layer::Sharding { dir, shards, .. } => {
                let mut new = shards.iter().filter(|shard| !known(&shard.dir));
                new.try_for_each(|shard| FileSystem::create(&shard.dir, depot_id, &Options::default()))?;
                if known(dir) { Ok(()) } else { Sharding::create(dir, depot_id) }
            }
            Layer::FileSystem { .. }
            | Layer::FullDb { .. }
            | Layer::Eventual { .. }
            | Layer::ObjectStore(_)
            | Layer::Retry(_)
            | Layer::Faulty { .. } => Ok(()),
        }
    }

    /// Opens what `create` made over what stands below it in the chain; another depot's is refused.
    fn open(
        &self,
        depot_id: [u8; 16],
        below: Option<Arc<dyn Provider>>,
        parts: &mut Parts,
    ) -> Result<Arc<dyn Provider>> {
        Ok(match self {
            Layer::FileSystem { dir, options } => file_system(dir, depot_id, options)?,
            Layer::FullDb { dir } => Arc::new(FullDb::open(dir, depot_id)?),
            Layer::CacheFs { dirs, options } => {
                let below = below.ok_or(Error::NoProvider)?;
                let cache = Arc::new(CacheFs::open(dirs, depot_id, *options, below)?);
                parts.cache = Some(Arc::clone(&cache));
                cache
            }
            Layer::Sharding { dir, .. } => {
                let (shards, options) = self.shards(depot_id);
                let sharding = Arc::new(Sharding::open(dir, depot_id, shards, options)?);
                parts.sharding = Some(Arc::clone(&sharding));
                sharding
            }
            Layer::Eventual { dir, options } => {
                let below = below.ok_or(Error::NoProvider)?;
                let queue = Arc::new(Eventual::open(dir, depot_id, below, *options)?);
                parts.queue = Some(Arc::clone(&queue));
                queue
            }
            Layer::Faulty { control, seed, remote } => {
                Arc::new(Faulty::over(below.ok_or(Error::NoProvider)?, control.clone(), *seed, *remote))
            }
            Layer::ObjectStore(options) => {
                let objects = Arc::new(ObjectStore::open(options, depot_id)?);
                parts.objects = Some(Arc::clone(&objects));
                objects
            }
            Layer::Retry(options) => {
                let retry = Arc::new(Retry::over(below.ok_or(Error::NoProvider)?, *options));
                parts.retry = Some(Arc::clone(&retry));
                retry
            }
        })
    }

    /// The shards of a sharding, unopened, and what is to be done with them; none of any other layer.
    fn shards(&self, depot_id: [u8; 16]) -> (Vec<Shard>, sharding::Options) {
        let Layer::Sharding {
            shards,
            redundancy,
            lenient_limit,
            write,
            read_zone,
            write_zone,
            check_period,
            ..
        } = self
        else {
            let choice = Choice::new(Write::RoundRobin, None, None);
            return (Vec::new(), sharding::Options { redundancy: 1, lenient_limit: 0, choice });
        };
        let shards = shards.iter().map(|shard| shard.build(depot_id, *check_period)).collect();
        let choice = Choice::new(*write, read_zone.clone(), write_zone.clone());
        (shards, sharding::Options { redundancy: *redundancy, lenient_limit: *lenient_limit, choice })
    }

    /// Refuses a directory that is not there or is not this depot's. Changes nothing, so it may be in use.
    pub fn examine(&self, depot_id: [u8; 16]) -> Result<()> {
        match self {
            // One that is not there yet is made when it is opened.
            Layer::CacheFs { dirs, .. } => {
                let there = dirs.iter().filter(|dir| dir.exists());
                there.into_iter().try_for_each(|dir| Volume::examine(dir, depot_id))
            }
            Layer::FileSystem { dir, .. } | Layer::FullDb { dir } | Layer::Eventual { dir, .. } => {
                Volume::examine(dir, depot_id)
            }
            Layer::Sharding { dir: own, shards, .. } => {
                Volume::examine(own, depot_id)?;
                // One that was none before is made when it is opened.
                let made = |dir: &Path| is_nothing(dir) && sharding::is_new_in(own, dir);
                let mut made_before = shards.iter().filter(|shard| !made(&shard.dir));
                made_before.try_for_each(|shard| Volume::examine(&shard.dir, depot_id))
            }
            Layer::Faulty { .. } => Ok(()),
            Layer::ObjectStore(options) => Volume::examine(&options.dir, depot_id),
            Layer::Retry(_) => Ok(()),
        }
    }
}

impl Parts {
    /// Hands each layer its new options, as far as it can have others while it works; what could not be done, and why.
    pub(super) fn change(
        &self,
        chain: &[Layer],
        depot_id: [u8; 16],
        wanted: &sharding::Wanted<'_>,
    ) -> Result<Vec<String>> {
        let mut refused = Vec::new();
        for layer in chain {
            match layer {
                Layer::Sharding { .. } => {
                    if let Some(sharding) = &self.sharding {
                        let (shards, options) = layer.shards(depot_id);
                        refused.extend(sharding.change(shards, options, wanted)?);
                    }
                }
                Layer::CacheFs { options, .. } => self.cache.iter().for_each(|cache| cache.change(*options)),
                Layer::Eventual { options, .. } => self.queue.iter().for_each(|queue| queue.change(*options)),
                Layer::Retry(options) => self.retry.iter().for_each(|retry| retry.change(*options)),
                // These take theirs at the next mount.
                Layer::FileSystem { .. }
                | Layer::FullDb { .. }
                | Layer::Faulty { .. }
                | Layer::ObjectStore(_) => {}
            }
        }
        Ok(refused)
    }
}

impl ShardOptions {
    fn build(&self, depot_id: [u8; 16], check_period: Duration) -> Shard {
        let dir = self.dir.clone();
        let open = move |may_make: bool| -> Result<Arc<dyn Provider>> {
            if may_make && is_nothing(&dir) {
                FileSystem::create(&dir, depot_id, &Options::default())?;
            }
            file_system(&dir, depot_id, &Options::default())
        };
        Shard::new(self.dir.clone(), self.zone.clone(), self.write_enabled, check_period, Box::new(open))
    }
}

/// Opens a directory; one whose calls may hang has ends for them.
fn file_system(dir: &Path, depot_id: [u8; 16], options: &Options) -> Result<Arc<dyn Provider>> {
    let files = FileSystem::open(dir, depot_id, options)?;
    Ok(match files.is_on_network() {
        true => Arc::new(Timed::over(dir.to_owned(), Arc::new(files))),
        false => Arc::new(files),
    })
}

/// Whether nothing is there, or an empty directory, such as a new disk has.
fn is_nothing(dir: &Path) -> bool {
    let Ok(mut names) = std::fs::read_dir(dir) else { return !dir.exists() };
    names.all(|name| name.is_ok_and(|name| name.file_name() == "lost+found"))
}

#[cfg(test)]
mod tests {
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
            let _opened = open(std::slice::from_ref(layer), [7; 16]).unwrap();
            layer.examine([7; 16]).unwrap();
            let refused = layer.examine([8; 16]);
            assert!(matches!(refused, Err(Error::Foreign { .. })), "{refused:?}");
        }
        assert!(!at("missing").exists() && std::fs::read_dir(at("empty")).unwrap().count() == 0);
    }
}
