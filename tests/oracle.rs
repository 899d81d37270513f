//! The oracle: one program profiled at the same moment by its own
//! net/http/pprof and by goprof, compared function by function, with the
//! likeness of two of Go's own profiles beside it as the noise floor.

#![expect(clippy::panic, reason = "test code: a failure is a panic")]

use std::thread;
use std::time::Duration;

use goprof_tests::compare::{self, Likeness, Totals};
use goprof_tests::go::{self, Variant};
use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{goprof, http, quiet};

/// How alike the flat profiles must be.
const FLAT: f64 = 0.97;
/// How alike the cumulative profiles must be.
const CUMULATIVE: f64 = 0.99;
/// How many samples a comparison needs on either side.
const SAMPLES: u64 = 2_000;
/// How long one profile runs; two busy CPUs at 100 Hz give 2,400 samples.
const SECONDS: &str = "12";
/// Profiles are added up until there are enough samples, as a busy machine
/// gives fewer; never more than this many.
const ROUNDS: usize = 6;

/// What was measured of one Go version.
struct Measured {
    /// Go's own profile.
    own: Totals,
    /// goprof's of the same moment.
    ours: Totals,
    /// Go's own of the moments right after.
    next: Totals,
}

fn measure(version: &str) -> Measured {
    let binary = go::build_with("oracle", version, Variant::Plain);
    let _turn = quiet::measuring();
    let mut target = Target::start(&binary, &[]);
    let mut measured = Measured {
        own: Totals::default(),
        ours: Totals::default(),
        next: Totals::default(),
    };
    for _ in 0..ROUNDS {
        let (own, ours) = at_once(&target);
        measured.own.add(&own);
        measured.ours.add(&ours);
        measured.next.add(&own_profile(&target));
        target.assert_running();
        if measured.fewest() >= SAMPLES {
            return measured;
        }
    }
    panic!(
        "go{version}: only {} samples in {ROUNDS} x {SECONDS} s, {SAMPLES} are needed: is the \
         machine busy?",
        measured.fewest()
    );
}

impl Measured {
    fn fewest(&self) -> u64 {
        let samples = [self.own.samples, self.ours.samples, self.next.samples];
        samples.into_iter().min().unwrap_or(0)
    }
}

/// Go's own profile of the next seconds. Go cannot make two at a time.
fn own_profile(target: &Target) -> Profile {
    let url = format!("{}/debug/pprof/profile?seconds={SECONDS}", target.details);
    match http::request("GET", &url, b"", Duration::from_secs(60)) {
        Ok(bytes) => Profile::decode(&bytes),
        Err(error) => panic!("GET {url}: {error}; the program is {}", target.state()),
    }
}

/// Both profiles of the next seconds. goprof samples more often than Go, so
/// that the noise is Go's and a bias of goprof's stands out.
fn at_once(target: &Target) -> (Profile, Profile) {
    let pid = target.pid_arg();
    let args = ["-p", &pid, "-d", SECONDS, "-r", "499", "--no-kernel"];
    thread::scope(|scope| {
        let ours = scope.spawn(|| goprof::record(&args).profile);
        let own = own_profile(target);
        match ours.join() {
            Ok(ours) => (own, ours),
            Err(cause) => std::panic::resume_unwind(cause),
        }
    })
}

/// A row of the table: version, what was compared, samples of either side
/// (and how many of the first were put down to the caller of
/// `runtime.asyncPreempt`), flat and cumulative likeness.
fn row(version: &str, what: &str, a: &Totals, b: &Totals) -> (Likeness, String) {
    let likeness = compare::likeness(a, b);
    let row = format!(
        "| go{version:8} | {what:10} | {:6} | {:6} | {:5} | {:.4} | {:.4} |",
        a.samples, b.samples, a.folded, likeness.flat, likeness.cumulative
    );
    (likeness, row)
}

fn check(version: &str) {
    let Measured { own, ours, next } = measure(version);
    let (likeness, ours_row) = row(version, "Go, goprof", &own, &ours);
    let (_, floor_row) = row(version, "Go, Go", &own, &next);
    let samples = (own.samples, ours.samples);
    println!("\n{ours_row}\n{floor_row}");
    let detail = format!(
        "shares that differ most (Go, goprof), flat:\n{}cumulative:\n{}",
        compare::differences(&own.flat, &ours.flat, samples, 10),
        compare::differences(&own.cumulative, &ours.cumulative, samples, 10),
    );
    println!("{detail}");
    assert!(
        likeness.flat >= FLAT && likeness.cumulative >= CUMULATIVE,
        "goprof's profile is not Go's: {FLAT} flat and {CUMULATIVE} cumulative are needed\n\
         {ours_row}\n{floor_row}\n{detail}"
    );
}

/// One test per Go version.
macro_rules! versions {
    ($($name:ident: $version:literal,)*) => {
        const TESTED: &[&str] = &[$($version),*];
        $(
            #[test]
            fn $name() {
                check($version);
            }
        )*
    };
}

versions! {
    agrees_with_go_1_21: "1.21.13",
    agrees_with_go_1_22: "1.22.10",
    agrees_with_go_1_23: "1.23.9",
    agrees_with_go_1_24: "1.24.11",
    agrees_with_go_1_25: "1.25.5",
    agrees_with_go_1_26: "1.26.6",
    agrees_with_go_1_27: "1.27.3",
}

#[test]
fn every_version_is_tested() {
    assert_eq!(TESTED, go::VERSIONS);
}
