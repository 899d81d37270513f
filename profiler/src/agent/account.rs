//! A recording's counts as metrics. Their labels are words that stay the same
//! from version to version.

use std::collections::BTreeMap;

use profiler_ebpf::wire::Counter;

use crate::{metrics::Metrics, session::Recording, symbolize::Reason, unwind::StackEnd};

/// Adds what a window counted.
pub(super) fn add(metrics: &Metrics, recording: &Recording) {
    let tally = &recording.tally;
    let event = recording.window.event.name();
    let samples = metrics.samples.with_label_values(&[event]);
    samples.inc_by(recording.samples);
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
        (
            "targets_full",
            kernel(Counter::TargetsFull) + tally.not_added,
        ),
        ("no_kernel_stack", kernel(Counter::NoKernelStack)),
        ("process_vanished", tally.vanished),
        ("sample_of_vanished", tally.unseen),
        ("ticks_missed", tally.ticks_missed),
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
    metrics.frames_named.inc_by(recording.naming.named);
    for (reason, count) in &recording.naming.unnamed {
        let frames = metrics
            .frames_unnamed
            .with_label_values(&[reason_word(*reason)]);
        frames.inc_by(*count);
    }
    for (cache, count) in [
        ("code", tally.evictions),
        ("symbols", recording.naming.evictions),
    ] {
        let evictions = metrics.evictions.with_label_values(&[cache]);
        evictions.inc_by(count);
    }
    let gaps = metrics.frames_unnamed.with_label_values(&["gap"]);
    gaps.inc_by(recording.naming.gaps);
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
