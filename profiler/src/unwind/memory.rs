//! Stacks that are walked over a program's memory rather than over what a sample
//! took of it: of goroutines that do not run, and of threads of a core. Asks for
//! one word at a time; who answers decides what may be read.

use profiler_ebpf::wire::WalkEnd;

use super::{
    GAP, StackEnd, Unwound, broke_at,
    frame::{Callbacks, Frame, Memory, Program as _, Stop},
    walk::Walk,
};
use crate::{
    decode::Segment,
    gomemory::Registers,
    process::{Process, code::Site},
};

/// What stands for the frame pointer of a chain where there is none: no frame
/// pointer is odd.
const NO_CHAIN: u64 = u64::MAX;

/// Memory by a function that knows words.
struct Lookup<F>(F);

impl<F: Fn(u64) -> Option<u64>> Memory for Lookup<F> {
    fn word(&self, address: u64) -> Option<u64> {
        (self.0)(address)
    }
}

/// Writes the stack of a goroutine that was left with these registers to `frames`,
/// as [`super::unwind`] does. `word` knows the words of its stack.
pub fn unwind_parked(
    registers: Registers,
    process: &Process,
    word: impl Fn(u64) -> Option<u64>,
    frames: &mut Vec<u64>,
) -> Unwound {
    frames.clear();
    let frame = parked(registers, process);
    let (stop, unmapped) = walk(process, &word, frame, None, frames);
    unwound(stop, unmapped, frames)
}

/// The same for a thread with these registers, and where it is on another stack than
/// its goroutine's own, for that goroutine from the registers it was left with.
pub fn unwind_thread(
    thread: Registers,
    goroutine: Option<Registers>,
    process: &Process,
    word: impl Fn(u64) -> Option<u64>,
    frames: &mut Vec<u64>,
) -> Unwound {
    frames.clear();
    let leaf = Frame {
        at: thread.pc,
        exact: true,
        ..begin(thread)
    };
    let left = goroutine.map(segment);
    let (stop, unmapped) = walk(process, &word, leaf, left.as_ref(), frames);
    let (stop, more_unmapped) = match (stop, goroutine) {
        (Stop::Switch | Stop::Broken(_), Some(goroutine)) => {
            if stop != Stop::Switch {
                frames.push(GAP);
            }
            let frame = parked(goroutine, process);
            walk(process, &word, frame, None, frames)
        }
        _ => (stop, false),
    };
    unwound(stop, unmapped || more_unmapped, frames)
}

/// The frame that a goroutine was left in: behind a call, or at the first
/// instruction of what it has yet to begin with.
fn parked(registers: Registers, process: &Process) -> Frame {
    let site = process.code().at(registers.pc);
    let entry = matches!(site, Some(Site::Go(go)) if go.at_entry);
    Frame {
        at: registers.pc.wrapping_sub(u64::from(!entry)),
        exact: false,
        ..begin(registers)
    }
}

fn begin(registers: Registers) -> Frame {
    Frame {
        at: registers.pc,
        exact: false,
        sp: Some(registers.sp),
        fp: registers.bp,
        link: None,
        joined: false,
        lr: None,
        signalled: false,
    }
}

fn segment(registers: Registers) -> Segment<'static> {
    Segment {
        ip: registers.pc,
        sp: registers.sp,
        fp: registers.bp.unwrap_or(NO_CHAIN),
        lr: 0,
        walk_end: WalkEnd::Malformed,
        callers: &[],
        slice: &[],
        far: None,
    }
}

fn walk(
    process: &Process,
    word: impl Fn(u64) -> Option<u64>,
    frame: Frame,
    goroutine: Option<&Segment<'_>>,
    frames: &mut Vec<u64>,
) -> (Stop, bool) {
    let mut program = process.code();
    let no_chain = Segment {
        fp: NO_CHAIN,
        ..segment(Registers {
            sp: 0,
            pc: 0,
            bp: None,
        })
    };
    // What nothing is mapped at, the walk would take for an interrupted instruction.
    if program.site(frame.at).is_none() && !frame.exact {
        return (Stop::Broken(StackEnd::UnknownCode), true);
    }
    let mut walk = Walk {
        program: &mut program,
        memory: Lookup(word),
        segment: &no_chain,
        goroutine,
        callbacks: Callbacks::default(),
        outer: None,
        frames,
        unmapped: false,
        frame,
    };
    let stop = walk.run();
    (stop, walk.unmapped)
}

fn unwound(stop: Stop, unmapped: bool, frames: &[u64]) -> Unwound {
    let end = match stop {
        Stop::Root if frames.contains(&GAP) => StackEnd::Gap,
        Stop::Root => StackEnd::Whole,
        Stop::Switch => StackEnd::SwitchNotCrossed,
        Stop::Broken(end) => end,
    };
    Unwound {
        end,
        unmapped,
        broke_at: broke_at(end, frames),
    }
}
