//! Where the runtime's variables keep what, by version: the collector's controller,
//! the scheduler with its histogram, the counts of collections. A version can lie:
//! whoever reads them holds what is there against what must be true.

use super::version::GoVersion;

/// What lies around `memstats.numgc` (`runtime/mstats.go`), by byte offsets from
/// it that are the same in all versions.
#[derive(Debug, Clone, Copy)]
pub struct GcFields;

impl GcFields {
    /// `last_gc_unix uint64`: when the last collection ended, in nanoseconds
    /// since 1970.
    pub const LAST_GC_UNIX: i64 = -4112;
    /// `pause_total_ns uint64`.
    pub const PAUSE_TOTAL_NS: i64 = -4104;
    /// `pause_ns [256]uint64`: a ring of how long the world was stopped, whose
    /// latest entry is that of `numgc + 255`.
    pub const PAUSE_NS: i64 = -4096;
    /// `pause_end [256]uint64`: when, in nanoseconds since 1970.
    pub const PAUSE_END: i64 = -2048;
    /// `numforcedgc uint32`.
    pub const NUM_FORCED: i64 = 4;
    /// `gc_cpu_fraction float64`.
    pub const CPU_FRACTION: i64 = 8;
    /// Entries of the rings.
    pub const RING: usize = 256;
}

/// Byte offsets in `runtime.gcControllerState` (`runtime/mgcpacer.go`). The
/// fields after the first are uint64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcControllerFields {
    /// `gcPercent atomic.Int32`: GOGC, -1 for off.
    pub gc_percent: u64,
    /// `memoryLimit atomic.Int64`: GOMEMLIMIT, the greatest int64 for none.
    pub memory_limit: u64,
    /// `heapMinimum uint64`.
    pub heap_minimum: u64,
    /// `gcPercentHeapGoal`: the goal by GOGC, the greatest uint64 for none.
    pub goal: u64,
    /// `heapLive`: bytes allocated or marked since the last collection began.
    pub heap_live: u64,
    /// `heapMarked`: bytes that the last collection found in use.
    pub heap_marked: u64,
    /// `heapInUse`, `heapReleased`, `heapFree`, `totalAlloc`, `totalFree` and
    /// `mappedReady`, words in this order from here.
    pub heap_in_use: u64,
}

impl GcControllerFields {
    /// Those of a version; None where goprof does not know it.
    pub fn of(version: &GoVersion) -> Option<GcControllerFields> {
        if !version.is_known_release() {
            return None;
        }
        // Since 1.21 the fields from heapLive on stand in the same order; before,
        // others stood in between.
        let shift = |offset: u64, by: i64| offset.checked_add_signed(by);
        let by = match version.major_minor() {
            (1, 19) => 32,
            (1, 20) => -24,
            _ => 0,
        };
        Some(GcControllerFields {
            gc_percent: 0,
            memory_limit: 8,
            heap_minimum: 16,
            goal: shift(72, by)?,
            heap_live: shift(104, by)?,
            heap_marked: shift(152, by)?,
            heap_in_use: shift(272, by)?,
        })
    }
}

/// Byte offsets in `runtime.schedt` (`runtime/runtime2.go`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedFields {
    /// `goidgen uint64`: greater than or equal to every id of a goroutine, but
    /// for those that threads have set aside.
    pub goid_gen: u64,
    /// `lock mutex`.
    pub lock: u64,
    /// `nmidle int32`: threads that wait for work.
    pub idle_threads: u64,
    /// `mnext int64`: threads that were ever made.
    pub threads_made: u64,
    /// `maxmcount int32`: most threads.
    pub max_threads: u64,
    /// `nmfreed int64`: threads that have ended.
    pub threads_freed: u64,
    /// `npidle`: processors that wait for work, an int32.
    pub idle_processors: u64,
    /// `timeToRun timeHistogram`: how long goroutines waited until they ran.
    pub time_to_run: u64,
    /// How the histogram is laid out.
    pub histogram: TimeHistogram,
    /// `totalMutexWaitTime atomic.Int64`, in nanoseconds (1.20 and later).
    pub mutex_wait: Option<u64>,
}

