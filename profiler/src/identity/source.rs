//! What a source of names (the Kubernetes API, a container runtime) has told so
//! far, and whether it answers. Written by the task that asks it, read by
//! whoever identifies a process; nobody holds it while waiting.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use super::{
    containers::{Containers, Known},
    text::clean,
};

/// A source, as `/targets` and logs show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStatus {
    /// What it is, e.g. `kubernetes`.
    pub name: &'static str,
    /// Whether it ever answered.
    pub has_answered: bool,
    /// Why it does not answer now.
    pub error: Option<String>,
    /// How many containers it named.
    pub containers: usize,
    /// How many were too many to remember.
    pub refused: u64,
}

/// A source's answers.
#[derive(Debug)]
pub(super) struct Source {
    name: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    containers: Containers,
    answers: u64,
    rounds: u64,
    error: Option<String>,
}

/// A source that is asked when somebody wants to know.
pub(super) struct Asked {
    pub source: Arc<Source>,
    pub wanted: Arc<Notify>,
}

impl Asked {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            source: Arc::new(Source::new(name)),
            wanted: Arc::new(Notify::new()),
        }
    }

    pub(super) fn both(&self) -> (Arc<Notify>, Arc<Source>) {
        (Arc::clone(&self.wanted), Arc::clone(&self.source))
    }
}

impl Source {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            state: Mutex::default(),
        }
    }

    /// What it said of a container.
    pub(super) fn get(&self, id: &str) -> Option<Known> {
        self.lock().containers.get(id).cloned()
    }

    /// How often it told something.
    pub(super) fn answers(&self) -> u64 {
        self.lock().answers
    }

    /// How often it was asked, whatever came of it.
    pub(super) fn rounds(&self) -> u64 {
        self.lock().rounds
    }

    /// It was asked.
    pub(super) fn end_round(&self) {
        self.lock().rounds += 1;
    }

    pub(super) fn status(&self) -> SourceStatus {
        let state = self.lock();
        SourceStatus {
            name: self.name,
            has_answered: state.answers > 0,
            error: state.error.clone(),
            containers: state.containers.len(),
            refused: state.containers.refused(),
        }
    }

    /// Notes what it told, and that it answers.
    pub(super) fn tell(&self, note: impl FnOnce(&mut Containers, Instant)) {
        let mut state = self.lock();
        note(&mut state.containers, Instant::now());
        state.answers += 1;
        if state.error.take().is_some() {
            log::info!("identity: {} answers again", self.name);
        }
    }

    /// Notes that it does not answer; what it told stays.
    pub(super) fn fail(&self, why: &anyhow::Error) {
        let why = clean(format!("{why:#}"));
        let mut state = self.lock();
        // Once per outage: it is asked again and again.
        if state.error.is_none() {
            log::warn!(
                "identity: {} does not answer, labels from it come later: {why}",
                self.name
            );
        }
        state.error = Some(why);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
