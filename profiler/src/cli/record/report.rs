//! The last lines of `goprof record`: what was taken, what is missing and why,
//! what it cost, and how to open it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use super::{args::Plan, memory::bytes};
use crate::{
    cli::printable,
    probe::Clock,
    profile::Format,
    session::{Break, Idle, Latency, Named, ProbeFacts, Recording},
    symbolize::Event,
    unwind::StackEnd,
};

/// Most lines about where stacks broke.
const MAX_BREAKS: usize = 10;

/// What a reader of the profile must know, one sentence each.
pub(super) fn notes(recording: &Recording) -> Vec<String> {
    let mut notes = recording.tally.notes();
    notes.extend(recording.tally.probes.iter().flat_map(allocations));
    notes
}

/// Writes the summary to stderr.
///
/// `kept` says of each event how many samples the filters left.
pub(super) fn print(plan: &Plan, recording: &Recording, kept: &[u64]) {
    let seconds = recording
        .named
        .first()
        .map_or(0.0, |named| named.window.duration.as_secs_f64());
    let lost: u64 = recording.tally.lost().iter().map(|(count, _)| count).sum();
    for named in &recording.named {
        eprintln!("{}; {lost} lost", taken(plan, named));
    }
    for note in notes(recording) {
        eprintln!("  {}", printable(&note));
    }
    for facts in &recording.tally.probes {
        eprintln!("  {}", printable(&probes(facts)));
    }
    for (named, kept) in recording.named.iter().zip(kept) {
        if *kept != named.samples {
            eprintln!("  {kept} samples kept by --include and --exclude");
        }
        if named.naming.left_out > 0 {
            let seconds = named.naming.left_out_ns as f64 / 1e9;
            let count = named.naming.left_out;
            eprintln!(
                "  {count} waits of {seconds:.3} s left out: for connections, and for requests on them"
            );
        }
        if named.idle.count > 0 {
            eprintln!("  {}", left_out(named.idle));
        }
        if named.samples == 0 {
            eprintln!("  no samples: {}", nothing(named.window.event));
        }
    }
    for line in latencies(&recording.tally.latency, plan.verbose) {
        eprintln!("  {}", printable(&line));
    }
    let naming: Vec<String> = recording
        .named
        .iter()
        .map(|named| percent(named.naming.share()))
        .collect();
    eprintln!(
        "{} of frames named, {} of stacks whole",
        naming.join(" and "),
        percent(whole_share(recording)),
    );
    if plan.verbose {
        details(recording);
    }
    print_cost(seconds);
}

/// Says what the recording cost, which took so many seconds.
pub(super) fn print_cost(seconds: f64) {
    let (cpu, memory_bytes) = own_cost();
    eprintln!(
        "goprof itself took {:.2} s of CPU time ({} of one CPU) and {} MB of memory",
        cpu.as_secs_f64(),
        percent(cpu.as_secs_f64() / seconds.max(0.001)),
        memory_bytes / 1_000_000,
    );
}

/// Where allocations of a process were seen, and how sure that is.
fn allocations(facts: &ProbeFacts) -> Vec<String> {
    let share = facts.watched_ns as f64 / facts.elapsed_ns.max(1) as f64;
    let Some(of) = &facts.allocations else {
        return Vec::new();
    };
    let (comm, pid) = (&facts.comm, facts.pid);
    let source = of.source(share.min(1.0));
    let mut lines = vec![format!("allocations of {comm} (pid {pid}): {source}")];
    let doubts = of.doubts().into_iter();
    lines.extend(doubts.map(|doubt| format!("allocations of {comm} (pid {pid}): {doubt}")));
    lines
}

