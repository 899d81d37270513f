//! `goprof record -e wall` and `-e goroutine`: what goroutines do and wait for, and
//! for how long, by snapshots of them, into a profile, and the words around it.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::Context;
use tokio::{process::Child, time::sleep_until};

use super::{StopSignals, args::Plan, aside, output, report, target::Target, write};
use crate::{
    cli::{Failure, printable},
    gomemory::MAX_GOROUTINES,
    profile,
    session::{SnapshotConfig, SnapshotRecording, SnapshotSession, Stopped, programs},
    sink::FileSink,
    symbolize::{Event, Symbolizer},
};

/// Snapshots a second, where nobody says.
pub(super) const DEFAULT_RATE_HZ: u32 = 19;
/// The highest rate: above, what a snapshot takes is more than the time for it.
pub(super) const MAX_RATE_HZ: u32 = 1000;

/// How often processes are looked at that may have ended.
const LIVENESS_EVERY: Duration = Duration::from_millis(250);

/// Records goroutines and writes a profile.
///
/// # Errors
/// Why that could not be done; nothing is written then.
pub(super) async fn record(plan: Plan, event: Event) -> Result<ExitCode, Failure> {
    let mut target = Target::prepare(&plan)?;
    let output = output(&plan, &target, event)?;
    let sink = FileSink::prepare(&output)?;
    let mut stop = StopSignals::new()?;
    target.start()?;
    let mut session = SnapshotSession::start(SnapshotConfig {
        event,
        selection: target.selection(),
        rate_hz: plan.rate_hz,
        duration: plan.duration,
        goroutines: plan.goroutines,
        labels: true,
        most_goroutines: MAX_GOROUTINES,
    });
    let stopped = run(&plan, &mut target, &mut stop, &mut session).await;
    let write = async {
        let recording =
            aside(move || Ok(session.finish().name(&mut Symbolizer::default()))).await?;
        publish(&plan, &target, recording, sink, &output).await
    };
    let written = tokio::select! {
        biased;
        () = stop.second() => return Err(Failure::Code(130, "aborted: nothing was written".into())),
        written = write => written,
    };
    written?;
    tokio::select! {
        biased;
        code = target.exit_code(stopped, plan.quiet) => code,
        () = stop.next() => Ok(ExitCode::from(130)),
    }
}

/// Takes snapshots until the recording is over.
async fn run(
    plan: &Plan,
    target: &mut Target,
    stop: &mut StopSignals,
    session: &mut SnapshotSession,
) -> Stopped {
    let takes = plan.events == [Event::Wall];
    let now = tokio::time::Instant::now();
    let deadline = match (takes, plan.duration) {
        (false, None) => return Stopped::Duration,
        (_, duration) => duration.map(|duration| now + duration),
    };
    let is_over_without = matches!(target, Target::Pids(_));
    let mut look = now + LIVENESS_EVERY;
    loop {
        let next = tokio::time::Instant::from_std(session.next_at());
        let until = if takes { look.min(next) } else { look };
        let until = deadline.map_or(until, |deadline| until.min(deadline));
        tokio::select! {
            biased;
            () = stop.first() => return Stopped::Asked,
            () = exit(target.child()) => return Stopped::TargetsGone,
            () = sleep_until(until) => {}
        }
        let now = tokio::time::Instant::now();
        if deadline.is_some_and(|deadline| now >= deadline) {
            return Stopped::Duration;
        }
        if takes && now >= next {
            session.take();
        }
        if now >= look {
            look = now + LIVENESS_EVERY;
            if is_over_without && !session.is_any_left() {
                return Stopped::TargetsGone;
            }
        }
    }
}

async fn exit(child: Option<&mut Child>) {
    match child {
        // The status is kept by the child and read again by its owner.
        Some(child) => drop(child.wait().await),
        None => std::future::pending().await,
    }
}

/// Encodes the profile, writes it and says what it holds.
async fn publish(
    plan: &Plan,
    target: &Target,
    mut recording: SnapshotRecording,
    sink: FileSink,
    output: &Path,
) -> Result<(), Failure> {
    if recording.facts.goroutines == 0 {
        let line = nothing(target, &recording);
        if matches!(target, Target::Command { .. }) {
            // The command did what it was to do, and its exit code says how.
            if !plan.quiet {
                eprintln!("goprof: {line}; nothing was written");
            }
            return Ok(());
        }
        return Err(Failure::Failed(anyhow::anyhow!(line)));
    }
    let samples = recording.window.samples.len();
    plan.filter.apply(&mut recording.window);
    let dropped = samples - recording.window.samples.len();
    let options = profile::Options {
        subject: target.subject(),
        notes: recording.notes(),
        value: plan.value,
    };
    let format = plan.format;
    let (recording, bytes) = aside(move || {
        let bytes = profile::encode(&recording.window, format, &options)
            .context("cannot encode the profile")?;
        Ok((recording, bytes))
    })
    .await?;
    let size = bytes.len();
    write(sink, bytes).await?;
    if !plan.quiet {
        print(plan, &recording, dropped);
        report::written(plan, output, size);
    }
    Ok(())
}

/// Why nothing was recorded, on one line.
fn nothing(target: &Target, recording: &SnapshotRecording) -> String {
    match recording.unread.as_slice() {
        [] if recording.facts.gone > 0 => {
            format!("{} exited before it could be read", target.subject())
        }
        [] => format!("no Go program runs: {}", target.subject()),
        [first, ..] => format!(
            "cannot list the goroutines of process {} ({}): {}",
            first.pid, first.comm, first.why
        ),
    }
}

/// Writes the summary to stderr.
fn print(plan: &Plan, recording: &SnapshotRecording, dropped: usize) {
    let (window, facts) = (&recording.window, &recording.facts);
    let seconds = window.duration.as_secs_f64();
    let read = programs(window.processes.len());
    match window.event {
        Event::Wall => eprintln!(
            "{:.1} goroutines on average of {read} in {seconds:.1} s, by {} snapshots of {:.1} ms, \
             the longest {:.1} ms",
            facts.stand_for as f64 / facts.snapshots.max(1) as f64,
            facts.snapshots,
            facts.took.as_secs_f64() * 1e3 / facts.snapshots.max(1) as f64,
            facts.longest.as_secs_f64() * 1e3,
        ),
        _ => eprintln!(
            "{} goroutines of {read}, read in {:.1} ms",
            facts.goroutines,
            facts.took.as_secs_f64() * 1e3
        ),
    }
    for note in recording.notes() {
        eprintln!("  {}", printable(&note));
    }
    if dropped > 0 {
        eprintln!("  {dropped} of the stacks left out by --include, --exclude and --label");
    }
    if plan.verbose && facts.left_out.runtimes_own > 0 {
        eprintln!(
            "  {} times a goroutine of the runtime's own was left out",
            facts.left_out.runtimes_own
        );
    }
    eprintln!(
        "{} of frames named",
        report::percent(recording.naming.share())
    );
    if window.event == Event::Wall {
        report::print_cost(seconds);
    }
}
