//! The user registers of the interrupted thread, on both architectures. One
//! object serves both: userspace says which at load, and the verifier drops
//! the branch that is never taken.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs},
    programs::{PerfEventContext, ProbeContext},
};
use profiler_ebpf::wire::Segment;

/// Not zero on arm64.
#[unsafe(no_mangle)]
static ARM64: u8 = 0;

/// User addresses lie below this: half of the canonical space on x86-64, and
/// at most 52 bits on arm64.
const USER_END: u64 = 1 << 56;

/// What a stack walk starts from; all zero where it could not be had. (No
/// `Option`: the compiler would leave the fields of `None` unset, which the
/// verifier refuses to see copied.)
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct UserRegisters {
    pub ip: u64,
    pub sp: u64,
    pub fp: u64,
    /// The link register; 0 on x86-64.
    pub lr: u64,
    /// The register that holds `g` (src/cmd/compile/abi-internal.md): `x28` on
    /// arm64; `r14` on x86-64, where assembly and C use it for something else.
    pub g: u64,
}

impl UserRegisters {
    /// Those that a segment begins with.
    #[inline(always)]
    pub fn of(segment: &Segment) -> Self {
        Self {
            ip: segment.ip,
            sp: segment.sp,
            fp: segment.fp,
            lr: segment.lr,
            g: 0,
        }
    }
}

/// The place of each register in `struct pt_regs`, in words: arch/x86/include/asm/ptrace.h, arch/arm64/include/asm/ptrace.h.
mod x86 {
    pub const G: usize = 1;
    pub const FP: usize = 4;
    pub const BX: usize = 5;
    pub const AX: usize = 10;
    pub const CX: usize = 11;
    pub const IP: usize = 16;
    pub const SP: usize = 19;
}
mod arm64 {
    pub const G: usize = 28;
    pub const FP: usize = 29;
    pub const LR: usize = 30;
    pub const SP: usize = 31;
    pub const IP: usize = 32;
}

/// Whether the machine is an arm64 one.
#[inline(always)]
pub fn is_arm64() -> bool {
    // SAFETY: set before the load and never after; volatile, so that the
    // compiler does not take the initial value for the final one.
    unsafe { core::ptr::read_volatile(&raw const ARM64) != 0 }
}

/// The registers of user mode, and whether the tick interrupted user mode.
#[inline(always)]
pub fn user_registers(ctx: &PerfEventContext) -> (UserRegisters, bool) {
    let interrupted = interrupted(ctx);
    if is_user(&interrupted) {
        return (interrupted, true);
    }
    let saved = at_kernel_entry();
    if is_user(&saved) {
        (saved, false)
    } else {
        (UserRegisters::default(), false)
    }
}

#[inline(always)]
fn is_user(registers: &UserRegisters) -> bool {
    registers.ip != 0 && registers.ip < USER_END
}

/// The registers at a probe.
#[inline(always)]
pub fn probed_registers(ctx: &ProbeContext) -> UserRegisters {
    // SAFETY: the context of a uprobe's program are the thread's registers.
    unsafe { first_in(ctx.as_ptr()) }
}

/// The instruction that a probe sits on. What the kernel says of it (`bpf_get_func_ip`) is 0
/// before Linux 6.6.
#[inline(always)]
pub fn probed_ip(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context of a uprobe's program are the thread's registers.
    unsafe { ip_in(ctx.as_ptr()) }
}

/// Where a tick interrupted user mode; 0 where it interrupted the kernel.
#[inline(always)]
pub fn interrupted_user_ip(ctx: &PerfEventContext) -> u64 {
    // SAFETY: the context of a perf-event program begins with the interrupted registers.
    let ip = unsafe { ip_in(ctx.as_ptr()) };
    if ip < USER_END { ip } else { 0 }
}

/// # Safety
/// `ctx` is a context that begins with registers.
#[inline(always)]
unsafe fn ip_in(ctx: *mut c_void) -> u64 {
    let words = ctx as *const u64;
    // SAFETY: the caller's; the verifier allows a load of each at its constant offset.
    let word = |index: usize| unsafe { core::ptr::read_volatile(words.add(index)) };
    if is_arm64() {
        let ip = word(arm64::IP);
        // Asked once more, so that the branches do not end alike: of two loads at their
        // end the compiler makes one at an address that is not constant.
        if is_arm64() { ip } else { 0 }
    } else {
        word(x86::IP)
    }
}

/// The arguments of a Go function at a probe on its prologue, and the goroutine: by
/// Go's own calling convention (src/cmd/compile/abi-internal.md), since 1.17.
#[derive(Clone, Copy)]
pub struct Arguments {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub g: u64,
}

