//! Snapshots of goroutines by rule: of the processes that rules name, one at the end
//! of each window for `goroutine`, and many over it for `wall`, on a thread of its own.
//! Names and stores nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    config::{Config, Event, Subject},
    log,
    state::{ProcessView, lock},
};
use crate::{
    identity::Target,
    process::Selection,
    session::{SnapshotConfig, SnapshotReading, SnapshotSession},
};

/// The events that are made of snapshots.
pub(super) const EVENTS: [Event; 2] = [Event::Goroutine, Event::Wall];

/// Snapshots a second for `wall`. Prime, as other rates; they are at random moments
/// anyway.
const WALL_RATE_HZ: u32 = 11;

/// Most goroutines of a program that a snapshot has, which takes some 30 MB then.
pub(super) const MAX_GOROUTINES: u64 = 1 << 18;

/// The sessions of each event.
#[derive(Default)]
pub(super) struct Snapshots {
    sessions: BTreeMap<Event, Taking>,
    pids: BTreeMap<Event, Vec<u32>>,
}

/// A session, and who takes its snapshots.
struct Taking {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    session: Mutex<SnapshotSession>,
    has_ended: AtomicBool,
}

impl Snapshots {
    /// Has the processes watched that rules name for an event, of all there are.
    pub(super) fn watch(&mut self, config: &Config, processes: &BTreeMap<u32, ProcessView>) {
        for event in EVENTS {
            let wanted = processes.values().filter(|view| takes(config, event, view));
            let pids: Vec<u32> = wanted.map(|view| view.pid).collect();
            if !config.rules.ask_for(event) {
                self.sessions.remove(&event);
                continue;
            }
            let Some(taking) = self.sessions.get(&event) else {
                self.begin(config, event, &pids);
                continue;
            };
            if self.pids.get(&event) != Some(&pids) {
                lock(&taking.shared.session).watch(pids.clone());
                self.pids.insert(event, pids);
            }
        }
    }

    fn begin(&mut self, config: &Config, event: Event, pids: &[u32]) {
        if pids.is_empty() {
            return;
        }
        let session = SnapshotSession::start(SnapshotConfig {
            event: event.sampled(),
            selection: Selection::Pids(pids.to_vec()),
            rate_hz: WALL_RATE_HZ,
            duration: None,
            goroutines: config.goroutines,
            labels: config.labels,
            most_goroutines: MAX_GOROUTINES,
        });
        let shared = Arc::new(Shared {
            session: Mutex::new(session),
            has_ended: AtomicBool::new(false),
        });
        let thread = (event == Event::Wall).then(|| {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("goprof-wall".into());
            thread.spawn(move || shared.run())
        });
        match thread.transpose() {
            Ok(thread) => {
                self.pids.insert(event, pids.to_vec());
                self.sessions.insert(event, Taking { shared, thread });
            }
            Err(error) => log::warn(
                "no thread to take snapshots",
                &[("error", &error.to_string())],
            ),
        }
    }

    /// Whether a window would take more than so many bytes while it is written.
    pub(super) fn exceed(&self, most_bytes: usize) -> bool {
        let mut sessions = self.sessions.values();
        sessions.any(|taking| lock(&taking.shared.session).bytes_written() > most_bytes)
    }

    /// Takes out what was read since the last call.
    pub(super) fn rotate(&self, event: Event) -> Option<SnapshotReading> {
        let taking = self.sessions.get(&event)?;
        Some(lock(&taking.shared.session).rotate())
    }
}

impl Shared {
    /// Takes snapshots until that is ended.
    fn run(&self) {
        while !self.has_ended.load(Ordering::Relaxed) {
            let next = lock(&self.session).next_at();
            match next.saturating_duration_since(Instant::now()) {
                Duration::ZERO => lock(&self.session).take(),
                wait => std::thread::park_timeout(wait),
            }
        }
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It ends after the snapshot that it takes.
            let _ = thread.join();
        }
    }
}

fn takes(config: &Config, event: Event, view: &ProcessView) -> bool {
    let target = Target {
        pid: view.pid,
        labels: view.labels.clone(),
        is_partial: view.is_partial,
    };
    let subject = Subject {
        comm: &view.comm,
        exe: &view.exe,
        target: &target,
    };
    config.takes(event, &subject)
}
