//! What following threads off the CPU costs a program that does nothing but leave it:
//! on each CPU two threads wake one another in turn. Beside bpftrace doing what bcc's
//! `offcputime` does, where there is one.

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

/// What was measured of each, run by run.
#[derive(Debug, Default)]
struct Runs {
    per_second: Vec<f64>,
    /// CPU time of the profiler for each second, in milliseconds.
    own_ms: Vec<f64>,
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let (rounds, time) = match bench.quick {
        true => (2, Duration::from_secs(3)),
        false => (7, Duration::from_secs(10)),
    };
    let program = bench.build_go("switches")?;
    let mut target = Target::start(&mut Command::new(program))?;
    let bpftrace = command::find("bpftrace");
    let mut runs: [Runs; 4] = Default::default();
    let mut shuffle = Shuffle::default();
    for round in 0..rounds {
        bench.progress(&format!("switches: round {} of {rounds}", round + 1));
        for step in shuffle.order(runs.len()) {
            let profiler = match step {
                0 | 1 => None,
                2 => Some(goprof(bench, target.pid())),
                _ => match &bpftrace {
                    Some(bpftrace) => Some(offcputime(bpftrace, target.pid())),
                    None => continue,
                },
            };
            run(&mut target, profiler, time, &mut runs[step])?;
        }
    }
    Ok(section(&runs, time, bpftrace.is_some()))
}

fn goprof(bench: &Bench, pid: u32) -> Command {
    let mut goprof = Command::new(&bench.goprof);
    goprof
        .args(["record", "-e", "offcpu", "-p", &pid.to_string(), "-o"])
        .arg(bench.folder.join("switches.pb.gz"));
    goprof
}

fn offcputime(bpftrace: &PathBuf, pid: u32) -> Command {
    let mut command = Command::new(bpftrace);
    command.args(["-e", &OFFCPUTIME.replace("PID", &pid.to_string())]);
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
    let (before, begun) = (turns(target)?, Instant::now());
    sleep(time);
    let (after, seconds) = (turns(target)?, begun.elapsed().as_secs_f64());
    runs.per_second.push((after - before) / seconds);
    if let Some(profiler) = profiler {
        let cost = profiler.stop()?;
        runs.own_ms.push(cost.cpu_s * 1e3 / cost.wall_s);
    }
    Ok(())
}

fn turns(target: &mut Target) -> Result<f64> {
    let line = target.ask("")?;
    line.trim().parse().context("the program counts otherwise")
}

fn section(runs: &[Runs; 4], time: Duration, has_bpftrace: bool) -> Section {
    let [plain, again, goprof, bpftrace] = runs;
    let ratio = |id, what, of: &Runs| {
        let ratios = Summary::of_ratios(&plain.per_second, &of.per_second);
        Figure::new(id, what, "ratio", ratios)
    };
    let mut figures = vec![
        ratio("switches.goprof", "slower by: goprof -e offcpu", goprof),
        ratio("switches.noise", "noise: nothing over nothing", again),
        Figure::new(
            "switches.rate",
            "switches without a profiler",
            "per s",
            Summary::of(plain.per_second.iter().copied()),
        ),
        Figure::new(
            "switches.own",
            "CPU time of goprof per second, start and end included",
            "ms",
            Summary::of(goprof.own_ms.iter().copied()),
        ),
    ];
    if has_bpftrace {
        figures.push(ratio("switches.bpftrace", "slower by: bpftrace", bpftrace));
        figures.push(Figure::new(
            "switches.bpftrace_own",
            "CPU time of bpftrace per second",
            "ms",
            Summary::of(bpftrace.own_ms.iter().copied()),
        ));
    }
    let beside = match has_bpftrace {
        true => "bpftrace sums the time by user and kernel stack, which it takes at every switch.",
        false => "This machine has no bpftrace to measure beside it.",
    };
    Section {
        title: "A program that does nothing but switch threads",
        method: format!(
            "Two threads on each CPU wake one another in turn over pipes, for {} s at a time \
             under each profiler and under none, in an order drawn anew each round. {beside}",
            time.as_secs()
        ),
        figures,
    }
}
