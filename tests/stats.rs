//! `goprof stats`, held against what programs of every version say of themselves at
//! the same moment: before and after.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use goprof_tests::go::{self, EVERY_VERSION, NEWEST, Variant};
use goprof_tests::goprof;
use goprof_tests::talker::Talker;
use serde_json::{Value, json};

/// Looks until nothing happens in the program meanwhile.
const ATTEMPTS: usize = 50;

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn stats(pid: &str) -> Value {
    let outcome = goprof::run(&["stats", "--json", "-p", pid]).succeeded();
    parse(outcome.text())
}

fn number(value: &Value) -> u64 {
    let number = value.as_u64();
    number.unwrap_or_else(|| panic!("a number: {value}"))
}

fn list(value: &Value) -> &Vec<Value> {
    let list = value.as_array();
    list.unwrap_or_else(|| panic!("a list: {value}"))
}

fn threads(pid: u32) -> usize {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    tasks.read_dir().expect("list threads").count()
}

/// What goprof finds, and what the program says before and after, of a time in which
/// what the program says to be still was so.
fn at_rest(program: &mut Talker) -> [Value; 3] {
    for _ in 0..ATTEMPTS {
        let before = parse(&program.tell("counts"));
        let tasks = threads(program.pid());
        let found = stats(&program.pid_arg());
        let same = threads(program.pid()) == tasks;
        let after = parse(&program.tell("counts"));
        if same && before["still"] == after["still"] {
            assert_eq!(number(&found["scheduler"]["threads"]), tasks as u64);
            return [found, before, after];
        }
    }
    panic!("the program is never still");
}

/// Holds what goprof finds against what the program says.
fn compare(version: &str, found: &Value, said: [&Value; 2]) {
    let what = format!("go{version}: {}\n{found}", said[0]);
    let still = &said[0]["still"];
    let gc = &found["gc"];
    for name in ["cycles", "forced"] {
        assert_eq!(gc[name], still[name], "{what}");
    }
    assert_eq!(gc["pause_total_ns"], still["pause_total"], "{what}");
    let fraction = |value: &Value| value.as_f64().expect("a fraction");
    let off = fraction(&gc["cpu_fraction"]) - fraction(&still["fraction"]);
    assert!(off.abs() < 1e-9, "{what}");
    // The program has the latest first.
    let pauses = list(&gc["pauses"]).iter().rev();
    let pauses: Vec<Value> = pauses
        .map(|pause| json!([pause["end_unix_ns"], pause["pause_ns"]]))
        .collect();
    assert_eq!(&pauses, list(&still["pauses"]), "{what}");
    let last = &list(&gc["pauses"]).last().expect("a pause")["cycle"];
    assert_eq!(last, &gc["cycles"], "{what}");

    let goroutines = &found["goroutines"];
    let own = number(&goroutines["alive"]) - number(&goroutines["system"]);
    assert_eq!(own, number(&still["goroutines"]), "{what}");
    assert!(number(&goroutines["system"]) >= 3, "{what}");
    assert_eq!(number(&goroutines["by_status"]["syscall"]), 1, "{what}");

    let scheduler = &found["scheduler"];
    assert_eq!(scheduler["gomaxprocs"], still["gomaxprocs"], "{what}");
    let ranges = list(&scheduler["latency"]["ranges"]).iter();
    let ranges: Vec<Value> = ranges.map(|r| json!([r["from_ns"], r["count"]])).collect();
    assert_eq!(&ranges, list(&still["latency"]), "{what}");
    mutexes(version, scheduler, &still["mutex_wait"], &what);

    let heap = &found["heap"];
    assert_eq!(heap["goal_bytes"], still["goal"], "{what}");
    assert_eq!(heap["gc_percent"], json!(100), "{what}");
    assert_eq!(heap["memory_limit_bytes"], Value::Null, "{what}");
    for (name, own) in [("allocated_bytes", "allocated"), ("freed_bytes", "freed")] {
        let [low, high] = said.map(|said| number(&said[own]));
        assert!(
            (low..=high).contains(&number(&heap[name])),
            "{name}: {what}"
        );
    }
    let [allocated, freed, in_use] = ["allocated", "freed", "in_use"].map(|n| number(&said[1][n]));
    let near = |name: &str, own: u64| {
        let off = number(&heap[name]).abs_diff(own);
        assert!(off < own / 20 + (1 << 20), "{name}: {own}: {what}");
    };
    near("in_use_bytes", in_use);
    near("live_bytes", allocated - freed);
    let marked = number(&heap["marked_bytes"]);
    assert!(
        (1..=number(&heap["live_bytes"])).contains(&marked),
        "{what}"
    );
}

