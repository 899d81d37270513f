//! Each table of the kernel side that can be full, full: what does not go in is
//! counted and said, what was there before goes on, and nothing is made up.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::process::Command;
use std::time::Duration;

use goprof::probe::Budget;
use goprof::process::Selection;
use goprof::session::{Config, ProbeConfig, Recording, Session, Stopped};
use goprof::symbolize::{Event, ProcessId};
use goprof_tests::full_map::fill;
use goprof_tests::go;
use goprof_tests::loop_device::Loop;
use goprof_tests::talker::Talker;
use goprof_tests::target::Target;
use profiler_ebpf::wire::Counter;

/// Records for a second and a half; `meanwhile` runs once everything is on.
fn record(selection: Selection, events: Vec<Event>, meanwhile: impl FnOnce()) -> Recording {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut session = Session::prepare(Config {
            ring_bytes: 4 << 20,
            probes: ProbeConfig {
                budget: Budget::Unlimited,
                ..ProbeConfig::default()
            },
            ..Config::of(selection, events)
        })
        .expect("root, and a kernel that runs eBPF");
        session.start().expect("a perf event");
        meanwhile();
        let pause = tokio::time::sleep(Duration::from_millis(1500));
        session.run(pause, None, |_| {}).await;
        session.finish(Stopped::Asked).expect("a recording")
    })
}

/// Samples of a process.
fn samples_of(recording: &Recording, pid: u32) -> u64 {
    let windows = recording.named.iter().map(|named| &named.window);
    let samples = windows.flat_map(|window| {
        let is_of = move |process: ProcessId| window.processes[process.0 as usize].pid == pid;
        let samples = window.samples.iter();
        samples.filter(move |sample| is_of(sample.process))
    });
    samples.map(|sample| sample.values[0]).sum::<i64>() as u64
}

/// How much of `what` is said to be missing.
#[track_caller]
fn said(recording: &Recording, what: &str) -> u64 {
    let lines = recording.tally.incomplete();
    println!("{lines:?}");
    let of = lines.iter().filter(|(_, line)| line.contains(what));
    of.map(|(count, _)| count).sum()
}

#[test]
fn a_full_table_of_processes_leaves_out_those_that_begin_and_counts_them() {
    let binary = go::build("busy_loop");
    let before = Target::start(&binary, &[]);
    let mut begun = Vec::new();
    let recording = record(Selection::All, vec![Event::Cpu], || {
        println!("{} more processes", fill("TARGETS"));
        begun.extend([(); 3].map(|()| Target::start(&binary, &[])));
    });
    assert!(samples_of(&recording, before.pid()) > 10);
    for target in &begun {
        assert_eq!(samples_of(&recording, target.pid()), 0);
    }
    // Other programs of this machine may begin meanwhile, that are not Go.
    assert_eq!(recording.tally.not_added, 3);
    assert_eq!(said(&recording, "processes not sampled"), 3);
    let kernel = recording.tally.kernel.get(Counter::TargetsFull);
    assert!(kernel >= 3, "{kernel}");
    assert_eq!(
        said(&recording, "programs not sampled from their start"),
        kernel
    );
}

#[test]
fn a_full_table_of_threads_leaves_out_those_that_start_and_counts_them() {
    let mut begun = Vec::new();
    // Threads of other programs that end would make room.
    let own = Selection::DescendantsOf(std::process::id());
    let recording = record(own, vec![Event::OffCpu], || {
        println!("{} more threads", fill("THREADS"));
        let mut command = Command::new(go::build("off_cpu"));
        // It leaves files where it runs.
        command.current_dir(goprof_tests::cache_dir());
        begun.push(Target::start_command(command.args(["-duration", "1m"])));
    });
    let full = recording.tally.kernel.get(Counter::ThreadsFull);
    assert!(full > 10, "{full} times not followed");
    assert_eq!(said(&recording, "threads left the CPU not followed"), full);
    assert_eq!(samples_of(&recording, begun[0].pid()), 0);
}

#[test]
fn a_full_table_of_requests_gives_up_the_oldest_and_not_those_that_begin() {
    let device = Loop::make();
    let mut begun = Vec::new();
    let own = Selection::DescendantsOf(std::process::id());
    let recording = record(own, vec![Event::Io], || {
        println!("{} more requests", fill("REQUESTS"));
        let args = ["-device", &device.path, "-forever"];
        begun.push(Target::start(&go::build("block_io"), &args));
    });
    let tally = &recording.tally;
    let of = |counter| tally.kernel.get(counter);
    let (begun, not_paired) = (of(Counter::IoBegun), of(Counter::IoNotPaired));
    let (done, open) = (recording.samples(), tally.io_open);
    println!("{begun} begun, {done} done, {open} open, {not_paired} not paired");
    assert!(done > 100, "{done} done");
    assert_eq!(done + open + tally.io_merged + not_paired, begun);
    assert!(open <= 1 + tally.io_missed, "{open}");
}

/// What is recorded of a program that waits, and begins when tables are full.
fn waits(event: Event, maps: &[&str]) -> Recording {
    let program = go::build("contention");
    let mut begun = Vec::new();
    let own = Selection::DescendantsOf(std::process::id());
    record(own, vec![event], || {
        for map in maps {
            println!("{map}: {} more", fill(map));
        }
        begun.push(Talker::start(&program, &[]));
    })
}

/// The longest wait on average of a stack, in nanoseconds.
fn longest_ns(recording: &Recording) -> i64 {
    let samples = recording
        .named
        .iter()
        .flat_map(|named| &named.window.samples);
    let samples = samples.filter(|sample| sample.values[0] > 0);
    let means = samples.map(|sample| sample.values[1] / sample.values[0]);
    means.max().unwrap_or(0)
}

#[test]
fn full_tables_of_waits_leave_out_those_that_begin_and_make_none_longer() {
    let plain = longest_ns(&waits(Event::Mutex, &[]));
    for (event, maps) in [
        (Event::Mutex, &["WAITERS"][..]),
        (Event::Mutex, &["QUEUES"]),
        (Event::Block, &["PARKED"]),
    ] {
        let recording = waits(event, maps);
        let full = recording.tally.kernel.get(Counter::WaitsFull);
        let (seen, longest) = (recording.samples(), longest_ns(&recording));
        println!(
            "{event:?} {maps:?}: {full} full, {seen} seen, at most {longest} ns, else {plain}"
        );
        assert!(full > 10, "{maps:?}: {full}");
        assert_eq!(said(&recording, "waits not followed"), full);
    }
}

#[test]
fn full_tables_of_probes_leave_a_program_without_and_say_so() {
    for map in ["PROBE_SHARES", "WAIT_LAYOUTS"] {
        let mut begun = Vec::new();
        let recording = record(Selection::All, vec![Event::Mutex], || {
            println!("{map}: {} more", fill(map));
            begun.push(Target::start(&go::build("busy_loop"), &[]));
        });
        let off = &recording.tally.off;
        println!("{off:?}");
        assert!(
            off.iter().any(|line| line.contains("busy_loop")),
            "{map}: {off:?}"
        );
    }
}
