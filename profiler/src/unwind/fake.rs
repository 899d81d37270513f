//! A made-up program to walk through in tests, and stacks of it.

use std::collections::BTreeMap;

use profiler_ebpf::wire::WalkEnd;

use super::frame::Program;
use crate::{
    decode::Segment,
    gobinary::FuncKind,
    process::code::{Base, GoFrameShape, GoSite, Native, ReturnAddress, Rule, SavedFp, Site},
};

/// Functions by where they begin; each is 0x100 long.
#[derive(Clone, Default)]
pub(super) struct Fake {
    pub functions: BTreeMap<u64, Site>,
    /// Return addresses that follow no call.
    pub no_call: Vec<u64>,
}

pub(super) const FUNCTION: u64 = 0x100;

impl Program for Fake {
    fn site(&mut self, address: u64) -> Option<Site> {
        let (start, site) = self.functions.range(..=address).next_back()?;
        let inside = address - start;
        (inside < FUNCTION).then_some(match *site {
            Site::Go(go) => Site::Go(GoSite {
                at_entry: inside == 0,
                // The first instruction makes the frame.
                frame: match go.frame {
                    Some(GoFrameShape::OnStack { .. }) if inside == 0 => shape(0),
                    frame => frame,
                },
                ..go
            }),
            site => site,
        })
    }

    fn follows_call(&self, address: u64) -> Option<bool> {
        Some(!self.no_call.contains(&address))
    }
}

pub(super) fn shape(slot: u32) -> Option<GoFrameShape> {
    Some(GoFrameShape::OnStack {
        slot,
        caller: slot + 8,
    })
}

pub(super) fn go(slot: u32) -> GoSite {
    GoSite {
        kind: FuncKind::Normal,
        top_frame: false,
        signal_handler: false,
        sp_write: false,
        asm: false,
        at_entry: false,
        signal_return: false,
        frame: shape(slot),
    }
}

pub(super) fn kind(kind: FuncKind, slot: u32) -> GoSite {
    GoSite {
        kind,
        asm: true,
        ..go(slot)
    }
}

/// C with a frame of so many bytes above the stack pointer, its caller's frame
/// pointer in its register or saved.
pub(super) fn c(bytes: i64, fp: SavedFp) -> Site {
    Site::Native(Native::Rule(Rule {
        base: Base::Sp,
        offset: bytes,
        fp,
        return_address: ReturnAddress::At(-8),
    }))
}

pub(super) const C_FRAMED: Site = Site::Native(Native::Rule(Rule {
    base: Base::Fp,
    offset: 16,
    fp: SavedFp::At(-16),
    return_address: ReturnAddress::At(-8),
}));

pub(super) const LEAF: u64 = 0x1000;
pub(super) const ASM: u64 = 0x1200;
pub(super) const CALLER: u64 = 0x1400;
pub(super) const MAIN: u64 = 0x1600;
pub(super) const GOEXIT: u64 = 0x1800;
pub(super) const SWITCH: u64 = 0x1a00;
pub(super) const ASMCGOCALL: u64 = 0x1c00;
pub(super) const CALLBACK: u64 = 0x1e00;
pub(super) const CROSSCALL: u64 = 0x2000;
pub(super) const SIGTRAMP: u64 = 0x2200;
pub(super) const NEW_STACK: u64 = 0x2400;
pub(super) const C_INNER: u64 = 0x8000;
pub(super) const C_OUTER: u64 = 0x8200;
pub(super) const C_FP: u64 = 0x8400;
pub(super) const BARE: u64 = 0x9000;

pub(super) fn program() -> Fake {
    let asm = |slot| GoSite {
        asm: true,
        ..go(slot)
    };
    Fake {
        functions: BTreeMap::from([
            (LEAF, Site::Go(go(0))),
            (ASM, Site::Go(asm(0x18))),
            (CALLER, Site::Go(go(0x18))),
            (MAIN, Site::Go(go(0x8))),
            (
                GOEXIT,
                Site::Go(GoSite {
                    top_frame: true,
                    ..kind(FuncKind::Goexit, 0)
                }),
            ),
            (SWITCH, Site::Go(kind(FuncKind::SystemstackSwitch, 8))),
            (
                ASMCGOCALL,
                Site::Go(GoSite {
                    sp_write: true,
                    ..kind(FuncKind::Asmcgocall, 8)
                }),
            ),
            (
                CALLBACK,
                Site::Go(GoSite {
                    sp_write: true,
                    ..kind(FuncKind::Cgocallback, 0x20)
                }),
            ),
            (CROSSCALL, Site::Go(asm(0x10))),
            (
                SIGTRAMP,
                Site::Go(GoSite {
                    top_frame: true,
                    signal_handler: true,
                    ..asm(0x10)
                }),
            ),
            (
                NEW_STACK,
                Site::Go(GoSite {
                    sp_write: true,
                    ..asm(0x10)
                }),
            ),
            (C_INNER, c(0x18, SavedFp::At(-16))),
            (C_OUTER, c(0x10, SavedFp::Same)),
            (C_FP, C_FRAMED),
            (BARE, Site::Unknown),
        ]),
        no_call: Vec::new(),
    }
}

/// A call in a function: where it returns to.
pub(super) const fn ret(function: u64) -> u64 {
    function + 0x40
}

/// The frame of such a call.
pub(super) const fn call(function: u64) -> u64 {
    ret(function) - 1
}

pub(super) const SP: u64 = 0x7000_0000;

/// The words are left in memory: it is a test.
pub(super) fn segment(ip: u64, fp: u64, callers: &[u64], slice: &[u64]) -> Segment<'static> {
    Segment {
        ip,
        sp: SP,
        fp,
        lr: 0,
        walk_end: WalkEnd::Root,
        callers: callers.to_vec().leak(),
        slice: slice.to_vec().leak(),
        far: None,
    }
}

/// The goroutine's part of a call into C: what the runtime saved, and the
/// frames from there.
pub(super) fn outer(callers: &[u64], slice: &[u64]) -> Segment<'static> {
    Segment {
        sp: 0x5000_0000,
        ..segment(ret(SWITCH), 0x5000_0000, callers, slice)
    }
}
