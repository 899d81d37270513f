//! A recording of memory: what programs allocated and have in use, read from the
//! profiles that they keep of themselves. Needs no probe and loads nothing.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant, SystemTime},
};

use super::{
    heap_buckets::add_buckets,
    mem_profile::{DEFAULT_RATE, EnabledProfile},
};
use crate::{
    aggregate::Window,
    gomemory::{HeapProfile, Live, Memory as _, NoHeap},
    process::{Considered, Depth, Process, ProcessIndex, ProcessTable, Selection, all_pids},
    symbolize::{Event, Naming, SymbolizedWindow, Symbolizer, Taken},
};

/// A recording of memory under way.
pub struct HeapSession {
    event: Event,
    selection: Selection,
    enables: bool,
    table: ProcessTable,
    before: HashMap<ProcessIndex, Before>,
    /// Programs whose profile could not be turned on.
    not_enabled: HashMap<ProcessIndex, NoHeap>,
    /// Processes that were not wanted when the window began.
    refused: HashSet<u32>,
    /// Processes of which it could not be kept what they had allocated by then.
    not_kept: HashSet<u32>,
    /// Most bytes that what is kept of processes may take.
    max_kept_bytes: usize,
    start: SystemTime,
    started: Instant,
}

/// A process as it was when the recording began.
struct Before {
    memory: Live,
    profile: HeapProfile,
    /// Puts the rate back when it is dropped.
    enabled: Option<EnabledProfile>,
}

/// A process as it is.
struct Now {
    memory: Live,
    profile: HeapProfile,
}

/// What was read of all processes, not named yet.
struct Reading {
    taken: Taken,
    window: Window,
    now: HashMap<ProcessIndex, Now>,
    read: Vec<HeapFacts>,
    without: Vec<WithoutHeap>,
    gone: usize,
    late: usize,
    not_kept: usize,
    enabled: usize,
}

/// What was read of one process.
#[derive(Debug, Clone)]
pub struct HeapFacts {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// One in how many bytes was sampled.
    pub rate: u64,
    /// Stacks and sizes of blocks that were read.
    pub buckets: usize,
    /// Of these, those whose type is known.
    pub typed: usize,
    /// Buckets that could not be read whole.
    pub torn: u64,
    /// Whether there are more buckets than goprof reads.
    pub is_cut: bool,
    /// Whether no collection went on while they were read.
    pub is_settled: bool,
}

/// A process without a heap profile.
#[derive(Debug, Clone)]
pub struct WithoutHeap {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Why.
    pub why: NoHeap,
}

/// A finished recording of memory.
pub struct HeapRecording {
    /// The named stacks.
    pub window: SymbolizedWindow,
    /// How many frames have names.
    pub naming: Naming,
    /// The processes that were read.
    pub read: Vec<HeapFacts>,
    /// Those that have no heap profile.
    pub without: Vec<WithoutHeap>,
    /// Processes that ended before they could be read again.
    pub gone: usize,
    /// Processes that ran when it began and are wanted only since.
    pub late: usize,
    /// Processes of which there was no room to keep what they had allocated before.
    pub not_kept: usize,
    /// Processes whose heap profile was turned on for the recording.
    pub enabled: usize,
}

impl HeapSession {
    /// Looks at the processes as they are now: what they have allocated so far is
    /// not part of a recording of [`Event::Allocs`]. With `enables` the profile is
    /// turned on, until the end, in programs that take none.
    pub fn start(event: Event, selection: Selection, enables: bool) -> Self {
        let mut session = Self::new(event, selection, usize::MAX);
        session.enables = enables;
        session.begin(|_| true);
        session
    }

    /// The same, where what is kept of the processes may take no more than so much
    /// memory. It turns no profile on.
    pub fn start_within(event: Event, selection: Selection, max_kept_bytes: usize) -> Self {
        let mut session = Self::new(event, selection, max_kept_bytes);
        session.begin(|_| true);
        session
    }

    /// The same of every process that may be `wanted` in the end, for a session that
    /// goes on: see [`HeapSession::rotate`].
    pub fn start_where(
        event: Event,
        max_kept_bytes: usize,
        wanted: impl FnMut(&Process) -> bool,
    ) -> Self {
        let mut session = Self::new(event, Selection::All, max_kept_bytes);
        session.begin(wanted);
        session.forget_unread();
        session
    }

    fn new(event: Event, selection: Selection, max_kept_bytes: usize) -> Self {
        Self {
            event,
            selection,
            enables: false,
            table: ProcessTable::default(),
            before: HashMap::new(),
            not_enabled: HashMap::new(),
            refused: HashSet::new(),
            not_kept: HashSet::new(),
            max_kept_bytes,
            start: SystemTime::now(),
            started: Instant::now(),
        }
    }

