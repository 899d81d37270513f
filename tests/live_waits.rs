//! `record -e mutex` and `-e block`, held against what the program says of itself with
//! Go's own profiles at rate 1, at the same time.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::go::{self, NEWEST, Variant};
use goprof_tests::goprof;
use goprof_tests::pprof::Profile;
use goprof_tests::talker::Talker;
use goprof_tests::test_each_version;

/// What each function of the program's own came to, a second: waits and nanoseconds.
type Rates = BTreeMap<String, [f64; 2]>;

fn own_function(stack: &goprof_tests::pprof::Stack) -> Option<&str> {
    let mut functions = stack.frames.iter().map(|frame| frame.function.as_str());
    functions.find(|function| function.starts_with("main."))
}

fn sums(profile: &Profile) -> Rates {
    let mut sums = Rates::new();
    for stack in &profile.stacks {
        if let Some(function) = own_function(stack) {
            let sum = sums.entry(function.to_owned()).or_default();
            sum[0] += stack.values[0] as f64;
            sum[1] += stack.values[1] as f64;
        }
    }
    sums
}

/// A program's own profile, and when it was written.
fn own(program: &mut Talker, name: &str, dir: &Path) -> (Rates, Instant) {
    let path = dir.join(format!("{name}.pb.gz"));
    program.tell(&format!("{name} {}", path.display()));
    (sums(&Profile::read(&path)), Instant::now())
}

/// What it came to between two moments.
fn between(before: &(Rates, Instant), after: &(Rates, Instant)) -> Rates {
    let seconds = (after.1 - before.1).as_secs_f64();
    let of = |(function, now): (&String, &[f64; 2])| {
        let before = before.0.get(function).copied().unwrap_or_default();
        let rate = [0, 1].map(|index| (now[index] - before[index]) / seconds);
        (function.clone(), rate)
    };
    after.0.iter().map(of).collect()
}

/// Both of goprof, and both of the program's own, over the same time.
struct Compared {
    ours: BTreeMap<&'static str, Profile>,
    own: BTreeMap<&'static str, Rates>,
    said: String,
}

impl Compared {
    fn rates(&self, event: &str) -> Rates {
        let profile = &self.ours[event];
        let seconds = profile.raw.duration_nanos as f64 / 1e9;
        let mut rates = sums(profile);
        rates.values_mut().flatten().for_each(|sum| *sum /= seconds);
        rates
    }
}

/// Longer than any recording here.
const LIMIT: Duration = Duration::from_secs(150);

const EVENTS: [&str; 2] = ["mutex", "block"];

fn compare(version: &str, variant: Variant, seconds: &str, budget: &str) -> Compared {
    compare_with(version, variant, seconds, &["--probe-budget", budget])
}

fn compare_with(version: &str, variant: Variant, seconds: &str, more: &[&str]) -> Compared {
    let dir = tempfile::tempdir().expect("make a directory");
    let binary = go::build_with("contention", version, variant);
    let mut program = Talker::start_command(&mut Command::new(binary));
    // Until all wait as they always do.
    std::thread::sleep(Duration::from_millis(200));
    let before = EVENTS.map(|event| (event, own(&mut program, event, dir.path())));
    let folder = format!("{}/", dir.path().join("ours").display());
    let pid = program.pid_arg();
    let args = [
        "record",
        "-e",
        "mutex,block",
        "-p",
        &pid,
        "-d",
        seconds,
        "-o",
        &folder,
    ];
    let outcome = goprof::start(&[&args[..], more].concat())
        .finish(LIMIT)
        .succeeded();
    let own = before.map(|(event, before)| {
        let after = own(&mut program, event, dir.path());
        (event, between(&before, &after))
    });
    let ours = EVENTS.map(|event| {
        let files = std::fs::read_dir(&folder).expect("list the profiles");
        let mut files = files.map(|file| file.expect("list the profiles").path());
        let name = format!(".{event}.pb.gz");
        let file = files.find(|file| file.to_string_lossy().ends_with(&name));
        (
            event,
            Profile::read(&file.expect("a profile of each event")),
        )
    });
    Compared {
        ours: ours.into(),
        own: own.into(),
        said: outcome.stderr,
    }
}

/// What is wrong unless each function is within `shares` of what the program says itself.
fn far_off(
    compared: &Compared,
    event: &str,
    functions: &[&str],
    shares: [f64; 2],
) -> Option<String> {
    let (ours, own) = (compared.rates(event), &compared.own[event]);
    for function in functions {
        let own = own.get(*function).copied().unwrap_or_default();
        let ours = ours.get(*function).copied().unwrap_or_default();
        assert!(
            own[0] > 10.0,
            "{event} {function}: {own:?} a second of its own"
        );
        for index in [0, 1] {
            let off = (ours[index] - own[index]).abs() / own[index];
            if off > shares[index] {
                return Some(format!(
                    "{event} {function} [{index}]: {:.1} for {:.1} a second: {:.1}% off\n{}",
                    ours[index],
                    own[index],
                    off * 100.0,
                    compared.said
                ));
            }
        }
    }
    None
}

