//! Who a process in a real container is: runc's and containerd's containers, and
//! pods that containerd runs as for a kubelet, asked for at its CRI socket.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

#[path = "identity_containers/kubelet.rs"]
mod kubelet;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use goprof::identity::{Cluster, Cri, Identifier, Options, Program, Target, label};
use goprof_tests::containerd::{Containerd, path, root_in};
use goprof_tests::identity::{self, CgroupName, identify_until};
use goprof_tests::{command, go};
use kubelet::{Kubelet, UID};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const REMEDY: &str = "run this test as root";

fn identifier(cri: Cri) -> Identifier {
    Identifier::new(Options {
        node: Some("node-a".to_owned()),
        cluster: None,
        cri,
        engines: None,
    })
    .unwrap()
}

/// A container id that nobody else has.
fn new_id() -> String {
    let mut random = [0; 32];
    let mut source = fs::File::open("/dev/urandom").unwrap();
    source.read_exact(&mut random).unwrap();
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the process of a container runs, once its runtime is done with it: a
/// container counts as started before it runs its own program, and a program has
/// its name before its file is mapped.
#[track_caller]
fn program(pid: u32) -> Program {
    let deadline = Instant::now() + LIMIT;
    loop {
        let program = identity::program(pid);
        if program.exe == "/waits" && !program.go_version.is_empty() {
            return program;
        }
        assert!(Instant::now() < deadline, "it still runs {program:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A container that runc runs. Dropping it ends it.
struct RuncContainer {
    folder: tempfile::TempDir,
    pid: u32,
    /// Removed after the container.
    _cgroup: CgroupName,
}

impl RuncContainer {
    /// Runs `waits` in a container whose cgroup is called so.
    #[track_caller]
    fn run(cgroup: &str) -> Self {
        let name = CgroupName::new();
        let folder = tempfile::tempdir().unwrap();
        root_in(folder.path(), "waits");
        runc(folder.path(), &["spec"]);
        let file = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["root"]["path"] = json!("root");
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/waits", "-duration", "5m"]);
        config["process"]["env"] = json!(["OTEL_RESOURCE_ATTRIBUTES=service.name=boxed"]);
        config["linux"]["cgroupsPath"] = json!(name.path(cgroup));
        fs::write(&file, config.to_string()).unwrap();
        let mut command = runc_command(folder.path());
        command.args(["run", "--detach", "--pid-file", "pid", "test"]);
        // The container keeps what it is given for output: not a pipe that
        // somebody waits for the end of.
        let output = fs::File::create(folder.path().join("output")).unwrap();
        command.stdin(std::process::Stdio::null());
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let status = command.status().unwrap();
        let output = fs::read_to_string(folder.path().join("output")).unwrap();
        assert!(status.success(), "runc: {status}\n{output}");
        let pid = fs::read_to_string(folder.path().join("pid")).unwrap();
        Self {
            folder,
            pid: pid.parse().unwrap(),
            _cgroup: name,
        }
    }
}

impl Drop for RuncContainer {
    fn drop(&mut self) {
        runc(self.folder.path(), &["delete", "--force", "test"]);
    }
}

fn runc_command(folder: &Path) -> Command {
    let mut command = Command::new("runc");
    command.arg("--root").arg(folder.join("state"));
    command.current_dir(folder).env("PATH", path());
    command
}

#[track_caller]
fn runc(folder: &Path, args: &[&str]) {
    command::run(runc_command(folder).args(args), LIMIT, REMEDY).succeeded();
}

#[test]
fn containers_of_runc_have_the_id_that_their_runtime_gave() {
    let identifier = identifier(Cri::Off);
    for (shape, is_in_pod) in [
        ("/docker/ID", false),
        ("/libpod_parent/libpod-ID", false),
        ("/system.slice/docker-ID.scope", false),
        (&format!("/kubepods/burstable/pod{UID}/ID"), true),
        (
            "/kubepods.slice/kubepods-pod7f2c9a44_0d1e_4b6a_9a57_2b1f0c8e6d31.slice/crio-ID.scope",
            true,
        ),
    ] {
        let id = new_id();
        let container = RuncContainer::run(&shape.replace("ID", &id));
        let target = identifier.identify(container.pid, &program(container.pid));
        assert_eq!(target.label(label::CONTAINER_ID), id, "{shape}");
        assert_eq!(target.label(label::SERVICE_NAME), "boxed", "{shape}");
        assert_eq!(target.label(label::EXE), "/waits", "{shape}");
        let version = format!("go{}", go::NEWEST);
        assert_eq!(target.label(label::GO_VERSION), version, "{shape}");
        assert_eq!(target.is_partial, is_in_pod, "{shape}");
    }
}

#[test]
fn containers_of_containerd_have_their_id() {
    let containerd = Containerd::start();
    let root = root_in(containerd.folder(), "waits");
    let id = new_id();
    let root = root.to_str().unwrap();
    let cgroup = containerd.cgroup(&format!("/default/{id}"));
    containerd.ctr(&[
        "run",
        "--detach",
        "--cgroup",
        &cgroup,
        "--rootfs",
        root,
        &id,
        "/waits",
        "-duration",
        "5m",
    ]);
    let pid = containerd.pid("default", &id);
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroups.contains(&cgroup), "{cgroups}");
    let target = identifier(Cri::Off).identify(pid, &program(pid));
    assert_eq!(target.label(label::CONTAINER_ID), id);
    assert_eq!(target.label(label::SERVICE_NAME), "waits");
    // Not Kubernetes', and the CRI says so: nobody waits for more.
    let asking = identifier(Cri::At(containerd.socket()));
    let target = asking.identify(pid, &program(pid));
    assert!(!target.is_partial);
    wait_for(&asking, |status| status.has_answered);
    assert_eq!(asking.identify(pid, &program(pid)), target);
}

#[track_caller]
fn whole(identifier: &Identifier, pid: u32) -> Target {
    identify_until(identifier, pid, &program(pid), LIMIT, |target| {
        !target.is_partial
    })
}

#[track_caller]
fn check(target: &Target, [namespace, pod, container, service]: [&str; 4]) {
    for (name, expected) in [
        (label::NAMESPACE, namespace),
        (label::POD, pod),
        (label::CONTAINER, container),
        (label::SERVICE_NAME, service),
    ] {
        assert_eq!(target.label(name), expected, "{target:?}");
    }
}

#[test]
fn pods_are_named_by_the_container_runtime() {
    let mut containerd = Containerd::start();
    containerd.import_image("waits");
    let pod_cgroup = containerd.cgroup(&format!("/kubepods/burstable/pod{UID}"));
    let kubelet = Kubelet::connect(&containerd.socket(), &pod_cgroup, "waits");
    let shop = kubelet.run_pod(["store", "shop-0", "web"], "");
    let cart = kubelet.run_pod(["store", "cart-0", "main"], "cart-service");
    let pid = containerd.pid("k8s.io", &shop);
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(
        cgroups.contains(&format!("{pod_cgroup}/{shop}")),
        "{cgroups}"
    );

    let asking = identifier(Cri::At(containerd.socket()));
    assert!(asking.identify(pid, &program(pid)).is_partial);
    let target = whole(&asking, pid);
    check(&target, ["store", "shop-0", "web", "store/web"]);
    assert_eq!(target.label(label::CONTAINER_ID), shop);
    let pod = asking.pod(pid).unwrap();
    assert_eq!(pod.labels["app"], "shop");
    assert_eq!(pod.labels.len(), 1, "{pod:?}");

    // An API server that nobody can reach changes nothing.
    let both = Identifier::new(Options {
        node: Some("node-a".to_owned()),
        cluster: Some(Cluster::Kubeconfig(unreachable(containerd.folder()))),
        cri: Cri::At(containerd.socket()),
        engines: None,
    })
    .unwrap();
    let cart_pid = containerd.pid("k8s.io", &cart);
    let named = whole(&both, cart_pid);
    wait_for(&both, |status| {
        let error = status.error.as_deref().unwrap_or_default();
        error.contains("onnect")
    });
    check(&named, ["store", "cart-0", "main", "cart-service"]);

    // The runtime goes: what it said stays, what it did not say is missing.
    containerd.stop();
    assert_eq!(asking.identify(pid, &program(pid)), target);
    let late = identifier(Cri::At(containerd.socket()));
    assert!(late.identify(pid, &program(pid)).is_partial);
    wait_for(&late, |status| status.error.is_some());
}

/// A kubeconfig of a server that is not there.
fn unreachable(folder: &Path) -> PathBuf {
    let file = folder.join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "test", "user": {"token": "x"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    fs::write(&file, config.to_string()).unwrap();
    file
}

#[track_caller]
fn wait_for(identifier: &Identifier, is_so: impl Fn(&goprof::identity::SourceStatus) -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so(&identifier.sources()[0]) {
        if Instant::now() > deadline {
            panic!("{:?}", identifier.sources());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Something at the socket that is no container runtime.
#[track_caller]
fn check_impostor(name: &str, answer: impl Fn(std::os::unix::net::UnixStream) + Send + 'static) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cri.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream);
        }
    });
    let container = RuncContainer::run(&format!("/kubepods/pod{UID}/{}", new_id()));
    let identifier = identifier(Cri::At(socket));
    let program = program(container.pid);
    let begin = Instant::now();
    for _ in 0..100 {
        let target = identifier.identify(container.pid, &program);
        assert!(target.is_partial, "{name}");
    }
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(2), "{name}: {took:?}");
    wait_for(&identifier, |status| status.error.is_some());
    assert!(!identifier.sources()[0].has_answered, "{name}");
}

#[test]
fn what_is_no_container_runtime_is_not_waited_for() {
    check_impostor("garbage", |mut stream| {
        let _ = stream.write_all(&[0xff; 4096]);
    });
    check_impostor("silence", std::mem::forget);
    check_impostor("an end", drop);
}
