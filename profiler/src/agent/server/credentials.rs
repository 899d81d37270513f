//! What the server and its clients show each other: certificate, authority of
//! clients and token, out of files that are read again when they change. A file
//! that is wrong changes nothing, and is said once.

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, bail, ensure};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use subtle::ConstantTimeEq as _;

use crate::agent::{
    config::{Http, Tls},
    state::lock,
};

/// Most bytes of a file: bundles of authorities have some hundred kilobytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Length of a token, so that none is guessed and each fits a header.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=4096;

/// A secret that clients show.
pub(super) struct Token(Vec<u8>);

/// What is in force.
pub(super) struct Loaded {
    /// Without it connections are in the clear.
    pub tls: Option<Arc<ServerConfig>>,
    /// Without it clients show none.
    pub token: Option<Token>,
}

/// What looking at the files again came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refreshed {
    /// Nothing, or nothing that was not said before.
    Same,
    /// What they hold now is in force.
    Changed,
    /// They are wrong, and what was in force stays.
    Failed(String),
}

/// The files, and what they came to.
pub(super) struct Credentials {
    http: Http,
    current: Mutex<Current>,
}

struct Current {
    files: Files,
    loaded: Arc<Loaded>,
    failure: Option<String>,
}

/// What the files hold; empty where there is none.
#[derive(PartialEq, Eq)]
struct Files {
    token: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
    clients: Vec<u8>,
}

impl Credentials {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// One of them will not do.
    pub(super) fn load(http: &Http) -> Result<Self> {
        let files = Files::read(http)?;
        let loaded = Arc::new(files.load(http)?);
        Ok(Self {
            http: http.clone(),
            current: Mutex::new(Current {
                files,
                loaded,
                failure: None,
            }),
        })
    }

    /// What is in force.
    pub(super) fn current(&self) -> Arc<Loaded> {
        Arc::clone(&lock(&self.current).loaded)
    }

    /// Looks whether the files have changed, and takes over what they hold.
    pub(super) fn refresh(&self) -> Refreshed {
        let found = Files::read(&self.http);
        let mut current = lock(&self.current);
        if found.as_ref().is_ok_and(|files| *files == current.files) {
            current.failure = None;
            return Refreshed::Same;
        }
        let taken = found.and_then(|files| Ok((files.load(&self.http)?, files)));
        match taken {
            Ok((loaded, files)) => {
                *current = Current {
                    files,
                    loaded: Arc::new(loaded),
                    failure: None,
                };
                Refreshed::Changed
            }
            Err(error) => {
                let why = format!("{error:#}");
                if current.failure.as_ref() == Some(&why) {
                    return Refreshed::Same;
                }
                current.failure = Some(why.clone());
                Refreshed::Failed(why)
            }
        }
    }
}

impl Files {
    fn read(http: &Http) -> Result<Self> {
        let read = |key: &str, path: Option<&Path>| match path {
            Some(path) => read(path).with_context(|| format!("http.{key}: {}", path.display())),
            None => Ok(Vec::new()),
        };
        let tls = http.tls.as_ref();
        let clients = tls.and_then(|tls| tls.client_ca_file.as_deref());
        Ok(Self {
            token: read("token_file", http.token_file.as_deref())?,
            certificate: read("tls.cert_file", tls.map(|tls| tls.cert_file.as_path()))?,
            key: read("tls.key_file", tls.map(|tls| tls.key_file.as_path()))?,
            clients: read("tls.client_ca_file", clients)?,
        })
    }

    fn load(&self, http: &Http) -> Result<Loaded> {
        let token = http.token_file.as_ref().map(|path| {
            let token = Token::new(&self.token);
            token.with_context(|| format!("http.token_file: {}", path.display()))
        });
        let tls = http.tls.as_ref().map(|tls| self.tls(tls));
        Ok(Loaded {
            tls: tls.transpose()?.map(Arc::new),
            token: token.transpose()?,
        })
    }

