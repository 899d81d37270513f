//! Store: the folder or bucket that objects go to, by URL. An object is written
//! once and whole, and never over another.

use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    BackoffConfig, Error, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, PutMode, PutOptions,
    RetryConfig,
};
use reqwest::Url;

use super::upload::Destination;

/// How long one attempt at an object may take, retries included.
const PUT_LIMIT: Duration = Duration::from_secs(120);

/// Where objects go.
#[derive(Clone)]
pub struct Store {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
}

/// Why an object did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The other side does not know us, or lets us not write.
    Denied,
    /// The bucket, container or service is not there.
    NotFound,
    /// The other side cannot be reached, or the connection broke.
    Unreachable,
    /// It took too long.
    Timeout,
    /// Another object has the key.
    Conflict,
    /// The other side answered that it cannot, or the disk is full.
    Refused,
    /// The other side has too much to do just now.
    Overloaded,
    /// The other side will not have this one, now or later.
    Rejected,
    /// It is older than what the other side takes, and was not sent.
    TooOld,
}

impl Failure {
    /// Every reason.
    pub const ALL: [Failure; 9] = [
        Failure::Denied,
        Failure::NotFound,
        Failure::Unreachable,
        Failure::Timeout,
        Failure::Conflict,
        Failure::Refused,
        Failure::Overloaded,
        Failure::Rejected,
        Failure::TooOld,
    ];

    /// Whether another attempt would come to the same.
    pub fn is_final(self) -> bool {
        matches!(self, Failure::Rejected | Failure::TooOld)
    }

    /// The reason as a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Denied => "denied",
            Failure::NotFound => "not_found",
            Failure::Unreachable => "unreachable",
            Failure::Timeout => "timeout",
            Failure::Conflict => "conflict",
            Failure::Refused => "refused",
            Failure::Overloaded => "overloaded",
            Failure::Rejected => "rejected",
            Failure::TooOld => "too_old",
        }
    }
}

/// An object that did not arrive.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PutError {
    /// Why.
    pub failure: Failure,
    /// In one line.
    pub message: String,
}

impl Store {
    /// Opens `s3://bucket/prefix`, `gs://bucket/prefix`,
    /// `az://container/prefix`, `file:///folder` or a folder by its path, which
    /// is made where it is not there. Credentials, endpoint and the like come
    /// from the environment by the names that the clouds' own tools use:
    /// `AWS_*`, `GOOGLE_*`, `AZURE_*`. No bucket is asked yet.
    ///
    /// # Errors
    /// One line: the URL or what the environment says is wrong, or the folder
    /// cannot be made.
    pub fn open(url: &str) -> Result<Store> {
        let environment = std::env::vars_os();
        let options = environment.filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Store::with_options(url, options)
    }

    /// As [`Store::open`], with these in place of the environment.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn with_options(
        url: &str,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Store> {
        let opened = match Url::parse(url) {
            Ok(parsed) if url.contains("://") => open_url(&parsed, options),
            _ => open_folder(url),
        };
        let (store, prefix) = opened.with_context(|| format!("open the store {url}"))?;
        let url = url.to_owned();
        Ok(Store { store, prefix, url })
    }
}

impl Destination for Store {
    /// One that is there already, of the same length, has arrived before: keys
    /// are unique.
    async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), PutError> {
        let length = bytes.len() as u64;
        let put = async {
            let path = Path::parse(format!("{}/{key}", self.prefix))?;
            let options = PutOptions::from(PutMode::Create);
            match self.store.put_opts(&path, bytes.into(), options).await {
                Err(Error::AlreadyExists { source, .. }) => {
                    // S3 also says so of two writers at once, of which none
                    // may have won.
                    match self.store.head(&path).await {
                        Ok(found) if found.size == length => Ok(()),
                        _ => Err(Error::AlreadyExists {
                            path: path.to_string(),
                            source,
                        }),
                    }
                }
                put => put.map(|_| ()),
            }
        };
        match tokio::time::timeout(PUT_LIMIT, put).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(PutError {
                failure: failure(&e),
                message: one_line(&with_causes(&e)),
            }),
            Err(_) => Err(PutError {
                failure: Failure::Timeout,
                message: format!("no answer within {} s", PUT_LIMIT.as_secs()),
            }),
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

type Opened = (Arc<dyn ObjectStore>, Path);

/// A cloud's builder, with those of the options that are meant for it.
macro_rules! build {
    ($builder:ty, $prefix:literal, $url:expr, $options:expr) => {{
        let mut builder = <$builder>::new().with_url($url.as_str());
        for (name, value) in $options {
            let name = name.to_ascii_lowercase();
            if let (true, Ok(key)) = (name.starts_with($prefix), name.parse()) {
                builder = builder.with_config(key, value);
            }
        }
        Arc::new(builder.with_retry(retries()).build()?)
    }};
}

fn open_url(url: &Url, options: impl IntoIterator<Item = (String, String)>) -> Result<Opened> {
    if url.scheme() == "file" {
        let Ok(folder) = url.to_file_path() else {
            bail!("a file URL has three slashes and no host: file:///folder");
        };
        return open_folder(folder.to_str().context("the folder's path is not UTF-8")?);
    }
    let (scheme, prefix) = ObjectStoreScheme::parse(url)
        .context("use s3://, gs://, az://, file:/// or the path of a folder")?;
    // TLS needs a provider, which may be chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::AmazonS3 => build!(AmazonS3Builder, "aws_", url, options),
        ObjectStoreScheme::GoogleCloudStorage => {
            build!(GoogleCloudStorageBuilder, "google_", url, options)
        }
        ObjectStoreScheme::MicrosoftAzure => build!(MicrosoftAzureBuilder, "azure_", url, options),
        _ => bail!("use s3://, gs://, az://, file:/// or the path of a folder"),
    };
    Ok((store, prefix))
}

