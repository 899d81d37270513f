//! The walk along one stack: a frame stepped to its caller, over any memory
//! and any program. Joins the kernel side's chain of frame pointers where the
//! frame's own is the chain's; everything it reads may be a lie, so that each
//! loop is bounded and no address is followed that the memory does not hold.

use profiler_ebpf::wire::{FRAME_SOUND_BYTES, MAX_USER_FRAMES, WalkEnd};

use super::{
    GAP, StackEnd,
    frame::{Frame, Memory, Program, SavedRegisters, Stop},
};
use crate::{
    decode::Segment,
    gobinary::FuncKind,
    process::code::{Base, GoFrameShape, GoSite, Native, ReturnAddress, Rule, SavedFp, Site},
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
    pub frames: &'a mut Vec<u64>,
    /// Whether an address lay in no mapping.
    pub unmapped: bool,
    pub frame: Frame,
}

impl<P: Program, M: Memory> Walk<'_, P, M> {
    /// Walks to the end, and appends each frame.
    pub fn run(&mut self) -> Stop {
        let mut first = true;
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

    /// Appends a Go frame, if Go's own profiles show it; says where the stack
    /// ends at it.
    fn enter_go(&mut self, go: &GoSite, first: bool) -> Option<Stop> {
        let left = self.goroutine.is_some();
        match go.kind {
            // Left out, as in Go's own profiles.
            FuncKind::Goexit if !self.frames.is_empty() => return Some(Stop::Root),
            // It stands in for `systemstack` and `asmcgocall`, which are on the
            // stack themselves.
            FuncKind::SystemstackSwitch if first && !self.frame.exact => return None,
            // Left out, as in Go's own profiles: it does not return.
            FuncKind::Morestack if !first && left => return Some(Stop::Switch),
            _ => self.frames.push(self.frame.at),
        }
        match go.kind {
            // The goroutine does not come back here: what the chain goes on to
            // is whatever ran before on this thread.
            FuncKind::Goexit | FuncKind::Mcall => Some(Stop::Root),
            // The scheduler runs: the goroutine was given up.
            FuncKind::Morestack if !first => Some(Stop::Root),
            FuncKind::Systemstack | FuncKind::Asmcgocall if !first && self.switches_here() => {
                Some(Stop::Switch)
            }
            _ if go.top_frame && !go.signal_handler => Some(Stop::Root),
            _ => None,
        }
    }

    /// Whether this frame, of `systemstack` or `asmcgocall`, is where the
    /// goroutine's stack was left. Both also call on where they are when that
    /// is the system stack already, and a signal may come in between.
    fn switches_here(&self) -> bool {
        let Some(goroutine) = self.goroutine else {
            return false;
        };
        // Both saved both pointers; since Go 1.21 they have frame pointers of
        // their own, and the two are the same.
        // On arm64, the one with a link register, the frame pointer is the
        // system stack's from here on.
        let caller = self
            .frame
            .link
            .and_then(|link| self.segment.callers.get(link));
        match (self.frame.fp, caller, goroutine.callers.first()) {
            _ if self.segment.lr != 0 => true,
            (Some(fp), ..) if fp == goroutine.sp || fp == goroutine.fp => true,
            // Where they called on, their callers are on the same stack.
            (Some(fp), ..) => {
                let sp = self.frame.sp.unwrap_or_default();
                fp.wrapping_sub(sp) >= FRAME_SOUND_BYTES
            }
            (None, Some(caller), Some(outer)) => caller == outer,
            _ => true,
        }
    }

    /// Steps from a Go function to its caller.
    fn step_go(&mut self, go: &GoSite) -> Result<(), Stop> {
        let frame = self.frame;
        if go.signal_return && frame.exact {
            return self.interrupted(frame.sp);
        }
        if go.signal_handler {
            let above = self.slot(go).map(|(slot, _)| slot.wrapping_add(8));
            return self.interrupted(above);
        }
        let injected = go.kind.is_injected();
        // The chain led here, and a compiled function keeps it.
        let led = frame.joined || frame.fp.is_none() && frame.link.is_some();
        if led && !go.asm && !frame.exact {
            self.frame.joined = true;
            return self.along_chain(injected);
        }
        // Up to the call it is an ordinary frame on the goroutine's stack, from
        // there on the chain leads over the system stack.
        if go.kind == FuncKind::Cgocallback && !frame.exact {
            return self.through_callback(go);
        }
        if go.sp_write && !(frame.exact && go.at_entry) {
            return self.past_new_stack(go);
        }
        let Some((slot, caller)) = self.slot(go) else {
            return self.past_unknown_slot(go, injected);
        };
        if frame.fp.map(|fp| fp.wrapping_add(8)) == Some(slot) {
            self.frame.joined = !go.asm || frame.joined;
            return self.along_chain(injected);
        }
        let Some(return_address) = self.memory.word(slot) else {
            return self.past_missing_slot(go);
        };
        // To preempt a goroutine the handler pushes an address and then goes
        // elsewhere: in between, what is on top is no return address.
        if frame.signalled && !injected && !self.returns_to(return_address) {
            return self.past_missing_slot(go);
        }
        self.own_frame(go, slot, caller, return_address);
        self.go_to(return_address, injected)
    }

    /// Whether `address` may be one that something returns to.
    fn returns_to(&mut self, address: u64) -> bool {
        let before = self.program.site(address.wrapping_sub(1));
        matches!(before, Some(Site::Go(go)) if go.kind == FuncKind::Goexit)
            || self.program.follows_call(address) != Some(false)
    }

    /// Where the return address of a Go function lies, and its caller's stack
    /// pointer.
    fn slot(&self, go: &GoSite) -> Option<(u64, u64)> {
        match go.frame? {
            GoFrameShape::OnStack { slot, caller } => {
                let sp = self.frame.sp?;
                let caller = sp.wrapping_add(u64::from(caller));
                Some((sp.wrapping_add(u64::from(slot)), caller))
            }
            GoFrameShape::InRegister => None,
        }
    }

    /// Sets the registers of the caller of a Go function whose return address
    /// was read at `slot`: the frame pointer does not show where that is.
    fn own_frame(&mut self, go: &GoSite, slot: u64, caller: u64, return_address: u64) {
        let frame = self.frame;
        let saved = self.memory.word(slot.wrapping_sub(8));
        self.frame.sp = Some(caller);
        self.frame.joined = false;
        let size = slot.wrapping_sub(frame.sp.unwrap_or(slot));
        if size < 8 || saved.is_some() && saved == frame.fp {
            // Not pushed yet, popped already, or not written over yet.
            return;
        }
        if !go.asm && frame.exact {
            // The compiler uses the register for nothing else.
            return;
        }
        if !go.asm {
            // Its frame is set up, so that the caller's is the word below; the
            // register holds something else since further in.
            self.set_fp(saved);
            return;
        }
        // Assembly: the register holds the caller's or anything. The caller's
        // own table says which of the two can be.
        let own = self
            .program
            .site(return_address.wrapping_sub(1))
            .and_then(|site| match site {
                Site::Go(GoSite {
                    asm: false,
                    frame: Some(GoFrameShape::OnStack { slot, .. }),
                    ..
                }) => Some(caller.wrapping_add(u64::from(slot)).wrapping_sub(8)),
                _ => None,
            });
        match own {
            Some(own) if frame.fp == Some(own) => {}
            Some(own) => self.set_fp(Some(own)),
            None if size >= 8 => self.set_fp(saved),
            None => {}
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

    /// `cgocallback` has two frames of one size: its own on the system stack,
    /// which the chain goes through, and one that it made on the goroutine's,
    /// whose return address is where the goroutine had left it.
    fn through_callback(&mut self, go: &GoSite) -> Result<(), Stop> {
        let outer = self.slot(go);
        let step = self.along_chain(false);
        match (step, outer) {
            (Err(_), Some((slot, caller))) if self.goroutine.is_none() => {
                let return_address = self
                    .memory
                    .word(slot)
                    .ok_or(Stop::Broken(StackEnd::SliceTooShort))?;
                self.frames.push(GAP);
                self.frame.sp = Some(caller);
                self.set_fp(Some(caller));
                self.go_to(return_address, false)
            }
            (step, _) => step,
        }
    }

    /// A function that writes the stack pointer goes over to another stack, and
    /// its table does not say where in it. Its frame pointer stays; before it
    /// has one, the return address lies where the table says. That word must
    /// follow a call, and the one below be what was just pushed.
    fn past_new_stack(&mut self, go: &GoSite) -> Result<(), Stop> {
        let frame = self.frame;
        let Some((slot, caller)) = self.slot(go).filter(|_| frame.exact) else {
            return self.past_assembly(go, false);
        };
        let pushed = Some(slot) == frame.sp
            || frame.fp.is_some() && self.memory.word(slot.wrapping_sub(8)) == frame.fp;
        let read = self.memory.word(slot).filter(|address| {
            pushed && frame.fp != Some(0) && self.program.follows_call(*address) == Some(true)
        });
        match read {
            Some(return_address) => {
                self.frame.sp = Some(caller);
                self.go_to(return_address, false)
            }
            None => self.along_chain(false),
        }
    }

    /// A Go function's return address lies at an unknown place.
    fn past_unknown_slot(&mut self, go: &GoSite, injected: bool) -> Result<(), Stop> {
        match (go.frame, self.frame.lr) {
            (Some(GoFrameShape::InRegister), Some(lr)) => self.go_to(lr, injected),
            _ => self.past_assembly(go, injected),
        }
    }

    /// Goes along the chain from a function whose return address is nowhere
    /// else to be had. Where assembly has no frame that it could keep the frame
    /// pointer in, as `systemstack` up to Go 1.20, the chain lacks its caller.
    fn past_assembly(&mut self, go: &GoSite, injected: bool) -> Result<(), Stop> {
        let frameless = matches!(go.frame, Some(GoFrameShape::OnStack { slot: 0, caller: 8 }));
        if go.asm && frameless && !self.frame.exact {
            self.frames.push(GAP);
        }
        self.along_chain(injected)
    }

    /// A Go function's return address was not recorded, and the frame pointer
    /// is not its own: a frame is lost.
    fn past_missing_slot(&mut self, go: &GoSite) -> Result<(), Stop> {
        let frame = self.frame;
        // Assembly deep in the stack, of which nothing is known but the chain.
        let trusted = go.asm && !frame.exact && frame.joined && frame.fp.is_none();
        if trusted || frame.fp.is_none() && frame.link.is_some() {
            return self.along_chain(false);
        }
        if !frame.exact || frame.link.is_none() {
            return Err(Stop::Broken(StackEnd::SliceTooShort));
        }
        self.frames.push(GAP);
        self.along_chain(false)
    }

    /// Steps from C by its call frame information.
    fn step_native(&mut self, rule: &Rule) -> Result<(), Stop> {
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
    fn step_unknown(&mut self) -> Result<(), Stop> {
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
    fn interrupted(&mut self, sp: Option<u64>) -> Result<(), Stop> {
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
