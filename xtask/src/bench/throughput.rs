//! How much slower a busy Go program gets under goprof, under perf and under
//! its own CPU profile. Two processes of it take short turns, of which only one
//! is profiled, so that whatever the machine does meanwhile meets both alike.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::process::{self, Cost, Profiler, Target};
use super::report::{Figure, Section};
use super::stats::{Shuffle, Summary, trimmed_mean};
use super::turns::Turn;
use super::{Bench, RATE_HZ};

/// How long a turn is: long for a cycle of the garbage collector, short for
/// what drifts on a machine shared with others.
const TURN: Duration = Duration::from_millis(50);

/// The runs reported for each configuration.
const RUNS: usize = 15;

/// What of the turns of a run is left out at either end: what the machine's
/// other guests did to them.
const TRIMMED: f64 = 0.1;

/// What runs beside the profiled process, or within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// How far apart two equal configurations come out.
    Nothing,
    Goprof,
    Perf,
    OwnProfile,
}

impl Beside {
    /// Pairs of turns whose trimmed mean makes one run. What goprof costs is a
    /// few thousandths: it takes four times the turns to see it, and as many of
    /// nothing to know what was seen. Its recordings are of one minute then, as
    /// in the measurement of CPU time.
    fn pairs_a_run(self, quick: bool) -> usize {
        match self {
            _ if quick => 4,
            Beside::Nothing | Beside::Goprof => 80,
            Beside::Perf | Beside::OwnProfile => 20,
        }
    }
}

const CONFIGURATIONS: [Beside; 4] = [
    Beside::Nothing,
    Beside::Goprof,
    Beside::Perf,
    Beside::OwnProfile,
];

/// What one configuration came to.
#[derive(Debug, Default)]
struct Measured {
    /// Per run: work done per CPU second, profiled over not.
    by_cpu_time: Vec<f64>,
    /// Per run: work done per second of the clock, profiled over not.
    by_clock: Vec<f64>,
    /// The profiler's own CPU time, from its start to its end.
    profiler_cpu_s: f64,
    /// How long profiled turns were altogether.
    profiled_s: f64,
    samples: u64,
    pairs_a_run: usize,
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let program = bench.build_go("throughput")?;
    let mut pair = Pair::start(&program)?;
    let mut measured: [Measured; 4] = Default::default();
    for index in Shuffle::default().order(CONFIGURATIONS.len()) {
        let beside = CONFIGURATIONS[index];
        bench.progress(&format!("throughput: {beside:?}"));
        measured[index] = configuration(bench, &mut pair, beside)?;
    }
    Ok(section(&measured, bench.cpus))
}

/// Two processes of one program, of which at most one runs.
struct Pair([Target; 2]);

impl Pair {
    fn start(program: &std::path::Path) -> Result<Self> {
        let start = || -> Result<Target> {
            let mut target = Target::start(&mut Command::new(program))?;
            // The first second holds the growth of the heap.
            target.ask("measure 1s")?;
            target.freeze()?;
            Ok(target)
        };
        Ok(Self([start()?, start()?]))
    }

    /// Has one of them answer while the other is frozen.
    fn ask(&mut self, which: usize, request: &str) -> Result<String> {
        let target = &mut self.0[which];
        target.thaw()?;
        let answer = target.ask(request)?;
        target.freeze()?;
        Ok(answer)
    }

    fn turn(&mut self, which: usize) -> Result<Turn> {
        Turn::parse(&self.ask(which, &Turn::request(TURN))?)?.busy()
    }
}

/// Measures with each of the two profiled in its turn: one of them is always a
/// little faster, by where its memory happens to lie.
fn configuration(bench: &Bench, pair: &mut Pair, beside: Beside) -> Result<Measured> {
    let pairs_a_run = beside.pairs_a_run(bench.quick);
    let mut measured = Measured {
        pairs_a_run,
        ..Measured::default()
    };
    let mut ratios: [Vec<[f64; 2]>; 2] = Default::default();
    for profiled in [0, 1] {
        let mut command = profiler(bench, beside, pair.0[profiled].pid());
        let profiler = command.as_mut().map(Profiler::start).transpose()?;
        if let Some(profiler) = &profiler {
            profiler.wait_until_sampling()?;
        }
        if beside == Beside::OwnProfile {
            pair.ask(profiled, "profile on")?;
        }
        for number in 0..RUNS * pairs_a_run {
            let first = number % 2;
            let one = pair.turn(first)?;
            let other = pair.turn(1 - first)?;
            let (with, without) = if first == profiled {
                (one, other)
            } else {
                (other, one)
            };
            measured.profiled_s += with.clock_s;
            ratios[profiled].push([
                with.by_cpu() / without.by_cpu(),
                with.by_clock() / without.by_clock(),
            ]);
        }
        if beside == Beside::OwnProfile {
            pair.ask(profiled, "profile off")?;
        }
        if let Some(cost) = profiler.map(Profiler::stop).transpose()? {
            measured.profiler_cpu_s += cost.cpu_s;
            measured.samples += samples(&cost)?;
        }
    }
    measured.by_cpu_time = runs(&ratios, pairs_a_run, 0);
    measured.by_clock = runs(&ratios, pairs_a_run, 1);
    Ok(measured)
}

