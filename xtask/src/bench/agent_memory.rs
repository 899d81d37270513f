//! How much memory `goprof agent` takes beside its limit, with hundreds of Go
//! processes and several very large programs, as sampled on a small machine and
//! as on one with many CPUs.

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Bench;
use super::agent::{Agent, Memory};
use super::large;
use super::process::Target;
use super::report::{Figure, Section};
use super::stats::Summary;
use crate::command;

/// How many Go processes.
pub(super) const CROWD: usize = 200;
/// Of how many different files.
const CROWD_PROGRAMS: usize = 10;
const LARGE: usize = 5;
const LIMITS_MIB: [u64; 2] = [128, 64];
/// The default, and as many samples from two CPUs as 63 give at the default.
const RATES_HZ: [u32; 2] = [19, 599];
const MIB: f64 = (1 << 20) as f64;

/// Many Go processes that do a little; killed with this value.
pub(super) struct Crowd(#[expect(dead_code, reason = "they end with it")] Vec<Target>);

impl Crowd {
    /// Starts them; together they want that share of all CPUs.
    pub(super) fn start(bench: &Bench, of_all: f64) -> Result<Self> {
        let programs = (0..CROWD_PROGRAMS).map(|number| program(bench, number));
        let programs: Vec<PathBuf> = programs.collect::<Result<_>>()?;
        let share = of_all * bench.cpus as f64 / CROWD as f64;
        let start = |number: usize| {
            let mut command = Command::new(&programs[number % programs.len()]);
            command.args(["-seed", &number.to_string(), "-share", &share.to_string()]);
            Target::start(&mut command)
        };
        (0..CROWD).map(start).collect::<Result<_>>().map(Self)
    }
}

/// The same program linked anew, as a file of its own.
fn program(bench: &Bench, number: usize) -> Result<PathBuf> {
    let program = bench.folder.join(format!("crowd{number}"));
    let mut build = bench.go.command(None);
    build
        .args(["build", "-buildvcs=false", "-o"])
        .arg(&program)
        .arg(format!(
            "-ldflags=-buildid=crowd{number} -B=0x{number:040x}"
        ))
        .arg("./crowd")
        .current_dir(bench.workspace.root.join("tests/go"))
        .env("CGO_ENABLED", "0");
    command::run(&mut build)?;
    Ok(program)
}

/// What was seen of agents with one limit at one rate.
struct Seen {
    limit_mib: u64,
    rate_hz: u32,
    rounds: Vec<Round>,
}

/// What was seen of one agent.
struct Round {
    most: Memory,
    charged: f64,
    kills: f64,
    samples: f64,
    lost: f64,
    windows: f64,
    evictions: f64,
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let (rounds, seconds) = if bench.quick { (1, 20) } else { (3, 50) };
    let programs = large::build(bench, LARGE)?;
    let _crowd = Crowd::start(bench, 0.3)?;
    let start = |program: &PathBuf| Target::start(Command::new(program).env("GOMAXPROCS", "1"));
    let _large: Vec<Target> = programs.iter().map(start).collect::<Result<_>>()?;
    let cases = LIMITS_MIB.map(|limit_mib| RATES_HZ.map(|rate_hz| (limit_mib, rate_hz)));
    let cases = cases.as_flattened().iter().map(|case| Seen {
        limit_mib: case.0,
        rate_hz: case.1,
        rounds: Vec::new(),
    });
    let mut all: Vec<Seen> = cases.collect();
    for round in 1..=rounds {
        for seen in &mut all {
            let (limit_mib, rate_hz) = (seen.limit_mib, seen.rate_hz);
            bench.progress(&format!(
                "agent-memory: {limit_mib} MiB at {rate_hz} Hz, round {round} of {rounds}"
            ));
            seen.rounds.push(watch(bench, limit_mib, rate_hz, seconds)?);
        }
    }
    Ok(section(&all, seconds, size_mb(&programs)?))
}

/// The least size of the programs.
fn size_mb(programs: &[PathBuf]) -> Result<u64> {
    let mut least = u64::MAX;
    for program in programs {
        let size = std::fs::metadata(program)
            .context("look at a program")?
            .len();
        least = least.min(size / 1_000_000);
    }
    Ok(least)
}

fn watch(bench: &Bench, limit_mib: u64, rate_hz: u32, seconds: u64) -> Result<Round> {
    let (limit, rate) = (format!("{limit_mib}MiB"), rate_hz.to_string());
    let args = ["--flush", "10s", "--memory-limit", &limit, "--rate", &rate];
    let mut agent = Agent::start(bench, &args, Some(limit_mib << 20))?;
    let begun = Instant::now();
    let mut most = Memory::default();
    while begun.elapsed() < Duration::from_secs(seconds) {
        match agent.memory() {
            Err(_) if was_killed(&agent) => break,
            memory => most = most.max(memory?),
        }
        sleep(Duration::from_millis(20));
    }
    // What it can no longer be asked is not known.
    let known = |value: Result<f64>| match value {
        Err(_) if was_killed(&agent) => Ok(f64::NAN),
        value => value,
    };
    // The start, before it samples, included.
    most.resident = most.resident.max(known(agent.most_resident())?);
    let metric = |name| known(agent.metric(name));
    let mut round = Round {
        most,
        charged: f64::NAN,
        kills: f64::NAN,
        samples: metric("goprof_samples_total")?,
        lost: metric("goprof_samples_lost_total")?,
        windows: metric("goprof_windows_total{result=\"spooled\"}")?,
        evictions: metric("goprof_memory_evictions_total")?,
    };
    // The last window is written then, which takes memory as well.
    match agent.stop() {
        Err(_) if was_killed(&agent) => {}
        stopped => stopped?,
    }
    (round.charged, round.kills) = agent.charged();
    Ok(round)
}

fn was_killed(agent: &Agent) -> bool {
    agent.charged().1 > 0.0
}

type Value = fn(&Round) -> f64;

/// What is said of each agent: id, words, unit and value.
const FIGURES: [(&str, &str, &str, Value); 8] = [
    ("agent.resident", "most resident memory", "MiB", |round| {
        round.most.resident / MIB
    }),
    ("agent.anonymous", "most of its own", "MiB", |round| {
        round.most.anonymous / MIB
    }),
    (
        "agent.charged",
        "most charged by the kernel",
        "MiB",
        |round| round.charged / MIB,
    ),
    ("agent.kills", "killed for it", "times", |round| round.kills),
    ("agent.evictions", "let go of caches", "times", |round| {
        round.evictions
    }),
    ("agent.windows", "windows written", "windows", |round| {
        round.windows
    }),
    ("agent.samples", "samples in them", "samples", |round| {
        round.samples
    }),
    ("agent.lost", "samples lost", "samples", |round| round.lost),
];

fn section(all: &[Seen], seconds: u64, size_mb: u64) -> Section {
    let mut figures = Vec::new();
    for seen in all {
        let (limit_mib, rate_hz) = (seen.limit_mib, seen.rate_hz);
        for (id, what, unit, value) in FIGURES {
            let what = format!("limit {limit_mib} MiB, {rate_hz} Hz: {what}");
            let summary = Summary::of(seen.rounds.iter().map(value));
            let figure = Figure::new(id, &what, unit, summary);
            figures.push(match (id, limit_mib) {
                ("agent.resident", 128) => figure.goal("at most 128"),
                ("agent.resident", _) => figure.goal("at most 64"),
                _ => figure,
            });
        }
    }
    Section {
        title: "Memory of the agent beside its limit",
        method: format!(
            "{CROWD} Go processes of {CROWD_PROGRAMS} files, each with labels of its own, that \
             want three tenths of the CPUs, and {LARGE} programs of at least {size_mb} MB that \
             call through all of their {} functions at random, so that hardly a stack comes \
             twice. goprof agent with --flush 10s, started anew for each run of {seconds} s, in a \
             memory cgroup that allows no more than the limit. Resident memory is the most since \
             the start as the kernel keeps it; the rest was looked at every 20 ms. 599 Hz on two CPUs are as many \
             samples as 63 busy CPUs give at 19 Hz.",
            large::functions_in_all(),
        ),
        figures,
    }
}
