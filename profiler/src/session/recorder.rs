//! The side of a session that takes records: whose they are, their stacks, and
//! into the window. Decides which processes the kernel side samples.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::Result;
use profiler_ebpf::wire::GoLayout;

use super::{
    Config, Tally, block_io::BlockIo, breaks::Breaks, looks::Looks, measured::Span,
    probing::Probing, waits::Waits, windows::Windows,
};
use crate::{
    aggregate::{Labels, Owner},
    decode::{Event, Sample, decode},
    memory::Watch,
    probe::Targets,
    process::{
        Considered, Depth, NoLayout, ProcessIndex, ProcessTable, Selection, all_pids, code_bytes,
        is_alive,
    },
    symbolize,
    unwind::unwind,
};

/// How long the version of a program without goroutines is taken at its word: Go
/// has the first in its first millisecond.
const AT_ITS_WORD: Duration = Duration::from_secs(1);

/// How many samples are taken between two looks at the memory. Unwinding each may
/// need a few pages of files, and the kernel maps those around them as well.
const LOOK_EVERY: u64 = 16;

/// A process whose layout is to be proven.
#[derive(Debug, Clone, Copy)]
pub(super) struct ToProve {
    since: Instant,
    /// Whether its samples are taken with the layout meanwhile.
    is_trusted: bool,
}

/// The kernel side's table of the processes that are sampled.
pub(super) trait Sampled {
    /// Samples `pid` from now on, with its goroutines where the layout is known.
    fn insert(&mut self, pid: u32, layout: GoLayout) -> Result<()>;
    /// No longer samples `pid`.
    fn remove(&mut self, pid: u32) -> Result<()>;
    /// The pids in the table. An entry that changes meanwhile may be missing.
    fn pids(&self) -> Vec<u32>;
}

impl Sampled for Targets {
    fn insert(&mut self, pid: u32, layout: GoLayout) -> Result<()> {
        Targets::insert(self, pid, layout)
    }

    fn remove(&mut self, pid: u32) -> Result<()> {
        Targets::remove(self, pid)
    }

    fn pids(&self) -> Vec<u32> {
        Targets::pids(self)
    }
}

/// The side of a session that takes records.
pub(super) struct Recorder<T> {
    selection: Selection,
    pub(super) threads: bool,
    goroutines: bool,
    with_labels: bool,
    pub(super) targets: T,
    pub(super) table: ProcessTable,
    pub(super) windows: Windows,
    /// Threads that are off the CPU, by thread id.
    pub(super) off_cpu: Waits,
    /// Requests to block devices.
    pub(super) block_io: BlockIo,
    /// From when to when what is measured counts.
    pub(super) span: Span,
    /// Pids that run something not wanted, with the reason where it is a Go
    /// program or cannot be told; stray samples of theirs are no loss.
    pub(super) rejected: HashMap<u32, Option<String>>,
    /// Pids of programs that were gone before they were looked at.
    pub(super) unseen: HashSet<u32>,
    /// Pids that were rejected by name, whatever they load.
    pub(super) excluded: HashSet<u32>,
    /// Processes whose main thread has exited.
    pub(super) exiting: HashSet<u32>,
    /// Processes whose goroutines cannot be found yet, or have not been seen.
    pub(super) to_prove: HashMap<u32, ToProve>,
    /// Processes that were sampled by a layout that they do not have.
    pub(super) disproven: HashSet<ProcessIndex>,
    /// Processes with more than one Go runtime.
    pub(super) several_runtimes: HashSet<ProcessIndex>,
    /// What is not recorded of which pid, and why.
    pub(super) off: HashMap<u32, String>,
    /// Processes that may have loaded Go code since they were looked at.
    pub(super) looks: Looks,
    pub(super) frames: Vec<u64>,
    pub(super) stack: Vec<u64>,
    pub(super) tally: Tally,
    pub(super) breaks: Breaks,
    /// Where memory is limited.
    pub(super) watch: Option<Watch>,
    /// Where there are events that take probes.
    pub(super) probing: Option<Probing>,
    /// Whether letting go was not enough since [`Recorder::take_shortage`].
    is_short: bool,
}

