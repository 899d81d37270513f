//! Who a process is by what this machine says of it: cgroups named as container
//! runtimes and systemd name them, the environment, the binary, and processes
//! that are gone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use goprof::identity::{Cri, Identifier, Options, Program, label};
use goprof_tests::command;
use goprof_tests::go::{self, Variant};
use goprof_tests::identity::{Cgroup, program, unified};
use goprof_tests::target::Target;

const ID: &str = "3f1c2a0e9b8d7c6f5a4e3d2c1b0a99887766554433221100ffeeddccbbaa9988";

const LIMIT: Duration = Duration::from_secs(30);

/// Nobody to ask.
fn alone() -> Identifier {
    Identifier::new(Options {
        node: Some("node-a".to_owned()),
        cluster: None,
        cri: Cri::Off,
        engines: None,
    })
    .unwrap()
}

fn waits(configure: impl FnOnce(&mut Command)) -> Target {
    start(&go::build("waits"), configure)
}

fn start(binary: &Path, configure: impl FnOnce(&mut Command)) -> Target {
    let mut command = Command::new(binary);
    command.args(["-duration", "5m"]);
    command.env_clear();
    configure(&mut command);
    Target::start_command(&mut command)
}

#[test]
fn a_plain_program_is_named_by_its_binary() {
    let target = waits(|_| ());
    let program = program(target.pid());
    let found = alone().identify(target.pid(), &program);
    assert!(!found.is_partial);
    assert_eq!(found.label(label::SERVICE_NAME), "waits");
    assert_eq!(found.label(label::NODE), "node-a");
    assert_eq!(found.label(label::GO_VERSION), format!("go{}", go::NEWEST));
    assert_eq!(found.label(label::MODULE), "example.com/fixtures");
    assert_eq!(found.label(label::MODULE_VERSION), "(devel)");
    assert!(found.label(label::EXE).ends_with("/waits"));
    for name in [label::CONTAINER_ID, label::POD, label::UNIT] {
        assert!(!found.labels.contains_key(name), "{found:?}");
    }
}

#[test]
fn the_build_id_is_gnus() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("waits");
    let flags = ["-ldflags=-B 0x0123456789abcdef0123456789abcdef01234567"];
    go::go_build("waits", go::NEWEST, &flags, &binary).succeeded();
    let target = start(&binary, |_| ());
    let found = alone().identify(target.pid(), &program(target.pid()));
    assert_eq!(
        found.label(label::BUILD_ID),
        "0123456789abcdef0123456789abcdef01234567"
    );
}

#[test]
fn a_stripped_program_says_its_version_all_the_same() {
    let binary = go::build_with("waits", go::NEWEST, Variant::StrippedPie);
    let target = start(&binary, |_| ());
    let found = alone().identify(target.pid(), &program(target.pid()));
    assert_eq!(found.label(label::GO_VERSION), format!("go{}", go::NEWEST));
}

#[test]
fn the_environment_names_the_service() {
    let identifier = alone();
    let target = waits(|command| {
        command.env("OTEL_RESOURCE_ATTRIBUTES", "team=a,service.name=shop");
        command.env("SECRET", "hunter2");
    });
    let found = identifier.identify(target.pid(), &program(target.pid()));
    assert_eq!(found.label(label::SERVICE_NAME), "shop");
    assert!(!format!("{found:?}").contains("hunter2"));
}

#[test]
fn units_and_containers_are_found_by_their_cgroups() {
    let identifier = alone();
    let target = waits(|_| ());
    let program = program(target.pid());
    for (path, name, value, service) in [
        (
            "/system.slice/shop.service",
            label::UNIT,
            "shop.service",
            "shop",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/cart.service",
            label::UNIT,
            "cart.service",
            "cart",
        ),
        (&format!("/docker/{ID}"), label::CONTAINER_ID, ID, "waits"),
        (
            &format!("/machine.slice/libpod-{ID}.scope/container"),
            label::CONTAINER_ID,
            ID,
            "waits",
        ),
    ] {
        let cgroup = Cgroup::make(unified(), path);
        cgroup.put(target.pid());
        // It is looked at once; this is another process to the identifier.
        identifier.forget(target.pid());
        let found = identifier.identify(target.pid(), &program);
        assert_eq!(found.label(name), value, "{path}");
        assert_eq!(found.label(label::SERVICE_NAME), service, "{path}");
        assert!(!found.is_partial, "{path}");
        fs::write(unified().join("cgroup.procs"), target.pid_arg()).unwrap();
    }
}

