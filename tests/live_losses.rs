//! Nothing is lost uncounted: with a ring buffer far too small, what was
//! delivered and what was counted as lost add up to what was taken; and ticks
//! that the kernel throttles add up with those that came to what was due.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::time::Duration;

use goprof::probe::Clock;
use goprof::process::Selection;
use goprof::session::{Config, Recording, Session, Stopped};
use goprof::symbolize::Event;
use goprof_tests::go;
use goprof_tests::target::Target;
use profiler_ebpf::wire::Counter;

const RATE_HZ: u32 = 4_999;

/// Records the target for a second without looking at the ring in between.
fn record(target: &Target, ring_bytes: u32, while_sampling: impl FnOnce()) -> Recording {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut session = Session::prepare(Config {
            rate_hz: RATE_HZ,
            ring_bytes,
            ..Config::of(Selection::Pids(vec![target.pid()]), vec![Event::Cpu])
        })
        .expect("root, and a kernel that runs eBPF");
        session.start().expect("a perf event");
        while_sampling();
        std::thread::sleep(Duration::from_secs(1));
        session.finish(Stopped::Duration).expect("a recording")
    })
}

fn accounted(recording: &Recording) -> u64 {
    let tally = &recording.tally;
    let lost: u64 = tally.lost().iter().map(|(count, _)| count).sum();
    recording.samples() + lost + tally.unwanted + tally.unseen
}

#[test]
fn what_a_full_ring_loses_is_counted() {
    let binary = go::build("busy_loop");
    let target = Target::start(&binary, &[]);

    let recording = record(&target, 4096, || ());
    let taken = recording.tally.kernel.get(Counter::Samples);
    let full = recording.tally.kernel.get(Counter::SamplesRingFull);
    assert!(
        full > 100,
        "the ring of one page was never full: {taken} samples"
    );
    assert!(recording.samples() > 0, "nothing was delivered");
    assert_eq!(accounted(&recording), taken);

    let recording = record(&target, 16 * 1024 * 1024, || ());
    let taken = recording.tally.kernel.get(Counter::Samples);
    assert_eq!(recording.tally.kernel.get(Counter::SamplesRingFull), 0);
    assert!(taken > 100, "only {taken} samples at 4,999 Hz");
    assert_eq!(recording.samples(), taken);
}

/// How often the kernel lets an event tick; put back at the end.
struct MaxRate(String);

const MAX_RATE: &str = "/proc/sys/kernel/perf_event_max_sample_rate";

impl MaxRate {
    fn read() -> Self {
        Self(std::fs::read_to_string(MAX_RATE).expect("read the kernel's limit"))
    }

    fn lower(&self, rate_hz: u32) {
        std::fs::write(MAX_RATE, rate_hz.to_string()).expect("lower the kernel's limit");
    }
}

impl Drop for MaxRate {
    fn drop(&mut self) {
        let _ = std::fs::write(MAX_RATE, self.0.trim());
    }
}

#[test]
fn ticks_that_the_kernel_throttles_are_counted_and_said() {
    let binary = go::build("busy_loop");
    let target = Target::start(&binary, &[]);
    let ring_bytes = 16 * 1024 * 1024;
    let cpus = aya::util::online_cpus().expect("the CPUs").len() as u64;
    let second = u64::from(RATE_HZ) * cpus;
    let of = |recording: &Recording| {
        let tally = &recording.tally;
        let ticks = tally.kernel.get(Counter::Ticks) + tally.ticks_idle;
        (ticks, tally.ticks_missed)
    };

    let free = record(&target, ring_bytes, || ());
    let limit = MaxRate::read();
    let throttled = record(&target, ring_bytes, || limit.lower(RATE_HZ / 5));
    drop(limit);

    if free.clock == Some(Clock::Cycles) {
        // Idle CPUs do not tick by it: how many were due is not known.
        assert_eq!(
            (free.tally.ticks_missed, throttled.tally.ticks_missed),
            (0, 0)
        );
        return;
    }
    for recording in [&free, &throttled] {
        let (ticks, missed) = of(recording);
        println!("{ticks} ticks, {missed} missed, of {second} and more");
        assert!(ticks + missed >= second - cpus, "{ticks} and {missed}");
        assert!(recording.samples() <= ticks);
    }
    let ((ticks, missed), (_, before)) = (of(&throttled), of(&free));
    let ticks = ticks - throttled.tally.ticks_idle;
    assert!(ticks * 2 < second, "{ticks} ticks: it was not throttled");
    // Without the limit the kernel throttles what takes it too long.
    assert!(
        missed > before + second / 4,
        "{missed} missed, {before} before"
    );
    let lines = throttled.tally.incomplete();
    let said = lines
        .iter()
        .any(|(count, what)| *count == missed && what.starts_with("ticks"));
    assert!(said, "{lines:?}");
}
