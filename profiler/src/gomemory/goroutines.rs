//! The goroutines of a program: every one that the runtime lists, some at a time,
//! while the program goes on. What changes while it is read shows when it is asked
//! for again.

use std::ops::Range;

use super::{Memory, pieces::Pieces, program::Program};
use crate::gobinary::{GoroutineStatus, StructOffsets};

/// Most goroutines that are looked at.
pub const MAX_GOROUTINES: u64 = 1 << 22;
/// More goroutines than a program can have.
const MAX_COUNT: u64 = 1 << 32;
/// Goroutines of a batch.
const BATCH: u64 = 1024;
/// Goroutines that may make no sense before it is asked whether most do.
const TOLERATED: u64 = 64;
/// How often a part of the list is read before it is taken to make no sense: it
/// moves when it grows.
const ATTEMPTS: usize = 8;
/// Ids are counted from one, and never reach where Go's heap begins
/// (`runtime.mallocinit`): a pointer is not taken for one.
const MAX_GOID: u64 = 0xc0_0000_0000;

/// A goroutine, as its struct was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goroutine {
    /// Where its struct is. The runtime keeps it for ever, for others once this
    /// one has ended.
    pub address: u64,
    /// Its id.
    pub goid: u64,
    /// What it does.
    pub status: GoroutineStatus,
    /// What it waits for, by [`crate::gobinary::GoBinary::wait_reasons`]; of what
    /// it waited for last, where it does not wait.
    pub wait_reason: u8,
    /// The bounds of its stack.
    pub stack: Range<u64>,
    /// Its registers when it last stopped running. Of one that runs they are old.
    pub registers: Registers,
    /// Its registers when it entered a system call; only while it is in one.
    pub syscall: Option<Registers>,
    /// When a collection first saw it wait, on the monotonic clock, in nanoseconds;
    /// 0 where none has.
    pub wait_since_ns: u64,
    /// What stands for it at the channels it waits for (`runtime.sudog`), 0 for none.
    pub waiting: u64,
    /// Where the statement returns to that started it.
    pub go_pc: u64,
    /// The function it was started with.
    pub start_pc: u64,
    /// The thread that runs it, 0 for none.
    pub m: u64,
    /// Its pprof labels, 0 for none.
    pub labels: u64,
    /// Which goroutine started it, where the version tells.
    pub parent_goid: Option<u64>,
}

/// The registers of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// The stack pointer.
    pub sp: u64,
    /// The instruction.
    pub pc: u64,
    /// The frame pointer, where it was kept.
    pub bp: Option<u64>,
}

/// Some of the goroutines, with what it takes to see whether they changed.
#[derive(Debug)]
pub struct GoroutineBatch<'p> {
    /// Those that are alive.
    pub goroutines: Vec<Goroutine>,
    pub(super) offsets: &'p StructOffsets,
}

/// What became of the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listing {
    /// How many places the list has: goroutines that are alive, and those that
    /// the runtime keeps for later.
    pub listed: u64,
    /// Goroutines that are alive.
    pub alive: u64,
    /// Goroutines that could not be read.
    pub unreadable: u64,
    /// Goroutines that make no sense.
    pub nonsense: u64,
    /// Places that were not looked at: there are more than goprof reads.
    pub cut: u64,
}

