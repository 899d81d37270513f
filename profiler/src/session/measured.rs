//! The side of a recorder that takes what has a duration: a stack at one moment,
//! how long it lasted at another.

use profiler_ebpf::wire::{LONG_WAIT_NS, Measured, event, wait};

use super::{
    recorder::{Recorder, Sampled},
    waits::Wait,
};
use crate::{
    aggregate::{Owner, Values},
    decode::Sample,
    symbolize::Event,
    unwind::GAP,
};

/// The label that says what a goroutine waited for.
const REASON: &str = "wait_reason";
/// The label of stacks of those who waited, where others are there too.
const AT: &str = "at";
/// The label that says what a thread off the CPU waited for.
const STATE: &str = "thread_state";
/// It waited for something else than a CPU; the kernel's frames say for what.
const BLOCKED: &str = "blocked";
/// It wanted to run.
const WAITING: &str = "waiting for a CPU";

impl<T: Sampled> Recorder<T> {
    /// Takes the stack of something that begins.
    pub(super) fn measured(&mut self, measured: &Measured, sample: &Sample<'_>) {
        match measured.event {
            event::OFF_CPU => self.left_cpu(measured, sample),
            event::MUTEX => self.waited(Event::Mutex, measured, sample),
            event::BLOCK => self.waited(Event::Block, measured, sample),
            event::ALLOCATION => self.allocated(measured, sample),
            _ => self.tally.undecodable += 1,
        }
    }

    /// A goroutine has waited.
    fn waited(&mut self, event: Event, measured: &Measured, sample: &Sample<'_>) {
        let Some(mut owner) = self.unwind(sample) else {
            return;
        };
        let pid = measured.header.pid;
        let probed = self.probing.as_mut().and_then(|probing| probing.get(pid));
        let Some(probed) = probed else {
            self.tally.unknown_process += 1;
            return;
        };
        let reason = (measured.detail & wait::REASON) as usize;
        if let Some(reason) = probed.reasons.get(reason) {
            owner.labels.push((REASON.to_owned(), reason.clone()));
        }
        if event == Event::Mutex && measured.detail & wait::OF_WAITER != 0 {
            owner.labels.push((AT.to_owned(), "waiter".to_owned()));
        }
        owner.labels.sort_unstable();
        let latency = match event {
            Event::Block => clamped(measured.part_ns),
            _ => 0,
        };
        let values: Values = [1, clamped(measured.duration_ns), latency, 0];
        let began_before = measured.detail & wait::BEGAN_BEFORE != 0;
        let window = probed.window(measured.window, began_before).get(event);
        window.add_values(owner, &self.stack, sample.head.kernel_frames, values);
    }

    /// A thread has left the CPU.
    fn left_cpu(&mut self, measured: &Measured, sample: &Sample<'_>) {
        let Some(owner) = self.unwind(sample) else {
            return;
        };
        let wait = Wait {
            owner,
            stack: self.stack.as_slice().into(),
            kernel_frames: sample.head.kernel_frames,
            weight: measured.weight,
            is_runnable: measured.detail == 0,
            began_ns: measured.header.time_ns,
            counted_ns: 0,
        };
        if self.off_cpu.begin(u64::from(measured.header.tid), wait) {
            self.tally.ends_missed += 1;
        }
    }

    /// Takes the duration of something that has begun.
    pub(super) fn ended(&mut self, measured: &Measured) {
        let tid = u64::from(measured.header.tid);
        if measured.event != event::OFF_CPU {
            self.tally.undecodable += 1;
            return;
        }
        let duration = measured.duration_ns;
        if measured.weight > 0 {
            if let Some(wait) = self.off_cpu.end(tid) {
                self.off_cpu_time(&wait, duration, measured.part_ns);
            }
            return;
        }
        // A long one whose stack was not taken.
        if let Some(process) = self.owner(measured.header.pid) {
            let wait = Wait {
                owner: Owner {
                    process,
                    ..Owner::default()
                },
                stack: [GAP].into(),
                kernel_frames: 0,
                weight: 1,
                is_runnable: measured.detail == 0,
                began_ns: 0,
                counted_ns: 0,
            };
            self.tally.stacks_not_taken += 1;
            self.off_cpu_time(&wait, duration, measured.part_ns);
        }
    }

    /// Counts what threads have been off the CPU by `now_ns` that still are, as far
    /// as it is long enough to count for itself; all of it where `is_last`.
    pub(super) fn split_waits(&mut self, now_ns: u64, is_last: bool) {
        let mut waits = std::mem::take(&mut self.off_cpu);
        for wait in waits.open() {
            let so_far = now_ns.saturating_sub(wait.began_ns);
            if so_far >= LONG_WAIT_NS || is_last {
                let waiting = if wait.is_runnable { so_far } else { 0 };
                self.off_cpu_time(wait, so_far, waiting);
                wait.counted_ns = so_far;
            }
        }
        self.off_cpu = waits;
    }

    /// Counts `duration_ns` of a thread off the CPU, of which it waited the last
    /// `waiting_ns` for one, without what was counted before.
    fn off_cpu_time(&mut self, wait: &Wait, duration_ns: u64, waiting_ns: u64) {
        let is_long = duration_ns >= LONG_WAIT_NS;
        let weight = if is_long { 1 } else { wait.weight };
        let blocked_ns = duration_ns.saturating_sub(waiting_ns);
        let counted = wait.counted_ns;
        let parts = [
            (BLOCKED, blocked_ns, counted.min(blocked_ns)),
            (WAITING, waiting_ns, counted.saturating_sub(blocked_ns)),
        ];
        for (state, ns, before_ns) in parts {
            if ns > before_ns {
                let count = if before_ns == 0 { weight } else { 0 };
                let ns = (ns - before_ns).saturating_mul(u64::from(weight));
                let values: Values = [i64::from(count), clamped(ns), 0, 0];
                let mut owner = wait.owner.clone();
                owner.labels.push((STATE.to_owned(), state.to_owned()));
                owner.labels.sort_unstable();
                let window = self.windows.get(Event::OffCpu);
                window.add_values(owner, &wait.stack, wait.kernel_frames, values);
            }
        }
    }
}

fn clamped(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}
