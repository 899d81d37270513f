//! Identity: who a process is for those who look at profiles, in labels. Reads
//! `/proc`, cgroups and what a container runtime or Kubernetes says; knows
//! nothing of samples.

pub mod cgroup;
mod containers;
mod cri;
mod engine;
pub mod grpc;
mod hierarchy;
mod identifier;
mod kubernetes;
mod process;
mod source;
pub mod text;

use std::collections::BTreeMap;

pub use containers::Pod;
pub use engine::Engines;
pub use identifier::{Cri, Identifier, Options};
pub use kubernetes::Cluster;
pub use process::{Program, service_name, start_ticks};
pub use source::SourceStatus;

/// The names that labels have in the store, in metrics and when pushed.
pub mod label {
    /// What the service calls itself. Never missing.
    pub const SERVICE_NAME: &str = "service_name";
    /// Kubernetes namespace.
    pub const NAMESPACE: &str = "namespace";
    /// Kubernetes pod.
    pub const POD: &str = "pod";
    /// Container name.
    pub const CONTAINER: &str = "container";
    /// Container id, as its runtime has it.
    pub const CONTAINER_ID: &str = "container_id";
    /// Node.
    pub const NODE: &str = "node";
    /// systemd unit.
    pub const UNIT: &str = "unit";
    /// Path of the executable, as the process sees it.
    pub const EXE: &str = "exe";
    /// GNU build id, in lower-case hex.
    pub const BUILD_ID: &str = "build_id";
    /// Go version, as in `go1.26.8`.
    pub const GO_VERSION: &str = "go_version";
    /// Path of the main module.
    pub const MODULE: &str = "module";
    /// Version of the main module.
    pub const MODULE_VERSION: &str = "module_version";
}

/// A process, and who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Process id, in the pid namespace goprof runs in.
    pub pid: u32,
    /// Its labels, by name; those that are not known are missing.
    pub labels: BTreeMap<&'static str, String>,
    /// Whether more may be known later: something that knows did not answer.
    pub is_partial: bool,
}

impl Target {
    /// A label's value; empty where it is not known.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}
