//! One window of a session: taken out whole, so that the session goes on while
//! it is named elsewhere. Also what a session forgets between two of them, so
//! that its memory is bounded by what runs.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::{
    Idle, Named, Recorder, Recording, Stopped, Tally, breaks::Breaks, combine::combine,
    parked::Over, probing::Probing, recorder::Sampled, windows::Windows,
};
use crate::{
    aggregate::Window,
    probe::{self, Clock},
    process::{Depth, Process, ProcessTable, all_pids, is_alive},
    symbolize::{Event, Symbolizer, Taken},
};

/// What was sampled between two moments, not named yet. Needs nothing of the
/// session any more.
pub struct Finished {
    pub(super) windows: Vec<(Taken, Window)>,
    pub(super) breaks: Breaks,
    pub(super) processes: ProcessTable,
    pub(super) tally: Tally,
    pub(super) clock: Option<Clock>,
    pub(super) stopped: Stopped,
    /// See [`super::Config::idle`].
    pub(super) idle: bool,
    /// See [`super::Config::combine`].
    pub(super) combine: bool,
}

impl Finished {
    /// Names what was taken.
    pub fn name(self, symbolizer: &mut Symbolizer) -> Recording {
        let processes = &self.processes;
        let name = |(taken, window): &(Taken, Window)| {
            let (mut window, naming) = symbolizer.symbolize(*taken, window, processes);
            let idle = match self.idle {
                true => Idle::default(),
                false => Idle::leave_out(&mut window),
            };
            let counts = window.samples.iter().map(|sample| sample.values[0]);
            Named {
                samples: counts.map(i64::unsigned_abs).sum(),
                window,
                naming,
                idle,
            }
        };
        let named = match self.combine {
            true => vec![combine(&self.windows, processes, symbolizer)],
            false => self.windows.iter().map(name).collect(),
        };
        let breaks = self.breaks.name(symbolizer, processes);
        Recording {
            named,
            tally: self.tally,
            breaks,
            stopped: self.stopped,
            clock: self.clock,
        }
    }

    /// Drops the samples of an event of processes that `judge` has a reason against, and
    /// says how many they were by reason.
    pub fn retain(
        &mut self,
        mut judge: impl FnMut(Event, &Process) -> Result<(), &'static str>,
    ) -> BTreeMap<&'static str, u64> {
        let mut dropped = BTreeMap::new();
        for (taken, window) in &mut self.windows {
            for index in window.processes() {
                if let Err(reason) = judge(taken.event, self.processes.get(index)) {
                    *dropped.entry(reason).or_default() += window.drop_process(index);
                }
            }
        }
        dropped
    }

    /// How many samples it holds.
    pub fn samples(&self) -> u64 {
        self.windows
            .iter()
            .map(|(_, window)| window.samples())
            .sum()
    }
}

impl<T: Sampled> Recorder<T> {
    /// The pids of those remembered that run no more. To be asked for before the
    /// ring is drained, and forgotten after: so no sample of theirs comes later.
    pub(super) fn gone(&self) -> Vec<u32> {
        let is_there = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
        let sampled = self.table.pids().filter(|pid| !is_alive(*pid));
        let others = self
            .rejected
            .keys()
            .chain(&self.exiting)
            .chain(&self.unseen);
        let others = others.copied();
        let others = others.chain(self.excluded.iter().copied());
        sampled
            .chain(others.filter(|pid| !is_there(*pid)))
            .collect()
    }

    /// Forgets all there is to know of a pid, but not its samples.
    pub(super) fn forget(&mut self, pid: u32) {
        self.table.forget(pid);
        self.rejected.remove(&pid);
        self.unseen.remove(&pid);
        self.excluded.remove(&pid);
        self.exiting.remove(&pid);
        self.to_prove.remove(&pid);
        self.off.remove(&pid);
    }

