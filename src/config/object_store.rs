//! Sections `[s3-storage-v3]`, `[azure-blob-storage]` and `[google-storage]`: blobs as objects of a bucket.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::keys::{brief, parse_count, parse_flag};
use super::{Known, Problem, parse_duration, parse_size};

/// A text that no log and no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// One of this text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for whoever has to send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// One of the sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStore {
    /// The service, with the keys that only it has.
    pub service: ObjectService,
    /// Directory on this host.
    pub dir: PathBuf,
    /// Address of the server with `http://` or `https://`; `None`: that of the service.
    pub endpoint: Option<String>,
    /// The bucket, or the container.
    pub bucket: String,
    /// What all keys begin with, without slashes at its ends.
    pub path: String,
    /// Whether the machine's own role may give the credentials.
    pub use_instance_credentials: bool,
    /// Requests under way at a time.
    pub max_connections: u64,
    /// Longest wait for a connection.
    pub connection_timeout: Duration,
    /// Longest wait for an answer.
    pub socket_timeout: Duration,
    /// Blobs of more bytes are sent in parts.
    pub multipart_limit: u64,
    /// Bytes of a part.
    pub multipart_element_size: u64,
    /// Whether the bucket is asked at once whose it is.
    pub test_connection: bool,
}

/// What only one service has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectService {
    /// Section `[s3-storage-v3]`.
    S3 {
        /// Region; empty: that of the environment.
        region: String,
        /// Access key; empty: that of the environment.
        identity: String,
        /// Secret key.
        credential: Secret,
        /// Whether the bucket stands in the path.
        path_style: bool,
    },
    /// Section `[azure-blob-storage]`.
    Azure {
        /// Storage account.
        account: String,
        /// Its key; empty: that of the environment.
        key: Secret,
    },
    /// Section `[google-storage]`.
    Google {
        /// File of a service account's key.
        service_account: Option<PathBuf>,
    },
}

impl ObjectService {
    /// The provider's name, which is that of its section.
    pub fn section(&self) -> &'static str {
        match self {
            ObjectService::S3 { .. } => "s3-storage-v3",
            ObjectService::Azure { .. } => "azure-blob-storage",
            ObjectService::Google { .. } => "google-storage",
        }
    }
}

/// Fewest bytes of a part that services take.
const ELEMENT_BYTES_MIN: u64 = 5 << 20;
/// What is sent at once is held in memory.
const AT_ONCE_BYTES_MAX: u64 = 512_000_000;

impl ObjectStore {
    /// What the section of this provider says.
    pub(super) fn read(known: &Known<'_>, section: &str) -> ObjectStore {
        let get = |name: &str| known.get(&format!("{section}.{name}"));
        let text = |name: &str| get(name).to_owned();
        let size = |name: &str| parse_size(get(name)).unwrap_or_default();
        let time = |name: &str| parse_duration(get(name)).unwrap_or_default();
        let flag = |name: &str| parse_flag(get(name)).unwrap_or_default();
        let (service, bucket) = match section {
            "azure-blob-storage" => {
                let (account, key) = (text("account-name"), Secret::new(get("account-key")));
                (ObjectService::Azure { account, key }, text("container-name"))
            }
            "google-storage" => {
                let file = Some(get("service-account")).filter(|file| !file.is_empty());
                let service_account = file.map(|_| known.path("google-storage.service-account"));
                (ObjectService::Google { service_account }, text("bucket-name"))
            }
            _ => {
                let service = ObjectService::S3 {
                    region: text("region"),
                    identity: text("identity"),
                    credential: Secret::new(get("credential")),
                    path_style: flag("enable-path-style-access"),
                };
                (service, text("bucket-name"))
            }
        };
        ObjectStore {
            service,
            dir: known.path(&format!("{section}.dir")),
            endpoint: endpoint(get("endpoint"), flag("use-http")),
            bucket,
            path: get("path").trim_matches('/').to_owned(),
            use_instance_credentials: flag("use-instance-credentials"),
            max_connections: parse_count(get("max-connections")).unwrap_or(1),
            connection_timeout: time("connection-timeout"),
            socket_timeout: time("socket-timeout"),
            multipart_limit: size("multipart-limit"),
            multipart_element_size: size("multipart-element-size"),
            test_connection: flag("test-connection"),
        }
    }

