//! The side of a session that takes records: whose they are, their stacks, and
//! into the window. Decides which processes the kernel side samples.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use profiler_ebpf::wire::GoLayout;

use super::{Config, Tally, breaks::Breaks, looks::Looks};
use crate::{
    aggregate::{Labels, Owner, Window},
    decode::{Event, Sample, decode},
    probe::Targets,
    process::{
        Considered, Depth, NoLayout, ProcessIndex, ProcessTable, Selection, all_pids, code_bytes,
        is_alive,
    },
    unwind::unwind,
};

/// How long the version of a program without goroutines is taken at its word: Go
/// has the first in its first millisecond.
const AT_ITS_WORD: Duration = Duration::from_secs(1);

/// A process whose layout is to be proven.
#[derive(Debug, Clone, Copy)]
pub(super) struct ToProve {
    since: Instant,
    /// Whether its samples are taken with the layout meanwhile.
    is_trusted: bool,
}

/// The side of a session that takes records.
pub(super) struct Recorder {
    selection: Selection,
    threads: bool,
    goroutines: bool,
    with_labels: bool,
    pub(super) targets: Targets,
    pub(super) table: ProcessTable,
    pub(super) window: Window,
    /// Pids that run something not wanted, with the reason where it is a Go
    /// program or cannot be told; stray samples of theirs are no loss.
    pub(super) rejected: HashMap<u32, Option<String>>,
    /// Pids that were rejected by name, whatever they load.
    pub(super) excluded: HashSet<u32>,
    /// Processes whose main thread has exited.
    pub(super) exiting: HashSet<u32>,
    /// Processes whose goroutines cannot be found yet, or have not been seen.
    pub(super) to_prove: HashMap<u32, ToProve>,
    /// Processes that were sampled by a layout that they do not have.
    pub(super) disproven: HashSet<ProcessIndex>,
    /// What is not recorded of which pid, and why.
    pub(super) off: HashMap<u32, String>,
    /// Processes that may have loaded Go code since they were looked at.
    pub(super) looks: Looks,
    frames: Vec<u64>,
    stack: Vec<u64>,
    pub(super) tally: Tally,
    pub(super) breaks: Breaks,
}

impl Recorder {
    /// Nothing is sampled yet.
    pub(super) fn new(config: &Config, targets: Targets) -> Self {
        Self {
            selection: config.selection.clone(),
            threads: config.threads,
            goroutines: config.goroutines,
            with_labels: config.labels,
            targets,
            table: ProcessTable::default(),
            window: Window::default(),
            rejected: HashMap::new(),
            excluded: HashSet::new(),
            exiting: HashSet::new(),
            to_prove: HashMap::new(),
            disproven: HashSet::new(),
            off: HashMap::new(),
            looks: Looks::default(),
            frames: Vec::new(),
            stack: Vec::new(),
            tally: Tally::default(),
            breaks: Breaks::default(),
        }
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
            Considered::Gone => {
                self.tally.vanished += u64::from(!is_kernel_thread(pid));
                Some(None)
            }
        };
        if let Some(why) = rejected {
            self.rejected.insert(pid, why);
            // Nothing to do about a failure: a sample too many is dropped here.
            let _ = self.targets.remove(pid);
        } else {
            self.sample_goroutines(pid, None);
        }
    }

    /// Samples a process that is wanted, with its goroutines where the layout
    /// of its runtime is known; says once for each program why it is not. Where
    /// that only shows now, its samples so far, which were taken at its version's
    /// word, are lost. `before` says how it was taken so far.
    fn sample_goroutines(&mut self, pid: u32, before: Option<ToProve>) {
        let Some(index) = self.table.current(pid) else {
            return;
        };
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
                self.tally.disproven += self.window.drop_process(index);
                self.disproven.insert(index);
            }
        }
        if self.targets.insert(pid, layout).is_err() {
            self.tally.not_added += 1;
            self.table.forget(pid);
        }
    }

    /// Looks again at the processes that had no goroutine yet, and
    /// at those that may have loaded Go code.
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
                    self.rejected.remove(&pid);
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
            Ok(Event::Exec { pid, .. }) => self.consider(pid, Depth::Program),
            Ok(Event::Thread { pid }) if self.excluded.contains(&pid) => {}
            Ok(Event::Thread { pid }) => self.looks.note(pid, Instant::now()),
            Ok(Event::Exit { pid }) => {
                self.exiting.insert(pid);
            }
            Err(_) => self.tally.undecodable += 1,
        }
    }

    fn sample(&mut self, sample: &Sample<'_>) {
        let head = sample.head;
        let Some(index) = self.table.current(head.header.pid) else {
            match self.rejected.contains_key(&head.header.pid) {
                true => self.tally.unwanted += 1,
                false => self.tally.unknown_process += 1,
            }
            return;
        };
        // Taken before the kernel side was told, and delivered after.
        let at_its_word =
            head.goid != 0 || sample.goroutine.is_some() || sample.labels().next().is_some();
        if at_its_word && self.disproven.contains(&index) {
            self.tally.disproven += 1;
            return;
        }
        self.table.note_cgroup(index, head.cgroup_id);
        let mut unwound = unwind(sample, self.table.get(index), &mut self.frames);
        if unwound.unmapped && self.table.refresh(index) {
            unwound = unwind(sample, self.table.get(index), &mut self.frames);
        }
        *self.tally.ends.entry(unwound.end).or_default() += 1;
        self.breaks.note(index, &unwound);
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

    /// Forgets processes that have exited.
    pub(super) fn look_for_exits(&mut self) {
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

    pub(super) fn is_done(&self) -> bool {
        matches!(self.selection, Selection::Pids(_))
            && self.table.pids().next().is_none()
            && self.looks.is_empty()
    }
}

/// A process without an executable that is there all the same.
fn is_kernel_thread(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}/exe"))
        .symlink_metadata()
        .is_ok()
}
