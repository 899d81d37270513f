//! The CPU sampler: runs at each tick of a perf event, on every CPU, and takes
//! the stack of the thread that the tick interrupted if its process is wanted.

use aya_ebpf::{
    EbpfContext, helpers::bpf_get_current_pid_tgid, macros::perf_event, programs::PerfEventContext,
};
use profiler_ebpf::wire::Counter;

use super::{
    emit::{TARGETS, count, emit_sample},
    registers::user_registers,
    sample::take,
    scratch::{Scratch, Slot},
};

#[perf_event]
fn cpu_sample(ctx: PerfEventContext) -> u32 {
    count(Counter::Ticks);
    let pid_tgid = bpf_get_current_pid_tgid();
    if pid_tgid as u32 == 0 {
        count(Counter::IdleTicks);
        return 0;
    }
    let pid = (pid_tgid >> 32) as u32;
    // SAFETY: read only, and at most replaced meanwhile.
    let Some(target) = (unsafe { TARGETS.get(pid) }) else {
        return 0;
    };
    count(Counter::Samples);
    if let Some(scratch) = Scratch::of_this_cpu(Slot::Tick) {
        let (registers, in_user) = user_registers(&ctx);
        take(ctx.as_ptr(), scratch, &target.go, &registers, in_user);
        if let Some(record) = scratch.record() {
            emit_sample(record);
        }
    }
    0
}
