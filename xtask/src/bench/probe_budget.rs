//! What probes take of a program that is held to a budget, beside what they would take
//! without one: the work that it gets done in turns with and without them.

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Bench;
use super::process::Target;
use super::report::{Figure, Section};
use super::stats::{Shuffle, Summary};

/// The budgets, in shares of one CPU; none is none.
const BUDGETS: [(&str, Option<f64>); 4] = [
    ("0.005", Some(0.005)),
    ("0.01", Some(0.01)),
    ("0.05", Some(0.05)),
    ("off", None),
];

/// What is hit: each allocation of the program.
const FUNCTION: &str = "runtime.mallocgc";

/// How long a turn is, and how long before it the probes begin: they are calibrated
/// first, and what they do is learnt in the first windows.
const TURN: Duration = Duration::from_secs(5);
const LEAD: Duration = Duration::from_millis(1500);

/// What one turn came to.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// Allocations per second of the clock.
    by_clock: f64,
    /// And per second of CPU time.
    by_cpu: f64,
}

/// What goprof said of a turn.
#[derive(Debug, Default)]
struct Said {
    hits: f64,
    charged_share: f64,
    watched_share: f64,
    trap_ns: f64,
    estimate_over_truth: f64,
}

/// Turns with one budget, against the ones without probes around them.
#[derive(Debug, Default)]
struct Measured {
    by_clock: Vec<f64>,
    by_cpu: Vec<f64>,
    said: Vec<Said>,
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let program = bench.build_go("probe_load")?;
    let mut target = Target::start(&mut Command::new(&program))?;
    turn(&mut target)?;
    let rounds = if bench.quick { 1 } else { 8 };
    let mut measured: [Measured; BUDGETS.len()] = Default::default();
    let mut noise = Measured::default();
    let mut shuffle = Shuffle::default();
    let mut before = turn(&mut target)?;
    let mut rate = before;
    for round in 0..rounds {
        bench.progress(&format!("probe-budget: round {} of {rounds}", round + 1));
        // One more than there are budgets: nothing, which is the noise.
        for index in shuffle.order(BUDGETS.len() + 1) {
            let (with, said) = match BUDGETS.get(index) {
                Some((_, budget)) => {
                    let (with, said) = probed_turn(bench, &mut target, *budget)?;
                    (with, Some(said))
                }
                None => (turn(&mut target)?, None),
            };
            let after = turn(&mut target)?;
            rate = after;
            let of = measured.get_mut(index).unwrap_or(&mut noise);
            of.by_clock
                .push(with.by_clock * 2.0 / (before.by_clock + after.by_clock));
            of.by_cpu
                .push(with.by_cpu * 2.0 / (before.by_cpu + after.by_cpu));
            of.said.extend(said);
            before = after;
        }
    }
    Ok(section(&measured, &noise, rate))
}

fn turn(target: &mut Target) -> Result<Turn> {
    let answer = target.ask(&format!("measure {}ms", TURN.as_millis()))?;
    let numbers: Vec<f64> = answer
        .trim()
        .trim_start_matches("done ")
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("the measured program answered `{}`", answer.trim()))?;
    match numbers[..] {
        [_, _, _, wrong] if wrong > 0.0 => bail!("the program got {wrong} wrong results"),
        [done, clock_ns, cpu_ns, _] if done > 0.0 && clock_ns > 0.0 && cpu_ns > 0.0 => Ok(Turn {
            by_clock: done * 1e9 / clock_ns,
            by_cpu: done * 1e9 / cpu_ns,
        }),
        _ => bail!("the measured program answered `{}`", answer.trim()),
    }
}

/// A turn under probes.
fn probed_turn(bench: &Bench, target: &mut Target, budget: Option<f64>) -> Result<(Turn, Said)> {
    let mut goprof = Command::new(&bench.goprof);
    goprof.args(["probe-hold", "-p", &target.pid().to_string()]);
    let whole = TURN + LEAD + Duration::from_millis(500);
    goprof.args(["--duration-ms", &whole.as_millis().to_string()]);
    if let Some(share) = budget {
        goprof.args(["--share", &share.to_string()]);
    }
    goprof.arg(FUNCTION).stdout(Stdio::piped());
    let child = goprof.spawn().context("start goprof")?;
    sleep(LEAD);
    let turn = turn(target)?;
    Ok((turn, said(child, turn)?))
}

