//! Takes the stack of the current thread, from registers that somebody has.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_stack,
};
use profiler_ebpf::wire::{
    Counter, GoLayout, MAX_KERNEL_FRAMES, NO_FRAME, Sample, Segment, WalkEnd, flags, kind,
    signal_frame,
};

use super::{
    chain::walk,
    emit::{count, header},
    goroutine, labels,
    registers::UserRegisters,
    scratch::Scratch,
    stack::{self, Depth},
};

/// Not zero where kernel stacks are wanted.
#[unsafe(no_mangle)]
static KERNEL_STACKS: u8 = 1;

/// Puts a sample together in `scratch`: the stack from `registers`, of user mode,
/// and the kernel's where the thread was there. `ctx` is the program's.
#[inline(always)]
pub fn take(
    ctx: *mut c_void,
    scratch: &mut Scratch,
    layout: &GoLayout,
    registers: &UserRegisters,
    in_user: bool,
) {
    scratch.begin();
    begin_sample(&mut scratch.sample, registers, in_user);
    if registers.ip == 0 {
        count(Counter::NoUserRegisters);
        kernel_stack(ctx, scratch, in_user);
        return;
    }
    let goroutine = goroutine::current(layout, registers, &mut scratch.block);
    scratch.sample.goid = goroutine.id;
    scratch.state.goroutine = goroutine;
    take_thread_stack(scratch, layout);
    if scratch.state.left != 0 || scratch.state.callback_fp != 0 {
        take_goroutine_stack(scratch, layout);
    }
    kernel_stack(ctx, scratch, in_user);
    if goroutine.label_set != 0 {
        take_labels(scratch, layout.labels as u64, goroutine.label_set);
    }
}

/// Puts a sample together of a goroutine that waits: its stack from where it left it,
/// its id and labels. The thread is the current one.
#[inline(always)]
pub fn take_parked(scratch: &mut Scratch, layout: &GoLayout, g: u64) {
    scratch.begin();
    let registers = goroutine::saved_registers(layout, g);
    begin_sample(&mut scratch.sample, &registers, true);
    if registers.ip == 0 {
        count(Counter::NoUserRegisters);
        return;
    }
    let goroutine = goroutine::parked(layout, g);
    scratch.sample.goid = goroutine.id;
    scratch.state.goroutine = goroutine;
    take_thread_stack(scratch, layout);
    if goroutine.label_set != 0 {
        take_labels(scratch, layout.labels as u64, goroutine.label_set);
    }
}

/// Puts together a sample of the kernel's stack alone.
#[inline(always)]
pub fn take_kernel(ctx: *mut c_void, scratch: &mut Scratch) {
    scratch.begin();
    begin_sample(&mut scratch.sample, &UserRegisters::default(), false);
    kernel_stack(ctx, scratch, false);
}

/// Begins the header: the thread, and nothing taken yet.
#[inline(always)]
fn begin_sample(sample: &mut Sample, registers: &UserRegisters, in_user: bool) {
    sample.header = header(kind::SAMPLE);
    // SAFETY: reads the current task's cgroup.
    sample.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    let comm = &mut sample.comm;
    // SAFETY: there is room for as many bytes as the helper is told.
    unsafe { bpf_get_current_comm(comm.as_mut_ptr().cast(), comm.len() as u32) };
    sample.goid = 0;
    sample.thread = Segment {
        ip: registers.ip,
        sp: registers.sp,
        fp: registers.fp,
        lr: registers.lr,
        walk_end: WalkEnd::NoRegisters as u8,
        ..Segment::default()
    };
    sample.goroutine = Segment::default();
    sample.kernel_frames = 0;
    sample.labels_words = 0;
    sample.labels = 0;
    sample.labels_missed = 0;
    sample.flags = if in_user { flags::IN_USER } else { 0 };
    sample.reserved = 0;
}

