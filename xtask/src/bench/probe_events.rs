//! What `record` with an event of probes takes of programs that do little but hit them,
//! under each budget: locks that are contended, channels, allocations; and of one that
//! does nothing. Beside them, what probes on every allocation take without a budget.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::Bench;
use super::apart::Apart;
use super::probed::{Lengths, Said, Series, rounds};
use super::process::{Profiler, Target};
use super::report::{Figure, Section};
use super::stats::Summary;
use super::turns::Turn;

/// What probes may take, and what that is to be in the end.
#[derive(Debug, Clone, Copy)]
struct Way {
    budget: &'static str,
    goal: Option<&'static str>,
}

const fn way(budget: &'static str, goal: &'static str) -> Way {
    Way {
        budget,
        goal: Some(goal),
    }
}

const WAYS: [Way; 4] = [
    way("0.5%", "at most 0.5"),
    way("1%", "at most 1"),
    way("5%", "at most 5"),
    Way {
        budget: "off",
        goal: None,
    },
];

/// What a program does (`-do` of tests/go/probe_load), the event for it, and in how many
/// of the ways above.
const PROGRAMS: [(&str, &str, usize); 3] = [
    ("lock", "mutex", 3),
    ("send", "block", 3),
    ("allocate", "alloc-events", 4),
];

/// What runs, and where.
struct Place<'a> {
    bench: &'a Bench<'a>,
    program: &'a Path,
    apart: Apart,
    lengths: Lengths,
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let program = bench.build_go("probe_load")?;
    let place = Place {
        bench,
        program: &program,
        apart: Apart::of(bench)?,
        lengths: Lengths::of(bench),
    };
    let mut figures = Vec::new();
    for (does, event, ways) in PROGRAMS {
        figures.extend(place.under_all(does, event, &WAYS[..ways])?);
    }
    figures.extend(place.idle()?);
    Ok(Section {
        title: "Events of probes on programs that hit them at every chance",
        method: format!(
            "`goprof record -e EVENT --probe-budget B` on a program that does what the event is \
             of over and over on a CPU of its own, while everything else is kept on the others: \
             {} turns of {} s in each way, in an order that is drawn anew each round, each over \
             the mean of the turns of {} s right before and after it in which nothing is \
             attached. CPU time lost is what the work took beyond what it takes in those. Noise \
             is what such turns come to under nothing. A budget is a share of one CPU, which is \
             all that the program has.",
            rounds(bench),
            place.lengths.turn.as_secs(),
            place.lengths.plain.as_secs(),
        ),
        figures,
    })
}

impl Place<'_> {
    fn under_all(&self, does: &str, event: &str, ways: &[Way]) -> Result<Vec<Figure>> {
        let mut program = self.apart.program(self.program);
        let mut series = Series::start(program.args(["-do", does]), self.lengths, ways.len())?;
        let rounds = rounds(self.bench);
        for round in 1..=rounds {
            let progress = format!("probe-events: {does}, round {round} of {rounds}");
            self.bench.progress(&progress);
            series.round(|index, target| self.recorded(target, event, ways[index].budget))?;
        }
        let mut figures = Vec::new();
        for (index, way) in ways.iter().enumerate() {
            let id = format!("probe_events.{does}.{}", way.budget);
            let what = format!("-e {event}, budget {}", way.budget);
            figures.extend(series.figures(index, (&id, &what), way.goal));
        }
        let id = format!("probe_events.{does}");
        figures.extend(series.noise_figures(&id, &format!("{does}, noise")));
        figures.push(Figure::new(
            format!("{id}.rate"),
            &format!("{does}: times a second without probes"),
            "per s",
            Summary::of([series.rate()]),
        ));
        Ok(figures)
    }

    fn recorded(&self, target: &mut Target, event: &str, budget: &str) -> Result<(Turn, Said)> {
        let recording = Profiler::start(&mut self.record(target.pid(), event, budget))?;
        let turn = self.lengths.turn_of(target)?;
        Ok((turn, said(&recording.stop()?.errors)?))
    }

    fn record(&self, pid: u32, event: &str, budget: &str) -> Command {
        let mut goprof = self.apart.beside(&self.bench.goprof);
        goprof
            .args(["record", "-e", event, "-p", &pid.to_string()])
            .args(["--probe-budget", budget, "-o"])
            .arg(format!(
                "{}/",
                self.bench.folder.join("probe-events").display()
            ));
        goprof
    }

    /// A program that waits for its next request, under all three events.
    fn idle(&self) -> Result<[Figure; 2]> {
        self.bench.progress("probe-events: idle");
        let mut target = Target::start(self.apart.program(self.program).arg("-idle"))?;
        let (budget, goal) = ("0.5%", "at most 0.5");
        let without = self.lengths.turn_of_idle(&mut target)?;
        let events = PROGRAMS.map(|(_, event, _)| event).join(",");
        let recording = Profiler::start(&mut self.record(target.pid(), &events, budget))?;
        let with = self.lengths.turn_of_idle(&mut target)?;
        recording.stop()?;
        let of = |id, what: &str, turn: Turn| {
            let percent = turn.cpu_s * 100.0 / turn.clock_s;
            Figure::new(id, what, "%", Summary::of([percent]))
        };
        let what = format!("idle, all three, budget {budget}: its CPU time");
        let with = of("probe_events.idle", &what, with);
        let what = "idle: its CPU time without";
        let without = of("probe_events.idle_plain", what, without);
        Ok([with.goal(goal), without])
    }
}

/// From the line of its summary about the process.
fn said(said: &str) -> Result<Said> {
    let between = |before: &str, after: &str| {
        let (_, rest) = said.split_once(before)?;
        let (number, _) = rest.split_once(after)?;
        number.rsplit(' ').next()?.parse::<f64>().ok()
    };
    let all = || {
        Some(Said {
            watched_share: between("watched ", "% of the time")? / 100.0,
            hits: between(" windows, ", " hits")?,
            charged_share: between("probes took ", "% of one CPU")? / 100.0,
        })
    };
    all().with_context(|| format!("goprof said otherwise: {said}"))
}
