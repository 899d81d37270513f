//! Processes that begin a program or exit. Userspace decides whether a new
//! program is wanted; until then it is sampled, so that nothing of its start
//! is lost.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid, macros::raw_tracepoint, programs::RawTracePointContext,
};
use aya_log_ebpf::warn;
use profiler_ebpf::wire::{Counter, GoLayout, Target, kind, target};

use super::emit::{TARGETS, count, emit_event};

/// Not zero where programs that begin during the recording may be wanted.
#[unsafe(no_mangle)]
static WATCH_EXECS: u8 = 0;

fn watch_execs() -> bool {
    // SAFETY: set before the load and never after; volatile, so that the
    // compiler does not take the initial value for the final one.
    unsafe { core::ptr::read_volatile(&raw const WATCH_EXECS) != 0 }
}

/// A program that userspace has not looked at yet: nothing is known of it.
fn pending() -> Target {
    Target {
        state: target::PENDING,
        reserved: 0,
        go: GoLayout::default(),
    }
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn sched_process_exec(ctx: RawTracePointContext) -> i32 {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the value is an integer that is copied at once.
    let known = unsafe { TARGETS.get(pid) }.is_some();
    if !known {
        if !watch_execs() {
            return 0;
        }
        if TARGETS.insert(pid, pending(), 0).is_err() {
            count(Counter::TargetsFull);
            warn!(&ctx, "target table full: process {} is not sampled", pid);
        }
    }
    emit_event(kind::EXEC);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn sched_process_exit(_ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (pid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    // SAFETY: as above.
    if pid == tid && unsafe { TARGETS.get(pid) }.is_some() {
        emit_event(kind::EXIT);
    }
    0
}
