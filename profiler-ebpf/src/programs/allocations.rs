//! Memory that is allocated: where the runtime takes a sample, where a span of blocks is
//! used up, or at every allocation, of which a random threshold of bytes lets some
//! through. The others cost no more than the trap.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_attach_cookie, bpf_get_prandom_u32},
    macros::{map, uprobe},
    maps::PerCpuArray,
    programs::ProbeContext,
};
use profiler_ebpf::wire::{Counter, Measured, SpanLayout, allocation, cookie, event, kind};

use super::{
    budget::{Admitted, admit},
    emit::{TARGETS, count, emit_sample, header},
    memory::{read, read_word},
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
        deliver(&ctx, &admitted, Taken::one(size, allocation::BY_RUNTIME));
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
        let taken = Taken::one(size, allocation::BY_THRESHOLD);
        deliver(&ctx, &admitted, Taken { of, ..taken });
    }
    admitted.charge();
    0
}

/// `(*mcache).refill(class)` and `(*mcache).allocLarge(size, noscan)`, `runtime/mcache.go`:
/// all that is allocated comes from spans that the first takes once one is used up, or is
/// large.
#[uprobe]
fn allocation_span(ctx: ProbeContext) -> u32 {
    let Some(admitted) = admit(&ctx) else {
        return 0;
    };
    let Arguments { a: cache, b, .. } = arguments(&ctx);
    // SAFETY: valid in programs of uprobes (Linux 5.15).
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if cookie & cookie::LARGE != 0 {
        deliver(&ctx, &admitted, Taken::one(b, allocation::BY_LARGE));
    } else {
        // SAFETY: read only, and at most replaced meanwhile.
        let layout = unsafe { WAIT_LAYOUTS.get(admitted.pid) };
        // A class is a byte: what else is in the register is nobody's.
        if let Some(taken) = layout.and_then(|layout| used_up(&layout.span, cache, b & 0xff)) {
            deliver(&ctx, &admitted, taken);
        }
    }
    admitted.charge();
    0
}

/// What was used of the span of a class that a cache of spans has, as the runtime itself
/// counts it there. None where it is the one that stands for none.
#[inline(always)]
fn used_up(layout: &SpanLayout, cache: u64, class: u64) -> Option<Taken> {
    let slot = u64::from(layout.cache_alloc).wrapping_add(8 * class);
    let span = read_word(cache.wrapping_add(slot));
    let at = |offset: u16| span.wrapping_add(u64::from(offset));
    let mut size = 0u64;
    // SAFETY: a word of our own.
    let is_read = unsafe { read((&raw mut size).cast(), 8, at(layout.block_bytes)) };
    if is_read && size == 0 {
        return None;
    }
    let (used, before) = (
        read_word(at(layout.used)) as u16,
        read_word(at(layout.used_before)) as u16,
    );
    Some(Taken {
        blocks: u32::from(used.wrapping_sub(before)),
        ..Taken::one(size, allocation::BY_SPAN)
    })
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

/// What is told of allocations.
#[derive(Clone, Copy)]
struct Taken {
    /// How many.
    blocks: u32,
    /// The size of each, in bytes.
    size: u64,
    /// The descriptor of its type; 0 where nobody says.
    of: u64,
    /// One of [`allocation`].
    why: u64,
}

impl Taken {
    #[inline(always)]
    fn one(size: u64, why: u64) -> Self {
        Self {
            blocks: 1,
            size,
            of: 0,
            why,
        }
    }
}

#[inline(always)]
fn deliver(ctx: &ProbeContext, admitted: &Admitted, taken: Taken) {
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
        weight: taken.blocks,
        duration_ns: taken.size,
        part_ns: taken.of,
        detail: taken.why | total << allocation::TOTAL_SHIFT,
        window: admitted.window,
    };
    let registers = probed_registers(ctx);
    take(ctx.as_ptr(), scratch, &target.go, &registers, true);
    if let Some(record) = scratch.measured_record() {
        emit_sample(record);
    }
    scratch.release();
}
