//! What each service uses: CPU time, threads and memory, summed over its
//! processes, as the kernel tells of any process; and what their runtimes count.
//! Bounded in how many services it knows and shows.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use prometheus::{CounterVec, IntGaugeVec, Opts, Registry, proto::MetricFamily};

use super::runtimes::Runtimes;
use crate::gomemory::Statistics;

/// Most services known; above, processes of others are only counted.
const MAX_SERVICES: usize = 4096;
/// How long a service without processes is remembered, so that its counters go
/// on if it comes back.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Most bytes of a label's value.
const MAX_VALUE_BYTES: usize = 128;
/// Most Go versions told of one service.
const MAX_VERSIONS: usize = 4;
pub(super) const LABELS: [&str; 4] = ["service_name", "namespace", "pod", "container"];

/// What targets are summed by.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service([String; 4]);

impl Service {
    /// Of a service's name, namespace, pod and container; empty where there is
    /// none. Long ones are cut.
    pub fn new(values: [&str; 4]) -> Self {
        Self(values.map(cut))
    }

    pub(super) fn values(&self) -> [&str; 4] {
        self.0.each_ref().map(String::as_str)
    }
}

fn cut(value: &str) -> String {
    let end = value.floor_char_boundary(MAX_VALUE_BYTES);
    let cut = &value[..end];
    match end == value.len() {
        true => cut.to_owned(),
        false => format!("{cut}…"),
    }
}

/// A process to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Process id.
    pub pid: u32,
    /// What it is summed into.
    pub service: Service,
    /// Its Go version.
    pub go_version: String,
}

/// What the services use.
#[derive(Debug, Default)]
pub struct Targets {
    services: BTreeMap<Service, Usage>,
    /// CPU time at the last look, in ticks, by pid and start.
    seen: HashMap<(u32, u64), u64>,
    /// Services that were not taken in at the last look.
    unknown: usize,
    runtimes: Runtimes,
}

#[derive(Debug, Default)]
struct Usage {
    cpu_ticks: u64,
    threads: u64,
    resident_pages: u64,
    processes: u64,
    versions: Vec<String>,
    gone_since: Option<Instant>,
}

impl Targets {
    /// Looks at the processes that there are now.
    pub fn update<'o>(&mut self, processes: impl IntoIterator<Item = &'o Observed>) {
        let now = Instant::now();
        for usage in self.services.values_mut() {
            (usage.threads, usage.resident_pages, usage.processes) = (0, 0, 0);
            usage.versions.clear();
        }
        let before = std::mem::take(&mut self.seen);
        let mut unknown = std::collections::BTreeSet::new();
        for process in processes {
            let Some(stat) = Stat::read(process.pid) else {
                continue;
            };
            if self.services.len() >= MAX_SERVICES && !self.services.contains_key(&process.service)
            {
                unknown.insert(&process.service);
                continue;
            }
            let key = (process.pid, stat.start);
            // All of it at first sight: so a service's counter is the sum of its
            // processes' own.
            let ticks = stat
                .cpu_ticks
                .saturating_sub(before.get(&key).copied().unwrap_or(0));
            self.seen.insert(key, stat.cpu_ticks);
            let usage = self.services.entry(process.service.clone()).or_default();
            usage.cpu_ticks += ticks;
            usage.threads += stat.threads;
            usage.resident_pages += stat.resident_pages;
            usage.processes += 1;
            let version = cut(&process.go_version);
            if usage.versions.len() < MAX_VERSIONS && !usage.versions.contains(&version) {
                usage.versions.push(version);
            }
        }
        self.unknown = unknown.len();
        self.services.retain(|_, usage| {
            if usage.processes > 0 {
                usage.gone_since = None;
            }
            usage.processes > 0 || now - *usage.gone_since.get_or_insert(now) < FORGET_AFTER
        });
        let (services, seen) = (&self.services, &self.seen);
        self.runtimes.retain(
            |key| seen.contains_key(key),
            |service| services.contains_key(service),
        );
    }

    /// Takes over what the runtime of a process counts now.
    pub fn add_runtime(&mut self, process: &Observed, statistics: &Statistics) {
        let Some(stat) = Stat::read(process.pid) else {
            return;
        };
        let key = (process.pid, stat.start);
        // What is not known here has no metrics at all.
        if self.seen.contains_key(&key) && self.services.contains_key(&process.service) {
            self.runtimes.add(key, &process.service, statistics);
        }
    }

    /// Lets go of what the runtimes of processes count.
    pub fn forget_runtimes(&mut self) {
        self.runtimes = Runtimes::default();
    }

    /// The services that used the most CPU time, `max` at most, and how many are
    /// left out.
    pub(super) fn gather(&self, max: usize) -> Result<(Vec<MetricFamily>, usize)> {
        let mut most: Vec<(&Service, &Usage)> = self.services.iter().collect();
        most.sort_by_key(|(_, usage)| std::cmp::Reverse(usage.cpu_ticks));
        let omitted = most.len().saturating_sub(max) + self.unknown;
        most.truncate(max);
        let registry = Registry::new();
        let tables = Tables::new(&registry)?;
        for (service, usage) in &most {
            tables.add(service, usage);
        }
        let mut families = registry.gather();
        let shown: Vec<&Service> = most.iter().map(|(service, _)| *service).collect();
        families.extend(self.runtimes.gather(&shown));
        Ok((families, omitted))
    }
}

struct Tables {
    cpu: CounterVec,
    threads: IntGaugeVec,
    resident: IntGaugeVec,
    processes: IntGaugeVec,
    info: IntGaugeVec,
}

