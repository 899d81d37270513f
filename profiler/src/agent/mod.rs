//! The agent: samplers, the publisher, the uploader and the HTTP server, started
//! together, kept going and stopped together. Does the work of none.

mod account;
pub mod config;
mod kind;
pub mod log;
mod memory;
mod publisher;
mod push;
mod readings;
mod runtimes;
mod sampler;
mod server;
mod snapshots;
mod state;

use std::{
    sync::{
        Arc, Mutex,
        atomic::AtomicUsize,
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    doctor,
    identity::{Identifier, Options},
    sink::{Spool, Store, Uploader},
};
use config::Config;
use kind::Kind;
use publisher::Samplers;
use push::Push;
use sampler::{MAX_WAITING, Prepared, Sampler, Window};
pub use server::{Asked, MAX_SECONDS, understand};
use server::{Refresher, Server};
use state::{State, lock};

/// How long there is to write what is open after the signal to stop; below the
/// ten seconds that docker and others give.
const STOP_WITHIN: Duration = Duration::from_secs(9);
/// Of that, what is kept for uploads.
const UPLOAD_WITHIN: Duration = Duration::from_secs(3);
/// How often the samplers' health is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs until told to stop. `read` gives the configuration anew when asked to
/// reload it.
///
/// # Errors
/// What keeps it from starting, or from going on.
pub async fn run(config: Config, read: impl Fn() -> Result<Config, String>) -> Result<()> {
    for rate in config.rates() {
        doctor::require(rate.0)?;
    }
    for line in doctor::shortfalls(config.kernel) {
        log::warn("not all can be recorded", &[("what", &line)]);
    }
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    let mut hangup = signal(SignalKind::hangup()).context("listen for signals")?;
    let mut agent = Agent::start(config).await?;
    let failure = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = hangup.recv() => {
                if let Err(error) = agent.reload(&read).await {
                    break Some(error);
                }
            }
            () = tokio::time::sleep(LOOK_EVERY) => {
                if let Some(error) = agent.failure() {
                    break Some(error);
                }
            }
        }
    };
    agent.stop().await;
    failure.map_or(Ok(()), Err)
}

/// What runs.
struct Agent {
    state: Arc<State>,
    samplers: Vec<Sampler>,
    /// The same, for the publisher.
    shared: Samplers,
    windows: SyncSender<Window>,
    waiting: Arc<AtomicUsize>,
    publisher: JoinHandle<()>,
    uploader: Arc<Uploader>,
    /// To the store, and to each receiver.
    uploading: Vec<tokio::task::JoinHandle<()>>,
    serving: tokio::task::JoinHandle<()>,
    /// Reads the server's certificates and token again.
    refresher: Refresher,
}

