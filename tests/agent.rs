//! The agent at work: what it stores, serves and survives.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::agent::{self, Agent, Row};
use goprof_tests::command::{self, Outcome};
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::talker::Talker;
use goprof_tests::target::Target;
use goprof_tests::{debian, go, http};

const LIMIT: Duration = Duration::from_secs(60);

fn busy() -> Target {
    Target::start(&go::build("busy_loop"), &[])
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("make a directory")
}

/// Samples of a process whose stack holds a function.
fn samples(rows: &[Row], pid: u32, function: &str) -> i64 {
    let of =
        |row: &&Row| row.pid == i64::from(pid) && row.functions.iter().any(|name| name == function);
    rows.iter().filter(of).map(|row| row.count).sum()
}

fn log_lines<'a>(outcome: &'a Outcome, words: &str) -> Vec<&'a str> {
    let lines = outcome.stderr.lines();
    lines.filter(|line| line.contains(words)).collect()
}

const UPLOADED: &str = "goprof_uploads_total{result=\"success\"}";

#[test]
fn what_a_program_does_is_in_the_store_after_two_flushes() {
    let target = busy();
    let dir = folder();
    let agent = Agent::start(dir.path(), &["--flush", "3s"]);
    agent.wait_for(UPLOADED, 2.0, LIMIT);
    let mut rows = agent::rows(dir.path());
    // On a machine where others are at work it may have had little of a CPU by then.
    let deadline = Instant::now() + LIMIT;
    while samples(&rows, target.pid(), "main.spinOne") < 5 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(500));
        rows = agent::rows(dir.path());
    }
    let three = samples(&rows, target.pid(), "main.spinThree");
    let one = samples(&rows, target.pid(), "main.spinOne");
    assert!(one >= 5 && three > one, "{three} and {one} samples");
    let row = rows.iter().find(|row| row.pid == i64::from(target.pid()));
    assert_eq!(row.expect("a row").service, "busy_loop");

    // Windows follow one another: what was sampled is what is stored.
    let counted = agent.metric("goprof_samples_total{event=\"cpu\"}");
    let outcome = agent.stop().succeeded();
    let stored: i64 = agent::rows(dir.path()).iter().map(|row| row.count).sum();
    assert!(stored as f64 >= counted, "{stored} of {counted}");
    let warnings = log_lines(&outcome, "level=warn");
    // It samples whatever runs here, also programs of others that have no goroutine
    // after a second, as on a loaded machine.
    let is_of_others =
        |line: &&&str| line.contains("no goroutine ids") && !line.contains("busy_loop");
    let ours = warnings.iter().filter(|line| !is_of_others(line)).count();
    assert_eq!(ours, 0, "{}", outcome.stderr);
}

