//! Probes on the processes of a session: which go where, and what their windows come
//! to. The budget of each is held by a thread of its own (`probe::Watch`).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use anyhow::{Result, anyhow};
use profiler_ebpf::wire::at;

use super::{
    allocated::{self, AllocationFacts, Allocations},
    allocation_totals::Totals as AllocationTotals,
    measured::{OPEN, REASON},
    parked::{Over, Parked},
    windows::Windows,
};
use crate::{
    aggregate::Owner,
    probe::{
        self, Budget, Controller, Costs, Estimate, OpenWaits, ProbeSet, Probes, Shares,
        UprobePrograms, WaitLayouts, Watch, Watched, Watcher, Weight, calibrate,
    },
    process::{Process, ProcessIndex, is_alive},
    symbolize::Event,
    unwind::GAP,
};

/// What probes may do.
#[derive(Debug, Clone, Copy)]
pub struct ProbeConfig {
    /// What they may take from each process.
    pub budget: Budget,
    /// Waits that are shorter are left out.
    pub min_wait: Duration,
    /// Whose stacks a wait for a mutex is counted for.
    pub at: At,
    /// Also waits that nobody asks about.
    pub all_waits: bool,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            budget: Budget::Share(0.01),
            min_wait: Duration::ZERO,
            at: At::Waker,
            all_waits: false,
        }
    }
}

/// Whose stacks a wait for a mutex is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Who held it, as in Go's own profile.
    Waker,
    /// Who waited.
    Waiter,
    /// Both, told apart by a label.
    Both,
}

impl At {
    fn bits(self) -> u8 {
        match self {
            At::Waker => at::WAKER,
            At::Waiter => at::WAITER,
            At::Both => at::WAKER | at::WAITER,
        }
    }
}

/// A program of probes, the function it goes to, and whether events can be had
/// without.
struct Part(&'static str, &'static str, bool);

/// What each event that takes probes is made of.
static PARTS: [(Event, [Part; 3]); 2] = [
    (
        Event::Mutex,
        [
            Part("contention_queue", "runtime.(*semaRoot).queue", true),
            Part("contention_ready", "runtime.readyWithTime", true),
            Part("contention_notify", "sync.runtime_notifyListWait", false),
        ],
    ),
    (
        Event::Block,
        [
            Part("blocking_park", "runtime.gopark", true),
            Part("blocking_execute", "runtime.execute", true),
            Part("blocking_ready", "runtime.ready", false),
        ],
    ),
];

/// Whether an event takes probes.
pub fn takes_probes(event: Event) -> bool {
    event == Event::AllocEvents || PARTS.iter().any(|(of, _)| *of == event)
}

/// Who is told of a process's windows.
struct Watching {
    parked: Parked,
    /// Where allocations are seen.
    totals: Option<AllocationTotals>,
}

impl Watcher for Watching {
    fn look(&mut self) {
        self.parked.look();
    }

    fn over(&mut self, watched: &Watched) {
        if let Some(totals) = &self.totals {
            totals.note(watched.closed.plan.number);
        }
        self.parked.over(watched);
    }
}

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

/// Probes at work.
pub(super) struct Probing {
    config: ProbeConfig,
    events: Vec<Event>,
    programs: UprobePrograms,
    shares: Arc<Mutex<Shares>>,
    layouts: WaitLayouts,
    trap_ns: u64,
    probed: HashMap<u32, Probed>,
    /// Programs that cannot be probed: not to be tried again.
    refused: HashMap<u32, ProcessIndex>,
    waits: Arc<Mutex<OpenWaits>>,
    sender: Sender<Over>,
    windows: Receiver<Over>,
}

/// A process that is probed.
pub(super) struct Probed {
    index: ProcessIndex,
    process: Arc<Process>,
    mutex_wait_ns: Option<u64>,
    watch: Watch,
    /// Its wait reasons, in words.
    pub reasons: Vec<String>,
    /// What was seen in windows that are not over, by their number.
    open: BTreeMap<u64, Seen>,
    /// What those that are over stand for.
    seen: Windows,
    since_ns: u64,
    facts: Counts,
    weights: probe::Windows,
    totals: BTreeMap<Event, Totals>,
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
    /// Whose they were.
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

impl Probing {
    /// Loads what `events` take; None where none of them takes probes.
    ///
    /// # Errors
    /// The kernel refuses a program.
    pub(super) fn prepare(
        probes: &mut Probes,
        events: &[Event],
        config: ProbeConfig,
    ) -> Result<Option<Self>> {
        let events: Vec<Event> = events
            .iter()
            .copied()
            .filter(|e| takes_probes(*e))
            .collect();
        if events.is_empty() {
            return Ok(None);
        }
        let names = parts(&events).map(|part| part.0);
        let mut names: Vec<&'static str> = names.chain([calibrate::PROGRAM]).collect();
        if events.contains(&Event::AllocEvents) {
            names.extend(allocated::PROGRAMS);
        }
        let programs = probes.load_uprobes(&names)?;
        let mut shares = probes.take_shares()?;
        let exe = Path::new("/proc/self/exe");
        // Where it cannot be measured, it is taken for more than it is.
        let trap_ns = calibrate::measure(exe, &programs, &mut shares)
            .map_or(calibrate::DEFAULT_TRAP_NS, |cost| cost.median_ns);
        let (sender, windows) = channel();
        Ok(Some(Self {
            config,
            events,
            programs,
            shares: Arc::new(Mutex::new(shares)),
            layouts: probes.take_wait_layouts()?,
            waits: Arc::new(Mutex::new(probes.take_open_waits()?)),
            trap_ns,
            probed: HashMap::new(),
            refused: HashMap::new(),
            sender,
            windows,
        }))
    }

