//! `goprof doctor`, and the same checks before a recording: on this machine, on
//! Go and other processes, and where something is missing or hidden.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use goprof_tests::command::{self, Outcome};
use goprof_tests::go::{self, Variant};
use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{goprof, quiet};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);
const UTIL_LINUX: &str = "install util-linux, which has setpriv, unshare, mount and script";

/// Every capability that goprof asks for.
const CAPABILITIES: &str = "+bpf,+perfmon,+sys_ptrace,+checkpoint_restore,+dac_read_search,+syslog";

fn parse(outcome: &Outcome) -> Value {
    serde_json::from_str(outcome.text()).expect("doctor --json writes JSON")
}

/// The check of that name in a list of them.
#[track_caller]
fn check<'a>(checks: &'a Value, id: &str) -> &'a Value {
    let found = checks.as_array().expect("a list").iter();
    let found = found.clone().find(|check| check["id"] == id);
    found.unwrap_or_else(|| panic!("no check {id} in {checks:#}"))
}

#[track_caller]
fn found<'a>(checks: &'a Value, id: &str) -> &'a str {
    check(checks, id)["found"].as_str().expect("a text")
}

/// What doctor says of a running program, all of it.
#[track_caller]
fn of_process(pid: u32, code: i32) -> Value {
    let outcome = goprof::run(&["doctor", "--json", "-p", &pid.to_string()]);
    assert_eq!(outcome.code(), code, "{}", outcome.text());
    let report = parse(&outcome);
    assert_eq!(report["ok"], code == 0);
    assert_eq!(report["processes"][0]["pid"], pid);
    report["processes"][0]["checks"].clone()
}

#[track_caller]
fn of_program(program: &str, variant: Variant) -> Value {
    let target = Target::start(&go::build_with(program, go::NEWEST, variant), &[]);
    of_process(target.pid(), 0)
}

/// A copy of goprof that anybody may run, and its folder.
fn open_copy() -> (tempfile::TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("make a directory");
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(dir.path(), all).expect("open it");
    let copy = dir.path().join("goprof");
    std::fs::copy(goprof::binary(), &copy).expect("copy goprof");
    (dir, copy)
}

/// Runs a copy of goprof as nobody, with these capabilities (`+bpf,+perfmon`).
#[track_caller]
fn run_as_nobody(capabilities: &str, args: &[&str]) -> Outcome {
    let (dir, copy) = open_copy();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
    for set in ["--inh-caps", "--ambient-caps"] {
        let caps = ["-all", capabilities].join(if capabilities.is_empty() { "" } else { "," });
        command.arg(format!("{set}={caps}"));
    }
    command.arg(&copy).args(args).current_dir(dir.path());
    command::run(&mut command, LIMIT, UTIL_LINUX)
}

/// Runs goprof in namespaces of its own, after `setup`.
#[track_caller]
fn run_apart(flags: &[&str], setup: &str, args: &[&str]) -> Outcome {
    let mut command = Command::new("unshare");
    command.args(flags);
    command.args(["sh", "-c", &format!("set -e; {setup}\nexec \"$@\""), "sh"]);
    command.arg(goprof::binary()).args(args);
    command::run(&mut command, LIMIT, UTIL_LINUX)
}

/// It failed with code 1 and one line that holds the words.
#[track_caller]
fn assert_line(outcome: &Outcome, words: &[&str]) {
    let said = outcome.stderr.trim_end();
    assert_eq!(outcome.code(), 1, "`{}`: {said}", outcome.command);
    assert_eq!(said.lines().count(), 1, "not one line: {said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said:?}");
    }
}

#[test]
fn nothing_is_missing_where_the_tests_run() {
    let outcome = goprof::run(&["doctor"]);
    let said = outcome.text();
    assert_eq!(outcome.code(), 0, "{said}");
    assert_eq!(outcome.stderr, "");
    assert!(!said.contains('\x1b'), "colours are for terminals: {said}");
    assert!(!said.contains("FAIL"), "{said}");
    for what in ["kernel types (BTF)", "capabilities", "eBPF maps", "tracefs"] {
        assert!(
            said.lines().any(|line| line.contains(what)),
            "{what}: {said}"
        );
    }
    assert!(said.contains("Nothing stands in the way of a profile"));
}

