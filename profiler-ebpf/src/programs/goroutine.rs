//! The goroutine that runs on the current thread, by the layout of its runtime
//! that userspace found in the binary. Everything read here is the target's
//! word for it: bounded, and never followed without a limit.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel};
use profiler_ebpf::wire::GoLayout;

use super::{registers::UserRegisters, stack::read_word};

/// Where `task_struct` keeps the thread's `fs` base, in bytes; 0 where that is
/// not known, as on arm64, which has `g` in a register.
#[unsafe(no_mangle)]
static FS_BASE_OFFSET: u32 = 0;

/// The goroutine of the current thread.
#[derive(Clone, Copy, Default)]
pub struct Goroutine {
    /// The address of its `g`; 0 where the thread runs none.
    pub g: u64,
    /// Whether the thread is on another stack than the goroutine's: the system
    /// stack or the signal stack.
    pub left: bool,
    /// Whether that is the signal stack.
    pub on_signal_stack: bool,
}

/// Finds the goroutine; none where the layout is not known.
#[inline(always)]
pub fn current(layout: &GoLayout, registers: &UserRegisters) -> Goroutine {
    let none = Goroutine::default();
    if layout.known == 0 {
        return none;
    }
    let on_thread = current_g(layout, registers);
    if on_thread == 0 {
        return none;
    }
    let m = read_word(on_thread.wrapping_add(layout.g_m as u64));
    if m == 0 {
        return none;
    }
    let g = read_word(m.wrapping_add(layout.m_curg as u64));
    if g == 0 || g == on_thread {
        return Goroutine { g, ..none };
    }
    let signal = read_word(m.wrapping_add(layout.m_gsignal as u64));
    Goroutine {
        g,
        left: true,
        on_signal_stack: signal == on_thread,
    }
}

/// The registers that the runtime saved when the goroutine left its stack.
#[inline(always)]
pub fn saved_registers(layout: &GoLayout, g: u64) -> UserRegisters {
    UserRegisters {
        ip: read_word(g.wrapping_add(layout.g_sched_pc as u64)),
        sp: read_word(g.wrapping_add(layout.g_sched_sp as u64)),
        fp: read_word(g.wrapping_add(layout.g_sched_bp as u64)),
        lr: 0,
        g,
    }
}

/// The `g` of the stack that the thread is on.
#[inline(always)]
fn current_g(layout: &GoLayout, registers: &UserRegisters) -> u64 {
    // SAFETY: set before the load and never after.
    let offset = unsafe { core::ptr::read_volatile(&raw const FS_BASE_OFFSET) };
    if offset == 0 {
        return registers.g;
    }
    let mut base = 0u64;
    // SAFETY: the current task is valid; the read does not fault.
    unsafe {
        let task = bpf_get_current_task();
        bpf_probe_read_kernel(
            (&raw mut base).cast::<c_void>(),
            8,
            (task + offset as u64) as *const c_void,
        );
    }
    read_word(base.wrapping_add_signed(layout.tls_offset as i64))
}
