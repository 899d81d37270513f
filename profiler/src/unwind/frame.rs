//! What a walk works on: memory, a program's code, a frame; and where the
//! kernel keeps the registers of what a signal interrupted.

use profiler_ebpf::wire::signal_frame;

use super::StackEnd;
use crate::{
    decode::{FarSlice, Segment},
    process::code::{CodeOf, Site},
};

/// Words of a thread's stacks.
pub(super) trait Memory {
    /// The word at `address`, if it was recorded.
    fn word(&self, address: u64) -> Option<u64>;
}

/// What is known of a program's code.
pub(super) trait Program {
    /// What the code at `address` is; `None` where there is none.
    fn site(&mut self, address: u64) -> Option<Site>;
    /// Whether an instruction that calls ends right before `address`; `None`
    /// where that cannot be told.
    fn follows_call(&self, address: u64) -> Option<bool>;
}

impl Program for CodeOf<'_> {
    fn site(&mut self, address: u64) -> Option<Site> {
        self.at(address)
    }

    fn follows_call(&self, address: u64) -> Option<bool> {
        CodeOf::follows_call(self, address)
    }
}

impl Memory for Segment<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        within(self.sp, self.slice, address).or_else(|| self.far?.word(address))
    }
}

impl Memory for FarSlice<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        within(self.address, self.words, address)
    }
}

/// What was recorded of a thread's stacks: of the one that is walked, and of the
/// system stack for the C between the parts of a goroutine's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    pub segment: &'a Segment<'a>,
    pub system: Option<FarSlice<'a>>,
}

impl Memory for Words<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        let here = self.segment.word(address);
        here.or_else(|| self.system?.word(address))
    }
}

fn within(start: u64, words: &[u64], address: u64) -> Option<u64> {
    let offset = address
        .checked_sub(start)
        .filter(|offset| offset % 8 == 0)?;
    words.get(usize::try_from(offset / 8).ok()?).copied()
}

/// The frames of `cgocallback` on the system stack that a walk comes to, by the
/// stack pointer in them, innermost first.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Callbacks(Option<u64>);

impl Callbacks {
    /// From the one at which this slice of the system stack begins.
    pub fn from(system: FarSlice<'_>) -> Self {
        Self(Some(system.address))
    }

    /// The next one. At its bottom the runtime keeps where the system stack was
    /// entered before, which is where the one after is, higher up.
    pub fn take(&mut self, memory: &impl Memory) -> Option<u64> {
        let sp = self.0.take()?;
        self.0 = memory.word(sp).filter(|older| *older > sp);
        Some(sp)
    }
}

/// A frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// An address in it: the instruction about to be executed where `exact`,
    /// else the last byte of the call that it made.
    pub at: u64,
    /// It was interrupted there: its frame may not be set up.
    pub exact: bool,
    /// Its stack pointer.
    pub sp: Option<u64>,
    /// What the frame-pointer register held in it.
    pub fp: Option<u64>,
    /// That is this link of the chain: so many frames of it come before.
    pub link: Option<usize>,
    /// A function that keeps frame pointers was seen to have this chain.
    pub joined: bool,
    /// The link register, where it is known.
    pub lr: Option<u64>,
    /// A signal interrupted it, whose handler may be changing its registers.
    pub signalled: bool,
}

/// Where a walk came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// At the first frame of a goroutine or thread.
    Root,
    /// Where the thread went over from the goroutine's stack.
    Switch,
    /// Before that.
    Broken(StackEnd),
}

/// Where the kernel writes the registers of what a signal interrupted, in bytes
/// from the stack pointer with which its handler returns.
pub(super) struct SavedRegisters {
    pub ip: u64,
    pub sp: u64,
    pub fp: u64,
    pub lr: Option<u64>,
}

impl SavedRegisters {
    /// Behind the return address.
    pub const X86_64: Self = Self {
        ip: signal_frame::IP - 8,
        sp: signal_frame::SP - 8,
        fp: signal_frame::FP - 8,
        lr: None,
    };
    /// `struct rt_sigframe`, arch/arm64/kernel/signal.c, and `struct sigcontext`,
    /// arch/arm64/include/uapi/asm/sigcontext.h.
    pub const AARCH64: Self = Self {
        ip: 568,
        sp: 560,
        fp: 544,
        lr: Some(552),
    };
}
