//! Probes on the processes of a session: which go where, and what their windows come
//! to. The budget of each is held by a thread of its own (`probe::Watch`).

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use profiler_ebpf::wire::at;

use super::{
    allocated::{self, Allocations},
    allocation_facts::AllocSource,
    allocation_totals::Totals as AllocationTotals,
    parked::{NotSeen, Over, Parked},
    probed::{ProbeFacts, Probed},
    windows::Windows,
};
use crate::{
    probe::{
        self, Budget, Controller, Means, OpenWaits, ProbeSet, Probes, Rest, Shares, UprobePrograms,
        WaitLayouts, Watch, Watched, Watcher, calibrate,
    },
    process::{Process, ProcessIndex, is_alive, span_layout},
    symbolize::Event,
};

/// How long it is doubted when waits began, once there was no room to note it: most
/// of those that were not noted are over by then.
const DOUBTS: Duration = Duration::from_secs(60);

/// What probes may do.
#[derive(Debug, Clone, Copy)]
pub struct ProbeConfig {
    /// What they may take from each process.
    pub budget: Budget,
    /// Waits that are shorter are left out.
    pub min_wait: Duration,
    /// Whose stacks a wait for a mutex is counted for.
    pub at: At,
    /// Where allocations are seen.
    pub alloc_source: AllocSource,
    /// Also waits that nobody asks about.
    pub all_waits: bool,
    /// Whether they are only on processes that [`Session::probe`](super::Session::probe)
    /// names.
    pub only_told: bool,
    /// How they are put on; the better that the kernel has where it is absent.
    pub means: Option<Means>,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            budget: Budget::Share(0.01),
            min_wait: Duration::ZERO,
            at: At::Waker,
            alloc_source: AllocSource::Auto,
            all_waits: false,
            only_told: false,
            means: None,
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
    /// Whether anybody asks who waits.
    are_waits_wanted: bool,
    /// Where allocations are seen.
    totals: Option<AllocationTotals>,
    rest: Arc<OnceLock<Rest>>,
}

impl Watcher for Watching {
    fn look(&mut self, opens_ns: u64) {
        if self.are_waits_wanted {
            self.parked.look(opens_ns);
        }
    }

    fn look_now(&mut self) {
        if self.are_waits_wanted {
            self.parked.look_now();
        }
    }

    fn over(&mut self, watched: &Watched) {
        if let Some(totals) = &self.totals {
            totals.note(watched.closed.plan.number);
        }
        self.parked.over(watched);
    }

    fn rest(&mut self, rest: Rest) {
        // Told once.
        let _ = self.rest.set(rest);
    }
}

/// What is missing of a window.
#[derive(Debug, Default)]
pub(super) struct Missing {
    /// Waits that seem to have begun before it, when there was no room to note that.
    pub waits: u64,
    /// 1 where its waits are left out, as who waited through it was looked at too late.
    pub windows: u64,
    /// 1 where only those are missing that waited through it.
    pub looks: u64,
}

