//! What the agent is to do: one validated [`Config`] out of defaults, a file, the
//! environment and flags. Starts nothing.

mod place;
mod push;
mod rules;
mod values;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use push::{Push, Receiver};
pub use rules::{Event, Rule, Rules, Selector, Subject};
pub use values::{Bytes, Pattern, Period, ProbeBudget, Rate};

/// How often to sample where nobody says. Prime, so as not to run in step with
/// what happens at round intervals.
const DEFAULT_RATE: Rate = Rate(19);
/// The least memory that the agent can do with.
const MIN_MEMORY: Bytes = Bytes(32 << 20);

/// What the agent is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The cluster's name, for the keys of objects.
    pub cluster: String,
    /// This machine's name; where empty, `NODE_NAME` or the host's.
    pub node: String,
    /// How often rules sample that do not say it themselves.
    pub rate_hz: Rate,
    /// How long a window is, and so how often it is written.
    pub flush: Period,
    /// Most memory to hold before things that can be had again are let go.
    pub memory_limit: Bytes,
    /// Whether kernel frames are taken.
    pub kernel: bool,
    /// Whether pprof labels tell samples apart.
    pub labels: bool,
    /// Whether goroutines tell samples apart.
    pub goroutines: bool,
    /// Whether threads tell samples apart.
    pub threads: bool,
    /// The HTTP server.
    pub http: Http,
    /// Where finished windows go.
    pub store: Store,
    /// Where they wait for the store.
    pub spool: Spool,
    /// The metrics.
    pub metrics: Metrics,
    /// Who gets profiles besides the store.
    #[serde(skip_serializing_if = "Push::is_empty")]
    pub push: Push,
    /// Which processes are profiled.
    #[serde(skip_serializing_if = "Rules::is_empty")]
    pub rules: Rules,
}

/// The HTTP server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// The address it listens on.
    pub listen: SocketAddr,
    /// Whether anybody who reaches it gets everything, from other machines too.
    pub insecure: bool,
    /// The token that clients must show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// TLS; without it what is said can be read on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// What TLS takes: files of PEM, read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The server's certificate, and those between it and its authority's.
    pub cert_file: PathBuf,
    /// The certificate's key.
    pub key_file: PathBuf,
    /// The authority whose certificates clients must show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
}

/// The store of finished windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// A folder, or the URL of a bucket.
    pub url: String,
}

/// The queue on disk before the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    /// The folder.
    pub path: PathBuf,
    /// Most bytes in it.
    pub limit: Bytes,
}

/// The metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Most services, each in a pod and container, with metrics of their own.
    pub max_targets: usize,
    /// Whether the memory of targets is read for what their runtimes count.
    pub runtimes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster: "default".into(),
            node: String::new(),
            rate_hz: DEFAULT_RATE,
            flush: Period(Duration::from_secs(60)),
            memory_limit: Bytes(128 << 20),
            kernel: true,
            labels: true,
            goroutines: false,
            threads: false,
            http: Http::default(),
            store: Store::default(),
            spool: Spool::default(),
            metrics: Metrics::default(),
            push: Push::default(),
            rules: Rules::default(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7071)),
            insecure: false,
            token_file: None,
            tls: None,
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: "/var/lib/goprof/store".into(),
        }
    }
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            path: "/var/lib/goprof/spool".into(),
            limit: Bytes(256 << 20),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            max_targets: 100,
            runtimes: true,
        }
    }
}

