//! How much slower a busy Go program gets under goprof, under perf and under
//! its own CPU profile. It compares intervals of one process's life, so that no
//! restart is in the difference.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::{self, Cost, Profiler, Target};
use super::report::{Figure, Section};
use super::stats::{Shuffle, Summary};
use super::{Bench, RATE_HZ};

/// How long a profiler has been sampling before it is measured: its start is
/// measured elsewhere, as CPU time.
const SETTLE: Duration = Duration::from_millis(500);

/// What runs beside the program, or within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// The same again: how far apart two equal configurations come out.
    NothingAgain,
    Goprof,
    Perf,
    OwnProfile,
}

const CONFIGURATIONS: [Beside; 5] = [
    Beside::Nothing,
    Beside::NothingAgain,
    Beside::Goprof,
    Beside::Perf,
    Beside::OwnProfile,
];

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let (rounds, interval) = if bench.quick { (3, 1) } else { (10, 3) };
    let program = bench.build_go("throughput")?;
    let mut target = Target::start(&mut Command::new(program))?;
    // The first second holds the growth of the heap.
    target.ask("plain 1s")?;

    let mut rates = CONFIGURATIONS.map(|_| Vec::new());
    let mut samples = CONFIGURATIONS.map(|_| Vec::new());
    let mut shuffle = Shuffle::default();
    for round in 0..rounds {
        bench.progress(&format!("throughput: round {} of {rounds}", round + 1));
        for index in shuffle.order(CONFIGURATIONS.len()) {
            let taken = run(bench, &mut target, CONFIGURATIONS[index], interval)?;
            rates[index].push(taken.pieces_per_s);
            samples[index].extend(taken.samples_per_s);
        }
    }
    Ok(section(&rates, &samples, rounds, interval))
}

/// What one interval gave.
struct Taken {
    pieces_per_s: f64,
    /// Of the profiler beside it, over its whole life.
    samples_per_s: Option<f64>,
}

fn run(bench: &Bench, target: &mut Target, beside: Beside, interval_s: u32) -> Result<Taken> {
    let kind = match beside {
        Beside::OwnProfile => "profiled",
        _ => "plain",
    };
    let profiler = profiler(bench, beside, target.pid())
        .map(|mut command| Profiler::start(&mut command))
        .transpose()?;
    if let Some(profiler) = &profiler {
        profiler.wait_until_sampling()?;
    }
    sleep(SETTLE);
    let answer = target.ask(&format!("{kind} {interval_s}s"))?;
    let samples_per_s = match profiler.map(Profiler::stop).transpose()? {
        Some(cost) => Some(samples_per_s(&cost)?),
        None => None,
    };
    Ok(Taken {
        pieces_per_s: pieces_per_s(&answer)?,
        samples_per_s,
    })
}

/// A profiler that took no samples costs nothing and proves nothing.
fn samples_per_s(cost: &Cost) -> Result<f64> {
    match process::samples(&cost.errors)? {
        0 => bail!("the profiler took no samples:\n{}", cost.errors),
        samples => Ok(samples as f64 / cost.wall_s),
    }
}

fn profiler(bench: &Bench, beside: Beside, pid: u32) -> Option<Command> {
    let (pid, rate) = (pid.to_string(), RATE_HZ.to_string());
    match beside {
        Beside::Goprof => {
            let mut goprof = Command::new(&bench.goprof);
            goprof.args(["record", "-p", &pid, "-r", &rate, "-o"]);
            goprof.arg(bench.folder.join("throughput.pb.gz"));
            Some(goprof)
        }
        Beside::Perf => {
            let mut perf = Command::new(&bench.perf);
            perf.args(["record", "-F", &rate, "-g", "-p", &pid, "-o"]);
            perf.arg(bench.folder.join("throughput.perf.data"));
            Some(perf)
        }
        _ => None,
    }
}

/// From "PIECES NANOSECONDS".
fn pieces_per_s(answer: &str) -> Result<f64> {
    let numbers: Vec<f64> = answer
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("the measured program answered `{}`", answer.trim()))?;
    match numbers[..] {
        [pieces, ns] if ns > 0.0 => Ok(pieces / (ns / 1e9)),
        _ => bail!("the measured program answered `{}`", answer.trim()),
    }
}

fn section(rates: &[Vec<f64>; 5], samples: &[Vec<f64>; 5], rounds: u32, interval: u32) -> Section {
    let [nothing, again, goprof, perf, own] = rates;
    // Both runs without a profiler: half the noise in what is divided by.
    let base: Vec<f64> = nothing
        .iter()
        .zip(again)
        .map(|(a, b)| (a + b) / 2.0)
        .collect();
    let ratio = |id, what: &str, measured: &[f64], base: &[f64]| {
        Figure::new(id, what, "ratio", Summary::of_ratios(measured, base))
    };
    let per_s = |index: usize| Summary::of(samples[index].iter().copied()).median;
    Section {
        title: "Throughput of a busy program, over that without a profiler",
        method: format!(
            "{rounds} rounds in one process, each configuration {interval} s a round in an order \
             drawn anew; the profiler already samples. Samples a second: goprof {:.0}, perf {:.0}; \
             the program's own profile is taken at 100 Hz, as Go fixes it.",
            per_s(2),
            per_s(3),
        ),
        figures: vec![
            ratio("throughput.goprof", "goprof record -r 99", goprof, &base).goal("at least 0.99"),
            ratio("throughput.perf", "perf record -F 99 -g", perf, &base),
            ratio(
                "throughput.own",
                "its own runtime/pprof profile",
                own,
                &base,
            ),
            ratio(
                "throughput.noise",
                "noise: nothing over nothing",
                again,
                nothing,
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_answer_of_the_program() {
        assert_eq!(pieces_per_s("5000 500000000\n").unwrap(), 10_000.0);
        for answer in ["", "5000", "5000 0", "five 1"] {
            assert!(pieces_per_s(answer).is_err(), "{answer:?}");
        }
    }
}
