//! Who a process is by the Kubernetes API: the pods of a list written in the
//! shape that the API gives, the watch
//! with all that can happen to it, and servers that are away.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

#[path = "identity_kubernetes/api_server.rs"]
mod api_server;
#[path = "identity_kubernetes/tls.rs"]
mod tls;

use std::time::{Duration, Instant};

use api_server::{ApiServer, Mode};
use goprof::identity::{Cluster, Cri, Identifier, Options, Program, Target, label};
use goprof_tests::go;
use goprof_tests::identity::{Cgroup, identify_until, program, unified};
use goprof_tests::target::Target as Process;
use serde_json::{Value, json};

/// Longer than any pause between attempts in these tests.
const LIMIT: Duration = Duration::from_secs(60);

fn pod_list() -> Value {
    serde_json::from_str(include_str!("identity_kubernetes/pods.json")).unwrap()
}

fn identifier(server: &ApiServer) -> Identifier {
    Identifier::new(Options {
        node: Some("node-a".to_owned()),
        cluster: Some(Cluster::Kubeconfig(server.kubeconfig())),
        cri: Cri::Off,
        engines: None,
    })
    .unwrap()
}

/// A server that is up with the pods of the list, and who asks it.
fn up() -> (ApiServer, Identifier) {
    let mut server = ApiServer::new(&pod_list());
    server.start();
    let identifier = identifier(&server);
    (server, identifier)
}

/// A Go process in a container.
struct Contained {
    // Ended before its cgroup is removed.
    process: Process,
    program: Program,
    _cgroup: Cgroup,
}

impl Contained {
    fn new(id: &str) -> Self {
        Self::with(id, &[])
    }

    fn with(id: &str, environment: &[(&str, &str)]) -> Self {
        let path = format!("/kubepods/burstable/pod7f2c9a44-0d1e-4b6a-9a57-2b1f0c8e6d31/{id}");
        let cgroup = Cgroup::make(unified(), &path);
        let mut command = std::process::Command::new(go::build("waits"));
        command.args(["-duration", "5m"]);
        command.envs(environment.iter().copied());
        let process = Process::start_command(&mut command);
        cgroup.put(process.pid());
        Self {
            program: program(process.pid()),
            process,
            _cgroup: cgroup,
        }
    }

    fn identify(&self, identifier: &Identifier) -> Target {
        identifier.identify(self.process.pid(), &self.program)
    }

    #[track_caller]
    fn until(&self, identifier: &Identifier, is_done: impl Fn(&Target) -> bool) -> Target {
        identify_until(
            identifier,
            self.process.pid(),
            &self.program,
            LIMIT,
            is_done,
        )
    }

    #[track_caller]
    fn whole(&self, identifier: &Identifier) -> Target {
        self.until(identifier, |target| !target.is_partial)
    }
}

/// The id in a container's status.
#[track_caller]
fn id_of(pod: &Value, container: &str) -> String {
    let lists = [
        "initContainerStatuses",
        "containerStatuses",
        "ephemeralContainerStatuses",
    ];
    let mut statuses = lists
        .iter()
        .filter_map(|list| pod["status"][list].as_array())
        .flatten();
    let status = statuses.find(|status| status["name"] == container).unwrap();
    bare(&status["containerID"])
}

#[track_caller]
fn bare(id: &Value) -> String {
    id.as_str().unwrap().split_once("://").unwrap().1.to_owned()
}

/// An id that no pod of the list has.
fn new_id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// A pod whose only container has this id.
fn pod(name: &str, id: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "store", "uid": format!("uid-of-{name}")},
        "spec": {"nodeName": "node-a", "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "containerStatuses": [
            {"name": "main", "containerID": format!("containerd://{id}")},
        ]},
    })
}

#[track_caller]
fn check(target: &Target, [namespace, pod, container, service]: [&str; 4]) {
    assert!(!target.is_partial, "{target:?}");
    for (name, expected) in [
        (label::NAMESPACE, namespace),
        (label::POD, pod),
        (label::CONTAINER, container),
        (label::SERVICE_NAME, service),
        (label::NODE, "node-a"),
    ] {
        assert_eq!(target.label(name), expected, "{target:?}");
    }
}

