//! What probes take of a program that is held to a budget, beside what they would take
//! without one: the work that it gets done in turns with and without them.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Bench;
use super::apart::Apart;
use super::probed::{Lengths, Said, Series, rounds};
use super::report::{Figure, Section};
use super::stats::Summary;
use super::turns::Turn;

/// The budgets, in shares of one CPU; none is none.
const BUDGETS: [(&str, Option<f64>, Option<&str>); 4] = [
    ("0.005", Some(0.005), Some("at most 0.5")),
    ("0.01", Some(0.01), Some("at most 1")),
    ("0.05", Some(0.05), Some("at most 5")),
    ("off", None, None),
];

/// What is hit: each allocation of the program.
const FUNCTION: &str = "runtime.mallocgc";

/// What else goprof says of a turn.
#[derive(Debug, Clone, Copy)]
struct Told {
    trap_ns: f64,
    estimate_over_truth: f64,
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let program = bench.build_go("probe_load")?;
    let (apart, lengths) = (Apart::of(bench)?, Lengths::of(bench));
    let mut series = Series::start(&mut apart.program(&program), lengths, BUDGETS.len())?;
    let mut told: [Vec<Told>; BUDGETS.len()] = Default::default();
    let rounds = rounds(bench);
    for round in 1..=rounds {
        bench.progress(&format!("probe-budget: round {round} of {rounds}"));
        series.round(|index, target| {
            let (_, budget, _) = BUDGETS[index];
            let held = hold(bench, &apart, target.pid(), (lengths, budget))?;
            let turn = lengths.turn_of(target)?;
            let (said, more) = said(held, turn)?;
            told[index].push(more);
            Ok((turn, said))
        })?;
    }
    Ok(Section {
        title: "Probes on every allocation of a busy program, held to a budget",
        method: format!(
            "A program that allocates {:.0} thousand times a second on a CPU of its own, with \
             the smallest probe on {FUNCTION} (`goprof probe-hold`): {rounds} turns of {} s under \
             each budget in an order that is drawn anew each round, each over the mean of the \
             turns of {} s without probes right before and after it. A budget is a share of one \
             CPU.",
            series.rate() / 1000.0,
            lengths.turn.as_secs(),
            lengths.plain.as_secs(),
        ),
        figures: figures(&series, &told),
    })
}

/// Puts the probes on, for a turn.
fn hold(
    bench: &Bench,
    apart: &Apart,
    pid: u32,
    (lengths, budget): (Lengths, Option<f64>),
) -> Result<Child> {
    let mut goprof = apart.beside(&bench.goprof);
    goprof.args(["probe-hold", "-p", &pid.to_string()]);
    let whole = lengths.recording();
    goprof.args(["--duration-ms", &whole.as_millis().to_string()]);
    if let Some(share) = budget {
        goprof.args(["--share", &share.to_string()]);
    }
    goprof.arg(FUNCTION).stdout(Stdio::piped());
    goprof.spawn().context("start goprof")
}

/// What goprof says of it, a line of JSON for each window.
fn said(child: Child, turn: Turn) -> Result<(Said, Told)> {
    let output = child.wait_with_output().context("wait for goprof")?;
    if !output.status.success() {
        bail!("goprof failed: {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (mut hits, mut watched_share) = (0.0, f64::NAN);
    let (mut trap_ns, mut estimate) = (f64::NAN, f64::NAN);
    let (mut charged_ns, mut first_ns, mut last_ns) = (0.0, f64::MAX, 0.0_f64);
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).context("read what goprof says")?;
        let number = |pointer: &str| line.pointer(pointer).and_then(Value::as_f64);
        trap_ns = number("/calibration/median_ns").unwrap_or(trap_ns);
        if let (Some(opened_ns), Some(slot_ns)) =
            (number("/window/opened_ns"), number("/window/slot_ns"))
        {
            hits += number("/window/hits").unwrap_or(0.0);
            charged_ns += number("/window/charged_ns").unwrap_or(0.0);
            first_ns = first_ns.min(opened_ns);
            last_ns = last_ns.max(opened_ns + slot_ns);
        }
        watched_share = number("/end/watched_share").unwrap_or(watched_share);
        estimate = number("/end/hits").unwrap_or(estimate);
    }
    let said = Said {
        watched_share,
        hits,
        charged_share: charged_ns / (last_ns - first_ns),
    };
    let seconds = (last_ns - first_ns) / 1e9;
    let told = Told {
        trap_ns,
        estimate_over_truth: estimate / seconds / turn.by_clock(),
    };
    Ok((said, told))
}

fn figures(series: &Series, told: &[Vec<Told>]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (index, ((name, budget, goal), told)) in BUDGETS.iter().zip(told).enumerate() {
        let id = format!("probe_budget.{name}");
        let what = match budget {
            Some(share) => format!("budget {}%", share * 100.0),
            None => "no budget".to_owned(),
        };
        figures.extend(series.figures(index, (&id, &what), *goal));
        figures.push(Figure::new(
            format!("{id}.estimate"),
            &format!("{what}: calls estimated over those made"),
            "ratio",
            Summary::of(told.iter().map(|told| told.estimate_over_truth)),
        ));
    }
    figures.extend(series.noise_figures("probe_budget", "noise"));
    figures.push(Figure::new(
        "probe_budget.trap",
        "a hit, as calibrated",
        "ns",
        Summary::of(told.iter().flatten().map(|told| told.trap_ns)),
    ));
    figures
}
