//! Which receivers get profiles besides the store, and how they are reached. What
//! is secret is named by its file, so that no configuration holds any.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::{Bytes, Period};
use crate::identity::text::clean;
use crate::profile::push::labels::{MAX_STATIC_LABELS, may_be_added};
use crate::profile::push::{Label, Protocol};
use crate::sink::Access;

const DEFAULT_LIMIT: Bytes = Bytes(64 << 20);
/// The least that has room for a request.
const MIN_LIMIT: Bytes = Bytes(8 << 20);
/// Longest window where Pyroscope, which takes nothing older than an hour, is to
/// have it with time left to try again.
const LONGEST_FOR_PYROSCOPE: Duration = Duration::from_secs(30 * 60);
/// Headers that goprof sets itself.
const OWN_HEADERS: [&str; 9] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "host",
    "te",
    "transfer-encoding",
    "user-agent",
    "x-scope-orgid",
];
/// What is in the names of headers that hold a secret.
const SECRET: [&str; 7] = [
    "auth",
    "cookie",
    "credential",
    "key",
    "password",
    "secret",
    "token",
];

/// Every receiver.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Push(Vec<Receiver>);

/// A receiver of profiles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receiver {
    /// What it is.
    pub kind: Protocol,
    /// Its name in metrics and messages; its kind where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it is.
    pub url: String,
    /// As which tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The file with the token to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Whose password the token is; it is shown by itself where nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Certificates that speak for it, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A certificate to show, and its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// The certificate's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Whether it may be one whose protocol still changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub experimental: bool,
    /// Most bytes that wait for it.
    #[serde(default = "default_limit")]
    pub limit: Bytes,
    /// Headers to send.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The same with values from files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub header_files: BTreeMap<String, PathBuf>,
    /// Labels for every profile.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

fn default_limit() -> Bytes {
    DEFAULT_LIMIT
}

impl Push {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every receiver, in the order of the file.
    pub fn receivers(&self) -> &[Receiver] {
        &self.0
    }

    /// The names of all labels that receivers add.
    pub fn label_names(&self) -> BTreeSet<String> {
        let names = self.0.iter().flat_map(|receiver| receiver.labels.keys());
        names.cloned().collect()
    }

    /// Gives the receiver that is called like its kind another URL; adds it where
    /// there is none. Whoever asks has agreed to what is experimental.
    pub fn set_url(&mut self, kind: Protocol, url: &str) {
        let is_it = |r: &Receiver| r.kind == kind && r.name() == kind.name();
        match self.0.iter().position(is_it) {
            Some(index) => url.clone_into(&mut self.0[index].url),
            None => self.0.push(Receiver {
                experimental: kind == Protocol::Otlp,
                ..Receiver::new(kind, url)
            }),
        }
    }

    /// The key of a value that will not do, and why.
    pub(super) fn check(&self, flush: Period) -> Result<(), (String, String)> {
        let mut names = BTreeSet::new();
        for (index, receiver) in self.0.iter().enumerate() {
            let here = |key: &str| format!("push[{index}].{key}");
            receiver.check().map_err(|(key, why)| (here(key), why))?;
            if !names.insert(receiver.name()) {
                let why = format!("two are called {:?}: name them apart", receiver.name());
                return Err((here("name"), why));
            }
            if receiver.kind == Protocol::Pyroscope && flush.0 > LONGEST_FOR_PYROSCOPE {
                let why = "must be 30m at most to push to Pyroscope, which takes nothing \
                           older than an hour";
                return Err(("flush".into(), why.into()));
            }
        }
        Ok(())
    }
}

