//! Metrics: what goprof counts of itself, and the few figures of each target that
//! cost next to nothing to have, in Prometheus's text format. Counts; decides nothing.

mod probes;
mod push;
mod reloads;
mod runtimes;
mod targets;
mod waits;

use anyhow::{Context, Result};
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, process_collector::ProcessCollector,
};

pub use probes::Probes;
pub use push::{Push, Pushed};
pub use reloads::Reloads;
pub use targets::{Observed, Service, Targets};
pub use waits::Waits;

/// Why the HTTP server refuses.
const REFUSALS: [&str; 8] = [
    "accept",
    "certificate",
    "connections",
    "host",
    "network",
    "timeout",
    "tls",
    "token",
];

/// The events that are read and not sampled.
const READ_EVENTS: [&str; 4] = ["heap", "allocs", "goroutine", "wall"];
/// What comes of reading a process, and the buckets that are torn.
const READINGS: [&str; 10] = [
    "read",
    "no_heap_profile",
    "unreadable",
    "missed",
    "gone",
    "no_beginning",
    "no_room",
    "cut",
    "unsettled",
    "torn_bucket",
];

/// What goprof counts of itself.
pub struct Metrics {
    registry: Registry,
    /// Samples in finished windows, by event.
    pub samples: IntCounterVec,
    /// Processes whose memory was read, by event and what came of it.
    pub readings: IntCounterVec,
    /// Seconds that took, by event.
    pub reading_seconds: CounterVec,
    /// Samples taken that are in no window, by reason.
    pub samples_lost: IntCounterVec,
    /// Samples taken and left out on purpose, by reason.
    pub samples_excluded: IntCounterVec,
    /// What else is missing from windows, by reason.
    pub incomplete: IntCounterVec,
    /// Samples by how their stack ends.
    pub stacks: IntCounterVec,
    /// Frames with a name.
    pub frames_named: IntCounter,
    /// Frames without a name, by reason.
    pub frames_unnamed: IntCounterVec,
    /// Processes, by what is done about them.
    pub targets: IntGaugeVec,
    /// Groups of targets without metrics of their own: there are too many.
    pub targets_omitted: IntGauge,
    /// Windows finished, by what became of them.
    pub windows: IntCounterVec,
    /// Windows that went on past their time because others were waiting.
    pub windows_delayed: IntCounter,
    /// Times that something was let go of to stay within the memory limit, by
    /// what.
    pub evictions: IntCounterVec,
    /// Largest share of a ring buffer in use at once during the last window.
    pub ring_fill: GaugeVec,
    /// Most memory that the agent means to hold.
    pub memory_limit_bytes: IntGauge,
    /// Bytes waiting on disk.
    pub spool_bytes: IntGauge,
    /// Most bytes that may wait on disk.
    pub spool_limit_bytes: IntGauge,
    /// Windows removed from the disk unsent because it was full.
    pub spool_dropped: IntCounter,
    /// Attempts to put an object into the store, by result.
    pub uploads: IntCounterVec,
    /// Bytes put into the store.
    pub upload_bytes: IntCounter,
    /// When the store last took an object.
    pub last_success: Gauge,
    /// Readings of the configuration.
    pub reloads: Reloads,
    /// Profiles asked for over HTTP, by result.
    pub requests: IntCounterVec,
    /// Looks at what a target's runtime counts, by result.
    pub runtime_readings: IntCounterVec,
    /// Time that these took.
    pub runtime_seconds: Counter,
    /// Waits of threads.
    pub waits: Waits,
    /// Probes, and what they saw.
    pub probes: Probes,
    /// What is pushed.
    pub push: Push,
    /// Connections and requests refused by the HTTP server, by reason.
    pub refused: IntCounterVec,
    /// Attempts to take over changed certificates or a changed token, by result.
    pub credential_reloads: IntCounterVec,
}

/// Makes metrics and registers them, each by name and help text.
struct Making<'a>(&'a Registry);

impl Making<'_> {
    fn keep<M: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<M>,
    ) -> Result<M> {
        let metric = made.context("make a metric")?;
        let collector = Box::new(metric.clone());
        self.0.register(collector).context("register a metric")?;
        Ok(metric)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        label: &str,
        first: &[&str],
    ) -> Result<IntCounterVec> {
        let counters = self.keep(IntCounterVec::new(Opts::new(name, help), &[label]))?;
        // From the start: a rate over what was never zero misses the first.
        for value in first {
            counters.with_label_values(&[value]);
        }
        Ok(counters)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.keep(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.keep(IntGauge::new(name, help))
    }
}

