//! Puts together who a process is: what `/proc` says at first sight, and what
//! the sources know by now. Never waits for a source: they are asked on a
//! thread of their own.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read as _,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use super::{
    Target,
    cgroup::{Cgroup, Runtime},
    containers::{Known, Pod},
    cri,
    engine::{self, Engines},
    hierarchy::Hierarchy,
    kubernetes::{self, Cluster},
    label, process,
    process::Program,
    source::{Asked, Source, SourceStatus},
    text::{clean, clean_some},
};

/// Processes remembered; the agent forgets those that ended before that many.
const MAX_SEEN: usize = 4096;
/// Cgroups remembered by id.
const MAX_CGROUPS: usize = 4096;
/// How much of a `/proc/PID/cgroup` is read: with both versions of cgroups
/// there are 14 lines, each with a path of at most 4,096 bytes.
const MAX_CGROUP_BYTES: u64 = 1 << 16;
/// How many answers of the container runtime one process waits for.
const MAX_ASKS: u64 = 5;

/// Where to ask for containers besides Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cri {
    /// Wherever container runtimes listen.
    #[default]
    Find,
    /// At this socket.
    At(PathBuf),
    /// Nowhere.
    Off,
}

/// Who is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// This node's name in Kubernetes, and as a label; else the host's name.
    pub node: Option<String>,
    /// The Kubernetes API that knows this node's pods.
    pub cluster: Option<Cluster>,
    /// The container runtime.
    pub cri: Cri,
    /// Who knows the containers that are no pod's; nobody is asked where `None`.
    pub engines: Option<Engines>,
}

impl Options {
    /// As a pod of a DaemonSet is told: `NODE_NAME`, and where the cluster's
    /// API is (`KUBERNETES_SERVICE_HOST`).
    pub fn from_environment() -> Self {
        let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        Self {
            node: std::env::var("NODE_NAME").ok().filter(|n| !n.is_empty()),
            cluster: in_cluster.then_some(Cluster::Own),
            cri: Cri::Find,
            engines: Some(Engines::default()),
        }
    }
}

/// Says who processes are.
pub struct Identifier {
    node: String,
    hierarchy: Hierarchy,
    /// What `/proc/PID/cgroup` is relative to; `None` where that is not known.
    own: Option<String>,
    kubernetes: Option<Arc<Source>>,
    cri: Option<Asked>,
    engines: Option<Asked>,
    remembered: Mutex<Remembered>,
    thread: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

#[derive(Default)]
struct Remembered {
    seen: HashMap<u32, Arc<Seen>>,
    cgroups: HashMap<u64, Cgroup>,
}

/// What `/proc` said of a process.
struct Seen {
    /// `None` of a process that was gone before it was looked at.
    start_ticks: Option<u64>,
    exe: String,
    cgroup: Cgroup,
    service_name: Option<String>,
    /// How often the container runtime had answered then.
    answers: u64,
    /// How often the engines had answered and been asked then.
    engines: (u64, u64),
}

impl Identifier {
    /// Starts to ask the sources.
    ///
    /// # Errors
    /// The thread that asks cannot be started, or a cluster is given without
    /// the name of this node in it.
    pub fn new(options: Options) -> Result<Self> {
        let Options {
            node,
            cluster,
            cri,
            engines,
        } = options;
        let kubernetes = cluster
            .as_ref()
            .map(|_| Arc::new(Source::new("kubernetes")));
        let cri_asked = (cri != Cri::Off).then(|| Asked::new("cri"));
        let engines_asked = engines.as_ref().map(|_| Asked::new("engines"));
        let mut asking = Vec::<Asking>::new();
        if let (Some(cluster), Some(source)) = (cluster, &kubernetes) {
            let node = node.clone().context(
                "the pods of which node? Set NODE_NAME to this node's name in Kubernetes",
            )?;
            let source = Arc::clone(source);
            asking.push(Box::pin(kubernetes::watch(cluster, node, source)));
        }
        if let Some((wanted, source)) = cri_asked.as_ref().map(Asked::both) {
            let socket = match cri {
                Cri::At(socket) => Some(socket),
                Cri::Find | Cri::Off => None,
            };
            asking.push(Box::pin(cri::follow(socket, wanted, source)));
        }
        if let (Some(engines), Some(asked)) = (engines, &engines_asked) {
            let (wanted, source) = asked.both();
            asking.push(Box::pin(engine::follow(engines, wanted, source)));
        }
        let hierarchy = Hierarchy::find();
        Ok(Self {
            node: node.map_or_else(host_name, clean),
            own: hierarchy.own(),
            hierarchy,
            kubernetes,
            cri: cri_asked,
            engines: engines_asked,
            remembered: Mutex::default(),
            thread: match asking.is_empty() {
                true => None,
                false => Some(ask_on_a_thread(asking)?),
            },
        })
    }

