//! A snapshot of a program's goroutines, live or out of a core: who they are, what
//! they do and wait for, and the stack of each. Stops nothing; what the program
//! changes meanwhile is read again, then dropped and counted.

mod batch;
mod groups;
mod runtimes_own;
mod threads;
mod waits;

use std::{ops::Range, time::Duration};

use foldhash::{HashMap, HashMapExt as _};

use crate::{
    gobinary::{GoroutineStatus, StructOffsets},
    gomemory::{CoreThread, Few, Listing, Program},
    process::Process,
    symbolize::Labels,
    unwind::StackEnd,
};

pub use threads::Crash;
pub use waits::Place;

pub use groups::{Group, Groups, NamedFrame, Selected};

/// What a snapshot is taken of.
pub struct Source<'p> {
    /// The process, or what a core tells of it.
    pub process: &'p Process,
    /// Its memory.
    pub program: Program<'p>,
    /// Where its runtime keeps what; held against that memory.
    pub offsets: StructOffsets,
    /// What its goroutines wait for, in words; empty where that is not known.
    pub reasons: Vec<String>,
    /// Its monotonic clock at the snapshot, in nanoseconds; None where that is not
    /// known, as of a core. Then the last time that it noted itself is taken.
    pub now_ns: Option<u64>,
    /// The threads of a core, the one that ended it first.
    pub threads: &'p [CoreThread],
}

/// What is wanted of a program's goroutines.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The runtime's own too.
    pub runtimes_own: bool,
    /// What they wait for, by address.
    pub places: bool,
    /// Which of them.
    pub which: Which,
}

/// Which goroutines are looked at.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    /// Those at the first places of the list, so many at most.
    First(u64),
    /// Some at random, anew each time: each stands for [`Listing::stands_for`].
    Some(Few),
}

/// A goroutine of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its id.
    pub goid: u64,
    /// What it does.
    pub status: GoroutineStatus,
    /// What it waits for, by [`Snapshot::reasons`]; only where it waits.
    pub reason: Option<u8>,
    /// When a collection first saw it wait, on its monotonic clock; None where none
    /// has, or it does not wait.
    pub since_ns: Option<u64>,
    /// For how long it has waited at least: since then.
    pub waits_ns: Option<u64>,
    /// Which goroutine started it, where the version tells.
    pub parent: Option<u64>,
    /// The call of the statement that started it, 0 for none.
    pub created_at: u64,
    /// Its stack, by [`Snapshot::stacks`].
    pub stack: u32,
    /// How that ends.
    pub end: StackEnd,
    /// Its labels, by [`Snapshot::labels`].
    pub labels: u32,
    /// What it waits for, by [`Snapshot::places`].
    pub places: Range<u32>,
}

/// What was left out of a snapshot, or could not be had, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The runtime's own, where they were not asked for.
    pub runtimes_own: u64,
    /// They ran again and again while they were read.
    pub changed: u64,
    /// They ended while they were read.
    pub ended: u64,
    /// They make no sense.
    pub nonsense: u64,
    /// They could not be read.
    pub unreadable: u64,
    /// There are more than goprof reads.
    pub cut: u64,
}

/// A program's goroutines.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Those that are alive, by id.
    pub goroutines: Vec<Record>,
    /// The distinct stacks: user addresses, leaf first.
    pub stacks: Vec<Box<[u64]>>,
    /// The distinct sets of labels, by key; the first is empty.
    pub labels: Vec<Labels>,
    /// What goroutines wait for, in words.
    pub reasons: Vec<String>,
    /// What goroutines wait for, by address.
    pub places: Vec<Place>,
    /// What ended the program, of a core.
    pub crash: Option<Crash>,
    /// How many places the list has, and how many were looked at.
    pub listing: Listing,
    /// What is not in it.
    pub left_out: LeftOut,
    /// Of those in it, how many ran, so that nothing is known of their stack but
    /// where it begins.
    pub running: u64,
    /// Of those in it, how many have a stack that is not whole.
    pub broken: u64,
    /// Labels that could not be read whole.
    pub labels_damaged: u64,
    /// How long it took to read.
    pub took: Duration,
}

