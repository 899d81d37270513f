//! Readings under way of what programs keep of themselves, once a window, and what
//! the last one could not have. Reads nothing itself.

use std::{
    collections::BTreeMap,
    fmt::Display,
    time::{Duration, Instant},
};

use super::{
    config::{Config, Event, Subject},
    snapshots::Snapshots,
    state::{Collected, ProcessView},
};
use crate::{identity::Target, session::HeapSession};

/// The readings of each event.
#[derive(Default)]
pub(super) struct Readings {
    /// When they end and the next begin.
    due: Option<Instant>,
    under_way: BTreeMap<Event, HeapSession>,
    /// Those of goroutines.
    pub(super) snapshots: Snapshots,
    /// Why there was nothing to read, by event and pid.
    without: BTreeMap<(Event, u32), String>,
}

impl Readings {
    /// Whether it is time to end them: at once where none has begun.
    pub(super) fn are_due(&self) -> bool {
        self.due.is_none_or(|due| Instant::now() >= due)
    }

    /// Whether a window has begun.
    pub(super) fn have_begun(&self) -> bool {
        self.due.is_some()
    }

    /// The next end after `period`.
    pub(super) fn begin(&mut self, period: Duration) {
        self.due = Some(Instant::now() + period);
    }

    pub(super) fn take(&mut self, event: Event) -> Option<HeapSession> {
        self.under_way.remove(&event)
    }

    pub(super) fn put(&mut self, event: Event, session: HeapSession) {
        self.under_way.insert(event, session);
    }

    /// Remembers what could not be had, until the next reading.
    pub(super) fn explain<W: Display>(
        &mut self,
        event: Event,
        without: impl Iterator<Item = (u32, W)>,
    ) {
        self.without.retain(|(of, _), _| *of != event);
        for (pid, why) in without {
            let why = format!("{}: {why}", event.sampled().name());
            self.without.insert((event, pid), why);
        }
    }

    /// Adds to the view of a process what beside CPU time is taken of it by the rules,
    /// and why not.
    pub(super) fn describe(&self, config: &Config, process: &mut ProcessView) {
        let target = Target {
            pid: process.pid,
            labels: process.labels.clone(),
            is_partial: process.is_partial,
        };
        let subject = Subject {
            comm: &process.comm,
            exe: &process.exe,
            target: &target,
        };
        for event in [
            Event::Heap,
            Event::Allocs,
            Event::Goroutine,
            Event::Wall,
            Event::OffCpu,
            Event::Io,
            Event::Mutex,
            Event::Block,
            Event::AllocEvents,
        ] {
            if !config.takes(event, &subject) {
                continue;
            }
            match self.without.get(&(event, process.pid)) {
                Some(why) => process.notes.push(why.clone()),
                None => process.collected.push(Collected {
                    event: event.sampled().name(),
                    rate_hz: None,
                }),
            }
        }
    }
}
