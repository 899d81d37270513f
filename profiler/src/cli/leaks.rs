//! `goprof leaks`: which goroutines of a process leak, found by several snapshots;
//! as text or JSON, with an exit code that tells whether there are any.

mod report;

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use regex::Regex;

use super::{
    Failure,
    goroutines::{filters::Filters, target::Target},
    record::{StopSignals, parse_duration},
};
use crate::{
    process::open_by_kind,
    session::{
        goroutines::{LeftOut, Record, Snapshot},
        leaks::{MIN_SNAPSHOTS, Watch},
    },
    symbolize::Filter,
};
use report::Report;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  goprof leaks -p 1234
  goprof leaks -p 1234 -n 9 -i 1m
  goprof leaks -p 1234 --function 'main\\.' --json | jq '.leaks[].counts'

A stack leaks where goroutines that wait keep coming and none of them ends: docs/leaks.md
has the rule. Nothing is set up in the program and nothing stops it.
Exit codes: 0 no leak, 3 leaks, 1 it could not be done, 2 usage.")]
/// What `goprof leaks` takes.
pub struct Args {
    /// Look at the process PID
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: u32,
    /// How many snapshots to take
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(MIN_SNAPSHOTS as i64..=10_000))]
    pub snapshots: u32,
    /// How long to wait between two of them: 5, 500ms, 1m
    #[arg(short, long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub interval: Duration,
    /// The least new goroutines of a stack that are taken for a leak
    #[arg(long, value_name = "COUNT", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub least: u32,

    /// Which goroutines.
    #[command(flatten)]
    pub filters: Filters,
    /// Write them for programs
    #[arg(long)]
    pub json: bool,
}

/// What was seen, snapshot by snapshot.
struct Seen {
    watch: Watch,
    last: Snapshot,
    /// What was open at each, by kind.
    open: Vec<BTreeMap<String, u32>>,
    /// Why that is not known.
    open_unknown: Option<String>,
    left_out: LeftOut,
    first_at: Instant,
    /// From the first to the last.
    span: Duration,
    /// Why there are no more.
    ended: Option<Failure>,
    is_interrupted: bool,
}

/// Takes the snapshots and says what leaks.
///
/// # Errors
/// Why that cannot be done.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let target = Target::of_process(args.pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let mut seen = runtime.block_on(look(args, &target))?;
    let selected = args.filters.by_state();
    let last = &seen.last;
    let wanted = |record: &Record| {
        let labels = last.labels.get(record.labels as usize);
        let has = |(key, value): &(String, Regex)| {
            let mut labels = labels.into_iter().flatten();
            labels.any(|(k, v)| k == key && value.is_match(v))
        };
        last.is_wanted(record, &selected) && args.filters.label.iter().all(has)
    };
    let leaks = seen.watch.leaks(last, args.least, wanted);
    let filter = Filter {
        include: args.filters.function.clone(),
        ..Filter::default()
    };
    let report = Report::new(&target, &seen, leaks, &filter);
    let has_leaks = report.has_leaks();
    if !has_leaks && let Some(ended) = seen.ended {
        return Err(ended);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let written = if args.json {
        report.write_json(&mut out)
    } else {
        report.write_text(&mut out)
    };
    match written.and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("write to stdout")?,
    }
    Ok(ExitCode::from(if has_leaks { 3 } else { 0 }))
}

/// Takes snapshots until there are enough, it is interrupted or the process ends.
async fn look(args: &Args, target: &Target) -> Result<Seen, Failure> {
    let mut stop = StopSignals::new()?;
    let mut seen = Seen::first(target)?;
    let shows = io::stderr().is_terminal();
    for next in 1..args.snapshots {
        if shows {
            let (count, of) = (seen.last.goroutines.len(), args.snapshots);
            eprint!("\r\x1b[Ksnapshot {next} of {of}: {count} goroutines. Ctrl-C reports so far");
        }
        let at = seen.first_at + args.interval * next;
        tokio::select! {
            biased;
            () = stop.next() => {
                seen.is_interrupted = true;
                break;
            }
            () = tokio::time::sleep_until(at.into()) => {}
        }
        match target.snapshot(false) {
            Ok(snapshot) => seen.add(target, snapshot),
            Err(failure) => {
                seen.ended = Some(failure);
                break;
            }
        }
    }
    if shows {
        eprint!("\r\x1b[K");
    }
    let count = seen.watch.snapshots();
    if count < MIN_SNAPSHOTS {
        return Err(seen.ended.unwrap_or_else(|| {
            let line = format!("stopped after {count} snapshots: {MIN_SNAPSHOTS} are the least");
            Failure::Failed(anyhow!(line))
        }));
    }
    Ok(seen)
}

impl Seen {
    fn first(target: &Target) -> Result<Self, Failure> {
        let first = target.snapshot(false)?;
        let mut seen = Self {
            watch: Watch::default(),
            last: Snapshot::default(),
            open: Vec::new(),
            open_unknown: None,
            left_out: LeftOut::default(),
            first_at: Instant::now(),
            span: Duration::ZERO,
            ended: None,
            is_interrupted: false,
        };
        seen.add(target, first);
        Ok(seen)
    }

    fn add(&mut self, target: &Target, snapshot: Snapshot) {
        self.span = self.first_at.elapsed();
        self.watch.add(&snapshot);
        let (all, one) = (&mut self.left_out, snapshot.left_out);
        all.changed += one.changed;
        all.nonsense += one.nonsense;
        all.unreadable += one.unreadable;
        all.cut += one.cut;
        match open_by_kind(target.process().pid) {
            Ok(open) => self.open.push(open),
            Err(error) => self.open_unknown = Some(error.to_string()),
        }
        self.last = snapshot;
    }

    /// What is open more and more: never less, and more in most snapshots.
    fn open_that_grows(&self) -> BTreeMap<&str, Vec<u32>> {
        let kinds = self.open.last().into_iter().flat_map(BTreeMap::keys);
        let mut growing = BTreeMap::new();
        for kind in kinds {
            let counts = self.open.iter();
            let counts: Vec<u32> = counts
                .map(|open| open.get(kind).copied().unwrap_or(0))
                .collect();
            let steps = counts.windows(2);
            let grew = steps.clone().filter(|step| step[0] < step[1]).count();
            let shrank = steps.clone().any(|step| step[0] > step[1]);
            if !shrank && grew * 2 > steps.len() {
                growing.insert(kind.as_str(), counts);
            }
        }
        growing
    }

    /// What a reader must know, one sentence each.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.is_interrupted {
            notes.push("interrupted: there are fewer snapshots than asked for".to_owned());
        }
        if let Some(ended) = &self.ended {
            notes.push(format!("there are fewer snapshots than asked for: {ended}"));
        }
        if let Some(why) = &self.open_unknown {
            notes.push(format!("what it has open is not known: {why}"));
        }
        let counts = [
            (self.left_out.changed, "went on again and again"),
            (self.left_out.nonsense, "made no sense"),
            (self.left_out.unreadable, "could not be read"),
            (self.left_out.cut, "were more than goprof reads"),
        ];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            notes.push(format!(
                "{count} times a goroutine is not in a snapshot: {what}"
            ));
        }
        notes
    }
}