/// What probes of a process came to.
fn probes(facts: &ProbeFacts) -> String {
    let share = facts.watched_ns as f64 / facts.elapsed_ns.max(1) as f64;
    let taken = facts.charged_ns as f64 / facts.elapsed_ns.max(1) as f64;
    let totals = facts
        .totals
        .iter()
        .map(|(event, counts, delays)| match event {
            Event::AllocEvents if counts.standard_error.is_infinite() => format!(
                "; {}: {:.0} objects of {:.1} MB, errors are not known",
                event.name(),
                counts.value,
                delays.value / 1e6
            ),
            Event::AllocEvents => format!(
                "; {}: {:.0} ± {:.0} objects of {:.1} ± {:.1} MB",
                event.name(),
                counts.value,
                counts.standard_error,
                delays.value / 1e6,
                delays.standard_error / 1e6
            ),
            event => format!(
                "; {}: {:.0} ± {:.0} waits of {:.4} ± {:.4} s",
                event.name(),
                counts.value,
                counts.standard_error,
                delays.value / 1e9,
                delays.standard_error / 1e9
            ),
        });
    let runtime = facts.mutex_wait_ns.map(|ns| {
        let seconds = ns as f64 / 1e9;
        format!("; its runtime counts {seconds:.4} s of waiting for mutexes")
    });
    format!(
        "pid {} {}: watched {:.1}% of the time in {} windows, {} hits, probes took {:.2}% of one CPU{}",
        facts.pid,
        facts.comm,
        share * 100.0,
        facts.windows,
        facts.hits,
        taken * 100.0,
        totals.chain(runtime).collect::<String>()
    )
}

/// What was taken of an event, in words.
fn taken(plan: &Plan, named: &Named) -> String {
    let window = &named.window;
    let seconds = window.duration.as_secs_f64();
    let processes = match window.processes.len() {
        1 => "1 process".to_owned(),
        many => format!("{many} processes"),
    };
    let count = named.samples;
    match window.event {
        Event::Cpu => format!(
            "{count} samples of {processes} in {seconds:.1} s at {} Hz",
            plan.rate_hz
        ),
        Event::AllocEvents => {
            let values = window.samples.iter().map(|sample| sample.values[1]);
            let total = bytes(values.fold(0i64, i64::saturating_add));
            format!("{total} allocated in {count} objects by {processes} in {seconds:.1} s")
        }
        event => {
            let values = window.samples.iter().map(|sample| sample.values[1]);
            let total = values.fold(0i64, i64::saturating_add) as f64 / 1e9;
            let what = event.value_types()[1].name.replace('_', " ");
            let of_what = match event {
                Event::Threads => "samples and waits",
                Event::Io => "requests",
                _ => "waits",
            };
            format!("{count} {of_what} of {processes} in {seconds:.1} s: {total:.3} s {what}")
        }
    }
}

/// What was left out of time off the CPU, in words.
fn left_out(idle: Idle) -> String {
    format!(
        "{:.3} s of threads of the runtime that were merely idle left out (--idle counts them)",
        idle.ns as f64 / 1e9
    )
}

/// How long requests took, by device, in words.
fn latencies(by_device: &BTreeMap<String, Latency>, verbose: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for (device, latency) in by_device {
        let of = |share| time(latency.percentile_ns(share));
        let (p50, p90, p99) = (of(0.5), of(0.9), of(0.99));
        let count = latency.count();
        lines.push(format!(
            "{device}: {count} requests, p50 {p50}, p90 {p90}, p99 {p99}"
        ));
        let buckets = latency.by_power().filter(|_| verbose);
        lines.extend(buckets.map(|(below_ns, count)| {
            let below = time(below_ns);
            format!("  {device} below {below}: {count}")
        }));
    }
    lines
}

/// A time in the unit that suits it.
fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{} us", ns / 1000),
        _ => format!("{} ms", ns / 1_000_000),
    }
}

/// Why there is nothing of an event, in words.
fn nothing(event: Event) -> &'static str {
    match event {
        Event::AllocEvents => "nothing was allocated while somebody watched",
        Event::Io => "nothing that was recorded asked a block device",
        Event::OffCpu | Event::Threads => "no thread that was recorded left the CPU",
        Event::Mutex => "no goroutine that was recorded waited for a lock",
        Event::Block => "no goroutine that was recorded waited",
        _ => "nothing that was recorded used the CPU",
    }
}

/// Says where the profile is, unless it went to stdout.
pub(super) fn written(plan: &Plan, output: &Path, bytes: usize) {
    if output != Path::new("-") {
        eprintln!("Wrote {} ({bytes} bytes). Open it with:", output.display());
        eprintln!("  {}", open_command(plan.format, output));
    }
}

