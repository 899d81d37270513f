//! Requests to block devices: who asked, when the driver got them and when they
//! were done. A request is known by its device and first sector, which is what
//! changes as it is merged or done in parts.

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_ktime_get_ns,
        generated::bpf_probe_read_kernel,
    },
    macros::{map, tracepoint},
    maps::{HashMap, LruHashMap},
    programs::TracePointContext,
};
use profiler_ebpf::wire::{Counter, Header, Measured, event, kind};

use super::{
    emit::{TARGETS, count, emit_end, emit_sample, header},
    registers::saved_user_registers,
    sample::{take, take_kernel},
    scratch::{Scratch, Slot},
};

/// Where a tracepoint's record keeps what, in bytes: device, sector, number of
/// sectors, and the letters that say what is to be done. Set before the load.
type Offsets = [u16; 4];

/// Of `block_io_start`, or of `block_getrq` where there is none.
#[unsafe(no_mangle)]
static IO_BEGIN: Offsets = [0; 4];
/// Of `block_rq_issue`.
#[unsafe(no_mangle)]
static IO_ISSUE: Offsets = [0; 4];
/// Of `block_rq_merge`.
#[unsafe(no_mangle)]
static IO_MERGE: Offsets = [0; 4];
/// Of `block_bio_frontmerge`.
#[unsafe(no_mangle)]
static IO_FRONT: Offsets = [0; 4];
/// Of `block_rq_complete`.
#[unsafe(no_mangle)]
static IO_COMPLETE: Offsets = [0; 4];
/// Where `task_struct` keeps what kind of task it is, in bytes.
#[unsafe(no_mangle)]
static TASK_FLAGS: u32 = 0;
/// Not zero where the requests of kernel threads are wanted.
#[unsafe(no_mangle)]
static KERNEL_IO: u8 = 0;

/// `PF_KTHREAD` (`include/linux/sched.h`).
const KERNEL_THREAD: u32 = 0x0020_0000;

/// A flush that is not done after this long never will be, as far as we are told. They
/// all have one place, and several at a time are nothing special.
const GIVEN_UP_NS: u64 = 30_000_000_000;

/// What a request is known by.
#[repr(C)]
#[derive(Clone, Copy)]
struct Place {
    device: u32,
    /// Not zero for one that moves no data: it has no sector.
    is_flush: u32,
    sector: u64,
}

/// A request under way.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    began_ns: u64,
    /// When the driver got it first; 0 where it has not.
    issued_ns: u64,
    /// Bytes that were asked of the driver.
    bytes: u64,
    /// Sectors that are not done.
    left: u32,
    pid: u32,
    tid: u32,
    /// The CPU it began on.
    cpu: u32,
}

/// Requests of those that are wanted. One whose end is not told of falls out in time.
/// Sized at load.
#[map]
static REQUESTS: LruHashMap<Place, Request> = LruHashMap::with_max_entries(16 * 1024, 0);

/// The devices that partitions are on, by partition: what is merged names the
/// partition, what is issued the device.
#[map]
static PARTITIONS: HashMap<u32, u32> = HashMap::with_max_entries(1024, 0);

/// What a tracepoint's record says.
struct Said {
    place: Place,
    sectors: u32,
    /// The first letters of what is to be done.
    letters: u32,
}

/// A request has been made, by the current task.
#[tracepoint]
fn block_io_begin(ctx: TracePointContext) -> u32 {
    let said = said(&ctx, &raw const IO_BEGIN);
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    // SAFETY: read only, and at most replaced meanwhile.
    let target = unsafe { TARGETS.get(pid) };
    if target.is_none() && !(wants_kernel() && is_kernel_thread()) {
        return 0;
    }
    count(Counter::IoBegun);
    let Some(scratch) = Scratch::of_this_cpu(Slot::Block) else {
        return 0;
    };
    scratch.measured = Measured {
        header: header(kind::MEASURED),
        event: event::BLOCK_IO,
        weight: 1,
        duration_ns: 0,
        part_ns: u64::from(said.sectors) << 9,
        detail: u64::from(said.place.device) << 32 | u64::from(said.letters),
        window: 0,
    };
    let begun = scratch.measured.header;
    let request = Request {
        began_ns: begun.time_ns,
        issued_ns: 0,
        bytes: 0,
        left: said.sectors,
        pid,
        tid: pid_tgid as u32,
        cpu: begun.cpu,
    };
    if !begin(&said.place, &request) {
        count(Counter::IoNotPaired);
        return 0;
    }
    match target {
        Some(target) => {
            let registers = saved_user_registers();
            take(ctx.as_ptr(), scratch, &target.go, &registers, false);
        }
        None => {
            scratch.measured.event = event::BLOCK_IO_OF_KERNEL;
            take_kernel(ctx.as_ptr(), scratch);
        }
    }
    let is_told = scratch.measured_record().is_some_and(emit_sample);
    if !is_told {
        let _ = REQUESTS.remove(said.place);
    }
    0
}

/// Adds a request. One to the same place is given up: that its end was not told is
/// likelier than that both are under way. Not so of flushes, of which the first stays.
#[inline(always)]
fn begin(place: &Place, request: &Request) -> bool {
    if let Some(other) = REQUESTS.get_ptr(place) {
        // SAFETY: a slot of the map.
        let other = unsafe { *other };
        let age_ns = request.began_ns.wrapping_sub(other.began_ns);
        if place.is_flush != 0 && age_ns < GIVEN_UP_NS {
            return false;
        }
        count(Counter::IoNotPaired);
        end(&other, 0, 0, 1);
    }
    REQUESTS.insert(place, request, 0).is_ok()
}

