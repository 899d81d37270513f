//! The flags of `goprof record`, and the validated plan they come to.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgAction, ValueEnum};
use regex::Regex;

use super::goroutines;
use crate::{
    cli::{Failure, probes::MeansArg},
    probe::Budget,
    profile::Format,
    session::{AllocSource, At, ProbeConfig, takes_probes},
    symbolize::{Event, Filter},
};

/// How often to sample where nobody says, in samples a second and CPU. Odd, so
/// as not to run in step with what happens a hundred times a second.
pub const DEFAULT_RATE_HZ: u32 = 99;

/// Highest rate, in samples a second and CPU: above, sampling itself becomes
/// what is measured.
const MAX_RATE_HZ: u32 = 10_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  goprof record -p 1234 -d 10
  goprof record -p 1234 -d 30 -o - | go tool pprof -top -
  goprof record -a -d 10 -f flamegraph -o all.html
  goprof record -n '^etcd' -r 199 -d 1m
  goprof record -o default.pgo -- ./server -load test
  goprof record -e heap -p 1234
  goprof record -e allocs -p 1234 -d 30
  goprof record -e wall -p 1234 -d 30 --no-goroutines
  goprof record -e offcpu,io -p 1234 -d 30 -o waits/
  goprof record -e cpu,offcpu --combine -p 1234 -d 30
  goprof record -e alloc-events -p 1234 -d 30

Exit codes: 0 done, 1 it could not be done, 2 usage; with -- CMD that of CMD.")]
/// What `goprof record` takes.
pub struct Args {
    /// Sample the process PID (may be given several times)
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..), group = "who")]
    pub pid: Vec<u32>,
    /// Sample every Go process, also those that begin later (the default)
    #[arg(short, long, group = "who")]
    pub all: bool,
    /// Sample Go processes whose name or executable's name matches REGEX
    #[arg(short, long, value_name = "REGEX", group = "who")]
    pub name: Option<Regex>,
    /// Start CMD, sample it and the processes it starts, and exit as it does
    #[arg(last = true, value_name = "CMD", group = "who")]
    pub command: Vec<String>,

    /// What to record; several with commas between, each into a file of its own
    #[arg(
        short,
        long,
        value_enum,
        value_name = "EVENT",
        value_delimiter = ',',
        default_value = "cpu"
    )]
    pub event: Vec<EventArg>,
    /// Count threads of the runtime that are merely idle too; for -e offcpu
    #[arg(long)]
    pub idle: bool,
    /// Write time on the CPU and off it as one profile of the time of threads, whose
    /// leaf says what each was doing; for -e cpu,offcpu
    #[arg(long)]
    pub combine: bool,
    /// Turn the heap profile on in programs that take none, by writing the word
    /// runtime.MemProfileRate in their memory, and off again at the end (if goprof
    /// is killed it stays on); for -e heap and -e allocs
    #[arg(long)]
    pub enable_memprofile: bool,

    /// How long to sample: 10, 10s, 500ms, 1m30s (default: until Ctrl-C, or
    /// until the processes exit; -e heap without it is taken at once)
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Samples a second on each CPU, 1 to 10000 (default: 99); of -e wall snapshots a
    /// second, 1 to 1000 (default: 19)
    #[arg(short, long, alias = "freq", short_alias = 'F', value_name = "HZ",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE_HZ)))]
    pub rate: Option<u32>,

    /// Where to write; - is stdout, and DIR/ is a folder, made if need be, with a
    /// file for each event (default: NAME-PID-TIME.EVENT.EXT)
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What to write (default: by the output's extension, else pprof)
    #[arg(short, long, value_enum)]
    pub format: Option<FormatArg>,
    /// The value that formats show which have one, such as alloc_space of -e heap
    /// (default: as `go tool pprof` does; pprof files have all of them)
    #[arg(long, value_name = "NAME")]
    pub sample_type: Option<String>,

    /// Leave out kernel frames
    #[arg(long, overrides_with = "kernel")]
    pub no_kernel: bool,
    /// Take kernel frames too (the default)
    #[arg(long, overrides_with = "no_kernel")]
    pub kernel: bool,
    /// Tell threads apart
    #[arg(short, long)]
    pub threads: bool,
    /// Do not tell goroutines apart (by default each sample has the label goid,
    /// and equal stacks of two goroutines are two samples)
    #[arg(long)]
    pub no_goroutines: bool,
    /// Keep only stacks of goroutines whose pprof label KEY matches RE (may be
    /// given several times)
    #[arg(long, value_name = "KEY=RE", value_parser = parse_label)]
    pub label: Vec<(String, Regex)>,
    /// Keep only stacks with a function that matches RE
    #[arg(long, value_name = "RE")]
    pub include: Option<Regex>,
    /// Drop stacks with a function that matches RE
    #[arg(long, value_name = "RE")]
    pub exclude: Option<Regex>,

    /// What probes may take from each process, of one CPU, over any 10 s: 1%, 0.5%, or
    /// off for no limit; where they would take more they watch a part of the time, and
    /// values are scaled by it; for -e mutex, block and alloc-events
    #[arg(long, value_name = "SHARE", value_parser = parse_budget)]
    pub probe_budget: Option<Budget>,
    /// Leave out waits that are shorter: 10us, 1ms; for -e mutex and -e block
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    pub min_wait: Option<Duration>,
    /// Whose stack -e mutex counts a wait for (default: waker, as Go does)
    #[arg(long, value_enum)]
    pub at: Option<AtArg>,
    /// With -e block, also the waits that nobody asks about: sleeps, and those of the
    /// runtime's own goroutines
    #[arg(long)]
    pub block_all: bool,
    /// Where -e alloc-events sees allocations (default: auto)
    #[arg(long, value_enum)]
    pub alloc_source: Option<AllocSourceArg>,
    /// How probes are put on, for tests
    #[arg(long, value_enum, hide = true)]
    pub probe_means: Option<MeansArg>,

    /// Write nothing to stderr but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more: how stacks end, why frames have no name, what was counted
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

/// What can be recorded, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EventArg {
    /// CPU time
    Cpu,
    /// Time off the CPU: blocked, or waiting for one
    Offcpu,
    /// Waiting for mutexes and other semaphores, by who held them
    Mutex,
    /// Goroutines that wait for channels, locks, the network
    Block,
    /// Requests to block devices, by who made them
    Io,
    /// Memory in use, and all that was allocated since the program began
    Heap,
    /// Memory allocated during the recording
    Allocs,
    /// Time of goroutines, on the CPU and off it, by what they do or wait for
    Wall,
    /// Goroutines as they are now
    Goroutine,
    /// Allocations as they happen, by goroutine and pprof labels, also of programs that
    /// keep no heap profile: then in windows, under --probe-budget
    AllocEvents,
}

