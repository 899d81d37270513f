//! The command line: one file per subcommand, each from arguments to one
//! validated configuration and then to the session.

#[cfg(feature = "agent")]
pub mod agent;
pub mod doctor;
pub mod goroutines;
pub mod leaks;
pub mod probes;
mod process;
pub mod record;
pub mod stats;

use std::{fmt, process::ExitCode};

use clap::{Parser, Subcommand};

/// Profile Go programs on Linux from outside, with nothing changed in them.
///
/// Works on running processes, stripped or not, without an endpoint, an agent
/// inside or a restart. Needs root.
#[derive(Debug, Parser)]
#[command(
    name = "goprof",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_help = "Start with:\n  goprof record -p PID -d 10     ten seconds of one process\n  goprof record -- CMD ARGS      a command from its start to its end\n  goprof doctor                  what this machine and process can give"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sample CPU stacks of Go processes and write a profile
    Record(Box<record::Args>),
    /// Profile every Go process all the time, into a store
    #[cfg(feature = "agent")]
    Agent(Box<agent::Args>),
    /// List every goroutine of a process, by stack
    Goroutines(Box<goroutines::Args>),
    /// Show what the runtime of a process counts: goroutines, heap, collections
    Stats(stats::Args),
    /// Find goroutines that leak, over several snapshots
    Leaks(Box<leaks::Args>),
    /// Check what this machine, and a process, can give
    Doctor(doctor::Args),
    /// What a probe's hit takes is measured on this
    #[command(name = crate::probe::calibrate::CHILD_ARGUMENT, hide = true)]
    ProbeTarget,
    /// Hold the smallest probe on a process to a budget
    #[command(hide = true)]
    ProbeHold(probes::Args),
}

/// Why goprof ends without doing what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// What was asked makes no sense: exit code 2.
    Usage(String),
    /// It could not be done: exit code 1.
    Failed(anyhow::Error),
    /// It could not be done, and the code to exit with is another.
    Code(u8, String),
}

impl Failure {
    /// The code to exit with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Usage(_) => ExitCode::from(2),
            Failure::Failed(_) => ExitCode::from(1),
            Failure::Code(code, _) => ExitCode::from(*code),
        }
    }
}

impl fmt::Display for Failure {
    /// On one line, whatever the cause held.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Failure::Usage(text) | Failure::Code(_, text) => text.clone(),
            Failure::Failed(error) => format!("{error:#}"),
        };
        let first = text.lines().map(str::trim).find(|line| !line.is_empty());
        f.write_str(&printable(first.unwrap_or("failed")))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Failed(error)
    }
}

/// Runs the command.
///
/// # Errors
/// Why it could not be done, with the exit code for it.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Record(args) => record::run(*args),
        #[cfg(feature = "agent")]
        Command::Agent(args) => agent::run(*args),
        Command::Goroutines(args) => goroutines::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Leaks(args) => leaks::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::ProbeTarget => probes::serve(),
        Command::ProbeHold(args) => probes::hold(&args),
    }
}

/// Text of which a process or a file may have a part, on one line and so that it
/// does not steer the terminal.
fn printable(text: &str) -> String {
    let steers =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .map(|c| if steers(c) { '\u{fffd}' } else { c })
        .collect()
}

/// Every mapped file is held open: take what the hard limit allows.
fn raise_file_limit() {
    // SAFETY: plain calls with a structure of our own. A failure leaves the
    // limit as it was.
    unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