impl SchedFields {
    /// Those of a version; of one newer than goprof knows the newest ones, which
    /// its memory then has to bear out.
    pub fn of(version: &GoVersion) -> SchedFields {
        let (lock, time_to_run, mutex_wait) = match version.major_minor() {
            (1, ..=19) => (24, 312, None),
            (1, 20..=24) => (24, 320, Some(1624)),
            (1, 25) => (32, 344, Some(1648)),
            _ => (32, 360, Some(1664)),
        };
        // Behind the lock came in what makes a difference of 16 bytes in 1.26.
        let after_lock = match version.major_minor() {
            (1, ..=25) => lock + 16,
            _ => lock + 32,
        };
        SchedFields {
            goid_gen: 0,
            lock,
            idle_threads: after_lock,
            threads_made: after_lock + 8,
            max_threads: after_lock + 16,
            threads_freed: after_lock + 24,
            idle_processors: after_lock + 48,
            time_to_run,
            histogram: TimeHistogram::of(version),
            mutex_wait,
        }
    }
}

/// How `runtime.timeHistogram` is laid out (`runtime/histogram.go`): buckets
/// that double, each in equal parts, then counts of what lies below and above.
/// All are uint64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeHistogram {
    /// Buckets that double.
    pub buckets: u32,
    /// Parts of each; a power of two.
    pub parts: u32,
    /// The first bucket ends at two to this power, in nanoseconds; each other one
    /// where the one before it ended, times two.
    pub first_bits: u32,
    /// Whether what lies above all buckets is counted.
    pub has_overflow: bool,
}

impl TimeHistogram {
    fn of(version: &GoVersion) -> TimeHistogram {
        match version.major_minor() {
            (1, ..=19) => TimeHistogram {
                buckets: 45,
                parts: 16,
                first_bits: 4,
                has_overflow: false,
            },
            _ => TimeHistogram {
                buckets: 40,
                parts: 4,
                first_bits: 8,
                has_overflow: true,
            },
        }
    }

    /// How many counts it has, without what lies below and above.
    pub fn counts(&self) -> usize {
        (self.buckets * self.parts) as usize
    }

    /// From how many nanoseconds on a count counts.
    pub fn lower_ns(&self, index: usize) -> u64 {
        let parts = self.parts as usize;
        let (bucket, part) = ((index / parts) as u32, (index % parts) as u64);
        let from = match bucket.checked_sub(1) {
            Some(doublings) => 1_u64.checked_shl(self.first_bits + doublings),
            None => Some(0),
        };
        let size = 1_u64.checked_shl(self.first_bits + bucket.saturating_sub(1));
        match (from, size) {
            (Some(from), Some(size)) => {
                from.saturating_add((size / u64::from(self.parts)).saturating_mul(part))
            }
            _ => u64::MAX,
        }
    }

    /// How many words it has: the counts, what lies below, what lies above.
    pub fn words(&self) -> usize {
        self.counts() + 1 + usize::from(self.has_overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> GoVersion {
        GoVersion::parse(text).unwrap()
    }

    #[test]
    fn what_the_controller_has_moved_with_versions() {
        let fields = |go| GcControllerFields::of(&version(go)).map(|f| (f.heap_live, f.goal));
        assert_eq!(fields("go1.19.1"), Some((136, 104)));
        assert_eq!(fields("go1.20.1"), Some((80, 48)));
        assert_eq!(fields("go1.27.1"), Some((104, 72)));
        assert_eq!(fields("go1.28.1"), None);
        assert_eq!(SchedFields::of(&version("go1.19.1")).histogram.words(), 721);
        assert_eq!(SchedFields::of(&version("go1.20.1")).histogram.words(), 162);
    }

    #[test]
    fn histograms_double() {
        // By runtime.timeHistogram.record of both kinds.
        let old = TimeHistogram::of(&version("go1.19.1"));
        let bounds = [0, 1, 15, 16, 17, 31, 32, 48].map(|index| old.lower_ns(index));
        assert_eq!(bounds, [0, 1, 15, 16, 17, 31, 32, 64]);
        let new = TimeHistogram::of(&version("go1.27.1"));
        let bounds = [0, 1, 3, 4, 5, 8, 12, 159].map(|index| new.lower_ns(index));
        assert_eq!(bounds[..7], [0, 64, 192, 256, 320, 512, 1024]);
        assert_eq!(bounds[7], (1 << 46) + 3 * (1 << 44));
    }
}
