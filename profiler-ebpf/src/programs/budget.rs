//! What probes may take from their process: every uprobe program begins with
//! [`admit`] and ends with [`Admitted::charge`]. Outside of a window, or when its
//! share is spent, a hit is counted and nothing else is done for it.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated::bpf_get_attach_cookie},
    macros::map,
    maps::{HashMap, PerCpuArray, ProgramArray},
    programs::ProbeContext,
};
use profiler_ebpf::wire::{ProbeShare, ProbeWindow, cookie};

use super::{
    emit::emit_share_spent,
    registers::{is_arm64, probed_ip},
};

/// Most processes that are probed at a time.
const MAX_PROBED: u32 = 1024;

/// Most that a program is charged for one hit. It takes a fraction of that; what is
/// more is the time for which its thread was put aside.
const MAX_PROGRAM_NS: u64 = 100_000;

/// What probes took so far, by pid. On one entry, not one for each CPU: a program
/// can be put aside between a load and a store, so that additions must be atomic in
/// either case, and the share is one for all CPUs.
#[map]
static PROBE_SHARES: HashMap<u32, ProbeShare> = HashMap::with_max_entries(MAX_PROBED, 0);

/// The window of each process, by pid.
#[map]
static PROBE_WINDOWS: HashMap<u32, ProbeWindow> = HashMap::with_max_entries(MAX_PROBED, 0);

/// The window of each process whose share is spent, by pid: who puts it there tells
/// of it. Userspace removes it before the next window opens.
#[map]
static PROBE_SPENT: HashMap<u32, u64> = HashMap::with_max_entries(MAX_PROBED, 0);

/// No program at all, to go on with: see [`tell_once`].
#[map]
static NO_PROGRAM: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Where each CPU was hit last.
#[map]
static PROBE_HIT_AT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The longest instruction that a probe sits on: `jbe` with a distance of four bytes.
const LONGEST_INSTRUCTION: u64 = 6;

/// A hit in a window, at work.
pub struct Admitted {
    share: *mut ProbeShare,
    began_ns: u64,
    /// The process.
    pub pid: u32,
    /// The window's number.
    pub window: u64,
    /// Since when probes have been on without a pause, at least.
    pub since_ns: u64,
}

/// Counts a hit, and says whether it is to be looked at. `None` where it lies outside
/// of a window, the window's share is spent, or it is no call: the stack has to grow
/// first, and the function begins once more.
#[inline(always)]
pub fn admit(ctx: &ProbeContext) -> Option<Admitted> {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let share = PROBE_SHARES.get_ptr_mut(pid)?;
    if let Some(hit_at) = PROBE_HIT_AT.get_ptr_mut(0) {
        // SAFETY: the entry of this CPU. Should this program be put aside here, the CPU
        // is at something else by the time that a tick could take it for a hit's end.
        unsafe { *hit_at = probed_ip(ctx) };
    }
    // SAFETY: reads the clock.
    let began_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a value of the map, which stays where it is while programs run.
    unsafe { add(&raw mut (*share).hits, 1) };
    let (mut number, mut since_ns) = (0, 0);
    // SAFETY: read only, and at most replaced meanwhile.
    let wanted = match unsafe { PROBE_WINDOWS.get(pid) } {
        Some(window) if window.opens_ns <= began_ns && began_ns < window.closes_ns => {
            (number, since_ns) = (window.number, window.since_ns);
            // SAFETY: as above. A count that another CPU is at misses this hit at
            // worst: the next sees both.
            let charge_ns = unsafe { (*share).charge_ns(window.trap_ns) };
            let within = charge_ns < window.spent_at_ns;
            if !within {
                tell_once(ctx, pid, window.number);
            }
            within
        }
        _ => false,
    };
    if !wanted {
        // SAFETY: as above.
        unsafe { add(&raw mut (*share).refused, 1) };
        return None;
    }
    if stack_grows(ctx) {
        // SAFETY: as above.
        unsafe { add(&raw mut (*share).repeated, 1) };
        return None;
    }
    Some(Admitted {
        share,
        began_ns,
        pid,
        window: number,
        since_ns,
    })
}