/// Whose stack, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AtArg {
    /// Who held it and woke the one that waited
    Waker,
    /// Who waited
    Waiter,
    /// Both; stacks of who waited have the label at=waiter
    Both,
}

/// Where allocations are seen, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AllocSourceArg {
    /// At the samples that the runtime takes for its heap profile; of a program that keeps
    /// none, at calls
    Auto,
    /// At calls of the allocator, in windows
    Calls,
    /// Where spans of memory are used up: for much more of the time, so that bursts are seen
    /// too, but how far sites are off is not known
    Spans,
}

impl From<AllocSourceArg> for AllocSource {
    fn from(arg: AllocSourceArg) -> Self {
        match arg {
            AllocSourceArg::Auto => AllocSource::Auto,
            AllocSourceArg::Calls => AllocSource::Calls,
            AllocSourceArg::Spans => AllocSource::Spans,
        }
    }
}

impl From<AtArg> for At {
    fn from(arg: AtArg) -> Self {
        match arg {
            AtArg::Waker => At::Waker,
            AtArg::Waiter => At::Waiter,
            AtArg::Both => At::Both,
        }
    }
}

impl From<EventArg> for Event {
    fn from(arg: EventArg) -> Self {
        match arg {
            EventArg::Cpu => Event::Cpu,
            EventArg::Offcpu => Event::OffCpu,
            EventArg::Mutex => Event::Mutex,
            EventArg::Block => Event::Block,
            EventArg::Io => Event::Io,
            EventArg::Heap => Event::Heap,
            EventArg::Allocs => Event::Allocs,
            EventArg::Wall => Event::Wall,
            EventArg::Goroutine => Event::Goroutine,
            EventArg::AllocEvents => Event::AllocEvents,
        }
    }
}

/// The formats, as the command line names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// Gzipped pprof: go tool pprof, go build -pgo, Pyroscope
    Pprof,
    /// One line per stack, for flame graph tools
    Folded,
    /// One HTML page that needs no network
    Flamegraph,
    /// JSON for speedscope
    Speedscope,
}

