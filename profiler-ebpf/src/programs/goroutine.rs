//! The goroutine that runs on the current thread, by the layout of its runtime
//! that userspace found in the binary. Everything read here is the target's
//! word for it: bounded, and never followed without a limit.

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use profiler_ebpf::wire::{FRAME_SOUND_BYTES, GoLayout, labels};

use super::{
    memory::{Block, read_word, read_words},
    registers::{UserRegisters, is_arm64},
};

/// Where `task_struct` keeps the thread's `fs` base, in bytes; 0 where that is
/// not known, as on arm64, which has `g` in a register.
#[unsafe(no_mangle)]
static FS_BASE_OFFSET: u32 = 0;

/// Linux maps nothing below by default (`vm.mmap_min_addr`).
const LEAST_ADDRESS: u64 = 64 * 1024;

/// Go's largest stack (`runtime.maxstackceiling`).
pub const MAX_STACK_BYTES: u64 = 2 << 30;

/// Byte offset of `g.stack.hi`: the second word, in every version.
const G_STACK_HI: u64 = 8;

/// The goroutine of the current thread.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Goroutine {
    /// The address of its `g`; 0 where the thread runs none.
    pub g: u64,
    /// Its id; 0 where the thread runs none.
    pub id: u64,
    /// The value of its `g.labels`; 0 where it has none or their form is not
    /// known.
    pub label_set: u64,
    /// The `g` of the stack that the thread is on: its own, or another of the
    /// thread's; 0 where there is none.
    on_thread: u64,
    /// Whether the thread is on another stack than the goroutine's: the system
    /// stack or the signal stack.
    pub left: bool,
    /// Whether that is the signal stack.
    pub on_signal_stack: bool,
}

