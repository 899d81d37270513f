//! Looks what the processes of open windows are at: in user mode or in the kernel. The
//! tick of a perf event on every CPU, which userspace turns on for windows only.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::perf_event, programs::PerfEventContext};

use super::{budget::tick, registers::interrupted_user_ip};

#[perf_event]
fn probe_tick(ctx: PerfEventContext) -> u32 {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    tick(pid, interrupted_user_ip(&ctx));
    0
}
