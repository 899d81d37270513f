//! Time off the CPU and requests to block devices in the agent: taken by rule, of those
//! the rules name and no others, with metrics; and asked for by HTTP.

use std::process::Command;
use std::time::Duration;

use goprof_tests::agent::{self, Agent};
use goprof_tests::loop_device::Loop;
use goprof_tests::pprof::Profile;
use goprof_tests::talker::Talker;
use goprof_tests::target::Target;
use goprof_tests::{go, http};

const LIMIT: Duration = Duration::from_secs(30);

/// All are profiled by CPU time, the one program's threads off the CPU, the other's
/// requests.
const RULES: &str = "\
[[rules]]

[[rules]]
event = \"offcpu\"
include = [{ name = \"off_cpu.*\" }]

[[rules]]
event = \"io\"
include = [{ name = \"block_io.*\" }]
";

#[test]
fn waits_are_taken_of_those_that_a_rule_names() {
    let (waits, asks) = (go::build("off_cpu"), go::build("block_io"));
    let device = Loop::make();
    let dir = tempfile::tempdir().expect("make a directory");
    let config = dir.path().join("goprof.toml");
    std::fs::write(&config, RULES).expect("write a configuration");
    let config = config.to_str().expect("UTF-8");
    let mut command = Command::new(&waits);
    command.args(["-wait", "60s", "-parts", "sleeps,contends"]);
    let sleeper = Target::start_command(&mut command);
    let asker = Target::start(&asks, &["-device", &device.path, "-forever"]);
    let agent = Agent::start(dir.path(), &["--config", config, "--flush", "1s"]);
    let blocked = "goprof_off_cpu_seconds_total{state=\"blocked\"}";
    agent.wait_for(blocked, 1.0, LIMIT);
    agent.wait_for("goprof_off_cpu_seconds_total{state=\"idle\"}", 1.0, LIMIT);
    let requests = format!(
        "goprof_block_io_seconds_count{{device=\"{}\"}}",
        device.name()
    );
    agent.wait_for_any(&requests, 100.0, LIMIT);

    for (event, target, function) in [
        ("offcpu", &sleeper, "main.sleeps"),
        ("io", &asker, "main.readsAll"),
    ] {
        let url = format!(
            "{}/debug/goprof/profile?event={event}&seconds=1&pid={}",
            agent.url,
            target.pid()
        );
        let profile = Profile::decode(&http::get(&url));
        let has = profile.stacks.iter().any(|stack| stack.has(function));
        assert!(has, "{event}: no {function}\n{}", profile.top(9));
    }
    let targets = agent.get("/targets");
    for line in ["offcpu", "io"] {
        assert!(targets.contains(line), "{targets}");
    }

    agent.stop().succeeded();
    let rows = agent::rows(dir.path());
    for (event, target, function) in [
        ("offcpu", &sleeper, "main.sleeps"),
        ("io", &asker, "main.readsAll"),
    ] {
        let of_event: Vec<_> = rows.iter().filter(|row| row.event == event).collect();
        let pid = i64::from(target.pid());
        assert!(
            of_event.iter().all(|row| row.pid == pid),
            "{event} of another"
        );
        let has = |row: &&&agent::Row| row.functions.iter().any(|name| name == function);
        let ns: i64 = of_event.iter().filter(has).map(|row| row.value).sum();
        assert!(ns > 1_000_000, "{event}: {ns} ns in {function}");
    }
    let cpu = rows.iter().filter(|row| row.event == "cpu");
    assert!(
        cpu.map(|row| row.pid)
            .any(|pid| pid == i64::from(sleeper.pid()))
    );
}

/// Both events of probes are for the one program, and nothing for the other.
const PROBES: &str = "\
[[rules]]

[[rules]]
event = \"mutex\"
include = [{ name = \"contention.*\" }]

[[rules]]
event = \"block\"
include = [{ name = \"contention.*\" }]
probe_budget = \"2%\"
";

#[test]
fn probes_are_on_what_a_rule_names_and_on_nothing_else() {
    let (contention, other) = (go::build("contention"), go::build("waits"));
    let dir = tempfile::tempdir().expect("make a directory");
    let config = dir.path().join("goprof.toml");
    std::fs::write(&config, PROBES).expect("write a configuration");
    let config = config.to_str().expect("UTF-8");
    let contends = Talker::start(&contention, &[]);
    let _other = Target::start(&other, &[]);
    let agent = Agent::start(dir.path(), &["--config", config, "--flush", "2s"]);
    for (metric, least) in [
        ("goprof_wait_seconds_total{event=\"mutex\"}", 2.0),
        ("goprof_wait_seconds_total{event=\"block\"}", 2.0),
        ("goprof_waits_total{event=\"block\"}", 100.0),
        ("goprof_probe_hits_total", 100.0),
    ] {
        agent.wait_for(metric, least, LIMIT);
    }
    let url = format!(
        "{}/debug/goprof/profile?event=block&seconds=2&pid={}",
        agent.url,
        contends.pid()
    );
    let profile = Profile::decode(&http::get(&url));
    let has = profile.stacks.iter().any(|stack| stack.has("main.produce"));
    assert!(has, "no main.produce\n{}", profile.top(9));

    agent.stop().succeeded();
    let rows = agent::rows(dir.path());
    for (event, function) in [("mutex", "main.holdLong"), ("block", "main.produce")] {
        let of_event: Vec<_> = rows.iter().filter(|row| row.event == event).collect();
        let pid = i64::from(contends.pid());
        assert!(
            of_event.iter().all(|row| row.pid == pid),
            "{event} of another"
        );
        let has = |row: &&&agent::Row| row.functions.iter().any(|name| name == function);
        let ns: i64 = of_event.iter().filter(has).map(|row| row.value).sum();
        assert!(ns > 1_000_000, "{event}: {ns} ns in {function}");
    }
}