/// Finds the goroutine; none where the layout is not known. Uses `block`.
#[inline(always)]
pub fn current(layout: &GoLayout, registers: &UserRegisters, block: &mut Block) -> Goroutine {
    let none = Goroutine::default();
    if layout.known == 0 {
        return none;
    }
    let at_hand = in_register(layout, registers, block);
    if at_hand.g != 0 {
        return at_hand;
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
    let mut goroutine = Goroutine {
        g,
        on_thread,
        ..none
    };
    if g != 0 {
        goroutine.id = read_word(g.wrapping_add(layout.g_goid as u64));
        if layout.labels != labels::UNKNOWN {
            goroutine.label_set = read_word(g.wrapping_add(layout.g_labels as u64));
        }
    }
    if g != on_thread {
        let signal = read_word(m.wrapping_add(layout.m_gsignal as u64));
        goroutine.left = g != 0;
        goroutine.on_signal_stack = signal == on_thread;
    }
    goroutine
}

/// The goroutine of a `g` that no thread runs.
#[inline(always)]
pub fn parked(layout: &GoLayout, g: u64) -> Goroutine {
    let mut goroutine = Goroutine {
        g,
        id: read_word(g.wrapping_add(layout.g_goid as u64)),
        on_thread: g,
        ..Goroutine::default()
    };
    if layout.labels != labels::UNKNOWN {
        goroutine.label_set = read_word(g.wrapping_add(layout.g_labels as u64));
    }
    goroutine
}

/// The goroutine that Go code has in a register, if it is on its own stack: what
/// else assembly has there is no `g` with this stack, and only goroutines have an
/// id (`runtime.newproc1`, `runtime.oneNewExtraM`). That spares most samples the
/// way through the thread and its `m`, of which nothing is in the cache.
#[inline(always)]
fn in_register(layout: &GoLayout, registers: &UserRegisters, block: &mut Block) -> Goroutine {
    let none = Goroutine::default();
    let g = registers.g;
    // A read that fails takes as long as ten that do not.
    if !layout.text.holds(registers.ip) || g < LEAST_ADDRESS || !g.is_multiple_of(8) {
        return none;
    }
    let (id, set) = (layout.g_goid as usize / 8, layout.g_labels as usize / 8);
    // One long read takes less than three short ones.
    let words = if id > set { id } else { set } + 1;
    if !block.fill(g, words) || !holds(block.words(0), registers.sp) {
        return none;
    }
    let [id] = block.words(id);
    let [set] = block.words(set);
    if id == 0 {
        return none;
    }
    let known = layout.labels != labels::UNKNOWN;
    Goroutine {
        g,
        id,
        label_set: if known { set } else { 0 },
        on_thread: g,
        ..none
    }
}

/// The address past the goroutine's own stack.
#[inline(always)]
pub fn own_stack_top(g: u64) -> u64 {
    read_word(g.wrapping_add(G_STACK_HI))
}

/// Whether an address lies in the goroutine's own stack, whose bounds are the
/// first two words of `g`, in every version.
#[inline(always)]
pub fn own_stack_holds(goroutine: &Goroutine, address: u64) -> bool {
    holds(read_words(goroutine.g), address)
}

/// Where the runtime entered the system stack of the thread: `m.g0` is the
/// first field of `m`, in every version. 0 where that is not known.
#[inline(always)]
pub fn system_stack_top(layout: &GoLayout, goroutine: &Goroutine) -> u64 {
    if goroutine.on_thread == 0 {
        return 0;
    }
    let m = read_word(goroutine.on_thread.wrapping_add(layout.g_m as u64));
    let system = read_word(m);
    read_word(system.wrapping_add(layout.g_sched_sp as u64))
}

/// The registers that the runtime saved when the goroutine left its stack.
///
/// After a callback from C the frame pointer is not what it was: cgocallback
/// puts back only the other two. A goroutine left through `asmcgocall` has it
/// where [`outer_fp`] looks.
#[inline(always)]
pub fn saved_registers(layout: &GoLayout, g: u64) -> UserRegisters {
    let sp = read_word(g.wrapping_add(layout.g_sched_sp as u64));
    let saved = read_word(g.wrapping_add(layout.g_sched_bp as u64));
    let outer = match saved.wrapping_sub(sp) < FRAME_SOUND_BYTES {
        true => 0,
        false => outer_fp(layout, sp),
    };
    let fp = if outer != 0 { outer } else { saved };
    UserRegisters {
        ip: read_word(g.wrapping_add(layout.g_sched_pc as u64)),
        sp,
        fp,
        lr: 0,
        g,
    }
}

/// Where Go's outer part left the goroutine's stack to call the C that called
/// back. `fp` is the frame whose return address lies in `runtime.cgocallback`:
/// its caller's frame holds what g.sched held, its return address g.sched.pc.
#[inline(always)]
pub fn outer_sp(callback_delta: u64, fp: u64) -> u64 {
    fp.wrapping_add(24 + callback_delta)
}

/// The registers that Go's outer part was left with, as above.
#[inline(always)]
pub fn outer_registers(layout: &GoLayout, fp: u64) -> UserRegisters {
    let sp = outer_sp(layout.callback_delta as u64, fp);
    UserRegisters {
        ip: read_word(sp.wrapping_sub(8)),
        sp,
        fp: outer_fp(layout, sp),
        lr: 0,
        g: 0,
    }
}

/// The frame pointer where the runtime left the goroutine's stack at `sp` to
/// call C; 0 where there is none.
#[inline(always)]
fn outer_fp(layout: &GoLayout, sp: u64) -> u64 {
    let fp = sp.wrapping_add(layout.cgocall_frame as u64);
    let sound = read_word(fp).wrapping_sub(fp) < FRAME_SOUND_BYTES;
    if sound { fp } else { 0 }
}

/// The `g` of the stack that the thread is on.
#[inline(always)]
fn current_g(layout: &GoLayout, registers: &UserRegisters) -> u64 {
    if is_arm64() {
        return registers.g;
    }
    // SAFETY: set before the load and never after.
    let offset = unsafe { core::ptr::read_volatile(&raw const FS_BASE_OFFSET) };
    if offset == 0 {
        return 0;
    }
    // SAFETY: the current task is valid, and the verifier checks by the kernel's
    // types that a word lies there.
    let base = unsafe {
        let task = bpf_get_current_task_btf() as *const u8;
        core::ptr::read_volatile(task.add(offset as usize).cast::<u64>())
    };
    read_word(base.wrapping_add_signed(layout.tls_offset as i64))
}

/// Whether an address lies in a stack with these bounds.
#[inline(always)]
fn holds([lo, hi]: [u64; 2], address: u64) -> bool {
    let bytes = hi.wrapping_sub(lo);
    bytes <= MAX_STACK_BYTES && address.wrapping_sub(lo) < bytes
}