/// Probes at work.
pub(super) struct Probing {
    config: ProbeConfig,
    events: Vec<Event>,
    programs: UprobePrograms,
    shares: Arc<Mutex<Shares>>,
    layouts: WaitLayouts,
    trap_ns: u64,
    /// How long it takes to take a probe off by itself.
    close_ns: u64,
    /// Why these could not be measured, for people.
    pub not_measured: Option<String>,
    probed: HashMap<u32, Probed>,
    /// Those that are gone, or not wanted any more, with what was seen of them last.
    ended: Vec<(u32, Probed)>,
    /// Processes that probes are allowed on, where they have to be.
    allowed: HashSet<u32>,
    /// Programs that cannot be probed: not to be tried again.
    refused: HashMap<u32, ProcessIndex>,
    waits: Arc<Mutex<OpenWaits>>,
    sender: Sender<Over>,
    windows: Receiver<Over>,
    /// Waits that the kernel side had no room for so far.
    full: u64,
    /// Until when others may be among those that seem to have begun before.
    doubts_until: Option<Instant>,
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
            names.extend(allocated::programs(config.alloc_source));
        }
        let mut shares = probes.take_shares()?;
        let Ready {
            programs,
            trap_ns,
            close_ns,
            not_measured,
        } = Ready::of(probes, &names, config.means, &mut shares)?;
        let (sender, windows) = channel();
        Ok(Some(Self {
            config,
            events,
            programs,
            shares: Arc::new(Mutex::new(shares)),
            layouts: probes.take_wait_layouts()?,
            waits: Arc::new(Mutex::new(probes.take_open_waits()?)),
            trap_ns,
            close_ns,
            not_measured,
            probed: HashMap::new(),
            ended: Vec::new(),
            allowed: HashSet::new(),
            refused: HashMap::new(),
            sender,
            windows,
            full: 0,
            doubts_until: None,
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
            if self.config.only_told && !self.allowed.contains(&pid) {
                continue;
            }
            if self.refused.get(&pid) == Some(&index) {
                continue;
            }
            if let Some(probed) = self.probed.get_mut(&pid)
                && probed.index == index
            {
                probed.allocations.iter_mut().for_each(Allocations::look);
                if probed.watch.is_over()
                    && let Err(why) = self.leave(pid)
                    && is_alive(pid)
                {
                    self.refused.insert(pid, index);
                    refuse(process, format!("{why:#}"));
                }
                continue;
            }
            // Of a program that was there before; why its watch ended is its own matter.
            let _ = self.leave(pid);
            match self.begin(index, process) {
                Ok(Some(probed)) => {
                    self.probed.insert(pid, probed);
                }
                Ok(None) => {}
                Err(error) => {
                    self.refused.insert(pid, index);
                    self.layouts.remove(pid);
                    refuse(process, format!("{error:#}"));
                }
            }
        }
        for pid in gone {
            self.layouts.remove(pid);
            self.allowed.remove(&pid);
            // One that is alive is not wanted any more.
            if let Some(probed) = self.probed.get(&pid)
                && (probed.watch.is_over() || is_alive(pid))
            {
                // It ends with an error where the process is gone.
                let _ = self.leave(pid);
            }
        }
        self.refused.retain(|pid, _| is_alive(*pid));
    }

    /// Takes the probes off a process, and then forgets what it waits for. What its last
    /// windows come to is told by their messages.
    ///
    /// # Errors
    /// Probes could not be put on at some time, and why.
    fn leave(&mut self, pid: u32) -> Result<()> {
        let Some(mut probed) = self.probed.remove(&pid) else {
            return Ok(());
        };
        let ended = probed.watch.wait();
        self.ended.push((pid, probed));
        let waits = self.waits.lock();
        waits.unwrap_or_else(PoisonError::into_inner).forget(pid);
        ended
    }

    /// Allows probes on a process.
    pub(super) fn allow(&mut self, pid: u32) {
        self.allowed.insert(pid);
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
            true => {
                let source = self.config.alloc_source;
                if source == AllocSource::Spans {
                    layout.span = span_layout(&offsets).map_err(|why| anyhow!(why))?;
                }
                Some(Allocations::begin(
                    process,
                    source,
                    &self.programs,
                    &mut set,
                )?)
            }
            false => None,
        };
        let totals = allocations.as_ref().map(Allocations::totals).transpose()?;
        layout.total_alloc = totals.as_ref().and_then(|of| of.address).unwrap_or(0);
        self.layouts.insert(process.pid, &layout)?;
        let costs = set.costs(self.trap_ns, self.close_ns);
        let now_ns = probe::monotonic_ns();
        let seed = now_ns ^ u64::from(process.pid).rotate_left(32);
        let controller = Controller::new(self.config.budget, costs, seed, now_ns);
        let waits = Arc::clone(&self.waits);
        let sender = self.sender.clone();
        let parked = Parked::new(process, offsets, layout, waits, sender)?;
        let are_waits_wanted = PARTS.iter().any(|(event, _)| self.events.contains(event));
        let watcher = Watching {
            parked,
            are_waits_wanted,
            totals,
            rest: Arc::default(),
        };
        let rest = Arc::clone(&watcher.rest);
        let watch = Watch::start(set, Arc::clone(&self.shares), controller, watcher)?;
        let mut probed = Probed::new(index, process, watch, now_ns);
        probed.rest = rest;
        probed.reasons = reasons;
        probed.allocations = allocations;
        if self.events.contains(&Event::Mutex) {
            probed.begin_mutex_wait();
        }
        Ok(Some(probed))
    }

    /// Waits until all who are watched all the time are watched, but no longer than
    /// `most`: what is counted begins then.
    pub(super) fn wait_open(&mut self, most: Duration) {
        if self.config.budget != Budget::Unlimited {
            return;
        }
        let until = Instant::now() + most;
        for probed in self.probed.values_mut() {
            let left = until.saturating_duration_since(Instant::now());
            probed.wait_open(left);
        }
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

    /// The kernel side had no room for so many waits by now.
    pub(super) fn note_full(&mut self, waits: u64) {
        if waits > self.full {
            self.doubts_until = Some(Instant::now() + DOUBTS);
        }
        self.full = waits;
    }

    /// Counts what was seen in a window that is over, and says what is missing.
    pub(super) fn close(&mut self, over: &Over) -> Missing {
        let in_doubt = self
            .doubts_until
            .is_some_and(|until| Instant::now() < until);
        let events = &self.events;
        let ended = self.ended.iter_mut().rev();
        let mut ended = ended.filter(|(pid, _)| *pid == over.pid);
        let probed = match self.probed.get_mut(&over.pid) {
            Some(probed) => Some(probed),
            None => ended.next().map(|(_, probed)| probed),
        };
        let Some(probed) = probed else {
            return Missing::default();
        };
        let mut missing = Missing::default();
        let closed = &over.watched.closed;
        let mut are_waits_seen = true;
        match &over.through {
            // Where beginnings were not noted nobody knows since when these wait.
            Ok(through) if !in_doubt => probed.wait_through(closed, through, events),
            Err(NotSeen::Late) if !closed.plan.whole => {
                are_waits_seen = false;
                missing.windows = 1;
            }
            _ => missing.looks = 1,
        }
        if in_doubt {
            missing.waits = probed.leave_out_begun_before(closed.plan.number);
        }
        probed.close(&over.watched, are_waits_seen);
        missing
    }

    /// Begins to take all probes off, all at once: each takes some tens of milliseconds.
    pub(super) fn end(&mut self) {
        self.probed
            .values_mut()
            .for_each(|probed| probed.watch.end());
    }

    /// Takes all probes off, and gives the windows that end by that. Calls `refuse` with
    /// each process whose probes could not be put on at some time, and why.
    pub(super) fn stop(&mut self, mut refuse: impl FnMut(u32, String)) -> Vec<Over> {
        self.end();
        for (pid, probed) in &mut self.probed {
            if let Err(why) = probed.watch.wait()
                && is_alive(*pid)
            {
                refuse(*pid, format!("{}: no probes: {why:#}", probed.exe()));
            }
        }
        self.over()
    }

    /// Takes out what was seen since the last call and until `end_ns`, as what it stands
    /// for, of processes that the window `is_of`; and says how much was seen of others.
    pub(super) fn split_off(
        &mut self,
        into: &mut Windows,
        end_ns: u64,
        is_of: impl Fn(ProcessIndex) -> bool,
    ) -> (Vec<ProbeFacts>, u64) {
        let is_exact = self.config.budget == Budget::Unlimited;
        let (mut facts, mut late) = (Vec::new(), Windows::default());
        let mut ended = std::mem::take(&mut self.ended);
        let ended = ended.iter_mut().map(|(pid, probed)| (*pid, probed));
        let probed = self.probed.iter_mut().map(|(pid, probed)| (*pid, probed));
        for (pid, probed) in ended.chain(probed) {
            match is_of(probed.index) {
                true => facts.push(probed.split_off(pid, end_ns, is_exact, into)),
                // It was gone before the window began.
                false => drop(probed.split_off(pid, end_ns, is_exact, &mut late)),
            }
        }
        (facts, late.samples())
    }
}