#[test]
fn containers_of_every_kind_are_found() {
    let (server, identifier) = up();
    let shop = "shop-7d9c6b5f4d-x2x9k";
    for (pod, container, service, namespace) in [
        // Its cgroup has the hash of the manifest for a uid.
        ("etcd-node-a", "etcd", "kube-system/etcd", "kube-system"),
        (shop, "migrate", "shop-frontend", "store"),
        (shop, "proxy", "shop-frontend", "store"),
        (shop, "web", "shop-frontend", "store"),
        (shop, "debugger", "shop-frontend", "store"),
        ("billing-0", "billing", "store/billing", "store"),
    ] {
        let id = id_of(&server.pod(pod), container);
        let target = Contained::new(&id).whole(&identifier);
        check(&target, [namespace, pod, container, service]);
        assert_eq!(target.label(label::CONTAINER_ID), id);
    }
    // The container before a restart, whose last profiles are still to come.
    let status = &server.pod("billing-0")["status"]["containerStatuses"][0];
    let before = bare(&status["lastState"]["terminated"]["containerID"]);
    let target = Contained::new(&before).whole(&identifier);
    check(&target, ["store", "billing-0", "billing", "store/billing"]);
}

#[test]
fn the_service_is_named_by_annotation_then_environment_then_container() {
    let (server, identifier) = up();
    let environment = [("OTEL_SERVICE_NAME", "own-name")];
    let shop = server.pod("shop-7d9c6b5f4d-x2x9k");
    let web = Contained::with(&id_of(&shop, "web"), &environment);
    let target = web.whole(&identifier);
    assert_eq!(target.label(label::SERVICE_NAME), "shop-frontend");
    let billing = id_of(&server.pod("billing-0"), "billing");
    let target = Contained::with(&billing, &environment).whole(&identifier);
    assert_eq!(target.label(label::SERVICE_NAME), "own-name");

    let pod = identifier.pod(web.process.pid()).unwrap();
    assert_eq!(pod.labels["team"], "checkout");
    assert_eq!(pod.uid, "7f2c9a44-0d1e-4b6a-9a57-2b1f0c8e6d31");
}

#[test]
fn only_this_nodes_pods_are_asked_for() {
    let (server, identifier) = up();
    Contained::new(&id_of(&server.pod("billing-0"), "billing")).whole(&identifier);
    let elsewhere = Contained::new(&id_of(&server.pod("gateway-5f6d7c8b9c-lk2jh"), "gateway"));
    assert!(elsewhere.identify(&identifier).is_partial);
    let deadline = Instant::now() + LIMIT;
    let mut requests = Vec::new();
    while requests.len() < 2 && Instant::now() < deadline {
        requests.extend(server.requests());
    }
    for request in &requests {
        assert_eq!(request.get("fieldSelector"), "spec.nodeName=node-a");
    }
    assert!(!requests[0].is_watch() && requests[1].is_watch());
    assert_eq!(requests[0].get("resourceVersion"), "0", "from the cache");
    assert_eq!(requests[1].get("allowWatchBookmarks"), "true");
}

#[test]
fn events_of_the_watch_are_followed() {
    let (server, identifier) = up();
    let id = new_id('a');
    let process = Contained::new(&id);
    assert!(process.identify(&identifier).is_partial);
    // Begun before its status says so, as ever.
    let mut new = pod("new", &id);
    let status = new["status"].take();
    server.put(new.clone());
    server.bookmark();
    new["status"] = status;
    server.put(new.clone());
    let target = process.whole(&identifier);
    check(&target, ["store", "new", "main", "store/main"]);
    // Annotated later.
    new["metadata"]["annotations"] = json!({"pyroscope.io/service_name": "fresh"});
    server.put(new);
    process.until(&identifier, |target| {
        target.label(label::SERVICE_NAME) == "fresh"
    });
    // Deleted: what is still to be written of it keeps its names.
    server.delete("new");
    let other = Contained::new(&new_id('b'));
    server.put(pod("other", &new_id('b')));
    other.whole(&identifier);
    let target = process.identify(&identifier);
    check(&target, ["store", "new", "main", "fresh"]);
}

