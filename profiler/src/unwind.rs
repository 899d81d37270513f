//! Unwind: from registers, frame-pointer chains and stack words to the stack as
//! Go's own profiler would have written it. Reads the binaries' tables, never
//! the process.

use profiler_ebpf::wire::WalkEnd;

use crate::{
    decode::{Sample, Segment},
    gobinary::{FuncKind, GoBinary, GoFunction, Machine},
    process::Process,
};

/// Most frames added from the stack words of one sample.
const MAX_SLICE_FRAMES: usize = 512;

/// Stands in a stack for frames that could not be had, between some that could.
pub const GAP: u64 = u64::MAX;

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
        process,
        frames,
        unmapped: false,
    };
    let end = match stack.fill(sample) {
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

/// Where a segment's frames stop being the stack's.
enum Cut {
    /// At the first frame of a goroutine or thread.
    Root,
    /// Where the thread went over from the goroutine's stack.
    Switch,
    /// In the frame with this index, which the kernel called for a signal.
    Signal(usize),
    /// Nowhere.
    None,
}

struct Stack<'a> {
    process: &'a Process,
    frames: &'a mut Vec<u64>,
    unmapped: bool,
}

impl Stack<'_> {
    fn fill(&mut self, sample: &Sample<'_>) -> StackEnd {
        if sample.thread.ip == 0 {
            return StackEnd::NoRegisters;
        }
        self.frames.push(sample.thread.ip);
        let end = self.callers(&sample.thread);
        match (self.cut(0, sample.goroutine.is_some()), &sample.goroutine) {
            (Cut::Root, _) => StackEnd::Whole,
            (Cut::Signal(at), _) => self.interrupted(at, &sample.thread, end),
            (Cut::Switch, Some(goroutine)) => self.goroutine(goroutine),
            (Cut::None, Some(goroutine)) => {
                self.frames.push(GAP);
                self.goroutine(goroutine)
            }
            (Cut::Switch | Cut::None, None) => end,
        }
    }

    /// Appends the goroutine's own stack, from where it left it.
    fn goroutine(&mut self, segment: &Segment<'_>) -> StackEnd {
        let from = self.frames.len();
        let at = segment.ip.wrapping_sub(1);
        // A function that stands for `systemstack` and `asmcgocall` in what
        // they save; they are on the stack themselves.
        let stands_in = self
            .function(at)
            .is_some_and(|function| function.kind == FuncKind::SystemstackSwitch);
        if !stands_in {
            self.frames.push(at);
        }
        let end = self.callers(segment);
        match self.cut(from, false) {
            Cut::Root => StackEnd::Whole,
            _ => end,
        }
    }

    /// Puts the interrupted instruction behind the signal handler's frames, of
    /// which the one at index `at` is the first. The chain of frame pointers
    /// goes on with its callers by itself: the kernel leaves that register as
    /// it is.
    fn interrupted(&mut self, at: usize, segment: &Segment<'_>, end: StackEnd) -> StackEnd {
        let ip = self.interrupted_ip(at, segment);
        if at == 0 {
            // What was taken for the handler's caller is where it returns to.
            self.frames.truncate(1);
            self.push_calls(segment.callers);
        }
        match ip {
            Some(ip) => self.frames.insert(at + 1, ip),
            None => self.frames.insert(at + 1, GAP),
        }
        match self.cut(at + 1, false) {
            Cut::Root => StackEnd::Whole,
            _ if ip.is_none() => StackEnd::SwitchNotCrossed,
            _ => end,
        }
    }

    /// The instruction that a signal interrupted, out of the frame that the
    /// kernel wrote for it on x86-64: `struct rt_sigframe`,
    /// arch/x86/include/asm/sigframe.h, and `struct sigcontext_64`,
    /// arch/x86/include/uapi/asm/sigcontext.h.
    fn interrupted_ip(&self, at: usize, segment: &Segment<'_>) -> Option<u64> {
        const IP_BYTES: u64 = 176;
        let delta = |address| {
            let delta = self.go(address, |binary, address| {
                (binary.machine() == Machine::X86_64).then(|| binary.stack_delta(address))?
            })?;
            Some(i64::from(delta))
        };
        let frame = if at == 0 {
            segment.sp.checked_add_signed(delta(segment.ip)?)?
        } else {
            // frames[at] is what the `at`-th frame of the chain returns to.
            let mut fp = segment.fp;
            for _ in 1..at {
                fp = word(segment, fp)?;
            }
            let call = *self.frames.get(at)?;
            fp.wrapping_add(16).checked_add_signed(delta(call)?)?
        };
        let ip = word(segment, frame.wrapping_add(IP_BYTES))?;
        self.process.locate(ip).map(|_| ip)
    }

    /// Looks through the frames from index `from` and drops those behind the
    /// stack's first frame, or behind the switch to the system stack.
    fn cut(&mut self, from: usize, switches: bool) -> Cut {
        for index in from..self.frames.len() {
            let address = self.frames[index];
            if address == GAP {
                continue;
            }
            if self.process.locate(address).is_none() {
                self.unmapped = true;
                continue;
            }
            let Some(function) = self.function(address) else {
                continue;
            };
            if function.kind.is_injected() {
                self.return_to_instruction(index);
            }
            match function.kind {
                // Left out, as in Go's own profiles.
                FuncKind::Goexit => {
                    self.frames.truncate(index.max(1));
                    return Cut::Root;
                }
                // The goroutine does not come back here: what the chain goes
                // on to is whatever ran before on this thread.
                FuncKind::Mcall => {
                    self.frames.truncate(index + 1);
                    return Cut::Root;
                }
                // Left out, as in Go's own profiles: it does not return.
                FuncKind::Morestack if switches && index > 0 => {
                    self.frames.truncate(index);
                    return Cut::Switch;
                }
                FuncKind::Systemstack | FuncKind::Asmcgocall if switches && index > 0 => {
                    self.frames.truncate(index + 1);
                    return Cut::Switch;
                }
                _ if function.signal_handler => return Cut::Signal(index),
                _ if function.top_frame => {
                    self.frames.truncate(index + 1);
                    return Cut::Root;
                }
                _ => {}
            }
        }
        Cut::None
    }

    /// What seems to have called the function at `index` was interrupted, by a
    /// fault or for preemption: the call into it was put in afterwards, and the
    /// address is the instruction's own, not one behind a call.
    fn return_to_instruction(&mut self, index: usize) {
        // Between sigpanic and the instruction can stand the assembly that
        // calls it, sigpanic0.
        let next = self.frames.get(index + 1).copied();
        let through_assembly = next
            .and_then(|address| self.function(address))
            .is_some_and(|function| function.asm);
        let at = index + 1 + usize::from(through_assembly);
        if let Some(address) = self.frames.get_mut(at).filter(|address| **address != GAP) {
            *address = address.wrapping_add(1);
        }
    }

    /// Appends the callers of a segment's instruction.
    fn callers(&mut self, segment: &Segment<'_>) -> StackEnd {
        let chain_end = match segment.walk_end {
            WalkEnd::Root => StackEnd::Whole,
            WalkEnd::DepthLimit => StackEnd::DepthLimit,
            WalkEnd::Unreadable => StackEnd::Unreadable,
            WalkEnd::Malformed => StackEnd::NoFramePointer,
            WalkEnd::NoRegisters => StackEnd::NoRegisters,
        };
        // A function that writes the stack pointer itself goes over to another
        // stack, and the tables do not say where in it.
        let delta = self
            .go(segment.ip, |binary, address| {
                let writes_sp = binary.function(address)?.sp_write;
                binary.stack_delta(address).filter(|_| !writes_sp)
            })
            .and_then(|delta| u64::try_from(delta).ok());
        let Some(delta) = delta else {
            self.push_calls(segment.callers);
            return chain_end;
        };

        // The frame pointer chain begins with the caller only once the function
        // has set up its frame; before, after and in leaves without one it
        // begins with the caller's caller, and the return address lies at
        // sp + delta.
        let return_slot = segment.sp.wrapping_add(delta);
        if segment.fp.wrapping_add(8) == return_slot {
            self.push_calls(segment.callers);
            return chain_end;
        }
        let Some(return_address) = word(segment, return_slot) else {
            self.push_calls(segment.callers);
            return StackEnd::SliceTooShort;
        };
        let call = return_address.wrapping_sub(1);
        self.frames.push(match self.process.locate(call) {
            Some(_) => call,
            None => GAP,
        });

        let saved = word(segment, return_slot.wrapping_sub(8)).filter(|_| delta >= 8);
        let chain_is_callers = delta == 0
            || saved == Some(segment.fp)
            || segment
                .callers
                .first()
                .is_some_and(|call| self.process.locate(call.wrapping_sub(1)).is_some());
        match saved {
            Some(saved) if !chain_is_callers => self.walk_slice(segment, saved),
            _ => {
                self.push_calls(segment.callers);
                chain_end
            }
        }
    }

    fn push_calls(&mut self, return_addresses: &[u64]) {
        let calls = return_addresses
            .iter()
            .map(|address| address.wrapping_sub(1));
        self.frames.extend(calls);
    }

    /// Follows frame pointers inside the copied stack words.
    fn walk_slice(&mut self, segment: &Segment<'_>, fp: u64) -> StackEnd {
        let mut fp = fp;
        for _ in 0..MAX_SLICE_FRAMES {
            if fp == 0 {
                return StackEnd::Whole;
            }
            let (Some(next), Some(return_address)) =
                (word(segment, fp), word(segment, fp.wrapping_add(8)))
            else {
                return StackEnd::SliceTooShort;
            };
            if return_address == 0 {
                return StackEnd::Whole;
            }
            self.frames.push(return_address.wrapping_sub(1));
            fp = next;
        }
        StackEnd::DepthLimit
    }

    fn function(&self, address: u64) -> Option<GoFunction> {
        self.go(address, |binary, address| binary.function(address))
    }

    /// Asks the Go binary that holds `address`.
    fn go<T>(&self, address: u64, ask: impl Fn(&GoBinary, u64) -> Option<T>) -> Option<T> {
        let mapped = self.process.locate(address)?;
        let binary = mapped.object.as_ref()?.go()?;
        ask(binary, mapped.go_address(address)?)
    }
}

/// The stack word at `address`, if it was copied with the segment.
fn word(segment: &Segment<'_>, address: u64) -> Option<u64> {
    let offset = address.checked_sub(segment.sp)?;
    if offset % 8 != 0 {
        return None;
    }
    let index = usize::try_from(offset / 8).ok()?;
    segment.slice.get(index).copied()
}
