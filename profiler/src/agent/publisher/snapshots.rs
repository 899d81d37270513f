//! Windows of goroutines: taken out of their sessions, named, and stored as other
//! windows are.

use std::time::Instant;

use super::{Publisher, Targets, takes};
use crate::{
    agent::{
        account,
        config::{Config, Event},
        log, snapshots,
    },
    memory,
};

impl Publisher<'_> {
    /// Stores what was read of goroutines since the last window.
    pub(super) fn publish_snapshots(&mut self, config: &Config) {
        for event in snapshots::EVENTS {
            let began = Instant::now();
            let Some(mut reading) = self.readings.snapshots.rotate(event) else {
                continue;
            };
            let mut targets = Targets::new();
            let dropped = reading.retain(|process| {
                let target = self.identify_again(process);
                let is_wanted = takes(config, event, process, &target);
                if is_wanted {
                    targets.insert((process.pid, process.exe.clone()), target);
                }
                is_wanted
            });
            let metrics = &self.state.metrics;
            let excluded = metrics.samples_excluded.with_label_values(&["no_rule"]);
            excluded.inc_by(dropped);
            self.symbolizer.limit_memory(config.memory_limit.0);
            let recording = reading.name(&mut self.symbolizer);
            account::add_snapshots(metrics, &recording);
            let unread = recording.unread.iter();
            let why = unread.map(|unread| (unread.pid, unread.why.as_str()));
            self.readings.explain(event, why);
            // Of `wall` most of it: on its own thread.
            let took = match event {
                Event::Wall => recording.facts.took,
                _ => std::time::Duration::ZERO,
            };
            let stored = match recording.window.samples.is_empty() {
                true => Ok("empty"),
                false => {
                    let put = self.put(config, recording.window, Vec::new(), &targets);
                    put.map(|()| "spooled")
                }
            };
            let result = stored.unwrap_or_else(|error| {
                log::warn("window lost", &[("error", &format!("{error:#}"))]);
                "failed"
            });
            metrics.windows.with_label_values(&[result]).inc();
            account::add_reading_time(metrics, event.sampled(), began.elapsed() + took);
            memory::trim();
        }
    }
}