#[test]
fn a_broken_connection_is_taken_up_where_it_ended() {
    let (server, identifier) = up();
    Contained::new(&id_of(&server.pod("billing-0"), "billing")).whole(&identifier);
    let (a, b) = (Contained::new(&new_id('a')), Contained::new(&new_id('b')));
    server.put(pod("a", &new_id('a')));
    a.whole(&identifier);
    server.requests();
    server.disconnect();
    server.put(pod("b", &new_id('b')));
    check(&b.whole(&identifier), ["store", "b", "main", "store/main"]);
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.is_watch()), "no list");
    let after_a: u64 = server.pod("a")["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|version| version.parse().ok())
        .unwrap();
    assert_eq!(requests[0].get("resourceVersion"), after_a.to_string());
}

/// Versions that the server has forgotten: everything is listed anew.
#[track_caller]
fn check_gone(by_status: bool) {
    let (server, identifier) = up();
    let billing = Contained::new(&id_of(&server.pod("billing-0"), "billing"));
    billing.whole(&identifier);
    let (a, b) = (Contained::new(&new_id('a')), Contained::new(&new_id('b')));
    // While nobody watches: one more, one less, and the events are forgotten.
    server.set(Mode::Failing(503));
    server.disconnect();
    server.put(pod("a", &new_id('a')));
    server.delete("billing-0");
    server.compact(by_status);
    server.requests();
    server.set(Mode::Well);
    check(&a.whole(&identifier), ["store", "a", "main", "store/main"]);
    let requests = server.requests();
    assert!(requests.iter().any(|request| !request.is_watch()), "a list");
    assert!(!billing.identify(&identifier).is_partial, "remembered");
    // And the watch goes on.
    server.put(pod("b", &new_id('b')));
    b.whole(&identifier);
}

#[test]
fn versions_that_are_gone_are_listed_anew() {
    check_gone(false);
}

#[test]
fn versions_that_are_gone_by_the_answers_status_are_listed_anew() {
    check_gone(true);
}

#[test]
fn a_server_that_comes_late_completes_the_labels() {
    let mut server = ApiServer::new(&pod_list());
    let identifier = identifier(&server);
    let process = Contained::new(&id_of(&server.pod("billing-0"), "billing"));
    let target = process.identify(&identifier);
    assert!(target.is_partial);
    assert_eq!(target.label(label::SERVICE_NAME), "waits");
    assert_eq!(target.label(label::GO_VERSION), format!("go{}", go::NEWEST));
    wait_for_error(&identifier);
    server.start();
    let target = process.whole(&identifier);
    check(&target, ["store", "billing-0", "billing", "store/billing"]);
    let status = &identifier.sources()[0];
    assert!(status.has_answered && status.error.is_none(), "{status:?}");
}

#[test]
fn a_server_that_goes_takes_nothing_away() {
    let (mut server, identifier) = up();
    let billing = Contained::new(&id_of(&server.pod("billing-0"), "billing"));
    let before = billing.whole(&identifier);
    server.stop();
    wait_for_error(&identifier);
    assert_eq!(billing.identify(&identifier), before);
    // One seen for the first time now is known too, if its pod was.
    let shop = server.pod("shop-7d9c6b5f4d-x2x9k");
    let web = Contained::new(&id_of(&shop, "web"));
    assert!(!web.identify(&identifier).is_partial);
    let new = Contained::new(&new_id('a'));
    server.put(pod("new", &new_id('a')));
    assert!(new.identify(&identifier).is_partial);
    server.start();
    check(
        &new.whole(&identifier),
        ["store", "new", "main", "store/main"],
    );
}

