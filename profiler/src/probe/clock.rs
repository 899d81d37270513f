//! Clocks of the threads that watch: the time of records, and the CPU time of targets.

/// What the target has had of the CPUs by some time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    pub time_ns: u64,
    /// The time in user mode, as the kernel's tick finds it; none where it is gone. Hits
    /// are no part of it.
    pub user_ns: Option<u64>,
}

impl Reading {
    pub fn of(pid: u32) -> Self {
        Self {
            time_ns: monotonic_ns(),
            user_ns: user_ns(pid),
        }
    }

    /// The time since another, and the target's own time in it: none where it is gone.
    pub fn since(&self, earlier: &Reading) -> (u64, u64) {
        let (now, before) = (self.user_ns, earlier.user_ns);
        let user_ns = now
            .zip(before)
            .map(|(now, before)| now.saturating_sub(before));
        let time_ns = self.time_ns.saturating_sub(earlier.time_ns);
        (time_ns, user_ns.unwrap_or(0))
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

/// The time of all threads of a process in user mode so far, in nanoseconds; none where
/// it is gone.
pub(super) fn user_ns(pid: u32) -> Option<u64> {
    // `MAKE_PROCESS_CPUCLOCK` with `CPUCLOCK_VIRT`, include/linux/posix-timers_types.h.
    clock_ns(!(pid as i32) << 3 | 1)
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
