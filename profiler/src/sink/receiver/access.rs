//! How a receiver is reached and what it is told of who asks: its URL, headers,
//! credentials and certificates. What is secret lies in files, which are read each
//! time, so that it may change; it is in no message.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

/// The header that names a tenant to Grafana's servers and to Parca's.
const TENANT: HeaderName = HeaderName::from_static("x-scope-orgid");
/// Most bytes of a file with a secret: none is near it.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// How a receiver is reached.
#[derive(Debug, Clone)]
pub struct Access {
    url: Url,
    /// Headers as they are sent.
    headers: HeaderMap,
    /// Headers whose values are in files.
    header_files: Vec<(HeaderName, PathBuf)>,
    user: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    /// A certificate of our own, and its key.
    certificate: Option<(PathBuf, PathBuf)>,
}

impl Access {
    /// Without credentials, to a server that the system's certificates speak for
    /// where it is reached by TLS.
    ///
    /// # Errors
    /// It is no URL.
    pub fn new(url: &str) -> Result<Access> {
        Ok(Access {
            url: Url::parse(url).with_context(|| format!("{url:?} is no URL"))?,
            headers: HeaderMap::new(),
            header_files: Vec::new(),
            user: None,
            token_file: None,
            ca_file: None,
            certificate: None,
        })
    }

    /// Says which tenant it is.
    ///
    /// # Errors
    /// It cannot be the value of a header.
    pub fn tenant(self, tenant: &str) -> Result<Access> {
        self.header(TENANT.as_str(), tenant)
    }

    /// Adds a header.
    ///
    /// # Errors
    /// It cannot be one.
    pub fn header(mut self, name: &str, value: &str) -> Result<Access> {
        let (name, value) = (header_name(name)?, HeaderValue::from_str(value)?);
        self.headers.insert(name, value);
        Ok(self)
    }

    /// Adds a header with the value in a file.
    ///
    /// # Errors
    /// It cannot be one.
    pub fn header_file(mut self, name: &str, file: &Path) -> Result<Access> {
        self.header_files
            .push((header_name(name)?, file.to_owned()));
        Ok(self)
    }

    /// Shows the token in a file; with a user as that one's password.
    #[must_use]
    pub fn token(self, user: Option<&str>, file: &Path) -> Access {
        Access {
            user: user.map(str::to_owned),
            token_file: Some(file.to_owned()),
            ..self
        }
    }

    /// Believes servers for which these certificates speak, and no others.
    #[must_use]
    pub fn ca_file(self, file: &Path) -> Access {
        Access {
            ca_file: Some(file.to_owned()),
            ..self
        }
    }

    /// Shows a certificate of our own.
    #[must_use]
    pub fn certificate(self, certificate: &Path, key: &Path) -> Access {
        Access {
            certificate: Some((certificate.to_owned(), key.to_owned())),
            ..self
        }
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The headers, with what the files hold now. Reads files: not for an async
    /// thread.
    pub(super) fn headers(&self) -> Result<HeaderMap> {
        let mut headers = self.headers.clone();
        for (name, file) in &self.header_files {
            headers.insert(name.clone(), secret(file, "")?);
        }
        if let Some(file) = &self.token_file {
            let value = match &self.user {
                None => secret(file, "Bearer ")?,
                Some(user) => {
                    let token = read(file)?;
                    let text = format!("{user}:{}", token.trim());
                    header_value(&format!("Basic {}", STANDARD.encode(text)), file)?
                }
            };
            headers.insert(AUTHORIZATION, value);
        }
        Ok(headers)
    }

    /// The certificates that speak for the server, in PEM; `None` for the system's.
    pub(super) fn authorities(&self) -> Result<Option<String>> {
        self.ca_file.as_deref().map(read).transpose()
    }

    /// Our own certificate and its key, in PEM.
    pub(super) fn own(&self) -> Result<Option<(String, String)>> {
        let both = self.certificate.as_ref();
        both.map(|(certificate, key)| Ok((read(certificate)?, read(key)?)))
            .transpose()
    }
}

fn header_name(name: &str) -> Result<HeaderName> {
    name.parse()
        .with_context(|| format!("{name:?} is no header"))
}

fn secret(file: &Path, before: &str) -> Result<HeaderValue> {
    header_value(&format!("{before}{}", read(file)?.trim()), file)
}

fn header_value(text: &str, file: &Path) -> Result<HeaderValue> {
    let value = HeaderValue::from_str(text).ok();
    let mut value = value.with_context(|| {
        let file = file.display();
        format!("{file} holds what cannot stand in a header")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(file: &Path) -> Result<String> {
    let shown = file.display();
    let size = fs::metadata(file).map(|metadata| metadata.len());
    let size = size.with_context(|| format!("read {shown}"))?;
    anyhow::ensure!(size <= MAX_FILE_BYTES, "{shown} is too large");
    fs::read_to_string(file).with_context(|| format!("read {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn credentials_are_read_each_time_and_in_no_message() {
        let token = file("first\n");
        let access = Access::new("http://host/").unwrap();
        let access = access.tenant("a").unwrap().token(None, token.path());
        let headers = access.headers().unwrap();
        assert_eq!(headers[AUTHORIZATION], "Bearer first");
        assert_eq!(headers[TENANT], "a");
        fs::write(token.path(), "second").unwrap();
        let headers = access.headers().unwrap();
        assert_eq!(headers[AUTHORIZATION], "Bearer second");
        assert!(!format!("{headers:?} {access:?}").contains("second"));
        fs::write(token.path(), "sec\nret").unwrap();
        let error = format!("{:#}", access.headers().unwrap_err());
        assert!(error.contains("cannot stand in a header") && !error.contains("ret"));
        let as_user = access.token(Some("bob"), file("pass\n").path());
        assert!(as_user.headers().is_err(), "the file is gone");
    }

    #[test]
    fn a_user_has_the_token_for_a_password() {
        let token = file("opensesame\n");
        let access = Access::new("http://host/").unwrap();
        let access = access.token(Some("Aladdin"), token.path());
        let headers = access.headers().unwrap();
        assert_eq!(headers[AUTHORIZATION], "Basic QWxhZGRpbjpvcGVuc2VzYW1l");
    }
}
