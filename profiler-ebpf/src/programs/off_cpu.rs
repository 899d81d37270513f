//! Time off the CPU: the stack of a thread as it leaves, and how long it was
//! away as it comes back. Not each stack is taken of a thread that leaves often:
//! one in so many, which then stands for as many.

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns,
        generated::bpf_probe_read_kernel,
    },
    macros::{map, raw_tracepoint},
    maps::HashMap,
    programs::RawTracePointContext,
};
use profiler_ebpf::wire::{Counter, GoLayout, Header, LONG_WAIT_NS, Measured, event, kind};

use super::{
    emit::{TARGETS, count, emit_end, emit_sample, header},
    registers::saved_user_registers,
    sample::take,
    scratch::{Scratch, Slot},
};

/// Where `task_struct` keeps the thread's id, its process's and its state, in
/// bytes.
#[unsafe(no_mangle)]
static TASK_PID: u32 = 0;
#[unsafe(no_mangle)]
static TASK_STATE: u32 = 0;

/// `TASK_DEAD` (`include/linux/sched.h`): the thread never comes back.
const TASK_DEAD: u64 = 0x80;

/// A thread that leaves the CPU more often than once in this time, on average,
/// has but a part of its stacks taken.
const EVERY_NS: u64 = 5_000_000;
/// Most departures that one stack stands for.
const MAX_WEIGHT: u32 = 1024;

/// A thread of a wanted process.
#[repr(C)]
#[derive(Clone, Copy)]
struct Thread {
    /// When it left the CPU; 0 where it is on one.
    left_ns: u64,
    /// When it was woken since; 0 where it was not.
    woken_ns: u64,
    /// The time between two departures, on average.
    interval_ns: u64,
    /// When it left the CPU last.
    last_ns: u64,
    /// The state it left in.
    state: u64,
    /// What its stack stands for; 0 where it was not taken.
    weight: u32,
    /// Its process.
    pid: u32,
}

/// Threads of wanted processes that have left the CPU once, by thread id.
#[map]
static THREADS: HashMap<u32, Thread> = HashMap::with_max_entries(64 * 1024, 0);

