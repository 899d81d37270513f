//! Time of goroutines by `goprof record -e wall`, held against what a program that
//! waits for known shares of the time says of itself.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::time::Duration;

use goprof_tests::go::{self, NEWEST, Variant};
use goprof_tests::goprof;
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::talker::Talker;

/// The time of the stacks that are `wanted`, in goroutines: 1 is one all the time.
fn goroutines(profile: &Profile, wanted: impl Fn(&Stack) -> bool) -> f64 {
    let stacks = profile.stacks.iter().filter(|stack| wanted(stack));
    let time_ns: i64 = stacks.map(|stack| stack.values[1]).sum();
    time_ns as f64 / profile.raw.duration_nanos as f64
}

fn leaf(stack: &Stack) -> &str {
    stack.frames.first().map_or("", |frame| &frame.function)
}

/// Panics unless so many goroutines were there all the time: each snapshot counts for
/// the time that it stands for, so that none is lost or made up.
#[track_caller]
fn all_the_time(profile: &Profile, count: u32, what: &str, wanted: impl Fn(&Stack) -> bool) {
    let found = goroutines(profile, wanted);
    let off = (found - f64::from(count)).abs() / f64::from(count);
    assert!(
        off < 0.001,
        "{what}: {found} for {count}\n{}",
        profile.top(20)
    );
}

