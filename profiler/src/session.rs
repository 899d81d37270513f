//! Session: wires the stages of one recording together. The only module that
//! knows them all; it does the work of none.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use profiler_ebpf::wire::Counter;
use tokio::{process::Child, time::sleep_until};

use crate::{
    aggregate::{Labels, Owner, Window},
    decode::{Event, Sample, decode},
    probe::{Clock, Counters, Options, Probes, Targets},
    process::{Considered, NoLayout, ProcessTable, Selection, all_pids, is_alive},
    ringbuf::Records,
    symbolize::{self, Naming, SymbolizedWindow, Symbolizer, Taken},
    unwind::{StackEnd, unwind},
};

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

/// What was counted beside the samples.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// The kernel side's counters.
    pub kernel: Counters,
    /// How the stacks end, in samples.
    pub ends: BTreeMap<StackEnd, u64>,
    /// Records that could not be read.
    pub undecodable: u64,
    /// Samples of processes that exited before goprof could look at them.
    pub unknown_process: u64,
    /// Samples of programs that turned out not to be wanted: those that had
    /// just begun when they were taken.
    pub unwanted: u64,
    /// Processes that exited before goprof could look at them.
    pub vanished: u64,
    /// Go processes that could not be added to the kernel's table.
    pub not_added: u64,
    /// Labels cut short, once for each sample.
    pub labels_truncated: u64,
    /// Labels that could not be had, once for each sample.
    pub labels_missed: u64,
    /// What is not recorded of which program, and why.
    pub off: BTreeSet<String>,
    /// What the kernel side had to say, in words.
    pub diagnostics: Vec<String>,
}

