//! The agent does not grow: ten processes a second come and go, and at the end it
//! has as many descriptors and threads as after a quarter of the time, and no more
//! memory than it settled at. `GOPROF_SOAK_SECONDS` says for how long.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use goprof_tests::agent::Agent;
use goprof_tests::{go, quiet};

/// How long where it is not said.
const SECONDS: u64 = 80;
/// How many times sizes are printed.
const LINES: u32 = 20;
/// What the files that only this test runs are called.
const NAME: &str = "goprof-soak-";
const A_SECOND: u32 = 10;
/// Files of whatever else the machine runs meanwhile.
const SOME_FDS: usize = 256;
const SOME_BYTES: u64 = 12 << 20;
/// For windows of different size; between two of them it has least.
const SOME_OWN_KB: u64 = 8 << 10;

#[derive(Debug, Clone, Copy)]
struct Size {
    /// Of the agent's own, without pages of mapped files.
    anonymous_kb: u64,
    /// Descriptors of files that only this test runs.
    own_fds: usize,
    resident_bytes: u64,
    fds: usize,
    threads: usize,
    maps: usize,
}

fn size(pid: u32) -> Size {
    let count = |folder: &str| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/{folder}"));
        entries.expect("the agent's /proc").count()
    };
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the agent's /proc");
    let links = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    let read = |file: &str| {
        // Files are called as their makers like.
        let text = std::fs::read(format!("/proc/{pid}/{file}"));
        String::from_utf8_lossy(&text.expect("the agent's /proc")).into_owned()
    };
    let pages = read("statm").split(' ').nth(1).map(str::to_owned);
    let pages: u64 = pages.expect("a field").parse().expect("a number");
    let status = read("status");
    let anonymous = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let anonymous = anonymous.and_then(|value| value.split_whitespace().next());
    Size {
        anonymous_kb: anonymous.expect("a line").parse().expect("a number"),
        own_fds: links
            .filter(|link| link.to_string_lossy().contains(NAME))
            .count(),
        resident_bytes: pages * 4096,
        fds: count("fd"),
        threads: count("task"),
        maps: read("maps").lines().count(),
    }
}

/// Starts short programs, one of ten from a file of its own, and waits for them.
/// Tells the agent's size now and then.
fn come_and_go(agent: u32, duration: Duration, lines: u32) -> u32 {
    let program = go::build("short_lived");
    let dir = tempfile::tempdir().expect("make a directory");
    let begun = Instant::now();
    let mut children = Vec::new();
    let (mut started, mut told) = (0, 0);
    while begun.elapsed() < duration {
        if begun.elapsed() >= duration / lines * told {
            told += 1;
            let seconds = begun.elapsed().as_secs();
            eprintln!("{seconds} s, {started} processes: {:?}", size(agent));
        }
        let path = dir.path().join(format!("{NAME}{started}"));
        let own = started % 10 == 0;
        if own {
            std::fs::copy(&program, &path).expect("copy a program");
        }
        let path = if own { &path } else { &program };
        let child = Command::new(path).stdout(Stdio::null()).spawn();
        children.push(child.expect("start a short program"));
        started += 1;
        let due = begun + Duration::from_secs(1) / A_SECOND * started;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        if own {
            let _ = std::fs::remove_file(path);
        }
    }
    for mut child in children {
        child.wait().expect("wait for a short program");
    }
    started
}

#[test]
fn processes_that_come_and_go_leave_nothing_behind() {
    go::build("short_lived");
    let _turn = quiet::measuring();
    let dir = tempfile::tempdir().expect("make a directory");
    let agent = Agent::start(dir.path(), &["--flush", "2s"]);
    let asked = std::env::var("GOPROF_SOAK_SECONDS").ok();
    let asked = asked.map(|text| text.parse().expect("GOPROF_SOAK_SECONDS: a number"));
    let all = Duration::from_secs(asked.unwrap_or(SECONDS));
    come_and_go(agent.pid(), all / 4, LINES / 4);
    let before = size(agent.pid());
    let started = come_and_go(agent.pid(), all / 4 * 3, LINES / 4 * 3);
    let after = size(agent.pid());
    // What was used last is let go two windows later.
    std::thread::sleep(Duration::from_secs(7));
    let looks = (0..20).map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        size(agent.pid())
    });
    let rest = looks.min_by_key(|size| size.anonymous_kb).expect("looks");
    eprintln!("a quarter: {before:?}\nafter {started} more: {after:?}\nat rest: {rest:?}");
    let cpu = agent.metric("process_cpu_seconds_total");
    eprintln!("CPU time {cpu} s in {} s", all.as_secs() + 7);
    assert!(
        started as f64 > all.as_secs_f64() * 5.0,
        "only {started} processes"
    );
    for size in [after, rest] {
        assert!(size.fds <= before.fds + SOME_FDS, "descriptors grew");
        assert!(size.threads <= before.threads + 2, "threads grew");
        assert!(size.maps <= before.maps + SOME_FDS, "mappings grew");
        let most = before.resident_bytes + SOME_BYTES;
        assert!(size.resident_bytes <= most, "memory grew");
    }
    let most = before.anonymous_kb + SOME_OWN_KB;
    assert!(rest.anonymous_kb <= most, "own memory grew");
    assert_eq!(rest.own_fds, 0, "files of programs that are gone are held");
    let windows = agent.metric("goprof_windows_total{result=\"spooled\"}");
    assert!(windows > all.as_secs_f64() / 4.0, "{windows} windows");
    assert!(agent.metric("goprof_samples_total{event=\"cpu\"}") > 100.0);
    agent.stop().succeeded();
}
