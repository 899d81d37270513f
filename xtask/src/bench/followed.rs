//! What following every switch of threads or every request to a block device costs a
//! program that does nothing else. Beside bpftrace doing what bcc's `offcputime` and
//! `biolatency` do, where there is one.

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Bench;
use super::process::{Profiler, Target};
use super::report::{Figure, Section};
use super::stats::{Shuffle, Summary};
use crate::command;

/// How long a profiler has until it is at work.
const SETTLE: Duration = Duration::from_secs(3);

/// Something that is followed.
struct Followed {
    /// The measurement, and the program of tests/go with its arguments.
    name: &'static str,
    program: &'static str,
    arguments: Vec<String>,
    /// The event of goprof, and what it follows.
    event: &'static str,
    what: &'static str,
    /// What bpftrace does, where `PID` is the program.
    script: &'static str,
    title: &'static str,
    /// What the program does, and what bpftrace.
    method: [&'static str; 2],
}

/// Sums of time off the CPU by stack, in the kernel: the stack as the thread leaves,
/// the time as it is back.
const OFFCPUTIME: &str = "\
tracepoint:sched:sched_switch /pid == PID/ {
  @left[tid] = nsecs; @user[tid] = ustack; @kernel[tid] = kstack;
}
tracepoint:sched:sched_switch /@left[args->next_pid]/ {
  $t = args->next_pid;
  @off[@user[$t], @kernel[$t]] = sum(nsecs - @left[$t]);
  delete(@left[$t]);
}";

/// Histograms of latency by device, of every process: there is no other way.
const BIOLATENCY: &str = "\
tracepoint:block:block_rq_issue { @issued[args->dev, args->sector] = nsecs; }
tracepoint:block:block_rq_complete /@issued[args->dev, args->sector]/ {
  @us[args->dev] = hist((nsecs - @issued[args->dev, args->sector]) / 1000);
  delete(@issued[args->dev, args->sector]);
}";

/// What was measured of each, run by run.
#[derive(Debug, Default)]
struct Runs {
    per_second: Vec<f64>,
    /// CPU time of the profiler for each second, in milliseconds.
    own_ms: Vec<f64>,
}

/// Measures time off the CPU.
pub fn switches(bench: &Bench) -> Result<Section> {
    let followed = Followed {
        name: "switches",
        program: "switches",
        arguments: Vec::new(),
        event: "offcpu",
        what: "switches",
        script: OFFCPUTIME,
        title: "A program that does nothing but switch threads",
        method: [
            "Two threads on each CPU wake one another in turn over pipes",
            "bpftrace sums the time by user and kernel stack, which it takes at every switch.",
        ],
    };
    measure(bench, &followed)
}

/// Measures requests to block devices.
pub fn requests(bench: &Bench) -> Result<Section> {
    let file = bench.folder.join("requests.data");
    std::fs::write(&file, vec![1; 32 << 20]).context("write a file to read from")?;
    let followed = Followed {
        name: "requests",
        program: "block_io",
        arguments: ["-forever", "-device", &file.to_string_lossy()]
            .map(str::to_owned)
            .to_vec(),
        event: "io",
        what: "reads",
        script: BIOLATENCY,
        title: "A program that does nothing but read from a disk",
        method: [
            "One thread reads 4 kB at a time of a file, past the cache, as fast as the disk \
             answers",
            "bpftrace makes a histogram of latencies, without stacks.",
        ],
    };
    measure(bench, &followed)
}

fn measure(bench: &Bench, followed: &Followed) -> Result<Section> {
    let (rounds, time) = match bench.quick {
        true => (2, Duration::from_secs(3)),
        false => (5, Duration::from_secs(8)),
    };
    let program = bench.build_go(followed.program)?;
    let mut target = Target::start(Command::new(program).args(&followed.arguments))?;
    let bpftrace = command::find("bpftrace");
    let mut runs: [Runs; 4] = Default::default();
    let mut shuffle = Shuffle::default();
    for round in 0..rounds {
        bench.progress(&format!(
            "{}: round {} of {rounds}",
            followed.name,
            round + 1
        ));
        for step in shuffle.order(runs.len()) {
            let profiler = match step {
                0 | 1 => None,
                2 => Some(goprof(bench, target.pid(), followed)),
                _ => match &bpftrace {
                    Some(bpftrace) => Some(traced(bpftrace, target.pid(), followed)),
                    None => continue,
                },
            };
            run(&mut target, profiler, time, &mut runs[step])?;
        }
    }
    Ok(section(&runs, followed, time, bpftrace.is_some()))
}

fn goprof(bench: &Bench, pid: u32, followed: &Followed) -> Command {
    let mut goprof = Command::new(&bench.goprof);
    goprof
        .args(["record", "-e", followed.event, "-p", &pid.to_string(), "-o"])
        .arg(bench.folder.join("followed.pb.gz"));
    goprof
}

fn traced(bpftrace: &PathBuf, pid: u32, followed: &Followed) -> Command {
    let mut command = Command::new(bpftrace);
    command.args(["-e", &followed.script.replace("PID", &pid.to_string())]);
    command
}

fn run(
    target: &mut Target,
    profiler: Option<Command>,
    time: Duration,
    runs: &mut Runs,
) -> Result<()> {
    let profiler = profiler.map(|mut command| Profiler::start(&mut command));
    let profiler = profiler.transpose()?;
    sleep(SETTLE);
    let (before, begun) = (done(target)?, Instant::now());
    sleep(time);
    let (after, seconds) = (done(target)?, begun.elapsed().as_secs_f64());
    runs.per_second.push((after - before) / seconds);
    if let Some(profiler) = profiler {
        let cost = profiler.stop()?;
        runs.own_ms.push(cost.cpu_s * 1e3 / cost.wall_s);
    }
    Ok(())
}

fn done(target: &mut Target) -> Result<f64> {
    let line = target.ask("")?;
    line.trim().parse().context("the program counts otherwise")
}

fn section(runs: &[Runs; 4], followed: &Followed, time: Duration, has_bpftrace: bool) -> Section {
    let [plain, again, goprof, bpftrace] = runs;
    let id = |part: &str| format!("{}.{part}", followed.name);
    let ratio = |part, what: &str, of: &Runs| {
        let ratios = Summary::of_ratios(&plain.per_second, &of.per_second);
        Figure::new(id(part), what, "ratio", ratios)
    };
    let own = |part, what, of: &Runs| {
        let own_ms = Summary::of(of.own_ms.iter().copied());
        Figure::new(id(part), what, "ms", own_ms)
    };
    let mut figures = vec![
        ratio(
            "goprof",
            &format!("slower by: goprof -e {}", followed.event),
            goprof,
        ),
        ratio("noise", "noise: nothing over nothing", again),
        Figure::new(
            id("rate"),
            &format!("{} without a profiler", followed.what),
            "per s",
            Summary::of(plain.per_second.iter().copied()),
        ),
        own(
            "own",
            "CPU time of goprof per second, start and end included",
            goprof,
        ),
    ];
    if has_bpftrace {
        figures.push(ratio("bpftrace", "slower by: bpftrace", bpftrace));
        figures.push(own(
            "bpftrace_own",
            "CPU time of bpftrace per second",
            bpftrace,
        ));
    }
    let [does, beside] = followed.method;
    let beside = match has_bpftrace {
        true => beside,
        false => "This machine has no bpftrace to measure beside it.",
    };
    Section {
        title: followed.title,
        method: format!(
            "{does}, for {} s at a time under each profiler and under none, in an order drawn \
             anew each round. {beside}",
            time.as_secs()
        ),
        figures,
    }
}