/// The ratios of both processes, run by run: the difference between the two
/// themselves is in one's as much as it is out of the other's.
fn runs(ratios: &[Vec<[f64; 2]>; 2], pairs_a_run: usize, kind: usize) -> Vec<f64> {
    let means = |which: usize| {
        ratios[which]
            .chunks(pairs_a_run)
            .map(move |run| trimmed_mean(run.iter().map(|ratio| ratio[kind]), TRIMMED))
    };
    means(0)
        .zip(means(1))
        .map(|(one, other)| (one * other).sqrt())
        .collect()
}

/// A profiler that took no samples costs nothing and proves nothing.
fn samples(cost: &Cost) -> Result<u64> {
    match process::samples(&cost.errors)? {
        0 => bail!("the profiler took no samples:\n{}", cost.errors),
        samples => Ok(samples),
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
        Beside::Nothing | Beside::OwnProfile => None,
    }
}

impl Measured {
    /// What is left of the CPUs beside the profiler. It sampled in the profiled
    /// turns alone, so its whole cost is set against their length.
    fn left_of_cpus(&self, cpus: usize) -> f64 {
        1.0 - self.profiler_cpu_s / (self.profiled_s * cpus as f64)
    }

    fn samples_per_s(&self) -> f64 {
        self.samples as f64 / self.profiled_s
    }
}

fn section(measured: &[Measured; 4], cpus: usize) -> Section {
    let [nothing, goprof, perf, own] = measured;
    let figure = |id, what: &str, ratios: &[f64], left: f64| {
        let summary = Summary::of(ratios.iter().map(|ratio| ratio * left));
        Figure::new(id, what, "ratio", summary)
    };
    let whole = |id, what: &str, measured: &Measured| {
        figure(id, what, &measured.by_cpu_time, measured.left_of_cpus(cpus))
    };
    Section {
        title: "Throughput of a busy program, over that without a profiler",
        method: format!(
            "Two processes in turns of {} ms, one of them profiled, each for half of the time; \
             {RUNS} runs of {} pairs of turns for each of the two (perf and the program's own \
             profile {}), of which the mean without the tenth at either end counts. Work done per CPU second of the \
             process, in which its interruptions are, less the share of the CPUs that the \
             profiler itself took from its start to its end ({:.0} s of profiled turns). Samples a \
             second: goprof {:.0}, perf {:.0}; the program's own profile is taken at 100 Hz, as \
             Go fixes it.",
            TURN.as_millis(),
            goprof.pairs_a_run,
            perf.pairs_a_run,
            goprof.profiled_s,
            goprof.samples_per_s(),
            perf.samples_per_s(),
        ),
        figures: vec![
            whole("throughput.goprof", "goprof record -r 99", goprof).goal("at least 0.99"),
            whole("throughput.perf", "perf record -F 99 -g", perf),
            whole("throughput.own", "its own runtime/pprof profile", own),
            whole("throughput.noise", "noise: nothing over nothing", nothing),
            figure(
                "throughput.goprof_inside",
                "goprof, without what it takes itself",
                &goprof.by_cpu_time,
                1.0,
            ),
            figure(
                "throughput.goprof_clock",
                "the same by the clock",
                &goprof.by_clock,
                1.0,
            ),
            figure(
                "throughput.noise_clock",
                "noise by the clock",
                &nothing.by_clock,
                1.0,
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_faster_by_itself_does_not_count() {
        let ratios = [vec![[1.1, 2.2]; 20], vec![[0.9 / 1.1, 1.0]; 20]];
        let [ratio] = runs(&ratios, 20, 0)[..] else {
            panic!("one run");
        };
        assert!((ratio - 0.9_f64.sqrt()).abs() < 1e-9, "{ratio}");
    }

    #[test]
    fn what_the_profiler_takes_is_lost_to_the_program() {
        let measured = Measured {
            profiler_cpu_s: 0.5,
            profiled_s: 25.0,
            ..Measured::default()
        };
        assert!((measured.left_of_cpus(2) - 0.99).abs() < 1e-9);
    }
}