impl<T: Sampled> Recorder<T> {
    /// Nothing is sampled yet.
    pub(super) fn new(config: &Config, targets: T) -> Self {
        Self {
            selection: config.selection.clone(),
            threads: config.threads,
            goroutines: config.goroutines,
            with_labels: config.labels,
            targets,
            table: ProcessTable::default(),
            windows: Windows::of(config.events.iter().copied()),
            off_cpu: Waits::default(),
            block_io: BlockIo::default(),
            span: Span {
                begin_ns: 0,
                end_ns: u64::MAX,
            },
            rejected: HashMap::new(),
            unseen: HashSet::new(),
            excluded: HashSet::new(),
            exiting: HashSet::new(),
            to_prove: HashMap::new(),
            disproven: HashSet::new(),
            several_runtimes: HashSet::new(),
            off: HashMap::new(),
            looks: Looks::default(),
            frames: Vec::new(),
            stack: Vec::new(),
            tally: Tally::default(),
            breaks: Breaks::default(),
            watch: None,
            probing: None,
            is_short: false,
        }
    }

    /// Lets go of what was read and remembered of code where memory is short.
    fn ease(&mut self) {
        if let Some(watch) = &mut self.watch
            && watch.is_short()
        {
            self.table.release();
            self.tally.evictions += 1;
            self.is_short |= watch.eased();
        }
    }

    /// Does that, and says whether it was not enough since the last call.
    pub(super) fn take_shortage(&mut self) -> bool {
        self.ease();
        std::mem::take(&mut self.is_short)
    }

    pub(super) fn find_running(&mut self) {
        let pids = match &self.selection {
            Selection::Pids(pids) => pids.clone(),
            Selection::All | Selection::Name(_) => all_pids(),
            Selection::DescendantsOf(_) => Vec::new(),
        };
        for pid in pids {
            self.consider(pid, Depth::Libraries);
        }
    }

    /// Looks at what runs under `pid` and samples it if it is wanted.
    pub(super) fn consider(&mut self, pid: u32, depth: Depth) {
        self.forget(pid);
        let rejected = match self.table.consider(pid, &self.selection, depth) {
            Considered::Wanted => None,
            // If it loads Go code later, the kernel side tells.
            Considered::Other(exe) => Some(exe.why_unreadable_go()),
            Considered::Unreadable(error) => Some(Some(error.to_string())),
            // Nobody knows any more whether it was wanted.
            Considered::Gone if depth == Depth::Program => {
                self.tally.vanished += 1;
                self.unseen.insert(pid);
                let _ = self.targets.remove(pid);
                return;
            }
            // A kernel thread, or one that was never sampled.
            Considered::Gone => Some(None),
        };
        if let Some(why) = rejected {
            self.rejected.insert(pid, why);
            // Nothing to do about a failure: a sample too many is dropped here.
            let _ = self.targets.remove(pid);
        } else {
            self.sample_goroutines(pid, None);
        }
        // What was read of its files is resident now, and more programs may follow.
        self.ease();
    }

    /// Samples a process that is wanted, with its goroutines where the layout
    /// of its runtime is known; says once for each program why it is not. Where
    /// that only shows now, its samples so far, which were taken at its version's
    /// word, are lost. `before` says how it was taken so far.
    fn sample_goroutines(&mut self, pid: u32, before: Option<ToProve>) {
        let Some(index) = self.table.current(pid) else {
            return;
        };
        self.note_runtimes(index);
        let since = before.map_or_else(Instant::now, |before| before.since);
        let process = self.table.get(index);
        // What to sample with, whether to ask again, and what is off.
        let (layout, again, why) = match process.go_layout() {
            Ok(layout) if layout.is_proven => (layout.go, false, None),
            Ok(layout) if since.elapsed() < AT_ITS_WORD => (layout.go, true, None),
            Ok(_) => {
                let why = "it has no goroutine".to_owned();
                (GoLayout::default(), true, Some(why))
            }
            Err(NoLayout::NotYet) => (GoLayout::default(), true, None),
            Err(NoLayout::Unknown(why)) => (GoLayout::default(), false, Some(why)),
        };
        if again {
            let is_trusted = layout.known != 0;
            self.to_prove.insert(pid, ToProve { since, is_trusted });
        }
        if let Some(why) = why {
            let text = format!("{}: no goroutine ids and labels: {why}", process.exe);
            self.off.insert(pid, text.clone());
            self.tally.off.insert(text);
            if before.is_some_and(|before| before.is_trusted) {
                self.tally.disproven += self.windows.drop_process(index);
                self.off_cpu.retain(|other| other != index);
                self.block_io.open.retain(|other| other != index);
                self.disproven.insert(index);
            }
        }
        if self.targets.insert(pid, layout).is_err() {
            self.leave_out(pid);
        } else {
            self.rejected.remove(&pid);
        }
    }

