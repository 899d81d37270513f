//! A sampler: a session on a thread of its own that hands over a finished window
//! every so often. Knows neither names nor labels nor where windows go.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::SyncSender,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::sync::watch;

use super::{
    config::{Config, Rate},
    memory::Shares,
    state::lock,
};
use crate::{
    process::{Process, Selection},
    session::{self, Finished, Session, Shortfall, Stopped},
};

/// How often a sampler hears of the outside and tells it who runs.
const TICK: Duration = Duration::from_secs(1);
/// Windows that may wait to be named; above, the open one goes on.
pub(super) const MAX_WAITING: usize = 2;

/// A finished window on its way.
pub(super) struct Window {
    pub finished: Finished,
    pub shared: Arc<Shared>,
}

/// What a sampler and its neighbours share.
pub(super) struct Shared {
    /// How often it samples.
    pub rate: Rate,
    snapshot: Mutex<Snapshot>,
    exclude: Mutex<Vec<u32>>,
    /// Windows handed over by all samplers and not taken yet.
    waiting: Arc<AtomicUsize>,
    /// Windows that went on past their time.
    pub delayed: AtomicUsize,
}

/// Who is sampled, and who is not.
#[derive(Clone, Default)]
pub(super) struct Snapshot {
    pub running: Vec<Arc<Process>>,
    pub shortfalls: Vec<Shortfall>,
    pub rejected: usize,
    /// Largest share of the ring in use since the last window.
    pub ring_fill: f64,
}

impl Shared {
    pub(super) fn snapshot(&self) -> Snapshot {
        lock(&self.snapshot).clone()
    }

    /// Asks for these pids to be sampled no more.
    pub(super) fn exclude(&self, pids: &[u32]) {
        lock(&self.exclude).extend_from_slice(pids);
    }

    /// A window was taken.
    pub(super) fn taken(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A sampler that runs.
pub(super) struct Sampler {
    pub shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<()>>,
}

impl Sampler {
    /// Starts a sampler, and returns once it samples.
    pub(super) fn start(
        config: &Config,
        rate: Rate,
        windows: SyncSender<Window>,
        waiting: Arc<AtomicUsize>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            rate,
            snapshot: Mutex::default(),
            exclude: Mutex::default(),
            waiting,
            delayed: AtomicUsize::new(0),
        });
        let (stop, stopping) = watch::channel(false);
        let (started, is_started) = std::sync::mpsc::sync_channel(1);
        let memory = Shares::of(config);
        let work = Work {
            settings: session::Config {
                selection: Selection::All,
                rate_hz: rate.0,
                duration: None,
                kernel_stacks: config.kernel,
                threads: config.threads,
                goroutines: config.goroutines,
                labels: config.labels,
                ring_bytes: memory.ring_bytes(),
            },
            flush: config.flush.0,
            memory,
            shared: Arc::clone(&shared),
            stopping,
            windows,
        };
        let thread = std::thread::Builder::new()
            .name(format!("goprof-{}hz", rate.0))
            .spawn(move || work.run(&started))
            .context("start a thread to sample on")?;
        // Nothing comes where the thread failed before it said anything.
        match is_started.recv() {
            Ok(()) => Ok(Self {
                shared,
                stop,
                thread,
            }),
            Err(_) => Err(match thread.join() {
                Ok(Err(error)) => error,
                _ => anyhow::anyhow!("the sampler ended at once"),
            }),
        }
    }

    /// Whether it has ended, by itself or when told to.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Asks it to hand over the open window and end.
    pub(super) fn ask_to_stop(&self) {
        let _ = self.stop.send(true);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Why it could not go on.
    pub(super) fn join(self) -> Result<()> {
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| Err(anyhow::anyhow!("the sampler failed in an unforeseen way")))
    }
}

/// What the thread has.
struct Work {
    settings: session::Config,
    flush: Duration,
    memory: Shares,
    shared: Arc<Shared>,
    stopping: watch::Receiver<bool>,
    windows: SyncSender<Window>,
}

impl Work {
    fn run(self, started: &SyncSender<()>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime to sample on")?;
        runtime.block_on(self.sample(started))
    }

    async fn sample(mut self, started: &SyncSender<()>) -> Result<()> {
        let mut session = Session::prepare(self.settings.clone())?;
        session.limit_memory(self.memory.limit_bytes, self.memory.window_bytes());
        session.start()?;
        self.tell(&mut session);
        let _ = started.send(());
        let mut due = Instant::now() + self.flush;
        while !*self.stopping.borrow() {
            let until = tokio::time::Instant::from_std(due.min(Instant::now() + TICK));
            let pause = async {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    // Its sender gone means the same.
                    _ = self.stopping.changed() => {}
                }
            };
            let stopped = session.run(pause, None, |_| {}).await;
            self.listen(&mut session);
            if stopped == Stopped::Full || Instant::now() >= due {
                if self.may_hand_over(stopped) {
                    let fill = session.take_ring_fill();
                    self.hand_over(session.rotate()?)?;
                    lock(&self.shared.snapshot).ring_fill = fill;
                    due = Instant::now() + self.flush;
                } else {
                    due = Instant::now() + TICK;
                }
            }
            self.tell(&mut session);
        }
        self.hand_over(session.stop(Stopped::Asked)?)
    }

    /// Whether there is room for the window; a full one waits for it.
    fn may_hand_over(&self, stopped: Stopped) -> bool {
        let has_room = self.shared.waiting.load(Ordering::Relaxed) < MAX_WAITING;
        if !has_room {
            self.shared.delayed.fetch_add(1, Ordering::Relaxed);
        }
        has_room || stopped == Stopped::Full
    }

    fn hand_over(&self, finished: Finished) -> Result<()> {
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let window = Window {
            finished,
            shared: Arc::clone(&self.shared),
        };
        let sent = self.windows.send(window);
        sent.map_err(|_| anyhow::anyhow!("nobody takes windows any more"))
    }

    fn listen(&self, session: &mut Session) {
        for pid in std::mem::take(&mut *lock(&self.shared.exclude)) {
            session.exclude(pid);
        }
    }

    fn tell(&self, session: &mut Session) {
        let mut snapshot = lock(&self.shared.snapshot);
        *snapshot = Snapshot {
            running: session.running(),
            shortfalls: session.shortfalls(),
            rejected: session.rejected(),
            ring_fill: snapshot.ring_fill,
        };
    }
}
