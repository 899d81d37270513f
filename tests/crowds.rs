//! Very many at once: processes that come and go by the thousand in a minute, and a
//! process of thousands of threads. `GOPROF_CROWD_SECONDS` says for how long processes
//! come, 84 a second; `GOPROF_CROWD_THREADS` how many threads there are.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use goprof_tests::agent::{self, Agent};
use goprof_tests::pprof::Profile;
use goprof_tests::talker::Talker;
use goprof_tests::{go, goprof, quiet};

const LIMIT: Duration = Duration::from_secs(60);
/// Somewhat more than 5,000 a minute.
const A_SECOND: u32 = 84;
const SECONDS: u64 = 5;
const THREADS: u64 = 2_000;
/// More threads than the kernel side has room for.
const TABLE: u64 = 64 * 1024;

#[track_caller]
fn asked(variable: &str, default: u64) -> u64 {
    let asked = std::env::var(variable).ok();
    let asked = asked.map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}: a number"))
    });
    asked.unwrap_or(default)
}

/// Starts so many programs a second, and waits for all. Returns how many there were,
/// and how long it took.
fn come_and_go(duration: Duration) -> (u32, Duration) {
    let program = go::build("exits_at_once");
    let begun = Instant::now();
    let (mut started, mut children) = (0, Vec::<Child>::new());
    while begun.elapsed() < duration {
        let child = Command::new(&program).stdout(Stdio::null()).spawn();
        children.push(child.expect("start a program"));
        started += 1;
        let due = begun + Duration::from_secs(1) / A_SECOND * started;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
    }
    for mut child in children {
        child.wait().expect("wait for a program");
    }
    (started, begun.elapsed())
}

fn descriptors(pid: u32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
    files.expect("its descriptors").count()
}

#[test]
fn thousands_of_processes_a_minute_are_all_accounted_for() {
    go::build("exits_at_once");
    let seconds = asked("GOPROF_CROWD_SECONDS", SECONDS);
    let _turn = quiet::measuring();
    let folder = tempfile::tempdir().expect("make a folder");
    let agent = Agent::start(folder.path(), &["--flush", "2s"]);
    let file = folder.path().join("all.pb.gz");
    let path = file.to_str().expect("UTF-8");
    let duration = (seconds + 3).to_string();
    let recorder = goprof::start(&["record", "-a", "-d", &duration, "-o", path]);
    std::thread::sleep(Duration::from_secs(1));
    let before = descriptors(agent.pid());
    let (started, took) = come_and_go(Duration::from_secs(seconds));
    let rate = f64::from(started) / took.as_secs_f64();
    println!(
        "{started} processes in {took:?}: {:.0} a minute",
        rate * 60.0
    );
    assert!(rate > f64::from(A_SECOND) / 4.0, "{rate} a second");

    let outcome = recorder
        .finish(LIMIT + Duration::from_secs(seconds))
        .succeeded();
    println!("{}", outcome.stderr);
    let profile = Profile::read(&file);
    let of =
        |stack: &&goprof_tests::pprof::Stack| stack.has("main.main") || stack.has("runtime.rt0_go");
    let seen: u64 = profile
        .stacks
        .iter()
        .filter(of)
        .map(|stack| stack.count)
        .sum();
    println!(
        "{} samples, {seen} of programs that exit at once",
        profile.total()
    );
    assert!(!outcome.stderr.contains("table full"), "{}", outcome.stderr);
    assert!(
        !outcome.stderr.contains("ring buffer full"),
        "{}",
        outcome.stderr
    );

    // Two windows later all that was held of them is let go.
    std::thread::sleep(Duration::from_secs(5));
    let after = descriptors(agent.pid());
    println!("{before} descriptors before, {after} after");
    assert!(after <= before + 64, "{before} descriptors, then {after}");
    for reason in ["events_ring_full", "targets_full", "targets_full_at_start"] {
        let name = format!("goprof_incomplete_total{{reason=\"{reason}\"}}");
        assert_eq!(agent.metric(&name), 0.0, "{name}");
    }
    agent.stop().succeeded();
    assert!(!agent::objects(folder.path()).is_empty());
}

#[test]
fn a_process_of_thousands_of_threads_is_recorded() {
    let threads = asked("GOPROF_CROWD_THREADS", THREADS);
    let mut talker = Talker::start(&go::build("troubles"), &[]);
    let begun = Instant::now();
    talker.tell(&format!("threads {threads}"));
    println!("{threads} threads in {:?}", begun.elapsed());
    let pid = talker.pid_arg();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    assert!(tasks.count() as u64 > threads);

    // What runs is seen as ever.
    let recording = goprof::record(&["-p", &pid, "-d", "1"]);
    println!("{}", recording.outcome.stderr);
    assert!(recording.profile.share(|stack| stack.has("main.before")) > 0.5);

    // Each thread waits all the time: as much time as there are threads.
    let recording = goprof::record(&["-p", &pid, "-e", "offcpu", "--idle", "-d", "2"]);
    let said = &recording.outcome.stderr;
    println!("{said}");
    let waited: i64 = recording.profile.stacks.iter().map(|s| s.values[1]).sum();
    let seconds = waited as f64 / recording.profile.raw.duration_nanos as f64;
    println!("{seconds:.0} threads off the CPU of {threads} and a few");
    if threads < TABLE {
        assert!(!said.contains("table of threads full"), "{said}");
        assert!(seconds > threads as f64 * 0.9, "{seconds} of {threads}");
    }

    let recording = goprof::record(&["-p", &pid, "-e", "wall", "-d", "2"]);
    println!("{}", recording.outcome.stderr);
    let resting = recording.profile.share(|stack| stack.has("main.rests"));
    assert!(resting > 0.95, "{resting}\n{}", recording.profile.top(5));
}