impl Agent {
    async fn start(config: Config) -> Result<Self> {
        let listener = TcpListener::bind(config.http.listen).await;
        let listener = listener.with_context(|| format!("listen on {}", config.http.listen))?;
        let store = Store::open(&config.store.url)?;
        let spool = Arc::new(Spool::open(&config.spool.path, config.spool.limit.0)?);
        let uploader = Arc::new(Uploader::new(store, Arc::clone(&spool)));
        let identifier = Identifier::new(Options {
            node: Some(config.node.clone()),
            ..Options::from_environment()
        })?;
        let push = Push::open(&config)?;
        let config = Arc::new(config);
        let state = State::new(
            Arc::clone(&config),
            identifier,
            spool,
            uploader.counters(),
            push,
        )?;
        let state = Arc::new(state);
        let address = listener.local_addr().context("listen")?;
        let server = Server::new(&config.http, listener, Arc::clone(&state))?;
        let (windows, finished) = sync_channel(MAX_WAITING);
        let waiting = Arc::new(AtomicUsize::new(0));
        let prepared = prepare_samplers(&config, &Kind::all(&config), &windows, &waiting)?;
        let samplers: Result<Vec<_>> = prepared.into_iter().map(Prepared::begin).collect();
        let samplers = samplers?;
        let shared = Samplers::new(Mutex::new(shares(&samplers)));
        let publisher = {
            let (state, shared) = (Arc::clone(&state), Arc::clone(&shared));
            let publish = move || publisher::run(&state, &shared, &finished);
            let thread = std::thread::Builder::new().name("goprof-publish".into());
            thread.spawn(publish).context("start a thread to publish")?
        };
        let mut uploading = state.push.start();
        uploading.push({
            let uploader = Arc::clone(&uploader);
            tokio::spawn(async move { uploader.run(std::future::pending()).await })
        });
        let refresher = server.refresher();
        let serving = tokio::spawn(server.run());
        state.set_ready(true);
        log::info(
            "agent started",
            &[
                ("version", &env!("CARGO_PKG_VERSION")),
                ("listen", &address),
                ("store", &config.store.url),
                ("flush", &config.flush),
                ("samplers", &samplers.len()),
                ("receivers", &config.push.receivers().len()),
            ],
        );
        Ok(Self {
            state,
            samplers,
            shared,
            windows,
            waiting,
            publisher,
            uploader,
            uploading,
            serving,
            refresher,
        })
    }

    /// Takes over a new configuration. One that is wrong changes nothing.
    ///
    /// # Errors
    /// Nothing is sampled any more, not even as before.
    async fn reload(&mut self, read: &impl Fn() -> Result<Config, String>) -> Result<()> {
        self.refresher.refresh();
        let reloads = &self.state.metrics.reloads;
        let before = self.state.config();
        let config = match read().and_then(|config| check(&before, config)) {
            Ok(config) => config,
            Err(why) => {
                reloads.note(false);
                log::warn("configuration not reloaded", &[("error", &why)]);
                return Ok(());
            }
        };
        if config == *before {
            reloads.note(true);
            log::info("configuration reloaded", &[("changed", &false)]);
            return Ok(());
        }
        let config = Arc::new(config);
        let (now, is_taken_over) = match self.replace_samplers(&config).await {
            Ok(()) => {
                log::info("configuration reloaded", &[("changed", &true)]);
                (config, true)
            }
            Err(error) => {
                let error = format!("{error:#}");
                log::warn("configuration not reloaded", &[("error", &error)]);
                self.replace_samplers(&before).await?;
                (before, false)
            }
        };
        *lock(&self.shared) = shares(&self.samplers);
        self.state.set_config(now);
        self.state.metrics.reloads.note(is_taken_over);
        Ok(())
    }

    /// Has the samplers of `config` run: those that do for it go on, and others
    /// begin at the moment at which the old end.
    async fn replace_samplers(&mut self, config: &Arc<Config>) -> Result<()> {
        let stays = |sampler: &Sampler| sampler.does_for(config);
        let kept = self.samplers.iter().filter(|sampler| stays(sampler));
        let kept: Vec<Kind> = kept.map(|sampler| sampler.shared.kind).collect();
        let mut new = Kind::all(config);
        new.retain(|kind| !kept.contains(kind));
        let prepared = prepare_samplers(config, &new, &self.windows, &self.waiting)?;
        let samplers = std::mem::take(&mut self.samplers);
        let (kept, over): (Vec<_>, Vec<_>) = samplers.into_iter().partition(stays);
        kept.iter().for_each(|sampler| sampler.serve(config));
        self.samplers = kept;
        let swap = move || {
            over.iter().for_each(Sampler::ask_to_stop);
            over.iter().for_each(Sampler::wait_until_still);
            let begun: Result<Vec<_>> = prepared.into_iter().map(Prepared::begin).collect();
            (begun, over)
        };
        let (begun, over) = tokio::task::spawn_blocking(swap)
            .await
            .context("replace the samplers")?;
        let begun = begun.map(|begun| self.samplers.extend(begun));
        stop_samplers(over).await;
        begun
    }