/// Both, of a recording that is within `shares` of them. The program's own profiles are
/// written before and after the recording: where other programs take the CPUs just then
/// they are of another time, so one of three recordings must do.
fn compare_close(compare: impl Fn() -> Compared, shares: [f64; 2]) -> Compared {
    let mut wrong = Vec::new();
    loop {
        let compared = compare();
        let off = far_off(&compared, "block", &WAIT, shares);
        match off.or_else(|| far_off(&compared, "mutex", &HOLD, shares)) {
            None => return compared,
            Some(what) => wrong.push(what),
        }
        assert!(wrong.len() < 3, "three times:\n{}", wrong.join("\n"));
    }
}

/// Those of which one waits at a time at most.
const HOLD: [&str; 2] = ["main.holdLong", "main.holdShort"];
const WAIT: [&str; 7] = [
    "main.holdLong",
    "main.holdShort",
    "main.holdCrowded",
    "main.readTable",
    "main.waitForGroup",
    "main.produce",
    "main.selectWithTimeout",
];

fn labels<'p>(profile: &'p Profile, function: &str) -> Vec<&'p str> {
    let stacks = profile.stacks.iter();
    let of = stacks.filter(|stack| own_function(stack) == Some(function));
    let mut reasons: Vec<&str> = of
        .filter(|stack| stack.values[0] > 0)
        .filter_map(|stack| stack.labels.get("wait_reason").map(String::as_str))
        .collect();
    reasons.sort_unstable();
    reasons.dedup();
    reasons
}

/// As on kernels before 6.6, where each place has a perf event.
#[test]
fn probes_that_are_put_on_by_events_see_the_same() {
    let more = ["--probe-budget", "off", "--probe-means", "events"];
    compare_close(
        || compare_with(NEWEST, Variant::Stripped, "5", &more),
        [0.03, 0.06],
    );
}

#[test]
fn without_a_budget_waits_are_those_of_gos_own_profiles() {
    let compared = compare_close(
        || compare(NEWEST, Variant::Stripped, "5", "off"),
        [0.02, 0.05],
    );
    // Of a crowd, what is held against them is what they have waited.
    let (waker, waiter) = (compared.rates("mutex"), &compared.own["block"]);
    let of = |rates: &Rates| rates["main.holdCrowded"][1];
    let off = of(&waker) / of(waiter) - 1.0;
    assert!(off.abs() < 0.05, "held {off}");

    let block = &compared.ours["block"];
    for (function, reason) in [
        ("main.produce", "chan send"),
        ("main.selectWithTimeout", "select"),
        ("main.readNetwork", "IO wait"),
        ("main.waitForBell", "sync.Cond.Wait"),
        ("main.waitForGroup", "sync.WaitGroup.Wait"),
        ("main.holdLong", "sync.Mutex.Lock"),
        ("main.readTable", "sync.RWMutex.RLock"),
    ] {
        let found = labels(block, function);
        assert!(found.contains(&reason), "{function}: {found:?}");
    }
    // All the time but for the moments in between.
    let network = compared.rates("block")["main.readNetwork"][1] / 1e9;
    assert!((0.95..1.02).contains(&network), "{network} s a second");
    let mutex = &compared.ours["mutex"];
    assert_eq!(labels(mutex, "main.ringBell"), ["sync.Cond.Wait"]);
    assert_eq!(labels(mutex, "main.finish"), ["sync.WaitGroup.Wait"]);
    let leaves: Vec<&str> = mutex
        .stacks
        .iter()
        .filter(|stack| own_function(stack) == Some("main.holdLong"))
        .map(|stack| stack.frames[0].function.as_str())
        .collect();
    assert!(
        leaves.iter().all(|leaf| leaf.ends_with("(*Mutex).Unlock")),
        "{leaves:?}"
    );
}

/// How many programs are watched, and for how long; two at a time, or four of many.
const RUNS_VARIABLE: &str = "GOPROF_WAIT_RUNS";
const RUNS: usize = 4;
const SECONDS_VARIABLE: &str = "GOPROF_WAIT_SECONDS";
const SECONDS: &str = "8";

/// The delay that the summary states for all blocking, and its error, in seconds.
fn stated(said: &str) -> [f64; 2] {
    let (_, block) = said.split_once("block: ").expect("a total of block");
    let (_, delay) = block.split_once("waits of ").expect("its delay");
    let mut words = delay.split_whitespace();
    let value = words.next().and_then(|word| word.parse().ok());
    let error = words.nth(1).and_then(|word| word.parse().ok());
    [value.expect("a number"), error.expect("an error")]
}

/// What a program under a budget came to.
struct Run {
    /// What was stated, over the truth.
    share: f64,
    /// Whether twice the stated error covers the distance.
    is_covered: bool,
    /// How far the delay of the worst function is off.
    worst: f64,
    compared: Compared,
}

