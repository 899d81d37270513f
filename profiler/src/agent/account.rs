//! A recording's counts as metrics. Their labels are words that stay the same
//! from version to version.

use std::{collections::BTreeMap, time::Duration};

use profiler_ebpf::wire::Counter;

use crate::{
    metrics::Metrics,
    session::{
        HeapFacts, HeapRecording, Named, ProbeFacts, Recording, SnapshotRecording, THREAD_STATE,
    },
    symbolize::{Event, Naming, Reason},
    unwind::StackEnd,
};

/// Adds what a window counted.
pub(super) fn add(metrics: &Metrics, recording: &Recording) {
    let tally = &recording.tally;
    for named in &recording.named {
        let event = named.window.event.name();
        let samples = metrics.samples.with_label_values(&[event]);
        samples.inc_by(named.samples);
        add_naming(metrics, &named.naming);
        add_off_cpu(metrics, named);
    }
    for (device, latency) in &tally.latency {
        metrics.waits.add_block_io(device, latency.counts());
    }
    for facts in &tally.probes {
        add_probes(metrics, facts);
    }
    let kernel = |counter| tally.kernel.get(counter);
    for (reason, count) in [
        ("ring_full", kernel(Counter::SamplesRingFull)),
        ("unreadable_record", tally.undecodable),
        ("process_gone", tally.unknown_process),
        ("layout_disproven", tally.disproven),
    ] {
        metrics
            .samples_lost
            .with_label_values(&[reason])
            .inc_by(count);
    }
    for (reason, count) in [
        ("events_ring_full", kernel(Counter::EventsRingFull)),
        ("targets_full", tally.not_added),
        ("targets_full_at_start", kernel(Counter::TargetsFull)),
        ("no_kernel_stack", kernel(Counter::NoKernelStack)),
        ("process_vanished", tally.vanished),
        ("sample_of_vanished", tally.unseen),
        ("ticks_missed", tally.ticks_missed),
        ("threads_full", kernel(Counter::ThreadsFull)),
        ("threads_full_at_start", tally.threads_left_out),
        ("ends_ring_full", kernel(Counter::EndsRingFull)),
        ("ends_missed", tally.ends_missed),
        ("waits_full", kernel(Counter::WaitsFull)),
        ("waits_doubtful", tally.waits_doubtful),
        ("windows_left_out", tally.windows_left_out),
        ("looks_missed", tally.looks_missed),
        ("probes_nested", kernel(Counter::ProbesNested)),
        ("stacks_not_taken", tally.stacks_not_taken),
        ("cpu_late", tally.cpus_late),
        ("cpu_refused", tally.cpus_refused),
        ("io_not_paired", kernel(Counter::IoNotPaired)),
        ("io_not_told", tally.io_missed),
        ("labels_truncated", tally.labels_truncated),
        ("labels_missed", tally.labels_missed),
    ] {
        metrics
            .incomplete
            .with_label_values(&[reason])
            .inc_by(count);
    }
    for (end, count) in &tally.ends {
        let stacks = metrics.stacks.with_label_values(&[&end_word(*end)]);
        stacks.inc_by(*count);
    }
    let evictions = metrics.evictions.with_label_values(&["code"]);
    evictions.inc_by(tally.evictions);
}

/// Adds the time that threads were off the CPU.
fn add_off_cpu(metrics: &Metrics, named: &Named) {
    if named.window.event != Event::OffCpu {
        return;
    }
    metrics.waits.add_off_cpu("idle", named.idle.ns);
    for sample in &named.window.samples {
        let state = sample.labels.iter().find(|(key, _)| key == THREAD_STATE);
        if let Some((_, state)) = state {
            let ns = sample.values[1].unsigned_abs();
            metrics.waits.add_off_cpu(state, ns);
        }
    }
}

/// Adds what probes of a process came to.
fn add_probes(metrics: &Metrics, facts: &ProbeFacts) {
    let time = (facts.watched_ns, facts.elapsed_ns);
    metrics.probes.add(facts.hits, facts.charged_ns, time);
    for (event, counts, amounts) in &facts.totals {
        match event {
            Event::AllocEvents => metrics.probes.add_allocated(amounts.value),
            event => metrics
                .probes
                .add_waits(event.name(), counts.value, amounts.value),
        }
    }
}