impl Program<'_> {
    /// Calls `each` with the goroutines that are alive, some at a time.
    ///
    /// # Errors
    /// The list of goroutines is not there, or makes no sense; says why.
    pub fn for_each_goroutine(
        &self,
        offsets: &StructOffsets,
        each: impl FnMut(&GoroutineBatch<'_>),
    ) -> Result<Listing, String> {
        self.for_first_goroutines(MAX_GOROUTINES, offsets, each)
    }

    /// The same for the first places of the list alone, where there is no room for
    /// more: at most so many of them.
    ///
    /// # Errors
    /// As for [`Program::for_each_goroutine`].
    pub fn for_first_goroutines(
        &self,
        most: u64,
        offsets: &StructOffsets,
        mut each: impl FnMut(&GoroutineBatch<'_>),
    ) -> Result<Listing, String> {
        let most = most.min(MAX_GOROUTINES);
        let Some(list) = self.variables.all_goroutines else {
            return Err("its runtime.allgadd does not say where its goroutines are".to_owned());
        };
        let (array, count) = (self.address(list.array), self.address(list.count));
        // The count first: the array never has room for fewer.
        let Some(listed) = self.memory.word(count).filter(|n| *n <= MAX_COUNT) else {
            return Err("the list of its goroutines makes no sense".to_owned());
        };
        let mut listing = Listing {
            listed,
            cut: listed.saturating_sub(most),
            ..Listing::default()
        };
        let end = listed.min(most);
        let mut first = 0;
        while first < end {
            let places = (end - first).min(BATCH);
            let Some(pointers) = self.pointers(array, first, places) else {
                return Err("the list of its goroutines cannot be read".to_owned());
            };
            // Each has its place for ever.
            if has_twice(&pointers) {
                return Err("the list of its goroutines makes no sense".to_owned());
            }
            let batch = self.read_goroutines(&pointers, offsets, &mut listing);
            let bad = listing.nonsense + listing.unreadable;
            if bad > TOLERATED && bad * 2 > first + places {
                return Err("the list of its goroutines makes no sense".to_owned());
            }
            each(&batch);
            first += places;
        }
        Ok(listing)
    }

    /// Goroutines at random places of the list, as many as `most`, or all where there
    /// are no more; and how many of the list each stands for. `below` gives a random number
    /// below another.
    ///
    /// # Errors
    /// As for [`Program::for_each_goroutine`].
    pub fn some_goroutines<'o>(
        &self,
        offsets: &'o StructOffsets,
        most: u64,
        mut below: impl FnMut(u64) -> u64,
    ) -> Result<(GoroutineBatch<'o>, f64), String> {
        let unreadable = || "the list of its goroutines cannot be read".to_owned();
        let list = self.variables.all_goroutines.ok_or_else(unreadable)?;
        let (array, count) = (self.address(list.array), self.address(list.count));
        let listed = self.memory.word(count).ok_or_else(unreadable)?;
        if listed > MAX_COUNT {
            return Err("the list of its goroutines makes no sense".to_owned());
        }
        let places: Vec<u64> = match listed <= most {
            true => (0..listed).collect(),
            false => {
                let mut chosen = std::collections::BTreeSet::new();
                // Some come twice.
                for _ in 0..most {
                    chosen.insert(below(listed));
                }
                chosen.into_iter().collect()
            }
        };
        for _ in 0..ATTEMPTS {
            let before = self.memory.word(array).ok_or_else(unreadable)?;
            let at = places.iter().map(|place| before.wrapping_add(place * 8));
            let pieces = Pieces::read(self.memory, &at.collect::<Vec<_>>(), 8);
            // An array that the list has left behind may be used for other things.
            if self.memory.word(array) != Some(before) {
                continue;
            }
            let words = (0..places.len()).filter_map(|index| pieces.get(index));
            let words = words.filter_map(|bytes| bytes.first_chunk().copied());
            let pointers: Vec<u64> = words.map(u64::from_le_bytes).collect();
            let batch = self.read_goroutines(&pointers, offsets, &mut Listing::default());
            // What each that was looked at stands for.
            let share = listed as f64 / places.len().max(1) as f64;
            return Ok((batch, share));
        }
        Err(unreadable())
    }

    /// Some of the pointers of an array whose address is at `array`.
    fn pointers(&self, array: u64, first: u64, places: u64) -> Option<Vec<u64>> {
        let mut bytes = vec![0; usize::try_from(places * 8).ok()?];
        for _ in 0..ATTEMPTS {
            let before = self.memory.word(array)?;
            let read = self.memory.read(before.wrapping_add(first * 8), &mut bytes);
            // An array that the list has left behind may be used for other things.
            if read && self.memory.word(array) == Some(before) {
                let words = bytes.as_chunks().0.iter();
                return Some(words.map(|word| u64::from_le_bytes(*word)).collect());
            }
        }
        None
    }

    /// Some goroutines once more, by where their structs are; those that are alive,
    /// and what could not be had.
    pub fn goroutines_at<'o>(
        &self,
        addresses: &[u64],
        offsets: &'o StructOffsets,
    ) -> (GoroutineBatch<'o>, Listing) {
        let mut listing = Listing::default();
        let batch = self.read_goroutines(addresses, offsets, &mut listing);
        (batch, listing)
    }

    fn read_goroutines<'o>(
        &self,
        pointers: &[u64],
        offsets: &'o StructOffsets,
        listing: &mut Listing,
    ) -> GoroutineBatch<'o> {
        let pieces = Pieces::read(self.memory, pointers, struct_bytes(offsets));
        let mut goroutines = Vec::new();
        for (index, address) in pointers.iter().enumerate() {
            let Some(bytes) = pieces.get(index) else {
                listing.unreadable += 1;
                continue;
            };
            match parse(*address, bytes, offsets) {
                Some(goroutine) if goroutine.status.is_alive() => {
                    listing.alive += 1;
                    goroutines.push(goroutine);
                }
                Some(_) => {}
                None => listing.nonsense += 1,
            }
        }
        GoroutineBatch {
            goroutines,
            offsets,
        }
    }
}

