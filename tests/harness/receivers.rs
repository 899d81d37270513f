//! Receivers of profiles: the Go program of `tests/go_receivers`, which serves the
//! code generated from Pyroscope's, Parca's and OpenTelemetry's definitions and
//! writes down what comes.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::target::Target;
use crate::{command, go, quiet};

/// The receivers, in the order of [`Receivers::urls`].
pub const KINDS: [&str; 3] = ["pyroscope", "parca", "otlp"];

/// The program, which serves all three.
pub struct Receivers {
    target: Option<Target>,
    program: PathBuf,
    ports: [u16; 3],
    out: PathBuf,
}

/// A profile that came, or an answer other than success.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Received {
    /// Which of [`KINDS`].
    pub receiver: String,
    /// What `X-Scope-OrgID` said.
    pub tenant: String,
    /// What `Authorization` said.
    pub authorization: String,
    /// The status it was answered with, 0 for success.
    pub refused: u16,
    /// Why its decoder would not have it; empty where it does.
    pub invalid: String,
    /// The profile's own id.
    pub id: String,
    /// The series' labels, or the resource's attributes.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Types of values as `type/unit`.
    #[serde(default, deserialize_with = "or_default")]
    pub types: Vec<String>,
    /// The period's type.
    pub period: String,
    /// When it began, since 1970.
    pub time_ns: i64,
    /// How long it is.
    pub duration_ns: i64,
    /// How many distinct samples it has.
    pub samples: u64,
    /// The sum of each type's values.
    #[serde(default, deserialize_with = "or_default")]
    pub totals: Vec<i64>,
    /// Values of the last type by function, with all that it calls.
    #[serde(default, deserialize_with = "or_default")]
    pub cumulative: BTreeMap<String, i64>,
    /// The same by text label of samples, as `key=value`.
    #[serde(default, deserialize_with = "or_default")]
    pub sample_labels: BTreeMap<String, i64>,
}

/// Go writes null for what it never made.
fn or_default<'de, D: serde::Deserializer<'de>, T>(from: D) -> Result<T, D::Error>
where
    T: Default + serde::Deserialize<'de>,
{
    let value: Option<T> = serde::Deserialize::deserialize(from)?;
    Ok(value.unwrap_or_default())
}

impl Received {
    /// A label; empty where it has none such.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// Whose it is.
    pub fn service(&self) -> &str {
        match self.receiver.as_str() {
            "otlp" => self.label("service.name"),
            _ => self.label("service_name"),
        }
    }
}

/// A function's share of the last type's values, over some profiles.
pub fn share(profiles: &[&Received], function: &str) -> f64 {
    let values = profiles.iter().filter_map(|p| p.cumulative.get(function));
    let totals = profiles.iter().filter_map(|p| p.totals.last());
    values.sum::<i64>() as f64 / totals.sum::<i64>().max(1) as f64
}

impl Receivers {
    /// Starts all three; what comes is written down in `dir`.
    #[track_caller]
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        let mut receivers = Receivers {
            target: None,
            program: build(),
            ports: free_ports(),
            out: dir.join("received"),
        };
        receivers.again(args);
        receivers
    }

    /// Kills them, and starts them anew at the same addresses.
    #[track_caller]
    pub fn again(&mut self, args: &[&str]) {
        self.kill();
        let mut command = Command::new(&self.program);
        for (kind, port) in KINDS.iter().zip(self.ports) {
            command.arg(format!("-{kind}=127.0.0.1:{port}"));
        }
        command.arg("-out").arg(&self.out).args(args);
        self.target = Some(Target::start_command(&mut command));
    }

    /// Kills them.
    pub fn kill(&mut self) {
        self.target = None;
    }

    /// Where each listens.
    pub fn urls(&self, scheme: &str) -> [String; 3] {
        self.ports
            .map(|port| format!("{scheme}://127.0.0.1:{port}"))
    }

    /// Everything so far.
    #[track_caller]
    pub fn received(&self) -> Vec<Received> {
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        // The last line may be half written.
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// Waits until what came is enough.
    #[track_caller]
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        enough: impl Fn(&[Received]) -> bool,
    ) -> Vec<Received> {
        let deadline = Instant::now() + limit;
        loop {
            let received = self.received();
            if enough(&received) {
                return received;
            }
            assert!(Instant::now() < deadline, "never {what}: {received:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Ports that nobody listens on now, each another.
fn free_ports() -> [u16; 3] {
    let listen = |_| TcpListener::bind("127.0.0.1:0").expect("find a free port");
    let listeners = KINDS.map(listen);
    listeners.map(|listener| listener.local_addr().expect("its address").port())
}

/// Builds the program; Go itself keeps what it built before.
#[track_caller]
fn build() -> PathBuf {
    let _turn = quiet::building();
    let program = crate::cache_dir().join("receivers");
    let mut go = go::go(go::NEWEST);
    go.args(["build", "-o"]).arg(&program).arg(".");
    go.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("go_receivers"));
    go.env("CGO_ENABLED", "0");
    let remedy = "it takes Go and modules from the module proxy (GOPROXY)";
    command::run(&mut go, Duration::from_secs(540), remedy).succeeded();
    program
}

/// Makes a certificate for 127.0.0.1 that signs itself, and its key.
#[track_caller]
pub fn certificate(dir: &Path) -> (PathBuf, PathBuf) {
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
    ]);
    openssl.args(["-subj", "/CN=goprof-test"]);
    openssl.args(["-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    let limit = Duration::from_secs(60);
    command::run(&mut openssl, limit, "install openssl").succeeded();
    (certificate, key)
}