#[test]
fn sighup_reloads_and_a_bad_file_changes_nothing() {
    let target = busy();
    let dir = folder();
    let path = dir.path().join("goprof.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("write a configuration");
    write("rate_hz = 19\nflush = \"1s\"\n");
    let arg = path.to_str().expect("a UTF-8 path");
    let agent = Agent::start(dir.path(), &["--config", arg]);
    agent.wait_for(UPLOADED, 1.0, LIMIT);
    let is_last_successful = || agent.metric("goprof_config_last_reload_successful");
    let taken_over = || agent.metric("goprof_config_last_reload_success_timestamp_seconds");
    let at_start = taken_over();
    assert_eq!(is_last_successful(), 1.0);
    assert!(at_start > 1.7e9, "{at_start}");

    write("rate_hz = 19\nflush = \"1s\"\nflsh = 3\n");
    agent.signal(libc::SIGHUP);
    agent.wait_for(
        "goprof_config_reloads_total{result=\"failure\"}",
        1.0,
        LIMIT,
    );
    assert_eq!((is_last_successful(), taken_over()), (0.0, at_start));
    let before = agent.metric(UPLOADED);
    agent.wait_for(UPLOADED, before + 1.0, LIMIT);

    write("flush = \"1s\"\n[[rules]]\nexclude = [{ name = \"busy_loop\" }]\n");
    agent.signal(libc::SIGHUP);
    agent.wait_for(
        "goprof_config_reloads_total{result=\"success\"}",
        1.0,
        LIMIT,
    );
    assert_eq!(is_last_successful(), 1.0);
    assert!(taken_over() > at_start, "{at_start}");
    let name = format!("\"pid\": {},", target.pid());
    let excluded = || {
        let text = agent.get("/targets");
        let at = text.find(&name)?;
        text[at..]
            .find("no rule takes it")
            .filter(|found| *found < 1200)
    };
    let deadline = Instant::now() + LIMIT;
    while excluded().is_none() {
        assert!(Instant::now() < deadline, "{}", agent.get("/targets"));
        std::thread::sleep(Duration::from_millis(200));
    }
    // Nothing of it is stored from here on.
    std::thread::sleep(Duration::from_secs(2));
    let before = samples(&agent::rows(dir.path()), target.pid(), "main.spinThree");
    std::thread::sleep(Duration::from_secs(3));
    let outcome = agent.stop().succeeded();
    let after = samples(&agent::rows(dir.path()), target.pid(), "main.spinThree");
    assert!(before > 0);
    assert_eq!(after, before);
    let lines = log_lines(&outcome, "not reloaded");
    assert_eq!(lines.len(), 1, "{}", outcome.stderr);
    assert!(lines[0].contains("line 3: flsh"), "{}", lines[0]);
}

/// The windows that a process has samples in, by their start: that, and the end.
fn windows(rows: &[Row], pid: u32) -> Vec<(i64, i64)> {
    let rows = rows.iter().filter(|row| row.pid == i64::from(pid));
    let windows = rows.map(|row| (row.start_ns, row.start_ns + row.duration_ns));
    let windows: std::collections::BTreeSet<_> = windows.collect();
    windows.into_iter().collect()
}

#[test]
fn a_reload_leaves_out_next_to_nothing_and_counts_nothing_twice() {
    let target = busy();
    let steady = Target::start(&go::build("inlined_leaf"), &[]);
    let dir = folder();
    let path = dir.path().join("goprof.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("write a configuration");
    let reloads = std::cell::Cell::new(0.0);
    let reload = |agent: &Agent, text: &str| {
        write(text);
        agent.signal(libc::SIGHUP);
        reloads.set(reloads.get() + 1.0);
        let success = "goprof_config_reloads_total{result=\"success\"}";
        agent.wait_for(success, reloads.get(), LIMIT);
        std::thread::sleep(Duration::from_secs(1));
    };
    let text = |rate_hz: u32, excluded: &str| {
        let rule = format!("[[rules]]\nexclude = [{{ name = \"{excluded}\" }}]\n");
        format!("rate_hz = {rate_hz}\nflush = \"1h\"\n{rule}")
    };
    write(&text(97, "x"));
    let arg = path.to_str().expect("a UTF-8 path");
    let agent = Agent::start(dir.path(), &["--config", arg]);
    std::thread::sleep(Duration::from_secs(1));
    // Samplers that do for both go on in their window.
    reload(&agent, &text(97, "y"));
    assert_eq!(agent::rows(dir.path()), []);
    reload(&agent, &text(89, "y"));
    // Excluded, and after the next sampler began taken in again.
    reload(&agent, &text(89, "busy_loop"));
    reload(&agent, &text(83, "busy_loop"));
    std::thread::sleep(Duration::from_secs(3));
    reload(&agent, &text(83, "y"));
    let excluded = agent.metric("goprof_samples_excluded_total{reason=\"no_rule\"}");
    assert!(excluded > 10.0, "{excluded}");
    std::thread::sleep(Duration::from_secs(3));
    agent.stop().succeeded();
    let rows = agent::rows(dir.path());
    let all = windows(&rows, steady.pid());
    assert_eq!(all.len(), 3, "{all:?}");
    for pair in all.windows(2) {
        let gap_us = (pair[1].0 - pair[0].1) / 1000;
        println!("gap: {gap_us} us");
        assert!((-1000..250_000).contains(&gap_us), "a gap of {gap_us} us");
    }
    let own = windows(&rows, target.pid());
    assert_eq!(own, [all[0], all[2]], "the one between was excluded");
}

#[track_caller]
fn promtool(dir: &Path, metrics: &str) {
    let file = dir.join("metrics");
    std::fs::write(&file, metrics).expect("keep the metrics");
    let promtool = debian::package("prometheus").join("usr/bin/promtool");
    let mut check = Command::new("sh");
    check.args(["-c", "exec \"$0\" check metrics < \"$1\""]);
    check.arg(promtool).arg(file);
    let outcome = command::run(&mut check, LIMIT, "dash").succeeded();
    assert_eq!(outcome.text().trim(), "");
    assert_eq!(outcome.stderr.trim(), "");
}

#[test]
fn metrics_and_pages_survive_hostile_names() {
    let dir = folder();
    let hostile =
        b"<script>alert(1)</script>\"\\\n\xff} 1".map(|c| if c == b'/' { b'_' } else { c });
    let program = dir.path().join(std::ffi::OsStr::from_bytes(&hostile));
    std::fs::copy(go::build("busy_loop"), &program).expect("copy a program");
    let evil = "x".repeat(10_000) + "\"}\n# evil";
    let mut command = Command::new(&program);
    command
        .args(["-duration", "5m"])
        .env("OTEL_SERVICE_NAME", &evil);
    let named = Target::start_command(&mut command);
    let mut command = Command::new(&program);
    let unnamed = Target::start_command(command.args(["-duration", "5m"]));

    let agent = Agent::start(dir.path(), &["--flush", "1s"]);
    agent.wait_for(UPLOADED, 2.0, LIMIT);
    let metrics = agent.get("/metrics");
    assert!(metrics.contains("script"), "{metrics}");
    assert!(!metrics.lines().any(|line| line.starts_with("# evil")));
    promtool(dir.path(), &metrics);

    let json: serde_json::Value = serde_json::from_str(&agent.get("/targets")).expect("JSON");
    let processes = json["processes"].as_array().expect("a list");
    for target in [&named, &unnamed] {
        let found = processes.iter().find(|p| p["pid"] == target.pid());
        let found = found.unwrap_or_else(|| panic!("{json}"));
        assert_eq!(found["collected"][0]["event"], "cpu");
        assert_eq!(found["collected"][0]["rate_hz"], 19);
    }
    let page = http::get_as(&format!("{}/targets", agent.url), "text/html");
    assert!(
        page.to_lowercase().contains("content-security-policy"),
        "{page}"
    );
    assert!(
        page.contains("&lt;script&gt;") && !page.contains("<script"),
        "{page}"
    );

    let outcome = agent.stop().succeeded();
    for line in outcome.stderr.lines() {
        assert!(line.starts_with("time="), "{line}");
    }
    assert!(samples(&agent::rows(dir.path()), named.pid(), "main.spinThree") > 0);
}

#[test]
fn metrics_tell_what_the_runtimes_of_targets_count() {
    let service = format!("counted-{}", std::process::id());
    let mut command = Command::new(go::build("alloc_sites"));
    let mut program = Talker::start_command(command.env("OTEL_SERVICE_NAME", &service));
    program.tell("collect");
    let dir = folder();
    let agent = Agent::start(dir.path(), &["--flush", "1s"]);
    let labels = format!("container=\"\",namespace=\"\",pod=\"\",service_name=\"{service}\"");
    let named = |name: &str| format!("goprof_target_{name}{{{labels}}}");
    let cycles = |program: &mut Talker| {
        let said: serde_json::Value = serde_json::from_str(&program.tell("counts")).expect("JSON");
        said["still"]["cycles"].as_f64().expect("a number")
    };
    let before = cycles(&mut program);
    assert!(before >= 300.0);
    let success = "goprof_runtime_readings_total{result=\"success\"}";
    agent.wait_for(success, 1.0, LIMIT);
    agent.wait_for_any(&named("gc_cycles_total"), before, LIMIT);
    let remembered = agent.metric(&named("gc_pause_seconds_count"));
    assert_eq!(remembered, 256.0);
    program.tell("settle");
    let after = cycles(&mut program);
    agent.wait_for(&named("gc_cycles_total"), after, LIMIT);

    assert_eq!(agent.metric(&named("gc_cycles_total")), after);
    let pauses = agent.metric(&named("gc_pause_seconds_count"));
    assert_eq!(pauses, remembered + after - before);
    assert!(agent.metric(&named("gc_pause_seconds_sum")) > 0.0);
    assert_eq!(agent.metric(&named("goroutines")), 1.0);
    assert!(agent.metric(&named("sched_latency_seconds_count")) > 0.0);
    for name in [
        "heap_live_bytes",
        "heap_goal_bytes",
        "heap_allocated_bytes_total",
    ] {
        assert!(agent.metric(&named(name)) > 100_000.0, "{name}");
    }
    assert!(agent.metric("goprof_runtime_reading_seconds_total") > 0.0);
    promtool(dir.path(), &agent.get("/metrics"));
    agent.stop().succeeded();
}

#[test]
fn metrics_tell_what_is_sampled_and_used() {
    let target = busy();
    let dir = folder();
    let agent = Agent::start(dir.path(), &["--flush", "1s", "--max-targets", "1"]);
    agent.wait_for(UPLOADED, 3.0, LIMIT);
    promtool(dir.path(), &agent.get("/metrics"));
    assert!(agent.metric("goprof_samples_total{event=\"cpu\"}") > 10.0);
    let whole = agent.metric("goprof_stacks_total{end=\"whole\"}");
    assert!(whole > 10.0, "{whole}");
    assert!(agent.metric("goprof_targets{state=\"sampled\"}") >= 1.0);
    assert!(agent.metric("goprof_last_success_timestamp_seconds") > 1.7e9);
    assert!(agent.metric("process_resident_memory_bytes") > 1e6);
    let metrics = agent.get("/metrics");
    assert_eq!(metrics.matches("goprof_target_threads{").count(), 1);
    let sampled = agent.metric("goprof_targets{state=\"sampled\"}");
    if sampled > 1.0 {
        assert!(agent.metric("goprof_target_services_omitted") >= 1.0);
    }
    drop(target);
    agent.stop().succeeded();
}

#[test]
fn a_profile_by_http_is_one_that_pprof_reads() {
    let target = busy();
    let dir = folder();
    let agent = Agent::start(dir.path(), &[]);
    wait_until_seen(&agent, target.pid());
    let url = format!(
        "{}/debug/goprof/profile?pid={}&seconds=2",
        agent.url,
        target.pid()
    );
    let profile = Profile::decode(&http::get(&url));
    assert!(profile.total() > 20, "{}", profile.total());
    assert!(profile.cumulative_share("main.spinThree") > 0.5);

    let mut pprof = go::go(go::NEWEST);
    pprof.args(["tool", "pprof", "-top"]).arg(&url);
    pprof.env("PPROF_TMPDIR", dir.path());
    let top = command::run(&mut pprof, LIMIT, go::REMEDY).succeeded();
    assert!(top.text().contains("main.spinThree"), "{}", top.text());
    assert!(top.text().contains("Type: cpu"), "{}", top.text());

    let by_service = format!(
        "{}/debug/goprof/profile?service=busy_loop&seconds=2",
        agent.url
    );
    let profile = Profile::decode(&http::get(&by_service));
    assert!(profile.total() > 0, "{:?}", profile.raw);
    refusals(&agent, target.pid());
    agent.stop().succeeded();
}

#[track_caller]
fn wait_until_seen(agent: &Agent, pid: u32) {
    let seen = format!("\"pid\": {pid},");
    let deadline = Instant::now() + LIMIT;
    while !agent.get("/targets").contains(&seen) {
        assert!(Instant::now() < deadline, "never seen");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn memory_by_http_is_what_a_program_has() {
    let mut program = Talker::start(&go::build("alloc_sites"), &[]);
    let unread = Target::start(&go::build("alloc_unread"), &[]);
    for words in ["round", "round", "round", "settle"] {
        program.tell(words);
    }
    let dir = folder();
    let agent = Agent::start(dir.path(), &[]);
    wait_until_seen(&agent, program.pid());
    wait_until_seen(&agent, unread.pid());
    let url = |query: &str| format!("{}/debug/goprof/profile?{query}", agent.url);
    let profile = |query: &str| Profile::decode(&http::get(&url(query)));
    let bytes_of = |profile: &Profile, index: usize| -> i64 {
        let of_program = |stack: &&Stack| stack.frames.iter().any(|f| f.function == "main.round");
        let stacks = profile.stacks.iter().filter(of_program);
        stacks.map(|stack| stack.values[index]).sum()
    };
    let heap = profile(&format!("pid={}&event=heap", program.pid()));
    // Three rounds of some megabytes each, sampled once in half of one.
    assert!(bytes_of(&heap, 3) > 1 << 20, "{}", bytes_of(&heap, 3));

    // What is allocated meanwhile, and nothing before.
    let query = format!("pid={}&event=allocs&seconds=4", program.pid());
    let allocs = std::thread::scope(|scope| {
        let taken = scope.spawn(|| profile(&query));
        let rounds = Instant::now();
        while rounds.elapsed() < Duration::from_secs(3) {
            program.tell("round");
            program.tell("free");
        }
        program.tell("settle");
        taken.join().expect("no thread panics")
    });
    assert_eq!(allocs.text(allocs.raw.default_sample_type), "alloc_space");
    assert!(bytes_of(&allocs, 1) > 1 << 20, "{}", bytes_of(&allocs, 1));

    let refused = |query: String| http::request("GET", &url(&query), b"", LIMIT).map(drop);
    let why = refused(format!("pid={}&event=heap", unread.pid()));
    assert!(why.expect_err("it keeps no heap profile").contains("404"));
    let why = refused(format!("pid={}&event=heap&seconds=3", program.pid()));
    assert!(why.expect_err("heap is as it is now").contains("400"));
    agent.stop().succeeded();
}

/// What cannot be answered has the status that says why.
#[track_caller]
fn refusals(agent: &Agent, pid: u32) {
    let ask = |query: &str| {
        let url = format!("{}/debug/goprof/profile?{query}", agent.url);
        http::request("GET", &url, b"", LIMIT)
            .map(drop)
            .unwrap_err_or_default()
    };
    assert!(ask("pid=999999999").contains("404"));
    assert!(ask("").contains("400"));
    assert!(ask(&format!("pid={pid}&seconds=9999")).contains("400"));
    assert!(ask(&format!("pid={pid}&event=luck")).contains("400"));
    // Two at a time.
    let query = format!("pid={pid}&seconds=3");
    std::thread::scope(|scope| {
        let long = |_| scope.spawn(|| ask(&query));
        let running: Vec<_> = (0..2).map(long).collect();
        std::thread::sleep(Duration::from_secs(1));
        assert!(ask(&query).contains("429"), "a third profile at a time");
        for request in running {
            assert_eq!(request.join().expect("no thread panics"), "");
        }
    });
}

trait ErrorOrNothing {
    fn unwrap_err_or_default(self) -> String;
}

impl ErrorOrNothing for Result<(), String> {
    fn unwrap_err_or_default(self) -> String {
        self.err().unwrap_or_default()
    }
}

#[test]
fn two_agents_do_not_share_a_spool() {
    let dir = folder();
    let first = Agent::start(dir.path(), &[]);
    let second = Agent::spawn(dir.path(), &[]).finish();
    assert_eq!(second.code(), 1, "{}", second.stderr);
    assert_eq!(second.stderr.lines().count(), 1, "{}", second.stderr);
    assert!(second.stderr.contains("another agent"), "{}", second.stderr);
    first.stop().succeeded();
}
