//! From the chain that is configured to the chain that is opened.

use crate::config::{self, Config, ObjectService, Secret};
use crate::filestore;
use crate::filestore::object_store::{Options, Service};
use crate::filestore::sharding::Write;

use super::rooms::refuse_network;

/// The providers of the chain, outermost first.
pub(super) fn of(config: &Config) -> anyhow::Result<Vec<filestore::Layer>> {
    let chain = config.chain.iter().map(layer).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(filestore::Layer::linked(chain))
}

pub(super) fn layer(layer: &config::Layer) -> anyhow::Result<filestore::Layer> {
    Ok(match layer {
        config::Layer::FileSystem(leaf) => {
            filestore::Layer::FileSystem { dir: leaf.dir.clone(), options: filestore_options(leaf) }
        }
        config::Layer::FullDb(leaf) => {
            refuse_network(&leaf.dir, "the database of the blobs", "full-db.dir")?;
            filestore::Layer::FullDb { dir: leaf.dir.clone() }
        }
        config::Layer::Sharding(leaf) => sharding(leaf),
        config::Layer::Eventual(layer) => {
            refuse_network(&layer.dir, "the upload queue", "eventual.dir")?;
            filestore::Layer::Eventual { dir: layer.dir.clone(), options: eventual(layer) }
        }
        config::Layer::Faulty(layer) => filestore::Layer::Faulty {
            control: layer.control.clone(),
            seed: layer.seed,
            remote: layer.remote,
        },
        config::Layer::CacheFs(layer) => cache_fs(layer)?,
        config::Layer::ObjectStore(leaf) => filestore::Layer::ObjectStore(Box::new(object_store(leaf))),
        config::Layer::Retry(layer) => filestore::Layer::Retry(filestore::retry::Options {
            max_trys: layer.max_trys,
            interval: layer.interval,
            read_deadline: layer.read_deadline,
        }),
    })
}

fn eventual(layer: &config::Eventual) -> filestore::eventual::Options {
    filestore::eventual::Options {
        threads: layer.number_of_threads as usize,
        dispatcher_interval: layer.dispatcher_interval,
        timeout: layer.timeout,
        drain_timeout: layer.drain_timeout,
        min_free_space: layer.min_free_space,
        max_queue_size: layer.max_queue_size,
    }
}

fn sharding(leaf: &config::Sharding) -> filestore::Layer {
    let shard = |shard: &config::Shard| filestore::ShardOptions {
        dir: shard.dir.clone(),
        zone: shard.zone.clone(),
        write_enabled: shard.write_enabled,
    };
    let (zoned, spread) = match leaf.write_behavior.strip_prefix("zone-") {
        Some(spread) => (true, spread),
        None => (false, leaf.write_behavior.as_str()),
    };
    filestore::Layer::Sharding {
        dir: leaf.dir.clone(),
        shards: leaf.shards.iter().map(shard).collect(),
        redundancy: leaf.redundancy as usize,
        lenient_limit: leaf.lenient_limit as usize,
        write: match spread {
            "free-space" => Write::FreeSpace,
            "percentage-free-space" => Write::PercentageFreeSpace,
            _ => Write::RoundRobin,
        },
        read_zone: leaf.reads_zone.then(|| leaf.zone.clone()),
        write_zone: zoned.then(|| leaf.zone.clone()),
        check_period: leaf.check_period,
    }
}

fn cache_fs(layer: &config::CacheFs) -> anyhow::Result<filestore::Layer> {
    if layer.dir.exists() {
        refuse_network(&layer.dir, "the cache", "cache-fs.cache-provider-dir")?;
    }
    Ok(filestore::Layer::CacheFs {
        dirs: std::iter::once(&layer.dir).chain(&layer.further).cloned().collect(),
        options: filestore::CacheOptions {
            bytes_max: layer.bytes_max,
            file_bytes_max: layer.file_bytes_max.unwrap_or(u64::MAX),
            free_bytes_min: layer.free_bytes_min,
            skip_during_upload: layer.skip_during_upload,
            handed_over: false,
        },
    })
}

fn object_store(leaf: &config::ObjectStore) -> Options {
    let given = |secret: &Secret| (!secret.reveal().is_empty()).then(|| secret.clone());
    Options {
        service: match &leaf.service {
            ObjectService::S3 { region, identity, credential, path_style } => Service::S3 {
                region: region.clone(),
                credentials: given(credential).map(|credential| (identity.clone(), credential)),
                path_style: *path_style,
            },
            ObjectService::Azure { account, key } => {
                Service::Azure { account: account.clone(), key: given(key) }
            }
            ObjectService::Google { service_account } => {
                Service::Google { service_account: service_account.clone() }
            }
        },
        dir: leaf.dir.clone(),
        endpoint: leaf.endpoint.clone(),
        bucket: leaf.bucket.clone(),
        path: leaf.path.clone(),
        instance_credentials: leaf.use_instance_credentials,
        max_connections: leaf.max_connections as usize,
        connection_timeout: leaf.connection_timeout,
        socket_timeout: leaf.socket_timeout,
        multipart_limit: leaf.multipart_limit,
        multipart_element_size: leaf.multipart_element_size,
        test_connection: leaf.test_connection,
    }
}

fn filestore_options(leaf: &config::FileSystem) -> filestore::Options {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let owner = (leaf.blob_uid.unwrap_or(uid), leaf.blob_gid.unwrap_or(gid));
    let blob_owner = (leaf.blob_uid.is_some() || leaf.blob_gid.is_some()).then_some(owner);
    filestore::Options { blob_mode: leaf.blob_mode, blob_owner }
}

#[cfg(test)]
#[cfg(debug_assertions)]
mod tests;
