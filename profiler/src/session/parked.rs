//! Goroutines that wait through a whole window: the probes see neither their beginning
//! nor their end. Some are looked at in the program's memory before and after, on the
//! thread that watches.

use std::sync::{Arc, Mutex, PoisonError, mpsc::Sender};

use profiler_ebpf::wire::WaitLayout;

use crate::{
    gobinary::{GoroutineStatus, StructOffsets},
    gomemory::{Goroutine, GoroutineBatch, Live, Program, StackRead},
    probe::{OpenWaits, Watched, Watcher},
    process::Process,
    symbolize::Labels,
    unwind::unwind_parked,
};

/// Goroutines that are looked at: each window, and at the end of all.
const MOST: u64 = 512;
/// Bytes that are read of a stack: most that wait have no more.
const STACK_BYTES: usize = 4096;

/// A window that is over, and who waited through it.
pub(super) struct Over {
    /// The process.
    pub pid: u32,
    /// The window.
    pub watched: Watched,
    /// Goroutines that waited all the while, or still wait at the end of the last.
    pub through: Vec<Through>,
}

/// A goroutine that waited all the while.
pub(super) struct Through {
    /// Its id.
    pub goid: u64,
    /// What it waits for.
    pub reason: u8,
    /// Its stack, leaf first.
    pub stack: Vec<u64>,
    /// Its labels, by key.
    pub labels: Labels,
    /// How long it has waited in the window, in nanoseconds.
    pub waited_ns: u64,
    /// Whether that is all of it: nobody saw it begin.
    pub is_all: bool,
    /// How many goroutines it stands for.
    pub stands_for: f64,
}

/// Looks at a process's goroutines.
pub(super) struct Parked {
    process: Arc<Process>,
    memory: Live,
    offsets: StructOffsets,
    layout: WaitLayout,
    waits: Arc<Mutex<OpenWaits>>,
    sender: Sender<Over>,
    dice: u64,
    /// Those that waited at the last look, and since when, as far as that was seen.
    looked: Vec<(Goroutine, Option<u64>)>,
    stands_for: f64,
}

impl Parked {
    /// Of a process that is about to be watched.
    ///
    /// # Errors
    /// Its memory cannot be read.
    pub(super) fn new(
        process: &Arc<Process>,
        offsets: StructOffsets,
        layout: WaitLayout,
        waits: Arc<Mutex<OpenWaits>>,
        sender: Sender<Over>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            memory: Live::open(process.pid)?,
            process: Arc::clone(process),
            offsets,
            layout,
            waits,
            sender,
            dice: crate::probe::monotonic_ns() | 1,
            looked: Vec::new(),
            stands_for: 1.0,
        })
    }

    fn since(&self, g: u64) -> Option<u64> {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.since(self.process.pid, g)
    }

    fn is_wanted(&self, goroutine: &Goroutine) -> bool {
        goroutine.status == GoroutineStatus::Waiting
            && self.layout.wants(goroutine.wait_reason.into())
    }

    /// Those of the last look that still wait as they did, with their stacks.
    fn still_there(&self, watched: &Watched) -> Vec<Through> {
        let Some(program) = self.process.go_program(&self.memory) else {
            return Vec::new();
        };
        let is_end = watched.closed.plan.whole;
        let from_ns = match is_end {
            true => watched.since_ns,
            false => watched.closed.opened_ns,
        };
        let ended_ns = watched.closed.ended_ns;
        let addresses = self.looked.iter().map(|(goroutine, _)| goroutine.address);
        let (batch, _) = program.goroutines_at(&addresses.collect::<Vec<_>>(), &self.offsets);
        let stacks = batch.stacks(&self.memory, STACK_BYTES);
        let labels = self.labels(&program, &batch);
        let mut through = Vec::new();
        let mut frames = Vec::new();
        for (index, now) in batch.goroutines.iter().enumerate() {
            let before = self.looked.iter().find(|(g, _)| g.address == now.address);
            let Some((before, since)) = before else {
                continue;
            };
            let is_same =
                before.goid == now.goid && self.is_wanted(now) && before.registers == now.registers;
            let is_read = matches!(stacks.outcome(index), StackRead::Read { .. });
            if !is_same || !is_read {
                continue;
            }
            let began_ns = match is_end {
                // It may have gone on and waited again since it was looked at.
                true => match since.max(&self.since(now.address)) {
                    Some(since) if *since <= ended_ns => (*since).max(from_ns),
                    Some(_) => continue,
                    None => from_ns,
                },
                // What began in the window is stood for by what ended in it.
                false
                    if self
                        .since(now.address)
                        .is_some_and(|since| since >= from_ns) =>
                {
                    continue;
                }
                false => from_ns,
            };
            let Some(registers) = now.saved() else {
                continue;
            };
            let word = |address| stacks.word(index, address);
            unwind_parked(registers, &self.process, word, &mut frames);
            through.push(Through {
                goid: now.goid,
                reason: now.wait_reason,
                stack: frames.clone(),
                labels: labels(now.labels),
                waited_ns: ended_ns.saturating_sub(began_ns),
                is_all: began_ns == from_ns,
                stands_for: self.stands_for,
            });
        }
        through
    }

    fn labels(
        &self,
        program: &Program<'_>,
        batch: &GoroutineBatch<'_>,
    ) -> impl Fn(u64) -> Labels + use<> {
        let pointers = batch.goroutines.iter().map(|goroutine| goroutine.labels);
        let found = self
            .offsets
            .labels
            .map(|format| program.labels(format, pointers.filter(|at| *at != 0)));
        move |at| {
            let labels = found.as_ref().and_then(|found| found.get(&at));
            let mut pairs = labels.map_or_else(Labels::new, |labels| labels.pairs.clone());
            pairs.sort_unstable();
            pairs
        }
    }
}

impl Watcher for Parked {
    fn look(&mut self) {
        self.looked.clear();
        let Some(program) = self.process.go_program(&self.memory) else {
            return;
        };
        let mut dice = self.dice;
        let below = |bound: u64| {
            // xorshift64, by Marsaglia.
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            ((u128::from(dice) * u128::from(bound)) >> 64) as u64
        };
        let found = program.some_goroutines(&self.offsets, MOST, below);
        // Without the list nothing is known of who waits through.
        let Ok((batch, stands_for)) = found else {
            return;
        };
        let waiting = batch.goroutines.into_iter().filter(|g| self.is_wanted(g));
        let looked = waiting.map(|goroutine| {
            let since = self.since(goroutine.address);
            (goroutine, since)
        });
        (self.looked, self.stands_for, self.dice) = (looked.collect(), stands_for, dice);
    }

    fn over(&mut self, watched: &Watched) {
        let is_whole = watched.closed.plan.whole;
        // Of one that another follows nothing is open that is not in the next.
        let through = match is_whole && !watched.is_last {
            true => Vec::new(),
            false => self.still_there(watched),
        };
        // It fails where the session is over.
        let _ = self.sender.send(Over {
            pid: self.process.pid,
            watched: *watched,
            through,
        });
    }
}
