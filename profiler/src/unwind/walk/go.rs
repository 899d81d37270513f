//! How a walk steps from a Go function to its caller, and where it leaves a
//! goroutine's stack. Goes by what the function's own table says, and by the
//! chain where the two agree.

use profiler_ebpf::wire::FRAME_SOUND_BYTES;

use super::{
    super::{
        GAP, StackEnd,
        frame::{Frame, Memory, Program, Stop},
    },
    Walk,
};
use crate::{
    gobinary::FuncKind,
    process::code::{GoFrameShape, GoSite, Site},
};

impl<P: Program, M: Memory> Walk<'_, P, M> {
    /// Appends a Go frame, if Go's own profiles show it; says where the stack
    /// ends at it.
    pub(super) fn enter_go(&mut self, go: &GoSite, first: bool) -> Option<Stop> {
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
            // No Go is between the C that called back and the Go that called it.
            FuncKind::Asmcgocall if self.outer.is_some() => Some(Stop::Switch),
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
    pub(super) fn step_go(&mut self, go: &GoSite) -> Result<(), Stop> {
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
            return self.along_own(go, injected);
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
            return self.along_own(go, injected);
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
        self.go_to(return_address, injected)?;
        self.take_back_link(go);
        Ok(())
    }

    /// Goes along the chain from a function whose frame pointer is its own.
    fn along_own(&mut self, go: &GoSite, injected: bool) -> Result<(), Stop> {
        let fp = self.frame.fp;
        self.along_chain(injected)?;
        if let Some(GoFrameShape::OnStack { caller, .. }) =
            go.frame.filter(|f| f.has_link_register())
        {
            self.frame.sp = fp.map(|fp| fp.wrapping_add(8 + u64::from(caller)));
        }
        self.take_back_link(go);
        Ok(())
    }

    /// On arm64 the handler that injects a call, whose caller may have its return
    /// address in the link register alone, puts that on the stack (`pushCall` and
    /// `preparePanic`, runtime/signal_arm64.go, all versions).
    fn take_back_link(&mut self, go: &GoSite) {
        if go.kind.is_injected() && go.frame.is_some_and(GoFrameShape::has_link_register) {
            let sp = self.frame.sp;
            self.frame.lr = sp.and_then(|sp| self.memory.word(sp));
            self.frame.sp = sp.map(|sp| sp.wrapping_add(16));
        }
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

    /// `cgocallback` has two frames of one size: its own on the system stack,
    /// which a thread's chain goes through, and one that it made on the
    /// goroutine's, whose return address is where the goroutine had left it, and
    /// where a goroutine's chain goes on.
    fn through_callback(&mut self, go: &GoSite) -> Result<(), Stop> {
        let link = self.frame.link;
        let next = link.and_then(|link| self.segment.callers.get(link).copied());
        let has_outer = next.is_some() || self.goroutine.is_some();
        if let Some(fp) = self.callback_frame(go)
            && let Some(return_address) = self.memory.word(fp.wrapping_add(8))
            && has_outer
        {
            if next == Some(return_address) {
                self.frame.fp = Some(fp);
                return self.along_chain(false);
            }
            self.outer = link.zip(next).map(|(link, next)| Frame {
                at: next.wrapping_sub(1),
                exact: false,
                sp: None,
                fp: None,
                link: Some(link + 1),
                joined: false,
                lr: None,
                signalled: false,
            });
            self.frame.sp = Some(fp.wrapping_add(16));
            self.set_fp(self.memory.word(fp));
            return self.go_to(return_address, false);
        }
        let before = next.and_then(|next| self.program.site(next.wrapping_sub(1)));
        if matches!(before, Some(Site::Go(before)) if !before.asm) {
            // It was not `crosscall2` that called it: the C is missing.
            self.frames.push(GAP);
        }
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

    /// The frame pointer of the callback's frame on the system stack.
    fn callback_frame(&mut self, go: &GoSite) -> Option<u64> {
        let GoFrameShape::OnStack { slot, .. } = go.frame? else {
            return None;
        };
        let sp = self.callbacks.take(&self.memory)?;
        Some(sp.wrapping_add(u64::from(slot)).wrapping_sub(8))
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
            (Some(GoFrameShape::InRegister), Some(lr)) => {
                self.go_to(lr, injected)?;
                self.take_back_link(go);
                Ok(())
            }
            (Some(GoFrameShape::InRegister), None) if self.frame.exact => {
                self.frames.push(GAP);
                self.along_chain(injected)
            }
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
}