#[test]
fn a_hierarchy_of_version_1_is_enough() {
    let hierarchy = OldHierarchy::mount();
    let cgroup = Cgroup::make(hierarchy.0.path(), &format!("/docker/{ID}"));
    let target = waits(|_| ());
    cgroup.put(target.pid());
    let found = alone().identify(target.pid(), &program(target.pid()));
    assert_eq!(found.label(label::CONTAINER_ID), ID);
    drop(target);
}

/// What the test that sees others from a namespace is told, when it runs there.
const INSIDE: &str = "GOPROF_TEST_NEIGHBOUR";
const OTHER_ID: &str = "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecf";

/// As an agent in a container, to which its own cgroup is the root of all: it
/// runs this test again, there.
#[test]
fn an_agent_in_a_cgroup_namespace_sees_itself_and_its_neighbours() {
    if let Ok(neighbour) = std::env::var(INSIDE) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        assert!(own.contains("0::/\n"), "{own}");
        let identifier = alone();
        for (pid, id) in [
            (std::process::id(), OTHER_ID),
            (neighbour.parse().unwrap(), ID),
        ] {
            let found = identifier.identify(pid, &program(pid));
            assert_eq!(found.label(label::CONTAINER_ID), id);
            assert!(found.is_partial, "it is in a pod: {found:?}");
        }
        println!("seen from inside");
        return;
    }
    let pod = "/kubepods.slice/kubepods-pod7f2c9a44_0d1e_4b6a_9a57_2b1f0c8e6d31.slice";
    let outer = Cgroup::make(unified(), &format!("{pod}/docker-{OTHER_ID}.scope"));
    let beside = outer.folder().with_file_name(ID);
    fs::create_dir(&beside).unwrap();
    let target = waits(|_| ());
    fs::write(beside.join("cgroup.procs"), target.pid_arg()).unwrap();
    // The namespace begins where the process is; mounted anew, that is the root.
    let script = format!(
        "echo $$ > {0}/cgroup.procs && exec unshare --cgroup --mount sh -c \
         'umount --lazy {1} && mount -t cgroup2 none {1} && exec \"$0\" --exact --nocapture \"$1\"' \"$0\" \"$1\"",
        outer.folder().display(),
        unified().display(),
    );
    let mut inside = Command::new("sh");
    inside.args(["-c", &script]);
    inside.arg(std::env::current_exe().unwrap());
    inside.arg("an_agent_in_a_cgroup_namespace_sees_itself_and_its_neighbours");
    inside.env(INSIDE, target.pid_arg());
    let outcome = command::run(&mut inside, LIMIT, "install util-linux").succeeded();
    assert!(outcome.text().contains("seen from inside"), "{outcome:?}");
    drop(target);
}

#[test]
fn a_pod_without_anybody_to_ask_stays_partial() {
    let target = waits(|_| ());
    let cgroup = Cgroup::make(
        unified(),
        &format!("/kubepods/burstable/pod7f2c9a44-0d1e-4b6a-9a57-2b1f0c8e6d31/{ID}"),
    );
    cgroup.put(target.pid());
    let found = alone().identify(target.pid(), &program(target.pid()));
    assert!(found.is_partial);
    assert_eq!(found.label(label::CONTAINER_ID), ID);
    assert_eq!(found.label(label::SERVICE_NAME), "waits");
    drop(target);
}

#[test]
fn a_process_that_is_gone_keeps_who_it_was() {
    let identifier = alone();
    let target = waits(|command| {
        command.env("OTEL_SERVICE_NAME", "shop");
    });
    let pid = target.pid();
    let program = program(pid);
    let before = identifier.identify(pid, &program);
    drop(target);
    assert_eq!(identifier.identify(pid, &program), before);
    assert_eq!(before.label(label::SERVICE_NAME), "shop");
    // Another program under the same pid is another process.
    let other = Program {
        exe: "/bin/other".to_owned(),
        ..Program::default()
    };
    let found = identifier.identify(pid, &other);
    assert_eq!(found.label(label::SERVICE_NAME), "other");
}

