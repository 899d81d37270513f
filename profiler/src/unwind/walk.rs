//! The walk along one stack: a frame stepped to its caller, over any memory
//! and any program. Joins the kernel side's chain of frame pointers where the
//! frame's own is the chain's; everything it reads may be a lie, so that each
//! loop is bounded and no address is followed that the memory does not hold.

use profiler_ebpf::wire::{MAX_USER_FRAMES, WalkEnd};

mod go;
mod native;

use super::{
    GAP, StackEnd,
    frame::{Callbacks, Frame, Memory, Program, Stop},
};
use crate::{
    decode::Segment,
    process::code::{Native, Site},
};

/// Most frames of one stack: what the kernel side walks on two stacks, and half
/// as many from words.
pub(super) const MAX_FRAMES: usize = MAX_USER_FRAMES * 5 / 2;

/// A walk under way.
pub(super) struct Walk<'a, P, M> {
    pub program: &'a mut P,
    pub memory: M,
    /// The registers and chain that it began with.
    pub segment: &'a Segment<'a>,
    /// The goroutine's own stack, where the thread left it.
    pub goroutine: Option<&'a Segment<'a>>,
    /// Those that it comes to.
    pub callbacks: Callbacks,
    /// Where it goes on behind the C that it is in: in the Go that called it.
    pub outer: Option<Frame>,
    pub frames: &'a mut Vec<u64>,
    /// Whether an address lay in no mapping.
    pub unmapped: bool,
    pub frame: Frame,
}

impl<P: Program, M: Memory> Walk<'_, P, M> {
    /// Walks to the end, and appends each frame.
    pub fn run(&mut self) -> Stop {
        let mut stop = self.until_stop(true);
        // Behind each callback there are frames, and they are bounded.
        while let Some(outer) = self.outer.take() {
            if stop != Stop::Switch {
                self.frames.push(GAP);
            }
            self.frame = outer;
            stop = self.until_stop(false);
        }
        stop
    }

    fn until_stop(&mut self, mut first: bool) -> Stop {
        while self.frames.len() < MAX_FRAMES {
            let site = self.program.site(self.frame.at);
            self.unmapped |= site.is_none();
            let site = match site {
                Some(site) => site,
                // The interrupted instruction itself is one, whatever it is in.
                None if first => Site::Unknown,
                None => return Stop::Broken(StackEnd::UnknownCode),
            };
            self.meet_chain();
            let step = match site {
                Site::Go(go) => match self.enter_go(&go, first) {
                    Some(stop) => return stop,
                    None => self.step_go(&go),
                },
                Site::Native(Native::Rule(rule)) => {
                    self.frames.push(self.frame.at);
                    self.step_native(&rule)
                }
                Site::Native(Native::SignalReturn) => {
                    // What a handler returns to has called nothing.
                    if self.frame.exact {
                        self.frames.push(self.frame.at);
                    }
                    self.interrupted(self.frame.sp)
                }
                Site::Unknown => {
                    self.frames.push(self.frame.at);
                    self.step_unknown()
                }
            };
            if let Err(stop) = step {
                return stop;
            }
            first = false;
        }
        Stop::Broken(StackEnd::DepthLimit)
    }

    /// Where the far slice begins, the chain's frame pointer is known again.
    fn meet_chain(&mut self) {
        if let (Some(far), Some(link)) = (self.segment.far, self.frame.link)
            && far.frames_before == link as u64
        {
            self.frame.fp = Some(far.address);
        }
    }

    /// Sets the frame pointer to a value read from memory.
    fn set_fp(&mut self, fp: Option<u64>) {
        self.frame.link = (fp == Some(self.segment.fp)).then_some(0);
        self.frame.fp = fp;
        self.frame.joined = false;
    }

    /// Goes to the caller that the frame pointer shows.
    fn along_chain(&mut self, injected: bool) -> Result<(), Stop> {
        let frame = self.frame;
        let return_address = match (frame.link, frame.fp) {
            (Some(link), _) => match self.segment.callers.get(link) {
                Some(address) => *address,
                None => return Err(self.chain_end()),
            },
            (None, Some(0)) => return Err(Stop::Broken(StackEnd::NoFramePointer)),
            (None, Some(fp)) => self
                .memory
                .word(fp.wrapping_add(8))
                .ok_or(Stop::Broken(StackEnd::SliceTooShort))?,
            (None, None) => return Err(Stop::Broken(StackEnd::NoFramePointer)),
        };
        self.frame.sp = frame.fp.map(|fp| fp.wrapping_add(16));
        self.frame.fp = frame.fp.and_then(|fp| self.memory.word(fp));
        self.frame.link = match (frame.link, self.frame.fp) {
            (Some(link), _) => Some(link + 1),
            (None, Some(fp)) if fp == self.segment.fp => Some(0),
            (None, _) => None,
        };
        self.go_to(return_address, injected)
    }

    /// Why there is no further frame in the chain.
    fn chain_end(&self) -> Stop {
        Stop::Broken(match self.segment.walk_end {
            // Go's stacks begin in functions that are known for it.
            WalkEnd::Root | WalkEnd::Malformed => StackEnd::NoFramePointer,
            WalkEnd::DepthLimit => StackEnd::DepthLimit,
            WalkEnd::Unreadable => StackEnd::Unreadable,
            WalkEnd::NoRegisters => StackEnd::NoRegisters,
        })
    }

    /// Makes the frame that `return_address` leads to the present one. What an
    /// injected call returns to was never a call, but is interrupted there.
    fn go_to(&mut self, return_address: u64, injected: bool) -> Result<(), Stop> {
        if return_address == 0 {
            return Err(Stop::Broken(StackEnd::NoFramePointer));
        }
        self.frame.at = return_address.wrapping_sub(u64::from(!injected));
        self.frame.exact = injected;
        self.frame.signalled = false;
        self.frame.lr = None;
        Ok(())
    }
}