#[test]
fn json_tells_every_check_by_a_stable_id() {
    let outcome = goprof::run(&["doctor", "--json"]).succeeded();
    let report = parse(&outcome);
    assert_eq!(report["ok"], true);
    assert_eq!(report["processes"], Value::Array(Vec::new()));
    for id in [
        "proc",
        "kernel_version",
        "user_namespace",
        "capabilities",
        "cap_sys_ptrace",
        "cap_checkpoint_restore",
        "cap_dac_read_search",
        "pid_namespace",
        "seccomp",
        "btf",
        "lockdown",
        "ring_buffer",
        "helpers",
        "memlock",
        "unprivileged_bpf_disabled",
        "perf_event_paranoid",
        "sample_rate",
        "clock",
        "kallsyms",
        "tracefs",
        "programs",
        "probes",
    ] {
        let check = check(&report["system"], id);
        assert!(check["what"].is_string() && check["found"].is_string());
        let status = check["status"].as_str().expect("a status");
        // Whatever is not right has a remedy, and nothing else has.
        assert_eq!(check["remedy"].is_string(), status != "ok", "{check:#}");
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    assert!(found(&report["system"], "kernel_version").contains(release.trim()));
}

#[test]
fn a_go_program_is_described() {
    let checks = of_program("busy_loop", Variant::Plain);
    let version = format!("go{}", go::NEWEST);
    assert!(found(&checks, "go_version").contains(&version));
    assert!(found(&checks, "program").ends_with("busy_loop"));
    let linking = found(&checks, "linking");
    assert!(
        linking.contains("static") && linking.contains("with symbols"),
        "{linking}"
    );
    let tables = found(&checks, "tables");
    let count = tables.split(' ').next().expect("a number");
    assert!(count.parse::<u32>().expect("a number") > 1000, "{tables}");
    assert!(found(&checks, "profiles").contains("inlined calls"));
}

#[test]
fn a_stripped_pie_is_told_from_a_plain_program() {
    let checks = of_program("busy_loop", Variant::StrippedPie);
    let linking = found(&checks, "linking");
    assert!(linking.contains("position-independent"), "{linking}");
    assert!(linking.contains("stripped"), "{linking}");
    // Names and inlined calls come from what stripping leaves.
    assert_eq!(check(&checks, "tables")["status"], "ok");
    assert!(found(&checks, "profiles").contains("inlined calls"));
}

#[test]
fn c_functions_of_a_stripped_program_are_not_promised() {
    let whole = of_program("cgo_call", Variant::Plain);
    assert_eq!(check(&whole, "c_code")["status"], "ok");
    assert!(found(&whole, "profiles").ends_with("C functions"));
    let stripped = of_program("cgo_call", Variant::Stripped);
    let c_code = check(&stripped, "c_code");
    assert_eq!(c_code["status"], "warn");
    assert!(c_code["remedy"].as_str().expect("a text").contains("-s"));
    assert!(found(&stripped, "profiles").ends_with("by address"));
    // Without C code there is nothing to say of it.
    let pure = of_program("busy_loop", Variant::Stripped);
    assert!(!pure.to_string().contains("c_code"), "{pure:#}");
}

#[test]
fn a_program_without_inlined_calls_is_noticed() {
    let dir = tempfile::tempdir().expect("make a directory");
    let binary = dir.path().join("busy_loop");
    {
        let _turn = quiet::building();
        let flags = ["-gcflags=all=-l"];
        go::go_build("busy_loop", go::NEWEST, &flags, &binary).succeeded();
    }
    let target = Target::start(&binary, &[]);
    let checks = of_process(target.pid(), 0);
    assert_eq!(check(&checks, "inline_tables")["status"], "warn");
    assert!(!found(&checks, "profiles").contains("inlined"));
}

#[test]
fn a_deleted_and_a_replaced_file_are_said() {
    let dir = tempfile::tempdir().expect("make a directory");
    let binary = dir.path().join("busy");
    std::fs::copy(go::build("busy_loop"), &binary).expect("copy the program");
    let target = Target::start(&binary, &[]);
    let file = |checks: &Value| found(checks, "file").to_owned();
    let path = binary.to_str().expect("UTF-8");
    assert_eq!(file(&of_process(target.pid(), 0)), path);
    std::fs::remove_file(&binary).expect("remove the program");
    assert!(file(&of_process(target.pid(), 0)).contains("deleted"));
    std::fs::write(&binary, "another").expect("write another");
    let checks = of_process(target.pid(), 0);
    assert!(file(&checks).contains("replaced"));
    assert_eq!(check(&checks, "tables")["status"], "ok");
}

#[test]
fn what_is_not_a_go_process_is_said() {
    let target = Target::spawn(Command::new("sleep").arg("60"));
    target.descendant("sleep");
    let checks = of_process(target.pid(), 1);
    let program = check(&checks, "program");
    assert_eq!(program["status"], "fail");
    assert!(found(&checks, "program").contains("not a Go program"));
    assert!(found(&checks, "file").contains("sleep"));

    let nobody = u32::MAX >> 2;
    let checks = of_process(nobody, 1);
    assert!(found(&checks, "process").contains(&format!("no process {nobody}")));

    let both = [target.pid_arg(), nobody.to_string()];
    let outcome = goprof::run(&["doctor", "-p", &both[0], "-p", &both[1]]);
    assert_eq!(outcome.code(), 1);
    let fails = |line: &&str| line.trim_start().starts_with("FAIL");
    assert_eq!(outcome.text().lines().filter(fails).count(), 2);
    assert_eq!(goprof::run(&["doctor", "-p", "0"]).code(), 2);
}

#[test]
fn a_missing_capability_is_named_before_anything_is_loaded() {
    let outcome = run_as_nobody("", &["doctor", "--json"]);
    assert_eq!(outcome.code(), 1);
    let report = parse(&outcome);
    assert_eq!(report["ok"], false);
    let capabilities = check(&report["system"], "capabilities");
    assert_eq!(capabilities["status"], "fail");
    let remedy = capabilities["remedy"].as_str().expect("a text");
    assert!(
        remedy.contains("sudo") && remedy.contains("setcap"),
        "{remedy}"
    );
    assert_eq!(check(&report["system"], "cap_sys_ptrace")["status"], "warn");

    let target = Target::start(&go::build("busy_loop"), &[]);
    let record = ["record", "-d", "20", "-p", &target.pid_arg()];
    assert_line(
        &run_as_nobody("", &record),
        &["CAP_BPF and CAP_PERFMON", "root"],
    );
    assert_line(&run_as_nobody("+bpf", &record), &["CAP_PERFMON is missing"]);
    assert_line(&run_as_nobody("+perfmon", &record), &["CAP_BPF is missing"]);
    // That there is nothing to record needs no rights to be found.
    let nothing = run_as_nobody("", &["record", "-p", &(u32::MAX >> 2).to_string()]);
    assert_line(&nothing, &["there is no process"]);
    // The last right missing is the one to look at the process.
    let outcome = run_as_nobody("+bpf,+perfmon", &record);
    assert_line(&outcome, &["permission denied", "CAP_SYS_PTRACE"]);
}

#[test]
fn the_capabilities_it_asks_for_are_enough() {
    let outcome = run_as_nobody(CAPABILITIES, &["doctor", "--json"]);
    let report = parse(&outcome);
    assert_eq!(outcome.code(), 0, "{report:#}");
    for id in [
        "capabilities",
        "cap_sys_ptrace",
        "cap_dac_read_search",
        "kallsyms",
    ] {
        assert_eq!(check(&report["system"], id)["status"], "ok");
    }
    let binary = go::build("busy_loop");
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let record = ["record", "-d", "2", "-p", &target.pid_arg(), "-o", "-"];
    let outcome = run_as_nobody(CAPABILITIES, &record).succeeded();
    let profile = Profile::decode(&outcome.stdout);
    assert!(profile.main_share("main.spin") > 0.9);
}

#[test]
fn a_container_is_told_to_share_pids() {
    let apart = ["--pid", "--fork", "--mount-proc"];
    let outcome = run_apart(&apart, "", &["doctor", "--json"]);
    assert_eq!(outcome.code(), 1);
    let system = &parse(&outcome)["system"];
    assert_eq!(check(system, "pid_namespace")["status"], "fail");
    let outcome = run_apart(&apart, "", &["record", "-a", "-d", "20"]);
    assert_line(&outcome, &["pid namespace", "--pid=host", "hostPID"]);
}

#[test]
fn rights_of_a_rootless_container_do_not_count() {
    let apart = ["--user", "--map-root-user"];
    let outcome = run_apart(&apart, "", &["record", "-a", "-d", "20"]);
    assert_line(&outcome, &["user namespace", "real root"]);
}

#[test]
fn a_rate_that_the_kernel_refuses_names_the_setting() {
    let limit = "/proc/sys/kernel/perf_event_max_sample_rate";
    let dir = tempfile::tempdir().expect("make a directory");
    let lower = dir.path().join("limit");
    std::fs::write(&lower, "5000\n").expect("write a limit");
    let setup = format!("mount --bind {} {limit}", path_arg(&lower));
    let record = ["record", "-a", "-r", "9999", "-d", "20"];
    let outcome = run_apart(&["--mount"], &setup, &record);
    let words = ["9999", "kernel.perf_event_max_sample_rate", "5000", "-r"];
    assert_line(&outcome, &words);
}

#[test]
fn a_kernel_without_types_is_said() {
    let setup = "mount -t tmpfs none /sys/kernel/btf";
    let outcome = run_apart(&["--mount"], setup, &["record", "-a", "-d", "20"]);
    assert_line(&outcome, &["BTF", "CONFIG_DEBUG_INFO_BTF"]);
}

#[test]
fn a_missing_tracefs_is_only_a_warning() {
    let setup = "mount -t tmpfs none /sys/kernel/tracing; mount -t tmpfs none /sys/kernel/debug";
    let outcome = run_apart(&["--mount"], setup, &["doctor"]);
    let said = outcome.text();
    assert_eq!(outcome.code(), 0, "{said}");
    assert!(said.contains("mount -t tracefs"), "{said}");
    assert!(said.contains(" warning"), "{said}");
}

fn path_arg(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Runs goprof on a terminal of its own and returns what that showed.
#[track_caller]
fn on_a_terminal(args: &str, env: &[(&str, &str)]) -> Outcome {
    let line = format!("{} {args}", path_arg(&goprof::binary()));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    command.env("TERM", "xterm").env_remove("NO_COLOR");
    command.envs(env.iter().copied());
    command::run(&mut command, LIMIT, UTIL_LINUX)
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let outcome = on_a_terminal("doctor", &[]);
    assert_eq!(outcome.code(), 0);
    assert!(outcome.text().contains("\x1b[32mok"), "{}", outcome.text());
    let outcome = on_a_terminal("doctor", &[("NO_COLOR", "1")]);
    assert!(!outcome.text().contains('\x1b'), "{}", outcome.text());
}

#[test]
fn a_binary_profile_is_kept_off_the_terminal() {
    let outcome = on_a_terminal("record -a -d 20 -o -", &[]);
    assert_eq!(outcome.code(), 2, "{}", outcome.text());
    assert!(outcome.text().contains("not for a terminal"));
    // Text is welcome there.
    let target = Target::start(&go::build("busy_loop"), &[]);
    let args = format!("record -p {} -d 1 -f folded -o -", target.pid());
    let outcome = on_a_terminal(&args, &[]);
    assert_eq!(outcome.code(), 0, "{}", outcome.text());
    assert!(outcome.text().contains("main.spin"));
}

#[test]
fn an_aborted_recording_leaves_nothing_behind() {
    let target = Target::start(&go::build("busy_loop"), &[]);
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("p.pb.gz");
    let running = goprof::start(&["record", "-p", &target.pid_arg(), "-o", path_arg(&file)]);
    std::thread::sleep(Duration::from_secs(4));
    let files = || std::fs::read_dir(dir.path()).expect("list it").count();
    // Nor would one that is killed now.
    assert_eq!(files(), 0, "a file lies there before it is whole");
    // Stopped meanwhile, so that both are there when it looks.
    for signal in [libc::SIGSTOP, libc::SIGINT, libc::SIGTERM, libc::SIGCONT] {
        running.signal(signal);
    }
    let outcome = running.finish(Duration::from_secs(10));
    assert_eq!(outcome.code(), 130, "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("nothing was written"),
        "{}",
        outcome.stderr
    );
    assert_eq!(files(), 0, "litter is left");
}
