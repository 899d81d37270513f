//! A Kubernetes API server as far as a watch on pods goes: lists by field
//! selector, watches from a resource version, forgets old versions, ends
//! connections, and is away at times. Real HTTP on a real port.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::sync::{oneshot, watch};

/// The token that the kubeconfig has.
const TOKEN: &str = "a-token-of-a-service-account";

/// How the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As it should.
    Well,
    /// With this error to everything.
    Failing(u16),
    /// Never: the connection stands, and nothing comes.
    Silent,
}

/// A request that it got.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its query.
    pub query: HashMap<String, String>,
}

impl Request {
    /// A parameter; empty where it has none.
    pub fn get(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// Whether it asks for a watch.
    pub fn is_watch(&self) -> bool {
        matches!(self.get("watch"), "1" | "true")
    }
}

struct Contents {
    pods: BTreeMap<String, Value>,
    version: u64,
    events: Vec<(u64, Value)>,
    /// Watches from before this version are refused.
    oldest: u64,
    /// Whether they are refused by the status of the answer, not by an event.
    refuses_by_status: bool,
    mode: Mode,
    requests: Vec<Request>,
    /// Watches of an earlier epoch end.
    epoch: u64,
}

struct Shared {
    contents: Mutex<Contents>,
    changed: watch::Sender<()>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap()
    }
}

/// The server.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    folder: tempfile::TempDir,
}

impl ApiServer {
    /// A server with the pods of a `PodList`, that is not up yet.
    #[track_caller]
    pub fn new(list: &Value) -> Self {
        let version = list["metadata"]["resourceVersion"].as_str().unwrap();
        let version = version.parse().unwrap();
        let pods = list["items"].as_array().unwrap().iter();
        let contents = Contents {
            pods: pods.map(|pod| (uid(pod), pod.clone())).collect(),
            version,
            events: Vec::new(),
            oldest: version,
            refuses_by_status: false,
            mode: Mode::Well,
            requests: Vec::new(),
            epoch: 0,
        };
        // A port that nobody has now; taken again when it is up.
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self {
            shared: Arc::new(Shared {
                contents: Mutex::new(contents),
                changed: watch::Sender::new(()),
            }),
            address: free.local_addr().unwrap(),
            running: None,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Begins to listen.
    #[track_caller]
    pub fn start(&mut self) {
        let router = Router::new()
            .route("/api/v1/pods", get(pods))
            .with_state(Arc::clone(&self.shared));
        let address = self.address;
        let (stop, stopped) = oneshot::channel::<()>();
        let (listens, begun) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = TcpSocket::new_v4().unwrap();
                // Connections of before may linger.
                socket.set_reuseaddr(true).unwrap();
                socket.bind(address).unwrap();
                let listener = socket.listen(64).unwrap();
                listens.send(()).unwrap();
                tokio::spawn(async move { axum::serve(listener, router).await });
                let _ = stopped.await;
            });
            // With the runtime all connections end.
        });
        begun.recv().unwrap();
        self.running = Some((stop, thread));
    }

    /// Is gone, with all its connections.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }

    /// A kubeconfig that leads to it.
    pub fn kubeconfig(&self) -> PathBuf {
        let path = self.folder.path().join("config");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Adds a pod, or changes it.
    pub fn put(&self, mut pod: Value) {
        let mut contents = self.shared.lock();
        contents.version += 1;
        pod["metadata"]["resourceVersion"] = json!(contents.version.to_string());
        let before = contents.pods.insert(uid(&pod), pod.clone());
        let kind = if before.is_none() {
            "ADDED"
        } else {
            "MODIFIED"
        };
        contents.note(kind, pod);
        drop(contents);
        self.shared.changed.send_replace(());
    }

    /// Deletes a pod.
    #[track_caller]
    pub fn delete(&self, name: &str) {
        let mut contents = self.shared.lock();
        let mut pod = contents.named(name);
        contents.version += 1;
        pod["metadata"]["resourceVersion"] = json!(contents.version.to_string());
        contents.pods.remove(&uid(&pod));
        contents.note("DELETED", pod);
        drop(contents);
        self.shared.changed.send_replace(());
    }

    /// A pod as it is.
    #[track_caller]
    pub fn pod(&self, name: &str) -> Value {
        self.shared.lock().named(name)
    }

    /// Sends bookmarks to all watches, as servers do each minute.
    pub fn bookmark(&self) {
        let mut contents = self.shared.lock();
        contents.version += 1;
        let version = contents.version.to_string();
        let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {
            "resourceVersion": version, "creationTimestamp": null,
        }});
        contents.note("BOOKMARK", object);
        drop(contents);
        self.shared.changed.send_replace(());
    }

    /// Ends all watches in the middle.
    pub fn disconnect(&self) {
        self.shared.lock().epoch += 1;
        self.shared.changed.send_replace(());
    }

    /// Forgets all events: watches from before get 410 Gone, as an event in
    /// their stream or as the status of the answer.
    pub fn compact(&self, by_status: bool) {
        let mut contents = self.shared.lock();
        contents.events.clear();
        contents.version += 1;
        contents.oldest = contents.version;
        contents.refuses_by_status = by_status;
    }

    /// How it answers from now on.
    pub fn set(&self, mode: Mode) {
        self.shared.lock().mode = mode;
    }

    /// What it was asked since the last call of this.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.shared.lock().requests)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Contents {
    fn note(&mut self, kind: &str, object: Value) {
        let event = json!({"type": kind, "object": object});
        self.events.push((self.version, event));
    }

    #[track_caller]
    fn named(&self, name: &str) -> Value {
        let mut pods = self.pods.values();
        pods.find(|pod| pod["metadata"]["name"] == name)
            .unwrap()
            .clone()
    }

    fn list(&self, request: &Request) -> Value {
        let all = self.pods.values();
        let items: Vec<&Value> = all.filter(|pod| is_selected(pod, request)).collect();
        let metadata = json!({"resourceVersion": self.version.to_string()});
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items})
    }
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn is_selected(pod: &Value, request: &Request) -> bool {
    match request.get("fieldSelector").split_once('=') {
        Some(("spec.nodeName", node)) => pod["spec"]["nodeName"] == node,
        Some(other) => panic!("a field selector on {other:?}"),
        None => true,
    }
}

