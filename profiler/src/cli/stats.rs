//! `goprof stats`: what the runtime of a process counts of itself, as lines for
//! people or JSON for programs, once or again and again.

mod text;

use std::{
    io::{self, Write},
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, anyhow};
use serde::Serialize;

use super::{Failure, process::go_process, record::parse_duration};
use crate::{
    doctor,
    gomemory::{Live, MAX_GOROUTINES, Memory, Statistics},
    process::{Objects, Process},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  goprof stats -p 1234
  goprof stats -p 1234 --every 5s
  goprof stats -p 1234 --json | jq .scheduler.latency

Nothing is set up in the program and nothing stops it: its memory is read.
Exit codes: 0 done, 1 it could not be done, 2 usage.")]
/// What `goprof stats` takes.
pub struct Args {
    /// Look at the process PID
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: u32,
    /// Look again and again, this often, until it ends: 5, 5s, 500ms (default: once)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub every: Option<Duration>,
    /// Write JSON, an object on a line each time
    #[arg(long)]
    pub json: bool,
    /// Show every module, wait reason and pause
    #[arg(short, long, conflicts_with = "json")]
    pub verbose: bool,
}

/// What was read at one moment.
#[derive(Serialize)]
struct Report<'p> {
    pid: u32,
    comm: &'p str,
    go_version: String,
    module: &'p Module,
    time_unix_ns: u64,
    #[serde(flatten)]
    statistics: Statistics,
}

/// A program's own module, and those that it is made of besides.
#[derive(Serialize)]
struct Module {
    path: String,
    version: String,
    dependencies: Vec<Dependency>,
}

#[derive(Serialize)]
struct Dependency {
    path: String,
    version: String,
}

/// Reads and writes, until the program is gone where it is to go on.
///
/// # Errors
/// The process is not there or not Go, or it cannot be read.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    if let Err((found, remedy)) = doctor::existing(args.pid) {
        let remedy = remedy.map_or(String::new(), |remedy| format!(": {remedy}"));
        return Err(Failure::Failed(anyhow!("{found}{remedy}")));
    }
    let process = go_process(args.pid, &mut Objects::default())?;
    let memory = Live::open(args.pid).map_err(|error| {
        anyhow!(
            "cannot read the memory of process {}: {error}: run goprof as root, or with \
             CAP_SYS_PTRACE",
            args.pid
        )
    })?;
    let (module, reasons) = (module(&process), wait_reasons(&process));
    let mut last_cycle = None;
    let mut next = Instant::now();
    loop {
        let statistics = process
            .statistics(&memory, &reasons, MAX_GOROUTINES)
            .ok_or_else(|| anyhow!("the Go code of process {} is not mapped", args.pid))?;
        if !memory.is_there() {
            return ended(args.pid, last_cycle.is_some());
        }
        let cycles = statistics.gc.as_ref().map_or(0, |gc| gc.cycles);
        let report = Report {
            pid: process.pid,
            comm: &process.comm,
            go_version: go_version(&process),
            module: &module,
            time_unix_ns: unix_ns(),
            statistics,
        };
        let written = match args.json {
            true => json(&report),
            false => text::write(&mut io::stdout().lock(), &report, args.verbose, last_cycle),
        };
        match written {
            // Who reads only the beginning wants no more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(ExitCode::SUCCESS);
            }
            written => written.context("cannot write to stdout")?,
        }
        last_cycle = Some(cycles);
        let Some(every) = args.every else {
            return Ok(ExitCode::SUCCESS);
        };
        // One that was missed is not made up for.
        next = (next + every).max(Instant::now());
        sleep(next.saturating_duration_since(Instant::now()));
        if !memory.is_there() {
            return ended(args.pid, true);
        }
    }
}

/// The program is gone: what was to be until then is done.
fn ended(pid: u32, has_reported: bool) -> Result<ExitCode, Failure> {
    if !has_reported {
        let why = anyhow!("process {pid} ended while it was read");
        return Err(Failure::Failed(why));
    }
    eprintln!("goprof: process {pid} has ended, or begun another program");
    Ok(ExitCode::SUCCESS)
}

/// What goroutines wait for, in the words of the program's own runtime.
fn wait_reasons(process: &Process) -> Vec<String> {
    let binary = process.go_object().and_then(|object| object.go());
    let reasons = binary.and_then(|binary| binary.wait_reasons());
    reasons.unwrap_or_default()
}

fn go_version(process: &Process) -> String {
    let binary = process.go_object().and_then(|object| object.go());
    binary.map_or(String::new(), |binary| binary.version().to_string())
}

fn module(process: &Process) -> Module {
    let binary = process.go_object().and_then(|object| object.go());
    let info = binary.map(|binary| binary.build_info());
    let dependencies = binary.map(|binary| binary.dependencies());
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    Module {
        path: text(info.map(|info| &info.module_path)),
        version: text(info.map(|info| &info.module_version)),
        dependencies: dependencies
            .into_iter()
            .flatten()
            .map(|(path, version)| Dependency { path, version })
            .collect(),
    }
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

fn json(report: &Report<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, report)?;
    writeln!(out)?;
    out.flush()
}
