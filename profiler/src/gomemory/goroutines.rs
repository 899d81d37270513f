//! A goroutine, as its struct has it. What changes while it is read shows when it is
//! asked for again.

use std::ops::Range;

use super::{Memory, pieces::Pieces};
use crate::gobinary::{GoroutineStatus, ListOffsets, StructOffsets};

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

/// Bytes of `runtime.g` up to the last field that is used.
pub(super) fn struct_bytes(offsets: &StructOffsets, lists: &ListOffsets) -> usize {
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
        lists.wait_since,
        lists.wait_reason,
        lists.go_pc,
        g.start_pc,
        lists.waiting,
        g.labels,
        lists.parent_goid.unwrap_or(0),
    ];
    words.into_iter().max().unwrap_or(0) as usize + 8
}

/// A goroutine out of its struct's bytes; None where they make no sense.
pub(super) fn parse(
    address: u64,
    bytes: &[u8],
    (offsets, lists): (&StructOffsets, &ListOffsets),
) -> Option<Goroutine> {
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
        wait_reason: *bytes.get(lists.wait_reason as usize)?,
        stack: word(g.stack.lo)?..word(g.stack.hi)?,
        registers: registers(g.sched.sp, g.sched.pc, Some(g.sched.bp))?,
        syscall: (syscall.sp != 0).then_some(syscall),
        wait_since_ns: word(lists.wait_since)?,
        waiting: word(lists.waiting)?,
        go_pc: word(lists.go_pc)?,
        start_pc: word(g.start_pc)?,
        m: word(g.m)?,
        labels: word(g.labels)?,
        parent_goid: lists.parent_goid.and_then(word),
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
        GOffsets, ListOffsets, MOffsets, SavedRegisters, SpanOffsets, StackBounds, SudogOffsets,
        SyscallRegisters,
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
            start_pc: 304,
            labels: 352,
        },
        m: MOffsets {
            g0: 0,
            procid: 64,
            gsignal: 72,
            curg: 184,
            p: 208,
            id: 232,
        },
        lists: Ok(ListOffsets {
            wait_since: 168,
            wait_reason: 176,
            go_pc: 288,
            waiting: 320,
            parent_goid: Some(280),
            sudog: SudogOffsets {
                g: 0,
                next: 8,
                prev: 16,
                elem: 24,
                wait_link: 64,
                c: 80,
            },
        }),
        spans: Ok(SpanOffsets {
            cache_alloc: 48,
            used: 96,
            used_before: 102,
            block_bytes: 104,
        }),
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
        let lists = OFFSETS.lists.as_ref().ok()?;
        let mut bytes = vec![0; struct_bytes(&OFFSETS, lists)];
        assert!(memory.read(G, &mut bytes));
        parse(G, &bytes, (&OFFSETS, lists))
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
