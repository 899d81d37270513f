//! What the Go runtimes of each service's processes count, summed: goroutines, heap,
//! collections with their pauses, scheduling delays. Takes what was read elsewhere.

use std::collections::{BTreeMap, HashMap};

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::targets::{LABELS, Service};
use crate::gomemory::{LatencyRange, Statistics};

/// Upper ends of the ranges of pauses, in nanoseconds.
const PAUSE_BOUNDS_NS: [u64; 9] = [
    10_000,
    50_000,
    100_000,
    500_000,
    1_000_000,
    5_000_000,
    10_000_000,
    50_000_000,
    100_000_000,
];
/// The same of waits to run: powers of two, where the runtime's own ranges end in
/// all versions.
const LATENCY_BOUNDS_NS: [u64; 9] = [
    1 << 12,
    1 << 15,
    1 << 17,
    1 << 19,
    1 << 20,
    1 << 22,
    1 << 24,
    1 << 27,
    1 << 30,
];
/// Ranges of both, with the one that has no end.
const RANGES: usize = 10;

/// A process, by its pid and when it began.
pub(super) type Key = (u32, u64);

/// What the runtimes of services count.
#[derive(Debug, Default)]
pub(super) struct Runtimes {
    services: BTreeMap<Service, Sums>,
    processes: HashMap<Key, Seen>,
}

/// A process, as of the last look.
#[derive(Debug)]
struct Seen {
    service: Service,
    counted: Counted,
    goroutines: Option<u64>,
    heap_live_bytes: Option<u64>,
    heap_goal_bytes: Option<u64>,
}

/// What only grows, of a process.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    cycles: u64,
    allocated_bytes: u64,
    mutex_wait_ns: u64,
    latency: [u64; RANGES],
}

/// What grew, of a service's processes, since the service was first seen; None of
/// what none of them tells.
#[derive(Debug, Default)]
struct Sums {
    cycles: Option<u64>,
    allocated_bytes: Option<u64>,
    mutex_wait_ns: Option<u64>,
    pauses: [u64; RANGES],
    paused_ns: u64,
    latency: [Option<u64>; RANGES],
}

impl Runtimes {
    /// Takes over what was read of a process.
    pub(super) fn add(&mut self, key: Key, service: &Service, read: &Statistics) {
        let heap = read.heap.as_ref();
        let mut seen = Seen {
            service: service.clone(),
            counted: self
                .processes
                .remove(&key)
                .map_or_else(Counted::default, |seen| seen.counted),
            goroutines: read
                .goroutines
                .as_ref()
                .map(|counts| counts.alive.saturating_sub(counts.system)),
            heap_live_bytes: heap.map(|heap| heap.live_bytes),
            heap_goal_bytes: heap.and_then(|heap| heap.goal_bytes),
        };
        let sums = self.services.entry(service.clone()).or_default();
        sums.add(read, &mut seen.counted);
        self.processes.insert(key, seen);
    }

    /// Lets go of the processes and services that are not there any more.
    pub(super) fn retain(
        &mut self,
        is_there: impl Fn(&Key) -> bool,
        is_known: impl Fn(&Service) -> bool,
    ) {
        self.processes.retain(|key, _| is_there(key));
        self.services.retain(|service, _| is_known(service));
    }

    /// The metrics of some services; of those of which none is known, nothing.
    pub(super) fn gather(&self, services: &[&Service]) -> Vec<MetricFamily> {
        let known = services
            .iter()
            .filter_map(|service| Some((*service, self.services.get(*service)?)));
        let known: Vec<(&Service, &Sums)> = known.collect();
        let now = |of: fn(&Seen) -> Option<u64>| {
            let mut sums: HashMap<&Service, u64> = HashMap::new();
            for seen in self.processes.values() {
                if let Some(value) = of(seen) {
                    let sum = sums.entry(&seen.service).or_default();
                    *sum = sum.saturating_add(value);
                }
            }
            sums
        };
        let gauge = |definition, of| {
            let sums = now(of);
            family(&known, definition, |service, _| {
                Some(gauge(*sums.get(service)?))
            })
        };
        let counter = |definition, of: fn(&Sums) -> Option<f64>| {
            family(&known, definition, |_, sums| of(sums).map(counter))
        };
        let families = [
            gauge(GOROUTINES, |seen| seen.goroutines),
            gauge(HEAP_LIVE, |seen| seen.heap_live_bytes),
            gauge(HEAP_GOAL, |seen| seen.heap_goal_bytes),
            counter(ALLOCATED, |sums| Some(sums.allocated_bytes? as f64)),
            counter(CYCLES, |sums| Some(sums.cycles? as f64)),
            counter(MUTEX_WAIT, |sums| sums.mutex_wait_ns.map(seconds)),
            family(&known, PAUSES, |_, sums| {
                sums.cycles?;
                let paused = seconds(sums.paused_ns);
                Some(histogram(&PAUSE_BOUNDS_NS, sums.pauses, paused))
            }),
            family(&known, LATENCY, |_, sums| {
                let [first, ..] = sums.latency;
                first?;
                let counts = sums.latency.map(Option::unwrap_or_default);
                // The runtime keeps no sum.
                Some(histogram(&LATENCY_BOUNDS_NS, counts, f64::NAN))
            }),
        ];
        let has_any = |family: &MetricFamily| !family.get_metric().is_empty();
        families.into_iter().filter(has_any).collect()
    }
}

