//! Goroutines as text for people: by stack, the largest group first.

use std::{
    io::{self, Write},
    time::Duration,
};

use super::Report;
use crate::{
    cli::printable,
    gobinary::GoroutineStatus,
    session::goroutines::{Group, Place, Record},
};

/// Goroutines of a group that are shown without `--verbose`, and of those that wait
/// for the same.
const MAX_SHOWN: usize = 5;

/// Writes all there is.
pub(super) fn write(report: &Report<'_>, verbose: bool, out: &mut impl Write) -> io::Result<()> {
    let groups = report.groups;
    writeln!(
        out,
        "process {} ({}), {}: {} in {}, read in {:.1} ms",
        report.process.pid,
        printable(&report.process.comm),
        printable(&report.go_version),
        count(groups.goroutines(), "goroutine"),
        count(groups.groups.len(), "group"),
        report.snapshot.took.as_secs_f64() * 1e3
    )?;
    for note in &report.notes {
        writeln!(out, "  {}", printable(note))?;
    }
    for (index, group) in groups.groups.iter().enumerate() {
        writeln!(out)?;
        self::group(report, (index, group), verbose, out)?;
    }
    Ok(())
}

fn group(
    report: &Report<'_>,
    (index, group): (usize, &Group),
    verbose: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    writeln!(out, "{}", count(group.members.len(), "goroutine"))?;
    let most = if verbose { usize::MAX } else { MAX_SHOWN };
    for goroutine in report.snapshot.members(group).take(most) {
        self::goroutine(report, goroutine, most, out)?;
    }
    if let Some(more) = group.members.len().checked_sub(most).filter(|n| *n > 0) {
        writeln!(out, "  and {more} more (--verbose shows them)")?;
    }
    let labels = report.groups.labels(index);
    if !labels.is_empty() {
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        writeln!(out, "  labels {}", printable(&labels.join(", ")))?;
    }
    for frame in report.groups.frames(index) {
        let inlined = if frame.is_inlined { " (inlined)" } else { "" };
        let place = match (frame.file, frame.line) {
            ("", _) => String::new(),
            (file, line) => format!("  {}:{line}", printable(file)),
        };
        writeln!(out, "    {}{inlined}{place}", printable(frame.function))?;
    }
    Ok(())
}

fn goroutine(
    report: &Report<'_>,
    goroutine: &Record,
    most: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut line = format!(
        "  goroutine {}: {}",
        goroutine.goid,
        state(report, goroutine)
    );
    if let Some(ns) = goroutine.waits_ns {
        line += &format!(", for {} at least", time(ns));
    }
    if let Some(creator) = report.groups.creator(goroutine) {
        let parent = goroutine
            .parent
            .map_or(String::new(), |parent| format!(" in goroutine {parent}"));
        line += &format!(
            ", created by {}{parent} at {}:{}",
            creator.function, creator.file, creator.line
        );
    }
    writeln!(out, "{}", printable(&line))?;
    let places = report.snapshot.places(goroutine);
    for place in places.iter().take(most) {
        let with = others(report, goroutine, place);
        writeln!(
            out,
            "    for the {} at {:#x}{with}",
            place.what, place.address
        )?;
    }
    if let Some(more) = places.len().checked_sub(most).filter(|n| *n > 0) {
        writeln!(out, "    and {more} more channels")?;
    }
    Ok(())
}

/// Who else waits for the same: some of them, as they may be all there are.
fn others(report: &Report<'_>, goroutine: &Record, place: &Place) -> String {
    let waiters = report.waiters.get(place).map_or(&[][..], Vec::as_slice);
    let others = waiters.iter().filter(|other| **other != goroutine.goid);
    let shown: Vec<String> = others.take(MAX_SHOWN).map(u64::to_string).collect();
    match waiters.len().saturating_sub(1) {
        0 => ", alone".to_owned(),
        count => {
            let more = if shown.len() < count { ", ..." } else { "" };
            format!(", with {count} more: {}{more}", shown.join(", "))
        }
    }
}

/// What it does or waits for, as Go's own tracebacks have it.
pub(super) fn state<'r>(report: &Report<'r>, goroutine: &Record) -> &'r str {
    let reason = report.snapshot.reason(goroutine);
    match goroutine.status {
        GoroutineStatus::Waiting if !reason.is_empty() => reason,
        status => status.name(),
    }
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// A time, in whole seconds where there are any.
fn time(ns: u64) -> String {
    let time = match Duration::from_nanos(ns) {
        time if time >= Duration::from_secs(1) => Duration::from_secs(time.as_secs()),
        time => Duration::from_millis(time.as_millis() as u64),
    };
    humantime::format_duration(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people() {
        assert_eq!(time(0), "0s");
        assert_eq!(time(12_345_678), "12ms");
        assert_eq!(time(61_900_000_000), "1m 1s");
    }

    #[test]
    fn one_is_one() {
        assert_eq!(count(1, "group"), "1 group");
        assert_eq!(count(0, "group"), "0 groups");
    }
}
