//! Goroutines and their time as the agent takes them by rule and by HTTP, held against
//! a program whose goroutines are known.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::time::{Duration, Instant};

use goprof_tests::agent::{self, Agent, Row};
use goprof_tests::go;
use goprof_tests::http;
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::talker::Talker;

const LIMIT: Duration = Duration::from_secs(60);

const RULES: &str = r#"
[[rules]]
exclude = [{ name = "waiting" }]

[[rules]]
event = "goroutine"
include = [{ name = "wait.*" }]

[[rules]]
event = "wall"
include = [{ name = "wait.*" }]
"#;

#[test]
fn what_rules_ask_for_is_in_the_store_and_others_by_http() {
    let program = Talker::start(&go::build("waiting"), &[]);
    let other = Talker::start(&go::build("parked"), &[]);
    let dir = tempfile::tempdir().expect("make a directory");
    let config = dir.path().join("goprof.toml");
    std::fs::write(&config, RULES).expect("write the configuration");
    let config = config.to_str().expect("UTF-8");
    let agent = Agent::start(dir.path(), &["--config", config, "--flush", "3s"]);
    let readings = |event, result| {
        format!("goprof_memory_readings_total{{event=\"{event}\",result=\"{result}\"}}")
    };
    agent.wait_for(&readings("wall", "read"), 3.0, LIMIT);
    let targets = agent.get("/targets");
    for event in ["wall", "goroutine"] {
        let collected = format!("\"event\": \"{event}\"");
        assert_eq!(targets.matches(&collected).count(), 1, "{targets}");
        let seconds = format!("goprof_memory_reading_seconds_total{{event=\"{event}\"}}");
        let per_reading = agent.metric(&seconds) / agent.metric(&readings(event, "read"));
        // Of three seconds.
        assert!((0.0..0.5).contains(&per_reading), "{event}: {per_reading}");
    }
    let running = "goprof_incomplete_total{reason=\"goroutine_running\"}";
    assert!(agent.metric(running) > 1.0);
    by_http(&agent, &other);
    let ended = Instant::now();
    agent.stop().succeeded();
    assert!(ended.elapsed() < Duration::from_secs(10));

    let rows = agent::rows(dir.path());
    let of = |event: &str| -> Vec<&Row> { rows.iter().filter(|row| row.event == event).collect() };
    assert!(
        of("cpu")
            .iter()
            .all(|row| row.pid != i64::from(program.pid()))
    );
    let (wall, once) = (of("wall"), of("goroutine"));
    let is_its = |row: &&&Row| row.pid == i64::from(program.pid());
    assert_eq!(wall.iter().filter(is_its).count(), wall.len());
    assert_eq!(once.iter().filter(is_its).count(), once.len());
    let mut windows: Vec<(i64, i64)> = wall.iter().map(|r| (r.start_ns, r.duration_ns)).collect();
    windows.sort_unstable();
    windows.dedup();
    assert!(windows.len() >= 3, "{windows:?}");
    // One begins where the one before ended, and each has all of its time.
    for pair in windows.windows(2) {
        let gap_ns = pair[1].0 - (pair[0].0 + pair[0].1);
        assert!(gap_ns.abs() < 2_000_000, "{pair:?}");
    }
    let all_ns: i64 = windows.iter().map(|(_, duration_ns)| duration_ns).sum();
    let is_of = |function: &str, row: &Row| row.functions.iter().any(|name| name == function);
    let receives = wall.iter().filter(|row| is_of("main.receives", row));
    let time_ns: i64 = receives.clone().map(|row| row.value).sum();
    let goroutines = time_ns as f64 / all_ns as f64;
    assert!((goroutines - 40.0).abs() < 0.05, "{goroutines}");
    let leaf = |row: &&&Row| {
        row.functions
            .last()
            .is_some_and(|name| name == "[chan receive]")
    };
    assert_eq!(receives.clone().filter(leaf).count(), receives.count());
    let last = once.iter().map(|row| row.start_ns).max().expect("a window");
    let count: i64 = once
        .iter()
        .filter(|r| r.start_ns == last)
        .map(|r| r.value)
        .sum();
    assert_eq!(count, 60);
}

#[track_caller]
fn by_http(agent: &Agent, program: &Talker) {
    let url = |query: &str| {
        let pid = program.pid();
        format!("{}/debug/goprof/profile?pid={pid}&{query}", agent.url)
    };
    let profile = |query: &str| Profile::decode(&http::get(&url(query)));
    let is_receiving = |stack: &&Stack| stack.has("main.receives");
    let once = profile("event=goroutine");
    let count: u64 = once
        .stacks
        .iter()
        .filter(is_receiving)
        .map(|s| s.count)
        .sum();
    assert_eq!(count, 4, "{}", once.top(20));
    let wall = profile("event=wall&seconds=1");
    let time_ns: i64 = wall
        .stacks
        .iter()
        .filter(is_receiving)
        .map(|s| s.values[1])
        .sum();
    assert!((time_ns - 4_000_000_000).abs() < 20_000_000, "{time_ns}");
    let refused = http::request("GET", &url("event=goroutine&seconds=3"), b"", LIMIT);
    assert!(refused.expect_err("there is no time in it").contains("400"));
}
