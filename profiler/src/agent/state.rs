//! What the parts of the agent share: the configuration in force, the metrics,
//! and who the processes are. Holds; decides nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Result;
use prometheus::IntCounter;
use serde::Serialize;

use super::{config::Config, push::Push};
use crate::{
    identity::Identifier,
    metrics::{Metrics, Targets},
    sink::{Failure, Spool, UploadCounters},
};

/// What the parts share.
pub(super) struct State {
    config: Mutex<Arc<Config>>,
    pub metrics: Metrics,
    pub identifier: Identifier,
    /// What each service uses.
    pub usage: Mutex<Targets>,
    /// Who runs.
    pub view: Mutex<View>,
    pub spool: Arc<Spool>,
    pub uploads: Arc<UploadCounters>,
    pub push: Push,
    is_ready: AtomicBool,
}

/// Who runs, as `/targets` shows it.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct View {
    /// Go processes, and programs that cannot be read.
    pub processes: Vec<ProcessView>,
    /// Processes that are not Go.
    pub other_processes: usize,
    /// How those do that know of containers.
    pub sources: Vec<SourceView>,
}

/// A source of labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct SourceView {
    pub name: &'static str,
    pub has_answered: bool,
    pub error: Option<String>,
    pub containers: usize,
}

/// A process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct ProcessView {
    pub pid: u32,
    pub comm: String,
    pub exe: String,
    pub labels: BTreeMap<&'static str, String>,
    /// Whether labels may come that are not known yet.
    pub is_partial: bool,
    /// What is taken of it.
    pub collected: Vec<Collected>,
    /// What is not, and why.
    pub notes: Vec<String>,
}

/// An event that is collected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Collected {
    pub event: &'static str,
    /// How often it is sampled; nothing where it is read once a window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_hz: Option<u32>,
}

impl State {
    pub(super) fn new(
        config: Arc<Config>,
        identifier: Identifier,
        spool: Arc<Spool>,
        uploads: Arc<UploadCounters>,
        push: Push,
    ) -> Result<Self> {
        Ok(Self {
            config: Mutex::new(config),
            metrics: Metrics::new()?,
            identifier,
            usage: Mutex::default(),
            view: Mutex::default(),
            spool,
            uploads,
            push,
            is_ready: AtomicBool::new(false),
        })
    }

    pub(super) fn config(&self) -> Arc<Config> {
        Arc::clone(&lock(&self.config))
    }

    pub(super) fn set_config(&self, config: Arc<Config>) {
        *lock(&self.config) = config;
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    pub(super) fn set_ready(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Ordering::Relaxed);
    }

    /// The metrics as text, with what the spool and the uploads count by now.
    ///
    /// # Errors
    /// A metric cannot be written.
    pub(super) fn metrics_text(&self) -> Result<String> {
        let metrics = &self.metrics;
        let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.spool_bytes.set(whole(self.spool.bytes()));
        metrics.spool_limit_bytes.set(whole(self.spool.max_bytes()));
        let spool = self.spool.counters();
        let dropped = [&spool.dropped, &spool.damaged, &spool.refused];
        raise(
            &metrics.spool_dropped,
            dropped
                .map(|count| count.load(Ordering::Relaxed))
                .iter()
                .sum(),
        );
        let uploads = &self.uploads;
        let failed = Failure::ALL.map(|failure| uploads.failed(failure));
        let result = |result: &str| metrics.uploads.with_label_values(&[result]);
        raise(&result("failure"), failed.iter().sum());
        raise(&result("success"), uploads.uploaded.load(Ordering::Relaxed));
        raise(
            &metrics.upload_bytes,
            uploads.uploaded_bytes.load(Ordering::Relaxed),
        );
        let last = uploads.last_success_seconds.load(Ordering::Relaxed);
        metrics.last_success.set(last as f64);
        self.push.count(&metrics.push);
        let config = self.config();
        metrics.memory_limit_bytes.set(whole(config.memory_limit.0));
        metrics.text(&lock(&self.usage), config.metrics.max_targets)
    }
}

/// Brings a counter up to what was counted elsewhere.
fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
