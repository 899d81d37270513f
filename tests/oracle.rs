//! The oracle: one program profiled at the same moment by its own CPU profiler
//! and by goprof, compared function by function, with the likeness of two of
//! Go's own profiles beside it as the noise floor.

#![expect(clippy::panic, reason = "test code: a failure is a panic")]

use std::path::Path;
use std::thread;
use std::time::Duration;

use goprof_tests::compare::{self, Likeness, Totals};
use goprof_tests::go::{self, Variant};
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::target::Target;
use goprof_tests::{goprof, http, quiet};

/// How alike the flat profiles must be.
const FLAT: f64 = 0.98;
/// How alike the cumulative profiles must be.
const CUMULATIVE: f64 = 0.995;
/// How far under the noise floor either may be.
const BELOW_FLOOR: f64 = 0.005;
/// How many samples a comparison needs on either side, where `GOPROF_ORACLE_SAMPLES` does
/// not say.
const SAMPLES: u64 = 2_000;
/// Profiles are added up until there are enough samples, as a busy machine
/// gives fewer, and until chance has no more part in what they show: with more
/// samples it fades, and a bias of goprof's does not. Never more than this often.
const ROUNDS: usize = 8;
/// goprof begins so much sooner and ends so much later than Go's profiles.
const MARGIN_MS: u64 = 700;

/// How Go's own profiles are taken.
#[derive(Debug, Clone, Copy)]
enum Own {
    /// By net/http/pprof, as everyone does: 100 samples per second and CPU.
    Stock,
    /// At the rate of the kernel's tick, which is when it looks at the timers
    /// that Go's profiler sets, in less than half the time. It is the same
    /// profiler; `agrees_with_the_stock_profile` is there to say so.
    Fast,
}

impl Own {
    /// How long each of the four profiles of a round takes. Two busy CPUs at
    /// 250 Hz give 1,150 samples in it.
    fn length_ms(self) -> u64 {
        match self {
            Own::Stock => 11_000,
            Own::Fast => 2_300,
        }
    }

    fn url(self, program: &str) -> String {
        let ms = self.length_ms();
        match self {
            Own::Stock => format!("{program}/debug/pprof/profile?seconds={}", ms / 1000),
            Own::Fast => format!("{program}/profile?ms={ms}&hz=250"),
        }
    }
}

/// Profiles of one program, added up.
#[derive(Default)]
struct Side {
    totals: Totals,
    stacks: Vec<Stack>,
}

impl Side {
    fn add(&mut self, profile: Profile) {
        self.totals.add(&profile);
        self.stacks.extend(profile.stacks);
    }
}

/// What was measured of one program.
#[derive(Default)]
struct Measured {
    /// Go's own profiles of the first and the last quarter of each round, and
    /// of those in between: what drifts over a round drifts out of their sums.
    own: [Side; 2],
    /// goprof's of all of the round.
    ours: Side,
}

impl Measured {
    fn fewest(&self) -> u64 {
        let sides = self.own.iter().chain([&self.ours]);
        sides.map(|side| side.totals.samples).min().unwrap_or(0)
    }
}

/// Profiles until `judge` has nothing to say against what was measured; fails
/// with what it says in the end.
fn measure(
    program: &str,
    version: &str,
    own: Own,
    judge: impl Fn(&Measured) -> Result<(), String>,
) {
    let binary = go::build_with(program, version, Variant::Plain);
    let _turn = quiet::measuring();
    let mut target = Target::start(&binary, &[]);
    let mut measured = Measured::default();
    let mut verdict = Ok(());
    for round in 1..=ROUNDS {
        measure_round(&target, &binary, own, &mut measured);
        target.assert_running();
        if measured.fewest() < samples() {
            continue;
        }
        verdict = judge(&measured);
        match &verdict {
            Ok(()) => return,
            Err(why) => println!("{program}, go{version}, after {round} rounds: {why}"),
        }
    }
    if let Err(why) = verdict {
        panic!("{program}, go{version}, after {ROUNDS} rounds: {why}");
    }
    panic!(
        "{program}, go{version}: only {} samples in {ROUNDS} rounds of 4 x {} ms, {} are \
         needed: is the machine busy?",
        measured.fewest(),
        own.length_ms(),
        samples()
    );
}

fn samples() -> u64 {
    let said = std::env::var("GOPROF_ORACLE_SAMPLES").ok();
    said.and_then(|said| said.parse().ok()).unwrap_or(SAMPLES)
}

/// One recording of goprof's with four of Go's own profiles in it, one after
/// the other: Go cannot make two at a time. goprof samples more often than Go,
/// so that the noise is Go's and a bias of goprof's stands out.
fn measure_round(target: &Target, binary: &Path, own: Own, measured: &mut Measured) {
    let pid = target.pid_arg();
    let length = format!("{}ms", 4 * own.length_ms() + 2 * MARGIN_MS);
    let args = ["-p", &pid, "-d", &length, "-r", "499", "--no-kernel"];
    thread::scope(|scope| {
        let ours = scope.spawn(|| goprof::record(&args).profile);
        thread::sleep(Duration::from_millis(MARGIN_MS));
        for half in [0, 1, 1, 0] {
            let mut profile = own_profile(target, own);
            compare::name_preempted(&mut profile, binary);
            measured.own[half].add(profile);
        }
        match ours.join() {
            Ok(profile) => measured.ours.add(profile),
            Err(cause) => std::panic::resume_unwind(cause),
        }
    });
}

