//! What `goprof stats` writes for people. Nothing of the process steers the
//! terminal.

use std::{
    cmp::Reverse,
    io::{self, Write},
    time::{Duration, SystemTime},
};

use super::{Module, Report};
use crate::{
    cli::printable,
    gomemory::{Collections, GoroutineCounts, Heap, Pause, Scheduler},
};

/// Wait reasons and pauses that are shown where not all are.
const MAX_SHOWN: usize = 5;

/// Writes a report; once one was written, of pauses only those since `last_cycle`,
/// and of the modules nothing more.
pub(super) fn write(
    out: &mut impl Write,
    report: &Report<'_>,
    is_verbose: bool,
    last_cycle: Option<u32>,
) -> io::Result<()> {
    let statistics = &report.statistics;
    heading(out, report)?;
    if is_verbose && last_cycle.is_none() {
        modules(out, report.module)?;
    }
    if let Some(counts) = &statistics.goroutines {
        goroutines(out, counts, is_verbose)?;
    }
    if let Some(found) = &statistics.heap {
        heap(out, found)?;
    }
    if let Some(gc) = &statistics.gc {
        collections(out, gc, is_verbose, last_cycle.unwrap_or(0))?;
    }
    if let Some(found) = &statistics.scheduler {
        scheduler(out, found)?;
    }
    for unknown in &statistics.unknown {
        row(out, "not known", &printable(unknown))?;
    }
    out.flush()
}

fn heading(out: &mut impl Write, report: &Report<'_>) -> io::Result<()> {
    let module = report.module;
    let own = match (module.path.as_str(), module.version.as_str()) {
        ("", _) => "no module of its own".to_owned(),
        (path, "") => path.to_owned(),
        (path, version) => format!("{path} {version}"),
    };
    let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(report.time_unix_ns);
    writeln!(
        out,
        "{} process {} ({}), {}, {}, {}",
        humantime::format_rfc3339_millis(at),
        report.pid,
        printable(report.comm),
        printable(&report.go_version),
        printable(&own),
        number(module.dependencies.len() as u64, "other module"),
    )
}

fn row(out: &mut impl Write, name: &str, text: &str) -> io::Result<()> {
    writeln!(out, "  {name:<12} {text}")
}

fn modules(out: &mut impl Write, module: &Module) -> io::Result<()> {
    for (index, found) in module.dependencies.iter().enumerate() {
        let name = if index == 0 { "modules" } else { "" };
        let text = format!("{} {}", found.path, found.version);
        row(out, name, &printable(text.trim()))?;
    }
    Ok(())
}

fn goroutines(out: &mut impl Write, counts: &GoroutineCounts, is_verbose: bool) -> io::Result<()> {
    let by_status = counts.by_status.iter();
    let by_status: Vec<String> = by_status.map(|(name, n)| format!("{n} {name}")).collect();
    let text = format!(
        "{}, {} of them the runtime's own: {}",
        counts.alive,
        counts.system,
        by_status.join(", ")
    );
    row(out, "goroutines", &text)?;
    let mut reasons: Vec<(&String, &u64)> = counts.by_wait_reason.iter().collect();
    reasons.sort_by_key(|(name, n)| (Reverse(**n), *name));
    let most = if is_verbose { reasons.len() } else { MAX_SHOWN };
    let (shown, rest) = reasons.split_at(most.min(reasons.len()));
    let mut parts: Vec<String> = shown
        .iter()
        .map(|(name, n)| format!("{n} {name}"))
        .collect();
    if !rest.is_empty() {
        parts.push(format!(
            "{} other",
            rest.iter().map(|(_, n)| **n).sum::<u64>()
        ));
    }
    if !parts.is_empty() {
        row(out, "waiting", &printable(&parts.join(", ")))?;
    }
    if counts.unread > 0 {
        row(out, "", &format!("{} could not be read", counts.unread))?;
    }
    Ok(())
}

