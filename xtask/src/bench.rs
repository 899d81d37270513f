//! `cargo xtask bench`: what goprof costs, beside perf and Go's own profiler.
//! It prints and records figures and judges none: a slow machine fails nothing.

mod agent;
mod agent_cpu;
mod agent_memory;
mod apart;
mod cost;
mod followed;
mod large;
mod machine;
mod probe;
mod probe_budget;
mod probe_events;
mod probed;
mod process;
mod report;
mod snapshots;
mod stats;
mod symbols;
mod throughput;
mod turns;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command;
use crate::go::Go;
use crate::test;
use crate::workspace::Workspace;
use machine::{Machine, Ticks};
use report::{Report, Section};

/// The rate that goprof and perf are compared at, in samples a second and CPU.
const RATE_HZ: u32 = 99;

/// Above this many processes that want a CPU, others are at work.
const QUIET_LOAD: f64 = 0.3;

type Measurement = (&'static str, fn(&Bench) -> Result<Section>);

const MEASUREMENTS: [Measurement; 11] = [
    ("throughput", throughput::measure),
    ("cost", cost::measure),
    ("probe", probe::measure),
    ("probe-budget", probe_budget::measure),
    ("probe-events", probe_events::measure),
    ("symbols", symbols::measure),
    ("switches", followed::switches),
    ("requests", followed::requests),
    ("snapshots", snapshots::measure),
    ("agent-cpu", agent_cpu::measure),
    ("agent-memory", agent_memory::measure),
];

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these measurements
    #[arg(value_name = "MEASUREMENT", value_parser = MEASUREMENTS.map(|(name, _)| name))]
    measurements: Vec<String>,
    /// Short runs, to see that everything works: rough figures
    #[arg(long)]
    quick: bool,
    /// How often probes have their turn in each way (default: 3; each round of
    /// probe-events takes almost four minutes)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// The Go program of at least 100 MB whose symbols are loaded (default:
    /// Debian's packer)
    #[arg(long, value_name = "FILE")]
    large_binary: Option<PathBuf>,
    /// Measure this goprof instead of building one
    #[arg(long, value_name = "FILE")]
    goprof: Option<PathBuf>,
}

/// What every measurement needs.
struct Bench<'a> {
    workspace: &'a Workspace,
    go: Go,
    goprof: PathBuf,
    /// Goprof with the agent, where that is measured.
    agent: Option<PathBuf>,
    perf: PathBuf,
    /// Where profiles and programs go.
    folder: PathBuf,
    cpus: usize,
    quick: bool,
    /// Rounds of turns under probes, where they were asked for.
    rounds: Option<usize>,
    large_binary: Option<PathBuf>,
}

/// Measures what was asked for, or everything, and writes the results. Those of
/// everything, not quick, go into the documentation as well.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    test::require_root("cargo xtask bench")?;
    test::mount_tracefs()?;
    let bench = Bench::prepare(workspace, args)?;
    let mut machine = Machine::look(&bench)?;
    if machine.load_before > QUIET_LOAD {
        bench.progress(&format!(
            "others are at work (load {}): the figures will be noisy",
            machine.load_before
        ));
    }
    let before = Ticks::now()?;
    let mut sections = Vec::new();
    for (name, measure) in MEASUREMENTS {
        if args.measurements.is_empty() || args.measurements.iter().any(|wanted| wanted == name) {
            sections.push(measure(&bench).with_context(|| format!("measure {name}"))?);
        }
    }
    machine.stolen_share = Ticks::now()?.stolen_share_since(before);
    let report = Report {
        machine,
        quick: args.quick,
        sections,
    };
    println!("{}", report.table());
    let results = bench.folder.join("results.json");
    let mut json = serde_json::to_vec_pretty(&report).context("encode the results")?;
    json.push(b'\n');
    fs::write(&results, json).with_context(|| format!("write {}", results.display()))?;
    println!("Every run: {}", results.display());
    if args.measurements.is_empty() && !args.quick {
        let document = workspace.root.join("docs/performance.md");
        report.write_into(&document)?;
        println!("Written into {}", document.display());
    }
    Ok(())
}

impl<'a> Bench<'a> {
    fn prepare(workspace: &'a Workspace, args: &Args) -> Result<Self> {
        let perf = command::find("perf").context(
            "perf is measured beside goprof, and this machine has none: \
             run `apt-get install linux-perf` (or your system's package of perf)",
        )?;
        let go = Go::prepare(workspace)?;
        let measures = |wanted: bool| {
            let names = MEASUREMENTS.iter().map(|(name, _)| *name);
            let chosen = |name: &str| args.measurements.iter().any(|chosen| chosen == name);
            let mut names = names.filter(|name| args.measurements.is_empty() || chosen(name));
            names.any(|name| name.starts_with("agent-") == wanted)
        };
        let agent = match &args.goprof {
            Some(goprof) => Some(goprof.clone()),
            None if measures(true) => Some(test::build_whole(workspace)?),
            None => None,
        };
        let goprof = match (&args.goprof, &agent) {
            (Some(goprof), _) => goprof.clone(),
            (None, Some(agent)) if !measures(false) => agent.clone(),
            _ => test::build_recorder(workspace)?,
        };
        let folder = workspace.target().join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self {
            workspace,
            go,
            goprof,
            agent,
            perf,
            folder,
            cpus: std::thread::available_parallelism()
                .context("count the CPUs")?
                .get(),
            quick: args.quick,
            rounds: args.rounds.map(usize::from),
            large_binary: args.large_binary.clone(),
        })
    }

    /// Builds a program of `tests/go/` with the Go at hand.
    fn build_go(&self, name: &str) -> Result<PathBuf> {
        let program = self.folder.join(name);
        let mut build = self.go.command(None);
        build
            .args(["build", "-buildvcs=false", "-o"])
            .arg(&program)
            .arg(format!("./{name}"))
            .current_dir(self.workspace.root.join("tests/go"))
            .env("CGO_ENABLED", "0");
        command::run(&mut build)?;
        Ok(program)
    }

    fn agent(&self) -> Result<&PathBuf> {
        self.agent
            .as_ref()
            .context("goprof was built without the agent")
    }

    fn progress(&self, what: &str) {
        eprintln!("xtask: {what}");
    }
}
