//! The side of a recorder that takes what has a duration: a stack at one moment,
//! how long it lasted at another.

use profiler_ebpf::wire::{LONG_WAIT_NS, Measured, event, wait};

use super::{
    recorder::{Recorder, Sampled},
    threads::ran_ns,
    waits::Wait,
};
use crate::{
    aggregate::{Owner, Values},
    decode::Sample,
    symbolize::Event,
    unwind::GAP,
};

/// The label that says what a goroutine waited for.
pub(super) const REASON: &str = "wait_reason";
/// The label of waits that were not over.
pub(super) const OPEN: &str = "open";
/// The label of stacks of those who waited, where others are there too.
const AT: &str = "at";
/// The label that says what a thread off the CPU waited for.
pub const STATE: &str = "thread_state";
/// It waited for something else than a CPU; the kernel's frames say for what.
pub(super) const BLOCKED: &str = "blocked";
/// It wanted to run.
pub(super) const WAITING: &str = "waiting for a CPU";

/// What is recorded, on the monotonic clock: what was before or is after counts only
/// as far as it lies in between.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub begin_ns: u64,
    pub end_ns: u64,
}

impl<T: Sampled> Recorder<T> {
    /// Takes the stack of something that begins.
    pub(super) fn measured(&mut self, measured: &Measured, sample: &Sample<'_>) {
        match measured.event {
            event::OFF_CPU => self.left_cpu(measured, sample),
            event::MUTEX => self.waited(Event::Mutex, measured, sample),
            event::BLOCK => self.waited(Event::Block, measured, sample),
            event::BLOCK_IO => self.io_begins(measured, sample, false),
            event::BLOCK_IO_OF_KERNEL => self.io_begins(measured, sample, true),
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
        let waiter = match event {
            Event::Mutex => measured.part_ns,
            _ => sample.head.goid,
        };
        probed.note_end(measured.window, waiter);
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
            ran_ns: None,
        };
        if self.off_cpu.begin(u64::from(measured.header.tid), wait) {
            self.tally.ends_missed += 1;
        }
    }