/// Takes a snapshot.
///
/// # Errors
/// Why the goroutines cannot be read.
pub fn snapshot(source: &Source<'_>, wanted: Wanted) -> Result<Snapshot, String> {
    let started = std::time::Instant::now();
    let semaphores = match wanted.places {
        true => source.program.semaphores(&source.offsets),
        false => None,
    };
    let mut taking = Taking {
        source,
        wanted,
        own: runtimes_own::RuntimesOwn::of(&source.reasons),
        threads: threads::Threads::of(source),
        semaphores: semaphores.unwrap_or_default(),
        for_semaphores: Vec::new(),
        snapshot: Snapshot {
            labels: vec![Labels::new()],
            reasons: source.reasons.clone(),
            crash: crash(source),
            ..Snapshot::default()
        },
        stacks: HashMap::new(),
        labels: HashMap::from_iter([(Labels::new(), 0)]),
        frames: Vec::new(),
    };
    let (program, offsets) = (&source.program, &source.offsets);
    let listing = match wanted.which {
        Which::First(most) => {
            program.for_first_goroutines(most, offsets, |batch| taking.add(batch))
        }
        Which::Some(few) => {
            let below = |bound| fastrand::u64(..bound);
            program.for_some_goroutines(few, offsets, below, |batch| taking.add(&batch))
        }
    }?;
    taking.add_semaphores();
    let mut snapshot = taking.snapshot;
    snapshot.finish(listing, source.now_ns);
    snapshot.took = started.elapsed();
    Ok(snapshot)
}

/// What ended a program, without the goroutine so far.
fn crash(source: &Source<'_>) -> Option<Crash> {
    let first = source.threads.first()?;
    (first.signal != 0).then_some(Crash {
        signal: first.signal,
        tid: first.tid,
        goid: None,
    })
}

impl Snapshot {
    fn finish(&mut self, listing: Listing, now_ns: Option<u64>) {
        let noted = self.goroutines.iter().filter_map(|g| g.since_ns).max();
        if let Some(now_ns) = now_ns.or(noted) {
            for goroutine in &mut self.goroutines {
                let waits = |since| now_ns.checked_sub(since);
                goroutine.waits_ns = goroutine.since_ns.and_then(waits);
            }
        }
        self.left_out.nonsense += listing.nonsense;
        self.left_out.unreadable += listing.unreadable;
        self.left_out.cut += listing.cut;
        self.listing = listing;
        // A list that grows moves, but keeps the order: none is there twice.
        self.goroutines.sort_by_key(|goroutine| goroutine.goid);
    }

    /// What a goroutine waits for, in words; empty where it does not wait or the
    /// words are not known.
    pub fn reason(&self, goroutine: &Record) -> &str {
        self.reason_words(goroutine.reason)
    }

    /// What there is to wait for, in words, by its number; empty without one.
    pub fn reason_words(&self, reason: Option<u8>) -> &str {
        let reason = reason.map(usize::from);
        let words = reason.and_then(|reason| self.reasons.get(reason));
        words.map_or("", String::as_str)
    }
}

/// A snapshot that is being taken.
struct Taking<'s, 'p> {
    source: &'s Source<'p>,
    wanted: Wanted,
    own: runtimes_own::RuntimesOwn,
    threads: threads::Threads,
    /// The semaphores that goroutines wait for, as of the beginning, by where their
    /// structs are.
    semaphores: std::collections::HashMap<u64, u64>,
    /// Goroutines that wait for them, by place in the snapshot.
    for_semaphores: Vec<(usize, u64)>,
    snapshot: Snapshot,
    stacks: HashMap<Box<[u64]>, u32>,
    labels: HashMap<Labels, u32>,
    /// The stack at hand.
    frames: Vec<u64>,
}

impl Taking<'_, '_> {
    fn stack_index(&mut self) -> u32 {
        if let Some(index) = self.stacks.get(self.frames.as_slice()) {
            return *index;
        }
        let index = self.stacks.len() as u32;
        let stack: Box<[u64]> = self.frames.as_slice().into();
        self.snapshot.stacks.push(stack.clone());
        self.stacks.insert(stack, index);
        index
    }

    fn labels_index(&mut self, labels: &Labels) -> u32 {
        if let Some(index) = self.labels.get(labels) {
            return *index;
        }
        let index = self.labels.len() as u32;
        self.snapshot.labels.push(labels.clone());
        self.labels.insert(labels.clone(), index);
        index
    }
}