impl Tally {
    /// Samples that were taken but are in no profile, by reason.
    pub fn lost(&self) -> Vec<(u64, &'static str)> {
        [
            (
                self.kernel.get(Counter::SamplesRingFull),
                "ring buffer full",
            ),
            (self.undecodable, "record not readable"),
            (self.unknown_process, "process gone before it was looked at"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .collect()
    }

    /// Anything else that is missing from the profile, by reason.
    pub fn incomplete(&self) -> Vec<(u64, &'static str)> {
        [
            (
                self.kernel.get(Counter::EventsRingFull),
                "process starts or exits not seen: ring buffer full",
            ),
            (
                self.kernel.get(Counter::TargetsFull) + self.not_added,
                "processes not sampled: target table full",
            ),
            (
                self.kernel.get(Counter::NoKernelStack),
                "samples without their kernel stack",
            ),
            (self.vanished, "processes gone before they were looked at"),
            (self.labels_truncated, "labels of samples cut short"),
            (self.labels_missed, "labels of samples left out"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .collect()
    }
}

/// A finished recording.
pub struct Recording {
    /// The named stacks.
    pub window: SymbolizedWindow,
    /// How many frames have names.
    pub naming: Naming,
    /// What was counted.
    pub tally: Tally,
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
    recorder: Recorder,
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
        let mut recorder = Recorder {
            selection: config.selection.clone(),
            threads: config.threads,
            goroutines: config.goroutines,
            targets,
            table: ProcessTable::default(),
            window: Window::default(),
            rejected: HashSet::new(),
            exiting: HashSet::new(),
            without_layout: HashSet::new(),
            frames: Vec::new(),
            stack: Vec::new(),
            tally: Tally::default(),
        };
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
            self.recorder.retry_layouts();
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
        let (window, naming) =
            Symbolizer::default().symbolize(taken, &self.recorder.window, &self.recorder.table);
        Ok(Recording {
            window,
            naming,
            tally,
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

/// The side of a session that takes records.
struct Recorder {
    selection: Selection,
    threads: bool,
    goroutines: bool,
    targets: Targets,
    table: ProcessTable,
    window: Window,
    /// Pids that run something not wanted; stray samples of theirs are no loss.
    rejected: HashSet<u32>,
    /// Processes whose main thread has exited.
    exiting: HashSet<u32>,
    /// Processes whose goroutines cannot be found yet.
    without_layout: HashSet<u32>,
    frames: Vec<u64>,
    stack: Vec<u64>,
    tally: Tally,
}

impl Recorder {
    fn find_running(&mut self) {
        let pids = match &self.selection {
            Selection::Pids(pids) => pids.clone(),
            Selection::All | Selection::Name(_) => all_pids(),
            Selection::DescendantsOf(_) => Vec::new(),
        };
        for pid in pids {
            self.consider(pid);
        }
    }

    /// Looks at what runs under `pid` and samples it if it is wanted.
    fn consider(&mut self, pid: u32) {
        self.rejected.remove(&pid);
        self.exiting.remove(&pid);
        self.table.forget(pid);
        let wanted = match self.table.consider(pid, &self.selection) {
            Considered::Wanted => true,
            Considered::Other(_) | Considered::Unreadable(_) => false,
            Considered::Gone => {
                self.tally.vanished += u64::from(!is_kernel_thread(pid));
                false
            }
        };
        if !wanted {
            self.rejected.insert(pid);
            // Nothing to do about a failure: a sample too many is dropped here.
            let _ = self.targets.remove(pid);
        } else {
            self.sample_goroutines(pid);
        }
    }

    /// Samples a process that is wanted, with its goroutines where the layout
    /// of its runtime is known; says once for each program why it is not.
    fn sample_goroutines(&mut self, pid: u32) {
        let Some(index) = self.table.current(pid) else {
            return;
        };
        let process = self.table.get(index);
        let layout = process.go_layout();
        match &layout {
            Err(NoLayout::NotYet) => {
                self.without_layout.insert(pid);
            }
            Err(NoLayout::Unknown(why)) => {
                let text = format!("{}: no goroutine ids and labels: {why}", process.exe);
                self.tally.off.insert(text);
            }
            Ok(_) => {}
        }
        if self
            .targets
            .insert(pid, layout.unwrap_or_default())
            .is_err()
        {
            self.tally.not_added += 1;
            self.table.forget(pid);
        }
    }

    /// Looks again at the processes whose loader had not done its work yet.
    fn retry_layouts(&mut self) {
        for pid in std::mem::take(&mut self.without_layout) {
            self.sample_goroutines(pid);
        }
    }

    fn take(&mut self, record: &[u8]) {
        match decode(record) {
            Ok(Event::Sample(sample)) => self.sample(&sample),
            Ok(Event::Exec { pid, .. }) => self.consider(pid),
            Ok(Event::Exit { pid }) => {
                self.exiting.insert(pid);
            }
            Err(_) => self.tally.undecodable += 1,
        }
    }

    fn sample(&mut self, sample: &Sample<'_>) {
        let head = sample.head;
        let Some(index) = self.table.current(head.header.pid) else {
            match self.rejected.contains(&head.header.pid) {
                true => self.tally.unwanted += 1,
                false => self.tally.unknown_process += 1,
            }
            return;
        };
        self.table.note_cgroup(index, head.cgroup_id);
        let mut unwound = unwind(sample, self.table.get(index), &mut self.frames);
        if unwound.unmapped && self.table.refresh(index) {
            unwound = unwind(sample, self.table.get(index), &mut self.frames);
        }
        *self.tally.ends.entry(unwound.end).or_default() += 1;
        self.stack.clear();
        self.stack.extend_from_slice(sample.kernel);
        self.stack.extend_from_slice(&self.frames);
        let owner = Owner {
            process: index,
            thread: self.threads.then_some((head.header.tid, head.comm)),
            goid: (self.goroutines && head.goid != 0).then_some(head.goid),
            labels: self.labels(sample),
        };
        self.window.add(owner, &self.stack, head.kernel_frames);
    }

    /// The labels of a sample, by key; those that could not be had are counted.
    fn labels(&mut self, sample: &Sample<'_>) -> Labels {
        self.tally.labels_missed += u64::from(sample.head.labels_missed);
        let mut labels: Labels = sample
            .labels()
            .map(|label| {
                self.tally.labels_truncated += u64::from(label.truncated);
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                (text(label.key), text(label.value))
            })
            .collect();
        labels.sort_unstable();
        labels
    }

    /// Forgets processes that have exited.
    fn look_for_exits(&mut self) {
        let watched: Vec<u32> = match &self.selection {
            // An exit that was not told of must not keep us waiting for ever.
            Selection::Pids(_) => self.table.pids().collect(),
            _ => self.exiting.iter().copied().collect(),
        };
        for pid in watched {
            if !is_alive(pid) {
                self.exiting.remove(&pid);
                self.table.forget(pid);
                let _ = self.targets.remove(pid);
            }
        }
    }

    fn is_done(&self) -> bool {
        matches!(self.selection, Selection::Pids(_)) && self.table.pids().next().is_none()
    }
}

/// A process without an executable that is there all the same.
fn is_kernel_thread(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}/exe"))
        .symlink_metadata()
        .is_ok()
}