/// What goprof says of it, a line of JSON for each window.
fn said(child: Child, turn: Turn) -> Result<Said> {
    let output = child.wait_with_output().context("wait for goprof")?;
    if !output.status.success() {
        bail!("goprof failed: {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut said = Said::default();
    let (mut charged_ns, mut first_ns, mut last_ns) = (0.0, f64::MAX, 0.0_f64);
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).context("read what goprof says")?;
        let number = |pointer: &str| line.pointer(pointer).and_then(Value::as_f64);
        if let Some(trap_ns) = number("/calibration/median_ns") {
            said.trap_ns = trap_ns;
        }
        if let (Some(opened_ns), Some(slot_ns)) =
            (number("/window/opened_ns"), number("/window/slot_ns"))
        {
            said.hits += number("/window/hits").unwrap_or(0.0);
            charged_ns += number("/window/charged_ns").unwrap_or(0.0);
            first_ns = first_ns.min(opened_ns);
            last_ns = last_ns.max(opened_ns + slot_ns);
        }
        if let Some(share) = number("/end/watched_share") {
            said.watched_share = share;
            let seconds = (last_ns - first_ns) / 1e9;
            let hits = number("/end/hits").unwrap_or(f64::NAN);
            said.estimate_over_truth = hits / seconds / turn.by_clock;
        }
    }
    said.charged_share = charged_ns / (last_ns - first_ns);
    Ok(said)
}

fn section(measured: &[Measured], noise: &Measured, rate: Turn) -> Section {
    let mut figures = Vec::new();
    for ((name, budget), of) in BUDGETS.iter().zip(measured) {
        let id = |what: &str| format!("probe_budget.{name}.{what}");
        let what = match budget {
            Some(share) => format!("budget {}%", share * 100.0),
            None => "no budget".to_owned(),
        };
        let each = |of: &Measured, value: fn(&Said) -> f64| Summary::of(of.said.iter().map(value));
        let mut add = |part: &str, label: &str, unit: &'static str, summary: Summary| {
            figures.push(Figure::new(
                id(part),
                &format!("{what}: {label}"),
                unit,
                summary,
            ));
        };
        let clock = Summary::of(of.by_clock.iter().copied());
        add("throughput", "work done over that without", "ratio", clock);
        let cpu = Summary::of(of.by_cpu.iter().copied());
        add("by_cpu", "the same per CPU second", "ratio", cpu);
        add(
            "charged",
            "charged, in CPUs",
            "ratio",
            each(of, |said| said.charged_share),
        );
        add(
            "watched",
            "share of the time watched",
            "ratio",
            each(of, |said| said.watched_share),
        );
        add("hits", "hits", "hits", each(of, |said| said.hits));
        add(
            "estimate",
            "calls estimated over those made",
            "ratio",
            each(of, |said| said.estimate_over_truth),
        );
    }
    let trap = measured
        .iter()
        .flat_map(|of| of.said.iter().map(|said| said.trap_ns));
    figures.push(Figure::new(
        "probe_budget.trap",
        "a hit, as calibrated",
        "ns",
        Summary::of(trap),
    ));
    let clock = noise.by_clock.iter().copied();
    figures.push(Figure::new(
        "probe_budget.noise",
        "noise: nothing over nothing",
        "ratio",
        Summary::of(clock),
    ));
    Section {
        title: "Probes on every allocation of a busy program, held to a budget",
        method: format!(
            "A program that allocates {:.0} thousand times a second on all CPUs together, with \
             the smallest probe on {FUNCTION} (`goprof probe-hold`): turns of {} s under each \
             budget in an order that is drawn anew each round, each over the mean of the turns \
             without probes right before and after it. A budget is a share of one CPU.",
            rate.by_clock / 1000.0,
            TURN.as_secs(),
        ),
        figures,
    }
}