impl From<FormatArg> for Format {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Pprof => Format::Pprof,
            FormatArg::Folded => Format::Folded,
            FormatArg::Flamegraph => Format::Flamegraph,
            FormatArg::Speedscope => Format::Speedscope,
        }
    }
}

/// Whose stacks, as asked.
#[derive(Debug, Clone)]
pub(super) enum Who {
    Pids(Vec<u32>),
    All,
    Name(Regex),
    Command(Vec<String>),
}

/// What to do, validated as far as the words alone allow.
pub(super) struct Plan {
    pub who: Who,
    /// Each once, in their order.
    pub events: Vec<Event>,
    pub enable_memprofile: bool,
    pub idle: bool,
    /// Whether time on the CPU and off it are written as one.
    pub combine: bool,
    /// Which value is shown where a format has one, if somebody asked.
    pub value: Option<usize>,
    pub duration: Option<Duration>,
    pub rate_hz: u32,
    pub output: Option<PathBuf>,
    pub format: Format,
    pub kernel: bool,
    pub threads: bool,
    pub goroutines: bool,
    pub filter: Filter,
    pub probes: ProbeConfig,
    pub quiet: bool,
    pub verbose: bool,
}

impl Args {
    pub(super) fn into_plan(self) -> Result<Plan, Failure> {
        let mut pids = self.pid;
        pids.sort_unstable();
        pids.dedup();
        let who = match (self.name, self.command) {
            (_, command) if !command.is_empty() => Who::Command(command),
            (Some(name), _) => Who::Name(name),
            _ if !pids.is_empty() => Who::Pids(pids),
            _ => Who::All,
        };
        let format = match self.format {
            Some(format) => format.into(),
            None => self
                .output
                .as_deref()
                .and_then(Format::from_path)
                .unwrap_or(Format::Pprof),
        };
        let events: BTreeSet<Event> = self.event.into_iter().map(Event::from).collect();
        let events: Vec<Event> = events.into_iter().collect();
        let value = match &self.sample_type {
            Some(name) if self.combine => Some(value_named(&[Event::Threads], name)?),
            Some(name) => Some(value_named(&events, name)?),
            None => None,
        };
        let read = events.iter().find(|event| is_read(**event)).copied();
        let sampled = events.iter().find(|event| !is_read(**event)).copied();
        let is_memory = |event: &Event| matches!(event, Event::Heap | Event::Allocs);
        let is_wall = read == Some(Event::Wall);
        let first = events.first().copied();
        let no_probes = !events.iter().any(|event| takes_probes(*event));
        let no_mutex = !events.contains(&Event::Mutex);
        let no_block = !events.contains(&Event::Block);
        for (is_meaningless, flag) in [
            (sampled.is_none() && self.threads, "--threads"),
            (
                !events.iter().any(is_memory) && self.enable_memprofile,
                "--enable-memprofile",
            ),
            (
                sampled.is_none() && !is_wall && self.rate.is_some(),
                "--rate",
            ),
            (no_probes && self.probe_budget.is_some(), "--probe-budget"),
            (
                no_mutex && no_block && self.min_wait.is_some(),
                "--min-wait",
            ),
            (no_mutex && self.at.is_some(), "--at"),
            (no_block && self.block_all, "--block-all"),
            (!events.contains(&Event::OffCpu) && self.idle, "--idle"),
            (
                !events.contains(&Event::AllocEvents) && self.alloc_source.is_some(),
                "--alloc-source",
            ),
        ] {
            check_event(first, is_meaningless, flag)?;
        }
        if self.combine && events != [Event::Cpu, Event::OffCpu] {
            return Err(Failure::Usage("--combine is for -e cpu,offcpu".into()));
        }
        let written = if self.combine { 1 } else { events.len() };
        let rate_hz = rate(is_wall, self.rate)?;
        if let Some(event) = read.filter(|event| *event != Event::Wall)
            && matches!(who, Who::Command(_))
            && self.duration.is_none()
        {
            return Err(Failure::Usage(format!(
                "-e {} of a command needs -d TIME: its memory is gone when it ends",
                event.name()
            )));
        }
        let is_file = |path: &Path| !is_folder(path, written);
        if written > 1 && self.output.as_deref().is_some_and(is_file) {
            return Err(Failure::Usage(
                "several events need a folder to be written to: -o DIR/".into(),
            ));
        }
        Ok(Plan {
            who,
            events,
            enable_memprofile: self.enable_memprofile,
            idle: self.idle,
            combine: self.combine,
            value,
            duration: self.duration,
            rate_hz,
            output: self.output,
            format,
            kernel: self.kernel || !self.no_kernel,
            threads: self.threads,
            goroutines: !self.no_goroutines,
            filter: Filter {
                include: self.include,
                exclude: self.exclude,
                labels: self.label,
            },
            probes: ProbeConfig {
                budget: self.probe_budget.unwrap_or(ProbeConfig::default().budget),
                min_wait: self.min_wait.unwrap_or_default(),
                at: self.at.map_or(At::Waker, At::from),
                alloc_source: self.alloc_source.map(AllocSource::from).unwrap_or_default(),
                all_waits: self.block_all,
                only_told: false,
                means: self.probe_means.map(MeansArg::get).transpose()?,
            },
            quiet: self.quiet,
            verbose: self.verbose > 0,
        })
    }
}

