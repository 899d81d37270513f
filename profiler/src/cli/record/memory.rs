//! `goprof record -e heap` and `-e allocs`: what programs allocated and have in
//! use, as they keep it themselves, into a profile, and the words around it.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::Context;

use super::{StopSignals, args::Plan, aside, output, report, target::Target, write};
use crate::{
    cli::Failure,
    gomemory::NoHeap,
    profile,
    session::{HeapRecording, HeapSession, Stopped, programs},
    sink::FileSink,
    symbolize::{Event, Symbolizer},
};

/// How often processes are looked at that may have ended.
const LIVENESS_EVERY: Duration = Duration::from_millis(250);
/// What to do where a program takes no profile.
const REMEDY: &str = "-e alloc-events sees what it allocates without; --enable-memprofile turns it on while goprof records, by writing one word \
     of its memory; or import net/http/pprof or runtime/pprof in it, which links it in";

/// Records memory and writes a profile.
///
/// # Errors
/// Why that could not be done; nothing is written then.
pub(super) async fn record(plan: Plan, event: Event) -> Result<ExitCode, Failure> {
    let mut target = Target::prepare(&plan)?;
    let output = output(&plan, &target, event)?;
    let sink = FileSink::prepare(&output)?;
    let mut stop = StopSignals::new()?;
    target.start()?;
    if let (Some(_), Some(started)) = (target.child(), plan.duration) {
        wait_for_go(&mut stop, started).await;
    }
    let session = HeapSession::start(event, target.selection(), plan.enable_memprofile);
    if session.enabled() > 0 && !plan.quiet {
        eprintln!(
            "goprof: wrote runtime.MemProfileRate in {} until this recording ends",
            programs(session.enabled())
        );
    }
    let stopped = wait(&plan, event, &mut target, &mut stop, &session).await;
    // Here and not aside: what was written in programs is put back, whatever
    // comes.
    let recording = session.finish(&mut Symbolizer::default());
    let published = tokio::select! {
        biased;
        () = stop.second() => return Err(Failure::Code(130, "aborted: nothing was written".into())),
        published = publish(&plan, &target, recording, sink, &output) => published,
    };
    published?;
    tokio::select! {
        biased;
        code = target.exit_code(stopped, plan.quiet) => code,
        () = stop.next() => Ok(ExitCode::from(130)),
    }
}

/// A command is nothing to look at before its program has begun.
async fn wait_for_go(stop: &mut StopSignals, most: Duration) {
    tokio::select! {
        () = stop.first() => {}
        () = tokio::time::sleep(most.min(LIVENESS_EVERY)) => {}
    }
}

/// Waits until there is something to be read.
async fn wait(
    plan: &Plan,
    event: Event,
    target: &mut Target,
    stop: &mut StopSignals,
    session: &HeapSession,
) -> Stopped {
    let duration = match (event, plan.duration) {
        (Event::Heap, None) => return Stopped::Duration,
        (_, duration) => duration,
    };
    let deadline = duration.map(|duration| tokio::time::Instant::now() + duration);
    loop {
        let next = tokio::time::Instant::now() + LIVENESS_EVERY;
        let until = deadline.map_or(next, |deadline| deadline.min(next));
        tokio::select! {
            () = stop.first() => return Stopped::Asked,
            () = tokio::time::sleep_until(until) => {}
        }
        if deadline.is_some_and(|deadline| tokio::time::Instant::now() >= deadline) {
            return Stopped::Duration;
        }
        let is_over = matches!(target, Target::Pids(_) | Target::Command { .. });
        if is_over && !session.is_any_left() {
            return Stopped::TargetsGone;
        }
    }
}

/// Encodes the profile, writes it and says what it holds.
async fn publish(
    plan: &Plan,
    target: &Target,
    mut recording: HeapRecording,
    sink: FileSink,
    output: &Path,
) -> Result<(), Failure> {
    if recording.read.is_empty() {
        return Err(Failure::Failed(anyhow::anyhow!(nothing(
            target, &recording
        ))));
    }
    plan.filter.apply(&mut recording.window);
    let options = profile::Options {
        subject: target.subject(),
        notes: notes(plan, &recording),
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
        print(plan, &recording);
        report::written(plan, output, size);
    }
    Ok(())
}

