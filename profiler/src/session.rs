//! Session: wires the stages of one recording together. The only module that
//! knows them all; it does the work of none.

mod allocated;
mod allocation_bursts;
mod allocation_facts;
mod allocation_totals;
mod begun;
mod block_io;
mod breaks;
mod carry;
mod combine;
mod config;
#[cfg(test)]
mod fake;
pub mod goroutines;
mod heap;
mod heap_buckets;
mod heap_notes;
mod idle;
mod latency;
pub mod leaks;
mod looks;
mod measured;
mod mem_profile;
mod parked;
mod probed;
mod probing;
mod recorder;
mod snapshots;
mod tally;
mod threads;
mod waits;
mod window;
mod windows;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use profiler_ebpf::wire::Counter;
use tokio::{process::Child, time::sleep_until};

use crate::{
    memory::Watch,
    probe::{Clock, Counters, Due, Options, Probes, Targets},
    process::Process,
    ringbuf::Records,
    symbolize::{self, Naming, SymbolizedWindow, Symbolizer, Taken},
};
pub use allocation_facts::{AllocSource, AllocationFacts, SeenAt};
use begun::Begun;
pub use breaks::Break;
pub use config::{Config, MemoryLimit, SAMPLED};
pub use heap::{HeapFacts, HeapRecording, HeapSession, WithoutHeap};
pub use heap_notes::programs;
pub use idle::Idle;
pub use latency::Latency;
pub use measured::STATE as THREAD_STATE;
pub use probed::ProbeFacts;
use probing::Probing;
pub use probing::{At, ProbeConfig, takes_probes};
use recorder::Recorder;
pub use snapshots::{
    SnapshotConfig, SnapshotFacts, SnapshotReading, SnapshotRecording, SnapshotSession, Unread,
};
pub use tally::Tally;
pub use window::Finished;

/// Most records taken from the ring before looking at anything else.
const DRAIN_LIMIT: usize = 4096;
/// How often processes that should be gone are looked for.
const LIVENESS_EVERY: Duration = Duration::from_millis(500);
/// How long probes that stay on may take to be put on until the recording begins all the
/// same: on a busy machine it is some tenths of a second.
const LONGEST_START: Duration = Duration::from_secs(5);

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

/// What was recorded of one event.
pub struct Named {
    /// The named stacks.
    pub window: SymbolizedWindow,
    /// How many frames have names.
    pub naming: Naming,
    /// Samples in the window.
    pub samples: u64,
    /// What was left out of time off the CPU.
    pub idle: Idle,
}

/// A finished recording.
pub struct Recording {
    /// One for each event, in the order of [`symbolize::Event`].
    pub named: Vec<Named>,
    /// What was counted.
    pub tally: Tally,
    /// Where the stacks broke that are not whole, most first.
    pub breaks: Vec<Break>,
    /// Why it ended.
    pub stopped: Stopped,
    /// What made the sampler tick, where CPU time was sampled.
    pub clock: Option<Clock>,
}

impl Recording {
    /// Samples in all windows.
    pub fn samples(&self) -> u64 {
        self.named.iter().map(|named| named.samples).sum()
    }
}

/// A recording under way.
pub struct Session {
    config: Config,
    probes: Probes,
    records: Records,
    recorder: Recorder<Targets>,
    clock: Option<Clock>,
    begun: Begun,
    /// The kernel side's counts when the window began.
    counted: Counters,
    /// Ticks that were due by then, and those that had been missed.
    ticks: (u64, u64),
    /// Times that requests to block devices could not be followed by then.
    io_missed: u64,
    /// Most bytes that a window may take while it is written.
    max_window_bytes: usize,
}

impl Session {
    /// Loads the probes and finds the processes that run already. No sample is
    /// taken yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses the programs.
    pub fn prepare(config: Config) -> Result<Self> {
        Self::prepare_within(config, None)
    }

