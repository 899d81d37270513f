//! Metrics of waits: time off the CPU, and requests to block devices.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use anyhow::Result;
use prometheus::{CounterVec, HistogramOpts, HistogramVec, Opts};

use super::Making;

/// States of threads off the CPU. The idle ones are in no profile.
const STATES: [&str; 3] = ["blocked", "waiting for a CPU", "idle"];
/// Most devices with figures of their own; the others share those of [`OTHER`].
const MAX_DEVICES: usize = 64;
const OTHER: &str = "other";
/// Upper bounds of the histogram: powers of two of nanoseconds, from 16 us to 8 s.
const POWERS: std::ops::RangeInclusive<u32> = 14..=33;

/// Metrics of waits.
pub struct Waits {
    off_cpu_seconds: CounterVec,
    block_io_seconds: HistogramVec,
    devices: Mutex<HashSet<String>>,
}

impl Waits {
    pub(super) fn new(make: &Making<'_>) -> Result<Self> {
        let off_cpu = Opts::new(
            "goprof_off_cpu_seconds_total",
            "Time that threads were off the CPU, by state, where a rule takes it.",
        );
        let off_cpu_seconds = make.keep(CounterVec::new(off_cpu, &["state"]))?;
        for state in STATES {
            off_cpu_seconds.with_label_values(&[state]);
        }
        let bounds = POWERS.map(|power| (1u64 << power) as f64 / 1e9).collect();
        let block_io = HistogramOpts::new(
            "goprof_block_io_seconds",
            "Time that devices took for requests, where a rule takes them; each within an eighth.",
        );
        let block_io = HistogramVec::new(block_io.buckets(bounds), &["device"]);
        Ok(Self {
            off_cpu_seconds,
            block_io_seconds: make.keep(block_io)?,
            devices: Mutex::default(),
        })
    }

    /// Adds time off the CPU in a state that a profile names, or `idle`.
    pub fn add_off_cpu(&self, state: &str, ns: u64) {
        if let Some(state) = STATES.iter().find(|known| **known == state) {
            let seconds = self.off_cpu_seconds.with_label_values(&[state]);
            seconds.inc_by(ns as f64 / 1e9);
        }
    }

    /// Adds how long requests of a device took: times in nanoseconds with their counts.
    pub fn add_block_io(&self, device: &str, counts: impl Iterator<Item = (u64, u64)>) {
        let device = self.name(device);
        let histogram = self.block_io_seconds.with_label_values(&[device]);
        for (ns, count) in counts {
            (0..count).for_each(|_| histogram.observe(ns as f64 / 1e9));
        }
    }

    /// What a device is called here.
    fn name<'d>(&self, device: &'d str) -> &'d str {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.contains(device) {
            return device;
        }
        if devices.len() >= MAX_DEVICES {
            return OTHER;
        }
        devices.insert(device.to_owned());
        device
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, Targets};

    fn text(metrics: &Metrics) -> String {
        metrics.text(&Targets::default(), 10).unwrap()
    }

    #[test]
    fn states_are_there_from_the_start_and_no_others_come() {
        let metrics = Metrics::new().unwrap();
        metrics.waits.add_off_cpu("blocked", 1_500_000_000);
        metrics.waits.add_off_cpu("made up", 1);
        let text = text(&metrics);
        for line in [
            "goprof_off_cpu_seconds_total{state=\"blocked\"} 1.5",
            "goprof_off_cpu_seconds_total{state=\"idle\"} 0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("made up"));
    }

    #[test]
    fn devices_are_few() {
        let metrics = Metrics::new().unwrap();
        for number in 0..100 {
            let counts = [(20_000, 1)].into_iter();
            metrics.waits.add_block_io(&format!("d{number:03}"), counts);
        }
        let text = text(&metrics);
        let counts = |line: &&str| line.starts_with("goprof_block_io_seconds_count");
        assert_eq!(text.lines().filter(counts).count(), MAX_DEVICES + 1);
        assert!(text.contains("goprof_block_io_seconds_count{device=\"other\"} 36"));
        assert!(
            text.contains("{device=\"d000\",le=\"0.000016384\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("{device=\"d000\",le=\"0.000032768\"} 1"),
            "{text}"
        );
    }
}
