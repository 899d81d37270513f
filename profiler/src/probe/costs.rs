//! What probes take from a process: what the budget plans and charges with.

/// A window up to this long ends fast: the kernel still remembers that it waited for
/// all CPUs when the probes were put on, and takes them off without waiting again.
pub(super) const SHORT_NS: u64 = 3_000_000;

/// What probes take, as calibration found it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// A hit, beside what its program takes by its own measure, in nanoseconds.
    pub trap_ns: u64,
    /// To put all probes of the process on and take them off, in nanoseconds of
    /// the target's time.
    pub switch_ns: u64,
    /// How long breakpoints stay when a window is over.
    pub tails: Tails,
}

/// How long breakpoints stay when a window is over, and hits cost a trap: as long as
/// all of them would that come to as many hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tails {
    /// After a window of [`SHORT_NS`] and less, in nanoseconds.
    pub short_ns: u64,
    /// After a longer one, in nanoseconds.
    pub long_ns: u64,
}

impl Tails {
    /// Of all places at once.
    pub const AT_ONCE: Self = Self {
        short_ns: 300_000,
        long_ns: 8_000_000,
    };

    /// Of places that are taken off one after another, which takes `close_ns` for each:
    /// they stay for half of that time on average, and for one more are hits not counted.
    pub fn one_by_one(places: usize, close_ns: u64) -> Self {
        let tail_ns = close_ns.saturating_mul(places as u64 + 3) / 2;
        Self {
            short_ns: tail_ns,
            long_ns: tail_ns,
        }
    }

    /// After a window of this length.
    pub(super) fn after(&self, length_ns: u64) -> u64 {
        match length_ns <= SHORT_NS {
            true => self.short_ns,
            false => self.long_ns,
        }
    }

    /// Whether a window's end may take more than the window.
    pub(super) fn are_slow(&self) -> bool {
        self.short_ns > SHORT_NS
    }
}