/// Adds how frames were named.
fn add_naming(metrics: &Metrics, naming: &Naming) {
    metrics.frames_named.inc_by(naming.named);
    for (reason, count) in &naming.unnamed {
        let frames = metrics
            .frames_unnamed
            .with_label_values(&[reason_word(*reason)]);
        frames.inc_by(*count);
    }
    let evictions = metrics.evictions.with_label_values(&["symbols"]);
    evictions.inc_by(naming.evictions);
    let gaps = metrics.frames_unnamed.with_label_values(&["gap"]);
    gaps.inc_by(naming.gaps);
}

/// Adds what was read of programs' memory: a stack with its values is a sample.
pub(super) fn add_reading(metrics: &Metrics, recording: &HeapRecording) {
    let event = recording.window.event.name();
    let samples = metrics.samples.with_label_values(&[event]);
    samples.inc_by(recording.window.samples.len() as u64);
    let buckets = recording.read.iter().map(|facts| facts.torn);
    let count = |is: fn(&HeapFacts) -> bool| recording.read.iter().filter(|f| is(f)).count() as u64;
    for (result, count) in [
        ("read", recording.read.len() as u64),
        ("no_heap_profile", recording.without.len() as u64),
        ("gone", recording.gone as u64),
        ("no_beginning", recording.late as u64),
        ("no_room", recording.not_kept as u64),
        ("cut", count(|facts| facts.is_cut)),
        ("unsettled", count(|facts| !facts.is_settled)),
        ("torn_bucket", buckets.sum()),
    ] {
        let readings = metrics.readings.with_label_values(&[event, result]);
        readings.inc_by(count);
    }
    add_naming(metrics, &recording.naming);
}

/// Adds what was read of programs' goroutines: each, as often as it was seen, is a
/// sample.
pub(super) fn add_snapshots(metrics: &Metrics, recording: &SnapshotRecording) {
    let event = recording.window.event.name();
    let facts = &recording.facts;
    let samples = metrics.samples.with_label_values(&[event]);
    samples.inc_by(facts.goroutines);
    for (result, count) in [
        ("read", recording.window.processes.len() as u64),
        ("unreadable", recording.unread.len() as u64),
        ("missed", facts.failed),
        ("gone", facts.gone as u64),
    ] {
        let readings = metrics.readings.with_label_values(&[event, result]);
        readings.inc_by(count);
    }
    let left_out = facts.left_out;
    for (reason, count) in [
        ("goroutine_running", facts.running),
        (
            "goroutine_stood_for",
            facts.stand_for.saturating_sub(facts.goroutines),
        ),
        ("goroutine_changed", left_out.changed),
        ("goroutine_ended", left_out.ended),
        (
            "goroutine_unreadable",
            left_out.unreadable + left_out.nonsense,
        ),
        ("goroutines_cut", left_out.cut),
        ("goroutine_stack_broken", facts.broken),
        ("labels_missed", facts.labels_damaged),
        ("snapshot_late", facts.late),
    ] {
        let incomplete = metrics.incomplete.with_label_values(&[reason]);
        incomplete.inc_by(count);
    }
    add_naming(metrics, &recording.naming);
}

/// Adds the time that a reading took.
pub(super) fn add_reading_time(metrics: &Metrics, event: Event, time: Duration) {
    let seconds = metrics.reading_seconds.with_label_values(&[event.name()]);
    seconds.inc_by(time.as_secs_f64());
}

/// Adds what was sampled and is not wanted: by the rules, by reason, and of
/// programs that were not known yet.
pub(super) fn add_excluded(
    metrics: &Metrics,
    recording: &Recording,
    by_rules: &BTreeMap<&'static str, u64>,
) {
    let not_wanted = ("not_wanted", recording.tally.unwanted);
    let by_rules = by_rules.iter().map(|(reason, count)| (*reason, *count));
    for (reason, count) in by_rules.chain([not_wanted]) {
        let excluded = metrics.samples_excluded.with_label_values(&[reason]);
        excluded.inc_by(count);
    }
}

/// `NoRegisters` as `no_registers`.
fn end_word(end: StackEnd) -> String {
    let mut word = String::new();
    for c in format!("{end:?}").chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

fn reason_word(reason: Reason) -> &'static str {
    match reason {
        Reason::NoMapping => "no_mapping",
        Reason::Anonymous => "anonymous",
        Reason::FileUnavailable => "file_unavailable",
        Reason::FileChanged => "file_changed",
        Reason::NoSymbol => "no_symbol",
        Reason::Damaged => "damaged",
        Reason::Gap => "gap",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_words() {
        assert_eq!(end_word(StackEnd::Whole), "whole");
        assert_eq!(end_word(StackEnd::NoRegisters), "no_registers");
    }
}
