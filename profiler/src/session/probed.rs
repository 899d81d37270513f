//! What windows of a process's probes come to: what was seen in each, scaled to what it
//! stands for, and how sure that is.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{
    allocated::{self, Allocations},
    allocation_facts::AllocationFacts,
    carry::Carry,
    measured::{OPEN, REASON},
    parked::Through,
    windows::Windows,
};
use crate::{
    aggregate::Owner,
    probe::{self, Closed, Estimate, Rest, Watch, Watched, Weight},
    process::{Process, ProcessIndex},
    symbolize::Event,
    unwind::GAP,
};

/// What probes of a process came to.
#[derive(Debug, Clone)]
pub struct ProbeFacts {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// How often they were hit.
    pub hits: u64,
    /// What they took from it, in nanoseconds of CPU time.
    pub charged_ns: u64,
    /// How long it was watched, in nanoseconds.
    pub watched_ns: u64,
    /// Out of how long.
    pub elapsed_ns: u64,
    /// In how many windows.
    pub windows: usize,
    /// The totals of each event: counts and nanoseconds.
    pub totals: Vec<(Event, Estimate, Estimate)>,
    /// How long goroutines waited for mutexes meanwhile by the runtime's own estimate,
    /// in nanoseconds, where it has one and that is what was recorded.
    pub mutex_wait_ns: Option<u64>,
    /// Where allocations were seen.
    pub allocations: Option<AllocationFacts>,
}

/// A process that is probed.
pub(super) struct Probed {
    pub index: ProcessIndex,
    process: Arc<Process>,
    mutex_wait_ns: Option<u64>,
    pub watch: Watch,
    /// Its wait reasons, in words.
    pub reasons: Vec<String>,
    /// What was seen in windows that are not over, by their number.
    open: BTreeMap<u64, Seen>,
    /// What those that are over stand for.
    seen: Windows,
    since_ns: u64,
    facts: Counts,
    weights: probe::Windows,
    /// The same where waits count: of windows that are left out, no part.
    wait_weights: probe::Windows,
    totals: BTreeMap<Event, Totals>,
    /// What came behind the last window, once the watch has ended.
    pub rest: Arc<OnceLock<Rest>>,
    /// Where allocations are recorded.
    pub allocations: Option<Allocations>,
}

/// What an event came to in windows, by their place: counts and nanoseconds.
#[derive(Default)]
struct Totals {
    counts: Vec<(usize, f64)>,
    delays: Vec<(usize, f64)>,
    /// The sums of both, as scaled in [`Probed::seen`].
    seen: (f64, f64),
}

/// What was seen in a window.
#[derive(Default)]
struct Seen {
    whole: Windows,
    /// Of waits that began before anybody watched.
    begun_before: Windows,
    /// Goroutines whose waits ended.
    ended: HashSet<u64>,
}

/// Whether goroutines that wait for this are woken by who releases a semaphore.
fn is_semaphore(reason: &str) -> bool {
    reason.starts_with("sync.") || reason == "semacquire"
}

#[derive(Default)]
struct Counts {
    hits: u64,
    charged_ns: u64,
    watched_ns: u64,
}

impl Probed {
    /// Nothing was seen of it yet.
    pub(super) fn new(
        index: ProcessIndex,
        process: &Arc<Process>,
        watch: Watch,
        now_ns: u64,
    ) -> Self {
        Self {
            index,
            process: Arc::clone(process),
            mutex_wait_ns: None,
            watch,
            reasons: Vec::new(),
            open: BTreeMap::new(),
            seen: Windows::default(),
            since_ns: now_ns,
            facts: Counts::default(),
            weights: probe::Windows::default(),
            wait_weights: probe::Windows::default(),
            totals: BTreeMap::new(),
            rest: Arc::default(),
            allocations: None,
        }
    }

    /// Waits for its first window to open; what it comes to is out of the time from
    /// then on.
    pub(super) fn wait_open(&mut self, most: Duration) {
        self.watch.wait_open(most);
        self.since_ns = probe::monotonic_ns();
    }