/// `trace_sched_switch(preempt, prev, next, prev_state)`, `kernel/sched/core.c`:
/// the current thread is still the one that leaves.
#[raw_tracepoint(tracepoint = "sched_switch")]
fn off_cpu_switch(ctx: RawTracePointContext) -> i32 {
    // SAFETY: reads the clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let (preempted, prev, next): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let pid_tgid = bpf_get_current_pid_tgid();
    let (pid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    // SAFETY: read only, and at most replaced meanwhile.
    if tid != 0
        && let Some(target) = unsafe { TARGETS.get(pid) }
    {
        // A preempted thread wants to run, whatever it was about to wait for.
        let state = match preempted & 1 {
            0 => task_word(prev, &raw const TASK_STATE) as u32 as u64,
            _ => 0,
        };
        leave(&ctx, &target.go, (pid, tid), state, now);
    }
    let next_tid = task_word(next, &raw const TASK_PID) as u32;
    if next_tid != 0
        && let Some(thread) = THREADS.get_ptr_mut(next_tid)
    {
        // SAFETY: a slot of the map, which only switches of this thread write.
        unsafe { come_back(&mut *thread, next_tid, now) };
    }
    0
}

/// `trace_sched_wakeup(task)`: the task may run from now on.
#[raw_tracepoint(tracepoint = "sched_wakeup")]
fn off_cpu_wakeup(ctx: RawTracePointContext) -> i32 {
    let tid = task_word(ctx.arg(0), &raw const TASK_PID) as u32;
    if let Some(thread) = THREADS.get_ptr_mut(tid) {
        // SAFETY: a slot of the map. A wake-up and a switch of the same thread
        // are told apart by the kernel's own lock of the run queue.
        unsafe {
            if (*thread).left_ns != 0 && (*thread).woken_ns == 0 {
                (*thread).woken_ns = bpf_ktime_get_ns();
            }
        }
    }
    0
}

#[inline(always)]
fn leave(
    ctx: &RawTracePointContext,
    layout: &GoLayout,
    (pid, tid): (u32, u32),
    state: u64,
    now: u64,
) {
    if state & TASK_DEAD != 0 {
        let _ = THREADS.remove(tid);
        return;
    }
    count(Counter::SwitchesOff);
    let Some(thread) = known(pid, tid, now) else {
        count(Counter::ThreadsFull);
        return;
    };
    let since = now.wrapping_sub(thread.last_ns);
    // An average that a long pause sets at once and short ones by and by.
    thread.interval_ns = match since > thread.interval_ns {
        true => since,
        false => thread.interval_ns - thread.interval_ns / 8 + since / 8,
    };
    thread.last_ns = now;
    thread.left_ns = now;
    thread.woken_ns = 0;
    thread.state = state;
    thread.pid = pid;
    thread.weight = 0;
    let weight = weight(thread.interval_ns);
    // SAFETY: a random number.
    let is_wanted = unsafe { bpf_get_prandom_u32() } & (weight - 1) == 0;
    if is_wanted && let Some(scratch) = Scratch::of_this_cpu(Slot::Switch) {
        count(Counter::SwitchesTaken);
        scratch.measured = Measured {
            header: header(kind::MEASURED),
            event: event::OFF_CPU,
            weight,
            duration_ns: 0,
            part_ns: 0,
            detail: state,
            window: 0,
        };
        let registers = saved_user_registers();
        take(ctx.as_ptr(), scratch, layout, &registers, false);
        if let Some(record) = scratch.measured_record()
            && emit_sample(record)
        {
            thread.weight = weight;
        }
    }
}

/// The thread's place in the table.
#[inline(always)]
fn known(pid: u32, tid: u32, now: u64) -> Option<&'static mut Thread> {
    let mut place = THREADS.get_ptr_mut(tid);
    if place.is_none() {
        let new = Thread {
            left_ns: 0,
            woken_ns: 0,
            interval_ns: EVERY_NS,
            last_ns: now,
            state: 0,
            weight: 0,
            pid,
        };
        let _ = THREADS.insert(tid, new, 0);
        place = THREADS.get_ptr_mut(tid);
    }
    // SAFETY: a slot of the map, which only switches of this thread write.
    place.map(|thread| unsafe { &mut *thread })
}

/// How many departures one stack is to stand for, a power of two.
#[inline(always)]
fn weight(interval_ns: u64) -> u32 {
    let mut weight = 1;
    let mut interval = interval_ns;
    while weight < MAX_WEIGHT && interval < EVERY_NS {
        interval *= 2;
        weight *= 2;
    }
    weight
}

#[inline(always)]
fn come_back(thread: &mut Thread, tid: u32, now: u64) {
    if thread.left_ns == 0 {
        return;
    }
    let duration_ns = now.wrapping_sub(thread.left_ns);
    // A short one is stood for by those that were taken.
    if thread.weight != 0 || duration_ns >= LONG_WAIT_NS {
        let ready = match (thread.state, thread.woken_ns) {
            (0, _) => thread.left_ns,
            (_, 0) => now,
            (_, woken) => woken,
        };
        emit_end(&Measured {
            header: Header {
                pid: thread.pid,
                tid,
                ..header(kind::ENDED)
            },
            event: event::OFF_CPU,
            weight: thread.weight,
            duration_ns,
            part_ns: now.wrapping_sub(ready),
            detail: thread.state,
            window: 0,
        });
    }
    thread.left_ns = 0;
    thread.weight = 0;
}

/// Half a word or more of a `task_struct`.
#[inline(always)]
fn task_word(task: u64, offset: *const u32) -> u64 {
    let mut word = 0u64;
    // SAFETY: the offset is set before the load and never after; the helper does
    // not fault, and writes zero where it fails.
    unsafe {
        let offset = core::ptr::read_volatile(offset);
        bpf_probe_read_kernel(
            (&raw mut word).cast(),
            4,
            (task.wrapping_add(offset as u64)) as *const _,
        );
    }
    word
}