impl Sums {
    /// Adds what grew of a process since `counted`.
    fn add(&mut self, read: &Statistics, counted: &mut Counted) {
        if let Some(heap) = &read.heap {
            let before = &mut counted.allocated_bytes;
            grow(&mut self.allocated_bytes, before, heap.allocated_bytes);
        }
        if let Some(gc) = &read.gc {
            let cycles = u64::from(gc.cycles);
            let before = counted.cycles;
            grow(&mut self.cycles, &mut counted.cycles, cycles);
            let is_new = |cycle: u32| before > cycles || u64::from(cycle) > before;
            for pause in gc.pauses.iter().filter(|pause| is_new(pause.cycle)) {
                self.pauses[range(&PAUSE_BOUNDS_NS, Some(pause.pause_ns))] += 1;
                self.paused_ns = self.paused_ns.saturating_add(pause.pause_ns);
            }
        }
        let Some(scheduler) = &read.scheduler else {
            return;
        };
        if let Some(waited) = scheduler.mutex_wait_ns {
            grow(&mut self.mutex_wait_ns, &mut counted.mutex_wait_ns, waited);
        }
        let now = latency(&scheduler.latency.ranges);
        let before = counted.latency.iter_mut();
        for ((sum, before), now) in self.latency.iter_mut().zip(before).zip(now) {
            grow(sum, before, now);
        }
    }
}

/// Adds what grew. What is less than before is of another program in the process.
fn grow(sum: &mut Option<u64>, before: &mut u64, now: u64) {
    let grown = if now >= *before { now - *before } else { now };
    *sum = Some(sum.unwrap_or(0).saturating_add(grown));
    *before = now;
}

/// The range of a value: the last one for none.
fn range(bounds: &[u64], value: Option<u64>) -> usize {
    let found = value.and_then(|value| bounds.iter().position(|bound| value <= *bound));
    found.unwrap_or(bounds.len())
}

fn latency(ranges: &[LatencyRange]) -> [u64; RANGES] {
    let mut sums = [0_u64; RANGES];
    for found in ranges {
        let sum = &mut sums[range(&LATENCY_BOUNDS_NS, found.to_ns)];
        *sum = sum.saturating_add(found.count);
    }
    sums
}

