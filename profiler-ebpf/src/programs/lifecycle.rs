//! Processes that begin a program, start threads or exit. Userspace decides
//! whether a new program is wanted; until then it is sampled, so that nothing
//! of its start is lost.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{map, raw_tracepoint},
    maps::LruHashMap,
    programs::RawTracePointContext,
};
use aya_log_ebpf::warn;
use profiler_ebpf::wire::{Counter, GoLayout, THREAD_PAUSE_NS, Target, kind, target};

use super::{
    emit::{TARGETS, count, emit_event, emit_patient_event},
    off_cpu,
};

/// `CLONE_THREAD` (`include/uapi/linux/sched.h`).
const CLONE_THREAD: u64 = 0x1_0000;

/// When a process was last told to have started a thread, by pid. One that
/// falls out is told of once more.
#[map]
static THREAD_TIMES: LruHashMap<u32, u64> = LruHashMap::with_max_entries(4096, 0);

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
    if !known && !watch_execs() {
        return 0;
    }
    // Also where it was known: what was known is true of the program before.
    if TARGETS.insert(pid, pending(), 0).is_err() {
        count(Counter::TargetsFull);
        warn!(&ctx, "target table full: process {} is not sampled", pid);
    }
    emit_event(kind::EXEC);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn sched_process_exit(_ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (pid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    // SAFETY: as above.
    match unsafe { TARGETS.get(pid) } {
        Some(_) if pid == tid => emit_event(kind::EXIT),
        Some(_) => {}
        // One that was wanted for a while may be in the table.
        None => off_cpu::forget(tid),
    }
    0
}

/// A program in another language that loads a Go library starts a thread then,
/// once the library is mapped and relocated: the library's runtime begins on one
/// of its own (`_rt0_amd64_lib` and `_rt0_arm64_lib` in `runtime/asm_*.s`, all
/// versions). So this tells of it, at no cost to `mmap`.
#[raw_tracepoint(tracepoint = "task_newtask")]
fn task_newtask(ctx: RawTracePointContext) -> i32 {
    // trace_task_newtask(task, clone_flags), `kernel/fork.c`: here the current
    // thread is the one that starts the other.
    let clone_flags: u64 = ctx.arg(1);
    if clone_flags & CLONE_THREAD == 0 {
        return 0;
    }
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: read only, and at most replaced meanwhile.
    match unsafe { TARGETS.get(pid) } {
        Some(known) if known.state == target::WANTED => return 0,
        None if !watch_execs() => return 0,
        _ => {}
    }
    // SAFETY: reads the clock.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the value is an integer that is copied at once.
    let last = unsafe { THREAD_TIMES.get(pid) }.copied();
    if last.is_some_and(|last| now.wrapping_sub(last) < THREAD_PAUSE_NS) {
        return 0;
    }
    // A failure only makes one record more.
    let _ = THREAD_TIMES.insert(pid, now, 0);
    emit_patient_event(kind::THREAD);
    0
}
