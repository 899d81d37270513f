//! Clocks of the threads that watch: the time of records, and the CPU time of targets.

/// What the target has had of the CPUs by some time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    pub time_ns: u64,
    /// The CPU time, and how much of it the kernel's tick found in user mode and in all;
    /// none where it is gone.
    pub used: Option<Used>,
}

/// CPU time of all threads of a process so far, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    /// To the nanosecond, but for what threads take that run right now.
    pub cpu_ns: u64,
    /// What ticks found in user mode: a sample.
    pub user_ns: u64,
    /// What they found at all.
    pub found_ns: u64,
}

impl Used {
    /// The share of user mode since another.
    pub fn user_share(&self, earlier: &Used) -> f64 {
        let found_ns = self.found_ns.saturating_sub(earlier.found_ns);
        match self.user_ns.saturating_sub(earlier.user_ns) as f64 / found_ns as f64 {
            share if share.is_finite() => share.min(1.0),
            _ => 1.0,
        }
    }
}

impl Reading {
    pub fn of(pid: u32) -> Self {
        Self {
            time_ns: monotonic_ns(),
            used: used(pid),
        }
    }

    /// The time since another, and the CPU time of the target in it: none where it is
    /// gone.
    pub fn since(&self, earlier: &Reading) -> (u64, u64) {
        let both = self.used.zip(earlier.used);
        let cpu_ns = both.map(|(now, before)| now.cpu_ns.saturating_sub(before.cpu_ns));
        let time_ns = self.time_ns.saturating_sub(earlier.time_ns);
        (time_ns, cpu_ns.unwrap_or(0))
    }
}

/// Lets the calling thread go before others: while it waits for a CPU, the target pays
/// for breakpoints that nobody wants any more. It works for some tenths of a
/// millisecond a window. Where that is not allowed it goes on as it is.
pub fn hurry() {
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

/// None where it is gone.
pub(super) fn used(pid: u32) -> Option<Used> {
    // `MAKE_PROCESS_CPUCLOCK` with `CPUCLOCK_SCHED`, `CPUCLOCK_VIRT` and `CPUCLOCK_PROF`,
    // include/linux/posix-timers_types.h.
    let of = |clock| clock_ns(!(pid as i32) << 3 | clock);
    Some(Used {
        cpu_ns: of(2)?,
        user_ns: of(1)?,
        found_ns: of(0)?,
    })
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