#[test]
fn a_process_that_was_never_looked_at_is_found_by_its_cgroups_id() {
    let identifier = alone();
    let cgroup = Cgroup::make(unified(), &format!("/system.slice/docker-{ID}.scope"));
    let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let program = Program {
        exe: "/bin/short".to_owned(),
        cgroup_id: cgroup.id(),
        ..Program::default()
    };
    let found = identifier.identify(pid, &program);
    assert_eq!(found.label(label::CONTAINER_ID), ID);
    assert_eq!(found.label(label::SERVICE_NAME), "short");
    // Once found it is known, though the cgroup is gone.
    drop(cgroup);
    identifier.forget(pid);
    let again = identifier.identify(pid, &program);
    assert_eq!(again.label(label::CONTAINER_ID), ID);
}

#[test]
fn a_pid_that_is_used_again_is_another_process() {
    // The same program by the same name, with another environment: only the
    // start time tells them apart. A pid namespace gives the pids in order.
    let identifier = alone();
    let target = waits(|command| {
        command.env("OTEL_SERVICE_NAME", "before");
    });
    let program = program(target.pid());
    let pid = target.pid();
    let found = identifier.identify(pid, &program);
    assert_eq!(found.label(label::SERVICE_NAME), "before");
    drop(target);
    // Start times are in hundredths of a second.
    std::thread::sleep(Duration::from_millis(30));
    let again = restart_as(pid, |command| {
        command.env("OTEL_SERVICE_NAME", "after");
    });
    let found = identifier.identify(pid, &program);
    assert_eq!(found.label(label::SERVICE_NAME), "after");
    drop(again);
}

/// Starts the program until it gets `pid`, which the kernel is told to give
/// next.
fn restart_as(pid: u32, configure: impl Fn(&mut Command)) -> Target {
    for _ in 0..100 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let target = waits(&configure);
        if target.pid() == pid {
            return target;
        }
    }
    panic!("pid {pid} is always taken by others");
}

#[test]
fn hostile_names_are_made_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("wa\nits\x1b[2J\u{202e}");
    fs::copy(go::build("waits"), &binary).unwrap();
    let target = start(&binary, |command| {
        command.env(
            "OTEL_SERVICE_NAME",
            format!("a\"\n\r\t{}", "x".repeat(5000)),
        );
    });
    let cgroup = Cgroup::make(unified(), "/system.slice/a\u{85}\tb.service");
    cgroup.put(target.pid());
    let found = alone().identify(target.pid(), &program(target.pid()));
    assert_eq!(found.label(label::UNIT), "a\u{fffd}\u{fffd}b.service");
    assert!(
        found
            .label(label::EXE)
            .ends_with("wa\u{fffd}its\u{fffd}[2J\u{fffd}")
    );
    for (name, value) in &found.labels {
        assert!(
            !value.is_empty() && value.len() <= 1024,
            "{name}: {value:?}"
        );
        assert!(!value.contains(char::is_control), "{name}: {value:?}");
    }
    drop(target);
}

#[test]
fn no_process_at_all_is_still_a_target() {
    let found = alone().identify(u32::MAX, &Program::default());
    assert_eq!(found.label(label::SERVICE_NAME), "unknown");
    assert!(!found.is_partial);
}

#[test]
fn a_cluster_without_a_node_is_refused() {
    let result = Identifier::new(Options {
        cluster: Some(goprof::identity::Cluster::Own),
        ..Options::default()
    });
    let error = result.err().unwrap().to_string();
    assert!(error.contains("NODE_NAME"), "{error}");
}

/// A named hierarchy of cgroup v1, as systemd mounts its own beside v2.
struct OldHierarchy(tempfile::TempDir);

impl OldHierarchy {
    #[track_caller]
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "cgroup", "-o", "none,name=goprof-test", "goprof-test"]);
        mount.arg(folder.path());
        command::run(&mut mount, LIMIT, "run this test as root").succeeded();
        Self(folder)
    }
}

impl Drop for OldHierarchy {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        command::run(unmount.arg(self.0.path()), LIMIT, "run this test as root").succeeded();
    }
}
