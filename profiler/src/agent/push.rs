//! Push: each receiver's queue on disk, and what empties it. One that is away or
//! refuses holds up neither the store nor the others.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use futures::future::join_all;
use tokio::task::JoinHandle;

use super::config::{Config, Receiver as Settings};
use super::log;
use crate::metrics::{self, Pushed};
use crate::profile::Batch;
use crate::profile::push::{self, Label, Protocol};
use crate::sink::{Failure, Receiver, Spool, Uploader};

/// Every receiver.
pub(super) struct Push {
    queues: Vec<Queue>,
    settings: push::Settings,
}

/// A receiver and what waits for it.
struct Queue {
    name: String,
    protocol: Protocol,
    labels: Vec<Label>,
    spool: Arc<Spool>,
    uploader: Arc<Uploader<Receiver>>,
    too_large: AtomicU64,
}

impl Push {
    /// Opens every queue; nothing is sent yet.
    ///
    /// # Errors
    /// A queue cannot be opened, or a file that a receiver needs cannot be read.
    pub(super) fn open(config: &Config) -> Result<Self> {
        let spool = &config.spool.path;
        let receivers = config.push.receivers().iter();
        let queues = receivers.map(|receiver| Queue::open(receiver, spool));
        let queues = queues.collect::<Result<Vec<Queue>>>()?;
        tell_of_others(&spool.join("push"), &queues);
        Ok(Push {
            queues,
            settings: push::Settings {
                cluster: config.cluster.clone(),
                reserved: config.push.label_names(),
            },
        })
    }

    /// Begins to send whatever waits and comes.
    pub(super) fn start(&self) -> Vec<JoinHandle<()>> {
        let start = |queue: &Queue| {
            let uploader = Arc::clone(&queue.uploader);
            tokio::spawn(async move { uploader.run(std::future::pending()).await })
        };
        self.queues.iter().map(start).collect()
    }

    /// Puts a window into every queue. What cannot be put is counted.
    pub(super) fn put(&self, batch: &Batch, metrics: &metrics::Push) {
        if self.queues.is_empty() {
            return;
        }
        let mut failure = None;
        let put = push::profiles(batch, &self.settings, |profile| {
            for queue in &self.queues {
                if let Err(error) = queue.put(profile) {
                    failure.get_or_insert((&queue.name, error));
                }
            }
            Ok(())
        });
        match put {
            Ok(losses) => {
                let cut = |reason: &str, samples: u64| {
                    metrics
                        .labels_cut
                        .with_label_values(&[reason])
                        .inc_by(samples);
                };
                cut("names", losses.cut.labels);
                cut("sets", losses.cut.sets);
                for queue in &self.queues {
                    queue
                        .too_large
                        .fetch_add(losses.too_large, Ordering::Relaxed);
                }
            }
            Err(error) => log::warn("window not pushed", &[("error", &format!("{error:#}"))]),
        }
        // One line a window, however many profiles it is.
        if let Some((receiver, error)) = failure {
            let error = format!("{error:#}");
            log::warn(
                "not all is pushed",
                &[("receiver", receiver), ("error", &error)],
            );
        }
    }

    /// Sends what waits until the time is over, and returns how many profiles are
    /// left, which the next agent finds.
    pub(super) async fn flush(&self, deadline: Instant) -> usize {
        let flush = |queue: &Queue| {
            let uploader = Arc::clone(&queue.uploader);
            async move { uploader.flush(deadline).await }
        };
        let left = join_all(self.queues.iter().map(flush)).await;
        left.iter().sum()
    }

    /// Brings the metrics up to what was counted by now.
    pub(super) fn count(&self, metrics: &metrics::Push) {
        for queue in &self.queues {
            metrics.set(&queue.counted());
        }
    }
}

impl Queue {
    fn open(settings: &Settings, spool: &Path) -> Result<Self> {
        let name = settings.name().to_owned();
        let receiver = Receiver::open(&name, settings.kind, settings.access()?)?;
        let spool = Spool::open(&settings.folder(spool), settings.limit.0)?;
        // There are many, and the store has it all.
        let spool = Arc::new(spool.without_sync());
        if settings.shows_secrets() {
            log::warn(
                "a token crosses the network without TLS",
                &[("receiver", &name)],
            );
        }
        Ok(Queue {
            protocol: settings.kind,
            labels: settings.labels(),
            uploader: Arc::new(Uploader::new(receiver, Arc::clone(&spool))),
            spool,
            too_large: AtomicU64::new(0),
            name,
        })
    }

    fn put(&self, profile: &mut push::Profile<'_>) -> Result<()> {
        let id = profile.new_id();
        let request = profile.request(self.protocol, &self.labels, id)?;
        if request.len() > push::MAX_REQUEST_BYTES {
            self.too_large.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.spool.put(&id.to_string(), &request)
    }

    fn counted(&self) -> Pushed<'_> {
        let uploads = self.uploader.counters();
        let spool = self.spool.counters();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let passing = Failure::ALL.into_iter();
        let passing = passing.filter(|failure| !failure.is_final());
        let failed = passing.map(|failure| uploads.failed(failure)).sum();
        Pushed {
            receiver: &self.name,
            requests: [
                ("success", get(&uploads.uploaded)),
                ("failure", failed),
                ("rejected", uploads.failed(Failure::Rejected)),
            ],
            bytes: get(&uploads.uploaded_bytes),
            dropped: [
                ("rejected", uploads.failed(Failure::Rejected)),
                ("too_old", uploads.failed(Failure::TooOld)),
                ("too_large", get(&self.too_large)),
                ("queue_full", get(&spool.dropped)),
                ("queue_damaged", get(&spool.damaged)),
                ("queue_failed", get(&spool.refused)),
            ],
            queue_bytes: (self.spool.bytes(), self.spool.max_bytes()),
            last_success_seconds: get(&uploads.last_success_seconds),
        }
    }
}

/// Says where profiles lie for receivers that are not in the configuration any
/// more: nobody will ever take them.
fn tell_of_others(folder: &Path, queues: &[Queue]) {
    // Without the folder there are none.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !queues.iter().any(|queue| name == *queue.name) {
            let path = entry.path();
            log::warn(
                "profiles wait for a receiver that is not configured: remove the folder",
                &[("folder", &path.display())],
            );
        }
    }
}
