//! What was sampled, and what the values of a sample mean: their names, units
//! and order, as Go's own profiles have them where Go has such a profile. The
//! one place that knows; formats ask here.

use crate::aggregate::{MAX_VALUES, Values};

/// A type of value and its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueType {
    /// Its name, e.g. `cpu`.
    pub name: &'static str,
    /// Its unit, e.g. `nanoseconds`.
    pub unit: &'static str,
}

const fn of(name: &'static str, unit: &'static str) -> ValueType {
    ValueType { name, unit }
}

/// What was sampled. The types of Go's profiles are those of `runtime/pprof`
/// (`proto.go`, `protomem.go`, `pprof.go`), all versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// CPU time: one sample per period of CPU time used.
    Cpu,
    /// Memory in use, and all that was allocated since the program began.
    Heap,
    /// Memory allocated during the recording.
    Allocs,
    /// Goroutines, each once.
    Goroutine,
    /// Waiting for mutexes, by who held them.
    Mutex,
    /// Waiting for channels, locks and timers, by who waited.
    Block,
    /// The time of goroutines as it passes, on the CPU or off it: how often each was
    /// seen, and the time that stands for.
    Wall,
    /// Time off the CPU, by who left it.
    OffCpu,
    /// The time of threads, on the CPU and off it.
    Threads,
    /// Requests to block devices, by who made them.
    Io,
    /// Memory that is allocated, by who allocates it, as it happens.
    AllocEvents,
}

const SAMPLES: ValueType = of("samples", "count");
const CONTENTIONS: ValueType = of("contentions", "count");
const CPU: [ValueType; 2] = [SAMPLES, of("cpu", "nanoseconds")];
const WALL: [ValueType; 2] = [SAMPLES, of("wall", "nanoseconds")];
const OFF_CPU: [ValueType; 2] = [SAMPLES, of("off_cpu", "nanoseconds")];
const THREADS: [ValueType; 2] = [SAMPLES, of("thread_time", "nanoseconds")];
const IO: [ValueType; MAX_VALUES] = [
    of("io", "count"),
    of("latency", "nanoseconds"),
    of("size", "bytes"),
    of("queued", "nanoseconds"),
];
const WAITS: [ValueType; 2] = [CONTENTIONS, of("delay", "nanoseconds")];
const GOROUTINES: [ValueType; 1] = [of("goroutine", "count")];

/// What every heap profile of Go's has, in its order.
const HEAP: [ValueType; MAX_VALUES] = [
    of("alloc_objects", "count"),
    of("alloc_space", "bytes"),
    of("inuse_objects", "count"),
    of("inuse_space", "bytes"),
];

