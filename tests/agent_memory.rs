//! Profiles of memory that the agent takes by rule, held against what the program
//! counts itself.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::process::Command;
use std::time::Duration;

use goprof_tests::agent::{self, Agent, Row};
use goprof_tests::go;
use goprof_tests::talker::Talker;
use goprof_tests::target::Target;

const LIMIT: Duration = Duration::from_secs(60);

const RULES: &str = r#"
[[rules]]

[[rules]]
event = "heap"

[[rules]]
event = "allocs"
include = [{ name = "alloc_.*" }]
"#;

/// `TotalAlloc` and `HeapAlloc` of `runtime.MemStats`.
fn memstats(program: &mut Talker) -> [i64; 2] {
    let stats = program.tell("memstats");
    let mut numbers = stats.split(' ').map(|n| n.parse().expect("a number"));
    [(); 2].map(|()| numbers.next().expect("two numbers"))
}

#[track_caller]
fn assert_within_a_tenth(ours: i64, own: i64, what: &str) {
    assert!(
        (ours - own).abs() * 10 <= own,
        "{what}: {ours} where the program counts {own}"
    );
}

#[test]
fn what_rules_ask_for_is_in_the_store() {
    let mut command = Command::new(go::build("alloc_sites"));
    command.envs([("GODEBUG", "memprofilerate=512"), ("GOMAXPROCS", "1")]);
    let mut program = Talker::start_command(&mut command);
    let unread = Target::start(&go::build("alloc_unread"), &[]);
    for words in ["round", "round", "round", "settle"] {
        program.tell(words);
    }
    let before = memstats(&mut program);

    let dir = tempfile::tempdir().expect("make a directory");
    let config = dir.path().join("goprof.toml");
    std::fs::write(&config, RULES).expect("write the configuration");
    let config = config.to_str().expect("UTF-8");
    let agent = Agent::start(dir.path(), &["--config", config, "--flush", "3s"]);
    let readings = |event, result| {
        format!("goprof_memory_readings_total{{event=\"{event}\",result=\"{result}\"}}")
    };
    agent.wait_for(&readings("heap", "read"), 1.0, LIMIT);
    for words in ["round", "round", "settle"] {
        program.tell(words);
    }
    let after = memstats(&mut program);
    let read = agent.metric(&readings("heap", "read"));
    agent.wait_for(&readings("heap", "read"), read + 2.0, LIMIT);

    // Who is read, and who has nothing to be read.
    let targets = agent.get("/targets");
    assert!(targets.contains("\"event\": \"heap\""), "{targets}");
    assert!(targets.contains("\"event\": \"allocs\""), "{targets}");
    assert!(
        targets.contains("\"heap: it takes no heap profile"),
        "{targets}"
    );
    assert!(agent.metric(&readings("heap", "no_heap_profile")) >= 1.0);
    let seconds = "goprof_memory_reading_seconds_total{event=\"allocs\"}";
    assert!(agent.metric(seconds) > 0.0);
    agent.stop().succeeded();

    let rows = agent::rows(dir.path());
    let of = |event: &str| -> Vec<&Row> {
        let of = |row: &&Row| row.pid == i64::from(program.pid()) && row.event == event;
        rows.iter().filter(of).collect()
    };
    let heap = of("heap");
    let last = heap.iter().map(|row| row.start_ns).max().expect("a heap");
    let of_last = heap.iter().filter(|row| row.start_ns == last);
    let in_use = of_last.map(|row| row.value).sum();
    assert_within_a_tenth(in_use, after[1], "in use");
    let allocated = of("allocs").iter().map(|row| row.value).sum();
    assert_within_a_tenth(allocated, after[0] - before[0], "allocated");
    let names = |row: &&&Row| row.functions.iter().any(|name| name == "main.round");
    assert!(of("allocs").iter().filter(names).count() > 10);
    let unread = i64::from(unread.pid());
    assert!(
        !rows
            .iter()
            .any(|row| row.pid == unread && row.event != "cpu")
    );
}
