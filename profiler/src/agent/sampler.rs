//! A sampler: a session on a thread of its own that hands over a finished window
//! every so often. Knows neither names nor labels nor where windows go.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::sync::watch;

use super::{config::Config, kind::Kind, memory::Shares, state::lock};
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
    /// What it samples.
    pub kind: Kind,
    /// By which its windows are judged.
    config: Mutex<Arc<Config>>,
    snapshot: Mutex<Snapshot>,
    exclude: Mutex<Vec<u32>>,
    probe: Mutex<Vec<u32>>,
    reconsider: AtomicBool,
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
    /// The configuration by which its windows are judged: where another took its
    /// place that would have it sample otherwise, still its own.
    pub(super) fn config(&self) -> Arc<Config> {
        Arc::clone(&lock(&self.config))
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        lock(&self.snapshot).clone()
    }

    /// Asks for these pids to be sampled no more.
    pub(super) fn exclude(&self, pids: &[u32]) {
        lock(&self.exclude).extend_from_slice(pids);
    }

    /// Allows probes on these pids.
    pub(super) fn probe(&self, pids: &[u32]) {
        lock(&self.probe).extend_from_slice(pids);
    }

    /// Asks for those that are excluded to be looked at again.
    pub(super) fn reconsider(&self) {
        lock(&self.exclude).clear();
        self.reconsider.store(true, Ordering::Relaxed);
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
    /// Ends once it samples no more.
    still: Receiver<Infallible>,
    thread: JoinHandle<Result<()>>,
}

/// A sampler that has only to begin. Dropped, it never does.
pub(super) struct Prepared {
    sampler: Sampler,
    begin: SyncSender<()>,
    told: Receiver<()>,
}

impl Prepared {
    /// Begins to sample, and returns once it does.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn begin(self) -> Result<Sampler> {
        // Nothing comes where the thread fails.
        match self.begin.send(()).is_ok() && self.told.recv().is_ok() {
            true => Ok(self.sampler),
            false => Err(self.sampler.failure()),
        }
    }
}

impl Sampler {
    /// Starts a sampler as far as it goes without sampling.
    ///
    /// # Errors
    /// The kernel refuses its programs.
    pub(super) fn prepare(
        config: &Arc<Config>,
        kind: Kind,
        windows: SyncSender<Window>,
        waiting: Arc<AtomicUsize>,
    ) -> Result<Prepared> {
        let shared = Arc::new(Shared {
            kind,
            config: Mutex::new(Arc::clone(config)),
            snapshot: Mutex::default(),
            exclude: Mutex::default(),
            probe: Mutex::default(),
            reconsider: AtomicBool::new(false),
            waiting,
            delayed: AtomicUsize::new(0),
        });
        let (stop, stopping) = watch::channel(false);
        let (tell, told) = sync_channel(1);
        let (begin, begins) = sync_channel(1);
        let (moving, still) = sync_channel(0);
        let memory = Shares::of(config);
        let work = Work {
            settings: session::Config {
                selection: Selection::All,
                events: kind.events(),
                rate_hz: kind.rate_hz().unwrap_or(config.rate_hz.0),
                duration: None,
                kernel_stacks: config.kernel,
                threads: config.threads,
                goroutines: config.goroutines,
                labels: config.labels,
                kernel_threads: false,
                idle: false,
                combine: false,
                ring_bytes: memory.ring_bytes(),
                probes: kind.probes(),
            },
            flush: config.flush.0,
            memory,
            shared: Arc::clone(&shared),
            stopping,
            windows,
        };
        let thread = std::thread::Builder::new()
            .name(match kind.rate_hz() {
                Some(rate_hz) => format!("goprof-{rate_hz}hz"),
                None => "goprof-waits".to_owned(),
            })
            .spawn(move || work.run(&tell, &begins, moving))
            .context("start a thread to sample on")?;
        let sampler = Self {
            shared,
            stop,
            still,
            thread,
        };
        // Nothing comes where the thread failed before it said anything.
        match told.recv() {
            Ok(()) => Ok(Prepared {
                sampler,
                begin,
                told,
            }),
            Err(_) => Err(sampler.failure()),
        }
    }

    /// Why it ended at once.
    fn failure(self) -> anyhow::Error {
        let ended = self.join().err();
        ended.unwrap_or_else(|| anyhow::anyhow!("the sampler ended at once"))
    }

    /// Whether it does for a configuration as it is: what it samples is
    /// wanted, and all but what it knows nothing of is the same.
    pub(super) fn does_for(&self, config: &Config) -> bool {
        let own = self.shared.config();
        let as_far_as_known = Config {
            rules: own.rules.clone(),
            metrics: own.metrics.clone(),
            ..config.clone()
        };
        Kind::all(config).contains(&self.shared.kind) && as_far_as_known == *own
    }

    /// Goes on for another configuration.
    pub(super) fn serve(&self, config: &Arc<Config>) {
        *lock(&self.shared.config) = Arc::clone(config);
    }

    /// Whether it has ended, by itself or when told to.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Asks it to hand over the open window and end.
    pub(super) fn ask_to_stop(&self) {
        let _ = self.stop.send(true);
    }

    /// Waits, after it was asked to stop, until it samples no more. What it has
    /// is handed over after.
    pub(super) fn wait_until_still(&self) {
        let _ = self.still.recv();
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
    fn run(
        self,
        tell: &SyncSender<()>,
        begins: &Receiver<()>,
        moving: SyncSender<Infallible>,
    ) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime to sample on")?;
        // What the session needs of a runtime is there from here on.
        let _inside = runtime.enter();
        let limit = Some(self.memory.of_session());
        let session = Session::prepare_within(self.settings.clone(), limit)?;
        let _ = tell.send(());
        match begins.recv() {
            Ok(()) => runtime.block_on(self.sample(session, tell, moving)),
            Err(_) => Ok(()),
        }
    }

    async fn sample(
        mut self,
        mut session: Session,
        tell: &SyncSender<()>,
        moving: SyncSender<Infallible>,
    ) -> Result<()> {
        session.start()?;
        self.tell(&mut session);
        let _ = tell.send(());
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
        let finished = session.stop(Stopped::Asked)?;
        drop(moving);
        self.hand_over(finished)
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
        if self.shared.reconsider.swap(false, Ordering::Relaxed) {
            session.reconsider();
        }
        for pid in std::mem::take(&mut *lock(&self.shared.exclude)) {
            session.exclude(pid);
        }
        for pid in std::mem::take(&mut *lock(&self.shared.probe)) {
            session.probe(pid);
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