impl Goroutine {
    /// The registers with which it goes on; None of one that runs, whose stack is
    /// moved, or that is about to do either.
    pub fn saved(&self) -> Option<Registers> {
        match self.status {
            GoroutineStatus::Running | GoroutineStatus::CopyStack => None,
            GoroutineStatus::Syscall => self.syscall,
            _ => Some(self.registers),
        }
    }
}

impl GoroutineBatch<'_> {
    /// For each of [`GoroutineBatch::goroutines`] whether it still is as it was
    /// read: whatever was read of its stack meanwhile belongs together then. It is
    /// by status, id and saved registers, which are read again.
    pub fn unchanged(&self, memory: &dyn Memory) -> Vec<bool> {
        let head = Head::of(self.offsets);
        let goroutines = self.goroutines.iter();
        head.still_of(memory, &goroutines.collect::<Vec<_>>())
    }
}

/// The part of a goroutine's struct that changes when it runs: its registers, its
/// state and its id.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'p> {
    offsets: &'p StructOffsets,
    start: u32,
    end: u32,
}

impl<'p> Head<'p> {
    pub(super) fn of(offsets: &'p StructOffsets) -> Self {
        let g = &offsets.g;
        let words = [
            g.sched.sp,
            g.sched.pc,
            g.syscall.sp,
            g.syscall.pc,
            g.atomic_status,
            g.goid,
        ];
        let (start, end) = (words.into_iter().min(), words.into_iter().max());
        Self {
            offsets,
            start: start.unwrap_or(0),
            end: end.unwrap_or(0) + 8,
        }
    }

    /// Its bytes.
    pub(super) fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Where it is of a goroutine.
    pub(super) fn address(&self, goroutine: &Goroutine) -> u64 {
        goroutine.address.wrapping_add(self.start.into())
    }

    /// For each goroutine whether it still is as it was read.
    pub(super) fn still_of(&self, memory: &dyn Memory, goroutines: &[&Goroutine]) -> Vec<bool> {
        let addresses = goroutines.iter().map(|goroutine| self.address(goroutine));
        let addresses: Vec<u64> = addresses.collect();
        let pieces = Pieces::read(memory, &addresses, self.len());
        let goroutines = goroutines.iter().enumerate();
        goroutines
            .map(|(index, goroutine)| {
                let bytes = pieces.get(index);
                bytes.is_some_and(|bytes| self.is_of(goroutine, bytes))
            })
            .collect()
    }

