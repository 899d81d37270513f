//! What goprof itself takes of the CPU over a whole recording, start, names and
//! writing included, beside `perf record` and `perf script`. What the kernel
//! does in the sampling interrupt is charged to the program interrupted, for
//! both; the throughput shows it.

use std::process::Command;

use anyhow::{Result, bail};

use super::process::{self, Cost, Target};
use super::report::{Figure, Section};
use super::stats::{Shuffle, Summary};
use super::{Bench, RATE_HZ};

/// The CPU times and samples of every round.
#[derive(Debug, Default)]
struct Rounds {
    goprof: Vec<Recorded>,
    /// The short recordings, which tell the start from the rest.
    goprof_short: Vec<Recorded>,
    goprof_again: Vec<Recorded>,
    perf: Vec<Recorded>,
    perf_script_s: Vec<f64>,
}

#[derive(Debug)]
struct Recorded {
    cpu_s: f64,
    samples: f64,
}

impl Recorded {
    fn from(cost: &Cost) -> Result<Self> {
        let samples = process::samples(&cost.errors)?;
        if samples == 0 {
            bail!("the profiler took no samples:\n{}", cost.errors);
        }
        Ok(Self {
            cpu_s: cost.cpu_s,
            samples: samples as f64,
        })
    }
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let (count, long_s, short_s) = if bench.quick { (2, 5, 2) } else { (3, 60, 10) };
    let program = bench.build_go("oracle")?;
    let _target = Target::start(&mut Command::new(program))?;
    let mut rounds = Rounds::default();
    let mut shuffle = Shuffle::default();
    for round in 0..count {
        bench.progress(&format!("cost: round {} of {count}", round + 1));
        for step in shuffle.order(4) {
            match step {
                0 => rounds.goprof.push(goprof(bench, long_s)?),
                1 => rounds.goprof_short.push(goprof(bench, short_s)?),
                2 => rounds.goprof_again.push(goprof(bench, long_s)?),
                _ => {
                    rounds.perf.push(perf(bench, long_s)?);
                    rounds.perf_script_s.push(perf_script(bench)?);
                }
            }
        }
    }
    Ok(section(&rounds, long_s, short_s))
}

fn goprof(bench: &Bench, seconds: u32) -> Result<Recorded> {
    let mut goprof = Command::new(&bench.goprof);
    goprof
        .args(["record", "-a", "-d", &seconds.to_string()])
        .args(["-r", &RATE_HZ.to_string(), "-o"])
        .arg(bench.folder.join("cost.pb.gz"));
    Recorded::from(&process::cost(&mut goprof)?)
}

fn perf(bench: &Bench, seconds: u32) -> Result<Recorded> {
    let mut perf = Command::new(&bench.perf);
    perf.args(["record", "-g", "-a", "-F", &RATE_HZ.to_string(), "-o"])
        .arg(bench.folder.join("cost.perf.data"))
        .args(["--", "sleep", &seconds.to_string()]);
    Recorded::from(&process::cost(&mut perf)?)
}

/// Names what was recorded; in seconds. Without inlined frames, which perf
/// takes from debug information at many times the cost: the comparison is with
/// the cheaper perf, though goprof shows them.
fn perf_script(bench: &Bench) -> Result<f64> {
    let mut script = Command::new(&bench.perf);
    script
        .args(["script", "--no-inline", "-i"])
        .arg(bench.folder.join("cost.perf.data"));
    Ok(process::cost(&mut script)?.cpu_s)
}

fn section(rounds: &Rounds, long_s: u32, short_s: u32) -> Section {
    let cpu = |recorded: &[Recorded]| -> Vec<f64> { recorded.iter().map(|r| r.cpu_s).collect() };
    let taken = |recorded: &[Recorded]| Summary::of(recorded.iter().map(|r| r.samples)).median;
    let goprof = cpu(&rounds.goprof);
    let perf: Vec<f64> = cpu(&rounds.perf)
        .iter()
        .zip(&rounds.perf_script_s)
        .map(|(record, script)| record + script)
        .collect();
    let (per_thousand, start): (Vec<f64>, Vec<f64>) = rounds
        .goprof
        .iter()
        .zip(&rounds.goprof_short)
        .map(|(long, short)| {
            let per_sample = (long.cpu_s - short.cpu_s) / (long.samples - short.samples);
            (per_sample * 1e3, short.cpu_s - per_sample * short.samples)
        })
        .unzip();
    let ms = |id, what: &str, seconds: &[f64]| {
        Figure::new(id, what, "ms", Summary::of(seconds.iter().map(|s| s * 1e3)))
    };
    Section {
        title: "CPU time of the profiler itself, every process, all CPUs busy in Go",
        method: format!(
            "goprof record -a -r 99 and perf record -g -a -F 99 for {long_s} s each in turn, \
             every child included; perf script runs with --no-inline and shows no inlined frames. \
             Samples: goprof {:.0}, perf {:.0}. What a sample costs after the start is the \
             difference between {long_s} s and {short_s} s, divided by that of the samples.",
            taken(&rounds.goprof),
            taken(&rounds.perf),
        ),
        figures: vec![
            Figure::new(
                "cost.ratio",
                "goprof over perf record + perf script",
                "ratio",
                Summary::of_ratios(&goprof, &perf),
            )
            .goal("at most 0.5"),
            Figure::new(
                "cost.noise",
                "noise: goprof over goprof",
                "ratio",
                Summary::of_ratios(&cpu(&rounds.goprof_again), &goprof),
            ),
            ms("cost.goprof", "goprof", &goprof),
            ms("cost.perf", "perf record + perf script", &perf),
            ms(
                "cost.perf_script",
                "perf script alone",
                &rounds.perf_script_s,
            ),
            ms(
                "cost.per_1000_samples",
                "goprof per 1,000 samples after the start",
                &per_thousand,
            ),
            ms("cost.start", "goprof for start, names and writing", &start),
        ],
    }
}
