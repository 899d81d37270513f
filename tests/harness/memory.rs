//! Memory of no program: made up by rules and by words of anybody's choice, with a
//! real binary beside it, so that readers of a program's memory can be lied to.

use std::cell::Cell;
use std::collections::BTreeMap;

use goprof::gobinary::{AllGoroutines, GoBinary, LabelFormat, StructOffsets, Variables};
use goprof::gomemory::{
    Goroutine, GoroutineBatch, MAX_GOROUTINES, Memory, Program, Request, StackRead,
};

use crate::fuzzing::known;

/// Where the variables of [`variables`] are.
pub mod at {
    /// `MemProfileRate`.
    pub const RATE: u64 = 0x1000;
    /// `mbuckets`.
    pub const BUCKETS: u64 = 0x1008;
    /// `allgptr`.
    pub const ARRAY: u64 = 0x1010;
    /// `allglen`.
    pub const COUNT: u64 = 0x1018;
    /// `gomaxprocs`.
    pub const PROCESSORS: u64 = 0x1020;
    /// `gcController`.
    pub const GC: u64 = 0x2000;
    /// `sched`.
    pub const SCHED: u64 = 0x3000;
    /// `semtable`.
    pub const SEMAPHORES: u64 = 0x4000;
    /// `memstats.numgc`.
    pub const NUM_GC: u64 = 0x1_3000;
}

/// Memory by a rule. Everything can be read but what the rule has nothing for.
pub struct Made<F> {
    /// Words that are as they are, by address.
    pub set: BTreeMap<u64, u64>,
    /// The others.
    pub rule: F,
    /// Bytes read so far.
    pub read: Cell<u64>,
}

impl<F: Fn(u64) -> Option<u64>> Made<F> {
    /// By a rule alone, with a rate that heap profiles can have.
    pub fn by(rule: F) -> Self {
        Made {
            set: BTreeMap::from([(at::RATE, 524_288)]),
            rule,
            read: Cell::new(0),
        }
    }

    /// The word at an address that is a multiple of eight.
    fn word_at(&self, address: u64) -> Option<u64> {
        let set = self.set.get(&address).copied();
        set.or_else(|| (self.rule)(address))
    }

    /// Fills `bytes`; None where there is nothing.
    fn fill(&self, address: u64, bytes: &mut [u8]) -> Option<()> {
        let mut at = address & !7;
        let mut skip = (address & 7) as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let word = self.word_at(at)?.to_le_bytes();
            let len = (8 - skip).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&word[skip..skip + len]);
            (rest, skip, at) = (later, 0, at.wrapping_add(8));
        }
        Some(())
    }
}

impl<F: Fn(u64) -> Option<u64>> Memory for Made<F> {
    fn read_many(&self, requests: &mut [Request<'_>]) {
        for request in requests {
            self.read.set(self.read.get() + request.bytes.len() as u64);
            request.is_filled = self.fill(request.address, request.bytes).is_some();
        }
    }

    fn is_there(&self) -> bool {
        true
    }
}

/// An input of the fuzz target `gomemory`: the case whose binary it is, and words
/// that stand everywhere in memory, again and again.
pub struct MemoryInput<'a> {
    /// The binary of the case.
    pub binary: &'static GoBinary,
    pattern: &'a [u64],
}

impl<'a> MemoryInput<'a> {
    /// None where the words are too few.
    pub fn of(words: &'a [u64]) -> Option<Self> {
        let (case, pattern) = words.split_first()?;
        let known = &known()[(case % known().len() as u64) as usize];
        let binary = known.process.go_object()?.go()?;
        (!pattern.is_empty()).then_some(Self { binary, pattern })
    }

    /// The word at an address. Those with a mark are addresses of code.
    pub fn word(&self, address: u64) -> u64 {
        let word = self.pattern[(address / 8 % self.pattern.len() as u64) as usize];
        match word >> 56 {
            CODE_MARK => {
                let code = self.binary.text();
                code.start + u64::from(word as u32) % (code.end - code.start)
            }
            _ => word,
        }
    }
}

/// The upper byte of words that stand for addresses of code.
const CODE_MARK: u64 = 0xc0;

/// The channel that the goroutine of [`seed`] waits for.
pub const CHANNEL: u64 = 0x40_0000_0000;
/// Its label's key and value.
pub const LABEL: &str = "key";

/// Words of the pattern of [`seed`], and the address of one, in steps of the pattern.
const PATTERN: usize = 256;
const fn at_word(index: usize) -> u64 {
    0x10_0000 + 8 * index as u64
}

