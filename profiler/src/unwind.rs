//! Unwind: from registers, frame-pointer chains and stack words to the stack as
//! Go's own profiler would have written it. Reads the binaries' tables, never
//! the process.

#[cfg(test)]
mod callback_tests;
#[cfg(test)]
mod fake;
mod frame;
mod memory;
#[cfg(test)]
mod tests;
mod walk;

use profiler_ebpf::wire::NO_FRAME;

use crate::{
    decode::{Sample, Segment},
    gobinary::FuncKind,
    process::{Process, code::Site},
};
pub use memory::{unwind_parked, unwind_thread};

use frame::{Callbacks, Frame, Program, Stop, Words};
use walk::Walk;

/// Stands in a stack for frames that could not be had, between some that could.
pub const GAP: u64 = u64::MAX;

/// Stands in the place of a user stack for a thread of the kernel, which has none.
pub const KERNEL_THREAD: u64 = u64::MAX - 1;

/// How a stack ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StackEnd {
    /// In the first frame of a goroutine or thread.
    Whole,
    /// It is deeper than the kernel side walks.
    DepthLimit,
    /// The next frame lies in memory that was not resident.
    Unreadable,
    /// The frame pointer makes no sense: code without frame pointers.
    NoFramePointer,
    /// The stack words taken with the sample did not reach the next frame.
    SliceTooShort,
    /// The goroutine's own stack, below the one the thread was on, could not be
    /// joined.
    SwitchNotCrossed,
    /// It goes on to its first frame, but frames in between are missing: C code
    /// without frame pointers, most often.
    Gap,
    /// The registers of user mode could not be had.
    NoRegisters,
    /// Code without a table that says how to leave it: generated at run time,
    /// most often.
    NoTable,
    /// An address in no mapping.
    UnknownCode,
}

impl StackEnd {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            StackEnd::Whole => "whole",
            StackEnd::DepthLimit => "deeper than the limit",
            StackEnd::Unreadable => "stack memory not resident",
            StackEnd::NoFramePointer => "no frame pointer",
            StackEnd::SliceTooShort => "frame larger than the copied stack",
            StackEnd::SwitchNotCrossed => "stack switch not crossed",
            StackEnd::Gap => "with frames missing in between",
            StackEnd::NoRegisters => "no user registers",
            StackEnd::NoTable => "code without unwind tables",
            StackEnd::UnknownCode => "code in no mapping",
        }
    }
}

/// The user stack of a sample, and how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unwound {
    /// How the stack ends.
    pub end: StackEnd,
    /// Whether an address lay in no mapping that is known.
    pub unmapped: bool,
    /// The address in `frames` of the last frame before the walk stopped, or
    /// before the first [`GAP`]: the function that could not be passed. `None`
    /// where the stack is whole or has no frames.
    pub broke_at: Option<u64>,
}

/// Writes the user stack of `sample` to `frames`, leaf first: the interrupted
/// instruction, then for each caller its call (the return address less one).
pub fn unwind(sample: &Sample<'_>, process: &Process, frames: &mut Vec<u64>) -> Unwound {
    frames.clear();
    let mut stack = Stack {
        program: process.code(),
        frames,
        unmapped: false,
    };
    let end = match stack.fill(&sample.thread, sample.goroutine.as_ref()) {
        StackEnd::Whole if stack.frames.contains(&GAP) => StackEnd::Gap,
        end => end,
    };
    let unmapped = stack.unmapped;
    Unwound {
        end,
        unmapped,
        broke_at: broke_at(end, frames),
    }
}

/// The last of `frames` before what is missing.
fn broke_at(end: StackEnd, frames: &[u64]) -> Option<u64> {
    if end == StackEnd::Whole {
        return None;
    }
    let known = frames.iter().position(|frame| *frame == GAP);
    frames.get(..known.unwrap_or(frames.len()))?.last().copied()
}

struct Stack<'a, P> {
    program: P,
    frames: &'a mut Vec<u64>,
    unmapped: bool,
}

impl<P: Program> Stack<'_, P> {
    fn fill(&mut self, thread: &Segment<'_>, goroutine: Option<&Segment<'_>>) -> StackEnd {
        if thread.ip == 0 {
            return StackEnd::NoRegisters;
        }
        let system = goroutine.and_then(|goroutine| goroutine.far);
        let mut callbacks = system.map(Callbacks::from).unwrap_or_default();
        // A thread of C that calls Go has a goroutine that begins there: it
        // has no stack of its own before.
        let goroutine = goroutine.filter(|goroutine| !self.begins_at(goroutine.ip));
        let leaf = Frame {
            at: thread.ip,
            exact: true,
            lr: (thread.lr != 0).then_some(thread.lr),
            ..begin(thread)
        };
        let words = Words {
            segment: thread,
            system,
        };
        // The first of them may be the thread's own chain's.
        let own = match system {
            Some(system) if system.frames_before != NO_FRAME => {
                let own = callbacks;
                callbacks.take(&system);
                own
            }
            _ => Callbacks::default(),
        };
        match (self.walk(words, goroutine, leaf, own), goroutine) {
            (Stop::Root, _) => StackEnd::Whole,
            (Stop::Switch, Some(goroutine)) => self.goroutine(goroutine, callbacks),
            (Stop::Switch, None) => StackEnd::SwitchNotCrossed,
            (Stop::Broken(_), Some(goroutine)) => {
                self.frames.push(GAP);
                self.goroutine(goroutine, callbacks)
            }
            (Stop::Broken(end), None) => end,
        }
    }

    /// Whether a goroutine that was left at `ip` had not called anything.
    fn begins_at(&mut self, ip: u64) -> bool {
        match self.program.site(ip.wrapping_sub(1)) {
            Some(Site::Go(go)) => go.kind == FuncKind::Goexit,
            _ => false,
        }
    }

    /// Appends the goroutine's own stack, from where it left it, with the C that
    /// called back into it.
    fn goroutine(&mut self, segment: &Segment<'_>, callbacks: Callbacks) -> StackEnd {
        // The runtime notes where the goroutine goes on: behind a call, or up to
        // Go 1.20 the first instruction of what stands in for one.
        let entry = matches!(self.program.site(segment.ip), Some(Site::Go(go)) if go.at_entry);
        let frame = Frame {
            at: segment.ip.wrapping_sub(u64::from(!entry)),
            exact: false,
            lr: None,
            ..begin(segment)
        };
        // Its far slice begins at no frame of its chain.
        let words = Words {
            segment: &Segment {
                far: None,
                ..*segment
            },
            system: segment.far,
        };
        match self.walk(words, None, frame, callbacks) {
            Stop::Root => StackEnd::Whole,
            Stop::Switch => StackEnd::SwitchNotCrossed,
            Stop::Broken(end) => end,
        }
    }

    fn walk(
        &mut self,
        memory: Words<'_>,
        goroutine: Option<&Segment<'_>>,
        frame: Frame,
        callbacks: Callbacks,
    ) -> Stop {
        let mut walk = Walk {
            program: &mut self.program,
            memory,
            segment: memory.segment,
            goroutine,
            callbacks,
            outer: None,
            frames: self.frames,
            unmapped: false,
            frame,
        };
        let stop = walk.run();
        self.unmapped |= walk.unmapped;
        stop
    }
}

/// A frame with the registers of a segment.
fn begin(segment: &Segment<'_>) -> Frame {
    Frame {
        at: segment.ip,
        exact: true,
        sp: Some(segment.sp),
        fp: Some(segment.fp),
        link: Some(0),
        joined: false,
        lr: None,
        signalled: false,
    }
}
