//! Copies words of a user stack: those above the stack pointer, those above the
//! one that a signal interrupted, and those of the C behind a callback.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use profiler_ebpf::wire::{
    FAR_HEAD_WORDS, FRAME_SOUND_BYTES, GoLayout, MAX_PAYLOAD_WORDS, NO_FRAME, RESERVED_WORDS,
    SLICE_CHUNK_WORDS, SLICE_WORDS_CLOBBERED, SLICE_WORDS_LEFT, SLICE_WORDS_SOUND, signal_frame,
};

use super::{
    chain::Walked,
    memory::read_word,
    registers::{UserRegisters, is_arm64},
    scratch::Scratch,
};

/// More than the frame of the runtime's signal handlers.
const SIGNAL_HANDLER_FRAME_BYTES: u64 = 256;

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
        // On arm64 the frame pointer lies below the frame, and the link register of
        // a preempted leaf above that of what the signal handler injected.
        let more = match depth {
            Depth::Frame if !is_arm64() => words,
            _ => words.max(SLICE_WORDS_LEFT),
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

/// Appends, as a far slice, the words from the frame `state.into_c` at which C
/// called back into Go, on the system stack; from `below` it. Says how many words.
///
/// A global function, as `walk_chain`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn copy_into_c(scratch: *mut Scratch, below: u64) -> u64 {
    // SAFETY: null, or what the caller has.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else {
        return 0;
    };
    let into_c = scratch.state.into_c;
    if into_c.fp == 0 {
        return 0;
    }
    let start = into_c.fp.wrapping_sub(below);
    let words = far(scratch, start, into_c.frames_before, |scratch| {
        copy_up_to(scratch, start, into_c.top) as u16
    });
    words as u64
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
/// By `bpf_loop`, as [`super::chain`].
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
