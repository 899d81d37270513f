//! The CPU sampler: runs at each tick of a perf event, on every CPU, and takes
//! the stack of the thread that the tick interrupted if its process is wanted.

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::{bpf_get_current_cgroup_id, bpf_get_stack},
    },
    macros::perf_event,
    programs::PerfEventContext,
};
use profiler_ebpf::wire::{
    Counter, GoLayout, MAX_KERNEL_FRAMES, Sample, Segment, WalkEnd, flags, kind, signal_frame,
};

use super::{
    emit::{TARGETS, count, emit_sample, header},
    goroutine, labels,
    registers::user_registers,
    scratch::Scratch,
    stack::{self, Depth, read_word},
};

/// Not zero where kernel stacks are wanted.
#[unsafe(no_mangle)]
static KERNEL_STACKS: u8 = 1;

#[perf_event]
fn cpu_sample(ctx: PerfEventContext) -> u32 {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: read only, and at most replaced meanwhile.
    let Some(target) = (unsafe { TARGETS.get(pid) }) else {
        return 0;
    };
    count(Counter::Samples);
    if let Some(scratch) = Scratch::of_this_cpu() {
        sample(&ctx, scratch, &target.go);
        if let Some(record) = scratch.record() {
            emit_sample(record);
        }
    }
    0
}

#[inline(always)]
fn sample(ctx: &PerfEventContext, scratch: &mut Scratch, layout: &GoLayout) {
    let (registers, in_user) = user_registers(ctx);
    // SAFETY: reads the current task's cgroup.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    let sample = Sample {
        header: header(kind::SAMPLE),
        cgroup_id,
        comm: bpf_get_current_comm().unwrap_or_default(),
        goid: 0,
        thread: Segment {
            walk_end: WalkEnd::NoRegisters as u8,
            ..Segment::default()
        },
        goroutine: Segment::default(),
        kernel_frames: 0,
        labels_words: 0,
        labels: 0,
        labels_missed: 0,
        flags: if in_user { flags::IN_USER } else { 0 },
        reserved: 0,
    };
    scratch.begin(sample, layout, &registers);
    if registers.ip == 0 {
        count(Counter::NoUserRegisters);
        kernel_stack(ctx, scratch, in_user);
        return;
    }
    take_thread_stack();
    take_goroutine_stack();
    kernel_stack(ctx, scratch, in_user);
    take_labels();
}

/// Takes the stack that the thread is on.
///
/// This and the next two are global functions to the verifier (Linux 5.6),
/// which looks at each once: what lies before multiplies none of what follows.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take_thread_stack() -> u64 {
    let Some(scratch) = Scratch::of_this_cpu() else {
        return 0;
    };
    let registers = scratch.state.registers;
    let layout = scratch.state.layout;
    let goroutine = goroutine::current(&layout, &registers);
    let walked = stack::walk(scratch, &layout, &registers);
    let mut segment = walked.segment;

    // Without frame pointers, as most C is, the words are all there is to go by.
    let in_go = layout.text.len == 0 || layout.text.holds(registers.ip);
    let calls_back = layout.callback.holds(registers.ip);
    let signal_slot = stack::signal_slot(&layout, &registers, &walked, in_go);
    let all = goroutine.on_signal_stack || signal_slot != 0 || calls_back || !in_go;
    let depth = if all { Depth::All } else { Depth::Frame };
    segment.slice_words = stack::copy_slice(scratch, &registers, depth, || {
        if signal_slot != 0 {
            signal_slot.wrapping_add(signal_frame::END)
        } else if goroutine.on_signal_stack || calls_back {
            0
        } else if in_go && !goroutine.left {
            goroutine::own_stack_top(&goroutine)
        } else {
            goroutine::system_stack_top(&layout, &goroutine)
        }
    });
    let mut left = goroutine.left && !goroutine.on_signal_stack;
    if signal_slot != 0 {
        let interrupted = stack::interrupted(signal_slot);
        left = goroutine.g != 0 && !goroutine::own_stack_holds(&goroutine, interrupted.sp);
        let top = match left {
            true => goroutine::system_stack_top(&layout, &goroutine),
            false => goroutine::own_stack_top(&goroutine),
        };
        let depth = if layout.text.holds(interrupted.ip) {
            Depth::Frame
        } else {
            Depth::All
        };
        segment.far_words = stack::copy_interrupted(scratch, &interrupted, depth, top);
    } else {
        segment.far_words = stack::copy_callback(scratch, &layout, &walked);
    }
    if goroutine.on_signal_stack {
        scratch.sample.flags |= flags::ON_SIGNAL_STACK;
    }
    scratch.sample.thread = segment;
    scratch.state.goroutine = goroutine;
    scratch.state.left = left as u64;
    scratch.state.callback_fp = walked.callback_fp;
    0
}

/// Takes the goroutine's own stack, where the thread is on another, and the
/// outer part of one that C called back into.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take_goroutine_stack() -> u64 {
    let Some(scratch) = Scratch::of_this_cpu() else {
        return 0;
    };
    let layout = scratch.state.layout;
    let goroutine = scratch.state.goroutine;
    let saved = if scratch.state.left != 0 {
        goroutine::saved_registers(&layout, goroutine.g)
    } else if scratch.state.callback_fp != 0 {
        goroutine::outer_registers(&layout, scratch.state.callback_fp)
    } else {
        return 0;
    };
    if saved.ip == 0 {
        return 0;
    }
    let mut segment = stack::walk(scratch, &layout, &saved).segment;
    segment.slice_words = stack::copy_slice(scratch, &saved, Depth::Frames, || {
        goroutine::own_stack_top(&goroutine)
    });
    scratch.sample.goroutine = segment;
    0
}

/// Takes the goroutine's id and labels.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take_labels() -> u64 {
    let Some(scratch) = Scratch::of_this_cpu() else {
        return 0;
    };
    let layout = scratch.state.layout;
    let g = scratch.state.goroutine.g;
    if g != 0 {
        scratch.sample.goid = read_word(g.wrapping_add(layout.g_goid as u64));
        let set = read_word(g.wrapping_add(layout.g_labels as u64));
        labels::take(scratch, layout.labels, set);
    }
    0
}

#[inline(always)]
fn kernel_stack(ctx: &PerfEventContext, scratch: &mut Scratch, in_user: bool) {
    // SAFETY: set before the load, never after.
    let wanted = unsafe { core::ptr::read_volatile(&raw const KERNEL_STACKS) != 0 };
    if in_user || !wanted {
        return;
    }
    let Some(room) = scratch.room(MAX_KERNEL_FRAMES) else {
        return;
    };
    // SAFETY: there is room for that many words.
    let bytes = unsafe { bpf_get_stack(ctx.as_ptr(), room, (MAX_KERNEL_FRAMES * 8) as u32, 0) };
    if bytes > 0 {
        let frames = bytes as usize / 8;
        scratch.commit(frames);
        scratch.sample.kernel_frames = frames as u16;
    } else {
        count(Counter::NoKernelStack);
    }
}
