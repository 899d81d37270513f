//! `goprof goroutines`: every goroutine of a process, by stack, with what it waits
//! for and who started it; as text, JSON or a profile.

mod diff;
pub(super) mod filters;
mod json;
mod saved;
pub(super) mod target;
mod text;

use std::{
    io::{self, BufWriter, IsTerminal as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use anyhow::Context as _;
use clap::ValueEnum;
use foldhash::HashMap;

use super::{Failure, printable};
use crate::{
    process::Process,
    profile,
    session::goroutines::{Groups, Place, Snapshot},
    sink::{FileSink, Subject, default_name, is_stdout},
    symbolize::Event,
};
use diff::Diff;
use filters::Filters;
use saved::Saved;
use target::Target;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  goprof goroutines -p 1234
  goprof goroutines -p 1234 --state waiting --older-than 10m
  goprof goroutines -p 1234 --reason 'chan (send|receive)' --function 'main\\.'
  goprof goroutines -p 1234 -f json | jq '.groups[0]'
  goprof goroutines -p 1234 -o goroutines.pb.gz
  goprof goroutines --core core.1234 --exe ./server
  goprof goroutines -p 1234 -o before.json; sleep 60; goprof goroutines -p 1234 -o after.json
  goprof goroutines --diff before.json after.json

Nothing is set up in the program and nothing stops it: its memory is read. A time is
counted from the collection that first saw the goroutine wait, so that it is the least.
Exit codes: 0 done, 1 it could not be done, 2 usage.")]
/// What `goprof goroutines` takes.
pub struct Args {
    /// Look at the process PID
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..),
          required_unless_present_any = ["core", "diff"])]
    pub pid: Option<u32>,
    /// Look at a core file, written by the kernel or by gcore
    #[arg(long, value_name = "FILE", conflicts_with = "pid")]
    pub core: Option<PathBuf>,
    /// The program that the core is of (default: where it was when it ran)
    #[arg(long, value_name = "BIN", requires = "core", conflicts_with = "pid")]
    pub exe: Option<PathBuf>,
    /// Compare two lists that were saved with -f json: which stacks have more
    /// goroutines in AFTER, which fewer
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"],
          conflicts_with_all = ["pid", "core", "state", "reason", "older_than", "function",
                                "label", "system", "verbose"])]
    pub diff: Vec<PathBuf>,

    /// Which goroutines.
    #[command(flatten)]
    pub filters: Filters,
    /// The runtime's own goroutines too, as the collector's workers
    #[arg(long)]
    pub system: bool,

    /// How to write them (default: by the extension of -o, else text)
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Where to write them; - is stdout (default: stdout, of pprof a file)
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Show every goroutine of each group, and every label
    #[arg(short, long)]
    pub verbose: bool,
}

/// The formats, as the command line names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
    /// Gzipped pprof, as Go's own goroutine profile
    Pprof,
}

/// What there is to show.
struct Report<'a> {
    process: &'a Process,
    go_version: String,
    taken_at: SystemTime,
    snapshot: &'a Snapshot,
    groups: &'a Groups,
    waiters: HashMap<Place, Vec<u64>>,
    notes: Vec<String>,
}

/// Takes a snapshot and writes it.
///
/// # Errors
/// Why that cannot be done.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let format = args.chosen_format();
    if let [before, after] = args.diff.as_slice() {
        return compare(args, format, [before, after]);
    }
    refuse_binary_on_a_terminal(args, format)?;
    let target = Target::open(args)?;
    let process = target.process();
    let output = args.output(format, process);
    let sink = FileSink::prepare(&output)?;
    let taken_at = SystemTime::now();
    let snapshot = target.snapshot(args.system)?;
    let groups = snapshot.groups(
        &args.filters.selected(),
        taken_at,
        (target.index, &target.table),
    );
    let report = Report {
        process,
        go_version: go_version(process),
        taken_at,
        notes: [target.notes.clone(), notes(&snapshot, &groups)].concat(),
        waiters: snapshot.waiters(),
        snapshot: &snapshot,
        groups: &groups,
    };
    report.write(args, format, sink)?;
    Ok(ExitCode::SUCCESS)
}

