//! Reads what the runtimes of the targets count of themselves, a few at a time, so
//! that all of it together takes a thousandth of a CPU at most. Sums nothing.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::state::{State, lock};
use crate::{
    gomemory::{Live, Memory, Statistics},
    metrics::Observed,
    process::{Process, is_alive},
};

/// How often a process is read at most.
const READ_EVERY: Duration = Duration::from_secs(10);
/// Time after which the others are left for later: windows wait meanwhile.
const PASS_WITHIN: Duration = Duration::from_millis(100);
/// Goroutines of one process that are counted at most: a million take about a second.
const MOST_GOROUTINES: u64 = 1 << 20;
/// For how many times as long as it took nothing is read after.
const REST: u32 = 999;

/// When what was read, and is to be.
#[derive(Debug, Default)]
pub(super) struct Runtimes {
    /// By pid.
    read: HashMap<u32, Instant>,
    rests_until: Option<Instant>,
}

impl Runtimes {
    /// Reads those processes whose turn it is.
    pub(super) fn look(&mut self, state: &State, processes: &[(Arc<Process>, Observed)]) {
        let started = Instant::now();
        let now: Vec<u32> = processes.iter().map(|(process, _)| process.pid).collect();
        self.read.retain(|pid, _| now.contains(pid));
        if !state.config().metrics.runtimes {
            self.read.clear();
            lock(&state.usage).forget_runtimes();
            return;
        }
        if self.rests_until > Some(started) {
            return;
        }
        let mut due: Vec<_> = processes
            .iter()
            .map(|process| (self.read.get(&process.0.pid).copied(), process))
            .filter(|(last, _)| last.is_none_or(|last| started - last >= READ_EVERY))
            .collect();
        due.sort_by_key(|(last, _)| *last);
        let used = cpu_time();
        let mut rests = Duration::ZERO;
        for (_, (process, observed)) in due {
            if started.elapsed() > PASS_WITHIN {
                break;
            }
            self.read.insert(process.pid, Instant::now());
            let result = match read(process, &mut rests) {
                // Whose it is nobody asks any more.
                None if !is_alive(process.pid) => continue,
                None => "failure",
                Some(statistics) => {
                    lock(&state.usage).add_runtime(observed, &statistics);
                    match statistics.unknown.is_empty() {
                        true => "success",
                        false => "partial",
                    }
                }
            };
            let readings = &state.metrics.runtime_readings;
            readings.with_label_values(&[result]).inc();
        }
        let took = cpu_time().saturating_sub(used);
        state.metrics.runtime_seconds.inc_by(took.as_secs_f64());
        self.rests_until = Some(Instant::now() + rests * REST);
    }
}

/// CPU time of this thread so far.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the timespec that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// None where it cannot be read, or is not the same program any more. Adds the CPU
/// time that it took, but for the first look at a binary, which is had once.
fn read(process: &Process, took: &mut Duration) -> Option<Statistics> {
    let memory = Live::open(process.pid).ok()?;
    process.go_program(&memory)?;
    let used = cpu_time();
    let statistics = process.statistics(&memory, &[], MOST_GOROUTINES)?;
    *took += cpu_time().saturating_sub(used);
    memory.is_there().then_some(statistics)
}