    /// Does without a process that the kernel side has no room for. It is tried again
    /// when the process starts threads, and counts once.
    fn leave_out(&mut self, pid: u32) {
        self.table.forget(pid);
        self.to_prove.remove(&pid);
        let why = Some("the table of processes is full".to_owned());
        if self.rejected.get(&pid) != Some(&why) {
            self.tally.not_added += 1;
            self.rejected.insert(pid, why);
        }
    }

    /// Says of a process with several Go runtimes whose goroutines are known.
    fn note_runtimes(&mut self, index: ProcessIndex) {
        let process = self.table.get(index);
        let Some(own) = process.go_object() else {
            return;
        };
        for other in process.other_runtimes() {
            let text = format!(
                "{}: goroutine ids and labels of {} alone: {} has a Go runtime of its own",
                process.exe, own.path, other.path
            );
            self.several_runtimes.insert(index);
            self.off.insert(process.pid, text.clone());
            self.tally.off.insert(text);
        }
    }

    /// Looks again at the processes that had no goroutine yet, and at those
    /// that may have loaded Go code.
    pub(super) fn look_again(&mut self, now: Instant) {
        for (pid, before) in std::mem::take(&mut self.to_prove) {
            self.sample_goroutines(pid, Some(before));
        }
        for pid in self.looks.take_due(now) {
            if self.table.current(pid).is_some() {
                self.looks.forget(pid);
                continue;
            }
            // A process that starts many threads is looked at closely only
            // when it has mapped more code.
            if self.looks.is_unchanged(pid, code_bytes(pid)) {
                continue;
            }
            match self.table.consider(pid, &self.selection, Depth::Libraries) {
                Considered::Wanted => {
                    self.looks.forget(pid);
                    self.sample_goroutines(pid, None);
                }
                Considered::Gone => self.looks.forget(pid),
                Considered::Other(_) | Considered::Unreadable(_) => {}
            }
        }
    }

    pub(super) fn take(&mut self, record: &[u8]) {
        match decode(record) {
            Ok(Event::Sample(sample)) => self.sample(&sample),
            Ok(Event::Measured(measured, sample)) => self.measured(measured, &sample),
            Ok(Event::Ended(measured)) => self.ended(measured),
            Ok(Event::Exec { pid, .. }) => self.consider(pid, Depth::Program),
            Ok(Event::Thread { pid }) if self.excluded.contains(&pid) => {}
            Ok(Event::Thread { pid }) => self.looks.note(pid, Instant::now()),
            Ok(Event::Exit { pid }) => {
                self.exiting.insert(pid);
            }
            Ok(Event::ShareSpent {
                pid,
                window,
                time_ns,
            }) => {
                if let Some(probing) = &self.probing {
                    probing.spent(pid, window, time_ns);
                }
            }
            Err(_) => self.tally.undecodable += 1,
        }
    }

    fn sample(&mut self, sample: &Sample<'_>) {
        if let Some(owner) = self.unwind(sample) {
            let window = self.windows.get(symbolize::Event::Cpu);
            window.add(owner, &self.stack, sample.head.kernel_frames);
            self.ease_at_times();
        }
    }

    /// Lets go of what can be had again, every now and then.
    pub(super) fn ease_at_times(&mut self) {
        if self.windows.samples().is_multiple_of(LOOK_EVERY) {
            self.ease();
        }
    }

    /// Whose a process's sample is, if it is known; counted if not.
    pub(super) fn owner(&mut self, pid: u32) -> Option<ProcessIndex> {
        let current = self.table.current(pid);
        if current.is_none() {
            let count = match self.rejected.contains_key(&pid) {
                true => &mut self.tally.unwanted,
                false if self.unseen.contains(&pid) => &mut self.tally.unseen,
                false => &mut self.tally.unknown_process,
            };
            *count += 1;
        }
        current
    }