/// A metric: name after `goprof_target_`, help and type.
type Definition = (&'static str, &'static str, MetricType);
const GOROUTINES: Definition = (
    "goroutines",
    "Goroutines of a service's processes, as runtime.NumGoroutine counts them.",
    MetricType::GAUGE,
);
const HEAP_LIVE: Definition = (
    "heap_live_bytes",
    "Heap of a service's processes that is in use or not found free yet.",
    MetricType::GAUGE,
);
const HEAP_GOAL: Definition = (
    "heap_goal_bytes",
    "Heap at which the next collections begin by GOGC.",
    MetricType::GAUGE,
);
const ALLOCATED: Definition = (
    "heap_allocated_bytes_total",
    "Bytes that a service's processes have allocated.",
    MetricType::COUNTER,
);
const CYCLES: Definition = (
    "gc_cycles_total",
    "Garbage collections of a service's processes.",
    MetricType::COUNTER,
);
const MUTEX_WAIT: Definition = (
    "mutex_wait_seconds_total",
    "Time that goroutines of a service's processes waited for mutexes.",
    MetricType::COUNTER,
);
const PAUSES: Definition = (
    "gc_pause_seconds",
    "How long each garbage collection stopped the program.",
    MetricType::HISTOGRAM,
);
const LATENCY: Definition = (
    "sched_latency_seconds",
    "How long goroutines that could run waited to, one wait in eight; has no sum.",
    MetricType::HISTOGRAM,
);

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn family(
    services: &[(&Service, &Sums)],
    (name, help, kind): Definition,
    metric: impl Fn(&Service, &Sums) -> Option<Metric>,
) -> MetricFamily {
    let metrics = services.iter().filter_map(|(service, sums)| {
        let mut metric = metric(service, sums)?;
        metric.set_label(labels(service));
        Some(metric)
    });
    let mut family = MetricFamily::default();
    family.set_metric(metrics.collect());
    family.set_name(format!("goprof_target_{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family
}

fn gauge(value: u64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value as f64);
    Metric::from_gauge(gauge)
}

fn counter(value: f64) -> Metric {
    let (mut counter, mut metric) = (Counter::default(), Metric::default());
    counter.set_value(value);
    metric.set_counter(counter);
    metric
}

fn histogram(bounds: &[u64], counts: [u64; RANGES], sum: f64) -> Metric {
    let mut seen = 0_u64;
    let buckets = bounds.iter().zip(counts).map(|(bound, count)| {
        seen = count.saturating_add(seen);
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(seconds(*bound));
        bucket.set_cumulative_count(seen);
        bucket
    });
    let (mut histogram, mut metric) = (Histogram::default(), Metric::default());
    histogram.set_bucket(buckets.collect());
    let count = counts.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
    histogram.set_sample_count(count);
    histogram.set_sample_sum(sum);
    metric.set_histogram(histogram);
    metric
}

fn labels(service: &Service) -> Vec<LabelPair> {
    let pairs = LABELS.iter().zip(service.values());
    let mut pairs: Vec<LabelPair> = pairs
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.to_owned());
            pair
        })
        .collect();
    pairs.sort_by(|a, b| a.name().cmp(b.name()));
    pairs
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;
    use crate::gomemory::{Collections, GoroutineCounts, Latency, Pause, Scheduler};

    fn statistics(cycles: u32, remembered: u32, waits: u64) -> Statistics {
        let pauses = (cycles - remembered + 1)..=cycles;
        Statistics {
            goroutines: Some(GoroutineCounts {
                alive: 9,
                system: 4,
                ..GoroutineCounts::default()
            }),
            gc: Some(Collections {
                cycles,
                forced: 0,
                cpu_fraction: 0.0,
                pause_total_ns: 0,
                pauses: pauses
                    .map(|cycle| Pause {
                        cycle,
                        pause_ns: 60_000,
                        end_unix_ns: 1,
                    })
                    .collect(),
            }),
            scheduler: Some(Scheduler {
                gomaxprocs: None,
                threads: 5,
                idle_threads: 1,
                latency: Latency {
                    count: waits,
                    ranges: vec![LatencyRange {
                        from_ns: 3 << 9,
                        to_ns: Some(1 << 12),
                        count: waits,
                    }],
                },
                mutex_wait_ns: None,
            }),
            ..Statistics::default()
        }
    }

    fn text(runtimes: &Runtimes, service: &Service) -> String {
        let families = runtimes.gather(&[service]);
        TextEncoder::new().encode_to_string(&families).unwrap()
    }

    #[test]
    fn what_grows_is_counted_once_and_what_is_summed_is_of_now() {
        let service = Service::new(["a", "", "", ""]);
        let mut runtimes = Runtimes::default();
        let one = statistics(3, 3, 10);
        let two = statistics(300, 256, 5);
        runtimes.add((1, 7), &service, &one);
        runtimes.add((2, 8), &service, &two);
        runtimes.add((1, 7), &service, &statistics(5, 5, 12));
        runtimes.retain(|key| *key == (1, 7), |_| true);
        let text = text(&runtimes, &service);
        let labels = "{container=\"\",namespace=\"\",pod=\"\",service_name=\"a\"";
        for line in [
            format!("goprof_target_goroutines{labels}}} 5"),
            format!("goprof_target_gc_cycles_total{labels}}} 305"),
            format!("goprof_target_gc_pause_seconds_bucket{labels},le=\"0.00005\"}} 0"),
            format!("goprof_target_gc_pause_seconds_bucket{labels},le=\"0.0001\"}} 261"),
            format!("goprof_target_gc_pause_seconds_count{labels}}} 261"),
            format!("goprof_target_sched_latency_seconds_count{labels}}} 17"),
            format!("goprof_target_sched_latency_seconds_sum{labels}}} NaN"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        // Of no process is that known.
        assert!(!text.contains("goprof_target_heap_"), "{text}");
        assert!(!text.contains("mutex_wait"), "{text}");
    }

    #[test]
    fn a_process_with_another_program_begins_anew() {
        let service = Service::new(["a", "", "", ""]);
        let mut runtimes = Runtimes::default();
        runtimes.add((1, 7), &service, &statistics(30, 30, 10));
        runtimes.add((1, 7), &service, &statistics(2, 2, 3));
        let sums = &runtimes.services[&service];
        assert_eq!((sums.cycles, sums.pauses[2]), (Some(32), 32));
        assert_eq!(sums.latency[0], Some(13));
        runtimes.retain(|_| false, |_| false);
        assert_eq!(runtimes.gather(&[&service]), []);
    }

    #[test]
    fn waits_end_where_the_ranges_of_the_metric_do() {
        let range = |from_ns, to_ns| LatencyRange {
            from_ns,
            to_ns,
            count: 1,
        };
        let found = latency(&[
            range(0, Some(64)),
            range(3 << 10, Some(1 << 12)),
            range(1 << 12, Some(5 << 10)),
            range(3 << 28, Some(1 << 30)),
            range(1 << 46, None),
        ]);
        assert_eq!(found, [2, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
    }
}