type Checked = Result<(), (&'static str, String)>;

impl Receiver {
    fn new(kind: Protocol, url: &str) -> Self {
        Receiver {
            kind,
            name: None,
            url: url.to_owned(),
            tenant: None,
            token_file: None,
            user: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            experimental: false,
            limit: DEFAULT_LIMIT,
            headers: BTreeMap::new(),
            header_files: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.kind.name())
    }

    /// How it is reached.
    ///
    /// # Errors
    /// Something in it cannot be sent.
    pub fn access(&self) -> anyhow::Result<Access> {
        let mut access = Access::new(&self.url)?;
        if let Some(tenant) = &self.tenant {
            access = access.tenant(tenant).context("the tenant")?;
        }
        for (name, value) in &self.headers {
            access = access.header(name, value).context("a header")?;
        }
        for (name, file) in &self.header_files {
            access = access.header_file(name, file)?;
        }
        if let Some(file) = &self.token_file {
            access = access.token(self.user.as_deref(), file);
        }
        if let Some(file) = &self.ca_file {
            access = access.ca_file(file);
        }
        if let (Some(certificate), Some(key)) = (&self.cert_file, &self.key_file) {
            access = access.certificate(certificate, key);
        }
        Ok(access)
    }

    /// Labels for every profile.
    pub fn labels(&self) -> Vec<Label> {
        let labels = self.labels.iter();
        labels.map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn check(&self) -> Checked {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let name = self.name();
        if name.is_empty() || name.len() > 32 || !name.chars().all(is_plain) {
            let why = format!("{name:?} must be up to 32 letters, digits, dashes, underscores");
            return Err(("name", why));
        }
        if self.kind == Protocol::Otlp && !self.experimental {
            let why = "must be true for otlp: OTLP profiles are not stable, and may stop \
                       working with a newer receiver";
            return Err(("experimental", why.into()));
        }
        if self.limit < MIN_LIMIT {
            return Err(("limit", format!("must be at least {MIN_LIMIT}")));
        }
        self.check_url()?;
        let tenant = self.tenant.as_deref().unwrap_or_default();
        if tenant.chars().any(|c| c.is_control() || !c.is_ascii()) {
            return Err(("tenant", "must be plain text".into()));
        }
        self.check_files()?;
        self.check_headers()?;
        self.check_labels()?;
        let sent = self.access().map(drop);
        sent.map_err(|error| ("headers", format!("{error:#}")))
    }

    fn check_url(&self) -> Checked {
        let refuse = |why: &str| Err(("url", format!("{:?} {why}", self.url)));
        let Ok(url) = Url::parse(&self.url) else {
            return refuse("is no URL: write http://HOST:PORT or https://HOST");
        };
        let has_secret = !url.username().is_empty() || url.password().is_some();
        if has_secret {
            // Not shown: the secret is in it.
            let why = "has a user or a password: use user and token_file";
            return Err(("url", why.into()));
        }
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return refuse("must begin with http:// or https://");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return refuse("must end with the path");
        }
        if self.kind != Protocol::Pyroscope && url.path() != "/" {
            return refuse("has a path, which gRPC knows none of");
        }
        let has_tls_files = self.ca_file.is_some() || self.cert_file.is_some();
        if url.scheme() == "http" && has_tls_files {
            return refuse("must begin with https:// where certificates are given");
        }
        Ok(())
    }

    fn check_files(&self) -> Checked {
        for (key, file) in [
            ("token_file", &self.token_file),
            ("ca_file", &self.ca_file),
            ("cert_file", &self.cert_file),
            ("key_file", &self.key_file),
        ] {
            if file.as_deref().is_some_and(|file| !file.is_absolute()) {
                return Err((key, "must begin with /".into()));
            }
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(("cert_file", "needs key_file, and that needs it".into()));
        }
        if self.user.is_some() && self.token_file.is_none() {
            return Err(("user", "needs token_file, with the password".into()));
        }
        let user = self.user.as_deref().unwrap_or_default();
        if user.contains(':') || user.chars().any(char::is_control) {
            return Err(("user", "must not hold a colon".into()));
        }
        let has_relative = |file: &PathBuf| !file.is_absolute();
        if self.header_files.values().any(has_relative) {
            return Err(("header_files", "must begin with /".into()));
        }
        Ok(())
    }

    fn check_headers(&self) -> Checked {
        let lower = |name: &String| name.to_ascii_lowercase();
        let plain = self.headers.keys().map(lower).map(|name| ("headers", name));
        let files = self.header_files.keys().map(lower);
        let files = files.map(|name| ("header_files", name));
        for (key, name) in plain.chain(files) {
            if OWN_HEADERS.contains(&name.as_str()) || name.starts_with("grpc-") {
                let why = format!("{name:?} is set by goprof: see tenant and token_file");
                return Err((key, why));
            }
            let is_secret = SECRET.iter().any(|word| name.contains(word));
            if key == "headers" && is_secret {
                let why = format!("{name:?} looks secret: name a file in header_files");
                return Err((key, why));
            }
        }
        Ok(())
    }

    fn check_labels(&self) -> Checked {
        if self.labels.len() > MAX_STATIC_LABELS {
            return Err(("labels", format!("may be {MAX_STATIC_LABELS} at most")));
        }
        for (name, value) in &self.labels {
            if !may_be_added(name) {
                let why = format!(
                    "{name:?} must be letters, digits and underscores, and no label \
                     that says whose a profile is"
                );
                return Err(("labels", why));
            }
            if value.is_empty() || clean(value) != *value {
                let why = format!("{name:?} must be text of a line, up to 1024 bytes");
                return Err(("labels", why));
            }
        }
        Ok(())
    }

    /// Whether the token would cross the network for everyone to read.
    pub fn shows_secrets(&self) -> bool {
        let has_secret = self.token_file.is_some() || !self.header_files.is_empty();
        let is_near = |url: &Url| {
            let host = url.host_str().unwrap_or_default();
            let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            host == "localhost" || address.is_ok_and(|address| address.is_loopback())
        };
        let url = Url::parse(&self.url);
        has_secret && url.is_ok_and(|url| url.scheme() == "http" && !is_near(&url))
    }

    /// Where its profiles wait, below the spool's folder.
    pub fn folder(&self, spool: &Path) -> PathBuf {
        spool.join("push").join(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::config::Config;

    const PYROSCOPE: &str = "[[push]]\nkind = \"pyroscope\"\nurl = \"http://p:4040\"\n";

    #[track_caller]
    fn refused(text: &str, begins: &str) {
        let error = Config::parse(text).unwrap_err();
        assert!(error.starts_with(begins), "{error:?} for {text:?}");
        assert_eq!(error.lines().count(), 1, "{error:?}");
    }

    #[test]
    fn several_read_as_they_are_written() {
        let text = format!(
            "{PYROSCOPE}tenant = \"a\"\ntoken_file = \"/t\"\nuser = \"u\"\n\
             labels = {{ team = \"x\" }}\nheaders = {{ X-Zone = \"b\" }}\n\
             header_files = {{ X-Api-Key = \"/k\" }}\n\
             [[push]]\nkind = \"parca\"\nurl = \"https://q\"\nca_file = \"/c\"\n\
             cert_file = \"/d\"\nkey_file = \"/e\"\nlimit = \"1GiB\"\n\
             [[push]]\nkind = \"otlp\"\nexperimental = true\nurl = \"http://o:4317\"\n\
             [[push]]\nkind = \"pyroscope\"\nname = \"second\"\nurl = \"http://s/base\"\n"
        );
        let config = Config::parse(&text).unwrap();
        let names: Vec<_> = config.push.receivers().iter().map(Receiver::name).collect();
        assert_eq!(names, ["pyroscope", "parca", "otlp", "second"]);
        let written = config.to_toml().unwrap();
        assert_eq!(Config::parse(&written), Ok(config), "{written}");
        assert!(!Config::default().to_toml().unwrap().contains("push"));
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line() {
        refused(
            &format!("{PYROSCOPE}tenannt = \"a\"\n"),
            "line 4: push[0].tenannt: unknown field",
        );
        refused(
            "[[push]]\nurl = \"http://p\"\n",
            "line 1: push[0]: missing field `kind`",
        );
        refused(
            "[[push]]\nkind = \"jaeger\"\n",
            "line 2: push[0].kind: unknown variant `jaeger`",
        );
        let second = |more: &str| format!("{PYROSCOPE}[[push]]\nkind = \"parca\"\n{more}");
        refused(&second("url = \"here\"\n"), "line 6: push[1].url: ");
        refused(&second("url = \"http://p/a\"\n"), "line 6: push[1].url: ");
        let more = "name = \"pyroscope\"\nurl = \"http://p\"\n";
        refused(&second(more), "line 6: push[1].name: two are called");
    }

    #[test]
    fn otlp_wants_to_be_asked_for() {
        refused(
            "\n[[push]]\nkind = \"otlp\"\nurl = \"http://o:4317\"\n",
            "line 2: push[0].experimental: must be true for otlp",
        );
        let mut config = Config::default();
        config.push.set_url(Protocol::Otlp, "http://o:4317");
        assert!(config.validate().is_ok());
    }

    #[test]
    fn secrets_are_in_files() {
        let with = |more: &str| format!("{PYROSCOPE}{more}\n");
        for (more, key) in [
            (
                "headers = { X-Api-Key = \"k\" }",
                "headers: \"x-api-key\" looks secret",
            ),
            (
                "headers = { Authorization = \"k\" }",
                "headers: \"authorization\" is set",
            ),
            ("user = \"bob\"", "user: needs token_file"),
            ("token_file = \"t\"", "token_file: must begin with /"),
            ("cert_file = \"/t\"", "url: "),
            ("labels = { pod = \"x\" }", "labels: \"pod\" must be"),
            ("labels = { a-b = \"x\" }", "labels: \"a-b\" must be"),
            ("limit = \"1MiB\"", "limit: must be at least"),
            ("tenant = \"a\\nb\"", "tenant: must be plain text"),
            ("headers = { X-Zone = \"a\\nb\" }", "headers: a header"),
        ] {
            let line = if key == "url: " { 3 } else { 4 };
            refused(&with(more), &format!("line {line}: push[0].{key}"));
        }
        let url = PYROSCOPE.replace("//p", "//bob:hunter2@p");
        let error = Config::parse(&url).unwrap_err();
        assert!(
            error.starts_with("line 3: push[0].url: has a user"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_window_is_short_enough_for_pyroscope() {
        refused(&format!("flush = \"45m\"\n{PYROSCOPE}"), "line 1: flush: ");
        let parca = PYROSCOPE.replace("pyroscope", "parca");
        assert!(Config::parse(&format!("flush = \"45m\"\n{parca}")).is_ok());
    }

    #[test]
    fn a_flag_changes_the_url_of_the_one_with_the_kinds_name() {
        let mut push = Config::parse(PYROSCOPE).unwrap().push;
        push.set_url(Protocol::Pyroscope, "http://other:4040");
        push.set_url(Protocol::Parca, "http://q:7070");
        let urls: Vec<_> = push.receivers().iter().map(|r| r.url.as_str()).collect();
        assert_eq!(urls, ["http://other:4040", "http://q:7070"]);
    }

    #[test]
    fn tokens_in_the_clear_are_told() {
        for (url, shows) in [
            ("http://p:4040", true),
            ("https://p", false),
            ("http://127.0.0.1:4040", false),
            ("http://[::1]:4040", false),
        ] {
            let mut receiver = Receiver::new(Protocol::Pyroscope, url);
            assert!(!receiver.shows_secrets());
            receiver.token_file = Some("/t".into());
            assert_eq!(receiver.shows_secrets(), shows, "{url}");
        }
    }
}
