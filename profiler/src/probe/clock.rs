//! Clocks of the threads that watch: the time of records, and the CPU time of targets.

/// What the target has had of the CPUs by some time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    pub time_ns: u64,
    /// None where it is gone.
    pub cpu_ns: Option<u64>,
}

impl Reading {
    pub fn of(pid: u32) -> Self {
        Self {
            time_ns: monotonic_ns(),
            cpu_ns: cpu_ns(pid),
        }
    }

    /// The time since another, and the CPU time of the target in it: none where it is
    /// gone.
    pub fn since(&self, earlier: &Reading) -> (u64, u64) {
        let (now, before) = (self.cpu_ns, earlier.cpu_ns);
        let cpu_ns = now
            .zip(before)
            .map(|(now, before)| now.saturating_sub(before));
        let time_ns = self.time_ns.saturating_sub(earlier.time_ns);
        (time_ns, cpu_ns.unwrap_or(0))
    }
}

/// Lets the calling thread go before others: while it waits for a CPU, the target pays
/// for breakpoints that nobody wants any more. It works for some tenths of a
/// millisecond a window. Where that is not allowed it goes on as it is.
pub(super) fn hurry() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: a structure of our own; 0 is the calling thread.
    unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const parameters,
        );
    }
}

/// The CPU time of all threads of a process so far, in nanoseconds.
pub(super) fn cpu_ns(pid: u32) -> Option<u64> {
    // `MAKE_PROCESS_CPUCLOCK` with `CPUCLOCK_SCHED`, include/linux/posix-timers_types.h.
    clock_ns(!(pid as i32) << 3 | 2)
}

/// The clock of records and windows, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    // Every kernel has it.
    clock_ns(libc::CLOCK_MONOTONIC).unwrap_or(0)
}

fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a structure of our own.
    let done = unsafe { libc::clock_gettime(clock, &raw mut time) } == 0;
    done.then_some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