impl Event {
    /// The name used on the command line and in file names.
    pub fn name(self) -> &'static str {
        match self {
            Event::Cpu => "cpu",
            Event::Heap => "heap",
            Event::Allocs => "allocs",
            Event::Goroutine => "goroutine",
            Event::Mutex => "mutex",
            Event::Block => "block",
            Event::Wall => "wall",
            Event::OffCpu => "offcpu",
            Event::Threads => "threads",
            Event::Io => "io",
            Event::AllocEvents => "alloc-events",
        }
    }

    /// What receivers of profiles call those of this event, as Go's own are called
    /// there: their queries and Grafana's units go by it.
    pub fn series_name(self) -> &'static str {
        match self {
            Event::Cpu => "process_cpu",
            Event::Heap | Event::Allocs | Event::AllocEvents => "memory",
            Event::Goroutine => "goroutine",
            Event::Mutex => "mutex",
            Event::Block => "block",
            Event::Wall => "wall",
            Event::OffCpu => "off_cpu",
            Event::Threads => "threads",
            Event::Io => "block_io",
        }
    }

    /// What the values of a sample are, in their order: a count first.
    pub fn value_types(self) -> &'static [ValueType] {
        match self {
            Event::Cpu => &CPU,
            Event::Heap | Event::Allocs => &HEAP,
            Event::Goroutine => &GOROUTINES,
            Event::Mutex | Event::Block => &WAITS,
            Event::Wall => &WALL,
            Event::OffCpu => &OFF_CPU,
            Event::Threads => &THREADS,
            Event::Io => &IO,
            Event::AllocEvents => &HEAP[..2],
        }
    }

    /// What the period is a number of.
    pub fn period_type(self) -> ValueType {
        match self {
            Event::Cpu => CPU[1],
            Event::Heap | Event::Allocs | Event::AllocEvents => of("space", "bytes"),
            Event::Goroutine => GOROUTINES[0],
            Event::Mutex | Event::Block => CONTENTIONS,
            Event::Wall => WALL[1],
            Event::OffCpu => OFF_CPU[1],
            Event::Threads => THREADS[1],
            Event::Io => IO[0],
        }
    }

    /// The value that is shown where nobody asks for another, by its index.
    pub fn default_value(self) -> usize {
        match self {
            Event::Allocs | Event::Io => 1,
            _ => self.value_types().len() - 1,
        }
    }

    /// The type that a profile has to name for pprof to show it: what
    /// [`Event::default_value`] is, where it is not the last.
    pub fn default_type(self) -> Option<ValueType> {
        let types = self.value_types();
        let default = self.default_value();
        (default + 1 < types.len()).then(|| types[default])
    }

    /// Whether a sample stands for a period of time: its second value is its
    /// first times the period.
    pub fn is_periodic(self) -> bool {
        matches!(self, Event::Cpu)
    }

    /// The value of that name, by its index.
    pub fn value_named(self, name: &str) -> Option<usize> {
        self.value_types().iter().position(|kind| kind.name == name)
    }

    /// The values of a sample out of what was aggregated, where one stands for
    /// `period`.
    pub(super) fn values(self, mut values: Values, period: u64) -> Values {
        if self.is_periodic() {
            let period = i64::try_from(period).unwrap_or(i64::MAX);
            values[1] = values[0].saturating_mul(period);
        }
        values
    }

    /// What of a sample a store holds, where a row has one count and one value:
    /// their indices. Of a heap it is what is in use, as `allocs` has the rest.
    pub fn stored(self) -> (usize, usize) {
        match self {
            Event::Heap => (2, 3),
            _ => (0, self.value_types().len().min(2) - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Event; 11] = [
        Event::Cpu,
        Event::Heap,
        Event::Allocs,
        Event::Goroutine,
        Event::Mutex,
        Event::Block,
        Event::Wall,
        Event::OffCpu,
        Event::Threads,
        Event::Io,
        Event::AllocEvents,
    ];

    #[test]
    fn counts_come_first_and_defaults_are_gos() {
        for event in ALL {
            let types = event.value_types();
            assert!((1..=MAX_VALUES).contains(&types.len()));
            assert_eq!(types[0].unit, "count", "{event:?}");
            let (count, value) = event.stored();
            assert_eq!(types[count].unit, "count", "{event:?}");
            assert!(value < types.len());
        }
        let default = |event: Event| event.value_types()[event.default_value()].name;
        assert_eq!(ALL.map(default)[..3], ["cpu", "inuse_space", "alloc_space"]);
        assert_eq!(Event::Heap.default_type(), None);
        let named = Event::Allocs.default_type().map(|kind| kind.name);
        assert_eq!(named, Some("alloc_space"));
        assert_eq!(Event::Heap.value_named("alloc_space"), Some(1));
        assert_eq!(Event::Cpu.value_named("alloc_space"), None);
    }

    #[test]
    fn a_periods_samples_are_worth_their_time() {
        assert_eq!(Event::Cpu.values([7, 0, 0, 0], 10), [7, 70, 0, 0]);
        assert_eq!(
            Event::Cpu.values([i64::MAX, 0, 0, 0], u64::MAX)[1],
            i64::MAX
        );
        assert_eq!(Event::Mutex.values([7, 3, 0, 0], 10), [7, 3, 0, 0]);
        // Some time passes between two looks, and not always the same.
        assert_eq!(Event::Wall.values([7, 3, 0, 0], 10), [7, 3, 0, 0]);
    }
}