impl Admitted {
    /// Charges the process with what the program took.
    #[inline(always)]
    pub fn charge(self) {
        // SAFETY: reads the clock.
        let took_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(self.began_ns);
        let took_ns = if took_ns > MAX_PROGRAM_NS {
            MAX_PROGRAM_NS
        } else {
            took_ns
        };
        // SAFETY: a value of the map, which stays where it is while programs run.
        unsafe { add(&raw mut (*self.share).program_ns, took_ns) };
    }
}

/// A tick found the process `pid`, which may have a window: in user mode at `user_ip`, or
/// in the kernel where that is 0.
#[inline(always)]
pub fn tick(pid: u32, user_ip: u64) {
    let Some(share) = PROBE_SHARES.get_ptr_mut(pid) else {
        return;
    };
    // SAFETY: read only, and at most replaced meanwhile.
    let Some(window) = (unsafe { PROBE_WINDOWS.get(pid) }) else {
        return;
    };
    // SAFETY: reads the clock.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a value of the map, which stays where it is while programs run.
    let charge_ns = unsafe { (*share).charge_ns(window.trap_ns) };
    if now_ns < window.opens_ns || window.closes_ns <= now_ns || window.spent_at_ns <= charge_ns {
        return;
    }
    // A tick that comes due while the kernel leaves a hit is held up until the first
    // instruction of user mode: that is the one behind the probe.
    // SAFETY: the entry of this CPU.
    let hit_at = PROBE_HIT_AT.get_ptr_mut(0).map_or(0, |at| unsafe { *at });
    let leaves_hit = user_ip.wrapping_sub(hit_at).wrapping_sub(1) < LONGEST_INSTRUCTION;
    // SAFETY: as above.
    let ticks = unsafe {
        match user_ip != 0 && !leaves_hit {
            true => &raw mut (*share).user_ticks,
            false => &raw mut (*share).kernel_ticks,
        }
    };
    // SAFETY: as above.
    unsafe { add(ticks, 1) };
}

/// # Safety
/// `counter` is in a value of a map.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, number: u64) {
    // SAFETY: the caller's. The old value is not used, so that the oldest form of the
    // instruction will do.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, number) };
}

/// Tells userspace, unless somebody did for this window.
///
/// And keeps every uprobe program off private stacks. Since Linux 6.13 a program of this
/// type that takes 64 bytes of stack or more gets one of its own for each CPU, as if it
/// could not be put aside (`bpf_enable_priv_stack`, `kernel/bpf/verifier.c`). Those of
/// uprobes are, where the kernel is preemptible (`bpf_prog_run_array_uprobe`): another
/// thread that hits the probe on that CPU meanwhile writes over what this one has there,
/// and the kernel faults. No program that can go on with another has a private stack
/// (`check_max_stack_depth`), so each could, and none does: the call finds nothing and
/// comes back.
#[inline(always)]
fn tell_once(ctx: &ProbeContext, pid: u32, window: u64) {
    // SAFETY: only whether it is there matters.
    let told = unsafe { PROBE_SPENT.get(pid) }.is_some();
    if !told && PROBE_SPENT.insert(pid, window, BPF_NOEXIST as u64).is_ok() {
        emit_share_spent(window);
        // SAFETY: there is no program in it to go on with.
        unsafe { NO_PROGRAM.tail_call(ctx, 0) };
    }
}

/// Whether the probe sits on the branch of a check of the stack, and it is taken.
#[inline(always)]
fn stack_grows(ctx: &ProbeContext) -> bool {
    // SAFETY: valid in programs of uprobes (Linux 5.15).
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if cookie & cookie::STACK_CHECK == 0 {
        return false;
    }
    let words = ctx.as_ptr() as *const u64;
    if is_arm64() {
        // `b.ls`: taken where C is clear or Z is set, bits 29 and 30 of `pstate`.
        // SAFETY: the context of a uprobe's program are the thread's registers; the
        // verifier allows a load of each at its constant offset.
        let flags = unsafe { core::ptr::read_volatile(words.add(33)) };
        flags >> 29 & 1 == 0 || flags >> 30 & 1 != 0
    } else {
        // `jbe`: taken where CF or ZF is set, bits 0 and 6 of the flags.
        // SAFETY: as above.
        let flags = unsafe { core::ptr::read_volatile(words.add(18)) };
        flags & 0x41 != 0
    }
}
