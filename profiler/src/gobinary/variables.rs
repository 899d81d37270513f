//! Where variables of the runtime are, decoded from the runtime's own code that
//! uses them. What the file itself can prove is proven here; the rest is to be
//! held against the program's memory before it is used.

use super::allgs::AllGoroutines;
use super::references::{Access, Reference};
use super::runtime_fields::{GcFields, SchedFields};
use super::version::GoVersion;

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

/// `memstats.numgc`: what is loaded, on amd64 its lowest byte alone, to find a place in
/// two rings of [`GcFields::RING`] words, whose addresses are taken beside it.
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
        .filter(|r| matches!(r.access, Access::Load8 | Access::Load32))
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
}