    /// Puts probes on what runs and has none, and takes them off what is gone. Calls
    /// `refuse` with each process that cannot be probed, once, and why.
    pub(super) fn follow<'p>(
        &mut self,
        running: impl Iterator<Item = (ProcessIndex, &'p Arc<Process>)>,
        mut refuse: impl FnMut(&Process, String),
    ) {
        let mut gone: Vec<u32> = self.probed.keys().copied().collect();
        for (index, process) in running {
            let pid = process.pid;
            gone.retain(|known| *known != pid);
            if self.refused.get(&pid) == Some(&index) {
                continue;
            }
            if let Some(probed) = self.probed.get_mut(&pid)
                && probed.index == index
            {
                probed.allocations.iter_mut().for_each(Allocations::look);
                continue;
            }
            self.probed.remove(&pid);
            match self.begin(index, process) {
                Ok(Some(probed)) => {
                    self.probed.insert(pid, probed);
                }
                Ok(None) => {}
                Err(error) => {
                    self.refused.insert(pid, index);
                    refuse(process, format!("{error:#}"));
                }
            }
        }
        for pid in gone {
            self.layouts.remove(pid);
            // What its last windows came to is told by their messages, or lost with it.
            if let Some(probed) = self.probed.get(&pid)
                && probed.watch.is_over()
            {
                self.probed.remove(&pid);
            }
        }
        self.refused.retain(|pid, _| is_alive(*pid));
    }

    /// Begins to watch a process; None where its goroutines cannot be found yet.
    fn begin(&mut self, index: ProcessIndex, process: &Arc<Process>) -> Result<Option<Probed>> {
        let Some((mut layout, reasons, offsets)) = process
            .wait_layout(self.config.all_waits)
            .map_err(|why| anyhow!(why))?
        else {
            return Ok(None);
        };
        layout.min_wait_ns = u64::try_from(self.config.min_wait.as_nanos()).unwrap_or(u64::MAX);
        layout.at = self.config.at.bits();
        let object = process
            .go_object()
            .ok_or_else(|| anyhow!("its Go code is not mapped"))?;
        let binary = object.go().ok_or_else(|| anyhow!("it is not Go"))?;
        let wanted: Vec<&Part> = parts(&self.events).collect();
        let names: Vec<&str> = wanted.iter().map(|part| part.1).collect();
        let mut set = ProbeSet::new(process.pid, Arc::clone(object));
        for (Part(program, function, is_needed), place) in
            wanted.iter().zip(binary.probe_places(&names))
        {
            match place {
                Ok(place) => set.add(&self.programs, program, &[place])?,
                Err(why) if *is_needed => return Err(anyhow!("cannot probe {function}: {why}")),
                Err(_) => {}
            }
        }
        let allocations = match self.events.contains(&Event::AllocEvents) {
            true => Some(Allocations::begin(process, &self.programs, &mut set)?),
            false => None,
        };
        let totals = allocations.as_ref().map(Allocations::totals).transpose()?;
        layout.total_alloc = totals.as_ref().and_then(|of| of.address).unwrap_or(0);
        self.layouts.insert(process.pid, &layout)?;
        let costs = Costs {
            trap_ns: self.trap_ns,
            switch_ns: probe::SWITCH_NS_PER_PLACE * set.places() as u64,
        };
        let now_ns = probe::monotonic_ns();
        let seed = now_ns ^ u64::from(process.pid).rotate_left(32);
        let controller = Controller::new(self.config.budget, costs, seed, now_ns);
        let waits = Arc::clone(&self.waits);
        let sender = self.sender.clone();
        let parked = Parked::new(process, offsets, layout, waits, sender)?;
        let watcher = Watching { parked, totals };
        let watch = Watch::start(set, Arc::clone(&self.shares), controller, watcher)?;
        Ok(Some(Probed {
            index,
            mutex_wait_ns: match self.events.contains(&Event::Mutex) {
                true => process.mutex_wait_ns(),
                false => None,
            },
            process: Arc::clone(process),
            watch,
            reasons,
            open: BTreeMap::new(),
            seen: Windows::default(),
            since_ns: now_ns,
            facts: Counts::default(),
            weights: probe::Windows::default(),
            totals: BTreeMap::new(),
            allocations,
        }))
    }

