//! Metrics of probes: what they took of the programs that they were on, how much of the
//! time they watched, and what they saw.

use anyhow::Result;
use prometheus::{Counter, CounterVec, IntCounter, Opts};

use super::Making;

/// Metrics of probes, of all programs together.
pub struct Probes {
    hits: IntCounter,
    charged_seconds: Counter,
    watched_seconds: Counter,
    elapsed_seconds: Counter,
    waits: CounterVec,
    wait_seconds: CounterVec,
    allocated_bytes: Counter,
}

impl Probes {
    pub(super) fn new(make: &Making<'_>) -> Result<Self> {
        let counter = |name, help| make.keep(Counter::new(name, help));
        let by_event = |name, help| {
            let made = make.keep(CounterVec::new(Opts::new(name, help), &["event"]))?;
            for event in ["mutex", "block"] {
                made.with_label_values(&[event]);
            }
            Ok::<_, anyhow::Error>(made)
        };
        Ok(Self {
            hits: make.keep(IntCounter::new(
                "goprof_probe_hits_total",
                "Hits of probes, wanted or not.",
            ))?,
            charged_seconds: counter(
                "goprof_probe_charged_seconds_total",
                "CPU time that probes took of the programs that they were on.",
            )?,
            watched_seconds: counter(
                "goprof_probe_watched_seconds_total",
                "Time that programs were watched by probes, of goprof_probe_elapsed_seconds_total.",
            )?,
            elapsed_seconds: counter(
                "goprof_probe_elapsed_seconds_total",
                "Time that programs were to be watched by probes.",
            )?,
            waits: by_event(
                "goprof_waits_total",
                "Waits of goroutines that ended, scaled by what was watched.",
            )?,
            wait_seconds: by_event(
                "goprof_wait_seconds_total",
                "Time that goroutines waited, scaled by what was watched.",
            )?,
            allocated_bytes: counter(
                "goprof_allocated_bytes_total",
                "Bytes allocated by programs whose allocations a rule takes.",
            )?,
        })
    }

    /// Adds what probes of a process took of it and watched, in nanoseconds.
    pub fn add(&self, hits: u64, charged_ns: u64, (watched_ns, elapsed_ns): (u64, u64)) {
        self.hits.inc_by(hits);
        let seconds = |ns: u64| ns as f64 / 1e9;
        self.charged_seconds.inc_by(seconds(charged_ns));
        self.watched_seconds.inc_by(seconds(watched_ns));
        self.elapsed_seconds.inc_by(seconds(elapsed_ns));
    }

    /// Adds waits of goroutines, by estimate, and how long they took.
    pub fn add_waits(&self, event: &str, count: f64, ns: f64) {
        // An estimate may come out below nothing.
        self.waits
            .with_label_values(&[event])
            .inc_by(count.max(0.0));
        let seconds = self.wait_seconds.with_label_values(&[event]);
        seconds.inc_by(ns.max(0.0) / 1e9);
    }

    /// Adds what was allocated, by estimate.
    pub fn add_allocated(&self, bytes: f64) {
        self.allocated_bytes.inc_by(bytes.max(0.0));
    }
}