    /// Forgets those that are gone, and takes the window out.
    pub(super) fn split_off(&mut self, gone: &[u32]) -> (Windows, Breaks, ProcessTable, Tally) {
        // A pid that was given to another process meanwhile is not gone.
        for pid in gone.iter().filter(|pid| !is_alive(**pid)) {
            self.forget(*pid);
            self.looks.forget(*pid);
            let _ = self.targets.remove(*pid);
        }
        if let Some(probing) = &mut self.probing {
            let table = &self.table;
            let is_held = |index| table.contains(index);
            let end_ns = self.span.end_ns.min(probe::monotonic_ns());
            let (facts, late) = probing.split_off(&mut self.windows, end_ns, is_held);
            self.tally.probes = facts;
            self.tally.unknown_process += late;
        }
        let processes = self.table.split_off();
        self.block_io.kernel = None;
        self.off_cpu.retain(|index| self.table.contains(index));
        self.block_io
            .open
            .retain(|index| self.table.contains(index));
        self.disproven.retain(|index| self.table.contains(*index));
        self.several_runtimes
            .retain(|index| self.table.contains(*index));
        (
            self.windows.take(),
            std::mem::take(&mut self.breaks),
            processes,
            std::mem::take(&mut self.tally),
        )
    }

    /// Looks at what the kernel side could not tell of: `told` says whether it
    /// told all.
    pub(super) fn find_missed(&mut self, told: bool) {
        let is_known = |this: &Self, pid| {
            this.table.current(pid).is_some() || this.rejected.contains_key(&pid)
        };
        if !told {
            for pid in all_pids() {
                if !is_known(self, pid) {
                    self.consider(pid, Depth::Libraries);
                }
            }
        }
        // Processes whose exit was not told, or that never got as far as a
        // program: they would fill the table.
        for pid in self.targets.pids() {
            if !is_known(self, pid) && !is_alive(pid) {
                let _ = self.targets.remove(pid);
            }
        }
    }

    /// Samples a process no more, whatever it loads, until it runs another
    /// program.
    pub(super) fn exclude(&mut self, pid: u32) {
        self.forget(pid);
        self.looks.forget(pid);
        self.rejected.insert(pid, None);
        self.excluded.insert(pid);
        let _ = self.targets.remove(pid);
    }

    /// Puts probes on what runs, where events take them.
    pub(super) fn follow(&mut self) {
        let Some(probing) = &mut self.probing else {
            return;
        };
        let table = &self.table;
        let running = table.running();
        let running = running.filter_map(|process| Some((table.current(process.pid)?, process)));
        let (tally, off) = (&mut self.tally, &mut self.off);
        probing.follow(running, |process, why| {
            let text = format!("{}: no probes: {why}", process.exe);
            off.insert(process.pid, text.clone());
            tally.off.insert(text);
        });
    }

    /// The windows of probes that are over: to be closed once the ring was emptied.
    pub(super) fn windows_over(&self) -> Vec<Over> {
        self.probing.as_ref().map_or_else(Vec::new, Probing::over)
    }

    /// See [`Probing::close`].
    pub(super) fn close_windows(&mut self, over: Vec<Over>, waits_full: u64) {
        if let Some(probing) = &mut self.probing {
            probing.note_full(waits_full);
            for over in over {
                let missing = probing.close(&over);
                self.tally.waits_doubtful += missing.waits;
                self.tally.windows_left_out += missing.windows;
                self.tally.looks_missed += missing.looks;
            }
        }
    }

    /// See [`Probing::end`].
    pub(super) fn end_probing(&mut self) {
        if let Some(probing) = &mut self.probing {
            probing.end();
        }
    }

    /// See [`Probing::stop`].
    pub(super) fn stop_probing(&mut self) -> Vec<Over> {
        let Some(probing) = &mut self.probing else {
            return Vec::new();
        };
        let (tally, off) = (&mut self.tally, &mut self.off);
        probing.stop(|pid, why| {
            off.insert(pid, why.clone());
            tally.off.insert(why);
        })
    }

    /// See [`Probing::wait_open`].
    pub(super) fn wait_open(&mut self, most: Duration) {
        if let Some(probing) = &mut self.probing {
            probing.wait_open(most);
        }
    }

    /// Looks again at the processes that were excluded.
    pub(super) fn reconsider(&mut self) {
        for pid in std::mem::take(&mut self.excluded) {
            self.consider(pid, Depth::Libraries);
        }
    }
}