/// Takes the stack that the thread is on.
///
/// This and the next two are global functions to the verifier (Linux 5.6),
/// which looks at each once: what lies before multiplies none of what follows.
/// That they may take pointers came with Linux 5.13; each must be checked.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take_thread_stack(scratch: *mut Scratch, layout: *const GoLayout) -> u64 {
    // SAFETY: null, or what `sample` has.
    let (Some(scratch), Some(layout)) = (unsafe { (scratch.as_mut(), layout.as_ref()) }) else {
        return 0;
    };
    let registers = UserRegisters::of(&scratch.sample.thread);
    let goroutine = scratch.state.goroutine;
    let (mut segment, walked) = walk(scratch, layout, &registers, false);

    // Without frame pointers, as most C is, the words are all there is to go by.
    let in_go = layout.text.len == 0 || layout.text.holds(registers.ip);
    let calls_back = layout.callback.holds(registers.ip);
    let signal_slot = stack::signal_slot(layout, &registers, &walked, in_go);
    let all = goroutine.on_signal_stack || signal_slot != 0 || calls_back || !in_go;
    let depth = if all { Depth::All } else { Depth::Frame };
    segment.slice_words = stack::copy_slice(scratch, &registers, depth, || {
        if signal_slot != 0 {
            signal_slot.wrapping_add(signal_frame::END)
        } else if goroutine.on_signal_stack || calls_back {
            0
        } else if in_go && !goroutine.left {
            goroutine::own_stack_top(goroutine.g)
        } else {
            goroutine::system_stack_top(layout, &goroutine)
        }
    });
    let mut left = goroutine.left && !goroutine.on_signal_stack;
    scratch.state.into_c = walked.into_c;
    if signal_slot != 0 {
        let interrupted = stack::interrupted(signal_slot);
        left = goroutine.g != 0 && !goroutine::own_stack_holds(&goroutine, interrupted.sp);
        let top = match left {
            true => goroutine::system_stack_top(layout, &goroutine),
            false => goroutine::own_stack_top(goroutine.g),
        };
        let depth = if layout.text.holds(interrupted.ip) {
            Depth::Frame
        } else {
            Depth::All
        };
        segment.far_words = stack::copy_interrupted(scratch, &interrupted, depth, top);
    } else if !left {
        segment.far_words = stack::copy_into_c(scratch, 0) as u16;
        scratch.state.into_c.fp = 0;
    }
    if left {
        // The goroutine's own chain comes to it.
        scratch.state.into_c.fp = 0;
    }
    if goroutine.on_signal_stack {
        scratch.sample.flags |= flags::ON_SIGNAL_STACK;
    }
    scratch.sample.thread = segment;
    scratch.state.left = left as u64;
    scratch.state.callback_fp = walked.callback_fp;
    0
}

/// Takes the goroutine's own stack, where the thread is on another, and the
/// outer part of one that C called back into.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take_goroutine_stack(scratch: *mut Scratch, layout: *const GoLayout) -> u64 {
    // SAFETY: null, or what `sample` has.
    let (Some(scratch), Some(layout)) = (unsafe { (scratch.as_mut(), layout.as_ref()) }) else {
        return 0;
    };
    let goroutine = scratch.state.goroutine;
    let saved = if scratch.state.left != 0 {
        goroutine::saved_registers(layout, goroutine.g)
    } else if scratch.state.callback_fp != 0 {
        goroutine::outer_registers(layout, scratch.state.callback_fp)
    } else {
        return 0;
    };
    if saved.ip == 0 {
        return 0;
    }
    let (mut segment, walked) = walk(scratch, layout, &saved, true);
    segment.slice_words = stack::copy_slice(scratch, &saved, Depth::Frames, || {
        goroutine::own_stack_top(goroutine.g)
    });
    if scratch.state.into_c.fp == 0 {
        scratch.state.into_c = walked.into_c;
        scratch.state.into_c.frames_before = NO_FRAME;
    } else if walked.into_c.fp != 0 {
        scratch.state.into_c.top = walked.into_c.top;
    }
    let below = (layout.callback_delta as u64).wrapping_sub(8);
    segment.far_words = stack::copy_into_c(scratch, below) as u16;
    scratch.sample.goroutine = segment;
    0
}

/// Takes the goroutine's labels, which are kept in this form.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take_labels(scratch: *mut Scratch, form: u64, set: u64) -> u64 {
    // SAFETY: null, or what `sample` has.
    if let Some(scratch) = unsafe { scratch.as_mut() } {
        labels::take(scratch, form as u8, set);
    }
    0
}

#[inline(always)]
fn kernel_stack(ctx: *mut c_void, scratch: &mut Scratch, in_user: bool) {
    // SAFETY: set before the load, never after.
    let wanted = unsafe { core::ptr::read_volatile(&raw const KERNEL_STACKS) != 0 };
    if in_user || !wanted {
        return;
    }
    let Some(room) = scratch.room(MAX_KERNEL_FRAMES) else {
        return;
    };
    // SAFETY: there is room for that many words.
    let bytes = unsafe { bpf_get_stack(ctx, room.cast(), (MAX_KERNEL_FRAMES * 8) as u32, 0) };
    if bytes > 0 {
        let frames = bytes as usize / 8;
        scratch.commit(frames);
        scratch.sample.kernel_frames = frames as u16;
    } else {
        count(Counter::NoKernelStack);
    }
}