    /// Its executable.
    pub(super) fn exe(&self) -> &str {
        &self.process.exe
    }

    /// Asks the runtime from now on how long goroutines wait for mutexes.
    pub(super) fn begin_mutex_wait(&mut self) {
        self.mutex_wait_ns = self.process.mutex_wait_ns();
    }

    /// Where what is seen in a window goes.
    pub(super) fn window(&mut self, number: u64, began_before: bool) -> &mut Windows {
        let seen = self.open.entry(number).or_default();
        match began_before {
            true => &mut seen.begun_before,
            false => &mut seen.whole,
        }
    }

    /// Notes that a wait of a goroutine ended in a window.
    pub(super) fn note_end(&mut self, number: u64, goid: u64) {
        self.open.entry(number).or_default().ended.insert(goid);
    }

    /// Counts those that waited through a window. Of a mutex nobody knows yet who will
    /// wake them.
    pub(super) fn wait_through(&mut self, closed: &Closed, of: &[Through], events: &[Event]) {
        let seen = self.open.entry(closed.plan.number).or_default();
        let mut carry = Carry::default();
        for through in of {
            // It has not waited all the while, whatever it does now.
            if through.is_all && seen.ended.contains(&through.goid) {
                continue;
            }
            let reason = self.reasons.get(usize::from(through.reason));
            let reason = reason.map_or("", String::as_str);
            let mut labels = through.labels.clone();
            labels.push((REASON.to_owned(), reason.to_owned()));
            if closed.plan.whole {
                labels.push((OPEN.to_owned(), "at the end".to_owned()));
            }
            labels.sort_unstable();
            let owner = Owner {
                process: self.index,
                goid: Some(through.goid),
                labels,
                ..Owner::default()
            };
            let ns = i64::try_from(through.waited_ns).unwrap_or(i64::MAX);
            let values = carry.scaled([0, ns, 0, 0], [through.stands_for; 4]);
            for event in events {
                let stack = match event {
                    Event::Mutex if !is_semaphore(reason) => continue,
                    Event::Mutex => &[GAP],
                    Event::Block => through.stack.as_slice(),
                    _ => continue,
                };
                let window = seen.whole.get(*event);
                window.add_values(owner.clone(), stack, 0, values);
            }
        }
    }

    /// Leaves out the waits of a window that began before anybody watched, and says how
    /// many there were.
    pub(super) fn leave_out_begun_before(&mut self, number: u64) -> u64 {
        let seen = self.open.get_mut(&number);
        seen.map_or(0, |seen| std::mem::take(&mut seen.begun_before).samples())
    }

    /// A window is over. Its waits are left out where those are not known that waited
    /// through it.
    pub(super) fn close(&mut self, watched: &Watched, are_waits_seen: bool) {
        let is_whole = watched.closed.plan.whole;
        let watched_ns = watched.closed.watched_ns();
        let weight = Weight {
            // It may have been cut short.
            slot_ns: match is_whole {
                true => watched_ns,
                false => watched.weight.slot_ns,
            },
            ..watched.weight
        };
        let place = self.weights.len();
        self.weights.push(weight);
        self.wait_weights.push(match are_waits_seen {
            true => weight,
            false => weight.left_out(),
        });
        self.facts.hits += watched.share.hits;
        self.facts.charged_ns += watched.closed.charged_ns;
        self.facts.watched_ns += watched_ns;
        let number = watched.closed.plan.number;
        let mut seen = self.open.remove(&number);
        if let Some(allocations) = &mut self.allocations {
            let seen = seen
                .as_mut()
                .map(|seen| &*seen.whole.get(Event::AllocEvents));
            allocations.close(&watched.closed, seen);
        }
        let Some(seen) = seen else {
            return;
        };
        let scale = weight.slot_ns as f64 / watched_ns.max(1) as f64;
        // A window sees the ends of as many waits that began before it as it sees
        // begin that end after it, and as much of them: what is seen of the ones
        // stands for both. A window that follows on another has neither.
        let twice = if is_whole { 1.0 } else { 2.0 };
        for (windows, times) in [(seen.whole, 1.0), (seen.begun_before, twice)] {
            let windows = windows.into_iter();
            for (event, window) in
                windows.filter(|(event, _)| are_waits_seen || *event == Event::AllocEvents)
            {
                let unit = allocated::unit(event);
                let scale = scale * unit;
                let totals = self.totals.entry(event).or_default();
                let (mut counts, mut delays) = (0.0, 0.0);
                let mut carry = Carry::default();
                self.seen.get(event).merge(&window, |values| {
                    counts += values[0] as f64;
                    delays += values[1] as f64 * times;
                    carry.scaled(values, [scale, scale * times, scale * times, 0.0])
                });
                totals.counts.push((place, counts * unit));
                totals.delays.push((place, delays * unit));
                totals.seen.0 += counts * scale;
                totals.seen.1 += delays * scale;
            }
        }
    }