    /// The process, if it is probed.
    pub(super) fn get(&mut self, pid: u32) -> Option<&mut Probed> {
        self.probed.get_mut(&pid)
    }

    /// The kernel side tells that a window's share is spent.
    pub(super) fn spent(&self, pid: u32, window: u64, time_ns: u64) {
        if let Some(probed) = self.probed.get(&pid) {
            probed.watch.spent(window, time_ns);
        }
    }

    /// The windows that are over by now. What they hold may still be in the ring:
    /// they are to be [closed](Probing::close) once that was emptied.
    pub(super) fn over(&self) -> Vec<Over> {
        self.windows.try_iter().collect()
    }

    /// Counts what was seen in a window that is over.
    pub(super) fn close(&mut self, over: &Over) {
        let events = &self.events;
        if let Some(probed) = self.probed.get_mut(&over.pid) {
            probed.wait_through(over, events);
            probed.close(&over.watched);
        }
    }

    /// Takes all probes off, and gives the windows that end by that.
    pub(super) fn stop(&mut self) -> Vec<Over> {
        // All at once: each takes some tens of milliseconds.
        self.probed
            .values_mut()
            .for_each(|probed| probed.watch.end());
        self.probed
            .values_mut()
            .for_each(|probed| probed.watch.wait());
        self.over()
    }

    /// Takes out what was seen since the last call, as what it stands for.
    pub(super) fn split_off(&mut self, into: &mut Windows) -> Vec<ProbeFacts> {
        let now_ns = probe::monotonic_ns();
        let is_exact = self.config.budget == Budget::Unlimited;
        let probed = self.probed.iter_mut();
        probed
            .map(|(pid, probed)| probed.split_off(*pid, now_ns, is_exact, into))
            .collect()
    }
}

impl Probed {
    /// Where what is seen in a window goes.
    pub(super) fn window(&mut self, number: u64, began_before: bool) -> &mut Windows {
        let seen = self.open.entry(number).or_default();
        match began_before {
            true => &mut seen.begun_before,
            false => &mut seen.whole,
        }
    }

    /// Notes that the wait of a goroutine ended in a window that it began before.
    pub(super) fn note_end(&mut self, number: u64, goid: u64) {
        self.open.entry(number).or_default().ended.insert(goid);
    }

    /// Counts those that waited through a window. Of a mutex nobody knows yet who will
    /// wake them.
    fn wait_through(&mut self, over: &Over, events: &[Event]) {
        let closed = &over.watched.closed;
        let seen = self.open.entry(closed.plan.number).or_default();
        let mut carry = Carry::default();
        for through in &over.through {
            if seen.ended.contains(&through.goid) {
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

    fn close(&mut self, watched: &Watched) {
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
        self.facts.hits += watched.share.hits;
        self.facts.charged_ns += watched.closed.charged_ns;
        self.facts.watched_ns += watched_ns;
        let number = watched.closed.plan.number;
        let mut seen = self.open.remove(&number);
        if let Some(allocations) = &mut self.allocations {
            let seen = seen
                .as_mut()
                .map(|seen| &*seen.whole.get(Event::AllocEvents));
            allocations.close(number, is_whole, seen);
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
            for (event, window) in windows {
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

    fn split_off(
        &mut self,
        pid: u32,
        now_ns: u64,
        is_exact: bool,
        into: &mut Windows,
    ) -> ProbeFacts {
        let facts = std::mem::take(&mut self.facts);
        let weights = std::mem::take(&mut self.weights);
        let elapsed_ns = now_ns.saturating_sub(self.since_ns);
        self.since_ns = now_ns;
        let (mut totals, mut allocations) = (BTreeMap::new(), None);
        for (event, of) in std::mem::take(&mut self.totals) {
            let mut counts = weights.estimate(&of.counts);
            let mut delays = match event {
                Event::AllocEvents => weights.estimate(&of.delays),
                _ => weights.estimate_time(&of.delays),
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

/// Scales values to whole numbers; what is cut off one is added to the next.
#[derive(Default)]
pub(super) struct Carry([f64; 4]);

impl Carry {
    pub(super) fn scaled(&mut self, values: [i64; 4], scales: [f64; 4]) -> [i64; 4] {
        let mut scaled = [0; 4];
        for (index, to) in scaled.iter_mut().enumerate() {
            let exact = values[index] as f64 * scales[index] + self.0[index];
            let whole = exact.round();
            self.0[index] = exact - whole;
            *to = whole as i64;
        }
        scaled
    }
}

fn parts(events: &[Event]) -> impl Iterator<Item = &'static Part> + '_ {
    let wanted = PARTS.iter().filter(|(event, _)| events.contains(event));
    wanted.flat_map(|(_, parts)| parts)
}
