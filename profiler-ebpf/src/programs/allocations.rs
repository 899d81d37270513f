//! Memory that is allocated: where the runtime takes a sample, or at every allocation,
//! of which a random threshold of bytes lets some through. The others cost no more
//! than the trap.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_attach_cookie, bpf_get_prandom_u32},
    macros::{map, uprobe},
    maps::PerCpuArray,
    programs::ProbeContext,
};
use profiler_ebpf::wire::{Counter, Measured, allocation, cookie, event, kind};

use super::{
    budget::{Admitted, admit},
    emit::{TARGETS, count, emit_sample, header},
    memory::read_word,
    registers::{Arguments, arguments, probed_registers},
    sample::take,
    scratch::Scratch,
    waits::WAIT_LAYOUTS,
};

/// Bytes that may still be allocated on this CPU before one is taken; 0 where nobody
/// has drawn yet. Where a program is put aside between the load and the store, an
/// allocation is left out of the count: that moves a threshold by its size, seldom.
#[map]
static BYTES_LEFT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `profilealloc(mp, x, size)`, `runtime/malloc.go`: the runtime has taken a sample.
#[uprobe]
fn allocation_sampled(ctx: ProbeContext) -> u32 {
    if let Some(admitted) = admit(&ctx) {
        let size = arguments(&ctx).c;
        deliver(&ctx, &admitted, (size, 0), allocation::BY_RUNTIME);
        admitted.charge();
    }
    0
}

/// `mallocgc(size, typ, needzero)`, `runtime/malloc.go`, and those like it that are
/// made for one size each.
#[uprobe]
fn allocation_any(ctx: ProbeContext) -> u32 {
    let Some(admitted) = admit(&ctx) else {
        return 0;
    };
    let Arguments { a: size, b: of, .. } = arguments(&ctx);
    // SAFETY: valid in programs of uprobes (Linux 5.15).
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if size > cookie >> cookie::LEAST_BYTES_SHIFT && passes(size) {
        deliver(&ctx, &admitted, (size, of), allocation::BY_THRESHOLD);
    }
    admitted.charge();
    0
}

/// Whether an allocation passes the threshold. What is left of it has no memory, so
/// that it is one for all who allocate on this CPU.
#[inline(always)]
fn passes(size: u64) -> bool {
    let Some(left) = BYTES_LEFT.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: a slot of this CPU.
    let left = unsafe { &mut *left };
    if *left == 0 {
        *left = threshold();
    }
    if size < *left {
        *left -= size;
        return false;
    }
    *left = threshold();
    true
}

/// A number at random that is at least 1, by an exponential distribution with the mean
/// [`allocation::MEAN_BYTES`].
///
/// In units of the mean times ln 2 its whole part is how often a coin falls on the same
/// side, and what is behind the point is `-log2(1 - u / 2)` of an even `u`, here by a
/// polynomial that is off by 0.00013 at most.
#[inline(always)]
fn threshold() -> u64 {
    /// The mean times ln 2, in units of 2^-16.
    const UNIT: u64 = allocation::MEAN_BYTES * 45_426;
    // SAFETY: both draw a number.
    let (coins, even) = unsafe { (bpf_get_prandom_u32() as u32, bpf_get_prandom_u32() as u32) };
    let whole = coins.leading_zeros() as u64;
    // In units of 2^-16, all of them.
    let u = (even >> 16) as i64;
    let behind = (5_286 * u) >> 16;
    let behind = ((behind - 292) * u) >> 16;
    let behind = ((behind + 13_457) * u) >> 16;
    let behind = ((behind + 47_085) * u) >> 16;
    let sum = (whole << 16) + behind as u64;
    ((sum * UNIT) >> 32) + 1
}

#[inline(always)]
fn deliver(ctx: &ProbeContext, admitted: &Admitted, (size, of): (u64, u64), why: u64) {
    // SAFETY: read only, and at most replaced meanwhile.
    let Some(target) = (unsafe { TARGETS.get(admitted.pid) }) else {
        return;
    };
    // SAFETY: as above.
    let total = match unsafe { WAIT_LAYOUTS.get(admitted.pid) } {
        Some(layout) if layout.total_alloc != 0 => read_word(layout.total_alloc),
        _ => 0,
    };
    let Some(scratch) = Scratch::for_probe() else {
        count(Counter::ProbesNested);
        return;
    };
    scratch.measured = Measured {
        header: header(kind::MEASURED),
        event: event::ALLOCATION,
        weight: 1,
        duration_ns: size,
        part_ns: of,
        detail: why | total << allocation::TOTAL_SHIFT,
        window: admitted.window,
    };
    let registers = probed_registers(ctx);
    take(ctx.as_ptr(), scratch, &target.go, &registers, true);
    if let Some(record) = scratch.measured_record() {
        emit_sample(record);
    }
    scratch.release();
}
