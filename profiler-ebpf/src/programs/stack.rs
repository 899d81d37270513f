//! Takes a segment of a user stack: the chain of frame pointers, and the words
//! above the stack pointer.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use profiler_ebpf::{
    walk::{Step, step},
    wire::{
        Code, FAR_HEAD_WORDS, FRAME_SOUND_BYTES, GoLayout, MAX_PAYLOAD_WORDS, MAX_USER_FRAMES,
        NO_FRAME, RESERVED_WORDS, SLICE_CHUNK_WORDS, SLICE_WORDS_CLOBBERED, SLICE_WORDS_LEFT,
        SLICE_WORDS_SOUND, Segment, WalkEnd, signal_frame,
    },
};

use super::{
    memory::{Stack, read_word},
    registers::UserRegisters,
    scratch::Scratch,
};

/// More than the frame of the runtime's signal handlers.
const SIGNAL_HANDLER_FRAME_BYTES: u64 = 256;

/// Steps that one call of [`walk_steps`] takes: calls cost as much as a step.
const STEPS: usize = 4;

/// What the steps of a walk share.
struct Walk {
    scratch: *mut Scratch,
    /// What C calls Go through.
    callback: Code,
    signal_handlers: Code,
    fp: u64,
    end: WalkEnd,
    callback_fp: u64,
    far_fp: u64,
    far_index: u64,
    signal_slot: u64,
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
    /// The frame behind it, on the system stack, where C goes on.
    far_fp: u64,
    /// How many frames come before that one.
    far_index: u64,
    /// Where a signal handler's return address lies; 0 where there is none.
    signal_slot: u64,
}