    fn tls(&self, tls: &Tls) -> Result<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("set up TLS")?;
        let config = match &tls.client_ca_file {
            None => config.with_no_client_auth(),
            Some(path) => {
                let shown = || format!("http.tls.client_ca_file: {}", path.display());
                let roots = roots(&self.clients).with_context(shown)?;
                // Who shows no certificate is refused by `access`: health is for
                // all, and a refusal in words is better than an ended connection.
                let verifier = verifier(roots, provider).with_context(shown)?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let shown = || format!("http.tls.cert_file: {}", tls.cert_file.display());
        let chain = certificates(&self.certificate).with_context(shown)?;
        let shown = || format!("http.tls.key_file: {}", tls.key_file.display());
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .context("no private key: give it PEM, and one without a passphrase")
            .with_context(shown)?;
        let config = config.with_single_cert(chain, key).with_context(|| {
            format!(
                "{}: no key for the certificate in {}: give both of one pair",
                shown(),
                tls.cert_file.display()
            )
        });
        let mut config = config?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).context("cannot read it: it must be there, and open to goprof")?;
    let mut bytes = Vec::new();
    let mut file = file.take(MAX_FILE_BYTES + 1);
    file.read_to_end(&mut bytes).context("cannot read it")?;
    ensure!(
        bytes.len() as u64 <= MAX_FILE_BYTES,
        "more than {MAX_FILE_BYTES} bytes: give a smaller file"
    );
    Ok(bytes)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.context("damaged: give PEM")?;
    if found.is_empty() {
        bail!("no certificate: give PEM");
    }
    Ok(found)
}

fn roots(pem: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots
            .add(certificate)
            .context("a certificate that is no authority's: give that which signs clients'")?;
    }
    Ok(roots)
}

fn verifier(
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .context("cannot be used")
}

impl Token {
    fn new(file: &[u8]) -> Result<Self> {
        let token = file.trim_ascii();
        ensure!(
            TOKEN_BYTES.contains(&token.len()),
            "a token has {} to {} characters: make one with `openssl rand -hex 32`",
            TOKEN_BYTES.start(),
            TOKEN_BYTES.end()
        );
        ensure!(
            token.iter().all(u8::is_ascii_graphic),
            "a token has no spaces and only ASCII: make one with `openssl rand -hex 32`"
        );
        Ok(Self(token.to_vec()))
    }

    /// Whether `shown` is it, in a time that says nothing of where they differ.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        self.0.ct_eq(shown).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_token(path: &Path) -> Http {
        Http {
            token_file: Some(path.to_owned()),
            ..Http::default()
        }
    }

    #[test]
    fn tokens_are_long_and_plain() {
        let error = |token: &str| Token::new(token.as_bytes()).err().unwrap().to_string();
        assert!(
            Token::new(b"0123456789abcdef\n")
                .unwrap()
                .is(b"0123456789abcdef")
        );
        assert!(
            !Token::new(b"0123456789abcdef")
                .unwrap()
                .is(b"0123456789abcdeF")
        );
        assert!(error("short").contains("openssl rand"));
        assert!(error("\n").contains("16 to 4096"));
        assert!(error(&"x".repeat(5000)).contains("16 to 4096"));
        assert!(error("two words are no token").contains("no spaces"));
    }

    #[test]
    fn a_file_that_turns_wrong_changes_nothing_and_is_said_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        write("0123456789abcdef");
        let credentials = Credentials::load(&with_token(file.path())).unwrap();
        let is = |token: &[u8]| credentials.current().token.as_ref().unwrap().is(token);
        assert_eq!(credentials.refresh(), Refreshed::Same);
        write("short");
        let failed = credentials.refresh();
        assert!(
            matches!(&failed, Refreshed::Failed(why) if why.contains("http.token_file: /")),
            "{failed:?}"
        );
        assert_eq!(credentials.refresh(), Refreshed::Same);
        assert!(is(b"0123456789abcdef"));
        write("fedcba9876543210\n");
        assert_eq!(credentials.refresh(), Refreshed::Changed);
        assert!(is(b"fedcba9876543210") && !is(b"0123456789abcdef"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let missing = with_token(Path::new("/no/such/token"));
        let error = format!("{:#}", Credentials::load(&missing).err().unwrap());
        assert!(
            error.starts_with("http.token_file: /no/such/token: "),
            "{error}"
        );
    }
}