/// The driver gets a request: for the first time, or again.
#[tracepoint]
fn block_io_issue(ctx: TracePointContext) -> u32 {
    let said = said(&ctx, &raw const IO_ISSUE);
    if let Some(request) = REQUESTS.get_ptr_mut(said.place) {
        // SAFETY: a slot of the map; a request is issued by one at a time.
        unsafe {
            if (*request).issued_ns == 0 {
                (*request).issued_ns = bpf_ktime_get_ns();
                (*request).bytes = u64::from(said.sectors) << 9;
                (*request).left = said.sectors;
            }
        }
    }
    0
}

/// A request has become part of another, which goes on under its own name.
#[tracepoint]
fn block_io_merge(ctx: TracePointContext) -> u32 {
    let said = said(&ctx, &raw const IO_MERGE);
    if let Some(request) = REQUESTS.get_ptr(said.place) {
        // SAFETY: a slot of the map.
        let request = unsafe { *request };
        end(&request, 0, 0, 0);
        let _ = REQUESTS.remove(said.place);
    }
    0
}

/// What is asked for now lies right before a request, which begins there from now on.
#[tracepoint]
fn block_io_front(ctx: TracePointContext) -> u32 {
    let mut said = said(&ctx, &raw const IO_FRONT);
    // SAFETY: an integer that is copied at once.
    if let Some(device) = unsafe { PARTITIONS.get(said.place.device) } {
        said.place.device = *device;
    }
    let after = Place {
        sector: said.place.sector.wrapping_add(said.sectors.into()),
        is_flush: 0,
        ..said.place
    };
    rename(&after, &said.place, said.sectors as i32);
    0
}

/// A request is done, or a part of it from its beginning.
#[tracepoint]
fn block_io_complete(ctx: TracePointContext) -> u32 {
    let said = said(&ctx, &raw const IO_COMPLETE);
    let Some(request) = REQUESTS.get_ptr(said.place) else {
        return 0;
    };
    // SAFETY: a slot of the map.
    let request = unsafe { *request };
    if said.sectors < request.left {
        let rest = Place {
            sector: said.place.sector.wrapping_add(said.sectors.into()),
            ..said.place
        };
        rename(&said.place, &rest, -(said.sectors as i32));
        return 0;
    }
    // SAFETY: reads the clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let issued_ns = match request.issued_ns {
        0 => request.began_ns,
        issued_ns => issued_ns,
    };
    let queued_ns = issued_ns.wrapping_sub(request.began_ns);
    end(&request, 1, now.wrapping_sub(issued_ns), queued_ns);
    let _ = REQUESTS.remove(said.place);
    0
}

/// A request goes on under another name, with more or fewer sectors to be done.
#[inline(always)]
fn rename(from: &Place, to: &Place, sectors: i32) {
    if let Some(request) = REQUESTS.get_ptr(from) {
        // SAFETY: a slot of the map.
        let mut request = unsafe { *request };
        request.left = request.left.wrapping_add_signed(sectors);
        let _ = REQUESTS.remove(from);
        if REQUESTS.insert(to, request, 0).is_err() {
            count(Counter::IoNotPaired);
        }
    }
}

/// Tells of the end, under the header that the request began with. `weight` is 0
/// where it was not done: it became part of another, or was given up where
/// `queued_ns` is not 0.
#[inline(always)]
fn end(request: &Request, weight: u32, duration_ns: u64, queued_ns: u64) {
    emit_end(&Measured {
        header: Header {
            kind: kind::ENDED,
            cpu: request.cpu,
            time_ns: request.began_ns,
            pid: request.pid,
            tid: request.tid,
        },
        event: event::BLOCK_IO,
        weight,
        duration_ns,
        part_ns: queued_ns,
        detail: request.bytes,
        window: 0,
    });
}

#[inline(always)]
fn said(ctx: &TracePointContext, offsets: *const Offsets) -> Said {
    // SAFETY: set before the load and never after.
    let [device, sector, sectors, letters] = unsafe { core::ptr::read_volatile(offsets) };
    let (mut place, mut count, mut text) = (
        Place {
            device: 0,
            is_flush: 0,
            sector: 0,
        },
        0u32,
        0u32,
    );
    read(ctx, device, &mut place.device);
    read(ctx, sector, &mut place.sector);
    read(ctx, sectors, &mut count);
    read(ctx, letters, &mut text);
    place.is_flush = u32::from(count == 0);
    if count == 0 {
        // Some kernels say none, others the last possible.
        place.sector = 0;
    }
    Said {
        place,
        sectors: count,
        letters: text,
    }
}

/// Reads a number of the tracepoint's record; zero where it cannot be read.
#[inline(always)]
fn read<T>(ctx: &TracePointContext, offset: u16, value: &mut T) {
    // SAFETY: the helper does not fault, and writes zero where it fails.
    unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(value).cast(),
            size_of::<T>() as u32,
            ctx.as_ptr().cast::<u8>().wrapping_add(offset.into()).cast(),
        );
    }
}

#[inline(always)]
fn wants_kernel() -> bool {
    // SAFETY: set before the load and never after.
    unsafe { core::ptr::read_volatile(&raw const KERNEL_IO) != 0 }
}

/// Whether the current task is the kernel's own.
#[inline(always)]
fn is_kernel_thread() -> bool {
    let mut flags = 0u32;
    // SAFETY: the offset is set before the load and never after; the helper does
    // not fault, and writes zero where it fails.
    unsafe {
        let offset = core::ptr::read_volatile(&raw const TASK_FLAGS);
        let task = bpf_get_current_task_btf() as *const u8;
        bpf_probe_read_kernel(
            (&raw mut flags).cast(),
            4,
            task.wrapping_add(offset as usize).cast(),
        );
    }
    flags & KERNEL_THREAD != 0
}
