//! A pod of the DaemonSet, run as a kubelet runs it: its manifest turned into calls
//! to a real container runtime. The messages: `cri-api/pkg/apis/runtime/v1`.

use std::collections::BTreeMap;
use std::path::Path;

use goprof::identity::grpc::call;
use prost::Message;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

const MAX_BYTES: usize = 1 << 20;
/// `NamespaceMode` of the CRI.
const OWN: i32 = 1;
const NODE: i32 = 2;
/// `SecurityProfile.ProfileType` of the CRI.
const RUNTIME_DEFAULT: i32 = 0;
const UNCONFINED: i32 = 1;
/// What a kubelet hides and protects unless told otherwise (`DefaultProcMount`).
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The file with what the container said.
pub const LOG: &str = "goprof.log";

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Dns {
    #[prost(string, repeated, tag = "1")]
    servers: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    searches: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    options: Vec<String>,
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
struct Profile {
    #[prost(int32, tag = "1")]
    kind: i32,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
    #[prost(message, optional, tag = "9")]
    seccomp: Option<Profile>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandbox {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct Sandbox {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "3")]
    logs: String,
    #[prost(message, optional, tag = "4")]
    dns: Option<Dns>,
    #[prost(btree_map = "string, string", tag = "6")]
    labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct Capabilities {
    #[prost(string, repeated, tag = "1")]
    add: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    drop: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(int64, tag = "1")]
    value: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Security {
    #[prost(message, optional, tag = "1")]
    capabilities: Option<Capabilities>,
    #[prost(bool, tag = "2")]
    privileged: bool,
    #[prost(message, optional, tag = "3")]
    namespaces: Option<Namespaces>,
    #[prost(message, optional, tag = "5")]
    user: Option<Number>,
    #[prost(bool, tag = "7")]
    read_only_root: bool,
    #[prost(bool, tag = "11")]
    no_new_privileges: bool,
    #[prost(message, optional, tag = "12")]
    group: Option<Number>,
    #[prost(string, repeated, tag = "13")]
    masked: Vec<String>,
    #[prost(string, repeated, tag = "14")]
    read_only: Vec<String>,
    #[prost(message, optional, tag = "15")]
    seccomp: Option<Profile>,
    #[prost(message, optional, tag = "16")]
    apparmor: Option<Profile>,
}

#[derive(Clone, PartialEq, Message)]
struct Resources {
    #[prost(int64, tag = "4")]
    memory_bytes: i64,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "1")]
    resources: Option<Resources>,
    #[prost(message, optional, tag = "2")]
    security: Option<Security>,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Mount {
    #[prost(string, tag = "1")]
    inside: String,
    #[prost(string, tag = "2")]
    outside: String,
    #[prost(bool, tag = "3")]
    read_only: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    image: Option<Name>,
    #[prost(string, repeated, tag = "4")]
    args: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    environment: Vec<Pair>,
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<Mount>,
    #[prost(btree_map = "string, string", tag = "9")]
    labels: BTreeMap<String, String>,
    #[prost(string, tag = "11")]
    log: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<Sandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<Container>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<Sandbox>,
}

/// What a pod has besides its manifest: where its volumes are on the node, and its
/// environment once Secrets and fields are looked up.
pub struct Node<'a> {
    /// By volume.
    pub volumes: Vec<(&'a str, &'a Path)>,
    /// By name.
    pub environment: Vec<(String, String)>,
    /// The server that knows names.
    pub dns: &'a str,
    /// Where pods' cgroups are.
    pub cgroup: String,
    /// The folder for what the container says, in [`LOG`].
    pub logs: &'a Path,
}

/// Runs the pod of a DaemonSet, and says its container's id.
#[track_caller]
pub fn run(socket: &Path, daemonset: &Value, node: &Node) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().expect("start a runtime");
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a socket");
    let channel = runtime.block_on(endpoint.connect()).expect("connect");
    let pod = &daemonset["spec"]["template"]["spec"];
    let sandbox_config = sandbox(pod, node);
    runtime.block_on(async {
        let config = Some(sandbox_config.clone());
        let path = "/runtime.v1.RuntimeService/RunPodSandbox";
        let sandbox: Name = ask(&channel, path, RunSandbox { config }).await;
        let create = CreateContainer {
            sandbox: sandbox.name,
            config: Some(container(pod, node)),
            sandbox_config: Some(sandbox_config),
        };
        let path = "/runtime.v1.RuntimeService/CreateContainer";
        let created: Name = ask(&channel, path, create).await;
        let path = "/runtime.v1.RuntimeService/StartContainer";
        let _: Name = ask(&channel, path, created.clone()).await;
        created.name
    })
}

