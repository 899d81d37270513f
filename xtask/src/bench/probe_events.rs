//! What `record` with an event of probes takes of programs that do little but hit them,
//! under each budget: locks that are contended, channels, allocations; and of one that
//! does nothing.

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Bench;
use super::process::Target;
use super::report::{Figure, Section};
use super::stats::{Shuffle, Summary};

const BUDGETS: [&str; 3] = ["0.5%", "1%", "5%"];

/// What a program does (`-do` of tests/go/probe_load), and the event for it.
const PROGRAMS: [(&str, &str); 3] = [
    ("lock", "mutex"),
    ("send", "block"),
    ("allocate", "alloc-events"),
];

/// How long a turn is, and how long before it the recording begins: probes are
/// calibrated first.
const TURN: Duration = Duration::from_secs(5);
const LEAD: Duration = Duration::from_secs(2);

/// Turns under one budget, over those with nothing around them.
#[derive(Debug, Default)]
struct Measured {
    by_clock: Vec<f64>,
    by_cpu: Vec<f64>,
    said: Vec<Said>,
}

/// What one turn came to.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// Work a second of the clock.
    by_clock: f64,
    /// And a second of CPU time.
    by_cpu: f64,
    /// CPU time a second of the clock.
    cpus: f64,
}

/// What goprof said of a recording.
#[derive(Debug, Clone, Copy)]
struct Said {
    watched_share: f64,
    hits: f64,
    taken_share: f64,
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let program = bench.build_go("probe_load")?;
    let rounds = if bench.quick { 1 } else { 3 };
    let mut figures = Vec::new();
    for (does, event) in PROGRAMS {
        let mut target = Target::start(Command::new(&program).args(["-do", does]))?;
        turn(&mut target)?;
        let mut measured: [Measured; BUDGETS.len()] = Default::default();
        let mut noise = Measured::default();
        let mut shuffle = Shuffle::default();
        let mut before = turn(&mut target)?;
        for round in 0..rounds {
            bench.progress(&format!(
                "probe-events: {does}, round {} of {rounds}",
                round + 1
            ));
            for index in shuffle.order(BUDGETS.len() + 1) {
                let (with, said) = match BUDGETS.get(index) {
                    Some(budget) => {
                        let recording = record(bench, target.pid(), event, budget)?;
                        sleep(LEAD);
                        let with = turn(&mut target)?;
                        (with, Some(said(recording)?))
                    }
                    None => (turn(&mut target)?, None),
                };
                let after = turn(&mut target)?;
                let of = measured.get_mut(index).unwrap_or(&mut noise);
                of.by_clock
                    .push(with.by_clock * 2.0 / (before.by_clock + after.by_clock));
                of.by_cpu
                    .push(with.by_cpu * 2.0 / (before.by_cpu + after.by_cpu));
                of.said.extend(said);
                before = after;
            }
        }
        add(&mut figures, does, event, (&measured, &noise), before);
    }
    figures.extend(idle(bench, &program)?);
    Ok(Section {
        title: "Events of probes on programs that hit them at every chance",
        method: format!(
            "`goprof record -e EVENT --probe-budget B` on a program that keeps all CPUs busy \
             with what the event is of: turns of {} s, in an order that is drawn anew each \
             round, each over the mean of the turns without probes right before and after it. \
             By the clock goprof's own CPU time is lost to the program as well, where it has \
             all CPUs; work per CPU second is what probes take. A budget is a share of one CPU, \
             of {}.",
            TURN.as_secs(),
            bench.cpus,
        ),
        figures,
    })
}