fn open_folder(folder: &str) -> Result<Opened> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .context("make the folder")?;
    let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
    Ok((Arc::new(store), Path::default()))
}

/// Few: the uploader tries again by itself, and says so.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 2,
        retry_timeout: Duration::from_secs(30),
    }
}

fn failure(error: &Error) -> Failure {
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Failure::Denied,
        Error::NotFound { .. } => Failure::NotFound,
        Error::AlreadyExists { .. } | Error::Precondition { .. } => Failure::Conflict,
        _ => match transport(error) {
            Some(HttpErrorKind::Timeout) => Failure::Timeout,
            Some(_) => Failure::Unreachable,
            None => Failure::Refused,
        },
    }
}

/// What went wrong below HTTP, if it did.
fn transport(error: &Error) -> Option<HttpErrorKind> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        cause = error.source();
    }
    None
}

/// An error and what is behind it, such as that a name is not known: the client
/// says no more than that a request was not sent.
fn with_causes(error: &Error) -> String {
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        cause = error.source();
    }
    said
}

/// What a server says goes into a log line, which it may not break or flood.
pub(super) fn one_line(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        format!("{:#}", Store::open(url).unwrap_err())
    }

    #[test]
    fn a_url_that_names_no_store_is_refused_with_what_to_use() {
        for url in [
            "ftp://host/x",
            "s3:///",
            "file://host/x",
            "s4://bucket",
            "http://host/x",
        ] {
            let error = refusal(url);
            assert!(error.contains(&format!("open the store {url}")), "{error}");
        }
        assert!(refusal("ftp://host/x").contains("use s3://"));
        assert!(refusal("file://host/x").contains("three slashes"));
        assert!(refusal("/proc/store").contains("make the folder"));
    }

    #[tokio::test]
    async fn a_folder_is_made_and_gets_objects_by_their_keys() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a b/store");
        for url in [
            folder.to_str().unwrap().to_owned(),
            format!("file://{}/a%20b/store", dir.path().display()),
        ] {
            let store = Store::open(&url).unwrap();
            let key = "v1/cluster=a%2Fb/x.parquet";
            store.put(key, b"object".to_vec()).await.unwrap();
            // Again is no failure, another object is.
            store.put(key, b"object".to_vec()).await.unwrap();
            let error = store.put(key, b"another".to_vec()).await.unwrap_err();
            assert_eq!(error.failure, Failure::Conflict);
            assert_eq!(std::fs::read(folder.join(key)).unwrap(), b"object");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_unreachable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let options = [
            ("AWS_ENDPOINT_URL", format!("http://{address}")),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", "a".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "s".to_owned()),
        ];
        let options = options.map(|(name, value)| (name.to_owned(), value));
        let store = Store::with_options("s3://bucket/prefix", options).unwrap();
        let error = store.put("k", Vec::new()).await.unwrap_err();
        assert_eq!(error.failure, Failure::Unreachable, "{error}");
        assert!(!error.to_string().contains('\n'));
    }

    #[test]
    fn what_a_server_says_stays_one_short_line() {
        let said = one_line(&"<x>\n\u{1b}[31m\0".repeat(1_000));
        assert!(said.len() <= 500 && !said.chars().any(char::is_control));
    }

    #[test]
    fn every_reason_has_its_place_and_name() {
        for (i, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, i);
            assert!(
                failure
                    .name()
                    .bytes()
                    .all(|b| b == b'_' || b.is_ascii_lowercase())
            );
        }
    }
}
