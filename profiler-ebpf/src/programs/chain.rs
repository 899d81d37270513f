//! Walks along the frame pointers of a user stack, and notes what on the way
//! asks for more: a callback from C into Go, a signal handler.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use profiler_ebpf::{
    walk::{Step, step},
    wire::{Code, GoLayout, MAX_CALLBACKS, MAX_USER_FRAMES, Segment, WalkEnd},
};

use super::{
    goroutine::{MAX_STACK_BYTES, outer_sp, own_stack_top},
    memory::{Stack, read_word},
    registers::UserRegisters,
    scratch::Scratch,
};

/// Steps that one call of [`walk_steps`] takes: calls cost as much as a step.
const STEPS: usize = 4;

/// More than lies above the stack pointer of a goroutine that has not called
/// anything: one that a thread of C lends its stack to (`runtime.oneNewExtraM`).
const LEAST_OUTER_BYTES: u64 = 64;

/// What the steps of a walk share. In the map and not on the stack, where the
/// verifier would know what each step wrote, and look at the next one anew for each
/// thing that it can be.
#[repr(C)]
pub struct Walk {
    /// What C calls Go through.
    callback: Code,
    cgocall_frame: u64,
    signal_handlers: Code,
    fp: u64,
    /// A [`WalkEnd`].
    end: u64,
    callbacks: Callbacks,
    signal_slot: u64,
}

/// The callbacks that a walk comes to.
#[repr(C)]
struct Callbacks {
    callback_delta: u64,
    /// The goroutine's.
    g: u64,
    /// Not zero to stay on its own stack where C called back.
    stays: u64,
    /// The first one's frame; 0 where there is none.
    fp: u64,
    passed: u64,
    into_c: IntoC,
}

/// A frame of `runtime.cgocallback` on the system stack, behind which C goes on
/// that called Go.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct IntoC {
    /// The frame; 0 where there is none.
    pub fp: u64,
    /// How many frames of the chain come before it.
    pub frames_before: u64,
    /// Where the system stack was entered: by the Go that called that C, or where
    /// the walk stays on the goroutine's stack, by the first of all. 0 where a
    /// thread of C called Go.
    pub top: u64,
}

/// A chain of frame pointers, and what of it asks for more.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walked {
    frames: u64,
    /// A [`WalkEnd`].
    end: u64,
    /// The frame that returns into `runtime.cgocallback`; 0 where there is none.
    pub callback_fp: u64,
    /// The frame behind it.
    pub into_c: IntoC,
    /// Where a signal handler's return address lies; 0 where there is none.
    pub signal_slot: u64,
}

/// Walks from the frame pointer of `registers` and appends the return
/// addresses; where C called back it goes on in C, or `stays` on the goroutine's
/// own stack. Gives the segment that begins with them.
#[inline(always)]
pub fn walk(
    scratch: &mut Scratch,
    layout: &GoLayout,
    registers: &UserRegisters,
    stays: bool,
) -> (Segment, Walked) {
    walk_chain(scratch, layout, registers.fp, stays as u64);
    let walked = scratch.state.walked;
    let segment = Segment {
        ip: registers.ip,
        sp: registers.sp,
        fp: registers.fp,
        lr: registers.lr,
        frames: walked.frames as u16,
        slice_words: 0,
        walk_end: walked.end as u8,
        reserved: 0,
        far_words: 0,
    };
    (segment, walked)
}