    /// The same within a limit of memory.
    ///
    /// # Errors
    /// The kernel refuses the programs.
    pub fn prepare_within(config: Config, limit: Option<MemoryLimit>) -> Result<Self> {
        let mut probes = Probes::load(&Options {
            kernel_stacks: config.kernel_stacks,
            watch_execs: config.selection.watches_execs(),
            ring_bytes: config.ring_bytes,
            cpu: config.events.contains(&symbolize::Event::Cpu),
            off_cpu: config.events.contains(&symbolize::Event::OffCpu),
            block_io: config.events.contains(&symbolize::Event::Io),
            kernel_io: config.kernel_threads,
        })?;
        let targets = probes.take_targets()?;
        let records = Records::new(probes.take_ring()?)?;
        let mut recorder = Recorder::new(&config, targets);
        recorder.probing = Probing::prepare(&mut probes, &config.events, config.probes)?;
        let probing = recorder.probing.as_mut();
        if let Some(line) = probing.and_then(|probing| probing.not_measured.take()) {
            recorder.tally.off.insert(line);
        }
        recorder.watch = limit.map(|limit| Watch::new(limit.process_bytes));
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
            begun: Begun::now(),
            counted: Counters::default(),
            ticks: (0, 0),
            io_missed: 0,
            max_window_bytes: limit.map_or(usize::MAX, |limit| limit.window_bytes),
        })
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

    /// Allows probes on a process, where they are only on those that are told.
    pub fn probe(&mut self, pid: u32) {
        if let Some(probing) = &mut self.recorder.probing {
            probing.allow(pid);
        }
    }

    /// Looks again at the processes that were excluded.
    pub fn reconsider(&mut self) {
        self.recorder.reconsider();
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
        self.recorder.windows.samples()
    }

    /// Begins to sample.
    ///
    /// # Errors
    /// The kernel refuses the sampling event.
    pub fn start(&mut self) -> Result<()> {
        for event in &self.config.events.clone() {
            match event {
                symbolize::Event::Cpu => {
                    self.clock = Some(self.probes.attach_cpu(self.config.rate_hz)?);
                }
                symbolize::Event::OffCpu => self.start_off_cpu()?,
                symbolize::Event::Io => self.probes.attach_block_io()?,
                event if takes_probes(*event) => {}
                other => anyhow::bail!("a session records no {}", other.name()),
            }
        }
        self.recorder.follow();
        self.recorder.wait_open(LONGEST_START);
        // Not before every CPU is sampled: a short recording would be over.
        self.begun = Begun::now();
        self.recorder.span.begin_ns = monotonic_ns();
        Ok(())
    }

    /// First the news of threads, then those that are there: so none falls in between.
    fn start_off_cpu(&mut self) -> Result<()> {
        self.probes.attach_off_cpu()?;
        let mut threads = self.probes.take_threads()?;
        self.recorder
            .follow_threads(|tid, thread| threads.add(tid, thread));
        Ok(())
    }

    /// Samples until the time is over, `stop` resolves, `child` exits or no
    /// process is left. `progress` is called twice a second or more.
    pub async fn run(
        &mut self,
        stop: impl Future<Output = ()>,
        mut child: Option<&mut Child>,
        mut progress: impl FnMut(&Self),
    ) -> Stopped {
        let deadline = self
            .config
            .duration
            .map(|duration| tokio::time::Instant::from_std(self.begun.at + duration));
        let mut looked = Instant::now();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = self.records.ready() => {}
                () = &mut stop => return Stopped::Asked,
                () = until(deadline) => return Stopped::Duration,
                () = exit(&mut child) => return Stopped::TargetsGone,
            }
            let is_due = looked.elapsed() >= LIVENESS_EVERY;
            let over = self.recorder.windows_over();
            let exited = match is_due {
                true => self.recorder.exited(),
                false => Vec::new(),
            };
            if exited.is_empty() && over.is_empty() {
                self.drain();
            } else {
                self.drain_all();
            }
            self.close_windows(over);
            self.recorder.look_again(Instant::now());
            if is_due {
                looked = Instant::now();
                self.recorder.forget_exited(&exited);
                self.recorder.follow();
                self.follow_cpus();
            }
            if self.is_full() {
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
        self.follow_cpus();
        let due = self.probes.ticks_due();
        let over = self.recorder.windows_over();
        self.note_missed_io();
        self.drain_all();
        self.close_windows(over);
        let finished = self.split_off(&gone, due, None)?;
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
        let duration = self.begun.at.elapsed();
        self.follow_cpus();
        self.recorder.span.end_ns = monotonic_ns();
        self.recorder.end_probing();
        let due = self.probes.ticks_due();
        // Before they are detached, which forgets it.
        self.note_missed_io();
        self.probes.detach()?;
        let over = self.recorder.stop_probing();
        while self.drain() == DRAIN_LIMIT {}
        self.close_windows(over);
        let mut finished = self.split_off(&[], due, Some(stopped))?;
        for (taken, _) in &mut finished.windows {
            taken.duration = duration;
        }
        Ok(finished)
    }

    /// Counts what was seen in windows of probes that are over.
    fn close_windows(&mut self, over: Vec<parked::Over>) {
        if !over.is_empty() {
            let counted = self.probes.counters();
            let full = counted.map_or(0, |counted| counted.get(Counter::WaitsFull));
            self.recorder.close_windows(over, full);
        }
    }

    fn note_missed_io(&mut self) {
        let missed = self.probes.block_io_missed();
        self.recorder.tally.io_missed += missed.saturating_sub(self.io_missed);
        self.io_missed = missed;
    }

    /// `ticks_due` is what was due a moment ago.
    fn split_off(
        &mut self,
        gone: &[u32],
        ticks_due: Option<Due>,
        stopped: Option<Stopped>,
    ) -> Result<Finished> {
        let counted = self.probes.counters()?;
        let end_ns = self.recorder.span.end_ns.min(monotonic_ns());
        self.recorder.split_waits(end_ns, stopped.is_some());
        self.recorder.give_up_io(end_ns, stopped.is_some());
        let (windows, breaks, processes, mut tally) = self.recorder.split_off(gone);
        tally.kernel = counted.since(&self.counted);
        let (due_before, missed_before) = self.ticks;
        let due = ticks_due.unwrap_or_default();
        // Where a CPU has nothing to do there is nothing to be missed.
        let idle_missed = due.idle.saturating_sub(counted.get(Counter::IdleTicks));
        let missed = due.ticks.saturating_sub(counted.get(Counter::Ticks));
        tally.ticks_idle = idle_missed.min(missed);
        let missed = missed - tally.ticks_idle;
        tally.ticks_due = due.ticks.saturating_sub(due_before);
        tally.ticks_missed = missed.saturating_sub(missed_before);
        self.ticks = (due.ticks, missed.max(missed_before));
        tally.diagnostics = self.probes.diagnostics();
        self.counted = counted;
        let (start, duration) = self.begun.next(Begun::now());
        let cpu_period = 1_000_000_000 / u64::from(self.config.rate_hz);
        let windows = windows.into_iter().map(|(event, window)| {
            let taken = Taken {
                event,
                start,
                duration,
                period: if event.is_periodic() { cpu_period } else { 1 },
                all_waits: self.config.probes.all_waits,
            };
            (taken, window)
        });
        Ok(Finished {
            windows: windows.collect(),
            breaks,
            processes,
            tally,
            clock: self.clock,
            stopped: stopped.unwrap_or(Stopped::Duration),
            idle: self.config.idle,
            combine: self.config.combine,
        })
    }

    /// Samples the CPUs that came online since the last look.
    fn follow_cpus(&mut self) {
        let tally = &mut self.recorder.tally;
        match self.probes.follow_cpus() {
            Ok(new) => {
                tally.cpus_late += new.sampled;
                tally.cpus_refused += new.refused;
            }
            Err(error) => {
                let text = format!("CPUs that come online are not sampled: {error:#}");
                tally.off.insert(text);
            }
        }
    }

    /// Whether the window has to end, with memory as short as it is. Lets go of
    /// what can be had again first.
    fn is_full(&mut self) -> bool {
        let is_short = self.recorder.take_shortage();
        let most = self.max_window_bytes / if is_short { 4 } else { 1 };
        self.recorder.windows.bytes_written() > most
    }

    /// Takes what is in the ring now, and no more than it holds: records may come faster
    /// than they are taken.
    fn drain_all(&mut self) {
        let ring_bytes = self.config.ring_bytes.next_power_of_two();
        let enough = self.records.taken_bytes() + u64::from(ring_bytes);
        while self.drain() == DRAIN_LIMIT && self.records.taken_bytes() < enough {}
    }

    fn drain(&mut self) -> usize {
        let recorder = &mut self.recorder;
        self.records
            .drain(DRAIN_LIMIT, |record| recorder.take(record))
    }
}

/// Now on the clock of the kernel side (`CLOCK_MONOTONIC`), in nanoseconds.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills a structure of our own; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
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