fn refusal(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("{reason} (of the test)"), "reason": reason, "code": code,
    })
}

async fn pods(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let token = headers.get("authorization").map(|value| value.as_bytes());
    if token != Some(format!("Bearer {TOKEN}").as_bytes()) {
        return answer(401, &refusal(401, "Unauthorized"));
    }
    let request = Request { query };
    let mode = {
        let mut contents = shared.lock();
        contents.requests.push(request.clone());
        contents.mode
    };
    match mode {
        Mode::Silent => std::future::pending().await,
        Mode::Failing(code) => return answer(code, &refusal(code, "Failing")),
        Mode::Well => {}
    }
    if request.is_watch() {
        return watch_from(shared, request);
    }
    let list = shared.lock().list(&request);
    answer(200, &list)
}

fn answer(code: u16, body: &Value) -> Response {
    let code = StatusCode::from_u16(code).unwrap();
    let json = [("content-type", "application/json")];
    (code, json, body.to_string()).into_response()
}

/// What a watch has sent, and when it ends.
struct Watch {
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
    request: Request,
    sent: u64,
    epoch: u64,
}

fn watch_from(shared: Arc<Shared>, request: Request) -> Response {
    let from: u64 = request.get("resourceVersion").parse().unwrap_or(0);
    let (is_gone, by_status, epoch) = {
        let contents = shared.lock();
        (
            from < contents.oldest,
            contents.refuses_by_status,
            contents.epoch,
        )
    };
    let gone = refusal(410, "Expired");
    if is_gone && by_status {
        return answer(410, &gone);
    }
    if is_gone {
        let event = json!({"type": "ERROR", "object": gone});
        return answer(200, &event);
    }
    let watch = Watch {
        changed: shared.changed.subscribe(),
        shared,
        request,
        sent: from,
        epoch,
    };
    let lines = futures::stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(line), watch))
    });
    let json = [("content-type", "application/json")];
    (json, Body::from_stream(lines)).into_response()
}

impl Watch {
    /// The next event as a line; `None` where the connection ends.
    async fn next(&mut self) -> Option<String> {
        loop {
            {
                let contents = self.shared.lock();
                if contents.epoch != self.epoch {
                    return None;
                }
                let mut events = contents.events.iter();
                let next = events.find(|(version, event)| {
                    let is_for_all = event["type"] == "BOOKMARK";
                    *version > self.sent
                        && (is_for_all || is_selected(&event["object"], &self.request))
                });
                if let Some((version, event)) = next {
                    self.sent = *version;
                    return Some(format!("{event}\n"));
                }
            }
            self.changed.changed().await.ok()?;
        }
    }
}