    /// Puts the stack of a sample into `self.stack`, and says whose it is; none
    /// where it is lost, which is counted.
    pub(super) fn unwind(&mut self, sample: &Sample<'_>) -> Option<Owner> {
        let head = sample.head;
        let index = self.owner(head.header.pid)?;
        // Taken before the kernel side was told, and delivered after.
        if self.disproven.contains(&index) && is_taken_by_layout(sample) {
            self.tally.disproven += 1;
            return None;
        }
        self.table.note_cgroup(index, head.cgroup_id);
        let mut unwound = unwind(sample, self.table.get(index), &mut self.frames);
        if unwound.unmapped && self.table.refresh(index) {
            self.note_runtimes(index);
            unwound = unwind(sample, self.table.get(index), &mut self.frames);
        }
        *self.tally.ends.entry(unwound.end).or_default() += 1;
        self.breaks.note(index, &unwound);
        self.stack.clear();
        self.stack.extend_from_slice(sample.kernel);
        self.stack.extend_from_slice(&self.frames);
        // A thread of C that has called into several stays known to each: what
        // the kernel side found is of the one, wherever the thread is.
        let of_other = self.several_runtimes.contains(&index)
            && self.table.get(index).is_of_other_runtime(&self.frames);
        let known = !of_other && self.goroutines && head.goid != 0;
        Some(Owner {
            process: index,
            thread: self.threads.then_some((head.header.tid, head.comm)),
            goid: known.then_some(head.goid),
            labels: match of_other {
                true => Labels::new(),
                false => self.labels(sample),
            },
            block_bytes: None,
        })
    }

