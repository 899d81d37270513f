//! What a kubelet does to run a pod, by its calls to the container runtime and
//! with the labels that it sets. The messages: `cri-api/pkg/apis/runtime/v1`.

use std::collections::BTreeMap;
use std::path::Path;

use goprof::identity::grpc::call;
use goprof_tests::containerd::image;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

/// The pods' uid.
pub const UID: &str = "7f2c9a44-0d1e-4b6a-9a57-2b1f0c8e6d31";
const MAX_BYTES: usize = 1 << 20;
/// `NamespaceMode` of the CRI.
const OWN: i32 = 1;
const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
    #[prost(int32, tag = "3")]
    ipc: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Security {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandbox {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<Security>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<SandboxMetadata>,
    #[prost(btree_map = "string, string", tag = "6")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "7")]
    annotations: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

/// The first field of requests and answers that is an id.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

/// The first field of a message that is a name.
#[derive(Clone, PartialEq, Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    image: Option<Name>,
    #[prost(btree_map = "string, string", tag = "9")]
    labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

/// A kubelet's connection to its runtime.
pub struct Kubelet {
    runtime: Runtime,
    channel: Channel,
    cgroup: String,
    program: &'static str,
}

impl Kubelet {
    /// Connects; pods will be in this cgroup, and run the image of a program.
    #[track_caller]
    pub fn connect(socket: &Path, cgroup: &str, program: &'static str) -> Self {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Self {
            runtime,
            channel,
            cgroup: cgroup.to_owned(),
            program,
        }
    }

    /// Runs a pod with one container, and says that one's id.
    #[track_caller]
    pub fn run_pod(&self, [namespace, pod, container]: [&str; 3], annotation: &str) -> String {
        let labels = BTreeMap::from(
            [
                ("app", "shop"),
                ("io.kubernetes.pod.name", pod),
                ("io.kubernetes.pod.namespace", namespace),
                ("io.kubernetes.pod.uid", UID),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        let mut annotations = BTreeMap::new();
        annotations.insert("kubernetes.io/config.source".to_owned(), "api".to_owned());
        if !annotation.is_empty() {
            annotations.insert(
                "pyroscope.io/service_name".to_owned(),
                annotation.to_owned(),
            );
        }
        let namespaces = Namespaces {
            // No network plugin is here.
            network: NODE,
            pid: OWN,
            ipc: NODE,
        };
        let sandbox_config = SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: pod.to_owned(),
                uid: UID.to_owned(),
                namespace: namespace.to_owned(),
            }),
            labels: labels.clone(),
            annotations,
            linux: Some(LinuxSandbox {
                cgroup_parent: self.cgroup.clone(),
                security: Some(Security {
                    namespaces: Some(namespaces.clone()),
                }),
            }),
        };
        let config = Some(sandbox_config.clone());
        let sandbox: Id = self.call("RunPodSandbox", RunSandbox { config });
        let mut labels = labels;
        labels.remove("app");
        labels.insert(
            "io.kubernetes.container.name".to_owned(),
            container.to_owned(),
        );
        let name = |name: &str| {
            Some(Name {
                name: name.to_owned(),
            })
        };
        let created: Id = self.call(
            "CreateContainer",
            CreateContainer {
                sandbox: sandbox.id,
                config: Some(ContainerConfig {
                    metadata: name(container),
                    image: name(&image(self.program)),
                    labels,
                    linux: Some(LinuxContainer {
                        security: Some(ContainerSecurity {
                            namespaces: Some(namespaces),
                        }),
                    }),
                }),
                sandbox_config: Some(sandbox_config),
            },
        );
        let _: Id = self.call("StartContainer", created.clone());
        created.id
    }

    #[track_caller]
    fn call<Q: Message + 'static, A: Message + Default + 'static>(
        &self,
        method: &'static str,
        question: Q,
    ) -> A {
        let path = match method {
            "RunPodSandbox" => "/runtime.v1.RuntimeService/RunPodSandbox",
            "CreateContainer" => "/runtime.v1.RuntimeService/CreateContainer",
            _ => "/runtime.v1.RuntimeService/StartContainer",
        };
        let answer = call(&self.channel, path, question, MAX_BYTES);
        self.runtime
            .block_on(answer)
            .unwrap_or_else(|status| panic!("{method}: {status}"))
    }
}
