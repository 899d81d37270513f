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
    Counter, GoLayout, MAX_KERNEL_FRAMES, SLICE_WORDS_PARKED, Sample, Segment, WalkEnd, flags, kind,
};

use super::{
    emit::{TARGETS, count, emit_sample, header},
    goroutine::{self, Goroutine},
    labels,
    registers::{UserRegisters, user_registers},
    scratch::Scratch,
    stack::{self, read_word},
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
    scratch.begin(Sample {
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
    });
    if registers.ip == 0 {
        count(Counter::NoUserRegisters);
        kernel_stack(ctx, scratch, in_user);
        return;
    }
    let goroutine = goroutine::current(layout, &registers);
    user_stack(scratch, layout, &registers, &goroutine);
    kernel_stack(ctx, scratch, in_user);
    if goroutine.g != 0 {
        scratch.sample.goid = read_word(goroutine.g.wrapping_add(layout.g_goid as u64));
        let set = read_word(goroutine.g.wrapping_add(layout.g_labels as u64));
        labels::take(scratch, layout.labels, set);
    }
}

/// Takes the stack that the thread is on and, where it is another, the
/// goroutine's own.
#[inline(always)]
fn user_stack(
    scratch: &mut Scratch,
    layout: &GoLayout,
    registers: &UserRegisters,
    goroutine: &Goroutine,
) {
    let mut segment = stack::walk(scratch, registers);
    segment.slice_words = stack::copy_slice(scratch, registers, goroutine.on_signal_stack);
    scratch.sample.thread = segment;
    if goroutine.on_signal_stack {
        scratch.sample.flags |= flags::ON_SIGNAL_STACK;
        return;
    }
    if !goroutine.left {
        return;
    }
    let saved = goroutine::saved_registers(layout, goroutine.g);
    if saved.ip == 0 {
        return;
    }
    let mut segment = stack::walk(scratch, &saved);
    if scratch.copy_user(saved.sp, SLICE_WORDS_PARKED) {
        segment.slice_words = SLICE_WORDS_PARKED as u16;
    }
    scratch.sample.goroutine = segment;
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
