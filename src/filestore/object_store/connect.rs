//! From the keys of a section to a client of a service.
//!
//! Nothing is sent here. The clients do not try again by themselves: that is what the layer `retry` is for.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use ::object_store::azure::MicrosoftAzureBuilder;
use ::object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use ::object_store::gcp::GoogleCloudStorageBuilder;
use ::object_store::{ClientOptions, ObjectStore, RetryConfig};

use super::super::error::{Error, Result};
use super::versions::Versions;
use crate::config::Secret;

/// Where objects are kept, and how they are sent there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Directory on this host: of the staging files.
    pub dir: PathBuf,
    /// The service.
    pub service: Service,
    /// Address of the server, `http://` or `https://`; `None`: that of the service itself.
    pub endpoint: Option<String>,
    /// The bucket, or the container.
    pub bucket: String,
    /// What the names of all objects begin with, without slashes at the ends; may be empty.
    pub path: String,
    /// Whether a machine's or a container's own role may give the credentials.
    pub instance_credentials: bool,
    /// Requests under way at a time.
    pub max_connections: usize,
    /// Longest wait for a connection.
    pub connection_timeout: Duration,
    /// Longest wait for an answer, and for more of one.
    pub socket_timeout: Duration,
    /// Blobs of more bytes are sent in parts.
    pub multipart_limit: u64,
    /// Bytes of a part.
    pub multipart_element_size: u64,
    /// Whether the bucket is asked whose it is when it is made and opened, and not only before the first change.
    pub test_connection: bool,
}

/// What speaks at the other end, with what only it wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// Amazon S3, and what speaks like it.
    S3 {
        /// Its region.
        region: String,
        /// Access key and secret key; `None`: those of the environment.
        credentials: Option<(String, Secret)>,
        /// Whether the bucket stands in the path and not in the host's name.
        path_style: bool,
    },
    /// Azure Blob Storage.
    Azure {
        /// The storage account.
        account: String,
        /// Its key; `None`: the credentials of the environment.
        key: Option<Secret>,
    },
    /// Google Cloud Storage.
    Google {
        /// File of a service account's key; `None`: the credentials of the environment.
        service_account: Option<PathBuf>,
    },
}

impl Service {
    /// Its name in a chain.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Service::S3 { .. } => "s3-storage-v3",
            Service::Azure { .. } => "azure-blob-storage",
            Service::Google { .. } => "google-storage",
        }
    }

    /// What the address of an object begins with.
    fn scheme(&self) -> &'static str {
        match self {
            Service::S3 { .. } => "s3",
            Service::Azure { .. } => "az",
            Service::Google { .. } => "gs",
        }
    }
}

impl Options {
    /// The address of the bucket: `s3://artifacts`.
    pub(super) fn bucket_address(&self) -> String {
        format!("{}://{}", self.service.scheme(), self.bucket)
    }
}

/// A client of a service.
pub(super) struct Client {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Of S3 only.
    pub(super) versions: Option<Versions>,
}

/// The client that these options ask for.
pub(super) fn connect(options: &Options) -> Result<Client> {
    let made = match &options.service {
        Service::S3 { region, credentials, path_style } => {
            s3(options, region, credentials.as_ref(), *path_style)
        }
        Service::Azure { account, key } => azure(options, account, key.as_ref()),
        Service::Google { service_account } => google(options, service_account.as_ref()),
    };
    made.map_err(|source| Error::Backend {
        doing: "set up a client for",
        what: options.bucket_address(),
        transient: false,
        source,
    })
}

type Made = std::result::Result<Client, Box<dyn std::error::Error + Send + Sync>>;

fn s3(options: &Options, region: &str, credentials: Option<&(String, Secret)>, path_style: bool) -> Made {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&options.bucket)
        .with_virtual_hosted_style_request(!path_style)
        // Signing the bytes protects them on a way without TLS, and hashes them once more.
        .with_unsigned_payload(!options.is_plain_text())
        .with_client_options(options.client())
        .with_http_connector(Telling)
        .with_retry(no_retry());
    if !region.is_empty() {
        builder = builder.with_region(region);
    }
    if let Some((identity, secret)) = credentials {
        builder = builder.with_access_key_id(identity).with_secret_access_key(secret.reveal());
    } else if !options.instance_credentials && !is_any_set(S3_CREDENTIALS) {
        return Err(no_credentials("identity and credential", S3_CREDENTIALS).into());
    }
    if let Some(endpoint) = &options.endpoint {
        let host_of_bucket = |(scheme, host): (&str, &str)| format!("{scheme}://{}.{host}", options.bucket);
        let hosted = (!path_style).then(|| endpoint.split_once("://").map(host_of_bucket)).flatten();
        builder = builder.with_endpoint(hosted.unwrap_or_else(|| endpoint.clone()));
    }
    let told = builder.get_config_value(&AmazonS3ConfigKey::Region);
    let region = told.unwrap_or_else(|| "us-east-1".to_owned());
    let address = match (&options.endpoint, path_style) {
        (Some(endpoint), true) => format!("{endpoint}/{}", options.bucket),
        (Some(endpoint), false) => {
            let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", endpoint));
            format!("{scheme}://{}.{host}/", options.bucket)
        }
        (None, true) => format!("https://s3.{region}.amazonaws.com/{}", options.bucket),
        (None, false) => format!("https://{}.s3.{region}.amazonaws.com/", options.bucket),
    };
    let s3 = Arc::new(builder.build()?);
    let client = Telling.connect(&options.client())?;
    let store: Arc<dyn ObjectStore> = Arc::<AmazonS3>::clone(&s3);
    Ok(Client { store, versions: Some(Versions { s3, client, address, region }) })
}

