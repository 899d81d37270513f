//! Requests to block devices: as many, as large and as long as the kernel counts
//! them, by who made them; and what is lost of them. On a loop device.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use ::goprof::process::Selection;
use ::goprof::session::{Config, Recording, Session, Stopped};
use ::goprof::symbolize::Event;
use goprof_tests::command::send_signal;
use goprof_tests::loop_device::Loop;
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::target::Target;
use goprof_tests::{go, goprof, quiet};
use profiler_ebpf::wire::Counter;

const READS: u64 = 2000;
const WRITES: u64 = 1000;
const FLUSHES: u64 = 20;

fn label<'s>(stack: &'s Stack, key: &str) -> &'s str {
    stack.labels.get(key).map_or("", String::as_str)
}

/// The sums of the values of stacks: requests, nanoseconds, bytes, nanoseconds queued.
fn sums(profile: &Profile, wanted: impl Fn(&Stack) -> bool) -> [u64; 4] {
    let mut sums = [0; 4];
    for stack in profile.stacks.iter().filter(|stack| wanted(stack)) {
        for (sum, value) in sums.iter_mut().zip(&stack.values) {
            *sum += u64::try_from(*value).expect("not below zero");
        }
    }
    sums
}

fn record(device: &Loop, more: &[&str]) -> (Profile, String) {
    let binary = go::build("block_io");
    let program = binary.to_str().expect("UTF-8").to_owned();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("io.pb.gz");
    let output = file.to_str().expect("UTF-8");
    let args = [
        &["record", "-e", "io", "-o", output],
        more,
        &["--", &program, "-device"],
    ];
    let mut command = goprof::command(&[&args.concat()[..], &[&device.path]].concat());
    let outcome = goprof_tests::command::run(&mut command, Duration::from_secs(60), "");
    let outcome = outcome.succeeded();
    println!(
        "{}{}",
        String::from_utf8_lossy(&outcome.stdout),
        outcome.stderr
    );
    (Profile::read(&file), outcome.stderr)
}

/// How often the kernel did not tell of a request, as goprof says.
fn missed(said: &str) -> u64 {
    let lines = said.lines().map(str::trim);
    let line = lines.filter(|line| line.contains("that the kernel did not tell of a request"));
    let count = line.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok());
    count.sum()
}

/// What bcc's `biolatency` does, for one device: requests and nanoseconds from when the
/// device got them, by operation.
const BIOLATENCY: &str = "\
BEGIN { printf(\"ready\\n\"); }
tracepoint:block:block_rq_issue /args->dev == DEVICE/ { @issued[args->sector] = nsecs; }
tracepoint:block:block_rq_complete /args->dev == DEVICE && @issued[args->sector]/ {
  @requests[args->rwbs] = count();
  @ns[args->rwbs] = sum(nsecs - @issued[args->sector]);
  delete(@issued[args->sector]);
}
END { clear(@issued); }";

/// bpftrace, at work until it is asked.
struct Bpftrace {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Bpftrace {
    fn start(device: &Loop) -> Self {
        let about = std::fs::metadata(&device.path).expect("the device");
        let (major, minor) = (libc::major(about.rdev()), libc::minor(about.rdev()));
        // As the kernel numbers devices, include/linux/kdev_t.h.
        let number = (major << 20 | minor).to_string();
        let mut command = Command::new("bpftrace");
        command.args(["-e", &BIOLATENCY.replace("DEVICE", &number)]);
        let child = command.stdout(Stdio::piped()).spawn();
        let mut child = child.expect("bpftrace is missing: install it");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert!(output.read_line(&mut line).expect("its output") > 0);
        }
        // It says so before all of its probes are on.
        std::thread::sleep(Duration::from_secs(1));
        Self { child, output }
    }

    /// Mean nanoseconds of the requests whose operation begins like this.
    fn mean_ns(said: &str, operation: &str) -> f64 {
        let of = |map: &str| -> f64 {
            let lines = said.lines().filter_map(|line| line.split_once("]: "));
            let begins = format!("@{map}[{operation}");
            let values = lines.filter(|(key, _)| key.starts_with(&begins));
            values
                .filter_map(|(_, value)| value.trim().parse::<f64>().ok())
                .sum()
        };
        of("ns") / of("requests")
    }

    fn stop(mut self) -> String {
        send_signal(self.child.id(), libc::SIGINT);
        let mut said = String::new();
        self.output.read_to_string(&mut said).expect("its output");
        self.child.wait().expect("its end");
        said
    }
}