/// Programs that are loaded, and what they take.
struct Ready {
    programs: UprobePrograms,
    trap_ns: u64,
    close_ns: u64,
    not_measured: Option<String>,
}

impl Ready {
    /// Loads programs for the better means that the kernel has, unless `means` says which.
    fn of(
        probes: &Probes,
        names: &[&'static str],
        means: Option<Means>,
        shares: &mut Shares,
    ) -> Result<Self> {
        let told = means.map_or_else(Means::find, Ok);
        let told = told.context("no probes can be put on by this kernel")?;
        let ready = Self::with(probes, names, told, shares)?;
        // Some kernels before 6.10 see only the first thread of a process by links.
        if ready.not_measured.is_some() && means.is_none() && told == Means::Link {
            let events = Means::events().and_then(|of| Self::with(probes, names, of, shares));
            if let Ok(events) = events
                && events.not_measured.is_none()
            {
                return Ok(events);
            }
        }
        Ok(ready)
    }

    fn with(
        probes: &Probes,
        names: &[&'static str],
        means: Means,
        shares: &mut Shares,
    ) -> Result<Self> {
        let programs = probes.load_uprobes(names, means)?;
        let exe = Path::new("/proc/self/exe");
        // Where it cannot be measured, it is taken for more than it is.
        let (trap_ns, close_ns, not_measured) = match calibrate::measure(exe, &programs, shares) {
            Ok(cost) => (cost.median_ns, cost.close_ns, None),
            Err(why) => {
                let default_ns = calibrate::DEFAULT_TRAP_NS;
                let line = format!("a hit of a probe is taken for {default_ns} ns: {why:#}");
                (default_ns, calibrate::DEFAULT_CLOSE_NS, Some(line))
            }
        };
        Ok(Self {
            programs,
            trap_ns,
            close_ns,
            not_measured,
        })
    }
}

fn parts(events: &[Event]) -> impl Iterator<Item = &'static Part> + '_ {
    let wanted = PARTS.iter().filter(|(event, _)| events.contains(event));
    wanted.flat_map(|(_, parts)| parts)
}
