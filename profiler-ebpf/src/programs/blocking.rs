//! Goroutines that wait: one parks, and later a thread takes it up again. Its stack
//! is that where it parked, which it keeps until then.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{map, uprobe},
    maps::HashMap,
    programs::ProbeContext,
};
use profiler_ebpf::wire::{Counter, Measured, Parked, WaitKey, event, kind, wait};

use super::{
    budget::{Admitted, admit},
    emit::{TARGETS, count, emit_sample, header},
    memory::read_word,
    registers::arguments,
    sample::take_parked,
    scratch::Scratch,
    waits::{WAIT_LAYOUTS, key, reason_of},
};

/// By process and goroutine. Without memory set aside: most processes have few.
#[map]
static PARKED: HashMap<WaitKey, Parked> = HashMap::with_max_entries(1024 * 1024, 1);

/// `gopark(unlockf, lock, reason, ...)`, `runtime/proc.go`: the current goroutine is
/// about to wait.
#[uprobe]
fn blocking_park(ctx: ProbeContext) -> u32 {
    let Some(admitted) = admit(&ctx) else {
        return 0;
    };
    let arguments = arguments(&ctx);
    let reason = arguments.c & 0xff;
    // SAFETY: read only, and at most replaced meanwhile.
    if let Some(layout) = unsafe { WAIT_LAYOUTS.get(admitted.pid) }
        && layout.wants(reason)
    {
        let parked = Parked {
            // SAFETY: reads the clock.
            since_ns: unsafe { bpf_ktime_get_ns() },
            ready_ns: 0,
            reason,
        };
        if PARKED.insert(key(arguments.g), parked, 0).is_err() {
            count(Counter::WaitsFull);
        }
    }
    admitted.charge();
    0
}

/// `ready(gp, traceskip, next)`, `runtime/proc.go`: a goroutine can go on. What waits
/// for the network comes by elsewhere.
#[uprobe]
fn blocking_ready(ctx: ProbeContext) -> u32 {
    let Some(admitted) = admit(&ctx) else {
        return 0;
    };
    if let Some(parked) = PARKED.get_ptr_mut(key(arguments(&ctx).a)) {
        // SAFETY: a slot of the map.
        unsafe { (*parked).ready_ns = bpf_ktime_get_ns() };
    }
    admitted.charge();
    0
}

/// `execute(gp, inheritTime)`, `runtime/proc.go`: the current thread takes a goroutine
/// up.
#[uprobe]
fn blocking_execute(ctx: ProbeContext) -> u32 {
    if let Some(admitted) = admit(&ctx) {
        take_up(&ctx, &admitted);
        admitted.charge();
    }
    0
}

#[inline(always)]
fn take_up(ctx: &ProbeContext, admitted: &Admitted) {
    let g = arguments(ctx).a;
    // SAFETY: read only, and at most replaced meanwhile.
    let (Some(layout), Some(target)) =
        (unsafe { (WAIT_LAYOUTS.get(admitted.pid), TARGETS.get(admitted.pid)) })
    else {
        return;
    };
    // SAFETY: reads the clock, and copies integers.
    let (now, known) = unsafe { (bpf_ktime_get_ns(), PARKED.get(key(g)).copied()) };
    if known.is_some() {
        let _ = PARKED.remove(key(g));
    }
    let (since_ns, ready_ns, detail) = match known {
        Some(parked) if parked.since_ns >= admitted.since_ns => {
            (parked.since_ns, parked.ready_ns, parked.reason)
        }
        _ => {
            // Nobody saw it park, if it did: it may have been preempted.
            let saved = g.wrapping_add(target.go.g_sched_pc as u64);
            let reason = reason_of(layout, g);
            if !layout.park.holds(read_word(saved)) || !layout.wants(reason) {
                return;
            }
            let ready_ns = known.map_or(0, |parked| parked.ready_ns);
            (admitted.since_ns, ready_ns, reason | wait::BEGAN_BEFORE)
        }
    };
    let duration_ns = now.wrapping_sub(since_ns);
    // Of one that began before nobody knows.
    if duration_ns < layout.min_wait_ns && detail & wait::BEGAN_BEFORE == 0 {
        return;
    }
    let Some(scratch) = Scratch::for_probe() else {
        count(Counter::ProbesNested);
        return;
    };
    scratch.measured = Measured {
        header: header(kind::MEASURED),
        event: event::BLOCK,
        weight: 1,
        duration_ns,
        part_ns: if ready_ns > since_ns {
            now.wrapping_sub(ready_ns)
        } else {
            0
        },
        detail,
        window: admitted.window,
    };
    take_parked(scratch, &target.go, g);
    if let Some(record) = scratch.measured_record() {
        emit_sample(record);
    }
    scratch.release();
}