/// Why nothing was recorded, on one line.
fn nothing(target: &Target, recording: &HeapRecording) -> String {
    match recording.without.as_slice() {
        [] if recording.gone > 0 => {
            format!(
                "{} exited before its memory could be read",
                target.subject()
            )
        }
        [] => format!("no Go program runs: {}", target.subject()),
        [one] => format!(
            "process {} ({}): {}",
            one.pid,
            one.comm,
            with_remedy(&one.why)
        ),
        all => format!(
            "none of {} has a heap profile; the first, process {} ({}): {}",
            programs(all.len()),
            all[0].pid,
            all[0].comm,
            with_remedy(&all[0].why)
        ),
    }
}

fn with_remedy(why: &NoHeap) -> String {
    match why {
        NoHeap::Off { .. } => format!("{why}; {REMEDY}"),
        NoHeap::Unknown(_) => why.to_string(),
    }
}

/// What a reader of the profile must know, one sentence each.
fn notes(plan: &Plan, recording: &HeapRecording) -> Vec<String> {
    let mut notes = recording.notes();
    let index = plan.value.unwrap_or(recording.window.event.default_value());
    let shrunk = recording
        .window
        .samples
        .iter()
        .filter(|sample| sample.values[index] < 0);
    let shrunk = shrunk.count();
    if shrunk > 0 && plan.format != profile::Format::Pprof {
        notes.push(format!(
            "{shrunk} stacks have less in use than before, and no place in this format"
        ));
    }
    notes
}

/// Writes the summary to stderr.
fn print(plan: &Plan, recording: &HeapRecording) {
    let window = &recording.window;
    let sum = |index: usize| -> i64 { window.samples.iter().map(|s| s.values[index]).sum() };
    let rate = recording.window.period;
    match recording.window.event {
        Event::Heap => eprintln!(
            "{} in use in {} objects, {} allocated since the start in {} objects",
            bytes(sum(3)),
            sum(2),
            bytes(sum(1)),
            sum(0)
        ),
        _ => eprintln!(
            "{} allocated in {} objects in {:.1} s; in use {}{} as of the last collections",
            bytes(sum(1)),
            sum(0),
            window.duration.as_secs_f64(),
            if sum(3) < 0 { "-" } else { "+" },
            bytes(sum(3).saturating_abs())
        ),
    }
    let buckets: usize = recording.read.iter().map(|facts| facts.buckets).sum();
    eprintln!(
        "estimated from {buckets} buckets of {}, which sample once in {rate} bytes",
        programs(recording.read.len())
    );
    for note in notes(plan, recording) {
        eprintln!("  {note}");
    }
    let typed = window
        .samples
        .iter()
        .filter(|sample| !sample.labels.is_empty());
    eprintln!(
        "{} of frames named, the type known at {} of {} sites",
        report::percent(recording.naming.share()),
        typed.count(),
        window.samples.len()
    );
    if plan.verbose {
        for facts in &recording.read {
            eprintln!(
                "  pid {} {}: {} buckets, once in {} bytes, {} with their type",
                facts.pid, facts.comm, facts.buckets, facts.rate, facts.typed
            );
        }
    }
}

/// An amount of memory, for people.
pub(super) fn bytes(amount: i64) -> String {
    let amount = amount as f64;
    let units = [
        (1_f64, "B"),
        (1e3, "kB"),
        (1e6, "MB"),
        (1e9, "GB"),
        (1e12, "TB"),
    ];
    let (scale, unit) = units
        .into_iter()
        .rev()
        .find(|(scale, _)| amount >= *scale)
        .unwrap_or(units[0]);
    let digits = usize::from(scale > 1.0);
    format!("{:.digits$} {unit}", amount / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500), "1.5 kB");
        assert_eq!(bytes(12_345_678), "12.3 MB");
        assert_eq!(bytes(i64::MAX), "9223372.0 TB");
    }

    #[test]
    fn what_stands_in_the_way_is_one_line_with_what_to_do() {
        let off = NoHeap::Off { is_linked: false };
        let line = with_remedy(&off);
        assert!(line.contains("linker left it out") && line.contains("--enable-memprofile"));
        assert_eq!(line.lines().count(), 1);
        let unknown = NoHeap::Unknown("it is strange".to_owned());
        assert_eq!(with_remedy(&unknown), "it is strange");
    }
}
