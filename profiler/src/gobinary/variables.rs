//! Where variables of the runtime are, decoded from the runtime's own code that
//! uses them. What the file itself can prove is proven here; the rest is to be
//! held against the program's memory before it is used.

use super::allgs::AllGoroutines;
use super::version::GoVersion;
use super::x86::{Access, Reference};

/// Link-time addresses of variables. None, or empty, where the code does not say
/// it in a way goprof knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables {
    /// `MemProfileRate int`.
    pub mem_profile_rate: Option<u64>,
    /// Words that may be `mbuckets *bucket`, the list of what was allocated
    /// where: it and two like it, which buckets tell apart.
    pub buckets: Vec<u64>,
    /// Whether the program has the function that reads the heap profile. Where
    /// it has not, the linker makes the program begin with a rate of 0.
    pub reads_mem_profile: bool,
    /// `memstats.numgc uint32`, among what [`GcFields`] says of it.
    pub num_gc: Option<u64>,
    /// `gcController gcControllerState`.
    pub gc_controller: Option<u64>,
    /// `sched schedt`.
    pub sched: Option<u64>,
    /// `gomaxprocs int32`.
    pub gomaxprocs: Option<u64>,
    /// `semtable semTable`, those who wait for semaphores; see
    /// [`super::SemaphoreTable`].
    pub semaphores: Option<u64>,
    /// The list of all goroutines.
    pub all_goroutines: Option<AllGoroutines>,
}

/// The functions that are looked at, and that alone tell something by being
/// there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    /// `runtime.stkbucket` takes the addresses of three lists of buckets.
    StkBucket,
    /// `runtime.profilealloc` loads the rate.
    ProfileAlloc,
    /// `runtime.gcMarkTermination` notes what a collection took.
    GcMarkTermination,
    /// `runtime.gcControllerCommit` takes the controller's address.
    GcControllerCommit,
    /// `runtime.sysmon` takes the scheduler's lock.
    Sysmon,
    /// `runtime.semacquire1` takes the address of the table of semaphores first.
    Semacquire,
    /// `runtime.MemProfile`, since 1.23 `runtime.memProfileInternal`: what the
    /// linker looks for (`cmd/link/internal/ld/deadcode.go`).
    MemProfile,
}