/// Compares two lists and writes what changed.
fn compare(args: &Args, format: Format, files: [&PathBuf; 2]) -> Result<ExitCode, Failure> {
    if format == Format::Pprof {
        let line = "--diff is text or JSON: `go tool pprof -diff_base` compares profiles";
        return Err(Failure::Usage(line.to_owned()));
    }
    let [before, after] = files.map(|file| Saved::read(file));
    let (before, after) = (before?, after?);
    let diff = Diff::of(&before, &after);
    let sink = FileSink::prepare(args.output.as_deref().unwrap_or(Path::new("-")))?;
    write_to(sink, |mut out| match format {
        Format::Json => diff::write_json(&diff, &mut out),
        _ => diff::write_text(&diff, &mut out),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Writes text to where it is to go.
fn write_to(
    sink: FileSink,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Failure> {
    if !sink.is_stdout() {
        let mut bytes = Vec::new();
        write(&mut bytes).context("cannot write the goroutines")?;
        sink.finish(&bytes)?;
        return Ok(());
    }
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written.context("write to stdout")?),
    }
}

impl Args {
    fn chosen_format(&self) -> Format {
        let by_name = || {
            let name = self.output.as_deref()?;
            match profile::Format::from_path(name)? {
                profile::Format::Pprof => Some(Format::Pprof),
                profile::Format::Speedscope => Some(Format::Json),
                _ => None,
            }
        };
        self.format.or_else(by_name).unwrap_or(Format::Text)
    }

    fn output(&self, format: Format, process: &Process) -> PathBuf {
        let default = || match format {
            Format::Text | Format::Json => PathBuf::from("-"),
            Format::Pprof => {
                let subject = Subject::Process {
                    comm: &process.comm,
                    pid: process.pid,
                };
                let format = profile::Format::Pprof;
                default_name(subject, SystemTime::now(), Event::Goroutine, format).into()
            }
        };
        self.output.clone().unwrap_or_else(default)
    }
}

fn refuse_binary_on_a_terminal(args: &Args, format: Format) -> Result<(), Failure> {
    let to_stdout = args.output.as_deref().is_some_and(is_stdout);
    if format == Format::Pprof && to_stdout && io::stdout().is_terminal() {
        return Err(Failure::Usage(
            "pprof is not for a terminal: redirect it, or give a file after -o".to_owned(),
        ));
    }
    Ok(())
}

/// Which version of Go built a process; empty where that is not known.
pub(super) fn go_version(process: &Process) -> String {
    let binary = process.go_object().and_then(|object| object.go());
    binary.map_or(String::new(), |binary| binary.version().to_string())
}

/// A signal, by the name that people know it by (`signal(7)`, x86-64 and arm64).
fn signal_name(signal: u16) -> String {
    let known = match signal {
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        11 => "SIGSEGV",
        24 => "SIGXCPU",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    known.to_owned()
}

/// What a reader must know, one sentence each.
fn notes(snapshot: &Snapshot, groups: &Groups) -> Vec<String> {
    let left_out = snapshot.left_out;
    let unnamed: u64 = groups.naming.unnamed.values().sum();
    let counts = [
        (
            left_out.runtimes_own,
            "of the runtime's own are left out (--system shows them)",
        ),
        (
            left_out.changed,
            "went on again and again while they were read, and are left out",
        ),
        (left_out.nonsense, "make no sense, and are left out"),
        (left_out.unreadable, "could not be read"),
        (left_out.cut, "are more than goprof reads"),
        (
            snapshot.running,
            "ran: of their stacks nothing can be read but where they begin",
        ),
        (snapshot.broken, "have stacks that could not be read whole"),
        (
            snapshot.labels_damaged,
            "have labels that could not be read whole",
        ),
        (unnamed, "frames have no name"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let mut notes: Vec<String> = counts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if let Some(crash) = snapshot.crash {
        let signal = signal_name(crash.signal);
        let on = crash
            .goid
            .map_or("no goroutine of its own".to_owned(), |goid| {
                format!("goroutine {goid}")
            });
        notes.insert(
            0,
            format!("ended by {signal} in thread {}, on {on}", crash.tid),
        );
    }
    if snapshot.reasons.is_empty() {
        notes.push("what goroutines wait for is not known: the binary does not say it".to_owned());
    }
    notes
}

impl Report<'_> {
    fn write(&self, args: &Args, format: Format, sink: FileSink) -> Result<(), Failure> {
        let to_file = !sink.is_stdout();
        let path = sink.path().to_owned();
        if format == Format::Pprof {
            let options = profile::Options {
                subject: format!("{} (pid {})", self.process.comm, self.process.pid),
                notes: self.notes.clone(),
                value: None,
            };
            let encoded = profile::encode(&self.groups.window, profile::Format::Pprof, &options);
            sink.finish(&encoded.context("cannot encode the profile")?)?;
        } else {
            write_to(sink, |out| self.show(args, format, out))?;
        }
        if to_file {
            eprintln!(
                "wrote {} goroutines in {} groups to {}",
                self.groups.goroutines(),
                self.groups.groups.len(),
                printable(&path.to_string_lossy())
            );
            for note in &self.notes {
                eprintln!("  {}", printable(note));
            }
        }
        Ok(())
    }

    fn show(&self, args: &Args, format: Format, mut out: &mut dyn Write) -> io::Result<()> {
        match format {
            Format::Json => json::write(self, &mut out),
            _ => text::write(self, args.verbose, &mut out),
        }
    }
}
