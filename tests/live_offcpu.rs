//! Time off the CPU: how long threads waited and for what, held against what the
//! kernel counts of them; the time of threads as a whole; and what is lost of it.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::goprof::process::Selection;
use ::goprof::session::{Config, Recording, Session, Stopped};
use ::goprof::symbolize::Event;
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::target::Target;
use goprof_tests::{go, goprof, quiet};
use profiler_ebpf::wire::Counter;

/// Each part of the program is to be within this much of the truth.
const MAX_ERROR: f64 = 0.05;
/// The whole is to be within this much of threads times time.
const MAX_TOTAL_ERROR: f64 = 0.02;

/// Enough of Go's processors for every thread, so that none waits for one of them,
/// and no signals to take a goroutine off its thread.
const ENVIRONMENT: [(&str, &str); 2] = [("GOMAXPROCS", "16"), ("GODEBUG", "asyncpreemptoff=1")];

fn seconds(profile: &Profile, wanted: impl Fn(&Stack) -> bool) -> f64 {
    let stacks = profile.stacks.iter().filter(|stack| wanted(stack));
    let values = stacks.map(|stack| stack.values[1]);
    values.sum::<i64>() as f64 / 1e9
}

fn is_waiting(stack: &Stack) -> bool {
    let state = stack.labels.get("thread_state");
    state.expect("every stack has a state") == "waiting for a CPU"
}

/// What the program says of its parts: how long each was off the CPU and waited for
/// one, in seconds.
fn totals(stdout: &[u8]) -> BTreeMap<String, (f64, f64)> {
    let text = String::from_utf8_lossy(stdout);
    let lines = text.lines().filter_map(|line| line.strip_prefix("total "));
    let totals = lines.map(|line| {
        let mut words = line.split(' ');
        let name = words.next().expect("a name").to_owned();
        let mut number = || -> f64 {
            let word = words.next().expect("a number");
            word.parse::<f64>().expect("nanoseconds") / 1e9
        };
        (name, (number(), number()))
    });
    totals.collect()
}

fn is_near(found: f64, truth: f64, most: f64) -> bool {
    (found - truth).abs() <= truth * most
}

