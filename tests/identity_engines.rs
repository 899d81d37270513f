//! Containers without Kubernetes have the names that Docker's engine and Podman
//! gave them: asked of real ones.

#![expect(clippy::unwrap_used, reason = "test code: a failure is a panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use goprof::identity::{Cri, Engines, Identifier, Options, Target, label};
use goprof_tests::command::{self, Outcome, Running};
use goprof_tests::containerd::{path, root_in};
use goprof_tests::debian;
use goprof_tests::identity::{self, CgroupName, identify_until};

const LIMIT: Duration = Duration::from_secs(60);
const REMEDY: &str = "run this test as root, on Debian";

fn identifier(sockets: &[&Path], lists: &[&Path]) -> Identifier {
    let owned = |paths: &[&Path]| paths.iter().map(|path| (*path).to_owned()).collect();
    Identifier::new(Options {
        node: Some("node-a".to_owned()),
        cluster: None,
        cri: Cri::Off,
        engines: Some(Engines {
            sockets: owned(sockets),
            lists: owned(lists),
        }),
    })
    .unwrap()
}

/// Who a container's process is, once that is known.
#[track_caller]
fn whole(identifier: &Identifier, pid: u32) -> Target {
    let deadline = Instant::now() + LIMIT;
    let program = loop {
        let program = identity::program(pid);
        if program.exe == "/waits" {
            break program;
        }
        assert!(Instant::now() < deadline, "it still runs {program:?}");
        std::thread::sleep(Duration::from_millis(5));
    };
    // Nobody was asked yet, and rules should wait for the answer.
    assert!(identifier.identify(pid, &program).is_partial);
    identify_until(identifier, pid, &program, LIMIT, |target| {
        !target.is_partial
    })
}

#[track_caller]
fn assert_called(identifier: &Identifier, pid: u32, id: &str, name: &str) {
    let target = whole(identifier, pid);
    assert_eq!(target.label(label::CONTAINER_ID), id);
    assert_eq!(
        target.label(label::CONTAINER),
        name,
        "{:?}",
        identifier.sources()
    );
    assert_eq!(target.label(label::SERVICE_NAME), name);
    assert_eq!(target.label(label::POD), "");
}

/// A Docker of the test's own. Dropping it ends it.
struct Docker {
    folder: tempfile::TempDir,
    engine: Option<Running>,
    /// Removed after the containers.
    cgroup: CgroupName,
}

impl Docker {
    #[track_caller]
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cgroup = CgroupName::new();
        let mut engine = Command::new("dockerd");
        let at = |name: &str| folder.path().join(name);
        engine
            .arg("--data-root")
            .arg(at("lib"))
            .arg("--exec-root")
            .arg(at("run"));
        engine.arg("--pidfile").arg(at("pid"));
        engine
            .arg("--host")
            .arg(format!("unix://{}", at("docker.sock").display()));
        engine.arg("--cgroup-parent").arg(cgroup.path(""));
        engine.args([
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
            "--storage-driver",
            "vfs",
        ]);
        engine.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
        engine
            .arg("--userland-proxy=false")
            .env("PATH", docker_path());
        let docker = Self {
            engine: Some(Running::start(&mut engine, REMEDY)),
            folder,
            cgroup,
        };
        let deadline = Instant::now() + LIMIT;
        while !docker.try_call(&["version"]).status.success() {
            assert!(Instant::now() < deadline, "dockerd does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
        docker
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    fn try_call(&self, args: &[&str]) -> Outcome {
        let mut docker = Command::new("docker");
        docker
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()));
        command::run(docker.args(args).env("PATH", docker_path()), LIMIT, REMEDY)
    }

    #[track_caller]
    fn call(&self, args: &[&str]) -> String {
        self.try_call(args).succeeded().text().trim().to_owned()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.try_call(&["rm", "--force", "shop-web"]);
        if let Some(engine) = self.engine.take() {
            engine.signal(libc::SIGTERM);
            engine.finish(LIMIT);
        }
        let _ = &self.cgroup;
    }
}

fn docker_path() -> String {
    let docker = debian::package("docker.io").join("usr");
    format!("{0}/bin:{0}/sbin:{1}", docker.display(), path())
}