async fn ask<Q: Message + 'static, A: Message + Default + 'static>(
    channel: &Channel,
    path: &'static str,
    question: Q,
) -> A {
    let answer = call(channel, path, question, MAX_BYTES).await;
    answer.unwrap_or_else(|status| panic!("{path}: {status}"))
}

fn namespaces(pod: &Value) -> Namespaces {
    Namespaces {
        // No network plugin is here.
        network: NODE,
        pid: if pod["hostPID"] == true { NODE } else { OWN },
        ipc: OWN,
    }
}

fn labels() -> BTreeMap<String, String> {
    let labels = [
        ("io.kubernetes.pod.name", "goprof-abcde"),
        ("io.kubernetes.pod.namespace", "goprof"),
        ("io.kubernetes.pod.uid", "goprof-abcde-uid"),
        ("io.kubernetes.container.name", "goprof"),
    ];
    labels
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn sandbox(pod: &Value, node: &Node) -> Sandbox {
    Sandbox {
        metadata: Some(Metadata {
            name: "goprof-abcde".to_owned(),
            uid: "goprof-abcde-uid".to_owned(),
            namespace: "goprof".to_owned(),
        }),
        logs: node.logs.display().to_string(),
        // As a kubelet has it for dnsPolicy ClusterFirst.
        dns: Some(Dns {
            servers: vec![node.dns.to_owned()],
            searches: vec!["goprof.svc.cluster.local".to_owned()],
            options: vec!["ndots:5".to_owned()],
        }),
        labels: labels(),
        linux: Some(LinuxSandbox {
            cgroup_parent: node.cgroup.clone(),
            security: Some(SandboxSecurity {
                namespaces: Some(namespaces(pod)),
                seccomp: Some(Profile {
                    kind: RUNTIME_DEFAULT,
                }),
            }),
        }),
    }
}

fn container(pod: &Value, node: &Node) -> Container {
    let container = &pod["containers"][0];
    let strings = |value: &Value| -> Vec<String> {
        serde_json::from_value(value.clone()).expect("a list of strings")
    };
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    let mount = |mount: &Value| {
        let outside = node.volumes.iter().find(|(name, _)| mount["name"] == *name);
        let (_, outside) = outside.unwrap_or_else(|| panic!("no volume for {mount}"));
        Mount {
            inside: mount["mountPath"].as_str().expect("a path").to_owned(),
            outside: outside.to_str().expect("a UTF-8 path").to_owned(),
            read_only: mount["readOnly"] == true,
        }
    };
    let pair = |(key, value): &(String, String)| Pair {
        key: key.clone(),
        value: value.clone(),
    };
    let image = container["image"].as_str().expect("an image").to_owned();
    Container {
        metadata: Some(Name {
            name: "goprof".to_owned(),
        }),
        image: Some(Name { name: image }),
        args: strings(&container["args"]),
        environment: node.environment.iter().map(pair).collect(),
        mounts: mounts.iter().map(mount).collect(),
        labels: labels(),
        log: LOG.to_owned(),
        linux: Some(LinuxContainer {
            resources: Some(Resources {
                memory_bytes: memory(&container["resources"]["limits"]["memory"]),
            }),
            security: Some(security(pod, container)),
        }),
    }
}

fn memory(limit: &Value) -> i64 {
    let mebibytes = limit.as_str().and_then(|limit| limit.strip_suffix("Mi"));
    let mebibytes: i64 = mebibytes.expect("a limit").parse().expect("a number");
    mebibytes << 20
}

fn security(pod: &Value, container: &Value) -> Security {
    let context = &container["securityContext"];
    let strings = |value: &Value| -> Vec<String> {
        serde_json::from_value(value.clone()).expect("a list of strings")
    };
    let number = |value: &Value| value.as_i64().map(|value| Number { value });
    let profile = |key: &str| {
        let kind = match pod["securityContext"][key]["type"].as_str() {
            Some("RuntimeDefault") => RUNTIME_DEFAULT,
            Some("Unconfined") => UNCONFINED,
            other => panic!("{key}: {other:?}"),
        };
        Some(Profile { kind })
    };
    let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    Security {
        capabilities: Some(Capabilities {
            add: strings(&context["capabilities"]["add"]),
            drop: strings(&context["capabilities"]["drop"]),
        }),
        privileged: context["privileged"] == true,
        namespaces: Some(namespaces(pod)),
        user: number(&context["runAsUser"]),
        read_only_root: context["readOnlyRootFilesystem"] == true,
        no_new_privileges: context["allowPrivilegeEscalation"] == false,
        group: number(&context["runAsGroup"]),
        masked: paths(&MASKED),
        read_only: paths(&READ_ONLY),
        seccomp: profile("seccompProfile"),
        apparmor: profile("appArmorProfile"),
    }
}
