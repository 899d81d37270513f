//! Hidden subcommands for measurements and tests of the probe budget: the child that
//! a hit's cost is measured on, and one process held to a budget with the smallest
//! program on chosen functions. It prints a line of JSON for each window.

use std::{
    io::Write,
    os::fd::AsRawFd,
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use clap::{Args as ClapArgs, ValueEnum};
use serde_json::json;

use super::Failure;
use crate::{
    decode::{Event, decode},
    probe::{
        self, Budget, Controller, Means, Options, ProbeSet, Probes, Watch, Watched, Windows,
        calibrate,
    },
    process::Objects,
};

/// Arguments of `goprof probe-hold`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The process
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: u32,
    /// For how long, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    duration_ms: u64,
    /// The share of one CPU; all the time where it is absent
    #[arg(long)]
    share: Option<f64>,
    /// How probes are put on; the better that the kernel has where it is absent
    #[arg(long, value_enum)]
    probe_means: Option<MeansArg>,
    /// The functions
    #[arg(required = true)]
    functions: Vec<String>,
}

/// How probes are put on, for tests of the means that the kernel has better ones than.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MeansArg {
    /// One link for all places of a program
    Link,
    /// A perf event for each place
    Events,
}

impl MeansArg {
    /// As the kernel has them.
    ///
    /// # Errors
    /// It has none.
    pub fn get(self) -> anyhow::Result<Means> {
        match self {
            Self::Link => Ok(Means::Link),
            Self::Events => Means::events(),
        }
    }
}

/// The child of the calibration.
///
/// # Errors
/// Its mappings cannot be read.
pub fn serve() -> Result<ExitCode, Failure> {
    calibrate::serve()?;
    Ok(ExitCode::SUCCESS)
}

/// Holds a process to a budget.
///
/// # Errors
/// The process cannot be probed.
pub fn hold(args: &Args) -> Result<ExitCode, Failure> {
    let options = Options {
        kernel_stacks: false,
        watch_execs: false,
        ring_bytes: 1 << 20,
        cpu: false,
        off_cpu: false,
        block_io: false,
        kernel_io: false,
    };
    let mut probes = Probes::load(&options)?;
    let means = args.probe_means.map_or_else(Means::find, MeansArg::get)?;
    let programs = probes.load_uprobes(&[calibrate::PROGRAM], means)?;
    let mut shares = probes.take_shares()?;
    let begun = Instant::now();
    let measured = calibrate::measure(Path::new("/proc/self/exe"), &programs, &mut shares);
    let took_ms = begun.elapsed().as_millis();
    let (trap_ns, close_ns) = match measured {
        Ok(cost) => {
            print(&json!({
                "calibration": { "median_ns": cost.median_ns, "low_ns": cost.low_ns,
                    "high_ns": cost.high_ns, "close_ns": cost.close_ns,
                    "took_ms": took_ms as u64 }
            }))?;
            (cost.median_ns, cost.close_ns)
        }
        Err(error) => {
            let default_ns = calibrate::DEFAULT_TRAP_NS;
            eprintln!("goprof: {error:#}; a hit is taken for {default_ns} ns");
            (default_ns, calibrate::DEFAULT_CLOSE_NS)
        }
    };
    let object = Objects::default().of_executable(args.pid);
    let object = object.with_context(|| format!("cannot open the program of {}", args.pid))?;
    let binary = object.go().ok_or_else(|| anyhow!("not a Go program"))?;
    let names: Vec<&str> = args.functions.iter().map(String::as_str).collect();
    let mut places = Vec::new();
    for (name, place) in names.iter().zip(binary.probe_places(&names)) {
        places.push(place.with_context(|| format!("cannot probe {name}"))?);
    }
    let mut set = ProbeSet::new(args.pid, Arc::clone(&object));
    set.add(&programs, calibrate::PROGRAM, &places)?;
    let budget = args.share.map_or(Budget::Unlimited, Budget::Share);
    let costs = set.costs(trap_ns, close_ns);
    let now_ns = probe::monotonic_ns();
    let controller = Controller::new(budget, costs, now_ns, now_ns);
    let (sender, windows) = mpsc::channel();
    let take = move |watched: &Watched| {
        // It fails where nobody wants to know any more.
        let _ = sender.send(*watched);
    };
    let watch = Watch::start(set, Arc::new(Mutex::new(shares)), controller, take)?;
    pump(args, &mut probes, watch, &windows)?;
    Ok(ExitCode::SUCCESS)
}

/// Hands what the kernel side tells to the watch, until the time is over.
fn pump(
    args: &Args,
    probes: &mut Probes,
    watch: Watch,
    windows: &mpsc::Receiver<Watched>,
) -> anyhow::Result<()> {
    let mut ring = probes.take_ring()?;
    let ends = Instant::now() + Duration::from_millis(args.duration_ms);
    let (mut seen, mut hits) = (Windows::default(), Vec::new());
    let mut take = |watched: &Watched| {
        hits.push((seen.len(), watched.share.admitted() as f64));
        seen.push(watched.weight);
        print(&window(watched))
    };
    while Instant::now() < ends && !watch.is_over() {
        let mut poll = libc::pollfd {
            fd: ring.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure of our own.
        unsafe { libc::poll(&raw mut poll, 1, 50) };
        while let Some(record) = ring.next() {
            if let Ok(Event::ShareSpent {
                window, time_ns, ..
            }) = decode(&record)
            {
                watch.spent(window, time_ns);
            }
        }
        for watched in windows.try_iter() {
            take(&watched)?;
        }
    }
    let controller = watch.stop()?;
    for watched in windows.try_iter() {
        take(&watched)?;
    }
    let estimate = seen.estimate(&hits);
    print(&json!({ "end": {
        "skipped": controller.skipped(), "rate": controller.rate(), "windows": seen.len(),
        "watched_share": seen.watched_share(), "hits": estimate.value,
        "standard_error": estimate.standard_error,
        "half_width_95": estimate.half_width_95(seen.len()),
    }}))
}

fn window(watched: &Watched) -> serde_json::Value {
    let closed = &watched.closed;
    json!({ "window": {
        "opened_ns": closed.opened_ns, "watched_ns": closed.watched_ns(),
        "slot_ns": closed.plan.slot_ns, "whole": closed.plan.whole, "spent": closed.spent,
        "spend_ns": closed.plan.spend_ns, "length_ns": closed.plan.length_ns,
        "hits": watched.share.hits, "refused": watched.share.refused,
        "repeated": watched.share.repeated, "program_ns": watched.share.program_ns,
        "charged_ns": closed.charged_ns, "outside_ns": closed.outside_ns,
        "own_ns": watched.weight.own_ns, "own_since_ns": watched.weight.own_since_ns,
        "user_ticks": watched.share.user_ticks, "kernel_ticks": watched.share.kernel_ticks,
        "attach_ns": watched.attach_ns, "detach_ns": watched.detach_ns,
    }})
}

fn print(line: &serde_json::Value) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").context("cannot write to the standard output")
}
