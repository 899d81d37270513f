//! The oracle: one program profiled at the same moment by its own
//! net/http/pprof and by goprof, compared function by function, with the
//! likeness of two of Go's own profiles beside it as the noise floor.

#![expect(clippy::panic, reason = "test code: a failure is a panic")]

use goprof_tests::compare::{self, Likeness, Totals};
use goprof_tests::go::{self, Variant};
use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{goprof, http, quiet};

/// How many samples a comparison needs on either side.
const SAMPLES: u64 = 2_000;
/// How long one profile runs; two busy CPUs at 100 Hz give 2,400 samples.
const SECONDS: u64 = 12;
/// Profiles are added up until there are enough samples, as a busy machine
/// gives fewer; never more than this many.
const ROUNDS: usize = 6;

/// Go's own profile of the next `SECONDS`.
fn own_profile(url: &str) -> Profile {
    Profile::decode(&http::get(&format!(
        "{url}/debug/pprof/profile?seconds={SECONDS}"
    )))
}

/// Adds up profiles on either side, both made by `round`, until there are
/// enough samples.
fn gather(what: &str, mut round: impl FnMut() -> (Profile, Profile)) -> (Totals, Totals) {
    let (mut a, mut b) = (Totals::default(), Totals::default());
    for _ in 0..ROUNDS {
        let (profile_a, profile_b) = round();
        a.add(&profile_a);
        b.add(&profile_b);
        if a.samples.min(b.samples) >= SAMPLES {
            return (a, b);
        }
    }
    panic!(
        "{what}: only {} and {} samples in {ROUNDS} x {SECONDS} s, {SAMPLES} are needed: is the \
         machine busy?",
        a.samples, b.samples
    );
}

fn report(version: &str, what: &str, likeness: Likeness, totals: &(Totals, Totals)) {
    let (a, b) = totals;
    println!(
        "| {version:8} | {what:12} | {:6} | {:6} | {:.4} | {:.4} |",
        a.samples, b.samples, likeness.flat, likeness.cumulative
    );
    let samples = (a.samples, b.samples);
    print!("{}", compare::differences(&a.flat, &b.flat, samples, 6));
    println!("  cumulative:");
    print!(
        "{}",
        compare::differences(&a.cumulative, &b.cumulative, samples, 6)
    );
}

/// Prints a row of the table for two of Go's own profiles, one after the other.
fn noise_floor(version: &str) {
    let binary = go::build_with("oracle", version, Variant::Plain);
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let url = &target.details;
    let totals = gather("the noise floor", || (own_profile(url), own_profile(url)));
    let floor = compare::likeness(&totals.0, &totals.1);
    report(version, "Go, Go", floor, &totals);
}

#[test]
fn floor() {
    for version in go::VERSIONS {
        noise_floor(version);
    }
}
