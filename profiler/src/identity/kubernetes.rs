//! The pods of this node, from a watch on the Kubernetes API. Keeps of each pod
//! what labels need and nothing else; an API server that is away, for however
//! long, takes nothing away that it told before.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use serde::Deserialize;

use super::{
    containers::{self, Known},
    source::Source,
};

/// After this long without a word a connection is given up. The server ends a
/// watch itself after 290 s (kube's default), so no live one is that silent.
const READ_TIMEOUT: Duration = Duration::from_secs(330);
/// After failing for this long everything is begun anew, from the credentials
/// on.
const START_ANEW: Duration = Duration::from_secs(300);
/// Between attempts to find the credentials.
const RETRY: Duration = Duration::from_secs(5);

/// Which API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cluster {
    /// That of the cluster this process runs in as a pod.
    Own,
    /// The current context of a kubeconfig file.
    Kubeconfig(PathBuf),
}

impl Cluster {
    async fn client(&self) -> Result<Client> {
        let mut config = match self {
            Self::Own => Config::incluster().context("find the cluster this runs in")?,
            Self::Kubeconfig(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("read {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .with_context(|| format!("use {}", path.display()))?
            }
        };
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        Client::try_from(config).context("make a client of the Kubernetes API")
    }
}

/// Keeps `source` as the API has the pods of `node`, for good.
pub(super) async fn watch(cluster: Cluster, node: String, source: Arc<Source>) {
    loop {
        match cluster.client().await {
            Ok(client) => follow(client, &node, &source).await,
            Err(error) => source.fail(&error),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Follows the watch until it has failed for [`START_ANEW`].
async fn follow(client: Client, node: &str, source: &Source) {
    let mut config = watcher::Config::default()
        .fields(&format!("spec.nodeName={node}"))
        .any_semantic();
    // In one answer from the server's cache, which knows pods by node: hundreds
    // of agents ask at once. Pages come from etcd, where it reads every pod of
    // the cluster for them.
    config.page_size = None;
    let events = watcher(Api::<Pod>::all(client), config).default_backoff();
    let mut events = pin!(events);
    let mut listed = HashSet::new();
    let mut failing_since = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // A list is begun before the server has said anything.
                if !matches!(event, watcher::Event::Init) {
                    failing_since = None;
                }
                note(event, &mut listed, source);
            }
            Err(error) => {
                let is_gone = is_gone(&error);
                source.fail(&anyhow::Error::new(error).context("watch pods"));
                let since = *failing_since.get_or_insert_with(Instant::now);
                if is_gone || since.elapsed() > START_ANEW {
                    return;
                }
            }
        }
    }
}

/// Whether a watch was refused because its version is forgotten. As an event in
/// the stream the watcher sees to it; as the status of the answer it would ask
/// for the same version again (kube-runtime 5.0).
fn is_gone(error: &watcher::Error) -> bool {
    const GONE: u16 = 410;
    matches!(
        error,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == GONE
    )
}

/// Notes an event. Pods that a list no longer has are gone only once the list
/// is whole: until then what was known stands.
fn note(event: watcher::Event<Pod>, listed: &mut HashSet<String>, source: &Source) {
    match event {
        watcher::Event::Init => listed.clear(),
        watcher::Event::InitApply(pod) => {
            let group = pod.key();
            let containers = pod.containers();
            listed.insert(group.clone());
            source.tell(|known, now| known.put(&group, containers, now));
        }
        watcher::Event::InitDone => {
            let listed = std::mem::take(listed);
            source.tell(|known, now| known.keep_only(&listed, now));
        }
        watcher::Event::Apply(pod) => {
            let (group, containers) = (pod.key(), pod.containers());
            source.tell(|known, now| known.put(&group, containers, now));
        }
        watcher::Event::Delete(pod) => {
            let group = pod.key();
            source.tell(|known, now| known.put(&group, Vec::new(), now));
        }
    }
}

/// What is read of a pod (core/v1): the rest of the answer is passed over.
#[derive(Debug, Clone, Deserialize)]
struct Pod {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    container_statuses: Option<Vec<ContainerStatus>>,
    #[serde(default)]
    init_container_statuses: Option<Vec<ContainerStatus>>,
    #[serde(default)]
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    /// `RUNTIME://ID`; missing until the container was created.
    #[serde(rename = "containerID", default)]
    container_id: Option<String>,
    /// The one before, of a container that was started again.
    #[serde(default)]
    last_state: Option<State>,
}

#[derive(Debug, Clone, Deserialize)]
struct State {
    #[serde(default)]
    terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Deserialize)]
struct Terminated {
    #[serde(rename = "containerID", default)]
    container_id: Option<String>,
}

impl Resource for Pod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        "".into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Pod {
    /// What its containers come and go with: a name is used again, a uid never.
    fn key(&self) -> String {
        self.metadata.uid.clone().unwrap_or_default()
    }

    /// Its containers by id, those that were started again twice.
    fn containers(self) -> Vec<(String, Known)> {
        let ObjectMeta {
            namespace,
            name,
            uid,
            labels,
            annotations,
            ..
        } = self.metadata;
        let names = [namespace, name, uid].map(Option::unwrap_or_default);
        let mut annotations: BTreeMap<String, String> = annotations.unwrap_or_default();
        let pod = Arc::new(containers::Pod::new(
            names.each_ref().map(String::as_str),
            labels.unwrap_or_default(),
            |key| annotations.remove(key),
        ));
        let status = self.status.unwrap_or_default();
        let statuses = [
            status.init_container_statuses,
            status.container_statuses,
            status.ephemeral_container_statuses,
        ];
        let mut containers = Vec::new();
        for status in statuses.into_iter().flatten().flatten() {
            let known = Known {
                name: super::text::clean(&status.name),
                pod: Some(Arc::clone(&pod)),
            };
            let terminated = status.last_state.and_then(|state| state.terminated);
            let ids = [
                status.container_id,
                terminated.and_then(|terminated| terminated.container_id),
            ];
            containers.extend(ids.into_iter().flatten().filter_map(|id| {
                let (_, id) = id.split_once("://")?;
                (!id.is_empty()).then(|| (id.to_owned(), known.clone()))
            }));
        }
        containers
    }
}
