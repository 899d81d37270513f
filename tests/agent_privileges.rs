//! The rights that the agent does with: six capabilities, in a container that has
//! nothing else, whose root cannot be written and whose system calls are filtered.
//! And what is missing without each of them, and said.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

#[path = "identity_containers/kubelet.rs"]
mod kubelet;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::agent::{self, Row, free_port};
use goprof_tests::command::{self, Outcome, Running};
use goprof_tests::containerd::{Containerd, path};
use goprof_tests::go::{self, NEWEST, source_dir};
use goprof_tests::identity::CgroupName;
use goprof_tests::target::Target;
use goprof_tests::{cache_dir, goprof, http, quiet};
use kubelet::{Kubelet, UID};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const REMEDY: &str = "run this test as root, on Debian";

/// All that goprof asks for.
const CAPABILITIES: [&str; 6] = [
    "CAP_BPF",
    "CAP_PERFMON",
    "CAP_SYS_PTRACE",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_SYSLOG",
];

/// The user of a program that nobody else may read, and one without rights.
const OWNER: u32 = 4711;
const NOBODY: u32 = 65534;

/// Programs that each take another right to be profiled.
struct Targets {
    containerd: Containerd,
    /// In a pod.
    pod: u32,
    /// Another user's, whose file nobody else may read.
    unreadable: Target,
    /// Its plugin's file is deleted.
    deleted: Target,
    /// Busy in the kernel.
    kernel: Target,
    _folder: tempfile::TempDir,
}

impl Targets {
    #[track_caller]
    fn start() -> Self {
        let [host, plugin] = build_plugin();
        let (busy, calls) = (go::build("busy_loop"), go::build("system_calls"));
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let private = folder.path().join("private");
        fs::copy(busy, &private).unwrap();
        chown(&private, Some(OWNER), Some(OWNER)).unwrap();
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
        let mut command = Command::new("setpriv");
        let id = OWNER.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
        command
            .arg(private)
            .args(["-duration", "5m"])
            .current_dir("/");
        let unreadable = Target::start_command(&mut command);
        let copy = folder.path().join("plugin.so");
        fs::copy(plugin, &copy).unwrap();
        let deleted = Target::start(&host, &["-plugin", copy.to_str().unwrap()]);
        fs::remove_file(copy).unwrap();
        let containerd = Containerd::start();
        containerd.import_image("waits");
        containerd.import_image("busy_loop");
        let cgroup = containerd.cgroup(&format!("/kubepods/burstable/pod{UID}"));
        let kubelet = Kubelet::connect(&containerd.socket(), &cgroup, "busy_loop");
        let container = kubelet.run_pod(["store", "shop-0", "web"], "");
        Self {
            pod: containerd.pid("k8s.io", &container),
            containerd,
            unreadable,
            deleted,
            kernel: Target::start(&calls, &[]),
            _folder: folder,
        }
    }
}

fn build_plugin() -> [PathBuf; 2] {
    let _turn = quiet::building();
    let dir = cache_dir().join(format!("plugin-go{NEWEST}-0"));
    fs::create_dir_all(&dir).unwrap();
    let build = |program: &str, flags: &[&str], file: PathBuf| {
        let mut go = go::go(NEWEST);
        go.arg("build").args(flags).arg("-o").arg(&file);
        go.arg(format!("./{program}")).env("CGO_ENABLED", "1");
        let limit = Duration::from_secs(300);
        command::run(go.current_dir(source_dir("")), limit, go::REMEDY).succeeded();
        file
    };
    [
        build("plugin_host", &[], dir.join("plugin_host")),
        build(
            "plugin_code",
            &["-buildmode=plugin"],
            dir.join("plugin_code.so"),
        ),
    ]
}

/// The filter of system calls that containerd gives a container with these
/// capabilities by default.
#[track_caller]
fn default_filter(containerd: &Containerd, capabilities: &[&str]) -> Value {
    let root = containerd.folder().join("no-root");
    fs::create_dir_all(&root).unwrap();
    let id = "filter";
    let mut args = vec!["containers", "create", "--seccomp"];
    for capability in capabilities {
        args.extend(["--cap-add", capability]);
    }
    args.extend(["--rootfs", root.to_str().unwrap(), id, "/goprof"]);
    containerd.ctr(&args);
    let filter = containerd.info(id)["Spec"]["linux"]["seccomp"].take();
    containerd.ctr(&["containers", "delete", id]);
    assert_eq!(filter["defaultAction"], "SCMP_ACT_ERRNO", "{filter}");
    filter
}

