//! What a binarystore.xml may say, and what that is called here: its templates, provider types and parameters.
//!
//! A new provider or key is a row. The names on the right are those of PROVIDERS and of the table of keys.

/// A chain that has a name in Artifactory.
pub(super) struct Template {
    pub name: &'static str,
    /// Provider types, outermost first; each is also the provider's id.
    pub chain: &'static [&'static str],
    /// Ids of the shards of the last one.
    pub shards: &'static [&'static str],
    /// Parameters that the template sets: provider, name, value.
    pub parameters: &'static [(&'static str, &'static str, &'static str)],
}

const fn template(name: &'static str, chain: &'static [&'static str]) -> Template {
    Template { name, chain, shards: &[], parameters: &[] }
}

const S3: &str = "s3-storage-v3";
const GOOGLE: &str = "google-storage-v2";
const AZURE: &str = "azure-blob-storage";
const AZURE_V2: &str = "azure-blob-storage-v2";
const STATE_AWARE: &str = "state-aware";

/// Every template whose chain is known.
pub(super) const TEMPLATES: &[Template] = &[
    template("file-system", &["file-system"]),
    template("cache-fs", &["cache-fs", "file-system"]),
    template("full-db", &["cache-fs", "blob"]),
    template("full-db-direct", &["blob"]),
    Template {
        name: "double-shards",
        chain: &["cache-fs", "sharding"],
        shards: &["shard-fs-1", "shard-fs-2"],
        parameters: &[("sharding", "redundancy", "1"), ("sharding", "lenientLimit", "1")],
    },
    Template {
        name: "redundant-shards",
        chain: &["cache-fs", "sharding"],
        shards: &["shard-state-aware-1", "shard-state-aware-2"],
        parameters: &[("sharding", "redundancy", "2"), ("sharding", "lenientLimit", "1")],
    },
    template("cluster-file-system", &["cache-fs", "sharding-cluster", STATE_AWARE]),
    template("cluster-fs", &["cache-fs", "sharding-cluster", STATE_AWARE]),
    template(S3, &["cache-fs", "eventual", "retry", S3]),
    template("s3-storage-v3-direct", &["cache-fs", S3]),
    template("s3-storage-v3-archive", &["s3-storage-v3-archive", S3]),
    template("cluster-s3-storage-v3", &["cache-fs", "sharding-cluster", "eventual-cluster", "retry", S3]),
    template("s3", &["cache-fs", "eventual", "retry", "s3"]),
    template("cluster-s3", &["cache-fs", "sharding-cluster", "eventual-cluster", "retry", "s3"]),
    template("google-storage", &["cache-fs", "eventual", "retry", "google-storage"]),
    template(GOOGLE, &["cache-fs", "eventual", "retry", GOOGLE]),
    template("google-storage-v2-direct", &["cache-fs", GOOGLE]),
    template(
        "cluster-google-storage-v2",
        &["cache-fs", "sharding-cluster", "eventual-cluster", "retry", GOOGLE],
    ),
    template(AZURE, &["cache-fs", "eventual", "retry", AZURE]),
    template("azure-blob-storage-direct", &["cache-fs", AZURE]),
    template(
        "cluster-azure-blob-storage",
        &["cache-fs", "sharding-cluster", "eventual-cluster", "retry", AZURE],
    ),
    template("azure-blob-storage-v2-direct", &["cache-fs", AZURE_V2]),
];

/// A provider type.
pub(super) struct Kind {
    pub name: &'static str,
    /// What it is here; `None`: nothing.
    pub provider: Option<&'static str>,
    /// What is lost, and what to do.
    pub lost: Option<&'static str>,
}

const fn same(name: &'static str) -> Kind {
    Kind { name, provider: Some(name), lost: None }
}

const fn none(name: &'static str, lost: &'static str) -> Kind {
    Kind { name, provider: None, lost: Some(lost) }
}

/// Every provider type.
pub(super) const KINDS: &[Kind] = &[
    same("file-system"),
    same("cache-fs"),
    same("eventual"),
    same("retry"),
    same("sharding"),
    same(S3),
    same("google-storage"),
    same(AZURE),
    Kind { name: STATE_AWARE, provider: Some("file-system"), lost: None },
    Kind { name: GOOGLE, provider: Some("google-storage"), lost: None },
    Kind { name: AZURE_V2, provider: Some(AZURE), lost: None },
    Kind {
        name: "blob",
        provider: Some("full-db"),
        lost: Some(
            "full-db keeps blobs in a database of its own, in the depot: what Artifactory's database holds is not there, \
             copy it through Artifactory",
        ),
    },
    Kind {
        name: "s3",
        provider: Some(S3),
        lost: Some(
            "an old client of S3: compare the names of the objects, here <path>/<2 hex digits>/<SHA-1>",
        ),
    },
    Kind {
        name: "eventual-cluster",
        provider: Some("eventual"),
        lost: Some(
            "the queue is of this host only, empty those of the other nodes before Artifactory is stopped",
        ),
    },
    none(
        "sharding-cluster",
        "a depot is of one host; what only other nodes have is not here: copy their blobs into this chain, or share one \
         object store",
    ),
    none("remote", "it reaches blobs on other nodes: copy them into this chain"),
    none(
        "state-aware-s3",
        "a sharding spreads blobs over directories: name one object store as the last provider, and copy the blobs of the \
         other buckets into it",
    ),
    none(
        "s3-sharding",
        "a sharding spreads blobs over directories: name one object store as the last provider, and copy the blobs of the \
         other buckets into it",
    ),
    none(
        "s3-storage-v3-archive",
        "an archive is read like any other bucket, once its objects are restored there",
    ),
    none("s3Old", "its client is gone: set up s3-storage-v3 for the bucket"),
    none(
        "hdfs",
        "there is no provider for HDFS: mount it as a directory, or copy the blobs, and end the chain with file-system",
    ),
    none("external-file", "there are no references to files outside: import them as files of a repository"),
    none(
        "external-wrapper",
        "there are no references to files outside: import them as files of a repository",
    ),
    none("double", "take a sharding of two directories with redundancy 2"),
    none("dynamic", "it finds the other nodes of a cluster, and a depot is of one host"),
];

/// How the text of a parameter is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum As {
    Text,
    Secret,
    /// Bytes.
    Size,
    Milliseconds,
    Count,
    Flag,
    /// Words there, and here.
    Words(&'static [(&'static str, &'static str)]),
}

/// What becomes of a parameter.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// A key of the provider's section, read so.
    Key(&'static str, As),
    /// It is a part of what the provider's own function makes.
    Part,
    /// Nothing needs to: why.
    Needless(&'static str),
    /// It is lost: what to do.
    Lost(&'static str),
}

/// A parameter.
pub(super) struct Row {
    /// Name of the provider here.
    pub provider: &'static str,
    /// Name there.
    pub name: &'static str,
    pub fate: Fate,
    /// Value there when none is given, where that matters.
    pub default: Option<&'static str>,
}

const fn key(provider: &'static str, name: &'static str, own: &'static str, read: As) -> Row {
    Row { provider, name, fate: Fate::Key(own, read), default: None }
}

const fn by(row: Row, default: &'static str) -> Row {
    Row { default: Some(default), ..row }
}

const fn part(provider: &'static str, name: &'static str) -> Row {
    Row { provider, name, fate: Fate::Part, default: None }
}

const fn needless(provider: &'static str, name: &'static str, why: &'static str) -> Row {
    Row { provider, name, fate: Fate::Needless(why), default: None }
}

const fn lost(provider: &'static str, name: &'static str, what: &'static str) -> Row {
    Row { provider, name, fate: Fate::Lost(what), default: None }
}

const WRITES: &[(&str, &str)] = &[
    ("roundRobin", "round-robin"),
    ("freeSpace", "free-space"),
    ("percentageFreeSpace", "percentage-free-space"),
    ("zoneFreeSpace", "zone-free-space"),
    ("zonePercentageFreeSpace", "zone-percentage-free-space"),
];
const READS: &[(&str, &str)] = &[("roundRobin", "round-robin"), ("zone", "zone")];

const STAGING: &str = "staging files are always in _pre, beside the blobs";
const FETCH: &str = "a blob is fetched once for all its readers, for as long as it takes";
const STREAMS: &str = "copies are made from the staging file, not from a stream";
const SERVED: &str = "files are served by the mount, not by links into the store";
const CLIENT: &str = "it tunes a client that is not used here";
const KEYS_OF: &str = "set the encryption of the bucket as its default";
const PROXY: &str = "the store is reached without a proxy";
const CHECKED: &str = "every blob is compared with its checksum on its way";

/// Every parameter, by provider.
pub(super) const ROWS: &[Row] = &[
    part("file-system", "baseDataDir"),
    part("file-system", "fileStoreDir"),
    needless("file-system", "tempDir", STAGING),
    needless("file-system", "zone", "only a sharding has zones"),
    needless("file-system", "checkPeriod", "only a sharding sets a directory aside"),
    lost("file-system", "writeEnabled", "mount the depot read-only where it must not be written"),
    by(key("cache-fs", "maxCacheSize", "max-cache-size", As::Size), "5000000000"),
    part("cache-fs", "cacheProviderDir"),
    part("cache-fs", "baseDataDir"),
    key("cache-fs", "maxFileSizeLimit", "max-file-size-limit", As::Size),
    by(key("cache-fs", "skipDuringUpload", "skip-during-upload", As::Flag), "false"),
    needless("cache-fs", "multiReadEnabled", FETCH),
    needless("cache-fs", "parallelDownloadWindowInMillis", FETCH),
    needless("cache-fs", "validateChecksum", CHECKED),
    needless("cache-fs", "cacheSynchQuietPeriod", "what is in the cache is always known"),
    needless("cache-fs", "binaryProviderInfoEvictionTime", "what is in the cache is always known"),
    needless("cache-fs", "persistence", "what is in the cache is always known"),
    needless("cache-fs", "tempDir", STAGING),
    by(key("eventual", "numberOfThreads", "number-of-threads", As::Count), "5"),
    key("eventual", "maxWorkers", "number-of-threads", As::Count),
    by(key("eventual", "dispatcherInterval", "dispatcher-interval", As::Milliseconds), "5000"),
    by(key("eventual", "timeout", "timeout", As::Milliseconds), "120000"),
    needless("eventual", "queueSize", "the queue is a directory, and is bounded by its disk"),
    needless("eventual", "hazelcastWaitingTime", "there is no cluster to wait for"),
    needless("eventual", "addStalePeriod", "there is no other node to take entries over"),
    needless("eventual", "checkPeriod", "there is no other node to look after"),
    needless("eventual", "zone", "only a sharding has zones"),
    needless("eventual", "tempDir", STAGING),
    by(key("retry", "maxTrys", "max-trys", As::Count), "5"),
    by(key("retry", "interval", "interval", As::Milliseconds), "5000"),
    by(key("sharding", "redundancy", "redundancy", As::Count), "1"),
    by(key("sharding", "lenientLimit", "lenient-limit", As::Count), "0"),
    by(key("sharding", "readBehavior", "read-behavior", As::Words(READS)), "roundRobin"),
    by(key("sharding", "writeBehavior", "write-behavior", As::Words(WRITES)), "roundRobin"),
    key("sharding", "zone", "zone", As::Text),
    key("sharding", "maxBalancingRunTime", "max-balancing-run-time", As::Milliseconds),
    needless("sharding", "freeSpaceSampleInterval", "free space is looked at for each blob"),
    needless("sharding", "concurrentStreamWaitTimeout", STREAMS),
    needless("sharding", "concurrentStreamBufferKb", STREAMS),
    needless("sharding", "minSpareUploaderExecutor", STREAMS),
    needless("sharding", "uploaderCleanupIdleTime", STREAMS),
    part(S3, "endpoint"),
    part(S3, "port"),
    part(S3, "httpsPort"),
    part(S3, "useHttp"),
    part(S3, "httpsOnly"),
    key(S3, "region", "region", As::Text),
    key(S3, "bucketName", "bucket-name", As::Text),
    by(key(S3, "path", "path", As::Text), "filestore"),
    key(S3, "identity", "identity", As::Secret),
    key(S3, "credential", "credential", As::Secret),
    key(S3, "useInstanceCredentials", "use-instance-credentials", As::Flag),
    lost(S3, "roleName", "give the role to the host, and set use-instance-credentials"),
    lost(S3, "refreshCredentials", "give the role to the host, and set use-instance-credentials"),
    key(S3, "enablePathStyleAccess", "enable-path-style-access", As::Flag),
    key(S3, "maxConnections", "max-connections", As::Count),
    key(S3, "connectionTimeout", "connection-timeout", As::Milliseconds),
    key(S3, "socketTimeout", "socket-timeout", As::Milliseconds),
    key(S3, "multiPartLimit", "multipart-limit", As::Size),
    key(S3, "multipartElementSize", "multipart-element-size", As::Size),
    key(S3, "testConnection", "test-connection", As::Flag),
    part(S3, "rootFoldersNameLength"),
    needless(S3, "disableChecksumValidation", CHECKED),
    needless(S3, "usePresigning", SERVED),
    needless(S3, "signatureExpirySeconds", SERVED),
    needless(S3, "signedUrlExpirySeconds", SERVED),
    needless(S3, "enableSignedUrlRedirect", SERVED),
    needless(S3, "cloudFrontDomainName", SERVED),
    needless(S3, "cloudFrontKeyPairId", SERVED),
    needless(S3, "cloudFrontPrivateKey", SERVED),
    needless(S3, "awsSdkV2", CLIENT),
    needless(S3, "s3AwsVersion", CLIENT),
    lost(S3, "kmsServerSideEncryptionKeyId", KEYS_OF),
    lost(S3, "kmsKeyRegion", KEYS_OF),
    lost(S3, "kmsCryptoMode", KEYS_OF),
    lost(S3, "proxyIdentity", PROXY),
    lost(S3, "proxyCredential", PROXY),
    lost(S3, "proxyHost", PROXY),
    lost(S3, "proxyPort", PROXY),
    key(AZURE, "accountName", "account-name", As::Text),
    key(AZURE, "accountKey", "account-key", As::Secret),
    part(AZURE, "endpoint"),
    key(AZURE, "containerName", "container-name", As::Text),
    key(AZURE, "container", "container-name", As::Text),
    key(AZURE, "path", "path", As::Text),
    key(AZURE, "multiPartLimit", "multipart-limit", As::Size),
    key(AZURE, "multipartElementSize", "multipart-element-size", As::Size),
    key(AZURE, "maxConnections", "max-connections", As::Count),
    key(AZURE, "connectionTimeout", "connection-timeout", As::Milliseconds),
    key(AZURE, "socketTimeout", "socket-timeout", As::Milliseconds),
    key(AZURE, "testConnection", "test-connection", As::Flag),
    part("google-storage", "endpoint"),
    part("google-storage", "port"),
    part("google-storage", "useHttp"),
    part("google-storage", "httpsOnly"),
    key("google-storage", "bucketName", "bucket-name", As::Text),
    by(key("google-storage", "path", "path", As::Text), "filestore"),
    key("google-storage", "useInstanceCredentials", "use-instance-credentials", As::Flag),
    key("google-storage", "multiPartLimit", "multipart-limit", As::Size),
    key("google-storage", "multipartElementSize", "multipart-element-size", As::Size),
    key("google-storage", "maxConnections", "max-connections", As::Count),
    key("google-storage", "connectionTimeout", "connection-timeout", As::Milliseconds),
    key("google-storage", "testConnection", "test-connection", As::Flag),
    lost(
        "google-storage",
        "identity",
        "its keys are those of the S3 interface: name the file of a service account",
    ),
    lost(
        "google-storage",
        "credential",
        "its keys are those of the S3 interface: name the file of a service account",
    ),
    needless("google-storage", "bucketExists", "the bucket has to be there"),
    needless("google-storage", "projectId", "a bucket's name is its own"),
    lost("google-storage", "proxyHost", PROXY),
    lost("google-storage", "proxyPort", PROXY),
];

/// Parameters by what their names begin with: of what is many and alike.
pub(super) const FAMILIES: &[(&str, &str)] = &[("crt", CLIENT), ("cloudFront", SERVED)];

/// The row of a parameter; upper and lower case are the same, as in `multiPartLimit` and `multipartElementSize`.
pub(super) fn row(provider: &str, name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.provider == provider && row.name.eq_ignore_ascii_case(name))
}