impl Metrics {
    /// Nothing is counted yet.
    ///
    /// # Errors
    /// Two have the same name.
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        let make = Making(&registry);
        let build = Opts::new("goprof_build_info", "Which goprof this is.");
        let build = make.keep(IntGaugeVec::new(build, &["version"]))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let process = Box::new(ProcessCollector::for_self());
        registry.register(process).context("register a metric")?;
        let readings = Opts::new(
            "goprof_memory_readings_total",
            "Processes whose memory was read for a profile, by what came of it.",
        );
        let reading_seconds = Opts::new(
            "goprof_memory_reading_seconds_total",
            "Time that profiles read from memory took to read, name and write.",
        );
        let readings = make.keep(IntCounterVec::new(readings, &["event", "result"]))?;
        let reading_seconds = make.keep(CounterVec::new(reading_seconds, &["event"]))?;
        for event in READ_EVENTS {
            reading_seconds.with_label_values(&[event]);
            for result in READINGS {
                readings.with_label_values(&[event, result]);
            }
        }
        let targets = Opts::new("goprof_targets", "Processes, by what is done about them.");
        let fill = Opts::new(
            "goprof_ring_fill_ratio",
            "Largest share of the ring buffer in use at once during the last window.",
        );
        Ok(Self {
            samples: make.counters(
                "goprof_samples_total",
                "Samples in finished windows.",
                "event",
                &[
                    &["cpu", "offcpu", "io", "mutex", "block", "alloc-events"][..],
                    &READ_EVENTS,
                ]
                .concat(),
            )?,
            readings,
            reading_seconds,
            samples_lost: make.counters(
                "goprof_samples_lost_total",
                "Samples that were taken and are in no window.",
                "reason",
                &[],
            )?,
            samples_excluded: make.counters(
                "goprof_samples_excluded_total",
                "Samples that were taken and left out of windows on purpose.",
                "reason",
                &["no_rule", "not_identified", "not_wanted", "other_rate"],
            )?,
            incomplete: make.counters(
                "goprof_incomplete_total",
                "What else is missing from windows.",
                "reason",
                &[],
            )?,
            stacks: make.counters(
                "goprof_stacks_total",
                "Samples by how their stack ends; whole ones end at its first function.",
                "end",
                &["whole"],
            )?,
            frames_named: make.counter("goprof_frames_named_total", "Frames that have a name.")?,
            frames_unnamed: make.counters(
                "goprof_frames_unnamed_total",
                "Frames that have no name.",
                "reason",
                &[],
            )?,
            targets: make.keep(IntGaugeVec::new(targets, &["state"]))?,
            targets_omitted: make.gauge(
                "goprof_target_services_omitted",
                "Services without metrics of their own, as there are too many.",
            )?,
            windows: make.counters(
                "goprof_windows_total",
                "Windows finished, by what became of them.",
                "result",
                &["spooled", "empty", "failed"],
            )?,
            windows_delayed: make.counter(
                "goprof_windows_delayed_total",
                "Times that a window went on past its time as others were waiting.",
            )?,
            evictions: make.counters(
                "goprof_memory_evictions_total",
                "Times that what can be had again was let go of, as memory was short.",
                "cache",
                &["code", "symbols"],
            )?,
            ring_fill: make.keep(GaugeVec::new(fill, &["rate_hz"]))?,
            memory_limit_bytes: make.gauge(
                "goprof_memory_limit_bytes",
                "Memory beyond which the agent lets go of what can be had again.",
            )?,
            spool_bytes: make.gauge("goprof_spool_bytes", "Bytes that wait for the store.")?,
            spool_limit_bytes: make.gauge(
                "goprof_spool_limit_bytes",
                "Most bytes that may wait for the store.",
            )?,
            spool_dropped: make.counter(
                "goprof_spool_dropped_total",
                "Objects dropped unsent as the spool was full or damaged.",
            )?,
            uploads: make.counters(
                "goprof_uploads_total",
                "Attempts to put an object into the store.",
                "result",
                &["success", "failure"],
            )?,
            upload_bytes: make
                .counter("goprof_upload_bytes_total", "Bytes that the store took.")?,
            last_success: make.keep(Gauge::new(
                "goprof_last_success_timestamp_seconds",
                "When the store last took an object; 0 before the first.",
            ))?,
            reloads: Reloads::new(&make)?,
            requests: make.counters(
                "goprof_profile_requests_total",
                "Profiles asked for over HTTP.",
                "result",
                &["success", "failure", "refused"],
            )?,
            runtime_readings: make.counters(
                "goprof_runtime_readings_total",
                "Looks at what the Go runtime of a target counts.",
                "result",
                &["success", "partial", "failure"],
            )?,
            runtime_seconds: make.keep(Counter::new(
                "goprof_runtime_reading_seconds_total",
                "Time that looks at what the runtimes of targets count took.",
            ))?,
            waits: Waits::new(&make)?,
            probes: Probes::new(&make)?,
            push: Push::new(&make)?,
            refused: make.counters(
                "goprof_http_refused_total",
                "Connections and requests that the HTTP server refused.",
                "reason",
                &REFUSALS,
            )?,
            credential_reloads: make.counters(
                "goprof_http_credential_reloads_total",
                "Attempts to take over changed certificates or a changed token.",
                "result",
                &["success", "failure"],
            )?,
            registry,
        })
    }

    /// All of it, and the targets' figures, as text.
    ///
    /// # Errors
    /// A metric cannot be written.
    pub fn text(&self, targets: &Targets, max_services: usize) -> Result<String> {
        let (families, omitted) = targets.gather(max_services)?;
        self.targets_omitted
            .set(i64::try_from(omitted).unwrap_or(i64::MAX));
        let mut all = self.registry.gather();
        all.extend(families);
        TextEncoder::new()
            .encode_to_string(&all)
            .context("write the metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_is_there_from_the_start() {
        let metrics = Metrics::new().unwrap();
        let text = metrics.text(&Targets::default(), 10).unwrap();
        for line in [
            "goprof_samples_total{event=\"cpu\"} 0",
            "goprof_uploads_total{result=\"failure\"} 0",
            "goprof_last_success_timestamp_seconds 0",
            "goprof_config_reloads_total{result=\"failure\"} 0",
            "goprof_config_last_reload_successful 1",
            "# TYPE process_cpu_seconds_total counter",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(text.contains("goprof_build_info{version="));
    }
}