    fn begin(&mut self, wanted: impl FnMut(&Process) -> bool) {
        if self.event == Event::Heap && !self.enables {
            // It is read once, at the end.
            return;
        }
        self.refused = self.find(wanted);
        let running: Vec<u32> = self.table.pids().collect();
        for pid in running {
            let Some(index) = self.table.current(pid) else {
                continue;
            };
            match self.look(index) {
                Ok(Some(before)) => self.keep(index, before),
                Ok(None) => {}
                Err(why) => drop(self.not_enabled.insert(index, why)),
            }
        }
        self.start = SystemTime::now();
        self.started = Instant::now();
    }

    /// Keeps a process as it is, if there is room for it. Else what it allocates from
    /// here on cannot be told from what it did before.
    fn keep(&mut self, index: ProcessIndex, before: Before) {
        let kept = self.before.values().map(|before| before.profile.bytes());
        let kept = kept.sum::<usize>() + before.profile.bytes();
        if kept <= self.max_kept_bytes {
            self.before.insert(index, before);
            return;
        }
        let pid = self.table.get(index).pid;
        self.table.forget(pid);
        self.not_kept.insert(pid);
    }

    /// In how many programs the heap profile was turned on.
    pub fn enabled(&self) -> usize {
        let before = self.before.values();
        before.filter(|before| before.enabled.is_some()).count()
    }

    /// Whether a process of the beginning still runs.
    pub fn is_any_left(&self) -> bool {
        self.table
            .running()
            .any(|process| crate::process::is_alive(process.pid))
    }

    /// Reads the processes once more, and names what was allocated.
    pub fn finish(mut self, symbolizer: &mut Symbolizer) -> HeapRecording {
        let reading = self.read(|_| true);
        // Puts back what was written: all is read, and naming may take long.
        self.before.clear();
        reading.name(symbolizer, &self.table)
    }

    /// Reads the `wanted` processes once more, names what was allocated, and goes on
    /// from what was read: nothing is allocated in between.
    pub fn rotate(
        &mut self,
        symbolizer: &mut Symbolizer,
        wanted: impl FnMut(&Process) -> bool,
    ) -> HeapRecording {
        let mut reading = self.read(wanted);
        // Who could not be read this time goes on from the time before.
        let table = &self.table;
        self.before.retain(|index, _| is_current(table, *index));
        for (index, now) in std::mem::take(&mut reading.now) {
            self.go_on(index, now);
        }
        let table = self.table.split_off();
        self.forget_unread();
        self.table.release();
        self.not_enabled
            .retain(|index, _| self.table.contains(*index));
        reading.name(symbolizer, &table)
    }

    /// Has the next window of a process begin with what was read now. A bucket that
    /// could not be read stays as it was before: buckets never go.
    fn go_on(&mut self, index: ProcessIndex, now: Now) {
        let Now {
            memory,
            mut profile,
        } = now;
        let before = self.before.remove(&index);
        let (enabled, old) = before.map_or((None, Vec::new()), |before| {
            (before.enabled, before.profile.buckets)
        });
        profile.take_over(old);
        let before = Before {
            memory,
            profile,
            enabled,
        };
        self.keep(index, before);
    }

    /// Looks at those of which nothing was read as at others that are new: they may
    /// run another program by then. What they allocated until they are read is not
    /// known.
    fn forget_unread(&mut self) {
        let pids: Vec<u32> = self.table.pids().collect();
        for pid in pids {
            let index = self.table.current(pid);
            if index.is_none_or(|index| !self.before.contains_key(&index)) {
                self.table.forget(pid);
                self.refused.insert(pid);
            }
        }
    }

    /// Reads the processes once more.
    fn read(&mut self, mut wanted: impl FnMut(&Process) -> bool) -> Reading {
        let (start, started) = (self.start, self.started);
        self.forget_the_gone();
        let refused = self.find(&mut wanted);
        let known = self.before.keys();
        let gone = known
            .filter(|index| !is_current(&self.table, **index))
            .count();
        let refused = std::mem::replace(&mut self.refused, refused);
        let not_kept = std::mem::take(&mut self.not_kept);
        (self.start, self.started) = (SystemTime::now(), Instant::now());
        let mut reading = Reading {
            taken: Taken {
                event: self.event,
                start,
                duration: self.started.duration_since(started),
                period: DEFAULT_RATE,
                all_waits: false,
            },
            window: Window::default(),
            now: HashMap::new(),
            read: Vec::new(),
            without: Vec::new(),
            gone,
            late: 0,
            not_kept: 0,
            enabled: self.enabled(),
        };
        if self.event == Event::Heap {
            (reading.taken.start, reading.taken.duration) = (self.start, Duration::ZERO);
        }
        let mut running: Vec<u32> = self.table.pids().collect();
        running.sort_unstable();
        for pid in running {
            let Some(index) = self.table.current(pid) else {
                continue;
            };
            if !wanted(self.table.get(index)) {
                self.table.forget(pid);
                self.refused.insert(pid);
                continue;
            }
            let was_not_kept = not_kept.contains(&pid);
            let is_late = was_not_kept || refused.contains(&pid);
            let is_late = self.event == Event::Allocs && is_late;
            match self.add(index, is_late, &mut reading.window) {
                Ok((facts, now)) => {
                    match is_late {
                        true if was_not_kept => reading.not_kept += 1,
                        true => reading.late += 1,
                        false => reading.read.push(facts),
                    }
                    if self.event == Event::Allocs {
                        reading.now.insert(index, now);
                    }
                }
                Err(why) => {
                    let comm = self.table.get(index).comm.clone();
                    let why = self.not_enabled.get(&index).cloned().unwrap_or(why);
                    reading.without.push(WithoutHeap { pid, comm, why });
                }
            }
        }
        let rates = reading.read.iter().map(|facts| facts.rate);
        reading.taken.period = rates.max().unwrap_or(DEFAULT_RATE);
        reading
    }