    /// Who process `pid` is, which runs `program`. Reads `/proc` the first
    /// time; what the sources told since is in the labels of a later call.
    pub fn identify(&self, pid: u32, program: &Program) -> Target {
        let seen = self.look(pid, program);
        // Before the look at what is known: an answer that comes between the two
        // is seen at the next call.
        let is_expected = self.is_expected(&seen);
        let known = self.known(&seen.cgroup);
        if known.is_none() {
            self.want(&seen);
        }
        Target {
            pid,
            labels: self.labels(program, &seen, known.as_ref()),
            is_partial: known.is_none() && is_expected,
        }
    }

    /// The pod of a process that was identified before.
    pub fn pod(&self, pid: u32) -> Option<Arc<Pod>> {
        let seen = self.remembered().seen.get(&pid).cloned()?;
        self.known(&seen.cgroup)?.pod
    }

    /// Forgets what was read of a process: it ended and its profiles are
    /// finished, or it runs another program now.
    pub fn forget(&self, pid: u32) {
        self.remembered().seen.remove(&pid);
    }

    /// How the sources do.
    pub fn sources(&self) -> Vec<SourceStatus> {
        let asked = self.cri.iter().chain(&self.engines);
        let sources = self
            .kubernetes
            .iter()
            .chain(asked.map(|asked| &asked.source));
        sources.map(|source| source.status()).collect()
    }

    /// What the sources say of the innermost container that one of them knows.
    fn known(&self, cgroup: &Cgroup) -> Option<Known> {
        // What an engine calls the containers of pods is not what they are called.
        let engines = self.engines.as_ref().filter(|_| !cgroup.is_in_pod());
        let asked = self.cri.iter().chain(engines).map(|asked| &asked.source);
        let sources: Vec<&Arc<Source>> = self.kubernetes.iter().chain(asked).collect();
        let mut containers = cgroup.containers.iter();
        containers.find_map(|container| sources.iter().find_map(|source| source.get(&container.id)))
    }

    /// Has those asked that may know of its container, unless they answered often
    /// enough since the process was seen: they do not know every container.
    fn want(&self, seen: &Seen) {
        if seen.cgroup.containers.is_empty() {
            return;
        }
        let engines = self.engines.as_ref().filter(|_| !seen.cgroup.is_in_pod());
        let engines = engines.map(|asked| (asked, seen.engines.0));
        let cri = self.cri.as_ref().map(|asked| (asked, seen.answers));
        for (asked, answers) in cri.into_iter().chain(engines) {
            if asked.source.answers() - answers < MAX_ASKS {
                asked.wanted.notify_one();
            }
        }
    }

    /// Whether a source should know it.
    fn is_expected(&self, seen: &Seen) -> bool {
        let cgroup = &seen.cgroup;
        // Seen from an unknown place, a pod's neighbours have only their id.
        let may_be_a_pod = self.own.is_none()
            && self.kubernetes.is_some()
            && cgroup
                .container()
                .is_some_and(|container| container.runtime == Runtime::Unknown);
        // An engine knows it at once or not at all.
        let is_asked = |asked: &Asked| asked.source.rounds() == seen.engines.1;
        let may_be_an_engines = self.engines.as_ref().is_some_and(is_asked);
        !cgroup.containers.is_empty() && (cgroup.is_in_pod() || may_be_a_pod || may_be_an_engines)
    }