    /// What is wrong with the keys taken together.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let section = self.service.section();
        let mut problems = Vec::new();
        let mut wrong = |key: &str, text: String| {
            problems.push(Problem::new(format!("{section}.{key}"), format!("{section}.{key}: {text}")));
        };
        if let Some(endpoint) = &self.endpoint {
            let host = endpoint.split_once("://").map_or("", |(_, host)| host);
            let known = endpoint.starts_with("http://") || endpoint.starts_with("https://");
            if !known || host.is_empty() || host.contains(char::is_whitespace) {
                let text =
                    format!("\"{}\" is not a host, nor an address that begins with http:// or https://", {
                        brief(endpoint)
                    });
                wrong("endpoint", text);
            }
        }
        if let ObjectService::S3 { identity, credential, .. } = &self.service
            && identity.is_empty() != credential.reveal().is_empty()
        {
            wrong("credential", "identity and credential go together: set both, or none of them".into());
        }
        if self.path.split('/').any(|part| part.is_empty() || part == "." || part == "..")
            && !self.path.is_empty()
        {
            wrong("path", format!("\"{}\" has a part that is no name", brief(&self.path)));
        }
        for (key, time) in
            [("connection-timeout", self.connection_timeout), ("socket-timeout", self.socket_timeout)]
        {
            if time.is_zero() {
                wrong(key, "no answer comes in no time: give it some seconds".into());
            }
        }
        if self.multipart_element_size < ELEMENT_BYTES_MIN {
            wrong("multipart-element-size", "services take no parts of less than 5MiB".into());
        }
        if self.multipart_element_size.max(self.multipart_limit) > AT_ONCE_BYTES_MAX {
            wrong("multipart-limit", "what is sent at once is held in memory: at most 512MB".into());
        }
        problems
    }
}

/// The address of a server, which may be given without a scheme.
fn endpoint(text: &str, use_http: bool) -> Option<String> {
    match text.split_once("://") {
        Some((scheme, host)) => Some(format!("{scheme}://{}", host.trim_end_matches('/'))),
        None if text.is_empty() => None,
        None => {
            let scheme = if use_http { "http" } else { "https" };
            Some(format!("{scheme}://{}", text.trim_end_matches('/')))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Layer, Values};
    use super::*;

    fn build(chain: &str, settings: &[(&str, &str)]) -> Result<ObjectStore, String> {
        let mut values = Values::from([("id", "0".repeat(32)), ("chain", chain.to_owned())]);
        settings.iter().for_each(|(key, value)| values.insert(*key, (*value).to_owned()));
        let config = Config::build(Path::new("/d"), &values)?;
        match config.chain.into_iter().next_back() {
            Some(Layer::ObjectStore(found)) => Ok(found),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_three_services_are_read() {
        let s3 = build(
            "s3-storage-v3",
            &[
                ("s3-storage-v3.bucket-name", "b"),
                ("s3-storage-v3.endpoint", "minio:9000/"),
                ("s3-storage-v3.use-http", "true"),
                ("s3-storage-v3.identity", "me"),
                ("s3-storage-v3.credential", "hush"),
                ("s3-storage-v3.path", "/a/b/"),
            ],
        )
        .unwrap();
        assert_eq!(s3.endpoint.as_deref(), Some("http://minio:9000"));
        assert_eq!((s3.bucket.as_str(), s3.path.as_str()), ("b", "a/b"));
        assert_eq!(s3.dir, Path::new("/d/s3-storage-v3"));
        assert!(!format!("{s3:?}").contains("hush"));
        let azure = build(
            "azure-blob-storage",
            &[("azure-blob-storage.account-name", "a"), ("azure-blob-storage.container-name", "c")],
        );
        assert_eq!(azure.unwrap().bucket, "c");
        let google = build(
            "google-storage",
            &[("google-storage.bucket-name", "b"), ("google-storage.service-account", "key.json")],
        );
        let file = Some("/d/key.json".into());
        assert_eq!(google.unwrap().service, ObjectService::Google { service_account: file });
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let bucket = ("s3-storage-v3.bucket-name", "b");
        for (setting, part) in [
            (("s3-storage-v3.endpoint", "ftp://host"), "begins with http://"),
            (("s3-storage-v3.endpoint", "http://"), "begins with http://"),
            (("s3-storage-v3.identity", "me"), "go together"),
            (("s3-storage-v3.path", "a//b"), "no name"),
            (("s3-storage-v3.path", "../b"), "no name"),
            (("s3-storage-v3.socket-timeout", "0s"), "some seconds"),
            (("s3-storage-v3.multipart-element-size", "1MB"), "5MiB"),
            (("s3-storage-v3.multipart-limit", "5GB"), "512MB"),
        ] {
            let why = build("s3-storage-v3", &[bucket, setting]).unwrap_err();
            assert!(why.contains(part) && why.contains(setting.0.split_once('.').unwrap().0), "{why}");
        }
        let why = build("s3-storage-v3", &[]).unwrap_err();
        assert!(why.contains("bucket-name"), "{why}");
    }
}
