//! Windows in which probes are on, and what they took.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Header;

/// What probes took from a process so far: the value of the map `PROBE_SHARES`,
/// keyed by pid. Programs alone write it, by atomic additions: they run on all CPUs
/// at once, and one can be put aside in the middle for another on the same CPU.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ProbeShare {
    /// How often a probe was hit, whatever came of it.
    pub hits: u64,
    /// Of these, those outside of a window, or when its share was spent.
    pub refused: u64,
    /// Of these, those in a window that were no call: the stack grew first, and the
    /// function began once more.
    pub repeated: u64,
    /// What the programs of all others took, in nanoseconds.
    pub program_ns: u64,
    /// Ticks ([`TICK_PERIOD_NS`]) in windows that found a thread of it in user mode.
    pub user_ticks: u64,
    /// Ticks in windows that found one in the kernel, where hits are dealt with.
    pub kernel_ticks: u64,
}

/// How far apart the ticks are that look, on each CPU, what a window's process is at.
pub const TICK_PERIOD_NS: u64 = 400_000;
/// What a tick takes of the process that it finds, in nanoseconds: an interrupt and a
/// small program, on a virtual machine.
const TICK_NS: u64 = 3_000;

impl ProbeShare {
    /// The hits that events are made of.
    pub fn admitted(&self) -> u64 {
        self.hits
            .wrapping_sub(self.refused)
            .wrapping_sub(self.repeated)
    }

    /// What it comes to, where each hit takes `trap_ns` beside the program.
    #[inline(always)]
    pub fn charge_ns(&self, trap_ns: u64) -> u64 {
        let ticks = self.user_ticks.wrapping_add(self.kernel_ticks);
        self.hits
            .wrapping_mul(trap_ns)
            .wrapping_add(self.program_ns)
            .wrapping_add(ticks.wrapping_mul(TICK_NS))
    }
}

/// When hits of a process's probes are wanted: the value of the map
/// `PROBE_WINDOWS`, keyed by pid. Userspace alone writes it.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ProbeWindow {
    /// Which window it is.
    pub number: u64,
    /// `CLOCK_MONOTONIC` of its beginning, in nanoseconds.
    pub opens_ns: u64,
    /// And of its end.
    pub closes_ns: u64,
    /// Since when probes have been on without a pause: what began before was not seen.
    pub since_ns: u64,
    /// What a hit takes beside the program, in nanoseconds.
    pub trap_ns: u64,
    /// The [`ProbeShare::charge_ns`] at which the share of the window is spent.
    pub spent_at_ns: u64,
}

/// The share of a window is spent, told once a window: probes of the process do
/// nothing until the next, and are to be taken off.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ShareSpent {
    /// `kind` is [`kind::SHARE_SPENT`], `time_ns` when the window ended.
    pub header: Header,
    /// [`ProbeWindow::number`].
    pub window: u64,
}

/// Bits of a probe's cookie.
pub mod cookie {
    /// It sits on the branch of a function's check of the stack: a hit whose flags
    /// say that the branch is taken is no call yet.
    pub const STACK_CHECK: u64 = 1;
    /// It sits where large allocations pass, and not where spans of blocks are used up.
    pub const LARGE: u64 = 2;
    /// From here up: allocations of so many bytes and less are none, as another place
    /// sees them again.
    pub const LEAST_BYTES_SHIFT: u32 = 16;
}
