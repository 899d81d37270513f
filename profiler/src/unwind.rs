//! Unwind: from registers, frame-pointer chain and stack words to the stack as
//! Go's own profiler would have written it. Reads the binaries' tables, never
//! the process.

use profiler_ebpf::wire::WalkEnd;

use crate::{
    decode::Sample,
    gobinary::{FuncKind, GoFunction},
    process::{Mapped, Process},
};

/// Most frames added from the stack words of one sample.
const MAX_SLICE_FRAMES: usize = 512;

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
    /// The registers of user mode could not be had.
    NoRegisters,
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
            StackEnd::NoRegisters => "no user registers",
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
}

/// Writes the user stack of `sample` to `frames`, leaf first: the interrupted
/// instruction, then for each caller its call (the return address less one).
pub fn unwind(sample: &Sample<'_>, process: &Process, frames: &mut Vec<u64>) -> Unwound {
    frames.clear();
    if sample.head.ip == 0 {
        return Unwound {
            end: StackEnd::NoRegisters,
            unmapped: false,
        };
    }
    frames.push(sample.head.ip);
    let mut end = callers(sample, process, frames);
    let mut unmapped = false;
    for index in 0..frames.len() {
        let Some(mapped) = process.locate(frames[index]) else {
            unmapped = true;
            continue;
        };
        let Some(function) = go_function(mapped, frames[index]) else {
            continue;
        };
        if function.kind == FuncKind::Goexit {
            // Left out, as in Go's own profiles.
            frames.truncate(index.max(1));
            end = StackEnd::Whole;
            break;
        }
        if function.top_frame || function.kind == FuncKind::Mcall {
            // Nothing called these: what the chain goes on to is whatever ran
            // before on this thread.
            frames.truncate(index + 1);
            end = StackEnd::Whole;
            break;
        }
    }
    Unwound { end, unmapped }
}

fn go_function(mapped: &Mapped, address: u64) -> Option<GoFunction> {
    let binary = mapped.object.as_ref()?.go()?;
    binary.function(mapped.go_address(address)?)
}

/// Appends the callers of the interrupted instruction.
fn callers(sample: &Sample<'_>, process: &Process, frames: &mut Vec<u64>) -> StackEnd {
    let chain_end = match sample.walk_end {
        WalkEnd::Root => StackEnd::Whole,
        WalkEnd::DepthLimit => StackEnd::DepthLimit,
        WalkEnd::Unreadable => StackEnd::Unreadable,
        WalkEnd::Malformed => StackEnd::NoFramePointer,
        WalkEnd::NoRegisters => StackEnd::NoRegisters,
    };
    let delta = process.locate(sample.head.ip).and_then(|mapped| {
        let binary = mapped.object.as_ref()?.go()?;
        binary.stack_delta(mapped.go_address(sample.head.ip)?)
    });
    let Some(delta) = delta.and_then(|delta| u64::try_from(delta).ok()) else {
        push_calls(sample.callers, frames);
        return chain_end;
    };

    // The frame pointer chain begins with the caller only once the function
    // has set up its frame; before, after and in leaves without one it begins
    // with the caller's caller, and the return address lies at sp + delta.
    let return_slot = sample.head.sp.wrapping_add(delta);
    if sample.head.fp.wrapping_add(8) == return_slot {
        push_calls(sample.callers, frames);
        return chain_end;
    }
    let word = |address: u64| slice_word(sample, address);
    let Some(return_address) = word(return_slot) else {
        push_calls(sample.callers, frames);
        return StackEnd::SliceTooShort;
    };
    frames.push(return_address.wrapping_sub(1));

    let saved = word(return_slot.wrapping_sub(8)).filter(|_| delta >= 8);
    let chain_is_callers = delta == 0
        || saved == Some(sample.head.fp)
        || sample
            .callers
            .first()
            .is_some_and(|call| process.locate(call.wrapping_sub(1)).is_some());
    match saved {
        Some(saved) if !chain_is_callers => walk_slice(sample, saved, frames),
        _ => {
            push_calls(sample.callers, frames);
            chain_end
        }
    }
}

fn push_calls(return_addresses: &[u64], frames: &mut Vec<u64>) {
    frames.extend(
        return_addresses
            .iter()
            .map(|address| address.wrapping_sub(1)),
    );
}

/// The stack word at `address`, if it was copied with the sample.
fn slice_word(sample: &Sample<'_>, address: u64) -> Option<u64> {
    let offset = address.checked_sub(sample.head.sp)?;
    if offset % 8 != 0 {
        return None;
    }
    sample.slice.get(usize::try_from(offset / 8).ok()?).copied()
}

/// Follows frame pointers inside the copied stack words.
fn walk_slice(sample: &Sample<'_>, fp: u64, frames: &mut Vec<u64>) -> StackEnd {
    let mut fp = fp;
    for _ in 0..MAX_SLICE_FRAMES {
        if fp == 0 {
            return StackEnd::Whole;
        }
        let (Some(next), Some(return_address)) = (
            slice_word(sample, fp),
            slice_word(sample, fp.wrapping_add(8)),
        ) else {
            return StackEnd::SliceTooShort;
        };
        if return_address == 0 {
            return StackEnd::Whole;
        }
        frames.push(return_address.wrapping_sub(1));
        fp = next;
    }
    StackEnd::DepthLimit
}
