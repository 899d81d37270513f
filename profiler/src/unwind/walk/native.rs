//! How a walk steps from C to its caller, from code that nothing is known of,
//! and from a signal handler to what it interrupted.

use profiler_ebpf::wire::WalkEnd;

use super::{
    super::{
        GAP, StackEnd,
        frame::{Frame, Memory, Program, SavedRegisters, Stop},
    },
    Walk,
};
use crate::process::code::{Base, ReturnAddress, Rule, SavedFp};

impl<P: Program, M: Memory> Walk<'_, P, M> {
    /// Steps from C by its call frame information.
    pub(super) fn step_native(&mut self, rule: &Rule) -> Result<(), Stop> {
        let frame = self.frame;
        if rule.return_address == ReturnAddress::Outermost {
            return Err(Stop::Root);
        }
        let keeps_fp = (rule.base, rule.offset, rule.fp, rule.return_address)
            == (Base::Fp, 16, SavedFp::At(-16), ReturnAddress::At(-8));
        if keeps_fp && (frame.link.is_some() || frame.fp.is_some()) {
            return self.along_native_chain();
        }
        let base = match rule.base {
            Base::Sp => frame.sp,
            Base::Fp => frame.fp,
        };
        let Some(caller) = base.map(|base| base.wrapping_add_signed(rule.offset)) else {
            return self.past_lost_native(rule, StackEnd::NoFramePointer);
        };
        let return_address = match rule.return_address {
            ReturnAddress::At(offset) => self.memory.word(caller.wrapping_add_signed(offset)),
            _ => frame.lr,
        };
        let Some(return_address) = return_address else {
            return self.past_lost_native(rule, StackEnd::SliceTooShort);
        };
        match rule.fp {
            SavedFp::Same => {}
            SavedFp::At(offset) => {
                let slot = caller.wrapping_add_signed(offset);
                let saved = self.memory.word(slot);
                if frame.fp == Some(slot) {
                    self.frame.link = frame.link.map(|link| link + 1);
                    self.frame.fp = saved;
                } else if saved != frame.fp || saved.is_none() {
                    self.set_fp(saved);
                }
            }
            SavedFp::Lost => self.set_fp(None),
        }
        self.frame.joined = false;
        self.frame.sp = Some(caller);
        match return_address {
            // What a thread's first function returns to.
            0 => Err(Stop::Root),
            address => self.go_to(address, false),
        }
    }

    /// As [`Walk::along_chain`] from C, where the chain may also end.
    fn along_native_chain(&mut self) -> Result<(), Stop> {
        self.frame.joined = false;
        self.along_chain(false).map_err(|stop| match stop {
            Stop::Broken(StackEnd::NoFramePointer) if self.segment.walk_end == WalkEnd::Root => {
                Stop::Root
            }
            stop => stop,
        })
    }

    /// The caller of a C function is lost. One that leaves the frame pointer
    /// alone does not break the chain.
    fn past_lost_native(&mut self, rule: &Rule, end: StackEnd) -> Result<(), Stop> {
        if rule.fp != SavedFp::Same || self.frame.link.is_none() {
            return Err(Stop::Broken(end));
        }
        self.frames.push(GAP);
        self.frame.joined = false;
        self.along_chain(false)
    }

    /// Steps from code that nothing is known of: by the frame pointer, if it
    /// has one.
    pub(super) fn step_unknown(&mut self) -> Result<(), Stop> {
        if self.frame.exact {
            // Its frame may not be set up, and then the chain lacks its caller.
            self.frames.push(GAP);
        }
        self.frame.joined = false;
        self.along_chain(false).map_err(|stop| match stop {
            Stop::Broken(StackEnd::NoFramePointer) => Stop::Broken(StackEnd::NoTable),
            stop => stop,
        })
    }

    /// Goes on with the instruction that a signal interrupted: the kernel wrote
    /// its registers above `sp`, the stack pointer with which the handler
    /// returns.
    pub(super) fn interrupted(&mut self, sp: Option<u64>) -> Result<(), Stop> {
        let frame = self.frame;
        let places = match self.segment.lr == 0 {
            true => SavedRegisters::X86_64,
            false => SavedRegisters::AARCH64,
        };
        let register = |offset| sp.and_then(|sp| self.memory.word(sp.wrapping_add(offset)));
        let (ip, fp, lr) = (
            register(places.ip),
            register(places.fp),
            places.lr.and_then(register),
        );
        let interrupted_sp = register(places.sp);
        let known = ip.filter(|ip| self.program.site(*ip).is_some());
        let Some(ip) = known else {
            // The handler leaves the frame-pointer register as it was, so that
            // the chain goes on with what was interrupted.
            self.frames.push(GAP);
            return self
                .along_chain(false)
                .map_err(|_| Stop::Broken(StackEnd::SwitchNotCrossed));
        };
        // The handler's first frame may have saved the register itself.
        let saved = frame.fp.and_then(|saved| self.memory.word(saved));
        let link = match fp {
            Some(_) if saved == fp => frame.link.map(|link| link + 1),
            Some(_) if frame.fp.is_some() && frame.fp != fp => None,
            _ => frame.link,
        };
        self.frame = Frame {
            at: ip,
            exact: true,
            sp: interrupted_sp,
            fp: fp.or(frame.fp),
            link,
            joined: false,
            lr,
            signalled: true,
        };
        Ok(())
    }
}