/// Walks from the frame pointer `fp`, appends the return addresses and leaves
/// what it found in `state.walked`.
///
/// By `bpf_loop` (Linux 5.17): the verifier looks at some steps, where it would
/// look at every step of a plain loop, and takes 0.2 s for that.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_chain(
    scratch: *mut Scratch,
    layout: *const GoLayout,
    fp: u64,
    stays: u64,
) -> u64 {
    // SAFETY: null, or what `walk` has.
    let (Some(scratch), Some(layout)) = (unsafe { (scratch.as_mut(), layout.as_ref()) }) else {
        return 0;
    };
    let before = scratch.used();
    // Of another stack, or of what this one was.
    scratch.block.clear();
    scratch.state.walk = Walk {
        callbacks: Callbacks {
            callback_delta: layout.callback_delta as u64,
            g: scratch.state.goroutine.g,
            stays,
            fp: 0,
            passed: 0,
            into_c: IntoC::default(),
        },
        callback: layout.callback,
        cgocall_frame: layout.cgocall_frame as u64,
        signal_handlers: layout.signal_handlers,
        fp,
        end: WalkEnd::DepthLimit as u64,
        signal_slot: 0,
    };
    const { assert!(MAX_USER_FRAMES.is_multiple_of(STEPS)) };
    let callback: extern "C" fn(u64, *mut *mut Scratch) -> i64 = walk_steps;
    let mut context = &raw mut *scratch;
    // SAFETY: the callback's context outlives the loop.
    unsafe {
        bpf_loop(
            (MAX_USER_FRAMES / STEPS) as u32,
            callback as *mut c_void,
            (&raw mut context).cast::<c_void>(),
            0,
        );
    }
    let walk = &scratch.state.walk;
    scratch.state.walked = Walked {
        frames: (scratch.used() - before) as u64,
        end: walk.end,
        callback_fp: walk.callbacks.fp,
        into_c: walk.callbacks.into_c,
        signal_slot: walk.signal_slot,
    };
    0
}

/// Takes steps; not zero to stop.
extern "C" fn walk_steps(index: u64, context: *mut *mut Scratch) -> i64 {
    // SAFETY: the loop passes the context that it was given, and the slot of
    // this CPU outlives it.
    let scratch = unsafe { &mut **context };
    // A word more for a callback in the last of them.
    let Some(room) = scratch.room(STEPS + 1) else {
        return 1;
    };
    // SAFETY: the block lies in the same slot; nobody else uses it meanwhile.
    let stack = unsafe { Stack::new(&raw mut scratch.block) };
    let walk = &mut scratch.state.walk;
    let mut fp = walk.fp;
    let mut taken = 0;
    let mut goes_on = 0;
    while taken < STEPS {
        match step(&stack, fp) {
            Step::End(end) => {
                walk.end = end as u64;
                break;
            }
            Step::Frame {
                return_address,
                next,
            } => {
                // SAFETY: there is room for all steps.
                unsafe { *room.add(taken) = return_address };
                taken += 1;
                if walk.callback.holds(return_address) {
                    let before = index * STEPS as u64 + taken as u64;
                    let sp = meet_callback(&raw mut walk.callbacks, fp, next, before);
                    if sp != 0 {
                        fp = sp.wrapping_add(walk.cgocall_frame);
                        if walk.cgocall_frame != 0 {
                            // SAFETY: there is room for a word more.
                            unsafe { *room.add(taken) = read_word(sp) };
                            taken += 1;
                        }
                        // No further step: the verifier would look at each from
                        // every place where this can happen.
                        goes_on = 1;
                        break;
                    }
                }
                if walk.signal_handlers.holds(return_address) && walk.signal_slot == 0 {
                    walk.signal_slot = next.wrapping_add(8);
                }
                fp = next;
            }
        }
    }
    walk.fp = fp;
    scratch.commit(taken);
    i64::from(taken < STEPS && goes_on == 0)
}

/// Notes the callback whose frame is `fp`, with the frame `next` on the system
/// stack. Where the walk is to stay on the goroutine's stack, says where its
/// outer part left that; else 0. A global function, as `walk_chain`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn meet_callback(
    callbacks: *mut Callbacks,
    fp: u64,
    next: u64,
    frames_before: u64,
) -> u64 {
    // SAFETY: null, or what `walk_steps` has.
    let Some(callbacks) = (unsafe { callbacks.as_mut() }) else {
        return 0;
    };
    let sp = outer_sp(callbacks.callback_delta, fp);
    let above = own_stack_top(callbacks.g).wrapping_sub(sp);
    let has_outer = above.wrapping_sub(LEAST_OUTER_BYTES) < MAX_STACK_BYTES;
    let (is_first, stays) = (callbacks.fp == 0, callbacks.stays != 0);
    if is_first {
        callbacks.fp = fp;
        callbacks.into_c.fp = next;
        callbacks.into_c.frames_before = frames_before;
    }
    if is_first || stays {
        // The bottom of the frame, where the runtime looks for it too.
        let slot = next.wrapping_add(8).wrapping_sub(callbacks.callback_delta);
        callbacks.into_c.top = if has_outer { read_word(slot) } else { 0 };
    }
    if !stays || !has_outer || callbacks.passed >= MAX_CALLBACKS as u64 {
        return 0;
    }
    callbacks.passed += 1;
    sp
}