    fn labels(
        &self,
        program: &Program,
        seen: &Seen,
        known: Option<&Known>,
    ) -> BTreeMap<&'static str, String> {
        let pod = known.and_then(|known| known.pod.as_deref());
        let container = known.map_or("", |known| &known.name);
        let of_pod = |text: fn(&Pod) -> &String| pod.map_or("", |pod| text(pod));
        let id = seen.cgroup.container().map_or("", |c| &c.id);
        let unit = seen.cgroup.unit.as_deref().unwrap_or_default();
        let service = service(program, seen, known);
        [
            (label::SERVICE_NAME, service.as_str()),
            (label::NAMESPACE, of_pod(|pod| &pod.namespace)),
            (label::POD, of_pod(|pod| &pod.name)),
            (label::CONTAINER, container),
            (label::CONTAINER_ID, id),
            (label::NODE, &self.node),
            (label::UNIT, unit),
            (label::EXE, &program.exe),
            (label::BUILD_ID, &program.build_id),
            (label::GO_VERSION, &program.go_version),
            (label::MODULE, &program.module),
            (label::MODULE_VERSION, &program.module_version),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, clean_some(value)?)))
        .collect()
    }

    /// What `/proc` says of a process, or said while it was there.
    fn look(&self, pid: u32, program: &Program) -> Arc<Seen> {
        let now = process::start_ticks(pid).ok();
        let before = self.remembered().seen.get(&pid).cloned();
        if let Some(seen) = before
            && seen.exe == program.exe
            && (now.is_none() || seen.start_ticks == now)
        {
            return seen;
        }
        let seen = Arc::new(self.read(pid, program));
        let mut remembered = self.remembered();
        if program.cgroup_id != 0 && seen.start_ticks.is_some() {
            remembered.note_cgroup(program.cgroup_id, &seen.cgroup);
        }
        remembered.note(pid, Arc::clone(&seen));
        seen
    }

    fn read(&self, pid: u32, program: &Program) -> Seen {
        if let Some(seen) = self.read_alive(pid, program) {
            return seen;
        }
        Seen {
            start_ticks: None,
            exe: program.exe.clone(),
            cgroup: self.cgroup_of_id(program.cgroup_id),
            service_name: None,
            answers: self.answers(),
            engines: self.engine_counts(),
        }
    }

    /// `None` where the process is gone, or another has its pid now.
    fn read_alive(&self, pid: u32, program: &Program) -> Option<Seen> {
        let start_ticks = process::start_ticks(pid).ok()?;
        let mut text = Vec::new();
        let file = File::open(format!("/proc/{pid}/cgroup")).ok()?;
        file.take(MAX_CGROUP_BYTES).read_to_end(&mut text).ok()?;
        let seen = Seen {
            start_ticks: Some(start_ticks),
            exe: program.exe.clone(),
            cgroup: Cgroup::parse(&text, self.own.as_deref().unwrap_or_default()),
            service_name: process::service_name(pid),
            answers: self.answers(),
            engines: self.engine_counts(),
        };
        let exe = crate::process::Identity::read(pid).ok()?.exe;
        let same = process::start_ticks(pid).is_ok_and(|ticks| ticks == start_ticks);
        (same && exe == program.exe).then_some(seen)
    }

    /// The cgroup that a sample named, of a process that is gone.
    fn cgroup_of_id(&self, id: u64) -> Cgroup {
        if id == 0 {
            return Cgroup::default();
        }
        if let Some(cgroup) = self.remembered().cgroups.get(&id) {
            return cgroup.clone();
        }
        let path = self.hierarchy.path_of(id);
        let cgroup = path.map_or_else(Cgroup::default, |path| Cgroup::of_path(&path));
        self.remembered().note_cgroup(id, &cgroup);
        cgroup
    }

    fn answers(&self) -> u64 {
        self.cri.as_ref().map_or(0, |asked| asked.source.answers())
    }

    fn engine_counts(&self) -> (u64, u64) {
        let source = self.engines.as_ref().map(|asked| &asked.source);
        source.map_or((0, 0), |source| (source.answers(), source.rounds()))
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Identifier {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

impl Remembered {
    fn note(&mut self, pid: u32, seen: Arc<Seen>) {
        if self.seen.len() >= MAX_SEEN && !self.seen.contains_key(&pid) {
            self.seen
                .retain(|pid, seen| process::start_ticks(*pid).ok() == seen.start_ticks);
            if self.seen.len() >= MAX_SEEN {
                self.seen.clear();
            }
        }
        self.seen.insert(pid, seen);
    }

    fn note_cgroup(&mut self, id: u64, cgroup: &Cgroup) {
        if self.cgroups.len() >= MAX_CGROUPS && !self.cgroups.contains_key(&id) {
            self.cgroups.clear();
        }
        self.cgroups.insert(id, cgroup.clone());
    }
}

/// What the service is called: by whoever deployed it, by itself, else by where
/// it runs, else by its binary.
fn service(program: &Program, seen: &Seen, known: Option<&Known>) -> String {
    let pod = known.and_then(|known| known.pod.as_deref());
    let deployed = || {
        let known = known.filter(|known| !known.name.is_empty())?;
        Some(match pod.filter(|pod| !pod.namespace.is_empty()) {
            Some(pod) => format!("{}/{}", pod.namespace, known.name),
            None => known.name.clone(),
        })
    };
    let unit = || {
        Some(
            seen.cgroup
                .unit
                .as_ref()?
                .trim_end_matches(".service")
                .to_owned(),
        )
    };
    let base = |path: &str| clean_some(path.rsplit('/').next().unwrap_or_default());
    pod.and_then(|pod| pod.service_name.clone())
        .or_else(|| seen.service_name.clone())
        .or_else(deployed)
        .or_else(unit)
        .or_else(|| base(&program.exe))
        .or_else(|| clean_some(&program.comm))
        .unwrap_or_else(|| "unknown".to_owned())
}

fn host_name() -> String {
    std::fs::read("/proc/sys/kernel/hostname").map_or_else(|_| String::new(), clean)
}

type Asking = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Asks until the sender is dropped.
fn ask_on_a_thread(asking: Vec<Asking>) -> Result<(oneshot::Sender<()>, JoinHandle<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime to ask who processes are")?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("goprof-identity".to_owned());
    let ask = move || {
        for source in asking {
            runtime.spawn(source);
        }
        let _ = runtime.block_on(stopped);
        // Not waiting for a name that is being resolved.
        runtime.shutdown_background();
    };
    let thread = thread
        .spawn(ask)
        .context("start a thread to ask who processes are")?;
    Ok((stop, thread))
}