/// See [`Arguments`].
#[inline(always)]
pub fn arguments(ctx: &ProbeContext) -> Arguments {
    let words = ctx.as_ptr() as *const u64;
    let word = |index: usize| {
        // SAFETY: as above; the verifier allows a load of each at its constant offset.
        unsafe { core::ptr::read_volatile(words.add(index)) }
    };
    // Outside of the branch: of two loads at its end the compiler makes one at an
    // address that is not constant.
    let (ax, bx, cx, r14) = (word(x86::AX), word(x86::BX), word(x86::CX), word(x86::G));
    let (x0, x1, x2) = (word(0), word(1), word(2));
    if is_arm64() {
        Arguments {
            a: x0,
            b: x1,
            c: x2,
            g: word(arm64::G),
        }
    } else {
        Arguments {
            a: ax,
            b: bx,
            c: cx,
            g: r14,
        }
    }
}

#[inline(always)]
fn interrupted(ctx: &PerfEventContext) -> UserRegisters {
    // SAFETY: the context of a perf-event program begins with the interrupted
    // registers.
    unsafe { first_in(ctx.as_ptr()) }
}

/// The registers that a context begins with.
///
/// # Safety
/// It begins with them; the verifier allows a load of each at its constant offset.
#[inline(always)]
unsafe fn first_in(ctx: *mut c_void) -> UserRegisters {
    let words = ctx as *const u64;
    // SAFETY: the caller's.
    unsafe {
        // Outside of the branch: of two loads at its end the compiler makes one
        // at an address that is not constant.
        let r14 = core::ptr::read_volatile(words.add(x86::G));
        if is_arm64() {
            UserRegisters {
                ip: core::ptr::read_volatile(words.add(arm64::IP)),
                sp: core::ptr::read_volatile(words.add(arm64::SP)),
                fp: core::ptr::read_volatile(words.add(arm64::FP)),
                lr: core::ptr::read_volatile(words.add(arm64::LR)),
                g: core::ptr::read_volatile(words.add(arm64::G)),
            }
        } else {
            UserRegisters {
                ip: core::ptr::read_volatile(words.add(x86::IP)),
                sp: core::ptr::read_volatile(words.add(x86::SP)),
                fp: core::ptr::read_volatile(words.add(x86::FP)),
                lr: 0,
                g: r14,
            }
        }
    }
}

/// The registers of user mode, as the kernel saved them when the thread entered
/// it; for programs that run in the kernel on the thread's behalf.
#[inline(always)]
pub fn saved_user_registers() -> UserRegisters {
    let saved = at_kernel_entry();
    if is_user(&saved) {
        saved
    } else {
        UserRegisters::default()
    }
}

/// A number for where in the program the thread entered the kernel: the same
/// instruction at the same depth of the stack. Never 0.
#[inline(always)]
pub fn saved_place() -> u32 {
    // SAFETY: as in `at_kernel_entry`.
    let saved = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const u64;
    let (ip, sp) = match is_arm64() {
        true => (saved_word(saved, arm64::IP), saved_word(saved, arm64::SP)),
        false => (saved_word(saved, x86::IP), saved_word(saved, x86::SP)),
    };
    // Fibonacci hashing (Knuth): the upper half depends on all bits.
    let mixed = (ip ^ sp.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32 | 1 << 31
}

/// The registers that the kernel saved when the thread entered it.
#[inline(always)]
fn at_kernel_entry() -> UserRegisters {
    // SAFETY: both helpers are valid for the current task (Linux 5.15).
    let saved = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const u64;
    if is_arm64() {
        UserRegisters {
            ip: saved_word(saved, arm64::IP),
            sp: saved_word(saved, arm64::SP),
            fp: saved_word(saved, arm64::FP),
            lr: saved_word(saved, arm64::LR),
            g: saved_word(saved, arm64::G),
        }
    } else {
        UserRegisters {
            ip: saved_word(saved, x86::IP),
            sp: saved_word(saved, x86::SP),
            fp: saved_word(saved, x86::FP),
            lr: 0,
            g: saved_word(saved, x86::G),
        }
    }
}

#[inline(always)]
fn saved_word(saved: *const u64, index: usize) -> u64 {
    let mut word = 0u64;
    // SAFETY: a kernel address; the helper does not fault, and writes zero
    // where it fails.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut word).cast::<c_void>(),
            8,
            saved.wrapping_add(index).cast::<c_void>(),
        );
    }
    word
}
