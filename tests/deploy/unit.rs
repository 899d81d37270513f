//! The systemd unit: systemd takes it, it leaves goprof no more than it needs, and
//! with that the agent does all that it is for, run by a real systemd.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::agent::free_port;
use goprof_tests::command::{Outcome, Running};
use goprof_tests::identity::CgroupName;
use goprof_tests::target::Target;
use goprof_tests::{command, go, goprof, http, workspace};

use crate::tools::{LIMIT, deployed, text};

const REMEDY: &str = "install systemd, which need not run; `.ci/run` does that by itself";
/// Most exposure that `systemd-analyze security` may find, in tenths.
const MAX_EXPOSURE: &str = "30";
/// What an instance of systemd wants to have besides.
const TARGETS: [&str; 4] = ["basic", "shutdown", "sysinit", "exit"];
/// Capabilities of the unit, by their numbers.
const CAPABILITIES: [u32; 6] = [39, 38, 19, 40, 2, 34];

#[test]
fn systemd_takes_the_unit() {
    let folder = tempfile::tempdir().expect("make a folder");
    let unit = folder.path().join("goprof.service");
    fs::write(&unit, text("systemd/goprof.service")).expect("write the unit");
    // The program where the unit has it, for systemd-analyze alone.
    let script = "mount -t tmpfs tmpfs /usr/local/bin && cp \"$0\" /usr/local/bin/goprof \
                  && exec systemd-analyze verify --man=no \"$1\"";
    let verify = || {
        let mut verify = Command::new("unshare");
        verify.args(["--mount", "sh", "-c", script]);
        command::run(verify.arg(goprof::binary()).arg(&unit), LIMIT, REMEDY)
    };
    let outcome = verify().succeeded();
    assert_eq!(outcome.stderr.trim(), "");

    // It finds what is wrong.
    let wrong = text("systemd/goprof.service").replace("StateDirectory=", "StateDirectry=");
    fs::write(&unit, wrong).expect("write the unit");
    let outcome = verify();
    assert!(
        outcome.stderr.contains("StateDirectry"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn the_unit_is_exposed_to_little() {
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=true", "--threshold", MAX_EXPOSURE]);
    security.arg(deployed("systemd/goprof.service"));
    command::run(&mut security, LIMIT, REMEDY).succeeded();
}

/// A systemd that runs the unit. Dropping it ends all that it started.
struct Manager {
    running: Option<Running>,
    cgroup: CgroupName,
    url: String,
    _folder: tempfile::TempDir,
}

impl Manager {
    #[track_caller]
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        // The agent's user has to get through.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open it");
        let [units, etc] = ["units", "etc"].map(|name| folder.path().join(name));
        fs::create_dir_all(etc.join("all")).expect("make a folder");
        fs::create_dir(&units).expect("make a folder");
        let own = "[Unit]\nDefaultDependencies=no\n";
        for target in TARGETS {
            fs::write(units.join(format!("{target}.target")), own).expect("write a unit");
        }
        fs::write(units.join("goprof.service"), text("systemd/goprof.service")).expect("write it");
        let listen = format!("127.0.0.1:{}", free_port());
        let config = format!(
            "flush = \"1s\"\n[http]\nlisten = \"{listen}\"\n\
             [store]\nurl = \"/var/lib/goprof/store\"\n\
             [spool]\npath = \"/var/lib/goprof/spool\"\n"
        );
        fs::write(etc.join("goprof.toml"), config).expect("write a configuration");
        let cgroup = CgroupName::new();
        let mut manager = Command::new("unshare");
        manager.args(["--mount", "sh"]);
        manager.arg(workspace().join("tests/deploy/manager.sh"));
        manager.arg(cgroup.path("")).arg(goprof::binary());
        manager.arg(&units).arg(&etc);
        Self {
            running: Some(Running::start(&mut manager, REMEDY)),
            cgroup,
            url: format!("http://{listen}"),
            _folder: folder,
        }
    }

    fn pid(&self) -> u32 {
        self.running.as_ref().expect("it runs").pid()
    }

    /// Asks it for something, as an operator does.
    #[track_caller]
    fn systemctl(&self, args: &[&str]) -> Outcome {
        let mut systemctl = Command::new("nsenter");
        systemctl.arg(format!("--target={}", self.pid()));
        systemctl.args(["--mount", "env", "XDG_RUNTIME_DIR=/run/user/0"]);
        systemctl.args(["systemctl", "--user"]).args(args);
        command::run(&mut systemctl, LIMIT, REMEDY)
    }

    #[track_caller]
    fn show(&self, property: &str) -> String {
        let outcome = self.systemctl(&["show", "--value", "--property", property, "goprof"]);
        outcome.succeeded().text().trim().to_owned()
    }

    /// Waits until a metric is at least that.
    #[track_caller]
    fn wait_for(&self, metric: &str, least: f64) -> String {
        let deadline = Instant::now() + LIMIT;
        let url = format!("{}/metrics", self.url);
        loop {
            let answer = http::request("GET", &url, b"", Duration::from_secs(5));
            let answer = answer.map(|body| String::from_utf8(body).expect("text"));
            let text = answer.unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(metric));
            let value = line.and_then(|value| value.trim().parse::<f64>().ok());
            if value.is_some_and(|value| value >= least) {
                return text;
            }
            assert!(
                Instant::now() < deadline,
                "{metric} is never {least}\n{}\n{text}",
                self.systemctl(&["status", "--no-pager", "goprof"]).text()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // What it started outlives it where it did not end by itself.
        drop(self.running.take());
        for hierarchy in ["unified", "systemd", ""] {
            let top = Path::new("/sys/fs/cgroup").join(hierarchy);
            kill_in(&top.join(self.cgroup.path("").trim_start_matches('/')));
        }
    }
}

/// Kills what is in a cgroup and below.
fn kill_in(cgroup: &Path) {
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().flat_map(str::parse::<i32>) {
        // SAFETY: kill takes two integers and touches no memory here. What has
        // ended meanwhile is as it should be.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.path().is_dir()) {
        kill_in(&entry.path());
    }
}

#[test]
fn the_agent_has_what_it_needs_from_systemd() {
    // Root's, in a file that only root may read.
    let folder = tempfile::tempdir().expect("make a folder");
    let program = folder.path().join("busy_loop");
    fs::copy(go::build("busy_loop"), &program).expect("copy a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("close it");
    let busy = Target::start(&program, &[]);

    let manager = Manager::start();
    manager.wait_for("goprof_uploads_total{result=\"success\"}", 3.0);
    manager.wait_for("goprof_stacks_total{end=\"whole\"}", 20.0);
    let targets: serde_json::Value =
        serde_json::from_slice(&http::get(&format!("{}/targets", manager.url))).expect("JSON");
    let processes = targets["processes"].as_array().expect("processes");
    let found = processes
        .iter()
        .find(|process| process["pid"] == busy.pid());
    let found = found.unwrap_or_else(|| panic!("{targets:#}"));
    assert_eq!(found["collected"][0]["event"], "cpu", "{found:#}");

    check_confinement(&manager);
    let profile = format!(
        "{}/debug/goprof/profile?pid={}&seconds=3",
        manager.url,
        busy.pid()
    );
    let profile = goprof_tests::pprof::Profile::decode(&http::get(&profile));
    assert!(profile.total() > 5, "{}", profile.total());
    assert!(profile.cumulative_share("main.spinThree") > 0.5);

    manager.systemctl(&["reload", "goprof"]).succeeded();
    manager.wait_for("goprof_config_reloads_total{result=\"success\"}", 1.0);
    let begun = Instant::now();
    manager.systemctl(&["stop", "goprof"]).succeeded();
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert_eq!(manager.show("Result"), "success");
}

/// What the kernel says of the agent's process is what the unit says.
#[track_caller]
fn check_confinement(manager: &Manager) {
    let pid = manager.show("MainPID");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent's status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a field").trim().to_owned()
    };
    assert!(
        !field("Uid:").split_whitespace().any(|uid| uid == "0"),
        "{status}"
    );
    let given = CAPABILITIES.iter().fold(0_u64, |all, bit| all | 1 << bit);
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16), Ok(given), "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    // It writes to its own folder, and to nothing else of the machine.
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).expect("its mounts");
    let root = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(1) == Some("/"));
    let options = root.expect("a root").split(' ').nth(3).expect("options");
    assert!(options.split(',').any(|option| option == "ro"), "{options}");
    assert_eq!(manager.show("StateDirectory"), "goprof");
}
