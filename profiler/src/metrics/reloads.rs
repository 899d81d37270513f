//! Readings of the configuration: how many, what became of the last, and when one
//! was taken over. Counts; reads nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use prometheus::{Gauge, IntCounterVec, IntGauge};

use super::Making;

/// The metrics of the configuration.
pub struct Reloads {
    attempts: IntCounterVec,
    is_last_successful: IntGauge,
    last_success_seconds: Gauge,
}

impl Reloads {
    /// With the configuration of the start, which is taken over by then.
    pub(super) fn new(make: &Making<'_>) -> Result<Self> {
        let reloads = Self {
            attempts: make.counters(
                "goprof_config_reloads_total",
                "Attempts to read the configuration again.",
                "result",
                &["success", "failure"],
            )?,
            is_last_successful: make.gauge(
                "goprof_config_last_reload_successful",
                "Whether the configuration was taken over when it was last read.",
            )?,
            last_success_seconds: make.keep(Gauge::new(
                "goprof_config_last_reload_success_timestamp_seconds",
                "When a configuration was last taken over, that of the start included.",
            ))?,
        };
        reloads.succeeded();
        Ok(reloads)
    }

    /// Notes what became of an attempt to read the configuration again. What the
    /// gauges say stands by the time that the attempt is counted.
    pub fn note(&self, is_taken_over: bool) {
        let result = match is_taken_over {
            true => {
                self.succeeded();
                "success"
            }
            false => {
                self.is_last_successful.set(0);
                "failure"
            }
        };
        self.attempts.with_label_values(&[result]).inc();
    }

    fn succeeded(&self) {
        self.is_last_successful.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.last_success_seconds
            .set(now.unwrap_or_default().as_secs_f64());
    }
}