fn heap(out: &mut impl Write, heap: &Heap) -> io::Result<()> {
    let goal = match (heap.goal_bytes, heap.gc_percent) {
        (Some(goal), Some(percent)) => {
            format!("goal {} by GOGC={percent}", size(goal))
        }
        _ => "no goal by GOGC=off".to_owned(),
    };
    let limit = heap.memory_limit_bytes;
    let limit = limit.map_or(String::new(), |limit| {
        format!(", GOMEMLIMIT {}", size(limit))
    });
    row(
        out,
        "heap",
        &format!("{} live, {goal}{limit}", size(heap.live_bytes)),
    )?;
    let spans = format!(
        "{} in use, {} free, {} given back",
        size(heap.in_use_bytes),
        size(heap.free_bytes),
        size(heap.released_bytes)
    );
    row(out, "spans", &spans)?;
    let (allocated, freed) = (size(heap.allocated_bytes), size(heap.freed_bytes));
    let text = format!("{allocated} since the start, {freed} of it freed");
    row(out, "allocated", &text)
}

fn collections(
    out: &mut impl Write,
    gc: &Collections,
    is_verbose: bool,
    last_cycle: u32,
) -> io::Result<()> {
    let text = format!(
        "{} ({} forced), {:.2}% of the CPU time, paused {} in all",
        gc.cycles,
        gc.forced,
        gc.cpu_fraction * 100.0,
        time(gc.pause_total_ns)
    );
    row(out, "collections", &text)?;
    let new: Vec<&Pause> = gc.pauses.iter().filter(|p| p.cycle > last_cycle).collect();
    let most = if is_verbose { new.len() } else { MAX_SHOWN };
    let shown = new.iter().skip(new.len().saturating_sub(most));
    for (index, pause) in shown.enumerate() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_nanos(pause.end_unix_ns);
        let text = format!(
            "{}, until {} (collection {})",
            time(pause.pause_ns),
            humantime::format_rfc3339_millis(end),
            pause.cycle
        );
        row(out, if index == 0 { "paused" } else { "" }, &text)?;
    }
    Ok(())
}

fn scheduler(out: &mut impl Write, found: &Scheduler) -> io::Result<()> {
    let latency = &found.latency;
    let below = |share| match latency.quantile_ns(share) {
        Some(ns) => format!("below {}", time(ns)),
        None => "above what is told apart".to_owned(),
    };
    if latency.count > 0 {
        let text = format!(
            "{} timed: half {}, 99% {}, 99.9% {}",
            number(latency.count, "wait"),
            below(0.5),
            below(0.99),
            below(0.999)
        );
        row(out, "scheduling", &text)?;
    }
    if let Some(waited) = found.mutex_wait_ns {
        row(out, "mutexes", &format!("{} waited in all", time(waited)))?;
    }
    let most = found.gomaxprocs;
    let most = most.map_or(String::new(), |most| format!(", GOMAXPROCS={most}"));
    let text = format!(
        "{}, {} of them idle{most}",
        found.threads, found.idle_threads
    );
    row(out, "threads", &text)
}

/// `1 module`, `2 modules`.
fn number(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A size, for people.
fn size(bytes: u64) -> String {
    scaled(
        bytes,
        &[
            (1, "B"),
            (1_000, "kB"),
            (1_000_000, "MB"),
            (1_000_000_000, "GB"),
        ],
    )
}

/// A time, for people.
fn time(ns: u64) -> String {
    scaled(
        ns,
        &[
            (1, "ns"),
            (1_000, "µs"),
            (1_000_000, "ms"),
            (1_000_000_000, "s"),
        ],
    )
}

fn scaled(value: u64, units: &[(u64, &str)]) -> String {
    let fits = units.iter().rev().find(|(scale, _)| value >= *scale);
    let (scale, unit) = fits
        .copied()
        .unwrap_or((1, units.first().map_or("", |u| u.1)));
    match scale {
        1 => format!("{value} {unit}"),
        _ => format!("{:.1} {unit}", value as f64 / scale as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_for_people() {
        assert_eq!(time(0), "0 ns");
        assert_eq!(time(999), "999 ns");
        assert_eq!(time(1_500), "1.5 µs");
        assert_eq!(time(12_345_678), "12.3 ms");
        assert_eq!(time(90_000_000_000), "90.0 s");
        assert_eq!(size(512), "512 B");
        assert_eq!(size(4_194_304), "4.2 MB");
        assert_eq!(number(1, "module"), "1 module");
        assert_eq!(number(0, "module"), "0 modules");
    }
}