impl Plan {
    /// The events that are written, each to a file of its own.
    pub(super) fn written(&self) -> Vec<Event> {
        match self.combine {
            true => vec![Event::Threads],
            false => self.events.clone(),
        }
    }
}

/// Whether an event is read from the memory of programs, and not sampled.
pub(super) fn is_read(event: Event) -> bool {
    matches!(
        event,
        Event::Heap | Event::Allocs | Event::Wall | Event::Goroutine
    )
}

/// Whether an output of so many events is a folder. One alone goes into it only
/// where that is said: it may well be a mistake.
pub(super) fn is_folder(path: &Path, events: usize) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/") || (events > 1 && path.is_dir())
}

/// How often to sample, or to take snapshots of goroutines for their time.
fn rate(is_wall: bool, asked: Option<u32>) -> Result<u32, Failure> {
    let most = goroutines::MAX_RATE_HZ;
    match (is_wall, asked) {
        (true, Some(rate)) if rate > most => Err(Failure::Usage(format!(
            "--rate {rate}: -e wall takes at most {most} snapshots a second"
        ))),
        (true, asked) => Ok(asked.unwrap_or(goroutines::DEFAULT_RATE_HZ)),
        (false, asked) => Ok(asked.unwrap_or(DEFAULT_RATE_HZ)),
    }
}

/// The index of a value of an event, which must be one alone.
fn value_named(events: &[Event], name: &str) -> Result<usize, Failure> {
    let &[event] = events else {
        return Err(Failure::Usage(
            "--sample-type is of one event, not of several".into(),
        ));
    };
    event.value_named(name).ok_or_else(|| {
        let names: Vec<&str> = event.value_types().iter().map(|kind| kind.name).collect();
        Failure::Usage(format!(
            "--sample-type {name:?}: -e {} has {}",
            event.name(),
            names.join(", ")
        ))
    })
}

/// Refuses a flag that means nothing for the events asked for, one of which is
/// `event`.
fn check_event(event: Option<Event>, is_meaningless: bool, flag: &str) -> Result<(), Failure> {
    match event {
        Some(event) if is_meaningless => Err(Failure::Usage(format!(
            "{flag} means nothing with -e {}",
            event.name()
        ))),
        _ => Ok(()),
    }
}

/// `1%`, or `off`.
fn parse_budget(text: &str) -> Result<Budget, String> {
    if text == "off" {
        return Ok(Budget::Unlimited);
    }
    let percent = text
        .strip_suffix('%')
        .map(|number| number.trim().parse::<f64>());
    match percent {
        Some(Ok(percent)) if percent > 0.0 && percent <= 100.0 => {
            Ok(Budget::Share(percent / 100.0))
        }
        _ => Err("must be a share of one CPU such as 1% or 0.5%, or off".to_owned()),
    }
}

/// A time with its unit.
fn parse_wait(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// `KEY=RE`.
pub(in crate::cli) fn parse_label(text: &str) -> Result<(String, Regex), String> {
    let (key, pattern) = text.split_once('=').ok_or("must be KEY=RE")?;
    let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
    Ok((key.to_owned(), pattern))
}

/// A bare number is seconds.
pub(in crate::cli) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string())?,
    };
    if duration < Duration::from_millis(10) || duration > Duration::from_secs(7 * 24 * 3600) {
        return Err("must be between 10ms and 7days".into());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_numbers_are_seconds() {
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
    }

    #[test]
    fn refuses_durations_that_make_no_sense() {
        for text in ["0", "-1", "NaN", "1e300", "ten", "30d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