    /// Adds the wanted processes that run now and are not known yet; gives those
    /// that are not wanted.
    fn find(&mut self, mut wanted: impl FnMut(&Process) -> bool) -> HashSet<u32> {
        let mut refused = HashSet::new();
        let pids = match &self.selection {
            Selection::Pids(pids) => pids.clone(),
            _ => all_pids(),
        };
        for pid in pids {
            if self.table.current(pid).is_none() {
                // What cannot be looked at has no place in the table, and whoever
                // named it by its pid was told before.
                let _: Considered = self.table.consider(pid, &self.selection, Depth::Libraries);
                if let Some(index) = self.table.current(pid)
                    && !wanted(self.table.get(index))
                {
                    self.table.forget(pid);
                    refused.insert(pid);
                }
            }
        }
        refused
    }

    /// Forgets the processes that have ended, or run another program now.
    fn forget_the_gone(&mut self) {
        let pids: Vec<u32> = self.table.pids().collect();
        for pid in pids {
            let Some(index) = self.table.current(pid) else {
                continue;
            };
            let is_there = match self.before.get(&index) {
                Some(before) => before.memory.is_there(),
                None => crate::process::is_alive(pid),
            };
            if !is_there {
                self.table.forget(pid);
            }
        }
    }

    /// A process as it is now; None where there is nothing to be had of it, which
    /// shows again at the end.
    fn look(&self, index: ProcessIndex) -> Result<Option<Before>, NoHeap> {
        let process = self.table.get(index);
        let Ok(memory) = Live::open(process.pid) else {
            return Ok(None);
        };
        let Some(program) = process.go_program(&memory) else {
            return Ok(None);
        };
        let (mut profile, enabled) = match program.heap() {
            Ok(profile) => (profile, None),
            Err(NoHeap::Off { .. }) if self.enables => {
                let enabled = EnabledProfile::set(process.pid, &program, DEFAULT_RATE);
                let failed =
                    |why| NoHeap::Unknown(format!("its heap profile cannot be turned on: {why:#}"));
                (HeapProfile::default(), Some(enabled.map_err(failed)?))
            }
            Err(_) => return Ok(None),
        };
        // What is allocated later comes with its own.
        profile.forget_stacks();
        Ok(Some(Before {
            memory,
            profile,
            enabled,
        }))
    }

    /// Reads a process and adds what it allocated to the window, but for one that is
    /// late: what it allocated before cannot be told from what it did since.
    fn add(
        &self,
        index: ProcessIndex,
        is_late: bool,
        window: &mut Window,
    ) -> Result<(HeapFacts, Now), NoHeap> {
        let process = self.table.get(index);
        let unreadable =
            |error: std::io::Error| NoHeap::Unknown(format!("its memory cannot be read: {error}"));
        let memory = Live::open(process.pid).map_err(unreadable)?;
        let program = process
            .go_program(&memory)
            .ok_or_else(|| NoHeap::Unknown("its Go code is not mapped".to_owned()))?;
        let profile = program.heap()?;
        let before = self.before.get(&index).map(|before| &before.profile);
        let typed = match is_late {
            true => 0,
            false => add_buckets(self.event, index, &program, (&profile, before), window),
        };
        let facts = facts(process, &profile, typed);
        let mut profile = profile;
        profile.forget_stacks();
        Ok((facts, Now { memory, profile }))
    }
}

impl Reading {
    /// Names what was read.
    fn name(self, symbolizer: &mut Symbolizer, table: &ProcessTable) -> HeapRecording {
        let (window, naming) = symbolizer.symbolize(self.taken, &self.window, table);
        HeapRecording {
            window,
            naming,
            read: self.read,
            without: self.without,
            gone: self.gone,
            late: self.late,
            not_kept: self.not_kept,
            enabled: self.enabled,
        }
    }
}

fn is_current(table: &ProcessTable, index: ProcessIndex) -> bool {
    table.current(table.get(index).pid) == Some(index)
}

fn facts(process: &Process, profile: &HeapProfile, typed: usize) -> HeapFacts {
    HeapFacts {
        pid: process.pid,
        comm: process.comm.clone(),
        rate: profile.rate,
        buckets: profile.buckets.len(),
        typed,
        torn: profile.torn,
        is_cut: profile.is_cut,
        is_settled: profile.is_settled,
    }
}
