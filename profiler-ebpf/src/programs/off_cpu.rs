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
use profiler_ebpf::wire::{
    Counter, GoLayout, Header, LONG_WAIT_NS, Measured, OFF_CPU_EVERY_NS, PLACES, Place, Thread,
    event, kind,
};

use super::{
    emit::{TARGETS, count, emit_end, emit_sample, header},
    registers::{saved_place, saved_user_registers},
    sample::take,
    scratch::{Scratch, Slot},
};

/// Where `task_struct` keeps the thread's id, its state, and how long it has been
/// on a CPU, in bytes.
#[unsafe(no_mangle)]
static TASK_PID: u32 = 0;
#[unsafe(no_mangle)]
static TASK_STATE: u32 = 0;
#[unsafe(no_mangle)]
static TASK_RAN: u32 = 0;

/// `TASK_DEAD` (`include/linux/sched.h`): the thread never comes back.
const TASK_DEAD: u64 = 0x80;

/// Most departures that one stack stands for.
const MAX_WEIGHT: u32 = 1024;

/// Threads of wanted processes, by thread id: those there were at the start, and
/// those that have left the CPU once. Sized at load.
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
    let target = unsafe { TARGETS.get(pid) };
    if tid != 0
        && let Some(target) = target
    {
        // A preempted thread wants to run, whatever it was about to wait for.
        let state = match preempted & 1 {
            0 => task_word(prev, &raw const TASK_STATE) as u32 as u64,
            _ => 0,
        };
        let mut ran_ns = 0u64;
        task_read(prev, &raw const TASK_RAN, &mut ran_ns);
        let left = Left {
            pid,
            tid,
            state,
            ran_ns,
            now,
        };
        leave(&ctx, &target.go, &left);
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

/// A thread that leaves the CPU.
struct Left {
    pid: u32,
    tid: u32,
    state: u64,
    ran_ns: u64,
    now: u64,
}

#[inline(always)]
fn leave(ctx: &RawTracePointContext, layout: &GoLayout, left: &Left) {
    if left.state & TASK_DEAD != 0 {
        if let Some(thread) = THREADS.get_ptr_mut(left.tid) {
            // SAFETY: a slot of the map, which only switches of this thread write.
            end_missed(unsafe { &mut *thread }, left);
            forget(left.tid);
        }
        return;
    }
    count(Counter::SwitchesOff);
    let Some(thread) = known(left) else {
        count(Counter::ThreadsFull);
        return;
    };
    end_missed(thread, left);
    let since = left.now.wrapping_sub(thread.last_ns);
    thread.interval_ns = average(thread.interval_ns, since, 8);
    thread.last_ns = left.now;
    thread.left_ns = left.now;
    thread.woken_ns = 0;
    thread.state = left.state;
    thread.ran_ns = left.ran_ns;
    thread.weight = 0;
    let weight = weight(thread.interval_ns.max(usual_wait_ns(thread)));
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
            detail: left.state,
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

/// Ends a wait of which the kernel told nothing (a tracepoint that fires in a traced
/// one stays silent): the thread has been off the CPU for as long as it was not on one.
#[inline(always)]
fn end_missed(thread: &mut Thread, left: &Left) {
    if thread.left_ns != 0 {
        let ran_ns = left.ran_ns.wrapping_sub(thread.ran_ns);
        let since_ns = left.now.wrapping_sub(thread.left_ns);
        end(thread, left.tid, since_ns.saturating_sub(ran_ns));
    }
}

/// Forgets a thread that ends.
#[inline(always)]
pub fn forget(tid: u32) {
    let _ = THREADS.remove(tid);
}

/// The thread's place in the table.
#[inline(always)]
fn known(left: &Left) -> Option<&'static mut Thread> {
    let mut slot = THREADS.get_ptr_mut(left.tid);
    // SAFETY: a slot of the map, which only switches of this thread write.
    let is_other = |slot: *mut Thread| unsafe { (*slot).pid } != left.pid;
    if slot.is_none_or(is_other) {
        note(left.tid, left.pid, left.now, left.ran_ns);
        slot = THREADS.get_ptr_mut(left.tid);
    }
    // SAFETY: as above.
    slot.map(|thread| unsafe { &mut *thread })
}

/// Puts a thread into the table. Not part of the program itself, on whose stack it would
/// be beside all that takes a sample: kernels before 6.8 count each function's stack in
/// steps of 32 bytes, and allow 512 in all.
#[inline(never)]
fn note(tid: u32, pid: u32, now: u64, ran_ns: u64) {
    let new = Thread {
        left_ns: 0,
        woken_ns: 0,
        interval_ns: OFF_CPU_EVERY_NS,
        last_ns: now,
        state: 0,
        ran_ns,
        weight: 0,
        pid,
        place: 0,
        reserved: 0,
        places: [Place { key: 0, wait: 0 }; PLACES],
    };
    let _ = THREADS.insert(tid, new, 0);
}

/// How long the thread waited lately where it leaves from now. What it waits for
/// there tends to be the same, whatever else it waits for in between.
#[inline(always)]
fn usual_wait_ns(thread: &mut Thread) -> u64 {
    // One that wants to run waits for a CPU, wherever it is.
    let key = match thread.state {
        0 => 1,
        _ => saved_place(),
    };
    let index = key as usize & (PLACES - 1);
    thread.place = index as u32;
    let place = &mut thread.places[index];
    if place.key != key {
        *place = Place { key, wait: 0 };
    }
    u64::from(place.wait) << 10
}

/// An average that a long time sets at once and short ones by and by, each by one
/// part in so many.
#[inline(always)]
fn average(before: u64, now: u64, parts: u64) -> u64 {
    match now > before {
        true => now,
        false => before - (before - now).div_ceil(parts),
    }
}

/// How many departures one stack is to stand for, a power of two.
#[inline(always)]
fn weight(interval_ns: u64) -> u32 {
    let mut weight = 1;
    let mut interval = interval_ns;
    while weight < MAX_WEIGHT && interval < OFF_CPU_EVERY_NS {
        interval *= 2;
        weight *= 2;
    }
    weight
}

#[inline(always)]
fn come_back(thread: &mut Thread, tid: u32, now: u64) {
    if thread.left_ns != 0 {
        end(thread, tid, now.wrapping_sub(thread.left_ns));
    }
}

/// The thread was off the CPU for `duration_ns`.
#[inline(always)]
fn end(thread: &mut Thread, tid: u32, duration_ns: u64) {
    let place = &mut thread.places[thread.place as usize & (PLACES - 1)];
    let wait = (duration_ns >> 10).min(u64::from(u32::MAX));
    // Slowly: where a thread has waited long it may again, after many short waits.
    place.wait = average(place.wait.into(), wait, 32) as u32;
    // A short one is stood for by those that were taken.
    if thread.weight != 0 || duration_ns >= LONG_WAIT_NS {
        let blocked_ns = match (thread.state, thread.woken_ns) {
            (0, _) => 0,
            (_, 0) => duration_ns,
            (_, woken) => woken.wrapping_sub(thread.left_ns).min(duration_ns),
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
            part_ns: duration_ns - blocked_ns,
            detail: thread.state,
            window: 0,
        });
    }
    thread.left_ns = 0;
    thread.weight = 0;
}

/// Half a word of a `task_struct`.
#[inline(always)]
fn task_word(task: u64, offset: *const u32) -> u64 {
    let mut word = 0u32;
    task_read(task, offset, &mut word);
    word.into()
}

/// Reads a number of a `task_struct`; zero where it cannot be read.
#[inline(always)]
fn task_read<T>(task: u64, offset: *const u32, value: &mut T) {
    // SAFETY: the offset is set before the load and never after; the helper does
    // not fault, and writes zero where it fails.
    unsafe {
        let offset = core::ptr::read_volatile(offset);
        bpf_probe_read_kernel(
            core::ptr::from_mut(value).cast(),
            size_of::<T>() as u32,
            (task.wrapping_add(offset as u64)) as *const _,
        );
    }
}
