//! What became of profiles that are pushed, by receiver. Counts; decides nothing.

use anyhow::Result;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts};

use super::Making;

/// The metrics of what is pushed.
pub struct Push {
    requests: IntCounterVec,
    bytes: IntCounterVec,
    dropped: IntCounterVec,
    queue_bytes: IntGaugeVec,
    queue_limit_bytes: IntGaugeVec,
    last_success: GaugeVec,
    /// Samples whose labels did not all fit, by reason.
    pub labels_cut: IntCounterVec,
}

/// What became of one receiver's profiles so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pushed<'a> {
    /// The receiver.
    pub receiver: &'a str,
    /// Attempts by result, each since the start.
    pub requests: [(&'a str, u64); 3],
    /// Bytes that it took.
    pub bytes: u64,
    /// Profiles that it will never have, by reason, since the start.
    pub dropped: [(&'a str, u64); 6],
    /// Bytes that wait for it, and how many may.
    pub queue_bytes: (u64, u64),
    /// When it last took one, in seconds since 1970; 0 for never.
    pub last_success_seconds: u64,
}

impl Push {
    pub(super) fn new(make: &Making<'_>) -> Result<Self> {
        let gauge = |name: &str, help: &str| {
            make.keep(IntGaugeVec::new(Opts::new(name, help), &["receiver"]))
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            make.keep(IntCounterVec::new(Opts::new(name, help), labels))
        };
        let last = Opts::new(
            "goprof_push_last_success_timestamp_seconds",
            "When the receiver last took a profile; 0 before the first.",
        );
        Ok(Self {
            requests: counters(
                "goprof_push_total",
                "Attempts to hand a profile to a receiver.",
                &["receiver", "result"],
            )?,
            bytes: counters(
                "goprof_push_bytes_total",
                "Bytes that the receiver took.",
                &["receiver"],
            )?,
            dropped: counters(
                "goprof_push_dropped_total",
                "Profiles that the receiver will never have.",
                &["receiver", "reason"],
            )?,
            queue_bytes: gauge(
                "goprof_push_queue_bytes",
                "Bytes that wait for the receiver.",
            )?,
            queue_limit_bytes: gauge(
                "goprof_push_queue_limit_bytes",
                "Most bytes that may wait for the receiver.",
            )?,
            last_success: make.keep(GaugeVec::new(last, &["receiver"]))?,
            labels_cut: make.counters(
                "goprof_push_labels_cut_total",
                "Samples whose labels did not all fit into what is pushed.",
                "reason",
                &[],
            )?,
        })
    }

    /// Takes over what was counted elsewhere.
    pub fn set(&self, pushed: &Pushed<'_>) {
        let receiver = pushed.receiver;
        let raise = |counters: &IntCounterVec, labels: &[&str], to: u64| {
            let counter = counters.with_label_values(labels);
            counter.inc_by(to.saturating_sub(counter.get()));
        };
        for (result, count) in pushed.requests {
            raise(&self.requests, &[receiver, result], count);
        }
        for (reason, count) in pushed.dropped {
            raise(&self.dropped, &[receiver, reason], count);
        }
        raise(&self.bytes, &[receiver], pushed.bytes);
        let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let (bytes, limit) = pushed.queue_bytes;
        let set = |gauges: &IntGaugeVec, value| {
            gauges.with_label_values(&[receiver]).set(whole(value));
        };
        set(&self.queue_bytes, bytes);
        set(&self.queue_limit_bytes, limit);
        let last = self.last_success.with_label_values(&[receiver]);
        last.set(pushed.last_success_seconds as f64);
    }
}