#[test]
fn dockers_containers_have_their_name() {
    let docker = Docker::start();
    let root = root_in(docker.folder.path(), "waits");
    let archive = docker.folder.path().join("root.tar");
    let mut tar = Command::new("tar");
    tar.arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(root)
        .arg("waits");
    command::run(&mut tar, LIMIT, "install tar").succeeded();
    docker.call(&["import", archive.to_str().unwrap(), "waits:1"]);
    let run = [
        "run",
        "--detach",
        "--name",
        "shop-web",
        "--network",
        "none",
        "waits:1",
    ];
    let id = docker.call(&[&run[..], &["/waits", "-duration", "5m"]].concat());
    let pid = docker.call(&["inspect", "--format", "{{.State.Pid}}", "shop-web"]);
    let pid = pid.parse().unwrap();
    let socket = docker.socket();
    let asking = identifier(&[&socket], &[]);
    assert_called(&asking, pid, &id, "shop-web");

    // Who does not know it, or is not there, leaves the id.
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nobody.sock");
    let alone = whole(&identifier(&[&missing], &[&missing]), pid);
    assert_eq!(alone.label(label::CONTAINER_ID), id);
    assert_eq!(alone.label(label::CONTAINER), "");
    assert_eq!(alone.label(label::SERVICE_NAME), "waits");
    // And what does not answer is said, and does not hide who does.
    fs::write(&missing, "no list").unwrap();
    let both = identifier(&[&missing, &socket], &[&missing]);
    assert_called(&both, pid, &id, "shop-web");
    let sources = both.sources();
    let error = sources[0].error.as_deref().unwrap_or_default();
    assert!(error.contains("nobody.sock"), "{sources:?}");
}

/// A Podman with its own store. Dropping it ends its containers.
struct Podman {
    folder: tempfile::TempDir,
    cgroup: CgroupName,
    libraries: String,
}

impl Podman {
    fn command(&self) -> Command {
        let podman = debian::package("podman").join("usr/bin/podman");
        let mut command = Command::new(podman);
        let at = |name: &str| self.folder.path().join(name);
        command
            .arg("--root")
            .arg(at("store"))
            .arg("--runroot")
            .arg(at("run"));
        command.arg("--tmpdir").arg(at("tmp"));
        let conmon = debian::package("conmon").join("usr/bin/conmon");
        let runc = debian::package("runc").join("usr/sbin/runc");
        command
            .arg("--conmon")
            .arg(conmon)
            .arg("--runtime")
            .arg(runc);
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        command.args(["--storage-driver", "vfs"]);
        command.env("LD_LIBRARY_PATH", &self.libraries);
        command
    }

    #[track_caller]
    fn call(&self, args: &[&str]) -> String {
        let outcome = command::run(self.command().args(args), LIMIT, REMEDY).succeeded();
        outcome.text().trim().to_owned()
    }

    /// Runs a container, and says its id and its process.
    #[track_caller]
    fn run(&self, name: &str, more: &[&str]) -> (String, u32) {
        let parent = self.cgroup.path("");
        let root = root_in(&self.folder.path().join(name), "waits");
        let mut args = vec!["run", "--detach", "--name", name, "--network", "none"];
        args.extend(["--cgroup-parent", &parent, "--ulimit", "nofile=1024:1024"]);
        args.extend(["--ulimit", "nproc=1024:1024"]);
        args.extend(more);
        args.extend([
            "--rootfs",
            root.to_str().unwrap(),
            "/waits",
            "-duration",
            "5m",
        ]);
        let id = self.call(&args);
        let pid = self.call(&["inspect", "--format", "{{.State.Pid}}", name]);
        (id, pid.parse().unwrap())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let mut remove = self.command();
        command::run(
            remove.args(["rm", "--force", "--time", "0", "--all"]),
            LIMIT,
            REMEDY,
        );
    }
}

#[test]
fn podmans_containers_have_their_name_with_a_service_and_without() {
    let podman = Podman {
        folder: tempfile::tempdir().unwrap(),
        cgroup: CgroupName::new(),
        libraries: debian::libraries("podman"),
    };
    let kept = podman.run("shop-web", &[]);
    // Newer ones list those that go with their end in a file of their own.
    let removed = podman.run("shop-job", &["--rm"]);
    let folder = podman.folder.path().join("store/vfs-containers");
    let lists = ["containers.json", "volatile-containers.json"].map(|name| folder.join(name));
    let lists = lists.each_ref().map(PathBuf::as_path);
    let by_list = identifier(&[], &lists);
    assert_called(&by_list, kept.1, &kept.0, "shop-web");
    let by_list = identifier(&[], &lists);
    assert_called(&by_list, removed.1, &removed.0, "shop-job");

    let socket = podman.folder.path().join("podman.sock");
    let mut service = podman.command();
    service.args(["system", "service", "--time", "0"]);
    service.arg(format!("unix://{}", socket.display()));
    let service = Running::start(&mut service, REMEDY);
    let deadline = Instant::now() + LIMIT;
    while !socket.exists() {
        assert!(Instant::now() < deadline, "podman's service does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    let by_service = identifier(&[&socket], &[]);
    assert_called(&by_service, kept.1, &kept.0, "shop-web");
    drop(service);
}