fn azure(options: &Options, account: &str, key: Option<&Secret>) -> Made {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_account(account)
        .with_container_name(&options.bucket)
        .with_client_options(options.client())
        .with_http_connector(Telling)
        .with_retry(no_retry());
    if let Some(key) = key {
        builder = builder.with_access_key(key.reveal());
    } else if !options.instance_credentials && !is_any_set(AZURE_CREDENTIALS) {
        return Err(no_credentials("account-key", AZURE_CREDENTIALS).into());
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    Ok(Client { store: Arc::new(builder.build()?), versions: None })
}

fn google(options: &Options, service_account: Option<&PathBuf>) -> Made {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(&options.bucket)
        .with_client_options(options.client())
        .with_http_connector(Telling)
        .with_retry(no_retry());
    if let Some(file) = service_account {
        builder = builder.with_service_account_path(file.to_string_lossy());
    } else if !options.instance_credentials && !is_any_set(GOOGLE_CREDENTIALS) {
        return Err(no_credentials("service-account", GOOGLE_CREDENTIALS).into());
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    Ok(Client { store: Arc::new(builder.build()?), versions: None })
}

/// Variables of which one at least gives credentials.
const S3_CREDENTIALS: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];
const AZURE_CREDENTIALS: &[&str] = &[
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
];
const GOOGLE_CREDENTIALS: &[&str] = &[
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
];

fn is_any_set(names: &[&str]) -> bool {
    names.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

fn no_credentials(keys: &str, variables: &[&str]) -> String {
    format!(
        "there are no credentials: set {keys}, or one of the variables {} where the daemon is started, or \
         use-instance-credentials = true",
        variables.join(", ")
    )
}

impl Options {
    /// Whether the bytes go over the network as they are.
    fn is_plain_text(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"))
    }

    fn client(&self) -> ClientOptions {
        ClientOptions::new()
            .with_allow_http(self.is_plain_text())
            .with_connect_timeout(self.connection_timeout)
            // Every wait has its own end: one for all of a large answer would be too long or too short.
            .with_timeout_disabled()
            .with_read_timeout_disabled()
            .with_pool_max_idle_per_host(self.max_connections)
    }
}

fn no_retry() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Makes errors of the answers of a server that is in trouble, so that they are known by their type, and calls a part a part.
#[derive(Debug)]
struct Telling;

#[derive(Debug)]
struct Told(HttpClient);

/// An answer that says that the server is in trouble, or that it cannot do what it was asked.
#[derive(Debug)]
pub(super) struct InTrouble(pub(super) u16);

impl fmt::Display for InTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0 {
            408 => " (it waited too long for the request)",
            429 => " (too many requests)",
            501 => " (it cannot do that)",
            502 | 504 => " (a proxy cannot reach it)",
            503 => " (it is overloaded or not in service)",
            _ => "",
        };
        write!(f, "the server answered with status {}{words}", self.0)
    }
}

impl std::error::Error for InTrouble {}

impl HttpConnector for Telling {
    fn connect(&self, options: &ClientOptions) -> ::object_store::Result<HttpClient> {
        Ok(HttpClient::new(Told(ReqwestConnector::default().connect(options)?)))
    }
}

type Answering<'a> = Pin<Box<dyn Future<Output = std::result::Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Told {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> Answering<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let mut answer = self.0.execute(request).await?;
            let is_part = answer.headers().contains_key("content-range");
            match answer.status().as_u16() {
                // Some servers send a part and call it the whole; the client wants it to be called a part.
                200 if is_part => {
                    if let Ok(partial) = 206_u16.try_into() {
                        *answer.status_mut() = partial;
                    }
                    Ok(answer)
                }
                status @ (408 | 429 | 500..=599) => {
                    Err(HttpError::new(HttpErrorKind::Interrupted, InTrouble(status)))
                }
                _ => Ok(answer),
            }
        })
    }
}
