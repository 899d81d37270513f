//! The windows of a session, one for each event that it records.

use std::collections::BTreeMap;

use crate::{aggregate::Window, process::ProcessIndex, symbolize::Event};

/// A window for each event.
#[derive(Debug, Default)]
pub(super) struct Windows(BTreeMap<Event, Window>);

impl Windows {
    /// An empty window for each of `events`.
    pub(super) fn of(events: impl IntoIterator<Item = Event>) -> Self {
        Self(events.into_iter().map(|e| (e, Window::default())).collect())
    }

    /// The window of an event.
    pub(super) fn get(&mut self, event: Event) -> &mut Window {
        self.0.entry(event).or_default()
    }

    /// Takes them out, and begins anew for the same events.
    pub(super) fn take(&mut self) -> Self {
        let next = Self::of(self.0.keys().copied());
        std::mem::replace(self, next)
    }

    /// Takes out all samples of a process, and says how many they were.
    pub(super) fn drop_process(&mut self, process: ProcessIndex) -> u64 {
        let windows = self.0.values_mut();
        windows.map(|window| window.drop_process(process)).sum()
    }

    /// See [`Window::bytes_written`].
    pub(super) fn bytes_written(&self) -> usize {
        self.0.values().map(Window::bytes_written).sum()
    }

    /// How many samples were added.
    pub(super) fn samples(&self) -> u64 {
        self.0.values().map(Window::samples).sum()
    }
}

impl IntoIterator for Windows {
    type Item = (Event, Window);
    type IntoIter = std::collections::btree_map::IntoIter<Event, Window>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