/// A program that waits for its next request, under all three events.
fn idle(bench: &Bench, program: &std::path::Path) -> Result<[Figure; 2]> {
    let mut target = Target::start(Command::new(program).arg("-idle"))?;
    let without = turn(&mut target)?;
    let recording = record(bench, target.pid(), "mutex,block,alloc-events", "1%")?;
    sleep(LEAD);
    let with = turn(&mut target)?;
    recording_ends(recording)?;
    let of = |id, what, turn: Turn| Figure::new(id, what, "ratio", Summary::of([turn.cpus]));
    Ok([
        of(
            "probe_events.idle",
            "idle: its CPU time under all three",
            with,
        ),
        of(
            "probe_events.idle_plain",
            "idle: its CPU time without",
            without,
        ),
    ])
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
        [done, clock_ns, cpu_ns, _] if clock_ns > 0.0 => Ok(Turn {
            by_clock: done * 1e9 / clock_ns,
            by_cpu: done * 1e9 / cpu_ns,
            cpus: cpu_ns / clock_ns,
        }),
        _ => bail!("the measured program answered `{}`", answer.trim()),
    }
}

fn record(bench: &Bench, pid: u32, event: &str, budget: &str) -> Result<Child> {
    let seconds = (TURN + LEAD).as_secs() + 1;
    let mut goprof = Command::new(&bench.goprof);
    goprof
        .args(["record", "-e", event, "-p", &pid.to_string()])
        .args(["-d", &seconds.to_string(), "--probe-budget", budget, "-o"])
        .arg(format!("{}/", bench.folder.join("probe-events").display()))
        .stderr(Stdio::piped());
    goprof.spawn().context("start goprof")
}

fn recording_ends(recording: Child) -> Result<String> {
    let output = recording.wait_with_output().context("wait for goprof")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("goprof failed: {said}");
    }
    Ok(said)
}

/// From the line of its summary about the process.
fn said(recording: Child) -> Result<Said> {
    let said = recording_ends(recording)?;
    let between = |before: &str, after: &str| {
        let (_, rest) = said.split_once(before)?;
        let (number, _) = rest.split_once(after)?;
        number.rsplit(' ').next()?.parse::<f64>().ok()
    };
    let all = || {
        Some(Said {
            watched_share: between("watched ", "% of the time")? / 100.0,
            hits: between(" windows, ", " hits")?,
            taken_share: between("probes took ", "% of one CPU")? / 100.0,
        })
    };
    all().with_context(|| format!("goprof said otherwise: {said}"))
}

fn add(
    figures: &mut Vec<Figure>,
    does: &str,
    event: &str,
    (measured, noise): (&[Measured], &Measured),
    rate: Turn,
) {
    for (budget, of) in BUDGETS.iter().zip(measured) {
        let mut figure = |part: &str, label: &str, unit, summary| {
            let id = format!("probe_events.{does}.{budget}.{part}");
            let what = format!("-e {event}, budget {budget}: {label}");
            figures.push(Figure::new(id, &what, unit, summary));
        };
        let each = |value: fn(&Said) -> f64| Summary::of(of.said.iter().map(value));
        let clock = Summary::of(of.by_clock.iter().copied());
        figure("throughput", "work done over that without", "ratio", clock);
        let cpu = Summary::of(of.by_cpu.iter().copied());
        figure("by_cpu", "the same per CPU second", "ratio", cpu);
        let taken = each(|said| said.taken_share);
        figure("charged", "charged, in CPUs", "ratio", taken);
        let watched = each(|said| said.watched_share);
        figure("watched", "share of the time watched", "ratio", watched);
        figure("hits", "hits", "hits", each(|said| said.hits));
    }
    for (part, label, values) in [
        ("noise", "noise: nothing over nothing", &noise.by_clock),
        ("noise_by_cpu", "noise per CPU second", &noise.by_cpu),
    ] {
        figures.push(Figure::new(
            format!("probe_events.{does}.{part}"),
            &format!("{does}: {label}"),
            "ratio",
            Summary::of(values.iter().copied()),
        ));
    }
    figures.push(Figure::new(
        format!("probe_events.{does}.rate"),
        &format!("{does}: times a second without probes"),
        "per s",
        Summary::of([rate.by_clock]),
    ));
}