fn one_run(seconds: &str) -> Run {
    let compared = compare(NEWEST, Variant::Plain, seconds, "1%");
    assert!(compared.said.contains("watched"), "{}", compared.said);
    let [stated, error] = stated(&compared.said);
    let elapsed = compared.ours["block"].raw.duration_nanos as f64 / 1e9;
    // Go counts no waits for the network: one goroutine does nothing else.
    let own: f64 = compared.own["block"].values().map(|rate| rate[1]).sum();
    let truth = (own / 1e9 + 1.0) * elapsed;
    let (ours, own) = (compared.rates("block"), &compared.own["block"]);
    let offs = WAIT.map(|function| (ours[function][1] / own[function][1] - 1.0).abs());
    let worst = offs.into_iter().fold(0.0, f64::max);
    let covered = (stated - truth).abs() <= 2.0 * error;
    println!("{stated:.2} ± {error:.2} for {truth:.2}; a function is off by {worst:.3}");
    assert!(
        (stated - truth).abs() <= 5.0 * error.max(0.01 * truth),
        "{}",
        compared.said
    );
    Run {
        share: stated / truth,
        is_covered: covered,
        worst,
        compared,
    }
}

/// Panics unless each function comes to within a quarter of what the programs say
/// themselves, all runs together: of one of 8 s alone the error is a tenth to a third.
#[track_caller]
fn assert_close_together(runs: &[Run], event: &str, functions: &[&str]) {
    for function in functions {
        for index in [0, 1] {
            let ours: f64 = runs
                .iter()
                .map(|run| run.compared.rates(event)[*function][index])
                .sum();
            let own: f64 = runs
                .iter()
                .map(|run| run.compared.own[event][*function][index])
                .sum();
            assert!(
                (ours / own - 1.0).abs() < 0.25,
                "{event} {function} [{index}]: {ours:.1} for {own:.1} a second"
            );
        }
    }
}

#[test]
fn under_a_budget_the_truth_lies_within_the_stated_error() {
    let runs = std::env::var(RUNS_VARIABLE).map_or(RUNS, |runs| runs.parse().expect("a number"));
    let seconds = std::env::var(SECONDS_VARIABLE).unwrap_or(SECONDS.to_owned());
    let together = if runs < 20 { 2 } else { 4 };
    let mut all = Vec::new();
    while all.len() < runs {
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..together)
                .map(|_| scope.spawn(|| one_run(&seconds)))
                .collect();
            let done = running.into_iter().map(|run| run.join().expect("a run"));
            all.extend(done);
        });
    }
    let missed = all.iter().filter(|run| !run.is_covered).count();
    let mean = all.iter().map(|run| run.share).sum::<f64>() / all.len() as f64;
    let worst = all.iter().map(|run| run.worst).fold(0.0, f64::max);
    println!(
        "{missed} of {} missed, mean {mean:.4}, worst {worst:.3}",
        all.len()
    );
    // One of 20 is to be expected; of few more can be missed by chance.
    let allowed = if all.len() < 20 {
        2
    } else {
        all.len() / 20 + 1
    };
    assert!(missed <= allowed, "{missed} missed");
    assert!((0.95..1.05).contains(&mean), "mean {mean}");
    assert_close_together(&all, "block", &WAIT);
    assert_close_together(&all, "mutex", &HOLD);
}

fn check_version(version: &str) {
    // Every other version as a PIE.
    let minor = version
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse::<u32>().ok());
    let variant = match minor.is_some_and(|minor| minor.is_multiple_of(2)) {
        true => Variant::Pie,
        false => Variant::Stripped,
    };
    compare_close(|| compare(version, variant, "2", "off"), [0.3, 0.2]);
}

test_each_version! { check_version, EVERY_VERSION:
    go_1_19 "1.19.13",
    go_1_20 "1.20.14",
    go_1_21 "1.21.13",
    go_1_22 "1.22.10",
    go_1_23 "1.23.9",
    go_1_24 "1.24.11",
    go_1_25 "1.25.5",
    go_1_26 "1.26.6",
    go_1_27 "1.27.3",
}

#[test]
fn what_was_seen_of_a_program_that_ends_is_kept() {
    let binary = go::build("contention");
    let command = format!("sleep 2 | {}", binary.display());
    let args = [
        "-e",
        "block",
        "--probe-budget",
        "off",
        "--",
        "sh",
        "-c",
        &command,
    ];
    let recording = goprof::record(&args);
    let rates = sums(&recording.profile);
    let [waits, ns] = rates.get("main.produce").copied().unwrap_or_default();
    assert!(
        waits > 200.0 && ns > 5e8,
        "{rates:?}\n{}",
        recording.outcome.stderr
    );
}

#[test]
fn flags_that_mean_nothing_are_refused() {
    for args in [
        ["-e", "cpu", "--probe-budget", "1%"],
        ["-e", "block", "--at", "waiter"],
        ["-e", "mutex", "--probe-budget", "2"],
        ["-e", "mutex", "--probe-budget", "0%"],
    ] {
        let mut all = vec!["record", "-a", "-d", "1"];
        all.extend(args);
        let outcome = goprof::run(&all);
        assert_eq!(outcome.code(), 2, "{args:?}: {}", outcome.stderr);
    }
}
