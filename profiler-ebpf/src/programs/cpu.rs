//! The CPU sampler: runs at each tick of a perf event, on every CPU, and takes
//! the stack of the thread that the tick interrupted if its process is wanted.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::{bpf_get_current_cgroup_id, bpf_get_stack, bpf_loop, bpf_probe_read_user},
    },
    macros::{map, perf_event},
    maps::PerCpuArray,
    programs::PerfEventContext,
};
use profiler_ebpf::{
    walk::{Step, UserMemory, step},
    wire::{
        Counter, FRAME_SOUND_BYTES, MAX_KERNEL_FRAMES, MAX_PAYLOAD_WORDS, MAX_USER_FRAMES,
        SLICE_CHUNK_WORDS, SLICE_WORDS_CLOBBERED, SLICE_WORDS_SOUND, Sample, WalkEnd, flags, kind,
    },
};

use super::{
    emit::{TARGETS, count, emit_sample, header},
    registers::{UserRegisters, user_registers},
};

/// Not zero where kernel stacks are wanted.
#[unsafe(no_mangle)]
static KERNEL_STACKS: u8 = 1;

/// Where a record is put together: too large for the stack of 512 bytes.
#[repr(C)]
struct Scratch {
    sample: Sample,
    words: [u64; MAX_PAYLOAD_WORDS],
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

struct CurrentTask;

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

/// What the steps of a walk share.
struct Walk {
    scratch: *mut Scratch,
    fp: u64,
    end: WalkEnd,
}

/// Walks the user stack from `fp` into the scratch record.
///
/// By `bpf_loop` (Linux 5.17): the verifier looks at one step, where it would
/// look at every step of a plain loop, and takes 0.2 s for that.
#[inline(always)]
fn walk(scratch: &mut Scratch, fp: u64) -> WalkEnd {
    let mut walk = Walk {
        scratch,
        fp,
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
    walk.end
}

/// One step; not zero to stop.
extern "C" fn walk_step(index: u64, walk: *mut Walk) -> i64 {
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
            let index = index as usize;
            if index >= MAX_USER_FRAMES {
                return 1;
            }
            // SAFETY: a slot of this CPU, and `index` was just checked.
            unsafe {
                let scratch = &mut *walk.scratch;
                *scratch.words.get_unchecked_mut(index) = return_address;
                scratch.sample.user_frames = index as u16 + 1;
            }
            walk.fp = next;
            0
        }
    }
}

#[perf_event]
fn cpu_sample(ctx: PerfEventContext) -> u32 {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the value is an integer, looked at once.
    if unsafe { TARGETS.get(pid) }.is_none() {
        return 0;
    }
    count(Counter::Samples);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a slot of this CPU; perf-event programs do not nest on one CPU.
    let scratch = unsafe { &mut *scratch };
    sample(&ctx, scratch);
    0
}

#[inline(always)]
fn sample(ctx: &PerfEventContext, scratch: &mut Scratch) {
    let (registers, in_user) = user_registers(ctx);
    // SAFETY: reads the current task's cgroup.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    scratch.sample = Sample {
        header: header(kind::SAMPLE),
        cgroup_id,
        comm: bpf_get_current_comm().unwrap_or_default(),
        ip: registers.ip,
        sp: registers.sp,
        fp: registers.fp,
        lr: registers.lr,
        user_frames: 0,
        slice_words: 0,
        kernel_frames: 0,
        walk_end: WalkEnd::NoRegisters as u8,
        flags: if in_user { flags::IN_USER } else { 0 },
    };
    if registers.ip == 0 {
        count(Counter::NoUserRegisters);
    } else {
        scratch.sample.walk_end = walk(scratch, registers.fp) as u8;
        copy_slice(scratch, &registers);
    }
    kernel_stack(ctx, scratch, in_user);

    let words = used_words(scratch);
    if words > MAX_PAYLOAD_WORDS {
        return;
    }
    // SAFETY: the header and the words stand next to each other in `Scratch`,
    // and `words` of them were just checked to be there.
    emit_sample(unsafe {
        core::slice::from_raw_parts(
            core::ptr::from_ref(scratch).cast::<u8>(),
            size_of::<Sample>() + words * 8,
        )
    });
}

/// The words in use, read back from the map: the verifier then knows only what
/// the caller checks.
#[inline(always)]
fn used_words(scratch: &Scratch) -> usize {
    // SAFETY: volatile reads of initialised fields.
    unsafe {
        core::ptr::read_volatile(&raw const scratch.sample.user_frames) as usize
            + core::ptr::read_volatile(&raw const scratch.sample.slice_words) as usize
            + core::ptr::read_volatile(&raw const scratch.sample.kernel_frames) as usize
    }
}

/// Copies the words above `sp`: up to the frame where the frame pointer looks
/// sound, many where something else may be in its register.
#[inline(always)]
fn copy_slice(scratch: &mut Scratch, registers: &UserRegisters) {
    let frame_bytes = registers.fp.wrapping_sub(registers.sp);
    if frame_bytes < FRAME_SOUND_BYTES {
        // Up to the frame's own two words.
        let words = (frame_bytes as usize / 8 + 2).min(SLICE_WORDS_SOUND);
        copy_words(scratch, registers.sp, words);
        return;
    }
    for chunk in 0..SLICE_WORDS_CLOBBERED / SLICE_CHUNK_WORDS {
        let address = registers.sp + (chunk * SLICE_CHUNK_WORDS * 8) as u64;
        if !copy_words(scratch, address, SLICE_CHUNK_WORDS) {
            return;
        }
    }
}

/// Appends `words` (at most [`SLICE_CHUNK_WORDS`]) from `address` to the slice,
/// all or none of them.
#[inline(always)]
fn copy_words(scratch: &mut Scratch, address: u64, words: usize) -> bool {
    let at = used_words(scratch);
    if at > MAX_USER_FRAMES + SLICE_WORDS_CLOBBERED - SLICE_CHUNK_WORDS || words > SLICE_CHUNK_WORDS
    {
        return false;
    }
    // SAFETY: the array has room for a chunk at `at`, as was just checked. The
    // helper checks the address and does not fault.
    let failed = unsafe {
        bpf_probe_read_user(
            scratch.words.as_mut_ptr().add(at).cast::<c_void>(),
            (words * 8) as u32,
            address as *const c_void,
        )
    };
    if failed != 0 {
        return false;
    }
    scratch.sample.slice_words += words as u16;
    true
}

#[inline(always)]
fn kernel_stack(ctx: &PerfEventContext, scratch: &mut Scratch, in_user: bool) {
    // SAFETY: set before the load, never after.
    let wanted = unsafe { core::ptr::read_volatile(&raw const KERNEL_STACKS) != 0 };
    if in_user || !wanted {
        return;
    }
    let at = used_words(scratch);
    if at > MAX_USER_FRAMES + SLICE_WORDS_CLOBBERED {
        return;
    }
    // SAFETY: `at` was checked, and there is room for MAX_KERNEL_FRAMES behind.
    let bytes = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            scratch.words.as_mut_ptr().add(at).cast::<c_void>(),
            (MAX_KERNEL_FRAMES * 8) as u32,
            0,
        )
    };
    if bytes > 0 {
        scratch.sample.kernel_frames = (bytes / 8) as u16;
    } else {
        count(Counter::NoKernelStack);
    }
}
