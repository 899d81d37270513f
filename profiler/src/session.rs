//! Session: wires the stages of one recording together. The only module that
//! knows them all; it does the work of none.

mod breaks;
mod looks;
mod recorder;
mod tally;

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use tokio::{process::Child, time::sleep_until};

use crate::{
    probe::{Clock, Options, Probes, Targets},
    process::Selection,
    ringbuf::Records,
    symbolize::{self, Naming, SymbolizedWindow, Symbolizer, Taken},
};
pub use breaks::Break;
use recorder::Recorder;
pub use tally::Tally;

/// Most records taken from the ring before looking at anything else.
const DRAIN_LIMIT: usize = 4096;
/// How often processes that should be gone are looked for.
const LIVENESS_EVERY: Duration = Duration::from_millis(500);

/// What to record, validated.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whose stacks.
    pub selection: Selection,
    /// How often, in samples a second and CPU.
    pub rate_hz: u32,
    /// How long; until stopped where `None`.
    pub duration: Option<Duration>,
    /// Whether kernel stacks are wanted.
    pub kernel_stacks: bool,
    /// Whether threads are told apart.
    pub threads: bool,
    /// Whether goroutines are told apart.
    pub goroutines: bool,
    /// Size of the ring buffer, in bytes; a power of two.
    pub ring_bytes: u32,
}

/// Why a recording ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Its time was over.
    Duration,
    /// It was told to stop.
    Asked,
    /// Every process it was to sample has exited.
    TargetsGone,
}

/// A finished recording.
pub struct Recording {
    /// The named stacks.
    pub window: SymbolizedWindow,
    /// How many frames have names.
    pub naming: Naming,
    /// What was counted.
    pub tally: Tally,
    /// Where the stacks broke that are not whole, most first.
    pub breaks: Vec<Break>,
    /// Why it ended.
    pub stopped: Stopped,
    /// What made the sampler tick.
    pub clock: Clock,
    /// Samples in the window.
    pub samples: u64,
}

/// A recording under way.
pub struct Session {
    config: Config,
    probes: Probes,
    records: Records,
    recorder: Recorder<Targets>,
    clock: Option<Clock>,
    start: SystemTime,
    started: Instant,
}

impl Session {
    /// Loads the probes and finds the processes that run already. No sample is
    /// taken yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses the programs.
    pub fn prepare(config: Config) -> Result<Self> {
        let mut probes = Probes::load(&Options {
            kernel_stacks: config.kernel_stacks,
            watch_execs: config.selection.watches_execs(),
            ring_bytes: config.ring_bytes,
        })?;
        let targets = probes.take_targets()?;
        let records = Records::new(probes.take_ring()?)?;
        let mut recorder = Recorder::new(&config, targets);
        // First the news of processes that begin, then those that are there:
        // so none falls in between.
        probes.attach_lifecycle()?;
        recorder.find_running();
        Ok(Self {
            config,
            probes,
            records,
            recorder,
            clock: None,
            start: SystemTime::now(),
            started: Instant::now(),
        })
    }

    /// How many processes are sampled now.
    pub fn processes(&self) -> usize {
        self.recorder.table.pids().count()
    }

    /// How many samples were taken so far.
    pub fn samples(&self) -> u64 {
        self.recorder.window.samples()
    }

    /// Begins to sample.
    ///
    /// # Errors
    /// The kernel refuses the sampling event.
    pub fn start(&mut self) -> Result<()> {
        self.start = SystemTime::now();
        self.started = Instant::now();
        self.clock = Some(self.probes.attach_cpu(self.config.rate_hz)?);
        Ok(())
    }

    /// Samples until the time is over, `stop` resolves, `child` exits or no
    /// process is left. `progress` is called several times a second.
    pub async fn run(
        &mut self,
        stop: impl Future<Output = ()>,
        mut child: Option<&mut Child>,
        mut progress: impl FnMut(&Self),
    ) -> Stopped {
        let deadline = self
            .config
            .duration
            .map(|duration| tokio::time::Instant::from_std(self.started + duration));
        let mut looked = Instant::now();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = self.records.ready() => {}
                () = &mut stop => return Stopped::Asked,
                () = until(deadline) => return Stopped::Duration,
                () = exit(&mut child) => return Stopped::TargetsGone,
            }
            self.drain();
            self.recorder.look_again(Instant::now());
            if looked.elapsed() >= LIVENESS_EVERY {
                looked = Instant::now();
                self.recorder.look_for_exits();
            }
            if self.recorder.is_done() {
                return Stopped::TargetsGone;
            }
            progress(self);
        }
    }

    /// Stops sampling and names what was taken.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn finish(mut self, stopped: Stopped) -> Result<Recording> {
        let duration = self.started.elapsed();
        self.probes.detach_cpu()?;
        while self.drain() == DRAIN_LIMIT {}
        let mut tally = self.recorder.tally;
        tally.kernel = self.probes.counters()?;
        tally.diagnostics = self.probes.diagnostics();
        let taken = Taken {
            event: symbolize::Event::Cpu,
            start: self.start,
            duration,
            period_ns: 1_000_000_000 / u64::from(self.config.rate_hz),
        };
        let mut symbolizer = Symbolizer::default();
        let table = &self.recorder.table;
        let (window, naming) = symbolizer.symbolize(taken, &self.recorder.window, table);
        let breaks = self.recorder.breaks.name(&mut symbolizer, table);
        Ok(Recording {
            window,
            naming,
            tally,
            breaks,
            stopped,
            clock: self.clock.unwrap_or(Clock::CpuClock),
            samples: self.recorder.window.samples(),
        })
    }

    fn drain(&mut self) -> usize {
        let recorder = &mut self.recorder;
        self.records
            .drain(DRAIN_LIMIT, |record| recorder.take(record))
    }
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn exit(child: &mut Option<&mut Child>) {
    match child {
        // The status is kept by the child and read again by its owner.
        Some(child) => drop(child.wait().await),
        None => std::future::pending().await,
    }
}