#[test]
fn the_server_is_asked_by_tls_and_held_to_its_certificate() {
    let mut server = ApiServer::with_tls(&pod_list());
    server.start();
    let identifier = identifier(&server);
    let billing = Contained::new(&id_of(&server.pod("billing-0"), "billing"));
    billing.whole(&identifier);
    // Another server with another certificate is not believed.
    let mut other = ApiServer::with_tls(&pod_list());
    other.start();
    let config = std::fs::read_to_string(other.kubeconfig()).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    let trusted: Value =
        serde_json::from_str(&std::fs::read_to_string(server.kubeconfig()).unwrap()).unwrap();
    config["clusters"][0]["cluster"]["certificate-authority"] =
        trusted["clusters"][0]["cluster"]["certificate-authority"].clone();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    std::fs::write(&file, config.to_string()).unwrap();
    let fooled = Identifier::new(Options {
        node: Some("node-a".to_owned()),
        cluster: Some(Cluster::Kubeconfig(file)),
        cri: Cri::Off,
        engines: None,
    })
    .unwrap();
    wait_for_error(&fooled);
    assert!(billing.identify(&fooled).is_partial);
    assert!(other.requests().is_empty());
}

#[test]
fn errors_are_said_and_got_over() {
    let (server, identifier) = {
        let mut server = ApiServer::new(&pod_list());
        server.set(Mode::Failing(403));
        server.start();
        let identifier = identifier(&server);
        (server, identifier)
    };
    let billing = Contained::new(&id_of(&server.pod("billing-0"), "billing"));
    assert!(billing.identify(&identifier).is_partial);
    let error = wait_for_error(&identifier);
    assert!(error.contains("watch pods"), "{error}");
    server.set(Mode::Failing(500));
    assert!(billing.identify(&identifier).is_partial);
    server.set(Mode::Well);
    billing.whole(&identifier);
    assert_eq!(identifier.sources()[0].error, None);
}

#[test]
fn nobody_waits_for_a_silent_server() {
    let mut server = ApiServer::new(&pod_list());
    server.set(Mode::Silent);
    server.start();
    let identifier = identifier(&server);
    let billing = Contained::new(&id_of(&server.pod("billing-0"), "billing"));
    let deadline = Instant::now() + LIMIT;
    while server.requests().is_empty() {
        assert!(Instant::now() < deadline, "never asked");
    }
    let begin = Instant::now();
    for _ in 0..100 {
        assert!(billing.identify(&identifier).is_partial);
    }
    drop(identifier);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_node_full_of_pods_is_known() {
    let mut list = pod_list();
    let pods = (0..250).map(|index| pod(&format!("pod-{index}"), &format!("{index:064x}")));
    list["items"].as_array_mut().unwrap().extend(pods);
    let mut server = ApiServer::new(&list);
    server.start();
    let identifier = identifier(&server);
    for index in [0, 249] {
        let process = Contained::new(&format!("{index:064x}"));
        let name = format!("pod-{index}");
        let target = process.whole(&identifier);
        check(&target, ["store", &name, "main", "store/main"]);
    }
}

#[test]
fn hostile_pods_break_nothing() {
    let (server, identifier) = up();
    let process = Contained::new(&new_id('a'));
    let mut odd = pod("odd", &new_id('a'));
    odd["metadata"]["annotations"] = json!({
        "pyroscope.io/service_name": format!("a\nb\u{1b}[31m{}", "ä".repeat(100_000)),
    });
    odd["metadata"]["labels"] = json!({"k\n": "v\r\n"});
    // Nothing that the schema forbids ends the watch for good.
    let ids = odd["status"]["containerStatuses"].as_array_mut().unwrap();
    for id in ["", "://", "containerd://", "no scheme"] {
        ids.push(json!({"name": "x", "containerID": id}));
    }
    server.put(odd);
    let target = process.whole(&identifier);
    let service = target.label(label::SERVICE_NAME);
    assert!(service.starts_with("a\u{fffd}b\u{fffd}[31mä") && service.len() <= 1024);
    let pod = identifier.pod(process.process.pid()).unwrap();
    assert_eq!(pod.labels["k"], "v");
}

#[track_caller]
fn wait_for_error(identifier: &Identifier) -> String {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(error) = identifier.sources()[0].error.clone() {
            return error;
        }
        if Instant::now() > deadline {
            panic!("no error: {:?}", identifier.sources());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
