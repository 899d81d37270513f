//! What becomes of the program under a recording: killed, another program in its
//! place, forked, memory taken from under its stacks, its file cut short. The
//! recording ends well, keeps what it saw, and says what is missing.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use goprof_tests::command::{Outcome, Running, send_signal};
use goprof_tests::pprof::Profile;
use goprof_tests::talker::Talker;
use goprof_tests::target::Target;
use goprof_tests::{go, goprof};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// A recording under way, into a folder of its own.
struct Recorder {
    running: Running,
    folder: tempfile::TempDir,
}

impl Recorder {
    /// Starts one, and waits until it samples.
    #[track_caller]
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let file = folder.path().join("p.pb.gz");
        let file = file.to_str().expect("a path in UTF-8");
        let running = goprof::start(&[&["record", "-o", file][..], args].concat());
        let is_sampling = |pid| {
            let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo"));
            let files = files.into_iter().flatten().flatten();
            let mut texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
            texts.any(|text| text.contains("link_type:\tperf"))
        };
        let begun = Instant::now();
        while !is_sampling(running.pid()) {
            assert!(begun.elapsed() < LIMIT, "it does not sample");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { running, folder }
    }

    /// Waits for its end.
    #[track_caller]
    fn finish(self) -> (Profile, Outcome) {
        let outcome = self.running.finish(LIMIT).succeeded();
        println!("{}", outcome.stderr);
        let profile = Profile::read(&self.folder.path().join("p.pb.gz"));
        (profile, outcome)
    }
}

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

#[test]
fn a_target_that_is_killed_ends_the_recording_and_keeps_its_names() {
    let target = Target::start(&go::build("busy_loop"), &[]);
    let recorder = Recorder::start(&["-p", &target.pid_arg(), "-d", "60"]);
    pause(1000);
    send_signal(target.pid(), libc::SIGKILL);
    let killed = Instant::now();
    let (profile, outcome) = recorder.finish();
    assert!(killed.elapsed() < Duration::from_secs(10));
    assert!(outcome.stderr.contains("; 0 lost"), "{}", outcome.stderr);
    let share = profile.share(|stack| stack.has("main.spin"));
    assert!(profile.total() > 10 && share > 0.9, "{share}");
}

#[test]
fn a_target_that_becomes_another_program_is_both_under_one_pid() {
    let other = go::build("busy_loop");
    let mut target = Talker::start(&go::build("troubles"), &[]);
    let recorder = Recorder::start(&["-p", &target.pid_arg(), "-d", "3"]);
    pause(1000);
    target.tell(&format!("exec {}", other.display()));
    let (profile, outcome) = recorder.finish();
    assert!(outcome.stderr.contains("; 0 lost"), "{}", outcome.stderr);
    for function in ["main.before", "main.spin"] {
        let share = profile.share(|stack| stack.has(function));
        println!("{function}: {share:.3}");
        assert!(share > 0.1, "{function}\n{}", profile.top(20));
    }
    // Addresses of the one are not named by the other.
    let unnamed = profile.share(|stack| stack.names().iter().any(|name| name.starts_with("0x")));
    assert!(unnamed < 0.02, "{unnamed}\n{}", profile.top(20));
}

#[test]
fn a_fork_is_a_process_of_its_own() {
    let target = Target::start(&go::build("forks"), &[]);
    let child = target.details.trim();
    for (pid, own, others) in [
        (target.pid_arg().as_str(), "parent_spins", "child_spins"),
        (child, "child_spins", "parent_spins"),
    ] {
        let recording = goprof::record(&["-p", pid, "-d", "1"]);
        println!("{}", recording.outcome.stderr);
        let share = |name| recording.profile.share(|stack| stack.has(name));
        assert!(share(own) > 0.8, "{}", recording.profile.top(20));
        assert_eq!(share(others), 0.0, "{}", recording.profile.top(20));
    }
}

#[test]
fn memory_that_is_gone_from_under_stacks_is_said() {
    const GOROUTINES: u64 = 100;
    let mut target = Talker::start(&go::build("troubles"), &[]);
    target.tell(&format!("unmap {GOROUTINES}"));
    let outcome = goprof::run(&["goroutines", "-p", &target.pid_arg(), "-f", "json"]).succeeded();
    let all: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    println!("{:#}", all["notes"]);
    // All are there, each with as much of its stack as there is.
    let groups = all["groups"].as_array().expect("groups");
    let is_broken = |group: &&Value| group["stack_end"] == "stack memory not resident";
    let broken = groups.iter().filter(is_broken);
    let broken: u64 = broken.filter_map(|group| group["count"].as_u64()).sum();
    assert_eq!(broken, GOROUTINES, "{groups:#?}");
    let notes = all["notes"].to_string();
    assert!(
        notes.contains(&format!("{GOROUTINES} have stacks")),
        "{notes}"
    );

    let recording = goprof::record(&["-e", "wall", "-p", &target.pid_arg(), "-d", "1"]);
    let said = &recording.outcome.stderr;
    println!("{said}\n{}", recording.profile.top(20));
    assert!(
        said.contains("times a stack could not be read whole"),
        "{said}"
    );
    assert!(!said.contains("is left out"), "{said}");
    let share = recording.profile.share(|stack| stack.has("main.deep"));
    assert!(share > 0.4, "{share}");
    // It still runs.
    assert_eq!(target.tell("threads 1"), "");
}

/// Cuts a file that runs no more.
fn cut(file: &Path) {
    let begun = Instant::now();
    let file = loop {
        // Busy as long as it runs.
        match std::fs::OpenOptions::new().write(true).open(file) {
            Ok(file) => break file,
            Err(error) => assert!(begun.elapsed() < LIMIT, "{error}"),
        }
        pause(10);
    };
    file.set_len(4096).expect("cut the file");
    file.write_all_at(b"#", 4095).expect("write to the file");
}

#[test]
fn a_binary_cut_short_before_it_is_read_gives_no_names_and_says_so() {
    let folder = tempfile::tempdir().expect("make a folder");
    let binary = folder.path().join("cut_short");
    std::fs::copy(go::build("busy_loop"), &binary).expect("copy a program");
    let target = Target::start(&binary, &[]);
    let recorder = Recorder::start(&["-a", "-d", "3"]);
    pause(1000);
    drop(target);
    cut(&binary);
    let (profile, outcome) = recorder.finish();
    println!("{}", profile.top(10));
    let unnamed = profile.share(|stack| stack.has("[cut_short: file changed]"));
    let named = profile.share(|stack| stack.has("main.spin") && stack.has("main.main"));
    assert!(unnamed > 0.05, "{}", profile.top(20));
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    println!("{unnamed:.3} of it is not named, {named:.3} is");
}
