//! What a recording counts beside its samples: all that is missing, by reason.

use std::collections::{BTreeMap, BTreeSet};

use profiler_ebpf::wire::Counter;

use super::{Latency, ProbeFacts};
use crate::{probe::Counters, unwind::StackEnd};

/// What was counted beside the samples.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// The kernel side's counters.
    pub kernel: Counters,
    /// How the stacks end, in samples.
    pub ends: BTreeMap<StackEnd, u64>,
    /// Ticks of the sampler that were due; 0 where the clock does not say.
    pub ticks_due: u64,
    /// Those of them that did not come.
    pub ticks_missed: u64,
    /// Ticks since the start that did not come while a CPU had nothing to do: nothing is
    /// missing for them.
    pub ticks_idle: u64,
    /// CPUs that came online meanwhile and are sampled since they were seen to be.
    pub cpus_late: u64,
    /// CPUs that came online meanwhile and cannot be sampled.
    pub cpus_refused: u64,
    /// Records that could not be read.
    pub undecodable: u64,
    /// Samples of processes that exited before goprof could look at them.
    pub unknown_process: u64,
    /// Samples of programs that had exited before goprof could look at them:
    /// whether they were wanted is not known.
    pub unseen: u64,
    /// Samples of programs that turned out not to be wanted: those that had
    /// just begun when they were taken.
    pub unwanted: u64,
    /// Samples taken with a layout of the runtime that then proved wrong.
    pub disproven: u64,
    /// Processes that exited before goprof could look at them.
    pub vanished: u64,
    /// Go processes that could not be added to the kernel's table.
    pub not_added: u64,
    /// Labels cut short, once for each sample.
    pub labels_truncated: u64,
    /// Labels that could not be had, once for each sample.
    pub labels_missed: u64,
    /// Ends of waits that were not told of, so that how long they lasted is not
    /// known.
    pub ends_missed: u64,
    /// Threads that were there at the start and are not followed until they leave the
    /// CPU: there were too many.
    pub threads_left_out: u64,
    /// Waits left out as they may have begun when there was no room to note it.
    pub waits_doubtful: u64,
    /// Windows whose waits are left out, as who waited through them was looked at too
    /// late.
    pub windows_left_out: u64,
    /// Windows of which those are missing that waited through them, or still waited at
    /// the end: the program's goroutines could not be looked at.
    pub looks_missed: u64,
    /// Long times off the CPU, counted in full, whose stack was not taken.
    pub stacks_not_taken: u64,
    /// How long these were, in nanoseconds.
    pub not_taken_ns: u64,
    /// How long requests to block devices took, by device.
    pub latency: BTreeMap<String, Latency>,
    /// Requests that became part of another, which is the one that counts.
    pub io_merged: u64,
    /// Requests that were not done yet at the end.
    pub io_open: u64,
    /// Times that the kernel did not tell of a request, of whomever, as it was telling
    /// of another on that CPU.
    pub io_missed: u64,
    /// Times that what was read and remembered of code was let go of, as memory
    /// was short. Nothing is missing for it.
    pub evictions: u64,
    /// What probes of each process came to.
    pub probes: Vec<ProbeFacts>,
    /// What is not recorded of which program, and why.
    pub off: BTreeSet<String>,
    /// What the kernel side had to say, in words.
    pub diagnostics: Vec<String>,
}

impl Tally {
    /// What a reader of the profile must know, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let lost = self.lost().into_iter();
        let lost = lost.map(|(count, reason)| format!("lost {count} samples: {reason}"));
        let incomplete = self.incomplete().into_iter();
        let incomplete = incomplete.map(|(count, what)| format!("{count} {what}"));
        let said = self.off.iter().chain(&self.diagnostics).cloned();
        lost.chain(incomplete).chain(said).collect()
    }

    /// Samples that were taken but are in no profile, by reason.
    pub fn lost(&self) -> Vec<(u64, &'static str)> {
        [
            (
                self.kernel.get(Counter::SamplesRingFull),
                "ring buffer full",
            ),
            (self.undecodable, "record not readable"),
            (self.unknown_process, "process gone before it was looked at"),
            (self.disproven, "Go runtime not as its version says"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .collect()
    }

    /// Anything else that is missing from the profile, by reason.
    pub fn incomplete(&self) -> Vec<(u64, &'static str)> {
        [
            (
                // A stray one changes nothing in what is statistics anyhow.
                match self.ticks_missed * 100 >= self.ticks_due {
                    true => self.ticks_missed,
                    false => 0,
                },
                "ticks of the sampler missing: the kernel throttled it or held it up",
            ),
            (
                self.cpus_late,
                "CPUs came online meanwhile: sampled from half a second after",
            ),
            (
                self.cpus_refused,
                "CPUs came online meanwhile and cannot be sampled: the kernel refuses",
            ),
            (
                self.kernel.get(Counter::EventsRingFull),
                "starts and exits of processes and threads not seen: ring buffer full",
            ),
            (
                self.not_added,
                "processes not sampled: target table full",
            ),
            (
                self.kernel.get(Counter::TargetsFull),
                "programs not sampled from their start: target table full",
            ),
            (
                self.kernel.get(Counter::NoKernelStack),
                "samples without their kernel stack",
            ),
            (self.vanished, "processes gone before they were looked at"),
            (
                self.unseen,
                "samples of those, which are left out: wanted or not",
            ),
            (
                self.kernel.get(Counter::ThreadsFull),
                "times that threads left the CPU not followed: table of threads full",
            ),
            (
                self.threads_left_out,
                "threads not followed from the start: table of threads full",
            ),
            (
                self.kernel.get(Counter::EndsRingFull),
                "ends of waits lost: ring buffer full",
            ),
            (
                self.ends_missed,
                "waits left out, as nobody told of their end",
            ),
            (
                self.kernel.get(Counter::WaitsFull),
                "waits not followed: table of waits full",
            ),
            (
                self.waits_doubtful,
                "waits left out whose beginning is not known: table of waits full",
            ),
            (
                self.windows_left_out,
                "windows left out, as who waited through them was looked at too late",
            ),
            (
                self.looks_missed,
                "windows without what waited through them, as goroutines could not be looked at",
            ),
            (
                self.kernel.get(Counter::ProbesNested),
                "waits and allocations lost: a probe was hit in the midst of another",
            ),
            (
                self.stacks_not_taken,
                "long waits without their stack, by threads that had left the CPU often before",
            ),
            (
                self.kernel.get(Counter::IoNotPaired),
                "requests not followed, as there was another to the same place",
            ),
            (
                self.io_missed,
                "times that the kernel did not tell of a request, of whomever, as it was telling of another",
            ),
            (self.io_open, "requests left out, as they were not done yet"),
            (self.labels_truncated, "labels of samples cut short"),
            (self.labels_missed, "labels of samples left out"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_say_all_that_is_missing() {
        assert_eq!(Tally::default().notes(), [""; 0]);
        let tally = Tally {
            undecodable: 2,
            cpus_late: 1,
            labels_truncated: 3,
            off: BTreeSet::from(["/bin/a: no goroutine ids".to_owned()]),
            diagnostics: vec!["said".to_owned()],
            ..Tally::default()
        };
        let expected = [
            "lost 2 samples: record not readable",
            "1 CPUs came online meanwhile: sampled from half a second after",
            "3 labels of samples cut short",
            "/bin/a: no goroutine ids",
            "said",
        ];
        assert_eq!(tally.notes(), expected);
    }
}