fn details(recording: &Recording) {
    if let Some(clock) = recording.clock {
        let clock = match clock {
            Clock::Cycles => "hardware cycles",
            Clock::CpuClock => "the kernel's cpu-clock (no hardware counter here)",
        };
        eprintln!("  sampled by {clock}");
    }
    let tally = &recording.tally;
    if tally.ticks_due > 0 {
        let (missed, due) = (tally.ticks_missed, tally.ticks_due);
        eprintln!("  ticks missing: {missed} of {due}");
    }
    for (end, count) in &recording.tally.ends {
        eprintln!("  stacks {}: {count}", end.describe());
    }
    for line in breaks(&recording.breaks) {
        eprintln!("  {}", printable(&line));
    }
    let mut processes = BTreeSet::new();
    for named in &recording.named {
        for (reason, count) in &named.naming.unnamed {
            eprintln!("  frames without a name, {}: {count}", reason.describe());
        }
        processes.extend(named.window.processes.iter().map(|process| {
            format!(
                "pid {} {} {} {}",
                process.pid, process.comm, process.go_version, process.exe
            )
        }));
    }
    for process in processes {
        eprintln!("  {}", printable(&process));
    }
}

/// Where stacks broke, most first.
fn breaks(breaks: &[Break]) -> Vec<String> {
    let lines = breaks.iter().take(MAX_BREAKS).map(|at| {
        let end = at.end.describe();
        match &at.function {
            Some(function) => format!("broke at {function}, {end}: {}", at.count),
            None => format!("broke elsewhere, {end}: {}", at.count),
        }
    });
    let rest = breaks.iter().skip(MAX_BREAKS);
    let (functions, stacks) = rest.fold((0, 0), |(n, sum), at| (n + 1, sum + at.count));
    let rest = (functions > 0).then(|| format!("broke at {functions} more functions: {stacks}"));
    lines.chain(rest).collect()
}

fn whole_share(recording: &Recording) -> f64 {
    let all: u64 = recording.tally.ends.values().sum();
    let whole = recording.tally.ends.get(&StackEnd::Whole).copied();
    match all {
        0 => 1.0,
        all => whole.unwrap_or(0) as f64 / all as f64,
    }
}

/// Rounded down: 100% means all of them.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}%", (share * 1000.0).floor() / 10.0)
}

fn open_command(format: Format, output: &Path) -> String {
    let file = shell_word(&output.to_string_lossy());
    match format {
        Format::Pprof => format!("go tool pprof -http=: {file}"),
        Format::Folded => format!("flamegraph.pl {file} > flame.svg"),
        Format::Flamegraph => format!("xdg-open {file}"),
        Format::Speedscope => format!("npx speedscope {file}"),
    }
}

/// Quoted where the shell would take it for more than a word.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// CPU time of this process and the most memory it had at once, in bytes.
fn own_cost() -> (Duration, u64) {
    // SAFETY: fills a structure of our own.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    (
        time(usage.ru_utime) + time(usage.ru_stime),
        usage.ru_maxrss as u64 * 1024,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_down() {
        assert_eq!(percent(1.0), "100.0%");
        assert_eq!(percent(0.99999), "99.9%");
    }

    #[test]
    fn tells_where_most_stacks_broke_and_how_many_elsewhere() {
        let at = |number: u64| Break {
            end: StackEnd::Unreadable,
            function: (number > 1).then(|| format!("main.f{number}")),
            count: number,
        };
        assert_eq!(breaks(&[]), [""; 0]);
        let lines = breaks(&[at(2), at(1)]);
        let expected = [
            "broke at main.f2, stack memory not resident: 2",
            "broke elsewhere, stack memory not resident: 1",
        ];
        assert_eq!(lines, expected);
        let many: Vec<Break> = (1..=12).rev().map(at).collect();
        let lines = breaks(&many);
        assert_eq!(lines.len(), 11);
        assert_eq!(lines[10], "broke at 2 more functions: 3");
    }

    #[test]
    fn times_have_a_unit_that_suits_them() {
        assert_eq!([999, 9_999].map(time), ["999 ns", "9999 ns"]);
        assert_eq!([10_000, 9_999_999].map(time), ["10 us", "9999 us"]);
        assert_eq!(time(10_000_000), "10 ms");
    }

    #[test]
    fn quotes_file_names_for_the_shell() {
        assert_eq!(shell_word("a-1.cpu.pb.gz"), "a-1.cpu.pb.gz");
        assert_eq!(shell_word("it's; here"), r"'it'\''s; here'");
    }
}