    /// What the runtime counted since the last call.
    fn mutex_wait_since(&mut self) -> Option<u64> {
        let before = self.mutex_wait_ns?;
        self.mutex_wait_ns = self.process.mutex_wait_ns();
        self.mutex_wait_ns?.checked_sub(before)
    }

    pub(super) fn split_off(
        &mut self,
        pid: u32,
        end_ns: u64,
        is_exact: bool,
        into: &mut Windows,
    ) -> ProbeFacts {
        let facts = std::mem::take(&mut self.facts);
        let mut weights = std::mem::take(&mut self.weights);
        let mut wait_weights = std::mem::take(&mut self.wait_weights);
        if let Some(rest) = self.rest.get() {
            weights.go_on(*rest);
            wait_weights.go_on(*rest);
        }
        // The first window opens a moment before, the last ends a moment after.
        let elapsed_ns = end_ns.saturating_sub(self.since_ns).max(facts.watched_ns);
        self.since_ns = end_ns;
        let (mut totals, mut allocations) = (BTreeMap::new(), None);
        for (event, of) in std::mem::take(&mut self.totals) {
            let (mut counts, mut delays) = match event {
                Event::AllocEvents => (weights.estimate(&of.counts), weights.estimate(&of.delays)),
                _ => (
                    wait_weights.estimate(&of.counts),
                    wait_weights.estimate_time(&of.delays),
                ),
            };
            if is_exact {
                counts.value = of.seen.0;
                delays.value = of.seen.1;
            }
            if let (Event::AllocEvents, Some(of)) = (event, &mut self.allocations) {
                allocations = Some(of.split_off(&mut counts, &mut delays));
            }
            totals.insert(event, (counts, delays, of.seen));
        }
        if let (None, Some(of)) = (&allocations, &mut self.allocations) {
            allocations = Some(of.split_off(&mut Estimate::default(), &mut Estimate::default()));
        }
        let mut seen = std::mem::take(&mut self.seen);
        for (event, (counts, delays, sums)) in &totals {
            let factor = |estimate: &Estimate, sum: f64| match estimate.value / sum {
                factor if factor.is_finite() => factor,
                _ => 1.0,
            };
            let (counts, delays) = (factor(counts, sums.0), factor(delays, sums.1));
            let mut carry = Carry::default();
            let scales = [counts, delays, delays, 1.0];
            if let (Event::AllocEvents, Some((Some((window, rest)), _))) = (event, &allocations) {
                let scales = [*rest; 4];
                into.get(*event)
                    .merge(window, |values| carry.scaled(values, scales));
                continue;
            }
            into.get(*event)
                .merge(seen.get(*event), |values| carry.scaled(values, scales));
        }
        ProbeFacts {
            pid,
            comm: self.process.comm.clone(),
            mutex_wait_ns: self.mutex_wait_since(),
            hits: facts.hits,
            charged_ns: facts.charged_ns,
            watched_ns: facts.watched_ns,
            elapsed_ns,
            windows: weights.len(),
            totals: totals
                .into_iter()
                .map(|(event, (counts, delays, _))| (event, counts, delays))
                .collect(),
            allocations: allocations.map(|(_, facts)| facts),
        }
    }
}