impl Config {
    /// Reads the text of a file. What it does not say is as by default.
    ///
    /// # Errors
    /// What is wrong, on one line, with the file's line and the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| place::describe(text, &error))?;
        let checked = config.check();
        checked.map_err(|(key, why)| place::describe_key(text, key, &why))?;
        let checked = config.push.check(config.flush).and(config.rules.check());
        checked.map_err(|(key, why)| place::describe_key(text, &key, &why))?;
        Ok(config)
    }

    /// Checks what single values cannot tell, and fills in the machine's name and what
    /// probes may take.
    ///
    /// # Errors
    /// What is wrong, on one line, with the key.
    pub fn validate(mut self) -> Result<Self, String> {
        if self.node.is_empty() {
            self.node = node_name();
        }
        let checked = self.check();
        checked.map_err(|(key, why)| format!("{key}: {why}"))?;
        let checked = self.push.check(self.flush).and(self.rules.check());
        checked.map_err(|(key, why)| format!("{key}: {why}"))?;
        self.rules.fill_in();
        Ok(self)
    }

    /// The key of a value that will not do, and why.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = |name: &str| name.len() <= 253 && name.chars().all(is_plain);
        // Without a name the node is called what the host is.
        if self.cluster.is_empty() || !is_name(&self.cluster) {
            return Err(("cluster", not_a_name(&self.cluster)));
        }
        if !is_name(&self.node) {
            return Err(("node", not_a_name(&self.node)));
        }
        if self.memory_limit < MIN_MEMORY {
            return Err(("memory_limit", format!("must be at least {MIN_MEMORY}")));
        }
        if self.store.url.is_empty() {
            return Err(("store.url", "must name a folder or a bucket".into()));
        }
        if !self.spool.path.is_absolute() {
            return Err(("spool.path", "must begin with /".into()));
        }
        Ok(())
    }

    /// It as the text of a file that reads as it.
    ///
    /// # Errors
    /// It cannot be written as TOML.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// The rates at which processes may be sampled, each once.
    pub fn rates(&self) -> Vec<Rate> {
        self.rules.rates(Event::Cpu, self.rate_hz)
    }

    /// Whether `event`, which has no rate, is taken of a process.
    pub fn takes(&self, event: Event, subject: &Subject<'_>) -> bool {
        let decided = self.rules.decide(event, subject, self.rate_hz);
        self.rules.ask_for(event) && decided.is_some()
    }

    /// At which rate a process is sampled, if at all.
    pub fn rate_of(&self, subject: &Subject<'_>) -> Option<Rate> {
        self.rules.decide(Event::Cpu, subject, self.rate_hz)
    }
}

fn not_a_name(name: &str) -> String {
    format!("{name:?} must be letters, digits, dots, dashes and underscores")
}

/// As a pod of a DaemonSet is told it, else as the host is called.
fn node_name() -> String {
    let told = std::env::var("NODE_NAME").ok();
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = told.filter(|name| !name.is_empty()).unwrap_or_else(host);
    let plain = |c: char| match c {
        c if c.is_ascii_alphanumeric() || "-_.".contains(c) => c,
        _ => '-',
    };
    match name.trim() {
        "" => "unknown".into(),
        name => name.chars().map(plain).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
        assert_eq!(Config::default().rates(), [Rate(19)]);
    }

    #[test]
    fn what_is_written_reads_as_the_same() {
        let text = "flush = \"2m\"\nrate_hz = 29\nmemory_limit = 268435456\n\
                    [http]\ntoken_file = \"/t\"\n[http.tls]\ncert_file = \"/c\"\n\
                    key_file = \"/k\"\n[store]\nurl = \"s3://bucket/a\"\n\
                    [[rules]]\nrate_hz = 97\ninclude = [{ name = \"etcd\" }]\n\
                    [[rules]]\nexclude = [{ namespace = \"kube-.*\", labels = { unit = \"a\" } }]\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.flush.0, Duration::from_secs(120));
        assert_eq!(config.memory_limit, Bytes(256 << 20));
        let written = config.to_toml().unwrap();
        assert_eq!(Config::parse(&written), Ok(config), "{written}");
        let default = Config::default().to_toml().unwrap();
        assert_eq!(Config::parse(&default), Ok(Config::default()), "{default}");
    }

    #[test]
    fn values_are_checked_against_each_other() {
        let refused = |text: &str| Config::parse(text).unwrap_err();
        assert!(refused("\nnode = \"a/b\"").starts_with("line 2: node: "));
        assert!(refused("cluster = \"\"").starts_with("line 1: cluster: "));
        assert!(refused("memory_limit = 1").starts_with("line 1: memory_limit: "));
        assert!(refused("\n[spool]\npath = \"x\"").starts_with("line 3: spool.path: "));
        let half = refused("[http]\ninsecure = false\n[http.tls]\ncert_file = \"/c\"");
        assert!(
            half.starts_with("line 3: http.tls: missing field `key_file`"),
            "{half}"
        );
        let config = Config {
            cluster: "a b".into(),
            ..Config::default()
        };
        assert!(config.validate().unwrap_err().starts_with("cluster: "));
        assert!(!Config::default().validate().unwrap().node.is_empty());
    }
}