    /// The labels of a sample, by key; those that could not be had are counted.
    fn labels(&mut self, sample: &Sample<'_>) -> Labels {
        if !self.with_labels {
            return Labels::new();
        }
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

    /// Processes that have exited. To be asked for before the ring is drained,
    /// and forgotten after: so no sample of theirs comes later.
    pub(super) fn exited(&self) -> Vec<u32> {
        let mut watched: Vec<u32> = match &self.selection {
            // An exit that was not told of must not keep us waiting for ever.
            Selection::Pids(_) => self.table.pids().collect(),
            _ => self.exiting.iter().copied().collect(),
        };
        watched.retain(|pid| !is_alive(*pid));
        watched
    }

    /// Forgets processes that have exited.
    pub(super) fn forget_exited(&mut self, exited: &[u32]) {
        // A pid that was given to another process meanwhile is not gone.
        for pid in exited.iter().filter(|pid| !is_alive(**pid)) {
            self.exiting.remove(pid);
            self.table.forget(*pid);
            let _ = self.targets.remove(*pid);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.selection, Selection::Pids(_))
            && self.table.pids().next().is_none()
            && self.looks.is_empty()
    }
}

/// Whether the kernel side knew a layout of the runtime, as far as the sample
/// shows it.
fn is_taken_by_layout(sample: &Sample<'_>) -> bool {
    let head = sample.head;
    head.goid != 0 || head.labels != 0 || head.labels_missed != 0 || sample.goroutine.is_some()
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::wire::{self, kind};
    use zerocopy::IntoBytes;

    use super::*;
    use crate::session::fake::{PID, PLAIN, SEGMENT, Told, process, recorder};

    /// A program begins in the process.
    fn begin(recorder: &mut Recorder<Told>) {
        process(&mut recorder.table);
    }

    /// Everything in which a sample shows that it was taken by a layout.
    fn by_layout() -> [(wire::Sample, Vec<u64>); 4] {
        let goid = wire::Sample { goid: 7, ..PLAIN };
        let on_system_stack = wire::Sample {
            goroutine: SEGMENT,
            ..PLAIN
        };
        let labelled = wire::Sample {
            labels: 1,
            labels_words: 3,
            ..PLAIN
        };
        let missed = wire::Sample {
            labels_missed: 1,
            ..PLAIN
        };
        // A label of a byte each.
        let label = vec![1 | 1 << 16, 0x61, 0x62];
        [
            (goid, Vec::new()),
            (on_system_stack, Vec::new()),
            (labelled, label),
            (missed, Vec::new()),
        ]
    }

    fn take(recorder: &mut Recorder<Told>, head: &wire::Sample, payload: &[u64]) {
        let record = [head.as_bytes(), payload.as_bytes()].concat();
        recorder.take(&record);
        assert_eq!(recorder.tally.undecodable, 0);
    }

    /// The layout proves wrong: the next look at the process shows it.
    fn disprove(recorder: &mut Recorder<Told>) {
        let at_its_word = ToProve {
            since: Instant::now(),
            is_trusted: true,
        };
        recorder.to_prove.insert(PID, at_its_word);
        recorder.look_again(Instant::now());
    }

    #[test]
    fn samples_by_a_disproven_layout_are_lost_and_counted() {
        let mut recorder = recorder();
        for (head, payload) in by_layout() {
            take(&mut recorder, &head, &payload);
        }
        take(&mut recorder, &PLAIN, &[]);
        assert_eq!(
            (recorder.windows.samples(), recorder.tally.disproven),
            (5, 0)
        );

        // Those that were taken: whether a plain one is right is not known.
        disprove(&mut recorder);
        assert_eq!(
            (recorder.windows.samples(), recorder.tally.disproven),
            (0, 5)
        );
        assert_eq!(recorder.targets.0, [(PID, Some(GoLayout::default()))]);
        let off: Vec<&String> = recorder.tally.off.iter().collect();
        assert_eq!(off.len(), 1);
        assert!(off[0].starts_with("/bin/liar: no goroutine ids"), "{off:?}");

        // Those that were in the ring: only what the layout gave is wrong.
        for (number, (head, payload)) in (6..).zip(by_layout()) {
            take(&mut recorder, &head, &payload);
            assert_eq!(recorder.tally.disproven, number, "{head:?}");
        }
        assert_eq!(recorder.windows.samples(), 0);
        take(&mut recorder, &PLAIN, &[]);
        assert_eq!(
            (recorder.windows.samples(), recorder.tally.disproven),
            (1, 9)
        );
        assert!(recorder.tally.lost().iter().any(|(count, _)| *count == 9));
    }

    #[test]
    fn a_layout_that_was_not_used_loses_nothing() {
        let mut recorder = recorder();
        take(&mut recorder, &PLAIN, &[]);
        recorder.sample_goroutines(PID, None);
        let (head, payload) = &by_layout()[0];
        take(&mut recorder, head, payload);
        assert_eq!(
            (recorder.windows.samples(), recorder.tally.disproven),
            (2, 0)
        );
        assert_eq!(recorder.tally.off.len(), 1);
    }

    #[test]
    fn samples_of_a_program_that_nobody_saw_are_counted_and_said() {
        let mut recorder = recorder();
        recorder.selection = Selection::All;
        let exec = wire::Header {
            kind: kind::EXEC,
            ..PLAIN.header
        };
        recorder.take(exec.as_bytes());
        take(&mut recorder, &PLAIN, &[]);
        let tally = &recorder.tally;
        assert_eq!((recorder.windows.samples(), tally.vanished), (0, 1));
        let counts = (tally.unseen, tally.unknown_process, tally.unwanted);
        assert_eq!(counts, (1, 0, 0));
        let said = tally.incomplete();
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(recorder.targets.0, [(PID, None)]);
        // The next program of that pid is another.
        begin(&mut recorder);
        take(&mut recorder, &PLAIN, &[]);
        assert_eq!(recorder.windows.samples(), 1);
    }

    #[test]
    fn looking_at_a_program_lets_go_of_what_was_read_where_memory_is_short() {
        let evictions = |limit_bytes: Option<u64>| {
            let mut recorder = recorder();
            recorder.selection = Selection::All;
            recorder.watch = limit_bytes.map(Watch::new);
            recorder.consider(std::process::id(), Depth::Libraries);
            recorder.tally.evictions
        };
        assert_eq!(evictions(Some(1)), 1);
        assert_eq!(evictions(Some(u64::MAX)), 0);
        assert_eq!(evictions(None), 0);
    }

    #[test]
    fn the_next_program_of_a_process_is_another() {
        let mut recorder = recorder();
        let (head, payload) = &by_layout()[0];
        take(&mut recorder, head, payload);
        disprove(&mut recorder);
        begin(&mut recorder);
        take(&mut recorder, head, payload);
        assert_eq!(
            (recorder.windows.samples(), recorder.tally.disproven),
            (1, 1)
        );
    }
}
