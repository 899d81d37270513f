//! The maps that every program shares, and the only writer of the ring buffer:
//! what does not fit is counted.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::map,
    maps::{HashMap, PerCpuArray, RingBuf},
};
use profiler_ebpf::wire::{Counter, Header, Measured, ShareSpent, Target, kind};

/// Wakes userspace once this much waits; below, it looks by itself a few
/// times a second, so that most records cost no wake-up.
const WAKEUP_BYTES: u64 = 256 * 1024;

/// Records for userspace. Sized at load.
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);

/// The processes to sample, by pid.
#[map]
pub static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(16 * 1024, 0);

/// [`Counter`]s.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a slot of this CPU. An interrupt that counts between the
        // load and the store would be lost; no two programs share a counter.
        unsafe { *value += 1 };
    }
}

/// The header of a record of `kind` about the current thread.
#[inline(always)]
pub fn header(kind: u32) -> Header {
    let pid_tgid = bpf_get_current_pid_tgid();
    Header {
        kind,
        // SAFETY: reads the CPU's number.
        cpu: unsafe { bpf_get_smp_processor_id() } as u32,
        // SAFETY: reads the clock.
        time_ns: unsafe { bpf_ktime_get_ns() },
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
    }
}

/// Delivers a sample, waking userspace only when much waits. Says whether there
/// was room.
#[inline(always)]
pub fn emit_sample(bytes: &[u8]) -> bool {
    let delivered = RECORDS.output::<[u8]>(bytes, wakeup()).is_ok();
    if !delivered {
        count(Counter::SamplesRingFull);
    }
    delivered
}

/// Delivers the end of what a sample began.
#[inline(always)]
pub fn emit_end(end: &Measured) {
    if RECORDS.output::<Measured>(*end, wakeup()).is_err() {
        count(Counter::EndsRingFull);
    }
}

#[inline(always)]
fn wakeup() -> u64 {
    let waits = RECORDS.query(BPF_RB_AVAIL_DATA as u64) >= WAKEUP_BYTES;
    let wakeup = match waits {
        true => BPF_RB_FORCE_WAKEUP,
        false => BPF_RB_NO_WAKEUP,
    };
    wakeup as u64
}

/// Delivers a record that userspace must see at once.
#[inline(always)]
pub fn emit_event(kind: u32) {
    emit_header(kind, BPF_RB_FORCE_WAKEUP);
}

/// Delivers a record that can wait until userspace looks by itself.
#[inline(always)]
pub fn emit_patient_event(kind: u32) {
    emit_header(kind, BPF_RB_NO_WAKEUP);
}

#[inline(always)]
fn emit_header(kind: u32, wakeup: u32) {
    if RECORDS
        .output::<Header>(header(kind), wakeup as u64)
        .is_err()
    {
        count(Counter::EventsRingFull);
    }
}

/// Delivers that the share of a window is spent, at once.
#[inline(always)]
pub fn emit_share_spent(window: u64) {
    let record = ShareSpent {
        header: header(kind::SHARE_SPENT),
        window,
    };
    if RECORDS
        .output::<ShareSpent>(record, BPF_RB_FORCE_WAKEUP as u64)
        .is_err()
    {
        count(Counter::EventsRingFull);
    }
}
