//! Waiting for semaphores: mutexes, wait groups and what else has one. A goroutine
//! queues up, and another one wakes it. What it waited counts for who woke it, as in
//! Go's own mutex profile, or for itself.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_ktime_get_ns,
    macros::{map, uprobe},
    maps::HashMap,
    programs::ProbeContext,
};
use profiler_ebpf::wire::{Counter, Measured, Queue, WaitKey, Waiter, at, event, kind, wait};

use super::{
    budget::{Admitted, add, admit},
    emit::{TARGETS, count, emit_sample, header},
    memory::read_word,
    registers::{Arguments, arguments, probed_registers},
    sample::{take, take_parked},
    scratch::Scratch,
    waits::{WAIT_LAYOUTS, key, reason_of},
};

/// By process and goroutine.
#[map]
static WAITERS: HashMap<WaitKey, Waiter> = HashMap::with_max_entries(256 * 1024, NO_PREALLOC);
/// By process and semaphore.
#[map]
static QUEUES: HashMap<WaitKey, Queue> = HashMap::with_max_entries(64 * 1024, NO_PREALLOC);

/// `BPF_F_NO_PREALLOC`: most processes have few.
const NO_PREALLOC: u32 = 1;

/// `(*semaRoot).queue(root, addr, s, lifo)`, `runtime/sema.go`: the current goroutine
/// is about to wait.
#[uprobe]
fn contention_queue(ctx: ProbeContext) -> u32 {
    let Some(admitted) = admit(&ctx) else {
        return 0;
    };
    let Arguments { b: address, g, .. } = arguments(&ctx);
    begin(g, address, admitted.since_ns);
    admitted.charge();
    0
}

/// `notifyListWait(l, t)`, `runtime/sema.go`: likewise, for a `sync.Cond`.
#[uprobe]
fn contention_notify(ctx: ProbeContext) -> u32 {
    let Some(admitted) = admit(&ctx) else {
        return 0;
    };
    begin(arguments(&ctx).g, 0, admitted.since_ns);
    admitted.charge();
    0
}

#[inline(always)]
fn begin(g: u64, address: u64, watched_since_ns: u64) {
    // SAFETY: reads the clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let waiter = Waiter {
        since_ns: now,
        address,
    };
    if WAITERS.insert(key(g), waiter, 0).is_err() {
        count(Counter::WaitsFull);
        return;
    }
    if address == 0 {
        return;
    }
    if let Some(queue) = QUEUES.get_ptr_mut(key(address)) {
        // SAFETY: a slot of the map. Others may add to it at the same time.
        unsafe {
            if (*queue).watched_since_ns == watched_since_ns {
                add(&raw mut (*queue).waiters, 1);
                add(&raw mut (*queue).since_sum_ns, now);
                return;
            }
        }
    }
    let queue = Queue {
        waiters: 1,
        since_sum_ns: now,
        counted_ns: 0,
        watched_since_ns,
    };
    if QUEUES.insert(key(address), queue, 0).is_err() {
        count(Counter::WaitsFull);
    }
}

/// `readyWithTime(s, traceskip)`, `runtime/sema.go`: the current goroutine wakes the
/// one that `s` stands for.
#[uprobe]
fn contention_ready(ctx: ProbeContext) -> u32 {
    if let Some(admitted) = admit(&ctx) {
        wake(&ctx, &admitted);
        admitted.charge();
    }
    0
}

#[inline(always)]
fn wake(ctx: &ProbeContext, admitted: &Admitted) {
    let pid = admitted.pid;
    // SAFETY: read only, and at most replaced meanwhile.
    let (Some(layout), Some(target)) = (unsafe { (WAIT_LAYOUTS.get(pid), TARGETS.get(pid)) })
    else {
        return;
    };
    // SAFETY: reads the clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let sudog = arguments(ctx).a;
    // `sudog.g` is its first field, in every version.
    let waiter = read_word(sudog);
    // SAFETY: a copy of integers.
    let known = unsafe { WAITERS.get(key(waiter)) }.copied();
    let _ = WAITERS.remove(key(waiter));
    let since = known.filter(|known| known.since_ns >= admitted.since_ns);
    let mut flags = 0;
    let mut own_ns = match since {
        Some(known) => now.wrapping_sub(known.since_ns),
        None => {
            flags |= wait::BEGAN_BEFORE;
            now.wrapping_sub(admitted.since_ns)
        }
    };
    if own_ns < layout.min_wait_ns {
        return;
    }
    let reason = reason_of(layout, waiter);
    if !layout.wants(reason) {
        return;
    }
    // All who wait for it waited for this unlock, as Go counts since 1.21.
    let mut all_ns = own_ns;
    if let Some(known) = since
        && known.address != 0
        && layout.counts_all != 0
    {
        (own_ns, all_ns) = charge_queue(known, now, admitted.since_ns);
    }
    let Some(scratch) = Scratch::for_probe() else {
        count(Counter::ProbesNested);
        return;
    };
    scratch.measured = Measured {
        header: header(kind::MEASURED),
        event: event::MUTEX,
        weight: 1,
        duration_ns: all_ns,
        part_ns: match target.go.known {
            0 => 0,
            _ => read_word(waiter.wrapping_add(target.go.g_goid as u64)),
        },
        detail: reason | flags,
        window: admitted.window,
    };
    if layout.at & at::WAKER != 0 {
        let registers = probed_registers(ctx);
        take(ctx.as_ptr(), scratch, &target.go, &registers, true);
        if let Some(record) = scratch.measured_record() {
            emit_sample(record);
        }
    }
    if layout.at & at::WAITER != 0 {
        scratch.measured.detail = reason | flags | wait::OF_WAITER;
        scratch.measured.duration_ns = match since {
            Some(known) => now.wrapping_sub(known.since_ns),
            None => own_ns,
        };
        take_parked(scratch, &target.go, waiter);
        if let Some(record) = scratch.measured_record() {
            emit_sample(record);
        }
    }
    scratch.release();
}

/// What one who is woken has waited since it was counted last, and what all that
/// wait for the same semaphore have; counts them.
#[inline(always)]
fn charge_queue(known: Waiter, now: u64, watched_since_ns: u64) -> (u64, u64) {
    let whole = now.wrapping_sub(known.since_ns);
    let Some(queue) = QUEUES.get_ptr_mut(key(known.address)) else {
        return (whole, whole);
    };
    // SAFETY: a slot of the map. Others may add to it at the same time, so that what
    // changes is added too, and comes to the same in any order.
    unsafe {
        let Queue {
            waiters,
            since_sum_ns,
            counted_ns,
            watched_since_ns: since,
        } = *queue;
        let all_ns = waiters.wrapping_mul(now).wrapping_sub(since_sum_ns);
        let most_ns = waiters.wrapping_mul(now.wrapping_sub(watched_since_ns));
        // Two that wake at the same time can leave it wrong: it begins anew then.
        if since != watched_since_ns || waiters == 0 || all_ns > most_ns {
            let _ = QUEUES.remove(key(known.address));
            return (whole, whole);
        }
        let rest = waiters - 1;
        if rest == 0 {
            let _ = QUEUES.remove(key(known.address));
        } else {
            add(&raw mut (*queue).waiters, u64::MAX);
            let moved = rest.wrapping_mul(now).wrapping_sub(since_sum_ns);
            add(&raw mut (*queue).since_sum_ns, moved);
            (*queue).counted_ns = now;
        }
        let own_since = if counted_ns > known.since_ns {
            counted_ns
        } else {
            known.since_ns
        };
        (now.wrapping_sub(own_since), all_ns)
    }
}
