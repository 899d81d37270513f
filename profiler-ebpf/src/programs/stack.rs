//! Takes a segment of a user stack: the chain of frame pointers, and the words
//! above the stack pointer.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_loop, generated::bpf_probe_read_user};
use profiler_ebpf::{
    walk::{Step, UserMemory, step},
    wire::{
        FRAME_SOUND_BYTES, MAX_USER_FRAMES, SLICE_CHUNK_WORDS, SLICE_WORDS_CLOBBERED,
        SLICE_WORDS_SOUND, Segment, WalkEnd,
    },
};

use super::{registers::UserRegisters, scratch::Scratch};

/// Memory of the current task.
pub struct CurrentTask;

impl UserMemory for CurrentTask {
    #[inline(always)]
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        let mut pair = [0u64; 2];
        // SAFETY: the helper checks the address and does not fault.
        let failed = unsafe {
            bpf_probe_read_user(
                pair.as_mut_ptr().cast::<c_void>(),
                16,
                address as *const c_void,
            )
        };
        (failed == 0).then_some(pair)
    }
}

/// A word of the current task's memory; 0 where it cannot be read.
#[inline(always)]
pub fn read_word(address: u64) -> u64 {
    let mut word = 0u64;
    // SAFETY: the helper checks the address, does not fault, and writes zero
    // where it fails.
    unsafe {
        bpf_probe_read_user(
            (&raw mut word).cast::<c_void>(),
            8,
            address as *const c_void,
        );
    }
    word
}

/// What the steps of a walk share.
struct Walk {
    scratch: *mut Scratch,
    fp: u64,
    end: WalkEnd,
}

/// Walks from the frame pointer of `registers` and appends the return
/// addresses.
///
/// By `bpf_loop` (Linux 5.17): the verifier looks at one step, where it would
/// look at every step of a plain loop, and takes 0.2 s for that.
#[inline(always)]
pub fn walk(scratch: &mut Scratch, registers: &UserRegisters) -> Segment {
    let before = scratch.used();
    let mut walk = Walk {
        scratch,
        fp: registers.fp,
        end: WalkEnd::DepthLimit,
    };
    let callback: extern "C" fn(u64, *mut Walk) -> i64 = walk_step;
    // SAFETY: the callback's context outlives the loop.
    unsafe {
        bpf_loop(
            MAX_USER_FRAMES as u32,
            callback as *mut c_void,
            (&raw mut walk).cast::<c_void>(),
            0,
        );
    }
    Segment {
        ip: registers.ip,
        sp: registers.sp,
        fp: registers.fp,
        lr: registers.lr,
        frames: (scratch.used() - before) as u16,
        slice_words: 0,
        walk_end: walk.end as u8,
        reserved: [0; 3],
    }
}

/// One step; not zero to stop.
extern "C" fn walk_step(_index: u64, walk: *mut Walk) -> i64 {
    // SAFETY: the loop passes the context that it was given.
    let walk = unsafe { &mut *walk };
    match step(&CurrentTask, walk.fp) {
        Step::End(end) => {
            walk.end = end;
            1
        }
        Step::Frame {
            return_address,
            next,
        } => {
            // SAFETY: a slot of this CPU that outlives the loop.
            let scratch = unsafe { &mut *walk.scratch };
            if !scratch.push(return_address) {
                return 1;
            }
            walk.fp = next;
            0
        }
    }
}

/// Appends the words above the stack pointer and says how many: up to the frame
/// where the frame pointer looks sound, many where something else may be in its
/// register or `deep` asks for them.
#[inline(always)]
pub fn copy_slice(scratch: &mut Scratch, registers: &UserRegisters, deep: bool) -> u16 {
    let frame_bytes = registers.fp.wrapping_sub(registers.sp);
    if frame_bytes < FRAME_SOUND_BYTES && !deep {
        // Up to the frame's own two words.
        let words = (frame_bytes as usize / 8 + 2).min(SLICE_WORDS_SOUND);
        return match scratch.copy_user(registers.sp, words) {
            true => words as u16,
            false => 0,
        };
    }
    let mut copied = 0;
    for chunk in 0..SLICE_WORDS_CLOBBERED / SLICE_CHUNK_WORDS {
        let address = registers.sp + (chunk * SLICE_CHUNK_WORDS * 8) as u64;
        if !scratch.copy_user(address, SLICE_CHUNK_WORDS) {
            break;
        }
        copied += SLICE_CHUNK_WORDS as u16;
    }
    copied
}