    /// Why a part has ended that should go on.
    fn failure(&mut self) -> Option<anyhow::Error> {
        if let Some(index) = self.samplers.iter().position(Sampler::has_ended) {
            let ended = self.samplers.swap_remove(index).join();
            let error = ended.err();
            return Some(error.unwrap_or_else(|| anyhow::anyhow!("a sampler ended by itself")));
        }
        if self.publisher.is_finished() {
            return Some(anyhow::anyhow!("the publisher failed in an unforeseen way"));
        }
        self.serving
            .is_finished()
            .then(|| anyhow::anyhow!("the HTTP server ended by itself"))
    }

    /// Writes what is open, and sends what time allows.
    async fn stop(self) {
        let begun = Instant::now();
        let deadline = begun + STOP_WITHIN;
        self.state.set_ready(false);
        log::info("stopping", &[]);
        let Self {
            samplers,
            windows,
            publisher,
            ..
        } = self;
        let spooled = async {
            stop_samplers(samplers).await;
            // The publisher ends once it has taken all.
            drop(windows);
            let _ = tokio::task::spawn_blocking(move || publisher.join()).await;
        };
        let until = deadline - UPLOAD_WITHIN;
        if tokio::time::timeout_at(until.into(), spooled)
            .await
            .is_err()
        {
            log::warn("not all windows could be written in time", &[]);
        }
        self.uploading.iter().for_each(|task| task.abort());
        let store = self.uploader.flush(deadline);
        // Receivers are not worth waiting for as long as that.
        let push_deadline = deadline.min(Instant::now() + UPLOAD_WITHIN);
        let push = self.state.push.flush(push_deadline);
        let (left, left_to_push) = tokio::join!(store, push);
        self.serving.abort();
        log::info(
            "stopped",
            &[
                ("objects_left_in_spool", &left),
                ("profiles_left_to_push", &left_to_push),
                ("seconds", &begun.elapsed().as_secs_f32()),
            ],
        );
    }
}

/// Has every sampler hand over its window and end.
async fn stop_samplers(samplers: Vec<Sampler>) {
    samplers.iter().for_each(Sampler::ask_to_stop);
    let join = move || {
        for sampler in samplers {
            if let Err(error) = sampler.join() {
                log::warn("a sampler failed", &[("error", &format!("{error:#}"))]);
            }
        }
    };
    let _ = tokio::task::spawn_blocking(join).await;
}

/// Starts samplers as far as it goes without sampling.
fn prepare_samplers(
    config: &Arc<Config>,
    kinds: &[Kind],
    windows: &SyncSender<Window>,
    waiting: &Arc<AtomicUsize>,
) -> Result<Vec<Prepared>> {
    if config.rates().is_empty() {
        bail!("no rule samples CPU time, by which processes are found");
    }
    let prepare =
        |kind: &Kind| Sampler::prepare(config, *kind, windows.clone(), Arc::clone(waiting));
    kinds.iter().map(prepare).collect()
}

fn shares(samplers: &[Sampler]) -> Vec<Arc<sampler::Shared>> {
    samplers.iter().map(|s| Arc::clone(&s.shared)).collect()
}

/// A configuration that can take the place of `before`; what only a restart can
/// change stays as it was, and is said.
fn check(before: &Config, mut config: Config) -> Result<Config, String> {
    for rate in config.rates() {
        doctor::require(rate.0).map_err(|error| format!("{error:#}"))?;
    }
    let mut kept = Vec::new();
    macro_rules! keep {
        ($($key:ident)*) => {$(
            if config.$key != before.$key {
                config.$key = before.$key.clone();
                kept.push(stringify!($key));
            }
        )*};
    }
    keep!(cluster node http store spool push);
    if !kept.is_empty() {
        let kept = kept.join(",");
        log::warn("a restart is needed for some changes", &[("keys", &kept)]);
    }
    Ok(config)
}
