//! A Go program in memory: its binary, where that is loaded, and what of its
//! runtime's variables can be read. Checks what it reads before anybody uses it.

use super::Memory;
use crate::gobinary::{GcControllerFields, GcFields, GoBinary, SchedFields, Variables};

/// A Go program in memory.
#[derive(Clone, Copy)]
pub struct Program<'p> {
    /// Its memory.
    pub memory: &'p dyn Memory,
    /// Its binary, or the library whose runtime is meant.
    pub binary: &'p GoBinary,
    /// Where the runtime's variables are, as linked.
    pub variables: &'p Variables,
    /// What to add to the binary's link-time addresses.
    pub bias: u64,
}

/// What the collector keeps in `runtime.gcController`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcController {
    /// GOGC in percent, -1 for off.
    pub gc_percent: i32,
    /// GOMEMLIMIT in bytes, [`i64::MAX`] for none.
    pub memory_limit: i64,
    /// Bytes of heap at which a collection begins by GOGC, [`u64::MAX`] for never.
    pub goal: u64,
    /// Bytes allocated and not found free yet.
    pub heap_live: u64,
    /// Bytes that the last collection found in use.
    pub heap_marked: u64,
    /// Bytes of spans in use.
    pub heap_in_use: u64,
    /// Bytes given back to the system.
    pub heap_released: u64,
    /// Bytes of free spans not given back.
    pub heap_free: u64,
    /// Bytes allocated since the program began, as of the caches' last flush.
    pub total_alloc: u64,
    /// Bytes freed.
    pub total_free: u64,
}

/// Greatest amount of memory that is believed, in bytes.
const MAX_MEMORY: u64 = 1 << 48;
/// What a program allocates in its life at most, in bytes.
const MAX_TOTAL: u64 = 1 << 62;

impl<'p> Program<'p> {
    /// The address of what is linked at `vaddr`.
    pub fn address(&self, vaddr: u64) -> u64 {
        vaddr.wrapping_add(self.bias)
    }

    /// Where an address is as linked.
    pub fn vaddr(&self, address: u64) -> u64 {
        address.wrapping_sub(self.bias)
    }

    /// Whether an address is in the binary's Go code.
    pub fn is_code(&self, address: u64) -> bool {
        self.binary.text().contains(&self.vaddr(address))
    }

    /// What the collector keeps. None where it cannot be found, or makes no sense.
    pub fn gc_controller(&self) -> Option<GcController> {
        let fields = GcControllerFields::of(self.binary.version())?;
        let base = self.address(self.variables.gc_controller?);
        let word = |offset: u64| self.memory.word(base.wrapping_add(offset));
        let amount = |index: u64| word(fields.heap_in_use + index * 8);
        let found = GcController {
            gc_percent: self
                .memory
                .half_word(base.wrapping_add(fields.gc_percent))? as i32,
            memory_limit: word(fields.memory_limit)? as i64,
            goal: word(fields.goal)?,
            heap_live: word(fields.heap_live)?,
            heap_marked: word(fields.heap_marked)?,
            heap_in_use: amount(0)?,
            heap_released: amount(1)?,
            heap_free: amount(2)?,
            total_alloc: amount(3)?,
            total_free: amount(4)?,
        };
        let amounts = [
            found.heap_live,
            found.heap_marked,
            found.heap_in_use,
            found.heap_released,
            found.heap_free,
        ];
        let sane = found.gc_percent >= -1
            && found.memory_limit >= 0
            && word(fields.heap_minimum)? > 0
            && amounts.iter().all(|amount| *amount < MAX_MEMORY)
            && found.total_alloc < MAX_TOTAL
            // The program goes on: what is freed meanwhile is read after.
            && found.total_free <= found.total_alloc.saturating_add(MAX_MEMORY);
        sane.then_some(found)
    }

    /// Where the runtime counts the bytes that were allocated since the program began:
    /// [`GcController::total_alloc`]. None where that makes no sense.
    pub fn total_alloc_address(&self) -> Option<u64> {
        self.gc_controller()?;
        let fields = GcControllerFields::of(self.binary.version())?;
        let base = self.address(self.variables.gc_controller?);
        Some(base.wrapping_add(fields.heap_in_use + 3 * 8))
    }

    /// Where `runtime.sched` is, and what is where in it. None where it cannot be
    /// found, or what is there makes no sense.
    pub fn sched(&self) -> Option<(u64, SchedFields)> {
        let fields = SchedFields::of(self.binary.version());
        let base = self.address(self.variables.sched?);
        let word = |offset: u64| self.memory.word(base.wrapping_add(offset));
        let half = |offset: u64| self.memory.half_word(base.wrapping_add(offset));
        let (made, freed) = (word(fields.threads_made)?, word(fields.threads_freed)?);
        let (most, idle) = (half(fields.max_threads)?, half(fields.idle_threads)?);
        // Ids are counted from one; a program has a thread, and threads end after
        // they began. A limit of the runtime's is set at its start.
        let sane = (1..1 << 48).contains(&word(fields.goid_gen)?)
            && (1..1 << 40).contains(&made)
            && freed <= made
            && most > 0
            && u64::from(idle) <= made;
        sane.then_some((base, fields))
    }

    /// Where `memstats.numgc` is, with its rings in front of it. None where it
    /// cannot be found, or what is there makes no sense.
    pub fn num_gc(&self) -> Option<u64> {
        let at = self.address(self.variables.num_gc?);
        let word = |offset: i64| self.memory.word(at.wrapping_add_signed(offset));
        let cycles = self.memory.half_word(at)?;
        let forced = self
            .memory
            .half_word(at.wrapping_add_signed(GcFields::NUM_FORCED))?;
        let fraction = f64::from_bits(word(GcFields::CPU_FRACTION)?);
        let (last, total) = (
            word(GcFields::LAST_GC_UNIX)?,
            word(GcFields::PAUSE_TOTAL_NS)?,
        );
        // Times are of this millennium's first centuries, and none before the
        // first collection.
        let sane = forced <= cycles
            && (0.0..=1.0).contains(&fraction)
            && last < 1 << 63
            && total < 1 << 62
            && (cycles > 0 || (last == 0 && total == 0));
        sane.then_some(at)
    }

    /// How many processors the program uses (`GOMAXPROCS`).
    pub fn gomaxprocs(&self) -> Option<u32> {
        let at = self.address(self.variables.gomaxprocs?);
        let found = self.memory.half_word(at)?;
        (1..=1 << 16).contains(&found).then_some(found)
    }
}