#[test]
fn requests_are_as_the_kernel_counts_them_and_bpftrace_measures_them() {
    go::build("block_io");
    let device = Loop::make();
    let _turn = quiet::measuring();
    let bpftrace = Bpftrace::start(&device);
    let before = device.counted();
    let (profile, said) = record(&device, &["-v"]);
    let after = device.counted();
    let traced = bpftrace.stop();
    let of_device = |stack: &Stack| label(stack, "device") == device.name();
    // What other requests on the machine kept the kernel from telling.
    let missed = missed(&said);
    for (operation, function, count, size, index) in [
        ("R", "main.readsAll", READS, 4096, 0),
        ("W", "main.writesAll", WRITES, 16384, 1),
    ] {
        // The kernel takes a flush for a write of nothing.
        let is_flush = |stack: &Stack| label(stack, "operation") == "F";
        let of = |stack: &Stack| {
            let is_own = label(stack, "operation") == operation;
            (is_own || (operation == "W" && is_flush(stack))) && of_device(stack)
        };
        let own = sums(&profile, |stack| {
            of(stack) && stack.has(function) && !is_flush(stack)
        });
        assert!(
            own[0] <= count && own[0] + missed >= count,
            "{function}: {own:?}"
        );
        assert_eq!(own[2], own[0] * size, "{function}");
        let [requests, ns, bytes, queued_ns] = sums(&profile, of);
        let counted: Vec<u64> = (0..3)
            .map(|at| after[index][at] - before[index][at])
            .collect();
        let (found_ms, truth_ms) = ((ns + queued_ns) as f64 / 1e6, counted[2] as f64);
        println!("{operation}: {requests} requests, {bytes} bytes, {found_ms:.1} ms of {truth_ms}");
        assert!(requests <= counted[0] && requests + missed >= counted[0]);
        assert!(missed > 0 || bytes == counted[1] * 512, "{bytes}");
        // A request's two moments are a few microseconds apart from the kernel's own.
        let mean_ns = ns as f64 / requests as f64;
        let traced_ns = Bpftrace::mean_ns(&traced, operation);
        println!("{operation}: {mean_ns:.0} ns each, {traced_ns:.0} by bpftrace");
        // Whoever is asked first sees a request a few microseconds longer.
        let off_ns = (mean_ns - traced_ns).abs();
        assert!(off_ns <= traced_ns * 0.05 + 6000.0, "{traced}");
        let error = (found_ms - truth_ms).abs();
        let most = truth_ms * 0.05 + requests as f64 * 0.004 + 1.0;
        assert!(error <= most, "{found_ms} ms of {truth_ms}");
    }
    let flushed = sums(&profile, |stack| {
        label(stack, "operation") == "F" && stack.has("main.flushesAll")
    });
    assert!(
        flushed[0] <= FLUSHES && flushed[0] + missed >= FLUSHES,
        "{flushed:?}"
    );
    assert_eq!(flushed[2], 0);
    for what in ["requests, p50 ", " below "] {
        let line = format!("  {}", device.name());
        assert!(said.contains(&line) && said.contains(what), "{said}");
    }
}

#[test]
fn the_kernels_own_requests_are_not_blamed_on_whoever_runs() {
    let binary = go::build("block_io");
    let device = Loop::make();
    let _turn = quiet::measuring();
    let recorder = goprof::start(&["record", "-e", "io", "-a", "-d", "4", "-o", "all.io.pb.gz"]);
    // Its file is written to by threads of the kernel, once it is flushed.
    let mut command = Command::new(&binary);
    command.args(["-device", &device.path, "-reads", "0", "-writes", "2000"]);
    std::thread::sleep(Duration::from_millis(1500));
    let done = command.output().expect("start the program");
    assert!(done.status.success(), "{done:?}");
    let outcome = recorder.finish(Duration::from_secs(30)).succeeded();
    let file: PathBuf = goprof_tests::cache_dir().join("all.io.pb.gz");
    let profile = Profile::read(Path::new(&file));
    let is_kernels = |stack: &Stack| stack.has("[kernel thread]");
    let kernels = sums(&profile, |s| {
        is_kernels(s) && !label(s, "kernel_thread").is_empty()
    });
    println!("{kernels:?}\n{}", outcome.stderr);
    assert!(kernels[0] > 0, "no request by a thread of the kernel");
    assert_eq!(
        sums(&profile, is_kernels),
        kernels,
        "without the thread's name"
    );
    // What Go asks is asked of its own device.
    let strays = sums(&profile, |s| {
        s.has("main.writesAll") && label(s, "device") != device.name()
    });
    assert_eq!(strays, [0; 4]);
    let own = sums(&profile, |s| s.has("main.writesAll"));
    let missed = missed(&outcome.stderr);
    assert!(own[0] <= 2000 && own[0] + missed >= 2000, "{own:?}");
}

/// Records the target for a second without looking at the ring in between.
fn record_session(target: &Target, ring_bytes: u32) -> Recording {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut session = Session::prepare(Config {
            ring_bytes,
            ..Config::of(Selection::Pids(vec![target.pid()]), vec![Event::Io])
        })
        .expect("root, tracefs, and a kernel that runs eBPF");
        session.start().expect("the tracepoints");
        std::thread::sleep(Duration::from_secs(1));
        session.finish(Stopped::Duration).expect("a recording")
    })
}

#[test]
fn what_a_full_ring_loses_is_counted() {
    let binary = go::build("block_io");
    let device = Loop::make();
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &["-device", &device.path, "-forever"]);
    for ring_bytes in [4096, 64 * 1024 * 1024] {
        let recording = record_session(&target, ring_bytes);
        let tally = &recording.tally;
        let of = |counter| tally.kernel.get(counter);
        let (begun, full) = (of(Counter::IoBegun), of(Counter::SamplesRingFull));
        let not_paired = of(Counter::IoNotPaired);
        let (open, merged) = (tally.io_open, tally.io_merged);
        let done = recording.samples();
        println!("{begun} begun: {done} done, {full} lost, {open} open, {not_paired} not paired");
        assert!(begun > 500, "{begun}");
        assert_eq!(done + open + merged + full + not_paired, begun);
        match ring_bytes {
            4096 => assert!(full > 100, "the ring of one page was never full"),
            _ => assert!(full == 0 && open <= 1 + tally.io_missed, "{open}"),
        }
    }
}
