//! Nothing is lost uncounted: with a ring buffer far too small, what was
//! delivered and what was counted as lost add up to what was taken.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::time::Duration;

use goprof::process::Selection;
use goprof::session::{Config, Recording, Session, Stopped};
use goprof_tests::go;
use goprof_tests::target::Target;
use profiler_ebpf::wire::Counter;

/// Records the target for a second without looking at the ring in between.
fn record(target: &Target, ring_bytes: u32) -> Recording {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut session = Session::prepare(Config {
            selection: Selection::Pids(vec![target.pid()]),
            rate_hz: 4_999,
            duration: None,
            kernel_stacks: true,
            threads: false,
            goroutines: false,
            labels: true,
            ring_bytes,
        })
        .expect("root, and a kernel that runs eBPF");
        session.start().expect("a perf event");
        std::thread::sleep(Duration::from_secs(1));
        session.finish(Stopped::Duration).expect("a recording")
    })
}

fn accounted(recording: &Recording) -> u64 {
    let tally = &recording.tally;
    let lost: u64 = tally.lost().iter().map(|(count, _)| count).sum();
    recording.samples + lost + tally.unwanted
}

#[test]
fn what_a_full_ring_loses_is_counted() {
    let binary = go::build("busy_loop");
    let target = Target::start(&binary, &[]);

    let recording = record(&target, 4096);
    let taken = recording.tally.kernel.get(Counter::Samples);
    let full = recording.tally.kernel.get(Counter::SamplesRingFull);
    assert!(
        full > 100,
        "the ring of one page was never full: {taken} samples"
    );
    assert!(recording.samples > 0, "nothing was delivered");
    assert_eq!(accounted(&recording), taken);

    let recording = record(&target, 16 * 1024 * 1024);
    let taken = recording.tally.kernel.get(Counter::Samples);
    assert_eq!(recording.tally.kernel.get(Counter::SamplesRingFull), 0);
    assert!(taken > 100, "only {taken} samples at 4,999 Hz");
    assert_eq!(recording.samples, taken);
}
