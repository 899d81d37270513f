//! The eBPF object: crate attributes here, programs in `programs/`. Built for
//! the host it is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// Atomic additions: the compiler has no atomic types for BPF, as the oldest
// processor it knows can neither exchange nor compare.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features))]

#[cfg(target_arch = "bpf")]
mod programs;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// Verified programs do not panic; the compiler wants a handler all the same.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Programs that call the kernel's tracing helpers must declare a licence that
/// is compatible with the GPL.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
