//! Containers by their runtime's CRI socket: what is asked when the Kubernetes
//! API does not know a container, or there is none. Asks only when somebody
//! wants to know, and only reads.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use prost::Message;
use tokio::sync::Notify;
use tonic::transport::{Channel, Endpoint};

use super::{
    containers::{Known, Pod},
    grpc::call,
    source::Source,
    text::clean,
};

/// Where runtimes listen, in the order that they are tried.
const SOCKETS: [&str; 5] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/var/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
    "/run/k3s/containerd/containerd.sock",
];
/// The largest answer taken: what the kubelet takes (`maxMsgSize` in
/// Kubernetes' `cri-client/pkg/utils.go`).
const MAX_ANSWER_BYTES: usize = 16 << 20;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two questions; doubled while nobody answers, up to the other.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Keeps `source` as the runtime has its containers, whenever `wanted`. Asks at
/// `socket`, else wherever runtimes listen.
pub(super) async fn follow(socket: Option<PathBuf>, wanted: Arc<Notify>, source: Arc<Source>) {
    let mut pause = PAUSE;
    loop {
        wanted.notified().await;
        match ask(socket.as_deref()).await {
            Ok(None) => {}
            Ok(Some(groups)) => {
                let present: HashSet<String> = groups.keys().cloned().collect();
                source.tell(|known, now| {
                    for (group, containers) in groups {
                        known.put(&group, containers, now);
                    }
                    known.keep_only(&present, now);
                });
                pause = PAUSE;
            }
            Err(error) => {
                source.fail(&error);
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Containers by the id of their sandbox.
type Groups = HashMap<String, Vec<(String, Known)>>;

/// What the runtime at `socket` has, else the first that answers; `None` where
/// no runtime listens at all.
async fn ask(socket: Option<&Path>) -> Result<Option<Groups>> {
    if let Some(socket) = socket {
        return ask_one(socket).await.map(Some);
    }
    let mut answer = Ok(None);
    for socket in SOCKETS.iter().map(Path::new).filter(|path| path.exists()) {
        answer = ask_one(socket).await.map(Some);
        if answer.is_ok() {
            break;
        }
    }
    answer
}

async fn ask_one(socket: &Path) -> Result<Groups> {
    let about = || format!("ask the container runtime at {}", socket.display());
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .with_context(about)?
        .connect_timeout(TIMEOUT)
        .timeout(TIMEOUT);
    let channel = endpoint.connect().await.with_context(about)?;
    let sandboxes = list::<Sandboxes>(&channel, "/runtime.v1.RuntimeService/ListPodSandbox");
    let sandboxes = sandboxes.await.with_context(about)?.items;
    let containers = list::<Containers>(&channel, "/runtime.v1.RuntimeService/ListContainers");
    let containers = containers.await.with_context(about)?.containers;
    Ok(join(sandboxes, containers))
}

async fn list<A: Message + Default + 'static>(
    channel: &Channel,
    method: &'static str,
) -> Result<A, tonic::Status> {
    call(channel, method, Everything {}, MAX_ANSWER_BYTES).await
}

/// The containers of each sandbox. Those whose sandbox is not listed have the
/// names that the kubelet gave them as labels.
fn join(sandboxes: Vec<Sandbox>, containers: Vec<Container>) -> Groups {
    let pods: HashMap<String, Arc<Pod>> = sandboxes
        .into_iter()
        .map(|sandbox| (sandbox.id.clone(), Arc::new(sandbox.pod())))
        .collect();
    let mut groups = Groups::new();
    for container in containers {
        let pod = pods.get(&container.pod_sandbox_id).cloned();
        let label = |key: &str| container.labels.get(key).map_or("", String::as_str);
        let pod = pod.unwrap_or_else(|| {
            let names = [POD_NAMESPACE, POD_NAME, POD_UID].map(label);
            Arc::new(Pod::new(names, [], |_| None))
        });
        let name = match label(CONTAINER_NAME) {
            "" => container.metadata.unwrap_or_default().name,
            name => name.to_owned(),
        };
        let known = Known {
            name: clean(name),
            pod: Some(pod).filter(|pod| !pod.name.is_empty()),
        };
        let group = groups.entry(container.pod_sandbox_id).or_default();
        group.push((container.id, known));
    }
    groups
}

/// Labels that the kubelet sets (Kubernetes' `kubelet/pkg/types/labels.go`).
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// `ListPodSandboxRequest` or `ListContainersRequest` without a filter. This
/// and the rest: `cri-api/pkg/apis/runtime/v1/api.proto`, the fields needed.
#[derive(Clone, PartialEq, Message)]
struct Everything {}

#[derive(Clone, PartialEq, Message)]
struct Sandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Sandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct Sandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "6")]
    annotations: BTreeMap<String, String>,
}

/// `PodSandboxMetadata`.
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
struct Containers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<ContainerMetadata>,
    #[prost(btree_map = "string, string", tag = "8")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

impl Sandbox {
    fn pod(self) -> Pod {
        let Self {
            metadata,
            labels,
            mut annotations,
            ..
        } = self;
        let metadata = metadata.unwrap_or_default();
        let names = [&metadata.namespace, &metadata.name, &metadata.uid];
        // The kubelet adds its own, which the API does not have.
        let labels = labels
            .into_iter()
            .filter(|(key, _)| !key.starts_with("io.kubernetes.pod."));
        Pod::new(names.map(String::as_str), labels, |key| {
            annotations.remove(key)
        })
    }
}
