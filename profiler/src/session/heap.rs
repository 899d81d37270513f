//! A recording of memory: what programs allocated and have in use, read from the
//! profiles that they keep of themselves. Needs no probe and loads nothing.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use super::mem_profile::{DEFAULT_RATE, EnabledProfile};
use crate::{
    aggregate::{Owner, Window},
    gobinary::{AllocationSites, Blocks, unsample},
    gomemory::{Bucket, HeapProfile, Live, Memory as _, NoHeap, Program},
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
    /// Processes whose heap profile was turned on for the recording.
    pub enabled: usize,
}

impl HeapSession {
    /// Looks at the processes as they are now: what they have allocated so far is
    /// not part of a recording of [`Event::Allocs`]. With `enables` the profile is
    /// turned on, until the end, in programs that take none.
    pub fn start(event: Event, selection: Selection, enables: bool) -> Self {
        let mut session = Self {
            event,
            selection,
            enables,
            table: ProcessTable::default(),
            before: HashMap::new(),
            not_enabled: HashMap::new(),
            start: SystemTime::now(),
            started: Instant::now(),
        };
        session.find();
        let running: Vec<u32> = session.table.pids().collect();
        for pid in running {
            let Some(index) = session.table.current(pid) else {
                continue;
            };
            match session.look(index) {
                Ok(Some(before)) => drop(session.before.insert(index, before)),
                Ok(None) => {}
                Err(why) => drop(session.not_enabled.insert(index, why)),
            }
        }
        session.start = SystemTime::now();
        session.started = Instant::now();
        session
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
    pub fn finish(mut self) -> HeapRecording {
        let duration = match self.event {
            Event::Heap => Duration::ZERO,
            _ => self.started.elapsed(),
        };
        self.forget_the_gone();
        self.find();
        let (mut read, mut without) = (Vec::new(), Vec::new());
        let mut window = Window::default();
        let mut indices: Vec<ProcessIndex> = self
            .table
            .pids()
            .filter_map(|pid| self.table.current(pid))
            .collect();
        indices.sort_by_key(|index| self.table.get(*index).pid);
        for index in indices {
            let process = self.table.get(index);
            let (pid, comm) = (process.pid, process.comm.clone());
            match self.add(index, &mut window) {
                Ok(facts) => read.push(facts),
                Err(why) => {
                    let why = self.not_enabled.get(&index).cloned().unwrap_or(why);
                    without.push(WithoutHeap { pid, comm, why });
                }
            }
        }
        let known = self.before.keys();
        let gone = known
            .filter(|index| !is_current(&self.table, **index))
            .count();
        let enabled = self.enabled();
        // Puts back what was written: all is read, and naming may take long.
        self.before.clear();
        let taken = Taken {
            event: self.event,
            start: match self.event {
                Event::Heap => SystemTime::now(),
                _ => self.start,
            },
            duration,
            period: read
                .iter()
                .map(|facts| facts.rate)
                .max()
                .unwrap_or(DEFAULT_RATE),
        };
        let (window, naming) = Symbolizer::default().symbolize(taken, &window, &self.table);
        HeapRecording {
            window,
            naming,
            read,
            without,
            gone,
            enabled,
        }
    }

    /// Adds the wanted processes that run now and are not known yet.
    fn find(&mut self) {
        let pids = match &self.selection {
            Selection::Pids(pids) => pids.clone(),
            _ => all_pids(),
        };
        for pid in pids {
            if self.table.current(pid).is_none() {
                // What cannot be looked at has no place in the table, and whoever
                // named it by its pid was told before.
                let _: Considered = self.table.consider(pid, &self.selection, Depth::Libraries);
            }
        }
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
        let (profile, enabled) = match program.heap() {
            Ok(profile) => (profile, None),
            Err(NoHeap::Off { .. }) if self.enables => {
                let enabled = EnabledProfile::set(process.pid, &program, DEFAULT_RATE);
                let failed =
                    |why| NoHeap::Unknown(format!("its heap profile cannot be turned on: {why:#}"));
                (HeapProfile::default(), Some(enabled.map_err(failed)?))
            }
            Err(_) => return Ok(None),
        };
        Ok(Some(Before {
            memory,
            profile,
            enabled,
        }))
    }

    /// Reads a process and adds what it allocated to the window.
    fn add(&self, index: ProcessIndex, window: &mut Window) -> Result<HeapFacts, NoHeap> {
        let process = self.table.get(index);
        let unreadable =
            |error: std::io::Error| NoHeap::Unknown(format!("its memory cannot be read: {error}"));
        let memory = Live::open(process.pid).map_err(unreadable)?;
        let program = process
            .go_program(&memory)
            .ok_or_else(|| NoHeap::Unknown("its Go code is not mapped".to_owned()))?;
        let profile = program.heap()?;
        let before = self.before.get(&index).map(|before| &before.profile);
        let typed = self.add_buckets(index, &program, (&profile, before), window);
        Ok(facts(process, &profile, typed))
    }

    /// Adds the buckets of a process, and says of how many the type is known.
    fn add_buckets(
        &self,
        index: ProcessIndex,
        program: &Program<'_>,
        (now, before): (&HeapProfile, Option<&HeapProfile>),
        window: &mut Window,
    ) -> usize {
        let sites = program.binary.allocation_sites();
        let old: HashMap<u64, &Bucket> = before
            .into_iter()
            .flat_map(|before| &before.buckets)
            .map(|bucket| (bucket.address, bucket))
            .collect();
        let collected = has_collected(now);
        let mut typed = 0;
        for bucket in &now.buckets {
            let values = match self.event {
                Event::Heap => {
                    // Before the first collection Go shows all there is.
                    let counts = bucket.counts;
                    let blocks = if collected { counts.active } else { counts.all };
                    values((blocks.allocs as i64, in_use(blocks)), bucket, now.rate)
                }
                _ => {
                    let old = old.get(&bucket.address).map(|old| old.counts);
                    let old = old.unwrap_or_default();
                    let allocs = bucket.counts.all.allocs.saturating_sub(old.all.allocs);
                    let in_use = in_use(bucket.counts.active) - in_use(old.active);
                    values((allocs as i64, in_use), bucket, now.rate)
                }
            };
            if values == [0; 4] {
                continue;
            }
            let kind = type_of(program, &sites, bucket);
            typed += usize::from(kind.is_some());
            let owner = Owner {
                process: index,
                labels: kind
                    .map(|kind| ("type".to_owned(), kind))
                    .into_iter()
                    .collect(),
                block_bytes: Some(bucket.size_bytes),
                ..Owner::default()
            };
            window.add_values(owner, &program.physical(&bucket.stack), 0, values);
        }
        typed
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

/// Whether a collection has ended since the profile began: else Go counts nothing
/// as of the last one.
fn has_collected(profile: &HeapProfile) -> bool {
    let counts = profile.buckets.iter().map(|bucket| bucket.counts.active);
    counts.into_iter().any(|blocks| blocks != Blocks::default())
}

/// Blocks that were allocated and not freed.
fn in_use(blocks: Blocks) -> i64 {
    blocks.allocs as i64 - blocks.frees as i64
}

/// What sampled blocks stand for: allocated and in use, each in objects and bytes.
fn values((allocs, in_use): (i64, i64), bucket: &Bucket, rate: u64) -> [i64; 4] {
    let (alloc_objects, alloc_bytes) = unsample(allocs, bucket.size_bytes, rate);
    let (in_use_objects, in_use_bytes) = unsample(in_use, bucket.size_bytes, rate);
    [alloc_objects, alloc_bytes, in_use_objects, in_use_bytes]
}

/// The type that a bucket's stack allocates, where the code says it.
fn type_of(program: &Program<'_>, sites: &AllocationSites<'_>, bucket: &Bucket) -> Option<String> {
    let call = program.allocating_call(&bucket.stack)?;
    sites.type_at(program.vaddr(call))
}