/// Records a program for so many seconds, of which the shares of what alternates need
/// more than the rest.
fn has_all_the_time(version: &str, variant: Variant, seconds: &str) -> Profile {
    let mut program = Talker::start(&go::build_with("waiting", version, variant), &[]);
    program.tell("reset");
    let pid = program.pid_arg();
    let args = ["-e", "wall", "-p", &pid, "-d", seconds, "-r", "100"];
    let recorded = goprof::record(&args);
    let shares = program.tell("shares");
    let profile = recorded.profile;
    let what = format!("go{version} {variant:?}: {}", recorded.outcome.stderr);
    let types: Vec<(&str, &str)> = profile
        .raw
        .sample_type
        .iter()
        .map(|kind| (profile.text(kind.r#type), profile.text(kind.unit)))
        .collect();
    assert_eq!(types, [("samples", "count"), ("wall", "nanoseconds")]);
    all_the_time(&profile, 60, &what, |_| true);
    all_the_time(&profile, 40, &what, |stack| {
        stack.has("main.receives") && leaf(stack) == "[chan receive]"
    });
    all_the_time(&profile, 10, &what, |stack| {
        let is_labelled = stack.labels.get("job").is_some_and(|job| job == "nap");
        is_labelled && stack.has("main.sleeps") && leaf(stack) == "[sleep]"
    });
    all_the_time(&profile, 8, &what, |stack| {
        stack.has("main.waitsLong") || stack.has("main.waitsShort") || stack.has("main.alternate")
    });
    all_the_time(&profile, 1, &what, |stack| stack.has("main.spins"));
    // Not always on a processor, as others want it too.
    let runs = |stack: &Stack| {
        stack.has("main.spins") && ["[running]", "[runnable]"].contains(&leaf(stack))
    };
    all_the_time(&profile, 1, &what, runs);
    assert!(!profile.functions().contains("runtime.bgsweep"), "{what}");
    let goids = profile.stacks.iter().map(|stack| &stack.labels["goid"]);
    let goids: std::collections::HashSet<&String> = goids.collect();
    assert!(goids.len() >= 60, "{what}");
    alternates_as_it_says(&profile, &shares, &what);
    profile
}

/// What waits now for one thing and now for another, in step with the clock, has both
/// for as long as it says itself.
#[track_caller]
fn alternates_as_it_says(profile: &Profile, shares: &str, what: &str) {
    let (long, short) = shares.split_once(' ').expect("two numbers");
    let own = |text: &str| text.parse::<f64>().expect("a number");
    let own = own(long) / (own(long) + own(short));
    let long = goroutines(profile, |stack| stack.has("main.waitsLong"));
    let short = goroutines(profile, |stack| stack.has("main.waitsShort"));
    let found = long / (long + short);
    // Of so many snapshots in as many seconds, with goroutines in step: four times
    // what chance makes of it.
    let seconds = profile.raw.duration_nanos as f64 / 1e9;
    let bound = 4.0 * (own * (1.0 - own) / (seconds * 90.0)).sqrt();
    assert!(
        (found - own).abs() < bound,
        "{what}: {found} for {own}, {bound} at most"
    );
}

#[test]
fn each_version_has_every_goroutine_all_the_time() {
    has_all_the_time("1.19.13", Variant::StrippedPie, "1");
    has_all_the_time("1.23.9", Variant::Plain, "1");
    has_all_the_time(NEWEST, Variant::Stripped, "6");
}

/// Goroutines of the program below, the same number of each of fifteen kinds, and how
/// many a snapshot looks at.
const CROWD: f64 = 30_000.0;
const LOOKED_AT: f64 = 4096.0;

#[test]
fn of_many_goroutines_some_stand_for_all() {
    let mut program = Talker::start(&go::build("parked"), &[]);
    let own = goprof::record(&["-e", "goroutine", "-p", &program.pid_arg()]).profile;
    let own: u64 = own.stacks.iter().map(|stack| stack.count).sum();
    program.tell(&format!("crowd {CROWD}"));
    let pid = program.pid_arg();
    let recorded = goprof::record(&["-e", "wall", "-p", &pid, "-d", "4", "-r", "10"]);
    let (profile, stderr) = (recorded.profile, recorded.outcome.stderr);
    let is_told = |text: &str| text.contains("looked at 4") && text.contains(" of 300");
    assert!(is_told(&stderr), "{stderr}");
    let comments = profile.raw.comment.iter();
    assert!(comments.map(|c| profile.text(*c)).any(is_told), "{stderr}");
    let words: Vec<&str> = stderr.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "snapshots");
    let snapshots: f64 = words[at.expect("how many") - 1].parse().expect("a number");
    let mean = |wanted: &dyn Fn(&Stack) -> bool| {
        let stacks = profile.stacks.iter().filter(|stack| wanted(stack));
        stacks.map(|stack| stack.count).sum::<u64>() as f64 / snapshots
    };
    // What chance makes of a share by so many looks, of a list that ends.
    let error = |share: f64| {
        let left = 1.0 - LOOKED_AT / CROWD;
        CROWD * (share * (1.0 - share) * left / (LOOKED_AT * snapshots)).sqrt()
    };
    // The runtime's own, eight at most, are looked at as seldom as any other.
    let (all, bound) = (CROWD + own as f64, 8.0 + 5.0 * error(8.0 / CROWD));
    let found = mean(&|_| true);
    assert!((found - all).abs() < bound, "{found} of {all}: {stderr}");
    let time = goroutines(&profile, |_| true);
    assert!((time - all).abs() < bound * 2.0, "{time} of {all}");
    let is_of = |stack: &Stack, function: &str, state: &str| {
        stack.has(function) && leaf(stack) == state && !stack.labels.contains_key("path")
    };
    for (function, state) in [
        ("main.receives", "[chan receive]"),
        ("main.sends", "[chan send]"),
        ("main.selects", "[select]"),
        ("main.sleeps", "[sleep]"),
        ("main.locks", "[sync.Mutex.Lock]"),
        ("main.waitsForCond", "[sync.Cond.Wait]"),
    ] {
        let found = mean(&|stack| is_of(stack, function, state));
        let (kind, bound) = (CROWD / 15.0, 3.0 + 5.0 * error(1.0 / 15.0));
        assert!(
            (found - kind).abs() < bound,
            "{function}: {found}, {bound} at most"
        );
    }
    let labelled = mean(&|stack| stack.labels.get("path").is_some_and(|path| path == "/api"));
    let bound = 3.0 + 5.0 * error(1.0 / 15.0);
    assert!(
        (labelled - CROWD / 15.0).abs() < bound,
        "{labelled}, {bound} at most"
    );
}

#[test]
fn processes_are_chosen_by_name_and_by_command() {
    let program = Talker::start(&go::build("waiting"), &[]);
    let pid = program.pid_arg();
    let by_name = [
        "-e",
        "wall",
        "-n",
        "^waiting$",
        "-d",
        "1",
        "--no-goroutines",
    ];
    // A profile of one process does not say whose it is.
    let of_program = |stack: &Stack| stack.labels.get("pid").is_none_or(|of| *of == pid);
    let recorded = goprof::record(&by_name);
    all_the_time(&recorded.profile, 60, "by name", of_program);
    // Goroutines are not told apart.
    let stacks = recorded.profile.stacks.iter();
    assert!(
        stacks
            .clone()
            .all(|stack| !stack.labels.contains_key("goid"))
    );
    let once = goprof::record(&["-e", "goroutine", "-a"]).profile;
    let count: u64 = once
        .stacks
        .iter()
        .filter(|s| of_program(s))
        .map(|s| s.count)
        .sum();
    assert_eq!(count, 60);
    drop(program);

    let built = go::build("parked");
    let built = built.to_str().expect("UTF-8");
    // Its input ends a second after it began.
    let shell = format!("sleep 1 | {built}; exit 7");
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("wall.pb.gz");
    let output = file.to_str().expect("UTF-8");
    let args = [
        "record", "-e", "wall", "-o", output, "--", "sh", "-c", &shell,
    ];
    let outcome = goprof::run(&args);
    assert_eq!(outcome.code(), 7, "{}", outcome.stderr);
    let profile = Profile::read(&file);
    let receives = goroutines(&profile, |stack| stack.has("main.receives"));
    assert!(
        receives > 2.0 && receives <= 4.0,
        "{receives}: {}",
        outcome.stderr
    );
}

#[test]
fn every_format_has_the_wait_as_the_leaf() {
    let program = Talker::start(&go::build("waiting"), &[]);
    let pid = program.pid_arg();
    for format in ["folded", "flamegraph", "speedscope"] {
        let args = [
            "record", "-e", "wall", "-p", &pid, "-d", "500ms", "-q", "-f", format, "-o", "-",
        ];
        let shown = goprof::run(&args).succeeded();
        let text = shown.text();
        assert!(text.contains("[chan receive]"), "{format}: {text}");
        if format == "folded" {
            let is_it = |line: &&str| line.contains("main.receives;");
            let line = text.lines().find(is_it).expect("a line");
            let (stack, time_ns) = line.rsplit_once(' ').expect("a value");
            assert!(stack.ends_with(";[chan receive]"), "{line}");
            let time_ns: f64 = time_ns.parse().expect("a number");
            assert!((time_ns / 40e9 - 0.5).abs() < 0.01, "{line}");
        }
    }
    let only = [
        "-e",
        "wall",
        "-p",
        &pid,
        "-d",
        "500ms",
        "--exclude",
        r"^\[(sleep|chan)",
    ];
    let profile = goprof::record(&only).profile;
    assert!(!profile.stacks.is_empty());
    let is_left = |stack: &Stack| !["[sleep]", "[chan receive]"].contains(&leaf(stack));
    assert!(profile.stacks.iter().all(is_left), "{}", profile.top(20));
}

#[test]
fn a_program_that_ends_counts_until_then() {
    let mut program = Talker::start(&go::build("waiting"), &[]);
    let pid = program.pid_arg();
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("wall.pb.gz");
    let output = file.to_str().expect("UTF-8");
    let args = ["record", "-e", "wall", "-p", &pid, "-r", "50", "-o", output];
    let recording = goprof::start(&args);
    std::thread::sleep(Duration::from_millis(1500));
    program.stop();
    let outcome = recording.finish(Duration::from_secs(30)).succeeded();
    assert!(
        outcome.stderr.contains("1 program exited"),
        "{}",
        outcome.stderr
    );
    let profile = Profile::read(&file);
    let receives = goroutines(&profile, |stack| stack.has("main.receives"));
    let seconds = receives / 40.0 * profile.raw.duration_nanos as f64 / 1e9;
    // To start goprof takes some of it.
    assert!(
        (0.7..1.6).contains(&seconds),
        "{seconds}: {}",
        outcome.stderr
    );
}

#[test]
fn what_means_nothing_is_refused() {
    for (args, part) in [
        (&["-e", "wall", "--threads"][..], "--threads means nothing"),
        (&["-e", "wall", "-r", "2000"], "at most 1000"),
        (&["-e", "goroutine", "-r", "5"], "--rate means nothing"),
        (
            &["-e", "wall", "--enable-memprofile"],
            "--enable-memprofile",
        ),
        (&["-e", "wall", "--sample-type", "cpu"], "samples, wall"),
        (&["-e", "goroutine", "--", "true"], "needs -d"),
    ] {
        let outcome = goprof::run(&[&["record"], args].concat());
        assert_eq!(outcome.code(), 2, "{args:?}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(part),
            "{args:?}: {}",
            outcome.stderr
        );
    }
}