/// An input with a heap profile of one bucket, and with a goroutine that has a label
/// and waits for a channel.
pub fn seed(case: u64) -> Vec<u64> {
    let mut pattern = [0; PATTERN];
    let mut put = |at: usize, words: &[u64]| pattern[at..at + words.len()].copy_from_slice(words);
    let variable = |address: u64| (address / 8) as usize % PATTERN;
    put(variable(at::BUCKETS), &[at_word(208)]);
    put(208, &[0, 0, 1, 0, 64, 1, CODE_MARK << 56, 5, 2, 320, 128]);
    put(variable(at::ARRAY), &[at_word(8), 1]);
    let (g, sudog, labels) = (16, 128, 160);
    put(8, &[at_word(g)]);
    let word = u64::from_le_bytes(*b"key\0\0\0\0\0");
    let (text, length) = (at_word(labels + 8), LABEL.len() as u64);
    put(labels, &[at_word(labels + 4), 1, 1]);
    put(labels + 4, &[text, length, text, length, word]);
    let known = &known()[case as usize];
    let binary = known.process.go_object().and_then(|object| object.go());
    let offsets = binary.map(|binary| binary.runtime_offsets());
    let offsets = offsets.as_ref().and_then(|offsets| offsets.get());
    let lists = offsets.and_then(|offsets| offsets.lists.as_ref().ok());
    if let Some((offsets, lists)) = offsets.zip(lists) {
        let (of_g, of_sudog) = (&offsets.g, &lists.sudog);
        for (offset, word) in [
            (of_g.stack.lo, at_word(0)),
            (of_g.stack.hi, at_word(PATTERN)),
            (of_g.sched.sp, at_word(PATTERN / 2)),
            (of_g.sched.pc, CODE_MARK << 56),
            (of_g.atomic_status, 4),
            (of_g.goid, 18),
            (lists.wait_reason & !7, 0x0e0e_0e0e_0e0e_0e0e),
            (lists.go_pc, CODE_MARK << 56 | 16),
            (of_g.start_pc, CODE_MARK << 56 | 32),
            (lists.waiting, at_word(sudog)),
            (of_g.labels, at_word(labels)),
        ] {
            put(g + offset as usize / 8, &[word]);
        }
        put(sudog + of_sudog.g as usize / 8, &[at_word(g)]);
        put(sudog + of_sudog.c as usize / 8, &[CHANNEL]);
    }
    [case].into_iter().chain(pattern).collect()
}

/// Variables at places of our own choice.
pub fn variables() -> Variables {
    Variables {
        mem_profile_rate: Some(at::RATE),
        buckets: vec![at::BUCKETS],
        reads_mem_profile: true,
        num_gc: Some(at::NUM_GC),
        gc_controller: Some(at::GC),
        sched: Some(at::SCHED),
        gomaxprocs: Some(at::PROCESSORS),
        semaphores: Some(at::SEMAPHORES),
        all_goroutines: Some(AllGoroutines {
            array: at::ARRAY,
            count: at::COUNT,
        }),
    }
}

/// Asks a program for all that can be asked, and returns about how much it got.
pub fn ask_all(program: &Program<'_>) -> usize {
    let mut got = 0;
    if let Ok(profile) = program.heap() {
        got += profile.buckets.len();
        for bucket in profile.buckets.iter().take(64) {
            assert!(program.physical(&bucket.stack).len() <= bucket.stack.len());
            got += usize::from(program.allocating_call(&bucket.stack).is_some());
        }
    }
    let offsets = program.binary.runtime_offsets();
    if let Some(offsets) = offsets.get() {
        let listing = program.for_each_goroutine(offsets, |batch| {
            let unchanged = batch.unchanged(program.memory);
            assert_eq!(unchanged.len(), batch.goroutines.len());
            got += ask_goroutines(program, offsets, batch);
        });
        got += listing.map_or(0, |listing| listing.alive as usize);
        got += program.semaphores(offsets).map_or(0, |found| found.len());
    }
    got += ask_statistics(program);
    got += usize::from(program.gc_controller().is_some());
    got += usize::from(program.sched().is_some());
    got += usize::from(program.num_gc().is_some());
    got + usize::from(program.gomaxprocs().is_some())
}

/// Asks for all that goroutines have beside their structs.
fn ask_goroutines(
    program: &Program<'_>,
    offsets: &StructOffsets,
    batch: &GoroutineBatch<'_>,
) -> usize {
    let stacks = batch.stacks(program.memory, 1536);
    let some: Vec<&Goroutine> = batch.goroutines.iter().take(64).collect();
    let mut words = 0;
    for (index, goroutine) in some.iter().enumerate() {
        let word = stacks.word(index, goroutine.registers.sp);
        let is_read = matches!(stacks.outcome(index), StackRead::Read { .. });
        words += usize::from(is_read && word.is_some());
    }
    let awaited = program.awaited(offsets, &some);
    assert_eq!(awaited.len(), some.len());
    let format = offsets.labels.unwrap_or(LabelFormat::Slice);
    let pointers = some.iter().map(|goroutine| goroutine.labels);
    words + program.labels(format, pointers).len()
}

fn ask_statistics(program: &Program<'_>) -> usize {
    let offsets = program.binary.runtime_offsets();
    let found = program.statistics(offsets.get().ok_or_else(String::new), &[], MAX_GOROUTINES);
    if let Some(goroutines) = &found.goroutines {
        assert_eq!(goroutines.by_status.values().sum::<u64>(), goroutines.alive);
        assert!(goroutines.system <= goroutines.alive);
    }
    if let Some(gc) = &found.gc {
        assert!(gc.pauses.len() <= 256 && gc.forced <= gc.cycles);
    }
    let known = [
        found.goroutines.is_some(),
        found.heap.is_some(),
        found.gc.is_some(),
        found.scheduler.is_some(),
    ];
    let known = known.iter().filter(|known| **known).count();
    assert!(known + found.unknown.len() >= 4, "{:?}", found.unknown);
    known
}

/// A program whose binary is real and whose memory is made up.
pub fn program<'p>(
    memory: &'p dyn Memory,
    binary: &'p GoBinary,
    variables: &'p Variables,
) -> Program<'p> {
    Program {
        memory,
        binary,
        variables,
        bias: 0,
    }
}
