//! A batch of goroutines into a snapshot: their stacks are read and walked, those
//! that changed meanwhile read again, and their labels.

use super::{Record, Taking, threads::unwind_on};
use crate::{
    gobinary::GoroutineStatus,
    gomemory::{CoreThread, Goroutine, GoroutineBatch, StackRead, Stacks},
    unwind::{GAP, StackEnd, unwind_parked},
};

/// Bytes of a stack that are read at first: most that wait have no more.
const FIRST_BYTES: usize = 1536;
/// Bytes that are read of a stack at most.
const MAX_STACK_BYTES: usize = 1 << 20;
/// How often a goroutine is read before it is left out because it changes.
const ATTEMPTS: usize = 4;
/// In how many parts those are read again at most that changed: the fewer at once, the
/// less time they have to change again, and the less those count that wait for short.
const PARTS: usize = 64;

/// A goroutine whose stack was read.
pub(super) struct Read {
    pub record: Record,
    pub goroutine: Goroutine,
}

impl Taking<'_, '_> {
    /// Adds the goroutines of a batch.
    pub(super) fn add(&mut self, batch: &GoroutineBatch<'_>) {
        let mut read = Vec::with_capacity(batch.goroutines.len());
        let mut changed = self.add_stacks(batch, &mut read);
        for _ in 1..ATTEMPTS {
            if changed.is_empty() {
                break;
            }
            let before = std::mem::take(&mut changed);
            for part in before.chunks(before.len().div_ceil(PARTS)) {
                changed.extend(self.add_again(part, &mut read));
            }
        }
        self.snapshot.left_out.changed += changed.len() as u64;
        self.add_labels(&mut read);
        self.add_places(read);
    }

    /// Reads goroutines once more, by where they are. Returns where those are that
    /// changed again.
    fn add_again(&mut self, addresses: &[u64], read: &mut Vec<Read>) -> Vec<u64> {
        let source = self.source;
        let (again, listing) = source.program.goroutines_at(addresses, &source.offsets);
        let left_out = &mut self.snapshot.left_out;
        left_out.nonsense += listing.nonsense;
        left_out.unreadable += listing.unreadable;
        // The others are not among them any more.
        let there = listing.alive + listing.nonsense + listing.unreadable;
        left_out.ended += (addresses.len() as u64).saturating_sub(there);
        self.add_stacks(&again, read)
    }

    /// Reads and walks the stacks of a batch. Returns where those are that changed
    /// meanwhile.
    fn add_stacks(&mut self, batch: &GoroutineBatch<'_>, read: &mut Vec<Read>) -> Vec<u64> {
        let memory = self.source.program.memory;
        let stacks = batch.stacks(memory, FIRST_BYTES);
        let mut changed = Vec::new();
        for (index, goroutine) in batch.goroutines.iter().enumerate() {
            if self.own.has(goroutine, self.source) && !self.wanted.runtimes_own {
                self.snapshot.left_out.runtimes_own += 1;
                continue;
            }
            if let Some(thread) = self.threads.with(goroutine, self.source) {
                let end = self.on_thread(thread, goroutine);
                read.push(self.read(goroutine, end));
                continue;
            }
            let end = match stacks.outcome(index) {
                StackRead::Read { is_cut } => {
                    let end = self.walk(goroutine, &stacks, index);
                    if is_cut && end == StackEnd::SliceTooShort {
                        let whole = batch.stack(index, memory, MAX_STACK_BYTES);
                        match whole.outcome(0) {
                            StackRead::Read { .. } => Some(self.walk(goroutine, &whole, 0)),
                            // What was read at first stays.
                            StackRead::Unreadable => Some(StackEnd::Unreadable),
                            _ => None,
                        }
                    } else {
                        Some(end)
                    }
                }
                StackRead::Runs => {
                    self.snapshot.running += 1;
                    self.beginning(goroutine);
                    Some(StackEnd::NoRegisters)
                }
                StackRead::Unreadable => {
                    self.beginning(goroutine);
                    Some(StackEnd::Unreadable)
                }
                StackRead::Changed => None,
                StackRead::Nonsense => {
                    self.snapshot.left_out.nonsense += 1;
                    continue;
                }
            };
            match end {
                Some(end) => read.push(self.read(goroutine, end)),
                None => changed.push(goroutine.address),
            }
        }
        changed
    }

    /// Walks a stack into `frames`.
    fn walk(&mut self, goroutine: &Goroutine, stacks: &Stacks, index: usize) -> StackEnd {
        let Some(registers) = goroutine.saved() else {
            return StackEnd::NoRegisters;
        };
        let word = |address| stacks.word(index, address);
        let process = self.source.process;
        unwind_parked(registers, process, word, &mut self.frames).end
    }

    /// What is known of a stack that cannot be read, of one that runs say: where it
    /// begins.
    fn beginning(&mut self, goroutine: &Goroutine) {
        self.frames.clear();
        self.frames.push(GAP);
        if goroutine.start_pc != 0 {
            self.frames.push(goroutine.start_pc);
        }
    }

    /// Walks the stack of one that is on a thread of a core.
    fn on_thread(&mut self, thread: CoreThread, goroutine: &Goroutine) -> StackEnd {
        if let Some(crash) = &mut self.snapshot.crash
            && crash.tid == thread.tid
        {
            crash.goid = Some(goroutine.goid);
        }
        unwind_on(thread, goroutine, self.source, &mut self.frames).end
    }

    fn read(&mut self, goroutine: &Goroutine, end: StackEnd) -> Read {
        Read {
            record: self.record(goroutine, end),
            goroutine: goroutine.clone(),
        }
    }

    fn record(&mut self, goroutine: &Goroutine, end: StackEnd) -> Record {
        if !matches!(end, StackEnd::Whole | StackEnd::NoRegisters) {
            self.snapshot.broken += 1;
        }
        let waits = goroutine.status == GoroutineStatus::Waiting;
        let has_since = waits || goroutine.status == GoroutineStatus::Syscall;
        Record {
            goid: goroutine.goid,
            status: goroutine.status,
            reason: waits.then_some(goroutine.wait_reason),
            since_ns: Some(goroutine.wait_since_ns).filter(|since| *since != 0 && has_since),
            waits_ns: None,
            parent: goroutine.parent_goid.filter(|parent| *parent != 0),
            created_at: goroutine.go_pc.saturating_sub(1),
            stack: self.stack_index(),
            end,
            labels: 0,
            places: 0..0,
        }
    }

    fn add_labels(&mut self, read: &mut [Read]) {
        let program = self.source.program;
        let Some(format) = self.source.offsets.labels else {
            return;
        };
        let pointers = read.iter().map(|read| read.goroutine.labels);
        let found = program.labels(format, pointers.filter(|at| *at != 0));
        // What a goroutine has no more may be anything by now.
        let labelled = read.iter_mut().filter(|read| read.goroutine.labels != 0);
        let mut labelled: Vec<&mut Read> = labelled.collect();
        let goroutines = labelled.iter().map(|read| &read.goroutine);
        let still = program.still_have_labels(&self.source.offsets, goroutines);
        for (Read { record, goroutine }, still) in labelled.iter_mut().zip(still) {
            if !still {
                self.snapshot.labels_damaged += 1;
                continue;
            }
            if let Some(labels) = found.get(&goroutine.labels) {
                let is_whole = !labels.damaged && labels.cut == 0 && labels.excess == 0;
                self.snapshot.labels_damaged += u64::from(!is_whole);
                record.labels = self.labels_index(&labels.pairs);
            }
        }
    }
}
