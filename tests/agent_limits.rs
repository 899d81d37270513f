//! The agent stays within its memory limit with hundreds of Go processes: what it
//! can have again it lets go of, and what it sampled it keeps.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::agent::{self, Agent};
use goprof_tests::target::Target;
use goprof_tests::{go, quiet};

const PROCESSES: usize = 200;
/// Of them each runs one of so many files. Reading what the agent needs of all of
/// them takes more than the limit.
const FILES: usize = 60;
const WATCHED: Duration = Duration::from_secs(10);

/// Go processes that want a third of two CPUs together.
fn crowd(dir: &std::path::Path) -> Vec<Target> {
    let program = go::build("crowd");
    let copies = (0..FILES).map(|number| {
        let copy = dir.join(format!("crowd{number}"));
        std::fs::copy(&program, &copy).expect("copy a program");
        copy
    });
    let copies: Vec<PathBuf> = copies.collect();
    let start = |number: usize| {
        let mut command = Command::new(&copies[number % FILES]);
        command.args(["-duration", "5m", "-share", "0.0035"]);
        Target::start_command(command.args(["-seed", &number.to_string()]))
    };
    (0..PROCESSES).map(start).collect()
}

/// Its resident memory, pages of mapped files included.
fn resident_bytes(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"));
    let statm = statm.expect("the agent's /proc");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("a number of pages");
    pages * 4096
}

/// What was seen of an agent with a limit.
struct Seen {
    most_bytes: u64,
    evictions: f64,
    samples: f64,
}

/// Watches an agent that samples as much as sixteen CPUs would at 19 Hz.
fn watch(limit: &str) -> Seen {
    let dir = tempfile::tempdir().expect("make a directory");
    let args = ["--memory-limit", limit, "--flush", "3s", "--rate", "151"];
    let agent = Agent::start(dir.path(), &args);
    let begun = Instant::now();
    let mut most_bytes = 0;
    while begun.elapsed() < WATCHED {
        most_bytes = most_bytes.max(resident_bytes(agent.pid()));
        std::thread::sleep(Duration::from_millis(10));
    }
    let evictions = |cache: &str| {
        let name = format!("goprof_memory_evictions_total{{cache=\"{cache}\"}}");
        agent.metric(&name)
    };
    let seen = Seen {
        most_bytes,
        evictions: evictions("code") + evictions("symbols"),
        samples: agent.metric("goprof_samples_total{event=\"cpu\"}"),
    };
    let metrics = agent.get("/metrics");
    let lost = metrics.lines().filter(|line| {
        line.starts_with("goprof_samples_lost_total") && !line.ends_with(" 0")
            || line.starts_with("goprof_windows_total{result=\"failed\"}") && !line.ends_with(" 0")
    });
    assert_eq!(lost.collect::<Vec<_>>(), [""; 0]);
    agent.stop().succeeded();
    let stored: i64 = agent::objects(dir.path()).iter().map(|o| o.samples).sum();
    assert!(
        stored as f64 >= seen.samples,
        "{stored} of {}",
        seen.samples
    );
    eprintln!(
        "{limit}: {} kB at most, {} evictions, {stored} samples",
        most_bytes / 1024,
        seen.evictions
    );
    seen
}

#[test]
fn memory_stays_within_the_limit_with_two_hundred_processes() {
    go::build("crowd");
    let dir = tempfile::tempdir().expect("make a directory");
    let _turn = quiet::measuring();
    let _crowd = crowd(dir.path());
    let seen = watch("128MiB");
    assert!(seen.most_bytes <= 128 << 20, "{} bytes", seen.most_bytes);
    assert!(seen.samples > 500.0, "{} samples", seen.samples);

    // Less than a checked build's own code takes, so that this limit cannot be
    // held: it lets go of what it can, all the time, and of nothing that it sampled.
    let short = watch("32MiB");
    assert!(short.evictions >= 2.0, "{} evictions", short.evictions);
    assert!(short.samples > 500.0, "{} samples", short.samples);
    assert!(short.most_bytes <= 128 << 20, "{}", short.most_bytes);
}
