//! Faces `programs/lifecycle.rs`: programs begun, threads started, processes
//! that exit.

use anyhow::{Context, Result, anyhow};
use aya::{Ebpf, programs::RawTracePoint};

pub(super) fn attach(ebpf: &mut Ebpf) -> Result<()> {
    for hook in ["sched_process_exec", "task_newtask", "sched_process_exit"] {
        let program: &mut RawTracePoint = ebpf
            .program_mut(hook)
            .ok_or_else(|| anyhow!("the eBPF object has no program {hook}"))?
            .try_into()?;
        program
            .load()
            .with_context(|| format!("the kernel refuses the eBPF program {hook}"))?;
        program
            .attach(hook)
            .with_context(|| format!("cannot attach to the tracepoint {hook}"))?;
    }
    Ok(())
}