#[test]
fn each_way_of_waiting_takes_as_long_as_the_kernel_counts() {
    let binary = go::build("off_cpu");
    let folder = tempfile::tempdir_in(goprof_tests::cache_dir()).expect("a folder on a disk");
    let _turn = quiet::measuring();
    let file = folder.path().join("off.pb.gz");
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (output, files, program) = (path(&file), path(folder.path()), path(&binary));
    let args = ["record", "-e", "offcpu", "-o", &output, "--", &program];
    let mut command = goprof::command(&[&args[..], &["-folder", &files]].concat());
    command.envs(ENVIRONMENT);
    let outcome = goprof_tests::command::run(&mut command, Duration::from_secs(60), "");
    let outcome = outcome.succeeded();
    let profile = Profile::read(&file);
    let truth = totals(&outcome.stdout);
    assert_eq!(truth.len(), 6, "{truth:?}");
    let mut wrong = Vec::new();
    for (part, (off, delay)) in &truth {
        let function = format!("main.{part}");
        let of_part = |stack: &Stack| stack.has(&function);
        let found = seconds(&profile, of_part);
        let waited = seconds(&profile, |stack| of_part(stack) && is_waiting(stack));
        let line = format!(
            "{part}: {found:.3} s off the CPU of {off:.3}, {waited:.3} s waiting for one of {delay:.3}"
        );
        println!("{line}");
        // A wait for a CPU begins a moment later by the tracepoint: that shows where
        // it is next to nothing.
        let is_delay_near = is_near(waited, *delay, MAX_ERROR) || (waited - delay).abs() < 0.05;
        if !is_near(found, *off, MAX_ERROR) || !is_delay_near {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", outcome.stderr);
    check_frames(&profile);
    let said = outcome.stderr.contains("merely idle left out");
    assert!(said, "{}", outcome.stderr);
    assert_eq!(seconds(&profile, is_idle), 0.0);
}

fn is_idle(stack: &Stack) -> bool {
    let looks_for_work = stack.has("runtime.findRunnable") || stack.has("runtime.sysmon");
    // One that waits for a lock meanwhile is not.
    looks_for_work && !stack.has("runtime.lock2") && !is_waiting(stack)
}

/// The leaf says what the thread waits in, not who looks.
fn check_frames(profile: &Profile) {
    let of_kernel = |stack: &Stack| stack.frames.first().is_some_and(|frame| frame.is_kernel());
    let in_scheduler = |stack: &Stack| {
        let leaf = &stack.frames[0].function;
        [
            "schedule",
            "preempt_schedule",
            "__cond_resched",
            "io_schedule",
        ]
        .iter()
        .any(|begin| leaf.starts_with(begin))
    };
    let all = seconds(profile, of_kernel);
    let right = seconds(profile, |stack| of_kernel(stack) && in_scheduler(stack));
    assert!(
        all > 1.0 && right > all * 0.99,
        "{right} of {all}\n{}",
        profile.top(9)
    );
    let whole = seconds(profile, |stack| stack.has("main.sleeps"));
    let named = |stack: &Stack| {
        let names = stack.names();
        let kernel = names.iter().any(|name| name.contains("nanosleep"));
        kernel && names.contains(&"main.nanosleep")
    };
    let known = seconds(profile, |stack| stack.has("main.sleeps") && named(stack));
    assert!(known > whole * 0.9, "{known} of {whole}");
}

#[test]
fn idle_threads_count_when_asked() {
    let binary = go::build("waits");
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let pid = target.pid_arg();
    let with = goprof::record(&["-e", "offcpu", "--idle", "-p", &pid, "-d", "1"]);
    let without = goprof::record(&["-e", "offcpu", "-p", &pid, "-d", "1"]);
    let idle = seconds(&with.profile, is_idle);
    let threads = threads(&target) as f64;
    println!("{idle:.3} s idle of {threads} threads");
    // All but the one that may be in a system call or not known.
    assert!(
        idle > (threads - 1.0) * 0.9 && idle <= threads * 1.02,
        "{idle}"
    );
    assert_eq!(seconds(&without.profile, is_idle), 0.0);
    assert!(without.outcome.stderr.contains("merely idle left out"));
}

fn threads(target: &Target) -> usize {
    let folder = format!("/proc/{}/task", target.pid());
    std::fs::read_dir(folder).expect("its threads").count()
}

#[test]
fn both_together_are_threads_times_time() {
    let binary = go::build("off_cpu");
    let folder = tempfile::tempdir_in(goprof_tests::cache_dir()).expect("a folder on a disk");
    let _turn = quiet::measuring();
    let files = folder.path().to_str().expect("UTF-8");
    let mut command = std::process::Command::new(&binary);
    command
        .args(["-wait", "20s", "-folder", files])
        .envs(ENVIRONMENT);
    let target = Target::start_command(&mut command);
    // Until every thread is there.
    std::thread::sleep(Duration::from_secs(2));
    let pid = target.pid_arg();
    let (made, threads) = counting_threads(&target, || {
        goprof::record(&["-e", "cpu,offcpu", "--combine", "-p", &pid, "-d", "4"])
    });
    let profile = &made.profile;
    let elapsed = profile.raw.duration_nanos as f64 / 1e9;
    let due = threads * elapsed;
    let leaf = |name: &'static str| seconds(profile, |s| s.frames[0].function == name);
    let (running, waiting) = (leaf("[running]"), leaf("[waiting for a CPU]"));
    let blocked = leaf("[blocked]");
    let all = seconds(profile, |_| true);
    println!(
        "{all:.3} of {due:.3} thread-seconds: {running:.3} running, {waiting:.3} waiting, {blocked:.3} blocked"
    );
    assert!(
        (all - running - waiting - blocked).abs() < 1e-6,
        "another leaf"
    );
    assert!(
        is_near(all, due, MAX_TOTAL_ERROR),
        "{all} of {due}\n{}",
        made.outcome.stderr
    );
    // Four threads have one CPU: three of them wait at any time, and it is in use.
    let contending = |name| {
        seconds(profile, |s| {
            s.frames[0].function == name && s.has("main.contends")
        })
    };
    let (ran, waited) = (contending("[running]"), contending("[waiting for a CPU]"));
    assert!(
        is_near(ran + waited, 4.0 * elapsed, 0.05),
        "{ran} and {waited}"
    );
    assert!(waited > ran * 2.5, "{ran} and {waited}");
    assert!(
        profile
            .stacks
            .iter()
            .all(|s| !s.labels.contains_key("thread_state"))
    );
}

#[test]
fn flags_that_mean_nothing_are_refused() {
    for (args, why) in [
        (
            &["-e", "cpu", "--idle"][..],
            "--idle means nothing with -e cpu",
        ),
        (
            &["-e", "offcpu", "--combine"],
            "--combine is for -e cpu,offcpu",
        ),
        (&["-e", "cpu,offcpu", "-o", "one.pb.gz"], "-o DIR/"),
        (
            &["-e", "heap,io", "-o", "out/", "-d", "1"],
            "recorded by itself",
        ),
    ] {
        let outcome = goprof::run(&[&["record", "-a"], args].concat());
        assert_eq!(outcome.code(), 2, "{args:?}");
        assert!(outcome.stderr.contains(why), "{}", outcome.stderr);
    }
}

/// Does something, and says how many threads the target had meanwhile on average.
fn counting_threads<T>(target: &Target, work: impl FnOnce() -> T) -> (T, f64) {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counter = scope.spawn(|| {
            let (mut sum, mut looks) = (0, 0);
            while !is_done.load(Ordering::Relaxed) {
                (sum, looks) = (sum + threads(target), looks + 1);
                std::thread::sleep(Duration::from_millis(5));
            }
            sum as f64 / f64::from(looks)
        });
        let done = work();
        is_done.store(true, Ordering::Relaxed);
        (done, counter.join().expect("a count"))
    })
}