impl Tables {
    fn new(registry: &Registry) -> Result<Self> {
        let opts = |name: &str, help: &str| Opts::new(format!("goprof_target_{name}"), help);
        let gauge = |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec> {
            let gauge = IntGaugeVec::new(opts(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let cpu = opts("cpu_seconds_total", "CPU time of a service's Go processes.");
        let cpu = CounterVec::new(cpu, &LABELS)?;
        registry
            .register(Box::new(cpu.clone()))
            .context("register a metric")?;
        let [service, namespace, pod, container] = LABELS;
        let with_version = [service, namespace, pod, container, "go_version"];
        Ok(Self {
            cpu,
            threads: gauge("threads", "Threads of a service's Go processes.", &LABELS)?,
            resident: gauge(
                "resident_memory_bytes",
                "Resident memory of a service's Go processes.",
                &LABELS,
            )?,
            processes: gauge("processes", "A service's Go processes.", &LABELS)?,
            info: gauge(
                "info",
                "Go versions that a service's processes were built with.",
                &with_version,
            )?,
        })
    }

    fn add(&self, service: &Service, usage: &Usage) {
        let values = service.values();
        let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let (page, ticks) = (setting(libc::_SC_PAGESIZE), setting(libc::_SC_CLK_TCK));
        let seconds = usage.cpu_ticks as f64 / ticks as f64;
        self.cpu.with_label_values(&values).inc_by(seconds);
        let set = |gauge: &IntGaugeVec, value| gauge.with_label_values(&values).set(whole(value));
        set(&self.threads, usage.threads);
        set(&self.resident, usage.resident_pages.saturating_mul(page));
        set(&self.processes, usage.processes);
        let [service, namespace, pod, container] = values;
        for version in &usage.versions {
            let values = [service, namespace, pod, container, version];
            self.info.with_label_values(&values).set(1);
        }
    }
}

/// A setting of the system that is a positive number.
fn setting(name: i32) -> u64 {
    // SAFETY: no preconditions.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).unwrap_or(1).max(1)
}

/// Of `/proc/PID/stat`, proc(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start: u64,
    resident_pages: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(text: &str) -> Option<Self> {
        // The name before may hold anything, parentheses too.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first field after the name is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)?.checked_add(field(15)?)?,
            threads: field(20)?,
            start: field(22)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    fn observed(pid: u32, service: [&str; 4]) -> Observed {
        Observed {
            pid,
            service: Service::new(service),
            go_version: "go1.26.1".into(),
        }
    }

    fn text(targets: &Targets, max: usize) -> (String, usize) {
        let (families, omitted) = targets.gather(max).unwrap();
        (
            TextEncoder::new().encode_to_string(&families).unwrap(),
            omitted,
        )
    }

    #[test]
    fn a_stat_is_read_past_any_name() {
        let text = "7 (a) b) 1 2) S 1 7 7 0 -1 4194560 1 0 0 0 25 17 0 0 20 0 9 0 4242 1000 333 1";
        let expected = Stat {
            cpu_ticks: 42,
            threads: 9,
            start: 4242,
            resident_pages: 333,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn processes_of_a_service_are_summed_and_never_counted_twice() {
        let own = std::process::id();
        let mut targets = Targets::default();
        targets.update(&[
            observed(own, ["a", "", "", ""]),
            observed(1, ["a", "", "", ""]),
        ]);
        let once = targets.services.values().next().unwrap().cpu_ticks;
        targets.update(&[observed(own, ["a", "", "", ""])]);
        let usage = targets.services.values().next().unwrap();
        assert!(usage.cpu_ticks >= once && usage.cpu_ticks < once + 100);
        assert_eq!((usage.processes, targets.services.len()), (1, 1));
        let (text, _) = text(&targets, 9);
        assert!(text.contains("goprof_target_processes{"), "{text}");
        assert!(text.contains("go_version=\"go1.26.1\""), "{text}");
    }

    #[test]
    fn who_is_gone_uses_nothing_and_keeps_its_counter() {
        let mut targets = Targets::default();
        targets.update(&[observed(std::process::id(), ["a", "", "", ""])]);
        let before = targets.services.values().next().unwrap().cpu_ticks;
        targets.update(&[]);
        let usage = targets.services.values().next().unwrap();
        assert_eq!(
            (usage.cpu_ticks, usage.threads, usage.processes),
            (before, 0, 0)
        );
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let own = std::process::id();
        let mut targets = Targets::default();
        let names: Vec<String> = (0..5).map(|n| format!("s{n}")).collect();
        let all: Vec<Observed> = names
            .iter()
            .map(|n| observed(own, [n, "", "", ""]))
            .collect();
        targets.update(&all);
        let (text, omitted) = text(&targets, 3);
        assert_eq!(omitted, 2);
        assert_eq!(text.matches("goprof_target_threads{").count(), 3);
    }

    #[test]
    fn hostile_names_break_no_line() {
        let long = "x".repeat(10_000);
        let hostile = ["a\"} 1\nevil 2", "\\", "<script>\r\u{1b}[0m", &long];
        let mut targets = Targets::default();
        targets.update(&[observed(std::process::id(), hostile)]);
        let (text, _) = text(&targets, 3);
        assert!(text.len() < 5_000, "{}", text.len());
        for line in text.lines() {
            let plain = line.starts_with("# ") || line.starts_with("goprof_target_");
            assert!(plain, "{line:?}");
        }
    }
}