/// Walks from the frame pointer of `registers` and appends the return
/// addresses. Gives the segment that begins with them.
#[inline(always)]
pub fn walk(
    scratch: &mut Scratch,
    layout: &GoLayout,
    registers: &UserRegisters,
) -> (Segment, Walked) {
    walk_chain(scratch, layout, registers.fp);
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
extern "C" fn walk_chain(scratch: *mut Scratch, layout: *const GoLayout, fp: u64) -> u64 {
    // SAFETY: null, or what `walk` has.
    let (Some(scratch), Some(layout)) = (unsafe { (scratch.as_mut(), layout.as_ref()) }) else {
        return 0;
    };
    let before = scratch.used();
    // Of another stack, or of what this one was.
    scratch.block.clear();
    let mut walk = Walk {
        scratch,
        callback: layout.callback,
        signal_handlers: layout.signal_handlers,
        fp,
        end: WalkEnd::DepthLimit,
        callback_fp: 0,
        far_fp: 0,
        far_index: 0,
        signal_slot: 0,
    };
    const { assert!(MAX_USER_FRAMES.is_multiple_of(STEPS)) };
    let callback: extern "C" fn(u64, *mut Walk) -> i64 = walk_steps;
    // SAFETY: the callback's context outlives the loop.
    unsafe {
        bpf_loop(
            (MAX_USER_FRAMES / STEPS) as u32,
            callback as *mut c_void,
            (&raw mut walk).cast::<c_void>(),
            0,
        );
    }
    scratch.state.walked = Walked {
        frames: (scratch.used() - before) as u64,
        end: walk.end as u64,
        callback_fp: walk.callback_fp,
        far_fp: walk.far_fp,
        far_index: walk.far_index,
        signal_slot: walk.signal_slot,
    };
    0
}

/// Takes steps; not zero to stop.
extern "C" fn walk_steps(index: u64, walk: *mut Walk) -> i64 {
    // SAFETY: the loop passes the context that it was given, and the slot of
    // this CPU outlives it.
    let (walk, scratch) = unsafe { (&mut *walk, &mut *(*walk).scratch) };
    let Some(room) = scratch.room(STEPS) else {
        return 1;
    };
    // SAFETY: the block lies in the same slot; nobody else uses it meanwhile.
    let stack = unsafe { Stack::new(&raw mut scratch.block) };
    let mut fp = walk.fp;
    let mut taken = 0;
    while taken < STEPS {
        match step(&stack, fp) {
            Step::End(end) => {
                walk.end = end;
                break;
            }
            Step::Frame {
                return_address,
                next,
            } => {
                // SAFETY: there is room for all steps.
                unsafe { *room.add(taken) = return_address };
                taken += 1;
                if walk.callback.holds(return_address) && walk.callback_fp == 0 {
                    walk.callback_fp = fp;
                    walk.far_fp = next;
                    walk.far_index = index * STEPS as u64 + taken as u64;
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
    i64::from(taken < STEPS)
}

/// How many words above the stack pointer are wanted.
#[derive(Clone, Copy)]
pub enum Depth {
    /// Up to the frame, where the frame pointer looks sound.
    Frame,
    /// The same, and at least some frames.
    Frames,
    /// All there are.
    All,
}

/// Appends the words above the stack pointer and says how many: where something
/// else than a frame pointer may be in its register or `depth` asks for all, up
/// to `top()` (or many, where that is not near).
#[inline(always)]
pub fn copy_slice(
    scratch: &mut Scratch,
    registers: &UserRegisters,
    depth: Depth,
    top: impl FnOnce() -> u64,
) -> u16 {
    // Up to Go 1.20 the callers of `duffzero` make its frame below the stack.
    let below = registers.fp == registers.sp.wrapping_sub(8);
    let frame_bytes = match below {
        true => 0,
        false => registers.fp.wrapping_sub(registers.sp),
    };
    if frame_bytes < FRAME_SOUND_BYTES && !matches!(depth, Depth::All) {
        // Up to the frame's own two words, and one for the write barriers of
        // up to Go 1.20, which call on without a frame.
        let words = (frame_bytes as usize / 8 + 3).min(SLICE_WORDS_SOUND);
        let more = match depth {
            Depth::Frames => words.max(SLICE_WORDS_LEFT),
            _ => words,
        };
        let before = scratch.used();
        if !scratch.copy_user(registers.sp, more) && more != words {
            // What lies above the stack need not be resident.
            scratch.copy_user(registers.sp, words);
        }
        return (scratch.used() - before) as u16;
    }
    copy_up_to(scratch, registers.sp, top()) as u16
}

/// Where the return address of a signal handler lies that the thread is in;
/// 0 where it is in none, or none that is known.
#[inline(always)]
pub fn signal_slot(
    layout: &GoLayout,
    registers: &UserRegisters,
    walked: &Walked,
    in_go: bool,
) -> u64 {
    let handlers = &layout.signal_handlers;
    if handlers.len == 0 {
        return 0;
    }
    if handlers.holds(registers.ip) {
        // Before the frame is set up, as where the kernel leaves the thread.
        let own = registers.fp.wrapping_sub(registers.sp) < SIGNAL_HANDLER_FRAME_BYTES;
        return if own {
            registers.fp.wrapping_add(8)
        } else {
            registers.sp
        };
    }
    let behind = registers.ip.wrapping_sub(signal_frame::RETURN_BYTES);
    let after = registers
        .ip
        .wrapping_sub(handlers.start.wrapping_add(handlers.len));
    if (!in_go || after <= signal_frame::RETURN_BYTES)
        && (read_word(behind) == signal_frame::RETURN_CODE
            || read_word(registers.ip) == signal_frame::RETURN_CODE)
    {
        return registers.sp.wrapping_sub(8);
    }
    walked.signal_slot
}

/// The registers that a signal interrupted; the handler's return address lies
/// at `slot`.
#[inline(always)]
pub fn interrupted(slot: u64) -> UserRegisters {
    UserRegisters {
        ip: read_word(slot.wrapping_add(signal_frame::IP)),
        sp: read_word(slot.wrapping_add(signal_frame::SP)),
        fp: read_word(slot.wrapping_add(signal_frame::FP)),
        ..UserRegisters::default()
    }
}

/// Appends, as a far slice, the words above the stack pointer that a signal
/// interrupted; as [`copy_slice`]. Says how many words.
#[inline(always)]
pub fn copy_interrupted(
    scratch: &mut Scratch,
    registers: &UserRegisters,
    depth: Depth,
    top: u64,
) -> u16 {
    far(scratch, registers.sp, NO_FRAME, |scratch| {
        copy_slice(scratch, registers, depth, || top)
    })
}

/// Appends, as a far slice, the words from the frame at which C called back
/// into Go. It ends where the system stack was entered before, which
/// cgocallback keeps at the bottom of that frame. Says how many words.
#[inline(always)]
pub fn copy_callback(scratch: &mut Scratch, layout: &GoLayout, walked: &Walked) -> u16 {
    if walked.far_fp == 0 {
        return 0;
    }
    let slot = walked.far_fp.wrapping_add(8);
    let top = read_word(slot.wrapping_sub(layout.callback_delta as u64));
    far(scratch, walked.far_fp, walked.far_index, |scratch| {
        copy_up_to(scratch, walked.far_fp, top) as u16
    })
}

/// Appends a far slice: its head, and the words that `copy` appends.
#[inline(always)]
fn far(
    scratch: &mut Scratch,
    address: u64,
    frames_before: u64,
    copy: impl FnOnce(&mut Scratch) -> u16,
) -> u16 {
    let before = scratch.used();
    if before > MAX_PAYLOAD_WORDS - RESERVED_WORDS
        || !scratch.push(address)
        || !scratch.push(frames_before)
    {
        return 0;
    }
    match copy(scratch) {
        0 => {
            scratch.rewind(before);
            0
        }
        words => words + FAR_HEAD_WORDS as u16,
    }
}

/// What the steps of a copy share.
struct Copy {
    scratch: *mut Scratch,
    address: u64,
    /// Words still to copy.
    left: u64,
}

/// Appends the words from `address` to `top`, at most [`SLICE_WORDS_CLOBBERED`],
/// which are also taken where `top` is not that near. Leaves room for what
/// follows. Says how many.
///
/// By `bpf_loop`, as [`walk_chain`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn copy_up_to(scratch: *mut Scratch, address: u64, top: u64) -> u64 {
    // SAFETY: null, or what the caller has.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else {
        return 0;
    };
    let before = scratch.used();
    let wanted = top.wrapping_sub(address) / 8;
    let mut copy = Copy {
        scratch,
        address,
        left: wanted.min(SLICE_WORDS_CLOBBERED as u64),
    };
    let callback: extern "C" fn(u64, *mut Copy) -> i64 = copy_step;
    // SAFETY: the callback's context outlives the loop.
    unsafe {
        bpf_loop(
            (SLICE_WORDS_CLOBBERED / SLICE_CHUNK_WORDS) as u32,
            callback as *mut c_void,
            (&raw mut copy).cast::<c_void>(),
            0,
        );
    }
    (scratch.used() - before) as u64
}

/// Copies a chunk; not zero to stop.
extern "C" fn copy_step(_index: u64, copy: *mut Copy) -> i64 {
    // SAFETY: the loop passes the context that it was given, and the slot of
    // this CPU outlives it.
    let (copy, scratch) = unsafe { (&mut *copy, &mut *(*copy).scratch) };
    let words = copy.left.min(SLICE_CHUNK_WORDS as u64);
    let full = scratch.used() > MAX_PAYLOAD_WORDS - RESERVED_WORDS;
    if words == 0 || full || !scratch.copy_user(copy.address, words as usize) {
        return 1;
    }
    copy.left -= words;
    copy.address = copy.address.wrapping_add(words * 8);
    0
}