/// The names of the anchors, in a version.
pub(super) fn anchors(version: &GoVersion) -> [(&'static str, Anchor); 7] {
    let reader = match version.major_minor() {
        (1, ..=22) => "runtime.MemProfile",
        _ => "runtime.memProfileInternal",
    };
    [
        ("runtime.stkbucket", Anchor::StkBucket),
        ("runtime.profilealloc", Anchor::ProfileAlloc),
        ("runtime.gcMarkTermination", Anchor::GcMarkTermination),
        ("runtime.gcControllerCommit", Anchor::GcControllerCommit),
        ("runtime.sysmon", Anchor::Sysmon),
        ("runtime.semacquire1", Anchor::Semacquire),
        (reader, Anchor::MemProfile),
    ]
}

/// What `MemProfileRate` is in the file since 1.20 (`runtime/mprof.go`). Before it
/// is set as the program begins, and is what `runtime.profilealloc` loads last:
/// after `mcache0`, which is a pointer or 0.
const FIRST_RATE: u64 = 512 * 1024;

/// Addresses taken in one function before giving up.
const MAX_ADDRESSES: usize = 64;

/// What the file holds, as far as it proves something.
pub(super) trait Contents {
    /// Whether an address is of memory that the file does not hold, and that is
    /// zero when the program begins.
    fn is_zeroed(&self, address: u64) -> bool;
    /// The word that the file holds for an address.
    fn word(&self, address: u64) -> Option<u64>;
}

impl Variables {
    /// Takes from an anchor's code what it says.
    pub(super) fn note(
        &mut self,
        anchor: Anchor,
        references: &[Reference],
        version: &GoVersion,
        contents: &impl Contents,
    ) {
        let addresses = || {
            let taken = references.iter().filter(|r| r.access == Access::Address);
            let zeroed = taken.map(|r| r.target).filter(|at| contents.is_zeroed(*at));
            zeroed.take(MAX_ADDRESSES)
        };
        match anchor {
            Anchor::StkBucket => {
                for address in addresses() {
                    if address.is_multiple_of(8) && !self.buckets.contains(&address) {
                        self.buckets.push(address);
                    }
                }
            }
            Anchor::ProfileAlloc => {
                let loads = references.iter().filter(|r| r.access == Access::Load64);
                let loads: Vec<u64> = loads.map(|load| load.target).collect();
                let is_rate = |at: &&u64| contents.word(**at) == Some(FIRST_RATE);
                let by_order = match (version.major_minor(), loads.as_slice()) {
                    ((1, ..=19), [cache, .., rate]) if cache != rate => Some(rate),
                    _ => None,
                };
                self.mem_profile_rate = loads.iter().find(is_rate).or(by_order).copied();
            }
            Anchor::GcMarkTermination => self.num_gc = num_gc(references),
            Anchor::GcControllerCommit => self.gc_controller = addresses().next(),
            Anchor::Sysmon => {
                let fields = SchedFields::of(version);
                self.sched = addresses()
                    .next()
                    .and_then(|lock| lock.checked_sub(fields.lock));
                self.gomaxprocs = self
                    .sched
                    .and_then(|sched| gomaxprocs(references, sched + fields.idle_processors));
            }
            Anchor::Semacquire => self.semaphores = addresses().next(),
            Anchor::MemProfile => self.reads_mem_profile = true,
        }
    }
}

/// `memstats.numgc`: the byte that is loaded to find a place in two rings of
/// [`GcFields::RING`] words, whose addresses are taken beside it.
fn num_gc(references: &[Reference]) -> Option<u64> {
    let is_taken = |address: u64| {
        let taken = Reference {
            access: Access::Address,
            target: address,
        };
        references.contains(&taken)
    };
    references
        .iter()
        .filter(|r| r.access == Access::Load8)
        .map(|load| load.target)
        .find(|at| {
            let ring = |offset: i64| at.checked_add_signed(offset).is_some_and(is_taken);
            ring(GcFields::PAUSE_NS) && ring(GcFields::PAUSE_END)
        })
}

/// `gomaxprocs`: what is loaded right after the number of idle processors, to
/// compare it with.
fn gomaxprocs(references: &[Reference], idle_processors: u64) -> Option<u64> {
    let is_load = |r: &Reference| r.access == Access::Load32;
    references.windows(2).find_map(|pair| {
        let [idle, all] = pair else { return None };
        let matches = is_load(idle) && is_load(all) && idle.target == idle_processors;
        matches.then_some(all.target)
    })
}

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
    /// Those of a version; None where it is newer than goprof knows.
    pub fn of(version: &GoVersion) -> Option<GcControllerFields> {
        if version.is_newer_than_known() || version.is_older_than_known() {
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
    /// `totalRuntimeLockWaitTime atomic.Int64`, likewise (1.22 and later).
    pub runtime_lock_wait: Option<u64>,
}

impl SchedFields {
    /// Those of a version; of one newer than goprof knows the newest ones, which
    /// its memory then has to bear out.
    pub fn of(version: &GoVersion) -> SchedFields {
        let (lock, time_to_run, waits) = match version.major_minor() {
            (1, ..=19) => (24, 312, (None, None)),
            (1, 20..=21) => (24, 320, (Some(1624), None)),
            (1, 22..=24) => (24, 320, (Some(1624), Some(6816))),
            (1, 25) => (32, 344, (Some(1648), Some(6840))),
            _ => (32, 360, (Some(1664), Some(6856))),
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
            mutex_wait: waits.0,
            runtime_lock_wait: waits.1,
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
    /// The first bucket ends at two to this power, in nanoseconds.
    pub min_bits: u32,
    /// Whether what lies above all buckets is counted.
    pub has_overflow: bool,
}

impl TimeHistogram {
    fn of(version: &GoVersion) -> TimeHistogram {
        match version.major_minor() {
            (1, ..=19) => TimeHistogram {
                buckets: 45,
                parts: 16,
                min_bits: 4,
                has_overflow: false,
            },
            _ => TimeHistogram {
                buckets: 40,
                parts: 4,
                min_bits: 9,
                has_overflow: true,
            },
        }
    }

    /// How many words it has: the counts, what lies below, what lies above.
    pub fn words(&self) -> usize {
        (self.buckets * self.parts) as usize + 1 + usize::from(self.has_overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct File;

    impl Contents for File {
        fn is_zeroed(&self, address: u64) -> bool {
            address >= 0x10_0000
        }

        fn word(&self, address: u64) -> Option<u64> {
            match address {
                0x9000 => Some(FIRST_RATE),
                0x9008 => Some(1),
                _ => None,
            }
        }
    }

    fn version(text: &str) -> GoVersion {
        GoVersion::parse(text).unwrap()
    }

    fn noted(anchor: Anchor, references: &[(Access, u64)], go: &str) -> Variables {
        let references: Vec<Reference> = references
            .iter()
            .map(|&(access, target)| Reference { access, target })
            .collect();
        let mut variables = Variables::default();
        variables.note(anchor, &references, &version(go), &File);
        variables
    }

    #[test]
    fn the_rate_is_what_the_file_says_it_begins_with() {
        let loads = [
            (Access::Load64, 0x10_0000),
            (Access::Load64, 0x9008),
            (Access::Address, 0x9000),
            (Access::Load64, 0x9000),
        ];
        let rate = |loads: &[_]| noted(Anchor::ProfileAlloc, loads, "go1.26.1").mem_profile_rate;
        assert_eq!(rate(&loads), Some(0x9000));
        assert_eq!(rate(&loads[..3]), None);
        let by_order = |loads: &[_]| {
            let anchor = Anchor::ProfileAlloc;
            noted(anchor, loads, "go1.19.13").mem_profile_rate
        };
        let two = [(Access::Load64, 0x10_0000), (Access::Load64, 0x10_0008)];
        assert_eq!(by_order(&two), Some(0x10_0008));
        assert_eq!(by_order(&two[..1]), None);
        assert_eq!(rate(&two), None);
    }

    #[test]
    fn collections_are_counted_beside_their_rings() {
        let at = 0x10_4000;
        let all = [
            (Access::Address, at - 4096),
            (Access::Load8, 0x10_0004),
            (Access::Load8, at),
            (Access::Address, at - 2048),
        ];
        let found = |references: &[_]| {
            let anchor = Anchor::GcMarkTermination;
            noted(anchor, references, "go1.26.1").num_gc
        };
        assert_eq!(found(&all), Some(at));
        for missing in [0, 2, 3] {
            let mut some = all.to_vec();
            some.remove(missing);
            assert_eq!(found(&some), None, "{missing}");
        }
    }

    #[test]
    fn the_scheduler_begins_before_its_lock() {
        let code = |lock: u64, idle: u64| {
            [
                (Access::Address, 0x10_0000 + lock),
                (Access::Load32, 0x10_0000 + idle),
                (Access::Load32, 0x20_0000),
            ]
        };
        for (go, lock, idle) in [
            ("go1.19.1", 24, 88),
            ("go1.22.1", 24, 88),
            ("go1.25.1", 32, 96),
            ("go1.27.1", 32, 112),
        ] {
            let found = noted(Anchor::Sysmon, &code(lock, idle), go);
            assert_eq!(found.sched, Some(0x10_0000), "{go}");
            assert_eq!(found.gomaxprocs, Some(0x20_0000), "{go}");
        }
    }

    #[test]
    fn addresses_that_the_file_holds_are_no_lists_of_buckets() {
        let taken = [
            (Access::Address, 0x8000),
            (Access::Address, 0x10_0008),
            (Access::Address, 0x10_0008),
            (Access::Address, 0x10_0004),
            (Access::Load64, 0x10_0010),
            (Access::Address, 0x10_0018),
        ];
        let found = noted(Anchor::StkBucket, &taken, "go1.24.1").buckets;
        assert_eq!(found, [0x10_0008, 0x10_0018]);
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
}