/// Since 1.22 what the program says has the waits for the runtime's own locks in it,
/// which may be long on a busy machine.
fn mutexes(version: &str, scheduler: &Value, said: &Value, what: &str) {
    let found = &scheduler["mutex_wait_ns"];
    match version.split('.').nth(1).expect("a minor version") {
        "19" => assert_eq!(found, &Value::Null, "{what}"),
        "20" | "21" => assert!(number(found).abs_diff(number(said)) < 10, "{what}"),
        _ => assert!(number(found) <= number(said) + 10, "{what}"),
    }
    let is_told = version.starts_with("1.19") || number(found) > 1_000_000;
    assert!(is_told, "{what}");
}

#[test]
fn figures_are_those_of_the_program() {
    let shapes = [Variant::Stripped, Variant::Pie, Variant::Plain];
    for (version, variant) in EVERY_VERSION.iter().zip(shapes.iter().cycle()) {
        let started = Instant::now();
        let binary = go::build_with("alloc_sites", version, *variant);
        let mut program = Talker::start(&binary, &[]);
        // Pauses that the runtime has forgotten, then a heap.
        for words in ["collect", "round", "settle", "free", "settle", "contend"] {
            program.tell(words);
        }
        let [found, before, after] = at_rest(&mut program);
        compare(version, &found, [&before, &after]);
        assert_eq!(list(&found["gc"]["pauses"]).len(), 256);
        assert_eq!(found["go_version"], format!("go{version}"));
        assert_eq!(found["module"]["path"], "example.com/fixtures");
        assert_eq!(found["pid"], program.pid());
        let unknown = match version.starts_with("1.19") {
            true => json!(["waits for mutexes: its version of Go does not count them"]),
            false => json!([]),
        };
        assert_eq!(found["unknown"], unknown, "go{version} {variant:?}");
        println!("go{version} {variant:?}: {:?}", started.elapsed());
    }
}

#[test]
fn it_goes_on_until_the_program_ends_and_shows_each_pause_once() {
    let mut program = Talker::start(&go::build_with("alloc_sites", NEWEST, Variant::Plain), &[]);
    program.tell("settle");
    let pid = program.pid_arg();
    let mut running = goprof::command(&["stats", "-p", &pid, "--every", "100ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start goprof");
    let output = BufReader::new(running.stdout.take().expect("a pipe was asked for"));
    let mut lines = output.lines().map(|line| line.expect("read a line"));
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut seen = Vec::new();
    let mut until = |words: &str| {
        for line in lines.by_ref() {
            assert!(Instant::now() < deadline, "nothing of {words}: {seen:#?}");
            let is_it = line.contains(words);
            seen.push(line);
            if is_it {
                return;
            }
        }
    };
    until("(collection 3)");
    program.tell("settle");
    until("(collection 6)");
    until("  threads ");
    until("  threads ");
    drop(program);
    until("what is never said");
    let outcome = running.wait_with_output().expect("wait for goprof");
    let said = String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.success(), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("has ended"), "{said}");
    for cycle in 1..=6 {
        let words = format!("(collection {cycle})");
        let count = seen.iter().filter(|line| line.contains(&words)).count();
        assert_eq!(count, 1, "{cycle}: {seen:#?}");
    }
}

#[test]
fn what_cannot_be_done_is_said_in_a_line() {
    let own = std::process::id().to_string();
    let refusals: [(&[&str], i32, &str); 6] = [
        (&["-p", &own], 1, "not a Go program"),
        (&["-p", "4000000"], 1, "no process 4000000"),
        (&["-p", "0"], 2, "invalid value '0'"),
        (&["-p", "me"], 2, "invalid value 'me'"),
        (&["-p", "1", "--every", "0"], 2, "10ms"),
        (&[], 2, "--pid <PID>"),
    ];
    for (args, code, said) in refusals {
        let outcome = goprof::run(&[&["stats"], args].concat());
        assert_eq!(outcome.code(), code, "{args:?}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(said),
            "{args:?}: {}",
            outcome.stderr
        );
        assert!(outcome.stdout.is_empty(), "{args:?}");
        let lines = outcome.stderr.lines().count();
        assert!(code == 2 || lines == 1, "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn a_programs_own_settings_are_shown() {
    let binary = go::build_with("alloc_sites", NEWEST, Variant::Plain);
    let mut command = Command::new(binary);
    command.env("GOGC", "off").env("GOMEMLIMIT", "64MiB");
    let mut program = Talker::start_command(&mut command);
    program.tell("settle");
    let found = stats(&program.pid_arg());
    assert_eq!(found["heap"]["memory_limit_bytes"], json!(64 << 20));
    assert_eq!(found["heap"]["gc_percent"], Value::Null);
    assert_eq!(found["heap"]["goal_bytes"], Value::Null);
    let text = goprof::run(&["stats", "-p", &program.pid_arg()]).succeeded();
    let text = text.text();
    assert!(
        text.contains("GOGC=off") && text.contains("GOMEMLIMIT 67.1 MB"),
        "{text}"
    );
}
