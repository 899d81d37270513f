//! What the programs that follow waits share: where a process keeps what, and which
//! waits are wanted.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::map, maps::HashMap};
use profiler_ebpf::wire::{WaitKey, WaitLayout};

use super::memory::read_word;

/// Most processes whose waits are followed at a time.
const MAX_PROCESSES: u32 = 1024;

/// By pid.
#[map]
pub static WAIT_LAYOUTS: HashMap<u32, WaitLayout> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// An address in the memory of the current process.
#[inline(always)]
pub fn key(address: u64) -> WaitKey {
    WaitKey {
        address,
        pid: bpf_get_current_pid_tgid() >> 32,
    }
}

/// What a goroutine waits for, or waited for last.
#[inline(always)]
pub fn reason_of(layout: &WaitLayout, g: u64) -> u64 {
    read_word(g.wrapping_add(layout.g_wait_reason as u64)) & 0xff
}