/// An agent in a container of runc's. Dropping it ends it.
struct Contained {
    folder: tempfile::TempDir,
    running: Option<Running>,
    url: String,
    /// Removed after the container.
    _cgroup: CgroupName,
}

impl Contained {
    #[track_caller]
    fn start(containerd: &Containerd, capabilities: &[&str], uid: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let all = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), all).unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(&root).unwrap();
        fs::copy(goprof::binary(), root.join("goprof")).unwrap();
        // The libraries that it is linked with are the system's.
        for name in ["lib", "lib64"] {
            if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
                std::os::unix::fs::symlink(target, root.join(name)).unwrap();
            }
        }
        let data = folder.path().join("data");
        fs::create_dir_all(&data).unwrap();
        chown(&data, Some(uid), Some(uid)).unwrap();
        let name = CgroupName::new();
        let mut contained = Self {
            folder,
            running: None,
            url: format!("http://127.0.0.1:{}", free_port()),
            _cgroup: name,
        };
        contained.configure(containerd, capabilities, uid);
        let mut runc = contained.runc();
        contained.running = Some(Running::start(runc.args(["run", "test"]), REMEDY));
        contained
    }

    /// Writes the container's `config.json`: runc's own, made narrower.
    #[track_caller]
    fn configure(&self, containerd: &Containerd, capabilities: &[&str], uid: u32) {
        command::run(self.runc().arg("spec"), LIMIT, REMEDY).succeeded();
        let file = self.folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["root"] = json!({"path": "root", "readonly": true});
        let listen = self.url.trim_start_matches("http://");
        let process = &mut config["process"];
        assert_eq!(process["noNewPrivileges"], true);
        process["terminal"] = json!(false);
        // The group of root may ask the container runtime.
        process["user"] = json!({"uid": uid, "gid": uid, "additionalGids": [0]});
        let places = ["--store", "/data/store", "--spool", "/data/spool"];
        let args = [
            "/goprof", "agent", "--node", "node-a", "--flush", "1s", "--listen", listen,
        ];
        process["args"] = json!([&args[..], &places].concat());
        // Without root, a right has to be in each of them to outlive the exec.
        for set in [
            "bounding",
            "permitted",
            "inheritable",
            "effective",
            "ambient",
        ] {
            process["capabilities"][set] = json!(capabilities);
        }
        let linux = &mut config["linux"];
        linux["cgroupsPath"] = json!(self._cgroup.path("/agent"));
        linux["seccomp"] = default_filter(containerd, capabilities);
        // The machine's processes, and a port that the test reaches.
        let namespaces = linux["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|space| space["type"] != "pid" && space["type"] != "network");
        let bind = |from: &Path, to: &str, mode: &str| json!({"type": "bind", "source": from, "destination": to, "options": ["bind", mode]});
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(bind(Path::new("/usr"), "/usr", "ro"));
        mounts.push(bind(&self.folder.path().join("data"), "/data", "rw"));
        let socket = "/run/containerd/containerd.sock";
        mounts.push(bind(&containerd.socket(), socket, "ro"));
        fs::write(&file, config.to_string()).unwrap();
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.folder.path().join("state"));
        command.current_dir(self.folder.path()).env("PATH", path());
        command
    }

    fn metrics(&self) -> String {
        let url = format!("{}/metrics", self.url);
        let body = http::request("GET", &url, b"", LIMIT).unwrap_or_default();
        String::from_utf8(body).unwrap()
    }

    /// Waits until this many windows are finished, with samples or without.
    #[track_caller]
    fn wait_for_windows(&mut self, windows: u32) {
        let deadline = Instant::now() + LIMIT;
        let finished = |metrics: &str| -> u32 {
            let lines = metrics.lines();
            let lines = lines.filter_map(|line| line.strip_prefix("goprof_windows_total{"));
            let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u32>().ok());
            counts.sum()
        };
        while finished(&self.metrics()) < windows {
            let is_running = self.running.as_mut().unwrap().is_running();
            if !is_running || Instant::now() > deadline {
                let metrics = self.metrics();
                command::run(self.runc().args(["kill", "test", "KILL"]), LIMIT, REMEDY);
                panic!("no windows: {}\n{metrics}", self.finish().stderr);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for its end.
    #[track_caller]
    fn finish(&mut self) -> Outcome {
        self.running.take().unwrap().finish(LIMIT)
    }

    /// Ends it, and says what it stored and what it logged.
    #[track_caller]
    fn stop(mut self) -> (Vec<Row>, String) {
        command::run(self.runc().args(["kill", "test", "TERM"]), LIMIT, REMEDY).succeeded();
        let outcome = self.finish().succeeded();
        let rows = agent::rows(&self.folder.path().join("data"));
        (rows, outcome.stderr)
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        let mut delete = self.runc();
        command::run(delete.args(["delete", "--force", "test"]), LIMIT, REMEDY);
    }
}

/// Samples of a process in a function.
fn samples(rows: &[Row], pid: u32, function: &str) -> i64 {
    let has = |row: &&Row| {
        row.pid == i64::from(pid) && row.functions.iter().any(|name| name.ends_with(function))
    };
    rows.iter().filter(has).map(|row| row.count).sum()
}

/// What each right is for: a function that is only seen with it.
fn seen(rows: &[Row], targets: &Targets, capability: &str) -> bool {
    let (pid, function) = match capability {
        "CAP_SYS_PTRACE" => (targets.pod, "main.spinThree"),
        "CAP_CHECKPOINT_RESTORE" => (targets.deleted.pid(), "plugin_code.burn"),
        "CAP_DAC_READ_SEARCH" => (targets.unreadable.pid(), "main.spinThree"),
        _ => (targets.kernel.pid(), "vfs_read"),
    };
    samples(rows, pid, function) > 0
}

/// Whether the kernel shows its addresses to anybody (`kallsyms_show_value`,
/// kernel/ksyms_common.c).
fn shows_addresses() -> bool {
    let setting = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap();
    let paranoid: i32 = setting("perf_event_paranoid").trim().parse().unwrap();
    setting("kptr_restrict").trim() == "0" && paranoid <= 1
}

#[test]
fn six_capabilities_are_enough_and_each_is_needed() {
    let targets = Targets::start();
    // Root does with them too, as what follows shows.
    let mut agent = Contained::start(&targets.containerd, &CAPABILITIES, NOBODY);
    agent.wait_for_windows(3);
    let (rows, said) = agent.stop();
    for capability in &CAPABILITIES[2..] {
        assert!(seen(&rows, &targets, capability), "{capability}\n{said}");
    }
    // Whose it is, the container runtime said.
    let named = |row: &Row| row.pid == i64::from(targets.pod) && row.service == "store/web";
    assert!(rows.iter().any(named), "{said}");
    assert!(!said.contains("level=warn"), "{said}");
    for missing in CAPABILITIES {
        let rest: Vec<&str> = CAPABILITIES.into_iter().filter(|c| *c != missing).collect();
        let mut agent = Contained::start(&targets.containerd, &rest, 0);
        if ["CAP_BPF", "CAP_PERFMON"].contains(&missing) {
            let outcome = agent.finish();
            assert_eq!(outcome.code(), 1, "{missing}: {}", outcome.stderr);
            let said = outcome.stderr.trim_end();
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(said.contains(&format!("{missing} is missing")), "{said}");
            continue;
        }
        agent.wait_for_windows(2);
        let (rows, said) = agent.stop();
        let is_needed = missing != "CAP_SYSLOG" || !shows_addresses();
        assert_eq!(
            seen(&rows, &targets, missing),
            !is_needed,
            "{missing}\n{said}"
        );
        assert_eq!(said.contains(missing), is_needed, "{missing}\n{said}");
        for other in CAPABILITIES[2..].iter().filter(|other| **other != missing) {
            // Without a look at other users' processes there is not much to see.
            let unseen = missing == "CAP_SYS_PTRACE" || seen(&rows, &targets, other);
            assert!(unseen, "{other} without {missing}\n{said}");
        }
    }
}
