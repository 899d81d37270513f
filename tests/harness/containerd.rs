//! A containerd of the test's own: Debian's, with its folders, sockets and
//! containers in a temporary folder, and gone with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command::{self, Outcome, Running};
use crate::identity::CgroupName;
use crate::{debian, go};

const LIMIT: Duration = Duration::from_secs(60);
const REMEDY: &str = "run this test as root";

/// The image of a program of `tests/go/` and nothing else.
pub fn image(program: &str) -> String {
    format!("goprof.test/{program}:1")
}

/// A `PATH` with Debian's container tools.
pub fn path() -> String {
    let containerd = debian::package("containerd").join("usr/bin");
    let runc = debian::package("runc").join("usr/sbin");
    let path = std::env::var("PATH").unwrap();
    format!("{}:{}:{path}", containerd.display(), runc.display())
}

/// A root file system with a program and nothing else.
#[track_caller]
pub fn root_in(folder: &Path, program: &str) -> PathBuf {
    let root = folder.join("root");
    fs::create_dir_all(&root).unwrap();
    fs::copy(go::build(program), root.join(program)).unwrap();
    root
}

/// A running containerd. Dropping it ends all its containers.
pub struct Containerd {
    folder: tempfile::TempDir,
    server: Option<Running>,
    /// Removed after the containers.
    cgroup: CgroupName,
}

impl Containerd {
    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let pause = image("waits");
        // The kubelet's pause containers are to survive when memory is short,
        // which a test without CAP_SYS_RESOURCE may not ask for.
        let config = format!(
            r#"version = 2
root = "{at}/lib"
state = "{at}/run"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{at}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  stream_server_port = "0"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{at}/cni"
    conf_dir = "{at}/cni"
"#
        );
        let file = folder.path().join("config.toml");
        fs::write(&file, config).unwrap();
        let mut server = Command::new("containerd");
        server.arg("--config").arg(file).env("PATH", path());
        let containerd = Self {
            server: Some(Running::start(&mut server, REMEDY)),
            folder,
            cgroup: CgroupName::new(),
        };
        let deadline = Instant::now() + LIMIT;
        while !containerd.try_ctr(&["version"]).status.success() {
            assert!(Instant::now() < deadline, "containerd does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        containerd
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("containerd.sock")
    }

    /// A cgroup for containers, gone with it.
    pub fn cgroup(&self, path: &str) -> String {
        self.cgroup.path(path)
    }

    /// A folder that is gone with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `ctr` with arguments.
    #[track_caller]
    pub fn ctr(&self, args: &[&str]) -> Outcome {
        self.try_ctr(args).succeeded()
    }

    fn try_ctr(&self, args: &[&str]) -> Outcome {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.socket()).args(args);
        command::run(ctr.env("PATH", path()), LIMIT, REMEDY)
    }

    /// The process of a container.
    #[track_caller]
    pub fn pid(&self, namespace: &str, id: &str) -> u32 {
        let tasks = self.ctr(&["--namespace", namespace, "tasks", "ls"]);
        let mut lines = tasks.text().lines();
        let line = lines.find(|line| line.starts_with(id)).unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Brings an [`image`] in, for the containers of Kubernetes.
    #[track_caller]
    pub fn import_image(&self, program: &str) {
        let folder = self.folder.path().join("image").join(program);
        let root = root_in(&folder, program);
        let layer = folder.join("layer.tar");
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&layer).arg("-C").arg(root).arg(program);
        command::run(&mut tar, LIMIT, "install tar").succeeded();
        let sum = command::run(
            Command::new("sha256sum").arg(&layer),
            LIMIT,
            "install coreutils",
        )
        .succeeded();
        let sum = sum.text().split_ascii_whitespace().next().unwrap();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"Entrypoint": [format!("/{program}"), "-duration", "5m"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
        });
        let manifest = json!([
            {"Config": "config.json", "RepoTags": [image(program)], "Layers": ["layer.tar"]},
        ]);
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        let image = folder.join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&image).arg("-C").arg(&folder);
        tar.args(["manifest.json", "config.json", "layer.tar"]);
        command::run(&mut tar, LIMIT, "install tar").succeeded();
        let image = image.to_str().unwrap();
        self.ctr(&[
            "--namespace",
            "k8s.io",
            "images",
            "import",
            "--snapshotter",
            "native",
            image,
        ]);
    }

    /// What it says of a container.
    #[track_caller]
    pub fn info(&self, id: &str) -> Value {
        let info = self.ctr(&["containers", "info", id]);
        serde_json::from_str(info.text()).unwrap()
    }

    /// Ends it without its containers.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.signal(libc::SIGTERM);
            server.finish(LIMIT);
        }
    }

    /// The shims that it started, which outlive it.
    fn shims(&self) -> Vec<u32> {
        let socket = self.socket().display().to_string();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("containerd-shim") && line.contains(&socket)
        })
        .collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop();
        for shim in self.shims() {
            let children = format!("/proc/{shim}/task/{shim}/children");
            let children = fs::read_to_string(children).unwrap_or_default();
            let children = children.split_ascii_whitespace();
            for pid in children.flat_map(str::parse).chain([shim]) {
                // SAFETY: kill takes two integers and touches no memory here.
                // What has ended meanwhile is as it should be.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            }
        }
        let at = self.folder.path().display().to_string();
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        for line in mounts.lines().rev() {
            if let Some(mount) = line.split(' ').nth(1).filter(|path| path.starts_with(&at)) {
                let _ = Command::new("umount").args(["--lazy", mount]).status();
            }
        }
    }
}