    /// Takes the duration of something that has begun.
    pub(super) fn ended(&mut self, measured: &Measured) {
        let tid = u64::from(measured.header.tid);
        match measured.event {
            event::OFF_CPU => {}
            event::BLOCK_IO => return self.io_ends(measured),
            _ => {
                self.tally.undecodable += 1;
                return;
            }
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
                began_ns: measured.header.time_ns.saturating_sub(duration),
                counted_ns: 0,
                ran_ns: None,
            };
            self.tally.stacks_not_taken += 1;
            self.tally.not_taken_ns += duration;
            self.off_cpu_time(&wait, duration, measured.part_ns);
        }
    }

    /// Counts what threads have been off the CPU by `now_ns` that still are, as far
    /// as it is long enough to count for itself; all of it where `is_last`.
    pub(super) fn split_waits(&mut self, now_ns: u64, is_last: bool) {
        let mut waits = std::mem::take(&mut self.off_cpu);
        for (tid, wait) in waits.open() {
            let mut so_far = now_ns.saturating_sub(wait.began_ns);
            // Of a thread that was there at the start nobody has said yet that it was
            // on a CPU; if it was, it does not wait as its stack says.
            if let Some(before_ns) = wait.ran_ns {
                let pid = self.table.get(wait.owner.process).pid;
                let ran = ran_ns(pid, u32::try_from(tid).unwrap_or(0));
                let ran_since_ns = ran.unwrap_or(before_ns).saturating_sub(before_ns);
                so_far = so_far.saturating_sub(ran_since_ns);
            }
            if so_far >= LONG_WAIT_NS || is_last {
                let waiting = if wait.is_runnable { so_far } else { 0 };
                self.off_cpu_time(wait, so_far, waiting);
                wait.counted_ns = so_far;
            }
        }
        self.off_cpu = waits;
    }

    /// Counts `duration_ns` of a thread off the CPU, of which it waited the last
    /// `waiting_ns` for one, without what was counted before and what is not in the
    /// span of the recording.
    fn off_cpu_time(&mut self, wait: &Wait, duration_ns: u64, waiting_ns: u64) {
        let is_long = duration_ns >= LONG_WAIT_NS;
        let weight = if is_long { 1 } else { wait.weight };
        let blocked_ns = duration_ns.saturating_sub(waiting_ns);
        let early_ns = self.span.begin_ns.saturating_sub(wait.began_ns);
        let before_ns = wait.counted_ns.max(early_ns);
        let most_ns = self.span.end_ns.saturating_sub(wait.began_ns);
        let parts = [
            (BLOCKED, 0, blocked_ns),
            (WAITING, blocked_ns, blocked_ns.saturating_add(waiting_ns)),
        ];
        for (state, from_ns, to_ns) in parts {
            let begin_ns = from_ns.max(before_ns);
            let end_ns = to_ns.min(most_ns);
            if end_ns > begin_ns {
                let is_counted = wait.counted_ns > from_ns;
                let count = if is_counted { 0 } else { weight };
                let ns = (end_ns - begin_ns).saturating_mul(u64::from(weight));
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

#[cfg(test)]
mod tests {
    use profiler_ebpf::wire::{self, Header, kind};
    use zerocopy::IntoBytes;

    use super::*;
    use crate::session::fake::{PID, PLAIN, Told, recorder};

    const MS: u64 = 1_000_000;

    fn off_cpu(kind: u32, time_ns: u64, weight: u32) -> Measured {
        Measured {
            window: 0,
            header: Header {
                kind,
                time_ns,
                tid: 9,
                ..PLAIN.header
            },
            event: event::OFF_CPU,
            weight,
            duration_ns: 0,
            part_ns: 0,
            detail: 1,
        }
    }

    /// The thread leaves at a time, with a stack that stands for so many.
    fn leaves(recorder: &mut Recorder<Told>, time_ns: u64, weight: u32) {
        let begin = off_cpu(kind::MEASURED, time_ns, weight);
        let sample = wire::Sample {
            header: begin.header,
            ..PLAIN
        };
        recorder.take(&[begin.as_bytes(), sample.as_bytes()].concat());
    }

    /// It is back after `duration_ns`, of which it wanted to run for `part_ns`.
    fn is_back(recorder: &mut Recorder<Told>, duration_ns: u64, part_ns: u64, weight: u32) {
        let end = Measured {
            duration_ns,
            part_ns,
            ..off_cpu(kind::ENDED, 100 * MS, weight)
        };
        recorder.take(end.as_bytes());
    }

    /// The values by state, `blocked` first.
    fn values(recorder: &mut Recorder<Told>) -> Vec<(String, i64, i64)> {
        let window = recorder.windows.get(Event::OffCpu);
        let stacks = window.stacks();
        let mut values: Vec<_> = stacks
            .iter()
            .map(|stack| {
                let state = &stack
                    .labels
                    .iter()
                    .find(|label| label.0 == STATE)
                    .unwrap()
                    .1;
                (state.clone(), stack.values[0], stack.values[1])
            })
            .collect();
        values.sort_unstable();
        values
    }

    fn of(state: &str, count: i64, ns: u64) -> (String, i64, i64) {
        (state.to_owned(), count, clamped(ns))
    }

    #[test]
    fn a_short_wait_stands_for_as_many_as_its_weight_and_a_long_one_for_itself() {
        let mut recorder = recorder();
        leaves(&mut recorder, MS, 8);
        is_back(&mut recorder, 2 * MS, MS / 2, 8);
        assert_eq!(
            values(&mut recorder),
            [of(BLOCKED, 8, 12 * MS), of(WAITING, 8, 4 * MS)]
        );
        leaves(&mut recorder, 5 * MS, 8);
        is_back(&mut recorder, 20 * MS, 0, 8);
        assert_eq!(
            values(&mut recorder),
            [of(BLOCKED, 9, 32 * MS), of(WAITING, 8, 4 * MS)]
        );
        assert_eq!(recorder.tally.undecodable, 0);
    }

    #[test]
    fn a_long_wait_without_a_stack_counts_and_is_said() {
        let mut recorder = recorder();
        is_back(&mut recorder, 20 * MS, 5 * MS, 0);
        assert_eq!(
            values(&mut recorder),
            [of(BLOCKED, 1, 15 * MS), of(WAITING, 1, 5 * MS)]
        );
        let tally = &recorder.tally;
        assert_eq!((tally.stacks_not_taken, tally.not_taken_ns), (1, 20 * MS));
        let said = tally.incomplete();
        assert!(said.iter().any(|(_, what)| what.starts_with("long waits")));
    }

    #[test]
    fn an_open_wait_is_divided_among_the_windows_it_is_in() {
        let mut recorder = recorder();
        leaves(&mut recorder, 10 * MS, 1);
        recorder.split_waits(40 * MS, false);
        assert_eq!(values(&mut recorder), [of(BLOCKED, 1, 30 * MS)]);
        recorder.windows.take();
        is_back(&mut recorder, 50 * MS, 5 * MS, 1);
        assert_eq!(
            values(&mut recorder),
            [of(BLOCKED, 0, 15 * MS), of(WAITING, 1, 5 * MS)]
        );
        // Too short to count for itself, unless it is the end.
        recorder.windows.take();
        leaves(&mut recorder, 100 * MS, 1);
        recorder.split_waits(101 * MS, false);
        assert!(values(&mut recorder).is_empty());
        recorder.split_waits(102 * MS, true);
        assert_eq!(values(&mut recorder), [of(BLOCKED, 1, 2 * MS)]);
    }

    #[test]
    fn what_is_outside_of_the_recording_does_not_count() {
        let mut recorder = recorder();
        (recorder.span.begin_ns, recorder.span.end_ns) = (10 * MS, 100 * MS);
        leaves(&mut recorder, 5 * MS, 1);
        is_back(&mut recorder, 20 * MS, 12 * MS, 1);
        assert_eq!(
            values(&mut recorder),
            [of(BLOCKED, 1, 3 * MS), of(WAITING, 1, 12 * MS)]
        );
        recorder.windows.take();
        leaves(&mut recorder, 90 * MS, 1);
        is_back(&mut recorder, 30 * MS, 0, 1);
        assert_eq!(values(&mut recorder), [of(BLOCKED, 1, 10 * MS)]);
        recorder.windows.take();
        leaves(&mut recorder, 2 * MS, 1);
        is_back(&mut recorder, 3 * MS, 0, 1);
        assert!(values(&mut recorder).is_empty());
    }

    #[test]
    fn an_end_that_nobody_told_of_is_counted() {
        let mut recorder = recorder();
        leaves(&mut recorder, MS, 1);
        leaves(&mut recorder, 2 * MS, 1);
        assert_eq!(recorder.tally.ends_missed, 1);
        is_back(&mut recorder, MS, 0, 1);
        is_back(&mut recorder, MS, 0, 1);
        assert_eq!(values(&mut recorder), [of(BLOCKED, 1, MS)]);
    }

    #[test]
    fn what_is_not_known_is_not_readable_or_of_nobody() {
        let mut recorder = recorder();
        let unknown = Measured {
            event: 77,
            ..off_cpu(kind::ENDED, MS, 0)
        };
        recorder.take(unknown.as_bytes());
        assert_eq!(recorder.tally.undecodable, 1);
        let mut stranger = off_cpu(kind::ENDED, MS, 0);
        stranger.header.pid = PID - 1;
        recorder.take(stranger.as_bytes());
        assert_eq!(recorder.tally.unknown_process, 1);
        assert!(values(&mut recorder).is_empty());
    }
}