/// Records the target for a second without looking at the ring in between.
fn record(target: &Target, ring_bytes: u32) -> Recording {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut session = Session::prepare(Config {
            idle: true,
            ring_bytes,
            ..Config::of(Selection::Pids(vec![target.pid()]), vec![Event::OffCpu])
        })
        .expect("root, and a kernel that runs eBPF");
        session.start().expect("the tracepoints");
        let end = Instant::now() + Duration::from_secs(1);
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        session.finish(Stopped::Duration).expect("a recording")
    })
}

#[test]
fn what_a_full_ring_loses_is_counted() {
    let binary = go::build("off_cpu");
    let _turn = quiet::measuring();
    let mut command = std::process::Command::new(&binary);
    command
        .args(["-wait", "20s", "-parts", "sleeps,blocks,contends"])
        .envs(ENVIRONMENT);
    let target = Target::start_command(&mut command);
    for ring_bytes in [4096, 16 * 1024 * 1024] {
        let recording = record(&target, ring_bytes);
        let tally = &recording.tally;
        let of = |counter| tally.kernel.get(counter);
        let (taken, full) = (of(Counter::SwitchesTaken), of(Counter::SamplesRingFull));
        let delivered: u64 = tally.ends.values().sum();
        println!("{taken} taken of {}, {full} lost", of(Counter::SwitchesOff));
        assert!(taken > 100 && taken <= of(Counter::SwitchesOff));
        assert_eq!(delivered + full, taken);
        assert!(recording.samples() > 0, "nothing was delivered");
        let said = tally.lost().iter().any(|(count, _)| *count == full);
        match ring_bytes {
            4096 => assert!(full > 100 && said, "the ring of one page was never full"),
            _ => assert_eq!(
                (full, of(Counter::EndsRingFull), tally.ends_missed),
                (0, 0, 0)
            ),
        }
    }
}