fn own_profile(target: &Target, own: Own) -> Profile {
    let url = own.url(&target.details);
    match http::request("GET", &url, b"", Duration::from_secs(60)) {
        Ok(bytes) => Profile::decode(&bytes),
        Err(error) => panic!("GET {url}: {error}; the program is {}", target.state()),
    }
}

/// A row of the table: version, program, what was compared, samples of either
/// side (and how many of the first were put down to the caller of
/// `runtime.asyncPreempt`), flat and cumulative likeness.
fn row(subject: &str, what: &str, sides: (&Totals, &Totals), likeness: Likeness) -> String {
    format!(
        "| {subject:20} | {what:10} | {:6} | {:6} | {:5} | {:.4} | {:.4} |",
        sides.0.samples, sides.1.samples, sides.0.folded, likeness.flat, likeness.cumulative
    )
}

/// Compares, prints, and says what is wrong unless the profiles are one
/// another's.
fn compare(subject: &str, measured: &Measured) -> Result<(), String> {
    let [first, second] = &measured.own;
    let (first, second) = (&first.totals, &second.totals);
    let ours = &measured.ours.totals;
    let floor = compare::likeness(first, second);
    let halves = [first, second].map(|half| compare::likeness(half, ours));
    // Both halves, as each alone has as many samples as the floor's sides.
    let found = Likeness {
        flat: (halves[0].flat + halves[1].flat) / 2.0,
        cumulative: (halves[0].cumulative + halves[1].cumulative) / 2.0,
    };
    let rows = format!(
        "{}\n{}",
        row(subject, "Go, goprof", (first, ours), found),
        row(subject, "Go, Go", (first, second), floor),
    );
    let mut both = Totals::default();
    both.merge(first);
    both.merge(second);
    let samples = (both.samples, ours.samples);
    let detail = format!(
        "shares that differ most (Go, goprof), flat:\n{}cumulative:\n{}",
        compare::differences(&both.flat, &ours.flat, samples, 10),
        compare::differences(&both.cumulative, &ours.cumulative, samples, 10),
    );
    println!("\n{rows}\n{detail}");
    ensure(
        found.flat >= FLAT && found.cumulative >= CUMULATIVE,
        format!("goprof's profile is not Go's: {FLAT} flat and {CUMULATIVE} cumulative are needed"),
    )?;
    ensure(
        found.flat >= floor.flat - BELOW_FLOOR
            && found.cumulative >= floor.cumulative - BELOW_FLOOR,
        format!(
            "goprof's profile is further from Go's than another of Go's, by more than {BELOW_FLOOR}"
        ),
    )
}

fn ensure(holds: bool, what: String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what) }
}

fn check_ordinary(version: &str) {
    check_likeness("oracle", version, Own::Fast);
}

fn check_likeness(program: &str, version: &str, own: Own) {
    let subject = format!("{program} go{version}");
    measure(program, version, own, |measured| {
        compare(&subject, measured)
    });
}

/// The hard cases that a likeness of whole profiles would not show.
fn check_hard_cases(version: &str) {
    let subject = format!("hard_cases go{version}");
    measure("hard_cases", version, Own::Fast, |measured| {
        compare(&subject, measured)?;
        compare_hard_cases(measured)
    });
}

fn compare_hard_cases(measured: &Measured) -> Result<(), String> {
    let [first, second] = &measured.own;
    let own: Vec<&Stack> = first.stacks.iter().chain(&second.stacks).collect();
    let ours: Vec<&Stack> = measured.ours.stacks.iter().collect();
    let copying = [&own, &ours].map(|stacks| share(stacks, |names| names[0] == "runtime.memmove"));
    println!("memmove (Go, goprof): {copying:.3?}");
    ensure(
        copying[0] >= 0.2 && (copying[0] - copying[1]).abs() < 0.03,
        format!("memmove has {copying:.3?} (Go, goprof)"),
    )?;
    let callers = [&own, &ours].map(|stacks| {
        let under = |caller| share(stacks, |names| names.starts_with(&["main.leaf", caller]));
        let leaf = share(stacks, |names| names[0] == "main.leaf");
        let (often, seldom) = (under("main.often"), under("main.seldom"));
        (often / (often + seldom), (often + seldom) / leaf)
    });
    println!("the leaf's frequent caller, its known callers (Go, goprof): {callers:.4?}");
    let (often, known) = callers[1];
    ensure(
        (often - 0.9).abs() < 0.03,
        format!("main.often has {often:.4}, not 0.9, of the samples in main.leaf"),
    )?;
    ensure(
        known >= 0.999,
        format!("only {known:.4} of the samples in main.leaf have its caller"),
    )
}

/// The share of the samples of which the functions' names are as wanted.
fn share(stacks: &[&Stack], wanted: impl Fn(&[&str]) -> bool) -> f64 {
    let (mut found, mut all) = (0, 0);
    for stack in stacks {
        let names = stack.names();
        all += stack.count;
        if !names.is_empty() && wanted(&names) {
            found += stack.count;
        }
    }
    found as f64 / all as f64
}

/// The functions and libraries that programs are made of.
mod ordinary {
    goprof_tests::test_each_version! {
        super::check_ordinary, EVERY_VERSION:
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
}

mod hard_cases {
    goprof_tests::test_each_version! {
        super::check_hard_cases, EVERY_VERSION:
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
}

#[test]
fn agrees_with_the_stock_profile() {
    check_likeness("oracle", go::NEWEST, Own::Stock);
}
