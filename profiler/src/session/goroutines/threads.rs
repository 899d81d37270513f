//! The threads of a core, and which goroutine was on each: their registers tell the
//! stacks of goroutines that ran, and one of them ended the program.

use foldhash::HashMap;

use super::Source;
use crate::{
    gomemory::{CoreThread, Goroutine, Registers},
    unwind::{Unwound, unwind_thread},
};

/// What ended a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// The signal.
    pub signal: u16,
    /// The thread that got it.
    pub tid: u32,
    /// The goroutine that was on it; None where none was.
    pub goid: Option<u64>,
}

/// The threads of a core; of a process that runs, none.
pub(super) struct Threads {
    by_id: HashMap<u32, CoreThread>,
}

impl Threads {
    pub(super) fn of(source: &Source<'_>) -> Self {
        let threads = source.threads.iter();
        Self {
            by_id: threads.map(|thread| (thread.tid, *thread)).collect(),
        }
    }

    /// The thread that a goroutine is on.
    pub(super) fn with(&self, goroutine: &Goroutine, source: &Source<'_>) -> Option<CoreThread> {
        if self.by_id.is_empty() || goroutine.m == 0 {
            return None;
        }
        let of_thread = |offset: u32| {
            let at = goroutine.m.wrapping_add(offset.into());
            source.program.memory.word(at)
        };
        let offsets = &source.offsets.m;
        let is_current = of_thread(offsets.curg) == Some(goroutine.address);
        let tid = u32::try_from(of_thread(offsets.procid)?).ok()?;
        self.by_id.get(&tid).copied().filter(|_| is_current)
    }
}

/// Writes the stack of a goroutine that is on a thread to `frames`.
pub(super) fn unwind_on(
    thread: CoreThread,
    goroutine: &Goroutine,
    source: &Source<'_>,
    frames: &mut Vec<u64>,
) -> Unwound {
    let memory = source.program.memory;
    let registers = Registers {
        sp: thread.sp,
        pc: thread.pc,
        bp: Some(thread.fp),
    };
    // Where the thread is on the system stack, the goroutine's registers were kept
    // when it went over; else they are old.
    let left = goroutine.syscall.unwrap_or(goroutine.registers);
    let left = is_on_system_stack(thread.sp, goroutine, source).then_some(left);
    let word = |address| memory.word(address);
    unwind_thread(registers, left, source.process, word, frames)
}

fn is_on_system_stack(sp: u64, goroutine: &Goroutine, source: &Source<'_>) -> bool {
    let word = |base: u64, offset: u32| {
        let at = base.wrapping_add(offset.into());
        source.program.memory.word(at)
    };
    let bounds = || {
        let g0 = word(goroutine.m, source.offsets.m.g0)?;
        let stack = &source.offsets.g.stack;
        Some(word(g0, stack.lo)?..word(g0, stack.hi)?)
    };
    bounds().is_some_and(|bounds| bounds.contains(&sp))
}
