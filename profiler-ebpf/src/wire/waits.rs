//! Waits of goroutines: which are wanted, and those that are not over.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Code;

/// Bits of [`super::Measured::detail`] of a wait, beside the reason's number.
pub mod wait {
    /// The reason.
    pub const REASON: u64 = 0xff;
    /// It began before somebody watched: the duration is since then.
    pub const BEGAN_BEFORE: u64 = 1 << 8;
    /// The stack is that of the goroutine that waited.
    pub const OF_WAITER: u64 = 1 << 9;
}

/// Whose stack a wait for a semaphore is counted for: bits of [`WaitLayout::at`].
pub mod at {
    /// That of the goroutine that woke the one that waited.
    pub const WAKER: u8 = 1;
    /// Its own.
    pub const WAITER: u8 = 2;
}

/// Something in the memory of a process: the key of the maps `PARKED` and `WAITERS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct WaitKey {
    /// Where it is: of both maps the goroutine's `g`.
    pub address: u64,
    /// The process.
    pub pid: u64,
}

/// A goroutine that parked: the value of the map `PARKED`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Parked {
    /// When, on the monotonic clock.
    pub since_ns: u64,
    /// When it could go on; 0 where nobody said so.
    pub ready_ns: u64,
    /// What it waits for.
    pub reason: u64,
}

/// A goroutine that waits for a semaphore: the value of the map `WAITERS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Waiter {
    /// Since when, on the monotonic clock.
    pub since_ns: u64,
    /// The semaphore; 0 where its other waiters do not matter.
    pub address: u64,
}

/// What waits for a semaphore, as far as it began while somebody watched: the value of the
/// map `QUEUES`, whose keys are those of semaphores.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Queue {
    /// How many.
    pub waiters: u64,
    /// The sum of when each began to wait, or was counted last.
    pub since_sum_ns: u64,
    /// When they were counted last.
    pub counted_ns: u64,
    /// Since when somebody watches: who began to wait before is not counted here.
    pub watched_since_ns: u64,
}

/// What of a process's waits is wanted, and where its runtime keeps what: the value of
/// the map `WAIT_LAYOUTS`, keyed by pid.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct WaitLayout {
    /// Wait reasons that are wanted, a bit for each number.
    pub reasons: [u64; 2],
    /// Waits that are shorter are left out.
    pub min_wait_ns: u64,
    /// Where `runtime.gopark` is.
    pub park: Code,
    /// `g.waitreason`.
    pub g_wait_reason: u16,
    /// Bits of [`at`].
    pub at: u8,
    /// Not zero where an unlock counts for all that wait.
    pub counts_all: u8,
    /// Zero.
    pub reserved: u32,
    /// Where the runtime counts the bytes that were allocated; 0 where not known.
    pub total_alloc: u64,
    /// Where spans are used up.
    pub span: SpanLayout,
}

/// Where the runtime keeps what of the spans that it allocates from: byte offsets, all
/// zero where nobody asks.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SpanLayout {
    /// `mcache.alloc`: the spans, by their class.
    pub cache_alloc: u16,
    /// `mspan.allocCount`: blocks that are used.
    pub used: u16,
    /// `mspan.allocCountBeforeCache`: those that were when it was taken.
    pub used_before: u16,
    /// `mspan.elemsize`: the size of one.
    pub block_bytes: u16,
}

impl WaitLayout {
    /// Whether waits for this reason are wanted.
    #[inline(always)]
    pub fn wants(&self, reason: u64) -> bool {
        let half = if reason & 64 == 0 {
            self.reasons[0]
        } else {
            self.reasons[1]
        };
        reason < 128 && half >> (reason & 63) & 1 != 0
    }
}
