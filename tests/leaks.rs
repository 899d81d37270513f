//! `goprof leaks`: planted leaks are found within five snapshots, and a healthy busy
//! server has none, for as long as `GOPROF_HEALTHY_SECONDS` says (8 by default).

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::time::Duration;

use goprof_tests::command::{self, Outcome};
use goprof_tests::go::{self, NEWEST, Variant};
use goprof_tests::goprof;
use goprof_tests::talker::Talker;
use serde_json::Value;

fn json(outcome: &Outcome) -> Value {
    serde_json::from_slice(&outcome.stdout).expect("JSON")
}

/// The leak with this function on its stack.
fn leak_in<'a>(all: &'a Value, function: &str) -> &'a Value {
    let leaks = all["leaks"].as_array().expect("leaks");
    let has = |leak: &&Value| {
        let frames = leak["stack"].as_array().expect("frames");
        frames.iter().any(|frame| frame["function"] == function)
    };
    let found = leaks.iter().find(has);
    found.unwrap_or_else(|| panic!("{function} is not found to leak: {all:#}"))
}

fn planted_leaks_are_found(version: &str, variant: Variant) -> Talker {
    let mut talker = Talker::start(&go::build_with("leaks", version, variant), &[]);
    talker.tell("leak");
    let pid = talker.pid_arg();
    let args = ["leaks", "-p", &pid, "-n", "5", "-i", "700ms"];
    let outcome = goprof::run(&[&args[..], &["--json"]].concat());
    assert_eq!(outcome.code(), 3, "{}", outcome.stderr);
    let all = json(&outcome);
    for (function, reason, creator) in [
        ("main.blockedSend", "chan send", "main.leak"),
        ("main.forgottenTicker", "chan receive", "main.leak"),
        (
            "net/http.(*persistConn).readLoop",
            "select",
            "net/http.(*Transport).dialConn",
        ),
    ] {
        let leak = leak_in(&all, function);
        let what = format!("go{version}: {leak:#}");
        assert_eq!(leak["kind"], "grows", "{what}");
        assert_eq!(leak["wait_reason"], reason, "{what}");
        assert_eq!(leak["created_by"]["function"], creator, "{what}");
        let counts = leak["counts"].as_array().expect("counts");
        let counts: Vec<u64> = counts.iter().filter_map(Value::as_u64).collect();
        assert_eq!(counts.len(), 5, "{what}");
        assert!(counts[0] < counts[4], "{what}");
        // At most one in 20 ms, as planted.
        let rate = leak["new_per_second"].as_f64().expect("a rate");
        assert!(rate > 0.0 && rate < 60.0, "{what}");
    }
    // The connections of the bodies, at both ends in the one process.
    let sockets = all["open_growing"]["socket"].as_array();
    assert_eq!(sockets.map(Vec::len), Some(5), "{all:#}");
    // Nothing of the healthy part is among them.
    for leak in all["leaks"].as_array().expect("leaks") {
        let frames = leak["stack"].to_string();
        for healthy in ["main.works", "main.bursts", "main.asks"] {
            assert!(!frames.contains(healthy), "go{version}: {leak:#}");
        }
    }
    talker
}

/// Filters leave out what does not match, and the text says what JSON does.
fn chosen_and_shown(pid: &str) {
    let run = |more: &[&str]| {
        let args = ["leaks", "-p", pid, "-n", "3", "-i", "700ms"];
        goprof::run(&[&args[..], more].concat())
    };
    let sends = run(&["--function", r"^main\.blockedSend$", "--state", "waiting"]);
    assert_eq!(sends.code(), 3, "{}", sends.stderr);
    for part in [
        ": 1 leak in 3 snapshots over ",
        "open meanwhile, socket: ",
        "\ngrows: ",
        " new a second: chan send\n",
        "created by main.leak at ",
        "    main.blockedSend  ",
    ] {
        assert!(sends.text().contains(part), "{part}\n{}", sends.text());
    }
    let none = run(&["--older-than", "1h"]);
    assert_eq!(none.code(), 0, "{}", none.text());
    let none = run(&["--reason", "^sleep$"]);
    assert_eq!(none.code(), 0, "{}", none.text());
    assert!(none.text().contains(": no leak in 3 "), "{}", none.text());
}

#[test]
fn planted_leaks_are_found_within_five_snapshots() {
    planted_leaks_are_found("1.21.13", Variant::Plain);
    let talker = planted_leaks_are_found(NEWEST, Variant::StrippedPie);
    chosen_and_shown(&talker.pid_arg());
}

#[test]
fn a_healthy_busy_server_has_no_leak() {
    let seconds = std::env::var("GOPROF_HEALTHY_SECONDS");
    let seconds: u32 = seconds.map_or(8, |text| text.parse().expect("a number of seconds"));
    let talker = Talker::start(&go::build("leaks"), &[]);
    let pid = talker.pid_arg();
    // Five snapshots again and again, as a CI job has them.
    for _ in 0..seconds.div_ceil(4) {
        let outcome = goprof::run(&["leaks", "-p", &pid, "-i", "1", "--json"]);
        assert_eq!(outcome.code(), 0, "{}", json(&outcome));
    }
}

#[test]
fn an_interrupt_reports_what_was_found_so_far() {
    let mut talker = Talker::start(&go::build("leaks"), &[]);
    talker.tell("leak");
    let pid = talker.pid_arg();
    let args = ["leaks", "-p", &pid, "-n", "1000", "-i", "300ms", "--json"];
    let running = goprof::start(&args);
    std::thread::sleep(Duration::from_secs(4));
    running.signal(libc::SIGINT);
    let outcome = running.finish(Duration::from_secs(30));
    assert_eq!(outcome.code(), 3, "{}", outcome.stderr);
    let all = json(&outcome);
    leak_in(&all, "main.blockedSend");
    assert!(all["notes"].to_string().contains("interrupted"), "{all:#}");
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let own = std::process::id().to_string();
    for (args, code, part) in [
        (vec!["-p", "4194304"], 1, "there is no process 4194304"),
        (vec!["-p", own.as_str()], 1, "is not a Go program"),
        (vec![], 2, "--pid"),
        (vec!["-p", "1", "-n", "2"], 2, "3..="),
        (vec!["-p", "1", "-i", "0"], 2, "10ms"),
        (vec!["-p", "1", "--least", "0"], 2, "1.."),
        (vec!["-p", "1", "--label", "x"], 2, "KEY=RE"),
    ] {
        let mut command = goprof::command(&[&["leaks"], &args[..]].concat());
        let outcome = command::run(&mut command, Duration::from_secs(30), "goprof");
        assert_eq!(outcome.code(), code, "{args:?}: {}", outcome.stderr);
        let said = &outcome.stderr;
        assert!(said.contains(part), "{args:?}: {said}");
        assert!(code != 1 || said.lines().count() == 1, "{said}");
    }
}
