//! Session: wires the stages of one recording together. The only module that
//! knows them all; it does the work of none.

mod breaks;
mod heap;
mod looks;
mod mem_profile;
mod recorder;
mod tally;
mod window;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use profiler_ebpf::wire::Counter;
use tokio::{process::Child, time::sleep_until};

use crate::{
    probe::{Clock, Counters, Options, Probes, Targets},
    process::{Process, Selection},
    ringbuf::Records,
    symbolize::{self, Naming, SymbolizedWindow, Symbolizer, Taken},
};
pub use breaks::Break;
pub use heap::{HeapFacts, HeapRecording, HeapSession, WithoutHeap};
use recorder::Recorder;
pub use tally::Tally;
pub use window::Finished;

/// Most records taken from the ring before looking at anything else.
const DRAIN_LIMIT: usize = 4096;
/// How often processes that should be gone are looked for.
const LIVENESS_EVERY: Duration = Duration::from_millis(500);
/// Most times that the ring is emptied for a window: records may come faster than
/// they are taken.
const MAX_DRAINS: usize = 64;

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
    /// Whether the pprof labels of goroutines are told apart.
    pub labels: bool,
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
    /// The window has grown as large as it may.
    Full,
}

/// A process that is looked at, and not sampled or not in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// Process id.
    pub pid: u32,
    /// What is missing and why, for people.
    pub why: String,
    /// Whether it is sampled at all.
    pub is_sampled: bool,
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
    /// The kernel side's counts when the window began.
    counted: Counters,
    /// Most bytes that a window may hold.
    max_window_bytes: usize,
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
            counted: Counters::default(),
            max_window_bytes: usize::MAX,
        })
    }

    /// Ends [`Session::run`] with [`Stopped::Full`] once the window holds more
    /// than this.
    pub fn limit_window(&mut self, bytes: usize) {
        self.max_window_bytes = bytes;
    }

    /// The processes that are sampled now.
    pub fn running(&self) -> Vec<Arc<Process>> {
        self.recorder.table.running().cloned().collect()
    }

    /// The processes of which something is missing that one might expect.
    pub fn shortfalls(&self) -> Vec<Shortfall> {
        let of = |(pid, why): (&u32, &String), is_sampled| Shortfall {
            pid: *pid,
            why: why.clone(),
            is_sampled,
        };
        let rejected = self.recorder.rejected.iter();
        let rejected = rejected.filter_map(|(pid, why)| Some(of((pid, why.as_ref()?), false)));
        let off = self.recorder.off.iter().map(|off| of(off, true));
        rejected.chain(off).collect()
    }

    /// How many processes were looked at and are not sampled.
    pub fn rejected(&self) -> usize {
        self.recorder.rejected.len()
    }

    /// Samples a process no more until it runs another program. What was sampled
    /// of it is in the window.
    pub fn exclude(&mut self, pid: u32) {
        self.recorder.exclude(pid);
    }

    /// Lets go of memory that can be had again at the price of some work.
    pub fn release_memory(&self) {
        self.recorder.table.objects.release();
        for process in self.recorder.table.running() {
            process.forget_code();
        }
    }

    /// The largest share of the ring buffer that was in use at once since the
    /// last call, from 0 to 1.
    pub fn take_ring_fill(&mut self) -> f64 {
        self.records.take_peak_bytes() as f64 / f64::from(self.config.ring_bytes)
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
            if self.recorder.window.bytes() > self.max_window_bytes {
                return Stopped::Full;
            }
            if self.recorder.is_done() {
                return Stopped::TargetsGone;
            }
            progress(self);
        }
    }

    /// Takes out what was sampled since the last call, or since the start, and
    /// goes on without a gap. Processes that are gone are forgotten.
    ///
    /// # Errors
    /// The counters cannot be read; the window stays open.
    pub fn rotate(&mut self) -> Result<Finished> {
        let gone = self.recorder.gone();
        for _ in 0..MAX_DRAINS {
            if self.drain() < DRAIN_LIMIT {
                break;
            }
        }
        let finished = self.split_off(&gone, Stopped::Duration)?;
        let told = finished.tally.kernel.get(Counter::EventsRingFull) == 0;
        if self.config.selection.watches_execs() {
            self.recorder.find_missed(told);
        }
        Ok(finished)
    }

    /// Stops sampling and names what was taken.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn finish(self, stopped: Stopped) -> Result<Recording> {
        Ok(self.stop(stopped)?.name(&mut Symbolizer::default()))
    }

    /// Stops sampling. What was taken can be named later.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn stop(mut self, stopped: Stopped) -> Result<Finished> {
        // Before the programs are detached, which takes some milliseconds.
        let duration = self.started.elapsed();
        self.probes.detach_cpu()?;
        while self.drain() == DRAIN_LIMIT {}
        let mut finished = self.split_off(&[], stopped)?;
        finished.taken.duration = duration;
        Ok(finished)
    }

    fn split_off(&mut self, gone: &[u32], stopped: Stopped) -> Result<Finished> {
        let counted = self.probes.counters()?;
        let (window, breaks, processes, mut tally) = self.recorder.split_off(gone);
        tally.kernel = counted.since(&self.counted);
        tally.diagnostics = self.probes.diagnostics();
        self.counted = counted;
        let now = Instant::now();
        let taken = Taken {
            event: symbolize::Event::Cpu,
            // The wall clock may be set; how long it took is not asked of it.
            start: std::mem::replace(&mut self.start, SystemTime::now()),
            duration: now - std::mem::replace(&mut self.started, now),
            period: 1_000_000_000 / u64::from(self.config.rate_hz),
        };
        Ok(Finished {
            taken,
            window,
            breaks,
            processes,
            tally,
            clock: self.clock.unwrap_or(Clock::CpuClock),
            stopped,
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
