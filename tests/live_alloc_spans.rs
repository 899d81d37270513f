//! Allocations by the spans of memory that they use up: of a program that allocates
//! evenly, against what it is known to allocate, and of one that does in bursts, against
//! what it counts itself.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use goprof_tests::alloc_mix::{PLACES, check_labels, leaf, number_before};
use goprof_tests::go::{self, NEWEST, Variant};
use goprof_tests::goprof::{self, Recording};
use goprof_tests::talker::Talker;
use goprof_tests::target::Target;

const SPANS: [&str; 4] = ["-e", "alloc-events", "--alloc-source", "spans"];

/// Objects and bytes of each function that allocates.
fn by_function(recording: &Recording) -> BTreeMap<&str, [i64; 2]> {
    let mut found: BTreeMap<&str, [i64; 2]> = BTreeMap::new();
    for stack in &recording.profile.stacks {
        let sums = found.entry(leaf(stack)).or_default();
        sums[0] += stack.values[0];
        sums[1] += stack.values[1];
    }
    found
}

/// What is said of spans, and of nothing that nobody knows.
#[track_caller]
fn check_words(said: &str) {
    for words in [
        "spans used up (runtime.mcache.refill)",
        "calibrated by the runtime's totals",
        "each span counts for who used the last of it",
        "errors are not known",
    ] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    assert!(!said.contains('±'), "an error that nobody knows: {said}");
}

/// Each place of a program that allocates all the time, by the mix that it is known to
/// have: the worst was off by 4%.
#[track_caller]
fn check_mix(version: &str, variant: Variant) {
    let program = Target::start(&go::build_with("alloc_mix", version, variant), &[]);
    let pid = program.pid_arg();
    let args = ["-p", &pid, "-d", "4", "--probe-budget", "10%"];
    let recording = goprof::record(&[&SPANS[..], &args].concat());
    let said = &recording.outcome.stderr;
    check_words(said);
    let found = by_function(&recording);
    let all: i64 = found.values().map(|sums| sums[1]).sum();
    let said_megabytes = number_before(said, " MB; in the windows");
    let off = all as f64 / 1e6 - said_megabytes;
    assert!(off.abs() < 0.06, "{all} bytes: {said}");
    for place in &PLACES {
        let [objects, bytes] = found.get(place.function).copied().unwrap_or_default();
        let (share, expected) = (bytes as f64 / all as f64, place.share());
        assert!(
            (share / expected - 1.0).abs() < 0.12,
            "go{version}: {} has {share:.4} of the bytes, not {expected:.4}: {found:?}\n{said}",
            place.function
        );
        // Of what shares blocks it has the blocks.
        let each = bytes as f64 / objects as f64 / place.block_bytes as f64;
        assert!((each - 1.0).abs() < 0.01, "{}: {each}", place.function);
        check_labels(&recording.profile, place);
    }
    let of_places: i64 = PLACES.iter().map(|p| found[p.function][1]).sum();
    assert!(of_places as f64 / all as f64 > 0.999, "{found:?}");
}

#[test]
fn spans_of_an_even_program_go_1_19() {
    check_mix("1.19.13", Variant::Plain);
}

#[test]
fn spans_of_an_even_program_go_1_23() {
    check_mix("1.23.9", Variant::Stripped);
}

#[test]
fn spans_of_an_even_program_go_1_26() {
    check_mix("1.26.6", Variant::StrippedPie);
}

#[test]
fn spans_of_an_even_program_go_1_27() {
    check_mix("1.27.3", Variant::Plain);
}

#[test]
fn spans_of_an_even_program_in_the_versions_between() {
    for version in ["1.20.14", "1.21.13", "1.22.10", "1.24.11", "1.25.5"] {
        check_mix(version, Variant::StrippedPie);
    }
}

/// The functions of `tests/go/alloc_bursts`, in the order in which it counts them.
const FUNCTIONS: [&str; 4] = ["main.header", "main.body", "main.reply", "main.block"];

/// Records a program that allocates 2.5 MB at once four times in eight seconds, and little
/// else; and what each of its functions allocated by its own count, in bytes.
#[track_caller]
fn record_bursts(args: &[&str]) -> (Recording, Vec<i64>) {
    let binary = go::build_with("alloc_bursts", NEWEST, Variant::Plain);
    let mut program = Talker::start(&binary, &[]);
    let pid = program.pid_arg();
    let args = [args, &["-p", &pid, "-d", "9"]].concat();
    std::thread::scope(|scope| {
        let recording = scope.spawn(|| goprof::record(&args));
        std::thread::sleep(Duration::from_millis(1500));
        program.tell("begin");
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(800));
            program.tell("burst");
            std::thread::sleep(Duration::from_millis(800));
        }
        let answer = program.tell("end");
        let own = answer
            .split(' ')
            .map(|bytes| bytes.parse().expect("a number"));
        let own = own.collect();
        (recording.join().expect("a recording"), own)
    })
}

/// Spans have all bursts, each of which is over in a millisecond.
#[test]
fn spans_have_what_is_allocated_in_bursts() {
    let (recording, own) = record_bursts(&[&SPANS[..], &["--probe-budget", "10%"]].concat());
    let said = &recording.outcome.stderr;
    check_words(said);
    let found = by_function(&recording);
    for (function, own) in FUNCTIONS.iter().zip(&own) {
        let [_, bytes] = found.get(function).copied().unwrap_or_default();
        let off = bytes as f64 / *own as f64 - 1.0;
        assert!(
            off.abs() < 0.3,
            "{function}: {bytes} of {own}: {found:?}\n{said}"
        );
    }
    let (all, own): (i64, i64) = (found.values().map(|sums| sums[1]).sum(), own.iter().sum());
    let off = all as f64 / own as f64 - 1.0;
    assert!(off.abs() < 0.1, "{all} bytes of {own}: {said}");
}

/// Windows at calls miss most of them, and that is said with what sees them.
#[test]
fn bursts_that_windows_miss_are_told() {
    let (recording, _) = record_bursts(&["-e", "alloc-events", "--probe-budget", "0.3%"]);
    let said = &recording.outcome.stderr;
    assert!(said.contains("windows over mallocgc"), "{said}");
    let missed = number_before(said, "% of the bytes came in bursts between the windows");
    assert!((5.0..60.0).contains(&missed), "{said}");
    let profile = &recording.profile;
    let mut notes = profile.raw.comment.iter().map(|note| profile.text(*note));
    assert!(
        notes.any(|note| note.contains("--alloc-source spans sees these")),
        "a note in the profile: {said}"
    );
}