    /// Whether its bytes are those of a goroutine as that was read.
    pub(super) fn is_of(&self, goroutine: &Goroutine, bytes: &[u8]) -> bool {
        let word = |offset: u32| {
            let at = offset.checked_sub(self.start)? as usize;
            let word = bytes.get(at..)?.first_chunk::<8>()?;
            Some(u64::from_le_bytes(*word))
        };
        let g = &self.offsets.g;
        let status = word(g.atomic_status).and_then(|word| GoroutineStatus::of(word as u32));
        let syscall = goroutine.syscall.map_or(0, |registers| registers.sp);
        let in_call = goroutine.syscall.map(|registers| registers.pc);
        status == Some(goroutine.status)
            && word(g.goid) == Some(goroutine.goid)
            && word(g.sched.sp) == Some(goroutine.registers.sp)
            && word(g.sched.pc) == Some(goroutine.registers.pc)
            && word(g.syscall.sp) == Some(syscall)
            && (in_call.is_none() || word(g.syscall.pc) == in_call)
    }
}

fn has_twice(pointers: &[u64]) -> bool {
    let mut sorted = pointers.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

/// Bytes of `runtime.g` up to the last field that is used.
fn struct_bytes(offsets: &StructOffsets) -> usize {
    let g = &offsets.g;
    let words = [
        g.stack.hi,
        g.m,
        g.sched.sp,
        g.sched.pc,
        g.sched.bp,
        g.syscall.sp,
        g.syscall.pc,
        g.syscall.bp.unwrap_or(0),
        g.atomic_status,
        g.goid,
        g.wait_since,
        g.wait_reason,
        g.go_pc,
        g.start_pc,
        g.waiting,
        g.labels,
        g.parent_goid.unwrap_or(0),
    ];
    words.into_iter().max().unwrap_or(0) as usize + 8
}

/// A goroutine out of its struct's bytes; None where they make no sense.
fn parse(address: u64, bytes: &[u8], offsets: &StructOffsets) -> Option<Goroutine> {
    let word = |offset: u32| {
        let word = bytes.get(offset as usize..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*word))
    };
    let g = &offsets.g;
    let status = GoroutineStatus::of(word(g.atomic_status)? as u32)?;
    let registers = |sp, pc, bp: Option<u32>| {
        Some(Registers {
            sp: word(sp)?,
            pc: word(pc)?,
            bp: bp.and_then(word),
        })
    };
    let syscall = registers(g.syscall.sp, g.syscall.pc, g.syscall.bp)?;
    let goroutine = Goroutine {
        address,
        goid: word(g.goid)?,
        status,
        wait_reason: *bytes.get(g.wait_reason as usize)?,
        stack: word(g.stack.lo)?..word(g.stack.hi)?,
        registers: registers(g.sched.sp, g.sched.pc, Some(g.sched.bp))?,
        syscall: (syscall.sp != 0).then_some(syscall),
        wait_since_ns: word(g.wait_since)?,
        waiting: word(g.waiting)?,
        go_pc: word(g.go_pc)?,
        start_pc: word(g.start_pc)?,
        m: word(g.m)?,
        labels: word(g.labels)?,
        parent_goid: g.parent_goid.and_then(word),
    };
    let is_sane = address != 0
        && address.is_multiple_of(8)
        && (1..MAX_GOID).contains(&goroutine.goid)
        && goroutine.stack.start < goroutine.stack.end;
    // Of one that is not alive nothing but that is kept.
    (is_sane || !status.is_alive()).then_some(goroutine)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{StackRead, fake::Words};
    use super::*;
    use crate::gobinary::{
        GOffsets, MOffsets, SavedRegisters, StackBounds, SudogOffsets, SyscallRegisters,
    };

    pub(in crate::gomemory) const OFFSETS: StructOffsets = StructOffsets {
        g: GOffsets {
            stack: StackBounds { lo: 0, hi: 8 },
            m: 48,
            sched: SavedRegisters {
                sp: 56,
                pc: 64,
                bp: 96,
            },
            syscall: SyscallRegisters {
                sp: 104,
                pc: 112,
                bp: Some(120),
            },
            atomic_status: 144,
            goid: 152,
            wait_since: 168,
            wait_reason: 176,
            go_pc: 288,
            start_pc: 304,
            waiting: 320,
            labels: 352,
            parent_goid: Some(280),
        },
        m: MOffsets {
            g0: 0,
            procid: 64,
            gsignal: 72,
            curg: 184,
            p: 208,
            id: 232,
        },
        sudog: SudogOffsets {
            g: 0,
            next: 8,
            prev: 16,
            elem: 24,
            wait_link: 64,
            c: 80,
        },
        labels: None,
    };
    const G: u64 = 0xc0_0000_1000;

    fn memory(goid: u64, status: u64) -> Words {
        let mut words = Words::default();
        words.put(G, &[0; 48]);
        words.put(G, &[0x7000, 0x8000]);
        words.put(G + 56, &[0x7f00, 0x40_0100]);
        words.put(G + 144, &[status, goid]);
        words.put(G + 176, &[7]);
        words.put(G + 280, &[1]);
        words
    }

    /// A goroutine that waits, with what stands for it in a queue.
    pub(in crate::gomemory) fn waiting(address: u64, waiting: u64) -> Goroutine {
        let found = read(&memory(18, 4)).unwrap();
        Goroutine {
            address,
            waiting,
            ..found
        }
    }

    fn read(memory: &Words) -> Option<Goroutine> {
        let mut bytes = vec![0; struct_bytes(&OFFSETS)];
        assert!(memory.read(G, &mut bytes));
        parse(G, &bytes, &OFFSETS)
    }

    #[test]
    fn a_goroutine_is_what_its_struct_says() {
        let found = read(&memory(18, 0x1004)).unwrap();
        assert_eq!((found.goid, found.status), (18, GoroutineStatus::Waiting));
        assert_eq!((found.wait_reason, found.parent_goid), (7, Some(1)));
        assert_eq!(
            (found.registers.sp, found.registers.pc),
            (0x7f00, 0x40_0100)
        );
        assert_eq!((found.stack, found.syscall), (0x7000..0x8000, None));
        let mut in_call = memory(18, 3);
        in_call.put(G + 104, &[0x7e00, 0x40_0200, 0x7e10]);
        let syscall = read(&in_call).unwrap().syscall.unwrap();
        assert_eq!((syscall.sp, syscall.bp), (0x7e00, Some(0x7e10)));
    }

    #[test]
    fn what_makes_no_sense_is_no_goroutine() {
        assert_eq!(read(&memory(0, 4)), None);
        assert_eq!(read(&memory(1 << 60, 4)), None);
        assert_eq!(read(&memory(18, 77)), None);
        let mut no_stack = memory(18, 4);
        no_stack.put(G, &[0x8000, 0x7000]);
        assert_eq!(read(&no_stack), None);
        assert!(!read(&memory(0, 6)).unwrap().status.is_alive());
    }

    /// On arm64 that is where the frame pointer of what called `gopark` is.
    #[test]
    fn the_word_below_the_stack_pointer_is_read_too() {
        let mut memory = memory(18, 4);
        let words: Vec<u64> = (1..=33).collect();
        memory.put(0x7ef8, &words);
        let batch = GoroutineBatch {
            goroutines: vec![read(&memory).unwrap()],
            offsets: &OFFSETS,
        };
        let stacks = batch.stacks(&memory, 4096);
        assert_eq!(stacks.outcome(0), StackRead::Read { is_cut: false });
        let read = [0x7ef0, 0x7ef8, 0x7f00, 0x7ff8, 0x8000].map(|at| stacks.word(0, at));
        assert_eq!(read, [None, Some(1), Some(2), Some(33), None]);
    }

    #[test]
    fn a_goroutine_that_went_on_has_changed() {
        let before = memory(18, 4);
        let batch = GoroutineBatch {
            goroutines: vec![read(&before).unwrap(); 2],
            offsets: &OFFSETS,
        };
        assert_eq!(batch.unchanged(&before), [true, true]);
        for (offset, word) in [(56, 0x7e00), (144, 1), (152, 19)] {
            let mut after = before.clone();
            after.put(G + offset, &[word]);
            assert_eq!(batch.unchanged(&after), [false, false], "{offset}");
        }
        assert_eq!(batch.unchanged(&Words::default()), [false, false]);
        // Only what the collector notes for itself.
        assert_eq!(batch.unchanged(&memory(18, 0x1004)), [true, true]);
    }
}
